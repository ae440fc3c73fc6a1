//! What every resource manager must do: one suite for MySQL, MariaDB and the fake.
//!
//! The cases are the rows of the design's section 5, seen from outside. A [`Harness`] gives the
//! server and what a DBA, a backup or a crash would do to it. Each case works on keys of its own
//! and finishes what it began, so that a failed one does not spoil the next.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use concord_core::id::{Bqual, BranchId, Gtrid, Request, RequestId};
use concord_core::reason::{Reason, code};
use concord_proto::model::{Expect, Statement, Value, Work};
use concord_proto::v1;
use concord_proto::v1::value::Kind;
use tokio::time::{Instant, timeout};

use super::{Finished, LedgerEntry, Prepared, ResourceManager};

mod faults;
mod first_phase;
mod interactive;
mod second_phase;
mod state;

/// The table that the cases work on: `k VARCHAR(64) PRIMARY KEY, v BIGINT NOT NULL`.
pub const TABLE: &str = "conformance.t";
/// How long a case waits for something that takes its time, e.g. a server's start.
const PATIENCE: Duration = Duration::from_secs(30);
/// No case takes longer than this.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// What every request asks for, unless a case says otherwise.
const FINGERPRINT: u64 = 0xfeed_face_cafe_f00d;
/// The time-out of lock waits that each resource manager under test has.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Time-out of works that should succeed.
const WORK_TIMEOUT: Duration = Duration::from_secs(20);

/// One server, and what may be done to it from outside.
pub trait Harness: Sync {
    /// The resource manager under test.
    type Rm: ResourceManager;

    /// Whether a prepared branch stays attached to its connection (MariaDB).
    fn keeps_attached(&self) -> bool;

    /// A new resource manager for the server, as after a restart of the participant. Row locks
    /// are waited for one second, metadata locks too.
    fn open(&self) -> impl Future<Output = Arc<Self::Rm>> + Send;

    /// The committed value of a key, read by a stranger.
    fn value(&self, key: &str) -> impl Future<Output = Option<i64>> + Send;

    /// Makes the server lose acknowledged prepares in a crash, or safe again.
    fn set_unsafe(&self, on: bool) -> impl Future<Output = ()> + Send;

    /// Makes the server read-only, or writable again.
    fn set_read_only(&self, on: bool) -> impl Future<Output = ()> + Send;

    /// Rolls a prepared branch back as a DBA would.
    fn roll_back_by_hand(&self, branch: BranchId) -> impl Future<Output = ()> + Send;

    /// Prepares somebody else's XA branch, which adds 1 to `key`.
    fn prepare_foreign(&self, key: &str) -> impl Future<Output = ()> + Send;

    /// Commits that one; false when it is gone.
    fn commit_foreign(&self) -> impl Future<Output = bool> + Send;

    /// Locks a row from a transaction of its own, until [`Self::unlock`].
    fn lock(&self, key: &str) -> impl Future<Output = ()> + Send;

    /// Ends that transaction.
    fn unlock(&self) -> impl Future<Output = ()> + Send;

    /// Makes commits wait, as a backup does, or not any more.
    fn block_commits(&self, on: bool) -> impl Future<Output = ()> + Send;

    /// Ends all connections of the resource managers.
    fn kill_connections(&self) -> impl Future<Output = ()> + Send;

    /// Kills the server as `kill -9` does and starts it again.
    fn crash(&self) -> impl Future<Output = ()> + Send;
}

/// What a case found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The case.
    pub case: &'static str,
    /// What was wrong, if anything was.
    pub failure: Option<String>,
    /// How long it took.
    pub took: Duration,
}

type Verdict = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!(
                "{} [{}:{}]", format!($($message)+), file!(), line!()
            ));
        }
    };
}
use ensure;

macro_rules! suite {
    ($($module:ident::$case:ident,)*) => {
        /// Runs every case whose name contains `filter`, one after the other, and hands each
        /// report to `tell` at once.
        pub async fn run<H: Harness>(
            harness: &H,
            filter: &str,
            mut tell: impl FnMut(&Report),
        ) -> Vec<Report> {
            let mut reports = Vec::new();
            $(
                let case = stringify!($case);
                if case.contains(filter) {
                    let began = Instant::now();
                    let failure = match timeout(CASE_TIMEOUT, $module::$case(harness)).await {
                        Ok(verdict) => verdict.err(),
                        Err(_) => Some("it did not end".to_owned()),
                    };
                    let report = Report { case, failure, took: began.elapsed() };
                    tell(&report);
                    reports.push(report);
                }
            )*
            reports
        }
    };
}

suite! {
    first_phase::a_prepared_branch_commits,
    first_phase::a_prepared_branch_rolls_back,
    first_phase::a_single_branch_commits_in_one_phase,
    interactive::an_interactive_branch_commits,
    interactive::an_interactive_branch_commits_in_one_phase,
    interactive::an_interactive_branch_rolls_back,
    first_phase::statements_of_a_branch_see_each_other,
    first_phase::a_failed_statement_never_commits_half,
    first_phase::a_failed_branch_spoils_no_other,
    interactive::a_failed_interactive_branch_only_rolls_back,
    first_phase::a_violated_expectation_aborts,
    first_phase::a_violated_expectation_aborts_one_phase,
    first_phase::a_lock_timeout_aborts,
    interactive::a_connection_lost_within_a_branch_never_prepares,
    interactive::a_deadlock_has_one_victim,
    first_phase::a_branch_that_only_reads_may_leave,
    first_phase::refused_sql_costs_nothing,
    first_phase::a_request_takes_effect_once,
    first_phase::a_branch_out_of_time_leaves_no_lock,
    first_phase::a_cancelled_branch_leaves_no_lock,
    first_phase::a_dropped_call_leaves_no_lock,
    interactive::a_rollback_interrupts_what_runs,
    first_phase::more_branches_than_connections,
    second_phase::a_branch_that_is_over_is_no_such_branch,
    second_phase::a_repeated_prepare_gives_the_same_vote,
    second_phase::a_tombstone_stops_a_late_prepare,
    second_phase::a_tombstone_tells_of_a_commit,
    second_phase::a_living_branch_has_no_tombstone,
    second_phase::only_what_is_neither_committed_nor_prepared_is_lost,
    second_phase::a_branch_attached_elsewhere_is_not_taken_for_committed,
    second_phase::a_branch_of_a_lost_connection_commits,
    second_phase::a_commit_waits_for_a_backup,
    second_phase::a_backup_is_not_taken_for_a_living_branch,
    second_phase::a_commit_whose_answer_is_lost_is_in_the_ledger,
    faults::a_rollback_by_hand_shows,
    faults::a_foreign_branch_stays,
    faults::an_unsafe_server_gets_no_vote,
    faults::an_unsafe_server_gets_no_vote_from_the_start,
    faults::a_read_only_server_gets_no_vote,
    faults::a_crash_loses_no_prepared_branch,
    faults::a_crash_loses_every_unprepared_branch,
    faults::a_crash_loses_locks_of_what_was_only_read,
    state::records_survive,
    state::damage_is_kept_until_acknowledged,
    state::old_rows_are_forgotten,
    state::requests_are_forgotten_later,
    state::reads_outside_branches,
}

/// A new transaction's first branch.
fn branch() -> BranchId {
    BranchId {
        gtrid: Gtrid(*uuid::Uuid::now_v7().as_bytes()),
        bqual: Bqual(1),
    }
}

/// A key that no other case uses.
fn key(name: &str) -> String {
    format!("{name}-{}", uuid::Uuid::now_v7().simple())
}

fn statement(sql: String, params: Vec<Value>) -> Statement {
    Statement {
        sql: sql.into(),
        params,
        expect: None,
    }
}

fn insert(key: &str, value: i64) -> Statement {
    let sql = format!("INSERT INTO {TABLE} (k, v) VALUES (?, ?)");
    statement(sql, vec![Value::String(key.into()), Value::Int(value)])
}

fn add(key: &str, amount: i64) -> Statement {
    let sql = format!("UPDATE {TABLE} SET v = v + ? WHERE k = ?");
    statement(sql, vec![Value::Int(amount), Value::String(key.into())])
}

/// Takes an amount if there is enough.
fn take(key: &str, amount: i64) -> Statement {
    let sql = format!("UPDATE {TABLE} SET v = v + ? WHERE k = ? AND v >= ?");
    let params = vec![
        Value::Int(-amount),
        Value::String(key.into()),
        Value::Int(amount),
    ];
    let expect = Expect {
        min: 1,
        max: Some(1),
        reason: "INSUFFICIENT_FUNDS".into(),
    };
    Statement {
        expect: Some(expect),
        ..statement(sql, params)
    }
}

fn select(key: &str) -> Statement {
    statement(
        format!("SELECT v FROM {TABLE} WHERE k = ?"),
        vec![Value::String(key.into())],
    )
}

fn work(statements: Vec<Statement>) -> Work {
    Work {
        statements,
        isolation: None,
        allow_read_only: false,
        timeout: WORK_TIMEOUT,
        request: None,
    }
}

fn request(work: Work, id: &str) -> Work {
    Work {
        request: Some(Request {
            id: RequestId::new(id),
            fingerprint: FINGERPRINT,
        }),
        ..work
    }
}

/// Commits work in a transaction of its own.
async fn done<R: ResourceManager>(rm: &R, statements: Vec<Statement>) -> Verdict {
    let id = branch();
    let prepared = rm.prepare(id, Some(&work(statements))).await;
    ensure!(
        matches!(prepared, Prepared::Prepared { .. }),
        "prepare: {prepared:?}"
    );
    let finished = rm.commit(id).await;
    ensure!(finished == Finished::Done, "commit: {finished:?}");
    Ok(())
}

/// A key with a value.
async fn seeded<R: ResourceManager>(rm: &R, name: &str, value: i64) -> Result<String, String> {
    let key = key(name);
    done(rm, vec![insert(&key, value)]).await?;
    Ok(key)
}

async fn prepare<R: ResourceManager>(
    rm: &R,
    statements: Vec<Statement>,
) -> Result<BranchId, String> {
    let id = branch();
    let prepared = rm.prepare(id, Some(&work(statements))).await;
    ensure!(
        matches!(prepared, Prepared::Prepared { .. }),
        "prepare: {prepared:?}"
    );
    Ok(id)
}

/// The same after connections were killed: one that went idle at that moment is found dead by
/// whoever gets it, and that branch is refused.
async fn prepare_after_kills<R: ResourceManager>(
    rm: &R,
    statement: &Statement,
) -> Result<BranchId, String> {
    loop {
        let id = branch();
        match rm.prepare(id, Some(&work(vec![statement.clone()]))).await {
            Prepared::Prepared { .. } => return Ok(id),
            Prepared::NotPrepared { reason, .. } if &*reason.code == code::CONNECTION_LOST => {}
            other => return Err(format!("prepare: {other:?}")),
        }
    }
}

/// The reason of a branch that must not have been prepared.
fn refusal(prepared: Prepared) -> Result<(Reason, Option<usize>), String> {
    match prepared {
        Prepared::NotPrepared { reason, failed, .. } => Ok((reason, failed)),
        other => Err(format!("it was to be refused: {other:?}")),
    }
}

fn ok<T>(result: Result<T, Reason>) -> Result<T, String> {
    result.map_err(|reason| reason.to_string())
}

/// Repeats a look until it is content, or gives its last complaint.
async fn eventually<F, Fut>(mut look: F) -> Verdict
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Verdict>,
{
    let end = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(()) => return Ok(()),
            Err(complaint) if Instant::now() > end => return Err(complaint),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Rolls a branch back the way that the protocol does, whatever is left of it.
async fn certainly_aborted<R: ResourceManager>(rm: &R, id: BranchId) -> Verdict {
    eventually(|| async {
        match rm.rollback(id).await {
            Finished::Done => return Ok(()),
            Finished::NotDone(reason) => return Err(reason.to_string()),
            Finished::NoSuchBranch | Finished::Unknown(_) => {}
        }
        match rm.tombstone(id).await {
            Ok(LedgerEntry::Tombstone) => Ok(()),
            Ok(other) => Err(format!("the ledger says {other:?}")),
            Err(reason) => {
                let _ = rm.detach(id).await;
                Err(reason.to_string())
            }
        }
    })
    .await
}

/// Commits a prepared branch the way that the protocol does.
async fn certainly_committed<R: ResourceManager>(rm: &R, id: BranchId) -> Verdict {
    eventually(|| async {
        let finished = rm.commit(id).await;
        match finished {
            Finished::Done => return Ok(()),
            Finished::NotDone(reason) => return Err(reason.to_string()),
            Finished::NoSuchBranch | Finished::Unknown(_) => {}
        }
        match ok(rm.ledger(id).await)? {
            LedgerEntry::Committed => Ok(()),
            LedgerEntry::Tombstone => Err("a tombstone stands for a prepared branch".into()),
            LedgerEntry::Absent => {
                if ok(rm.recover().await)?.ours.contains(&id) {
                    ok(rm.detach(id).await)?;
                }
                Err(format!("no ledger row, and the commit said {finished:?}"))
            }
        }
    })
    .await
}

/// The row can be changed at once: nobody holds a lock on it.
async fn unlocked<R: ResourceManager>(rm: &R, key: &str) -> Verdict {
    eventually(|| done(rm, vec![add(key, 0)])).await
}

/// The number that a SELECT returned.
fn number(result: &v1::StatementResult) -> Option<i64> {
    match result.result.first()?.values.first()?.kind {
        Some(Kind::Int64(number)) => Some(number),
        _ => None,
    }
}
