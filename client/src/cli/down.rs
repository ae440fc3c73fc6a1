//! `concord down`: stops a local cluster, and removes it when asked to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;

use crate::cli::Exit;
use crate::cli::output::note;
use crate::cli::up::{cluster_failure, failed, with_causes};
use crate::local::cluster::{self, ClusterError};
use crate::local::lock::ClusterLock;
use crate::local::strays;

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
        note(&format!("there is no cluster in {}", args.dir.display()));
        return Ok(());
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
        supervisor.signal(Signal::SIGTERM);
        if !supervisor.ended(Duration::from_secs(STOP_TIMEOUT_S)).await {
            note("it does not end; killing it");
            supervisor.stop(Duration::ZERO).await;
        }
    }
    // From here on no supervisor can start, so what is stopped stays stopped.
    let lock =
        ClusterLock::acquire(&folder).map_err(|error| with_causes(Exit::Unavailable, &error))?;
    let strays = strays::stop(&folder)
        .await
        .map_err(|error| failed("cannot stop all processes of the cluster", error))?;
    if strays > 0 {
        note(&format!(
            "stopped {strays} processes that had no supervisor any more"
        ));
    }
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
