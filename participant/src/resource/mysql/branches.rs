//! The branches that hold a connection, or are being worked on, in this process.
//!
//! One party works on a branch at a time: whoever has it [`Held`]. Dropping that closes the
//! branch's connection and forgets the branch, unless it was kept with a state.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use concord_core::id::BranchId;
use concord_core::reason::Reason;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant as Deadline, timeout_at};

use super::pool::Conn;

/// What a branch that nobody works on is waiting for.
#[derive(Debug)]
pub enum State {
    /// Nothing is known.
    Empty,
    /// Interactive: statements, or the end.
    Active {
        /// Its connection, inside `XA START`.
        conn: Conn,
        /// When its time is over.
        deadline: Deadline,
    },
    /// The outcome; its connection is the only one that may finish it.
    Prepared(Conn),
    /// A rollback, after an error.
    Failed {
        /// The error.
        reason: Reason,
        /// Whether it is certainly rolled back already.
        rolled_back: bool,
    },
}

#[derive(Debug)]
struct Slot {
    /// The lease of the connection that runs something for the branch now; 0 for none.
    runs_on: AtomicU64,
    state: Arc<tokio::sync::Mutex<State>>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Branches {
    slots: Mutex<HashMap<BranchId, Arc<Slot>>>,
}

impl Branches {
    fn lock(&self) -> MutexGuard<'_, HashMap<BranchId, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins work on a branch that is not known here; `None` when it is.
    pub fn open(self: &Arc<Self>, branch: BranchId) -> Option<Held> {
        let mut slots = self.lock();
        if slots.contains_key(&branch) {
            return None;
        }
        let state = Arc::new(tokio::sync::Mutex::new(State::Empty));
        let guard = Arc::clone(&state).try_lock_owned().ok()?;
        let slot = Arc::new(Slot {
            runs_on: AtomicU64::new(0),
            state,
        });
        slots.insert(branch, Arc::clone(&slot));
        drop(slots);
        Some(Held {
            branches: Arc::clone(self),
            branch,
            slot,
            guard,
            keep: false,
        })
    }

    /// Waits until nobody works on the branch, and takes it. `None` when it is not known here.
    pub async fn take(
        self: &Arc<Self>,
        branch: BranchId,
        deadline: Deadline,
    ) -> Result<Option<Held>, ()> {
        loop {
            let Some(slot) = self.lock().get(&branch).cloned() else {
                return Ok(None);
            };
            let locked = timeout_at(deadline, Arc::clone(&slot.state).lock_owned()).await;
            let guard = locked.map_err(|_| ())?;
            let current = self
                .lock()
                .get(&branch)
                .is_some_and(|now| Arc::ptr_eq(now, &slot));
            if current {
                let branches = Arc::clone(self);
                return Ok(Some(Held {
                    branches,
                    branch,
                    slot,
                    guard,
                    keep: false,
                }));
            }
        }
    }

    /// The lease of the connection that runs something for the branch now.
    pub fn running(&self, branch: BranchId) -> Option<u64> {
        let lease = self.lock().get(&branch)?.runs_on.load(Ordering::Acquire);
        (lease != 0).then_some(lease)
    }
}

/// The right to work on a branch.
#[derive(Debug)]
pub struct Held {
    branches: Arc<Branches>,
    branch: BranchId,
    slot: Arc<Slot>,
    guard: OwnedMutexGuard<State>,
    keep: bool,
}

impl Held {
    /// Takes the state out.
    pub fn state(&mut self) -> State {
        std::mem::replace(&mut *self.guard, State::Empty)
    }

    /// From now on a cancel interrupts this connection, for as long as it stays in these hands.
    pub fn runs_on(&self, conn: &Conn) {
        self.slot.runs_on.store(conn.lease(), Ordering::Release);
    }

    /// Ends the work and leaves the branch in a state.
    pub fn keep(mut self, state: State) {
        *self.guard = state;
        self.keep = true;
    }

    /// Leaves it failed; whoever comes next is told the reason, which is also returned.
    pub fn keep_failed(self, reason: Reason, rolled_back: bool) -> Reason {
        self.keep(State::Failed {
            reason: reason.clone(),
            rolled_back,
        });
        reason
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.slot.runs_on.store(0, Ordering::Release);
        if !self.keep {
            *self.guard = State::Empty;
            self.branches.lock().remove(&self.branch);
        }
    }
}
