//! The long form of the recovery proof: thousands of decided transactions after a crash, against
//! raw XA COMMITs of the same branches.
//!
//! `cargo run -p concord-tests --bin backlog -- --server mariadb --transactions 5000 --rounds 3`

use anyhow::{bail, ensure};
use concord_client::local::binary::ServerBinary;
use concord_tests::backlog::{Plan, prove};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut plan = Plan {
        transactions: 5_000,
        rounds: 3,
        raw_connections: 32,
    };
    let mut server = "mariadb".to_owned();
    let mut max_ratio = 2.0;
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let Some(value) = args.next() else {
            bail!("{flag} needs a value")
        };
        match flag.as_str() {
            "--server" => server = value,
            "--transactions" => plan.transactions = value.parse()?,
            "--rounds" => plan.rounds = value.parse()?,
            "--raw-connections" => plan.raw_connections = value.parse()?,
            "--max-ratio" => max_ratio = value.parse()?,
            _ => bail!("unknown flag {flag}"),
        }
    }
    let server = ServerBinary::discover(&server)?;
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
