//! What the participant asks of the server behind it, and what may come back.
//!
//! [`ResourceManager`] is the contract; [`mysql`] keeps it on MySQL and MariaDB, [`memory`] in
//! memory with the same XA rules, and [`conformance`] proves both. Nothing here knows the
//! coordinator, epochs' meaning, or the order of the protocol: that is `concord-core`.
//!
//! Every verb has three outcomes, never two: done, not done, and unknown. Unknown is resolved by
//! asking the server again (`ledger`, `tombstone`, `recover`), never by guessing.

use std::future::Future;
use std::time::Duration;

use concord_core::id::{BranchId, Epoch, Gtrid, Request};
use concord_core::reason::{Reason, code};
use concord_core::record::ParticipantRecord;
use concord_proto::model::{Isolation, Statement, Work};
use concord_proto::v1;
use tokio::sync::watch;

use crate::migrate::Plan;

pub mod conformance;
pub mod memory;
pub mod mysql;

/// What became of a request to prepare a branch.
#[derive(Clone, Debug, PartialEq)]
pub enum Prepared {
    /// The branch is prepared and its ledger row is part of it: a vote COMMIT may be given.
    Prepared {
        /// One result for each statement that came along.
        results: Vec<v1::StatementResult>,
    },
    /// The branch wrote nothing and has ended: a vote READ_ONLY.
    ReadOnly {
        /// One result for each statement that came along.
        results: Vec<v1::StatementResult>,
    },
    /// The branch is rolled back, or never was, and holds no lock: a vote ABORT.
    NotPrepared {
        /// Why.
        reason: Reason,
        /// Results of the statements before the failed one, and its own when an expectation was
        /// violated.
        results: Vec<v1::StatementResult>,
        /// Index of the statement that failed, if one did.
        failed: Option<usize>,
    },
    /// The branch may be prepared or not. The only legal next step is
    /// [`ResourceManager::tombstone`] and, when that cannot stand, [`ResourceManager::rollback`].
    Unknown {
        /// What happened.
        reason: Reason,
    },
}

/// What became of a commit in one phase.
#[derive(Clone, Debug, PartialEq)]
pub enum OnePhase {
    /// Committed; the ledger row tells so for ever.
    Committed {
        /// One result for each statement that came along.
        results: Vec<v1::StatementResult>,
    },
    /// The branch is rolled back, or never was, and will never commit.
    NotCommitted {
        /// Why.
        reason: Reason,
        /// As in [`Prepared::NotPrepared`].
        results: Vec<v1::StatementResult>,
        /// Index of the statement that failed, if one did.
        failed: Option<usize>,
    },
    /// It may have committed. [`ResourceManager::tombstone`] tells, or makes sure that it has not.
    Unknown {
        /// What happened.
        reason: Reason,
        /// Results of the statements, when all of them had run before the commit was asked for:
        /// if it is committed, they are what was committed.
        results: Vec<v1::StatementResult>,
    },
}

impl OnePhase {
    /// It may have committed, and what its statements returned is not known here.
    pub fn unknown(reason: Reason) -> Self {
        Self::Unknown {
            reason,
            results: Vec::new(),
        }
    }
}

/// What became of an XA COMMIT or XA ROLLBACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// The server did it.
    Done,
    /// The server refused and the branch is as it was, e.g. a lock of a backup, a read-only
    /// server, or one that cannot be reached. Try again.
    NotDone(Reason),
    /// The server does not know the branch (`XAER_NOTA`). This is not success: it was committed
    /// or rolled back before, or lost, or, on MariaDB, lives attached to another connection. Look
    /// at [`ResourceManager::ledger`] and [`ResourceManager::recover`].
    NoSuchBranch,
    /// The order was sent and no answer came, or one that proves nothing. Look as above.
    Unknown(Reason),
}

/// What the ledger says of a branch, read as committed data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerEntry {
    /// The branch's own row: it committed.
    Committed,
    /// An abort's tombstone: it did not commit, and never will.
    Tombstone,
    /// Nothing: not committed as of now; it may be running or prepared.
    Absent,
}

/// Why a request is refused whose id has taken effect before, as `former`. A fingerprint that was
/// not kept, or that is 0, is that of anything.
pub fn known_request(request: &Request, former: Gtrid, fingerprint: Option<u64>) -> Reason {
    let other = fingerprint.is_some_and(|kept| kept != 0 && kept != request.fingerprint);
    if other && request.fingerprint != 0 {
        let id = &request.id;
        let text = format!("request id {id:?} was used before, by {former}, for something else");
        return Reason::new(code::REQUEST_ID_REUSED, text);
    }
    Reason::new(code::REQUEST_ALREADY_COMMITTED, former.to_string())
}

/// What `XA RECOVER` lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Prepared branches of this cluster, in order.
    pub ours: Vec<BranchId>,
    /// Number of prepared branches of anybody else. They are never touched.
    pub foreign: u32,
}

/// What the participant has to remember across restarts, as kept by [`ResourceManager::append`].
#[derive(Clone, Debug, PartialEq)]
pub struct Durable {
    /// The highest epoch seen; 0 for none.
    pub epoch: Epoch,
    /// Prepares of transactions below this one are refused.
    pub forget_below: Gtrid,
    /// Reports of damage that no operator has acknowledged, oldest first.
    pub damage: Vec<v1::Damage>,
}

/// Whether the server can be used now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The server answers. Branches that are prepared already can be finished.
    pub reachable: bool,
    /// Why no vote can be given; empty when votes can be given. Each names the setting and the
    /// statement that mends it.
    pub problems: Vec<Reason>,
    /// Identity of the data: the server's own id and the one in the ledger schema. Empty until
    /// the server was reached.
    pub incarnation: String,
    /// E.g. "MariaDB 10.11.19". Empty until the server was reached.
    pub server_version: String,
}

impl Health {
    /// Whether votes can be given.
    pub fn can_vote(&self) -> bool {
        self.reachable && self.problems.is_empty()
    }
}

/// Connections to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Open now.
    pub open: u32,
    /// The limit.
    pub max: u32,
}

/// One server with XA branches and a ledger.
///
/// # Contract
///
/// * A branch is known by its [`BranchId`] alone; calls for different branches may run at the same
///   time. Calls for one branch must not, except [`Self::cancel`] at any time, and
///   [`Self::rollback`], which interrupts what is running.
/// * A branch that [`Self::prepare`] called prepared survives a crash of this process and of the
///   server, commits when told so, and its ledger row becomes visible with its work.
/// * A branch that saw any error can never be committed: only a rollback works.
/// * Votes are given only while the server keeps what it acknowledges; committing and rolling back
///   prepared branches works whatever the server's settings.
/// * Every call is bounded in time. Dropping the future of a call is like a lost connection: its
///   connection is closed and the branch's state is unknown.
pub trait ResourceManager: Send + Sync + 'static {
    /// Opens an interactive branch on a connection of its own, with its ledger row. On an error
    /// nothing is left behind.
    fn begin(
        &self,
        branch: BranchId,
        isolation: Option<Isolation>,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), Reason>> + Send;

    /// Runs one statement in a branch that [`Self::begin`] opened. After an error, also a violated
    /// expectation, the only legal next step is [`Self::rollback`]: everything else is refused.
    fn execute(
        &self,
        branch: BranchId,
        statement: &Statement,
    ) -> impl Future<Output = Result<v1::StatementResult, Reason>> + Send;

    /// Prepares a branch: a new one with all its `work`, in one round trip, or, without, the one
    /// that [`Self::begin`] opened.
    fn prepare(
        &self,
        branch: BranchId,
        work: Option<&Work>,
    ) -> impl Future<Output = Prepared> + Send;

    /// Commits in one phase a branch that was never prepared; `work` is as in [`Self::prepare`].
    fn commit_one_phase(
        &self,
        branch: BranchId,
        work: Option<&Work>,
    ) -> impl Future<Output = OnePhase> + Send;

    /// Commits a prepared branch.
    fn commit(&self, branch: BranchId) -> impl Future<Output = Finished> + Send;

    /// Rolls a branch back, running or prepared. `NoSuchBranch` for one that is unknown: then only
    /// [`Self::tombstone`] makes sure that it never commits.
    fn rollback(&self, branch: BranchId) -> impl Future<Output = Finished> + Send;

    /// Interrupts whatever the branch is running now, e.g. because its deadline passed. Its call
    /// then ends with an error. Best effort, returns at once.
    fn cancel(&self, branch: BranchId);

    /// Reads the branch's ledger row.
    fn ledger(&self, branch: BranchId) -> impl Future<Output = Result<LedgerEntry, Reason>> + Send;

    /// Leaves an abort's tombstone, unless a row is there already, and says what is there
    /// afterwards: never `Absent`. `Err(BRANCH_ATTACHED)`, without a wait, when the branch is alive
    /// (running, or prepared) and holds its row.
    fn tombstone(
        &self,
        branch: BranchId,
    ) -> impl Future<Output = Result<LedgerEntry, Reason>> + Send;

    /// Closes the connection that a prepared branch is attached to, wherever it is, so that the
    /// branch can be finished from another one.
    fn detach(&self, branch: BranchId) -> impl Future<Output = Result<(), Reason>> + Send;

    /// Lists the prepared branches.
    fn recover(&self) -> impl Future<Output = Result<Recovered, Reason>> + Send;

    /// Of branches that are known to have committed here, those that are not committed any more,
    /// and not prepared either: the data is older than it was.
    fn lost(
        &self,
        branches: &[BranchId],
    ) -> impl Future<Output = Result<Vec<BranchId>, Reason>> + Send;

    /// Runs one SELECT outside any branch, in a read-only transaction.
    fn query(
        &self,
        statement: &Statement,
        timeout: Duration,
    ) -> impl Future<Output = Result<v1::StatementResult, Reason>> + Send;

    /// Brings a schema up to date, outside any branch: creates it when it is absent, and applies,
    /// in order, each migration that its own version table does not have. One at a time, whoever
    /// asks; waits for locks for a short time only. Tells the version that the schema has then.
    fn migrate(&self, plan: &Plan) -> impl Future<Output = Result<u32, Reason>> + Send;

    /// Reads what was appended.
    fn load(&self) -> impl Future<Output = Result<Durable, Reason>> + Send;

    /// Makes records durable, outside any branch. All or none; repeating one is harmless, except
    /// that each report of damage that differs from the former ones is kept.
    fn append(
        &self,
        records: &[ParticipantRecord],
    ) -> impl Future<Output = Result<(), Reason>> + Send;

    /// Reports of damage, newest first; those that are acknowledged come behind all others.
    fn damage(&self, limit: u32) -> impl Future<Output = Result<Vec<v1::Damage>, Reason>> + Send;

    /// Marks a report as read by an operator. False when there is no such report.
    fn acknowledge(&self, id: u64) -> impl Future<Output = Result<bool, Reason>> + Send;

    /// Deletes ledger rows of transactions below `below`, in small batches; tells how many. Rows
    /// that carry a request id are what keeps a late retry from taking effect twice: they stay
    /// until their id is so much older than `below`, and they themselves by the server's clock.
    /// An id tells the coordinator's time, which may have been wrong when it was made, or since.
    /// `below` must have been appended as `ForgetBelow` before.
    fn prune(
        &self,
        below: Gtrid,
        requests_kept: Duration,
    ) -> impl Future<Output = Result<u64, Reason>> + Send;

    /// The state of the server, and each change of it.
    fn health(&self) -> watch::Receiver<Health>;

    /// Connections in use.
    fn connections(&self) -> Connections;

    /// Stops background work and closes idle connections. Branches in other calls are left to end
    /// with their calls.
    fn stop(&self) -> impl Future<Output = ()> + Send;
}
