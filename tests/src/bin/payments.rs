//! The long form of the payments proof: a big file, many kills, on a server of choice.
//!
//! `cargo run -p concord-tests --bin payments -- --server mariadb --lines 10000 --accounts 1000`

use std::time::Duration;

use anyhow::bail;
use concord_client::local::binary::ServerBinary;
use concord_tests::payments::{Plan, prove};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut plan = Plan {
        lines: 10_000,
        accounts: 1_000,
        seed: 1,
        pause: Duration::from_millis(1_500),
        min_kills: 20,
    };
    let mut server = "mariadb".to_owned();
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let Some(value) = args.next() else {
            bail!("{flag} needs a value")
        };
        match flag.as_str() {
            "--server" => server = value,
            "--lines" => plan.lines = value.parse()?,
            "--accounts" => plan.accounts = value.parse()?,
            "--seed" => plan.seed = value.parse()?,
            "--pause-ms" => plan.pause = Duration::from_millis(value.parse()?),
            "--min-kills" => plan.min_kills = value.parse()?,
            _ => bail!("unknown flag {flag}"),
        }
    }
    let server = ServerBinary::discover(&server)?;
    println!("{} {}, {plan:?}", server.kind(), server.version());
    let report = prove(&server, &plan).await?;
    println!("{report:?}");
    println!("every request took effect at most once, the books add up");
    Ok(())
}
