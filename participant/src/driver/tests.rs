//! The driver's own promises: the order of append and release, what it does while the server is
//! away, and that nothing it calls can leave a branch behind. What the machine decides is tested
//! in the core, what a server does in the conformance suite.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;

use concord_core::id::Bqual;
use concord_core::record::ParticipantRecord;
use concord_proto::convert::participant::{Abort, Begin, Commit, Execute, Prepare};
use concord_proto::model::{Isolation, Statement, Work};
use concord_proto::v1;

use super::*;
use crate::migrate::Plan;
use crate::resource::{self, Connections, LedgerEntry, OnePhase, Prepared};

mod detached;
mod panics;
mod results;

/// A server that does what it is told at once, and whose appends can be held up. It keeps no XA
/// rules: the driver cannot see them.
#[derive(Debug)]
struct Scripted {
    health: watch::Sender<Health>,
    /// Permits for appends; each takes one.
    appends: Semaphore,
    /// Permits for prepares, and for commits in one phase.
    prepares: Semaphore,
    /// What tombstones find, before they stand; a branch that they find is over.
    tombstones: Mutex<VecDeque<Result<LedgerEntry, Reason>>>,
    /// Appends that fail before the next one succeeds.
    failures: Mutex<u32>,
    /// Lists that panic before one succeeds, and appends.
    lists_panic: Mutex<u32>,
    appends_panic: Mutex<u32>,
    /// A branch whose other connection is still open.
    attached: Mutex<Option<BranchId>>,
    /// How many ends of its connection the server takes its time for.
    lingers: Mutex<u32>,
    appended: Mutex<Vec<Vec<ParticipantRecord>>>,
    prepared: Mutex<BTreeSet<BranchId>>,
    log: Mutex<Vec<String>>,
}

impl Scripted {
    fn new() -> Arc<Self> {
        let health = Health {
            reachable: true,
            ..Health::default()
        };
        Arc::new(Self {
            health: watch::Sender::new(health),
            appends: Semaphore::new(Semaphore::MAX_PERMITS),
            prepares: Semaphore::new(Semaphore::MAX_PERMITS),
            tombstones: Mutex::default(),
            failures: Mutex::default(),
            lists_panic: Mutex::default(),
            appends_panic: Mutex::default(),
            attached: Mutex::default(),
            lingers: Mutex::default(),
            appended: Mutex::default(),
            prepared: Mutex::default(),
            log: Mutex::default(),
        })
    }

    fn note(&self, what: &str) {
        self.log.lock().unwrap().push(what.to_owned());
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    fn is_attached(&self, branch: BranchId) -> bool {
        *self.attached.lock().unwrap() == Some(branch)
    }
}

fn down() -> Reason {
    Reason::new(code::SERVER_DOWN, "it is away")
}

impl ResourceManager for Scripted {
    async fn begin(&self, _: BranchId, _: Option<Isolation>, _: Duration) -> Result<(), Reason> {
        self.note("begin");
        Ok(())
    }

    async fn execute(
        &self,
        _: BranchId,
        statement: &Statement,
    ) -> Result<v1::StatementResult, Reason> {
        match &*statement.sql {
            "bad" => Err(Reason::new(code::STATEMENT_FAILED, "bad")),
            "panic" => panic!("on purpose"),
            _ => Ok(v1::StatementResult::default()),
        }
    }

    async fn prepare(&self, branch: BranchId, work: Option<&Work>) -> Prepared {
        self.prepares.acquire().await.unwrap().forget();
        self.note("prepare");
        assert!(
            work.is_none_or(|work| &*work.statements[0].sql != "panic"),
            "on purpose"
        );
        self.prepared.lock().unwrap().insert(branch);
        let results = vec![v1::StatementResult::default(); work.map_or(0, |w| w.statements.len())];
        Prepared::Prepared { results }
    }

    async fn commit_one_phase(&self, _: BranchId, work: Option<&Work>) -> OnePhase {
        self.prepares.acquire().await.unwrap().forget();
        let results = vec![v1::StatementResult::default(); work.map_or(0, |w| w.statements.len())];
        match work.map_or("", |work| &*work.statements[0].sql) {
            "bad" => OnePhase::NotCommitted {
                reason: Reason::new(code::STATEMENT_FAILED, "bad"),
                results: Vec::new(),
                failed: Some(0),
            },
            "silence" => OnePhase::Unknown {
                reason: down(),
                results,
            },
            _ => OnePhase::Committed { results },
        }
    }

    async fn commit(&self, branch: BranchId) -> resource::Finished {
        self.note("commit");
        self.prepared.lock().unwrap().remove(&branch);
        resource::Finished::Done
    }

    async fn rollback(&self, branch: BranchId) -> resource::Finished {
        self.note("rollback");
        if self.is_attached(branch) || !self.tombstones.lock().unwrap().is_empty() {
            return resource::Finished::NoSuchBranch;
        }
        self.prepared.lock().unwrap().remove(&branch);
        resource::Finished::Done
    }

    fn cancel(&self, _: BranchId) {
        self.note("cancel");
    }

    async fn ledger(&self, _: BranchId) -> Result<LedgerEntry, Reason> {
        Ok(LedgerEntry::Absent)
    }

    async fn tombstone(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        self.note("tombstone");
        if self.is_attached(branch) {
            return Err(Reason::new(code::BRANCH_ATTACHED, "it is held"));
        }
        let found = self.tombstones.lock().unwrap().pop_front();
        found.unwrap_or(Ok(LedgerEntry::Tombstone))
    }

    async fn detach(&self, _: BranchId) -> Result<(), Reason> {
        self.note("detach");
        let mut lingers = self.lingers.lock().unwrap();
        if *lingers == 0 {
            *self.attached.lock().unwrap() = None;
        }
        *lingers = lingers.saturating_sub(1);
        Ok(())
    }

    async fn recover(&self) -> Result<Recovered, Reason> {
        panics::while_any_is_left(&self.lists_panic);
        Ok(Recovered {
            ours: self.prepared.lock().unwrap().iter().copied().collect(),
            foreign: 0,
        })
    }

    async fn lost(&self, _: &[BranchId]) -> Result<Vec<BranchId>, Reason> {
        Err(down())
    }

    async fn query(&self, _: &Statement, _: Duration) -> Result<v1::StatementResult, Reason> {
        Err(down())
    }

    async fn migrate(&self, _: &Plan) -> Result<u32, Reason> {
        Err(down())
    }

    async fn load(&self) -> Result<Durable, Reason> {
        if !self.health.borrow().reachable {
            return Err(down());
        }
        Ok(Durable {
            epoch: Epoch(1),
            forget_below: Gtrid::MIN,
            damage: Vec::new(),
        })
    }

    async fn append(&self, records: &[ParticipantRecord]) -> Result<(), Reason> {
        self.appends.acquire().await.unwrap().forget();
        panics::while_any_is_left(&self.appends_panic);
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(down());
        }
        self.appended.lock().unwrap().push(records.to_vec());
        Ok(())
    }

    async fn damage(&self, _: u32) -> Result<Vec<v1::Damage>, Reason> {
        Ok(Vec::new())
    }

    async fn acknowledge(&self, _: u64) -> Result<bool, Reason> {
        Ok(false)
    }

    async fn prune(&self, _: Gtrid, _: Duration) -> Result<u64, Reason> {
        Ok(0)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn connections(&self) -> Connections {
        Connections { open: 0, max: 8 }
    }

    async fn stop(&self) {}
}

fn start(rm: &Arc<Scripted>, branches_max: usize) -> (Handle, Wishes) {
    let settings = Settings {
        branches_max,
        sweep_interval: Duration::from_secs(2),
    };
    let (driver, handle, wishes) = Driver::new(rm.clone(), settings);
    tokio::spawn(driver.run(CancellationToken::new()));
    (handle, wishes)
}

async fn started(rm: &Arc<Scripted>) -> (Handle, Wishes) {
    let (handle, wishes) = start(rm, 16);
    handle.loaded().wait_for(|loaded| *loaded).await.unwrap();
    (handle, wishes)
}

fn branch(number: u8) -> BranchId {
    BranchId {
        gtrid: Gtrid([number; 16]),
        bqual: Bqual(1),
    }
}

fn statement(sql: &str) -> Statement {
    Statement {
        sql: sql.into(),
        params: Vec::new(),
        expect: None,
    }
}

fn work(sql: &str) -> Work {
    Work {
        statements: vec![statement(sql)],
        isolation: None,
        allow_read_only: true,
        timeout: Duration::from_secs(10),
        request: None,
    }
}

fn prepare(number: u8, epoch: u64, sql: &str) -> Order {
    Order::Prepare(Prepare {
        branch: branch(number),
        epoch: Epoch(epoch),
        work: Some(work(sql)),
    })
}

fn commit(number: u8, epoch: u64) -> Order {
    Order::Commit(Commit {
        branch: branch(number),
        epoch: Epoch(epoch),
        one_phase: false,
        work: None,
    })
}

fn one_phase(sql: &str) -> Order {
    Order::Commit(Commit {
        branch: branch(1),
        epoch: Epoch(1),
        one_phase: true,
        work: Some(work(sql)),
    })
}

fn abort(number: u8, epoch: u64) -> Order {
    Order::Abort(Abort {
        branch: branch(number),
        epoch: Epoch(epoch),
    })
}

fn begin(number: u8, timeout: Duration) -> Order {
    Order::Begin(Begin {
        branch: branch(number),
        epoch: Epoch(1),
        isolation: None,
        timeout,
    })
}

fn execute(number: u8, sql: &str) -> Order {
    Order::Execute(Execute {
        branch: branch(number),
        epoch: Epoch(1),
        statement: statement(sql),
    })
}

fn vote(answer: Answer) -> Vote {
    match answer {
        Answer::Voted(voted) => voted.vote,
        other => panic!("not a vote: {other:?}"),
    }
}

fn finish(answer: Answer) -> Finish {
    match answer {
        Answer::Finished(finished) => finished.finish,
        other => panic!("not an end: {other:?}"),
    }
}

fn call(handle: &Handle, order: Order) -> tokio::task::JoinHandle<Answer> {
    let handle = handle.clone();
    tokio::spawn(async move { handle.call(order).await })
}

/// Lets everything happen that can happen without time or a permit.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_new_epoch_leaves_before_it_is_durable() {
    let rm = Scripted::new();
    let (handle, _wishes) = started(&rm).await;
    rm.appends.forget_permits(usize::MAX);
    let first = call(&handle, prepare(1, 2, "sql"));
    let second = call(&handle, prepare(2, 2, "sql"));
    settle().await;
    assert!(
        rm.log().is_empty(),
        "not even a statement runs: {:?}",
        rm.log()
    );
    // The old epoch is fenced off at once, though: its refusal waits for the record as well.
    let stale = call(&handle, prepare(3, 1, "sql"));
    settle().await;
    assert!(!stale.is_finished());

    rm.appends.add_permits(1);
    assert_eq!(vote(first.await.unwrap()), Vote::Commit);
    assert_eq!(vote(second.await.unwrap()), Vote::Commit);
    match stale.await.unwrap() {
        Answer::Refused(reason) => assert_eq!(&*reason.code, code::STALE_EPOCH),
        other => panic!("{other:?}"),
    }
    let appended = rm.appended.lock().unwrap().clone();
    assert_eq!(appended, [vec![ParticipantRecord::Epoch(Epoch(2))]]);
}

#[tokio::test(start_paused = true)]
async fn an_append_is_repeated_until_it_succeeds_and_the_rest_goes_on() {
    let rm = Scripted::new();
    let (handle, mut wishes) = started(&rm).await;
    assert_eq!(vote(handle.call(prepare(1, 1, "sql")).await), Vote::Commit);
    *rm.failures.lock().unwrap() = 5;
    handle.forget_below(Gtrid([1; 16])).await;
    wishes.prune.borrow_and_update();
    // The horizon gates only the pruning; votes and commits of this epoch need not wait.
    assert_eq!(vote(handle.call(prepare(2, 1, "sql")).await), Vote::Commit);
    assert_eq!(finish(handle.call(commit(1, 1)).await), Finish::Committed);
    assert!(!wishes.prune.has_changed().unwrap());
    wishes.prune.changed().await.unwrap();
    assert_eq!(*wishes.prune.borrow(), Gtrid([1; 16]));
    assert_eq!(*rm.failures.lock().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn before_the_ledger_is_read_nothing_is_taken() {
    let rm = Scripted::new();
    rm.health.send_modify(|health| health.reachable = false);
    let (handle, _wishes) = start(&rm, 16);
    match handle.call(prepare(1, 1, "sql")).await {
        Answer::Unavailable(reason) => assert_eq!(&*reason.code, code::SERVER_DOWN),
        other => panic!("{other:?}"),
    }
    rm.prepared.lock().unwrap().insert(branch(7));
    rm.health.send_modify(|health| health.reachable = true);
    handle.loaded().wait_for(|loaded| *loaded).await.unwrap();
    let summary = handle.summary().await.unwrap();
    assert_eq!((summary.epoch, summary.in_doubt), (Epoch(1), 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_unfinished_is_told_once_the_server_has_listed_it() {
    let rm = Scripted::new();
    let away = |away: bool| rm.health.send_modify(|health| health.reachable = !away);
    let unfinished = async |handle: &Handle| handle.summary().await.unwrap().unfinished_from;
    away(true);
    let (handle, _wishes) = start(&rm, 16);
    assert_eq!(unfinished(&handle).await, None, "before the first list");
    away(false);
    handle.loaded().wait_for(|loaded| *loaded).await.unwrap();
    assert_eq!(unfinished(&handle).await, Some(Gtrid::MAX));

    assert_eq!(vote(handle.call(prepare(2, 1, "sql")).await), Vote::Commit);
    assert_eq!(unfinished(&handle).await, Some(branch(2).gtrid));
    away(true);
    settle().await;
    assert_eq!(unfinished(&handle).await, None, "a server may go back");
    rm.prepared.lock().unwrap().insert(branch(1));
    away(false);
    settle().await;
    assert_eq!(unfinished(&handle).await, Some(branch(1).gtrid));

    for n in [1, 2] {
        assert_eq!(finish(handle.call(commit(n, 1)).await), Finish::Committed);
    }
    assert_eq!(unfinished(&handle).await, Some(Gtrid::MAX));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_ends_its_branch_and_no_other() {
    let rm = Scripted::new();
    let (handle, _wishes) = started(&rm).await;
    let answer = vote(handle.call(prepare(1, 1, "panic")).await);
    assert!(matches!(answer, Vote::Aborting(_)), "{answer:?}");
    settle().await;
    assert_eq!(rm.log()[0], "prepare");
    assert!(
        rm.log().len() > 1,
        "the machine finds out what is left of it"
    );
    assert_eq!(handle.summary().await.unwrap().branches, 0);
    assert_eq!(vote(handle.call(prepare(2, 1, "sql")).await), Vote::Commit);

    assert_eq!(
        handle.call(begin(3, Duration::from_mins(1))).await,
        Answer::Begun
    );
    let failed = handle.call(execute(3, "panic")).await;
    assert!(matches!(failed, Answer::Refused(_)), "{failed:?}");
    assert_eq!(handle.summary().await.unwrap().in_doubt, 1);
}

#[tokio::test(start_paused = true)]
async fn an_interactive_branch_expires_and_tells_why_once() {
    let rm = Scripted::new();
    let (handle, _wishes) = started(&rm).await;
    assert_eq!(
        handle.call(begin(1, Duration::from_millis(700))).await,
        Answer::Begun
    );
    assert!(matches!(
        handle.call(execute(1, "sql")).await,
        Answer::Executed(_)
    ));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rm.log(), ["begin", "rollback"]);
    match handle.call(execute(1, "sql")).await {
        Answer::Refused(reason) => assert_eq!(&*reason.code, code::DEADLINE_EXCEEDED),
        other => panic!("{other:?}"),
    }
    // Nobody asked to finish it: it is forgotten in the end.
    assert_eq!(handle.summary().await.unwrap().branches, 1);
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(handle.summary().await.unwrap().branches, 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_one_phase_commit_brings_its_statement_after_the_tombstone() {
    let rm = Scripted::new();
    let (handle, _wishes) = started(&rm).await;
    match handle.call(one_phase("bad")).await {
        Answer::Finished(finished) => {
            assert!(
                matches!(finished.finish, Finish::Aborted(Some(_))),
                "{finished:?}"
            );
            assert_eq!(finished.failed_statement, Some(0));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rm.log(), ["tombstone"]);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_branch_is_asked_about_by_the_third_sweep() {
    let rm = Scripted::new();
    let (handle, mut wishes) = started(&rm).await;
    assert_eq!(vote(handle.call(prepare(1, 1, "sql")).await), Vote::Commit);
    wishes.inquire.changed().await.unwrap();
    assert_eq!(*wishes.inquire.borrow(), [branch(1)]);
    handle
        .decided(Epoch(1), vec![(branch(1), Decision::Commit)])
        .await;
    settle().await;
    assert_eq!(rm.log(), ["prepare", "commit"]);
    assert_eq!(handle.branches(None, 10).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_drain_takes_nothing_new_and_waits_for_what_runs() {
    let rm = Scripted::new();
    let (handle, _wishes) = started(&rm).await;
    assert_eq!(vote(handle.call(prepare(1, 1, "sql")).await), Vote::Commit);
    rm.prepares.forget_permits(usize::MAX);
    let running = call(&handle, prepare(2, 1, "sql"));
    settle().await;
    let draining = {
        let handle = handle.clone();
        tokio::spawn(async move { handle.drain().await })
    };
    settle().await;
    match vote(handle.call(prepare(3, 1, "sql")).await) {
        Vote::Abort(reason) => assert_eq!(&*reason.code, code::SHUTTING_DOWN),
        other => panic!("{other:?}"),
    }
    assert_eq!(finish(handle.call(commit(1, 1)).await), Finish::Committed);
    assert!(!draining.is_finished());
    rm.prepares.add_permits(1);
    assert_eq!(vote(running.await.unwrap()), Vote::Commit);
    draining.await.unwrap();
    settle().await;
    let late = handle.call(abort(2, 1)).await;
    assert!(matches!(late, Answer::Unavailable(_)), "{late:?}");
    assert!(
        rm.prepared.lock().unwrap().contains(&branch(2)),
        "prepared stays prepared"
    );
}

#[tokio::test(start_paused = true)]
async fn a_full_participant_refuses_new_branches_only() {
    let rm = Scripted::new();
    let (handle, _wishes) = start(&rm, 1);
    handle.loaded().wait_for(|loaded| *loaded).await.unwrap();
    assert_eq!(vote(handle.call(prepare(1, 1, "sql")).await), Vote::Commit);
    match vote(handle.call(prepare(2, 1, "sql")).await) {
        Vote::Abort(reason) => assert_eq!(&*reason.code, code::LIMIT_REACHED),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        vote(handle.call(prepare(1, 1, "sql")).await),
        Vote::Commit,
        "a repeated one"
    );
    assert_eq!(
        finish(handle.call(abort(3, 1)).await),
        Finish::Aborted(None)
    );
    assert_eq!(finish(handle.call(commit(1, 1)).await), Finish::Committed);
    assert_eq!(vote(handle.call(prepare(2, 1, "sql")).await), Vote::Commit);
}
