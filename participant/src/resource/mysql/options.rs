//! How to reach the server and how long to wait for what. Validated where it is read.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

use super::preflight::SERVER_IDS;

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket on the same host: the fastest and safest way.
    Socket(PathBuf),
    /// TCP. An account that uses `caching_sha2_password` needs TLS.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// TLS for connections over TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// None.
    Disabled,
    /// When the server offers it.
    #[default]
    Preferred,
    /// Always, without checking the certificate.
    Required,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// As above, and for the host's name.
    VerifyIdentity,
}

/// Text that is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "***" })
    }
}

/// How to reach the server and how long to wait for what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster: part of every xid.
    pub cluster: String,
    /// This participant.
    pub participant: String,
    /// Where the server listens.
    pub address: Address,
    /// The account.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Schema of statements that name none. Not `concord`.
    pub database: Option<String>,
    /// TLS over TCP.
    pub tls: Tls,
    /// Authorities for the verifying kinds of [`Tls`]; the system's own when none.
    pub tls_ca: Option<PathBuf>,
    /// Branches that may be worked on, or, on MariaDB, be prepared, at the same time.
    pub max_connections: u32,
    /// Connections beside those, which only finish branches and do housekeeping, so that the
    /// second phase never waits behind votes.
    pub reserve_connections: u32,
    /// Longest wait for a free connection, and for a new one: a server that lets nobody in for so
    /// long is down.
    pub acquire_timeout: Duration,
    /// Longest wait for a row lock. No server sees a deadlock that spans two servers: this ends it.
    pub lock_wait_timeout: Duration,
    /// Longest wait for a metadata lock, e.g. of a backup or DDL. The server's default is a year.
    pub metadata_lock_timeout: Duration,
    /// Longest time for one XA COMMIT or XA ROLLBACK; longer than the two above.
    pub finish_timeout: Duration,
    /// How often the server's settings are looked at.
    pub check_interval: Duration,
}

impl Options {
    /// The defaults, for a server behind `address`.
    pub fn new(cluster: &str, participant: &str, address: Address, user: &str) -> Self {
        Self {
            cluster: cluster.into(),
            participant: participant.into(),
            address,
            user: user.into(),
            password: Secret::default(),
            database: None,
            tls: Tls::default(),
            tls_ca: None,
            max_connections: 64,
            reserve_connections: 8,
            acquire_timeout: Duration::from_secs(3),
            lock_wait_timeout: Duration::from_secs(5),
            metadata_lock_timeout: Duration::from_secs(3),
            finish_timeout: Duration::from_secs(15),
            check_interval: Duration::from_secs(2),
        }
    }

    /// For the driver. Nothing of a session is left to its defaults, and no statement is logged:
    /// statements hold clients' values.
    pub(super) fn driver(&self) -> MySqlConnectOptions {
        let mut options = MySqlConnectOptions::new()
            .username(&self.user)
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None)
            .set_names(false)
            .statement_cache_capacity(0)
            .disable_statement_logging();
        if !self.password.0.is_empty() {
            options = options.password(&self.password.0);
        }
        if let Some(ca) = &self.tls_ca {
            options = options.ssl_ca(ca);
        }
        match &self.address {
            Address::Socket(path) => options.socket(path).ssl_mode(MySqlSslMode::Disabled),
            Address::Tcp { host, port } => {
                options.host(host).port(*port).ssl_mode(match self.tls {
                    Tls::Disabled => MySqlSslMode::Disabled,
                    Tls::Preferred => MySqlSslMode::Preferred,
                    Tls::Required => MySqlSslMode::Required,
                    Tls::VerifyCa => MySqlSslMode::VerifyCa,
                    Tls::VerifyIdentity => MySqlSslMode::VerifyIdentity,
                })
            }
        }
    }

    /// What a new session is told, in one text, and whose it is. Unique checks that are off, a
    /// setting for imports, let `InnoDB` take the same request id twice. In MariaDB's mode ORACLE
    /// `s.NEXTVAL` draws from a sequence. `USE` comes last so that a schema that does not exist yet
    /// (error 1049) is told apart.
    pub(super) fn session(&self) -> [String; 4] {
        let seconds = |duration: Duration| duration.as_secs().clamp(1, 3_600);
        let settings = format!(
            "SET SESSION sql_mode = REPLACE(@@GLOBAL.sql_mode, 'ORACLE', ''), autocommit = 1, \
             completion_type = 0, unique_checks = 1, foreign_key_checks = 1, \
             sql_auto_is_null = 0, \
             innodb_lock_wait_timeout = {}, lock_wait_timeout = {}, wait_timeout = {}, \
             sql_select_limit = {}",
            seconds(self.lock_wait_timeout),
            seconds(self.metadata_lock_timeout),
            SESSION_WAIT_TIMEOUT_S,
            concord_core::limits::RESULT_ROWS_MAX + 1,
        );
        let ids = SERVER_IDS.join("','");
        [
            "SET NAMES utf8mb4".to_owned(),
            settings,
            format!("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('{ids}')"),
            "SELECT CONNECTION_ID()".to_owned(),
        ]
    }
}

/// An idle session is closed by us long before the server would, which looks like a crash.
const SESSION_WAIT_TIMEOUT_S: u32 = 28_800;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        let mut options = Options::new("c", "p", Address::Socket("/s".into()), "u");
        options.password = Secret("hunter2".into());
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
