//! The short form of `cargo run -p concord-tests --bin payments`, on every server.

use std::time::Duration;

use concord_tests::cluster::servers;
use concord_tests::payments::{Plan, prove};

#[test]
fn a_payment_file_survives_random_kills() -> anyhow::Result<()> {
    for server in servers()? {
        let plan = Plan {
            lines: 1_500,
            accounts: 100,
            seed: 7,
            pause: Duration::from_millis(500),
            min_kills: 2,
        };
        let report = tokio::runtime::Runtime::new()?.block_on(prove(&server, &plan))?;
        eprintln!("on {} {}: {report:?}", server.kind(), server.version());
    }
    Ok(())
}
