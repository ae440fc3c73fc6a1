//! The deterministic simulation: the coordinator and the participants as they ship, in one
//! process, in a world whose network, clock, disk and servers are made from a seed.
//!
//! A run has a safety phase, in which faults drawn from the seed overlap, and a liveness phase, in
//! which everything heals and everything must come to its end in a bounded time. Clients keep a
//! record of what they were told; the invariants of the design's section 7 are judged while the
//! world runs and at its end. The same seed gives the same events, byte by byte.
//!
//! | part | what it owns |
//! |---|---|
//! | [`chance`] | numbers from a seed |
//! | [`plan`] | what a seed stands for: the cluster, its tempers, its faults |
//! | [`host`] | a machine with a clock and a process |
//! | [`net`] | connections, cuts, resets, deaths |
//! | [`wire`] | messages of a link: seen, doubled, delayed, brought back |
//! | [`disk`] | the disk under the decision log |
//! | [`rm`] | the server behind a participant: time and a record around the fake |
//! | [`log`] | the decision log, watched |
//! | [`crash`] | crash points |
//! | [`client`] | clients, and what they were told |
//! | [`judge`] | facts and invariants |
//! | [`world`] | all of them together, step by step |
//! | [`tally`] | many seeds, added up |
//! | [`run`](mod@run) | one seed, from its beginning to its verdict |

pub mod chance;
pub mod client;
pub mod crash;
pub mod disk;
pub mod faults;
pub mod host;
pub mod judge;
pub mod log;
pub mod net;
pub mod operator;
pub mod oracle;
pub mod plan;
pub mod rm;
pub mod run;
pub mod tally;
pub mod trace;
pub mod wire;
pub mod world;
