//! The server behind a participant, as it is in a simulation: [`Memory`] with time that passes
//! before and after each verb, a record of what was asked and answered, and a process that can be
//! killed in between.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use concord_core::id::{Bqual, BranchId, Gtrid};
use concord_core::reason::{self, Reason};
use concord_core::record::ParticipantRecord;
use concord_participant::migrate::Plan;
use concord_participant::resource::memory::Memory;
use concord_participant::resource::memory::server::Server;
use concord_participant::resource::{
    Connections, Durable, Finished, Health, LedgerEntry, OnePhase, Prepared, Recovered,
    ResourceManager,
};
use concord_proto::model::{Isolation, Statement, Work};
use concord_proto::v1;
use tokio::sync::watch;

use super::chance::Chance;
use super::judge::Judge;
use super::net::Door;
use super::trace::Trace;

/// What no branch is asked about.
const NOBODY: BranchId = BranchId {
    gtrid: Gtrid::MIN,
    bqual: Bqual(0),
};

/// A resource manager in a simulation.
#[derive(Debug)]
pub struct SimRm {
    memory: Arc<Memory>,
    name: String,
    door: Door,
    /// Of the run.
    seed: u64,
    /// How often each verb was asked for of each branch.
    asked: Mutex<BTreeMap<(&'static str, BranchId), u64>>,
    /// Longest time for a verb to reach the server or its answer to come back, in microseconds.
    pause_us: u64,
    trace: Trace,
    judge: Judge,
    cuts: CutWatch,
}

/// Sees which verbs met a cut: those whose connection broke although nobody killed it.
#[derive(Debug)]
pub struct CutWatch {
    server: Arc<Server>,
    met: Arc<AtomicU64>,
    /// Branches whose work was interrupted by the participant itself.
    interrupted: Mutex<BTreeSet<BranchId>>,
}

impl CutWatch {
    /// Of a server; they are added to `met`.
    pub fn new(server: &Arc<Server>, met: &Arc<AtomicU64>) -> Self {
        Self {
            server: Arc::clone(server),
            met: Arc::clone(met),
            interrupted: Mutex::default(),
        }
    }

    fn interrupted(&self) -> MutexGuard<'_, BTreeSet<BranchId>> {
        self.interrupted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The work of a branch ended for this reason; see [`Self::ended`].
    fn worked(&self, branch: BranchId, reason: &Reason, kills: u64) {
        if !self.interrupted().contains(&branch) {
            self.ended(reason, kills);
        }
    }

    /// A verb ended for this reason; before it connections had been killed so often.
    fn ended(&self, reason: &Reason, kills: u64) {
        if &*reason.code == reason::code::CONNECTION_LOST && self.server.kills() == kills {
            self.met.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl SimRm {
    /// Around a participant's view of its server.
    pub fn new(
        memory: Arc<Memory>,
        name: &str,
        door: Door,
        (seed, pause_us): (u64, u64),
        ((trace, judge), cuts): ((Trace, Judge), CutWatch),
    ) -> Self {
        Self {
            memory,
            name: name.to_owned(),
            door,
            seed,
            asked: Mutex::default(),
            pause_us,
            trace,
            judge,
            cuts,
        }
    }

    /// The way to the server, or back. How long it takes depends on what is asked and how often
    /// before, and not on what else is asked at the same time: then the order in which the tasks
    /// of one moment run is without effect.
    async fn way(&self, verb: &'static str, branch: BranchId) {
        let count = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let count = asked.entry((verb, branch)).or_default();
            *count += 1;
            *count
        };
        let key = (verb.bytes().map(u64::from))
            .chain(branch.gtrid.0.iter().map(|byte| u64::from(*byte)))
            .chain([u64::from(branch.bqual.0), count])
            .fold(self.seed, |key, part| {
                (key ^ part).wrapping_mul(0x0100_0000_01B3)
            });
        let pause = Chance::of(key).pause(0..self.pause_us);
        tokio::time::sleep(pause).await;
        if !self.door.lives() {
            // The process was killed: nothing that its code still does reaches anybody.
            std::future::pending::<()>().await;
        }
    }

    async fn asked<T>(
        &self,
        (verb, branch): (&'static str, BranchId),
        call: impl Future<Output = T>,
    ) -> T {
        self.way(verb, branch).await;
        let answer = call.await;
        self.way(verb, branch).await;
        answer
    }

    fn note(&self, branch: BranchId, what: std::fmt::Arguments<'_>) {
        let gtrid = Some(branch.gtrid);
        self.trace.note(
            &self.name,
            gtrid,
            format_args!("server: {what} of {branch}"),
        );
    }
}

/// In short, for the record.
fn code(reason: &Reason) -> &str {
    &reason.code
}

impl ResourceManager for SimRm {
    async fn begin(
        &self,
        branch: BranchId,
        isolation: Option<Isolation>,
        timeout: Duration,
    ) -> Result<(), Reason> {
        self.way("begin", branch).await;
        let begun = self.memory.begin(branch, isolation, timeout).await;
        self.note(
            branch,
            format_args!("begin {:?}", begun.as_ref().map_err(code)),
        );
        self.way("begin", branch).await;
        begun
    }

    async fn execute(
        &self,
        branch: BranchId,
        statement: &Statement,
    ) -> Result<v1::StatementResult, Reason> {
        self.asked(("execute", branch), self.memory.execute(branch, statement))
            .await
    }

    async fn prepare(&self, branch: BranchId, work: Option<&Work>) -> Prepared {
        self.way("prepare", branch).await;
        let kills = self.cuts.server.kills();
        let prepared = self.memory.prepare(branch, work).await;
        if let (Prepared::Unknown { reason }, true) = (&prepared, self.door.lives()) {
            self.cuts.worked(branch, reason, kills);
        }
        let short = match &prepared {
            Prepared::Prepared { .. } => "prepared",
            Prepared::ReadOnly { .. } => "read only",
            Prepared::NotPrepared { reason, .. } | Prepared::Unknown { reason } => code(reason),
        };
        self.note(branch, format_args!("prepare: {short}"));
        self.way("prepare", branch).await;
        prepared
    }

    async fn commit_one_phase(&self, branch: BranchId, work: Option<&Work>) -> OnePhase {
        self.way("commit_one_phase", branch).await;
        let kills = self.cuts.server.kills();
        let ended = self.memory.commit_one_phase(branch, work).await;
        if let (OnePhase::Unknown { reason, .. }, true) = (&ended, self.door.lives()) {
            self.cuts.worked(branch, reason, kills);
        }
        let short = match &ended {
            OnePhase::Committed { .. } => "committed",
            OnePhase::NotCommitted { reason, .. } | OnePhase::Unknown { reason, .. } => {
                code(reason)
            }
        };
        self.note(branch, format_args!("commit in one phase: {short}"));
        self.way("commit_one_phase", branch).await;
        ended
    }

    async fn commit(&self, branch: BranchId) -> Finished {
        self.way("commit", branch).await;
        self.judge.commits(branch);
        let kills = self.cuts.server.kills();
        let finished = self.memory.commit(branch).await;
        if let (Finished::Unknown(reason), true) = (&finished, self.door.lives()) {
            self.cuts.ended(reason, kills);
        }
        self.note(branch, format_args!("commit: {finished:?}"));
        self.way("commit", branch).await;
        finished
    }

    async fn rollback(&self, branch: BranchId) -> Finished {
        self.way("rollback", branch).await;
        self.cuts.interrupted().insert(branch);
        let kills = self.cuts.server.kills();
        let finished = self.memory.rollback(branch).await;
        if let (Finished::Unknown(reason), true) = (&finished, self.door.lives()) {
            self.cuts.ended(reason, kills);
        }
        self.note(branch, format_args!("roll back: {finished:?}"));
        self.way("rollback", branch).await;
        finished
    }

    fn cancel(&self, branch: BranchId) {
        if self.door.lives() {
            self.cuts.interrupted().insert(branch);
            self.memory.cancel(branch);
        }
    }

    async fn ledger(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        self.way("ledger", branch).await;
        let entry = self.memory.ledger(branch).await;
        self.note(
            branch,
            format_args!("ledger {:?}", entry.as_ref().map_err(code)),
        );
        self.way("ledger", branch).await;
        entry
    }

    async fn lost(&self, branches: &[BranchId]) -> Result<Vec<BranchId>, Reason> {
        let Some(first) = branches.first() else {
            return Ok(Vec::new());
        };
        self.way("ledger", *first).await;
        let lost = self.memory.lost(branches).await;
        self.way("ledger", *first).await;
        lost
    }

    async fn tombstone(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        self.way("tombstone", branch).await;
        let entry = self.memory.tombstone(branch).await;
        self.note(
            branch,
            format_args!("tombstone {:?}", entry.as_ref().map_err(code)),
        );
        self.way("tombstone", branch).await;
        entry
    }

    async fn detach(&self, branch: BranchId) -> Result<(), Reason> {
        self.asked(("detach", branch), self.memory.detach(branch))
            .await
    }

    async fn recover(&self) -> Result<Recovered, Reason> {
        self.asked(("recover", NOBODY), self.memory.recover()).await
    }

    async fn query(
        &self,
        statement: &Statement,
        timeout: Duration,
    ) -> Result<v1::StatementResult, Reason> {
        self.asked(("query", NOBODY), self.memory.query(statement, timeout))
            .await
    }

    async fn migrate(&self, plan: &Plan) -> Result<u32, Reason> {
        self.asked(("migrate", NOBODY), self.memory.migrate(plan))
            .await
    }

    async fn load(&self) -> Result<Durable, Reason> {
        self.asked(("load", NOBODY), self.memory.load()).await
    }

    async fn append(&self, records: &[ParticipantRecord]) -> Result<(), Reason> {
        self.way("append", NOBODY).await;
        let appended = self.memory.append(records).await;
        for record in records {
            let gtrid = match record {
                ParticipantRecord::Damage { gtrid, .. } => Some(*gtrid),
                ParticipantRecord::Epoch(_) | ParticipantRecord::ForgetBelow(_) => None,
            };
            let kept = appended.is_ok();
            self.trace.note(
                &self.name,
                gtrid,
                format_args!("server: keeps {record:?}: {kept}"),
            );
        }
        self.way("append", NOBODY).await;
        appended
    }

    async fn damage(&self, limit: u32) -> Result<Vec<v1::Damage>, Reason> {
        self.asked(("damage", NOBODY), self.memory.damage(limit))
            .await
    }

    async fn acknowledge(&self, id: u64) -> Result<bool, Reason> {
        self.asked(("acknowledge", NOBODY), self.memory.acknowledge(id))
            .await
    }

    async fn prune(&self, below: Gtrid, requests_kept: Duration) -> Result<u64, Reason> {
        self.asked(("prune", NOBODY), self.memory.prune(below, requests_kept))
            .await
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.memory.health()
    }

    fn connections(&self) -> Connections {
        self.memory.connections()
    }

    fn stop(&self) -> impl Future<Output = ()> + Send {
        self.memory.stop()
    }
}
