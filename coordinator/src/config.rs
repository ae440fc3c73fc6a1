//! The coordinator's configuration.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use concord_core::id::ParticipantName;
use concord_core::limits::NAME_LEN_MAX;
use concord_daemon::telemetry::LogFormat;
use concord_proto::convert::text::{is_name, parse_gtrid};
use concord_proto::local;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tonic::transport::Endpoint;

use crate::driver::{Accepted, DriverConfig};

/// Prefix of environment variables, e.g. `CONCORD_COORDINATOR_LIMITS__MAX_IN_FLIGHT`.
pub const ENV_PREFIX: &str = "CONCORD_COORDINATOR_";
/// Port of the gateway.
pub const DEFAULT_PORT: u16 = 7400;

/// The whole configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The cluster's name; part of every xid.
    pub cluster: String,
    /// Where the gateway listens.
    pub listen: SocketAddr,
    /// Unix socket to listen on as well, for clients on the same host.
    pub listen_socket: Option<PathBuf>,
    /// Where the decision log lives.
    pub data_dir: PathBuf,
    /// The participants; the order decides which hash slots they get in a new cluster.
    pub participants: Vec<ParticipantConfig>,
    /// Admission limits.
    pub limits: Limits,
    /// How long ended transactions are remembered.
    pub retention: Retention,
    /// Time that running transactions have to end after SIGTERM, in seconds.
    pub drain_timeout_s: u64,
    /// Threads that do the work; 0 takes half of the processors, 1 to 8.
    pub worker_threads: usize,
    /// Form of log lines: "text" or "json".
    pub log_format: LogFormat,
}

/// One participant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParticipantConfig {
    /// Its name.
    pub name: String,
    /// Its address, e.g. "http://127.0.0.1:7411", or "unix:/run/concord/p1.sock" on the same host.
    pub address: String,
    /// Accepts the data behind it although it is not what the cluster knows: the incarnation that
    /// the coordinator complained about. To be set by hand, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// Accepts data behind it that lacks this transaction and those before it: the one that the
    /// coordinator complained about. To be set by hand, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_without: Option<String>,
}

/// Admission limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Transactions that are not over, at most.
    pub max_in_flight: usize,
    /// MiB of statements and results in all transactions in flight; beyond it none begins.
    pub max_in_flight_mib: usize,
    /// Transactions that ListTransactions shows after their end, at most.
    pub max_history: usize,
}

/// How long ended transactions are remembered by the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Time in seconds. A server that loses acknowledged work in a crash shows it within minutes.
    pub seconds: u64,
    /// Number of transactions, at most: bounds the log's size and the coordinator's memory.
    pub max_transactions: usize,
    /// Time between two looks for what can be forgotten, in ms.
    pub look_interval_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster: "concord".to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            listen_socket: None,
            data_dir: PathBuf::from("coordinator-data"),
            participants: Vec::new(),
            limits: Limits::default(),
            retention: Retention::default(),
            drain_timeout_s: 10,
            worker_threads: 0,
            log_format: LogFormat::Text,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_in_flight: 20_000,
            max_in_flight_mib: 64,
            max_history: 10_000,
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            seconds: 3_600,
            max_transactions: 200_000,
            look_interval_ms: 10_000,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum InvalidConfig {
    /// A name is not one.
    #[error(
        "{setting} = {name:?} is not a name: 1 to {NAME_LEN_MAX} letters, digits, '.', '_' and '-'"
    )]
    Name { setting: &'static str, name: String },
    /// There is nobody to coordinate.
    #[error("no [[participants]] are configured; at least one is needed")]
    NoParticipants,
    /// Two of the same name.
    #[error("two [[participants]] are called {0}")]
    Twice(String),
    /// A transaction is not one.
    #[error("accept_without = {0:?} of participant {1} is not a gtrid in text form")]
    Gtrid(String, String),
    /// A socket's path is not absolute.
    #[error("the address {address:?} of participant {name} has no absolute path after unix:")]
    Socket { name: String, address: String },
    /// An address is not one.
    #[error(
        "the address {address:?} of participant {name} is not one like http://127.0.0.1:7411 or \
         unix:/run/concord/p1.sock"
    )]
    Address {
        name: String,
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
}

impl Config {
    /// Checks what the types do not.
    pub fn endpoints(&self) -> Result<Vec<(ParticipantName, String, Endpoint)>, InvalidConfig> {
        if !is_name(&self.cluster) {
            return Err(InvalidConfig::Name {
                setting: "cluster",
                name: self.cluster.clone(),
            });
        }
        if self.participants.is_empty() {
            return Err(InvalidConfig::NoParticipants);
        }
        let mut endpoints: Vec<(ParticipantName, String, Endpoint)> = Vec::new();
        for participant in &self.participants {
            let ParticipantConfig {
                name,
                address,
                accept_without,
                ..
            } = participant.clone();
            if let Some(text) = accept_without
                && parse_gtrid(&text).is_none()
            {
                return Err(InvalidConfig::Gtrid(text, name));
            }
            if !is_name(&name) {
                return Err(InvalidConfig::Name {
                    setting: "participants.name",
                    name,
                });
            }
            if endpoints.iter().any(|(known, ..)| *known.as_str() == *name) {
                return Err(InvalidConfig::Twice(name));
            }
            if address.starts_with(local::SCHEME) && local::path_of(&address).is_none() {
                return Err(InvalidConfig::Socket { name, address });
            }
            let endpoint = Endpoint::from_shared(address.clone()).map_err(|source| {
                InvalidConfig::Address {
                    name: name.clone(),
                    address: address.clone(),
                    source,
                }
            })?;
            endpoints.push((ParticipantName::new(name), address, endpoint));
        }
        Ok(endpoints)
    }

    /// What the driver needs of it.
    pub fn driver(&self) -> DriverConfig {
        DriverConfig {
            max_in_flight: self.limits.max_in_flight,
            max_in_flight_bytes: self.limits.max_in_flight_mib << 20,
            retention: Duration::from_secs(self.retention.seconds),
            max_remembered: self.retention.max_transactions,
            forget_interval: Duration::from_millis(self.retention.look_interval_ms.max(1)),
        }
    }

    /// What is accepted of each participant's data.
    pub fn accepted(&self) -> BTreeMap<ParticipantName, Accepted> {
        let accepted = |p: &ParticipantConfig| {
            let accepted = Accepted {
                incarnation: p.incarnation.clone(),
                without: p.accept_without.as_deref().and_then(parse_gtrid),
            };
            (ParticipantName::new(p.name.as_str()), accepted)
        };
        self.participants.iter().map(accepted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings without a default, which the sample shows commented out.
    const LEFT_OUT: &[&str] = &["listen_socket"];

    fn with(participants: &[(&str, &str)]) -> Config {
        let participants = participants
            .iter()
            .map(|(name, address)| ParticipantConfig {
                name: (*name).to_owned(),
                address: (*address).to_owned(),
                incarnation: None,
                accept_without: None,
            })
            .collect();
        Config {
            participants,
            ..Config::default()
        }
    }

    #[test]
    fn participants_are_checked() {
        let http = "http://127.0.0.1:7411";
        assert!(with(&[("p1", http), ("p2", http)]).endpoints().is_ok());
        assert!(matches!(
            with(&[("p1", "unix:p1.sock")]).endpoints(),
            Err(InvalidConfig::Socket { .. })
        ));
        let unix = with(&[("p1", "unix:/run/p1.sock")]).endpoints();
        assert_eq!(unix.expect("an endpoint")[0].1, "unix:/run/p1.sock");
        assert!(matches!(
            with(&[]).endpoints(),
            Err(InvalidConfig::NoParticipants)
        ));
        assert!(matches!(
            with(&[("p1", http), ("p1", http)]).endpoints(),
            Err(InvalidConfig::Twice(_))
        ));
        assert!(matches!(
            with(&[("p 1", http)]).endpoints(),
            Err(InvalidConfig::Name { .. })
        ));
        assert!(matches!(
            with(&[("p1", "::not an address::")]).endpoints(),
            Err(InvalidConfig::Address { .. })
        ));
    }

    #[test]
    fn the_sample_file_has_every_setting() {
        let sample = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../deploy/config/coordinator.toml"
        );
        let (sample, none) = (
            std::path::Path::new(sample),
            std::collections::BTreeMap::new(),
        );
        let loaded = concord_daemon::load::<Config>(Some(sample), ENV_PREFIX, none);
        let loaded = loaded.expect("the sample is a configuration");
        assert!(loaded.config.endpoints().is_ok());
        assert_eq!(loaded.left_out(), LEFT_OUT);
    }
}
