//! What clients call: the services of the coordinator, on top of its driver.
//!
//! [`business`], [`bank`] and [`inventory`] see the driver through [`crate::engine`] alone.

pub mod admin;
pub mod bank;
pub mod business;
pub mod in_doubt;
pub mod inventory;
pub mod known;
pub mod migrations;
pub mod outcome;
pub mod placement;
pub mod plan;
pub mod rows;
pub mod status;
pub mod transactions;
pub mod turns;
pub mod view;
