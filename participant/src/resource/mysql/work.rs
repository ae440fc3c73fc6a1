//! The first phase: running a branch's work and preparing it, or committing it in one phase.

use std::sync::Arc;
use std::time::Duration;

use concord_core::id::{BranchId, Request};
use concord_core::planted::{self, Bug};
use concord_core::reason::{Reason, code};
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::model::{Isolation, Statement, Work};
use concord_proto::v1;
use tokio::time::Instant as Deadline;

use super::branches::{Held, State};
use super::error::{self, Failure};
use super::finish::Finish;
use super::pool::{Class, Conn};
use super::preflight::{Facts, Flavor};
use super::script::{End, Outcome, Script, Step, judge_all};
use super::sql::{Judged, StatementKind, check_server};
use super::unfinished::Unfinished;
use super::{MySql, ledger};
use crate::resource::{Finished, LedgerEntry, OnePhase, Prepared};

/// Time to undo a branch after something went wrong in it. Not part of the work's own time: the
/// undoing begins when that has run out.
const UNDO_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks whether a connection that was killed has let go of its branch.
const UNDO_PAUSE: Duration = Duration::from_millis(20);

impl MySql {
    /// Prepares a branch with all its work, in one round trip.
    pub(super) async fn prepare_work(&self, branch: BranchId, work: &Work) -> Prepared {
        let deadline = Deadline::now() + work.timeout;
        let (facts, judged) = match self.admit(work, deadline).await {
            Ok(admitted) => admitted,
            Err(refused) => return refused.into(),
        };
        if work.allow_read_only && may_leave(&facts, work, &judged) {
            return match self
                .read_only(branch, work, &judged, &facts, deadline)
                .await
            {
                Ok(results) => Prepared::ReadOnly { results },
                Err(unfinished) => unfinished.into(),
            };
        }
        let strict = keeps_its_locks(&facts, work, &judged);
        let work = strict.as_ref().unwrap_or(work);
        let begun = self.begin_work(branch, work, &judged, &facts, deadline);
        let (held, mut conn, mut script) = match begun.await {
            Ok(begun) => begun,
            Err(refused) => return refused.into(),
        };
        let xid = self.xids.text(branch);
        script.verb(Step::End, &format!("XA END {xid}"));
        script.verb(Step::Prepare, &format!("XA PREPARE {xid}"));
        let outcome = script.run(&mut conn, deadline).await;
        match outcome.end {
            End::Fine => {
                Self::keep_prepared(&facts, held, conn);
                Prepared::Prepared {
                    results: outcome.results,
                }
            }
            _ if already_there(&outcome) => {
                drop(conn);
                self.prepared_before(branch).await
            }
            _ => self
                .undo(branch, work.request.as_ref(), conn, outcome)
                .await
                .into(),
        }
    }

    /// Commits a branch with all its work. Two round trips: what the first one found decides
    /// whether the second one commits.
    pub(super) async fn one_phase_work(&self, branch: BranchId, work: &Work) -> OnePhase {
        let deadline = Deadline::now() + work.timeout;
        let (facts, judged) = match self.admit(work, deadline).await {
            Ok(admitted) => admitted,
            Err(refused) => return refused.into(),
        };
        if work.request.is_none() && reads_only(&judged) {
            return match self
                .read_only(branch, work, &judged, &facts, deadline)
                .await
            {
                Ok(results) => OnePhase::Committed { results },
                Err(unfinished) => unfinished.into(),
            };
        }
        let begun = self.begin_work(branch, work, &judged, &facts, deadline);
        let (_held, mut conn, script) = match begun.await {
            Ok(begun) => begun,
            Err(refused) => return refused.into(),
        };
        let outcome = script.run(&mut conn, deadline).await;
        let request = work.request.as_ref();
        match outcome.end {
            End::Fine => {
                self.finish_one_phase(branch, conn, outcome.results, deadline)
                    .await
            }
            _ => self.undo_one_phase(branch, request, conn, outcome).await,
        }
    }

    /// `XA END; XA COMMIT … ONE PHASE` of a branch whose work is done.
    pub(super) async fn finish_one_phase(
        &self,
        branch: BranchId,
        mut conn: Conn,
        results: Vec<v1::StatementResult>,
        deadline: Deadline,
    ) -> OnePhase {
        let xid = self.xids.text(branch);
        let mut script = Script::default();
        script.verb(Step::End, &format!("XA END {xid}"));
        script.verb(Step::CommitOnePhase, &format!("XA COMMIT {xid} ONE PHASE"));
        let outcome = script.run(&mut conn, deadline).await;
        if let End::Fine = outcome.end {
            self.witnesses.note(branch);
            conn.release();
            return OnePhase::Committed { results };
        }
        match self.undo_one_phase(branch, None, conn, outcome).await {
            OnePhase::Committed { .. } => OnePhase::Committed { results },
            OnePhase::NotCommitted { reason, failed, .. } => OnePhase::NotCommitted {
                reason,
                results,
                failed,
            },
            OnePhase::Unknown { reason, .. } => OnePhase::Unknown { reason, results },
        }
    }

    async fn undo_one_phase(
        &self,
        branch: BranchId,
        request: Option<&Request>,
        conn: Conn,
        outcome: Outcome,
    ) -> OnePhase {
        let duplicate = matches!(
            &outcome.end,
            End::Failed {
                step: Some(Step::Ledger),
                ..
            }
        );
        let unfinished = self.undo(branch, request, conn, outcome).await;
        if unfinished.certain && !duplicate {
            return unfinished.into();
        }
        // Its ledger row tells, and a tombstone settles it.
        match self.write_tombstone(branch).await {
            Ok(LedgerEntry::Committed) => OnePhase::Committed {
                results: unfinished.results,
            },
            Ok(LedgerEntry::Tombstone) => Unfinished {
                certain: true,
                ..unfinished
            }
            .into(),
            Ok(LedgerEntry::Absent) | Err(_) => Unfinished {
                certain: false,
                ..unfinished
            }
            .into(),
        }
    }

    /// What must be true before anything is sent. A request that has taken effect is told so
    /// whatever stands against it now: a refusal would be taken for its end.
    async fn admit(
        &self,
        work: &Work,
        deadline: Deadline,
    ) -> Result<(Arc<Facts>, Vec<Arc<Judged>>), Unfinished> {
        match (self.fit(work, deadline).await, &work.request) {
            (Err(refused), Some(request)) if refused.reason.kind().is_final() => {
                Err(match self.former_request(request).await {
                    Ok(None) => refused,
                    Ok(Some(reason)) | Err(reason) => Unfinished::never_began(reason, None),
                })
            }
            (fit, _) => fit,
        }
    }

    async fn fit(
        &self,
        work: &Work,
        deadline: Deadline,
    ) -> Result<(Arc<Facts>, Vec<Arc<Judged>>), Unfinished> {
        let refused = |(index, reason)| Unfinished::never_began(reason, Some(index));
        let judged = judge_all(&self.judge, &work.statements).map_err(refused)?;
        let facts = self
            .voting_facts()
            .await
            .map_err(|reason| Unfinished::never_began(reason, None))?;
        check_server(&judged, &facts).map_err(refused)?;
        self.check_tables(&judged, deadline)
            .await
            .map_err(refused)?;
        Ok((facts, judged))
    }

    /// The text of a branch with all its work, up to the guard, and the connection to run it on.
    async fn begin_work(
        &self,
        branch: BranchId,
        work: &Work,
        judged: &[Arc<Judged>],
        facts: &Facts,
        deadline: Deadline,
    ) -> Result<(Held, Conn, Script), Unfinished> {
        let (held, conn) = self.open(branch, deadline).await?;
        let xid = self.xids.text(branch);
        match begin_script(branch, work, judged, &xid, &conn) {
            Ok(mut script) => {
                script.guard(facts);
                Ok((held, conn, script))
            }
            Err((index, reason)) => {
                conn.release();
                Err(Unfinished::never_began(reason, Some(index)))
            }
        }
    }

    /// A connection for a branch that is not known here yet.
    async fn open(&self, branch: BranchId, deadline: Deadline) -> Result<(Held, Conn), Unfinished> {
        let held = self.branches.open(branch).ok_or_else(|| Unfinished {
            certain: false,
            ..Unfinished::never_began(
                Reason::new(
                    code::WRONG_STATE,
                    "the branch is being worked on here already",
                ),
                None,
            )
        })?;
        let conn = self
            .pool
            .acquire_by(Class::Work, deadline)
            .await
            .map_err(|reason| Unfinished::never_began(reason, None))?;
        held.runs_on(&conn);
        Ok((held, conn))
    }

    /// A work of SELECTs, in a transaction of its own that leaves nothing behind.
    async fn read_only(
        &self,
        branch: BranchId,
        work: &Work,
        judged: &[Arc<Judged>],
        facts: &Facts,
        deadline: Deadline,
    ) -> Result<Vec<v1::StatementResult>, Unfinished> {
        let (_held, mut conn) = self.open(branch, deadline).await?;
        let mut script = begin_text(work, judged);
        script.verb(Step::Start, "START TRANSACTION READ ONLY");
        for (index, (judged, statement)) in judged.iter().zip(&work.statements).enumerate() {
            if let Err(reason) = script.statement(judged, statement) {
                conn.release();
                return Err(Unfinished::never_began(reason, Some(index)));
            }
        }
        script.guard(facts);
        script.verb(Step::Finish, "COMMIT");
        let Outcome { results, end, .. } = script.run(&mut conn, deadline).await;
        let (reason, failed) = match end {
            End::Fine => {
                conn.release();
                return Ok(results);
            }
            End::Objection { reason, failed } => {
                conn.release();
                (reason, failed)
            }
            End::Failed {
                step: Some(Step::Guard),
                failure: Failure::Refused { .. },
            } => (self.why_guarded().await, None),
            End::Failed { step, failure } => (blame(&failure, step), client_statement(step)),
        };
        Err(Unfinished {
            certain: true,
            reason,
            results,
            failed,
        })
    }

    /// After XA PREPARE: the connection is free, or stays with the branch until its outcome.
    pub(super) fn keep_prepared(facts: &Facts, held: Held, conn: Conn) {
        if facts.detaches {
            // First the one, then the other: a cancel must not hit who gets the connection next.
            drop(held);
            conn.release();
        } else {
            held.keep(State::Prepared(conn));
        }
    }

    /// The xid exists: a repeated Prepare of a branch that is prepared already, whose vote is the
    /// same as the first time; or one that still runs in another connection.
    async fn prepared_before(&self, branch: BranchId) -> Prepared {
        match self.list_prepared().await {
            Ok(recovered) if recovered.ours.contains(&branch) => Prepared::Prepared {
                results: Vec::new(),
            },
            Ok(_) => Prepared::Unknown {
                reason: Reason::new(
                    code::BRANCH_ATTACHED,
                    "the branch runs in another connection",
                ),
            },
            Err(reason) => Prepared::Unknown { reason },
        }
    }

    /// Rolls back a branch whose text did not end well, and makes sure of it.
    pub(super) async fn undo(
        &self,
        branch: BranchId,
        request: Option<&Request>,
        mut conn: Conn,
        outcome: Outcome,
    ) -> Unfinished {
        let deadline = Deadline::now() + UNDO_TIMEOUT;
        let (mut reason, failed, step, broken) = match outcome.end {
            End::Fine => (
                Reason::new(code::ROLLED_BACK, "rolled back"),
                None,
                None,
                false,
            ),
            End::Objection { reason, failed } => (reason, failed, None, false),
            End::Failed { step, failure } => {
                let broken = matches!(failure, Failure::Broken(_));
                (
                    blame(&failure, step),
                    client_statement(step),
                    step.map(|s| (s, failure)),
                    broken,
                )
            }
        };
        let certain = if broken {
            conn.kill();
            self.make_sure(branch, deadline).await
        } else if step.as_ref().is_some_and(|(_, failure)| is_known(failure)) {
            // The xid belongs to a branch that lives elsewhere.
            drop(conn);
            false
        } else if let Some((Step::Session | Step::Isolation | Step::Start, _)) = &step {
            // Nothing was begun.
            drop(conn);
            true
        } else if self
            .roll_back_on(branch, &mut conn, outcome.ended, deadline)
            .await
        {
            conn.release();
            true
        } else {
            conn.kill();
            self.make_sure(branch, deadline).await
        };
        match &step {
            Some((Step::Ledger, failure)) if failure.number() == Some(error::DUPLICATE_KEY) => {
                reason = self.why_duplicate(branch, request, failure).await;
            }
            // The same, when somebody else's answers came before it.
            Some((Step::Statement(_), failure)) if names_request(failure) => {
                if let Some(request) = request
                    && let Ok(Some(former)) | Err(former) = self.former_request(request).await
                {
                    reason = former;
                }
            }
            Some((Step::Guard, Failure::Refused { .. })) => reason = self.why_guarded().await,
            _ => {}
        }
        Unfinished {
            certain,
            reason,
            results: outcome.results,
            failed,
        }
    }

    /// `XA END; XA ROLLBACK` on the branch's own connection: its locks go at once.
    pub(super) async fn roll_back_on(
        &self,
        branch: BranchId,
        conn: &mut Conn,
        ended: bool,
        deadline: Deadline,
    ) -> bool {
        let xid = self.xids.text(branch);
        if planted::is(Bug::ConnectionReusedUncleaned) {
            return true;
        }
        reach(CrashPoint::ServerUndoBeforeSend);
        if !ended {
            // Refused for a deadlock's victim (1614 on MySQL, 1399 on MariaDB), which is fine.
            let ended = conn
                .execute(format!("XA END {xid}"), deadline, "XA END")
                .await;
            if matches!(ended, Err(Failure::Broken(_))) {
                return false;
            }
        }
        reach(CrashPoint::ServerUndoEnded);
        let rolled_back = conn
            .execute(format!("XA ROLLBACK {xid}"), deadline, "XA ROLLBACK")
            .await;
        reach(CrashPoint::ServerUndoAnswered);
        match rolled_back {
            Ok(_) => true,
            Err(failure) => matches!(
                failure.number(),
                Some(error::XA_RBROLLBACK | error::XA_RBDEADLOCK | error::XA_RBTIMEOUT)
            ),
        }
    }

    /// Makes sure, from another connection, that a branch is rolled back and stays so.
    async fn make_sure(&self, branch: BranchId, deadline: Deadline) -> bool {
        while Deadline::now() < deadline {
            match self.finish_once(Finish::Rollback, branch, deadline).await {
                // That it stays so is what the tombstone says.
                Finished::Done | Finished::NoSuchBranch => {}
                Finished::NotDone(_) | Finished::Unknown(_) => return false,
            }
            match self.write_tombstone(branch).await {
                Ok(LedgerEntry::Tombstone) => return true,
                // The killed connection holds the branch for another moment.
                Err(reason) if &*reason.code == code::BRANCH_ATTACHED => {
                    tokio::time::sleep(UNDO_PAUSE).await;
                }
                Ok(_) | Err(_) => return false,
            }
        }
        false
    }

    /// The guard failed: which setting is it?
    async fn why_guarded(&self) -> Reason {
        let changed = || {
            let text = "a setting that makes the server safe was changed for a moment; try again";
            Reason::new(code::UNSAFE_SERVER, text)
        };
        match self.check(true).await {
            Ok(facts) => facts.problems.first().cloned().unwrap_or_else(changed),
            Err(reason) => reason,
        }
    }

    /// The branch's row was refused by a unique key: which one, and what stands there?
    async fn why_duplicate(
        &self,
        branch: BranchId,
        request: Option<&Request>,
        failure: &Failure,
    ) -> Reason {
        match self.read_ledger_row(branch).await {
            Ok(LedgerEntry::Tombstone) => {
                return Reason::new(code::ALREADY_ABORTED, "an abort of the branch came first");
            }
            Ok(LedgerEntry::Committed) => {
                return Reason::new(code::WRONG_STATE, "the branch was committed before");
            }
            Ok(LedgerEntry::Absent) => {}
            Err(reason) => return reason,
        }
        let Some(request) = request.filter(|_| names_request(failure)) else {
            return failure.reason().clone();
        };
        match self.former_request(request).await {
            Ok(Some(reason)) | Err(reason) => reason,
            Ok(None) => Reason::new(
                code::DEADLOCK,
                "the request id was taken by a transaction that has just gone; try again",
            ),
        }
    }
}

/// Why a text failed. A refusal of one of our own verbs is nothing that the client asked for, and
/// must not be remembered as final.
fn blame(failure: &Failure, step: Option<Step>) -> Reason {
    let reason = failure.reason();
    if client_statement(step).is_some() || !reason.kind().is_final() {
        return reason.clone();
    }
    Reason::new(
        code::UNEXPECTED_ANSWER,
        format!("{step:?}: {}", reason.message),
    )
}

fn client_statement(step: Option<Step>) -> Option<usize> {
    match step {
        Some(Step::Statement(index) | Step::Seal(index)) => Some(index),
        _ => None,
    }
}

fn already_there(outcome: &Outcome) -> bool {
    matches!(&outcome.end, End::Failed { failure, .. } if is_known(failure))
}

/// Only XA START says so, whatever step it is taken for.
fn is_known(failure: &Failure) -> bool {
    failure.number() == Some(error::XAER_DUPID)
}

fn names_request(failure: &Failure) -> bool {
    failure.number() == Some(error::DUPLICATE_KEY)
        && failure.reason().message.contains(ledger::REQUEST_KEY)
}

fn begin_script(
    branch: BranchId,
    work: &Work,
    judged: &[Arc<Judged>],
    xid: &str,
    conn: &Conn,
) -> Result<Script, (usize, Reason)> {
    let mut script = begin_text(work, judged);
    script.verb(Step::Start, &format!("XA START {xid}"));
    script.ledger(branch, conn.id(), work.request.as_ref());
    push_statements(&mut script, judged, &work.statements)?;
    Ok(script)
}

/// What comes before the transaction itself.
fn begin_text(work: &Work, judged: &[Arc<Judged>]) -> Script {
    let mut script = Script::default();
    if judged.iter().any(|judged| judged.last_insert_id) {
        script.no_last_insert_id();
    }
    script.isolation(work.isolation);
    script
}

fn push_statements(
    script: &mut Script,
    judged: &[Arc<Judged>],
    statements: &[Statement],
) -> Result<(), (usize, Reason)> {
    for (index, (judged, statement)) in judged.iter().zip(statements).enumerate() {
        script
            .statement(judged, statement)
            .map_err(|reason| (index, reason))?;
    }
    Ok(())
}

fn reads_only(judged: &[Arc<Judged>]) -> bool {
    judged
        .iter()
        .all(|judged| judged.kind == StatementKind::Select { locking: false })
}

/// The same work under SERIALIZABLE, where only that keeps the locks of its reads until the end.
/// `MariaDB` lets go of shared locks at XA PREPARE (MDEV-26682), and newer ones also of those of
/// FOR UPDATE (MDEV-33454), unless the isolation is SERIALIZABLE: other branches of the
/// transaction may still be acquiring theirs. An interactive one has acquired all by then.
fn keeps_its_locks(facts: &Facts, work: &Work, judged: &[Arc<Judged>]) -> Option<Work> {
    let locking = StatementKind::Select { locking: true };
    let reads = judged.iter().any(|judged| judged.kind == locking);
    (facts.flavor == Flavor::MariaDb && reads).then(|| Work {
        isolation: Some(Isolation::Serializable),
        ..work.clone()
    })
}

/// Whether a work may vote READ_ONLY: it only reads, takes no locks on purpose, carries no request
/// id that must be kept, and its isolation is below SERIALIZABLE, where reads take locks that must
/// be held until the whole transaction ends.
fn may_leave(facts: &Facts, work: &Work, judged: &[Arc<Judged>]) -> bool {
    let serializable = match work.isolation.or(facts.isolation) {
        Some(Isolation::Serializable) => !planted::is(Bug::ReadOnlyLeavesSerializable),
        // None is READ UNCOMMITTED, as the server's own default.
        Some(Isolation::ReadCommitted | Isolation::RepeatableRead) | None => false,
    };
    !serializable && work.request.is_none() && reads_only(judged)
}
