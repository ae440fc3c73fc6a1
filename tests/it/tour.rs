//! What the README shows: its own commands, as they stand there, from the first to the last, in one
//! shell of a user's.
//!
//! It refuses a README whose languages show different commands.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use concord_client::local::binary::ServerKind;
use concord_tests::cases::{in_path, server_of};
use concord_tests::cluster::{Cluster, binaries};
use sqlx::Row;

const ENGLISH: &str = include_str!("../../README.md");
const CHINESE: &str = include_str!("../../deploy/docs/README.zh-CN.md");

/// The commands of a text's console blocks, each with its further lines.
fn commands(text: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut console = false;
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            console = kind == "console";
        } else if !console {
        } else if let Some(command) = line.strip_prefix("$ ") {
            commands.push(command.to_owned());
        } else if let Some(command) = commands.last_mut() {
            command.push('\n');
            command.push_str(line);
        }
    }
    commands
}

/// A command without what it says to its reader.
fn bare(command: &str) -> &str {
    command.split(" # ").next().unwrap_or(command).trim_end()
}

#[test]
fn both_languages_show_the_same_commands() {
    let of = |text| {
        commands(text)
            .iter()
            .map(|one| bare(one).to_owned())
            .collect()
    };
    let (english, chinese): (Vec<String>, Vec<String>) = (of(ENGLISH), of(CHINESE));
    assert_eq!(english, chinese);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_readme_on_mariadb() -> anyhow::Result<()> {
    on(ServerKind::Mariadb).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_readme_on_mysql() -> anyhow::Result<()> {
    on(ServerKind::Mysql).await
}

/// How a command of the README is run here; none when it is not for this test.
fn as_run_here(command: &str) -> Option<String> {
    // The first is how this test's cluster was started, but for the build; the second is a tool
    // of others, whose calls `foreign` makes with more of them.
    if command.starts_with("./deploy/up") || command.starts_with("grpcurl ") {
        return None;
    }
    // A user ends it with Ctrl-C.
    if command.starts_with("concord tx watch") {
        return Some(format!(
            "timeout --signal=INT --preserve-status 5 {command}"
        ));
    }
    // Right after a kill the list is not complete, and says so.
    if command.starts_with("concord indoubt list") {
        let bare = bare(command);
        return Some(format!("until {bare}; do sleep 0.1; done"));
    }
    if let Some(rest) = command.strip_prefix("concord bench ") {
        return Some(format!("concord bench --seconds 2 {rest}"));
    }
    Some(command.to_owned())
}

async fn on(kind: ServerKind) -> anyhow::Result<()> {
    let Some(server) = server_of(kind)? else {
        return Ok(());
    };
    for tool in ["jq", "mariadb"] {
        if !in_path(tool)? {
            return Ok(());
        }
    }
    let cluster = Cluster::start(&server, 2)?;
    let folder = cluster.beside("clone");
    std::fs::create_dir_all(folder.join("target"))?;
    symlink(binaries()?, folder.join("target/release"))?;
    symlink(cluster.dir(), folder.join(".concord"))?;
    let before = balances(&cluster).await?;

    let commands: Vec<String> = commands(ENGLISH)
        .iter()
        .filter_map(|command| as_run_here(command))
        .collect();
    in_one_shell(&cluster, &folder, &commands)?;
    let ours = |command: &String| Some(command.split_once("concord ")?.1.split(' ').next()?.into());
    let run: BTreeSet<String> = commands.iter().filter_map(ours).collect();
    for name in [
        "account", "bench", "demo", "indoubt", "order", "status", "transfer", "tx",
    ] {
        ensure!(run.contains(name), "the README shows no `concord {name}`");
    }

    let after = balances(&cluster).await?;
    ensure!(before != after, "nothing was paid");
    let sum = |of: &BTreeMap<String, i64>| before.keys().map(|id| of[id]).sum::<i64>();
    ensure!(sum(&before) == sum(&after), "{before:?} became {after:?}");
    ensure!(
        (till(&cluster, 1).await?, till(&cluster, 2).await?) == ([95, 100], [100, 105]),
        "the tills hold other sums"
    );
    // "Run it again: nothing is paid twice."
    let payments = commands.iter().find(|one| one.contains(" --file "));
    let payments = payments.context("the README shows no file of payments")?;
    let again = [
        "PATH=\"$PWD/target/release:$PATH\"".to_owned(),
        payments.clone(),
    ];
    in_one_shell(&cluster, &folder, &again)?;
    ensure!(balances(&cluster).await? == after, "paid twice");
    Ok(())
}

/// Runs commands in one shell, which stops at the first that fails.
fn in_one_shell(cluster: &Cluster, folder: &Path, commands: &[String]) -> anyhow::Result<()> {
    let mut script = "set -euo pipefail\nexec 2>&1\n".to_owned();
    for command in commands {
        let shown = command.replace('\'', r"'\''");
        script.push_str(&format!("printf '\\n$ %s\\n' '{shown}'\n{command}\n"));
    }
    let output = Command::new("timeout")
        .args(["300", "bash", "-c", &script])
        .current_dir(folder)
        .env("CONCORD_ENDPOINT", cluster.endpoint())
        .stdin(Stdio::null())
        .output()?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}:\n{told}", output.status);
    eprintln!("{told}");
    Ok(())
}

async fn balances(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, i64>> {
    let accounts = cluster.client()?.list_accounts(100_000).await?;
    Ok(accounts
        .into_iter()
        .map(|account| (account.account_id, account.balance))
        .collect())
}

/// What the server itself says that the two tills hold.
async fn till(cluster: &Cluster, server: usize) -> anyhow::Result<[i64; 2]> {
    let mut root = cluster.root(server).await?;
    let rows = sqlx::query("SELECT cash FROM shop.till ORDER BY id")
        .fetch_all(&mut root)
        .await?;
    ensure!(rows.len() == 2, "{} tills", rows.len());
    Ok([rows[0].try_get(0)?, rows[1].try_get(0)?])
}
