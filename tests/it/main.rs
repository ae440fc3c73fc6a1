//! Shipped code against real servers and real processes: one binary, a module for each subject.

mod bad_input;
mod conformance;
mod foreign;
mod heuristic;
mod model;
mod participant;
mod payments;
mod recovery;
mod unsafe_server;
