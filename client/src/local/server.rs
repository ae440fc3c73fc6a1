//! One MySQL or MariaDB server with a private folder, for a local cluster and for the tests.
//!
//! The server is configured as the protocol needs it, durable to the last commit, and small. On
//! MySQL the binary log stays ON, MySQL's default, with `sync_binlog=1`: a prepared branch then
//! goes through MySQL's own two-phase commit between engine and binary log, which is how real
//! servers run, where their crashes hurt, and what the figures of a benchmark must pay for. On
//! MariaDB it stays OFF, MariaDB's default.
//!
//! This module starts, kills and stops a server and makes the participant's account. It restarts
//! nothing by itself and knows nothing of transactions.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

pub use super::binary::{BinaryError, ServerBinary, ServerKind};
use super::process::{Child, Launch, ProcessId, log_tail};

mod folder;
mod init;
#[cfg(test)]
mod tests;

pub(super) use folder::PARTS;
pub use folder::{SOCKET_PATH_MAX, ServerFolder};

/// The account that participants use.
pub const ACCOUNT: &str = "concord";

/// A server answers within this time of its start, crash recovery included. Private servers are
/// small; the limit only ends a wait that would never end.
const READY_TIMEOUT_S: u64 = 120;

/// Between two looks at a starting server. It tells nobody when it is ready.
const READY_POLL_MS: u64 = 25;

/// A server has this long to stop by itself; a clean stop writes out its whole buffer pool.
const STOP_TIMEOUT_S: u64 = 60;

/// Lines of a server's log that an error message shows.
const LOG_TAIL_LINES: usize = 12;

/// Why a server could not be prepared or started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file or folder of the server.
    #[error("{what} {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The socket's folder belongs to someone else or is open to others.
    #[error("{path} exists, but is not a folder of this user alone; remove it")]
    UnsafeFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The data folder could not be made.
    #[error("cannot initialise the data folder {path} ({status}); its log ends:\n{log}{hint}")]
    Init {
        /// The data folder.
        path: PathBuf,
        /// How the program ended.
        status: ExitStatus,
        /// Its last words.
        log: String,
        /// What is often the reason.
        hint: &'static str,
    },
    /// MariaDB's installation scripts are not where they belong.
    #[error("no file *{suffix} in {folder}: the installation of MariaDB is incomplete")]
    NoScript {
        /// What the file's name ends with.
        suffix: &'static str,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The server ended instead of becoming ready.
    #[error("the server in {folder} ended while starting ({status}); its log ends:\n{log}{hint}")]
    Exited {
        /// The server's folder.
        folder: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        log: String,
        /// What is often the reason.
        hint: &'static str,
    },
    /// The server runs but does not answer.
    #[error(
        "the server in {folder} gave no answer within {READY_TIMEOUT_S} s; its log ends:\n{log}"
    )]
    NotReady {
        /// The server's folder.
        folder: PathBuf,
        /// Its last words.
        log: String,
        /// What the last attempt met.
        source: sqlx::Error,
    },
    /// The server refuses a statement.
    #[error("cannot {what} on the server in {folder}")]
    Sql {
        /// What was attempted.
        what: &'static str,
        /// The server's folder.
        folder: PathBuf,
        /// Why not.
        source: sqlx::Error,
    },
}

/// Whether and where a server listens on TCP; always on 127.0.0.1 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tcp {
    /// Not at all: the socket is enough.
    Off,
    /// On a port that is free now. Another program may take it before the server does.
    Free,
    /// On this port.
    Port(u16),
}

/// What to run.
#[derive(Debug, Clone)]
pub struct ServerSpec {
    /// The program.
    pub binary: ServerBinary,
    /// The server's private folder, which holds its data, socket, log and password. Two servers
    /// never share one.
    pub folder: PathBuf,
    /// TCP besides the unix socket.
    pub tcp: Tcp,
    /// Arguments after ours; where two contradict each other these win.
    pub args: Vec<String>,
    /// Its error log, when that is not to be `server.log` in its folder.
    pub log: Option<PathBuf>,
}

impl ServerSpec {
    /// A server without TCP and with the defaults.
    pub fn new(binary: ServerBinary, folder: impl Into<PathBuf>) -> Self {
        Self {
            binary,
            folder: folder.into(),
            tcp: Tcp::Off,
            args: Vec::new(),
            log: None,
        }
    }

    /// Also listens on TCP.
    #[must_use]
    pub fn tcp(mut self, tcp: Tcp) -> Self {
        self.tcp = tcp;
        self
    }

    /// Adds an argument such as `--innodb-flush-log-at-trx-commit=2`.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }
}

/// A server that we started. Dropping it kills it as `kill -9` does; its data stays.
#[derive(Debug)]
pub struct Server {
    spec: ServerSpec,
    folder: ServerFolder,
    port: Option<u16>,
    log: PathBuf,
    child: Child,
}

impl Server {
    /// Makes the data folder when there is none. A half-made one of an earlier attempt is thrown
    /// away; a complete one is left alone.
    pub async fn init_datadir(spec: &ServerSpec) -> Result<(), ServerError> {
        init::data_folder(&spec.binary, &ServerFolder::open(&spec.folder)?).await
    }

    /// Makes the data folder if need be, starts the server, waits until it answers a query, and
    /// makes the participant's account.
    pub async fn start(spec: ServerSpec) -> Result<Self, ServerError> {
        Self::init_datadir(&spec).await?;
        let server = Self::launch(spec)?;
        server.ready().await?;
        Ok(server)
    }

    /// Only starts the process; [`Server::ready`] must follow before it is used.
    pub fn launch(spec: ServerSpec) -> Result<Self, ServerError> {
        let folder = ServerFolder::open(&spec.folder)?;
        let port = match spec.tcp {
            Tcp::Off => None,
            Tcp::Port(port) => Some(port),
            Tcp::Free => Some(free_port(&folder)?),
        };
        let log = spec
            .log
            .clone()
            .unwrap_or_else(|| folder.path().join("server.log"));
        let child = spawn(&spec, &folder, port, &log)?;
        Ok(Self {
            spec,
            folder,
            port,
            log,
            child,
        })
    }

    /// Waits until the server answers, then makes the participant's account if it is not there.
    ///
    /// On MySQL this also logs in as that account over TLS. MySQL's `caching_sha2_password` needs
    /// one such login after each start of the server; from then on the cheap challenge without
    /// TLS is enough, which is what a unix socket deserves.
    pub async fn ready(&self) -> Result<(), ServerError> {
        let limit = Duration::from_secs(READY_TIMEOUT_S);
        let mut root = tokio::select! {
            root = self.answering(limit) => root?,
            status = self.child.exited() => return Err(ServerError::Exited {
                folder: self.spec.folder.clone(),
                status,
                log: log_tail(&self.log, LOG_TAIL_LINES),
                hint: init::hint(&self.spec.binary),
            }),
        };
        let password = self.folder.password()?;
        if self.login(&password).await.is_err() {
            init::make_account(&mut root, self.kind(), &password)
                .await
                .map_err(|source| self.sql("make the account of the participant", source))?;
            self.login(&password)
                .await
                .map_err(|source| self.sql("log in as the participant", source))?;
        }
        // A lost goodbye harms nobody.
        let _ = root.close().await;
        Ok(())
    }

    /// Kills the server without warning and waits until it has gone.
    pub fn kill9(&mut self) {
        self.child.kill9();
    }

    /// Sends a signal, for example `SIGSTOP`.
    pub fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Stops the server as a service manager does, and kills it when that takes too long. True
    /// when it stopped by itself.
    pub async fn stop(&mut self) -> bool {
        self.child.stop(Duration::from_secs(STOP_TIMEOUT_S)).await
    }

    /// Starts it again, after `kill9` or `stop` or from running, and waits until it answers.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await;
        self.child = spawn(&self.spec, &self.folder, self.port, &self.log)?;
        self.ready().await
    }

    /// True while the process runs.
    pub fn is_running(&self) -> bool {
        self.child.exit_status().is_none()
    }

    /// Waits until the process ends.
    pub async fn exited(&self) -> ExitStatus {
        self.child.exited().await
    }

    /// The process number; of an ended process, what it was.
    pub fn pid(&self) -> u32 {
        self.child.id().pid
    }

    /// The process, unmistakably.
    pub fn process(&self) -> ProcessId {
        self.child.id()
    }

    /// The unix socket.
    pub fn socket(&self) -> &Path {
        self.folder.socket()
    }

    /// The TCP port, if it has one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The file with the password of the account `concord`, readable by this user only.
    pub fn password_file(&self) -> &Path {
        self.folder.password_file()
    }

    /// The server's error log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// MySQL or MariaDB.
    pub fn kind(&self) -> ServerKind {
        self.spec.binary.kind()
    }

    /// What it was started with; arguments changed here count from the next restart.
    pub fn spec_mut(&mut self) -> &mut ServerSpec {
        &mut self.spec
    }

    /// How the participant's account logs in by the unix socket. The session is left as the
    /// server makes it: no SQL mode, time zone or character set of the client library.
    pub fn participant_options(&self) -> Result<MySqlConnectOptions, ServerError> {
        Ok(session_options(self.socket())
            .username(ACCOUNT)
            .password(&self.folder.password()?))
    }

    /// How root logs in by the unix socket, which is the only way that root has.
    pub fn root_options(&self) -> MySqlConnectOptions {
        session_options(self.socket()).username("root")
    }

    /// A connection as root.
    pub async fn root(&self) -> Result<MySqlConnection, ServerError> {
        self.root_options()
            .connect()
            .await
            .map_err(|source| self.sql("log in as root", source))
    }

    /// Waits until root gets an answer.
    async fn answering(&self, limit: Duration) -> Result<MySqlConnection, ServerError> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let source = match self.ask().await {
                Ok(root) => return Ok(root),
                Err(source) => source,
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(ServerError::NotReady {
                    folder: self.spec.folder.clone(),
                    log: log_tail(&self.log, LOG_TAIL_LINES),
                    source,
                });
            }
            tokio::time::sleep(Duration::from_millis(READY_POLL_MS)).await;
        }
    }

    async fn ask(&self) -> Result<MySqlConnection, sqlx::Error> {
        let mut root = self.root_options().connect().await?;
        sqlx::raw_sql("SELECT 1").execute(&mut root).await?;
        Ok(root)
    }

    /// Logs in as the participant, in the way that also works right after a server's start.
    async fn login(&self, password: &str) -> Result<(), sqlx::Error> {
        let mode = match self.kind() {
            ServerKind::Mysql => MySqlSslMode::Required,
            ServerKind::Mariadb => MySqlSslMode::Disabled,
        };
        let options = session_options(self.socket())
            .username(ACCOUNT)
            .password(password)
            .ssl_mode(mode);
        let connection = options.connect().await?;
        // The server hangs up first, so the goodbye over TLS may find nobody; that is no failure.
        let _ = connection.close().await;
        Ok(())
    }

    fn sql(&self, what: &'static str, source: sqlx::Error) -> ServerError {
        ServerError::Sql {
            what,
            folder: self.spec.folder.clone(),
            source,
        }
    }
}

/// Runs SQL text that we wrote ourselves.
async fn run(connection: &mut MySqlConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .map(drop)
}

pub(super) fn session_options(socket: &Path) -> MySqlConnectOptions {
    MySqlConnectOptions::new()
        .socket(socket)
        .ssl_mode(MySqlSslMode::Disabled)
        .pipes_as_concat(false)
        .no_engine_substitution(false)
        .timezone(None)
        .set_names(false)
        .disable_statement_logging()
}

fn spawn(
    spec: &ServerSpec,
    folder: &ServerFolder,
    port: Option<u16>,
    log: &Path,
) -> Result<Child, ServerError> {
    folder.sweep()?;
    let (program, mut args) = spec.binary.command();
    args.extend(settings(spec.binary.kind()).iter().map(OsString::from));
    args.extend(folder.settings(&folder.data()));
    match port {
        None => args.push("--skip-networking".into()),
        Some(port) => {
            args.push("--bind-address=127.0.0.1".into());
            args.push(format!("--port={port}").into());
        }
    }
    args.extend(spec.args.iter().map(OsString::from));
    let launch = Launch {
        program,
        args,
        env: Vec::new(),
        output: log.to_owned(),
    };
    Child::spawn(&launch).map_err(|source| ServerError::Io {
        what: "cannot start",
        path: spec.binary.path().to_owned(),
        source,
    })
}

/// What every server gets: durable, small, and closed.
fn settings(kind: ServerKind) -> Vec<&'static str> {
    let mut settings = vec![
        "--innodb-flush-log-at-trx-commit=1",
        "--sync-binlog=1",
        "--innodb-buffer-pool-size=128M",
        "--performance-schema=OFF",
        "--skip-name-resolve",
        "--local-infile=OFF",
        "--max-connections=500",
    ];
    if kind == ServerKind::Mysql {
        // Debian's MySQL wants a folder that only its own package makes.
        settings.extend(["--mysqlx=OFF", "--secure-file-priv=NULL"]);
    }
    settings
}

fn free_port(folder: &ServerFolder) -> Result<u16, ServerError> {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port());
    port.map_err(|source| ServerError::Io {
        what: "cannot find a free port for the server in",
        path: folder.path().to_owned(),
        source,
    })
}

/// Reads a whole small file.
fn read(path: &Path) -> Result<String, ServerError> {
    fs::read_to_string(path).map_err(|source| ServerError::Io {
        what: "cannot read",
        path: path.to_owned(),
        source,
    })
}
