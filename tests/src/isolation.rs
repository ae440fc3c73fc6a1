//! What readers and writers see of each other over three servers, and whether that is promised.
//!
//! Clients append to lists that live on different servers, and read them, through the gateway;
//! what they were told is a history, and `adya` and our own rules judge it. The checkers are first
//! shown histories with known anomalies, and must report each.

pub mod check;
pub mod history;
mod lists;
pub mod load;
pub mod planted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use concord_client::local::binary::ServerBinary;
use concord_client::v1::TransactionState;
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use sqlx::Row as _;
use tokio_util::sync::CancellationToken;

use crate::books::{Books, IN_DOUBT_MAX};
use crate::cluster::{Cluster, TO_BE_KILLED, eventually};
use check::{Findings, Level, judge};
use history::{End, Op, Txn};
use load::{Clock, Done, Shape};

/// Servers of the cluster.
const SERVERS: u16 = 3;
/// Transactions that share a set of lists.
const ROUND: u64 = 480;
/// Longest pause between two kills: daemons and servers are back in less.
const KILL_PAUSE: Duration = Duration::from_millis(1_500);
const PROCESSES: [&str; 7] = ["coordinator", "p1", "p2", "p3", "s1", "s2", "s3"];
const DAEMONS: [&str; 4] = ["coordinator", "p1", "p2", "p3"];
/// Of ten transactions, one met another at least.
const MEETINGS_MIN: usize = 10;

/// How much of it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The levels, one after the other.
    pub levels: Vec<Level>,
    /// Transactions of each level.
    pub transactions: u64,
    /// Clients at once.
    pub clients: usize,
    /// Lists that they share at a time; twice as many where reads lock them too.
    pub lists: u32,
    /// Decides what transactions do, and who is killed.
    pub seed: u64,
    /// Processes that must be killed meanwhile, at each level; none when it is 0.
    pub kills: usize,
}

/// What a run at one level did and found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The level.
    pub level: Level,
    /// Transactions by their ends.
    pub committed: usize,
    /// See above.
    pub unknown: usize,
    /// Aborted ones by reason.
    pub aborted: BTreeMap<String, usize>,
    /// Attempts that were turned away because something was down; no part of the history.
    pub turned_away: u64,
    /// Commits that were answered at their time-out, before every branch was applied.
    pub late: u64,
    /// Commits whose results were lost.
    pub lost: u64,
    /// Transactions with branches on several servers.
    pub spread: usize,
    /// Transactions that ran at the same time as another that touched the same list, one of them
    /// with an append.
    pub met: usize,
    /// Kills by process.
    pub kills: BTreeMap<String, usize>,
    /// What the checkers found.
    pub findings: Findings,
    /// Time under load.
    pub load: Duration,
    /// Time of checking.
    pub checking: Duration,
}

impl Report {
    /// Transactions in the checked history.
    pub fn checked(&self) -> usize {
        self.committed + self.unknown + self.aborted.values().sum::<usize>()
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        json!({
            "level": self.level.name(),
            "transactions": self.checked(),
            "commits": self.committed,
            "aborts": self.aborted.values().sum::<usize>(),
            "aborts_by_reason": self.aborted,
            "unknowns": self.unknown,
            "over_several_servers": self.spread,
            "met_another": self.met,
            "turned_away": self.turned_away,
            "committed_at_time_out": self.late,
            "results_lost": self.lost,
            "kills": self.kills,
            "anomalies_allowed": self.findings.allowed,
            "anomalies": self.findings.broken,
            "violations": self.findings.violations(),
            "load_ms": millis(self.load),
            "checking_ms": millis(self.checking),
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Runs all levels on a fresh cluster of this server. An error means that it could not be judged;
/// broken promises are in the reports.
pub async fn prove(server: &ServerBinary, plan: &Plan) -> anyhow::Result<Vec<Report>> {
    planted::prove_the_checkers().context("the checkers do not find what was planted")?;
    let cluster = Arc::new(Cluster::start_with(server, SERVERS, &TO_BE_KILLED)?);
    let mut reports = Vec::new();
    let mut first = 0;
    for level in plan.levels.iter().copied() {
        let lists = match level {
            Level::ReadCommitted | Level::RepeatableRead => plan.lists,
            Level::Serializable => 2 * plan.lists,
        };
        let shape = Shape {
            level,
            servers: SERVERS,
            transactions: plan.transactions,
            round: ROUND,
            lists,
            seed: plan.seed,
            first,
        };
        // Lists are numbered through, whatever their number in a set.
        first += shape.rounds() * 2;
        make_lists(&cluster, &shape).await?;
        reports.push(at_level(&cluster, plan, shape).await?);
    }
    Ok(reports)
}

async fn at_level(cluster: &Arc<Cluster>, plan: &Plan, shape: Shape) -> anyhow::Result<Report> {
    let began = Instant::now();
    let clock = Arc::new(Clock::default());
    let stop = CancellationToken::new();
    let killer = (plan.kills > 0).then(|| {
        let killer = Killer {
            cluster: Arc::clone(cluster),
            shape,
            clock: Arc::clone(&clock),
            least: plan.kills,
        };
        tokio::spawn(killer.run(stop.clone()))
    });
    let endpoint = cluster.endpoint();
    let clients = (0..plan.clients).map(|_| {
        let (endpoint, clock) = (endpoint.clone(), Arc::clone(&clock));
        tokio::spawn(async move { load::run(&endpoint, shape, clock).await })
    });
    let done = try_join_all(clients).await?;
    stop.cancel();
    let kills = match killer {
        Some(killer) => killer.await??,
        None => BTreeMap::new(),
    };
    let load = began.elapsed();
    everything_is_over(cluster).await?;
    let mut all = Done::default();
    for one in done {
        let one = one?;
        all.turned_away += one.turned_away;
        all.late += one.late;
        all.lost += one.lost;
        all.txns.extend(one.txns);
    }
    let last = read_all(cluster, &shape, &clock).await?;
    let began = Instant::now();
    let mut report = report(&all, shape);
    let judged = tokio::task::spawn_blocking(move || check_all(all.txns, &last, shape));
    (report.findings, report.met) = judged.await?;
    report.kills = kills;
    report.load = load;
    report.checking = began.elapsed();
    ensure_it_worked(&report, plan)?;
    Ok(report)
}

/// A run that did not do its work proves nothing.
fn ensure_it_worked(report: &Report, plan: &Plan) -> anyhow::Result<()> {
    let level = report.level.name();
    let checked = report.checked();
    ensure!(
        checked as u64 == plan.transactions,
        "{level}: {checked} transactions in the history, not {}",
        plan.transactions
    );
    ensure!(
        report.committed * 3 > checked && report.spread * 3 > checked,
        "{level}: only {} of {checked} committed, {} over several servers",
        report.committed,
        report.spread
    );
    if report.level != Level::Serializable {
        // Transactions got in each other's way, and the checkers could see it.
        let several = ["G-single-item", "G2-item", "lost-update"];
        let seen = several
            .iter()
            .any(|kind| report.findings.allowed.contains_key(*kind));
        ensure!(seen, "{level}: no transaction was in the way of another");
    }
    ensure!(
        report.met * MEETINGS_MIN > checked,
        "{level}: only {} of {checked} transactions met another",
        report.met
    );
    // Of a commit that was answered at its time-out the checkers know no moment, and find less.
    ensure!(
        report.late * 4 < report.committed as u64,
        "{level}: {} of {} commits were answered at their time-out",
        report.late,
        report.committed
    );
    let kills: usize = report.kills.values().sum();
    ensure!(
        kills >= plan.kills,
        "{level}: only {kills} kills, not {}",
        plan.kills
    );
    Ok(())
}

fn report(all: &Done, shape: Shape) -> Report {
    let mut aborted = BTreeMap::new();
    let (mut committed, mut unknown, mut spread) = (0, 0, 0);
    for txn in &all.txns {
        match &txn.end {
            End::Committed => committed += 1,
            End::Unknown => unknown += 1,
            End::Aborted(code) => *aborted.entry(code.clone()).or_default() += 1,
        }
        let mut servers = txn
            .ops
            .iter()
            .map(|op| history::server_of(op.key(), shape.servers));
        let one = servers.next();
        spread += usize::from(servers.any(|other| Some(other) != one));
    }
    Report {
        level: shape.level,
        committed,
        unknown,
        aborted,
        turned_away: all.turned_away,
        late: all.late,
        lost: all.lost,
        spread,
        met: 0,
        kills: BTreeMap::new(),
        findings: Findings::default(),
        load: Duration::ZERO,
        checking: Duration::ZERO,
    }
}

/// Each set of lists by itself: no transaction touches two. Also how many transactions met another.
fn check_all(txns: Vec<Txn>, last: &[Txn], shape: Shape) -> (Findings, usize) {
    let mut rounds: BTreeMap<u64, Vec<Txn>> = BTreeMap::new();
    for txn in txns {
        let round = txn.number / shape.round - shape.first;
        rounds.entry(round).or_default().push(txn);
    }
    let mut findings = Findings::default();
    let mut met = 0;
    for (round, mut txns) in rounds {
        met += txns.iter().filter(|txn| txn.meets_any(&txns)).count();
        let lists = shape.lists_of(round);
        let of_round = |txn: &&Txn| txn.ops.iter().any(|op| lists.contains(&op.key()));
        txns.extend(last.iter().filter(of_round).cloned());
        findings.extend(judge(&txns, shape.level, shape.servers));
    }
    (findings, met)
}

async fn make_lists(cluster: &Cluster, shape: &Shape) -> anyhow::Result<()> {
    for server in 1..=shape.servers {
        let mut root = cluster.root(server.into()).await?;
        for sql in [
            "CREATE DATABASE IF NOT EXISTS isolation",
            "CREATE TABLE IF NOT EXISTS isolation.lists \
             (id INT UNSIGNED PRIMARY KEY, elements TEXT NOT NULL) ENGINE = InnoDB",
        ] {
            sqlx::raw_sql(sql).execute(&mut root).await?;
        }
        for round in 0..shape.rounds() {
            let here = shape
                .lists_of(round)
                .filter(|key| history::server_of(*key, shape.servers) == server);
            for key in here {
                sqlx::query("INSERT INTO isolation.lists VALUES (?, '')")
                    .bind(key)
                    .execute(&mut root)
                    .await?;
            }
        }
    }
    Ok(())
}

/// No transaction is running, and no branch in doubt: what is there now stays. It may not take
/// longer than a branch may stay in doubt once every process is up.
async fn everything_is_over(cluster: &Arc<Cluster>) -> anyhow::Result<()> {
    cluster.until_up().await?;
    let client = cluster.client()?;
    let live = [
        TransactionState::Init,
        TransactionState::Active,
        TransactionState::Preparing,
        TransactionState::Prepared,
        TransactionState::Committing,
        TransactionState::Aborting,
    ];
    eventually("everything is over", IN_DOUBT_MAX, async || {
        let running = client.list_transactions(&live, false, 1).await?;
        let over = running.is_empty() && Books::nothing_in_doubt(cluster, SERVERS.into()).await?;
        Ok(over.then_some(()))
    })
    .await
}

/// Reads every list, past the daemons: one transaction for each set.
async fn read_all(cluster: &Cluster, shape: &Shape, clock: &Clock) -> anyhow::Result<Vec<Txn>> {
    let mut lists = BTreeMap::new();
    for server in 1..=shape.servers {
        let mut root = cluster.root(server.into()).await?;
        let rows = sqlx::query("SELECT id, elements FROM isolation.lists")
            .fetch_all(&mut root)
            .await?;
        for row in rows {
            let (key, elements): (u32, String) = (row.try_get(0)?, row.try_get(1)?);
            lists.insert(key, load::elements(&elements));
        }
    }
    let mut reads = Vec::new();
    for round in 0..shape.rounds() {
        let ops = shape.lists_of(round).map(|key| Op::Read {
            key,
            locking: false,
            seen: Some(lists.get(&key).cloned().unwrap_or_default()),
        });
        reads.push(Txn {
            number: u64::MAX - round,
            ops: ops.collect(),
            end: End::Committed,
            began: clock.now(),
            ended: clock.now(),
        });
    }
    Ok(reads)
}

/// Kills one process after the other, also while the last one is not yet back.
struct Killer {
    cluster: Arc<Cluster>,
    shape: Shape,
    clock: Arc<Clock>,
    /// So many are killed while transactions begin, however fast these are.
    least: usize,
}

impl Killer {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut rng = StdRng::seed_from_u64(self.shape.seed ^ 0x006b_696c_6c73);
        let mut names = match self.shape.level {
            // A server that dies between a vote and the outcome forgets read locks, and nothing is
            // promised of serializability then.
            Level::Serializable => DAEMONS.to_vec(),
            Level::ReadCommitted | Level::RepeatableRead => PROCESSES.to_vec(),
        };
        let mut kills = BTreeMap::<String, usize>::new();
        loop {
            let made = kills.values().sum::<usize>();
            let pause = rng.random_range(KILL_PAUSE / 4..KILL_PAUSE);
            let next = async {
                tokio::select! {
                    () = tokio::time::sleep(pause) => false,
                    () = self.clock.has_begun(self.due(made + 1)), if made < self.least => true,
                }
            };
            let Some(is_due) = stop.run_until_cancelled(next).await else {
                return Ok(kills);
            };
            names.shuffle(&mut rng);
            // More than is asked for would only make a slow machine slower.
            if made >= self.least && !self.cluster.is_up()? {
                continue;
            }
            // One that is not up is not killed: another, when a kill cannot wait.
            let tried = if is_due { names.len() } else { 1 };
            for name in &names[..tried] {
                if self.cluster.kill9(name)? {
                    *kills.entry((*name).to_owned()).or_default() += 1;
                    break;
                }
            }
        }
    }

    /// Transactions that may begin before this kill.
    fn due(&self, kill: usize) -> u64 {
        let part = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        self.shape.transactions * part(kill) / part(self.least + 1)
    }
}
