//! Which folders a new cluster may take, and how a cluster gives its folder back.
//!
//! A folder with the mark is removed with all data on demand, so one that a person keeps files in
//! must never get it: a name like `config` says nothing, only what is inside does. Nor is anything
//! removed that lies beside the cluster's own files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::settings::{SETTINGS_FILE, Settings};
use super::{ClusterError, GATEWAY_SOCKET, MAX_SERVERS, UP_LOG, io_error};
use crate::local::lock::{ClusterLock, Holder, LOCK_FILE};
use crate::local::server::{PARTS, ServerFolder};
use crate::local::state::STATE_FILE;

/// The settings while they are being written.
const NEW_SETTINGS_FILE: &str = "cluster.json.new";

/// The settings while the cluster is being removed: still a mark, but of nothing that can be
/// started. They are renamed, which a full disk does not prevent.
const WIPED_FILE: &str = "cluster.json.wiped";

/// Everything that a cluster has in its folder. What another name has is somebody else's.
pub(super) const OURS: [&str; 13] = [
    SETTINGS_FILE,
    WIPED_FILE,
    NEW_SETTINGS_FILE,
    LOCK_FILE,
    STATE_FILE,
    "state.json.new",
    UP_LOG,
    GATEWAY_SOCKET,
    "config",
    "own",
    "log",
    "servers",
    "coordinator",
];

/// True when the folder is a cluster's.
pub fn is_cluster(folder: &Path) -> bool {
    folder.join(SETTINGS_FILE).is_file() || is_half_removed(folder)
}

/// True when the removal of a cluster has begun and not ended.
pub(super) fn is_half_removed(folder: &Path) -> bool {
    folder.join(WIPED_FILE).is_file()
}

/// The first thing in a folder that a new cluster must not take as its own; none when it may have
/// the folder. Allowed is what a first start that was interrupted leaves, and what may be laid
/// there before it: a user's own settings, and servers' folders as [`ServerFolder::open`] makes
/// them.
pub(super) fn obstacle(folder: &Path) -> Result<Option<PathBuf>, ClusterError> {
    if !folder
        .try_exists()
        .map_err(io_error("cannot find", folder))?
    {
        return Ok(None);
    }
    // The folder itself may be reached by a symbolic link, or be named as `.`.
    let found = folder.canonicalize().and_then(|path| first(&path, top));
    found.map_err(io_error("cannot look through", folder))
}

fn top(path: &Path) -> io::Result<Option<PathBuf>> {
    match name(path) {
        "config" | "log" | "coordinator" => empty(path),
        "servers" => first(path, server),
        // A link is as good: what it leads to is read and never removed.
        "own" => first(&path.canonicalize()?, |file| {
            Ok(unless(is_settings(file), file))
        }),
        LOCK_FILE => Ok(unless(is_blank_or::<Holder>(path)?, path)),
        NEW_SETTINGS_FILE => Ok(unless(is_blank_or::<Settings>(path)?, path)),
        _ => Ok(Some(path.to_owned())),
    }
}

fn server(path: &Path) -> io::Result<Option<PathBuf>> {
    let is_named = (1..=MAX_SERVERS).any(|n| name(path) == format!("s{n}"));
    if !is_named {
        return Ok(Some(path.to_owned()));
    }
    first(path, |part| {
        if PARTS.contains(&name(part)) {
            empty(part)
        } else {
            Ok(Some(part.to_owned()))
        }
    })
}

fn is_settings(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "toml") && path.is_file()
}

fn empty(path: &Path) -> io::Result<Option<PathBuf>> {
    first(path, |inside| Ok(Some(inside.to_owned())))
}

/// What `find` finds in the first entry of a folder that it finds something in; the path itself
/// when it is no folder, but for example a link to one.
fn first(
    path: &Path,
    find: impl Fn(&Path) -> io::Result<Option<PathBuf>>,
) -> io::Result<Option<PathBuf>> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return Ok(Some(path.to_owned()));
    }
    for entry in fs::read_dir(path)? {
        if let Some(found) = find(&entry?.path())? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn unless(is_ours: bool, path: &Path) -> Option<PathBuf> {
    (!is_ours).then(|| path.to_owned())
}

/// Whether a file has nothing in it, or what we write into it.
fn is_blank_or<T: DeserializeOwned>(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(false);
    }
    let bytes = fs::read(path)?;
    Ok(bytes.is_empty() || serde_json::from_slice::<T>(&bytes).is_ok())
}

pub(super) fn name(path: &Path) -> &str {
    let name = path.file_name().and_then(|name| name.to_str());
    // What is not UTF-8 is no name of ours, and neither is the empty one.
    name.unwrap_or_default()
}

/// Removes a cluster with all data, and its folder when nothing else is in it. Tells what is left
/// because it is not the cluster's. The caller holds the cluster's lock.
pub fn wipe(folder: &Path, lock: ClusterLock) -> Result<Vec<PathBuf>, ClusterError> {
    if !is_cluster(folder) {
        return Err(ClusterError::NoCluster {
            folder: folder.to_owned(),
        });
    }
    let (settings, mark) = (folder.join(SETTINGS_FILE), folder.join(WIPED_FILE));
    if settings.exists() {
        fs::rename(&settings, &mark).map_err(io_error("cannot rename", &settings))?;
    }
    let servers = folder.join("servers");
    for server in fs::read_dir(&servers).into_iter().flatten().flatten() {
        // Opening makes what is missing, which is not to happen where a link leads to. What cannot
        // be opened has no socket elsewhere that is ours.
        if server.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(server) = ServerFolder::open(&server.path())
        {
            server.forget_socket()?;
        }
    }
    let mut left = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error("cannot read", folder))? {
        let path = entry.map_err(io_error("cannot read", folder))?.path();
        match name(&path) {
            WIPED_FILE | LOCK_FILE => {}
            ours if OURS.contains(&ours) => remove(&path)?,
            _ => left.push(path),
        }
    }
    // The mark goes last, so that an interrupted removal can be taken up again; and the lock after
    // it, so that nobody starts what is being removed.
    remove(&mark)?;
    remove(&folder.join(LOCK_FILE))?;
    if left.is_empty() {
        fs::remove_dir(folder).map_err(io_error("cannot remove", folder))?;
    }
    drop(lock);
    Ok(left)
}

fn remove(path: &Path) -> Result<(), ClusterError> {
    let removed = if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.map_err(io_error("cannot remove", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::settings::tests::settings;
    use super::*;
    use crate::local::config::private_folder;

    /// A folder with these files in it.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "mine").unwrap();
        }
        folder
    }

    /// What a first start makes before it is a cluster.
    fn lay_parts(folder: &Path) {
        for part in ["config", "log", "servers", "coordinator"] {
            private_folder(&folder.join(part)).unwrap();
        }
    }

    #[test]
    fn a_folder_of_someone_else_is_neither_used_nor_wiped() {
        let folder = folder(&["thesis.txt"]);
        let thesis = folder.path().join("thesis.txt");
        assert_eq!(
            obstacle(folder.path()).unwrap(),
            Some(thesis.canonicalize().unwrap())
        );
        let lock = ClusterLock::acquire(folder.path()).unwrap();
        let error = wipe(folder.path(), lock).unwrap_err();
        assert!(matches!(error, ClusterError::NoCluster { .. }));
        assert!(thesis.exists());
    }

    #[test]
    fn files_of_someone_else_under_names_of_ours_are_in_the_way() {
        for file in [
            "config/app.yaml",
            "log/2026/access.log",
            "coordinator/notes.txt",
            "servers/web/index.html",
            "servers/inventory.txt",
            "servers/s17/run",
            "servers/s1/data/ibdata1",
            "servers/s1/run/server.sock",
            "servers/s1/password",
            "own/notes.md",
            "own/p1.toml/deeper",
            "up.log",
            "lock",
            "cluster.json.new",
            "state.json",
            "gateway.sock",
        ] {
            let folder = folder(&[file]);
            let found = obstacle(folder.path()).unwrap();
            let found = found.unwrap_or_else(|| panic!("{file} is taken"));
            let path = folder.path().canonicalize().unwrap().join(file);
            assert!(path.starts_with(&found), "{file}: {}", found.display());
            assert_ne!(found, folder.path().canonicalize().unwrap());
        }
    }

    #[test]
    fn a_link_to_a_folder_of_someone_else_is_in_the_way() {
        let (folder, theirs) = (folder(&[]), folder(&[]));
        symlink(theirs.path(), folder.path().join("log")).unwrap();
        let found = obstacle(folder.path()).unwrap().unwrap();
        assert!(found.ends_with("log"));
    }

    #[test]
    fn a_new_folder_and_an_interrupted_first_start_are_free() {
        let folder = folder(&[]);
        assert_eq!(obstacle(&folder.path().join("new")).unwrap(), None);
        assert_eq!(obstacle(folder.path()).unwrap(), None);
        lay_parts(folder.path());
        let lock = ClusterLock::acquire(folder.path()).unwrap();
        assert_eq!(obstacle(folder.path()).unwrap(), None);
        drop(lock);
        let text = serde_json::to_string_pretty(&settings()).unwrap();
        fs::write(folder.path().join(NEW_SETTINGS_FILE), text).unwrap();
        assert_eq!(obstacle(folder.path()).unwrap(), None);
    }

    #[test]
    fn settings_and_servers_folders_may_be_laid_beforehand() {
        let folder = folder(&["own/p1.toml", "own/coordinator.toml"]);
        for n in 1..=3 {
            ServerFolder::open(&folder.path().join(format!("servers/s{n}"))).unwrap();
        }
        assert_eq!(obstacle(folder.path()).unwrap(), None);
        let elsewhere = folder.path().join("own");
        let linked = tempfile::tempdir().unwrap();
        symlink(elsewhere, linked.path().join("own")).unwrap();
        assert_eq!(obstacle(linked.path()).unwrap(), None);
    }

    #[test]
    fn wiping_removes_the_cluster_and_nothing_beside_it() {
        let folder = folder(&["log/p1.log", "own/p1.toml", "servers/s1/password", "up.log"]);
        let path = folder.path().to_owned();
        lay_parts(&path);
        settings().write(&path).unwrap();
        fs::write(path.join("thesis.txt"), "mine").unwrap();
        let lock = ClusterLock::acquire(&path).unwrap();
        assert_eq!(wipe(&path, lock).unwrap(), [path.join("thesis.txt")]);
        let names = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["thesis.txt"]);

        fs::remove_file(path.join("thesis.txt")).unwrap();
        settings().write(&path).unwrap();
        let lock = ClusterLock::acquire(&path).unwrap();
        assert!(wipe(&path, lock).unwrap().is_empty());
        assert!(!path.exists());
    }

    #[test]
    fn an_interrupted_removal_is_marked_and_can_be_taken_up_again() {
        // A socket that is a folder cannot be removed as a socket.
        let folder = folder(&["servers/s1/run/server.sock/file", "log/p1.log"]);
        let path = folder.path().to_owned();
        settings().write(&path).unwrap();
        let lock = ClusterLock::acquire_unnamed(&path).unwrap();
        wipe(&path, lock).unwrap_err();
        assert!(is_half_removed(&path) && is_cluster(&path));
        assert!(Settings::read(&path).unwrap().is_none());
        fs::remove_dir_all(path.join("servers/s1")).unwrap();
        let lock = ClusterLock::acquire_unnamed(&path).unwrap();
        assert!(wipe(&path, lock).unwrap().is_empty());
        assert!(!path.exists());
    }

    #[test]
    fn a_cluster_with_broken_settings_can_be_removed() {
        for broken in ["", "{"] {
            let folder = folder(&["log/p1.log"]);
            let path = folder.path().to_owned();
            fs::write(path.join(SETTINGS_FILE), broken).unwrap();
            let error = Settings::read(&path).unwrap_err();
            assert!(matches!(error, ClusterError::BrokenSettings { .. }));
            let lock = ClusterLock::acquire_unnamed(&path).unwrap();
            assert!(wipe(&path, lock).unwrap().is_empty());
            assert!(!path.exists());
        }
    }
}
