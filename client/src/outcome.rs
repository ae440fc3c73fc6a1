//! [`Outcome`]: what became of a transaction, in three cases and never two.

use concord_core::reason::{Reason, code};
use concord_proto::convert::link::reason;

use crate::error::{self, CallError};
use crate::v1;

/// What became of a transaction, as far as this client can know.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "an outcome that nobody looks at is a payment that nobody knows of"]
pub enum Outcome<R = Vec<v1::StatementResult>> {
    /// Committed on every server, or certain to be.
    Committed {
        /// The transaction in text form; empty where the service does not tell it.
        gtrid: String,
        /// What the call returns: results of statements, an order, an account.
        results: R,
        /// True when this is the outcome of an earlier attempt with the same request id; results
        /// of statements are then empty.
        replayed: bool,
        /// True when what the statements returned was lost on the way; results are then empty.
        /// Only a one-shot transaction at a single participant can end so.
        results_lost: bool,
    },
    /// Committed on none, now and ever.
    Aborted {
        /// Why.
        reason: Reason,
        /// The transaction in text form, if one was begun.
        gtrid: Option<String>,
    },
    /// It may be either. Ask again by gtrid, or repeat the call with the same request id; never
    /// send the work again as new.
    Unknown {
        /// The transaction in text form, if it is known.
        gtrid: Option<String>,
        /// The request id that the call carried.
        request_id: Option<String>,
        /// Why it is open, where the service says so: `OUTCOME_UNKNOWN`, or that somebody else
        /// finished a branch (`HEURISTIC_…`), and then servers may disagree.
        reason: Option<Reason>,
        /// What happened, for people.
        message: String,
    },
}

impl<R> Outcome<R> {
    /// Judges a call that carried a transaction and failed.
    pub(crate) fn failed(error: CallError, request_id: &str, begun: Option<&str>) -> Self {
        if !error.had_no_effect() {
            let told = match &error {
                CallError::Refused { gtrid, .. } => gtrid.clone(),
                _ => None,
            };
            return Self::Unknown {
                reason: error.reason().cloned(),
                gtrid: told.or_else(|| begun.map(str::to_owned)),
                request_id: (!request_id.is_empty()).then(|| request_id.to_owned()),
                message: error.to_string(),
            };
        }
        let message = error.to_string();
        let begun = begun.map(str::to_owned);
        match error {
            CallError::Refused { reason, gtrid } => Self::Aborted {
                reason,
                gtrid: gtrid.or(begun),
            },
            CallError::NotSent { .. } => Self::Aborted {
                reason: Reason::new(code::COORDINATOR_DOWN, message),
                gtrid: begun,
            },
            CallError::NotServed { .. } | CallError::Lost { .. } | CallError::TimedOut { .. } => {
                let reason = Reason::new(code::UNEXPECTED_ANSWER, message);
                Self::Aborted {
                    reason,
                    gtrid: begun,
                }
            }
        }
    }

    /// Whether the transaction is committed.
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::Committed { .. })
    }

    /// Whether a repetition may end otherwise. An unknown outcome counts only when it carries a
    /// request id, since without one a repetition would be a second execution.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Committed { .. } => false,
            Self::Aborted { reason, .. } => error::is_transient(reason),
            Self::Unknown { request_id, .. } => request_id.is_some(),
        }
    }

    /// The transaction in text form, if it is known.
    pub fn gtrid(&self) -> Option<&str> {
        match self {
            Self::Committed { gtrid, .. } => Some(gtrid.as_str()).filter(|id| !id.is_empty()),
            Self::Aborted { gtrid, .. } | Self::Unknown { gtrid, .. } => gtrid.as_deref(),
        }
    }

    /// The same outcome with other results.
    pub fn map<S>(self, change: impl FnOnce(R) -> S) -> Outcome<S> {
        match self {
            Self::Committed {
                gtrid,
                results,
                replayed,
                results_lost,
            } => Outcome::Committed {
                gtrid,
                results: change(results),
                replayed,
                results_lost,
            },
            Self::Aborted { reason, gtrid } => Outcome::Aborted { reason, gtrid },
            Self::Unknown {
                gtrid,
                request_id,
                reason,
                message,
            } => Outcome::Unknown {
                gtrid,
                request_id,
                reason,
                message,
            },
        }
    }
}

impl Outcome<()> {
    /// What a transaction's record says of its outcome. A transaction that is still running, or
    /// whose only branch was told to commit in one phase, is open; so is one that was damaged,
    /// whatever its state: somebody else finished a branch, and perhaps otherwise than the rest.
    pub fn of(transaction: &v1::Transaction) -> Self {
        let gtrid = transaction.gtrid.clone();
        let request_id = transaction.request_id.clone();
        let open = |reason, message| Self::Unknown {
            gtrid: Some(transaction.gtrid.clone()),
            request_id: (!request_id.is_empty()).then(|| request_id.clone()),
            reason,
            message,
        };
        let ended = transaction.reason.as_ref().map(reason);
        let damage = ended
            .clone()
            .filter(Reason::leaves_outcome_open)
            .or_else(|| damage(transaction));
        if let Some(damage) = damage {
            let message = damage.to_string();
            return open(Some(damage), message);
        }
        let several = transaction.branches.len() > 1;
        match transaction.state() {
            v1::TransactionState::Committed => Self::Committed {
                gtrid,
                results: (),
                replayed: true,
                results_lost: false,
            },
            v1::TransactionState::Committing if several => Self::Committed {
                gtrid,
                results: (),
                replayed: true,
                results_lost: false,
            },
            v1::TransactionState::Aborted | v1::TransactionState::Aborting => {
                let presumed = || Reason::new(code::PRESUMED_ABORT, "the transaction was aborted");
                Self::Aborted {
                    reason: ended.unwrap_or_else(presumed),
                    gtrid: Some(gtrid),
                }
            }
            state => open(None, format!("the transaction is {}", state.as_str_name())),
        }
    }
}

/// What somebody did to a branch against the outcome of its transaction.
fn damage(transaction: &v1::Transaction) -> Option<Reason> {
    let aborts = matches!(
        transaction.state(),
        v1::TransactionState::Aborting | v1::TransactionState::Aborted
    );
    let agrees = if aborts {
        code::HEURISTIC_ROLLBACK
    } else {
        code::HEURISTIC_COMMIT
    };
    let by_others = |branch: &&v1::Branch| branch.state() == v1::BranchState::Heuristic;
    let mut reasons = transaction.branches.iter().filter(by_others).map(|branch| {
        let unknown = || Reason::new(code::HEURISTIC_UNKNOWN, "somebody else finished a branch");
        branch.reason.as_ref().map_or_else(unknown, reason)
    });
    reasons.find(|reason| &*reason.code != agrees)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str) -> CallError {
        CallError::Refused {
            reason: Reason::new(code, "why"),
            gtrid: Some("g".into()),
        }
    }

    #[test]
    fn a_reason_from_concord_is_an_abort_and_silence_is_not() {
        let outcome = Outcome::<()>::failed(refused(code::PARTICIPANT_DOWN), "r", None);
        assert!(matches!(outcome, Outcome::Aborted { .. }));
        assert!(outcome.is_transient());

        let lost = CallError::Lost {
            endpoint: "e".into(),
            message: "m".into(),
        };
        let outcome = Outcome::<()>::failed(lost.clone(), "r", None);
        assert!(matches!(outcome, Outcome::Unknown { .. }));
        assert!(outcome.is_transient());
        let outcome = Outcome::<()>::failed(lost, "", Some("g"));
        assert!(
            !outcome.is_transient(),
            "no request id: it must not be repeated"
        );
        assert_eq!(outcome.gtrid(), Some("g"));
    }

    #[test]
    fn an_outcome_that_the_server_does_not_know_keeps_its_gtrid() {
        let outcome = Outcome::<()>::failed(refused(code::OUTCOME_UNKNOWN), "", None);
        assert!(matches!(&outcome, Outcome::Unknown { gtrid: Some(id), .. } if id == "g"));
    }

    #[test]
    fn a_final_refusal_is_not_transient() {
        for code in [
            code::INSUFFICIENT_FUNDS,
            code::REQUEST_ID_REUSED,
            "OUT_OF_TICKETS",
        ] {
            assert!(
                !Outcome::<()>::failed(refused(code), "r", None).is_transient(),
                "{code}"
            );
        }
    }

    #[test]
    fn a_damaged_transaction_is_never_called_committed_or_aborted() {
        for state in [
            v1::TransactionState::Committing,
            v1::TransactionState::Committed,
            v1::TransactionState::Aborted,
        ] {
            let transaction = v1::Transaction {
                gtrid: "g".into(),
                state: state.into(),
                reason: Some(v1::Reason {
                    code: code::HEURISTIC_ROLLBACK.into(),
                    message: "by hand".into(),
                }),
                branches: vec![v1::Branch::default(), v1::Branch::default()],
                ..Default::default()
            };
            let outcome = Outcome::of(&transaction);
            assert!(
                matches!(&outcome, Outcome::Unknown { message, .. } if message.contains("by hand")),
                "{outcome:?}"
            );
        }
    }

    /// Also where only the branch tells it; what agrees with the outcome is no damage.
    #[test]
    fn what_somebody_did_to_a_branch_counts_against_the_outcome() {
        let by_hand = |state: v1::TransactionState, code: &str| {
            let branch = v1::Branch {
                state: v1::BranchState::Heuristic.into(),
                reason: Some(v1::Reason {
                    code: code.into(),
                    message: "by hand".into(),
                }),
                ..Default::default()
            };
            Outcome::of(&v1::Transaction {
                gtrid: "g".into(),
                state: state.into(),
                branches: vec![branch, v1::Branch::default()],
                ..Default::default()
            })
        };
        for (state, against, agrees) in [
            (
                v1::TransactionState::Committing,
                code::HEURISTIC_ROLLBACK,
                code::HEURISTIC_COMMIT,
            ),
            (
                v1::TransactionState::Aborting,
                code::HEURISTIC_COMMIT,
                code::HEURISTIC_ROLLBACK,
            ),
        ] {
            let told = by_hand(state, against);
            assert!(matches!(told, Outcome::Unknown { .. }), "{told:?}");
            let told = by_hand(state, agrees);
            assert!(!matches!(told, Outcome::Unknown { .. }), "{told:?}");
        }
    }

    #[test]
    fn a_single_branch_that_is_being_told_is_still_open() {
        let branch = v1::Branch {
            bqual: 1,
            ..Default::default()
        };
        let mut transaction = v1::Transaction {
            gtrid: "g".into(),
            state: v1::TransactionState::Committing.into(),
            branches: vec![branch.clone()],
            ..Default::default()
        };
        assert!(matches!(Outcome::of(&transaction), Outcome::Unknown { .. }));
        transaction.branches.push(branch);
        assert!(Outcome::of(&transaction).is_committed());
    }
}
