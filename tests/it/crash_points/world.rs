//! Servers, daemons and clients that live through one crash after another, and what is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use concord_client::local::binary::ServerBinary;
use concord_client::{Client, Outcome, v1};
use concord_coordinator::log::{DecisionLog, EmbeddedLog};
use concord_coordinator::mint::Mint;
use concord_coordinator::surroundings::{Machine, Surroundings};
use concord_core::id::{Bqual, BranchId, Epoch, Gtrid, ParticipantName};
use concord_core::record::Record;
use concord_daemon::crash::CrashPoint;
use concord_participant::resource::mysql::ledger;
use concord_tests::by_hand;
use concord_tests::cluster::eventually;
use concord_tests::rig::{CLUSTER, COORDINATOR, PATIENCE, Rig, START, branch_of, run, unlock, xid};
use sqlx::mysql::MySqlConnection;
use tokio::task::JoinHandle;
use v1::TransactionState as State;

use super::drive::Drive;
use super::load::{Entry, Form, Load, Told, send};

/// The rows of `shop.t` that drives use; clients have 1 to 4.
const DAMAGED_ROW: i32 = 5;
const HAND_ROW: i32 = 6;
const INQUIRY_ROW: i32 = 7;
const DEADLINE_ROW: i32 = 8;
/// Transactions that end before a daemon is killed on purpose.
const WARM: usize = 8;
/// Transactions that make a log large enough to be compacted.
const SURPLUS: u32 = 12_000;

/// What was done and seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Processes that died at a point.
    pub kills: usize,
    /// Transactions whose clients were told so.
    pub committed: usize,
    /// The same.
    pub aborted: usize,
    /// Transactions whose clients were told neither, before they asked again.
    pub unknown: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kills,
            committed,
            aborted,
            unknown,
        } = self;
        write!(
            f,
            "{kills} kills, {committed} committed, {aborted} aborted, {unknown} unknown at first"
        )
    }
}

/// Everything.
pub struct World {
    rig: Rig,
    armed: tempfile::TempDir,
    counts: Counts,
    /// Of all transactions of the transfer's form that are committed: how many for each row.
    moved: BTreeMap<usize, i64>,
    is_up: bool,
    forgets: bool,
}

/// What a drive leaves to be looked at when everything is up again.
enum Left {
    Nothing,
    Load(Load),
    /// A connection that had to live until then.
    Alive(MySqlConnection),
    /// The same, and then as [`Left::Both`].
    Locked(MySqlConnection, JoinHandle<Outcome>, i32),
    /// This transaction adds 1 to a row on both servers, or on none.
    Both(JoinHandle<Outcome>, i32),
    /// This one is committed.
    Decided(JoinHandle<Outcome>),
    /// This one lost its first branch to somebody's hand.
    Damaged(JoinHandle<Outcome>, BranchId),
}

impl World {
    /// Servers and settings; no daemon runs.
    pub async fn start(binary: &ServerBinary) -> anyhow::Result<Self> {
        let mut rig = Rig::servers_only(binary, 2).await?;
        let armed = rig.crash_folder()?;
        for n in 1..=2 {
            rig.sql(n, "CREATE TABLE shop.seen (k VARCHAR(32) PRIMARY KEY)")
                .await?;
        }
        for name in rig.participants() {
            rig.configure(&name, |own| {
                own.insert("sweep_interval_ms".into(), 500.into());
            });
        }
        Ok(Self {
            rig,
            armed,
            counts: Counts::default(),
            moved: BTreeMap::new(),
            is_up: false,
            forgets: false,
        })
    }

    fn client(&self) -> anyhow::Result<Client> {
        self.rig.client()
    }

    fn has_log(&self) -> bool {
        self.rig.data_dir().join("decisions.redb").exists()
    }

    fn arm(&self, point: CrashPoint) -> anyhow::Result<()> {
        Ok(std::fs::write(self.armed.path().join(point.name()), "")?)
    }

    /// Waits until a process has died at a point.
    async fn died(&mut self, point: CrashPoint) -> anyhow::Result<()> {
        let file = self.armed.path().join(point.name());
        let mut names = self.rig.participants();
        names.push(COORDINATOR.to_owned());
        let rig = &self.rig;
        let name = eventually("a process that dies at the point", PATIENCE, async || {
            let dead = names.iter().find(|name| rig.has_ended(name));
            Ok(dead.filter(|_| !file.exists()).cloned())
        })
        .await?;
        let status = self.rig.ended(&name).await?;
        ensure!(status.signal() == Some(9), "{name} ended with {status}");
        self.counts.kills += 1;
        Ok(())
    }

    /// Lets a process die at a point, starts it again, and checks everything.
    pub async fn crash_at(&mut self, point: CrashPoint) -> anyhow::Result<()> {
        let drive = Drive::of(point);
        if drive != Drive::Create && !self.is_up {
            self.rig.up().await?;
            self.is_up = true;
        }
        if drive == Drive::Forget && !self.forgets {
            self.forget_soon().await?;
        }
        let left = self.drive(drive, point).await?;
        self.died(point).await.context("not reached")?;
        if drive == Drive::Create && !self.has_log() {
            // The next start makes it, and has another point.
            return Ok(());
        }
        self.rig.up().await.context("not up again")?;
        self.is_up = true;
        self.look(left).await?;
        self.rig.drained().await
    }

    async fn drive(&mut self, drive: Drive, point: CrashPoint) -> anyhow::Result<Left> {
        match drive {
            Drive::Create => {
                ensure!(!self.has_log(), "the log is made only once");
                self.arm(point)?;
                for name in ["p1", "p2", COORDINATOR] {
                    if !self.rig.is_running(name) {
                        self.rig.spawn(name)?;
                    }
                }
                Ok(Left::Nothing)
            }
            Drive::Work | Drive::Forget => {
                self.arm(point)?;
                Ok(Left::Load(Load::start(&self.client()?)))
            }
            Drive::Coordinator => self.restart(COORDINATOR, point).await,
            Drive::Participant => self.restart("p1", point).await,
            Drive::Deadline => self.deadline(point).await,
            Drive::Inquiry => self.inquiry(point).await,
            Drive::Tombstone => {
                self.arm(point)?;
                self.abort_directly(fresh()).await?;
                Ok(Left::Nothing)
            }
            Drive::HandCommit => self.by_hand("XA COMMIT", HAND_ROW, point).await,
            Drive::HandRollback => self.by_hand("XA ROLLBACK", DAMAGED_ROW, point).await,
            Drive::Detach => self.detach(point).await,
            Drive::Order => self.order(point).await,
            Drive::Compact => self.compact(point),
        }
    }

    /// Kills a daemon while clients work, and starts it again.
    async fn restart(&mut self, name: &str, point: CrashPoint) -> anyhow::Result<Left> {
        let load = Load::start(&self.client()?);
        eventually("transactions", PATIENCE, async || {
            Ok((load.ended() >= WARM).then_some(()))
        })
        .await?;
        self.rig.kill9(name)?;
        self.arm(point)?;
        self.rig.spawn(name)?;
        Ok(Left::Load(load))
    }

    /// A transaction cannot get a row before its time is over.
    async fn deadline(&mut self, point: CrashPoint) -> anyhow::Result<Left> {
        let lock = self.rig.lock(2, DEADLINE_ROW).await?;
        self.arm(point)?;
        let sql = format!("UPDATE shop.t SET n = n + 1 WHERE id = {DEADLINE_ROW}");
        let tx = self.client()?.one_shot();
        let tx = tx.on("p1", sql.as_str()).on("p2", sql.as_str());
        let running = tokio::spawn(tx.timeout(Duration::from_millis(300)).send());
        Ok(Left::Locked(lock, running, DEADLINE_ROW))
    }

    /// The first branch has voted, the second waits for a row lock.
    async fn half(
        &self,
        row: i32,
    ) -> anyhow::Result<(String, JoinHandle<Outcome>, MySqlConnection)> {
        let lock = self.rig.lock(2, row).await?;
        let running = self.rig.plus(row)?;
        let gtrid = self.rig.voted("p1").await?.gtrid;
        Ok((gtrid, running, lock))
    }

    /// The coordinator dies between two votes; the next one knows nothing, and is asked.
    async fn inquiry(&mut self, point: CrashPoint) -> anyhow::Result<Left> {
        let (_, running, lock) = self.half(INQUIRY_ROW).await?;
        self.rig.kill9(COORDINATOR)?;
        unlock(lock).await?;
        self.arm(point)?;
        self.rig.spawn(COORDINATOR)?;
        Ok(Left::Both(running, INQUIRY_ROW))
    }

    async fn by_hand(&mut self, verb: &str, row: i32, point: CrashPoint) -> anyhow::Result<Left> {
        let (gtrid, running, lock) = self.half(row).await?;
        self.rig.kill9("p1")?;
        unlock(lock).await?;
        self.rig.reaches(&gtrid, State::Committing).await?;
        let branch = branch_of(&gtrid, 1)?;
        by_hand::end(&mut self.rig.root(1).await?, verb, &xid(branch)).await?;
        self.arm(point)?;
        self.rig.spawn("p1")?;
        Ok(match verb {
            "XA COMMIT" => Left::Decided(running),
            _ => Left::Damaged(running, branch),
        })
    }

    /// Tells the first participant to roll a branch back, as its coordinator would. It may die of
    /// it, so there need not be an answer.
    async fn abort_directly(&self, branch: BranchId) -> anyhow::Result<()> {
        let branch = v1::BranchRef {
            gtrid: branch.gtrid.0.to_vec(),
            bqual: branch.bqual.0,
            epoch: self.rig.status(1).await?.epoch,
        };
        let request = v1::AbortRequest {
            branch: Some(branch),
        };
        let _ = self.rig.participant(1)?.abort(request).await;
        Ok(())
    }

    /// A branch is alive in a connection that the participant knows by its ledger row only.
    async fn detach(&mut self, point: CrashPoint) -> anyhow::Result<Left> {
        let branch = fresh();
        let mut root = self.rig.root(1).await?;
        let own: u64 = sqlx::query_scalar("SELECT CONNECTION_ID()")
            .fetch_one(&mut root)
            .await?;
        let mut sql = format!("XA START {}; ", xid(branch));
        ledger::push_branch_row(&mut sql, branch, own, None);
        run(&mut root, &sql).await?;
        self.arm(point)?;
        self.abort_directly(branch).await?;
        Ok(Left::Alive(root))
    }

    async fn order(&mut self, point: CrashPoint) -> anyhow::Result<Left> {
        let gtrid = match self.rig.plus(HAND_ROW)?.await? {
            Outcome::Committed { gtrid, .. } => gtrid,
            other => bail!("{other:?}"),
        };
        let order = v1::ResolveBranchRequest {
            gtrid,
            bqual: 1,
            participant: "p1".into(),
            resolution: v1::Resolution::Commit.into(),
            reason: "the books say so".into(),
            force: false,
        };
        self.arm(point)?;
        // Whoever gives the order learns that the coordinator is gone.
        let answer = self.client()?.resolve_branch(order).await;
        ensure!(answer.is_err(), "the order was carried out: {answer:?}");
        Ok(Left::Nothing)
    }

    /// While the coordinator is away its log becomes large and empty.
    fn compact(&mut self, point: CrashPoint) -> anyhow::Result<Left> {
        self.rig.kill9(COORDINATOR)?;
        let mut log = EmbeddedLog::open(&self.rig.data_dir(), CLUSTER)?;
        let epoch = log.replay()?.iter().find_map(|record| match record {
            Record::Epoch(epoch) => Some(*epoch),
            _ => None,
        });
        let records = surplus(epoch.unwrap_or_default());
        for some in records.chunks(2_000) {
            log.append(some)?;
        }
        let old: Vec<Gtrid> = records.iter().filter_map(Record::gtrid).collect();
        log.forget(&old, Gtrid::MIN)?;
        log.append(&[])?;
        drop(log);
        self.arm(point)?;
        self.rig.spawn(COORDINATOR)?;
        Ok(Left::Nothing)
    }

    /// From now on ended transactions are forgotten within seconds.
    async fn forget_soon(&mut self) -> anyhow::Result<()> {
        self.rig.configure(COORDINATOR, |own| {
            let mut retention = toml::Table::new();
            retention.insert("seconds".into(), 1.into());
            retention.insert("look_interval_ms".into(), 200.into());
            own.insert("retention".into(), retention.into());
        });
        self.rig.kill9(COORDINATOR)?;
        self.forgets = true;
        self.rig.up().await
    }

    /// What a drive left is what clients were told.
    async fn look(&mut self, left: Left) -> anyhow::Result<()> {
        match left {
            Left::Nothing => Ok(()),
            Left::Alive(connection) => {
                drop(connection);
                Ok(())
            }
            Left::Load(load) => {
                let entries = load.stop().await?;
                self.audit(entries).await
            }
            Left::Decided(running) => {
                let outcome = running.await?;
                ensure!(outcome.is_committed(), "a decided one is {outcome:?}");
                Ok(())
            }
            Left::Locked(lock, running, row) => {
                unlock(lock).await?;
                self.none(running, row).await
            }
            Left::Both(running, row) => self.none(running, row).await,
            Left::Damaged(running, branch) => {
                let outcome = running.await?;
                ensure!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
                let gtrid = branch.gtrid.to_string();
                eventually("the report of damage", PATIENCE, async || {
                    let reports = self.rig.status(1).await?.damage;
                    Ok(reports.into_iter().find(|report| report.gtrid == gtrid))
                })
                .await?;
                eventually("the end of the damaged one", PATIENCE, async || {
                    let tx = self.client()?.transaction(&gtrid).await?;
                    let heuristic = tx.branches.is_empty()
                        || tx.branches[0].state() == v1::BranchState::Heuristic;
                    Ok(heuristic.then_some(()))
                })
                .await
            }
        }
    }

    /// A transaction without all its votes has no effect.
    async fn none(&self, running: JoinHandle<Outcome>, row: i32) -> anyhow::Result<()> {
        let outcome = running.await?;
        ensure!(!outcome.is_committed(), "{outcome:?} without its votes");
        self.rig.settled(row, START).await
    }

    async fn audit(&mut self, mut entries: Vec<Entry>) -> anyhow::Result<()> {
        let client = self.client()?;
        for entry in &mut entries {
            match entry.told {
                Told::Committed => self.counts.committed += 1,
                Told::Aborted => self.counts.aborted += 1,
                Told::Unknown => self.counts.unknown += 1,
            }
            // A client that does not know asks again, by its request id, until it does: what one
            // participant decides is unknown to a new coordinator until that one has told it.
            let may_ask = !matches!(entry.form, Form::Interactive | Form::RolledBack);
            if entry.told == Told::Unknown && may_ask {
                let what = format!("an outcome of {entry:?}");
                let outcome = eventually(&what, PATIENCE, async || {
                    let outcome = send(&client, entry).await;
                    Ok(Some(outcome).filter(|told| !matches!(told, Outcome::Unknown { .. })))
                });
                entry.told = Told::from(&outcome.await?);
            }
        }
        self.rig.drained().await?;
        let seen = [self.seen(1).await?, self.seen(2).await?];
        for entry in &entries {
            self.check(entry, &seen)?;
        }
        for row in 1..=4 {
            let moved = self.moved.get(&row).copied().unwrap_or_default();
            let id = i32::try_from(row)?;
            let (first, second) = (self.rig.n(1, id).await?, self.rig.n(2, id).await?);
            ensure!(
                (first, second) == (START - moved, START + moved),
                "row {row}: {first} and {second} after {moved} transfers"
            );
        }
        Ok(())
    }

    fn check(&mut self, entry: &Entry, seen: &[BTreeSet<String>; 2]) -> anyhow::Result<()> {
        let servers = entry.form.servers();
        let present = servers
            .iter()
            .filter(|n| seen[**n - 1].contains(&entry.key))
            .count();
        let all = present == servers.len();
        ensure!(all || present == 0, "{entry:?} is done by half");
        match entry.told {
            Told::Committed => ensure!(all, "{entry:?} is not there"),
            Told::Aborted => ensure!(present == 0, "{entry:?} is there"),
            Told::Unknown => {}
        }
        let may_commit = !matches!(entry.form, Form::Refused | Form::RolledBack);
        ensure!(may_commit || present == 0, "{entry:?} is there");
        if all && entry.form == Form::Transfer {
            *self.moved.entry(entry.row).or_default() += 1;
        }
        Ok(())
    }

    async fn seen(&self, n: usize) -> anyhow::Result<BTreeSet<String>> {
        let mut root = self.rig.root(n).await?;
        let keys: Vec<String> = sqlx::query_scalar("SELECT k FROM shop.seen")
            .fetch_all(&mut root)
            .await?;
        Ok(keys.into_iter().collect())
    }

    /// Everything is up and in order.
    pub async fn end(&mut self) -> anyhow::Result<Counts> {
        self.rig.up().await?;
        self.rig.drained().await?;
        Ok(self.counts)
    }
}

/// A branch that nobody has ever heard of.
fn fresh() -> BranchId {
    let gtrid = Mint::above(Gtrid::MIN, std::sync::Arc::new(Machine)).mint();
    BranchId {
        gtrid,
        bqual: Bqual(1),
    }
}

/// Transactions that ended an hour ago.
fn surplus(epoch: Epoch) -> Vec<Record> {
    let of = |n: u32| {
        let mut gtrid = Gtrid::lowest_at(Machine.unix_ms() - 3_600_000);
        (gtrid.0[6], gtrid.0[8]) = (0x70, 0x80);
        gtrid.0[12..].copy_from_slice(&n.to_be_bytes());
        let branches = (1..=2)
            .map(|n| (Bqual(n), ParticipantName::new(format!("p{n}"))))
            .collect();
        let decision = Record::Decision {
            gtrid,
            epoch,
            branches,
            request: None,
        };
        let committed = true;
        [decision, Record::End { gtrid, committed }]
    };
    (0..SURPLUS).flat_map(of).collect()
}
