//! The long form of the isolation proof: list-append histories over three servers.

use std::process::ExitCode;

use clap::Parser;
use concord_client::local::binary::ServerBinary;
use concord_tests::isolation::check::Level;
use concord_tests::isolation::{Plan, Report, prove};
use serde_json::json;

/// Runs transactions that append to lists on three servers and read them, and has the history of
/// what clients were told checked: by `adya`, and by rules of our own.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo run -p concord-tests --bin isolation
  cargo run -p concord-tests --bin isolation -- --server mysql --level serializable --kills 5
  cargo run -p concord-tests --bin isolation -- --transactions 50000 --seed 7 --json

Exit codes: 0 no promise was broken; 1 one was, or the run proves nothing; 2 wrong usage.")]
struct Args {
    /// The server to prove it on: mariadb, mysql, or the path of a mysqld.
    #[arg(long, default_value = "mariadb")]
    server: String,
    /// Transactions in the checked history, in equal parts of each level.
    #[arg(long, default_value_t = 6_000, value_parser = clap::value_parser!(u64).range(30..))]
    transactions: u64,
    /// The isolation level of all transactions [default: one after the other].
    #[arg(long)]
    level: Option<Level>,
    /// Clients at once.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Lists that they share at a time: the fewer, the more they are in each other's way.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(6..))]
    lists: u32,
    /// Decides what transactions do, and who is killed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kill servers and daemons with kill -9 meanwhile, at least so often at each level.
    #[arg(long, value_name = "N", default_value_t = 0)]
    kills: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// The command that does the same again.
    fn command(&self) -> String {
        let level = self
            .level
            .map_or(String::new(), |level| format!(" --level {}", level.name()));
        format!(
            "cargo run -p concord-tests --bin isolation -- --server {} --transactions {}{level} \
             --clients {} --lists {} --seed {} --kills {}",
            self.server, self.transactions, self.clients, self.lists, self.seed, self.kills,
        )
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("a promise is broken; again: {}", args.command());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error:#}\nagain: {}", args.command());
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<bool> {
    let levels = args.level.map_or(Level::ALL.to_vec(), |level| vec![level]);
    let plan = Plan {
        transactions: args.transactions.div_ceil(levels.len() as u64),
        levels,
        clients: args.clients,
        lists: args.lists,
        seed: args.seed,
        kills: args.kills,
    };
    let server = ServerBinary::discover(&args.server)?;
    eprintln!("{} {}, seed {}", server.kind(), server.version(), plan.seed);
    let reports = prove(&server, &plan).await?;
    for report in &reports {
        tell(report);
    }
    let violations: usize = reports.iter().map(|r| r.findings.violations()).sum();
    if args.json {
        let sum = |of: fn(&Report) -> usize| -> usize { reports.iter().map(of).sum() };
        let levels: Vec<_> = reports.iter().map(Report::json).collect();
        let object = json!({
            "tool": "isolation",
            "server": format!("{} {}", server.kind(), server.version()),
            "level": args.level.map_or("all", Level::name),
            "seed": args.seed,
            "transactions": sum(Report::checked),
            "commits": sum(|r| r.committed),
            "aborts": sum(|r| r.aborted.values().sum()),
            "unknowns": sum(|r| r.unknown),
            "kills": sum(|r| r.kills.values().sum()),
            "levels": levels,
            "violations": violations,
        });
        println!("{object}");
    }
    Ok(violations == 0)
}

fn tell(report: &Report) {
    let a_second = report.checked() as u128 * 1_000 / report.load.as_millis().max(1);
    eprintln!(
        "{}: {} transactions ({}/s), {} over several servers, {} met another; {} committed, \
         {} at their time-out, {} without their results, {} unknown, aborted {:?}, \
         {} turned away; kills {:?}; allowed {:?}; checked in {:.1?}",
        report.level.name(),
        report.checked(),
        a_second,
        report.spread,
        report.met,
        report.committed,
        report.late,
        report.lost,
        report.unknown,
        report.aborted,
        report.turned_away,
        report.kills,
        report.findings.allowed,
        report.checking,
    );
    for violation in &report.findings.told {
        eprintln!("  {}: {}", violation.kind, violation.proof);
    }
    if report.findings.violations() > 0 {
        eprintln!("  BROKEN: {:?}", report.findings.broken);
    }
}
