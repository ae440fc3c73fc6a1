//! A crash that leaves thousands of decided transactions with prepared branches, and how fast a
//! restart resolves them, compared with raw XA COMMITs of the same branches.
//!
//! The crash is made by the shipped code's own means: the decisions are written with the
//! coordinator's log while no coordinator runs, and the branches are prepared with the
//! participants' xids and ledger rows by connections that are gone afterwards. What is measured
//! begins with the start of the three daemons' processes, so it holds the replay of the log, the
//! looks at the servers, the links and the acknowledgements.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use concord_client::local::binary::ServerBinary;
use concord_client::local::server::{Server, ServerKind};
use concord_client::v1;
use concord_coordinator::log::{DecisionLog, EmbeddedLog};
use concord_coordinator::mint::Mint;
use concord_coordinator::surroundings::Machine;
use concord_core::id::{Bqual, BranchId, Epoch, Gtrid, ParticipantName};
use concord_core::record::Record;
use concord_participant::resource::mysql::ledger;
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};

use crate::cluster::eventually;
use crate::in_flight::Memory;
use crate::rig::{CLUSTER, COORDINATOR, PATIENCE, Rig, run, xid};

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decided transactions, each with one branch on each of the two servers.
    pub transactions: usize,
    /// How often everything is measured; medians are compared.
    pub rounds: usize,
    /// Connections to each server of the raw client.
    pub raw_connections: usize,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// From the start of the daemons until nothing is prepared and everything is acknowledged.
    pub recovery: Duration,
    /// Raw XA COMMITs of as many branches.
    pub raw: Duration,
    /// The coordinator's memory after its recovery.
    pub memory: Memory,
}

/// All measurements.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In order.
    pub rounds: Vec<Round>,
}

impl Report {
    /// Median of the recoveries over the median of the raw commits.
    pub fn ratio(&self) -> f64 {
        median(self.rounds.iter().map(|r| r.recovery)) / median(self.rounds.iter().map(|r| r.raw))
    }
}

fn median(times: impl Iterator<Item = Duration>) -> f64 {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    times
        .get(times.len() / 2)
        .map_or(f64::NAN, Duration::as_secs_f64)
}

/// Each branch works on two servers.
const SERVERS: u16 = 2;
/// Connections to each server that prepare branches; not measured.
const PREPARERS: usize = 16;
/// Decisions in one append to the log.
const DECISIONS_BATCH: usize = 500;
/// Longest time for everything to be resolved; the ratio is judged by its own bound.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(300);
/// Questions to the gateway at a time, when each transaction is looked at.
const LOOKS: usize = 64;

/// Runs the proof on fresh servers. It is an error when a branch is not resolved or anything is
/// not as decided; how long it took is for the caller to judge.
pub async fn prove(binary: &ServerBinary, plan: &Plan) -> anyhow::Result<Report> {
    let mut rig = Rig::start(binary, SERVERS).await?;
    for n in 1..=SERVERS.into() {
        make_rows(&rig, n, plan.transactions).await?;
    }
    let mut report = Report::default();
    let mut applied = 0;
    for _ in 0..plan.rounds {
        crash(&mut rig)?;
        let backlog = decide(&rig, plan.transactions)?;
        prepare_all(&rig, &backlog).await?;
        let recovery = recover(&mut rig, plan.transactions).await?;
        let memory = Memory::of(rig.pid(COORDINATOR)?)?;
        applied += 1;
        check(&rig, &backlog, applied).await?;
        stop_and_check_ends(&mut rig, &backlog).await?;
        let raw = raw_commits(&rig, plan).await?;
        applied += 1;
        report.rounds.push(Round {
            recovery,
            raw,
            memory,
        });
        rig.up().await?;
    }
    Ok(report)
}

/// Kills all daemons at once.
fn crash(rig: &mut Rig) -> anyhow::Result<()> {
    for name in rig
        .participants()
        .iter()
        .map(String::as_str)
        .chain([COORDINATOR])
    {
        rig.kill9(name)?;
    }
    Ok(())
}

/// One row for each transaction.
async fn make_rows(rig: &Rig, n: usize, rows: usize) -> anyhow::Result<()> {
    let mut root = rig.root(n).await?;
    run(
        &mut root,
        "CREATE TABLE shop.work (id INT PRIMARY KEY, n INT NOT NULL)",
    )
    .await?;
    let rows: Vec<String> = (0..rows).map(|id| format!("({id},0)")).collect();
    run(
        &mut root,
        &format!("INSERT INTO shop.work VALUES {}", rows.join(",")),
    )
    .await
}

/// Makes decisions durable that nobody has acted on.
fn decide(rig: &Rig, transactions: usize) -> anyhow::Result<Vec<Gtrid>> {
    let mut log = EmbeddedLog::open(&rig.data_dir(), CLUSTER)?;
    let mut epoch = Epoch::default();
    log.visit(&mut |record| {
        if let Record::Epoch(last) = record {
            epoch = last;
        }
    })?;
    let mint = Mint::above(Gtrid::MIN, std::sync::Arc::new(Machine));
    let gtrids: Vec<Gtrid> = (0..transactions).map(|_| mint.mint()).collect();
    for some in gtrids.chunks(DECISIONS_BATCH) {
        let records: Vec<Record> = some.iter().map(|gtrid| decision(*gtrid, epoch)).collect();
        log.append(&records)?;
    }
    Ok(gtrids)
}

fn decision(gtrid: Gtrid, epoch: Epoch) -> Record {
    let branches = (1..=u32::from(SERVERS))
        .map(|n| (Bqual(n), ParticipantName::new(format!("p{n}"))))
        .collect();
    Record::Decision {
        gtrid,
        epoch,
        branches,
        request: None,
    }
}

/// Prepares the branches of all transactions on both servers, and closes the connections.
async fn prepare_all(rig: &Rig, gtrids: &[Gtrid]) -> anyhow::Result<()> {
    let work: Vec<(usize, Gtrid)> = gtrids.iter().copied().enumerate().collect();
    let mut preparers = Vec::new();
    for (bqual, server) in (1..).zip(&rig.servers) {
        for share in work.chunks(work.len().div_ceil(PREPARERS)) {
            preparers.push(tokio::spawn(prepare(
                server.root_options(),
                server.kind(),
                Bqual(bqual),
                share.to_vec(),
            )));
        }
    }
    for done in try_join_all(preparers).await? {
        done?;
    }
    for n in 1..=rig.servers.len() {
        let prepared = rig.prepared(n).await?;
        ensure!(
            prepared == gtrids.len(),
            "{prepared} branches are prepared on server {n}"
        );
    }
    Ok(())
}

async fn prepare(
    options: MySqlConnectOptions,
    kind: ServerKind,
    bqual: Bqual,
    work: Vec<(usize, Gtrid)>,
) -> anyhow::Result<()> {
    let mut connection = None;
    for (row, gtrid) in work {
        let (mut open, id) = match connection.take() {
            Some(open) => open,
            None => connect(&options).await?,
        };
        let branch = BranchId { gtrid, bqual };
        let xid = xid(branch);
        let mut sql = format!("XA START {xid}; ");
        ledger::push_branch_row(&mut sql, branch, id, None);
        let _ = write!(sql, "; UPDATE shop.work SET n = n + 1 WHERE id = {row}; ");
        let _ = write!(sql, "XA END {xid}; XA PREPARE {xid}");
        run(&mut open, &sql).await?;
        match kind {
            // It leaves the prepared branch behind.
            ServerKind::Mysql => connection = Some((open, id)),
            // Only the end of the connection sets the branch free.
            ServerKind::Mariadb => open.close().await?,
        }
    }
    Ok(())
}

async fn connect(options: &MySqlConnectOptions) -> anyhow::Result<(MySqlConnection, u64)> {
    let mut connection = options.connect().await?;
    let id = sqlx::query_scalar("SELECT CAST(CONNECTION_ID() AS UNSIGNED)");
    let id: u64 = id.fetch_one(&mut connection).await?;
    Ok((connection, id))
}

/// Starts the daemons and waits until nothing is in doubt any more.
async fn recover(rig: &mut Rig, transactions: usize) -> anyhow::Result<Duration> {
    let client = rig.client()?;
    let start = Instant::now();
    for name in [COORDINATOR, "p1", "p2"] {
        rig.spawn(name)?;
    }
    eventually("the end of the backlog", RECOVERY_TIMEOUT, async || {
        let status = client.cluster_status().await?;
        Ok((status.active + status.committing == 0).then_some(()))
    })
    .await?;
    let took = start.elapsed();
    for n in 1..=rig.servers.len() {
        let left = rig.prepared(n).await?;
        ensure!(
            left == 0,
            "{left} branches are still prepared on server {n}"
        );
    }
    // Perhaps more: the End of a transaction before the crash need not have reached the disk.
    let log = rig.log(COORDINATOR)?;
    let found = log.rsplit_once("unfinished=");
    let found = found.and_then(|(_, rest)| rest.split_whitespace().next());
    let found: usize = found.context("what recovery found")?.parse()?;
    ensure!(
        found >= transactions,
        "the coordinator found {found} of {transactions}: {log}"
    );
    Ok(took)
}

/// Everything is as decided, on the servers and at the coordinator.
async fn check(rig: &Rig, gtrids: &[Gtrid], applied: i64) -> anyhow::Result<()> {
    let expected: BTreeSet<Vec<u8>> = gtrids.iter().map(|gtrid| gtrid.0.to_vec()).collect();
    for (n, bqual) in (1..=rig.servers.len()).zip(1_u32..) {
        let mut root = rig.root(n).await?;
        let sql = "SELECT gtrid FROM concord.ledger WHERE state = 1 AND bqual = ?";
        let rows = sqlx::query_scalar(sql)
            .bind(bqual)
            .fetch_all(&mut root)
            .await?;
        let rows: BTreeSet<Vec<u8>> = rows.into_iter().collect();
        let missing = expected.difference(&rows).count();
        ensure!(
            missing == 0,
            "{missing} ledger rows are missing on server {n}"
        );
        check_rows(&mut root, gtrids.len(), applied)
            .await
            .with_context(|| format!("server {n}"))?;
    }
    let client = rig.client()?;
    let status = client.cluster_status().await?;
    let heuristic = status.counters.unwrap_or_default().heuristic;
    ensure!(heuristic == 0, "{heuristic} heuristic outcomes");
    for some in gtrids.chunks(LOOKS) {
        let looks = some.iter().map(|gtrid| {
            let (client, gtrid) = (client.clone(), gtrid.to_string());
            async move { anyhow::Ok(client.transaction(&gtrid).await?) }
        });
        for tx in try_join_all(looks).await? {
            let (state, gtrid) = (tx.state(), &tx.gtrid);
            ensure!(
                state == v1::TransactionState::Committed,
                "{gtrid} is {state:?}"
            );
        }
    }
    Ok(())
}

/// Every row was worked on exactly as often as a branch was committed.
async fn check_rows(root: &mut MySqlConnection, rows: usize, applied: i64) -> anyhow::Result<()> {
    let sql = format!("SELECT COUNT(*) FROM shop.work WHERE n = {applied}");
    let found: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(root)
        .await?;
    ensure!(
        usize::try_from(found) == Ok(rows),
        "{found} of {rows} rows have n = {applied}"
    );
    Ok(())
}

/// Stops the daemons as a service manager does; the log holds an End for every transaction.
async fn stop_and_check_ends(rig: &mut Rig, gtrids: &[Gtrid]) -> anyhow::Result<()> {
    for name in [COORDINATOR, "p1", "p2"] {
        rig.signal(name, Signal::SIGTERM)?;
        let status = rig.ended(name).await?;
        ensure!(status.success(), "{name} ended with {status}");
    }
    let mut open: BTreeSet<Gtrid> = gtrids.iter().copied().collect();
    EmbeddedLog::open(&rig.data_dir(), CLUSTER)?.visit(&mut |record| {
        if let Record::End {
            gtrid,
            committed: true,
        } = record
        {
            open.remove(&gtrid);
        }
    })?;
    ensure!(
        open.is_empty(),
        "{} transactions have no End in the log",
        open.len()
    );
    Ok(())
}

/// The same branches again, committed by hand as fast as possible.
async fn raw_commits(rig: &Rig, plan: &Plan) -> anyhow::Result<Duration> {
    let mint = Mint::above(Gtrid::MIN, std::sync::Arc::new(Machine));
    let gtrids: Vec<Gtrid> = (0..plan.transactions).map(|_| mint.mint()).collect();
    prepare_all(rig, &gtrids).await?;
    let mut clients = Vec::new();
    for (bqual, server) in (1..).zip(&rig.servers) {
        let connections = (0..plan.raw_connections).map(|_| connection(server));
        let share = gtrids.len().div_ceil(plan.raw_connections);
        for (root, share) in try_join_all(connections)
            .await?
            .into_iter()
            .zip(gtrids.chunks(share))
        {
            let branches: Vec<BranchId> = share
                .iter()
                .map(|gtrid| BranchId {
                    gtrid: *gtrid,
                    bqual: Bqual(bqual),
                })
                .collect();
            clients.push((root, branches));
        }
    }
    let start = Instant::now();
    let running = clients.into_iter().map(|(mut root, branches)| {
        tokio::spawn(async move {
            for branch in branches {
                let sql = format!("XA COMMIT {}", xid(branch));
                root.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
            }
            anyhow::Ok(())
        })
    });
    for done in try_join_all(running).await? {
        done?;
    }
    let took = start.elapsed();
    for n in 1..=rig.servers.len() {
        ensure!(
            rig.prepared(n).await? == 0,
            "a raw branch is left on server {n}"
        );
    }
    Ok(took)
}

async fn connection(server: &Server) -> anyhow::Result<MySqlConnection> {
    let opened = tokio::time::timeout(PATIENCE, server.root()).await;
    Ok(opened.context("a connection to a server")??)
}
