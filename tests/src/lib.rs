//! What the tests share: a local cluster of real processes on real servers, as a user starts it,
//! and the proofs that run on it.

pub mod books;
pub mod cluster;
pub mod payments;
