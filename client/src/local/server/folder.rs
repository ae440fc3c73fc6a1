//! The private folder of a server: what lies where, and who may look.
//!
//! ```text
//! FOLDER/            0700
//!   data/            the server's data folder
//!   data.new-…/      one that is being made
//!   tmp/             its temporary files
//!   run/server.sock  its socket (below /tmp when this path would be too long for one)
//!   run/server.pid
//!   server.log       its error log, unless it is kept elsewhere
//!   init.log         what the making of the data folder said
//!   password         of the account `concord`, 0600
//! ```
//!
//! This module starts nothing and never deletes data.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::distr::{Alphanumeric, SampleString};

use super::{ServerError, read};
use crate::local::process::own_user;

/// Longest path of a unix socket on Linux in bytes: 108, with one for the final NUL.
pub const SOCKET_PATH_MAX: usize = 107;

/// Characters of the participant's password: 190 random bits.
const PASSWORD_CHARS: usize = 32;

/// What [`ServerFolder::open`] makes in a folder.
pub(in crate::local) const PARTS: [&str; 2] = ["run", "tmp"];

/// The folder of one server.
#[derive(Debug, Clone)]
pub struct ServerFolder {
    path: PathBuf,
    socket: PathBuf,
    password_file: PathBuf,
}

impl ServerFolder {
    /// Makes the folder and its parts unless they are there, and lets nobody else into them: root
    /// has no password, and whoever reaches the socket is root.
    pub fn open(path: &Path) -> Result<Self, ServerError> {
        make(path)?;
        close(path)?;
        // The server changes its working directory, so it gets absolute paths only.
        let path = path.canonicalize().map_err(io_error("cannot find", path))?;
        for part in PARTS {
            let part = path.join(part);
            make(&part)?;
            close(&part)?;
        }
        let socket = socket_path(&path)?;
        Ok(Self {
            socket,
            password_file: path.join("password"),
            path,
        })
    }

    /// Where it is, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The data folder, complete if it exists.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The unix socket of the participant in front of it, beside its own and as long.
    pub fn link(&self) -> PathBuf {
        self.socket.with_extension("link")
    }

    /// The file with the participant's password.
    pub fn password_file(&self) -> &Path {
        &self.password_file
    }

    /// The participant's password; made at the first call.
    pub fn password(&self) -> Result<String, ServerError> {
        if !self.password_file.exists() {
            self.write_password().map_err(io_error(
                "cannot write the password to",
                &self.password_file,
            ))?;
        }
        Ok(read(&self.password_file)?.trim().to_owned())
    }

    /// Arguments that keep a server's files inside this folder.
    pub(super) fn settings(&self, data: &Path) -> Vec<OsString> {
        let mut settings = vec![
            setting("--datadir=", data),
            setting("--socket=", &self.socket),
            setting("--pid-file=", &self.path.join("run/server.pid")),
            setting("--tmpdir=", &self.path.join("tmp")),
        ];
        if running_as_root() {
            settings.push("--user=root".into());
        }
        settings
    }

    /// Removes what a killed server left and what would stop its successor: MySQL refuses to
    /// start when the process number in a lock of its socket belongs to any living process. The
    /// data itself is guarded by InnoDB's own lock, so a server that still runs is safe from this.
    pub(super) fn sweep(&self) -> Result<(), ServerError> {
        let mut lock = self.socket.clone().into_os_string();
        lock.push(".lock");
        for stale in [PathBuf::from(lock), self.socket.clone()] {
            match fs::remove_file(&stale) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("cannot remove", &stale)(source));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what lies outside of the folder, for someone who is about to remove the folder.
    pub fn forget_socket(&self) -> Result<(), ServerError> {
        self.sweep()?;
        // It may never have been made.
        let _ = fs::remove_file(self.link());
        if let Some(shared) = self
            .socket
            .parent()
            .filter(|parent| !parent.starts_with(&self.path))
        {
            // Fails while another server's socket is in it, as it should.
            let _ = fs::remove_dir(shared);
        }
        Ok(())
    }

    /// Writes beside the goal and renames, so that a password is either whole or absent.
    fn write_password(&self) -> io::Result<()> {
        let password = Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_CHARS);
        let beside = self
            .path
            .join(format!("password.new-{}", std::process::id()));
        let _ = fs::remove_file(&beside);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(password.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.password_file)
    }
}

/// Makes a folder that only this user may enter. An existing one is taken as it is.
fn make(path: &Path) -> Result<(), ServerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("cannot make the folder", path))
}

/// Takes an existing folder away from all others. One that belongs to somebody else is refused.
fn close(path: &Path) -> Result<(), ServerError> {
    let found = fs::metadata(path).map_err(io_error("cannot read", path))?;
    let user = own_user().map_err(io_error("cannot read", path))?;
    if found.uid() != user {
        let path = path.to_owned();
        return Err(ServerError::UnsafeFolder { path });
    }
    if found.mode() & 0o077 != 0 {
        let alone = Permissions::from_mode(0o700);
        fs::set_permissions(path, alone).map_err(io_error("cannot close", path))?;
    }
    Ok(())
}

fn socket_path(folder: &Path) -> Result<PathBuf, ServerError> {
    let inside = folder.join("run/server.sock");
    if inside.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok(inside);
    }
    let user = own_user().map_err(io_error("cannot read", folder))?;
    let shared = PathBuf::from(format!("/tmp/concord-{user}"));
    make(&shared)?;
    // Anyone may make files in /tmp, so a folder that was there already is not trusted blindly:
    // whoever can replace the socket can read the password.
    let found = fs::symlink_metadata(&shared).map_err(io_error("cannot read", &shared))?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        return Err(ServerError::UnsafeFolder { path: shared });
    }
    Ok(shared.join(format!(
        "{:016x}.sock",
        fnv1a(folder.as_os_str().as_bytes())
    )))
}

/// A hash that is the same in every build, so that a socket is found again.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn running_as_root() -> bool {
    own_user().is_ok_and(|own| own == 0)
}

fn setting(name: &str, path: &Path) -> OsString {
    let mut setting = OsString::from(name);
    setting.push(path);
    setting
}

pub(super) fn io_error(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> ServerError + use<> {
    let path = path.to_owned();
    move |source| ServerError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    /// A user that is not the one of the tests.
    const NOBODY: u32 = 65_534;

    #[test]
    fn a_folder_that_was_open_to_others_is_closed() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("s1");
        for part in [path.clone(), path.join("run"), path.join("tmp")] {
            fs::create_dir(&part).unwrap();
            fs::set_permissions(&part, Permissions::from_mode(0o777)).unwrap();
        }
        ServerFolder::open(&path).unwrap();
        for part in [path.clone(), path.join("run"), path.join("tmp")] {
            assert_eq!(mode(&part), 0o700, "{}", part.display());
        }
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        for part in ["", "run", "tmp"] {
            let temporary = tempfile::tempdir().unwrap();
            let path = temporary.path().join("s1");
            fs::create_dir_all(path.join(part)).unwrap();
            if chown(path.join(part), Some(NOBODY), None).is_err() {
                // Only root can give a folder away.
                return;
            }
            let error = ServerFolder::open(&path).unwrap_err();
            assert!(matches!(error, ServerError::UnsafeFolder { .. }), "{part}");
        }
    }

    #[test]
    fn the_password_is_made_once_and_is_private() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = ServerFolder::open(&temporary.path().join("s1")).unwrap();
        let password = folder.password().unwrap();
        assert_eq!(password.len(), PASSWORD_CHARS);
        assert_eq!(folder.password().unwrap(), password);
        assert_eq!(mode(folder.password_file()), 0o600);
        assert_eq!(mode(folder.path()), 0o700);
    }

    #[test]
    fn a_deep_folder_gets_a_short_socket_and_always_the_same() {
        let temporary = tempfile::tempdir().unwrap();
        let deep = temporary.path().join("d".repeat(60)).join("e".repeat(60));
        let socket = ServerFolder::open(&deep).unwrap().socket;
        assert!(
            socket.as_os_str().len() <= SOCKET_PATH_MAX,
            "{}",
            socket.display()
        );
        assert_eq!(ServerFolder::open(&deep).unwrap().socket, socket);
        let other = ServerFolder::open(&deep.join("f")).unwrap().socket;
        assert_ne!(other, socket);
    }
}
