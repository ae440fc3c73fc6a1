//! A payment file run while everything is killed at random, until it is through; then the books.
//!
//! The file holds overdrafts, lines that cannot be read, and request ids that stand there twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use concord_client::local::binary::ServerBinary;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::books::Books;
use crate::cluster::{Cluster, TO_BE_KILLED};

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Lines of the file.
    pub lines: usize,
    /// Accounts.
    pub accounts: usize,
    /// Decides lines and kills.
    pub seed: u64,
    /// Longest pause before a kill while the file is run for the first time, and longer by as much
    /// each time after; of four, three come only when everything is up again.
    pub pause: Duration,
    /// Kills that must have happened, or the run proves nothing.
    pub min_kills: usize,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Kills by process.
    pub kills: BTreeMap<String, usize>,
    /// Runs of the file until it was through.
    pub runs: u32,
    /// Requests that took effect.
    pub committed: usize,
    /// Requests refused for good.
    pub refused: usize,
}

/// Opening balance of every account: small enough that some lines overdraw.
const OPENING: i64 = 10_000;
/// Runs of the file until it must be through.
const RUNS_MAX: u32 = 40;
const SERVERS: u16 = 2;
/// Between two looks whether everything is up.
const LOOK: Duration = Duration::from_millis(20);
const CURRENCY: &str = "EUR";

/// A line that is meant to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    from: String,
    to: String,
    amount: i64,
}

/// What those who run the file and those who kill tell each other.
#[derive(Debug, Default)]
struct Progress {
    /// No more kills.
    stop: AtomicBool,
    /// Runs of the file that were begun.
    runs: AtomicU32,
}

struct File {
    text: String,
    good: BTreeMap<String, Line>,
    bad: usize,
}

fn account(n: usize) -> String {
    format!("acc-{n:05}")
}

fn write_file(plan: &Plan, rng: &mut StdRng) -> File {
    let mut text = String::from("request_id,from,to,amount,memo\n");
    let mut good: BTreeMap<String, Line> = BTreeMap::new();
    let mut bad = 0;
    for n in 0..plan.lines {
        let from = rng.random_range(0..plan.accounts);
        let to = (from + rng.random_range(1..plan.accounts)) % plan.accounts;
        let (from, to) = (account(from), account(to));
        match rng.random_range(0..100) {
            // Cannot be read: no amount, a negative one, not a number, too few columns.
            0 => {
                let broken = ["", "-5", "12.5.0", "99999999999999999999"][n % 4];
                let _ = writeln!(text, "pay-{n},{from},{to},{broken},bad");
                bad += 1;
            }
            // Stands there a second time, whole.
            1 if !good.is_empty() => {
                let nth = rng.random_range(0..good.len());
                if let Some((id, line)) = good.iter().nth(nth) {
                    let Line { from, to, amount } = line;
                    let _ = writeln!(text, "{id},{from},{to},{amount},once");
                }
            }
            kind => {
                // Some ask for more than there can be.
                let amount = if kind < 5 {
                    100 * OPENING
                } else {
                    rng.random_range(1..OPENING / 4)
                };
                let id = format!("pay-{n}");
                let _ = writeln!(text, "{id},{from},{to},{amount},once");
                good.insert(id, Line { from, to, amount });
            }
        }
    }
    File { text, good, bad }
}

/// Runs the whole proof on a fresh cluster of this server.
pub async fn prove(server: &ServerBinary, plan: &Plan) -> anyhow::Result<Report> {
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let cluster = Arc::new(Cluster::start_with(server, SERVERS, &TO_BE_KILLED)?);
    open_accounts(&cluster, plan.accounts).await?;
    let before = Books::read(&cluster, SERVERS.into()).await?;
    let file = write_file(plan, &mut rng);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("payments.csv");
    std::fs::write(&path, &file.text)?;
    let progress = Arc::new(Progress::default());
    let killer = tokio::spawn(kill_at_random(
        Arc::clone(&cluster),
        *plan,
        Arc::clone(&progress),
    ));
    let summary = run_until_through(&cluster, &path, &progress).await;
    progress.stop.store(true, Ordering::Relaxed);
    let mut report = Report {
        runs: progress.runs.load(Ordering::Relaxed),
        ..Report::default()
    };
    report.kills = killer.await??;
    let summary = summary?;
    Books::drain(&cluster, SERVERS.into()).await?;
    let after = Books::read(&cluster, SERVERS.into()).await?;
    after.check()?;
    ensure!(
        after.sum() == before.sum(),
        "the sum was {} and is {}",
        before.sum(),
        after.sum()
    );
    check_requests(&file, &after, &refused_ids(&path)?, &mut report)?;
    let unreadable = summary["unreadable"].as_u64().unwrap_or_default();
    ensure!(
        unreadable == file.bad as u64,
        "{unreadable} lines unreadable, not {}",
        file.bad
    );
    let kills: usize = report.kills.values().sum();
    ensure!(
        kills >= plan.min_kills,
        "only {kills} kills: the run proves nothing"
    );
    Ok(report)
}

async fn open_accounts(cluster: &Cluster, accounts: usize) -> anyhow::Result<()> {
    let client = cluster.client()?;
    let numbers: Vec<usize> = (0..accounts).collect();
    for chunk in numbers.chunks(32) {
        let opened = chunk.iter().map(|n| {
            client.open_account(concord_client::v1::OpenAccountRequest {
                account_id: account(*n),
                currency: CURRENCY.to_owned(),
                initial_balance: OPENING,
                request_id: format!("open-{n}"),
            })
        });
        for outcome in futures::future::join_all(opened).await {
            ensure!(
                outcome.is_committed(),
                "an account was not opened: {outcome:?}"
            );
        }
    }
    Ok(())
}

/// Runs the file again and again until nothing is left that another run could mend.
async fn run_until_through(
    cluster: &Cluster,
    path: &Path,
    progress: &Progress,
) -> anyhow::Result<Value> {
    let mut told = Vec::new();
    for run in 1..=RUNS_MAX {
        progress.runs.store(run, Ordering::Relaxed);
        let mut command = cluster.concord(&["--json", "--retry-for", "5s", "transfer", "--file"]);
        command.arg(path).args(["--concurrency", "32"]);
        let output = tokio::process::Command::from(command).output().await?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let summary: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("no summary (status {:?}): {stderr}", output.status))?;
        let left = ["unknown", "unavailable", "not_tried"];
        if left.iter().all(|key| summary[key].as_u64() == Some(0)) {
            // Once more in peace: everything is a replay now, and says the same.
            if progress.stop.swap(true, Ordering::Relaxed) {
                return Ok(summary);
            }
        }
        told.push(summary.to_string());
    }
    let told = told.join("\n");
    bail!("the file is not through after {RUNS_MAX} runs:\n{told}")
}

/// Request ids of the lines that failed for good.
fn refused_ids(path: &Path) -> anyhow::Result<BTreeSet<String>> {
    let failed = format!("{}.failed.csv", path.display());
    let text = std::fs::read_to_string(&failed).with_context(|| failed.clone())?;
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name| header.iter().position(|cell| *cell == name).context(name);
    let (id, outcome) = (column("request_id")?, column("outcome")?);
    let refused = lines.filter_map(|line| {
        let cells: Vec<&str> = line.split(',').collect();
        (*cells.get(outcome)? == "refused").then(|| (*cells.get(id)?).to_owned().into())?
    });
    Ok(refused.collect())
}

/// Every request took effect once or never, just as the client was told, and moved what it said.
fn check_requests(
    file: &File,
    books: &Books,
    refused: &BTreeSet<String>,
    report: &mut Report,
) -> anyhow::Result<()> {
    for (id, line) in &file.good {
        let Some(gtrid) = books.requests.get(id) else {
            ensure!(
                refused.contains(id),
                "{id} was acknowledged and took no effect"
            );
            report.refused += 1;
            continue;
        };
        ensure!(
            !refused.contains(id),
            "{id} was refused and took effect ({gtrid:02x?})"
        );
        let mut entries = books.journal.get(gtrid).cloned().unwrap_or_default();
        entries.sort();
        let mut expected = vec![
            (line.from.clone(), -line.amount),
            (line.to.clone(), line.amount),
        ];
        expected.sort();
        ensure!(
            entries == expected,
            "{id} moved {entries:?}, not {expected:?}"
        );
        report.committed += 1;
    }
    let paid = books.requests.keys().filter(|id| id.starts_with("pay-"));
    let strange: Vec<_> = paid.filter(|id| !file.good.contains_key(*id)).collect();
    ensure!(
        strange.is_empty(),
        "requests that nobody made took effect: {strange:?}"
    );
    let transfers = books
        .journal
        .values()
        .filter(|entries| entries.len() == 2)
        .count();
    ensure!(
        transfers == report.committed,
        "{transfers} transfers for {} requests",
        report.committed
    );
    Ok(())
}

/// Kills one process after the other. A kill in four does not wait for the last one to be back; if
/// none did, a fast machine would never see the end of the file. The pauses grow with the runs of
/// the file, so that a machine on which everything takes long to be back sees it too.
async fn kill_at_random(
    cluster: Arc<Cluster>,
    plan: Plan,
    progress: Arc<Progress>,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut rng = StdRng::seed_from_u64(plan.seed ^ 0x6b69_6c6c);
    let mut kills = BTreeMap::new();
    let names = [
        "coordinator",
        "p1",
        "p2",
        "s1",
        "s2",
        "coordinator",
        "p1",
        "p2",
    ];
    let stopped = || progress.stop.load(Ordering::Relaxed);
    while !stopped() {
        if rng.random_ratio(3, 4) {
            while !stopped() && !cluster.is_up()? {
                tokio::time::sleep(LOOK).await;
            }
        }
        let slow = progress.runs.load(Ordering::Relaxed).max(1);
        let pause = slow * rng.random_range(plan.pause / 4..plan.pause);
        tokio::time::sleep(pause).await;
        let name = names[rng.random_range(0..names.len())];
        if !stopped() && cluster.kill9(name)? {
            *kills.entry(name.to_owned()).or_default() += 1;
        }
    }
    Ok(kills)
}
