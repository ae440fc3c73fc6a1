//! A server in memory with real XA rules, for simulation.
//!
//! [`Server`] is what survives: rows, prepared branches, the ledger. [`Memory`] is one
//! participant's view of it: dropping it closes its connections, as a crash of the participant
//! does. It understands three statements on tables of a key and a number (see [`shape`]), locks
//! rows until the outcome, finds deadlocks, and keeps MySQL's or MariaDB's rule about who may
//! finish a prepared branch. Time is tokio's, so paused time works; there is no randomness.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use concord_core::id::{BranchId, Gtrid, RequestId};
use concord_core::reason::{Reason, code};
use concord_core::record::ParticipantRecord;
use concord_proto::model::{Isolation, Statement, Work};
use concord_proto::v1;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::mysql::sql::Judge;
use super::{
    Connections, Durable, Finished, Health, LedgerEntry, OnePhase, Prepared, Recovered,
    ResourceManager,
};
use crate::migrate::Plan;

pub mod server;
pub mod shape;
#[cfg(test)]
mod tests;

use self::server::{Cut, Rules, Server, State, Stop, Xid};
use self::shape::Shape;

/// A resource manager on a [`Server`] in memory.
#[derive(Debug)]
pub struct Memory {
    server: Arc<Server>,
    /// Number of this participant process at its server.
    process: u64,
    judge: Judge,
    /// Interactive branches that failed, and are rolled back.
    failed: Mutex<BTreeMap<BranchId, Reason>>,
    options: Options,
}

/// How long the fake waits for what, and how much it takes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Longest wait for a lock.
    pub lock_wait: Duration,
    /// Longest wait for a free connection.
    pub acquire: Duration,
    /// Branches that may have a connection at the same time.
    pub max_connections: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lock_wait: Duration::from_secs(1),
            acquire: Duration::from_secs(3),
            max_connections: 64,
        }
    }
}

/// Rolls a branch back when the call that works on it ends in any way but well.
struct Running<'a> {
    memory: &'a Memory,
    branch: BranchId,
    connection: u64,
    kept: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.memory
                .server
                .change(|state| state.abandon(self.branch, self.connection));
        }
    }
}

impl Memory {
    /// Connects a participant to a server.
    pub fn connect(server: &Arc<Server>, options: Options) -> Arc<Self> {
        let process = server.change(State::new_process);
        Arc::new(Self {
            server: Arc::clone(server),
            process,
            judge: Judge::default(),
            failed: Mutex::default(),
            options,
        })
    }

    fn failures(&self) -> MutexGuard<'_, BTreeMap<BranchId, Reason>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Repeats an attempt at every change of the server until it is done, or until `limit`.
    async fn wait<T>(
        &self,
        limit: Instant,
        mut attempt: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut changes = self.server.changes();
        loop {
            if let Some(done) = self.server.change(&mut attempt) {
                return Some(done);
            }
            // The server outlives its participants, so this ends with a change or at the limit.
            timeout_at(limit, changes.changed()).await.ok()?.ok()?;
        }
    }

    /// A connection with an open branch and its ledger row.
    async fn start(
        &self,
        branch: BranchId,
        request: Option<&str>,
        deadline: Instant,
    ) -> Result<Running<'_>, Stop> {
        if let Some(problem) = self.server.change(|state| state.problem()) {
            return Err(Stop::refused(problem));
        }
        let limit = deadline.min(Instant::now() + self.options.acquire);
        let most = self.options.max_connections as usize;
        let process = self.process;
        let connection = self
            .wait(limit, |state| state.connect(process, most, branch))
            .await
            .unwrap_or_else(|| {
                Err(Stop::refused(Reason::new(
                    code::POOL_EXHAUSTED,
                    "no connection came free",
                )))
            })?;
        let running = Running {
            memory: self,
            branch,
            connection,
            kept: false,
        };
        let limit = deadline.min(Instant::now() + self.options.lock_wait);
        self.wait(limit, |state| {
            state.write_ledger(branch, connection, request)
        })
        .await
        .unwrap_or_else(|| Err(self.too_late(branch, deadline)))?;
        Ok(running)
    }

    fn too_late(&self, branch: BranchId, deadline: Instant) -> Stop {
        self.server.change(|state| state.waits_no_more(branch));
        Stop::refused(if Instant::now() >= deadline {
            Reason::new(code::DEADLINE_EXCEEDED, "the branch's time is over")
        } else {
            Reason::new(code::LOCK_TIMEOUT, "a lock was not granted in time")
        })
    }

    /// One statement in an open branch.
    async fn run(
        &self,
        running: &Running<'_>,
        statement: &Statement,
        locking: bool,
        deadline: Instant,
    ) -> Result<v1::StatementResult, Stop> {
        let shape = Shape::read(statement).map_err(Stop::refused)?;
        let limit = deadline.min(Instant::now() + self.options.lock_wait);
        let (branch, connection) = (running.branch, running.connection);
        self.wait(limit, |state| {
            state.run(branch, connection, &shape, locking)
        })
        .await
        .unwrap_or_else(|| Err(self.too_late(branch, deadline)))
    }

    /// All statements of a work, judged before the first is run.
    async fn run_all(
        &self,
        branch: BranchId,
        work: &Work,
    ) -> Result<(Running<'_>, Vec<v1::StatementResult>), Unfinished> {
        let deadline = Instant::now() + work.timeout;
        for (index, statement) in work.statements.iter().enumerate() {
            self.judge(statement)
                .map_err(|reason| Unfinished::at(index, reason))?;
        }
        let request = work.request_id.as_ref().map(RequestId::as_str);
        let running = self
            .start(branch, request, deadline)
            .await
            .map_err(Unfinished::before)?;
        let locking = work.isolation == Some(Isolation::Serializable);
        let mut results = Vec::new();
        for (index, statement) in work.statements.iter().enumerate() {
            match self.run(&running, statement, locking, deadline).await {
                Ok(result) => {
                    let violated = violated(statement, &result, index);
                    results.push(result);
                    if let Some(reason) = violated {
                        let stop = Stop::refused(reason);
                        return Err(Unfinished {
                            stop,
                            failed: Some(index),
                            results,
                        });
                    }
                }
                Err(stop) => {
                    return Err(Unfinished {
                        stop,
                        failed: Some(index),
                        results,
                    });
                }
            }
        }
        Ok((running, results))
    }

    fn judge(&self, statement: &Statement) -> Result<(), Reason> {
        let judged = self.judge.judge(&statement.sql)?;
        if judged.params() == statement.params.len() {
            Ok(())
        } else {
            Err(Reason::new(
                code::STATEMENT_NOT_ALLOWED,
                "not as many values as `?`",
            ))
        }
    }

    /// Reads only, takes no locks, and needs no ledger row.
    fn may_leave(work: &Work) -> bool {
        work.request_id.is_none()
            && work.isolation != Some(Isolation::Serializable)
            && work.statements.iter().all(|statement| {
                matches!(
                    Shape::read(statement),
                    Ok(Shape::Select { locking: false, .. })
                )
            })
    }

    fn prepare_running(&self, mut running: Running<'_>) -> Result<(), Stop> {
        let (branch, connection) = (running.branch, running.connection);
        match self.server.cut() {
            Some(Cut::Before) => return Err(Stop::Broken),
            Some(Cut::After) => {
                self.server
                    .change(|state| state.prepare(branch, connection))?;
                self.server.change(|state| state.close(connection));
                running.kept = true;
                return Err(Stop::Broken);
            }
            None => {}
        }
        self.server
            .change(|state| state.prepare(branch, connection))?;
        running.kept = true;
        Ok(())
    }

    fn commit_running(&self, mut running: Running<'_>) -> Result<(), Stop> {
        let (branch, connection) = (running.branch, running.connection);
        let cut = self.server.cut();
        if cut == Some(Cut::Before) {
            return Err(Stop::Broken);
        }
        self.server
            .change(|state| state.commit_one_phase(branch, connection))?;
        running.kept = true;
        if cut.is_some() {
            Err(Stop::Broken)
        } else {
            Ok(())
        }
    }

    /// Takes an open branch out of its rest.
    fn resume(&self, branch: BranchId) -> Result<(Running<'_>, Instant), Reason> {
        if let Some(reason) = self.failures().get(&branch) {
            return Err(reason.clone());
        }
        let process = self.process;
        let (connection, deadline) = self.server.change(|state| state.open(branch, process))?;
        Ok((
            Running {
                memory: self,
                branch,
                connection,
                kept: false,
            },
            deadline,
        ))
    }

    async fn verb(&self, branch: BranchId, commit: bool) -> Finished {
        if !self.server.is_up() {
            return Finished::NotDone(server::down());
        }
        let cut = self.server.cut();
        if cut == Some(Cut::Before) {
            return Finished::Unknown(server::broken());
        }
        let process = self.process;
        let kills = self.server.kills();
        let limit = Instant::now() + self.options.lock_wait;
        let finished = self
            .wait(limit, |state| {
                if state.kills() != kills {
                    return Some(Finished::Unknown(server::broken()));
                }
                state.finish(Xid::Ours(branch), process, commit)
            })
            .await;
        match (finished, cut) {
            (None, _) => Finished::NotDone(Reason::new(
                code::LOCK_TIMEOUT,
                "a backup's lock was not released in time",
            )),
            (Some(Finished::Done), Some(Cut::After)) => Finished::Unknown(server::broken()),
            (Some(finished), _) => finished,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let process = self.process;
        self.server
            .change(|state| state.close_process(Some(process)));
    }
}

fn violated(statement: &Statement, result: &v1::StatementResult, index: usize) -> Option<Reason> {
    let expect = statement.expect.as_ref()?;
    let legal = result.rows >= expect.min && expect.max.is_none_or(|max| result.rows <= max);
    (!legal).then(|| {
        Reason::new(
            expect.reason.clone(),
            format!("statement {index} touched {} rows", result.rows),
        )
    })
}

/// A work that did not come to its end.
struct Unfinished {
    stop: Stop,
    failed: Option<usize>,
    results: Vec<v1::StatementResult>,
}

impl Unfinished {
    fn at(index: usize, reason: Reason) -> Self {
        Self {
            stop: Stop::refused(reason),
            failed: Some(index),
            results: Vec::new(),
        }
    }

    fn before(stop: Stop) -> Self {
        Self {
            stop,
            failed: None,
            results: Vec::new(),
        }
    }
}

impl From<Unfinished> for Prepared {
    fn from(failed: Unfinished) -> Self {
        match failed.stop {
            Stop::Refused { reason, .. } => Self::NotPrepared {
                reason,
                results: failed.results,
                failed: failed.failed,
            },
            Stop::Broken => Self::Unknown {
                reason: server::broken(),
            },
        }
    }
}

impl ResourceManager for Memory {
    async fn begin(
        &self,
        branch: BranchId,
        isolation: Option<Isolation>,
        timeout: Duration,
    ) -> Result<(), Reason> {
        let deadline = Instant::now() + timeout;
        let mut running = self
            .start(branch, None, deadline)
            .await
            .map_err(server::Stop::reason)?;
        let locking = isolation == Some(Isolation::Serializable);
        self.server
            .change(|state| state.rest(branch, deadline, locking));
        running.kept = true;
        Ok(())
    }

    async fn execute(
        &self,
        branch: BranchId,
        statement: &Statement,
    ) -> Result<v1::StatementResult, Reason> {
        let (mut running, deadline) = self.resume(branch)?;
        let outcome = match self.judge(statement) {
            Ok(()) => {
                let locking = self.server.change(|state| state.locks_reads(branch));
                self.run(&running, statement, locking, deadline)
                    .await
                    .map_err(server::Stop::reason)
            }
            Err(reason) => Err(reason),
        };
        let outcome = outcome.and_then(|result| match violated(statement, &result, 0) {
            Some(reason) => Err(reason),
            None => Ok(result),
        });
        match outcome {
            Ok(result) => {
                running.kept = true;
                Ok(result)
            }
            Err(reason) => {
                self.failures().insert(branch, reason.clone());
                Err(reason)
            }
        }
    }

    async fn prepare(&self, branch: BranchId, work: Option<&Work>) -> Prepared {
        let Some(work) = work else {
            let running = match self.resume(branch) {
                Ok((running, _)) => running,
                Err(reason) if self.failures().remove(&branch).is_some() => {
                    return Prepared::NotPrepared {
                        reason,
                        results: Vec::new(),
                        failed: None,
                    };
                }
                Err(reason) => return Prepared::Unknown { reason },
            };
            return match self.prepare_running(running) {
                Ok(()) => Prepared::Prepared {
                    results: Vec::new(),
                },
                Err(stop) => Unfinished::before(stop).into(),
            };
        };
        let leaves = work.allow_read_only && Self::may_leave(work);
        let (running, results) = match self.run_all(branch, work).await {
            Ok(done) => done,
            Err(Unfinished {
                stop:
                    Stop::Refused {
                        duplicate: true,
                        reason,
                    },
                ..
            }) => {
                let prepared = self.server.change(|state| state.is_prepared(branch));
                return if prepared {
                    Prepared::Prepared {
                        results: Vec::new(),
                    }
                } else {
                    Prepared::Unknown { reason }
                };
            }
            Err(failed) => return failed.into(),
        };
        if leaves {
            return Prepared::ReadOnly { results };
        }
        match self.prepare_running(running) {
            Ok(()) => Prepared::Prepared { results },
            Err(stop) => Unfinished {
                stop,
                failed: None,
                results,
            }
            .into(),
        }
    }

    async fn commit_one_phase(&self, branch: BranchId, work: Option<&Work>) -> OnePhase {
        let (running, results) = match work {
            None => match self.resume(branch) {
                Ok((running, _)) => (running, Vec::new()),
                Err(reason) if self.failures().remove(&branch).is_some() => {
                    return OnePhase::NotCommitted {
                        reason,
                        results: Vec::new(),
                        failed: None,
                    };
                }
                Err(reason) => return OnePhase::Unknown { reason },
            },
            Some(work) => match self.run_all(branch, work).await {
                Ok(done) => done,
                Err(Unfinished {
                    stop: Stop::Refused { reason, .. },
                    failed,
                    results,
                }) => {
                    let before = self.server.change(|state| state.ledger(branch));
                    return if before == LedgerEntry::Committed {
                        OnePhase::Committed { results }
                    } else {
                        OnePhase::NotCommitted {
                            reason,
                            results,
                            failed,
                        }
                    };
                }
                Err(_) => {
                    return OnePhase::Unknown {
                        reason: server::broken(),
                    };
                }
            },
        };
        match self.commit_running(running) {
            Ok(()) => OnePhase::Committed { results },
            Err(Stop::Refused { reason, .. }) => OnePhase::NotCommitted {
                reason,
                results,
                failed: None,
            },
            Err(Stop::Broken) => OnePhase::Unknown {
                reason: server::broken(),
            },
        }
    }

    async fn commit(&self, branch: BranchId) -> Finished {
        if let Some(reason) = self.failures().get(&branch) {
            return Finished::NotDone(reason.clone());
        }
        self.verb(branch, true).await
    }

    async fn rollback(&self, branch: BranchId) -> Finished {
        if self.failures().remove(&branch).is_some() {
            return Finished::Done;
        }
        self.verb(branch, false).await
    }

    fn cancel(&self, branch: BranchId) {
        let process = self.process;
        self.server.change(|state| state.cancel(branch, process));
    }

    async fn ledger(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        self.server.up_change(|state| Ok(state.ledger(branch)))
    }

    async fn tombstone(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        self.server.up_change(|state| state.tombstone(branch))
    }

    async fn detach(&self, branch: BranchId) -> Result<(), Reason> {
        self.server.up_change(|state| {
            state.detach(branch);
            Ok(())
        })
    }

    async fn recover(&self) -> Result<Recovered, Reason> {
        self.server.up_change(|state| Ok(state.recover()))
    }

    async fn query(
        &self,
        statement: &Statement,
        _timeout: Duration,
    ) -> Result<v1::StatementResult, Reason> {
        self.judge.judge_read(&statement.sql)?;
        let shape = Shape::read(statement)?;
        self.server.up_change(|state| Ok(state.read(&shape)))
    }

    async fn migrate(&self, plan: &Plan) -> Result<u32, Reason> {
        // Tables come into being with their first row.
        Ok(plan
            .migrations
            .last()
            .map_or(0, |migration| migration.version))
    }

    async fn load(&self) -> Result<Durable, Reason> {
        self.server.up_change(|state| Ok(state.load()))
    }

    async fn append(&self, records: &[ParticipantRecord]) -> Result<(), Reason> {
        self.server.up_change(|state| {
            state.append(records);
            Ok(())
        })
    }

    async fn damage(&self, limit: u32) -> Result<Vec<v1::Damage>, Reason> {
        self.server.up_change(|state| Ok(state.damage(limit)))
    }

    async fn acknowledge(&self, id: u64) -> Result<bool, Reason> {
        self.server.up_change(|state| Ok(state.acknowledge(id)))
    }

    async fn prune(&self, below: Gtrid) -> Result<u64, Reason> {
        self.server.up_change(|state| Ok(state.prune(below)))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.server.health()
    }

    fn connections(&self) -> Connections {
        let process = self.process;
        let open = self.server.change(|state| state.connections(process));
        Connections {
            open: u32::try_from(open).unwrap_or(u32::MAX),
            max: self.options.max_connections,
        }
    }

    fn stop(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Which rules: a shorthand for tests and simulations.
pub const MYSQL: Rules = Rules { detaches: true };
/// MariaDB's rules.
pub const MARIADB: Rules = Rules { detaches: false };
