//! A MySQL or MariaDB server as one participant sees it: what is prepared, what the ledger holds,
//! and sessions of dead connections that still finish what they were told.
//!
//! It keeps the facts of the design's section 5 that the protocol leans on, and nothing else: no
//! rows, no locks but the one that a prepared branch holds on its own ledger row.

use std::collections::BTreeMap;

use concord_core::id::{BranchId, Gtrid};
use concord_core::participant::{Command, Input, LedgerEntry, OnePhase, Prepared, Verb};
use concord_core::reason::{Reason, code};

/// Which server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// After XA PREPARE any connection may finish the branch.
    MySql,
    /// Only the preparing connection may, until it closes.
    MariaDb,
}

/// The connection that a prepared branch is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Holder {
    /// None: any connection may finish it.
    Nobody,
    /// The participant's own.
    Daemon,
    /// One that the participant has lost and the server not yet noticed.
    Lost,
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum How {
    /// As the server's state says.
    Well,
    /// The statements fail: the branch is rolled back.
    Refused,
    /// The statements write nothing and the branch leaves.
    ReadOnly,
    /// The server does not do it now.
    NotNow,
    /// The connection is lost; the server may still do it, at any later time.
    Cut,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    flavour: Flavour,
    /// Committed, or a tombstone.
    ledger: BTreeMap<BranchId, bool>,
    prepared: BTreeMap<BranchId, Holder>,
    /// What lost connections were told and have not done.
    lost: Vec<(BranchId, Command)>,
    /// How often the work of each branch was committed; pruning does not touch it.
    effects: BTreeMap<BranchId, u8>,
}

fn reason(code: &str) -> Reason {
    Reason::new(code, "")
}

impl Server {
    /// An empty server.
    pub fn new(flavour: Flavour) -> Self {
        Self {
            flavour,
            ledger: BTreeMap::new(),
            prepared: BTreeMap::new(),
            lost: Vec::new(),
            effects: BTreeMap::new(),
        }
    }

    /// `XA RECOVER`.
    pub fn list(&self) -> Vec<BranchId> {
        self.prepared.keys().copied().collect()
    }

    /// Whether the branch is prepared.
    pub fn has_prepared(&self, branch: BranchId) -> bool {
        self.prepared.contains_key(&branch)
    }

    /// How often its work was committed.
    pub fn effects(&self, branch: BranchId) -> u8 {
        self.effects.get(&branch).copied().unwrap_or(0)
    }

    /// Whether an abort's tombstone stands.
    pub fn has_tombstone(&self, branch: BranchId) -> bool {
        self.ledger.get(&branch) == Some(&false)
    }

    /// The ledger row: whether the branch is committed, or will never be.
    pub fn row(&self, branch: BranchId) -> Option<bool> {
        self.ledger.get(&branch).copied()
    }

    /// Number of commands that lost connections may still carry out.
    pub fn lost(&self) -> usize {
        self.lost.len()
    }

    /// The branches that are attached to a lost connection.
    pub fn attached(&self) -> Vec<BranchId> {
        let held = self
            .prepared
            .iter()
            .filter(|(_, holder)| **holder == Holder::Lost);
        held.map(|(branch, _)| *branch).collect()
    }

    /// The server notices that the connection is gone, or is told to end it.
    pub fn detach(&mut self, branch: BranchId) {
        if let Some(holder) = self.prepared.get_mut(&branch) {
            *holder = Holder::Nobody;
        }
    }

    /// The participant dies: its connections are lost, with what runs on them.
    pub fn lose_connections(&mut self, running: impl Iterator<Item = (BranchId, Command)>) {
        for (branch, command) in running {
            self.lose(branch, command);
        }
        for holder in self
            .prepared
            .values_mut()
            .filter(|holder| **holder == Holder::Daemon)
        {
            *holder = Holder::Lost;
        }
    }

    /// The branches that somebody at a client of the server could finish by hand: those that are
    /// attached to no connection.
    pub fn within_reach(&self) -> Vec<BranchId> {
        let free = self
            .prepared
            .iter()
            .filter(|(_, holder)| **holder == Holder::Nobody);
        free.map(|(branch, _)| *branch).collect()
    }

    /// Somebody finishes a prepared branch by hand: `XA COMMIT` or `XA ROLLBACK`.
    pub fn finish_by_hand(&mut self, branch: BranchId, commit: bool) {
        if self.prepared.remove(&branch).is_some() && commit {
            self.commit_now(branch);
        }
    }

    /// All lost connections end, and what they were told is never done.
    pub fn end_lost(&mut self) {
        self.lost.clear();
        for branch in self.attached() {
            self.detach(branch);
        }
    }

    /// A lost connection does what it was told.
    pub fn carry_out_lost(&mut self, index: usize) {
        let (branch, command) = self.lost.remove(index);
        let before = self.prepared.contains_key(&branch);
        // It may be the very connection that the branch is attached to.
        if self.prepared.get(&branch) == Some(&Holder::Lost) {
            self.detach(branch);
        }
        let _ = self.run(branch, command, How::Well);
        let attached = !before || !matches!(command, Command::Commit | Command::Rollback);
        if let Some(holder) = self.prepared.get_mut(&branch)
            && attached
            && self.flavour == Flavour::MariaDb
        {
            *holder = Holder::Lost;
        }
    }

    /// Ledger rows below this transaction are deleted.
    pub fn prune(&mut self, below: Gtrid) {
        self.ledger.retain(|branch, _| branch.gtrid >= below);
    }

    /// Runs a command for the participant; its result, as the participant hears of it.
    pub fn run(&mut self, branch: BranchId, command: Command, how: How) -> Input {
        match command {
            Command::Prepare { .. } => {
                let result = self.prepare(branch, command, how);
                Input::Prepared { branch, result }
            }
            Command::CommitOnePhase { .. } => {
                let result = self.commit_one_phase(branch, command, how);
                Input::OnePhase { branch, result }
            }
            Command::Commit | Command::Rollback => {
                let result = self.finish(branch, command, how);
                Input::Verb { branch, result }
            }
            Command::ReadLedger | Command::Tombstone => {
                let result = self.ledger(branch, command, how);
                Input::Ledger { branch, result }
            }
            Command::List => {
                let result = match how {
                    How::Well => Ok(self.prepared.contains_key(&branch)),
                    _ => Err(reason(code::SERVER_DOWN)),
                };
                Input::Listed { branch, result }
            }
            Command::Begin => Input::Begun {
                branch,
                result: Err(reason(code::SERVER_DOWN)),
            },
        }
    }

    fn lose(&mut self, branch: BranchId, command: Command) {
        if let Some(holder) = self.prepared.get_mut(&branch)
            && *holder == Holder::Daemon
        {
            *holder = Holder::Lost;
        }
        if !matches!(command, Command::ReadLedger | Command::List) {
            self.lost.push((branch, command));
            self.lost.sort_unstable();
        }
    }

    /// Why the branch cannot be begun: its xid is in use, or its ledger row is there.
    fn is_barred(&self, branch: BranchId) -> bool {
        self.prepared.contains_key(&branch) || self.ledger.contains_key(&branch)
    }

    fn prepare(&mut self, branch: BranchId, command: Command, how: How) -> Prepared {
        match how {
            How::Cut => {
                self.lose(branch, command);
                Prepared::Unknown(reason(code::CONNECTION_LOST))
            }
            _ if self.is_barred(branch) => Prepared::NotPrepared(reason(code::UNEXPECTED_ANSWER)),
            How::Refused => Prepared::NotPrepared(reason(code::INSUFFICIENT_FUNDS)),
            How::NotNow => Prepared::NotPrepared(reason(code::LOCK_TIMEOUT)),
            How::ReadOnly => Prepared::ReadOnly,
            How::Well => {
                let holder = match self.flavour {
                    Flavour::MySql => Holder::Nobody,
                    Flavour::MariaDb => Holder::Daemon,
                };
                self.prepared.insert(branch, holder);
                Prepared::Prepared
            }
        }
    }

    fn commit_one_phase(&mut self, branch: BranchId, command: Command, how: How) -> OnePhase {
        match how {
            How::Cut => {
                self.lose(branch, command);
                OnePhase::Unknown(reason(code::CONNECTION_LOST))
            }
            _ if self.is_barred(branch) => OnePhase::NotCommitted(reason(code::UNEXPECTED_ANSWER)),
            How::Refused => OnePhase::NotCommitted(reason(code::INSUFFICIENT_FUNDS)),
            How::NotNow => OnePhase::NotCommitted(reason(code::LOCK_TIMEOUT)),
            How::ReadOnly | How::Well => {
                self.commit_now(branch);
                OnePhase::Committed
            }
        }
    }

    fn finish(&mut self, branch: BranchId, command: Command, how: How) -> Verb {
        match how {
            How::Cut => {
                self.lose(branch, command);
                return Verb::Unknown(reason(code::CONNECTION_LOST));
            }
            How::NotNow => return Verb::NotDone(reason(code::READ_ONLY_SERVER)),
            How::Well | How::Refused | How::ReadOnly => {}
        }
        match self.prepared.get(&branch) {
            None | Some(Holder::Lost) => return Verb::NoSuchBranch,
            Some(Holder::Nobody | Holder::Daemon) => {}
        }
        self.prepared.remove(&branch);
        if command == Command::Commit {
            self.commit_now(branch);
        }
        Verb::Done
    }

    fn ledger(
        &mut self,
        branch: BranchId,
        command: Command,
        how: How,
    ) -> Result<LedgerEntry, Reason> {
        match how {
            How::Cut => {
                self.lose(branch, command);
                return Err(reason(code::CONNECTION_LOST));
            }
            How::NotNow => return Err(reason(code::SERVER_DOWN)),
            How::Well | How::Refused | How::ReadOnly => {}
        }
        if command == Command::Tombstone {
            // The row of a prepared branch is locked, and the insert waits for it in vain.
            if self.prepared.contains_key(&branch) {
                return Err(reason(code::BRANCH_ATTACHED));
            }
            self.ledger.entry(branch).or_insert(false);
        }
        Ok(match self.ledger.get(&branch) {
            Some(true) => LedgerEntry::Committed,
            Some(false) => LedgerEntry::Tombstone,
            None => LedgerEntry::Absent,
        })
    }

    fn commit_now(&mut self, branch: BranchId) {
        self.ledger.insert(branch, true);
        let effects = self.effects.entry(branch).or_insert(0);
        *effects = effects.saturating_add(1);
    }
}
