//! What the participant remembers in its ledger schema, and reads outside branches.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use concord_core::id::Gtrid;
use concord_core::reason::{Reason, code};
use concord_core::record::ParticipantRecord;
use concord_proto::model::{Isolation, Statement};
use concord_proto::v1;
use tokio::time::Instant as Deadline;

use super::answers::{self, keys};
use super::error::Failure;

use super::pool::{Class, Text};
use super::script::{End, Script, Step};
use super::sql::check_server;
use super::{MySql, ledger};
use crate::resource::Durable;

/// Open reports of damage that are loaded at start. More than these are still in the schema.
const DAMAGE_LOADED_MAX: u32 = 1_000;
/// Rows deleted by one statement: short enough to keep nobody waiting.
const PRUNE_BATCH: usize = 200;
/// Batches of one call, so that a long absence is made up for in many calls.
const PRUNE_BATCHES_MAX: usize = 50;

fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn refused(failure: Failure) -> Reason {
    failure.reason().clone()
}

fn odd(what: &str) -> Reason {
    Reason::new(
        code::UNEXPECTED_ANSWER,
        format!("{what} in the schema concord is not readable"),
    )
}

impl MySql {
    pub(super) async fn load_durable(&self) -> Result<Durable, Reason> {
        // Also creates the schema when it is not there yet.
        self.facts().await?;
        let rows = self
            .rows(ledger::SELECT_DURABLE, "the epoch")
            .await
            .map_err(refused)?;
        let epoch = answers::epoch(&rows).ok_or_else(|| odd("the epoch"))?;
        let below = answers::horizon(&rows).ok_or_else(|| odd("the horizon"))?;
        let mut damage = self.read_damage(true, DAMAGE_LOADED_MAX).await?;
        damage.reverse();
        Ok(Durable {
            epoch,
            forget_below: below,
            damage,
        })
    }

    pub(super) async fn append_records(&self, records: &[ParticipantRecord]) -> Result<(), Reason> {
        if records.is_empty() {
            return Ok(());
        }
        let text = ledger::append(records, unix_ms());
        self.rows(text, "the participant's records")
            .await
            .map(|_| ())
            .map_err(refused)
    }

    pub(super) async fn read_damage(
        &self,
        open: bool,
        limit: u32,
    ) -> Result<Vec<v1::Damage>, Reason> {
        let text = ledger::select_damage(open, limit);
        let rows = self
            .rows(text, "the damage reports")
            .await
            .map_err(refused)?;
        rows.iter()
            .map(|row| answers::damage(row).ok_or_else(|| odd("a damage report")))
            .collect()
    }

    pub(super) async fn acknowledge_damage(&self, id: u64) -> Result<bool, Reason> {
        let deadline = self.finish_deadline();
        let mut conn = self.pool.acquire_by(Class::Finish, deadline).await?;
        let text = ledger::acknowledge(id, unix_ms());
        // Matched rows are counted, so a second acknowledgement is true as well.
        let matched = conn
            .execute(text, deadline, "the damage report")
            .await
            .map_err(refused)?;
        conn.release();
        Ok(matched > 0)
    }

    pub(super) async fn delete_forgotten(
        &self,
        below: Gtrid,
        requests_kept: Duration,
    ) -> Result<u64, Reason> {
        let mut deleted = 0;
        self.witnesses.forget_below(below);
        let requests_below = below.before(requests_kept);
        for _ in 0..PRUNE_BATCHES_MAX {
            let rows = self
                .delete_some(ledger::select_expired(
                    requests_below,
                    requests_kept,
                    PRUNE_BATCH,
                ))
                .await?;
            deleted += rows.len() as u64;
            if rows.len() < PRUNE_BATCH {
                break;
            }
        }
        for _ in 0..PRUNE_BATCHES_MAX {
            let from = *self.lock_pruned();
            let rows = self
                .delete_some(ledger::select_forgotten(from, below, PRUNE_BATCH))
                .await?;
            deleted += rows.len() as u64;
            let last = rows.last().filter(|_| rows.len() == PRUNE_BATCH);
            *self.lock_pruned() = last.map_or(below, |(gtrid, _)| *gtrid);
            if last.is_none() {
                break;
            }
        }
        Ok(deleted)
    }

    fn lock_pruned(&self) -> MutexGuard<'_, Gtrid> {
        self.pruned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes the rows whose keys this text selects.
    async fn delete_some(&self, select: Text) -> Result<Vec<(Gtrid, u32)>, Reason> {
        let rows = self.rows(select, "the ledger").await.map_err(refused)?;
        let keys = keys(&rows).ok_or_else(|| odd("a ledger row"))?;
        if !keys.is_empty() {
            self.rows(ledger::delete_rows(&keys), "the ledger")
                .await
                .map_err(refused)?;
        }
        Ok(keys)
    }

    pub(super) async fn read(
        &self,
        statement: &Statement,
        timeout: Duration,
    ) -> Result<v1::StatementResult, Reason> {
        let deadline = Deadline::now() + timeout;
        let judged = self.judge.judge_read(&statement.sql)?;
        let facts = self.facts().await?;
        let one = std::slice::from_ref(&judged);
        check_server(one, &facts).map_err(|(_, reason)| reason)?;
        let mut script = Script::default();
        if judged.last_insert_id {
            script.no_last_insert_id();
        }
        // What is not committed is nobody's to see, whatever the server's own level is.
        let dirty = facts.isolation.is_none();
        script.isolation(dirty.then_some(Isolation::ReadCommitted));
        script.verb(Step::Start, "START TRANSACTION READ ONLY");
        script.statement(&judged, statement)?;
        script.verb(Step::Finish, "COMMIT");
        let mut conn = self.pool.acquire_by(Class::Work, deadline).await?;
        let mut outcome = script.run(&mut conn, deadline).await;
        match outcome.end {
            End::Fine => {
                conn.release();
                outcome.results.pop().ok_or_else(|| odd("a result"))
            }
            End::Objection { reason, .. } => {
                conn.release();
                Err(reason)
            }
            End::Failed { failure, .. } => Err(failure.reason().clone()),
        }
    }
}
