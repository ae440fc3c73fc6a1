//! Servers and daemons that the proof itself starts and ends: nothing is restarted behind its back.
//!
//! [`crate::cluster`] is a cluster as a user has it, with a supervisor that mends it. Here a
//! process that was killed stays dead until the proof starts it again, each daemon's settings can
//! be changed, and how a daemon ends is seen. Dropping a rig kills and removes everything.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use concord_client::local::binary::ServerBinary;
use concord_client::local::health;
use concord_client::local::process::{Child, Launch, log_tail};
use concord_client::local::server::{ACCOUNT, Server, ServerKind, ServerSpec};
use concord_client::{Client, Outcome, RetryPolicy, v1};
use concord_core::id::BranchId;
use concord_participant::resource::mysql::xa::{FORMAT_ID, Xids, unhex};
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use toml::Table;
use tonic::transport::{Channel, Endpoint};
use v1::TransactionState as State;
use v1::participant_client::ParticipantClient;

use crate::cluster::{self, Ports, binaries, eventually};

mod crash;

/// The rig's cluster.
pub const CLUSTER: &str = "rig";
/// The coordinator's name among the processes.
pub const COORDINATOR: &str = "coordinator";
/// No proof waits longer than this for anything that is to happen at once.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// What the design promises: nothing stays in doubt longer than this once everything is up.
pub const DRAINED_IN: Duration = Duration::from_secs(10);
/// States of a transaction that is not over.
pub const OPEN: [State; 5] = [
    State::Active,
    State::Preparing,
    State::Prepared,
    State::Committing,
    State::Aborting,
];
/// A daemon bounds its own drain well below this.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// Rows of `shop.t`, each with `n = 100`.
const ROWS: i32 = 8;
/// `n` of every row at the beginning.
pub const START: i64 = 100;
/// Lines of each log that a failed proof shows.
const LOG_TAIL_LINES: usize = 25;

/// The processes. Daemons go before their servers when it is dropped.
#[derive(Debug)]
pub struct Rig {
    daemons: BTreeMap<String, Child>,
    /// The servers; the one behind participant `p1` is the first.
    pub servers: Vec<Server>,
    settings: BTreeMap<String, Table>,
    env: Vec<(String, String)>,
    ports: Ports,
    folder: tempfile::TempDir,
}

/// A row of `XA RECOVER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Whose it is.
    pub format_id: i64,
    /// Length of the gtrid part.
    pub gtrid_len: i64,
    /// Length of the bqual part.
    pub bqual_len: i64,
    /// Both parts.
    pub data: Vec<u8>,
}

impl Listed {
    /// The branch, if it is one of this rig's cluster.
    pub fn branch(&self) -> Option<BranchId> {
        Xids::new(CLUSTER).parse(self.format_id, self.gtrid_len, self.bqual_len, &self.data)
    }
}

impl Rig {
    /// Everything up: `servers` servers with a table `shop.t (id, n)`, their participants, and the
    /// coordinator with a link to each.
    pub async fn start(binary: &ServerBinary, servers: u16) -> anyhow::Result<Self> {
        let mut rig = Self::servers_only(binary, servers).await?;
        rig.up().await?;
        Ok(rig)
    }

    /// The same without daemons, so that their settings can be changed before [`Rig::up`].
    pub async fn servers_only(binary: &ServerBinary, servers: u16) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("concord-rig-").tempdir()?;
        let ports = Ports::claim(1 + servers)?;
        let started = (1..=servers).map(|n| {
            Server::start(ServerSpec::new(
                binary.clone(),
                folder.path().join(format!("s{n}")),
            ))
        });
        let servers = try_join_all(started).await?;
        let mut rig = Self {
            daemons: BTreeMap::new(),
            servers,
            settings: BTreeMap::new(),
            env: Vec::new(),
            ports,
            folder,
        };
        rig.write_defaults();
        for n in 1..=rig.servers.len() {
            rig.sql(n, "CREATE DATABASE shop").await?;
            rig.sql(
                n,
                "CREATE TABLE shop.t (id INT PRIMARY KEY, n BIGINT NOT NULL)",
            )
            .await?;
            rig.sql(n, "CREATE TABLE shop.probe (n BIGINT NOT NULL PRIMARY KEY)")
                .await?;
            rig.sql(n, "INSERT INTO shop.probe VALUES (0)").await?;
            for id in 1..=ROWS {
                rig.sql(n, &format!("INSERT INTO shop.t VALUES ({id}, {START})"))
                    .await?;
            }
        }
        Ok(rig)
    }

    fn write_defaults(&mut self) {
        let mut participants = Vec::new();
        for (n, server) in (1_u16..).zip(&self.servers) {
            let listen = format!("127.0.0.1:{}", self.ports.first + n);
            let mut behind = Table::new();
            behind.insert(
                "socket".into(),
                server.socket().display().to_string().into(),
            );
            behind.insert("user".into(), ACCOUNT.into());
            let password = server.password_file().display().to_string();
            behind.insert("password_file".into(), password.into());
            behind.insert("check_interval_ms".into(), 250.into());
            behind.insert("lock_wait_timeout_s".into(), 20.into());
            behind.insert("metadata_lock_timeout_s".into(), 1.into());
            let mut own = Table::new();
            own.insert("name".into(), format!("p{n}").into());
            own.insert("cluster".into(), CLUSTER.into());
            own.insert("listen".into(), listen.clone().into());
            own.insert("coordinator".into(), self.endpoint().into());
            own.insert("server".into(), behind.into());
            self.settings.insert(format!("p{n}"), own);
            let mut known = Table::new();
            known.insert("name".into(), format!("p{n}").into());
            known.insert("address".into(), format!("http://{listen}").into());
            participants.push(toml::Value::from(known));
        }
        let mut own = Table::new();
        own.insert("cluster".into(), CLUSTER.into());
        own.insert(
            "listen".into(),
            format!("127.0.0.1:{}", self.ports.first).into(),
        );
        own.insert(
            "data_dir".into(),
            self.data_dir().display().to_string().into(),
        );
        own.insert("participants".into(), participants.into());
        self.settings.insert(COORDINATOR.into(), own);
    }

    /// Changes a daemon's settings from its next start on.
    pub fn configure(&mut self, name: &str, change: impl FnOnce(&mut Table)) {
        change(self.settings.entry(name.to_owned()).or_default());
    }

    /// Sets a variable of every daemon's environment from its next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Where the decision log lives.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("coordinator-data")
    }

    /// Where the gateway listens.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.first)
    }

    /// Names of the participants.
    pub fn participants(&self) -> Vec<String> {
        (1..=self.servers.len()).map(|n| format!("p{n}")).collect()
    }

    /// A client that tries once: what a proof asks for happens once or is seen to fail.
    pub fn client(&self) -> anyhow::Result<Client> {
        let builder = Client::builder(self.endpoint()).retry(RetryPolicy::none());
        Ok(builder.call_timeout(Duration::from_secs(60)).build()?)
    }

    /// The n-th participant's own service.
    pub fn participant(&self, n: u16) -> anyhow::Result<ParticipantClient<Channel>> {
        let endpoint = Endpoint::from_shared(self.participant_url(n))?.timeout(PATIENCE);
        Ok(ParticipantClient::new(endpoint.connect_lazy()))
    }

    fn participant_url(&self, n: u16) -> String {
        format!("http://127.0.0.1:{}", self.ports.first + n)
    }

    /// What the n-th participant says of itself.
    pub async fn status(&self, n: u16) -> anyhow::Result<v1::GetStatusResponse> {
        Ok(self
            .participant(n)?
            .get_status(v1::GetStatusRequest::default())
            .await?
            .into_inner())
    }

    /// Whether the n-th participant's health is SERVING.
    pub async fn serves(&self, n: u16) -> bool {
        health::daemon_serves(&self.participant_url(n)).await
    }

    /// Starts every daemon that does not run, and waits until all links are up.
    pub async fn up(&mut self) -> anyhow::Result<()> {
        for name in self
            .participants()
            .into_iter()
            .chain([COORDINATOR.to_owned()])
        {
            if !self.is_running(&name) {
                self.spawn(&name)?;
            }
        }
        self.linked().await
    }

    /// Waits until every participant votes COMMIT again. What they say of themselves is not
    /// enough right after their servers were restarted: only a transaction is.
    pub async fn linked(&self) -> anyhow::Result<()> {
        let client = self.client()?;
        eventually("votes of all participants", PATIENCE, async || {
            let mut probe = client.one_shot().timeout(Duration::from_secs(5));
            for participant in self.participants() {
                probe = probe.on(&participant, "UPDATE shop.probe SET n = n + 1");
            }
            match probe.send().await {
                Outcome::Committed { .. } => Ok(Some(())),
                other => bail!("{other:?}"),
            }
        })
        .await
    }

    /// Only starts a daemon's process.
    pub fn spawn(&mut self, name: &str) -> anyhow::Result<()> {
        ensure!(!self.is_running(name), "{name} runs already");
        let launch = self.launch(name)?;
        self.daemons.insert(name.to_owned(), Child::spawn(&launch)?);
        Ok(())
    }

    /// How a daemon is started; its settings are written at once.
    pub fn launch(&self, name: &str) -> anyhow::Result<Launch> {
        let file = self.folder.path().join(format!("{name}.toml"));
        let settings = self
            .settings
            .get(name)
            .with_context(|| format!("no daemon {name}"))?;
        std::fs::write(&file, toml::to_string(settings)?)?;
        let role = if name == COORDINATOR {
            name
        } else {
            "participant"
        };
        Ok(Launch {
            program: binaries()?.join(format!("concord-{role}")),
            args: vec!["--config".into(), file.into()],
            env: self.env.clone(),
            output: self.log_file(name),
        })
    }

    /// Whether a daemon's process runs.
    pub fn is_running(&self, name: &str) -> bool {
        self.daemons
            .get(name)
            .is_some_and(|child| child.exit_status().is_none())
    }

    /// Whether a daemon was started and has ended by itself.
    pub fn has_ended(&self, name: &str) -> bool {
        self.daemons
            .get(name)
            .is_some_and(|child| child.exit_status().is_some())
    }

    fn daemon(&self, name: &str) -> anyhow::Result<&Child> {
        self.daemons
            .get(name)
            .with_context(|| format!("{name} was never started"))
    }

    /// Its process number.
    pub fn pid(&self, name: &str) -> anyhow::Result<u32> {
        Ok(self.daemon(name)?.id().pid)
    }

    /// Kills a daemon with SIGKILL; when this returns it is gone.
    pub fn kill9(&mut self, name: &str) -> anyhow::Result<()> {
        let mut child = self
            .daemons
            .remove(name)
            .with_context(|| format!("{name} was never started"))?;
        child.kill9();
        Ok(())
    }

    /// Sends a daemon a signal.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        self.daemon(name)?.signal(signal);
        Ok(())
    }

    /// Waits until a daemon has ended by itself, and tells how.
    pub async fn ended(&self, name: &str) -> anyhow::Result<ExitStatus> {
        let ended = tokio::time::timeout(END_TIMEOUT, self.daemon(name)?.exited()).await;
        ended.with_context(|| format!("{name} still runs after {END_TIMEOUT:?}"))
    }

    fn log_file(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// A daemon's log so far.
    pub fn log(&self, name: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.log_file(name))?)
    }

    /// A root connection to the n-th server, from 1.
    pub async fn root(&self, n: usize) -> anyhow::Result<MySqlConnection> {
        let server = n.checked_sub(1).and_then(|n| self.servers.get(n));
        Ok(server
            .with_context(|| format!("no server {n}"))?
            .root()
            .await?)
    }

    /// Runs SQL as root on the n-th server.
    pub async fn sql(&self, n: usize, sql: &str) -> anyhow::Result<()> {
        let mut root = self.root(n).await?;
        run(&mut root, sql).await
    }

    /// `n` of a row of `shop.t` on the n-th server.
    pub async fn n(&self, server: usize, id: i32) -> anyhow::Result<i64> {
        let sql = format!("SELECT n FROM shop.t WHERE id = {id}");
        let mut root = self.root(server).await?;
        Ok(sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut root)
            .await?)
    }

    /// What `XA RECOVER` lists on the n-th server.
    pub async fn recover(&self, n: usize) -> anyhow::Result<Vec<Listed>> {
        let mut root = self.root(n).await?;
        recover(&mut root, self.servers[0].kind()).await
    }

    /// How many branches of this cluster are prepared on the n-th server.
    pub async fn prepared(&self, n: usize) -> anyhow::Result<usize> {
        let listed = self.recover(n).await?;
        Ok(listed.iter().filter(|row| row.branch().is_some()).count())
    }

    /// Waits until no branch of this cluster is prepared anywhere.
    pub async fn drained(&self) -> anyhow::Result<()> {
        eventually("nothing in doubt", DRAINED_IN, async || {
            for n in 1..=self.servers.len() {
                if self.prepared(n).await? > 0 {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
    }

    /// Locks a row of `shop.t` until the connection is dropped or [`unlock`]ed: a participant
    /// whose branch wants it cannot vote.
    pub async fn lock(&self, n: usize, id: i32) -> anyhow::Result<MySqlConnection> {
        let mut root = self.root(n).await?;
        run(&mut root, "BEGIN").await?;
        run(
            &mut root,
            &format!("SELECT n FROM shop.t WHERE id = {id} FOR UPDATE"),
        )
        .await?;
        Ok(root)
    }

    /// Sends a transaction that adds 1 to the same row on the servers of `p1` and `p2`.
    pub fn plus(&self, id: i32) -> anyhow::Result<tokio::task::JoinHandle<Outcome>> {
        self.plus_as(id, "")
    }

    /// The same under a request id: the client repeats it when it does not know the outcome.
    pub fn plus_as(
        &self,
        id: i32,
        request: &str,
    ) -> anyhow::Result<tokio::task::JoinHandle<Outcome>> {
        let sql = format!("UPDATE shop.t SET n = n + 1 WHERE id = {id}");
        let tx = self
            .client()?
            .one_shot()
            .on("p1", sql.as_str())
            .on("p2", sql.as_str())
            .request_id(request);
        Ok(tokio::spawn(tx.timeout(PATIENCE).send()))
    }

    /// See [`cluster::voted`].
    pub async fn voted(&self, participant: &str) -> anyhow::Result<v1::Transaction> {
        cluster::voted(&self.client()?, participant).await
    }

    /// Waits until a transaction is in a state.
    pub async fn reaches(
        &self,
        gtrid: &str,
        state: v1::TransactionState,
    ) -> anyhow::Result<v1::Transaction> {
        let client = self.client()?;
        eventually(&format!("{gtrid} to be {state:?}"), PATIENCE, async || {
            let tx = client.transaction(gtrid).await?;
            Ok((tx.state() == state).then_some(tx))
        })
        .await
    }

    /// The row of every server has this value, and nothing is in doubt.
    pub async fn settled(&self, id: i32, value: i64) -> anyhow::Result<()> {
        self.drained().await?;
        for n in 1..=self.servers.len() {
            let found = self.n(n, id).await?;
            ensure!(
                found == value,
                "row {id} on server {n} is {found}, not {value}"
            );
        }
        Ok(())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.settings.keys() {
                eprintln!(
                    "--- {name}\n{}",
                    log_tail(&self.log_file(name), LOG_TAIL_LINES)
                );
            }
        }
    }
}

/// Runs SQL text on a connection.
pub async fn run(connection: &mut MySqlConnection, sql: &str) -> anyhow::Result<()> {
    let done = connection
        .execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
        .await;
    done.with_context(|| sql.to_owned())?;
    Ok(())
}

/// Frees what [`Rig::lock`] locked.
pub async fn unlock(mut lock: MySqlConnection) -> anyhow::Result<()> {
    run(&mut lock, "ROLLBACK").await
}

/// What `XA RECOVER` lists.
pub async fn recover(
    connection: &mut MySqlConnection,
    kind: ServerKind,
) -> anyhow::Result<Vec<Listed>> {
    let sql = match kind {
        ServerKind::Mysql => "XA RECOVER CONVERT XID",
        ServerKind::Mariadb => "XA RECOVER",
    };
    let rows = sqlx::raw_sql(sql).fetch_all(connection).await?;
    let listed = rows.iter().map(|row| {
        let number = |at: usize| -> anyhow::Result<i64> {
            Ok(row.try_get_unchecked::<String, _>(at)?.parse()?)
        };
        let data: Vec<u8> = row.try_get_unchecked(3)?;
        let data = unhex(&data).unwrap_or(data);
        let (format_id, gtrid_len, bqual_len) = (number(0)?, number(1)?, number(2)?);
        Ok(Listed {
            format_id,
            gtrid_len,
            bqual_len,
            data,
        })
    });
    listed.collect()
}

/// The xid of a branch of the rig's cluster, as it stands in an XA statement.
pub fn xid(branch: BranchId) -> String {
    Xids::new(CLUSTER).text(branch)
}

/// The branch `bqual` of a transaction in text form.
pub fn branch_of(gtrid: &str, bqual: u32) -> anyhow::Result<BranchId> {
    let gtrid = concord_proto::convert::text::parse_gtrid(gtrid).context("not a gtrid")?;
    Ok(BranchId {
        gtrid,
        bqual: concord_core::id::Bqual(bqual),
    })
}

/// A branch of somebody else, prepared and left alone by its connection.
pub async fn leave_foreign_branch(
    mut root: MySqlConnection,
    xid: &str,
    id: i32,
) -> anyhow::Result<()> {
    ensure!(
        xid.ends_with(&FORMAT_ID.to_string()) || xid.ends_with(",7"),
        "{xid} is not foreign"
    );
    run(&mut root, &format!("XA START {xid}")).await?;
    run(
        &mut root,
        &format!("UPDATE shop.t SET n = n + 1000 WHERE id = {id}"),
    )
    .await?;
    run(&mut root, &format!("XA END {xid}")).await?;
    run(&mut root, &format!("XA PREPARE {xid}")).await
}

/// Runs a proof on a fresh rig of every server under test, and says on which.
///
/// # Panics
///
/// When the proof fails.
pub fn on_every_server(
    servers: u16,
    proof: impl AsyncFn(&mut Rig) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let binaries = crate::cluster::servers()?;
    for binary in binaries {
        let name = format!("{} {}", binary.kind(), binary.version());
        eprintln!("on {name}");
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let mut rig = Rig::start(&binary, servers).await.context(name.clone())?;
            if let Err(error) = proof(&mut rig).await {
                // As a panic, so that the rig shows its logs.
                panic!("on {name}: {error:?}");
            }
            Ok::<(), anyhow::Error>(())
        })?;
    }
    Ok(())
}

/// The code of a transaction's reason, or what it was instead.
pub fn refused_with<R: fmt::Debug>(outcome: &Outcome<R>) -> anyhow::Result<(String, String)> {
    match outcome {
        Outcome::Aborted { reason, .. } => {
            Ok((reason.code.to_string(), reason.message.to_string()))
        }
        other => bail!("not aborted: {other:?}"),
    }
}
