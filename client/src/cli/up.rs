//! `concord up`: starts a local cluster and keeps it running.
//!
//! It turns arguments into a [`Cluster`], and what happens into words. With `--detach` it starts
//! itself once more as the supervisor, in a session of its own, and waits until that is ready.

use std::env;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;

use crate::cli::{Exit, Failure, output};
use crate::local::cluster::{Cluster, ClusterError, MAX_SERVERS, UP_LOG, Wishes};
use crate::local::lock::LockError;
use crate::local::ports::PortError;
use crate::local::process::{ProcessId, log_tail};
use crate::local::state::{ClusterState, Readiness, Role};
use crate::local::supervisor::{self, Ended, SupervisorError};

/// Between two looks at the state file of a supervisor that is starting.
const WATCH_MS: u64 = 100;

/// A supervisor that was interrupted while starting has stopped all processes within this time.
const GIVE_UP_TIMEOUT_S: u64 = 180;

/// Lines of the supervisor's log that a failure shows.
const LOG_TAIL_LINES: usize = 20;

const EXAMPLES: &str = "\
Examples:
  concord up                                  two servers, in the foreground; Ctrl-C stops them
  concord up --detach --servers 3             returns when all is ready
  concord up --server mysql --dir /tmp/mine   another server, another folder
  concord up --server /opt/mysql/bin/mysqld

Settings of a daemon in FOLDER/own/NAME.toml (p1.toml, coordinator.toml) take the place of those
that `concord up` writes.

The data is kept. `concord down` stops a detached cluster, `concord down --wipe` removes it.";

/// Arguments of `concord up`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct UpArgs {
    /// How many servers, 1 to 16 [default: 2, or as many as the cluster has].
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SERVERS)))]
    servers: Option<u16>,
    /// mariadb, mysql, or the path of a server program or of a folder from deploy/servers
    /// [default: the one that is installed].
    #[arg(long, value_name = "SERVER")]
    server: Option<String>,
    /// The cluster's folder. It must belong to the user that runs this, and is closed to others.
    #[arg(long, default_value = ".concord", value_name = "FOLDER")]
    dir: PathBuf,
    /// Return when all is ready, and leave the cluster running.
    #[arg(long)]
    detach: bool,
    /// Do not put in sample accounts and products.
    #[arg(long)]
    no_seed: bool,
    /// The gateway's port [default: 7400].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    gateway_port: Option<u16>,
    /// The first participant's port; the others follow [default: 7411].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    participant_port: Option<u16>,
    /// The first server's port; the others follow [default: 7421, or behind the participants].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    server_port: Option<u16>,
    /// Longest pause before a process that ended is started again. By default pauses of one that
    /// ends again and again grow to 5 s, and in the end to 30 s.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    restart_pause_max_ms: Option<u64>,
    /// Be the supervisor that another `concord up --detach` waits for.
    #[arg(long, hide = true)]
    supervise: bool,
}

impl UpArgs {
    fn wishes(&self) -> Wishes {
        Wishes {
            folder: self.dir.clone(),
            servers: self.servers,
            server: self.server.clone(),
            gateway_port: self.gateway_port,
            participant_port: self.participant_port,
            server_port: self.server_port,
            pause_max: self.restart_pause_max_ms.map(Duration::from_millis),
        }
    }
}

/// Starts a cluster; returns when it has stopped, or with `--detach` when it is ready.
pub async fn run(args: UpArgs) -> anyhow::Result<()> {
    if args.supervise {
        // A session of its own, so that neither a Ctrl-C nor a closed terminal reaches it.
        nix::unistd::setsid().map_err(|error| failed("cannot leave the session", error))?;
    }
    log_to_stderr();
    let cluster = Cluster::open(&args.wishes()).map_err(|error| cluster_failure(&error))?;
    if args.detach {
        let state = detach(&args, cluster).await?;
        return Ok(output::print_bytes(welcome(&state, &args.dir).as_bytes())?);
    }
    let ended = supervisor::run(cluster, !args.no_seed, |state| {
        if !args.supervise {
            let mut text = welcome(state, &args.dir);
            text.push_str("Ctrl-C stops the cluster and keeps its data.\n");
            // A stdout that cannot be written to must not stop a cluster that works.
            let _ = output::print_bytes(text.as_bytes());
        }
    });
    match ended.await.map_err(|error| supervisor_failure(&error))? {
        Ended::AfterReady => Ok(()),
        Ended::BeforeReady => Err(Failure::new(Exit::Interrupted, "interrupted").into()),
    }
}

/// Starts the supervisor and waits until it is ready, telling what happens meanwhile.
async fn detach(args: &UpArgs, cluster: Cluster) -> Result<ClusterState, Failure> {
    let folder = cluster.folder().to_owned();
    drop(cluster);
    let log = folder.join(UP_LOG);
    let mut child = spawn_supervisor(args, &folder, &log)
        .map_err(|error| failed("cannot start the supervisor", error))?;
    let own = ProcessId::of(child.id()).map_err(|error| failed("the supervisor ended", error))?;
    let mut told: Vec<(String, Readiness)> = Vec::new();
    loop {
        // The end is asked for before the state is read, so that a last word is not missed.
        let ended = child
            .try_wait()
            .map_err(|error| failed("cannot wait", error))?;
        let state = ClusterState::read(&folder).ok().flatten();
        let state = state.filter(|state| state.supervisor == own);
        if let Some(state) = &state {
            progress(state, &mut told);
            if state.ready {
                return Ok(state.clone());
            }
        }
        if ended.is_some() {
            let failure = Failure::new(Exit::Unavailable, "the cluster did not start");
            let why = state.and_then(|state| state.failure);
            let why = why.unwrap_or_else(|| log_tail(&log, LOG_TAIL_LINES));
            return Err(why.lines().fold(failure, Failure::why));
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(WATCH_MS)) => {}
            _ = tokio::signal::ctrl_c() => {
                own.signal(Signal::SIGTERM);
                give_up(child).await;
                return Err(Failure::new(Exit::Interrupted, "interrupted; all has been stopped"));
            }
        }
    }
}

/// Waits until a supervisor that was told to stop has stopped everything.
async fn give_up(mut child: Child) {
    let ended = tokio::task::spawn_blocking(move || child.wait());
    // If it takes longer it still ends by itself; there is only nobody left to see it.
    let _ = tokio::time::timeout(Duration::from_secs(GIVE_UP_TIMEOUT_S), ended).await;
}

fn spawn_supervisor(args: &UpArgs, folder: &Path, log: &Path) -> std::io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = Command::new(env::current_exe()?);
    command.args(["up", "--supervise", "--dir"]).arg(folder);
    // All other wishes were written into the cluster's settings when it was opened.
    if args.no_seed {
        command.arg("--no-seed");
    }
    if let Some(pause) = args.restart_pause_max_ms {
        command.args(["--restart-pause-max-ms", &pause.to_string()]);
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// Tells on stderr what has become ready, or fails to, since the last look.
fn progress(state: &ClusterState, told: &mut Vec<(String, Readiness)>) {
    for process in &state.processes {
        let word = match process.readiness {
            Readiness::Ready => "is ready",
            Readiness::Restarting => "died and is started again",
            Readiness::Failing => "is failing",
            Readiness::Starting | Readiness::Stopped => continue,
        };
        let news = (process.name.clone(), process.readiness);
        if !told.contains(&news) {
            output::note(&format!("{} {word} ({})", process.name, process.address));
            told.push(news);
        }
    }
}

/// What a person wants to know about a cluster that has just become ready.
fn welcome(state: &ClusterState, folder: &Path) -> String {
    let servers: Vec<_> = state.of_role(Role::Server).collect();
    let head = format!(
        "\nConcord is running: {} servers, {} {}\n\n  gateway      {}\n",
        servers.len(),
        state.server_kind,
        state.server_version,
        state.gateway
    );
    let pairs = state.of_role(Role::Participant).zip(&servers);
    let rows = pairs.map(|(participant, server)| {
        let socket = server.socket.as_deref().unwrap_or(Path::new("-")).display();
        format!(
            "  {:<12} {}   in front of {} {} (socket {socket})\n",
            participant.name, participant.address, server.name, server.address
        )
    });
    let rows: String = rows.collect();
    let concord = own_name();
    let dir = if folder.canonicalize().ok() == Path::new(".concord").canonicalize().ok() {
        String::new()
    } else {
        format!(" --dir {}", folder.display())
    };
    let endpoint = match state.gateway.as_str() {
        "http://127.0.0.1:7400" => String::new(),
        other => format!(" --endpoint {other}"),
    };
    let address = state.gateway.trim_start_matches("http://");
    format!(
        "{head}{rows}\nThings to try:\n  \
           {concord} status{dir}\n  \
           {concord} account list{endpoint}\n  \
           {concord} transfer alice heidi 12.30EUR{endpoint}\n  \
           {concord} demo{endpoint}{dir}\n  \
           grpcurl -plaintext {address} list\n  \
           kill -9 any process that the first command lists, and look again\n"
    )
}

/// How the user can call this program: by its name if that finds it, else by its path.
fn own_name() -> String {
    let Ok(own) = env::current_exe() else {
        return "concord".into();
    };
    let search = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&search).any(|folder| folder.join("concord") == own) {
        return "concord".into();
    }
    let here = env::current_dir().unwrap_or_default();
    own.strip_prefix(&here)
        .unwrap_or(&own)
        .display()
        .to_string()
}

/// The supervisor's events go to stderr: the terminal, or the log of a detached one.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CONCORD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sqlx=warn"));
    // An embedding program may have its own; then that is the one to use.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Told on the same stderr, a line that cannot be written would be a panic.
        .log_internal_errors(false)
        .with_target(false)
        .with_ansi(false)
        .try_init();
}

fn supervisor_failure(error: &SupervisorError) -> Failure {
    match error {
        SupervisorError::Cluster(error) => cluster_failure(error),
        other => with_causes(Exit::Unavailable, other),
    }
}

/// Says what went wrong, why, and with which exit code.
pub(super) fn cluster_failure(error: &ClusterError) -> Failure {
    match error {
        ClusterError::Lock(LockError::Held { holder: None, .. }) => {
            with_causes(Exit::Other, error).next("try again when it has ended")
        }
        ClusterError::Lock(LockError::Held { .. }) => with_causes(Exit::Other, error)
            .next("`concord status` shows it, `concord down` stops it"),
        ClusterError::Port(PortError::Taken { .. }) => with_causes(Exit::Unavailable, error),
        ClusterError::ForeignFolder { .. } => with_causes(Exit::Usage, error).next(
            "choose another folder with --dir, or move this away: a cluster needs a folder for \
             itself",
        ),
        ClusterError::OtherUser { .. } => with_causes(Exit::Usage, error).next(
            "choose another folder with --dir; if nobody else can have put anything into it, make \
             it yours with `chown -R`",
        ),
        ClusterError::HalfRemoved { .. } => with_causes(Exit::Usage, error)
            .next("`concord down --wipe` removes the rest, --dir chooses another folder"),
        ClusterError::BrokenSettings { .. } => with_causes(Exit::Other, error).next(
            "`concord down --wipe` removes the cluster with all data; to keep that, copy the file \
             from another cluster with the same --servers and --server",
        ),
        ClusterError::NoCluster { .. } => {
            with_causes(Exit::Usage, error).next("name the cluster's folder with --dir")
        }
        ClusterError::OtherSize { .. }
        | ClusterError::OtherKind { .. }
        | ClusterError::Port(_)
        | ClusterError::Binary(_) => with_causes(Exit::Usage, error),
        ClusterError::Io { .. }
        | ClusterError::NoDaemon { .. }
        | ClusterError::Server(_)
        | ClusterError::Lock(LockError::Io { .. }) => with_causes(Exit::Other, error),
    }
}

pub(super) fn with_causes(exit: Exit, error: &dyn std::error::Error) -> Failure {
    // Some errors end with the last lines of a log.
    let text = error.to_string();
    let mut lines = text.lines();
    let what = lines.next().unwrap_or_default();
    let mut failure = lines.fold(Failure::new(exit, what), Failure::why);
    let mut source = error.source();
    while let Some(cause) = source {
        failure = failure.why(cause);
        source = cause.source();
    }
    failure
}

pub(super) fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Other, what).why(error)
}
