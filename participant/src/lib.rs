//! The participant: the daemon in front of one MySQL or MariaDB server.

pub mod app;
pub mod config;
pub mod driver;
pub mod inquiry;
pub mod link;
pub mod migrate;
pub mod prune;
pub mod resource;
pub mod rpc;
