//! The participant: the daemon in front of one MySQL or MariaDB server.

pub mod driver;
pub mod resource;
