//! Whether a branch can be ended on a connection that is not its own.
//!
//! When a connection ends whose prepared branch is attached to it, the server first lets everybody
//! have the branch and only then lets go of it inside `InnoDB` (`MariaDB`: `trans_xa_detach` in
//! sql/xa.cc runs in `THD::cleanup`, `trx_disconnect_prepared` in `ha_close_connection` behind it).
//! A verb that comes in between is answered OK and does nothing, because `InnoDB` finds no branch
//! that is free and nobody looks at what it says (`xacommit_handlerton` in sql/handler.cc); and the
//! server forgets the xid. The branch keeps its locks and is not listed any more until the server
//! is started again. Of XA COMMITs sent right behind a KILL to `MariaDB` 10.11.19 every fifth was
//! lost so, and all where the connection had a thousand user locks to give back; the same on MySQL
//! 9.7.4 with `xa_detach_on_prepare=OFF`.
//!
//! So where they stay, no verb is sent from elsewhere before `InnoDB` itself says that the
//! connection which prepared the branch has none; and an OK is believed when the ledger shows its
//! effect.
//!
//! Where branches leave their connections at XA PREPARE, XA PREPARE does the same two steps in the
//! same order (`detach_xa_transaction` in sql/xa/sql_xa_prepare.cc), but answers behind them: a
//! commit, which follows a vote, cannot come in between. A rollback of a branch whose XA PREPARE
//! has not answered could, though none of 1,500 did: its OK is believed as above.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use concord_core::id::BranchId;
use concord_core::reason::{Reason, code};
use tokio::time::{Instant as Deadline, sleep, timeout_at};

use super::answers::{Rows, number};
use super::error::Failure;
use super::finish::Finish;
use super::pool::{Class, OUR_USER, Text, lock};
use super::{MySql, ledger};
use crate::resource::Finished;

/// `InnoDB` shows a copy of its transactions until nobody has read it for 100 ms
/// (`CACHE_MIN_IDLE_TIME_NS` in trx/trx0i_s.cc).
const COPY_KEPT: Duration = Duration::from_millis(105);
/// Longest wait for a look that is no older copy: several copies are let pass.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Needs the same right as a look, `PROCESS`, and keeps no look waiting for a newer copy.
pub(super) const PROBE: &str = "SHOW ENGINE INNODB MUTEX";

/// What is known of connections that `InnoDB` has not let go of.
#[derive(Debug, Default)]
pub struct Detached {
    listed: Mutex<Option<Listed>>,
    look: tokio::sync::Mutex<Last>,
    looks: AtomicU64,
}

/// Branches that were prepared at some moment before.
#[derive(Debug)]
struct Listed {
    by: Instant,
    branches: HashSet<BranchId>,
}

/// The last look, and when the last one ended that failed.
#[derive(Debug, Default)]
struct Last {
    look: Option<Look>,
    failed: Option<(Instant, Reason)>,
}

/// Connections that had a transaction at some moment after.
#[derive(Debug)]
struct Look {
    from: Instant,
    connections: HashSet<u64>,
}

impl Detached {
    /// Takes note of all that is prepared, when that has just been listed.
    pub(super) fn listed(&self, branches: &[BranchId]) {
        *lock(&self.listed) = Some(Listed {
            by: Instant::now(),
            branches: branches.iter().copied().collect(),
        });
    }

    /// Since when a look tells of a branch: a connection that has let go of it never has it again.
    fn tells_from(&self, branch: BranchId) -> Instant {
        match &*lock(&self.listed) {
            Some(listed) if listed.branches.contains(&branch) => listed.by,
            _ => Instant::now(),
        }
    }
}

impl MySql {
    /// Whether a verb finds a branch on any connection, wherever it was prepared. Else the server
    /// has no such branch for others, and what it would answer in a moment is worth nothing.
    pub(super) async fn is_detached(
        &self,
        branch: BranchId,
        deadline: Deadline,
    ) -> Result<bool, Reason> {
        if self.branches_leave().await? {
            return Ok(true);
        }
        let mut connection = self.connection_of(branch).await?;
        if connection.is_none() {
            if !self.list_prepared().await?.ours.contains(&branch) {
                return Ok(false);
            }
            connection = self.connection_of(branch).await?;
        }
        match connection {
            Some(connection) => self.has_let_go(branch, connection, deadline).await,
            // It was prepared by hand, without a row.
            None => Ok(true),
        }
    }

    /// Whether branches are attached to nothing once they are prepared.
    async fn branches_leave(&self) -> Result<bool, Reason> {
        match self.known_facts() {
            Some(facts) => Ok(facts.detaches),
            None => Ok(self.facts().await?.detaches),
        }
    }

    /// The connection that a branch was worked on, by its ledger row.
    pub(super) async fn connection_of(&self, branch: BranchId) -> Result<Option<u64>, Reason> {
        let rows = self
            .rows(ledger::select_connection(branch), "the ledger")
            .await
            .map_err(|failure| failure.reason().clone())?;
        Ok(rows.first().and_then(|row| number(row.first()?)))
    }

    /// Whether `InnoDB` has no transaction of a connection that a branch was prepared on.
    async fn has_let_go(
        &self,
        branch: BranchId,
        connection: u64,
        deadline: Deadline,
    ) -> Result<bool, Reason> {
        // It serves another branch: the ids have started again with the server.
        if self.pool.has(connection) {
            return Ok(true);
        }
        let (asked, tells_from) = (Instant::now(), self.detached.tells_from(branch));
        let deadline = deadline.min(Deadline::now() + LOOK_TIMEOUT);
        let turn = timeout_at(deadline, self.detached.look.lock()).await;
        let mut last = turn.map_err(|_| late("another look was under way for all of the time"))?;
        if let Some(look) = &last.look {
            let gone = !look.connections.contains(&connection);
            if look.from >= asked || (gone && look.from >= tells_from) {
                return Ok(gone);
            }
        }
        // Whoever waited for it fails with it: they hold up what can be ended.
        if let Some((_, reason)) = last.failed.as_ref().filter(|(ended, _)| *ended >= asked) {
            return Err(reason.clone());
        }
        let look = match self.look_at_innodb(deadline).await {
            Ok(look) => last.look.insert(look),
            Err(reason) => {
                last.failed = Some((Instant::now(), reason.clone()));
                return Err(reason);
            }
        };
        Ok(!look.connections.contains(&connection))
    }

    /// Whether a row that is locked is that of a branch which the server has lost track of.
    pub(super) async fn is_forgotten(&self, branch: BranchId) -> Result<bool, Reason> {
        if self.branches_leave().await? {
            return Ok(false);
        }
        match self.connection_of(branch).await? {
            Some(connection) => {
                self.has_let_go(branch, connection, self.finish_deadline())
                    .await
            }
            None => Ok(false),
        }
    }

    /// Connections of our account that `InnoDB` has a transaction for, and those that have one and
    /// are not listed by the server any more. One look at a time: each needs a copy of its own.
    async fn look_at_innodb(&self, deadline: Deadline) -> Result<Look, Reason> {
        let refused = |failure: Failure| failure.reason().clone();
        loop {
            let from = Instant::now();
            let number = self.detached.looks.fetch_add(1, Ordering::Relaxed);
            let mut conn = self.pool.acquire_by(Class::Finish, deadline).await?;
            let text = transactions(conn.id(), number);
            let rows = conn.rows(text, deadline, "the transactions of InnoDB");
            let rows = rows.await.map_err(refused)?;
            conn.release();
            if let Some(connections) = with_itself(&rows) {
                return Ok(Look { from, connections });
            }
            if Deadline::now() + COPY_KEPT > deadline {
                return Err(late(
                    "InnoDB showed an older copy of its transactions, as it does while anybody \
                     reads information_schema.innodb_trx more often than every 100 ms",
                ));
            }
            sleep(COPY_KEPT).await;
        }
    }

    /// What an OK to a verb that was sent from elsewhere is worth.
    pub(super) async fn believe(&self, verb: Finish, branch: BranchId) -> Finished {
        let effect = match (verb, self.branches_leave().await) {
            (Finish::Commit, Ok(true)) => return Finished::Done,
            (_, Ok(_)) => self.has_effect(verb, branch).await,
            (_, Err(reason)) => Err(reason),
        };
        match effect {
            Ok(true) => Finished::Done,
            Ok(false) => {
                let text = format!(
                    "the server has answered OK to {}, and the branch's ledger row does not show \
                     it; if the branch stays in doubt, restart the server, which then finds it \
                     again",
                    verb.text()
                );
                tracing::error!(%branch, "{text}");
                Finished::Unknown(Reason::new(code::UNEXPECTED_ANSWER, text))
            }
            Err(reason) => Finished::Unknown(reason),
        }
    }

    async fn has_effect(&self, verb: Finish, branch: BranchId) -> Result<bool, Reason> {
        let text = match verb {
            Finish::Commit => ledger::select_row(branch),
            Finish::Rollback => ledger::select_uncommitted(branch),
        };
        let rows = self.rows(text, "the ledger").await;
        let rows = rows.map_err(|failure| failure.reason().clone())?;
        let state = rows.first().and_then(|row| number(row.first()?));
        let stands = state == Some(ledger::STATE_BRANCH.into());
        Ok(match verb {
            Finish::Commit => stands,
            Finish::Rollback => !stands,
        })
    }
}

/// What `InnoDB` has, and whether that is this very moment: then our own transaction is in it, at
/// this very statement.
fn transactions(connection: u64, number: u64) -> Text {
    let look = format!("concord look {number}");
    Text::of([
        "START TRANSACTION WITH CONSISTENT SNAPSHOT",
        &*format!(
            "/* {look} */ SELECT t.trx_mysql_thread_id, \
             t.trx_mysql_thread_id={connection} AND INSTR(t.trx_query,'{look} ')>0 \
             FROM information_schema.innodb_trx t \
             LEFT JOIN information_schema.processlist p ON p.id=t.trx_mysql_thread_id \
             WHERE p.id IS NULL OR p.user={OUR_USER}"
        ),
        "COMMIT",
    ])
}

/// The connections of a look that has seen itself; none when it is an older copy.
fn with_itself(rows: &Rows) -> Option<HashSet<u64>> {
    let cell = |row: &[_], at: usize| row.get(at).and_then(number);
    rows.iter()
        .any(|row| cell(row, 1) == Some(1))
        .then(|| rows.iter().filter_map(|row| cell(row, 0)).collect())
}

fn late(why: &str) -> Reason {
    Reason::new(
        code::DEADLINE_EXCEEDED,
        format!("whether the branch's connection has ended could not be found out: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(cells: &[(&str, Option<&str>)]) -> Rows {
        let cell = |text: &str| Some(text.as_bytes().to_vec());
        cells
            .iter()
            .map(|(id, own)| vec![cell(id), own.and_then(cell)])
            .collect()
    }

    #[test]
    fn a_look_that_does_not_see_itself_is_an_older_copy() {
        assert_eq!(with_itself(&rows(&[])), None);
        assert_eq!(with_itself(&rows(&[("7", Some("0")), ("9", None)])), None);
        let found = with_itself(&rows(&[("7", Some("0")), ("9", Some("1")), ("0", None)]));
        assert_eq!(found, Some(HashSet::from([0, 7, 9])));
    }
}
