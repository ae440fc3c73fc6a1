//! The deterministic simulation from the command line: seeds, crash points, pairs of them.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use concord_daemon::crash::CrashPoint;
use concord_tests::sim::crash::is_here;
use concord_tests::sim::run::events;
use concord_tests::sim::tally::{Job, Manner, Tally, run_all};

/// Runs with which a first point of pairs must have been reached, however rare it is.
const FIRST_RUNS: u64 = 30;
/// The same of points that nothing simple leads to: all slices together come there.
const RARE: &[CrashPoint] = &[
    CrashPoint::ParticipantDetachBefore,
    CrashPoint::ParticipantDetachAfter,
];
const RARE_RUNS: u64 = 400;
/// Of a hundred pairs of crash points both must have been reached in so many, and of how many
/// pairs that is asked.
const BOTH_PERCENT: u64 = 50;
const PAIRS_MIN: u64 = 100;

/// Simulates the coordinator and the participants, as they ship, on a simulated network, disk and
/// servers: faults that overlap, clients that write down what they were told, and judges.
///
/// One seed is one world; the same seed gives the same events. Exit codes: 0 all is as it must be,
/// 1 something is not (or too little happened), 2 wrong usage.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  cargo run --release -p concord-tests --bin sim -- --seeds 50000
  cargo run --release -p concord-tests --bin sim -- --seeds 1 --from 39 --trace
  cargo run --release -p concord-tests --bin sim -- --check-determinism --seeds 200
  cargo run --release -p concord-tests --bin sim -- --crash-at log.fold.after-commit --seeds 50
  cargo run --release -p concord-tests --bin sim -- --pairs --seeds-per-pair 10"
)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Runs at once; default: one for each processor.
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    /// One line a seed.
    #[arg(long)]
    verbose: bool,
    /// Ends with one JSON object on the last line.
    #[arg(long)]
    json: bool,
    /// Prints every event of every seed.
    #[arg(long)]
    trace: bool,
    /// Runs every seed twice and compares all of its events.
    #[arg(long)]
    check_determinism: bool,
    /// Longest real time of one run, in seconds.
    #[arg(long, default_value_t = 120)]
    seed_timeout: u64,
    /// The process that reaches this crash point (for the Nth time) is killed there.
    #[arg(long, value_name = "POINT[:N]", value_parser = point)]
    crash_at: Option<(CrashPoint, u64)>,
    /// And after that, the one that reaches this point.
    #[arg(long, value_name = "POINT[:N]", value_parser = point, requires = "crash_at")]
    then: Option<(CrashPoint, u64)>,
    /// All ordered pairs of the crash points that a simulation has.
    #[arg(long, conflicts_with_all = ["crash_at", "then", "seeds"])]
    pairs: bool,
    /// Seeds for each pair.
    #[arg(long, default_value_t = 1)]
    seeds_per_pair: u64,
    /// With --pairs: every so many-th pair only.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// With --every: from this pair on.
    #[arg(long, default_value_t = 0, requires = "every")]
    offset: usize,
}

/// `name` or `name:3`.
fn point(text: &str) -> Result<(CrashPoint, u64), String> {
    let (name, times) = text.split_once(':').unwrap_or((text, "1"));
    let times = times.parse().map_err(|_| format!("{times} is no number"))?;
    let found = CrashPoint::of_name(name);
    found.map(|point| (point, times)).ok_or_else(|| {
        let all: Vec<_> = CrashPoint::ALL.iter().map(|point| point.name()).collect();
        format!(
            "there is no crash point {name}; there are {}",
            all.join(", ")
        )
    })
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    let jobs = jobs(args);
    if args.trace {
        return Ok(trace(&jobs));
    }
    let manner = Manner {
        jobs: match args.jobs {
            Some(jobs) => jobs.get(),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        },
        verbose: args.verbose,
        twice: args.check_determinism,
        timeout: Duration::from_secs(args.seed_timeout),
    };
    let tally = run_all(&jobs, manner).context("the runs could not be made")?;
    Ok(told(args, &jobs, &tally))
}

/// The runs to make.
fn jobs(args: &Args) -> Vec<Job> {
    if args.pairs {
        return pairs(args);
    }
    let crashes: Vec<_> = args.crash_at.into_iter().chain(args.then).collect();
    let seeds = args.from..args.from.saturating_add(args.seeds);
    let job = |seed| Job {
        seed,
        crashes: crashes.clone(),
    };
    seeds.map(job).collect()
}

fn pairs(args: &Args) -> Vec<Job> {
    let here = || CrashPoint::ALL.iter().filter(|point| is_here(**point));
    let pairs = here().flat_map(|one| here().map(move |other| (*one, *other)));
    let mut jobs = Vec::new();
    let pairs = pairs.enumerate().skip(args.offset);
    for (number, (one, other)) in pairs.step_by(args.every.max(1)) {
        for round in 0..args.seeds_per_pair {
            // Different worlds for each pair, the same ones each time.
            let seed = args.from + number as u64 * args.seeds_per_pair + round;
            jobs.push(Job {
                seed,
                crashes: vec![(one, 1 + round % 3), (other, 1)],
            });
        }
    }
    jobs
}

/// Prints all events.
fn trace(jobs: &[Job]) -> bool {
    let mut clean = true;
    for job in jobs {
        let (report, trace) = events(job.plan());
        for event in trace.all() {
            println!("{event}");
        }
        println!("seed {} hash {:016x}", report.seed, report.hash);
        clean &= report.broken.is_empty();
    }
    clean
}

/// What pairs of crash points must have shown, and did not.
fn missing_of_pairs(jobs: &[Job], tally: &Tally, pairs: u64) -> Vec<String> {
    let mut missing: Vec<String> = tally.too_few_commits().into_iter().collect();
    let mut runs: BTreeMap<CrashPoint, u64> = BTreeMap::new();
    for (first, _) in jobs.iter().filter_map(|job| job.crashes.first()) {
        *runs.entry(*first).or_default() += 1;
    }
    let reached = tally.firsts();
    for (point, runs) in runs {
        let enough = if RARE.contains(&point) {
            RARE_RUNS
        } else {
            FIRST_RUNS
        };
        if runs >= enough && !reached.contains(&point) {
            let name = point.name();
            missing.push(format!("nobody died at {name} first, in {runs} runs"));
        }
    }
    let (both, wanted) = (tally.reached(2) as u64, pairs * BOTH_PERCENT / 100);
    if pairs >= PAIRS_MIN && both < wanted {
        missing.push(format!(
            "both points were reached of {both} pairs, not of {wanted}"
        ));
    }
    missing
}

fn told(args: &Args, jobs: &[Job], tally: &Tally) -> bool {
    let pairs = if args.pairs {
        jobs.len() as u64 / args.seeds_per_pair.max(1)
    } else {
        0
    };
    // With planted bugs or a single point a run need not show everything.
    let missing = if !tally.failed.is_empty() || args.crash_at.is_some() {
        Vec::new()
    } else if args.pairs {
        missing_of_pairs(jobs, tally, pairs)
    } else {
        tally.missing()
    };
    if !args.json {
        tally.tell();
        if args.pairs {
            println!(
                "pairs of crash points: {} of {pairs} were both reached",
                tally.reached(2)
            );
        }
        if args.crash_at.is_some() {
            println!(
                "crash points: reached alone or first {}, both {}",
                tally.reached(1) + tally.reached(2),
                tally.reached(2)
            );
        }
    }
    for missing in &missing {
        eprintln!("too little happened: {missing}");
    }
    let late = tally.late();
    if let Some(late) = &late {
        eprintln!("{late}");
    }
    for command in &tally.failed {
        eprintln!("failed: {command}");
    }
    if args.json {
        let firsts: Vec<_> = tally.firsts().iter().map(|point| point.name()).collect();
        let mut told = tally.json();
        told["pairs"] = pairs.into();
        told["firsts"] = firsts.into();
        told["missing"] = missing.clone().into();
        println!("{told}");
    }
    let reached = args.crash_at.is_none() || tally.reached(1) + tally.reached(2) > 0;
    if !reached {
        eprintln!("the crash point was never reached");
    }
    let sound = tally.failed.is_empty() && tally.violations == 0 && late.is_none();
    sound && missing.is_empty() && reached
}
