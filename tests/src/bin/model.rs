//! The model checker on the shipped machines, by hand: one configuration, all, or the large ones.

use std::process::ExitCode;

use clap::Parser;
use concord_tests::model::Fault;
use concord_tests::model::configs::{Named, large, standard};
use concord_tests::model::explore::{Explored, Manner, explore};
use serde_json::json;

/// Explores every order of events within the bounds of each configuration, on the protocol's
/// machines as they ship, and checks the numbered invariants in every state.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo run -p concord-tests --bin model                        what every run of the tests explores
  cargo run -p concord-tests --bin model -- --large --json      that, and configurations of minutes
  cargo run -p concord-tests --bin model -- --only 'three participants'
  cargo run -p concord-tests --bin model -- --only hand --fault nota-is-success

Exit codes: 0 nothing is wrong, and all is as it was when it was looked at last; 1 something is, or
is not; 2 wrong usage.")]
struct Args {
    /// Also the configurations that take minutes.
    #[arg(long)]
    large: bool,
    /// Only configurations whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Plant a fault into the modelled drivers: it must be found.
    #[arg(long)]
    fault: Option<Fault>,
    /// Stop each exploration after about so many states, to see how it grows.
    #[arg(long, value_name = "STATES")]
    cap: Option<usize>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Stop at the first thing that is wrong.
    #[arg(long)]
    until_wrong: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut all = standard();
    if args.large {
        all.extend(large());
    }
    if let Some(text) = &args.only {
        all.retain(|named| named.name.contains(text.as_str()));
    }
    if all.is_empty() {
        eprintln!("no configuration has that in its name");
        return ExitCode::from(2);
    }
    let (mut rows, mut states, mut objections) = (Vec::new(), 0, 0);
    for named in all {
        let (explored, objection) = explore_one(&args, &named);
        eprintln!("{explored}, {}", named.name);
        if let Some(objection) = &objection {
            objections += 1;
            let name = named.name;
            eprintln!("  {objection}");
            eprintln!("  again: cargo run -p concord-tests --bin model -- --large --only '{name}'");
        }
        states += explored.states;
        rows.push(json!({
            "name": named.name,
            "states": explored.states,
            "depth": explored.depth,
            "seconds": explored.time.as_secs_f64(),
            "reached": explored.reached,
            "objection": objection,
        }));
    }
    eprintln!("{states} states in {} configurations", rows.len());
    if args.json {
        let object = json!({
            "tool": "model",
            "large": args.large,
            "states": states,
            "configurations": rows,
            "violations": objections,
        });
        println!("{object}");
    }
    if objections == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn explore_one(args: &Args, named: &Named) -> (Explored, Option<String>) {
    let manner = Manner {
        threads: args.threads,
        until_wrong: args.until_wrong,
        cap: args.cap,
    };
    let mut config = named.config.clone();
    config.fault = args.fault;
    let explored = explore(config, manner);
    let objection = explored.objection(named);
    (explored, objection)
}
