//! Bringing a schema up to date: one process at a time, outside any branch, in small steps that
//! may be repeated, because DDL is not transactional and a crash may come between any two.

use concord_core::reason::Reason;
use tokio::time::Instant as Deadline;

use super::MySql;
use super::answers::number;
use super::check::CHECK_TIMEOUT;
use super::error::Failure;
use super::pool::{Class, Conn};
use crate::migrate::Plan;

/// Longest wait for another participant that migrates the same schema.
const LOCK_TIMEOUT_S: u32 = 10;
/// The server's errors for a schema or table that does not exist.
const NO_SUCH_SCHEMA: &[u16] = &[1049, 1146];
/// The server's errors for a change that a former attempt has made: the table exists, the column
/// exists, the key exists, and what was to be dropped is not there.
const DONE_BEFORE: &[u16] = &[1050, 1060, 1061, 1091];

/// One version of a schema.
#[derive(Debug)]
pub struct Version<'a> {
    /// Its number, from 1.
    pub number: u32,
    /// Its statements, in order.
    pub statements: Vec<&'a str>,
}

impl MySql {
    pub(super) async fn apply(&self, plan: &Plan) -> Result<u32, Reason> {
        let deadline = Deadline::now() + CHECK_TIMEOUT;
        let refused = |failure: Failure| failure.reason().clone();
        let versions: Vec<_> = plan
            .migrations
            .iter()
            .map(|migration| Version {
                number: migration.version,
                statements: migration.statements.iter().map(String::as_str).collect(),
            })
            .collect();
        let version = self
            .schema_version(&plan.schema, deadline)
            .await
            .map_err(refused)?;
        let newest = versions.last().map_or(0, |version| version.number);
        if version >= newest {
            return Ok(version);
        }
        self.migrate_schema(&plan.schema, &versions, deadline)
            .await
            .map_err(refused)?;
        Ok(newest)
    }

    /// The version of a schema; 0 when it is absent.
    pub(super) async fn schema_version(
        &self,
        schema: &str,
        deadline: Deadline,
    ) -> Result<u32, Failure> {
        let mut conn = self.housekeeper(deadline).await?;
        let text = format!("SELECT COALESCE(MAX(version), 0) FROM {schema}.schema_version");
        match conn.rows(text, deadline, "the schema's version").await {
            Ok(rows) => {
                conn.release();
                let version = rows.first().and_then(|row| number(row.first()?));
                Ok(version
                    .and_then(|version| u32::try_from(version).ok())
                    .unwrap_or(0))
            }
            Err(failure) if is_one_of(&failure, NO_SUCH_SCHEMA) => Ok(0),
            Err(failure) => Err(failure),
        }
    }

    /// Creates the schema when it is absent and applies the versions that it does not have.
    pub(super) async fn migrate_schema(
        &self,
        schema: &str,
        versions: &[Version<'_>],
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let mut locked = self.housekeeper(deadline).await?;
        let lock = format!("SELECT GET_LOCK('{schema}.migrate', {LOCK_TIMEOUT_S})");
        let rows = locked.rows(lock, deadline, "the migration lock").await?;
        if rows.first().and_then(|row| number(row.first()?)) != Some(1) {
            return Err(Failure::timed_out("the migration lock"));
        }
        let create = [
            format!("CREATE DATABASE IF NOT EXISTS {schema}"),
            format!(
                "CREATE TABLE IF NOT EXISTS {schema}.schema_version (\
                 version INT UNSIGNED NOT NULL PRIMARY KEY, \
                 applied TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) ENGINE=InnoDB"
            ),
        ];
        for statement in &create {
            self.change(statement, deadline).await?;
        }
        // Somebody else may have done it before the lock came.
        let from = self.schema_version(schema, deadline).await?;
        for version in versions.iter().filter(|version| version.number > from) {
            for statement in &version.statements {
                self.change(statement, deadline).await?;
            }
            let number = version.number;
            let done =
                format!("INSERT IGNORE INTO {schema}.schema_version (version) VALUES ({number})");
            self.change(&done, deadline).await?;
        }
        // Closing the connection frees the lock as well.
        let unlock = format!("SELECT RELEASE_LOCK('{schema}.migrate')");
        locked.rows(unlock, deadline, "the migration lock").await?;
        locked.release();
        Ok(())
    }

    /// One change, on a connection of its own: a refused one closes its connection, and the lock
    /// must outlive that.
    async fn change(&self, statement: &str, deadline: Deadline) -> Result<(), Failure> {
        let mut conn = self.housekeeper(deadline).await?;
        match conn.execute(statement, deadline, "a migration").await {
            Ok(_) => {
                conn.release();
                Ok(())
            }
            Err(failure) if is_one_of(&failure, DONE_BEFORE) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    async fn housekeeper(&self, deadline: Deadline) -> Result<Conn, Failure> {
        self.pool
            .acquire_by(Class::Control, deadline)
            .await
            .map_err(Failure::Broken)
    }
}

fn is_one_of(failure: &Failure, numbers: &[u16]) -> bool {
    failure
        .number()
        .is_some_and(|number| numbers.contains(&number))
}
