//! Many seeds: run on several threads, added up, and told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use concord_daemon::crash::CrashPoint;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::plan::{IN_DOUBT_P99_MS, KINDS, Plan};
use super::run::{Report, run};

/// Lines of a story that are shown.
const STORY_LINES: usize = 160;
/// One audit in so many seeds must have seen all of the money.
const AUDITS_EVERY: u64 = 2;
/// Branches that must have been in doubt, for one in a hundred of them to mean anything.
const IN_DOUBT_MIN: u64 = 100;
/// Failed seeds after which no more are begun: more of the same tells nothing.
const FAILED_MAX: usize = 10;

/// One run to make.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its seed.
    pub seed: u64,
    /// Its crash points.
    pub crashes: Vec<(CrashPoint, u64)>,
}

impl Job {
    /// The plan of this run.
    pub fn plan(&self) -> Plan {
        Plan::crashing(self.seed, &self.crashes)
    }

    /// The command that makes it again.
    pub fn command(&self) -> String {
        let profile = if cfg!(debug_assertions) {
            ""
        } else {
            "--release "
        };
        let mut command = format!(
            "cargo run {profile}-p concord-tests --bin sim -- --seeds 1 --from {}",
            self.seed
        );
        for ((point, times), flag) in self.crashes.iter().zip(["--crash-at", "--then"]) {
            // Writing to a String cannot fail.
            let _ = write!(command, " {flag} {}:{times}", point.name());
        }
        match std::env::var("CONCORD_PLANTED_BUG") {
            Ok(bug) => format!("CONCORD_PLANTED_BUG={bug} {command}"),
            Err(_) => command,
        }
    }
}

/// How many runs at once, and how they are told.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Threads.
    pub jobs: usize,
    /// One line a run.
    pub verbose: bool,
    /// Every run is made twice, and must be the same.
    pub twice: bool,
    /// Longest real time of one run.
    pub timeout: Duration,
}

/// What many runs came to.
#[derive(Debug)]
pub struct Tally {
    /// Runs.
    pub seeds: u64,
    /// Violations.
    pub violations: u64,
    /// Runs with a violation: their commands.
    pub failed: Vec<String>,
    committed: u64,
    refused: u64,
    unknown: u64,
    decided: u64,
    one_phase: u64,
    forgotten: u64,
    audits: u64,
    starts: u64,
    events: u64,
    digest: u64,
    messages: (u64, u64, u64),
    simulated_us: u64,
    faults: BTreeMap<&'static str, u64>,
    in_doubt: Histogram<u64>,
    /// Sequences of points that were all reached in some run.
    reached: BTreeSet<Vec<CrashPoint>>,
    took: Duration,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            seeds: 0,
            violations: 0,
            failed: Vec::new(),
            committed: 0,
            refused: 0,
            unknown: 0,
            decided: 0,
            one_phase: 0,
            forgotten: 0,
            audits: 0,
            starts: 0,
            events: 0,
            digest: 0,
            messages: (0, 0, 0),
            simulated_us: 0,
            faults: BTreeMap::new(),
            in_doubt: Histogram::new(3)?,
            reached: BTreeSet::new(),
            took: Duration::ZERO,
        })
    }

    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.violations += report.broken.len() as u64;
        self.committed += report.committed;
        self.refused += report.refused;
        self.unknown += report.unknown;
        self.decided += report.decided;
        self.one_phase += report.one_phase;
        self.forgotten += report.forgotten;
        self.audits += report.audits;
        self.starts += report.starts;
        self.events += report.events;
        self.digest ^= report.hash;
        self.simulated_us += report.simulated_us;
        let (doubled, delayed, old) = report.messages;
        let before = self.messages;
        self.messages = (before.0 + doubled, before.1 + delayed, before.2 + old);
        for (kind, count) in &report.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for us in &report.in_doubt_us {
            self.in_doubt.saturating_record(us / 1_000);
        }
        if !report.points.is_empty() {
            self.reached.insert(report.points.clone());
        }
    }

    /// Sequences of crash points that were reached to their end.
    pub fn reached(&self, length: usize) -> usize {
        self.reached
            .iter()
            .filter(|all| all.len() == length)
            .count()
    }

    /// Names of the crash points at which a process died.
    pub fn points(&self) -> BTreeSet<&'static str> {
        let points = self.reached.iter().flatten();
        points.map(|point| point.name()).collect()
    }

    /// Crash points at which a process died as the first ones of their runs.
    pub fn firsts(&self) -> BTreeSet<CrashPoint> {
        let firsts = self.reached.iter().filter_map(|points| points.first());
        firsts.copied().collect()
    }

    /// Runs in which hardly anything was committed prove nothing.
    pub fn too_few_commits(&self) -> Option<String> {
        let few = self.committed < self.seeds * 5;
        few.then(|| format!("{} commits in {} seeds", self.committed, self.seeds))
    }

    /// What is missing, when so many seeds must have shown it.
    pub fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = self.too_few_commits().into_iter().collect();
        if self.audits < self.seeds / AUDITS_EVERY {
            missing.push(format!(
                "{} audits saw everything, in {} seeds",
                self.audits, self.seeds
            ));
        }
        let wanted = self.seeds / 200;
        for kind in KINDS {
            let count = self.faults.get(kind).copied().unwrap_or(0);
            if count < wanted {
                missing.push(format!("{kind}: {count} times, not {wanted}"));
            }
        }
        missing
    }

    /// What took too long in all runs together. The longest time of each branch is judged in its
    /// own run.
    pub fn late(&self) -> Option<String> {
        let (_, p99, _) = self.doubt();
        let late = self.in_doubt.len() >= IN_DOUBT_MIN && p99 > IN_DOUBT_P99_MS;
        late.then(|| {
            format!(
                "8 Drains: after everything healed 99 of 100 branches left doubt in {p99} ms, not \
                 {IN_DOUBT_P99_MS}"
            )
        })
    }

    /// In words.
    pub fn tell(&self) {
        let hours = Duration::from_micros(self.simulated_us).as_secs_f64() / 3_600.0;
        println!(
            "{} seeds, {:.1} simulated hours in {:.1} s: {} operations committed, {} refused, {} \
             unknown; {} decisions, {} in one phase, {} forgotten; {} whole audits; {} starts of \
             the coordinator",
            self.seeds,
            hours,
            self.took.as_secs_f64(),
            self.committed,
            self.refused,
            self.unknown,
            self.decided,
            self.one_phase,
            self.forgotten,
            self.audits,
            self.starts,
        );
        let (doubled, delayed, old) = self.messages;
        println!("messages: {doubled} doubled, {delayed} delayed, {old} brought back");
        println!("faults:");
        for (kind, count) in &self.faults {
            println!("  {count:8} {kind}");
        }
        let (p50, p99, max) = self.doubt();
        println!(
            "in doubt after everything healed: {} branches, p50 {p50} ms, p99 {p99} ms, \
             max {max} ms",
            self.in_doubt.len()
        );
        println!("violations: {}", self.violations);
    }

    fn doubt(&self) -> (u64, u64, u64) {
        let at = |quantile| self.in_doubt.value_at_quantile(quantile);
        (at(0.5), at(0.99), self.in_doubt.max())
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let (p50, p99, max) = self.doubt();
        let (doubled, delayed, old) = self.messages;
        json!({
            "tool": "sim",
            "seeds": self.seeds,
            "violations": self.violations,
            "failed": self.failed,
            "late": self.late(),
            "committed": self.committed,
            "refused": self.refused,
            "unknown": self.unknown,
            "decisions": self.decided,
            "one_phase": self.one_phase,
            "forgotten": self.forgotten,
            "audits": self.audits,
            "coordinator_starts": self.starts,
            "events": self.events,
            // Of all events of all seeds, in whatever order the seeds came to an end.
            "digest": format!("{:016x}", self.digest),
            "simulated_s": self.simulated_us / 1_000_000,
            "seconds": self.took.as_secs_f64(),
            "messages": {"doubled": doubled, "delayed": delayed, "old": old},
            "faults": self.faults,
            "in_doubt_ms": {"count": self.in_doubt.len(), "p50": p50, "p99": p99, "max": max},
            "pairs_reached": self.reached(2),
            "points": self.points(),
        })
    }
}

/// Makes all runs; stops early when too many failed.
pub fn run_all(all: &[Job], manner: Manner) -> anyhow::Result<Tally> {
    let began = Instant::now();
    let (next, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (results, inbox) = mpsc::channel();
    let mut tally = Tally::new()?;
    let overdue = std::thread::scope(|scope| {
        for _ in 0..manner.jobs.max(1) {
            let (results, next, enough) = (results.clone(), &next, &enough);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = all.get(index) else { return };
                    // Nobody listens any more when a run took too long.
                    let _ = results.send((index, None));
                    let report = run(job.plan());
                    let again = manner.twice.then(|| run(job.plan()).hash);
                    if results.send((index, Some((report, again)))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        collect(all, manner, &inbox, &mut tally, &enough)
    });
    tally.took = began.elapsed();
    overdue?;
    Ok(tally)
}

type Told = (usize, Option<(Report, Option<u64>)>);

fn collect(
    all: &[Job],
    manner: Manner,
    inbox: &mpsc::Receiver<Told>,
    tally: &mut Tally,
    enough: &AtomicBool,
) -> anyhow::Result<()> {
    let mut running: BTreeMap<usize, Instant> = BTreeMap::new();
    loop {
        match inbox.recv_timeout(Duration::from_secs(1)) {
            Ok((index, None)) => {
                running.insert(index, Instant::now());
            }
            Ok((index, Some((report, again)))) => {
                running.remove(&index);
                finished(&all[index], &report, again, manner, tally);
                if tally.failed.len() >= FAILED_MAX {
                    enough.store(true, Ordering::Relaxed);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        let late = running
            .iter()
            .find(|(_, since)| since.elapsed() > manner.timeout);
        if let Some((index, _)) = late {
            // A thread cannot be stopped from outside; the process can.
            eprintln!(
                "a run took longer than {:?}: {}",
                manner.timeout,
                all[*index].command()
            );
            std::process::exit(1);
        }
    }
}

fn finished(job: &Job, report: &Report, again: Option<u64>, manner: Manner, tally: &mut Tally) {
    tally.add(report);
    if manner.verbose {
        let (committed, refused, unknown) = (report.committed, report.refused, report.unknown);
        println!(
            "seed {} hash {:016x} events {} committed {committed} refused {refused} unknown \
             {unknown} faults {} violations {}",
            report.seed,
            report.hash,
            report.events,
            report.faults.values().sum::<u64>(),
            report.broken.len(),
        );
    }
    let differs = again.filter(|again| *again != report.hash);
    if let Some(again) = differs {
        tally.violations += 1;
        eprintln!(
            "seed {} gave {:016x}, then {again:016x}",
            report.seed, report.hash
        );
    }
    if differs.is_none() && report.broken.is_empty() {
        return;
    }
    tally.failed.push(job.command());
    for broken in &report.broken {
        let (s, us) = (broken.at_us / 1_000_000, broken.at_us % 1_000_000);
        eprintln!("seed {} at {s}.{us:06} s: {}", report.seed, broken.text);
    }
    if let Some(story) = report.stories.first().filter(|_| tally.failed.len() <= 3) {
        eprintln!("the story of the first transaction that broke:");
        let skipped = story.len().saturating_sub(STORY_LINES);
        if skipped > 0 {
            eprintln!("  ({skipped} lines before these)");
        }
        for event in &story[skipped..] {
            eprintln!("  {event}");
        }
    }
    eprintln!("again: {}", job.command());
}
