//! The second phase: committing and rolling back, and finding out what became of a branch.

use concord_core::id::{BranchId, Request};
use concord_core::reason::{Reason, code};
use concord_daemon::crash::{CrashPoint, reach};
use tokio::time::Instant as Deadline;

use super::answers::{self, Rows, entry, gtrid, number};
use super::branches::State;
use super::error::{self, Failure, VerbFailure, metadata_lock, verb_failure, verb_reason};
use super::pool::{Class, Conn, Text};
use super::{MySql, ledger};
use crate::resource::{Finished, LedgerEntry, Recovered, known_request};

const ALIVE: &str = "the branch is alive and holds its ledger row";
const FORGOTTEN: &str = "no connection has the branch and the server does not list it, but its \
                         ledger row is locked: it is being rolled back after a crash; if this \
                         stays, restart the server, which has lost track of it";

/// What ends a branch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Finish {
    Commit,
    Rollback,
}

impl Finish {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Commit => "XA COMMIT",
            Self::Rollback => "XA ROLLBACK",
        }
    }

    fn points(self) -> (CrashPoint, CrashPoint) {
        match self {
            Self::Commit => (
                CrashPoint::ServerCommitBeforeSend,
                CrashPoint::ServerCommitAnswered,
            ),
            Self::Rollback => (
                CrashPoint::ServerRollbackBeforeSend,
                CrashPoint::ServerRollbackAnswered,
            ),
        }
    }
}

impl MySql {
    /// Longest wait of one verb, from now.
    pub(super) fn finish_deadline(&self) -> Deadline {
        Deadline::now() + self.pool.options().finish_timeout
    }

    pub(super) async fn commit_prepared(&self, branch: BranchId) -> Finished {
        let deadline = self.finish_deadline();
        let Ok(held) = self.branches.take(branch, deadline).await else {
            return Finished::NotDone(Reason::new(
                code::WRONG_STATE,
                "the branch is being worked on",
            ));
        };
        let Some(mut held) = held else {
            return self.finish_elsewhere(Finish::Commit, branch).await;
        };
        match held.state() {
            State::Prepared(conn) => {
                let (finished, conn) = self
                    .finish_pinned(Finish::Commit, branch, conn, deadline)
                    .await;
                if let Some(conn) = conn {
                    held.keep(State::Prepared(conn));
                }
                finished
            }
            state @ State::Active { .. } => {
                held.keep(state);
                Finished::NotDone(Reason::new(code::WRONG_STATE, "the branch is not prepared"))
            }
            State::Failed {
                reason,
                rolled_back,
            } => Finished::NotDone(held.keep_failed(reason, rolled_back)),
            State::Empty => self.finish_elsewhere(Finish::Commit, branch).await,
        }
    }

    pub(super) async fn roll_back(&self, branch: BranchId) -> Finished {
        let deadline = self.finish_deadline();
        self.cancel_running(branch);
        let Ok(held) = self.branches.take(branch, deadline).await else {
            return Finished::NotDone(Reason::new(
                code::WRONG_STATE,
                "the branch is being worked on",
            ));
        };
        let Some(mut held) = held else {
            return self.finish_elsewhere(Finish::Rollback, branch).await;
        };
        match held.state() {
            State::Active { mut conn, .. } => {
                if self.roll_back_on(branch, &mut conn, false, deadline).await {
                    conn.release();
                    return Finished::Done;
                }
                conn.kill();
                self.finish_elsewhere(Finish::Rollback, branch).await
            }
            State::Prepared(conn) => {
                let (finished, conn) = self
                    .finish_pinned(Finish::Rollback, branch, conn, deadline)
                    .await;
                if let Some(conn) = conn {
                    held.keep(State::Prepared(conn));
                }
                finished
            }
            State::Failed {
                rolled_back: true, ..
            } => Finished::Done,
            State::Failed { .. } | State::Empty => {
                self.finish_elsewhere(Finish::Rollback, branch).await
            }
        }
    }

    /// Interrupts what runs in a branch.
    pub(super) fn cancel_running(&self, branch: BranchId) {
        if let Some(lease) = self.branches.running(branch) {
            self.pool.leases().kill(lease);
        }
    }

    /// On the connection that the branch is attached to. It comes back when the branch is as it
    /// was, so that the next attempt finds it.
    async fn finish_pinned(
        &self,
        verb: Finish,
        branch: BranchId,
        mut conn: Conn,
        deadline: Deadline,
    ) -> (Finished, Option<Conn>) {
        let Err(failure) = self.send_verb(verb, branch, &mut conn, deadline).await else {
            conn.release();
            return (Finished::Done, None);
        };
        match verb_failure(&failure) {
            VerbFailure::NoSuchBranch => (Finished::NoSuchBranch, None),
            VerbFailure::Unchanged => (Finished::NotDone(verb_reason(&failure)), Some(conn)),
            VerbFailure::Unclear => {
                conn.kill();
                // Perhaps the connection was dead before, and the verb never arrived. No branch
                // there now proves nothing: the verb may have arrived.
                let finished = match self.finish_elsewhere(verb, branch).await {
                    Finished::Done => Finished::Done,
                    _ => Finished::Unknown(failure.reason().clone()),
                };
                (finished, None)
            }
        }
    }

    async fn finish_elsewhere(&self, verb: Finish, branch: BranchId) -> Finished {
        let first = self.finish_once(verb, branch, self.finish_deadline()).await;
        let Finished::Unknown(reason) = first else {
            return first;
        };
        // Most often a connection that had died idle, and the verb never arrived. Again: no
        // branch there now proves nothing, because the first verb may have arrived.
        match self.finish_once(verb, branch, self.finish_deadline()).await {
            Finished::Done => Finished::Done,
            _ => Finished::Unknown(reason),
        }
    }

    pub(super) async fn finish_once(
        &self,
        verb: Finish,
        branch: BranchId,
        deadline: Deadline,
    ) -> Finished {
        match self.is_detached(branch, deadline).await {
            Ok(true) => {}
            Ok(false) => return Finished::NoSuchBranch,
            Err(reason) => return Finished::NotDone(reason),
        }
        let mut conn = match self.pool.acquire_by(Class::Finish, deadline).await {
            Ok(conn) => conn,
            Err(reason) => return Finished::NotDone(reason),
        };
        match self.send_verb(verb, branch, &mut conn, deadline).await {
            Ok(()) => {
                conn.release();
                self.believe(verb, branch).await
            }
            Err(failure) => match verb_failure(&failure) {
                VerbFailure::NoSuchBranch => Finished::NoSuchBranch,
                VerbFailure::Unchanged => Finished::NotDone(verb_reason(&failure)),
                VerbFailure::Unclear => Finished::Unknown(failure.reason().clone()),
            },
        }
    }

    /// The verb itself.
    async fn send_verb(
        &self,
        verb: Finish,
        branch: BranchId,
        conn: &mut Conn,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let (before, after) = verb.points();
        let text = format!("{} {}", verb.text(), self.xids.text(branch));
        reach(before);
        let sent = conn.execute(text, deadline, verb.text()).await;
        reach(after);
        sent.map(|_| ())
    }

    /// A housekeeping text on any connection.
    pub(super) async fn rows(
        &self,
        text: impl Into<Text> + Send,
        what: &str,
    ) -> Result<Rows, Failure> {
        let deadline = self.finish_deadline();
        let mut conn = self
            .pool
            .acquire_by(Class::Finish, deadline)
            .await
            .map_err(Failure::Broken)?;
        let rows = conn.rows(text, deadline, what).await?;
        conn.release();
        Ok(rows)
    }

    /// The committed ledger row.
    pub(super) async fn read_ledger_row(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        let rows = self.rows(ledger::select_row(branch), "the ledger").await;
        self.proven(&rows.map_err(|failure| failure.reason().clone())?)
            .await
    }

    /// What a look at a branch's row proves, once that is durable.
    async fn proven(&self, rows: &Rows) -> Result<LedgerEntry, Reason> {
        let found = entry(rows)?;
        if found != LedgerEntry::Absent {
            self.flush().await?;
        }
        Ok(found)
    }

    /// Makes all that is visible durable. `InnoDB` shows a commit before its log is flushed, so
    /// that a row proves nothing yet to whom the commit itself has not answered; the log is flushed
    /// in order. To become read-only a server waits for commits that are under way.
    async fn flush(&self) -> Result<(), Reason> {
        match self.rows(ledger::FLUSH, "a flush of the log").await {
            Err(failure) if &*failure.reason().code != code::READ_ONLY_SERVER => {
                Err(failure.reason().clone())
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The ledger row; `Absent` only when nobody is committing or rolling the branch back right
    /// now, so that "absent, and not listed as prepared" means that it is gone.
    pub(super) async fn read_ledger(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        let found = self.read_ledger_row(branch).await?;
        if found != LedgerEntry::Absent {
            return Ok(found);
        }
        match self.look_locked(branch).await {
            Ok(rows) => self.proven(&rows).await,
            Err(failure) if is_lock(&failure) => {
                if self.list_prepared().await?.ours.contains(&branch) {
                    return Ok(LedgerEntry::Absent);
                }
                let text = if self.is_forgotten(branch).await.unwrap_or(false) {
                    FORGOTTEN
                } else {
                    "the branch is being worked on by another connection"
                };
                Err(self.why_locked(branch, &failure, text).await)
            }
            Err(failure) => Err(failure.reason().clone()),
        }
    }

    /// A look that nobody's uncommitted row can hide from, and that waits for nobody.
    async fn look_locked(&self, branch: BranchId) -> Result<Rows, Failure> {
        self.rows(ledger::select_row_locked(branch), "the ledger")
            .await
    }

    /// Looks first: to wait for a row costs a second at least, in which the branch may have become
    /// free to be rolled back, and one of the few connections for it.
    pub(super) async fn write_tombstone(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        match self.look_locked(branch).await {
            Ok(rows) => match self.proven(&rows).await? {
                LedgerEntry::Absent => self.insert_tombstone(branch).await,
                found => Ok(found),
            },
            Err(failure) if is_lock(&failure) => {
                Err(self.why_locked(branch, &failure, ALIVE).await)
            }
            Err(failure) => Err(failure.reason().clone()),
        }
    }

    async fn insert_tombstone(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        let deadline = self.finish_deadline();
        let mut conn = self.pool.acquire_by(Class::Finish, deadline).await?;
        let wait = self
            .pool
            .options()
            .lock_wait_timeout
            .as_secs()
            .clamp(1, 3_600);
        let text = ledger::insert_tombstone(branch, conn.id(), wait);
        match conn.execute(text, deadline, "the tombstone").await {
            Ok(_) => {
                conn.release();
                Ok(LedgerEntry::Tombstone)
            }
            Err(failure) if failure.number() == Some(error::DUPLICATE_KEY) => {
                drop(conn);
                match self.read_ledger_row(branch).await? {
                    // It went between the two looks: only a rollback does that.
                    LedgerEntry::Absent => Err(attached("the branch is just being rolled back")),
                    found => Ok(found),
                }
            }
            Err(failure) if is_lock(&failure) => {
                drop(conn);
                Err(self.why_locked(branch, &failure, ALIVE).await)
            }
            Err(failure) => Err(failure.reason().clone()),
        }
    }

    /// Who held what a branch's ledger row was wanted for: the branch, if the row is there or can
    /// be had by now, and else a backup or DDL, whose lock has the same error. That is told apart
    /// because a branch that is alive has its connection ended.
    async fn why_locked(&self, branch: BranchId, failure: &Failure, alive: &str) -> Reason {
        // MySQL has an error of its own for a row that somebody works on.
        if failure.number() == Some(error::LOCK_NOWAIT) {
            return attached(alive);
        }
        // Uncommitted rows are read without a lock of any kind but DDL's.
        let rows = self.rows(ledger::select_connection(branch), "the ledger");
        match rows.await {
            Ok(rows) if !rows.is_empty() => attached(alive),
            // Perhaps the row was there and has gone since; a lock of the server still is.
            Ok(_) => match self.look_locked(branch).await {
                Ok(_) => attached("the branch has just ended"),
                Err(again) if is_lock(&again) => metadata_lock(failure),
                Err(unread) => unread.reason().clone(),
            },
            Err(unread) if is_lock(&unread) => metadata_lock(&unread),
            Err(unread) => unread.reason().clone(),
        }
    }

    /// Why a request is refused whose id has taken effect; None when it has not.
    pub(super) async fn former_request(&self, request: &Request) -> Result<Option<Reason>, Reason> {
        let rows = self
            .rows(ledger::select_request(&request.id), "the ledger")
            .await
            .map_err(|failure| failure.reason().clone())?;
        let former = rows.first().and_then(|row| {
            let former = gtrid(row.first()?.as_deref()?)?;
            let fingerprint = row.get(1).and_then(number);
            Some(known_request(request, former, fingerprint))
        });
        if former.is_some() {
            self.flush().await?;
        }
        Ok(former)
    }

    pub(super) async fn list_prepared(&self) -> Result<Recovered, Reason> {
        let facts = self.facts().await?;
        let rows = self
            .rows(facts.flavor.recover(), "XA RECOVER")
            .await
            .map_err(|failure| failure.reason().clone())?;
        let recovered = answers::recovered(&self.xids, &rows);
        if !facts.detaches {
            self.detached.listed(&recovered.ours);
        }
        Ok(recovered)
    }

    pub(super) async fn detach_branch(&self, branch: BranchId) -> Result<(), Reason> {
        let deadline = self.finish_deadline();
        let held = self.branches.take(branch, deadline).await;
        let Ok(held) = held else {
            return Err(attached("the branch is being worked on here"));
        };
        if let Some(mut held) = held {
            match held.state() {
                State::Prepared(conn) => {
                    conn.kill();
                    return Ok(());
                }
                state @ (State::Active { .. } | State::Failed { .. }) => held.keep(state),
                State::Empty => {}
            }
        }
        let Some(id) = self.connection_of(branch).await? else {
            return Ok(());
        };
        self.pool.end(Class::Finish, id, deadline).await
    }
}

fn is_lock(failure: &Failure) -> bool {
    matches!(
        failure.number(),
        Some(error::LOCK_WAIT_TIMEOUT | error::LOCK_NOWAIT)
    )
}

fn attached(message: &str) -> Reason {
    Reason::new(code::BRANCH_ATTACHED, message)
}
