//! The long form of the recovery proof: thousands of decided transactions after a crash, against
//! raw XA COMMITs of the same branches.

use anyhow::ensure;
use clap::Parser;
use concord_client::local::binary::ServerBinary;
use concord_tests::backlog::{Plan, prove};

/// Resolves a backlog of decided transactions after a crash, and compares the time with that of
/// raw XA COMMITs of the same branches.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo run --release -p concord-tests --bin backlog
  cargo run --release -p concord-tests --bin backlog -- --server mysql --rounds 5")]
struct Args {
    /// The server to prove it on: mariadb, mysql, or the path of a mysqld.
    #[arg(long, default_value = "mariadb")]
    server: String,
    /// Decided transactions, of two prepared branches each.
    #[arg(long, default_value_t = 5_000)]
    transactions: usize,
    /// How often both are measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Connections to each server that commit by hand.
    #[arg(long, default_value_t = 32)]
    raw_connections: usize,
    /// Longest recovery, as a multiple of the raw time.
    #[arg(long, default_value_t = 2.0)]
    max_ratio: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let plan = Plan {
        transactions: args.transactions,
        rounds: args.rounds,
        raw_connections: args.raw_connections,
    };
    let max_ratio = args.max_ratio;
    let server = ServerBinary::discover(&args.server)?;
    println!("{} {}, {plan:?}", server.kind(), server.version());
    let report = prove(&server, &plan).await?;
    for round in &report.rounds {
        println!(
            "recovery {:?}, raw {:?}, ratio {:.2}, coordinator {}",
            round.recovery,
            round.raw,
            round.recovery.as_secs_f64() / round.raw.as_secs_f64(),
            round.memory,
        );
    }
    let ratio = report.ratio();
    println!("ratio of medians: {ratio:.2} (at most {max_ratio})");
    ensure!(ratio <= max_ratio, "the recovery took too long");
    Ok(())
}
