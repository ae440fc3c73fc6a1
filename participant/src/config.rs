//! The participant's settings: what they are called, their defaults, and what is wrong with them.
//!
//! Settings come in layers (defaults, file, environment, flags); after [`Config::check`] nothing
//! has to be checked again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use concord_core::id::ParticipantName;
use concord_daemon::secret::{self, SecretError};
use concord_daemon::telemetry::LogFormat;
use concord_proto::convert::text;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tonic::transport::Endpoint;

use crate::driver::Settings;
use crate::resource::mysql::{Address, Options, Secret, Tls};
use crate::rpc::Identity;

/// Prefix of environment variables; a double underscore stands for a dot.
pub const ENV_PREFIX: &str = "CONCORD_PARTICIPANT_";

/// Branches that are here at once, if nothing else is set: each may hold locks and some memory.
const BRANCHES_DEFAULT: usize = 4_096;
/// Time between two sweeps, if nothing else is set, in ms: how long a lost message can delay an
/// outcome.
const SWEEP_INTERVAL_DEFAULT_MS: u64 = 1_000;
/// Time for what runs at SIGTERM to end, if nothing else is set, in ms.
const DRAIN_TIMEOUT_DEFAULT_MS: u64 = 5_000;
/// Longest of all times that can be set, in ms.
const TIME_MAX_MS: u64 = 3_600_000;
/// Connections to the server, if nothing else is set: below the servers' own default of 151.
const CONNECTIONS_DEFAULT: u32 = 100;

/// All settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of this participant in the cluster. Required.
    pub name: String,
    /// Name of the cluster; part of every xid.
    pub cluster: String,
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Unix socket to listen on as well, for a coordinator on the same host.
    pub listen_socket: Option<PathBuf>,
    /// Where the coordinator listens, for inquiries.
    pub coordinator: String,
    /// Form of log lines: `text` or `json`.
    pub log_format: LogFormat,
    /// Branches that may be here at once.
    pub max_branches: usize,
    /// Time between two sweeps of the server's prepared branches.
    pub sweep_interval_ms: u64,
    /// Time for what runs to end when the process is asked to stop.
    pub drain_timeout_ms: u64,
    /// Threads that do the work; 0 takes half of the processors, 1 to 8.
    pub worker_threads: usize,
    /// The server behind this participant.
    pub server: Server,
}

/// The server behind the participant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Its unix socket. Either this or `host`.
    pub socket: Option<PathBuf>,
    /// Its host name or address.
    pub host: Option<String>,
    /// Its port, with `host`.
    pub port: u16,
    /// The account.
    pub user: String,
    /// File that holds its password; none for an empty one.
    pub password_file: Option<PathBuf>,
    /// Schema of statements that name none.
    pub database: Option<String>,
    /// TLS over TCP: `disabled`, `preferred`, `required`, `verify_ca` or `verify_identity`.
    pub tls: TlsMode,
    /// File with the authorities for the verifying modes; the system's own when absent.
    pub tls_ca: Option<PathBuf>,
    /// Connections for the work of branches.
    pub max_connections: u32,
    /// Connections beside those, for finishing branches.
    pub reserve_connections: u32,
    /// Longest wait for a free connection.
    pub acquire_timeout_ms: u64,
    /// Longest wait for a row lock, in seconds.
    pub lock_wait_timeout_s: u64,
    /// Longest wait for a metadata lock, in seconds.
    pub metadata_lock_timeout_s: u64,
    /// Longest time for one XA COMMIT or XA ROLLBACK, in seconds.
    pub finish_timeout_s: u64,
    /// How often the server's settings are looked at.
    pub check_interval_ms: u64,
}

/// TLS over TCP, as it is written in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the meanings are those of `resource::mysql::options::Tls`
pub enum TlsMode {
    Disabled,
    #[default]
    Preferred,
    Required,
    VerifyCa,
    VerifyIdentity,
}

impl From<TlsMode> for Tls {
    fn from(mode: TlsMode) -> Self {
        match mode {
            TlsMode::Disabled => Self::Disabled,
            TlsMode::Preferred => Self::Preferred,
            TlsMode::Required => Self::Required,
            TlsMode::VerifyCa => Self::VerifyCa,
            TlsMode::VerifyIdentity => Self::VerifyIdentity,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: String::new(),
            cluster: "concord".to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7411)),
            listen_socket: None,
            coordinator: "http://127.0.0.1:7400".to_owned(),
            log_format: LogFormat::default(),
            max_branches: BRANCHES_DEFAULT,
            sweep_interval_ms: SWEEP_INTERVAL_DEFAULT_MS,
            drain_timeout_ms: DRAIN_TIMEOUT_DEFAULT_MS,
            worker_threads: 0,
            server: Server::default(),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            socket: None,
            host: None,
            port: 3306,
            user: "concord".to_owned(),
            password_file: None,
            database: None,
            tls: TlsMode::default(),
            tls_ca: None,
            max_connections: CONNECTIONS_DEFAULT,
            reserve_connections: 8,
            acquire_timeout_ms: 3_000,
            lock_wait_timeout_s: 5,
            metadata_lock_timeout_s: 3,
            finish_timeout_s: 15,
            check_interval_ms: 2_000,
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, Error)]
pub enum CheckError {
    /// A name has not the form of one.
    #[error("setting {0}: must be 1 to 32 of [A-Za-z0-9._-], and is {1:?}")]
    Name(&'static str, String),
    /// A number is out of range.
    #[error("setting {0}: must be from {1} to {2}, and is {3}")]
    Range(&'static str, u64, u64, u64),
    /// The coordinator's address is none.
    #[error("setting coordinator: {0:?} is not an address like http://127.0.0.1:7400")]
    Coordinator(String),
    /// Neither or both of the ways to the server are given.
    #[error("settings server.socket and server.host: exactly one of them must be given")]
    Address,
    /// The password cannot be had.
    #[error("setting server.password_file")]
    Password(#[from] SecretError),
}

/// Settings that are in order.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Who this participant is.
    pub identity: Identity,
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Unix socket to listen on as well.
    pub listen_socket: Option<PathBuf>,
    /// The coordinator.
    pub coordinator: Endpoint,
    /// How the driver behaves.
    pub driver: Settings,
    /// Time for what runs to end when the process is asked to stop.
    pub drain: Duration,
    /// The server.
    pub server: Options,
}

impl Config {
    /// Checks all settings, and reads the password.
    pub fn check(&self) -> Result<Checked, CheckError> {
        for (setting, name) in [("name", &self.name), ("cluster", &self.cluster)] {
            if !text::is_name(name) {
                return Err(CheckError::Name(setting, name.clone()));
            }
        }
        let sweep = ms("sweep_interval_ms", 10, self.sweep_interval_ms)?;
        let drain = ms("drain_timeout_ms", 0, self.drain_timeout_ms)?;
        let branches = self.max_branches as u64;
        range(
            "max_branches",
            1,
            crate::driver::WAITING_MAX as u64,
            branches,
        )?;
        let coordinator = Endpoint::from_shared(self.coordinator.clone())
            .ok()
            .filter(|endpoint| endpoint.uri().host().is_some())
            .ok_or_else(|| CheckError::Coordinator(self.coordinator.clone()))?;
        Ok(Checked {
            identity: Identity {
                name: ParticipantName::new(self.name.as_str()),
                cluster: self.cluster.clone(),
            },
            listen: self.listen,
            listen_socket: self.listen_socket.clone(),
            coordinator,
            driver: Settings {
                branches_max: self.max_branches,
                sweep_interval: sweep,
            },
            drain,
            server: self.server.check(&self.cluster, &self.name)?,
        })
    }
}

impl Server {
    fn check(&self, cluster: &str, name: &str) -> Result<Options, CheckError> {
        let address = match (&self.socket, &self.host) {
            (Some(socket), None) => Address::Socket(socket.clone()),
            (None, Some(host)) => Address::Tcp {
                host: host.clone(),
                port: self.port,
            },
            (None, None) | (Some(_), Some(_)) => return Err(CheckError::Address),
        };
        let password = match &self.password_file {
            Some(path) => Secret(secret::read(path)?.reveal().to_owned()),
            None => Secret::default(),
        };
        let count = |setting, min: u32, value: u32| {
            range(setting, min.into(), 100_000, value.into()).map(|()| value)
        };
        let mut options = Options::new(cluster, name, address, &self.user);
        options.password = password;
        options.database.clone_from(&self.database);
        options.tls = self.tls.into();
        options.tls_ca.clone_from(&self.tls_ca);
        options.max_connections = count("server.max_connections", 1, self.max_connections)?;
        options.reserve_connections =
            count("server.reserve_connections", 2, self.reserve_connections)?;
        options.acquire_timeout = ms("server.acquire_timeout_ms", 1, self.acquire_timeout_ms)?;
        options.lock_wait_timeout = s("server.lock_wait_timeout_s", self.lock_wait_timeout_s)?;
        options.metadata_lock_timeout = s(
            "server.metadata_lock_timeout_s",
            self.metadata_lock_timeout_s,
        )?;
        options.finish_timeout = s("server.finish_timeout_s", self.finish_timeout_s)?;
        options.check_interval = ms("server.check_interval_ms", 10, self.check_interval_ms)?;
        Ok(options)
    }
}

fn range(setting: &'static str, min: u64, max: u64, value: u64) -> Result<(), CheckError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(CheckError::Range(setting, min, max, value))
    }
}

fn ms(setting: &'static str, min: u64, value: u64) -> Result<Duration, CheckError> {
    range(setting, min, TIME_MAX_MS, value)?;
    Ok(Duration::from_millis(value))
}

fn s(setting: &'static str, value: u64) -> Result<Duration, CheckError> {
    range(setting, 1, TIME_MAX_MS / 1_000, value)?;
    Ok(Duration::from_secs(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings without a default, which the sample shows commented out.
    const LEFT_OUT: &[&str] = &[
        "listen_socket",
        "server.database",
        "server.host",
        "server.password_file",
        "server.tls_ca",
    ];

    fn config() -> Config {
        let mut config = Config {
            name: "p1".into(),
            ..Config::default()
        };
        config.server.socket = Some("/tmp/s".into());
        config
    }

    #[test]
    fn the_defaults_need_a_name_and_a_way_to_the_server() {
        assert!(config().check().is_ok());
        let error = Config::default().check().unwrap_err();
        assert!(error.to_string().contains("setting name"), "{error}");
        let mut neither = config();
        neither.server.socket = None;
        assert!(matches!(neither.check(), Err(CheckError::Address)));
        let mut both = config();
        both.server.host = Some("h".into());
        assert!(matches!(both.check(), Err(CheckError::Address)));
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        let mut bad = config();
        bad.server.lock_wait_timeout_s = 0;
        let error = bad.check().unwrap_err().to_string();
        assert!(error.contains("server.lock_wait_timeout_s"), "{error}");
        let mut bad = config();
        bad.coordinator = "not an address".into();
        assert!(matches!(bad.check(), Err(CheckError::Coordinator(_))));
    }

    #[test]
    fn a_password_file_is_read_and_its_text_never_shown() {
        let mut missing = config();
        missing.server.password_file = Some("/nonexistent/password".into());
        assert!(matches!(missing.check(), Err(CheckError::Password(_))));
    }

    #[test]
    fn the_sample_file_has_every_setting() {
        let sample = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../deploy/config/participant.toml"
        );
        let (sample, none) = (
            std::path::Path::new(sample),
            std::collections::BTreeMap::new(),
        );
        let loaded = concord_daemon::load::<Config>(Some(sample), ENV_PREFIX, none);
        let loaded = loaded.expect("the sample is a configuration");
        assert!(loaded.config.check().is_ok());
        assert_eq!(loaded.left_out(), LEFT_OUT);
    }
}
