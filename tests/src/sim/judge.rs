//! What a run knows of every transaction, gathered from where it can be seen, and judged by the
//! invariants of `concord_core`.
//!
//! The wires tell what was sent, the log what is durable, the servers what became of branches, and
//! the clients what they were told. Nothing here asks a coordinator or a participant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use concord_core::id::{Bqual, BranchId, Gtrid};
use concord_core::invariant::{self, BranchFacts, Facts, Fate, Verdict, Violation};
use concord_participant::resource::LedgerEntry;
use concord_participant::resource::memory::server::Server;

use super::trace::Trace;

/// One thing that must not be.
#[derive(Clone, Debug)]
pub struct Broken {
    /// When, in microseconds.
    pub at_us: u64,
    /// What.
    pub text: String,
    /// Whose story tells more.
    pub gtrid: Option<Gtrid>,
}

#[derive(Debug, Default)]
struct Known {
    facts: BTreeMap<Gtrid, Facts>,
    /// Where each branch is, as an index of a server.
    places: BTreeMap<BranchId, usize>,
    /// Transactions by which each request was tried, as the wires saw them.
    attempts: BTreeMap<String, BTreeSet<Gtrid>>,
    broken: Vec<Broken>,
    /// Branches that an outsider finished, and whether by commit.
    by_hand: BTreeMap<BranchId, bool>,
    /// Servers whose data was replaced: what was there before is nobody's promise any more.
    restored: BTreeSet<usize>,
    /// Those of them whose data no operator has accepted yet.
    unaccepted: BTreeSet<usize>,
    /// Servers whose data the log knows. A coordinator that dies before it wrote that down has
    /// decided nothing with that data either: both are written in one batch.
    met: BTreeSet<usize>,
    /// Transactions whose End is durable, in the order of time.
    ended: Vec<Gtrid>,
}

/// Gathers and judges. Clones are the same judge.
#[derive(Clone, Debug)]
pub struct Judge {
    known: Arc<Mutex<Known>>,
    trace: Trace,
}

/// Violations that are kept: one that repeats itself says nothing new.
const BROKEN_MAX: usize = 20;

impl Judge {
    /// Knows nothing yet.
    pub fn new(trace: Trace) -> Self {
        Self {
            known: Arc::default(),
            trace,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a violation, whoever found it.
    pub fn broken(&self, gtrid: Option<Gtrid>, text: String) {
        self.trace
            .note("!!", gtrid, format_args!("VIOLATION {text}"));
        let mut known = self.lock();
        let same = |broken: &Broken| broken.gtrid == gtrid && broken.text == text;
        if known.broken.len() < BROKEN_MAX && !known.broken.iter().any(same) {
            let at_us = self.trace.now_us();
            known.broken.push(Broken { at_us, text, gtrid });
        }
    }

    fn hear(&self, gtrid: Gtrid, verdict: Verdict) {
        if let Err(Violation { invariant, text }) = verdict {
            self.broken(
                Some(gtrid),
                format!("{} {invariant}: {text}", invariant as u8),
            );
        }
    }

    /// Changes what is known of a transaction, and judges what can be judged at once.
    pub fn learn(&self, gtrid: Gtrid, change: impl FnOnce(&mut Facts)) {
        let facts = {
            let mut known = self.lock();
            let facts = known.facts.entry(gtrid).or_default();
            facts.gtrid = gtrid;
            change(facts);
            facts.clone()
        };
        self.hear(gtrid, invariant::one_decision(&facts));
        self.hear(gtrid, invariant::log_before_send(&facts));
        self.hear(gtrid, invariant::all_votes(&facts));
        self.hear(gtrid, invariant::not_forgotten_early(&facts));
    }

    /// Changes what is known of a branch.
    pub fn learn_branch(
        &self,
        branch: BranchId,
        place: Option<usize>,
        change: impl FnOnce(&mut BranchFacts),
    ) {
        if let Some(place) = place {
            self.lock().places.insert(branch, place);
        }
        self.learn(branch.gtrid, |facts| {
            change(facts.branches.entry(branch.bqual).or_default());
        });
    }

    /// A server is about to commit a branch that was prepared.
    pub fn commits(&self, branch: BranchId) {
        let known = self.lock();
        let facts = known.facts.get(&branch.gtrid);
        let excused = known.by_hand.contains_key(&branch)
            || facts.is_some_and(|facts| facts.durable || facts.interfered);
        drop(known);
        if !excused {
            let text = format!("5 LogBeforeSend: branch {branch} commits and nothing is durable");
            self.broken(Some(branch.gtrid), text);
        }
    }

    /// A request is tried by this transaction.
    pub fn attempt(&self, request: &str, gtrid: Gtrid) {
        let mut known = self.lock();
        let of_request = known.attempts.entry(request.to_owned()).or_default();
        of_request.insert(gtrid);
    }

    /// All transactions by which a request was tried.
    pub fn attempts(&self, request: &str) -> BTreeSet<Gtrid> {
        let known = self.lock();
        known.attempts.get(request).cloned().unwrap_or_default()
    }

    /// An outsider finished a branch.
    pub fn interfere(&self, branch: BranchId, commit: bool) {
        self.lock().by_hand.insert(branch, commit);
        self.learn(branch.gtrid, |facts| facts.interfered = true);
    }

    /// The data of a server was replaced by older data.
    pub fn restored(&self, place: usize) {
        let shows = self.lock().met.contains(&place);
        self.replaced(place, shows);
    }

    /// `shows`: the coordinator must see it.
    fn replaced(&self, place: usize, shows: bool) {
        let mut known = self.lock();
        known.restored.insert(place);
        if shows {
            known.unaccepted.insert(place);
        }
        let hurt: Vec<Gtrid> = known
            .places
            .iter()
            .filter(|(_, at)| **at == place)
            .map(|(branch, _)| branch.gtrid)
            .collect();
        for gtrid in hurt {
            if let Some(facts) = known.facts.get_mut(&gtrid) {
                facts.interfered = true;
            }
        }
    }

    /// The End of a transaction is durable.
    pub fn ended(&self, gtrid: Gtrid) {
        let mut known = self.lock();
        if !known.ended.contains(&gtrid) {
            known.ended.push(gtrid);
        }
    }

    /// The data of a server was replaced by older data that cannot be told from it, except by what
    /// it lacks: nobody may work with it when that shows, whatever a coordinator remembers. One
    /// that runs knows the last commits, one that recovers those of the highest numbers.
    pub fn went_back(&self, place: usize, server: &Server) {
        let known = self.lock();
        let lacks = |branch: BranchId| {
            let there = server.entry(branch) == LedgerEntry::Committed;
            !there && !server.prepared().contains(&branch)
        };
        let committed = |gtrid: &Gtrid| {
            let facts = known.facts.get(gtrid)?;
            let bound = facts.durable && !facts.one_phase && !facts.interfered && !facts.forgotten;
            let (branch, _) = known
                .places
                .range(
                    BranchId {
                        gtrid: *gtrid,
                        bqual: Bqual(0),
                    }..,
                )
                .take_while(|(branch, _)| branch.gtrid == *gtrid)
                .find(|(_, at)| **at == place)?;
            let left = facts.branches.get(&branch.bqual)?.left;
            (bound && !left).then_some(*branch)
        };
        let all: Vec<BranchId> = known.ended.iter().filter_map(committed).collect();
        let shows = all.last().is_some_and(|branch| lacks(*branch))
            && all.iter().max().is_some_and(|branch| lacks(*branch));
        drop(known);
        self.replaced(place, shows);
    }

    /// The newest transaction.
    pub fn newest(&self) -> Option<Gtrid> {
        self.lock().facts.keys().next_back().copied()
    }

    /// The log knows the data of a server.
    pub fn met(&self, place: usize) {
        self.lock().met.insert(place);
    }

    /// An operator accepted the data.
    pub fn accepted(&self, place: usize) {
        self.lock().unaccepted.remove(&place);
    }

    /// Whether the data of a server was replaced and nobody has accepted that.
    pub fn is_unaccepted(&self, place: usize) -> bool {
        self.lock().unaccepted.contains(&place)
    }

    /// Whether the data of a server was ever replaced.
    pub fn is_restored(&self, place: usize) -> bool {
        self.lock().restored.contains(&place)
    }

    /// What outsiders did.
    pub fn by_hand(&self) -> BTreeMap<BranchId, bool> {
        self.lock().by_hand.clone()
    }

    /// Whether a transaction's outcome was interfered with.
    pub fn is_interfered(&self, gtrid: Gtrid) -> bool {
        let known = self.lock();
        known
            .facts
            .get(&gtrid)
            .is_some_and(|facts| facts.interfered)
    }

    /// Whether any server's data was replaced.
    pub fn any_restored(&self) -> bool {
        !self.lock().restored.is_empty()
    }

    /// Looks at all servers, and judges every transaction.
    pub fn look(&self, servers: &[Arc<Server>], drained: bool) {
        let fates: Vec<_> = servers.iter().map(|server| server.view()).collect();
        let all = {
            let mut known = self.lock();
            let places = known.places.clone();
            for facts in known.facts.values_mut() {
                for (bqual, branch) in &mut facts.branches {
                    let id = BranchId {
                        gtrid: facts.gtrid,
                        bqual: *bqual,
                    };
                    let Some(place) = places.get(&id) else {
                        continue;
                    };
                    branch.fate = match fates[*place].past.get(&id) {
                        _ if fates[*place].prepared.contains(&id) => Fate::Prepared,
                        Some(true) => Fate::Committed,
                        Some(false) => Fate::RolledBack,
                        None if servers[*place].entry(id) == LedgerEntry::Tombstone => {
                            Fate::RolledBack
                        }
                        None => Fate::Open,
                    };
                }
            }
            known.facts.clone()
        };
        for (gtrid, facts) in &all {
            self.hear(*gtrid, invariant::check(facts));
            if drained {
                self.hear(*gtrid, invariant::drains(facts));
            }
        }
    }

    /// What is known of a transaction.
    pub fn facts(&self, gtrid: Gtrid) -> Option<Facts> {
        self.lock().facts.get(&gtrid).cloned()
    }

    /// All that is known.
    pub fn all(&self) -> BTreeMap<Gtrid, Facts> {
        self.lock().facts.clone()
    }

    /// The newest branch at a server.
    pub fn newest_at(&self, place: usize) -> Option<BranchId> {
        let known = self.lock();
        let here = known.places.iter().rev().find(|(_, at)| **at == place);
        here.map(|(branch, _)| *branch)
    }

    /// Where a branch is.
    pub fn place(&self, gtrid: Gtrid, bqual: Bqual) -> Option<usize> {
        self.lock().places.get(&BranchId { gtrid, bqual }).copied()
    }

    /// Everything that must not be and was.
    pub fn verdicts(&self) -> Vec<Broken> {
        self.lock().broken.clone()
    }
}
