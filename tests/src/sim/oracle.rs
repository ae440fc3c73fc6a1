//! The end of a run: what the servers hold, against what the clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use concord_coordinator::log::EmbeddedLog;
use concord_core::id::{BranchId, Gtrid};
use concord_core::invariant::{self, Fate, Violation};
use concord_proto::convert::text::parse_gtrid;

use super::client::{
    ACCOUNTS_TABLE, COUNTERS, EFFECTS, JOURNAL_TABLE, MONEY, MONEY_TABLE, ROWS, Record,
};
use super::world::{CLUSTER, COORDINATOR, World};

/// How often and where a label took effect.
type Effects = BTreeMap<String, BTreeMap<usize, u64>>;

impl World {
    /// Judges everything, once all is healed and quiet.
    pub(super) fn judge_end(&mut self) {
        self.judge.look(&self.servers, true);
        let damaged = self.damaged();
        self.check_reports(&damaged);
        self.check_false_alarms();
        self.check_foreign();
        self.check_effects(&damaged);
        if damaged.is_empty() && !self.judge.any_restored() {
            self.check_sums();
        }
        self.check_log();
    }

    /// Transactions that were decided to be committed, and of which an outsider rolled a branch
    /// back; unless a Prepare that came once more brought it back, and it committed with the rest.
    fn damaged(&self) -> BTreeSet<Gtrid> {
        let by_hand = self.judge.by_hand();
        let facts = self.judge.all();
        by_hand
            .iter()
            .filter(|(branch, commit)| {
                let Some(facts) = facts.get(&branch.gtrid) else {
                    return false;
                };
                let last = facts.branches.get(&branch.bqual).map(|found| found.fate);
                let gone = last != Some(Fate::Committed) || self.reports(**branch);
                !**commit && facts.durable && !facts.one_phase && gone
            })
            .map(|(branch, _)| branch.gtrid)
            .collect()
    }

    /// Whether the server where a branch ran keeps a report of its damage.
    fn reports(&self, branch: BranchId) -> bool {
        let Some(place) = self.judge.place(branch.gtrid, branch.bqual) else {
            return false;
        };
        self.servers[place].view().damage.iter().any(|report| {
            report.gtrid == branch.gtrid.to_string() && report.bqual == branch.bqual.0
        })
    }

    /// What an outsider broke is reported where it happened.
    fn check_reports(&self, damaged: &BTreeSet<Gtrid>) {
        for branch in self.judge.by_hand().keys() {
            let Some(place) = self.judge.place(branch.gtrid, branch.bqual) else {
                continue;
            };
            if !damaged.contains(&branch.gtrid) || self.judge.is_restored(place) {
                continue;
            }
            if !self.reports(*branch) {
                let text = format!("branch {branch} was rolled back by hand, and nobody says so");
                self.judge.broken(Some(branch.gtrid), text);
            }
        }
    }

    /// Nobody reports what nobody did.
    fn check_false_alarms(&self) {
        for server in &self.servers {
            for report in server.view().damage {
                let gtrid = parse_gtrid(&report.gtrid);
                if !gtrid.is_some_and(|gtrid| self.judge.is_interfered(gtrid)) {
                    let text = format!("damage is reported that nobody did: {report:?}");
                    self.judge.broken(gtrid, text);
                }
            }
        }
    }

    fn check_foreign(&self) {
        for (place, name) in &self.foreign {
            if !self.servers[*place].view().foreign.contains(name) {
                let text = format!("the stranger's branch {name} is gone");
                self.judge.broken(None, text);
            }
        }
    }

    fn effects(&self) -> (Effects, BTreeMap<String, BTreeSet<Gtrid>>) {
        let mut effects: Effects = BTreeMap::new();
        let mut transfers: BTreeMap<String, BTreeSet<Gtrid>> = BTreeMap::new();
        for (place, server) in self.servers.iter().enumerate() {
            for (label, cell) in server.table(EFFECTS) {
                let count = u64::try_from(cell.number).unwrap_or(u64::MAX);
                effects.entry(label).or_default().insert(place, count);
            }
            let mut entries: BTreeMap<String, BTreeSet<Gtrid>> = BTreeMap::new();
            for (key, cell) in server.table(JOURNAL_TABLE) {
                let gtrid = key.split('/').next().and_then(parse_gtrid);
                if let (Some(gtrid), Some(label)) = (gtrid, cell.texts.get(1)) {
                    entries.entry(label.clone()).or_default().insert(gtrid);
                    transfers.entry(label.clone()).or_default().insert(gtrid);
                }
            }
            for (label, gtrids) in entries {
                let count = gtrids.len() as u64;
                effects.entry(label).or_default().insert(place, count);
            }
        }
        (effects, transfers)
    }

    /// Every operation took effect on all of its servers or on none, and as often as its client
    /// was told.
    fn check_effects(&self, damaged: &BTreeSet<Gtrid>) {
        let (effects, transfers) = self.effects();
        for (label, record) in self.shared.book.all() {
            let none = BTreeMap::new();
            let seen = effects.get(&label).unwrap_or(&none);
            let counts: BTreeSet<u64> = record
                .servers
                .iter()
                .filter(|place| !self.judge.is_restored(**place))
                .map(|place| seen.get(place).copied().unwrap_or(0))
                .collect();
            let gtrid = transfers.get(&label).and_then(|all| all.first().copied());
            let gtrid = gtrid.or(record.gtrid);
            if counts.len() > 1 {
                // Only an operation of which an outsider broke a transaction may be torn.
                let mut tried = self.judge.attempts(&label);
                tried.extend(transfers.get(&label).into_iter().flatten());
                tried.extend(record.gtrid);
                if tried.is_disjoint(damaged) && !self.judge.any_restored() {
                    let text = format!("1 Atomicity: {label} ({record:?}) took effect {seen:?}");
                    self.judge.broken(gtrid, text);
                }
                continue;
            }
            let Some(count) = counts.first() else {
                continue;
            };
            self.check_told(&label, &record, *count, gtrid, damaged);
        }
    }

    fn check_told(
        &self,
        label: &str,
        record: &Record,
        count: u64,
        gtrid: Option<Gtrid>,
        damaged: &BTreeSet<Gtrid>,
    ) {
        let excused =
            gtrid.is_some_and(|gtrid| damaged.contains(&gtrid) || self.judge.is_interfered(gtrid));
        if excused {
            return;
        }
        if let Err(Violation { invariant, text }) =
            invariant::exactly_once(&label, record.told, count)
        {
            let text = format!("{} {invariant}: {text}", invariant as u8);
            self.judge.broken(gtrid, text);
        }
    }

    /// Money is what it was, and what is to be equal is equal.
    fn check_sums(&self) {
        let count = self.servers.len() as i128;
        let whole = i128::from(MONEY) * count * ROWS as i128;
        let bank = i128::from(MONEY) * self.shared.accounts.len() as i128;
        let sum = |table: &str| self.servers.iter().map(|server| server.sum(table)).sum();
        let totals = |money: i128, bank: i128, journal: i128| {
            BTreeMap::from([
                ("money".to_owned(), money),
                ("bank".to_owned(), bank),
                ("journal".to_owned(), journal),
            ])
        };
        let before = totals(whole, bank, 0);
        let now = totals(sum(MONEY_TABLE), sum(ACCOUNTS_TABLE), sum(JOURNAL_TABLE));
        if let Err(Violation { invariant, text }) = invariant::conservation(&before, &now) {
            let text = format!("{} {invariant}: {text}", invariant as u8);
            self.judge.broken(None, text);
        }
        let counters: BTreeSet<_> = self
            .servers
            .iter()
            .map(|server| {
                let rows = server.table(COUNTERS).into_iter();
                rows.map(|(key, cell)| (key, cell.number))
                    .collect::<Vec<_>>()
            })
            .collect();
        if counters.len() > 1 {
            let text = format!("1 Atomicity: counters differ: {counters:?}");
            self.judge.broken(None, text);
        }
    }

    /// The log, after a last loss of power, still holds everything that it acknowledged.
    fn check_log(&mut self) {
        if self.hosts[COORDINATOR].is_running() {
            self.kill(COORDINATOR, true);
        }
        let held = Box::new(self.disk.hold());
        let path = Path::new("the simulated disk");
        let opened = EmbeddedLog::open_with_backend(held, path, CLUSTER)
            .and_then(|log| self.watch.over(log));
        if let Err(error) = opened {
            self.judge.broken(
                None,
                format!("the log cannot be opened at the end: {error}"),
            );
        }
        self.disk.freeze(false);
    }
}
