//! Shipped code against real servers and real processes: one binary, a module for each subject.

mod conformance;
mod heuristic;
mod participant;
mod payments;
mod recovery;
mod unsafe_server;
