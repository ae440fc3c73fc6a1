//! What is old enough to be forgotten.
//!
//! It owns the horizon that the machine is asked to move, and moves it in steps. It refuses to
//! trust the machine's clock: one that is wrong for a moment must neither forget what is young nor
//! stop what comes next.

use std::time::Duration;

use concord_core::coordinator::Input;
use concord_core::id::Gtrid;

use super::{Driver, DriverError, Link};

/// Transactions that are forgotten at once: the log deletes them in one commit, and no decision
/// becomes durable meanwhile.
const STEP: usize = 10_000;

impl Driver {
    /// Finds what is past its retention, but only while every participant has been connected
    /// for a while: one that was away may still have branches in doubt, and "never heard of it"
    /// must go on meaning "aborted" until it has asked.
    pub(super) fn find_forgettable(&mut self) {
        let settled = |link: &Link| link.since.elapsed() >= 3 * self.config.forget_interval;
        if !self
            .participants
            .iter()
            .all(|name| self.links.get(name).is_some_and(settled))
        {
            self.forgettable = Gtrid::MIN;
            return;
        }
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // A clock that is set forwards makes nothing older than it is, at once; one that was behind
        // is followed with time.
        let told = self.surroundings.unix_ms();
        let now = self.started_ms.saturating_add(ms(self.started.elapsed()));
        let ahead = told.saturating_sub(now);
        self.started_ms += ahead.min(ms(self.config.forget_interval));
        let now = now.min(told);
        let mut below = Gtrid::lowest_at(now.saturating_sub(ms(self.config.retention)));
        let surplus = self
            .machine
            .remembered()
            .saturating_sub(self.config.max_remembered);
        if surplus > 0 {
            below = below.max(self.machine.ended_at(surplus).unwrap_or(below));
        }
        // Whatever the clocks say, what comes next is above.
        self.forgettable = below.min(self.machine.highest_gtrid());
    }

    /// Forgets some of it.
    pub(super) fn forget_some(&mut self) -> Result<(), DriverError> {
        if self.forgettable <= self.machine.horizon() {
            return Ok(());
        }
        let step = self.machine.ended_at(STEP).unwrap_or(self.forgettable);
        let below = self.forgettable.min(step);
        self.input(Input::Forget { below })
    }
}
