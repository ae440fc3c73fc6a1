//! The short form of `cargo run -p concord-tests --bin isolation`, on every server.

use concord_tests::cluster::servers;
use concord_tests::isolation::check::Level;
use concord_tests::isolation::planted::prove_the_checkers;
use concord_tests::isolation::{Plan, prove};

#[test]
fn the_checkers_find_what_is_planted() -> anyhow::Result<()> {
    // Every anomaly at every level that promises to be without it.
    assert_eq!(prove_the_checkers()?, 54);
    Ok(())
}

#[test]
fn histories_over_three_servers_keep_what_each_level_promises() -> anyhow::Result<()> {
    for server in servers()? {
        let plan = Plan {
            levels: Level::ALL.to_vec(),
            transactions: 700,
            clients: 16,
            lists: 64,
            seed: 11,
            kills: 2,
        };
        let reports = tokio::runtime::Runtime::new()?.block_on(prove(&server, &plan))?;
        for report in reports {
            let of = format!("{} {}, {report:?}", server.kind(), server.version());
            eprintln!("on {of}");
            assert_eq!(report.findings.violations(), 0, "{of}");
        }
    }
    Ok(())
}
