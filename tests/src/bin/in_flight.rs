//! The long form of the memory proof: ten thousand transactions in flight at once.
//!
//! `cargo run -p concord-tests --bin in_flight -- --server mariadb --transactions 10000`

use anyhow::bail;
use concord_client::local::binary::ServerBinary;
use concord_tests::in_flight::{Plan, prove};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut plan = Plan {
        transactions: 10_000,
        connections: 16,
        rounds: 3,
        limit: 300_000_000,
    };
    let mut server = "mariadb".to_owned();
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let Some(value) = args.next() else {
            bail!("{flag} needs a value")
        };
        match flag.as_str() {
            "--server" => server = value,
            "--transactions" => plan.transactions = value.parse()?,
            "--connections" => plan.connections = value.parse()?,
            "--rounds" => plan.rounds = value.parse()?,
            "--limit-mb" => plan.limit = value.parse::<u64>()? * 1_000_000,
            _ => bail!("unknown flag {flag}"),
        }
    }
    let server = ServerBinary::discover(&server)?;
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
