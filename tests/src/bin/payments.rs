//! The long form of the payments proof: a big file, many kills, on a server of choice.

use std::time::Duration;

use clap::Parser;
use concord_client::local::binary::ServerBinary;
use concord_tests::payments::{Plan, prove};

/// Pays a file while everything is killed with kill -9 at random, until it is done, and audits the
/// books.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo run --release -p concord-tests --bin payments
  cargo run --release -p concord-tests --bin payments -- --server mysql --seed 2")]
struct Args {
    /// The server to prove it on: mariadb, mysql, or the path of a mysqld.
    #[arg(long, default_value = "mariadb")]
    server: String,
    /// Lines of the file: payments, overdrafts, bad lines and repetitions.
    #[arg(long, default_value_t = 10_000)]
    lines: usize,
    /// Accounts on the servers.
    #[arg(long, default_value_t = 1_000)]
    accounts: usize,
    /// Of the file and of the kills.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Longest pause before a kill, in milliseconds; most wait until everything is up again.
    #[arg(long, default_value_t = 700)]
    pause_ms: u64,
    /// Kills without which it proves nothing.
    #[arg(long, default_value_t = 15)]
    min_kills: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let plan = Plan {
        lines: args.lines,
        accounts: args.accounts,
        seed: args.seed,
        pause: Duration::from_millis(args.pause_ms),
        min_kills: args.min_kills,
    };
    let server = ServerBinary::discover(&args.server)?;
    println!("{} {}, {plan:?}", server.kind(), server.version());
    let report = prove(&server, &plan).await?;
    println!("{report:?}");
    println!("every request took effect at most once, the books add up");
    Ok(())
}
