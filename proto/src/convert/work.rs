//! What runs in a branch: statements, work, and the branch itself; from the wire and back.

use std::collections::BTreeSet;

use concord_core::id::{Bqual, BranchId, Epoch, ParticipantName, Request};
use concord_core::limits::{
    BRANCHES_MAX, INTERACTIVE_TIMEOUT_DEFAULT_MS, PARAMS_MAX, SQL_BYTES_MAX, STATEMENTS_MAX,
    WORK_BYTES_MAX,
};

use super::common;
use super::common::{isolation, timeout, timeout_ms};
use super::text;
use super::value::{size, value};
use super::violations::{At, Violations};
use crate::model::{Expect, Statement, Work};
use crate::v1;

/// Checks a required branch.
pub fn branch(v: &mut Violations, raw: Option<v1::BranchRef>) -> Option<(BranchId, Epoch)> {
    let at = At::root("branch");
    branch_at(v, &at, raw)
}

/// Checks a required branch at some other field.
pub fn branch_at(
    v: &mut Violations,
    at: &At<'_>,
    raw: Option<v1::BranchRef>,
) -> Option<(BranchId, Epoch)> {
    let Some(raw) = raw else {
        v.add(at, "is required");
        return None;
    };
    let gtrid = text::gtrid_bytes(v, &at.field("gtrid"), &raw.gtrid);
    let bqual = bqual(v, &at.field("bqual"), raw.bqual);
    let epoch = common::epoch(v, &at.field("epoch"), raw.epoch);
    Some((
        BranchId {
            gtrid: gtrid?,
            bqual: bqual?,
        },
        epoch?,
    ))
}

/// Checks a branch's number.
pub fn bqual(v: &mut Violations, at: &At<'_>, raw: u32) -> Option<Bqual> {
    if raw == 0 || raw as usize > BRANCHES_MAX {
        v.add(
            at,
            format_args!("must be from 1 to {BRANCHES_MAX}, and is {raw}"),
        );
        return None;
    }
    Some(Bqual(raw))
}

/// A branch on the wire.
pub fn branch_ref(branch: BranchId, epoch: Epoch) -> v1::BranchRef {
    v1::BranchRef {
        gtrid: branch.gtrid.0.to_vec(),
        bqual: branch.bqual.0,
        epoch: epoch.0,
    }
}

/// Checks a required statement.
pub fn statement(v: &mut Violations, at: &At<'_>, raw: Option<v1::Statement>) -> Option<Statement> {
    let Some(raw) = raw else {
        v.add(at, "is required");
        return None;
    };
    let sql = sql(v, &at.field("sql"), raw.sql);
    let params = params(v, &at.field("params"), raw.params);
    let expect = match raw.expect {
        None => Some(None),
        Some(raw) => expect(v, &at.field("expect"), &raw).map(Some),
    };
    Some(Statement {
        sql: sql?.into(),
        params: params?,
        expect: expect?,
    })
}

fn sql(v: &mut Violations, at: &At<'_>, raw: String) -> Option<String> {
    if raw.trim().is_empty() {
        v.add(at, "is required");
        return None;
    }
    if raw.len() > SQL_BYTES_MAX {
        v.add(
            at,
            format_args!(
                "must have at most {SQL_BYTES_MAX} bytes, and has {}",
                raw.len()
            ),
        );
        return None;
    }
    if raw.contains('\0') {
        v.add(at, "must not have a NUL character");
        return None;
    }
    Some(raw)
}

fn params(
    v: &mut Violations,
    at: &At<'_>,
    raw: Vec<v1::Value>,
) -> Option<Vec<crate::model::Value>> {
    if raw.len() > PARAMS_MAX {
        v.add(
            at,
            format_args!("must be at most {PARAMS_MAX} values, and are {}", raw.len()),
        );
        return None;
    }
    let mut values = Vec::with_capacity(raw.len());
    let mut complete = true;
    for (i, raw) in raw.into_iter().enumerate() {
        match value(v, &at.index(i), raw) {
            Some(value) => values.push(value),
            None => complete = false,
        }
    }
    complete.then_some(values)
}

fn expect(v: &mut Violations, at: &At<'_>, raw: &v1::ExpectRows) -> Option<Expect> {
    let min = raw.min.unwrap_or(0);
    let in_order = raw.max.is_none_or(|max| min <= max);
    if !in_order {
        v.add(
            at,
            format_args!("has a min of {min}, which is more than its max"),
        );
    }
    let reason = text::expectation_code(v, &at.field("reason"), &raw.reason)?;
    in_order.then_some(Expect {
        min,
        max: raw.max,
        reason,
    })
}

/// Bytes of a statement that count against the limit of a transaction.
pub fn statement_size(statement: &Statement) -> usize {
    statement.sql.len() + statement.params.iter().map(size).sum::<usize>()
}

/// Checks that there is a legal number of statements.
pub(super) fn statement_count(v: &mut Violations, at: &At<'_>, count: usize) -> bool {
    if count == 0 {
        v.add(at, "must have at least one statement");
    } else if count > STATEMENTS_MAX {
        v.add(
            at,
            format_args!("must have at most {STATEMENTS_MAX}, and has {count}"),
        );
    }
    (1..=STATEMENTS_MAX).contains(&count)
}

/// Checks that statements are not too much together.
pub(super) fn work_bytes(v: &mut Violations, at: &At<'_>, bytes: usize) {
    if bytes > WORK_BYTES_MAX {
        v.add(
            at,
            format_args!("must have at most {WORK_BYTES_MAX} bytes of SQL and values"),
        );
    }
}

/// Checks that not too many participants are named.
pub(super) fn branch_count(
    v: &mut Violations,
    at: &At<'_>,
    participants: &BTreeSet<ParticipantName>,
) {
    if participants.len() > BRANCHES_MAX {
        v.add(
            at,
            format_args!(
                "must be on at most {BRANCHES_MAX} participants, and are on {}",
                participants.len()
            ),
        );
    }
}

/// Checks a branch's whole work.
pub fn work(v: &mut Violations, at: &At<'_>, raw: v1::Work) -> Option<Work> {
    let at_statements = at.field("statements");
    let mut statements = Vec::new();
    if statement_count(v, &at_statements, raw.statements.len()) {
        statements.reserve(raw.statements.len());
        for (i, raw) in raw.statements.into_iter().enumerate() {
            statements.extend(statement(v, &at_statements.index(i), Some(raw)));
        }
        work_bytes(
            v,
            &at_statements,
            statements.iter().map(statement_size).sum(),
        );
    }
    let isolation = isolation(v, &at.field("isolation"), raw.isolation);
    let timeout = timeout(
        v,
        &at.field("timeout_ms"),
        raw.timeout_ms,
        INTERACTIVE_TIMEOUT_DEFAULT_MS,
    );
    let request_id = text::request_id(v, &at.field("request_id"), &raw.request_id);
    Some(Work {
        statements,
        isolation: isolation?,
        allow_read_only: raw.allow_read_only,
        timeout: timeout?,
        request: request_id?.map(|id| Request {
            id,
            fingerprint: raw.request_fingerprint,
        }),
    })
}

impl From<Expect> for v1::ExpectRows {
    fn from(expect: Expect) -> Self {
        Self {
            min: Some(expect.min),
            max: expect.max,
            reason: (*expect.reason).to_owned(),
        }
    }
}

impl From<Statement> for v1::Statement {
    fn from(statement: Statement) -> Self {
        Self {
            sql: (*statement.sql).to_owned(),
            params: statement.params.into_iter().map(Into::into).collect(),
            expect: statement.expect.map(Into::into),
        }
    }
}

impl From<Work> for v1::Work {
    fn from(work: Work) -> Self {
        Self {
            statements: work.statements.into_iter().map(Into::into).collect(),
            isolation: v1::Isolation::from(work.isolation).into(),
            allow_read_only: work.allow_read_only,
            timeout_ms: timeout_ms(work.timeout),
            request_fingerprint: work.request.as_ref().map_or(0, |r| r.fingerprint),
            request_id: work
                .request
                .map(|request| request.id.as_str().to_owned())
                .unwrap_or_default(),
        }
    }
}
