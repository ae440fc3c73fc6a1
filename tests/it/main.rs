//! Shipped code against real servers and real processes: one binary, a module for each subject.

mod bad_input;
mod bank;
mod conformance;
mod foreign;
mod heuristic;
mod inventory;
mod model;
mod participant;
mod payments;
mod recovery;
mod transactions;
mod unsafe_server;
