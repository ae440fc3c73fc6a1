//! What a server in memory keeps, and the XA rules by which it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use concord_core::id::{BranchId, Epoch, Gtrid};
use concord_core::reason::{Reason, code};
use concord_core::record::ParticipantRecord;
use concord_proto::v1;
use tokio::sync::watch;
use tokio::time::Instant;

use super::shape::{Row, Shape};
use crate::resource::{Durable, Finished, Health, LedgerEntry, Recovered};

/// What differs between MySQL and MariaDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A prepared branch leaves its connection, and anybody may finish it.
    pub detaches: bool,
}

/// Where a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Before the verb reaches the server.
    Before,
    /// After the server did it, before its answer arrives.
    After,
}

/// Name of a branch on the server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Xid {
    /// Of this cluster.
    Ours(BranchId),
    /// Of anybody else.
    Foreign(String),
}

/// Why something did not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The server said no.
    Refused {
        /// Why.
        reason: Reason,
        /// Because the xid exists (`XAER_DUPID`).
        duplicate: bool,
    },
    /// The connection broke.
    Broken,
}

impl Stop {
    /// The server said no.
    pub fn refused(reason: Reason) -> Self {
        Self::Refused {
            reason,
            duplicate: false,
        }
    }

    /// What a client is told.
    pub fn reason(self) -> Reason {
        match self {
            Self::Refused { reason, .. } => reason,
            Self::Broken => broken(),
        }
    }
}

/// The reason of a broken connection.
pub fn broken() -> Reason {
    Reason::new(code::CONNECTION_LOST, "the connection to the server broke")
}

/// The reason when the server is down.
pub fn down() -> Reason {
    Reason::new(code::SERVER_DOWN, "the server cannot be reached")
}

/// A connection and the participant process that has it; a stranger's has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attached {
    connection: u64,
    process: Option<u64>,
}

#[derive(Clone, Debug)]
struct Branch {
    attached: Option<Attached>,
    prepared: bool,
    deadline: Option<Instant>,
    locks_reads: bool,
    writes: BTreeMap<Row, i64>,
    ledger: bool,
    request: Option<String>,
    locks: BTreeSet<Lock>,
    waits_for: Option<Xid>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lock {
    Row(Row),
    Request(String),
}

#[derive(Clone, Debug)]
struct Entry {
    tombstone: bool,
    request: Option<String>,
}

/// Everything.
#[derive(Debug)]
pub struct State {
    rules: Rules,
    up: bool,
    unsafe_settings: bool,
    read_only: bool,
    backup: bool,
    rows: BTreeMap<Row, i64>,
    ledger: BTreeMap<BranchId, Entry>,
    branches: BTreeMap<Xid, Branch>,
    epoch: Epoch,
    forget_below: Gtrid,
    damage: Vec<v1::Damage>,
    next: u64,
    kills: u64,
    cuts: Vec<Cut>,
}

/// A server in memory.
#[derive(Debug)]
pub struct Server {
    state: Mutex<State>,
    version: watch::Sender<u64>,
    health: watch::Sender<Health>,
}

impl Server {
    /// A server that is up, safe and empty.
    pub fn start(rules: Rules) -> Arc<Self> {
        let state = State {
            rules,
            up: true,
            unsafe_settings: false,
            read_only: false,
            backup: false,
            rows: BTreeMap::new(),
            ledger: BTreeMap::new(),
            branches: BTreeMap::new(),
            epoch: Epoch(0),
            forget_below: Gtrid::MIN,
            damage: Vec::new(),
            next: 1,
            kills: 0,
            cuts: Vec::new(),
        };
        let health = watch::Sender::new(state.health());
        Arc::new(Self {
            state: Mutex::new(state),
            version: watch::Sender::new(0),
            health,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes it, and tells everybody who waits.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, before, after, health) = {
            let mut state = self.lock();
            let before = state.next;
            let result = change(&mut state);
            (result, before, state.next, state.health())
        };
        if before != after {
            self.version.send_modify(|version| *version = after);
        }
        self.health.send_if_modified(|current| {
            let changed = *current != health;
            *current = health;
            changed
        });
        result
    }

    /// The same, when it is up.
    pub fn up_change<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, Reason>,
    ) -> Result<T, Reason> {
        self.change(|state| if state.up { change(state) } else { Err(down()) })
    }

    /// Every change from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.lock().up
    }

    /// How often connections were killed.
    pub fn kills(&self) -> u64 {
        self.lock().kills
    }

    /// Its health.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// The next verbs meet these cuts, one each, in order.
    pub fn plan_cuts(&self, cuts: &[Cut]) {
        self.change(|state| state.cuts = cuts.iter().rev().copied().collect());
    }

    pub(super) fn cut(&self) -> Option<Cut> {
        self.lock().cuts.pop()
    }

    /// The committed number of a row.
    pub fn value(&self, table: &str, key: &str) -> Option<i64> {
        self.lock()
            .rows
            .get(&(table.to_owned(), key.to_owned()))
            .copied()
    }

    /// Sum of the committed numbers of a table.
    pub fn sum(&self, table: &str) -> i128 {
        let state = self.lock();
        state
            .rows
            .iter()
            .filter(|((of, _), _)| of == table)
            .map(|(_, v)| i128::from(*v))
            .sum()
    }

    /// Kills it: what is not prepared is rolled back, and nobody is connected any more.
    pub fn crash(&self) {
        self.change(|state| {
            state.up = false;
            state.close_process(None);
        });
    }

    /// Starts it again.
    pub fn restart(&self) {
        self.change(|state| {
            state.up = true;
            state.touch();
        });
    }

    /// Makes it lose acknowledged prepares in a crash, or safe again.
    pub fn set_unsafe(&self, on: bool) {
        self.change(|state| state.unsafe_settings = on);
    }

    /// Makes it read-only, or writable again.
    pub fn set_read_only(&self, on: bool) {
        self.change(|state| state.read_only = on);
    }

    /// Makes commits wait, or not any more.
    pub fn set_backup(&self, on: bool) {
        self.change(|state| {
            state.backup = on;
            state.touch();
        });
    }

    /// Ends all connections.
    pub fn kill_connections(&self) {
        self.change(|state| state.close_process(None));
    }

    /// Finishes a prepared branch as a DBA would; false when there is none.
    pub fn finish_by_hand(&self, branch: BranchId, commit: bool) -> bool {
        self.change(|state| {
            state.detach(branch);
            state.finish(Xid::Ours(branch), 0, commit) == Some(Finished::Done)
        })
    }

    /// Prepares a stranger's branch that adds to a row and keeps it locked.
    pub fn prepare_foreign(&self, name: &str, table: &str, key: &str, amount: i64) {
        self.change(|state| {
            let row = (table.to_owned(), key.to_owned());
            let value = state.rows.get(&row).copied().unwrap_or_default() + amount;
            let mut branch = Branch::new(None);
            branch.prepared = true;
            branch.locks.insert(Lock::Row(row.clone()));
            branch.writes.insert(row, value);
            state.branches.insert(Xid::Foreign(name.to_owned()), branch);
        });
    }

    /// Finishes a stranger's branch; false when there is none.
    pub fn finish_foreign(&self, name: &str, commit: bool) -> bool {
        self.change(|state| {
            let xid = Xid::Foreign(name.to_owned());
            state.finish(xid, 0, commit) == Some(Finished::Done)
        })
    }
}

impl Branch {
    fn new(attached: Option<Attached>) -> Self {
        Self {
            attached,
            prepared: false,
            deadline: None,
            locks_reads: false,
            writes: BTreeMap::new(),
            ledger: false,
            request: None,
            locks: BTreeSet::new(),
            waits_for: None,
        }
    }
}

fn wrong_state(text: &str) -> Reason {
    Reason::new(code::WRONG_STATE, text)
}

impl State {
    /// Every change that somebody may wait for.
    fn touch(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn new_process(&mut self) -> u64 {
        self.touch()
    }

    pub(super) fn kills(&self) -> u64 {
        self.kills
    }

    fn health(&self) -> Health {
        Health {
            reachable: self.up,
            problems: self.problem().into_iter().collect(),
            incarnation: "memory/1".into(),
            server_version: "memory".into(),
        }
    }

    pub(super) fn problem(&self) -> Option<Reason> {
        if !self.up {
            Some(down())
        } else if self.unsafe_settings {
            Some(Reason::new(
                code::UNSAFE_SERVER,
                "innodb_flush_log_at_trx_commit is 2; run SET GLOBAL \
                 innodb_flush_log_at_trx_commit = 1",
            ))
        } else if self.read_only {
            Some(Reason::new(code::READ_ONLY_SERVER, "read_only is ON"))
        } else {
            None
        }
    }

    pub(super) fn connections(&self, process: u64) -> usize {
        let mine = |branch: &&Branch| branch.attached.is_some_and(|a| a.process == Some(process));
        self.branches.values().filter(mine).count()
    }

    /// A connection and `XA START`. `None`: wait for a connection.
    pub(super) fn connect(
        &mut self,
        process: u64,
        most: usize,
        branch: BranchId,
    ) -> Option<Result<u64, Stop>> {
        if !self.up {
            return Some(Err(Stop::refused(down())));
        }
        if self.branches.contains_key(&Xid::Ours(branch)) {
            let reason = wrong_state("the branch exists");
            return Some(Err(Stop::Refused {
                reason,
                duplicate: true,
            }));
        }
        if self.connections(process) >= most {
            return None;
        }
        let connection = self.touch();
        let attached = Attached {
            connection,
            process: Some(process),
        };
        self.branches
            .insert(Xid::Ours(branch), Branch::new(Some(attached)));
        Some(Ok(connection))
    }

    /// The open branch of a connection.
    fn active(&mut self, branch: BranchId, connection: u64) -> Result<&mut Branch, Stop> {
        match self.branches.get_mut(&Xid::Ours(branch)) {
            Some(found)
                if !found.prepared
                    && found.attached.is_some_and(|a| a.connection == connection) =>
            {
                Ok(found)
            }
            _ => Err(Stop::Broken),
        }
    }

    /// `None`: wait for the lock.
    fn acquire(&mut self, branch: BranchId, lock: &Lock) -> Option<Result<(), Stop>> {
        let me = Xid::Ours(branch);
        let holder = self
            .branches
            .iter()
            .find(|(xid, other)| **xid != me && other.locks.contains(lock))
            .map(|(xid, _)| xid.clone());
        let deadlock = holder
            .as_ref()
            .is_some_and(|holder| self.waits_for(holder, &me));
        let mine = self.branches.get_mut(&me)?;
        match holder {
            None => {
                mine.waits_for = None;
                mine.locks.insert(lock.clone());
                Some(Ok(()))
            }
            Some(_) if deadlock => {
                mine.waits_for = None;
                let reason = Reason::new(code::DEADLOCK, "it lost against concurrent work");
                Some(Err(Stop::refused(reason)))
            }
            Some(holder) => {
                mine.waits_for = Some(holder);
                None
            }
        }
    }

    fn waits_for(&self, from: &Xid, to: &Xid) -> bool {
        let mut at = from;
        for _ in 0..=self.branches.len() {
            match self
                .branches
                .get(at)
                .and_then(|branch| branch.waits_for.as_ref())
            {
                Some(next) if next == to => return true,
                Some(next) => at = next,
                None => return false,
            }
        }
        false
    }

    pub(super) fn waits_no_more(&mut self, branch: BranchId) {
        if let Some(branch) = self.branches.get_mut(&Xid::Ours(branch)) {
            branch.waits_for = None;
        }
    }

    pub(super) fn write_ledger(
        &mut self,
        branch: BranchId,
        connection: u64,
        request: Option<&str>,
    ) -> Option<Result<(), Stop>> {
        if let Err(stop) = self.active(branch, connection) {
            return Some(Err(stop));
        }
        let duplicate = match self.ledger(branch) {
            LedgerEntry::Tombstone => Some((code::ALREADY_ABORTED, "an abort came first")),
            LedgerEntry::Committed => Some((code::WRONG_STATE, "it was committed before")),
            LedgerEntry::Absent => None,
        };
        if let Some((code, text)) = duplicate {
            return Some(Err(Stop::refused(Reason::new(code, text))));
        }
        if let Some(request) = request {
            match self.acquire(branch, &Lock::Request(request.to_owned()))? {
                Ok(()) => {}
                Err(stop) => return Some(Err(stop)),
            }
            let former = self
                .ledger
                .iter()
                .find(|(_, e)| e.request.as_deref() == Some(request));
            if let Some((former, _)) = former {
                let former = former.gtrid.to_string();
                let reason = Reason::new(code::REQUEST_ALREADY_COMMITTED, former);
                return Some(Err(Stop::refused(reason)));
            }
        }
        Some(self.active(branch, connection).map(|mine| {
            mine.ledger = true;
            mine.request = request.map(str::to_owned);
        }))
    }

    pub(super) fn run(
        &mut self,
        branch: BranchId,
        connection: u64,
        shape: &Shape,
        locks_reads: bool,
    ) -> Option<Result<v1::StatementResult, Stop>> {
        if let Err(stop) = self.active(branch, connection) {
            return Some(Err(stop));
        }
        let (row, locks) = match shape {
            Shape::Insert { row, .. } | Shape::Add { row, .. } => (row, true),
            Shape::Select { row, locking } => (row, *locking || locks_reads),
        };
        if locks && let Err(stop) = self.acquire(branch, &Lock::Row(row.clone()))? {
            return Some(Err(stop));
        }
        let committed = self.rows.get(row).copied();
        let mine = match self.active(branch, connection) {
            Ok(mine) => mine,
            Err(stop) => return Some(Err(stop)),
        };
        let current = mine.writes.get(row).copied().or(committed);
        let written = match (shape, current) {
            (Shape::Insert { .. }, Some(_)) => {
                let reason = Reason::new(code::CONSTRAINT_VIOLATED, "the key exists");
                return Some(Err(Stop::refused(reason)));
            }
            (Shape::Insert { value, .. }, None) => Some(*value),
            (
                Shape::Add {
                    amount, at_least, ..
                },
                Some(value),
            ) if at_least.is_none_or(|least| value >= least) => match value.checked_add(*amount) {
                Some(sum) => Some(sum),
                None => {
                    let reason = Reason::new(code::STATEMENT_FAILED, "out of range");
                    return Some(Err(Stop::refused(reason)));
                }
            },
            (Shape::Add { .. }, _) => None,
            (Shape::Select { .. }, value) => return Some(Ok(rows(value))),
        };
        if let Some(value) = written {
            mine.writes.insert(row.clone(), value);
        }
        let rows = u64::from(written.is_some());
        Some(Ok(v1::StatementResult {
            rows,
            ..v1::StatementResult::default()
        }))
    }

    pub(super) fn read(&self, shape: &Shape) -> v1::StatementResult {
        match shape {
            Shape::Select { row, .. } | Shape::Insert { row, .. } | Shape::Add { row, .. } => {
                rows(self.rows.get(row).copied())
            }
        }
    }

    pub(super) fn rest(&mut self, branch: BranchId, deadline: Instant, locks_reads: bool) {
        if let Some(branch) = self.branches.get_mut(&Xid::Ours(branch)) {
            branch.deadline = Some(deadline);
            branch.locks_reads = locks_reads;
        }
    }

    pub(super) fn locks_reads(&self, branch: BranchId) -> bool {
        self.branches
            .get(&Xid::Ours(branch))
            .is_some_and(|branch| branch.locks_reads)
    }

    /// An interactive branch of a process.
    pub(super) fn open(&self, branch: BranchId, process: u64) -> Result<(u64, Instant), Reason> {
        let found = self
            .branches
            .get(&Xid::Ours(branch))
            .filter(|found| !found.prepared);
        let mine = found.and_then(|found| {
            let attached = found.attached.filter(|a| a.process == Some(process))?;
            Some((attached.connection, found.deadline?))
        });
        mine.ok_or_else(|| Reason::new(code::BRANCH_LOST, "the branch is not open here"))
    }

    /// `XA END; XA PREPARE`, after the same look at the settings that real votes take.
    pub(super) fn prepare(&mut self, branch: BranchId, connection: u64) -> Result<(), Stop> {
        self.active(branch, connection)?;
        if let Some(problem) = self.problem() {
            return Err(Stop::refused(problem));
        }
        let detaches = self.rules.detaches;
        let mine = self.active(branch, connection)?;
        mine.prepared = true;
        if detaches {
            mine.attached = None;
        }
        self.touch();
        Ok(())
    }

    pub(super) fn commit_one_phase(
        &mut self,
        branch: BranchId,
        connection: u64,
    ) -> Result<(), Stop> {
        self.active(branch, connection)?;
        if let Some(problem) = self.problem() {
            return Err(Stop::refused(problem));
        }
        self.end(&Xid::Ours(branch), true);
        Ok(())
    }

    /// `XA COMMIT` or `XA ROLLBACK`. `None`: a backup makes it wait.
    pub(super) fn finish(&mut self, xid: Xid, process: u64, commit: bool) -> Option<Finished> {
        if !self.up {
            return Some(Finished::Unknown(broken()));
        }
        let Some(branch) = self.branches.get(&xid) else {
            return Some(Finished::NoSuchBranch);
        };
        if branch
            .attached
            .is_some_and(|attached| attached.process != Some(process))
        {
            return Some(Finished::NoSuchBranch);
        }
        if commit && !branch.prepared {
            return Some(Finished::NotDone(wrong_state("the branch is not prepared")));
        }
        if commit && self.read_only && !self.rules.detaches {
            let reason = Reason::new(code::READ_ONLY_SERVER, "the server is read-only");
            return Some(Finished::NotDone(reason));
        }
        if commit && self.backup {
            return None;
        }
        self.end(&xid, commit);
        Some(Finished::Done)
    }

    fn end(&mut self, xid: &Xid, commit: bool) {
        let ended = self.branches.remove(xid);
        self.touch();
        if let (Some(ended), true) = (ended, commit) {
            self.rows.extend(ended.writes);
            if let (Xid::Ours(branch), true) = (xid, ended.ledger) {
                let entry = Entry {
                    tombstone: false,
                    request: ended.request,
                };
                self.ledger.insert(*branch, entry);
            }
        }
    }

    /// Rolls an open branch back, if it is still that of this connection.
    pub(super) fn abandon(&mut self, branch: BranchId, connection: u64) {
        if self.active(branch, connection).is_ok() {
            self.end(&Xid::Ours(branch), false);
        }
    }

    /// Ends the connection of a running branch.
    pub(super) fn cancel(&mut self, branch: BranchId, process: u64) {
        let xid = Xid::Ours(branch);
        let runs = self.branches.get(&xid).is_some_and(|branch| {
            !branch.prepared && branch.attached.is_some_and(|a| a.process == Some(process))
        });
        if runs {
            self.end(&xid, false);
        }
    }

    fn close_where(&mut self, closes: impl Fn(Attached) -> bool) {
        let closed: Vec<_> = self
            .branches
            .iter()
            .filter(|(_, branch)| branch.attached.is_some_and(&closes))
            .map(|(xid, branch)| (xid.clone(), branch.prepared))
            .collect();
        for (xid, prepared) in closed {
            if !prepared {
                self.end(&xid, false);
            } else if let Some(branch) = self.branches.get_mut(&xid) {
                branch.attached = None;
            }
        }
        self.touch();
    }

    /// Closes the connections of a process, or all.
    pub(super) fn close_process(&mut self, process: Option<u64>) {
        self.kills += u64::from(process.is_none());
        self.close_where(|attached| process.is_none() || attached.process == process);
    }

    pub(super) fn close(&mut self, connection: u64) {
        self.close_where(|attached| attached.connection == connection);
    }

    pub(super) fn detach(&mut self, branch: BranchId) {
        let attached = self
            .branches
            .get(&Xid::Ours(branch))
            .and_then(|branch| branch.attached);
        if let Some(attached) = attached {
            self.close(attached.connection);
        }
    }

    pub(super) fn is_prepared(&self, branch: BranchId) -> bool {
        self.branches
            .get(&Xid::Ours(branch))
            .is_some_and(|branch| branch.prepared)
    }

    pub(super) fn ledger(&self, branch: BranchId) -> LedgerEntry {
        match self.ledger.get(&branch) {
            Some(Entry {
                tombstone: false, ..
            }) => LedgerEntry::Committed,
            Some(Entry {
                tombstone: true, ..
            }) => LedgerEntry::Tombstone,
            None => LedgerEntry::Absent,
        }
    }

    pub(super) fn tombstone(&mut self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        if self.branches.contains_key(&Xid::Ours(branch)) {
            return Err(Reason::new(code::BRANCH_ATTACHED, "the branch is alive"));
        }
        self.ledger.entry(branch).or_insert(Entry {
            tombstone: true,
            request: None,
        });
        Ok(self.ledger(branch))
    }

    pub(super) fn recover(&self) -> Recovered {
        let mut recovered = Recovered::default();
        for (xid, branch) in &self.branches {
            match xid {
                Xid::Ours(id) if branch.prepared => recovered.ours.push(*id),
                Xid::Foreign(_) if branch.prepared => recovered.foreign += 1,
                Xid::Ours(_) | Xid::Foreign(_) => {}
            }
        }
        recovered
    }

    pub(super) fn load(&self) -> Durable {
        Durable {
            epoch: self.epoch,
            forget_below: self.forget_below,
            damage: self
                .damage
                .iter()
                .filter(|d| !d.acknowledged)
                .cloned()
                .collect(),
        }
    }

    pub(super) fn append(&mut self, records: &[ParticipantRecord]) {
        for record in records {
            match record {
                ParticipantRecord::Epoch(epoch) => self.epoch = self.epoch.max(*epoch),
                ParticipantRecord::ForgetBelow(gtrid) => {
                    self.forget_below = self.forget_below.max(*gtrid);
                }
                ParticipantRecord::Damage {
                    gtrid,
                    bqual,
                    reason,
                } => {
                    let report = v1::Damage {
                        id: self.damage.len() as u64 + 1,
                        gtrid: gtrid.to_string(),
                        bqual: bqual.0,
                        reason: Some(v1::Reason {
                            code: reason.code.to_string(),
                            message: reason.message.to_string(),
                        }),
                        time: None,
                        acknowledged: false,
                    };
                    let same = |known: &v1::Damage| {
                        let code = |damage: &v1::Damage| damage.reason.clone().map(|r| r.code);
                        (&known.gtrid, known.bqual, code(known))
                            == (&report.gtrid, report.bqual, code(&report))
                    };
                    if !self.damage.iter().any(same) {
                        self.damage.push(report);
                    }
                }
            }
        }
    }

    pub(super) fn damage(&self, limit: u32) -> Vec<v1::Damage> {
        self.damage
            .iter()
            .rev()
            .take(limit as usize)
            .cloned()
            .collect()
    }

    pub(super) fn acknowledge(&mut self, id: u64) -> bool {
        let report = self.damage.iter_mut().find(|report| report.id == id);
        report.is_some_and(|report| {
            report.acknowledged = true;
            true
        })
    }

    pub(super) fn prune(&mut self, below: Gtrid) -> u64 {
        let before = self.ledger.len();
        self.ledger.retain(|branch, _| branch.gtrid >= below);
        (before - self.ledger.len()) as u64
    }
}

fn rows(value: Option<i64>) -> v1::StatementResult {
    let Some(value) = value else {
        return v1::StatementResult::default();
    };
    v1::StatementResult {
        rows: 1,
        last_insert_id: 0,
        columns: vec![v1::Column {
            name: "v".into(),
            r#type: "BIGINT".into(),
        }],
        result: vec![v1::Row {
            values: vec![v1::Value {
                kind: Some(v1::value::Kind::Int64(value)),
            }],
        }],
    }
}
