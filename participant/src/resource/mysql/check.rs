//! Looking at the server: its settings, our ledger schema, and whose data it is.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use concord_core::reason::{Reason, ReasonKind, code};
use tokio::time::Instant as Deadline;

use super::error::Failure;
use super::pool::{ANSWER_TIMEOUT, Class, Conn, Pool, Sessions, other_data};
use super::preflight::{self, Facts, Flavor, Right};
use super::xa::hex;
use super::{MySql, detached, ledger};
use crate::resource::Health;

/// Longest time for the migrations of one look at the server.
pub(super) const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// The suspicion, or at least the doubt, that the server is not what it was, while somebody looks
/// into it. Whoever gives up halfway leaves it to the next.
struct Suspicion<'a> {
    pool: &'a Pool,
    was_raised: bool,
    was_doubted: bool,
}

impl<'a> Suspicion<'a> {
    fn taken_from(pool: &'a Pool) -> Self {
        Self {
            was_raised: pool.take_suspicion(),
            was_doubted: pool.take_doubt(),
            pool,
        }
    }

    fn looked_into(mut self) {
        self.was_raised = false;
        self.was_doubted = false;
    }
}

impl Drop for Suspicion<'_> {
    fn drop(&mut self) {
        if self.was_raised {
            self.pool.raise_suspicion();
        }
        if self.was_doubted {
            self.pool.raise_doubt();
        }
    }
}

impl MySql {
    /// What is known of the server, looking at it when that may be out of date.
    pub(super) async fn facts(&self) -> Result<Arc<Facts>, Reason> {
        if let Some(facts) = self.known_facts().filter(|_| !self.pool.is_suspect()) {
            return Ok(facts);
        }
        self.check(false).await
    }

    /// The same, when votes can be given.
    pub(super) async fn voting_facts(&self) -> Result<Arc<Facts>, Reason> {
        let facts = self.facts().await?;
        match facts.problems.first() {
            Some(problem) => Err(problem.clone()),
            None => Ok(facts),
        }
    }

    pub(super) fn known_facts(&self) -> Option<Arc<Facts>> {
        self.facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Looks at the server. Unless `always`, a look that has just ended is good enough.
    pub(super) async fn check(&self, always: bool) -> Result<Arc<Facts>, Reason> {
        let _one_at_a_time = self.checking.lock().await;
        let suspicion = Suspicion::taken_from(&self.pool);
        let suspect = suspicion.was_raised;
        if let Some(facts) = self.known_facts().filter(|_| !suspect && !always) {
            return Ok(facts);
        }
        let healthy = self
            .known_facts()
            .is_some_and(|facts| facts.problems.is_empty());
        let thorough = suspect || suspicion.was_doubted || !healthy;
        let looked = self.look(thorough).await;
        suspicion.looked_into();
        match &looked {
            Ok((facts, incarnation)) => {
                self.pool.set_sessions(&Sessions {
                    statement: facts.session.clone(),
                    detaches: facts.detaches,
                    keeps_socket: facts.flavor == Flavor::MariaDb,
                });
                *self.facts.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Arc::clone(facts));
                self.publish(Health {
                    reachable: true,
                    problems: facts.problems.clone(),
                    incarnation: incarnation.clone(),
                    server_version: facts.version.clone(),
                });
            }
            // Too busy to be looked at is not down; what was known stays.
            Err(reason) if &*reason.code == code::POOL_EXHAUSTED => self.pool.raise_suspicion(),
            Err(reason) => {
                self.pool.raise_suspicion();
                let last = self.health.borrow().clone();
                self.publish(Health {
                    reachable: false,
                    problems: vec![reason.clone()],
                    ..last
                });
            }
        }
        looked.map(|(facts, _)| facts)
    }

    fn publish(&self, health: Health) {
        self.health.send_if_modified(|current| {
            let changed = *current != health;
            *current = health;
            changed
        });
    }

    /// When an answer of a look is given up that may have to wait for a lock. Each has a time of
    /// its own: were there one for all, then a late one would be too late because of the others,
    /// and the server taken for down.
    fn answer_by(&self) -> Deadline {
        Deadline::now() + self.pool.options().finish_timeout.max(ANSWER_TIMEOUT)
    }

    /// `thorough`: also what only a restart of the server or an operator changes.
    async fn look(&self, thorough: bool) -> Result<(Arc<Facts>, String), Reason> {
        let refused = |failure: Failure| failure.reason().clone();
        let deadline = self.answer_by();
        let mut conn = self.pool.acquire_by(Class::Control, deadline).await?;
        let mut facts = preflight::examine(&mut conn).await.map_err(refused)?;
        facts.lacking = self.lacking(&facts.version).await?;
        if thorough {
            facts.problems.extend(self.try_out(&facts).await?);
        }
        let identity = match self.prepare_ledger(&mut conn, &mut facts).await {
            Ok(identity) => identity,
            Err(failure @ Failure::Broken(_)) => return Err(failure.reason().clone()),
            Err(failure) => {
                facts.problems.push(self.no_ledger(&failure));
                String::new()
            }
        };
        let incarnation = if identity.is_empty() {
            String::new()
        } else {
            let incarnation = preflight::incarnation(&facts.server_id, &identity);
            let first = self.pool.expect(&incarnation);
            if first != incarnation {
                facts.problems.push(other_data(&incarnation, first));
            }
            incarnation
        };
        if thorough && !incarnation.is_empty() && facts.problems.is_empty() {
            let deadline = self.answer_by();
            let missing = self.missing_witness(&mut conn, facts.flavor, deadline);
            let missing = missing.await;
            facts.problems.extend(missing.map_err(refused)?);
        }
        conn.release();
        Ok((Arc::new(facts), incarnation))
    }

    /// Whether the account may list prepared branches, and find out whether they are free. On a
    /// connection of its own: a refusal closes it.
    async fn try_out(&self, facts: &Facts) -> Result<Option<Reason>, Reason> {
        let deadline = self.answer_by();
        let mut conn = self.pool.acquire_by(Class::Control, deadline).await?;
        let mut tries = vec![("XA RECOVER", Right::ListPrepared)];
        if !facts.detaches {
            tries.push((detached::PROBE, Right::ListTransactions));
        }
        for (text, right) in tries {
            match conn.rows(text, deadline, text).await {
                Ok(_) => {}
                Err(Failure::Broken(reason)) => return Err(reason),
                Err(failure) => {
                    return Ok(Some(right.missing(&failure, &self.pool.options().user)));
                }
            }
        }
        conn.release();
        Ok(None)
    }

    fn no_ledger(&self, failure: &Failure) -> Reason {
        Reason::new(
            code::UNSAFE_SERVER,
            format!(
                "the schema concord cannot be used; run GRANT ALL ON concord.* TO the account of \
                 {} ({})",
                self.pool.options().user,
                failure.reason().message
            ),
        )
    }

    /// Brings the ledger schema up to date and reads whose it is; empty when that is not known or
    /// not ours. What an operator must solve is a problem among the facts.
    async fn prepare_ledger(&self, conn: &mut Conn, facts: &mut Facts) -> Result<String, Failure> {
        let current = ledger::current_version();
        let deadline = self.answer_by();
        let version = self.schema_version(ledger::SCHEMA, deadline).await?;
        if version > current {
            facts.problems.push(Reason::new(
                code::UNSAFE_SERVER,
                format!(
                    "the schema concord has version {version} and this participant knows \
                     {current}: run a newer participant"
                ),
            ));
            return Ok(String::new());
        }
        if version < current {
            let read_only = facts
                .problems
                .iter()
                .any(|p| &*p.code == code::READ_ONLY_SERVER);
            if read_only {
                facts.problems.push(Reason::new(
                    code::READ_ONLY_SERVER,
                    "the schema concord is missing or old, and the server is read-only",
                ));
                return Ok(String::new());
            }
            let versions = ledger::versions();
            let deadline = Deadline::now() + CHECK_TIMEOUT;
            let migrated = self.migrate_schema(ledger::SCHEMA, &versions, deadline);
            if let Err(failure) = migrated.await {
                let reason = failure.reason();
                if reason.kind() != ReasonKind::Conflict || version == 0 {
                    return Err(failure);
                }
                // Prepared branches, or a dump, hold a table. What is prepared is finished as
                // always; votes have to wait.
                let text = format!(
                    "the schema concord cannot be brought to version {current} yet, because a \
                     branch in doubt or a dump holds a table of it; it is tried again ({})",
                    reason.message
                );
                facts.problems.push(Reason::new(reason.code.clone(), text));
            }
        }
        let probe = "SELECT state FROM concord.ledger LIMIT 1";
        let deadline = self.answer_by();
        conn.rows(probe, deadline, "the ledger").await?;
        self.identity(conn, facts).await
    }

    async fn identity(&self, conn: &mut Conn, facts: &mut Facts) -> Result<String, Failure> {
        let deadline = self.answer_by();
        let options = self.pool.options();
        let select = ledger::SELECT_IDENTITY;
        let mut rows = conn.rows(select, deadline, "the identity").await?;
        if rows.is_empty() && facts.problems.is_empty() {
            let id: [u8; 16] = rand::random();
            let text = ledger::insert_identity(id, &options.cluster, &options.participant);
            conn.execute(text, deadline, "the identity").await?;
            rows = conn.rows(select, deadline, "the identity").await?;
        }
        let column = |at: usize| rows.first().and_then(|row| row.get(at)?.as_deref());
        let (Some(id), Some(cluster), Some(participant)) = (column(0), column(1), column(2)) else {
            return Ok(String::new());
        };
        let (cluster, participant) = (
            String::from_utf8_lossy(cluster),
            String::from_utf8_lossy(participant),
        );
        if cluster != options.cluster || participant != options.participant {
            facts.problems.push(Reason::new(
                code::INCARNATION_CHANGED,
                format!(
                    "the schema concord on this server belongs to participant {participant} of \
                     cluster {cluster}, and this is {} of {}: check where the participant's \
                     address leads",
                    options.participant, options.cluster
                ),
            ));
            return Ok(String::new());
        }
        Ok(hex(id))
    }
}
