//! What programs that run `concord` may count on.

use anyhow::{Context, ensure};
use concord_tests::cluster::{Cluster, servers};
use serde_json::Value;

/// What a command prints for programs, and what it says on stderr.
fn told(cluster: &Cluster, args: &[&str]) -> anyhow::Result<(Value, String)> {
    let output = cluster.concord(args).arg("--json").output()?;
    ensure!(output.status.success(), "{args:?}: {output:?}");
    let value = serde_json::from_slice(&output.stdout).with_context(|| format!("{args:?}"))?;
    Ok((value, String::from_utf8(output.stderr)?))
}

/// Each list has `entries`, of which some are cut off and then said to be there.
fn is_cut(cluster: &Cluster, list: &[&str], entries: usize) -> anyhow::Result<()> {
    for (limit, more) in [(entries - 1, true), (entries, false), (entries + 1, false)] {
        let limit = limit.to_string();
        let args = [list, &["--limit", limit.as_str()]].concat();
        let (value, stderr) = told(cluster, &args)?;
        let shown = value.as_array().context("it is no array")?.len();
        ensure!(shown == entries - usize::from(more), "{args:?}: {shown}");
        let said = format!("({shown} shown; there are more: raise --limit)\n");
        ensure!(
            stderr == if more { &said } else { "" },
            "{args:?}: {stderr}"
        );
        let text = cluster.concord(&args).output()?;
        ensure!(text.stderr == stderr.as_bytes(), "{args:?}: {text:?}");
    }
    Ok(())
}

#[test]
fn a_list_that_is_cut_off_says_so_and_stays_a_list() -> anyhow::Result<()> {
    let server = servers()?.swap_remove(0);
    let cluster = Cluster::start_with(&server, 1, &["--no-seed"])?;
    for id in ["a", "b", "c"] {
        cluster.run(&["account", "open", id, "--currency", "EUR"])?;
        cluster.run(&["product", "create", id, "--price", "1EUR", "--stock", "9"])?;
        cluster.run(&["order", "place", id])?;
    }
    for list in ["account", "product", "order"] {
        is_cut(&cluster, &[list, "list"], 3)?;
    }
    let (all, _) = told(&cluster, &["tx", "list", "--limit", "1000"])?;
    let transactions = all.as_array().context("it is no array")?.len();
    ensure!(transactions >= 3, "{transactions} for three orders");
    is_cut(&cluster, &["tx", "list"], transactions)?;
    let (nothing, stderr) = told(&cluster, &["indoubt", "list", "--limit", "1"])?;
    ensure!(
        nothing["more"] == Value::Bool(false) && stderr.is_empty(),
        "{nothing} {stderr}"
    );
    Ok(())
}
