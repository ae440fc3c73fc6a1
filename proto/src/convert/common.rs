//! Checks that requests of several services share: time-outs, ranges, enums.

use std::time::Duration;

use concord_core::id::Epoch;
use concord_core::limits::TIMEOUT_MAX_MS;
use concord_core::transaction::{Ack, BranchState, TransactionState};

use super::violations::{At, Violations};
use crate::model::Isolation;
use crate::v1;

/// Checks a time-out; 0 is the default.
pub fn timeout(v: &mut Violations, at: &At<'_>, raw: u32, default_ms: u32) -> Option<Duration> {
    timeout_up_to(v, at, raw, default_ms, TIMEOUT_MAX_MS)
}

/// Checks a time-out that has a limit of its own; 0 is the default.
pub fn timeout_up_to(
    v: &mut Violations,
    at: &At<'_>,
    raw: u32,
    default_ms: u32,
    max_ms: u32,
) -> Option<Duration> {
    if raw > max_ms {
        v.add(
            at,
            format_args!("must be from 1 to {max_ms} ms, and is {raw}"),
        );
        return None;
    }
    let ms = if raw == 0 { default_ms } else { raw };
    Some(Duration::from_millis(ms.into()))
}

/// A duration as a `timeout_ms` field: whole ms, at least 1, since 0 means the default.
pub fn timeout_ms(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis())
        .unwrap_or(u32::MAX)
        .clamp(1, TIMEOUT_MAX_MS)
}

/// Checks an isolation level; unspecified is the server's own.
#[allow(clippy::option_option)] // outer: valid; inner: given
pub fn isolation(v: &mut Violations, at: &At<'_>, raw: i32) -> Option<Option<Isolation>> {
    match v1::Isolation::try_from(raw) {
        Ok(v1::Isolation::Unspecified) => Some(None),
        Ok(v1::Isolation::ReadCommitted) => Some(Some(Isolation::ReadCommitted)),
        Ok(v1::Isolation::RepeatableRead) => Some(Some(Isolation::RepeatableRead)),
        Ok(v1::Isolation::Serializable) => Some(Some(Isolation::Serializable)),
        Err(_) => unknown_number(v, at, raw),
    }
}

impl From<Option<Isolation>> for v1::Isolation {
    fn from(isolation: Option<Isolation>) -> Self {
        match isolation {
            None => Self::Unspecified,
            Some(Isolation::ReadCommitted) => Self::ReadCommitted,
            Some(Isolation::RepeatableRead) => Self::RepeatableRead,
            Some(Isolation::Serializable) => Self::Serializable,
        }
    }
}

/// Checks when to answer; unspecified is APPLIED.
pub fn ack(v: &mut Violations, at: &At<'_>, raw: i32) -> Option<Ack> {
    match v1::Ack::try_from(raw) {
        Ok(v1::Ack::Unspecified | v1::Ack::Applied) => Some(Ack::Applied),
        Ok(v1::Ack::Decided) => Some(Ack::Decided),
        Err(_) => unknown_number(v, at, raw),
    }
}

impl From<Ack> for v1::Ack {
    fn from(ack: Ack) -> Self {
        match ack {
            Ack::Applied => Self::Applied,
            Ack::Decided => Self::Decided,
        }
    }
}

impl From<TransactionState> for v1::TransactionState {
    fn from(state: TransactionState) -> Self {
        match state {
            TransactionState::Init => Self::Init,
            TransactionState::Active => Self::Active,
            TransactionState::Preparing => Self::Preparing,
            TransactionState::Prepared => Self::Prepared,
            TransactionState::Committing => Self::Committing,
            TransactionState::Committed => Self::Committed,
            TransactionState::Aborting => Self::Aborting,
            TransactionState::Aborted => Self::Aborted,
        }
    }
}

/// Checks a state that a list is filtered by.
pub fn transaction_state(v: &mut Violations, at: &At<'_>, raw: i32) -> Option<TransactionState> {
    match v1::TransactionState::try_from(raw) {
        Ok(v1::TransactionState::Unspecified) => {
            v.add(at, "must name a state");
            None
        }
        Ok(v1::TransactionState::Init) => Some(TransactionState::Init),
        Ok(v1::TransactionState::Active) => Some(TransactionState::Active),
        Ok(v1::TransactionState::Preparing) => Some(TransactionState::Preparing),
        Ok(v1::TransactionState::Prepared) => Some(TransactionState::Prepared),
        Ok(v1::TransactionState::Committing) => Some(TransactionState::Committing),
        Ok(v1::TransactionState::Committed) => Some(TransactionState::Committed),
        Ok(v1::TransactionState::Aborting) => Some(TransactionState::Aborting),
        Ok(v1::TransactionState::Aborted) => Some(TransactionState::Aborted),
        Err(_) => unknown_number(v, at, raw),
    }
}

impl From<BranchState> for v1::BranchState {
    fn from(state: BranchState) -> Self {
        match state {
            BranchState::Active => Self::Active,
            BranchState::Preparing => Self::Preparing,
            BranchState::Prepared => Self::Prepared,
            BranchState::ReadOnly => Self::ReadOnly,
            BranchState::Committing => Self::Committing,
            BranchState::Committed => Self::Committed,
            BranchState::Aborting => Self::Aborting,
            BranchState::Aborted => Self::Aborted,
            BranchState::Heuristic => Self::Heuristic,
        }
    }
}

/// Refuses an enum's number that this version does not know.
pub fn unknown_number<T>(v: &mut Violations, at: &At<'_>, raw: i32) -> Option<T> {
    v.add(at, format_args!("has the unknown number {raw}"));
    None
}

/// Checks an integer's range.
pub fn range(v: &mut Violations, at: &At<'_>, raw: i64, min: i64, max: i64) -> Option<i64> {
    if !(min..=max).contains(&raw) {
        v.add(
            at,
            format_args!("must be from {min} to {max}, and is {raw}"),
        );
        return None;
    }
    Some(raw)
}

/// Checks a coordinator's epoch.
pub fn epoch(v: &mut Violations, at: &At<'_>, raw: u64) -> Option<Epoch> {
    if raw == 0 {
        v.add(at, "is required: epochs begin with 1");
        return None;
    }
    Some(Epoch(raw))
}
