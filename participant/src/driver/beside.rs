//! What the driver keeps beside the machine's branches: since when, and until when.
//!
//! Exactly the branches that the machine knows are here, so nothing of it can grow without bound.
//! Time is only looked at: nothing but the expiry of an unprepared branch depends on it.

use std::collections::{BTreeSet, HashMap};
use std::mem::{Discriminant, discriminant};
use std::time::{Duration, SystemTime};

use concord_core::id::BranchId;
use concord_core::message::{Finish, FromParticipant};
use concord_core::participant::{Effect, Entry, Participant, State};
use concord_core::transaction::BranchState;
use futures::StreamExt;
use tokio::time::Instant;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

use super::event::{BranchView, Payload};

/// A branch that expired, and is still here after this many seconds, is looked at again: its
/// statement may not have ended, or its coordinator never asked why it failed.
const EXPIRED_AGAIN_S: u64 = 60;

#[derive(Debug)]
struct Kept {
    state: Discriminant<State>,
    since: Instant,
    timer: Option<Key>,
    /// What a one-phase commit returned that failed or whose end is not known yet: its answer
    /// waits for the ledger.
    results: Payload,
}

/// What is kept beside the machine.
#[derive(Debug, Default)]
pub(super) struct Beside {
    kept: HashMap<BranchId, Kept>,
    timers: DelayQueue<BranchId>,
    /// Branches that ended while the server was listing the prepared ones: its list may still
    /// hold them, and they must not come to life again. None when no sweep is under way.
    ended: Option<BTreeSet<BranchId>>,
}

impl Beside {
    /// Takes note of what a step made of one branch; `timeout` is that of an interactive branch
    /// that is just beginning.
    pub(super) fn note(
        &mut self,
        machine: &Participant,
        branch: BranchId,
        timeout: Option<Duration>,
    ) {
        let Some(entry) = machine.branch(branch) else {
            if let Some(Kept {
                timer: Some(key), ..
            }) = self.kept.remove(&branch)
            {
                self.timers.remove(&key);
            }
            if let Some(ended) = &mut self.ended {
                ended.insert(branch);
            }
            return;
        };
        let state = discriminant(&entry.state);
        let kept = self.kept.entry(branch).or_insert_with(|| Kept {
            state,
            since: Instant::now(),
            timer: None,
            results: Payload::None,
        });
        if kept.state != state {
            kept.state = state;
            kept.since = Instant::now();
        }
        if let Some(timeout) = timeout
            && kept.timer.is_none()
            && entry.state == State::Beginning
        {
            kept.timer = Some(self.timers.insert(branch, timeout));
        }
    }

    /// Brings results together with the answer that they belong to, which may leave in a later
    /// step than the one that the results came with.
    pub(super) fn attach(
        &mut self,
        branch: BranchId,
        effects: &[Effect],
        payload: Payload,
    ) -> Payload {
        let answers = effects.iter().any(|effect| match effect {
            Effect::Reply { message, .. } => match message {
                FromParticipant::Voted { .. } => true,
                FromParticipant::Finished { finish, .. } => match finish {
                    Finish::Committed | Finish::Aborted(_) => true,
                    Finish::Retry(_) | Finish::Damaged(_) => false,
                },
                FromParticipant::Begun { .. } | FromParticipant::Stale { .. } => false,
            },
            _ => false,
        });
        let Some(kept) = self.kept.get_mut(&branch) else {
            return payload;
        };
        match payload {
            Payload::Results(..) if !answers => {
                kept.results = payload;
                Payload::None
            }
            Payload::None if answers => std::mem::take(&mut kept.results),
            payload => payload,
        }
    }

    /// Takes note of all branches, after a step that concerns more than one.
    pub(super) fn note_all(&mut self, machine: &Participant) {
        let gone: BTreeSet<BranchId> = self
            .kept
            .keys()
            .copied()
            .filter(|branch| machine.branch(*branch).is_none())
            .collect();
        let known: Vec<BranchId> = machine.branches().map(|(branch, _)| branch).collect();
        for branch in gone.into_iter().chain(known) {
            self.note(machine, branch, None);
        }
    }

    /// The next branch whose time-out passes. Pending for ever when there is none.
    pub(super) async fn expired(&mut self) -> BranchId {
        match self.timers.next().await {
            Some(expired) => {
                let branch = expired.into_inner();
                if let Some(kept) = self.kept.get_mut(&branch) {
                    kept.timer = None;
                }
                branch
            }
            None => std::future::pending().await,
        }
    }

    /// Sets the clock again for a branch that expired and is still unprepared.
    pub(super) fn expire_again(&mut self, machine: &Participant, branch: BranchId) {
        let unprepared = machine
            .branch(branch)
            .is_some_and(|entry| match entry.state {
                State::Beginning
                | State::Active
                | State::Executing
                | State::Failed(_)
                | State::Aborting(_)
                | State::AbortLater => true,
                State::Working { .. } | State::Prepared | State::Committing(_) => false,
            });
        if let (true, Some(kept)) = (unprepared, self.kept.get_mut(&branch)) {
            let again = Duration::from_secs(EXPIRED_AGAIN_S);
            kept.timer = Some(self.timers.insert(branch, again));
        }
    }

    /// A sweep begins; false when one is under way.
    pub(super) fn begin_sweep(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.ended = Some(BTreeSet::new());
        true
    }

    /// A sweep ended: gives the branches that ended while it ran.
    pub(super) fn end_sweep(&mut self) -> BTreeSet<BranchId> {
        self.ended.take().unwrap_or_default()
    }

    /// A branch as seen from outside.
    pub(super) fn view(&self, branch: BranchId, entry: &Entry) -> BranchView {
        let age = self
            .kept
            .get(&branch)
            .map_or(Duration::ZERO, |kept| kept.since.elapsed());
        let now = SystemTime::now();
        BranchView {
            branch,
            state: state_of(&entry.state),
            since: now.checked_sub(age).unwrap_or(now),
            reason: match &entry.state {
                State::Failed(reason) => Some(reason.clone()),
                _ => entry.reason.clone(),
            },
        }
    }
}

fn state_of(state: &State) -> BranchState {
    match state {
        State::Beginning | State::Active | State::Executing => BranchState::Active,
        State::Failed(_) => BranchState::Aborted,
        State::Working { .. } => BranchState::Preparing,
        State::Prepared => BranchState::Prepared,
        State::Committing(_) => BranchState::Committing,
        State::Aborting(_) | State::AbortLater => BranchState::Aborting,
    }
}
