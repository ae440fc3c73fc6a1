//! Keeps other users out of a folder that is there before a cluster takes it.
//!
//! What we make ourselves is private from the start. What was laid beforehand may have been laid
//! by anyone: a settings file names programs that we run, and a server's folder holds the socket
//! by which root needs no password. So all of it must be ours, or root's, who needs no such way;
//! and where the group or all may write, which a lax umask lets them, they may not any more.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::claim::{OURS, name};
use super::{ClusterError, io_error};

/// The deepest that can be laid beforehand is `servers/s1/run`. Below are files that only the
/// cluster's own processes write.
const DEPTH: usize = 3;

/// Group and others may write.
const OPEN: u32 = 0o022;

const ROOT: u32 = 0;

/// Refuses an existing folder in which anything of the cluster's belongs to somebody else than
/// `user`, and changes nothing.
pub(super) fn check(folder: &Path, user: u32) -> Result<(), ClusterError> {
    walk(folder, user, &|_, _| Ok(()))
}

/// The same, and closes a cluster's folder to all but `user`.
pub(super) fn close(folder: &Path, user: u32) -> Result<(), ClusterError> {
    walk(folder, user, &shut)
}

type Visit<'a> = &'a dyn Fn(&Path, &Metadata) -> Result<(), ClusterError>;

fn walk(folder: &Path, user: u32, visit: Visit<'_>) -> Result<(), ClusterError> {
    let found = fs::metadata(folder).map_err(io_error("cannot read", folder))?;
    if found.uid() != user {
        return Err(foreign(folder, &found));
    }
    visit(folder, &found)?;
    below(folder, 1, user, visit)
}

fn below(folder: &Path, depth: usize, user: u32, visit: Visit<'_>) -> Result<(), ClusterError> {
    for entry in fs::read_dir(folder).map_err(io_error("cannot read", folder))? {
        let path = entry.map_err(io_error("cannot read", folder))?.path();
        if depth == 1 && !OURS.contains(&name(&path)) {
            continue;
        }
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            // Processes of a former supervisor may still be at work here.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io_error("cannot read", &path)(error)),
        };
        if found.uid() != user && found.uid() != ROOT {
            return Err(foreign(&path, &found));
        }
        if found.is_dir() {
            visit(&path, &found)?;
            if depth < DEPTH {
                below(&path, depth + 1, user, visit)?;
            }
        }
    }
    Ok(())
}

fn shut(folder: &Path, found: &Metadata) -> Result<(), ClusterError> {
    if found.mode() & OPEN == 0 {
        return Ok(());
    }
    let mode = found.mode() & 0o7777 & !OPEN;
    fs::set_permissions(folder, Permissions::from_mode(mode))
        .map_err(io_error("cannot close to others", folder))?;
    let folder = folder.display();
    tracing::warn!("other users could write to {folder}; now they cannot");
    Ok(())
}

fn foreign(path: &Path, found: &Metadata) -> ClusterError {
    ClusterError::OtherUser {
        path: path.to_owned(),
        owner: found.uid(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::process::own_user;

    fn open(path: &Path) {
        fs::create_dir_all(path).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn what_is_ours_is_closed_to_others_and_what_is_not_the_clusters_is_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("cluster");
        let parts = ["", "servers", "servers/s1", "servers/s1/run", "own"];
        for part in parts.iter().chain(&["photos"]) {
            open(&folder.join(part));
        }
        let user = own_user().unwrap();
        check(&folder, user).unwrap();
        for part in parts {
            assert_eq!(mode(&folder.join(part)), 0o777, "{part}");
        }
        close(&folder, user).unwrap();
        for part in parts {
            assert_eq!(mode(&folder.join(part)), 0o755, "{part}");
        }
        assert_eq!(mode(&folder.join("photos")), 0o777);
        close(&folder, user).unwrap();
    }

    #[test]
    fn a_folder_or_a_part_of_somebody_else_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let error = close(temporary.path(), own_user().unwrap() + 1).unwrap_err();
        assert!(matches!(error, ClusterError::OtherUser { .. }), "{error}");
        for part in ["own/p1.toml", "servers/s1/run", "cluster.json"] {
            let temporary = tempfile::tempdir().unwrap();
            let theirs = temporary.path().join(part);
            fs::create_dir_all(theirs.parent().unwrap()).unwrap();
            fs::write(&theirs, "").unwrap();
            let nobody = Some(65_534);
            if std::os::unix::fs::chown(&theirs, nobody, None).is_err() {
                // Only root can give a file away.
                return;
            }
            let error = close(temporary.path(), own_user().unwrap()).unwrap_err();
            let refused = matches!(&error, ClusterError::OtherUser { path, .. } if *path == theirs);
            assert!(refused, "{part}: {error}");
        }
    }
}
