//! Requests to the TransactionService.

use std::collections::BTreeSet;
use std::time::Duration;

use concord_core::id::{Gtrid, ParticipantName, Request, RequestId};
use concord_core::limits::{INTERACTIVE_TIMEOUT_DEFAULT_MS, TIMEOUT_DEFAULT_MS};
use concord_core::transaction::{Ack, TransactionState};
use prost::Message;

use super::Page;
use super::common::{ack, isolation, timeout, transaction_state};
use super::fingerprint::fingerprint;
use super::text;
use super::violations::{At, Violations};
use super::work::{branch_count, statement, statement_count, statement_size, work_bytes};
use crate::model::{Isolation, Statement};
use crate::v1;

/// The list of [`list`], for page tokens.
pub const TRANSACTIONS: &str = "transactions";

/// A whole transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecuteTransaction {
    /// In the request's order; those of one participant share its branch.
    pub statements: Vec<(ParticipantName, Statement)>,
    /// The client's request, with a fingerprint of statements and isolation level.
    pub request: Option<Request>,
    /// None: each server's own default.
    pub isolation: Option<Isolation>,
    /// When to answer.
    pub ack: Ack,
    /// Time until it is aborted when it is not decided.
    pub timeout: Duration,
}

/// Begins an interactive transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct BeginTransaction {
    /// None: each server's own default.
    pub isolation: Option<Isolation>,
    /// Time until it is aborted when it is not decided.
    pub timeout: Duration,
}

/// Runs one statement of an interactive transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecuteStatement {
    /// The transaction.
    pub gtrid: Gtrid,
    /// Where it runs.
    pub participant: ParticipantName,
    /// The statement.
    pub statement: Statement,
}

/// Names one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionRef {
    /// By its id.
    Gtrid(Gtrid),
    /// By the client's request id.
    RequestId(RequestId),
}

/// Lists transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListTransactions {
    /// Which page.
    pub page: Page,
    /// Only those in one of these states; empty is all.
    pub states: BTreeSet<TransactionState>,
    /// Only those that are stuck.
    pub stuck_only: bool,
}

/// Checks an Execute.
pub fn execute(raw: v1::ExecuteTransactionRequest) -> Result<ExecuteTransaction, Violations> {
    let mut v = Violations::default();
    let content = content(&raw);
    let at = At::root("statements");
    let mut statements = Vec::new();
    if statement_count(&mut v, &at, raw.statements.len()) {
        statements.reserve(raw.statements.len());
        for (i, raw) in raw.statements.into_iter().enumerate() {
            statements.extend(targeted(&mut v, &at.index(i), raw));
        }
        let bytes = statements
            .iter()
            .map(|(_, statement)| statement_size(statement))
            .sum();
        work_bytes(&mut v, &at, bytes);
        branch_count(
            &mut v,
            &at,
            &statements.iter().map(|(name, _)| name.clone()).collect(),
        );
    }
    let request = request(&mut v, &raw.request_id, content);
    let isolation = isolation(&mut v, &At::root("isolation"), raw.isolation);
    let ack = ack(&mut v, &At::root("ack"), raw.ack);
    let timeout = timeout(
        &mut v,
        &At::root("timeout_ms"),
        raw.timeout_ms,
        TIMEOUT_DEFAULT_MS,
    );
    v.finish(|| {
        Some(ExecuteTransaction {
            statements,
            request: request?,
            isolation: isolation?,
            ack: ack?,
            timeout: timeout?,
        })
    })
}

/// What was asked for: statements and isolation level, in protobuf's own encoding, whose bytes
/// are the same for ever for messages without maps. How long the client waits, and for what, is
/// no part of it: a retry may wait longer.
fn content(raw: &v1::ExecuteTransactionRequest) -> u64 {
    if raw.request_id.is_empty() {
        return 0;
    }
    let statements: Vec<Vec<u8>> = raw.statements.iter().map(Message::encode_to_vec).collect();
    let isolation = raw.isolation.to_be_bytes();
    let mut parts: Vec<&[u8]> = vec![b"execute", &isolation];
    parts.extend(statements.iter().map(Vec::as_slice));
    fingerprint(&parts)
}

/// Checks an optional request id and joins it with the fingerprint of what is asked for.
#[allow(clippy::option_option)] // outer: valid; inner: given
pub(super) fn request(v: &mut Violations, raw: &str, fingerprint: u64) -> Option<Option<Request>> {
    let id = text::request_id(v, &At::root("request_id"), raw)?;
    Some(id.map(|id| Request { id, fingerprint }))
}

fn targeted(
    v: &mut Violations,
    at: &At<'_>,
    raw: v1::TargetedStatement,
) -> Option<(ParticipantName, Statement)> {
    let participant = text::participant(v, &at.field("participant"), &raw.participant);
    let statement = statement(v, &at.field("statement"), raw.statement);
    Some((participant?, statement?))
}

/// Checks a Begin.
pub fn begin(raw: v1::BeginTransactionRequest) -> Result<BeginTransaction, Violations> {
    let mut v = Violations::default();
    let isolation = isolation(&mut v, &At::root("isolation"), raw.isolation);
    let at = At::root("timeout_ms");
    let timeout = timeout(&mut v, &at, raw.timeout_ms, INTERACTIVE_TIMEOUT_DEFAULT_MS);
    v.finish(|| {
        Some(BeginTransaction {
            isolation: isolation?,
            timeout: timeout?,
        })
    })
}

/// Checks an ExecuteStatement.
pub fn execute_statement(raw: v1::ExecuteStatementRequest) -> Result<ExecuteStatement, Violations> {
    let mut v = Violations::default();
    let gtrid = text::gtrid(&mut v, &At::root("gtrid"), &raw.gtrid);
    let at = At::root("statement");
    let target = if let Some(raw) = raw.statement {
        targeted(&mut v, &at, raw)
    } else {
        v.add(&at, "is required");
        None
    };
    v.finish(|| {
        let (participant, statement) = target?;
        Some(ExecuteStatement {
            gtrid: gtrid?,
            participant,
            statement,
        })
    })
}

/// Checks a Commit.
pub fn commit(raw: &v1::CommitTransactionRequest) -> Result<(Gtrid, Ack), Violations> {
    let mut v = Violations::default();
    let gtrid = text::gtrid(&mut v, &At::root("gtrid"), &raw.gtrid);
    let ack = ack(&mut v, &At::root("ack"), raw.ack);
    v.finish(|| Some((gtrid?, ack?)))
}

/// Checks a Rollback.
pub fn rollback(raw: &v1::RollbackTransactionRequest) -> Result<Gtrid, Violations> {
    let mut v = Violations::default();
    let gtrid = text::gtrid(&mut v, &At::root("gtrid"), &raw.gtrid);
    v.finish(|| gtrid)
}

/// Checks a GetTransaction: exactly one of its fields is given.
pub fn get(raw: &v1::GetTransactionRequest) -> Result<TransactionRef, Violations> {
    let mut v = Violations::default();
    let named = match (raw.gtrid.as_str(), raw.request_id.as_str()) {
        ("", "") => {
            v.add(&At::root("gtrid"), "is required, or request_id");
            None
        }
        (text, "") => text::gtrid(&mut v, &At::root("gtrid"), text).map(TransactionRef::Gtrid),
        ("", id) => text::request_id(&mut v, &At::root("request_id"), id)
            .flatten()
            .map(TransactionRef::RequestId),
        _ => {
            v.add(&At::root("request_id"), "must be empty when gtrid is given");
            None
        }
    };
    v.finish(|| named)
}

/// Checks a ListTransactions. Its tokens are `page::token(TRANSACTIONS, …)`.
pub fn list(raw: &v1::ListTransactionsRequest) -> Result<ListTransactions, Violations> {
    let mut v = Violations::default();
    let page = Page::check(&mut v, TRANSACTIONS, raw.page_size, &raw.page_token);
    let at = At::root("states");
    let states = raw
        .states
        .iter()
        .enumerate()
        .filter_map(|(i, number)| transaction_state(&mut v, &at.index(i), *number))
        .collect();
    v.finish(|| {
        Some(ListTransactions {
            page: page?,
            states,
            stuck_only: raw.stuck_only,
        })
    })
}

/// Checks a WatchTransactions: one transaction, or all.
pub fn watch(raw: &v1::WatchTransactionsRequest) -> Result<Option<Gtrid>, Violations> {
    if raw.gtrid.is_empty() {
        return Ok(None);
    }
    let mut v = Violations::default();
    let gtrid = text::gtrid(&mut v, &At::root("gtrid"), &raw.gtrid);
    v.finish(|| gtrid.map(Some))
}
