//! The resource manager's conformance suite on real servers: MySQL and MariaDB.
//!
//! `CONCORD_CASE=<part of a name>` runs the cases whose names contain it.

use std::sync::Arc;
use std::time::Duration;

use concord_client::local::server::{Server, ServerBinary, ServerKind, ServerSpec};
use concord_core::id::BranchId;
use concord_participant::resource::conformance::{Harness, TABLE, run};
use concord_participant::resource::mysql::xa::Xids;
use concord_participant::resource::mysql::{Address, MySql, Options, Secret};
use concord_tests::by_hand;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tokio::sync::Mutex;

mod ending;
mod forged;
mod login;
mod stray;
pub mod types;
mod verdicts;

/// The cluster whose branches are ours.
const CLUSTER: &str = "conformance";

/// One server in a folder of its own.
pub struct Real {
    server: Mutex<Server>,
    options: Options,
    locker: Mutex<Option<MySqlConnection>>,
    backup: Mutex<Option<MySqlConnection>>,
    foreign: Mutex<Option<MySqlConnection>>,
    kind: ServerKind,
    _folder: tempfile::TempDir,
}

impl Real {
    /// Starts a server and makes the table.
    pub async fn start(binary: ServerBinary) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let kind = binary.kind();
        let spec = ServerSpec::new(binary, folder.path().join("server"));
        let server = Server::start(spec).await.expect("the server starts");
        let mut root = server.root().await.expect("root logs in");
        text(&mut root, "CREATE DATABASE conformance")
            .await
            .expect("a schema");
        let table = format!(
            "CREATE TABLE {TABLE} (k VARCHAR(64) PRIMARY KEY, v BIGINT NOT NULL) ENGINE=InnoDB"
        );
        text(&mut root, &table).await.expect("a table");
        let address = Address::Socket(server.socket().to_owned());
        let mut options = Options::new(CLUSTER, "p1", address, "concord");
        let password = std::fs::read_to_string(server.password_file()).expect("a password");
        options.password = Secret(password.trim().to_owned());
        options.max_connections = 8;
        options.reserve_connections = 4;
        options.lock_wait_timeout = Duration::from_secs(1);
        options.metadata_lock_timeout = Duration::from_secs(1);
        options.check_interval = Duration::from_millis(100);
        // On MySQL all branches of a case may be ended at once, and share few connections.
        options.acquire_timeout = Duration::from_secs(10);
        Self {
            server: Mutex::new(server),
            options,
            locker: Mutex::default(),
            backup: Mutex::default(),
            foreign: Mutex::default(),
            kind,
            _folder: folder,
        }
    }

    /// The options of its resource managers.
    pub fn options(&self) -> Options {
        self.options.clone()
    }

    /// The file with the password of its participant's account.
    pub async fn password_file(&self) -> std::path::PathBuf {
        self.server.lock().await.password_file().to_owned()
    }

    /// A connection as root.
    pub async fn root(&self) -> MySqlConnection {
        self.server.lock().await.root().await.expect("root logs in")
    }

    /// Runs a text as root.
    pub async fn sql(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let mut root = self.root().await;
        let rows = text(&mut root, sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        drop(root.close().await);
        rows
    }
}

/// Runs a text and gives its rows as texts.
pub async fn text(
    connection: &mut MySqlConnection,
    sql: &str,
) -> Result<Vec<Vec<Option<String>>>, sqlx::Error> {
    let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .fetch_all(connection)
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            (0..row.len())
                .map(|at| {
                    row.try_get_unchecked::<Option<String>, _>(at)
                        .ok()
                        .flatten()
                })
                .collect()
        })
        .collect())
}

impl Harness for Real {
    type Rm = MySql;

    fn keeps_attached(&self) -> bool {
        self.kind == ServerKind::Mariadb
    }

    async fn open(&self) -> Arc<MySql> {
        MySql::start(self.options())
    }

    async fn value(&self, key: &str) -> Option<i64> {
        let rows = self
            .sql(&format!("SELECT v FROM {TABLE} WHERE k = '{key}'"))
            .await;
        rows.first()?.first()?.as_deref()?.parse().ok()
    }

    async fn set_unsafe(&self, on: bool) {
        let value = if on { 2 } else { 1 };
        self.sql(&format!(
            "SET GLOBAL innodb_flush_log_at_trx_commit = {value}"
        ))
        .await;
    }

    async fn set_read_only(&self, on: bool) {
        match (self.kind, on) {
            (ServerKind::Mysql, true) => self.sql("SET GLOBAL super_read_only = ON").await,
            (_, on) => {
                self.sql(&format!("SET GLOBAL read_only = {}", u8::from(on)))
                    .await
            }
        };
    }

    async fn roll_back_by_hand(&self, branch: BranchId) {
        if self.keeps_attached() {
            self.kill_connections().await;
        }
        let xid = Xids::new(CLUSTER).text(branch);
        by_hand::end(&mut self.root().await, "XA ROLLBACK", &xid)
            .await
            .expect("it is rolled back");
    }

    async fn prepare_foreign(&self, key: &str) {
        let mut root = self.root().await;
        let xid = "'foreign','branch',7";
        let work = format!("UPDATE {TABLE} SET v = v + 1 WHERE k = '{key}'");
        let sql = format!("XA START {xid}; {work}; XA END {xid}; XA PREPARE {xid}");
        text(&mut root, &sql).await.expect("a foreign branch");
        *self.foreign.lock().await = Some(root);
    }

    async fn commit_foreign(&self) -> bool {
        let mut root = self.foreign.lock().await.take().expect("a foreign branch");
        text(&mut root, "XA COMMIT 'foreign','branch',7")
            .await
            .is_ok()
    }

    async fn lock(&self, key: &str) {
        let mut root = self.root().await;
        let sql = format!("START TRANSACTION; SELECT v FROM {TABLE} WHERE k = '{key}' FOR UPDATE");
        text(&mut root, &sql).await.expect("a lock");
        *self.locker.lock().await = Some(root);
    }

    async fn unlock(&self) {
        if let Some(mut root) = self.locker.lock().await.take() {
            text(&mut root, "ROLLBACK").await.expect("the lock's end");
        }
    }

    async fn block_commits(&self, on: bool) {
        let mut backup = self.backup.lock().await;
        if on {
            let mut root = self.root().await;
            text(&mut root, "FLUSH TABLES WITH READ LOCK")
                .await
                .expect("a backup");
            *backup = Some(root);
        } else if let Some(mut root) = backup.take() {
            text(&mut root, "UNLOCK TABLES")
                .await
                .expect("the backup's end");
        }
    }

    async fn kill_connections(&self) {
        let mut root = self.root().await;
        let list = "SELECT id FROM information_schema.processlist WHERE user = 'concord'";
        let ids = text(&mut root, list).await.expect("the process list");
        let ids: Vec<String> = ids.into_iter().flatten().flatten().collect();
        for id in &ids {
            // It may have gone by itself.
            let _ = text(&mut root, &format!("KILL {id}")).await;
        }
        // Until then MySQL may write their last answers into connections that are opened here.
        let left = format!("{list} AND FIND_IN_SET(id, '{}')", ids.join(","));
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        while !text(&mut root, &left)
            .await
            .expect("the process list")
            .is_empty()
        {
            assert!(tokio::time::Instant::now() < end, "they do not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn crash(&self) {
        let mut server = self.server.lock().await;
        server.kill9();
        server.restart().await.expect("the server starts again");
    }
}

/// The server of a kind that is under test, or loudly none.
fn under_test(kind: ServerKind) -> Option<ServerBinary> {
    let found = ServerBinary::under_test().expect("the servers under test");
    let binary = found.into_iter().find(|binary| binary.kind() == kind);
    if binary.is_none() {
        eprintln!("SKIPPED: no {kind} here");
    }
    binary
}

async fn conforms(kind: ServerKind) {
    let Some(binary) = under_test(kind) else {
        return;
    };
    eprintln!("{kind} {}", binary.version());
    let real = Real::start(binary).await;
    let filter = std::env::var("CONCORD_CASE").unwrap_or_default();
    let reports = run(&real, &filter, |report| {
        let took = report.took.as_secs_f64();
        match &report.failure {
            None => eprintln!("ok     {:<62} {took:.2} s", report.case),
            Some(failure) => eprintln!("FAILED {:<62} {took:.2} s\n       {failure}", report.case),
        }
    })
    .await;
    let failed = reports
        .iter()
        .filter(|report| report.failure.is_some())
        .count();
    assert!(!reports.is_empty(), "no case ran");
    assert!(
        failed == 0,
        "{failed} of {} cases failed on {kind}",
        reports.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_conforms() {
    conforms(ServerKind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_conforms() {
    conforms(ServerKind::Mariadb).await;
}
