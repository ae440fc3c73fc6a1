//! Who waits before the next attempt to connect, and for how long, after one has failed.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use concord_core::reason::Reason;

/// First pause after a failed connect; doubled up to the next one, with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Longest pause, without the jitter, which doubles it at most: how much later than the server a
/// participant may be back, while branches in doubt hold their locks.
const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// Pauses that grow until one attempt succeeds.
#[derive(Debug, Default)]
pub struct Backoff {
    pauses: Option<ExponentialBackoff>,
    /// Until then nobody tries, because of this.
    pause: Option<(Instant, Reason)>,
}

impl Backoff {
    /// Why nobody tries now. It is the failure itself: a server that is full is not one that is
    /// down.
    pub fn check(&self) -> Result<(), Reason> {
        match &self.pause {
            Some((until, reason)) if Instant::now() < *until => Err(reason.clone()),
            _ => Ok(()),
        }
    }

    /// An attempt has failed.
    pub fn begin(&mut self, reason: &Reason) {
        let pauses = self.pauses.get_or_insert_with(|| {
            ExponentialBuilder::default()
                .with_min_delay(BACKOFF_MIN)
                .with_max_delay(BACKOFF_MAX)
                .without_max_times()
                .with_jitter()
                .build()
        });
        let pause = pauses.next().unwrap_or(BACKOFF_MAX);
        self.pause = Some((Instant::now() + pause, reason.clone()));
    }
}
