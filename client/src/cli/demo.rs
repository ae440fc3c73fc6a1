//! `concord demo`: shows on a running local cluster what Concord promises, step by step.
//!
//! It looks at the result of every step by plain SQL on the servers, beside Concord, and fails
//! when a balance is not what it must be. It kills daemons with SIGKILL; the cluster's supervisor
//! starts them again.

mod stage;
mod steps;
mod wait;

use std::path::PathBuf;

use clap::Args;
use futures::future::LocalBoxFuture;
use serde_json::{Value, json};

use crate::cli::exit::Failure;
use crate::cli::output::Ctx;
use stage::Stage;

#[derive(Debug, Args)]
#[command(after_help = "\
It opens accounts and a product of its own (demo-…), and may be run as often as you like. It kills
participants and the coordinator of the local cluster, which `concord up` starts again: do not run
it on a cluster that somebody needs just now.

Examples:
  concord up --detach && concord demo
  concord demo --dir /tmp/cluster/.concord
  concord --json demo")]
pub(crate) struct DemoArgs {
    /// Folder of the local cluster.
    #[arg(long, default_value = ".concord", value_name = "DIR")]
    dir: PathBuf,
}

/// One step of the demonstration: it acts, tells, and checks its result.
type DemoStep = for<'a> fn(&'a mut Stage) -> LocalBoxFuture<'a, Result<(), Failure>>;

/// The steps, in order, with their titles.
const STEPS: [(&str, DemoStep); 6] = [
    ("a transfer between two servers commits", |stage| {
        Box::pin(steps::commits(stage))
    }),
    ("a transfer without funds is refused", |stage| {
        Box::pin(steps::refused(stage))
    }),
    (
        "an order: stock on one server, payment on another",
        |stage| Box::pin(steps::order(stage)),
    ),
    (
        "a participant is killed -9 between prepare and commit",
        |stage| Box::pin(steps::participant_killed(stage)),
    ),
    ("the coordinator is killed -9 before it decided", |stage| {
        Box::pin(steps::coordinator_killed_undecided(stage))
    }),
    (
        "coordinator and participant are killed -9 after the decision",
        |stage| Box::pin(steps::both_killed_decided(stage)),
    ),
];

pub(crate) async fn run(ctx: &Ctx, args: DemoArgs) -> Result<(), Failure> {
    let mut stage = Stage::set(ctx, &args.dir).await?;
    let mut done: Vec<Value> = Vec::new();
    let mut failed = None;
    for (i, (title, step)) in STEPS.iter().enumerate() {
        stage.title(&format!("{}. {title}", i + 1));
        let result = step(&mut stage).await;
        let told = stage.take_record();
        done.push(json!({ "step": title, "ok": result.is_ok(), "told": told }));
        if let Err(failure) = result {
            failed = Some(failure.why(format!("in step {}: {title}", i + 1)));
            break;
        }
    }
    let ok = failed.is_none();
    let value = json!({ "ok": ok, "steps": done });
    ctx.print(&value, || {
        if ok {
            "\nAll steps ended as they must: every transaction on all servers or on none, each \
             once,\nand the sum of the balances is what it was."
                .to_owned()
        } else {
            String::new()
        }
    })?;
    failed.map_or(Ok(()), Err)
}
