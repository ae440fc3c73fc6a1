//! How a branch ends that did not come to its end.

use concord_core::reason::Reason;
use concord_proto::v1;

use crate::resource::{OnePhase, Prepared};

/// A branch that did not come to its end.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// Whether it is certainly rolled back.
    pub certain: bool,
    /// Why.
    pub reason: Reason,
    /// Results up to the failure.
    pub results: Vec<v1::StatementResult>,
    /// The client's statement that failed.
    pub failed: Option<usize>,
}

impl Unfinished {
    pub(super) fn never_began(reason: Reason, failed: Option<usize>) -> Self {
        Self {
            certain: true,
            reason,
            results: Vec::new(),
            failed,
        }
    }
}

impl From<Unfinished> for Prepared {
    fn from(branch: Unfinished) -> Self {
        let Unfinished {
            certain,
            reason,
            results,
            failed,
        } = branch;
        if certain {
            Self::NotPrepared {
                reason,
                results,
                failed,
            }
        } else {
            Self::Unknown { reason }
        }
    }
}

impl From<Unfinished> for OnePhase {
    fn from(branch: Unfinished) -> Self {
        let Unfinished {
            certain,
            reason,
            results,
            failed,
        } = branch;
        if certain {
            Self::NotCommitted {
                reason,
                results,
                failed,
            }
        } else {
            Self::unknown(reason)
        }
    }
}
