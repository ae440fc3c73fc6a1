//! What a server in memory keeps, and the XA rules by which it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use concord_core::id::{BranchId, Epoch, Gtrid, Request, RequestId};
use concord_core::reason::{Reason, code};
use concord_proto::v1;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::shape::{Cell, Row};
use crate::resource::{Finished, Health};

mod branches;
mod records;
mod view;

pub use view::{Backup, View};

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

/// `ER_OPTION_PREVENTS_STATEMENT`.
fn read_only() -> Reason {
    Reason::new(code::READ_ONLY_SERVER, "read_only is ON")
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
    /// Prepared under settings that keep no promise.
    unsafely: bool,
    deadline: Option<Instant>,
    locks_reads: bool,
    writes: BTreeMap<Row, Cell>,
    ledger: bool,
    request: Option<Request>,
    locks: BTreeSet<Lock>,
    waits_for: Option<Xid>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lock {
    Row(Row),
    Request(RequestId),
}

#[derive(Clone, Debug)]
struct Entry {
    tombstone: bool,
    request: Option<Request>,
    created: Instant,
}

/// Everything.
#[derive(Clone, Debug)]
pub struct State {
    rules: Rules,
    /// Identity of the data.
    incarnation: String,
    up: bool,
    unsafe_settings: bool,
    read_only: bool,
    backup: bool,
    rows: BTreeMap<Row, Cell>,
    ledger: BTreeMap<BranchId, Entry>,
    branches: BTreeMap<Xid, Branch>,
    /// How branches ended that were prepared or committed: what no server remembers, for whoever
    /// judges a run.
    past: BTreeMap<BranchId, bool>,
    /// Processes that were killed: what they still ask for comes from nowhere.
    dead: BTreeSet<u64>,
    epoch: Epoch,
    forget_below: Gtrid,
    damage: Vec<v1::Damage>,
    next: u64,
    kills: u64,
    crashes: u64,
    cuts: Vec<Cut>,
}

/// A server in memory.
#[derive(Debug)]
pub struct Server {
    state: Mutex<State>,
    changed: Notify,
    health: watch::Sender<Health>,
}

impl Server {
    /// A server that is up, safe and empty.
    pub fn start(rules: Rules) -> Arc<Self> {
        Self::start_as(rules, "memory/1")
    }

    /// The same, with an identity of its own.
    pub fn start_as(rules: Rules, incarnation: &str) -> Arc<Self> {
        let state = State {
            rules,
            incarnation: incarnation.to_owned(),
            up: true,
            unsafe_settings: false,
            read_only: false,
            backup: false,
            rows: BTreeMap::new(),
            ledger: BTreeMap::new(),
            branches: BTreeMap::new(),
            past: BTreeMap::new(),
            dead: BTreeSet::new(),
            epoch: Epoch(0),
            forget_below: Gtrid::MIN,
            damage: Vec::new(),
            next: 1,
            kills: 0,
            crashes: 0,
            cuts: Vec::new(),
        };
        let health = watch::Sender::new(state.health());
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Notify::new(),
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
            self.changed.notify_waiters();
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

    /// The same, when it takes writes outside prepared branches.
    pub fn written<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, Reason>,
    ) -> Result<T, Reason> {
        self.up_change(|state| {
            if state.read_only {
                return Err(read_only());
            }
            change(state)
        })
    }

    /// The next change. Those who wait go on in the order in which they came, so that a simulation
    /// is the same each time; a watch channel would not promise that.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
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
            .map(|cell| cell.number)
    }

    /// Sum of the committed numbers of a table.
    pub fn sum(&self, table: &str) -> i128 {
        let state = self.lock();
        state
            .rows
            .iter()
            .filter(|((of, _), _)| of == table)
            .map(|(_, cell)| i128::from(cell.number))
            .sum()
    }

    /// Kills it: what is not prepared is rolled back, and nobody is connected any more. Of what is
    /// prepared only changed rows stay locked, for their locks alone are found again in the log.
    pub fn crash(&self) {
        self.change(|state| {
            state.up = false;
            state.crashes += 1;
            state.close_process(None);
            state.lose_what_is_not_logged();
        });
    }

    /// How often it was killed.
    pub fn crashes(&self) -> u64 {
        self.lock().crashes
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
            let mut cell = state.rows.get(&row).cloned().unwrap_or_default();
            cell.number += amount;
            let mut branch = Branch::new(None);
            branch.prepared = true;
            branch.locks.insert(Lock::Row(row.clone()));
            branch.writes.insert(row, cell);
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
            unsafely: false,
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
            incarnation: self.incarnation.clone(),
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
            Some(read_only())
        } else {
            None
        }
    }

    pub(super) fn connections(&self, process: u64) -> usize {
        let mine = |branch: &&Branch| branch.attached.is_some_and(|a| a.process == Some(process));
        self.branches.values().filter(mine).count()
    }
}
