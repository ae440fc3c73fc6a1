//! Records: what the machines make durable, and the only way in which their durable state changes.

use crate::id::{Bqual, Epoch, Gtrid, ParticipantName, Request};
use crate::reason::Reason;

/// A record of the coordinator's decision log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Record {
    /// A coordinator started under this epoch.
    Epoch(Epoch),
    /// The commit point of a transaction.
    Decision {
        /// The transaction.
        gtrid: Gtrid,
        /// The epoch of the coordinator that decided.
        epoch: Epoch,
        /// The branches that must be told; read-only ones are not among them.
        branches: Vec<(Bqual, ParticipantName)>,
        /// The client's request.
        request: Option<Request>,
    },
    /// The only branch of a transaction is about to be told to commit in one phase: from now on
    /// its participant decides, and its ledger row tells.
    OnePhase {
        /// The transaction.
        gtrid: Gtrid,
        /// The epoch of the coordinator that handed the decision over.
        epoch: Epoch,
        /// The branch.
        bqual: Bqual,
        /// Its participant.
        participant: ParticipantName,
        /// The client's request.
        request: Option<Request>,
    },
    /// A transaction with a request id was refused for a reason that a retry must get again.
    Refused {
        /// The transaction.
        gtrid: Gtrid,
        /// The client's request.
        request: Request,
        /// Why.
        reason: Reason,
    },
    /// Every branch has acknowledged. For a one-phase transaction it tells the outcome.
    End {
        /// The transaction.
        gtrid: Gtrid,
        /// False when a one-phase branch turned out rolled back.
        committed: bool,
    },
    /// A branch was finished otherwise than decided, or by an operator's order. Kept for ever.
    Heuristic {
        /// The transaction.
        gtrid: Gtrid,
        /// The branch.
        bqual: Bqual,
        /// Its participant.
        participant: ParticipantName,
        /// Whether the branch is committed, if anybody knows.
        committed: Option<bool>,
        /// What happened, and the operator's words.
        reason: Reason,
        /// The client's request, when the transaction is aborted: no other record keeps it then.
        request: Option<Request>,
    },
    /// Ended transactions below this one are forgotten.
    Horizon(Gtrid),
    /// Where accounts and products live: the participant of each range of hash slots, fixed when
    /// the cluster is first started.
    Placement(Vec<ParticipantName>),
    /// The identity of the data behind a participant, learnt at the first contact.
    Incarnation {
        /// The participant.
        participant: ParticipantName,
        /// `server_uuid` or `server_uid`, and the id in the ledger schema.
        incarnation: String,
        /// Transactions up to this one were made with other data, or an operator accepted that
        /// this data lacks some of them.
        after: Gtrid,
    },
}

impl Record {
    /// Whether anything waits for it. A record that is not forced is written with the next one
    /// that is; losing it costs a repetition, never an outcome.
    pub fn is_forced(&self) -> bool {
        match self {
            Self::Epoch(_)
            | Self::Decision { .. }
            | Self::OnePhase { .. }
            | Self::Refused { .. }
            | Self::Heuristic { .. }
            | Self::Placement(_)
            | Self::Incarnation { .. }
            // Participants delete ledger rows below the horizon: every End before it must be
            // durable by then, or a crash would re-drive a commit that nothing proves any more.
            | Self::Horizon(_) => true,
            // The ledger row is the truth of a one-phase branch, the acknowledgements that of the
            // others: both can be asked for again.
            Self::End { .. } => false,
        }
    }

    /// The transaction that it belongs to.
    pub fn gtrid(&self) -> Option<Gtrid> {
        match self {
            Self::Decision { gtrid, .. }
            | Self::OnePhase { gtrid, .. }
            | Self::Refused { gtrid, .. }
            | Self::End { gtrid, .. }
            | Self::Heuristic { gtrid, .. } => Some(*gtrid),
            Self::Epoch(_) | Self::Horizon(_) | Self::Placement(_) | Self::Incarnation { .. } => {
                None
            }
        }
    }
}

/// A record that a participant keeps in its ledger schema, outside any branch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParticipantRecord {
    /// The highest epoch seen.
    Epoch(Epoch),
    /// A heuristic outcome was found. Kept until an operator acknowledges it, and after.
    Damage {
        /// The transaction.
        gtrid: Gtrid,
        /// The branch.
        bqual: Bqual,
        /// What was found.
        reason: Reason,
    },
    /// Prepares of transactions below this one are refused; ledger rows below it may be deleted.
    ForgetBelow(Gtrid),
}
