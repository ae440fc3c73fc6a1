//! A cluster of real processes, started by the command that a user would type.
//!
//! Each has its own folder and ports, so that clusters can stand side by side, and is wiped when
//! dropped.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use concord_client::local::binary::ServerBinary;
use concord_client::local::process::ProcessId;
use concord_client::local::state::{ClusterState, ProcessState, Readiness};
use concord_client::v1::participant_client::ParticipantClient;
use concord_client::{Client, v1};
use nix::sys::signal::Signal;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{ConnectOptions, Connection};

/// Time for a cluster to be ready: two servers initialise their data on two slow cores.
const UP_TIMEOUT: Duration = Duration::from_secs(180);
/// Longest wait for a vote.
const VOTE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks at a condition that is waited for.
const LOOK: Duration = Duration::from_millis(25);

/// Arguments of `concord up` for a cluster that is to be killed all the time: the supervisor starts
/// what was killed at once, however often that was. The pauses by which it spares a machine a
/// program that cannot work would leave nothing to kill.
pub const TO_BE_KILLED: [&str; 3] = ["--no-seed", "--restart-pause-max-ms", "200"];

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    folder: tempfile::TempDir,
    ports: Ports,
    servers: u16,
    kept: bool,
    /// Which server it runs on.
    pub server: ServerBinary,
}

/// The folder of the binaries under test: that of this test, one up.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folder = here
        .ancestors()
        .find(|folder| folder.join("concord").is_file());
    let folder = folder.context("the binaries are not built: cargo build --workspace --bins")?;
    Ok(folder.to_owned())
}

/// Ports in a row that nobody else who asks so has, in this process or another, for as long as
/// this lives: also while nobody listens on them, because who does is being started again.
#[derive(Debug)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// On a port beside them.
    _claim: TcpListener,
}

impl Ports {
    /// Ports that are handed out at once, the one for the claim included.
    const BLOCK: u16 = 16;
    /// Below those that Linux gives to connections.
    const FROM: u16 = 20_000;
    const BLOCKS: u16 = 640;

    /// Claims so many.
    pub fn claim(count: u16) -> anyhow::Result<Self> {
        ensure!(count < Self::BLOCK, "{count} ports are too many");
        for _ in 0..200 {
            let first = Self::FROM + Self::BLOCK * rand::random_range(0..Self::BLOCKS);
            let Ok(claim) = TcpListener::bind(("127.0.0.1", first + Self::BLOCK - 1)) else {
                continue;
            };
            // Somebody who does not ask so may have one of them.
            let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
            if (first..first + count).all(free) {
                return Ok(Self {
                    first,
                    _claim: claim,
                });
            }
        }
        bail!("found no {count} free ports in a row")
    }
}

impl Cluster {
    /// Starts `servers` servers with their participants, and a coordinator.
    pub fn start(server: &ServerBinary, servers: u16) -> anyhow::Result<Self> {
        Self::start_with(server, servers, &[])
    }

    /// The same with further arguments of `concord up`.
    pub fn start_with(server: &ServerBinary, servers: u16, more: &[&str]) -> anyhow::Result<Self> {
        let cluster = Self::prepare(server, servers)?;
        cluster.up(more)?;
        Ok(cluster)
    }

    /// One that is not started yet, so that a proof can lay its own settings into its folder
    /// before [`Cluster::up`].
    pub fn prepare(server: &ServerBinary, servers: u16) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("concord-it-").tempdir()?;
        let ports = Ports::claim(1 + 2 * servers)?;
        Ok(Self {
            folder,
            ports,
            servers,
            kept: false,
            server: server.clone(),
        })
    }

    /// Starts it, with further arguments of `concord up`.
    pub fn up(&self, more: &[&str]) -> anyhow::Result<()> {
        let output = self.up_command(more).arg("--detach").output()?;
        ensure!(
            output.status.success(),
            "concord up failed:\n{}",
            text(&output)
        );
        Ok(())
    }

    /// The command that starts it and keeps it running in the foreground.
    pub fn up_command(&self, more: &[&str]) -> Command {
        let participant_port = self.ports.first + 1;
        let server_port = participant_port + self.servers;
        let mut command = self.concord(&["up", "--servers", &self.servers.to_string()]);
        command
            .arg("--server")
            .arg(self.server.path())
            .args(["--gateway-port", &self.ports.first.to_string()])
            .args(["--participant-port", &participant_port.to_string()])
            .args(["--server-port", &server_port.to_string()])
            .args(more);
        command
    }

    /// Stops all its processes and keeps their data.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.run(&["down"]).map(|_| ())
    }

    /// Starts a stopped cluster again, on its data.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.up(&["--no-seed"])
    }

    /// Its folder, the `.concord` of a user.
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("concord")
    }

    /// Its folder will outlive it: somebody wants to read its logs. Where that is.
    pub fn keep(&mut self) -> PathBuf {
        self.kept = true;
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// Where the proof keeps files of its own.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the n-th participant listens, from 1.
    pub fn participant_address(&self, n: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.first + n))
    }

    /// Where the gateway listens.
    pub fn gateway_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.first))
    }

    /// Where the gateway listens.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.first)
    }

    /// What the n-th participant says of itself, from 1. What the coordinator knows of it may be
    /// older.
    pub async fn status(&self, n: u16) -> anyhow::Result<v1::GetStatusResponse> {
        let url = format!("http://{}", self.participant_address(n));
        let mut participant = ParticipantClient::connect(url).await?;
        let status = participant.get_status(v1::GetStatusRequest::default());
        Ok(status.await?.into_inner())
    }

    /// A client.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.endpoint())?)
    }

    /// A `concord` command on this cluster.
    pub fn concord(&self, args: &[&str]) -> Command {
        let binary = binaries().map_or_else(|_| "concord".into(), |folder| folder.join("concord"));
        let mut command = Command::new(binary);
        command
            .env("CONCORD_ENDPOINT", self.endpoint())
            .stdin(Stdio::null());
        command.args(args);
        let local = ["up", "down", "status", "demo", "bench"];
        if args.iter().any(|arg| local.contains(arg)) {
            command.arg("--dir").arg(self.dir());
        }
        command
    }

    /// Runs a `concord` command that must succeed; its standard output.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.concord(args).output()?;
        ensure!(
            output.status.success(),
            "concord {args:?} failed:\n{}",
            text(&output)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The processes now.
    pub fn state(&self) -> anyhow::Result<ClusterState> {
        ClusterState::read(&self.dir())?.context("the cluster has no state file")
    }

    /// Whether every process is alive and has answered since its start.
    pub fn is_up(&self) -> anyhow::Result<bool> {
        Ok(self.state()?.processes.iter().all(|process| {
            process.readiness == Readiness::Ready
                && process.process.is_some_and(ProcessId::is_alive)
        }))
    }

    /// Waits until every process is up.
    pub async fn until_up(&self) -> anyhow::Result<()> {
        eventually("every process up", READY_TIMEOUT, async || {
            Ok(self.is_up()?.then_some(()))
        })
        .await
    }

    /// One process now.
    pub fn process(&self, name: &str) -> anyhow::Result<ProcessState> {
        let state = self.state()?;
        state
            .process(name)
            .cloned()
            .with_context(|| format!("no process {name}"))
    }

    /// Sends a signal to a process; false when it is not running at the moment.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<bool> {
        let Some(process) = self
            .process(name)?
            .process
            .filter(|process| process.is_alive())
        else {
            return Ok(false);
        };
        process.signal(signal);
        Ok(true)
    }

    /// Kills a process with SIGKILL; false when it is not running at the moment.
    pub fn kill9(&self, name: &str) -> anyhow::Result<bool> {
        self.signal(name, Signal::SIGKILL)
    }

    /// A root connection to the n-th server, from 1.
    pub async fn root(&self, n: usize) -> anyhow::Result<MySqlConnection> {
        let socket = self
            .process(&format!("s{n}"))?
            .socket
            .context("a server has a socket")?;
        let options = MySqlConnectOptions::new().socket(socket).username("root");
        Ok(options.connect().await?)
    }

    /// Runs SQL as root on the n-th server, from 1.
    pub async fn sql(&self, n: usize, sql: &'static str) -> anyhow::Result<()> {
        let mut connection = self.root(n).await?;
        sqlx::raw_sql(sql).execute(&mut connection).await?;
        // MySQL may close its end first: then closing ours fails, and the statement is done anyway.
        let _ = connection.close().await;
        Ok(())
    }

    /// The lines of a process' log.
    pub fn log(&self, name: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.process(name)?.log)?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["coordinator", "p1", "p2", "p3"] {
                if let Ok(log) = self.log(name) {
                    let tail: Vec<_> = log.lines().rev().take(20).collect();
                    let tail: Vec<_> = tail.into_iter().rev().collect();
                    eprintln!("--- {name}\n{}", tail.join("\n"));
                }
            }
        }
        let down: &[&str] = if self.kept {
            &["down"]
        } else {
            &["down", "--wipe"]
        };
        match self.concord(down).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("concord down failed:\n{}", text(&output)),
            Err(error) => eprintln!("concord down failed: {error}"),
        }
    }
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// Looks at a condition until it holds; an error names it when it does not hold in time.
pub async fn eventually<F, T>(what: &str, bound: Duration, mut look: F) -> anyhow::Result<T>
where
    F: AsyncFnMut() -> anyhow::Result<Option<T>>,
{
    let start = Instant::now();
    let mut last = None;
    loop {
        // What holds after the bound, on a machine that stood still, does hold.
        let over = start.elapsed() >= bound;
        match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        if over {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    match last {
        Some(error) => Err(error.context(format!("{what}: not in {bound:?}"))),
        None => bail!("{what}: not in {bound:?}"),
    }
}

/// Waits for the transaction that is running now until the coordinator has this participant's vote.
pub async fn voted(client: &Client, participant: &str) -> anyhow::Result<v1::Transaction> {
    let what = format!("the vote of {participant}");
    eventually(&what, VOTE_TIMEOUT, async || {
        let preparing = [v1::TransactionState::Preparing];
        let found = client.list_transactions(&preparing, false, 10).await?;
        let voted = |branch: &v1::Branch| {
            let votes = [v1::BranchState::Prepared, v1::BranchState::ReadOnly];
            branch.participant == participant && votes.contains(&branch.state())
        };
        Ok(found.into_iter().find(|tx| tx.branches.iter().any(voted)))
    })
    .await
}

/// The servers under test; which ones is said by the command that runs the tests.
pub fn servers() -> anyhow::Result<Vec<ServerBinary>> {
    let servers = ServerBinary::under_test()?;
    ensure!(
        !servers.is_empty(),
        "there is no MySQL or MariaDB server to test on"
    );
    Ok(servers)
}

/// Longest wait for a cluster to be ready again after kills.
pub const READY_TIMEOUT: Duration = UP_TIMEOUT;
