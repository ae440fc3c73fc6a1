//! `concord down`: stops a local cluster, and removes it when asked to.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;

use crate::cli::up::{cluster_failure, failed, with_causes};
use crate::cli::{Exit, Failure};
use crate::local::cluster::{self, ClusterError};
use crate::local::lock::ClusterLock;
use crate::local::strays;

/// A supervisor has stopped everything within this time: 30 s each for coordinator and
/// participants to drain, 60 s for servers, and some to spare.
const STOP_TIMEOUT_S: u64 = 150;

const EXAMPLES: &str = "\
Examples:
  concord down           stops the cluster; `concord up` goes on with the same data
  concord down --wipe    also removes its folder with all data";

/// Arguments of `concord down`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DownArgs {
    /// The cluster's folder.
    #[arg(long, default_value = ".concord", value_name = "FOLDER")]
    dir: PathBuf,
    /// Remove the folder with all data.
    #[arg(long)]
    wipe: bool,
}

/// Stops the cluster in a folder; returns when every process has ended.
pub async fn run(args: DownArgs) -> anyhow::Result<()> {
    if !args.dir.exists() {
        say(&format!("there is no cluster in {}", args.dir.display()));
        return Ok(());
    }
    if !cluster::is_cluster(&args.dir) {
        let error = ClusterError::ForeignFolder { folder: args.dir };
        return Err(Failure::new(Exit::Usage, error.to_string()).into());
    }
    let folder = args
        .dir
        .canonicalize()
        .map_err(|error| failed("cannot find the folder", error))?;
    let holder = ClusterLock::holder(&folder);
    if let Some(supervisor) = holder {
        say(&format!(
            "stopping the supervisor (pid {}) and its processes",
            supervisor.pid
        ));
        supervisor.signal(Signal::SIGTERM);
        if !supervisor.ended(Duration::from_secs(STOP_TIMEOUT_S)).await {
            say("it does not end; killing it");
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
        say(&format!(
            "stopped {strays} processes that had no supervisor any more"
        ));
    }
    if args.wipe {
        cluster::wipe(&folder, lock).map_err(|error| cluster_failure(&error))?;
        say(&format!("removed {}", folder.display()));
    } else if holder.is_some() || strays > 0 {
        say(&format!("stopped; the data stays in {}", folder.display()));
    } else {
        say("nothing was running");
    }
    Ok(())
}

/// Tells a person; a program looks at the exit code.
fn say(text: &str) {
    // Nobody may be reading, which must not stop the stopping.
    let _ = writeln!(std::io::stderr(), "{text}");
}
