//! Branches whose statements come one by one, each on a connection of its own.

use std::time::Duration;

use concord_core::id::BranchId;
use concord_core::planted::{self, Bug};
use concord_core::reason::{Reason, code};
use concord_proto::model::{Isolation, Statement};
use concord_proto::v1;
use tokio::time::Instant as Deadline;

use super::MySql;
use super::branches::{Held, State};
use super::pool::{Class, Conn};
use super::script::{End, Script, Step, judge_all};
use super::sql::check_server;
use super::unfinished::Unfinished;
use crate::resource::{OnePhase, Prepared};

fn not_open() -> Reason {
    Reason::new(
        code::BRANCH_LOST,
        "the branch is not open here: begin it first",
    )
}

impl MySql {
    pub(super) async fn begin_branch(
        &self,
        branch: BranchId,
        isolation: Option<Isolation>,
        timeout: Duration,
    ) -> Result<(), Reason> {
        let deadline = Deadline::now() + timeout;
        self.voting_facts().await?;
        let held = self.branches.open(branch).ok_or_else(|| {
            Reason::new(
                code::WRONG_STATE,
                "the branch is being worked on here already",
            )
        })?;
        let mut conn = self.pool.acquire_by(Class::Work, deadline).await?;
        held.runs_on(&conn);
        let mut script = Script::default();
        script.no_last_insert_id();
        script.isolation(isolation);
        script.verb(Step::Start, &format!("XA START {}", self.xids.text(branch)));
        script.ledger(branch, conn.id(), None);
        let outcome = script.run(&mut conn, deadline).await;
        match outcome.end {
            End::Fine => {
                held.keep(State::Active { conn, deadline });
                Ok(())
            }
            _ => Err(self.undo(branch, None, conn, outcome).await.reason),
        }
    }

    pub(super) async fn execute_statement(
        &self,
        branch: BranchId,
        statement: &Statement,
    ) -> Result<v1::StatementResult, Reason> {
        let (held, mut conn, deadline) = self.take_active(branch).await?;
        let judged = match judge_all(&self.judge, std::slice::from_ref(statement)) {
            Ok(judged) => judged,
            Err((_, reason)) => return Err(self.fail(branch, held, conn, reason).await),
        };
        let fit = match self.facts().await {
            Ok(facts) => match check_server(&judged, &facts) {
                Ok(()) => self.check_tables(&judged, deadline).await,
                refused => refused,
            }
            .map_err(|(_, reason)| reason),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = fit {
            return Err(self.fail(branch, held, conn, reason).await);
        }
        let mut script = Script::default();
        for judged in &judged {
            if let Err(reason) = script.statement(judged, statement) {
                return Err(self.fail(branch, held, conn, reason).await);
            }
        }
        held.runs_on(&conn);
        let mut outcome = script.run(&mut conn, deadline).await;
        match (&outcome.end, outcome.results.pop()) {
            (End::Fine, Some(result)) => {
                held.keep(State::Active { conn, deadline });
                Ok(result)
            }
            (End::Failed { failure, .. }, _) if planted::is(Bug::FailedStatementForgiven) => {
                let reason = failure.reason().clone();
                held.keep(State::Active { conn, deadline });
                Err(reason)
            }
            _ => {
                let unfinished = self.undo(branch, None, conn, outcome).await;
                Err(held.keep_failed(unfinished.reason, unfinished.certain))
            }
        }
    }

    /// Rolls the branch back at once, so that its locks go, and remembers why.
    async fn fail(&self, branch: BranchId, held: Held, mut conn: Conn, reason: Reason) -> Reason {
        let deadline = Deadline::now() + self.pool.options().finish_timeout;
        let rolled_back = self.roll_back_on(branch, &mut conn, false, deadline).await;
        if rolled_back {
            conn.release();
        } else {
            conn.kill();
        }
        held.keep_failed(reason, rolled_back)
    }

    async fn take_active(&self, branch: BranchId) -> Result<(Held, Conn, Deadline), Reason> {
        let patience = Deadline::now() + self.pool.options().acquire_timeout;
        let busy = |()| Reason::new(code::WRONG_STATE, "the branch runs another statement");
        let mut held = self
            .branches
            .take(branch, patience)
            .await
            .map_err(busy)?
            .ok_or_else(not_open)?;
        match held.state() {
            State::Active { conn, deadline } => Ok((held, conn, deadline)),
            State::Failed {
                reason,
                rolled_back,
            } => Err(held.keep_failed(reason, rolled_back)),
            State::Prepared(conn) => {
                held.keep(State::Prepared(conn));
                Err(Reason::new(code::WRONG_STATE, "the branch is prepared"))
            }
            State::Empty => Err(not_open()),
        }
    }

    /// Takes an open branch to its end; a failed one tells how it ended.
    async fn take_for_end(&self, branch: BranchId) -> Result<(Held, Conn, Deadline), Unfinished> {
        let patience = Deadline::now() + self.pool.options().acquire_timeout;
        let uncertain = |reason| Unfinished {
            certain: false,
            ..Unfinished::never_began(reason, None)
        };
        let taken = self.branches.take(branch, patience).await;
        let busy = Reason::new(code::WRONG_STATE, "the branch runs another statement");
        let Some(mut held) = taken.map_err(|()| uncertain(busy))? else {
            return Err(uncertain(not_open()));
        };
        match held.state() {
            State::Active { conn, deadline } => Ok((held, conn, deadline)),
            State::Failed {
                reason,
                rolled_back,
            } => Err(Unfinished {
                certain: rolled_back,
                ..Unfinished::never_began(reason, None)
            }),
            State::Prepared(conn) => {
                held.keep(State::Prepared(conn));
                Err(uncertain(Reason::new(
                    code::WRONG_STATE,
                    "the branch is prepared",
                )))
            }
            State::Empty => Err(uncertain(not_open())),
        }
    }

    pub(super) async fn prepare_open(&self, branch: BranchId) -> Prepared {
        let (held, mut conn, deadline) = match self.take_for_end(branch).await {
            Ok(taken) => taken,
            Err(unfinished) => return unfinished.into(),
        };
        let facts = match self.voting_facts().await {
            Ok(facts) => facts,
            Err(reason) => {
                let reason = self.fail(branch, held, conn, reason).await;
                return self.failed(branch, reason).await;
            }
        };
        held.runs_on(&conn);
        let xid = self.xids.text(branch);
        let mut script = Script::default();
        script.guard(&facts);
        script.verb(Step::End, &format!("XA END {xid}"));
        script.verb(Step::Prepare, &format!("XA PREPARE {xid}"));
        let outcome = script.run(&mut conn, deadline).await;
        match outcome.end {
            End::Fine => {
                Self::keep_prepared(&facts, held, conn);
                Prepared::Prepared {
                    results: Vec::new(),
                }
            }
            _ => self.undo(branch, None, conn, outcome).await.into(),
        }
    }

    /// The end of a branch that [`Self::fail`] has just rolled back.
    async fn failed(&self, branch: BranchId, reason: Reason) -> Prepared {
        match self.take_for_end(branch).await {
            Err(unfinished) => unfinished.into(),
            Ok(_) => Prepared::Unknown { reason },
        }
    }

    pub(super) async fn one_phase_open(&self, branch: BranchId) -> OnePhase {
        let (held, mut conn, deadline) = match self.take_for_end(branch).await {
            Ok(taken) => taken,
            Err(unfinished) => return unfinished.into(),
        };
        let facts = match self.voting_facts().await {
            Ok(facts) => facts,
            Err(reason) => {
                let reason = self.fail(branch, held, conn, reason).await;
                return match self.failed(branch, reason).await {
                    Prepared::NotPrepared {
                        reason,
                        results,
                        failed,
                    } => OnePhase::NotCommitted {
                        reason,
                        results,
                        failed,
                    },
                    Prepared::Unknown { reason } => OnePhase::unknown(reason),
                    Prepared::Prepared { .. } | Prepared::ReadOnly { .. } => {
                        OnePhase::unknown(not_open())
                    }
                };
            }
        };
        held.runs_on(&conn);
        let mut script = Script::default();
        script.guard(&facts);
        let outcome = script.run(&mut conn, deadline).await;
        match outcome.end {
            End::Fine => {
                self.finish_one_phase(branch, conn, Vec::new(), deadline)
                    .await
            }
            _ => self.undo(branch, None, conn, outcome).await.into(),
        }
    }
}
