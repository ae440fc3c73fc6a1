//! Chaos on real servers, for as many minutes as asked; `tests/soak` gets the servers for it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use concord_client::local::binary::ServerBinary;
use concord_tests::soak::client::{self, Orders};
use concord_tests::soak::{Least, Plan, Report, run};
use serde_json::{Value, json};

/// Kills, stops, partitions and cuts everything of a cluster of three servers while clients are at
/// work, heals it, and checks everything: again and again.
#[derive(Debug, Parser)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  ./tests/soak --minutes 1                     one minute on MariaDB, one on MySQL
  ./tests/soak --minutes 20 --server mysql --seed 7 --json
  target/debug/soak --minutes 1 --server /usr/sbin/mariadbd --trace

The figures below are for each minute and each server; a run that stays below them fails."
)]
struct Args {
    #[command(subcommand)]
    command: Option<Part>,
    /// How long on each server; the checks and the healing of each round are part of it.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// mariadb, mysql, both, or the path of a server program or of an unpacked tree.
    #[arg(long, default_value = "both")]
    server: String,
    /// Of all choices [default: another one in each run].
    #[arg(long)]
    seed: Option<u64>,
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
    /// Say every fault.
    #[arg(long)]
    trace: bool,
    /// Operations that must have committed.
    #[arg(long, default_value_t = 200.0)]
    commits: f64,
    /// Kills of coordinator and participants.
    #[arg(long, default_value_t = 20.0)]
    daemon_kills: f64,
    /// Kills of servers.
    #[arg(long, default_value_t = 3.0)]
    server_kills: f64,
    /// Kills of clients.
    #[arg(long, default_value_t = 2.0)]
    client_kills: f64,
    /// Faults of each kind.
    #[arg(long, default_value_t = 1.0)]
    each_fault: f64,
    /// Cuts at each XA verb.
    #[arg(long, default_value_t = 1.0)]
    each_verb: f64,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Be one of the clients.
    #[command(hide = true)]
    Client {
        #[arg(long)]
        endpoint: String,
        #[arg(long)]
        record: PathBuf,
        #[arg(long)]
        name: String,
        #[arg(long)]
        number: i64,
        #[arg(long)]
        seed: u64,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    match args.command {
        None => runtime.block_on(soak(args)),
        Some(Part::Client {
            endpoint,
            record,
            name,
            number,
            seed,
        }) => {
            let orders = Orders {
                endpoint,
                record,
                name,
                number,
                seed,
            };
            runtime.block_on(client::run(orders))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn soak(args: Args) -> anyhow::Result<ExitCode> {
    let servers = if args.server == "both" {
        ServerBinary::under_test()?
    } else {
        vec![ServerBinary::discover(&args.server)?]
    };
    anyhow::ensure!(!servers.is_empty(), "there is no server to soak");
    anyhow::ensure!(args.minutes > 0.0, "--minutes must be more than 0");
    let plan = Plan {
        minutes: args.minutes,
        seed: args.seed.unwrap_or_else(clock),
        least: Least {
            commits: args.commits,
            daemon_kills: args.daemon_kills,
            server_kills: args.server_kills,
            client_kills: args.client_kills,
            each_fault: args.each_fault,
            each_verb: args.each_verb,
        },
        trace: args.trace,
    };
    eprintln!("seed {}", plan.seed);
    let mut reports = Vec::new();
    for server in &servers {
        let report = tokio::select! {
            report = run(server, &plan) => report?,
            // What was started is stopped and removed on the way out.
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        };
        eprintln!("{report}\n");
        if !report.violations.is_empty() {
            let (path, minutes, seed) = (server.path().display(), plan.minutes, plan.seed);
            eprintln!("again: ./tests/soak --minutes {minutes} --server {path} --seed {seed}");
        }
        reports.push(report);
    }
    if args.json {
        println!("{}", together(&reports));
    }
    let sound = reports.iter().all(|report| report.violations.is_empty());
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One object for all servers: that of the only one, or sums with each beside.
fn together(reports: &[Report]) -> Value {
    if let [only] = reports {
        return only.json();
    }
    let each: Vec<Value> = reports.iter().map(Report::json).collect();
    let sum = |name: &str| -> u64 { each.iter().filter_map(|one| one[name].as_u64()).sum() };
    let worst = |name: &str| -> u64 {
        let all = each
            .iter()
            .filter_map(|one| one["in_doubt_ms"][name].as_u64());
        all.max().unwrap_or_default()
    };
    let counts = each
        .iter()
        .filter_map(|one| one["in_doubt_ms"]["count"].as_u64());
    let count: u64 = counts.sum();
    let mut faults = serde_json::Map::new();
    for (name, count) in each
        .iter()
        .filter_map(|one| one["faults"].as_object())
        .flatten()
    {
        let so_far = faults.get(name).and_then(Value::as_u64).unwrap_or_default();
        let count = so_far + count.as_u64().unwrap_or_default();
        faults.insert(name.clone(), count.into());
    }
    json!({
        "tool": "soak",
        "server": "both",
        "minutes": each.iter().filter_map(|one| one["minutes"].as_f64()).sum::<f64>(),
        "seed": reports.first().map(|report| report.seed),
        "commits": sum("commits"),
        "aborts": sum("aborts"),
        "unknowns": sum("unknowns"),
        "locked_reads": sum("locked_reads"),
        "daemon_kills": sum("daemon_kills"),
        "server_kills": sum("server_kills"),
        "client_kills": sum("client_kills"),
        "faults": faults,
        "in_doubt_ms": {
            "count": count,
            "p50": worst("p50"),
            "p99": worst("p99"),
            "max": worst("max"),
        },
        "violations": sum("violations"),
        "runs": each,
    })
}

fn clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |now| now.as_secs())
}
