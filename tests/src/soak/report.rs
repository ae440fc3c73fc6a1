//! What a run did and found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use concord_client::local::binary::ServerBinary;
use serde_json::{Value, json};

use super::drain::{Drained, percentile};
use super::{IN_DOUBT_MAX_MS, IN_DOUBT_P99_MS, Plan, counted};
use crate::proxy::packet::Verb;

/// What a run did and found.
#[derive(Clone, Debug)]
pub struct Report {
    /// On which server.
    pub server: String,
    /// As it was asked for.
    pub minutes: f64,
    /// As it was asked for.
    pub seed: u64,
    /// Rounds.
    pub rounds: u64,
    /// From the start of the cluster to the end.
    pub seconds: u64,
    /// Operations whose client was told that they are done.
    pub commits: u64,
    /// Operations whose client was told that they are not.
    pub aborts: u64,
    /// Operations whose client does not know, or was killed.
    pub unknowns: u64,
    /// Why operations were refused.
    pub reasons: BTreeMap<String, u64>,
    /// Locked reads of everything that added up.
    pub reads: u64,
    /// Locked reads that a server did not outlive.
    pub reads_left_out: u64,
    /// Locked reads that were refused.
    pub reads_refused: u64,
    /// Kills of coordinator and participants.
    pub daemon_kills: u64,
    /// Kills of servers.
    pub server_kills: u64,
    /// Kills of clients.
    pub client_kills: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Faults that began while another one lasted.
    pub overlaps: u64,
    in_doubt: Vec<Duration>,
    after_faults: Vec<Duration>,
    up_after: Vec<Duration>,
    settled_after: Vec<Duration>,
    /// What must not be.
    pub violations: Vec<String>,
}

impl Report {
    pub(super) fn new(server: &ServerBinary, plan: &Plan) -> Self {
        Self {
            server: format!("{} {}", server.kind(), server.version()),
            minutes: plan.minutes,
            seed: plan.seed,
            rounds: 0,
            seconds: 0,
            commits: 0,
            aborts: 0,
            unknowns: 0,
            reasons: BTreeMap::new(),
            reads: 0,
            reads_left_out: 0,
            reads_refused: 0,
            daemon_kills: 0,
            server_kills: 0,
            client_kills: 0,
            faults: BTreeMap::new(),
            overlaps: 0,
            in_doubt: Vec::new(),
            after_faults: Vec::new(),
            up_after: Vec::new(),
            settled_after: Vec::new(),
            violations: Vec::new(),
        }
    }

    pub(super) fn drained(&mut self, drained: Drained) {
        self.in_doubt.extend(drained.after_up);
        self.after_faults.extend(drained.after_faults);
        self.up_after.push(drained.up_after);
        self.settled_after.push(drained.settled_after);
    }

    /// Branches that were in doubt for too long.
    pub(super) fn doubts(&self) -> Vec<String> {
        let mut times = self.in_doubt.clone();
        let limits = [
            (0.99, "99 of 100 branches", IN_DOUBT_P99_MS),
            (1.0, "every branch", IN_DOUBT_MAX_MS),
        ];
        let broken = limits.into_iter().filter_map(|(share, which, limit)| {
            let took = percentile(&mut times, share);
            let told =
                format!("after everything healed {which} left doubt in {took} ms, not {limit}");
            (took > limit).then_some(told)
        });
        broken.collect()
    }

    /// What there was too little of.
    pub(super) fn too_little(&self, plan: &Plan) -> Vec<String> {
        let least = plan.least;
        let mut missing = Vec::new();
        let mut want = |what: &str, found: u64, a_minute: f64| {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small and positive
            let wanted = (a_minute * plan.minutes).floor().max(1.0) as u64;
            if found < wanted {
                missing.push(format!("only {found} {what}, and {wanted} were asked for"));
            }
        };
        want("commits", self.commits, least.commits);
        want("kills of daemons", self.daemon_kills, least.daemon_kills);
        want("kills of servers", self.server_kills, least.server_kills);
        want("kills of clients", self.client_kills, least.client_kills);
        want("locked reads", self.reads, least.each_fault);
        want("overlapping faults", self.overlaps, least.daemon_kills);
        for verb in Verb::ALL {
            let begin = format!("cut {verb} ");
            let places = ["before", "after", "within"].map(|place| format!("{begin}{place}"));
            let at = |name: &str| places.iter().any(|place| name.starts_with(place));
            let found = self.faults.iter().filter(|(name, _)| at(name));
            want(&begin, found.map(|(_, count)| count).sum(), least.each_verb);
        }
        for (name, count) in &self.faults {
            if !name.starts_with("cut XA") {
                want(&format!("of {name:?}"), *count, least.each_fault);
            }
        }
        missing
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let times = |times: &[Duration]| {
            let mut times = times.to_vec();
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(&mut times, share));
            json!({"count": times.len(), "p50": p50, "p99": p99, "max": max})
        };
        json!({
            "tool": "soak",
            "server": self.server,
            "minutes": self.minutes,
            "seed": self.seed,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "commits": self.commits,
            "aborts": self.aborts,
            "unknowns": self.unknowns,
            "reasons": self.reasons,
            "locked_reads": self.reads,
            "daemon_kills": self.daemon_kills,
            "server_kills": self.server_kills,
            "client_kills": self.client_kills,
            "faults": self.faults,
            "overlaps": self.overlaps,
            "in_doubt_ms": times(&self.in_doubt),
            "in_doubt_after_last_fault_ms": times(&self.after_faults),
            "settled_after_up_ms": times(&self.settled_after),
            "up_after_ms": times(&self.up_after),
            "violations": self.violations.len(),
            "violation": self.violations,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |times: &[Duration]| {
            let mut times = times.to_vec();
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(&mut times, share));
            format!("p50 {p50} ms, p99 {p99} ms, max {max} ms")
        };
        writeln!(
            f,
            "{}, seed {}: {} rounds in {} s",
            self.server, self.seed, self.rounds, self.seconds
        )?;
        writeln!(
            f,
            "operations   {} commits, {} aborts, {} unknown",
            self.commits, self.aborts, self.unknowns
        )?;
        writeln!(f, "refused      {}", counted(&self.reasons))?;
        writeln!(
            f,
            "locked reads {} sound, {} left out, {} refused",
            self.reads, self.reads_left_out, self.reads_refused
        )?;
        writeln!(
            f,
            "kills        {} of daemons, {} of servers, {} of clients",
            self.daemon_kills, self.server_kills, self.client_kills
        )?;
        writeln!(f, "faults       {}", counted(&self.faults))?;
        writeln!(f, "overlapping  {}", self.overlaps)?;
        writeln!(
            f,
            "in doubt     {} branches since everything was up again: {}",
            self.in_doubt.len(),
            line(&self.in_doubt)
        )?;
        writeln!(
            f,
            "             {} branches when the last fault ended, restarts included: {}",
            self.after_faults.len(),
            line(&self.after_faults)
        )?;
        write!(f, "violations   {}", self.violations.len())?;
        self.violations
            .iter()
            .try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}
