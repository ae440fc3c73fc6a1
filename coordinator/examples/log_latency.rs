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
    let name = |n: u32| {
        (
            Bqual(n),
            ParticipantName::new(format!("participant-number-{n:012}")),
        )
    };
    let branches = vec![name(1), name(2)];
    Record::Decision {
        gtrid: gtrid(number),
        epoch: Epoch(1),
        branches,
        request: None,
    }
}

/// One commit of the batch that begins with this number.
type Commit = Box<dyn FnMut(u64) -> anyhow::Result<()>>;

fn floor(directory: &Path, batch: u64) -> anyhow::Result<Commit> {
    let path = directory.join(format!("floor-{batch}"));
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let bytes = vec![7; RECORD_BYTES * usize::try_from(batch)?];
    Ok(Box::new(move |_| {
        file.write_all(&bytes)?;
        Ok(file.sync_data()?)
    }))
}

fn bare_redb(directory: &Path, batch: u64, two_phase: bool, quick: bool) -> anyhow::Result<Commit> {
    let file = directory.join(format!("bare-{batch}-{two_phase}-{quick}"));
    let database = Builder::new().set_cache_size(16 << 20).create(file)?;
    Ok(Box::new(move |first| {
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
    }))
}

fn log(directory: &Path, batch: u64) -> anyhow::Result<Commit> {
    let mut log = EmbeddedLog::open(&directory.join(format!("log-{batch}")), "measured")?;
    Ok(Box::new(move |first| {
        let records: Vec<Record> = (first..first + batch).map(decision).collect();
        Ok(log.append(&records)?)
    }))
}

/// Commits in turn, one of each variant at a time: what else the machine does hits all alike.
fn measure(directory: &Path, batch: u64) -> anyhow::Result<()> {
    let mut variants = [
        (
            "write and fdatasync, growing file",
            floor(directory, batch)?,
        ),
        (
            "redb, one-phase commit",
            bare_redb(directory, batch, false, false)?,
        ),
        (
            "redb, two-phase commit",
            bare_redb(directory, batch, true, false)?,
        ),
        (
            "redb, two-phase and quick repair",
            bare_redb(directory, batch, true, true)?,
        ),
        ("decision log, as shipped", log(directory, batch)?),
    ];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); variants.len()];
    for number in 0..COMMITS {
        for ((name, commit), times) in variants.iter_mut().zip(&mut times) {
            let start = Instant::now();
            commit(number * batch).context(*name)?;
            times.push(start.elapsed());
        }
    }
    for ((name, _), times) in variants.iter().zip(&mut times) {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        println!(
            "batch {batch:>2}  {name:<34}  p10 {:.3} ms  p50 {:.3} ms  p99 {:.3} ms",
            at(10),
            at(50),
            at(99)
        );
    }
    drop(variants);
    let start = Instant::now();
    let log = EmbeddedLog::open(&directory.join(format!("log-{batch}")), "measured")?;
    let stats = log.stats();
    println!(
        "          {} decisions in {} KiB, opened and verified in {:?}",
        stats.decisions,
        stats.bytes >> 10,
        start.elapsed()
    );
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let root = std::env::args()
        .nth(1)
        .context("name a directory on the disk to measure")?;
    let directory = Path::new(&root).join(format!("log-latency-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = [1, 32]
        .into_iter()
        .try_for_each(|batch| measure(&directory, batch));
    std::fs::remove_dir_all(&directory)?;
    result
}
