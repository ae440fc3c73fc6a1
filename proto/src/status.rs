//! Where a [`Reason`] becomes a gRPC status, and a status becomes a reason again for clients.
//!
//! It owns the mapping of every reason's kind to a status code. It refuses to invent reasons: a
//! status that is not Concord's own, e.g. one of the transport, has none.

use std::borrow::Cow;
use std::collections::HashMap;
use std::error::Error;

use concord_core::id::{Gtrid, ParticipantName};
use concord_core::reason::{Reason, ReasonKind, code};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::convert::text;
use crate::convert::violations::Violation;

/// The `domain` of every `google.rpc.ErrorInfo` of Concord.
pub const DOMAIN: &str = "concord.v1";
/// Key of the transaction in an `ErrorInfo`'s metadata.
pub const METADATA_GTRID: &str = "gtrid";
/// Key of the participant in an `ErrorInfo`'s metadata.
pub const METADATA_PARTICIPANT: &str = "participant";
/// Bytes of a status' message. It travels twice in the trailers, once percent-encoded and once in
/// base64, and most clients bound all trailers at 16 KiB.
pub const MESSAGE_BYTES_MAX: usize = 1_024;

/// The status code for what a caller can do about a reason.
pub fn code_of(kind: ReasonKind) -> Code {
    match kind {
        ReasonKind::Invalid => Code::InvalidArgument,
        ReasonKind::Refused => Code::FailedPrecondition,
        ReasonKind::NotFound => Code::NotFound,
        ReasonKind::Exists => Code::AlreadyExists,
        ReasonKind::Conflict => Code::Aborted,
        ReasonKind::Unavailable => Code::Unavailable,
        ReasonKind::Deadline => Code::DeadlineExceeded,
        ReasonKind::Exhausted => Code::ResourceExhausted,
        ReasonKind::Cancelled => Code::Cancelled,
        ReasonKind::Internal => Code::Internal,
    }
}

/// The status of a reason that concerns no particular transaction.
pub fn status(reason: &Reason) -> Status {
    status_of(reason, None, None)
}

/// The status of a reason, with the transaction and the participant that it concerns.
pub fn status_of(
    reason: &Reason,
    gtrid: Option<Gtrid>,
    participant: Option<&ParticipantName>,
) -> Status {
    // An outcome that nobody knows is not a fault: it has a code of its own, which no other
    // reason uses, so that a client cannot take it for a refusal and send the work again.
    let status_code = match &*reason.code {
        code::OUTCOME_UNKNOWN => Code::Unknown,
        _ => code_of(reason.kind()),
    };
    let mut metadata = HashMap::new();
    if let Some(gtrid) = gtrid {
        metadata.insert(METADATA_GTRID.to_owned(), gtrid.to_string());
    }
    if let Some(participant) = participant {
        metadata.insert(METADATA_PARTICIPANT.to_owned(), participant.to_string());
    }
    let details = ErrorDetails::with_error_info(&*reason.code, DOMAIN, metadata);
    Status::with_error_details(
        status_code,
        shorten(&reason.message, MESSAGE_BYTES_MAX),
        details,
    )
}

/// Whether a status comes from the transport: Concord's own carry a reason.
pub fn is_of_transport(status: &Status) -> bool {
    reason_of(status).is_none()
}

/// The message of a failed attempt to connect, when that is what the status is about: tonic keeps
/// its `ConnectError` in the chain of sources, and then no byte of the call has left.
pub fn connect_failure(status: &Status) -> Option<String> {
    let mut source = status.source();
    while let Some(error) = source {
        if error.downcast_ref::<tonic::ConnectError>().is_some() {
            return Some(with_causes(error.to_string(), error.source()));
        }
        source = error.source();
    }
    None
}

/// A message with the causes behind it, each once.
pub fn with_causes(mut message: String, mut cause: Option<&(dyn Error + 'static)>) -> String {
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    message
}

/// The status of a transaction whose outcome is not known now: `UNKNOWN` / `OUTCOME_UNKNOWN`.
pub fn outcome_unknown(gtrid: Gtrid) -> Status {
    let message = format!(
        "the outcome of transaction {gtrid} is not known now; ask GetTransaction, and do not \
         send the work again as new"
    );
    status_of(
        &Reason::new(code::OUTCOME_UNKNOWN, message),
        Some(gtrid),
        None,
    )
}

/// The reason that a status of Concord carries; none for a status of anybody else.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN || !text::is_code(&info.reason) {
        return None;
    }
    Some(Reason::new(info.reason, status.message()))
}

/// The transaction that a status of Concord names.
pub fn gtrid_of(status: &Status) -> Option<Gtrid> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    text::parse_gtrid(info.metadata.get(METADATA_GTRID)?)
}

/// The participant that a status of Concord names.
pub fn participant_of(status: &Status) -> Option<ParticipantName> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    let name = info.metadata.get(METADATA_PARTICIPANT)?;
    text::is_name(name).then(|| ParticipantName::new(name.as_str()))
}

/// The violated fields that a status names; empty when it names none.
pub fn violations_of(status: &Status) -> Vec<Violation> {
    let Some(bad_request) = status.get_details_bad_request() else {
        return Vec::new();
    };
    bad_request
        .field_violations
        .into_iter()
        .map(|raw| Violation {
            field: raw.field,
            description: raw.description,
        })
        .collect()
}

/// The text, cut at a character's boundary with an ellipsis when it has more than `max` bytes.
pub(crate) fn shorten(text: &str, max: usize) -> Cow<'_, str> {
    const ELLIPSIS: &str = "…";
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let cut = text.floor_char_boundary(max.saturating_sub(ELLIPSIS.len()));
    Cow::Owned(format!("{}{ELLIPSIS}", &text[..cut]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GTRID: Gtrid = Gtrid([1, 2, 3, 4, 5, 6, 0x70, 8, 0x80, 10, 11, 12, 13, 14, 15, 16]);

    #[test]
    fn every_code_survives_the_way_to_the_client() {
        for code in code::ALL {
            let reason = Reason::new(*code, "what happened, and what to do: ünïcode");
            let name = ParticipantName::new("p1");
            let status = status_of(&reason, Some(GTRID), Some(&name));
            assert_ne!(status.code(), Code::Ok);
            assert_eq!(reason_of(&status), Some(reason));
            assert_eq!(gtrid_of(&status), Some(GTRID));
            assert_eq!(participant_of(&status), Some(name));
        }
    }

    #[test]
    fn only_an_unknown_outcome_is_unknown() {
        assert_eq!(outcome_unknown(GTRID).code(), Code::Unknown);
        for code in code::ALL
            .iter()
            .filter(|code| **code != code::OUTCOME_UNKNOWN)
        {
            assert_ne!(
                status(&Reason::new(*code, "")).code(),
                Code::Unknown,
                "{code}"
            );
        }
    }

    #[test]
    fn the_designs_examples() {
        let expected = [
            (code::INSUFFICIENT_FUNDS, Code::FailedPrecondition),
            (code::INSUFFICIENT_STOCK, Code::FailedPrecondition),
            (code::ACCOUNT_NOT_FOUND, Code::NotFound),
            (code::LOCK_TIMEOUT, Code::Aborted),
            (code::DEADLINE_EXCEEDED, Code::DeadlineExceeded),
            (code::PARTICIPANT_DOWN, Code::Unavailable),
            (code::LIMIT_REACHED, Code::ResourceExhausted),
        ];
        for (code, status_code) in expected {
            assert_eq!(status(&Reason::new(code, "")).code(), status_code, "{code}");
        }
        assert_eq!(
            status(&Reason::new("NO_TICKETS", "")).code(),
            Code::FailedPrecondition
        );
    }

    #[test]
    fn a_strangers_status_has_no_reason() {
        assert_eq!(reason_of(&Status::unavailable("tcp connect error")), None);
        let details = ErrorDetails::with_error_info("SOME_REASON", "example.com", []);
        let foreign = Status::with_error_details(Code::Aborted, "", details);
        assert_eq!((reason_of(&foreign), gtrid_of(&foreign)), (None, None));
        let garbage = Status::with_details(Code::Aborted, "", vec![255; 40].into());
        assert_eq!(reason_of(&garbage), None);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let reason = Reason::new(code::STATEMENT_FAILED, "é".repeat(10_000));
        let status = status(&reason);
        assert!(status.message().len() <= MESSAGE_BYTES_MAX);
        assert!(status.message().ends_with("é…"));
    }
}
