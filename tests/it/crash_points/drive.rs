//! What makes something come to a point.

use concord_daemon::crash::CrashPoint as Point;

/// A way to a point. They are gone through in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drive {
    /// The coordinator makes its log: only its very first start does.
    Create,
    /// Clients work: transactions of every form, some of which are refused.
    Work,
    /// Clients work, the coordinator is killed and starts again.
    Coordinator,
    /// Clients work, a participant is killed and starts again.
    Participant,
    /// A transaction waits for a row until its time-out passes.
    Deadline,
    /// A branch is prepared, and its coordinator died before it decided.
    Inquiry,
    /// A branch that nobody knows is to be rolled back.
    Tombstone,
    /// Somebody commits a decided branch by hand.
    HandCommit,
    /// Somebody rolls a decided branch back by hand.
    HandRollback,
    /// A branch lives on in another connection.
    Detach,
    /// An operator orders what was decided.
    Order,
    /// The coordinator starts with a log that is mostly free pages.
    Compact,
    /// Ended transactions are forgotten soon.
    Forget,
}

impl Drive {
    /// The way to this point.
    pub fn of(point: Point) -> Self {
        match point {
            Point::LogCreatePublishBefore | Point::LogCreatePublishAfter => Self::Create,
            Point::LogCompactBefore | Point::LogCompactAfter => Self::Compact,

            Point::CoordinatorReplayBefore
            | Point::CoordinatorEpochBeforeForce
            | Point::CoordinatorEpochAfterForce
            | Point::CoordinatorServeBefore
            | Point::CoordinatorResendBefore
            | Point::CoordinatorResendAfter
            | Point::ParticipantLinkAccepted
            | Point::ParticipantEpochBeforeWrite
            | Point::ParticipantEpochAfterWrite
            | Point::LogLockTaken
            | Point::LogOpenExamined
            | Point::LogFoldBefore
            | Point::LogFoldBeforeCommit
            | Point::LogFoldAfterCommit
            | Point::LogFoldMarked => Self::Coordinator,

            Point::ParticipantLoadBefore
            | Point::ParticipantLoadAfter
            | Point::ParticipantRecoverAfter
            | Point::ParticipantRecoverTaken => Self::Participant,

            Point::CoordinatorDeadlinePassed => Self::Deadline,

            Point::CoordinatorInquiryReceived
            | Point::CoordinatorInquiryAnswered
            | Point::ParticipantInquiryBefore
            | Point::ParticipantInquiryAfter
            | Point::ParticipantDecidedTaken => Self::Inquiry,

            Point::ParticipantTombstoneBefore | Point::ParticipantTombstoneAfter => Self::Tombstone,

            Point::ParticipantLedgerBefore | Point::ParticipantLedgerAfter => Self::HandCommit,

            Point::ParticipantListBefore
            | Point::ParticipantListAfter
            | Point::ParticipantDamageBeforeWrite
            | Point::ParticipantDamageAfterWrite
            | Point::CoordinatorHeuristicBeforeForce
            | Point::CoordinatorHeuristicAfterForce => Self::HandRollback,

            Point::ParticipantDetachBefore | Point::ParticipantDetachAfter => Self::Detach,

            Point::CoordinatorOrderReceived | Point::CoordinatorOrderReleased => Self::Order,

            Point::CoordinatorHorizonBeforeForce
            | Point::CoordinatorHorizonAfterForce
            | Point::CoordinatorForgetBefore
            | Point::CoordinatorForgetAfter
            | Point::CoordinatorForgetTold
            | Point::ParticipantHorizonBeforeWrite
            | Point::ParticipantHorizonAfterWrite
            | Point::ParticipantPruneBefore
            | Point::ParticipantPruneAfter => Self::Forget,

            Point::CoordinatorRunReceived
            | Point::CoordinatorBeginReceived
            | Point::CoordinatorBranchEnlisted
            | Point::CoordinatorAskReceived
            | Point::CoordinatorRollbackReceived
            | Point::CoordinatorPrepareBeforeSend
            | Point::CoordinatorPrepareAfterSend
            | Point::CoordinatorCommitBeforeSend
            | Point::CoordinatorCommitAfterSend
            | Point::CoordinatorOnePhaseBeforeSend
            | Point::CoordinatorOnePhaseAfterSend
            | Point::CoordinatorAbortBeforeSend
            | Point::CoordinatorAbortAfterSend
            | Point::CoordinatorFrameSent
            | Point::CoordinatorFrameReceived
            | Point::CoordinatorVoteReceived
            | Point::CoordinatorVoteTaken
            | Point::CoordinatorAckReceived
            | Point::CoordinatorAckTaken
            | Point::CoordinatorDecisionBeforeForce
            | Point::CoordinatorDecisionAfterForce
            | Point::CoordinatorDelegationBeforeForce
            | Point::CoordinatorDelegationAfterForce
            | Point::CoordinatorRefusalBeforeForce
            | Point::CoordinatorRefusalAfterForce
            | Point::CoordinatorEndBeforeWrite
            | Point::CoordinatorEndAfterWrite
            | Point::CoordinatorReleaseBefore
            | Point::CoordinatorReleaseAfter
            | Point::CoordinatorReplyBeforeSend
            | Point::CoordinatorReplyAfterSend
            | Point::ParticipantFrameReceived
            | Point::ParticipantFrameSent
            | Point::ParticipantBeginReceived
            | Point::ParticipantStatementReceived
            | Point::ParticipantPrepareReceived
            | Point::ParticipantCommitReceived
            | Point::ParticipantOnePhaseReceived
            | Point::ParticipantAbortReceived
            | Point::ParticipantBeginBefore
            | Point::ParticipantBeginAfter
            | Point::ParticipantStatementBefore
            | Point::ParticipantStatementAfter
            | Point::ParticipantPrepareBefore
            | Point::ParticipantPrepareAfter
            | Point::ParticipantOnePhaseBefore
            | Point::ParticipantOnePhaseAfter
            | Point::ParticipantCommitBefore
            | Point::ParticipantCommitAfter
            | Point::ParticipantRollbackBefore
            | Point::ParticipantRollbackAfter
            | Point::ParticipantSweepBefore
            | Point::ParticipantSweepAfter
            | Point::ParticipantVoteBeforeSend
            | Point::ParticipantVoteAfterSend
            | Point::ParticipantAckBeforeSend
            | Point::ParticipantAckAfterSend
            | Point::ServerWorkBeforeSend
            | Point::ServerStartAnswered
            | Point::ServerLedgerAnswered
            | Point::ServerStatementAnswered
            | Point::ServerEndAnswered
            | Point::ServerPrepareAnswered
            | Point::ServerOnePhaseAnswered
            | Point::ServerCommitBeforeSend
            | Point::ServerCommitAnswered
            | Point::ServerRollbackBeforeSend
            | Point::ServerRollbackAnswered
            | Point::ServerUndoBeforeSend
            | Point::ServerUndoEnded
            | Point::ServerUndoAnswered
            | Point::LogJournalBeforeWrite
            | Point::LogJournalBeforeSync
            | Point::LogJournalAfterSync
            | Point::LogJournalMarked => Self::Work,
        }
    }
}
