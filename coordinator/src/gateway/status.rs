//! What the gateway's failures are called on the wire.
//!
//! It owns which transaction and participant a status names. The codes themselves are
//! [`concord_proto::status`]'s, and it refuses to have any of its own.

use concord_proto::status::{outcome_unknown, status, status_of};
use tonic::Status;

use super::business::CallError;
use crate::engine::Failure;

/// The status of a transaction that is not known to be committed.
pub fn of_failure(failure: &Failure) -> Status {
    match failure {
        Failure::Aborted {
            gtrid,
            reason,
            participant,
            ..
        } => status_of(reason, Some(*gtrid), participant.as_ref()),
        Failure::Unknown { gtrid } => outcome_unknown(*gtrid),
        Failure::Refused(reason) => status(reason),
    }
}

/// The status of a call of bank or inventory that has no good answer.
pub fn of_call(error: &CallError) -> Status {
    match error {
        CallError::Reason(reason) => status(reason),
        CallError::Failure(failure) => of_failure(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use concord_core::id::{Gtrid, ParticipantName};
    use concord_core::reason::{Reason, code};
    use concord_proto::status::{gtrid_of, participant_of, reason_of};
    use tonic::Code;

    const GTRID: Gtrid = Gtrid([1, 2, 3, 4, 5, 6, 0x70, 8, 0x80, 10, 11, 12, 13, 14, 15, 16]);

    #[test]
    fn an_abort_names_its_transaction_and_who_refused() {
        let participant = ParticipantName::new("p2");
        let reason = Reason::new(
            code::INSUFFICIENT_FUNDS,
            "account a holds 5, and 70 are needed",
        );
        let status = of_failure(&Failure::Aborted {
            gtrid: GTRID,
            reason: reason.clone(),
            participant: Some(participant.clone()),
            branch_index: Some(1),
            failed_statement: Some(0),
        });
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(reason_of(&status), Some(reason));
        assert_eq!(gtrid_of(&status), Some(GTRID));
        assert_eq!(participant_of(&status), Some(participant));
    }

    #[test]
    fn an_unknown_outcome_is_unknown_and_names_its_transaction() {
        let status = of_failure(&Failure::Unknown { gtrid: GTRID });
        assert_eq!(
            (status.code(), gtrid_of(&status)),
            (Code::Unknown, Some(GTRID))
        );
    }

    #[test]
    fn what_was_never_begun_names_no_transaction() {
        let reason = Reason::new(code::LIMIT_REACHED, "busy");
        for status in [
            of_failure(&Failure::Refused(reason.clone())),
            of_call(&CallError::Reason(reason.clone())),
        ] {
            assert_eq!(
                (status.code(), gtrid_of(&status)),
                (Code::ResourceExhausted, None)
            );
        }
    }
}
