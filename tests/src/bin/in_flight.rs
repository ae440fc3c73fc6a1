//! The long form of the memory proof: ten thousand transactions in flight at once.

use clap::Parser;
use concord_client::local::binary::ServerBinary;
use concord_tests::in_flight::{Plan, prove};

/// Holds many transactions in flight and looks at the memory of the coordinator.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo run --release -p concord-tests --bin in_flight
  cargo run --release -p concord-tests --bin in_flight -- --server mysql --transactions 5000")]
struct Args {
    /// The server to prove it on: mariadb, mysql, or the path of a mysqld.
    #[arg(long, default_value = "mariadb")]
    server: String,
    /// Transactions in flight at once.
    #[arg(long, default_value_t = 10_000)]
    transactions: usize,
    /// Connections that they come from.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// How often.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Memory that the coordinator may take, in MB.
    #[arg(long, default_value_t = 300)]
    limit_mb: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let plan = Plan {
        transactions: args.transactions,
        connections: args.connections,
        rounds: args.rounds,
        limit: args.limit_mb * 1_000_000,
    };
    let server = ServerBinary::discover(&args.server)?;
    println!("{} {}, {plan:?}", server.kind(), server.version());
    for round in prove(&server, &plan).await? {
        println!(
            "{:?}: {} in flight, {} committed; {} while held; {} after",
            round.hold, round.in_flight, round.committed, round.held, round.after,
        );
    }
    println!("the coordinator stayed below {} MB", plan.limit / 1_000_000);
    Ok(())
}
