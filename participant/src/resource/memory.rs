//! A server in memory with real XA rules, for simulation.
//!
//! [`Server`] is what survives: rows, prepared branches, the ledger. [`Memory`] is one
//! participant's view of it: dropping it closes its connections, as a crash of the participant
//! does. It understands a few statements on tables of a key and a number (see [`shape`]), locks
//! rows until the outcome, finds deadlocks, and keeps MySQL's or MariaDB's rule about who may
//! finish a prepared branch. Time is tokio's, so paused time works; there is no randomness.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use concord_core::id::{BranchId, Request};
use concord_core::reason::{Reason, code};
use concord_proto::model::{Isolation, Statement, Work};
use concord_proto::v1;
use tokio::time::{Instant, timeout_at};

use super::mysql::sql::Judge;
use super::{Finished, Prepared};

mod manager;
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

    /// The number under which the server knows this participant's process.
    pub fn process(&self) -> u64 {
        self.process
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
        loop {
            let mut change = pin!(self.server.changed());
            // What changes from here on counts.
            change.as_mut().enable();
            if let Some(done) = self.server.change(&mut attempt) {
                return Some(done);
            }
            timeout_at(limit, change).await.ok()?;
        }
    }

    /// A connection with an open branch and its ledger row.
    async fn start(
        &self,
        branch: BranchId,
        request: Option<&Request>,
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
        let running = self
            .start(branch, work.request.as_ref(), deadline)
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
        work.request.is_none()
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

/// Which rules: a shorthand for tests and simulations.
pub const MYSQL: Rules = Rules { detaches: true };
/// MariaDB's rules.
pub const MARIADB: Rules = Rules { detaches: false };
