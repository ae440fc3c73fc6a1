//! The contract of a resource manager, kept by the server in memory.

use std::future::Future;
use std::time::Duration;

use concord_core::id::{BranchId, Gtrid};
use concord_core::reason::Reason;
use concord_core::record::ParticipantRecord;
use concord_proto::model::{Isolation, Statement, Work};
use concord_proto::v1;
use tokio::sync::watch;
use tokio::time::Instant;

use super::server::{self, Stop};
use super::shape::Shape;
use super::{Memory, Unfinished, violated};
use crate::migrate::Plan;
use crate::resource::{
    Connections, Durable, Finished, Health, LedgerEntry, OnePhase, Prepared, Recovered,
    ResourceManager,
};
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
                Err(reason) => return OnePhase::unknown(reason),
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
                Err(_) => return OnePhase::unknown(server::broken()),
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
                results,
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

    async fn lost(&self, branches: &[BranchId]) -> Result<Vec<BranchId>, Reason> {
        self.server.up_change(|state| {
            let prepared = state.recover().ours;
            let mut lost = branches.to_vec();
            lost.retain(|branch| {
                state.ledger(*branch) != LedgerEntry::Committed && !prepared.contains(branch)
            });
            Ok(lost)
        })
    }

    async fn tombstone(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        self.server.written(|state| state.tombstone(branch))
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
        self.server.written(|state| {
            state.append(records);
            Ok(())
        })
    }

    async fn damage(&self, limit: u32) -> Result<Vec<v1::Damage>, Reason> {
        self.server.up_change(|state| Ok(state.damage(limit)))
    }

    async fn acknowledge(&self, id: u64) -> Result<bool, Reason> {
        self.server.written(|state| Ok(state.acknowledge(id)))
    }

    async fn prune(&self, below: Gtrid, requests_kept: Duration) -> Result<u64, Reason> {
        self.server
            .written(|state| Ok(state.prune(below, requests_kept)))
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
