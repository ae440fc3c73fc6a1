//! Exit codes, and failures as people read them: what happened, why, what to do next.

use std::fmt;
use std::process::ExitCode;

use concord_core::reason::{Reason, ReasonKind, code};

use crate::error::{CallError, ConnectError};

/// The exit codes of `concord`; a higher one is the graver news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Something else went wrong.
    Other = 1,
    /// Wrong usage, or a request that is invalid as such.
    Usage = 2,
    /// Refused: the transaction was aborted, or what it names does not exist.
    Refused = 3,
    /// The outcome is unknown.
    Unknown = 4,
    /// The cluster, or a part of it that is needed, cannot work now.
    Unavailable = 5,
    /// Interrupted with Ctrl-C before all was done.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// The exit code for a reason.
    pub(crate) fn of(reason: &Reason) -> Self {
        if reason.leaves_outcome_open() {
            return Self::Unknown;
        }
        match reason.kind() {
            ReasonKind::Invalid => Self::Usage,
            ReasonKind::Refused
            | ReasonKind::NotFound
            | ReasonKind::Exists
            | ReasonKind::Conflict
            | ReasonKind::Deadline
            | ReasonKind::Cancelled => Self::Refused,
            ReasonKind::Unavailable | ReasonKind::Exhausted => Self::Unavailable,
            ReasonKind::Internal => Self::Other,
        }
    }
}

/// A command that did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    code: Exit,
    what: String,
    why: Vec<String>,
    next: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// A failure with its exit code.
    pub fn new(code: Exit, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            why: Vec::new(),
            next: None,
        }
    }

    /// A failure that was told already, e.g. by a summary; only its exit code is left to tell.
    pub fn silent(code: Exit) -> Self {
        Self::new(code, "")
    }

    /// Adds why it happened.
    #[must_use]
    pub fn why(mut self, why: impl fmt::Display) -> Self {
        self.why.push(why.to_string());
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Its exit code.
    pub fn code(&self) -> Exit {
        self.code
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.what.is_empty()
    }

    pub(crate) fn reasons(&self) -> &[String] {
        &self.why
    }

    pub(crate) fn advice(&self) -> Option<&str> {
        self.next.as_deref()
    }

    /// A call that only read, or was sent once and certainly had no effect, and failed.
    pub(crate) fn of_call(what: impl Into<String>, error: &CallError) -> Self {
        let (code, next) = match error {
            CallError::Refused { reason, .. } => (Exit::of(reason), advice(&reason.code)),
            CallError::NotSent { .. } => (Exit::Unavailable, advice(code::COORDINATOR_DOWN)),
            CallError::Lost { .. } | CallError::TimedOut { .. } => (
                Exit::Unavailable,
                Some("look at `concord status`, and try again; --timeout waits longer".to_owned()),
            ),
            CallError::NotServed { .. } => (
                Exit::Other,
                Some("is this the gateway of a coordinator of the same version?".to_owned()),
            ),
        };
        let failure = Self::new(code, what).why(error);
        match next {
            Some(next) => failure.next(next),
            None => failure,
        }
    }

    /// Finds a failure in an error of any kind; what is none gets exit code 1.
    pub(crate) fn from_error(error: anyhow::Error) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(failure) => return failure,
            Err(error) => error,
        };
        let mut chain = error.chain().map(ToString::to_string);
        let mut failure = Self::new(Exit::Other, chain.next().unwrap_or_default());
        failure.why = chain.collect();
        failure
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let mut failure = Self::new(Exit::Usage, error.to_string());
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            failure = failure.why(cause);
            source = cause.source();
        }
        failure.next("name the gateway with --endpoint http://HOST:PORT or CONCORD_ENDPOINT")
    }
}

/// What a person can do about a reason.
pub(crate) fn advice(code: &str) -> Option<String> {
    let text = match code {
        code::COORDINATOR_DOWN => {
            "start a local cluster with `concord up`, or name the gateway's address with --endpoint"
        }
        code::PARTICIPANT_DOWN | code::SERVER_DOWN | code::CONNECTION_LOST => {
            "look at `concord status`: who is down? Then try again; nothing was changed"
        }
        code::UNSAFE_SERVER | code::READ_ONLY_SERVER => {
            "`concord status` shows which setting of which server must be mended"
        }
        code::INSUFFICIENT_FUNDS => "look at the balance with `concord account get`",
        code::INSUFFICIENT_STOCK => "add stock with `concord restock`",
        code::ACCOUNT_NOT_FOUND => "open it with `concord account open`",
        code::PRODUCT_NOT_FOUND => "create it with `concord product create`",
        code::PARTICIPANT_NOT_FOUND => "`concord status` lists the participants' names",
        code::LOCK_TIMEOUT | code::DEADLOCK | code::PRICE_CHANGED => {
            "somebody else was faster; try again"
        }
        code::DEADLINE_EXCEEDED => "try again, or allow more time with --timeout",
        code::REQUEST_ID_REUSED => "a request id names one request for ever; choose a new one",
        code::REQUEST_ALREADY_COMMITTED => "it has taken effect before; there is nothing to do",
        code::CONTRADICTS_OUTCOME => {
            "look at the transaction with `concord tx get`; --force breaks its atomicity"
        }
        code::LIMIT_REACHED | code::POOL_EXHAUSTED => "send less at once, or try again later",
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_documented_exit_codes() {
        for (code, exit) in [
            (code::INVALID_FIELD, Exit::Usage),
            (code::INSUFFICIENT_FUNDS, Exit::Refused),
            ("OUT_OF_TICKETS", Exit::Refused),
            (code::ACCOUNT_NOT_FOUND, Exit::Refused),
            (code::LOCK_TIMEOUT, Exit::Refused),
            (code::DEADLINE_EXCEEDED, Exit::Refused),
            (code::OUTCOME_UNKNOWN, Exit::Unknown),
            (code::HEURISTIC_COMMIT, Exit::Unknown),
            (code::PARTICIPANT_DOWN, Exit::Unavailable),
            (code::LIMIT_REACHED, Exit::Unavailable),
            (code::UNEXPECTED_ANSWER, Exit::Other),
        ] {
            assert_eq!(Exit::of(&Reason::new(code, "")), exit, "{code}");
        }
    }

    #[test]
    fn a_failure_survives_the_way_through_anyhow() {
        let error = anyhow::Error::from(Failure::new(Exit::Unknown, "x").why("y"));
        let failure = Failure::from_error(error);
        assert_eq!(
            (failure.code(), failure.reasons().len()),
            (Exit::Unknown, 1)
        );
        let failure = Failure::from_error(anyhow::anyhow!("inner").context("outer"));
        assert_eq!(
            (failure.code(), failure.to_string()),
            (Exit::Other, "outer".to_owned())
        );
        assert_eq!(failure.reasons(), ["inner"]);
    }
}
