//! `concord down`: stops a local cluster, and removes it when asked to.

use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;

use crate::cli::output::note;
use crate::cli::up::{cluster_failure, failed, with_causes};
use crate::cli::{Exit, Failure};
use crate::local::cluster::{self, ClusterError};
use crate::local::lock::{ClusterLock, LockError};
use crate::local::process::ProcessId;
use crate::local::strays;

/// A process that was killed has gone within this time, unless the system itself holds it up.
const KILL_TIMEOUT_S: u64 = 10;

/// A supervisor has stopped everything within this time: 30 s each for coordinator and
/// participants to drain, 60 s for servers, and some to spare.
const STOP_TIMEOUT_S: u64 = 150;

const EXAMPLES: &str = "\
Examples:
  concord down           stops the cluster; `concord up` goes on with the same data
  concord down --wipe    also removes all its data

--wipe removes the folder too, unless you keep files in it that are not the cluster's. Your settings
in FOLDER/own go with it.";

/// Arguments of `concord down`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DownArgs {
    /// The cluster's folder.
    #[arg(long, default_value = ".concord", value_name = "FOLDER")]
    dir: PathBuf,
    /// Remove the cluster with all data.
    #[arg(long)]
    wipe: bool,
}

/// Stops the cluster in a folder; returns when every process has ended.
pub async fn run(args: DownArgs) -> anyhow::Result<()> {
    if !args.dir.exists() {
        return Ok(stop_without_folder(&args.dir).await?);
    }
    if !cluster::is_cluster(&args.dir) {
        let error = ClusterError::NoCluster { folder: args.dir };
        return Err(cluster_failure(&error).into());
    }
    let folder = args
        .dir
        .canonicalize()
        .map_err(|error| failed("cannot find the folder", error))?;
    let holder = ClusterLock::holder(&folder);
    if let Some(supervisor) = holder {
        note(&format!(
            "stopping the supervisor (pid {}) and its processes",
            supervisor.pid
        ));
        stop(supervisor, Duration::from_secs(STOP_TIMEOUT_S)).await?;
    }
    // From here on no supervisor can start, so what is stopped stays stopped.
    let lock = ClusterLock::acquire_unnamed(&folder).map_err(|error| busy(&error))?;
    let strays = stop_strays(&folder).await?;
    if args.wipe {
        let left = cluster::wipe(&folder, lock).map_err(|error| cluster_failure(&error))?;
        note(&removed(&folder, &left));
    } else if holder.is_some() || strays > 0 {
        note(&format!("stopped; the data stays in {}", folder.display()));
    } else {
        note("nothing was running");
    }
    Ok(())
}

/// Stops a supervisor, by force when it takes longer than `patience`.
async fn stop(supervisor: ProcessId, patience: Duration) -> Result<(), Failure> {
    supervisor.signal(Signal::SIGTERM);
    if supervisor.ended(patience).await {
        return Ok(());
    }
    note("it does not end; killing it");
    supervisor.signal(Signal::SIGKILL);
    if supervisor.ended(Duration::from_secs(KILL_TIMEOUT_S)).await {
        return Ok(());
    }
    let what = format!("the supervisor (pid {}) does not end", supervisor.pid);
    Err(Failure::new(Exit::Unavailable, what).why("it was killed and is still there"))
}

/// Stops what runs in a folder that was removed under its cluster.
async fn stop_without_folder(dir: &Path) -> Result<(), Failure> {
    let whole = absolute(dir).map_err(|error| failed("cannot find the folder", error))?;
    // The processes were started with the path that symbolic links lead to.
    let parent = whole.parent().and_then(|path| path.canonicalize().ok());
    let folder = match (parent, whole.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => whole,
    };
    if stop_strays(&folder).await? == 0 {
        note(&format!("there is no cluster in {}", dir.display()));
    }
    Ok(())
}

/// Stops processes of a folder's cluster that nobody keeps running; how many there were.
async fn stop_strays(folder: &Path) -> Result<usize, Failure> {
    let strays = strays::stop(folder)
        .await
        .map_err(|error| failed("cannot stop all processes of the cluster", error))?;
    if strays > 0 {
        note(&format!(
            "stopped {strays} processes that had no supervisor any more"
        ));
    }
    Ok(strays)
}

fn busy(error: &LockError) -> Failure {
    let failure = with_causes(Exit::Unavailable, error);
    match error {
        LockError::Held { .. } => failure.next("try again when it has ended"),
        LockError::Io { .. } => failure,
    }
}

/// What is told after the cluster was removed.
fn removed(folder: &Path, left: &[PathBuf]) -> String {
    let folder = folder.display();
    if left.is_empty() {
        return format!("removed {folder}");
    }
    let left: Vec<String> = left.iter().map(|path| path.display().to_string()).collect();
    let left = left.join(", ");
    format!("removed the cluster in {folder}; what is not part of it stays: {left}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::process::{Child, Launch, log_tail};

    fn shell(script: &str, output: &Path, more: Vec<std::ffi::OsString>) -> Child {
        let mut args = vec!["-c".into(), script.into()];
        args.extend(more);
        Child::spawn(&Launch {
            program: "/bin/sh".into(),
            args,
            env: Vec::new(),
            output: output.to_owned(),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn a_supervisor_that_had_to_be_killed_is_gone_when_the_stop_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        // It has much memory, which the system takes a while to take back from it.
        let script = "trap '' TERM; x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo ready; \
                      while :; do :; done";
        let deaf = shell(script, &output, Vec::new());
        while log_tail(&output, 1) != "ready" {
            tokio::task::yield_now().await;
        }
        stop(deaf.id(), Duration::from_millis(1)).await.unwrap();
        assert!(!deaf.id().is_alive());
    }

    #[tokio::test]
    async fn what_runs_in_a_removed_folder_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().canonicalize().unwrap().join("cluster");
        let config = dir.join("config/p1.toml");
        let more = vec!["--config".into(), config.into()];
        let script = "while :; do :; done";
        let stray = shell(script, &folder.path().join("out"), more);
        while stray.id().command_line().len() < 5 {
            tokio::task::yield_now().await;
        }
        let args = DownArgs { dir, wipe: false };
        run(args).await.unwrap();
        assert!(!stray.id().is_alive());
    }
}
