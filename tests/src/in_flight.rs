//! Ten thousand transactions in flight at once, and how much memory the coordinator needs.
//!
//! They are held back in two ways: every row that they want is locked on both servers, or both
//! participants are stopped, so that their Prepares pile up at the coordinator. A run fails when
//! there were never that many in flight at one moment, when one of them does not end, when
//! anything stays in doubt or is torn, and when memory grows from round to round.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use concord_client::local::binary::ServerBinary;
use concord_client::{Client, Outcome, Statement};
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use sqlx::Row as _;

use crate::cluster::eventually;
use crate::rig::{COORDINATOR, Rig, run};

/// Memory of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident now, in bytes.
    pub resident: u64,
    /// Resident at most since its start, in bytes.
    pub peak: u64,
}

impl Memory {
    /// Of a living process.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            Ok(number
                .with_context(|| format!("no {name} of process {pid}"))?
                .parse()?)
        };
        Ok(Self {
            resident: kib("VmRSS")? << 10,
            peak: kib("VmHWM")? << 10,
        })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes / 1_000_000;
        write!(
            f,
            "{} MB resident, {} MB at most",
            mb(self.resident),
            mb(self.peak)
        )
    }
}

/// What keeps the transactions from ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Somebody has locked every row that they want.
    Locks,
    /// Both participants are stopped with SIGSTOP.
    Stopped,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Transactions in flight at once.
    pub transactions: usize,
    /// Connections of clients that they are spread over.
    pub connections: usize,
    /// How often, for each way of holding them.
    pub rounds: usize,
    /// What the coordinator may use at most, in bytes.
    pub limit: u64,
}

/// What one round saw.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// How they were held.
    pub hold: Hold,
    /// Most transactions in flight at one moment.
    pub in_flight: usize,
    /// Transactions that committed in the end.
    pub committed: usize,
    /// Memory while they were held.
    pub held: Memory,
    /// Memory after all had ended.
    pub after: Memory,
}

const SERVERS: u16 = 2;
/// Time-out of each transaction: long enough to have them all in flight, and the end of those that
/// wait for each other afterwards.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for all of them to be in flight.
const HELD_TIMEOUT: Duration = Duration::from_secs(55);
/// Time for all of them to have ended.
const ENDED_TIMEOUT: Duration = Duration::from_secs(180);
/// Memory that a later round may need beyond the first: ended transactions are remembered.
const GROWTH_MAX: u64 = 50_000_000;

/// Runs the proof on fresh servers.
pub async fn prove(binary: &ServerBinary, plan: &Plan) -> anyhow::Result<Vec<Round>> {
    let mut rig = Rig::servers_only(binary, SERVERS).await?;
    for name in rig.participants() {
        rig.configure(&name, |own| {
            // The test is about the coordinator: its participants take whatever it sends.
            own.insert("max_branches".into(), 60_000.into());
            if let Some(server) = own
                .get_mut("server")
                .and_then(|server| server.as_table_mut())
            {
                server.insert("lock_wait_timeout_s".into(), 120.into());
                server.insert("acquire_timeout_ms".into(), 120_000.into());
            }
        });
    }
    rig.up().await?;
    for n in 1..=SERVERS.into() {
        let mut root = rig.root(n).await?;
        run(
            &mut root,
            "CREATE TABLE shop.flight (id INT PRIMARY KEY, n INT NOT NULL)",
        )
        .await?;
        run(
            &mut root,
            "CREATE TABLE shop.seen (id BIGINT AUTO_INCREMENT PRIMARY KEY, \
                        flight INT NOT NULL, memo VARCHAR(100) NOT NULL)",
        )
        .await?;
        let rows: Vec<String> = (0..plan.transactions)
            .map(|id| format!("({id},0)"))
            .collect();
        run(
            &mut root,
            &format!("INSERT INTO shop.flight VALUES {}", rows.join(",")),
        )
        .await?;
    }
    let mut rounds: Vec<Round> = Vec::new();
    let mut committed = 0;
    for hold in [Hold::Locks, Hold::Stopped] {
        for number in 1..=plan.rounds {
            let name = format!("{hold:?}-{number}");
            let round = round(&rig, plan, hold, &name).await.context(name)?;
            committed += round.committed;
            check(&rig, plan, &round, committed).await?;
            rounds.push(round);
        }
    }
    for hold in [Hold::Locks, Hold::Stopped] {
        let mut peaks = rounds
            .iter()
            .filter(|r| r.hold == hold)
            .map(|r| r.held.resident);
        let first = peaks.next().unwrap_or_default();
        let most = peaks.max().unwrap_or_default();
        ensure!(
            most <= first + GROWTH_MAX,
            "memory grew from {first} to {most} bytes"
        );
    }
    Ok(rounds)
}

async fn round(rig: &Rig, plan: &Plan, hold: Hold, name: &str) -> anyhow::Result<Round> {
    let mut locks = Vec::new();
    match hold {
        Hold::Locks => {
            for n in 1..=SERVERS.into() {
                let mut root = rig.root(n).await?;
                run(&mut root, "BEGIN").await?;
                run(&mut root, "UPDATE shop.flight SET n = n + 1").await?;
                locks.push(root);
            }
        }
        Hold::Stopped => {
            for name in rig.participants() {
                rig.signal(&name, Signal::SIGSTOP)?;
            }
        }
    }
    let running = send_all(rig, plan, name)?;
    let client = rig.client()?;
    let seen = eventually("all transactions in flight", HELD_TIMEOUT, async || {
        let status = client.cluster_status().await?;
        let in_flight = (status.active + status.committing) as usize;
        Ok((in_flight >= plan.transactions).then_some(in_flight))
    })
    .await;
    let memory = Memory::of(rig.pid(COORDINATOR)?)?;
    for lock in &mut locks {
        run(lock, "ROLLBACK").await?;
    }
    for name in rig.participants() {
        rig.signal(&name, Signal::SIGCONT)?;
    }
    let in_flight = seen?;
    let ended = tokio::time::timeout(ENDED_TIMEOUT, try_join_all(running)).await;
    let outcomes = ended.context("not every transaction ended")??;
    let committed = outcomes
        .iter()
        .filter(|outcome| outcome.is_committed())
        .count();
    let unknown = outcomes
        .iter()
        .find(|outcome| matches!(outcome, Outcome::Unknown { .. }));
    ensure!(
        unknown.is_none(),
        "nobody crashed, and an outcome is unknown: {unknown:?}"
    );
    eventually(
        "the end of the last transaction",
        ENDED_TIMEOUT,
        async || {
            let status = client.cluster_status().await?;
            Ok((status.active + status.committing == 0).then_some(()))
        },
    )
    .await?;
    rig.linked().await?;
    rig.drained().await?;
    let after = Memory::of(rig.pid(COORDINATOR)?)?;
    Ok(Round {
        hold,
        in_flight,
        committed,
        held: memory,
        after,
    })
}

fn send_all(
    rig: &Rig,
    plan: &Plan,
    name: &str,
) -> anyhow::Result<Vec<tokio::task::JoinHandle<Outcome>>> {
    let clients: Vec<Client> = (0..plan.connections)
        .map(|_| rig.client())
        .collect::<anyhow::Result<_>>()?;
    let send = |id: usize| {
        let mut tx = clients[id % clients.len()].one_shot();
        for participant in ["p1", "p2"] {
            let row = u32::try_from(id).unwrap_or(u32::MAX);
            let update = Statement::new("UPDATE shop.flight SET n = n + 1 WHERE id = ?");
            let insert = Statement::new("INSERT INTO shop.seen (flight, memo) VALUES (?, ?)");
            let memo = format!("flight {id} of round {name}");
            tx = tx
                .on(
                    participant,
                    update.bind(row).expect_rows(1, Some(1), "NO_SUCH_FLIGHT"),
                )
                .on(participant, insert.bind(row).bind(memo));
        }
        let tx = tx
            .request_id(format!("{name}-{id}"))
            .timeout(TRANSACTION_TIMEOUT);
        tokio::spawn(tx.send())
    };
    Ok((0..plan.transactions).map(send).collect())
}

/// Every server has done exactly what was committed, and memory is within its limit.
async fn check(rig: &Rig, plan: &Plan, round: &Round, committed: usize) -> anyhow::Result<()> {
    for n in 1..=rig.servers.len() {
        let mut root = rig.root(n).await?;
        let sql = "SELECT CAST((SELECT SUM(n) FROM shop.flight) AS SIGNED), \
                   (SELECT COUNT(*) FROM shop.seen)";
        let row = sqlx::query(sql).fetch_one(&mut root).await?;
        let (sum, seen): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        ensure!(sum == seen, "server {n}: {sum} updates, {seen} inserts");
        let expected = i64::try_from(committed)?;
        ensure!(
            sum == expected,
            "server {n}: {sum} transactions applied, {committed} committed"
        );
    }
    let limit = plan.limit;
    let peak = round.after.peak;
    ensure!(
        peak < limit,
        "the coordinator used {peak} bytes, and its limit is {limit}: {round:?}"
    );
    Ok(())
}
