//! A local cluster: real MySQL or MariaDB servers with private data folders, and the processes
//! in front of them.
//!
//! [`server`] runs one server and is what the tests use too; [`supervisor`] keeps a whole
//! cluster running for `concord up`. This module knows nothing of the commit protocol: it starts
//! programs, watches them, and asks them whether they are ready.

pub mod binary;
pub mod cluster;
pub mod config;
pub mod health;
pub mod keeper;
mod links;
pub mod lock;
pub mod ports;
pub mod process;
mod seed;
pub mod server;
pub mod state;
pub mod strays;
pub mod supervisor;
