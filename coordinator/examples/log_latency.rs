//! Measures what a commit of the decision log costs on this disk, beside the settings of redb that
//! were not chosen and the floor, a bare write and fdatasync. The figures of
//! `coordinator/docs/adr/0001-embedded-log.md` come from it.
//!
//! ```text
//! cargo run -p concord-coordinator --example log_latency -- target
//! ```

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use concord_coordinator::log::{DecisionLog, EmbeddedLog};
use concord_core::id::{Bqual, Epoch, Gtrid, ParticipantName};
use concord_core::record::Record;
use redb::{Builder, TableDefinition};

/// Commits of one measurement.
const COMMITS: u64 = 1_000;
/// Bytes of a record: about a decision of two branches with a request id.
const RECORD_BYTES: usize = 128;
const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");

fn gtrid(number: u64) -> Gtrid {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Gtrid(bytes)
}

fn decision(number: u64) -> Record {
    let name = |n: u32| (Bqual(n), ParticipantName::new(format!("participant-number-{n:012}")));
    let branches = vec![name(1), name(2)];
    Record::Decision { gtrid: gtrid(number), epoch: Epoch(1), branches, request: None }
}

/// Runs commits one after the other and prints their latencies.
fn measure(
    name: &str,
    batch: u64,
    mut commit: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for number in 0..COMMITS {
        let start = Instant::now();
        commit(number * batch).context(name.to_owned())?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let total: Duration = times.iter().sum();
    let rate = (COMMITS * batch) as f64 / total.as_secs_f64();
    println!(
        "{name:<34} batch {batch:>2}  p50 {:.3} ms  p99 {:.3} ms  {rate:>7.0} records/s",
        at(50),
        at(99),
    );
    Ok(())
}

fn floor(directory: &Path, batch: u64) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(directory.join("floor"))?;
    let bytes = vec![7; RECORD_BYTES * usize::try_from(batch)?];
    measure("write and fdatasync, growing file", batch, |_| {
        file.write_all(&bytes)?;
        Ok(file.sync_data()?)
    })
}

fn bare_redb(directory: &Path, batch: u64, two_phase: bool, quick: bool) -> anyhow::Result<()> {
    let name = match (two_phase, quick) {
        (false, _) => "redb, one-phase commit",
        (true, false) => "redb, two-phase commit",
        (true, true) => "redb, two-phase and quick repair",
    };
    let file = directory.join(format!("bare-{batch}-{two_phase}-{quick}"));
    let database = Builder::new().set_cache_size(16 << 20).create(file)?;
    measure(name, batch, |first| {
        let mut transaction = database.begin_write()?;
        transaction.set_two_phase_commit(two_phase);
        transaction.set_quick_repair(quick);
        {
            let mut table = transaction.open_table(TABLE)?;
            for number in first..first + batch {
                table.insert(gtrid(number).0.as_slice(), [7; RECORD_BYTES].as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    })
}

fn log(directory: &Path, batch: u64) -> anyhow::Result<()> {
    let mut log = EmbeddedLog::open(&directory.join(format!("log-{batch}")), "measured")?;
    measure("decision log, as shipped", batch, |first| {
        let records: Vec<Record> = (first..first + batch).map(decision).collect();
        Ok(log.append(&records)?)
    })?;
    let stats = log.stats();
    println!("  {} decisions in {} KiB", stats.decisions, stats.bytes >> 10);
    drop(log);
    let start = Instant::now();
    let log = EmbeddedLog::open(&directory.join(format!("log-{batch}")), "measured")?;
    println!("  opened and verified in {:?}", start.elapsed());
    drop(log);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let root = std::env::args().nth(1).context("name a directory on the disk to measure")?;
    let directory = Path::new(&root).join(format!("log-latency-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let run = || {
        for batch in [1, 32] {
            floor(&directory, batch)?;
            for (two_phase, quick) in [(false, false), (true, false), (true, true)] {
                bare_redb(&directory, batch, two_phase, quick)?;
            }
            log(&directory, batch)?;
        }
        Ok(())
    };
    let result = run();
    std::fs::remove_dir_all(&directory)?;
    result
}
