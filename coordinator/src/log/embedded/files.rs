//! The log's directory: it is made, locked, and its file opened or created.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use concord_daemon::crash::{CrashPoint, reach};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use redb::StorageBackend;
use redb::backends::FileBackend;

use super::super::LogError;

/// The file with everything in it.
pub const FILE: &str = "decisions.redb";
/// The same while it is being created: it gets its name when it is complete and durable.
const NEW_FILE: &str = "decisions.redb.new";
/// Locked by the process that uses the directory; it names its pid.
pub const LOCK_FILE: &str = "LOCK";

/// A directory of which this process is the only user as long as it is held.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    lock: File,
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LogError + 'a {
    move |source| LogError::Open {
        doing,
        path: path.to_owned(),
        source,
    }
}

impl Drop for Directory {
    /// A child that another thread is starting just now has the same open file until its exec; a
    /// lock that is only closed here would be held by it.
    fn drop(&mut self) {
        // Closing it, which comes next, lets go of it as well.
        let _ = self.lock.unlock();
    }
}

impl Directory {
    /// Makes the directory if it is missing, for its owner alone, and locks it.
    pub fn lock(path: &Path) -> Result<Self, LogError> {
        if !path.is_dir() {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder
                .create(path)
                .map_err(failed("create the directory", path))?;
            if let Some(parent) = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
            {
                sync_directory(parent)?;
            }
        }
        let lock_path = path.join(LOCK_FILE);
        let mut lock = private(OpenOptions::new().create(true).truncate(false))
            .open(&lock_path)
            .map_err(failed("open the lock file", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The pid helps a person; that the file is locked is what counts.
                let _ = lock.read_to_string(&mut pid);
                let holder = match pid.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(LogError::Held {
                    path: path.to_owned(),
                    holder,
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(failed("lock", &lock_path)(source));
            }
        }
        let note = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        note(&mut lock).map_err(failed("write the lock file", &lock_path))?;
        reach(CrashPoint::LogLockTaken);
        Ok(Self {
            path: path.to_owned(),
            lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The log's file, when there is one.
    pub fn open_file(&self) -> Result<Option<Arc<dyn StorageBackend>>, LogError> {
        let path = self.path.join(FILE);
        match private(&mut OpenOptions::new()).open(&path) {
            Ok(file) => {
                drop_caches(&file).map_err(failed("read from the disk itself", &path))?;
                Ok(Some(backend(file, &path)?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open", &path)(error)),
        }
    }

    /// An empty file that is not the log's yet.
    pub fn create_file(&self) -> Result<Arc<dyn StorageBackend>, LogError> {
        let path = self.path.join(NEW_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove the unfinished", &path)(error));
            }
            _ => {}
        }
        let file = private(OpenOptions::new().create_new(true))
            .open(&path)
            .map_err(failed("create", &path))?;
        backend(file, &path)
    }

    /// Makes the file that was created the log's: under its name, durably.
    pub fn publish_file(&self) -> Result<(), LogError> {
        reach(CrashPoint::LogCreatePublishBefore);
        let path = self.path.join(NEW_FILE);
        fs::rename(&path, self.path.join(FILE)).map_err(failed("rename", &path))?;
        sync_directory(&self.path)?;
        reach(CrashPoint::LogCreatePublishAfter);
        Ok(())
    }
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.read(true).write(true).mode(0o600)
}

fn backend(file: File, path: &Path) -> Result<Arc<dyn StorageBackend>, LogError> {
    let backend =
        FileBackend::new(file).map_err(|error| failed("open", path)(io::Error::other(error)))?;
    Ok(Arc::new(backend))
}

/// A new name is durable when its directory is.
fn sync_directory(path: &Path) -> Result<(), LogError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("sync the directory", path))
}

/// Makes the kernel forget what it holds of the file. When a former process died of a failed
/// fsync, the kernel may still show it pages that never reached the disk; deciding by them would
/// be to trust the very fsync that failed.
fn drop_caches(file: &File) -> io::Result<()> {
    file.sync_all()?;
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
}
