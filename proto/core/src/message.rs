//! Messages between coordinator and participant, without the payload that the protocol ignores.
//!
//! Statements and result rows travel beside these messages: the drivers attach them by branch id.

use crate::id::{BranchId, Epoch, Gtrid};
use crate::reason::Reason;

/// From the coordinator to a participant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToParticipant {
    /// Opens an interactive branch.
    Begin { branch: BranchId, epoch: Epoch },
    /// Asks for a vote. With `work`, the branch's statements come along (one-shot form) and
    /// nothing was begun before. `may_leave` allows a vote READ_ONLY.
    Prepare {
        branch: BranchId,
        epoch: Epoch,
        work: bool,
        may_leave: bool,
    },
    /// Commits a prepared branch; or, with `one_phase`, one that was never prepared, and then
    /// `work` has the meaning that it has in `Prepare`.
    Commit {
        branch: BranchId,
        epoch: Epoch,
        one_phase: bool,
        work: bool,
    },
    /// Rolls a branch back, whatever its state; an unknown one leaves a tombstone.
    Abort { branch: BranchId, epoch: Epoch },
}

impl ToParticipant {
    /// The branch that it concerns.
    pub fn branch(&self) -> BranchId {
        match self {
            Self::Begin { branch, .. }
            | Self::Prepare { branch, .. }
            | Self::Commit { branch, .. }
            | Self::Abort { branch, .. } => *branch,
        }
    }

    /// The epoch of the coordinator that sent it.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Begin { epoch, .. }
            | Self::Prepare { epoch, .. }
            | Self::Commit { epoch, .. }
            | Self::Abort { epoch, .. } => *epoch,
        }
    }
}

/// A participant's answer to Prepare.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vote {
    /// Prepared: it will commit when told so, whatever crashes in between.
    Commit,
    /// Nothing was written; the branch has ended.
    ReadOnly,
    /// The branch is rolled back, or was never there.
    Abort(Reason),
    /// It will not commit, and may still be there: it is being rolled back, and its end is told to
    /// whoever sends Abort.
    Aborting(Reason),
}

/// What became of a branch that was told to finish.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Finish {
    /// Committed, now or before.
    Committed,
    /// Rolled back, now or before; a one-phase commit says why.
    Aborted(Option<Reason>),
    /// Not finished now; the branch is as it was.
    Retry(Reason),
    /// The branch is gone and its ledger row does not say what was ordered: a heuristic outcome.
    Damaged(Reason),
}

/// From a participant to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FromParticipant {
    /// The answer to Begin.
    Begun {
        branch: BranchId,
        epoch: Epoch,
        result: Result<(), Reason>,
    },
    /// The answer to Prepare. `epoch` is that of the Prepare.
    Voted {
        branch: BranchId,
        epoch: Epoch,
        vote: Vote,
    },
    /// The answer to Commit and Abort. `epoch` is that of the question.
    Finished {
        branch: BranchId,
        epoch: Epoch,
        finish: Finish,
    },
    /// The message was of a lower epoch than the highest seen, and had no effect.
    Stale {
        branch: BranchId,
        epoch: Epoch,
        highest: Epoch,
    },
}

/// The coordinator's answer to an inquiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// Commit it.
    Commit,
    /// Abort it.
    Abort,
    /// Undecided: wait and ask again.
    Running,
    /// Older than what is remembered: leave it alone; an operator must look.
    Forgotten,
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Committed on every server (APPLIED), or certain to be (DECIDED).
    Committed,
    /// Committed on none, ever.
    Aborted(Reason),
    /// Not known now: a one-phase commit whose participant was lost. Ask again by gtrid.
    Unknown(Gtrid),
    /// Decided or aborted, and somebody other than the coordinator finished a branch otherwise.
    Damaged(Reason),
}
