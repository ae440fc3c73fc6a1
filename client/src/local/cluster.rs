//! What a local cluster consists of: its folder, its settings, and the list of its processes.
//!
//! ```text
//! .concord/
//!   cluster.json         settings of the first start; also the mark that makes this folder ours
//!   cluster.json.wiped   the same while the cluster is being removed
//!   lock                 held by the supervisor
//!   state.json           what runs now
//!   up.log               the supervisor's log when it is detached
//!   config/*.toml        the daemons' configuration, written at every start
//!   own/*.toml           the user's: settings of a daemon that take the place of ours
//!   log/*.log            one log per process
//!   servers/s1…          one private folder per server
//!   coordinator/         the decision log
//!   gateway.sock         the gateway, for clients on this machine
//! ```
//!
//! This module starts nothing.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::binary::{BinaryError, ServerBinary, ServerKind};
use super::config::{
    self, CoordinatorConfig, ParticipantAddress, ParticipantConfig, private_folder,
};
use super::lock::{ClusterLock, LockError};
use super::ports::PortError;
use super::process::{Launch, own_user};
use super::server::{SOCKET_PATH_MAX, ServerError, ServerFolder, ServerSpec, Tcp};
use super::state::Role;
use super::strays;

mod claim;
mod guard;
mod settings;

pub use claim::{is_cluster, wipe};
use settings::Settings;
pub use settings::Wishes;

/// Most servers of a local cluster: what one machine can carry.
pub const MAX_SERVERS: u16 = 16;

/// The cluster's name, which is part of every branch's xid.
const CLUSTER_NAME: &str = "local";

/// The gateway's socket.
const GATEWAY_SOCKET: &str = "gateway.sock";

/// The supervisor's log when nobody watches it.
pub const UP_LOG: &str = "up.log";

/// Why a cluster cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file or folder.
    #[error("{what} {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder has other things in it.
    #[error("{folder} holds no cluster, and {found} is in the way of a new one")]
    ForeignFolder {
        /// The folder.
        folder: PathBuf,
        /// The first of them.
        found: PathBuf,
    },
    /// The folder, or something in it, belongs to another user.
    #[error("{path} belongs to another user (uid {owner}), who could read and change all data")]
    OtherUser {
        /// What belongs to him.
        path: PathBuf,
        /// Who it is.
        owner: u32,
    },
    /// A removal of the cluster was interrupted.
    #[error("the cluster in {folder} was being removed, and is not whole any more")]
    HalfRemoved {
        /// The folder.
        folder: PathBuf,
    },
    /// The settings cannot be understood.
    #[error("the cluster's settings in {file} are broken")]
    BrokenSettings {
        /// Their file.
        file: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The folder is not a cluster's.
    #[error("{folder} holds no cluster")]
    NoCluster {
        /// The folder.
        folder: PathBuf,
    },
    /// The cluster has another size.
    #[error(
        "the cluster in {folder} has {has} servers, and its data is spread over them; \
         --servers {wanted} needs a new one: `concord down --wipe` removes this, --dir chooses \
         another folder"
    )]
    OtherSize {
        /// The folder.
        folder: PathBuf,
        /// Its servers.
        has: u16,
        /// What was asked for.
        wanted: u16,
    },
    /// The cluster's data belongs to the other kind of server.
    #[error(
        "the data in {folder} was written by {has}, and {wanted} cannot read it; `concord down \
         --wipe` removes it, --dir chooses another folder"
    )]
    OtherKind {
        /// The folder.
        folder: PathBuf,
        /// Who wrote the data.
        has: ServerKind,
        /// What was asked for.
        wanted: ServerKind,
    },
    /// A program of ours is missing.
    #[error("{program} is not beside {own}; build all with `cargo build`")]
    NoDaemon {
        /// The program.
        program: &'static str,
        /// Where it was looked for.
        own: PathBuf,
    },
    /// There is no usable server program.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// A server's folder.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The ports do not do.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Another supervisor runs.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// One process and how to start it.
#[derive(Debug, Clone)]
pub struct Service {
    /// `s1`…, `p1`… or `coordinator`.
    pub name: String,
    /// What it is there for.
    pub role: Role,
    /// Where it listens, `127.0.0.1:PORT`.
    pub address: String,
    /// Its log.
    pub log: PathBuf,
    /// How to start it.
    pub program: Program,
    /// Longest pause before it is started again, when that is not to be the keeper's own.
    pub pause_max: Option<Duration>,
}

/// How a process is started.
#[derive(Debug, Clone)]
pub enum Program {
    /// A MySQL or MariaDB server.
    Server(Box<ServerSpec>),
    /// A daemon of ours, which answers gRPC health.
    Daemon(Launch),
}

/// A cluster that is locked by us and ready to be started.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    settings: Settings,
    binary: ServerBinary,
    daemons: PathBuf,
    pause_max: Option<Duration>,
    lock: Arc<ClusterLock>,
}

impl Cluster {
    /// Takes the folder and decides on everything, without starting or changing anything but the
    /// folder's settings. Ports that strays of an earlier supervisor may hold are checked by
    /// [`Cluster::check_ports`] after those have been stopped, all others at once.
    pub fn open(wishes: &Wishes) -> Result<Self, ClusterError> {
        let daemons = daemon_folder()?;
        let folder = &wishes.folder;
        let user = own_user().map_err(io_error("cannot tell the owner of", folder))?;
        if claim::is_half_removed(folder) {
            let folder = folder.clone();
            return Err(ClusterError::HalfRemoved { folder });
        }
        if !is_cluster(folder)
            && let Some(found) = claim::obstacle(folder)?
        {
            let folder = folder.clone();
            return Err(ClusterError::ForeignFolder { folder, found });
        }
        if folder.exists() {
            // Nothing in it is believed before it is known whose it is.
            guard::check(folder, user)?;
        }
        let known = Settings::read(folder)?;
        let (settings, binary) = settings::settle(wishes, known.clone())?;
        settings.check_plan()?;
        if known.is_none() {
            // Nothing of it can be running yet, so a refusal need not leave a folder behind.
            settings.check_ports()?;
        }
        private_folder(folder).map_err(io_error("cannot make the folder", folder))?;
        let folder = folder
            .canonicalize()
            .map_err(io_error("cannot find", folder))?;
        // From here on it is a cluster's. Somebody else may have made it a moment ago.
        guard::close(&folder, user)?;
        let lock = ClusterLock::acquire(&folder)?;
        let strays =
            strays::find(&folder).map_err(io_error("cannot look for processes of", &folder))?;
        if known.is_some() && strays.is_empty() {
            // Before they are remembered. Strays may hold them, until they have been stopped.
            settings.check_ports()?;
        }
        for part in ["config", "log", "servers", "coordinator"] {
            let part = folder.join(part);
            private_folder(&part).map_err(io_error("cannot make the folder", &part))?;
        }
        let cluster = Self {
            folder,
            settings,
            binary,
            daemons,
            pause_max: wishes.pause_max,
            lock: Arc::new(lock),
        };
        if known.as_ref() != Some(&cluster.settings) {
            cluster.settings.write(&cluster.folder)?;
        }
        Ok(cluster)
    }

    /// Its folder, absolute.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        CLUSTER_NAME
    }

    /// The lock that makes the folder ours.
    pub fn lock(&self) -> Arc<ClusterLock> {
        Arc::clone(&self.lock)
    }

    /// The program of its servers.
    pub fn binary(&self) -> &ServerBinary {
        &self.binary
    }

    /// The gateway's URL.
    pub fn gateway(&self) -> String {
        format!("http://127.0.0.1:{}", self.settings.gateway_port)
    }

    /// True when the sample data was put in by an earlier start.
    pub fn is_seeded(&self) -> bool {
        self.settings.seeded
    }

    /// Remembers that the sample data is in.
    pub fn set_seeded(&mut self) -> Result<(), ClusterError> {
        self.settings.seeded = true;
        self.settings.write(&self.folder)
    }

    /// Checks that every port can be had.
    pub fn check_ports(&self) -> Result<(), ClusterError> {
        Ok(self.settings.check_ports()?)
    }

    /// Writes the daemons' configuration files and lists all processes: servers, participants,
    /// coordinator.
    pub fn services(&self) -> Result<Vec<Service>, ClusterError> {
        let mut servers = Vec::new();
        let mut participants = Vec::new();
        let mut addresses = Vec::new();
        for index in 0..self.settings.servers {
            let server = self.server(index)?;
            let (participant, link) = self.participant(index)?;
            addresses.push(ParticipantAddress {
                name: participant.name.clone(),
                address: format!("unix:{}", link.display()),
            });
            servers.push(server);
            participants.push(participant);
        }
        let coordinator = self.coordinator(addresses)?;
        servers.append(&mut participants);
        servers.push(coordinator);
        Ok(servers)
    }

    fn server(&self, index: u16) -> Result<Service, ClusterError> {
        let port = self.settings.server_port(index)?;
        let name = format!("s{}", index + 1);
        let log = self.log(&name);
        let folder = self.server_folder(index);
        let mut spec = ServerSpec::new(self.binary.clone(), folder).tcp(Tcp::Port(port));
        spec.log = Some(log.clone());
        let address = format!("127.0.0.1:{port}");
        let program = Program::Server(Box::new(spec));
        Ok(Service {
            name,
            role: Role::Server,
            address,
            log,
            program,
            pause_max: self.pause_max,
        })
    }

    /// A participant, and the unix socket that the coordinator reaches it by.
    fn participant(&self, index: u16) -> Result<(Service, PathBuf), ClusterError> {
        let name = format!("p{}", index + 1);
        let address = format!("127.0.0.1:{}", self.settings.participant_port(index)?);
        let server = ServerFolder::open(&self.server_folder(index))?;
        let link = server.link();
        let config = ParticipantConfig::new(
            &name,
            CLUSTER_NAME,
            (address.clone(), link.clone()),
            self.gateway(),
            (
                server.socket().to_owned(),
                server.password_file().to_owned(),
            ),
        );
        let program = self.daemon("concord-participant", &name, &config)?;
        let log = self.log(&name);
        let service = Service {
            name,
            role: Role::Participant,
            address,
            log,
            program,
            pause_max: self.pause_max,
        };
        Ok((service, link))
    }

    fn coordinator(&self, participants: Vec<ParticipantAddress>) -> Result<Service, ClusterError> {
        let name = "coordinator".to_owned();
        let address = format!("127.0.0.1:{}", self.settings.gateway_port);
        let config = CoordinatorConfig {
            cluster: CLUSTER_NAME.into(),
            listen: address.clone(),
            listen_socket: gateway_socket(&self.folder),
            data_dir: self.folder.join("coordinator"),
            participants,
        };
        let program = self.daemon("concord-coordinator", &name, &config)?;
        let log = self.log(&name);
        Ok(Service {
            name,
            role: Role::Coordinator,
            address,
            log,
            program,
            pause_max: self.pause_max,
        })
    }

    fn daemon(
        &self,
        program: &str,
        name: &str,
        config: &impl Serialize,
    ) -> Result<Program, ClusterError> {
        let file = self.folder.join("config").join(format!("{name}.toml"));
        let own = self.folder.join("own").join(format!("{name}.toml"));
        config::write(&file, config, &own).map_err(io_error("cannot write", &file))?;
        let launch = Launch {
            program: self.daemons.join(program),
            args: vec!["--config".into(), file.into_os_string()],
            env: Vec::new(),
            output: self.log(name),
        };
        // All processes of a local cluster share this machine, and the servers have the most to do.
        Ok(Program::Daemon(launch.as_batch()))
    }

    fn server_folder(&self, index: u16) -> PathBuf {
        self.folder.join("servers").join(format!("s{}", index + 1))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join("log").join(format!("{name}.log"))
    }
}

/// The unix socket of a cluster's gateway; none when its path would be too long for one.
pub fn gateway_socket(folder: &Path) -> Option<PathBuf> {
    let path = folder.join(GATEWAY_SOCKET);
    (path.as_os_str().len() <= SOCKET_PATH_MAX).then_some(path)
}

/// Our daemons are installed, or built, beside this program.
fn daemon_folder() -> Result<PathBuf, ClusterError> {
    let own = env::current_exe().map_err(io_error(
        "cannot find the own program",
        Path::new("/proc/self/exe"),
    ))?;
    let folder = own.parent().unwrap_or(Path::new("/")).to_owned();
    for program in ["concord-participant", "concord-coordinator"] {
        if !folder.join(program).is_file() {
            return Err(ClusterError::NoDaemon { program, own });
        }
    }
    Ok(folder)
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClusterError + use<> {
    let path = path.to_owned();
    move |source| ClusterError::Io { what, path, source }
}
