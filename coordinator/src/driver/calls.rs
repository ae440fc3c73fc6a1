//! What the gateway and the links ask of the driver, and what they are told.

use std::time::Duration;

use concord_core::coordinator::{Resolve, Seen};
use concord_core::id::{BranchId, Gtrid, ParticipantName, Request, RequestId};
use concord_core::message::{Decision, FromParticipant, Outcome};
use concord_core::reason::{Reason, code};
use concord_core::transaction::Ack;
use concord_daemon::crash::CrashPoint;
use concord_proto::model::Isolation;
use concord_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::data::Data;
use crate::engine::OneShot;

/// What a client's transaction came to.
#[derive(Clone, Debug)]
pub enum Told {
    /// It ran here and has this outcome.
    Ended(Ended),
    /// The same request ran before: this is its outcome, under its own id.
    Replayed { first: Gtrid, outcome: Outcome },
    /// It was refused and never begun, or the call had no effect.
    Refused(Reason),
}

/// How a transaction ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The transaction.
    pub gtrid: Gtrid,
    /// Its outcome.
    pub outcome: Outcome,
    /// Results of its statements, by branch.
    pub results: Vec<Vec<v1::StatementResult>>,
    /// The branch whose vote aborted it.
    pub refused_by: Option<Refuser>,
}

/// Which vote aborted a transaction.
#[derive(Clone, Debug)]
pub struct Refuser {
    /// Who voted.
    pub participant: ParticipantName,
    /// The branch's index.
    pub branch_index: usize,
    /// The statement that failed.
    pub failed_statement: Option<usize>,
}

/// A branch that a statement of an interactive transaction may run in.
#[derive(Clone, Copy, Debug)]
pub struct Enlisted {
    /// The branch.
    pub branch: BranchId,
    /// Whether it must be begun first.
    pub new: bool,
    /// The transaction's isolation level.
    pub isolation: Option<Isolation>,
    /// When the transaction is aborted if it is not decided.
    pub deadline: Instant,
}

/// What is sent over a link.
#[derive(Debug)]
pub enum Outbound {
    /// A command about a branch, with the branch's work where it needs it.
    Command {
        /// The branch.
        branch: BranchId,
        /// The message.
        command: v1::link_command::Command,
    },
    /// Ledger rows below may be deleted.
    ForgetBelow(Gtrid),
}

/// The answer to an operator's order, before the participant is told.
#[derive(Debug)]
pub enum Ordered {
    /// Tell the participant.
    Go { resolve: Resolve, heuristic: bool },
    /// It is refused.
    Refused(Reason),
}

/// A call of the driver.
#[derive(Debug)]
pub enum Call {
    /// Runs a whole transaction.
    Run {
        tx: Box<OneShot>,
        /// Why it is refused unless it was begun before.
        down: Option<Reason>,
        answer: oneshot::Sender<Told>,
    },
    /// What became of a request? None: nothing is known of it. No answer at all says nothing of
    /// the kind: the driver ended.
    Repeat {
        gtrid: Gtrid,
        request: Request,
        answer: oneshot::Sender<Option<oneshot::Receiver<Told>>>,
    },
    /// Begins an interactive one.
    Begin {
        gtrid: Gtrid,
        isolation: Option<Isolation>,
        timeout: Duration,
        answer: oneshot::Sender<Result<(), Reason>>,
    },
    /// A statement of an interactive transaction wants to run.
    Enlist {
        gtrid: Gtrid,
        participant: ParticipantName,
        /// Why no branch can be begun there.
        down: Option<Reason>,
        answer: oneshot::Sender<Result<Enlisted, Reason>>,
    },
    /// The statement ended.
    StatementDone {
        gtrid: Gtrid,
        failed: Option<Reason>,
    },
    /// Commits an interactive transaction.
    Commit {
        gtrid: Gtrid,
        ack: Ack,
        answer: oneshot::Sender<Told>,
    },
    /// Rolls it back.
    Rollback {
        gtrid: Gtrid,
        reason: Reason,
        answer: oneshot::Sender<Told>,
    },
    /// What became of it?
    Look {
        gtrid: Gtrid,
        answer: oneshot::Sender<Seen>,
    },
    /// What became of this request?
    LookUp {
        request: RequestId,
        answer: oneshot::Sender<Seen>,
    },
    /// A participant asks what became of branches.
    Inquire {
        from: ParticipantName,
        branch: BranchId,
        answer: oneshot::Sender<Decision>,
    },
    /// An operator's order; its token is the driver's to choose.
    Resolve {
        resolve: Resolve,
        answer: oneshot::Sender<Ordered>,
    },
    /// What must a participant's data hold?
    Witnesses {
        participant: ParticipantName,
        answer: oneshot::Sender<Vec<BranchId>>,
    },
    /// A link is up, to this data.
    LinkUp {
        participant: ParticipantName,
        data: Data,
        generation: u64,
        sender: mpsc::UnboundedSender<Outbound>,
        answer: oneshot::Sender<Result<(), Reason>>,
    },
    /// A link is lost.
    LinkDown {
        participant: ParticipantName,
        generation: u64,
    },
    /// A participant told, or could not tell, from which transaction on it has unfinished branches.
    Unfinished {
        participant: ParticipantName,
        generation: u64,
        from: Option<Gtrid>,
    },
    /// A participant says something.
    Received {
        from: ParticipantName,
        message: FromParticipant,
        results: Vec<v1::StatementResult>,
        failed_statement: Option<u32>,
    },
    /// Numbers for the status page.
    Numbers { answer: oneshot::Sender<Numbers> },
}

/// Why a driver that ends begins nothing any more.
pub fn stopped() -> Reason {
    Reason::new(
        code::SHUTTING_DOWN,
        "the coordinator stops; try again with the next one",
    )
}

/// Numbers for the status page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// Transactions without a decision.
    pub active: u32,
    /// Decided, and not acknowledged everywhere.
    pub committing: u32,
    /// Those that cannot finish now.
    pub stuck: u32,
    /// Transactions whose outcome somebody waits for.
    pub awaited: u32,
    /// Ended transactions that are remembered.
    pub remembered: u64,
    /// Size of the log in bytes.
    pub log_bytes: u64,
}

/// Where an answer of a participant comes in, and is taken.
pub(super) fn points(message: &FromParticipant) -> (CrashPoint, CrashPoint) {
    match message {
        FromParticipant::Begun { .. } | FromParticipant::Voted { .. } => (
            CrashPoint::CoordinatorVoteReceived,
            CrashPoint::CoordinatorVoteTaken,
        ),
        FromParticipant::Finished { .. } | FromParticipant::Stale { .. } => (
            CrashPoint::CoordinatorAckReceived,
            CrashPoint::CoordinatorAckTaken,
        ),
    }
}
