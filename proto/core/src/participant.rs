//! The participant as a pure state machine: inputs in, [`Step`]s out.
//!
//! It owns the state of every branch that is not over here, the highest epoch seen, and the rule
//! that nothing but the ledger row proves how a branch ended. It refuses to know statements,
//! connections and clocks: the driver runs the commands on the resource manager, one at a time
//! for each branch, and brings back what came of them.
//!
//! | state | message or result | command, answer | next |
//! |---|---|---|---|
//! | unknown | Prepare with work | `Prepare` | Working |
//! | unknown | Prepare without | vote ABORT | unknown |
//! | Working | Prepared | vote COMMIT | Prepared |
//! | Working | not prepared | vote ABORT | unknown |
//! | Working | unknown result | vote ABORT, `Tombstone` | Aborting |
//! | Aborting | that tombstone cannot stand | `Rollback`, then `Tombstone` again | Aborting |
//! | Prepared or unknown | Commit | `Commit` | Committing |
//! | Committing | done | Committed | unknown |
//! | Committing | not done | Retry | Prepared |
//! | Committing | `XAER_NOTA`, or unknown result | `ReadLedger` | Committing |
//! | Committing | ledger row of the branch | Committed | unknown |
//! | Committing | no ledger row | `List`, then `ReadLedger` once more | Committing |
//! | Committing | no row, not listed, twice | Damaged, recorded | unknown |
//! | Prepared, Active or unknown | Abort | `Rollback` | Aborting |
//! | Aborting | done | Aborted | unknown |
//! | Aborting | `XAER_NOTA`, or unknown result | `Tombstone` | Aborting |
//! | Aborting | tombstone stands | Aborted | unknown |
//! | Aborting | ledger row of the branch | Committed | unknown |
//! | Aborting, after a Prepare | the same | Committed; damage, recorded | unknown |
//! | any | a lower epoch | Stale | same |
//! | Aborting on its own | ledger row of the branch | `Inquire` at the next sweep | Prepared |
//! | one phase | committed | Committed | unknown |
//! | one phase | not committed, or unknown result | `Tombstone`, then its answer | Aborting |
//! | Prepared | two sweeps, listed or not | `Inquire` | same |
//! | anything new | before the first sweep | vote ABORT, or Retry | unknown |

mod abort;
mod commit;
mod epoch;
mod prepare;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::id::{BranchId, Epoch, Gtrid};
use crate::message::{Decision, Finish, FromParticipant, ToParticipant, Vote};
use crate::reason::{Reason, code};
use crate::record::ParticipantRecord;
use crate::step::Step;

/// Where an answer goes; chosen by the driver.
pub type Token = u64;

/// What the ledger says of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LedgerEntry {
    /// The branch's own row is visible: it is committed.
    Committed,
    /// An abort's tombstone: it never will be.
    Tombstone,
    /// Neither.
    Absent,
}

/// What came of asking the server to prepare.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Prepared {
    /// It is prepared.
    Prepared,
    /// It wrote nothing and is over.
    ReadOnly,
    /// It is rolled back.
    NotPrepared(Reason),
    /// It may be prepared or not.
    Unknown(Reason),
}

/// What came of a one-phase commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OnePhase {
    /// It is committed.
    Committed,
    /// It is rolled back.
    NotCommitted(Reason),
    /// It may be either.
    Unknown(Reason),
}

/// What came of `XA COMMIT` or `XA ROLLBACK`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// The server did it.
    Done,
    /// The server did not; the branch is as it was.
    NotDone(Reason),
    /// `XAER_NOTA`: done before, lost, never there, or attached to another connection.
    NoSuchBranch,
    /// No clear answer came.
    Unknown(Reason),
}

/// What happens to the participant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The coordinator says something.
    Message {
        token: Token,
        message: ToParticipant,
    },
    /// The coordinator wants a statement run in an interactive branch.
    Statement {
        token: Token,
        branch: BranchId,
        epoch: Epoch,
    },
    /// A statement ended; a failed one leaves the branch fit for Abort only.
    StatementDone {
        branch: BranchId,
        failed: Option<Reason>,
    },
    /// Result of [`Command::Begin`].
    Begun {
        branch: BranchId,
        result: Result<(), Reason>,
    },
    /// Result of [`Command::Prepare`].
    Prepared { branch: BranchId, result: Prepared },
    /// Result of [`Command::CommitOnePhase`].
    OnePhase { branch: BranchId, result: OnePhase },
    /// Result of [`Command::Commit`] and [`Command::Rollback`].
    Verb { branch: BranchId, result: Verb },
    /// Result of [`Command::ReadLedger`] and [`Command::Tombstone`].
    Ledger {
        branch: BranchId,
        result: Result<LedgerEntry, Reason>,
    },
    /// Result of [`Command::List`].
    Listed {
        branch: BranchId,
        result: Result<bool, Reason>,
    },
    /// The branches that the server listed in a sweep; the first one ends recovery. A sweep whose
    /// list could not be read is none.
    Sweep { listed: Vec<BranchId> },
    /// A coordinator has connected: what it does not know of, nobody else will ask for.
    Linked,
    /// The coordinator's answer to an inquiry.
    Decided {
        branch: BranchId,
        epoch: Epoch,
        decision: Decision,
    },
    /// The time-out of an interactive branch passed.
    Expired { branch: BranchId },
    /// Ledger rows below this transaction may be deleted.
    ForgetBelow { gtrid: Gtrid },
}

/// A command to the resource manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Command {
    /// Open a branch on a connection of its own.
    Begin,
    /// Prepare; with `work`, run the branch's statements first. `may_leave` allows READ_ONLY.
    Prepare { work: bool, may_leave: bool },
    /// Commit in one phase; with `work`, run the branch's statements first.
    CommitOnePhase { work: bool },
    /// `XA COMMIT`.
    Commit,
    /// `XA ROLLBACK`, or the same for a branch that is not prepared.
    Rollback,
    /// Read the ledger row.
    ReadLedger,
    /// Insert an abort's tombstone, unless a row is there; tells what stands in the end.
    Tombstone,
    /// Look whether `XA RECOVER` lists the branch.
    List,
}

/// What the driver has to do once the step's records are durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Run a command; its result is an input. At most one runs for a branch at a time.
    Run { branch: BranchId, command: Command },
    /// Interrupt what runs in the branch, if possible. It has no result of its own.
    Cancel { branch: BranchId },
    /// The branch is attached to another connection: end that one, if it is ours.
    Detach { branch: BranchId },
    /// The statement may run now.
    RunStatement { token: Token, branch: BranchId },
    /// The statement is refused.
    StatementRefused { token: Token, reason: Reason },
    /// Answer the coordinator.
    Reply {
        token: Token,
        message: FromParticipant,
    },
    /// Ask the coordinator about these.
    Inquire { branches: Vec<BranchId> },
    /// A heuristic outcome is on record: tell operators.
    Damaged { branch: BranchId, reason: Reason },
    /// Ledger rows below this transaction can be deleted.
    Prune { below: Gtrid },
}

/// State of a branch here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// `XA START` is running.
    Beginning,
    /// Open, and no statement runs.
    Active,
    /// A statement runs.
    Executing,
    /// A statement failed, and the branch is rolled back; only Abort may come.
    Failed(Reason),
    /// Prepare, or a one-phase commit, is running.
    Working { one_phase: bool },
    /// Prepared: in doubt.
    Prepared,
    /// A commit is under way.
    Committing(Stage),
    /// A rollback is under way.
    Aborting(Stage),
    /// A rollback could not be done; the next sweep tries again.
    AbortLater,
}

/// How far a commit or rollback is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// A tombstone is tried before the verb: where it stands nothing needs to be rolled back, and
    /// nothing that is still on its way to the server can prepare the branch after all.
    Bar,
    /// The XA verb is running.
    Verb,
    /// The ledger is being asked.
    Ledger,
    /// `XA RECOVER` is being asked.
    List,
    /// It is not listed; the ledger is asked a last time.
    LastLook,
}

/// One branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own beside the state, and most go together"
)]
pub struct Entry {
    /// Its state.
    pub state: State,
    /// The highest epoch that spoke of it.
    pub epoch: Epoch,
    /// What stands in its way.
    pub reason: Option<Reason>,
    /// Who waits for its Begin or vote.
    asking: Vec<(Token, Epoch)>,
    /// Who waits for its end.
    finishing: Vec<(Token, Epoch)>,
    /// Whether it shall be rolled back as soon as what runs has ended.
    abort_wanted: bool,
    /// Whether its preparation was seen here, rather than found or presumed: only then may a
    /// repeated Prepare be answered with a vote COMMIT.
    witnessed: bool,
    /// Whether it was asked to prepare, or found prepared: an Abort of it is then an order, and
    /// never the question whether its commit in one phase has won.
    two_phase: bool,
    /// Whether the coordinator's answer to an inquiry ordered the rollback.
    ordered: bool,
    /// Whether the last sweep's list was without it.
    unlisted: bool,
    /// Whether a connection was lost in the middle of its work or its rollback: what it was told
    /// may still be done, so only a tombstone ends it.
    unclear: bool,
    /// Sweeps that found it waiting for its outcome.
    sweeps: u8,
    /// Whether it was found gone without a trace once.
    suspect: bool,
    /// Whether it is kept, once rolled back, until its coordinator has learnt why.
    failed: bool,
}

impl Entry {
    fn new(state: State, epoch: Epoch) -> Self {
        Self {
            state,
            epoch,
            reason: None,
            asking: Vec::new(),
            finishing: Vec::new(),
            abort_wanted: false,
            witnessed: false,
            two_phase: false,
            ordered: false,
            unlisted: false,
            unclear: false,
            sweeps: 0,
            suspect: false,
            failed: false,
        }
    }

    /// Whether the branch holds locks until it learns the outcome.
    pub fn is_in_doubt(&self) -> bool {
        match self.state {
            State::Prepared | State::Committing(_) => true,
            State::Beginning
            | State::Active
            | State::Executing
            | State::Failed(_)
            | State::Working { .. }
            | State::Aborting(_)
            | State::AbortLater => false,
        }
    }

    /// Whether the coordinator has said that it knows nothing of it any more: what else it forgets
    /// takes nothing from the branch, which an operator must resolve.
    fn is_given_up(&self) -> bool {
        let unknown = |reason: &Reason| &*reason.code == code::OUTCOME_UNKNOWN;
        self.state == State::Prepared && self.reason.as_ref().is_some_and(unknown)
    }
}

/// The participant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Participant {
    branches: BTreeMap<BranchId, Entry>,
    epoch: Epoch,
    forget_below: Gtrid,
    /// Whether the server's list of prepared branches was seen. Before that a branch that seems
    /// new may have voted COMMIT to a former incarnation of this daemon, so nothing is begun.
    recovered: bool,
    /// Records appended so far.
    position: u64,
    /// Position of the record that raised the epoch: nothing of it may leave before.
    epoch_position: u64,
}

/// A step of the participant.
pub type ParticipantStep = Step<ParticipantRecord, Effect>;

/// Collects the parts of one step.
#[derive(Debug, Default)]
struct Out {
    append: Vec<ParticipantRecord>,
    release: Vec<Effect>,
}

impl Out {
    fn run(&mut self, branch: BranchId, command: Command) {
        self.release.push(Effect::Run { branch, command });
    }

    fn vote(&mut self, branch: BranchId, to: Vec<(Token, Epoch)>, vote: &Vote) {
        for (token, epoch) in to {
            let message = FromParticipant::Voted {
                branch,
                epoch,
                vote: vote.clone(),
            };
            self.release.push(Effect::Reply { token, message });
        }
    }

    fn finish(&mut self, branch: BranchId, to: Vec<(Token, Epoch)>, finish: &Finish) {
        for (token, epoch) in to {
            let message = FromParticipant::Finished {
                branch,
                epoch,
                finish: finish.clone(),
            };
            self.release.push(Effect::Reply { token, message });
        }
    }
}

impl Participant {
    /// A participant that starts: nothing is known but what its ledger schema kept. It begins and
    /// prepares nothing before its first [`Input::Sweep`] with what the server lists.
    pub fn new(epoch: Epoch, forget_below: Gtrid) -> Self {
        Self {
            epoch,
            forget_below,
            ..Self::default()
        }
    }

    /// Takes one input.
    pub fn step(&mut self, input: Input) -> ParticipantStep {
        let mut out = Out::default();
        match input {
            Input::Message { token, message } => {
                if self.admit(message.epoch(), &mut out) {
                    self.message(token, &message, &mut out);
                } else {
                    let (branch, epoch) = (message.branch(), message.epoch());
                    let message = FromParticipant::Stale {
                        branch,
                        epoch,
                        highest: self.epoch,
                    };
                    out.release.push(Effect::Reply { token, message });
                }
            }
            Input::Statement {
                token,
                branch,
                epoch,
            } => {
                self.statement(token, branch, epoch, &mut out);
            }
            Input::StatementDone { branch, failed } => {
                self.statement_done(branch, failed, &mut out);
            }
            Input::Begun { branch, result } => self.begun(branch, &result, &mut out),
            Input::Prepared { branch, result } => self.prepared(branch, result, &mut out),
            Input::OnePhase { branch, result } => self.one_phase_done(branch, result, &mut out),
            Input::Verb { branch, result } => self.verb_done(branch, result, &mut out),
            Input::Ledger { branch, result } => self.ledger_read(branch, result, &mut out),
            Input::Listed { branch, result } => self.listed(branch, result, &mut out),
            Input::Sweep { listed } => self.sweep(&listed, &mut out),
            Input::Linked => self.linked(&mut out),
            Input::Decided {
                branch,
                epoch,
                decision,
            } => {
                self.decided(branch, epoch, decision, &mut out);
            }
            Input::Expired { branch } => self.expired(branch, &mut out),
            Input::ForgetBelow { gtrid } => self.forget(gtrid, &mut out),
        }
        self.position += out.append.len() as u64;
        if out
            .append
            .iter()
            .any(|record| matches!(record, ParticipantRecord::Epoch(_)))
        {
            self.epoch_position = self.position;
        }
        // A record of damage gates only its own step; a new epoch gates all that follows.
        let after = if out.append.is_empty() {
            self.epoch_position
        } else {
            self.position
        };
        Step {
            append: out.append,
            after,
            release: out.release,
        }
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Transactions below this one are refused.
    pub fn forget_below(&self) -> Gtrid {
        self.forget_below
    }

    /// The branches that are not over here.
    pub fn branches(&self) -> impl Iterator<Item = (BranchId, &Entry)> {
        self.branches.iter().map(|(branch, entry)| (*branch, entry))
    }

    /// One of them.
    pub fn branch(&self, branch: BranchId) -> Option<&Entry> {
        self.branches.get(&branch)
    }

    /// How many there are.
    pub fn branch_count(&self) -> usize {
        self.branches.len()
    }

    /// Number of branches in doubt.
    pub fn in_doubt(&self) -> usize {
        self.branches
            .values()
            .filter(|entry| entry.is_in_doubt())
            .count()
    }

    /// The oldest transaction that is unfinished here, prepared or being worked on: nothing that
    /// tells its outcome may be forgotten. [`Gtrid::MAX`] when there is none, and None before the
    /// first sweep, when a former life may have left anything.
    pub fn unfinished_from(&self) -> Option<Gtrid> {
        let mut unfinished = self.branches.iter().filter(|(_, e)| !e.is_given_up());
        let oldest = unfinished
            .next()
            .map_or(Gtrid::MAX, |(branch, _)| branch.gtrid);
        self.recovered.then_some(oldest)
    }

    fn message(&mut self, token: Token, message: &ToParticipant, out: &mut Out) {
        match *message {
            ToParticipant::Begin { branch, epoch } => self.begin(token, branch, epoch, out),
            ToParticipant::Prepare {
                branch,
                epoch,
                work,
                may_leave,
            } => {
                self.prepare((token, epoch), branch, work, may_leave, out);
            }
            ToParticipant::Commit {
                branch,
                epoch,
                one_phase: true,
                work,
            } => {
                self.commit_one_phase((token, epoch), branch, work, out);
            }
            ToParticipant::Commit {
                branch,
                epoch,
                one_phase: false,
                ..
            } => {
                self.commit((token, epoch), branch, out);
            }
            ToParticipant::Abort { branch, epoch } => self.abort((token, epoch), branch, out),
        }
    }
}
