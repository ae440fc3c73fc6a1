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
    /// From which transaction on a participant may have unfinished branches. None unless each has
    /// been connected for a while, and has told it on its link: one that was away may have branches
    /// in doubt, and "never heard of it" must go on meaning "aborted" until they have ended. That
    /// it is connected does not mean that it can ask, which takes a connection the other way.
    ///
    /// What they told may be some seconds old. Nothing older than that can have come since: what
    /// this coordinator runs holds the horizon back by itself until each branch has ended, what it
    /// begins is above, and what a former one had sent was there before the link had been up for so
    /// long. Whatever comes later than that is refused there, as older than the horizon.
    fn unfinished_from(&self) -> Option<Gtrid> {
        let settled = |link: &&Link| link.since.elapsed() >= 3 * self.config.forget_interval;
        let of = |name| self.links.get(name).filter(settled)?.unfinished;
        let mut oldest = Gtrid::MAX;
        for name in &self.participants {
            oldest = oldest.min(of(name)?);
        }
        Some(oldest)
    }

    /// Finds what is past its retention, and older than all that a participant has unfinished.
    pub(super) fn find_forgettable(&mut self) {
        let Some(unfinished) = self.unfinished_from() else {
            self.forgettable = Gtrid::MIN;
            return;
        };
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
        self.forgettable = below.min(unfinished).min(self.machine.highest_gtrid());
    }

    /// Forgets some of it, once the log has deleted what was forgotten before.
    pub(super) fn forget_some(&mut self) -> Result<(), DriverError> {
        let horizon = self.machine.horizon();
        let under_way = self.told_horizon < horizon || self.forget.is_some() || self.forgetting;
        if under_way || self.forgettable <= horizon {
            return Ok(());
        }
        let step = self.machine.ended_at(STEP).unwrap_or(self.forgettable);
        let below = self.forgettable.min(step);
        self.input(Input::Forget { below })
    }
}
