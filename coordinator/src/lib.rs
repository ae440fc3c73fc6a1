//! The coordinator: it runs two-phase commit, keeps the decision log and serves the gateway.

pub mod app;
pub mod config;
pub mod counters;
pub mod driver;
pub mod engine;
pub mod former;
pub mod gateway;
pub mod handle;
pub mod history;
pub mod log;
pub mod mint;
pub mod participants;
pub mod recovery;
pub mod surroundings;
