//! What the tests share: a local cluster of real processes on real servers, as a user starts it,
//! and the proofs that run on it.

pub mod backlog;
pub mod books;
pub mod by_hand;
pub mod cases;
pub mod cluster;
pub mod fuzz;
pub mod in_flight;
pub mod isolation;
pub mod model;
pub mod payments;
pub mod proxy;
pub mod rig;
pub mod sim;
pub mod soak;
