//! The lock that makes a cluster's folder belong to one supervisor.
//!
//! The system gives the lock back when its holder ends, however it ends, so a held lock means a
//! living supervisor and a free one means none. The holder writes its process into the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::process::ProcessId;

/// The file's name inside the cluster's folder.
const LOCK_FILE: &str = "lock";

/// Why the lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another supervisor has it.
    #[error("a cluster is already running in {folder}{}", who(*holder))]
    Held {
        /// The cluster's folder.
        folder: PathBuf,
        /// The other supervisor, if it has said so yet.
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

fn who(holder: Option<ProcessId>) -> String {
    holder
        .map(|holder| format!(" (supervisor's pid {})", holder.pid))
        .unwrap_or_default()
}

/// The lock, held until this is dropped.
#[derive(Debug)]
pub struct ClusterLock {
    file: Flock<File>,
}

impl ClusterLock {
    /// Takes the lock of an existing folder, and does not wait for it.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
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
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => {
                    let holder = read_holder(&path);
                    return Err(LockError::Held {
                        folder: folder.to_owned(),
                        holder,
                    });
                }
                Err((_, error)) => return Err(io(error.into())),
            };
            // Whoever removes the folder removes this file too; a lock on a file that nobody else
            // can find any more protects nothing.
            let same = fs::metadata(&path).ok().map(|found| found.ino())
                == file.metadata().ok().map(|own| own.ino());
            if same {
                write_holder(&mut file).map_err(io)?;
                return Ok(Self { file });
            }
        }
    }

    /// The living supervisor of a folder, or `None`. This only looks and takes no lock, so it is
    /// never in the way of a supervisor that is just starting.
    pub fn holder(folder: &Path) -> Option<ProcessId> {
        read_holder(&folder.join(LOCK_FILE)).filter(|holder| holder.is_alive())
    }
}

impl Drop for ClusterLock {
    fn drop(&mut self) {
        // Whatever is left in the file names a process that has ended, which readers notice too.
        let _ = self.file.set_len(0);
    }
}

fn write_holder(file: &mut File) -> io::Result<()> {
    let text = serde_json::to_string(&ProcessId::own()?)?;
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

fn read_holder(path: &Path) -> Option<ProcessId> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
