//! What transactions look like from outside: the last ones with their states, and every change as
//! it happens.
//!
//! It is fed with effects, that is, only with what is durable. It decides nothing: losing it in a
//! crash costs a view, never an outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use concord_core::coordinator::Effect;
use concord_core::id::{Bqual, Epoch, Gtrid, ParticipantName, RequestId};
use concord_core::reason::Reason;
use concord_core::transaction::{BranchState, Transaction, TransactionState};
use tokio::sync::broadcast;

use crate::surroundings::Surroundings;

/// Changes that a slow watcher may lag behind before it misses some (and is told how many).
const WATCH_BACKLOG: usize = 8_192;

/// One branch.
#[derive(Clone, Debug)]
pub struct SeenBranch {
    /// Who has it.
    pub participant: ParticipantName,
    /// Its state.
    pub state: BranchState,
    /// What stands in its way, or why it aborted.
    pub reason: Option<Reason>,
    /// How often its outcome was asked for in vain.
    pub attempts: u32,
}

/// One transaction.
#[derive(Clone, Debug)]
pub struct SeenTransaction {
    /// Its id.
    pub gtrid: Gtrid,
    /// Its state.
    pub state: TransactionState,
    /// Its branches.
    pub branches: BTreeMap<Bqual, SeenBranch>,
    /// Why it aborted.
    pub reason: Option<Reason>,
    /// The client's request.
    pub request: Option<RequestId>,
    /// Unix ms.
    pub began_ms: u64,
    /// Unix ms.
    pub changed_ms: u64,
    /// The epoch that ran it.
    pub epoch: Epoch,
}

/// In vain this often, a branch makes its transaction count as stuck.
const STUCK_ATTEMPTS: u32 = 3;

impl SeenTransaction {
    fn new(gtrid: Gtrid, request: Option<RequestId>, epoch: Epoch, now: u64) -> Self {
        Self {
            gtrid,
            state: TransactionState::Init,
            branches: BTreeMap::new(),
            reason: None,
            request,
            began_ms: now,
            changed_ms: now,
            epoch,
        }
    }

    /// Whether it is decided and a branch keeps failing to acknowledge.
    pub fn is_stuck(&self) -> bool {
        self.branches
            .values()
            .any(|b| b.reason.is_some() && b.attempts >= STUCK_ATTEMPTS)
            && !self.is_over()
    }

    fn is_over(&self) -> bool {
        matches!(
            self.state,
            TransactionState::Committed | TransactionState::Aborted
        )
    }
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    /// The transaction.
    pub gtrid: Gtrid,
    /// Its state.
    pub state: TransactionState,
    /// The branch that changed, if one did.
    pub branch: Option<(Bqual, ParticipantName, BranchState)>,
    /// Why.
    pub reason: Option<Reason>,
    /// Unix ms.
    pub time_ms: u64,
}

#[derive(Debug, Default)]
struct Kept {
    transactions: BTreeMap<Gtrid, SeenTransaction>,
    over: BTreeSet<Gtrid>,
}

/// The last transactions, and who watches them.
#[derive(Clone, Debug)]
pub struct History {
    kept: Arc<Mutex<Kept>>,
    watchers: broadcast::Sender<Arc<Change>>,
    limit: usize,
    epoch: Epoch,
    surroundings: Arc<dyn Surroundings>,
}

impl History {
    /// Keeps all that are not over, and `limit` that are.
    pub fn new(limit: usize, epoch: Epoch, surroundings: Arc<dyn Surroundings>) -> Self {
        let (watchers, _) = broadcast::channel(WATCH_BACKLOG);
        Self {
            kept: Arc::default(),
            watchers,
            limit,
            epoch,
            surroundings,
        }
    }

    fn now(&self) -> u64 {
        self.surroundings.unix_ms()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every change from now on.
    pub fn watch(&self) -> broadcast::Receiver<Arc<Change>> {
        self.watchers.subscribe()
    }

    /// One transaction.
    pub fn get(&self, gtrid: Gtrid) -> Option<SeenTransaction> {
        self.kept().transactions.get(&gtrid).cloned()
    }

    /// The state of a transaction, as if it had just changed to it.
    pub fn state_of(&self, gtrid: Gtrid) -> Option<Change> {
        let tx = self.get(gtrid)?;
        Some(Change {
            gtrid,
            state: tx.state,
            branch: None,
            reason: tx.reason,
            time_ms: tx.changed_ms,
        })
    }

    /// Transactions below `before`, newest first, that `wanted` accepts.
    pub fn list(
        &self,
        before: Option<Gtrid>,
        limit: usize,
        wanted: impl Fn(&SeenTransaction) -> bool,
    ) -> Vec<SeenTransaction> {
        let kept = self.kept();
        let newest_first: Box<dyn Iterator<Item = &SeenTransaction>> = match before {
            Some(before) => Box::new(kept.transactions.range(..before).rev().map(|(_, tx)| tx)),
            None => Box::new(kept.transactions.values().rev()),
        };
        newest_first
            .filter(|tx| wanted(tx))
            .take(limit)
            .cloned()
            .collect()
    }

    /// A transaction that recovery found in the log.
    pub fn recovered(&self, tx: &Transaction) {
        let request = tx.request.as_ref().map(|request| request.id.clone());
        let mut seen = SeenTransaction::new(tx.gtrid, request, tx.epoch, self.now());
        seen.began_ms = tx.gtrid.unix_ms();
        seen.state = tx.state;
        seen.reason.clone_from(&tx.reason);
        seen.branches = tx
            .branches
            .iter()
            .map(|b| {
                let branch = SeenBranch {
                    participant: b.participant.clone(),
                    state: b.state,
                    reason: b.reason.clone(),
                    attempts: b.attempts,
                };
                (b.bqual, branch)
            })
            .collect();
        self.kept().transactions.insert(tx.gtrid, seen);
    }

    /// Takes note of an effect that was released.
    pub fn note(&self, effect: &Effect) {
        match effect {
            Effect::Began { gtrid, request } => {
                let request = request.as_ref().map(|request| request.id.clone());
                let seen = SeenTransaction::new(*gtrid, request, self.epoch, self.now());
                self.kept().transactions.insert(*gtrid, seen);
            }
            Effect::Changed {
                gtrid,
                state,
                reason,
            } => {
                self.changed(*gtrid, *state, reason.clone());
            }
            Effect::BranchChanged {
                branch,
                participant,
                state,
                reason,
                attempts,
            } => {
                let seen = SeenBranch {
                    participant: participant.clone(),
                    state: *state,
                    reason: reason.clone(),
                    attempts: *attempts,
                };
                self.branch_changed(branch.gtrid, branch.bqual, seen);
            }
            _ => {}
        }
    }

    fn changed(&self, gtrid: Gtrid, state: TransactionState, reason: Option<Reason>) {
        let now = self.now();
        {
            let mut kept = self.kept();
            let Some(tx) = kept.transactions.get_mut(&gtrid) else {
                return;
            };
            tx.state = state;
            tx.changed_ms = now;
            tx.reason.clone_from(&reason);
            if tx.is_over() {
                kept.over.insert(gtrid);
                if kept.over.len() > self.limit
                    && let Some(oldest) = kept.over.pop_first()
                {
                    kept.transactions.remove(&oldest);
                }
            }
        }
        self.publish(Change {
            gtrid,
            state,
            branch: None,
            reason,
            time_ms: now,
        });
    }

    fn branch_changed(&self, gtrid: Gtrid, bqual: Bqual, seen: SeenBranch) {
        let now = self.now();
        let state = {
            let mut kept = self.kept();
            let Some(tx) = kept.transactions.get_mut(&gtrid) else {
                return;
            };
            tx.changed_ms = now;
            // What somebody else did to a branch is what became of the transaction, long before
            // its other branches have ended.
            if seen.state == BranchState::Heuristic {
                tx.reason.clone_from(&seen.reason);
            }
            tx.branches.insert(bqual, seen.clone());
            tx.state
        };
        let branch = Some((bqual, seen.participant, seen.state));
        self.publish(Change {
            gtrid,
            state,
            branch,
            reason: seen.reason,
            time_ms: now,
        });
    }

    fn publish(&self, change: Change) {
        if self.watchers.receiver_count() > 0 {
            // Nobody listening any more is no error.
            let _ = self.watchers.send(Arc::new(change));
        }
    }
}
