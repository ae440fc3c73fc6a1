//! `concord status`: the processes of a local cluster as they are now, and the gateway's view.

use std::path::{Path, PathBuf};

use clap::Args;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::cli::up::failed;
use crate::cli::{Exit, Failure, cluster, output};
use crate::local::health;
use crate::local::lock::ClusterLock;
use crate::local::state::{ClusterState, ProcessState, Readiness};
use crate::{Client, RetryPolicy};

/// The word for a process that is recorded but does not run, when nobody restarts it.
const DEAD: &str = "dead";

/// The word for a process that runs but cannot do its work now.
const NOT_READY: &str = "not-ready";

const EXAMPLES: &str = "\
Examples:
  concord status
  concord --json status | jq '.processes[] | {name, pid, address, readiness}'

The words: ready; not-ready (it runs but cannot work now); starting; restarting; failing (it dies \
again and again); stopped; dead (it does not run, and nobody restarts it).

Exit code: 0 when every process is ready, 5 otherwise.";

/// Arguments of `concord status`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct StatusArgs {
    /// The cluster's folder.
    #[arg(long, default_value = ".concord", value_name = "FOLDER")]
    pub(crate) dir: PathBuf,
}

/// Shows the cluster in a folder.
pub async fn run(args: StatusArgs, json: bool) -> anyhow::Result<()> {
    let state = ClusterState::read(&args.dir)
        .map_err(|error| failed("cannot read the cluster's state", error))?;
    let Some(state) = state else {
        let what = format!("there is no cluster in {}", args.dir.display());
        let next = "start one with `concord up`, or name its folder with --dir";
        return Err(Failure::new(Exit::Unavailable, what).next(next).into());
    };
    let supervised = ClusterLock::holder(&args.dir).is_some();
    let words = join_all(
        state
            .processes
            .iter()
            .map(|process| word(&state, process, supervised)),
    )
    .await;
    let all_ready = words.iter().all(|word| *word == Readiness::Ready.word());
    let view = gateway_view(&state.gateway).await;
    if json {
        let value = to_json(&state, supervised, &words, view.as_ref());
        output::print_bytes(format!("{value:#}\n").as_bytes())?;
    } else {
        let text = to_text(&state, supervised, &words, view.as_ref());
        output::print_bytes(text.as_bytes())?;
    }
    if all_ready {
        Ok(())
    } else {
        Err(Failure::silent(Exit::Unavailable).into())
    }
}

/// How a process is now, which the state file cannot know.
async fn word(state: &ClusterState, process: &ProcessState, supervised: bool) -> &'static str {
    let alive = state.living(process).is_some();
    let recorded = process.readiness;
    match recorded {
        Readiness::Starting | Readiness::Ready if alive => {
            let answers = match (&process.socket, &process.password_file) {
                (Some(socket), Some(password)) => health::server_answers(socket, password).await,
                _ => health::daemon_serves(&format!("http://{}", process.address)).await,
            };
            match (answers, recorded) {
                (true, _) => Readiness::Ready.word(),
                (false, Readiness::Ready) => NOT_READY,
                (false, _) => recorded.word(),
            }
        }
        Readiness::Stopped => recorded.word(),
        _ if !supervised => DEAD,
        Readiness::Ready => Readiness::Restarting.word(),
        Readiness::Starting | Readiness::Restarting | Readiness::Failing => recorded.word(),
    }
}

/// What the coordinator says, if it can be asked.
async fn gateway_view(gateway: &str) -> Option<crate::v1::GetClusterStatusResponse> {
    let client = Client::builder(gateway)
        .retry(RetryPolicy::none())
        .build()
        .ok()?;
    client.cluster_status().await.ok()
}

fn to_json(
    state: &ClusterState,
    supervised: bool,
    words: &[&'static str],
    view: Option<&crate::v1::GetClusterStatusResponse>,
) -> Value {
    let processes = state.processes.iter().zip(words).map(|(process, word)| {
        json!({
            "name": process.name,
            "role": process.role,
            "pid": state.living(process).map(|id| id.pid),
            "address": process.address,
            "readiness": word,
            "restarts": process.restarts,
            "log": process.log,
            "socket": process.socket,
            "password_file": process.password_file,
        })
    });
    json!({
        "cluster": state.cluster,
        "gateway": state.gateway,
        "server": { "kind": state.server_kind, "version": state.server_version },
        "supervisor": { "pid": state.supervisor.pid, "running": supervised },
        "processes": processes.collect::<Vec<_>>(),
        "status": view.map(cluster::json),
    })
}

fn to_text(
    state: &ClusterState,
    supervised: bool,
    words: &[&'static str],
    view: Option<&crate::v1::GetClusterStatusResponse>,
) -> String {
    let rows = state.processes.iter().zip(words).map(|(process, word)| {
        vec![
            process.name.clone(),
            state
                .living(process)
                .map_or_else(|| "-".to_owned(), |id| id.pid.to_string()),
            process.address.clone(),
            (*word).to_owned(),
            process.restarts.to_string(),
            shown(&process.log),
        ]
    });
    let header = [
        "process",
        "pid>",
        "address",
        "readiness",
        "restarts>",
        "log",
    ];
    let mut text = output::table(&header, rows);
    text.push('\n');
    if !supervised {
        text.push_str("the supervisor does not run; `concord up` starts the cluster again\n");
    }
    let view = match view {
        Some(view) => cluster::text(view),
        None => format!("the gateway at {} gives no answer", state.gateway),
    };
    text.push('\n');
    text.push_str(&view);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// A path as seen from here, when it is below.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here)
        .unwrap_or(path)
        .display()
        .to_string()
}
