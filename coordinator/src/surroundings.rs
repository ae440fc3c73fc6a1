//! What a coordinator takes from the machine that it runs on: the time of day, chance, and a
//! thread for its log.
//!
//! Everything else that happens to it comes over a connection or from its disk, and both are given
//! to it too ([`crate::app`]), so that a simulation can give others and have each run again,
//! exactly. Time that passes is tokio's, which a simulation owns anyway.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The machine, as a coordinator sees it.
pub trait Surroundings: fmt::Debug + Send + Sync + 'static {
    /// Milliseconds since 1970, by the machine's clock, which may be wrong and may be set.
    fn unix_ms(&self) -> u64;

    /// A random number that nobody can guess.
    fn random(&self) -> u128;

    /// None: the log is written by a thread of its own. Otherwise it is written by a task, which
    /// rests for so long before and after each batch, as a disk would make it.
    fn disk_pause(&self) -> Option<Duration>;
}

/// A real machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl Surroundings for Machine {
    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn random(&self) -> u128 {
        rand::random()
    }

    fn disk_pause(&self) -> Option<Duration> {
        None
    }
}
