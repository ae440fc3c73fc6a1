//! What each isolation level promises, and whether a history keeps it.
//!
//! Promises over all servers come from one fact: a branch becomes visible only after its
//! transaction is decided, and it is decided only after all its statements, on every server, have
//! run. So along every "read from" and "overwrote" the moments of decision grow, and no such chain
//! of transactions closes, whichever servers it runs over: that is READ COMMITTED as Adya defines
//! it. A snapshot is each server's own, and so is the promise made of it. Locks are held until the
//! outcome, and a SERIALIZABLE transaction gives none away before it has all: that is two-phase
//! locking over all servers, and its promise is one over all servers.

use std::collections::BTreeMap;
use std::time::Duration;

use adya::{Opts, Valid, Workload};

use super::history::{Txn, for_adya, of_server, split_snapshots};
use super::lists;

/// Time for the search of one strongly connected component; passing it is a failure.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Violations that are told with their proof; the others are counted.
const TOLD_MAX: usize = 5;

/// An isolation level that a transaction may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Level {
    /// READ COMMITTED.
    ReadCommitted,
    /// REPEATABLE READ.
    RepeatableRead,
    /// SERIALIZABLE.
    Serializable,
}

impl Level {
    /// All of them.
    pub const ALL: [Self; 3] = [
        Self::ReadCommitted,
        Self::RepeatableRead,
        Self::Serializable,
    ];

    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read-committed",
            Self::RepeatableRead => "repeatable-read",
            Self::Serializable => "serializable",
        }
    }

    /// What is promised of it.
    pub fn claims(self) -> &'static [Claim] {
        match self {
            Self::ReadCommitted => &READ_COMMITTED,
            Self::RepeatableRead => &REPEATABLE_READ,
            Self::Serializable => &SERIALIZABLE,
        }
    }
}

/// A part of a history that a promise is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All servers together.
    Whole,
    /// Each server by itself.
    EachServer,
    /// The snapshots of each server by itself, see [`split_snapshots`].
    EachSnapshot,
}

/// A promise: this part of every history satisfies this model.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Which part.
    pub part: Part,
    /// A consistency model, by the name that `adya` has for it.
    pub model: &'static str,
}

const READ_COMMITTED: [Claim; 2] = [
    claim(Part::Whole, "strong-read-committed"),
    claim(Part::EachServer, "strong-read-committed"),
];
const REPEATABLE_READ: [Claim; 3] = [
    claim(Part::Whole, "strong-read-committed"),
    claim(Part::EachServer, "strong-read-committed"),
    claim(Part::EachSnapshot, "strict-serializable"),
];
const SERIALIZABLE: [Claim; 2] = [
    claim(Part::Whole, "strict-serializable"),
    claim(Part::EachServer, "strict-serializable"),
];

const fn claim(part: Part, model: &'static str) -> Claim {
    Claim { part, model }
}

/// A promise that a history breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The kind of anomaly, or the name of the broken rule.
    pub kind: String,
    /// What shows it.
    pub proof: String,
}

/// What was found in a history.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Anomalies that the level does not promise to be without, by kind. They tell that the
    /// history was busy enough for the promises to mean something.
    pub allowed: BTreeMap<String, usize>,
    /// Broken promises, by kind.
    pub broken: BTreeMap<String, usize>,
    /// Some of them, with their proofs.
    pub told: Vec<Violation>,
}

impl Findings {
    /// Adds what was found elsewhere.
    pub fn extend(&mut self, other: Self) {
        for (kind, count) in other.allowed {
            *self.allowed.entry(kind).or_default() += count;
        }
        for (kind, count) in other.broken {
            *self.broken.entry(kind).or_default() += count;
        }
        let room = TOLD_MAX.saturating_sub(self.told.len());
        self.told.extend(other.told.into_iter().take(room));
    }

    /// Number of broken promises.
    pub fn violations(&self) -> usize {
        self.broken.values().sum()
    }

    fn broke(&mut self, violation: Violation) {
        *self.broken.entry(violation.kind.clone()).or_default() += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(violation);
        }
    }
}

/// Judges the transactions of one set of lists, which no other transaction touched. The last ones
/// are reads of all lists after everything had ended.
pub fn judge(txns: &[Txn], level: Level, servers: u16) -> Findings {
    let mut findings = Findings::default();
    for violation in lists::check(txns, level) {
        findings.broke(violation);
    }
    for claim in level.claims() {
        for part in parts(txns, claim.part, servers) {
            for violation in breaks(&part, claim) {
                findings.broke(violation);
            }
        }
    }
    if level != Level::Serializable {
        findings.allowed = anomalies(txns, "serializable").1;
    }
    findings
}

fn parts(txns: &[Txn], part: Part, servers: u16) -> Vec<Vec<Txn>> {
    match part {
        Part::Whole => vec![txns.to_vec()],
        Part::EachServer => (1..=servers)
            .map(|server| of_server(txns, server, servers))
            .collect(),
        Part::EachSnapshot => (1..=servers)
            .map(|server| split_snapshots(&of_server(txns, server, servers)))
            .collect(),
    }
}

/// How a part of a history breaks a promise. That nothing can be inferred breaks it too: it would
/// be a promise that nobody has looked at.
fn breaks(txns: &[Txn], claim: &Claim) -> Vec<Violation> {
    let (verdict, kinds) = anomalies(txns, claim.model);
    if verdict.valid == Valid::True {
        return Vec::new();
    }
    let proof = |kind: &str| {
        let shown = verdict.anomalies.get(kind).and_then(|all| all.first());
        let shown = shown.map_or("", |anomaly| anomaly.explanation.as_str());
        format!("{:?} is not {}: {shown}", claim.part, claim.model)
    };
    kinds
        .keys()
        .map(|kind| Violation {
            kind: kind.clone(),
            proof: proof(kind),
        })
        .collect()
}

fn anomalies(txns: &[Txn], model: &str) -> (adya::Report, BTreeMap<String, usize>) {
    let options = Opts {
        models: vec![model.to_owned()],
        timeout: SEARCH_TIMEOUT,
        ..Opts::default()
    };
    let report = adya::check(&for_adya(txns), Workload::ListAppend, &options);
    let kinds = report
        .anomalies
        .iter()
        .map(|(kind, found)| (kind.clone(), found.len()))
        .collect();
    (report, kinds)
}
