//! The coordinator as a pure state machine: inputs in, [`Step`]s out.
//!
//! It owns what is known of every transaction that is not over, of those that ended within the
//! retention time, and of request ids. It refuses to know statements, clocks, sockets and files:
//! the driver attaches payloads by branch id and turns passed time into inputs.
//!
//! | what happens | appended (forced) | what may leave only after that |
//! |---|---|---|
//! | one-shot or Commit, several branches | nothing | Prepare to each |
//! | one-shot or Commit, one branch | `OnePhase` | Commit in one phase |
//! | the last vote is in, one is COMMIT | `Decision` | Commit to each prepared; DECIDED's reply |
//! | the last vote is in, all READ_ONLY | nothing | the reply |
//! | a vote ABORT, a deadline, a lost link, a rollback | nothing | Abort to each; the reply |
//! | the same, with a request id and a final reason | `Refused` | the reply |
//! | the last acknowledgement | `End` (not forced) | nothing: the reply waits for `Decision` |
//! | a branch finished otherwise than decided, or aborted | `Heuristic` | the reply |
//! | an inquiry | nothing | the answer, after the transaction's own records |
//! | ended transactions pass their retention | `Horizon` | the permission to delete ledger rows |

mod apply;
mod finish;
mod resolve;
mod run;
#[cfg(test)]
mod tests;
mod vote;

use std::collections::{BTreeMap, BTreeSet};

pub use apply::ApplyError;

use crate::id::{Bqual, BranchId, Epoch, Gtrid, ParticipantName, Request, RequestId};
use crate::limits::BRANCHES_MAX;
use crate::message::{Decision, FromParticipant, Outcome, ToParticipant};
use crate::planted::{self, Bug};
use crate::reason::Reason;
use crate::record::Record;
use crate::step::Step;
use crate::transaction::{Ack, BranchState, Transaction, TransactionState};

/// What happens to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// A client begins an interactive transaction under a fresh id.
    Begin { gtrid: Gtrid },
    /// The next statement of an interactive transaction is for this participant.
    Enlist {
        gtrid: Gtrid,
        participant: ParticipantName,
    },
    /// A client asks to commit an interactive transaction.
    Commit { gtrid: Gtrid, ack: Ack },
    /// A client sends a whole transaction. Branch n + 1 is on the n-th participant.
    Run {
        gtrid: Gtrid,
        branches: Vec<ParticipantName>,
        request: Option<Request>,
        ack: Ack,
        /// Whether a branch that wrote nothing may leave at its vote: not when SERIALIZABLE, for
        /// the other branches still acquire locks (two-phase locking).
        may_leave: bool,
    },
    /// A client rolls back or went away, or a statement failed.
    Abort { gtrid: Gtrid, reason: Reason },
    /// The transaction's time-out passed.
    Deadline { gtrid: Gtrid },
    /// A participant says something.
    Received {
        from: ParticipantName,
        message: FromParticipant,
    },
    /// The link to a participant is up, and nothing sent before arrives any more.
    LinkUp { participant: ParticipantName },
    /// The link to a participant is lost, with whatever was on it.
    LinkDown { participant: ParticipantName },
    /// Some time passed: outcomes that were not acknowledged may be sent again.
    Sweep,
    /// A participant asks what became of a branch.
    Inquire {
        from: ParticipantName,
        branch: BranchId,
        token: u64,
    },
    /// A client asks what became of a transaction.
    Look { gtrid: Gtrid, token: u64 },
    /// A client asks what became of a request.
    LookUp { request: RequestId, token: u64 },
    /// An operator finishes a branch by hand.
    Resolve(Resolve),
    /// Transactions below this one are past their retention time.
    Forget { below: Gtrid },
}

/// An operator's order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resolve {
    /// Which branch.
    pub branch: BranchId,
    /// Who has it.
    pub participant: ParticipantName,
    /// Commit, or else roll back.
    pub commit: bool,
    /// The outcome of another branch of the transaction, when one is known from a ledger.
    pub sibling: Option<bool>,
    /// Whether a contradiction is wanted.
    pub force: bool,
    /// The operator's words.
    pub reason: Reason,
    /// Given back with the answer.
    pub token: u64,
}

/// What the driver has to do once the step's records are durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Send a message.
    Send {
        to: ParticipantName,
        message: ToParticipant,
    },
    /// A branch is enlisted; `new` when it must be begun first.
    Enlisted {
        branch: BranchId,
        participant: ParticipantName,
        new: bool,
    },
    /// Tell the client of this transaction, and whoever joined it.
    Reply { gtrid: Gtrid, outcome: Outcome },
    /// The request is running as `first`: `gtrid` was not begun, its client waits for `first`.
    Join { gtrid: Gtrid, first: Gtrid },
    /// The request ended before as `first`: `gtrid` was not begun, its client gets that outcome.
    Replay {
        gtrid: Gtrid,
        first: Gtrid,
        outcome: Outcome,
    },
    /// The call is refused and had no effect.
    Rejected {
        gtrid: Gtrid,
        call: Refusable,
        reason: Reason,
    },
    /// The answer to an inquiry.
    Answer { token: u64, decision: Decision },
    /// The answer to a look.
    Seen { token: u64, seen: Seen },
    /// Order a participant to finish a branch by hand.
    Order { resolve: Resolve, heuristic: bool },
    /// An operator's order is refused.
    OrderRefused { token: u64, reason: Reason },
    /// A transaction began.
    Began {
        gtrid: Gtrid,
        request: Option<Request>,
    },
    /// A transaction changed its state; for watchers.
    Changed {
        gtrid: Gtrid,
        state: TransactionState,
        reason: Option<Reason>,
    },
    /// A branch changed; for watchers.
    BranchChanged {
        branch: BranchId,
        participant: ParticipantName,
        state: BranchState,
        reason: Option<Reason>,
        attempts: u32,
    },
    /// Delete these transactions from the log; participants may delete ledger rows below the
    /// horizon.
    Forgotten { gtrids: Vec<Gtrid>, horizon: Gtrid },
    /// Another coordinator has taken over: stop at once.
    Superseded { by: Epoch },
}

/// A call that can be refused. Several may wait for one transaction, and each must get its own
/// answer: "it cannot be rolled back" is nothing to tell whoever commits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusable {
    /// [`Input::Begin`].
    Begin,
    /// [`Input::Run`].
    Run,
    /// [`Input::Enlist`].
    Enlist,
    /// [`Input::Commit`].
    Commit,
    /// [`Input::Abort`].
    Abort,
}

/// What is known of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// It is not over.
    Live(Box<Transaction>),
    /// It is over.
    Ended { gtrid: Gtrid, outcome: Outcome },
    /// Nothing is on record, and it is not older than what is remembered: presumed abort.
    Nothing,
    /// It is older than what is remembered.
    Forgotten,
}

/// A transaction that ended, within the retention time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Ended {
    /// What its client was told, and whoever repeats the request is told.
    outcome: Outcome,
    /// One bit for each branch that the decision orders to commit: bqual 1 is bit 0. A branch that
    /// left as READ_ONLY is not among them, and must not commit what a doubled Prepare made of it.
    ordered: u64,
    request: Option<RequestId>,
    position: u64,
}

impl Ended {
    fn is_damaged(&self) -> bool {
        matches!(self.outcome, Outcome::Damaged(_))
    }

    /// Whether it was aborted: only the damage is on record, and no decision.
    fn is_damaged_abort(&self) -> bool {
        self.is_damaged() && self.ordered == 0
    }

    fn orders(&self, bqual: Bqual) -> bool {
        self.ordered & order_bit(bqual) != 0
    }
}

/// The bit of a branch in [`Ended::ordered`]; a number over the limit has none.
fn order_bit(bqual: Bqual) -> u64 {
    const { assert!(BRANCHES_MAX <= u64::BITS as usize) };
    1_u64.checked_shl(bqual.0.wrapping_sub(1)).unwrap_or(0)
}

/// The coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Coordinator {
    epoch: Epoch,
    transactions: BTreeMap<Gtrid, Transaction>,
    ended: BTreeMap<Gtrid, Ended>,
    /// Delegated transactions that were aborted: nobody asks for them, but they are on record, and
    /// must be forgotten.
    aborted: BTreeSet<Gtrid>,
    requests: BTreeMap<RequestId, (u64, Gtrid)>,
    /// Branches finished by someone else: whether committed, if anybody knows.
    heuristics: BTreeMap<BranchId, Option<bool>>,
    links: BTreeSet<ParticipantName>,
    horizon: Gtrid,
    /// Forced records appended so far.
    position: u64,
}

/// A step of the coordinator.
pub type CoordinatorStep = Step<Record, Effect>;

/// Collects steps; see [`Step`] for what their order means.
#[derive(Debug, Default)]
struct Out {
    steps: Vec<CoordinatorStep>,
    open: Step<Record, Effect>,
}

impl Out {
    fn append(&mut self, record: Record) {
        if !self.open.release.is_empty() {
            self.cut();
        }
        self.open.append.push(record);
    }

    fn release(&mut self, after: u64, effect: Effect) {
        if !self.open.release.is_empty() && self.open.after != after {
            self.cut();
        }
        self.open.after = after;
        self.open.release.push(effect);
    }

    fn cut(&mut self) {
        let step = std::mem::take(&mut self.open);
        if !step.append.is_empty() || !step.release.is_empty() {
            self.steps.push(step);
        }
    }
}

impl Coordinator {
    /// An empty coordinator: apply the log's records to it, then its own [`Record::Epoch`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one input. An error is a fault of the machine itself: the driver must stop.
    pub fn step(&mut self, input: Input) -> Result<Vec<CoordinatorStep>, ApplyError> {
        let mut out = Out::default();
        match input {
            Input::Begin { gtrid } => self.begin(gtrid, &mut out),
            Input::Enlist { gtrid, participant } => self.enlist(gtrid, participant, &mut out),
            Input::Commit { gtrid, ack } => self.commit(gtrid, ack, &mut out)?,
            Input::Run {
                gtrid,
                branches,
                request,
                ack,
                may_leave,
            } => {
                self.run(gtrid, branches, request, ack, may_leave, &mut out)?;
            }
            Input::Abort { gtrid, reason } => self.client_abort(gtrid, reason, &mut out)?,
            Input::Deadline { gtrid } => self.deadline(gtrid, &mut out)?,
            Input::Received { from, message } => self.received(&from, message, &mut out)?,
            Input::LinkUp { participant } => self.link_up(participant, &mut out),
            Input::LinkDown { participant } => self.link_down(&participant, &mut out)?,
            Input::Sweep => self.sweep(&mut out)?,
            Input::Inquire {
                from,
                branch,
                token,
            } => {
                self.inquire(&from, branch, token, &mut out);
            }
            Input::Look { gtrid, token } => self.look(gtrid, token, &mut out),
            Input::LookUp { request, token } => match self.requests.get(&request) {
                Some((_, gtrid)) => self.look(*gtrid, token, &mut out),
                None => out.release(
                    0,
                    Effect::Seen {
                        token,
                        seen: Seen::Nothing,
                    },
                ),
            },
            Input::Resolve(resolve) => self.resolve(resolve, &mut out)?,
            Input::Forget { below } => self.forget(below, &mut out)?,
        }
        out.cut();
        Ok(out.steps)
    }

    /// Its epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Transactions below this one are forgotten.
    pub fn horizon(&self) -> Gtrid {
        self.horizon
    }

    /// Transactions that are not over.
    pub fn transactions(&self) -> impl Iterator<Item = &Transaction> {
        self.transactions.values()
    }

    /// Whether a running transaction has a branch at this participant.
    pub fn has_branch(&self, gtrid: Gtrid, participant: &ParticipantName) -> bool {
        let tx = self.transactions.get(&gtrid);
        tx.is_some_and(|tx| tx.branches.iter().any(|b| b.participant == *participant))
    }

    /// Number of transactions that are not over.
    pub fn live(&self) -> usize {
        self.transactions.len()
    }

    /// Number of transactions that ended and are on record.
    pub fn remembered(&self) -> usize {
        self.ended.len() + self.aborted.len()
    }

    /// Of the transactions that ended and are on record, the one that so many are older than. What
    /// was damaged does not count: it is never forgotten.
    pub fn ended_at(&self, n: usize) -> Option<Gtrid> {
        let settled = self.ended.iter().filter(|(_, ended)| !ended.is_damaged());
        let mut settled = settled.map(|(gtrid, _)| *gtrid).peekable();
        let mut aborted = self.aborted.iter().copied().peekable();
        let oldest = || match (settled.peek(), aborted.peek()) {
            (Some(a), Some(b)) if a > b => aborted.next(),
            (Some(_), _) => settled.next(),
            (None, _) => aborted.next(),
        };
        std::iter::from_fn(oldest).nth(n)
    }

    /// Whether this request is running or remembered.
    pub fn knows_request(&self, request: &RequestId) -> bool {
        self.requests.contains_key(request)
    }

    /// The attempt that this request, and no other content under its id, is known by.
    pub fn attempt_of(&self, request: &Request) -> Option<Gtrid> {
        let (fingerprint, gtrid) = self.requests.get(&request.id)?;
        (*fingerprint == request.fingerprint).then_some(*gtrid)
    }

    /// The highest id on record; fresh ids must be above it.
    pub fn highest_gtrid(&self) -> Gtrid {
        let live = self
            .transactions
            .keys()
            .next_back()
            .copied()
            .unwrap_or(Gtrid::MIN);
        // A damaged abort may have any id: an operator, or a participant, named it.
        let mut ended = self.ended.iter().rev();
        let ended = ended.find(|(_, ended)| !ended.is_damaged_abort());
        let ended = ended.map_or(Gtrid::MIN, |(gtrid, _)| *gtrid);
        let aborted = self.aborted.last().copied().unwrap_or(Gtrid::MIN);
        live.max(ended).max(aborted).max(self.horizon)
    }

    /// Heuristic outcomes on record.
    pub fn heuristics(&self) -> impl Iterator<Item = (BranchId, Option<bool>)> {
        self.heuristics
            .iter()
            .map(|(branch, committed)| (*branch, *committed))
    }

    /// Makes a record part of the state and of the step; its position, if it is forced.
    fn record(&mut self, record: Record, out: &mut Out) -> Result<u64, ApplyError> {
        self.apply(&record)?;
        if record.is_forced() {
            self.position += 1;
        }
        let position = self.position;
        // What recovery applies is durable already; what is new is not before its position is.
        if let Record::Refused { gtrid, .. } | Record::Heuristic { gtrid, .. } = &record
            && let Some(ended) = self.ended.get_mut(gtrid)
        {
            ended.position = position;
        }
        out.append(record);
        Ok(position)
    }

    fn received(
        &mut self,
        from: &ParticipantName,
        message: FromParticipant,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        match message {
            // An interactive branch's Begin is awaited by the call that enlisted it.
            FromParticipant::Begun { .. } => Ok(()),
            FromParticipant::Voted {
                branch,
                epoch,
                vote,
            } => self.voted(from, branch, epoch, vote, out),
            FromParticipant::Finished { branch, finish, .. } => {
                self.finished(from, branch, finish, out)
            }
            FromParticipant::Stale { highest, .. } => {
                if highest > self.epoch {
                    out.release(0, Effect::Superseded { by: highest });
                }
                Ok(())
            }
        }
    }

    /// The answer to a participant in doubt. It leaves only after the transaction's own records:
    /// a decision that is still on its way to the disk is not a decision.
    fn inquire(&self, from: &ParticipantName, branch: BranchId, token: u64, out: &mut Out) {
        let (mut after, decision) = self.decision_for(from, branch);
        if planted::is(Bug::InquiryBeforeDurable) {
            after = 0;
        }
        out.release(after, Effect::Answer { token, decision });
    }

    fn decision_for(&self, from: &ParticipantName, branch: BranchId) -> (u64, Decision) {
        let owner = self.transactions.get(&branch.gtrid);
        let owner = owner.and_then(|tx| tx.branch(branch.bqual));
        if let Some(&Some(committed)) = self.heuristics.get(&branch)
            && owner.is_none_or(|known| known.participant == *from)
        {
            // What is on record for ever, by an operator's force, is what must be done.
            let decision = if committed {
                Decision::Commit
            } else {
                Decision::Abort
            };
            return (self.position, decision);
        }
        if let Some(tx) = self.transactions.get(&branch.gtrid) {
            let decision = match (tx.state, tx.branch(branch.bqual)) {
                // Somebody else's branch is none of its business: it must leave it alone.
                (_, Some(known)) if known.participant != *from => Decision::Forgotten,
                // It left, and a doubled Prepare has prepared it again: nobody ordered that.
                (TransactionState::Committing | TransactionState::Committed, Some(known))
                    if known.state == BranchState::ReadOnly =>
                {
                    Decision::Abort
                }
                (TransactionState::Committing | TransactionState::Committed, Some(_)) => {
                    Decision::Commit
                }
                (TransactionState::Aborting | TransactionState::Aborted, _) | (_, None) => {
                    Decision::Abort
                }
                (_, Some(_)) => Decision::Running,
            };
            return (tx.position, decision);
        }
        match self.ended.get(&branch.gtrid) {
            Some(ended) if ended.orders(branch.bqual) => (ended.position, Decision::Commit),
            // It is on record for the damage only: of its other branches as much is forgotten.
            Some(ended) if ended.is_damaged_abort() && branch.gtrid < self.horizon => {
                (ended.position, Decision::Forgotten)
            }
            Some(ended) => (ended.position, Decision::Abort),
            None if branch.gtrid < self.horizon => (0, Decision::Forgotten),
            None => (0, Decision::Abort),
        }
    }

    fn look(&self, gtrid: Gtrid, token: u64, out: &mut Out) {
        let (after, seen) = if let Some(tx) = self.transactions.get(&gtrid) {
            (tx.position, Seen::Live(Box::new(tx.clone())))
        } else if let Some(ended) = self.ended.get(&gtrid) {
            (
                ended.position,
                Seen::Ended {
                    gtrid,
                    outcome: ended.outcome.clone(),
                },
            )
        } else if gtrid < self.horizon {
            (0, Seen::Forgotten)
        } else {
            (0, Seen::Nothing)
        };
        out.release(after, Effect::Seen { token, seen });
    }

    /// Forgets ended transactions. What is not over stays, and holds the horizon back. What was
    /// damaged stays for ever: the branch that carried its request id may be the one that was
    /// lost, and then nothing else keeps a repetition from taking effect.
    fn forget(&mut self, below: Gtrid, out: &mut Out) -> Result<(), ApplyError> {
        let oldest = self.transactions.keys().next().copied().unwrap_or(below);
        let horizon = below.min(oldest);
        if horizon <= self.horizon {
            return Ok(());
        }
        let settled = self.ended.range(..horizon).map(|(gtrid, _)| *gtrid);
        let gtrids = settled
            .chain(self.aborted.range(..horizon).copied())
            .filter(|gtrid| !self.ended.get(gtrid).is_some_and(Ended::is_damaged))
            .collect();
        let after = self.record(Record::Horizon(horizon), out)?;
        out.release(after, Effect::Forgotten { gtrids, horizon });
        Ok(())
    }
}

fn changed(tx: &Transaction) -> Effect {
    Effect::Changed {
        gtrid: tx.gtrid,
        state: tx.state,
        reason: tx.reason.clone(),
    }
}

fn branch_changed(gtrid: Gtrid, branch: &crate::transaction::Branch) -> Effect {
    Effect::BranchChanged {
        branch: BranchId {
            gtrid,
            bqual: branch.bqual,
        },
        participant: branch.participant.clone(),
        state: branch.state,
        reason: branch.reason.clone(),
        attempts: branch.attempts,
    }
}
