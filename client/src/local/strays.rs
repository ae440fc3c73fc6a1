//! Finds and stops processes of a cluster whose supervisor has been killed.
//!
//! Two sources are joined: `state.json`, where a process is recognised by number, start time and
//! boot; and the list of this machine's processes, where one is recognised by the cluster's
//! absolute folder in its arguments. The second also finds a process that was started just
//! before its supervisor died.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::process::{ProcessId, own_user};
use super::state::{ClusterState, Role};

/// A stray has this long to stop by itself. A clean stop of a server writes its buffer pool.
const STRAY_STOP_TIMEOUT_S: u64 = 60;

/// All strays, coordinator first, servers last: the order to stop them in.
pub fn find(folder: &Path) -> io::Result<Vec<(Role, ProcessId)>> {
    // A broken state file must not keep us from the processes that can be found without it.
    let known = ClusterState::read(folder).ok().flatten();
    let mut strays = known.map(|state| state.alive()).unwrap_or_default();
    let own_user = own_user()?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Any of these may end while we look at it; then it is no stray.
        let Ok(process) = ProcessId::of(pid) else {
            continue;
        };
        let ours = entry.metadata().is_ok_and(|entry| entry.uid() == own_user);
        if !ours || strays.iter().any(|(_, known)| *known == process) {
            continue;
        }
        if let Some(role) = role(folder, &process.command_line()) {
            strays.push((role, process));
        }
    }
    strays.retain(|(_, process)| process.is_alive());
    strays.sort_by_key(|(role, _)| std::cmp::Reverse(*role));
    Ok(strays)
}

/// Stops all strays and says how many there were.
pub async fn stop(folder: &Path) -> io::Result<usize> {
    let strays = find(folder)?;
    for role in [Role::Coordinator, Role::Participant, Role::Server] {
        let patience = Duration::from_secs(STRAY_STOP_TIMEOUT_S);
        let same = strays.iter().filter(|(found, _)| *found == role);
        let stops = same.map(|(_, process)| process.stop(patience));
        futures::future::join_all(stops).await;
    }
    if let Some((_, process)) = strays.iter().find(|(_, process)| process.is_alive()) {
        let text = format!("process {} of this cluster does not end", process.pid);
        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
    }
    Ok(strays.len())
}

/// What a command line with the cluster's folder in it is there for.
fn role(folder: &Path, words: &[String]) -> Option<Role> {
    let below = |path: &str, part: &str| Path::new(path).starts_with(folder.join(part));
    for (index, word) in words.iter().enumerate() {
        if word
            .strip_prefix("--datadir=")
            .is_some_and(|path| below(path, "servers"))
        {
            return Some(Role::Server);
        }
        if word == "--config" {
            let file = words.get(index + 1).filter(|file| below(file, "config"))?;
            return Some(if file.ends_with("/coordinator.toml") {
                Role::Coordinator
            } else {
                Role::Participant
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::process::{Child, Launch};
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn only_the_own_folder_counts() {
        let folder = Path::new("/a/.concord");
        let role = |line| role(folder, &words(line));
        assert_eq!(
            role("mysqld --datadir=/a/.concord/servers/s1/data"),
            Some(Role::Server)
        );
        assert_eq!(role("mysqld --datadir=/b/.concord/servers/s1/data"), None);
        assert_eq!(
            role("x --config /a/.concord/config/p1.toml"),
            Some(Role::Participant)
        );
        assert_eq!(
            role("x --config /a/.concord/config/coordinator.toml"),
            Some(Role::Coordinator)
        );
        assert_eq!(role("x --config /a/.concord2/config/p1.toml"), None);
        assert_eq!(role("vi /a/.concord/config/p1.toml"), None);
        assert_eq!(role("x --config"), None);
    }

    #[tokio::test]
    async fn a_stray_is_found_by_its_arguments_and_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let config = path.join("config/p1.toml");
        // Without a process of its own, which for a moment would have the same arguments.
        let script = "while :; do :; done";
        let child = Child::spawn(&Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into(), "--config".into(), config.into()],
            env: Vec::new(),
            output: path.join("out"),
        })
        .unwrap();
        // The child shows its own arguments only after it has become the shell.
        while child.id().command_line().len() < 5 {
            tokio::task::yield_now().await;
        }
        assert_eq!(find(&path).unwrap(), vec![(Role::Participant, child.id())]);
        assert_eq!(stop(&path).await.unwrap(), 1);
        assert!(find(&path).unwrap().is_empty());
    }
}
