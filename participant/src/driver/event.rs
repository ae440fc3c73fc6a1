//! What reaches the driver, and what it answers.
//!
//! It owns the shapes of orders, answers and the way back to whoever waits. It refuses to know how
//! they travel: [`crate::rpc`] and [`crate::link`] put them on the wire.

use std::time::{Duration, SystemTime};

use concord_core::id::{BranchId, Epoch, Gtrid};
use concord_core::message::{Decision, Finish, FromParticipant, ToParticipant};
use concord_core::participant::{Input, Token};
use concord_core::reason::Reason;
use concord_core::transaction::BranchState;
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::convert::link::{Finished, Voted};
use concord_proto::convert::participant::{Abort, Begin, Commit, Execute, Prepare};
use concord_proto::model::{Isolation, Statement, Work};
use concord_proto::v1;
use tokio::sync::{mpsc, oneshot};

use crate::resource::Recovered;

/// What a coordinator orders about one branch.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Open an interactive branch.
    Begin(Begin),
    /// Run a statement in it.
    Execute(Execute),
    /// Vote.
    Prepare(Prepare),
    /// Commit.
    Commit(Commit),
    /// Roll back.
    Abort(Abort),
}

impl Order {
    /// The branch that it concerns.
    pub fn branch(&self) -> BranchId {
        match self {
            Self::Begin(order) => order.branch,
            Self::Execute(order) => order.branch,
            Self::Prepare(order) => order.branch,
            Self::Commit(order) => order.branch,
            Self::Abort(order) => order.branch,
        }
    }

    /// The epoch of the coordinator that gave it.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Begin(order) => order.epoch,
            Self::Execute(order) => order.epoch,
            Self::Prepare(order) => order.epoch,
            Self::Commit(order) => order.epoch,
            Self::Abort(order) => order.epoch,
        }
    }

    /// Where it comes in.
    pub(super) fn point(&self) -> CrashPoint {
        match self {
            Self::Begin(_) => CrashPoint::ParticipantBeginReceived,
            Self::Execute(_) => CrashPoint::ParticipantStatementReceived,
            Self::Prepare(_) => CrashPoint::ParticipantPrepareReceived,
            Self::Commit(order) if order.one_phase => CrashPoint::ParticipantOnePhaseReceived,
            Self::Commit(_) => CrashPoint::ParticipantCommitReceived,
            Self::Abort(_) => CrashPoint::ParticipantAbortReceived,
        }
    }

    /// Splits it into what the machine sees and what travels beside.
    pub(super) fn split(self, token: Token) -> (Input, Payload) {
        let message = |message| Input::Message { token, message };
        match self {
            Self::Begin(Begin {
                branch,
                epoch,
                isolation,
                timeout,
            }) => (
                message(ToParticipant::Begin { branch, epoch }),
                Payload::Begin { isolation, timeout },
            ),
            Self::Execute(Execute {
                branch,
                epoch,
                statement,
            }) => (
                Input::Statement {
                    token,
                    branch,
                    epoch,
                },
                Payload::Statement(statement),
            ),
            Self::Prepare(Prepare {
                branch,
                epoch,
                work,
            }) => (
                message(ToParticipant::Prepare {
                    branch,
                    epoch,
                    work: work.is_some(),
                    // An interactive transaction has acquired all its locks by now.
                    may_leave: work.as_ref().is_none_or(|work| work.allow_read_only),
                }),
                Payload::work(work),
            ),
            Self::Commit(Commit {
                branch,
                epoch,
                one_phase,
                work,
            }) => (
                message(ToParticipant::Commit {
                    branch,
                    epoch,
                    one_phase,
                    work: work.is_some(),
                }),
                Payload::work(work),
            ),
            Self::Abort(Abort { branch, epoch }) => (
                message(ToParticipant::Abort { branch, epoch }),
                Payload::None,
            ),
        }
    }
}

/// What the coordinator is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The branch is open.
    Begun,
    /// The statement ran.
    Executed(v1::StatementResult),
    /// The vote.
    Voted(Voted),
    /// What became of the branch.
    Finished(Finished),
    /// The order had no effect, or failed.
    Refused(Reason),
    /// The participant cannot work now; the order had no effect.
    Unavailable(Reason),
}

impl Answer {
    /// The answer that the machine gives, with the results that belong to it. Whoever waits for
    /// the same answer gets the same: which of them is still connected is not known here. The
    /// results stay for others unless this is the `last` one.
    pub(super) fn of(message: FromParticipant, payload: &mut Payload, last: bool) -> Self {
        match message {
            FromParticipant::Begun { result: Ok(()), .. } => Self::Begun,
            FromParticipant::Begun {
                result: Err(reason),
                ..
            } => Self::Refused(reason),
            FromParticipant::Voted { vote, .. } => {
                let (results, failed_statement) = payload.results_for(last);
                Self::Voted(Voted {
                    vote,
                    results,
                    failed_statement,
                })
            }
            FromParticipant::Finished { finish, .. } => {
                let (results, failed_statement) = match finish {
                    // It failed because a former copy of it had committed.
                    Finish::Committed if payload.failed_statement().is_some() => (Vec::new(), None),
                    Finish::Committed => payload.results_for(last),
                    // What an aborted branch has read is nobody's.
                    _ => (Vec::new(), payload.failed_statement()),
                };
                Self::Finished(Finished {
                    finish,
                    results,
                    failed_statement,
                })
            }
            FromParticipant::Stale { epoch, highest, .. } => Self::Refused(stale(epoch, highest)),
        }
    }
}

/// The order is of a coordinator that was superseded.
pub(super) fn stale(epoch: Epoch, highest: Epoch) -> Reason {
    let text = format!("epoch {epoch} was superseded by {highest}");
    Reason::new(concord_core::reason::code::STALE_EPOCH, text)
}

/// Who waits for an answer.
#[derive(Debug)]
pub enum Responder {
    /// A single call.
    Call(oneshot::Sender<Answer>),
    /// A link: the room for its answer was reserved before the order was given, so that answering
    /// never waits.
    Link {
        /// The command's number.
        seq: u64,
        /// Whether it is an Abort, whose answer has a shape of its own.
        abort: bool,
        /// Where the answer goes.
        room: mpsc::OwnedPermit<LinkAnswer>,
    },
}

/// An answer on its way to a link.
#[derive(Debug)]
pub struct LinkAnswer {
    /// The command's number.
    pub seq: u64,
    /// Whether the command was an Abort.
    pub abort: bool,
    /// The answer.
    pub answer: Answer,
}

impl Responder {
    /// Answers. Whoever waited may be gone: what was done stands all the same.
    pub fn answer(self, answer: Answer) {
        match self {
            Self::Call(sender) => {
                let _ = sender.send(answer);
            }
            Self::Link { seq, abort, room } => {
                room.send(LinkAnswer { seq, abort, answer });
            }
        }
    }

    /// The same, with the places before and after a vote or a branch's end.
    pub(super) fn answer_between(self, answer: Answer) {
        let points = match &answer {
            Answer::Voted(_) => Some((
                CrashPoint::ParticipantVoteBeforeSend,
                CrashPoint::ParticipantVoteAfterSend,
            )),
            Answer::Finished(_) => Some((
                CrashPoint::ParticipantAckBeforeSend,
                CrashPoint::ParticipantAckAfterSend,
            )),
            Answer::Begun | Answer::Executed(_) | Answer::Refused(_) | Answer::Unavailable(_) => {
                None
            }
        };
        if let Some((before, _)) = points {
            reach(before);
        }
        self.answer(answer);
        if let Some((_, after)) = points {
            reach(after);
        }
    }
}

/// An order, and who waits for its answer.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub order: Order,
    /// Who waits.
    pub respond: Responder,
}

/// What travels beside the machine's inputs and effects, because the protocol ignores it. It
/// belongs to one step and is gone with it.
#[derive(Debug, Default)]
pub(super) enum Payload {
    /// Nothing.
    #[default]
    None,
    /// How to open an interactive branch.
    Begin {
        isolation: Option<Isolation>,
        timeout: Duration,
    },
    /// The statement to run.
    Statement(Statement),
    /// The work of a whole branch.
    Work(Work),
    /// What statements returned.
    Results(Vec<v1::StatementResult>, Option<u32>),
    /// A statement of an interactive branch ended, and `Token` waits for it.
    Executed(Token, Result<v1::StatementResult, Reason>),
}

impl Payload {
    fn work(work: Option<Work>) -> Self {
        work.map_or(Self::None, Self::Work)
    }

    pub(super) fn results(results: Vec<v1::StatementResult>, failed: Option<usize>) -> Self {
        Self::Results(results, failed.and_then(|index| u32::try_from(index).ok()))
    }

    fn results_for(&mut self, last: bool) -> (Vec<v1::StatementResult>, Option<u32>) {
        match self {
            Self::Results(results, failed) if last => (std::mem::take(results), *failed),
            Self::Results(results, failed) => (results.clone(), *failed),
            _ => (Vec::new(), None),
        }
    }

    fn failed_statement(&self) -> Option<u32> {
        match self {
            Self::Results(_, failed) => *failed,
            _ => None,
        }
    }

    pub(super) fn take_work(&mut self) -> Option<Work> {
        match std::mem::take(self) {
            Self::Work(work) => Some(work),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// A branch as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchView {
    /// The branch.
    pub branch: BranchId,
    /// Its state here.
    pub state: BranchState,
    /// Since when it is in this state, by this host's clock.
    pub since: SystemTime,
    /// What stands in its way.
    pub reason: Option<Reason>,
}

/// The participant as seen from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The highest epoch seen.
    pub epoch: Epoch,
    /// Branches that are not over here.
    pub branches: usize,
    /// Those of them that are in doubt.
    pub in_doubt: usize,
    /// The oldest transaction that is unfinished here, [`Gtrid::MAX`] when there is none. None
    /// while the server has not listed what is prepared since it, or this daemon, is back.
    pub unfinished_from: Option<Gtrid>,
}

/// What happens to the driver.
#[derive(Debug)]
pub(super) enum Event {
    /// Orders, in the order in which they came.
    Requests(Vec<Request>),
    /// One order; spares single calls the list.
    Request(Box<Request>),
    /// A call to the server ended.
    Done(Box<(Input, Payload)>),
    /// A connection that a branch was attached to is ended.
    Detached,
    /// So many of the records that were handed over are durable.
    Durable(usize),
    /// A sweep ended.
    Swept(Result<Recovered, Reason>),
    /// The coordinator answered an inquiry.
    Decided(Epoch, Vec<(BranchId, Decision)>),
    /// A coordinator has connected.
    Linked,
    /// Ledger rows below may go.
    ForgetBelow(Gtrid),
    /// Somebody looks at the branches after one, at most so many.
    Branches(Option<BranchId>, usize, oneshot::Sender<Vec<BranchView>>),
    /// Somebody asks whether a branch is known.
    Knows(BranchId, oneshot::Sender<bool>),
    /// Somebody looks at the whole.
    Summary(oneshot::Sender<Summary>),
    /// Take no new branch any more; tell when nothing runs.
    Drain(oneshot::Sender<()>),
}

/// The branch that a call's result is about.
pub(super) fn branch_of(input: &Input) -> Option<BranchId> {
    match input {
        Input::StatementDone { branch, .. }
        | Input::Begun { branch, .. }
        | Input::Prepared { branch, .. }
        | Input::OnePhase { branch, .. }
        | Input::Verb { branch, .. }
        | Input::Ledger { branch, .. }
        | Input::Listed { branch, .. } => Some(*branch),
        Input::Message { .. }
        | Input::Statement { .. }
        | Input::Sweep { .. }
        | Input::Linked
        | Input::Decided { .. }
        | Input::Expired { .. }
        | Input::ForgetBelow { .. } => None,
    }
}
