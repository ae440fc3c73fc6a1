//! The fuzzers' long run: libFuzzer on every target, guided by the coverage of the shipped crates.
//!
//! It works on the pinned stable toolchain. cargo-fuzz asks for nightly, but only for sanitizers,
//! which code without `unsafe` has little use for; the coverage that guides libFuzzer is a pass of
//! LLVM that stable rustc takes as well (`-Cpasses=sancov-module`), and libFuzzer itself comes with
//! the crate `libfuzzer-sys` and is compiled by any C++ compiler, also g++. cargo-afl would do, but
//! wants a tool to be installed and a process for each input; bolero would hide the same libFuzzer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::Instant;
use std::{fs, thread};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use concord_tests::fuzz::{
    TARGETS, Target, check, corpus_folder, find, remember_panics, reproduce,
};
use serde_json::json;

/// Flags that make a crate count which of its edges are run.
const COVERAGE: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Longest time for one input, in seconds: what takes longer is a way to keep a daemon busy.
const INPUT_TIMEOUT_S: u32 = 10;
/// Memory that a target may take, in MiB.
const MEMORY_MIB: u32 = 1_024;
/// Files of one target that `--keep` leaves in the repository, beside those that are there.
const KEPT_FILES_MAX: usize = 12;
/// Bytes of such a file.
const KEPT_BYTES_MAX: u64 = 300;

/// Fuzzes everything that parses bytes, and tells what was violated.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  ./tests/fuzz                         # every target for five minutes each, two at a time
  ./tests/fuzz --minutes 60 sql literal
  ./tests/fuzz --minutes 5 --json      # one JSON object on the last line
  ./tests/fuzz --replay target/fuzz/crashes/sql-1234 sql
Exit code: 0 nothing was violated, 1 something was, 2 wrong usage.")]
struct Args {
    /// Minutes for each target.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Targets at a time [default: as many as there are processors].
    #[arg(long)]
    jobs: Option<usize>,
    /// Print one JSON object on the last line, and nothing else on stdout.
    #[arg(long)]
    json: bool,
    /// Run one target on this file only, without libFuzzer.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Add the smallest inputs that reach something new to the corpus in the repository.
    #[arg(long)]
    keep: bool,
    /// Print the names of all targets.
    #[arg(long)]
    list: bool,
    /// Which targets; all when none is named.
    #[arg(value_name = "TARGET", value_parser = target)]
    targets: Vec<&'static Target>,
}

fn target(name: &str) -> Result<&'static Target, String> {
    find(name).ok_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        format!("no target of this name; there are {}", names.join(", "))
    })
}

fn main() -> anyhow::Result<ExitCode> {
    let mut args = Args::parse();
    if args.list {
        for target in TARGETS {
            println!("{:<12} {}", target.name, target.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.targets.is_empty() {
        args.targets = TARGETS.iter().collect();
    }
    if let Some(file) = &args.replay {
        return replay(&args.targets, file);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz");
    fs::create_dir_all(folder.join("crashes"))?;
    let folder = folder.canonicalize()?;
    let program = build(&folder)?;
    let found = run_all(&args, &folder, &program)?;
    let violations: usize = found.values().map(|found| found.crashes.len()).sum();
    for (name, found) in &found {
        for crash in &found.crashes {
            eprintln!("VIOLATED {name}: {}", found.violated);
            eprintln!("again: {}", reproduce(name, crash));
        }
    }
    if args.json {
        println!("{}", report(&found, violations));
    }
    Ok(ExitCode::from(u8::from(violations > 0)))
}

fn report(found: &BTreeMap<&str, Found>, violations: usize) -> serde_json::Value {
    let targets: serde_json::Map<String, serde_json::Value> = found
        .iter()
        .map(|(name, found)| {
            let value = json!({
                "seconds": found.seconds,
                "executions": found.executions,
                "edges": found.edges,
                "corpus": found.corpus,
                "crashes": found.crashes.len(),
            });
            ((*name).to_owned(), value)
        })
        .collect();
    json!({"tool": "fuzz", "targets": targets, "violations": violations})
}

/// One input, as the tests run it.
fn replay(targets: &[&Target], file: &Path) -> anyhow::Result<ExitCode> {
    let [target] = targets else {
        eprintln!("--replay takes exactly one target");
        return Ok(ExitCode::from(2));
    };
    remember_panics();
    let input = fs::read(file).with_context(|| file.display().to_string())?;
    match check(target, &input) {
        Ok(()) => {
            println!("{}: nothing is violated", target.name);
            Ok(ExitCode::SUCCESS)
        }
        Err(violated) => {
            println!("{}: {violated}", target.name);
            Ok(ExitCode::from(1))
        }
    }
}

/// Builds the instrumented program in a folder of its own, so that no other build is spoiled. With
/// a named target, build scripts and macros are left without instruments.
fn build(folder: &Path) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let rustc = Command::new("rustc").arg("-vV").output()?;
    let said = String::from_utf8(rustc.stdout)?;
    let host = said
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not say what it runs on")?;
    let status = Command::new(cargo)
        .args([
            "build",
            "--package",
            "concord-tests",
            "--bin",
            "fuzz-target",
        ])
        .args(["--features", "libfuzzer", "--target", host, "--target-dir"])
        .arg(folder)
        .env("RUSTFLAGS", COVERAGE)
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "the instrumented build failed");
    Ok(folder.join(host).join("debug/fuzz-target"))
}

/// What a run of one target found.
#[derive(Debug, Default)]
struct Found {
    seconds: u64,
    executions: u64,
    edges: u64,
    corpus: u64,
    crashes: Vec<PathBuf>,
    violated: String,
}

fn run_all(
    args: &Args,
    folder: &Path,
    program: &Path,
) -> anyhow::Result<BTreeMap<&'static str, Found>> {
    let waiting = Mutex::new(args.targets.clone());
    let found = Mutex::new(BTreeMap::new());
    let failed = Mutex::new(Vec::new());
    let processors = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..args.jobs.unwrap_or(processors).clamp(1, args.targets.len()) {
            scope.spawn(|| {
                while let Some(target) = take(&waiting) {
                    match run(args, folder, program, target) {
                        Ok(one) => {
                            eprintln!(
                                "{:<12} {} executions in {} s, {} edges, {} inputs, {} crashes",
                                target.name,
                                one.executions,
                                one.seconds,
                                one.edges,
                                one.corpus,
                                one.crashes.len()
                            );
                            lock(&found).insert(target.name, one);
                        }
                        Err(error) => lock(&failed).push(error.context(target.name)),
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_default().pop() {
        return Err(error);
    }
    Ok(found.into_inner().unwrap_or_default())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn take(waiting: &Mutex<Vec<&'static Target>>) -> Option<&'static Target> {
    let mut waiting = lock(waiting);
    (!waiting.is_empty()).then(|| waiting.remove(0))
}

/// Runs libFuzzer on a target for its time, or until something is violated.
fn run(args: &Args, folder: &Path, program: &Path, target: &Target) -> anyhow::Result<Found> {
    let grown = folder.join("corpus").join(target.name);
    fs::create_dir_all(&grown)?;
    let crashes = folder.join("crashes");
    let mut command = Command::new(program);
    // It refuses a dictionary without a word.
    if !target.words.is_empty() {
        let words = folder.join(format!("{}.dict", target.name));
        fs::write(&words, dictionary(target.words))?;
        command.arg(format!("-dict={}", words.display()));
    }
    let began = Instant::now();
    let before = listed(&crashes, target)?;
    let output = command
        .env("CONCORD_FUZZ_TARGET", target.name)
        .arg(format!("-max_total_time={}", seconds(args.minutes)))
        .arg(format!("-max_len={}", target.max_len))
        .arg(format!("-timeout={INPUT_TIMEOUT_S}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!(
            "-artifact_prefix={}/{}-",
            crashes.display(),
            target.name
        ))
        .args([
            "-print_final_stats=1",
            "-use_value_profile=1",
            "-verbosity=1",
        ])
        .arg(&grown)
        .arg(corpus_folder(target.name))
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .context("libFuzzer cannot be started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    fs::write(folder.join(format!("{}.log", target.name)), said.as_bytes())?;
    let after = listed(&crashes, target)?;
    let mut found = Found {
        seconds: began.elapsed().as_secs(),
        executions: number_after(&said, "stat::number_of_executed_units:"),
        edges: number_after(&said, " cov: "),
        corpus: listed_files(&grown)?.len() as u64,
        crashes: after
            .into_iter()
            .filter(|file| !before.contains(file))
            .collect(),
        violated: violation(&said),
    };
    if !output.status.success() && found.crashes.is_empty() {
        // It found again what it had found before, or could not run at all.
        match number_after(&said, "stat::number_of_executed_units:") {
            0 => bail!("libFuzzer ended with {}:\n{said}", output.status),
            _ => found.crashes = before,
        }
    }
    ensure!(found.executions > 0, "nothing was executed:\n{said}");
    if args.keep {
        keep(folder, program, target, &grown)?;
    }
    Ok(found)
}

fn seconds(minutes: f64) -> u64 {
    std::time::Duration::try_from_secs_f64(minutes * 60.0).map_or(1, |time| time.as_secs().max(1))
}

fn violation(said: &str) -> String {
    let line = said
        .lines()
        .find(|line| line.contains("VIOLATED") || line.contains("ERROR: libFuzzer"))
        .unwrap_or("it crashed");
    line.trim_start_matches("VIOLATED: ").to_owned()
}

/// The last number that follows these words.
fn number_after(said: &str, words: &str) -> u64 {
    said.rsplit_once(words)
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

fn listed_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

/// The crashes of a target that are there.
fn listed(crashes: &Path, target: &Target) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = listed_files(crashes)?;
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        ["crash-", "timeout-", "oom-", "slow-unit-"]
            .iter()
            .any(|kind| name.starts_with(&format!("{}-{kind}", target.name)))
    });
    Ok(files)
}

/// Words as libFuzzer's dictionaries have them.
fn dictionary(words: &[&str]) -> String {
    let mut text = String::new();
    for word in words {
        text.push('"');
        for byte in word.bytes() {
            match byte {
                b'"' | b'\\' => _ = write!(text, "\\{}", char::from(byte)),
                b' '..=b'~' => text.push(char::from(byte)),
                _ => _ = write!(text, "\\x{byte:02x}"),
            }
        }
        text.push_str("\"\n");
    }
    text
}

/// Adds small inputs to the repository's corpus that reach what it does not.
fn keep(folder: &Path, program: &Path, target: &Target, grown: &Path) -> anyhow::Result<()> {
    let merged = folder.join("merged").join(target.name);
    if merged.exists() {
        fs::remove_dir_all(&merged)?;
    }
    fs::create_dir_all(&merged)?;
    let own = corpus_folder(target.name);
    for file in listed_files(&own)? {
        fs::copy(&file, merged.join(file.file_name().unwrap_or_default()))?;
    }
    let merge = Command::new(program)
        .env("CONCORD_FUZZ_TARGET", target.name)
        .args(["-merge=1", "-verbosity=0"])
        .arg(format!("-max_len={KEPT_BYTES_MAX}"))
        .args([&merged, grown])
        .current_dir(folder)
        .output()?;
    ensure!(
        merge.status.success(),
        "{}",
        String::from_utf8_lossy(&merge.stderr)
    );
    let mut fresh = listed_files(&merged)?;
    fresh.retain(|file| !own.join(file.file_name().unwrap_or_default()).exists());
    // What reaches new code and is small is worth most; libFuzzer names files by their content.
    fresh.sort_by_key(|file| fs::metadata(file).map_or(u64::MAX, |meta| meta.len()));
    let many = fresh.len().div_ceil(KEPT_FILES_MAX).max(1);
    for file in fresh.iter().step_by(many) {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        fs::copy(file, own.join(name.get(..8).unwrap_or(&name)))?;
    }
    Ok(())
}
