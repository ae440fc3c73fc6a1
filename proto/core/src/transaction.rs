//! A transaction and its branches as the coordinator sees them.

use crate::id::{Bqual, BranchId, Epoch, Gtrid, ParticipantName, Request};
use crate::reason::Reason;

/// State of a transaction (design, section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransactionState {
    /// Known, and no branch yet.
    Init,
    /// Statements are running or awaited.
    Active,
    /// Prepare was sent; votes are awaited.
    Preparing,
    /// All votes are in; the decision is being forced.
    Prepared,
    /// Decided; the branches are being told.
    Committing,
    /// Every branch acknowledged the commit.
    Committed,
    /// Aborted; the branches are being told.
    Aborting,
    /// Aborted everywhere.
    Aborted,
}

/// State of one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BranchState {
    /// Executing statements.
    Active,
    /// Prepare, or a one-phase Commit, was sent; no answer yet.
    Preparing,
    /// Voted COMMIT.
    Prepared,
    /// Voted READ_ONLY and left.
    ReadOnly,
    /// Told to commit, no acknowledgement yet.
    Committing,
    /// Committed.
    Committed,
    /// Told to abort, no acknowledgement yet.
    Aborting,
    /// Rolled back.
    Aborted,
    /// Finished by someone other than the coordinator.
    Heuristic,
}

impl BranchState {
    /// Whether the coordinator waits for this branch to acknowledge its outcome.
    pub fn is_finishing(self) -> bool {
        matches!(self, Self::Committing | Self::Aborting)
    }
}

/// When a client is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ack {
    /// After every branch acknowledged the commit.
    #[default]
    Applied,
    /// As soon as the decision is durable.
    Decided,
}

/// One branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    /// Its number.
    pub bqual: Bqual,
    /// Who has it.
    pub participant: ParticipantName,
    /// Its state.
    pub state: BranchState,
    /// Why it aborted, or why it cannot finish yet.
    pub reason: Option<Reason>,
    /// How often its outcome was asked for in vain.
    pub attempts: u32,
    /// Sweeps left until its outcome is sent again.
    pub(crate) wait: u32,
}

impl Branch {
    pub(crate) fn new(bqual: Bqual, participant: ParticipantName, state: BranchState) -> Self {
        Self {
            bqual,
            participant,
            state,
            reason: None,
            attempts: 0,
            wait: 0,
        }
    }
}

/// One transaction that is not over: undecided, or not acknowledged by every branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transaction {
    /// Its id.
    pub gtrid: Gtrid,
    /// Its state.
    pub state: TransactionState,
    /// The epoch that ran it.
    pub epoch: Epoch,
    /// Its branches; the one with bqual n is at index n - 1 until the decision leaves out those
    /// that were read-only.
    pub branches: Vec<Branch>,
    /// The client's request.
    pub request: Option<Request>,
    /// Why it aborted, or how it was damaged.
    pub reason: Option<Reason>,
    /// When the client is answered.
    pub ack: Ack,
    /// Whether the participant of its only branch decides.
    pub one_phase: bool,
    /// Whether READ_ONLY votes are legal (they are not in a SERIALIZABLE one-shot transaction).
    pub may_leave: bool,
    /// Whether the client was answered, or is not there to be answered.
    pub(crate) answered: bool,
    /// Position of its last forced record.
    pub(crate) position: u64,
}

/// In vain this often, a branch makes its transaction count as stuck.
const STUCK_ATTEMPTS: u32 = 3;

impl Transaction {
    pub(crate) fn new(gtrid: Gtrid, epoch: Epoch) -> Self {
        Self {
            gtrid,
            state: TransactionState::Init,
            epoch,
            branches: Vec::new(),
            request: None,
            reason: None,
            ack: Ack::Applied,
            one_phase: false,
            may_leave: true,
            answered: false,
            position: 0,
        }
    }

    /// The branch of this number.
    pub fn branch(&self, bqual: Bqual) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.bqual == bqual)
    }

    pub(crate) fn branch_mut(&mut self, bqual: Bqual) -> Option<&mut Branch> {
        self.branches
            .iter_mut()
            .find(|branch| branch.bqual == bqual)
    }

    /// The id of one of its branches.
    pub fn branch_id(&self, bqual: Bqual) -> BranchId {
        BranchId {
            gtrid: self.gtrid,
            bqual,
        }
    }

    /// Whether it is decided, or delegated, and a branch keeps failing to acknowledge.
    pub fn is_stuck(&self) -> bool {
        self.branches
            .iter()
            .any(|b| b.reason.is_some() && b.attempts >= STUCK_ATTEMPTS)
    }

    /// Whether neither commit nor abort is decided here.
    pub fn is_undecided(&self) -> bool {
        use TransactionState as S;
        match self.state {
            S::Init | S::Active | S::Preparing | S::Prepared => true,
            S::Committing | S::Committed | S::Aborting | S::Aborted => false,
        }
    }

    /// The client's request, unless a decision, or the handing over of one, keeps it.
    pub(crate) fn request_of_abort(&self) -> Option<Request> {
        let kept = self.one_phase || self.state == TransactionState::Committing;
        self.request.clone().filter(|_| !kept)
    }

    /// What somebody other than the coordinator did to one of its branches.
    pub(crate) fn damage(&self) -> Option<Reason> {
        let damaged = |branch: &&Branch| branch.state == BranchState::Heuristic;
        self.branches.iter().find(damaged)?.reason.clone()
    }

    pub(crate) fn has_unfinished_branch(&self) -> bool {
        self.branches.iter().any(|branch| {
            !matches!(
                branch.state,
                BranchState::Committed
                    | BranchState::Aborted
                    | BranchState::ReadOnly
                    | BranchState::Heuristic
            )
        })
    }
}
