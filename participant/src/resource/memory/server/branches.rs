//! The XA rules: how branches begin, wait for locks, prepare and end.

use concord_core::id::{BranchId, Request};
use concord_core::reason::{Reason, code};
use concord_proto::v1;
use tokio::time::Instant;

use super::{Attached, Branch, Entry, Lock, State, Stop, Xid, broken, down, wrong_state};
use crate::resource::memory::shape::{Cell, Row, Shape};
use crate::resource::{Finished, LedgerEntry, known_request};

impl State {
    /// A connection and `XA START`. `None`: wait for a connection.
    pub(in crate::resource::memory) fn connect(
        &mut self,
        process: u64,
        most: usize,
        branch: BranchId,
    ) -> Option<Result<u64, Stop>> {
        if !self.up || self.dead.contains(&process) {
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

    pub(in crate::resource::memory) fn waits_no_more(&mut self, branch: BranchId) {
        if let Some(branch) = self.branches.get_mut(&Xid::Ours(branch)) {
            branch.waits_for = None;
        }
    }

    pub(in crate::resource::memory) fn write_ledger(
        &mut self,
        branch: BranchId,
        connection: u64,
        request: Option<&Request>,
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
            match self.acquire(branch, &Lock::Request(request.id.clone()))? {
                Ok(()) => {}
                Err(stop) => return Some(Err(stop)),
            }
            let former = self.ledger.iter().find_map(|(former, entry)| {
                let kept = entry.request.as_ref()?;
                (kept.id == request.id).then_some((former.gtrid, kept.fingerprint))
            });
            if let Some((former, fingerprint)) = former {
                let reason = known_request(request, former, Some(fingerprint));
                return Some(Err(Stop::refused(reason)));
            }
        }
        Some(self.active(branch, connection).map(|mine| {
            mine.ledger = true;
            mine.request = request.cloned();
        }))
    }

    pub(in crate::resource::memory) fn run(
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
            Shape::Select { row, locking, .. } => (row, *locking || locks_reads),
        };
        if locks && let Err(stop) = self.acquire(branch, &Lock::Row(row.clone()))? {
            return Some(Err(stop));
        }
        let committed = self.rows.get(row).cloned();
        let mine = match self.active(branch, connection) {
            Ok(mine) => mine,
            Err(stop) => return Some(Err(stop)),
        };
        let current = mine.writes.get(row).cloned().or(committed);
        let written = match (shape, current) {
            (Shape::Insert { .. }, Some(_)) => {
                let reason = Reason::new(code::CONSTRAINT_VIOLATED, "the key exists");
                return Some(Err(Stop::refused(reason)));
            }
            (Shape::Insert { cell, .. }, None) => Some(cell.clone()),
            (
                Shape::Add {
                    amount,
                    at_least,
                    at_most,
                    text,
                    ..
                },
                Some(cell),
            ) if at_least.is_none_or(|least| cell.number >= least)
                && at_most.is_none_or(|most| cell.number <= most)
                && text
                    .as_ref()
                    .is_none_or(|text| cell.texts.first() == Some(text)) =>
            {
                match cell.number.checked_add(*amount) {
                    Some(number) => Some(Cell { number, ..cell }),
                    None => {
                        let reason = Reason::new(code::STATEMENT_FAILED, "out of range");
                        return Some(Err(Stop::refused(reason)));
                    }
                }
            }
            (Shape::Add { .. }, _) => None,
            (Shape::Select { row, account, .. }, cell) => {
                return Some(Ok(rows(row, cell.as_ref(), *account)));
            }
        };
        let rows = u64::from(written.is_some());
        if let Some(value) = written {
            mine.writes.insert(row.clone(), value);
        }
        Some(Ok(v1::StatementResult {
            rows,
            ..v1::StatementResult::default()
        }))
    }

    pub(in crate::resource::memory) fn read(&self, shape: &Shape) -> v1::StatementResult {
        match shape {
            Shape::Select { row, account, .. } => rows(row, self.rows.get(row), *account),
            Shape::Insert { row, .. } | Shape::Add { row, .. } => {
                rows(row, self.rows.get(row), false)
            }
        }
    }

    pub(in crate::resource::memory) fn rest(
        &mut self,
        branch: BranchId,
        deadline: Instant,
        locks_reads: bool,
    ) {
        if let Some(branch) = self.branches.get_mut(&Xid::Ours(branch)) {
            branch.deadline = Some(deadline);
            branch.locks_reads = locks_reads;
        }
    }

    pub(in crate::resource::memory) fn locks_reads(&self, branch: BranchId) -> bool {
        self.branches
            .get(&Xid::Ours(branch))
            .is_some_and(|branch| branch.locks_reads)
    }

    /// An interactive branch of a process.
    pub(in crate::resource::memory) fn open(
        &self,
        branch: BranchId,
        process: u64,
    ) -> Result<(u64, Instant), Reason> {
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

    /// The look at the settings that real votes take.
    fn may_end(&mut self, branch: BranchId, connection: u64) -> Result<(), Stop> {
        self.active(branch, connection)?;
        self.problem()
            .map_or(Ok(()), |problem| Err(Stop::refused(problem)))
    }

    /// `XA END; XA PREPARE`, if the settings allow it.
    pub(in crate::resource::memory) fn prepare(
        &mut self,
        branch: BranchId,
        connection: u64,
    ) -> Result<(), Stop> {
        self.may_end(branch, connection)?;
        let (detaches, unsafely) = (self.rules.detaches, self.unsafe_settings);
        let mine = self.active(branch, connection)?;
        (mine.prepared, mine.unsafely) = (true, unsafely);
        if detaches {
            mine.attached = None;
        }
        self.touch();
        Ok(())
    }

    pub(in crate::resource::memory) fn commit_one_phase(
        &mut self,
        branch: BranchId,
        connection: u64,
    ) -> Result<(), Stop> {
        self.may_end(branch, connection)?;
        self.end(&Xid::Ours(branch), true);
        Ok(())
    }

    /// `XA COMMIT` or `XA ROLLBACK`. `None`: a backup makes it wait.
    pub(in crate::resource::memory) fn finish(
        &mut self,
        xid: Xid,
        process: u64,
        commit: bool,
    ) -> Option<Finished> {
        if !self.up || self.dead.contains(&process) {
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
        if let (Xid::Ours(branch), Some(ended)) = (xid, &ended)
            && (commit || ended.prepared)
        {
            self.past.insert(*branch, commit);
        }
        if let (Some(ended), true) = (ended, commit) {
            self.rows.extend(ended.writes);
            if let (Xid::Ours(branch), true) = (xid, ended.ledger) {
                let entry = Entry {
                    tombstone: false,
                    request: ended.request,
                    created: Instant::now(),
                };
                self.ledger.insert(*branch, entry);
            }
        }
    }

    /// Rolls an open branch back, if it is still that of this connection.
    pub(in crate::resource::memory) fn abandon(&mut self, branch: BranchId, connection: u64) {
        if self.active(branch, connection).is_ok() {
            self.end(&Xid::Ours(branch), false);
        }
    }

    /// Ends the connection of a running branch.
    pub(in crate::resource::memory) fn cancel(&mut self, branch: BranchId, process: u64) {
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

    /// A crash loses what was prepared under unsafe settings, and locks of what was only read.
    pub(in crate::resource::memory) fn lose_what_is_not_logged(&mut self) {
        let unsafely = self.branches.iter().filter(|(_, branch)| branch.unsafely);
        let lost: Vec<_> = unsafely.map(|(xid, _)| xid.clone()).collect();
        for xid in lost {
            self.end(&xid, false);
        }
        for Branch { locks, writes, .. } in self.branches.values_mut() {
            locks.retain(|lock| !matches!(lock, Lock::Row(row) if !writes.contains_key(row)));
        }
    }

    /// Closes the connections of a process, or all.
    pub(in crate::resource::memory) fn close_process(&mut self, process: Option<u64>) {
        self.kills += u64::from(process.is_none());
        self.close_where(|attached| process.is_none() || attached.process == process);
    }

    pub(in crate::resource::memory) fn close(&mut self, connection: u64) {
        self.close_where(|attached| attached.connection == connection);
    }

    pub(in crate::resource::memory) fn detach(&mut self, branch: BranchId) {
        let attached = self
            .branches
            .get(&Xid::Ours(branch))
            .and_then(|branch| branch.attached);
        if let Some(attached) = attached {
            self.close(attached.connection);
        }
    }

    pub(in crate::resource::memory) fn is_prepared(&self, branch: BranchId) -> bool {
        self.branches
            .get(&Xid::Ours(branch))
            .is_some_and(|branch| branch.prepared)
    }
}

fn rows(row: &Row, cell: Option<&Cell>, account: bool) -> v1::StatementResult {
    use v1::value::Kind;
    let Some(cell) = cell else {
        return v1::StatementResult::default();
    };
    let column = |name: &str, r#type: &str| v1::Column {
        name: name.into(),
        r#type: r#type.into(),
    };
    let number = Kind::Int64(cell.number);
    let (columns, kinds) = match (account, cell.texts.as_slice()) {
        (true, [currency, opened]) => (
            vec![
                column("id", "VARCHAR"),
                column("currency", "CHAR"),
                column("balance", "BIGINT"),
                column("opened", "DATETIME"),
            ],
            vec![
                Kind::String(row.1.clone()),
                Kind::String(currency.clone()),
                number,
                Kind::Datetime(opened.clone()),
            ],
        ),
        _ => (vec![column("v", "BIGINT")], vec![number]),
    };
    let values = kinds.into_iter().map(|kind| v1::Value { kind: Some(kind) });
    v1::StatementResult {
        rows: 1,
        last_insert_id: 0,
        columns,
        result: vec![v1::Row {
            values: values.collect(),
        }],
    }
}
