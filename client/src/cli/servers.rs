//! The servers and processes of a local cluster, as its folder describes them: for plain SQL
//! beside Concord, and for signals to its daemons.
//!
//! Only the demonstration and the benchmark look behind the gateway; no other command does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, MySqlConnection, Row as _};

use crate::cli::exit::{Exit, Failure};
use crate::cli::view;
use crate::local::process::ProcessId;
use crate::local::server::ServerKind;
use crate::local::state::ClusterState;

/// One server, by the name of the participant in front of it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// The participant's name.
    pub name: String,
    kind: ServerKind,
    options: MySqlConnectOptions,
}

/// What is read of a participant's configuration file.
#[derive(Deserialize)]
struct ParticipantFile {
    name: String,
    server: ServerTable,
}

#[derive(Deserialize)]
struct ServerTable {
    socket: PathBuf,
    user: String,
    password_file: PathBuf,
}

/// A local cluster's folder.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    fn missing(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(
            Exit::Unavailable,
            format!(
                "there is no running local cluster in {}",
                self.path.display()
            ),
        )
        .why(why)
        .next("start one with `concord up --detach`, or name its folder with --dir")
    }

    /// What the cluster's supervisor says of it.
    pub(crate) fn state(&self) -> Result<ClusterState, Failure> {
        match ClusterState::read(&self.path) {
            Ok(Some(state)) => Ok(state),
            Ok(None) => Err(self.missing("it has no state.json")),
            Err(error) => Err(self.missing(error)),
        }
    }

    /// The process of a daemon, which is looked up anew because a supervisor restarts it.
    pub(crate) fn process(&self, name: &str) -> Result<ProcessId, Failure> {
        let state = self.state()?;
        let process = state.process(name);
        process
            .and_then(|process| state.living(process))
            .ok_or_else(|| self.missing(format!("its process \"{name}\" does not run")))
    }

    /// Every participant's server, by the participant's name.
    pub(crate) fn servers(&self) -> Result<BTreeMap<String, Server>, Failure> {
        let kind = self.state()?.server_kind;
        let folder = self.path.join("config");
        let entries = std::fs::read_dir(&folder).map_err(|error| self.missing(error))?;
        let mut servers = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(|error| self.missing(error))?.path();
            if path.extension().is_none_or(|ending| ending != "toml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).map_err(|error| self.missing(error))?;
            // The coordinator's file is another one; what is no participant's file is none.
            let Ok(file) = toml::from_str::<ParticipantFile>(&text) else {
                continue;
            };
            let password = std::fs::read_to_string(&file.server.password_file)
                .map_err(|error| self.missing(error))?;
            let options = MySqlConnectOptions::new()
                .socket(&file.server.socket)
                .username(&file.server.user)
                .password(password.trim_end())
                .ssl_mode(MySqlSslMode::Disabled)
                // The server's own settings, as for Concord.
                .pipes_as_concat(false)
                .no_engine_substitution(false)
                .timezone(None);
            servers.insert(
                file.name.clone(),
                Server {
                    name: file.name,
                    kind,
                    options,
                },
            );
        }
        if servers.is_empty() {
            return Err(self.missing(format!("no participant's file in {}", folder.display())));
        }
        Ok(servers)
    }
}

impl Server {
    fn failed(&self, error: &sqlx::Error) -> Failure {
        Failure::new(
            Exit::Unavailable,
            format!("plain SQL on the server of {} failed", self.name),
        )
        .why(error)
        .next("look at `concord status`: is the server up?")
    }

    /// A connection that bypasses Concord.
    pub(crate) async fn connect(&self) -> Result<MySqlConnection, Failure> {
        self.options
            .connect()
            .await
            .map_err(|error| self.failed(&error))
    }

    /// Runs a text on a connection of its own.
    pub(crate) async fn run(&self, sql: &str) -> Result<(), Failure> {
        let mut connection = self.connect().await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut connection)
            .await
            .map_err(|error| self.failed(&error))?;
        Ok(())
    }

    /// The one integer that a query returns; none when it returns no row.
    pub(crate) async fn integer(&self, sql: &str) -> Result<Option<i64>, Failure> {
        let mut connection = self.connect().await?;
        let row = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .fetch_optional(&mut connection)
            .await
            .map_err(|error| self.failed(&error))?;
        row.map(|row| row.try_get_unchecked(0))
            .transpose()
            .map_err(|error| self.failed(&error))
    }

    /// Rolls back prepared branches whose gtrid begins with `prefix`: letters, digits, hyphens.
    pub(crate) async fn roll_back_branches_of(&self, prefix: &str) -> Result<(), Failure> {
        let mut connection = self.connect().await?;
        let rows = sqlx::raw_sql("XA RECOVER")
            .fetch_all(&mut connection)
            .await
            .map_err(|error| self.failed(&error))?;
        for row in rows {
            let (gtrid_length, data) = row
                .try_get_unchecked::<i64, _>("gtrid_length")
                .and_then(|length| Ok((length, row.try_get_unchecked::<Vec<u8>, _>("data")?)))
                .map_err(|error| self.failed(&error))?;
            if !data.starts_with(prefix.as_bytes()) {
                continue;
            }
            let at = usize::try_from(gtrid_length).unwrap_or(0).min(data.len());
            let (gtrid, bqual) = data.split_at(at);
            let sql = format!(
                "XA ROLLBACK x'{}',x'{}'",
                view::hex(gtrid),
                view::hex(bqual)
            );
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut connection)
                .await
                .map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    /// Whether the server lists a prepared branch of this transaction (`XA RECOVER`).
    pub(crate) async fn lists_branch_of(&self, gtrid: uuid::Uuid) -> Result<bool, Failure> {
        // MySQL prints xids in hexadecimal when asked to; MariaDB does not know how to be asked.
        let sql = match self.kind {
            ServerKind::Mysql => "XA RECOVER CONVERT XID",
            ServerKind::Mariadb => "XA RECOVER",
        };
        let mut connection = self.connect().await?;
        let rows = sqlx::raw_sql(sql)
            .fetch_all(&mut connection)
            .await
            .map_err(|error| self.failed(&error))?;
        let bytes = gtrid.into_bytes();
        let digits = gtrid.simple().to_string();
        for row in rows {
            let data: Vec<u8> = row
                .try_get_unchecked("data")
                .map_err(|error| self.failed(&error))?;
            if contains(&data, &bytes) || contains(&data.to_ascii_lowercase(), digits.as_bytes()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn contains(data: &[u8], part: &[u8]) -> bool {
    data.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_cluster_says_how_to_start_one() {
        let folder = tempfile::tempdir().unwrap();
        let failure = Folder::new(folder.path()).servers().unwrap_err();
        assert_eq!(failure.code(), Exit::Unavailable);
        assert!(failure.advice().unwrap().contains("concord up"));
    }
}
