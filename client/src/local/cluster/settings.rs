//! What a cluster remembers between two starts, and how a user's wishes fit to it.
//!
//! The number of servers and their kind can never change, because the data depends on them. All
//! else may.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ClusterError, io_error};
use crate::local::binary::{ServerBinary, ServerKind};
use crate::local::ports::{self, PortError, PortUse};
use crate::local::state::replace_durably;

/// Servers of a new cluster when nothing else is asked for.
const DEFAULT_SERVERS: u16 = 2;
const DEFAULT_GATEWAY_PORT: u16 = 7400;
const DEFAULT_PARTICIPANT_PORT: u16 = 7411;
const DEFAULT_SERVER_PORT: u16 = 7421;

/// The settings file, which marks a folder as ours.
pub(super) const SETTINGS_FILE: &str = "cluster.json";

/// What the user asks for; `None` means what the cluster had, or the default for a new one.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// The cluster's folder.
    pub folder: PathBuf,
    /// How many servers.
    pub servers: Option<u16>,
    /// `mysql`, `mariadb` or a path.
    pub server: Option<String>,
    /// The gateway's port.
    pub gateway_port: Option<u16>,
    /// The first participant's port.
    pub participant_port: Option<u16>,
    /// The first server's port.
    pub server_port: Option<u16>,
    /// Longest pause before a process that ended is started again, for this run.
    pub pause_max: Option<Duration>,
}

/// What a cluster remembers between two starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    /// How many servers.
    pub servers: u16,
    /// The path that the server program was found at.
    pub server: PathBuf,
    /// Whose data it is.
    pub kind: ServerKind,
    /// The gateway's port.
    pub gateway_port: u16,
    /// The first participant's port.
    pub participant_port: u16,
    /// The first server's port.
    pub server_port: u16,
    /// Whether the sample data is in.
    pub seeded: bool,
}

impl Settings {
    /// Reads the settings in a folder; `None` when it is not a cluster's.
    pub fn read(folder: &Path) -> Result<Option<Self>, ClusterError> {
        let file = folder.join(SETTINGS_FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("cannot read", &file)(error)),
        };
        let settings = serde_json::from_str(&text);
        settings
            .map(Some)
            .map_err(|source| ClusterError::BrokenSettings { file, source })
    }

    /// Writes the settings, which makes the folder a cluster's.
    pub fn write(&self, folder: &Path) -> Result<(), ClusterError> {
        let file = folder.join(SETTINGS_FILE);
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| io_error("cannot write", &file)(error.into()))?;
        replace_durably(&file, &(text + "\n")).map_err(io_error("cannot write", &file))
    }

    /// Checks that every port can be had.
    pub fn check_ports(&self) -> Result<(), PortError> {
        ports::check(&self.ports()?)
    }

    /// Checks that the ports are possible and different, whoever holds them now.
    pub fn check_plan(&self) -> Result<(), PortError> {
        ports::distinct(&self.ports()?)
    }

    fn ports(&self) -> Result<Vec<PortUse>, PortError> {
        let mut uses = vec![PortUse {
            port: self.gateway_port,
            user: "the coordinator's gateway".into(),
            flag: "--gateway-port",
        }];
        for index in 0..self.servers {
            uses.push(PortUse {
                port: self.participant_port(index)?,
                user: format!("participant p{}", index + 1),
                flag: "--participant-port",
            });
            uses.push(PortUse {
                port: self.server_port(index)?,
                user: format!("server s{}", index + 1),
                flag: "--server-port",
            });
        }
        Ok(uses)
    }

    /// The port of the participant with this index.
    pub fn participant_port(&self, index: u16) -> Result<u16, PortError> {
        ports::in_row(
            self.participant_port,
            index,
            self.servers,
            "--participant-port",
        )
    }

    /// The port of the server with this index.
    pub fn server_port(&self, index: u16) -> Result<u16, PortError> {
        ports::in_row(self.server_port, index, self.servers, "--server-port")
    }
}

/// Fits the wishes to what is there.
pub(super) fn settle(
    wishes: &Wishes,
    known: Option<Settings>,
) -> Result<(Settings, ServerBinary), ClusterError> {
    let folder = || wishes.folder.clone();
    let binary = match (&wishes.server, &known) {
        (Some(server), _) => ServerBinary::discover(server)?,
        (None, Some(known)) => ServerBinary::at(&known.server)
            // It may have been installed elsewhere since.
            .or_else(|_| ServerBinary::of_kind(known.kind))?,
        (None, None) => ServerBinary::of_kind(ServerKind::Mariadb)
            .or_else(|_| ServerBinary::of_kind(ServerKind::Mysql))?,
    };
    let new = Settings {
        servers: DEFAULT_SERVERS,
        server: binary.path().to_owned(),
        kind: binary.kind(),
        gateway_port: DEFAULT_GATEWAY_PORT,
        participant_port: DEFAULT_PARTICIPANT_PORT,
        server_port: DEFAULT_SERVER_PORT,
        seeded: false,
    };
    if let Some(known) = &known {
        let wanted = wishes.servers.unwrap_or(known.servers);
        if wanted != known.servers {
            return Err(ClusterError::OtherSize {
                folder: folder(),
                has: known.servers,
                wanted,
            });
        }
        if binary.kind() != known.kind {
            let (has, wanted) = (known.kind, binary.kind());
            return Err(ClusterError::OtherKind {
                folder: folder(),
                has,
                wanted,
            });
        }
    }
    let is_new = known.is_none();
    let mut settings = known.unwrap_or(new);
    binary.path().clone_into(&mut settings.server);
    settings.servers = wishes.servers.unwrap_or(settings.servers);
    settings.gateway_port = wishes.gateway_port.unwrap_or(settings.gateway_port);
    settings.participant_port = wishes.participant_port.unwrap_or(settings.participant_port);
    settings.server_port = wishes.server_port.unwrap_or(if is_new {
        // Many participants, or ones that were moved, would reach into the servers' usual ports.
        let behind = settings.participant_port.saturating_add(settings.servers);
        settings.server_port.max(behind)
    } else {
        settings.server_port
    });
    Ok((settings, binary))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::MAX_SERVERS;
    use super::*;

    pub(in crate::local::cluster) fn settings() -> Settings {
        let binary = ServerBinary::under_test().unwrap().remove(0);
        Settings {
            servers: 3,
            server: binary.path().to_owned(),
            kind: binary.kind(),
            gateway_port: 1,
            participant_port: 2,
            server_port: 5,
            seeded: true,
        }
    }

    #[test]
    fn a_second_start_keeps_what_the_first_chose() {
        let known = settings();
        let (again, _) = settle(&Wishes::default(), Some(known.clone())).unwrap();
        assert_eq!(again, known);
        let wishes = Wishes {
            gateway_port: Some(9),
            ..Wishes::default()
        };
        let (moved, _) = settle(&wishes, Some(known.clone())).unwrap();
        assert_eq!((moved.gateway_port, moved.server_port), (9, 5));
    }

    #[test]
    fn the_ports_of_any_number_of_servers_are_different() {
        let settled = |wishes: &Wishes| settle(wishes, None).unwrap().0;
        for servers in 1..=MAX_SERVERS {
            let servers = Some(servers);
            let wishes = Wishes {
                servers,
                ..Wishes::default()
            };
            settled(&wishes).check_plan().unwrap();
        }
        let few = settled(&Wishes::default());
        assert_eq!((few.participant_port, few.server_port), (7411, 7421));
        let moved = settled(&Wishes {
            participant_port: Some(7_421),
            ..Wishes::default()
        });
        moved.check_plan().unwrap();
        let chosen = settled(&Wishes {
            server_port: Some(7_411),
            ..Wishes::default()
        });
        assert_eq!(chosen.server_port, 7_411);
        assert!(chosen.check_plan().is_err());
    }

    #[test]
    fn what_the_data_does_not_allow_is_refused() {
        let known = settings();
        let wishes = Wishes {
            servers: Some(2),
            ..Wishes::default()
        };
        let error = settle(&wishes, Some(known.clone())).unwrap_err();
        assert!(matches!(
            error,
            ClusterError::OtherSize {
                has: 3,
                wanted: 2,
                ..
            }
        ));
        let other = match known.kind {
            ServerKind::Mysql => ServerKind::Mariadb,
            ServerKind::Mariadb => ServerKind::Mysql,
        };
        let error = settle(
            &Wishes::default(),
            Some(Settings {
                kind: other,
                ..known
            }),
        );
        assert!(matches!(error.unwrap_err(), ClusterError::OtherKind { .. }));
    }
}
