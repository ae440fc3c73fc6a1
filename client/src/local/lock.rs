//! The lock that makes a cluster's folder belong to one supervisor.
//!
//! The system gives the lock back when its holder ends, however it ends, so a held lock means a
//! living supervisor and a free one means none. A supervisor writes its process into the file, and
//! the boot of the machine, in another one of which a process number names a stranger. A command
//! that only stops or removes a cluster writes nothing: whoever is named gets the signals that are
//! meant for a supervisor, and a full disk must not be in the way of giving it room.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::process::ProcessId;
use super::state::{ClusterState, boot_id};

/// The file's name inside the cluster's folder.
pub(super) const LOCK_FILE: &str = "lock";

/// What the holder writes into the file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Holder {
    #[serde(flatten)]
    process: ProcessId,
    /// The boot of the machine in which this was written. Files of older versions lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot_id: Option<String>,
}

/// Why the lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another supervisor has it, or a command that stops or removes the cluster.
    #[error("{}", held(folder, *holder))]
    Held {
        /// The cluster's folder.
        folder: PathBuf,
        /// The other supervisor; none when it has not said so yet, or when it is a command.
        holder: Option<ProcessId>,
    },
    /// The lock's file.
    #[error("cannot lock {path}")]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn held(folder: &Path, holder: Option<ProcessId>) -> String {
    let folder = folder.display();
    match holder {
        Some(holder) => format!(
            "a cluster is already running in {folder} (supervisor's pid {})",
            holder.pid
        ),
        None => format!("another command is at work on the cluster in {folder}"),
    }
}

/// The lock, held until this is dropped.
#[derive(Debug)]
pub struct ClusterLock {
    file: Flock<File>,
    path: PathBuf,
    /// Whether the file names us.
    named: bool,
}

impl ClusterLock {
    /// Takes the lock of an existing folder as its supervisor, and does not wait for it. Fails when
    /// the file cannot be written: nobody could stop a supervisor that is not named in it.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let mut lock = Self::acquire_unnamed(folder)?;
        lock.named = true;
        let written = write_holder(&mut lock.file);
        written.map_err(|source| LockError::Io {
            path: lock.path.clone(),
            source,
        })?;
        Ok(lock)
    }

    /// The same for a command that is no supervisor.
    pub fn acquire_unnamed(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(LOCK_FILE);
        let io = |source: io::Error| LockError::Io {
            path: path.clone(),
            source,
        };
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
                .map_err(io)?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(LockError::Held {
                        folder: folder.to_owned(),
                        holder: Self::holder(folder),
                    });
                }
                Err((_, error)) => return Err(io(error.into())),
            };
            let lock = Self {
                file,
                path: path.clone(),
                named: false,
            };
            if lock.is_in_place() {
                return Ok(lock);
            }
        }
    }

    /// False once the file has been removed, or another one stands in its place: whoever removes
    /// the folder removes it too, and a lock on a file that nobody else finds protects nothing.
    pub fn is_in_place(&self) -> bool {
        let id = |file: fs::Metadata| (file.dev(), file.ino());
        match (fs::metadata(&self.path), self.file.metadata()) {
            (Ok(found), Ok(own)) => id(found) == id(own),
            (Err(error), _) => {
                // What cannot be looked at for another reason may well be there.
                !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                )
            }
            (Ok(_), Err(_)) => true,
        }
    }

    /// The living supervisor of a folder, or `None`. This only looks and takes no lock, so it is
    /// never in the way of a supervisor that is just starting.
    pub fn holder(folder: &Path) -> Option<ProcessId> {
        let found = read_holder(&folder.join(LOCK_FILE))?;
        let this_boot = match &found.boot_id {
            Some(boot) => *boot == boot_id(),
            // A supervisor of an older version told the boot in its state only. Without that it is
            // not known, and whoever takes the lock still learns from the system that it is held.
            None => ClusterState::read(folder)
                .ok()
                .flatten()
                .is_some_and(|state| {
                    state.supervisor == found.process && state.boot_id == boot_id()
                }),
        };
        Some(found.process).filter(|process| this_boot && process.is_alive())
    }
}

impl Drop for ClusterLock {
    fn drop(&mut self) {
        if self.named {
            // Whatever is left in the file names a process that has ended, which readers notice.
            let _ = self.file.set_len(0);
        }
    }
}

fn write_holder(file: &mut File) -> io::Result<()> {
    let text = serde_json::to_string(&Holder {
        process: ProcessId::own()?,
        boot_id: Some(boot_id()),
    })?;
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

fn read_holder(path: &Path) -> Option<Holder> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::state::STATE_FILE;

    #[test]
    fn one_holder_at_a_time_and_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(ClusterLock::holder(folder.path()), None);
        let lock = ClusterLock::acquire(folder.path()).unwrap();
        let second = ClusterLock::acquire(folder.path()).unwrap_err();
        let own = ProcessId::own().unwrap();
        assert!(matches!(second, LockError::Held { holder: Some(id), .. } if id == own));
        assert!(second.to_string().contains(&own.pid.to_string()));
        assert_eq!(ClusterLock::holder(folder.path()), Some(own));
        drop(lock);
        assert_eq!(ClusterLock::holder(folder.path()), None);
        ClusterLock::acquire(folder.path()).unwrap();
    }

    #[test]
    fn a_command_that_holds_the_lock_is_not_taken_for_a_supervisor() {
        let folder = tempfile::tempdir().unwrap();
        let lock = ClusterLock::acquire_unnamed(folder.path()).unwrap();
        assert_eq!(ClusterLock::holder(folder.path()), None);
        let second = ClusterLock::acquire(folder.path()).unwrap_err();
        assert!(matches!(second, LockError::Held { holder: None, .. }));
        assert!(second.to_string().contains("another command"), "{second}");
        drop(lock);
        ClusterLock::acquire(folder.path()).unwrap();
    }

    #[test]
    fn a_lock_whose_file_was_removed_or_replaced_is_out_of_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster");
        fs::create_dir(&path).unwrap();
        let lock = ClusterLock::acquire(&path).unwrap();
        assert!(lock.is_in_place());
        fs::remove_dir_all(&path).unwrap();
        assert!(!lock.is_in_place());
        fs::create_dir(&path).unwrap();
        let other = ClusterLock::acquire(&path).unwrap();
        assert!(!lock.is_in_place() && other.is_in_place());
    }

    fn write(folder: &Path, holder: &Holder) {
        let text = serde_json::to_string(holder).unwrap();
        fs::write(folder.join(LOCK_FILE), text).unwrap();
    }

    #[test]
    fn a_holder_of_another_boot_is_none_though_its_number_and_start_are_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let process = ProcessId::own().unwrap();
        let boot_id = Some(boot_id());
        write(folder.path(), &Holder { process, boot_id });
        assert_eq!(ClusterLock::holder(folder.path()), Some(process));
        let boot_id = Some("another".to_owned());
        write(folder.path(), &Holder { process, boot_id });
        assert_eq!(ClusterLock::holder(folder.path()), None);
    }

    #[test]
    fn the_boot_of_a_holder_of_an_older_version_is_in_its_state() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = crate::local::state::tests::state();
        let (process, boot_id) = (state.supervisor, None);
        write(folder.path(), &Holder { process, boot_id });
        assert_eq!(ClusterLock::holder(folder.path()), None);
        let write_state = |state: &ClusterState| {
            let text = serde_json::to_string(state).unwrap();
            fs::write(folder.path().join(STATE_FILE), text).unwrap();
        };
        write_state(&state);
        assert_eq!(ClusterLock::holder(folder.path()), Some(process));
        state.boot_id = "another".into();
        write_state(&state);
        assert_eq!(ClusterLock::holder(folder.path()), None);
    }
}
