//! Shipped code against real servers and real processes: one binary, a module for each subject.

// A table of cases is read in one piece, and nothing here is on a hot path.
#![allow(clippy::too_many_lines, clippy::large_futures)]
#![allow(
    clippy::format_push_string,
    clippy::format_collect,
    clippy::manual_let_else
)]

mod bad_input;
mod bank;
mod command_line;
mod conformance;
mod crash_points;
mod deadlock;
mod foreign;
mod fuzz;
mod heuristic;
mod inventory;
mod isolation;
mod lost_results;
mod model;
mod older_data;
mod participant;
mod payments;
mod planted;
mod proxy;
mod recovery;
mod simulation;
mod style;
mod transactions;
mod unsafe_server;
mod up;
