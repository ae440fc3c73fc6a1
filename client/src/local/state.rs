//! What a running cluster tells about itself: `state.json` in the cluster's folder.
//!
//! Only the supervisor writes it, as a whole and by renaming, so that a reader sees one moment.
//! Process numbers in it come with start times, so that nobody ever signals a stranger. It is
//! a report, not a source of truth: losing it loses nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::lock::ClusterLock;
use super::process::ProcessId;
use super::server::ServerKind;

/// The file's name inside the cluster's folder.
pub const STATE_FILE: &str = "state.json";

/// What a process is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A `mysqld` or `mariadbd`.
    Server,
    /// A `concord-participant`.
    Participant,
    /// The `concord-coordinator`.
    Coordinator,
}

/// How far a process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// It runs but has not answered yet.
    Starting,
    /// It has answered since its last start.
    Ready,
    /// It has ended and is about to be started again.
    Restarting,
    /// It ended right after its start many times in a row; it is still retried, but slowly.
    Failing,
    /// It was stopped on purpose.
    Stopped,
}

impl Readiness {
    /// The word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Restarting => "restarting",
            Self::Failing => "failing",
            Self::Stopped => "stopped",
        }
    }
}

/// One process of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// `s1`…, `p1`… or `coordinator`.
    pub name: String,
    /// What it is there for.
    pub role: Role,
    /// The running process, if one runs.
    #[serde(flatten)]
    pub process: Option<ProcessId>,
    /// Where it listens, `127.0.0.1:PORT`.
    pub address: String,
    /// How far it has come.
    pub readiness: Readiness,
    /// How often it was started again since the supervisor started.
    pub restarts: u64,
    /// Its log.
    pub log: PathBuf,
    /// A server's unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// File with the password of a server's account `concord`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

/// A whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// The cluster's name.
    pub cluster: String,
    /// The boot of the machine in which this was written; process numbers mean nothing in others.
    pub boot_id: String,
    /// The process that keeps the others running.
    pub supervisor: ProcessId,
    /// True once everything was ready for the first time since the supervisor started, and the
    /// coordinator had a link to each participant, or that was waited for in vain.
    pub ready: bool,
    /// Why the supervisor gave up, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The gateway, as a URL.
    pub gateway: String,
    /// MySQL or MariaDB.
    pub server_kind: ServerKind,
    /// What the server program says of itself.
    pub server_version: String,
    /// Servers, then participants, then the coordinator. `s1` belongs to `p1`, and so on.
    pub processes: Vec<ProcessState>,
}

impl ClusterState {
    /// Reads the state of the cluster in a folder; `None` when there is none.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(folder.join(STATE_FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(io::Error::from)
    }

    /// The process of that name.
    pub fn process(&self, name: &str) -> Option<&ProcessState> {
        self.processes.iter().find(|process| process.name == name)
    }

    /// All processes of a role, in their order.
    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &ProcessState> {
        self.processes
            .iter()
            .filter(move |process| process.role == role)
    }

    /// Processes of this cluster that run now.
    pub fn alive(&self) -> Vec<(Role, ProcessId)> {
        let running = self
            .processes
            .iter()
            .filter_map(|process| self.living(process).map(|id| (process.role, id)));
        running.collect()
    }

    /// A process of this cluster, if it runs now. A number of an earlier boot names a stranger,
    /// even when the start times happen to be the same.
    pub fn living(&self, process: &ProcessState) -> Option<ProcessId> {
        let known = process.process.filter(|_| self.boot_id == boot_id());
        known.filter(|id| id.is_alive())
    }
}

/// The state that a supervisor keeps, written at every change.
#[derive(Debug)]
pub struct StateKeeper {
    file: PathBuf,
    state: Mutex<ClusterState>,
    lock: Arc<ClusterLock>,
}

impl StateKeeper {
    /// Takes over the state file of a folder that is locked by us.
    pub fn new(folder: &Path, lock: Arc<ClusterLock>, state: ClusterState) -> io::Result<Self> {
        let keeper = Self {
            file: folder.join(STATE_FILE),
            state: Mutex::new(state),
            lock,
        };
        keeper.change(|_| {})?;
        Ok(keeper)
    }

    /// False once the folder has been removed, perhaps for another cluster: then nothing of ours is
    /// to be started or written in it.
    pub fn has_folder(&self) -> bool {
        self.lock.is_in_place()
    }

    /// Changes the state and writes it. Nobody reads a state between two changes.
    pub fn change(&self, change: impl FnOnce(&mut ClusterState)) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        if !self.has_folder() {
            return Ok(());
        }
        let mut text = serde_json::to_string_pretty(&*state)?;
        text.push('\n');
        replace(&self.file, &text)
    }

    /// Changes what is known of one process. A write that fails is only reported: a full disk
    /// must not stop the supervision.
    pub fn update(&self, name: &str, change: impl FnOnce(&mut ProcessState)) {
        let written = self.change(|state| {
            let found = state
                .processes
                .iter_mut()
                .find(|process| process.name == name);
            if let Some(process) = found {
                change(process);
            }
        });
        if let Err(error) = written {
            tracing::warn!(%error, file = %self.file.display(), "cannot write the state");
        }
    }

    /// A copy of the present state.
    pub fn snapshot(&self) -> ClusterState {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Writes a file beside its goal and renames it.
pub(super) fn replace(file: &Path, text: &str) -> io::Result<()> {
    let beside = beside(file);
    fs::write(&beside, text)?;
    fs::rename(&beside, file)
}

/// The same for a file that must be whole after a sudden end of the machine too.
pub(super) fn replace_durably(file: &Path, text: &str) -> io::Result<()> {
    let beside = beside(file);
    let mut new = File::create(&beside)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    fs::rename(&beside, file)?;
    // The name is the folder's to remember.
    File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn beside(file: &Path) -> PathBuf {
    let mut beside = file.to_owned().into_os_string();
    beside.push(".new");
    beside.into()
}

/// Which boot of the machine this is.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::local) fn state() -> ClusterState {
        let own = ProcessId::own().unwrap();
        let process = |name: &str, role, process| ProcessState {
            name: name.into(),
            role,
            process,
            address: "127.0.0.1:1".into(),
            readiness: Readiness::Starting,
            restarts: 0,
            log: "log".into(),
            socket: None,
            password_file: None,
        };
        ClusterState {
            cluster: "local".into(),
            boot_id: boot_id(),
            supervisor: own,
            ready: false,
            failure: None,
            gateway: "http://127.0.0.1:7400".into(),
            server_kind: ServerKind::Mysql,
            server_version: "9.7.4".into(),
            processes: vec![
                process("s1", Role::Server, Some(ProcessId { start: 1, ..own })),
                process("p1", Role::Participant, Some(own)),
                process("coordinator", Role::Coordinator, None),
            ],
        }
    }

    pub(in crate::local) fn keeper(folder: &Path, state: ClusterState) -> StateKeeper {
        let lock = Arc::new(ClusterLock::acquire(folder).unwrap());
        StateKeeper::new(folder, lock, state).unwrap()
    }

    #[test]
    fn nothing_is_written_into_a_folder_that_is_anothers_by_now() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster");
        fs::create_dir(&path).unwrap();
        let keeper = keeper(&path, state());
        fs::remove_dir_all(&path).unwrap();
        fs::create_dir(&path).unwrap();
        keeper.change(|state| state.ready = true).unwrap();
        assert!(keeper.snapshot().ready && !keeper.has_folder());
        assert!(ClusterState::read(&path).unwrap().is_none());
    }

    #[test]
    fn a_change_is_in_the_file_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ClusterState::read(folder.path()).unwrap().is_none());
        let keeper = keeper(folder.path(), state());
        keeper.update("p1", |process| process.readiness = Readiness::Ready);
        keeper.update("nobody", |process| process.restarts = 9);
        let read = ClusterState::read(folder.path()).unwrap().unwrap();
        assert_eq!(read.process("p1").unwrap().readiness, Readiness::Ready);
        assert_eq!(read, keeper.snapshot());
        let text = fs::read_to_string(folder.path().join(STATE_FILE)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["processes"][1]["pid"], std::process::id());
        assert_eq!(json["processes"][1]["readiness"], Readiness::Ready.word());
        assert!(json["processes"][2].get("pid").is_none());
    }

    #[test]
    fn only_the_very_same_process_counts_as_alive() {
        let mut state = state();
        assert_eq!(
            state.alive(),
            vec![(Role::Participant, ProcessId::own().unwrap())]
        );
        state.boot_id = "another".into();
        assert!(state.alive().is_empty());
        assert_eq!(state.living(&state.processes[1]), None);
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_an_empty_cluster() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(STATE_FILE), "{").unwrap();
        assert!(ClusterState::read(folder.path()).is_err());
    }
}
