//! What the business gateway needs of the coordinator's driver: a narrow door, so that bank and
//! inventory know nothing of links, logs and machines, and the driver nothing of money.
//!
//! It refuses to offer interactive transactions: the business services are one-shot.

use std::future::Future;
use std::time::Duration;

use concord_core::id::{Gtrid, ParticipantName, Request};
use concord_core::reason::Reason;
pub use concord_core::transaction::Ack as AckMode;
use concord_proto::model::{Isolation, Statement};
use concord_proto::v1;

/// The work of one branch.
#[derive(Clone, Debug, PartialEq)]
pub struct BranchWork {
    /// Where it runs.
    pub participant: ParticipantName,
    /// In order, at least one.
    pub statements: Vec<Statement>,
}

/// A one-shot transaction, ready to run.
#[derive(Clone, Debug, PartialEq)]
pub struct OneShot {
    /// Its id, minted before, because its own journal rows carry it.
    pub gtrid: Gtrid,
    /// One for each participant; the branch at index `i` has bqual `i + 1`. The first one carries
    /// the request into its participant's ledger, so the same request must always have the same
    /// participant first.
    pub branches: Vec<BranchWork>,
    /// The client's request, if it named one.
    pub request: Option<Request>,
    /// None: each server's own default.
    pub isolation: Option<Isolation>,
    /// When to answer.
    pub ack: AckMode,
    /// Time until it is aborted when it is not decided.
    pub timeout: Duration,
}

/// A transaction that is committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Executed {
    /// Its id; that of the first attempt when replayed.
    pub gtrid: Gtrid,
    /// For each branch, a result for each statement; empty when replayed. A branch whose answer
    /// was lost after its commit in one phase has fewer.
    pub results: Vec<Vec<v1::StatementResult>>,
    /// True when this is the outcome of an earlier attempt with the same request id.
    pub replayed: bool,
}

/// A transaction that is not known to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Committed on no server, ever.
    Aborted {
        /// The transaction; the first attempt's when a refusal is repeated.
        gtrid: Gtrid,
        /// Why.
        reason: Reason,
        /// Who voted so, if it was a vote.
        participant: Option<ParticipantName>,
        /// That vote's place in [`OneShot::branches`].
        branch_index: Option<usize>,
        /// The statement of that branch that failed.
        failed_statement: Option<usize>,
    },
    /// Committed everywhere or nowhere, and nobody knows which now. Ask again by the gtrid.
    Unknown {
        /// The transaction.
        gtrid: Gtrid,
    },
    /// Never begun: a limit, an unknown participant, a stop. With `OUTCOME_UNKNOWN`: what became
    /// of its request before could not be told.
    Refused(Reason),
}

/// One versioned change of a schema's tables.
///
/// DDL cannot be rolled back, so a migration that a crash interrupted runs again from its first
/// statement: each must be repeatable. What a version stands for never changes once released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// 1, 2, 3 and so on.
    pub version: u32,
    /// CREATE TABLE, ALTER TABLE or CREATE INDEX, with schema-qualified names.
    pub statements: &'static [&'static str],
}

/// The driver, as the business gateway sees it.
pub trait Engine: Clone + Send + Sync + 'static {
    /// A new transaction id: a UUIDv7 that is greater than every one before.
    fn mint(&self) -> Gtrid;

    /// Runs a transaction until its outcome is known or cannot be. A caller that goes away leaves
    /// no branch behind; whether its transaction is then aborted or finished is the driver's
    /// choice. A request of which only a ledger knows that it took effect is replayed, or what
    /// became of its former transaction otherwise.
    fn execute(&self, tx: OneShot) -> impl Future<Output = Result<Executed, Failure>> + Send;

    /// What became of a request that is running or remembered; None when nothing is known of it,
    /// and never when that cannot be told.
    fn repeat(
        &self,
        request: Request,
    ) -> impl Future<Output = Option<Result<Executed, Failure>>> + Send;

    /// Runs one SELECT outside any transaction.
    fn query(
        &self,
        participant: &ParticipantName,
        statement: Statement,
        timeout: Duration,
    ) -> impl Future<Output = Result<v1::StatementResult, Reason>> + Send;

    /// Brings a schema on one participant's server up to date; harmless when it is.
    fn migrate(
        &self,
        participant: &ParticipantName,
        schema: &str,
        migrations: &[Migration],
    ) -> impl Future<Output = Result<(), Reason>> + Send;

    /// All participants, in the configuration's order.
    fn participants(&self) -> Vec<ParticipantName>;
}
