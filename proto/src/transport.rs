//! What the transport refuses before any service sees it, in Concord's words.
//!
//! It owns the refusals that a message can meet there: it is missing, its bytes are no such
//! message, or there are too many of them. The gRPC library calls the first two internal faults and
//! the last a value out of range; all are the caller's, and callers look for a reason. It refuses
//! to touch any status that already says why.

use concord_core::reason::{Reason, code};
use tonic::{Code, Status};

use crate::convert::violations::{At, Violations};
use crate::status::status;

/// How the gRPC library begins what it says of bytes that are no message of the wanted type.
const UNDECODABLE: &str = "failed to decode Protobuf message: ";
/// How it begins what it says of a message that is too long.
const TOO_LONG: &str = "Error, decoded message length too large: ";

/// What it says of a call that ended before its message came.
const MISSING: &str = "Missing request message.";

/// The status that a caller gets instead of this one; none when this one is right as it is.
pub fn restate(refusal: &Status) -> Option<Status> {
    if !refusal.details().is_empty() {
        return None;
    }
    match refusal.code() {
        Code::Internal if refusal.message() == MISSING => {
            Some(Violations::one(&At::Root, "the request is missing").into())
        }
        Code::Internal => {
            let (path, problem) = split_path(refusal.message().strip_prefix(UNDECODABLE)?);
            let what = format!("cannot be decoded: {problem}");
            Some(Violations::one(&At::Named(&path), what).into())
        }
        Code::OutOfRange => {
            let sizes = refusal.message().strip_prefix(TOO_LONG)?;
            let text = format!("the message is too long: {sizes}");
            Some(status(&Reason::new(code::LIMIT_REACHED, text)))
        }
        _ => None,
    }
}

/// Splits `C.d: A.b: problem`, which begins with the innermost message, into the path `b.d` and the
/// problem.
fn split_path(text: &str) -> (String, &str) {
    let mut path: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once(": ")
        && let Some((message, field)) = head.split_once('.')
        && [message, field].iter().all(|word| is_word(word))
    {
        path.push(field);
        rest = tail;
    }
    path.reverse();
    (path.join("."), rest)
}

fn is_word(word: &str) -> bool {
    !word.is_empty()
        && word
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{reason_of, violations_of};
    use crate::v1;
    use prost::Message;

    /// What the library says of these bytes.
    fn undecodable<T: Message + Default + std::fmt::Debug>(bytes: &[u8]) -> Status {
        let error = T::decode(bytes).expect_err("bytes that are no message");
        restate(&Status::internal(error.to_string())).expect("a restated status")
    }

    #[test]
    fn bytes_that_are_no_message_are_the_callers_fault() {
        let status = undecodable::<v1::GetAccountRequest>(b"\x0a\x02\xff\xfe");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(violations_of(&status)[0].field, "account_id");
        let reason = reason_of(&status).expect("a reason");
        assert_eq!(&*reason.code, code::INVALID_FIELD);
        assert!(reason.message.contains("UTF-8"), "{reason}");

        let nested = b"\x0a\x05\x12\x03\x0a\x01\xff";
        let status = undecodable::<v1::ExecuteTransactionRequest>(nested);
        assert_eq!(violations_of(&status)[0].field, "statements.statement.sql");

        let missing = restate(&Status::internal(MISSING)).expect("a restated status");
        assert_eq!(missing.code(), Code::InvalidArgument);
        let status = undecodable::<v1::GetAccountRequest>(b"garbage");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(violations_of(&status)[0].field, "");
    }

    #[test]
    fn a_message_that_is_too_long_met_a_limit() {
        let said = format!("{TOO_LONG}found 9437184 bytes, the limit is: 8388608 bytes");
        let status = restate(&Status::out_of_range(said)).expect("a restated status");
        assert_eq!(status.code(), Code::ResourceExhausted);
        let reason = reason_of(&status).expect("a reason");
        assert_eq!(&*reason.code, code::LIMIT_REACHED);
        assert!(reason.message.contains("8388608"), "{reason}");
    }

    #[test]
    fn every_other_status_stays_as_it_is() {
        let own = status(&Reason::new(
            code::UNEXPECTED_ANSWER,
            format!("{UNDECODABLE}x"),
        ));
        for other in [own, Status::internal("else"), Status::unavailable(TOO_LONG)] {
            assert!(restate(&other).is_none(), "{other:?}");
        }
    }
}
