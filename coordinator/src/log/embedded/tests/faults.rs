//! Disks that lose, tear, refuse and rot.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::super::conformance::{decision, one_of_each};
use super::disk::{Disk, Faults, Flipped};
use super::*;

fn open(disk: &Disk) -> Result<EmbeddedLog, LogError> {
    open_few(Arc::new(disk.clone()))
}

fn open_bytes(bytes: Vec<u8>) -> Result<EmbeddedLog, LogError> {
    open(&Disk::holding(bytes))
}

fn replay(log: &EmbeddedLog) -> Vec<Record> {
    log.replay().expect("replay")
}

/// Appends batches until something fails: what was acknowledged, and the batch that was not.
fn work(log: &mut EmbeddedLog, rng: &mut SmallRng) -> (Vec<Record>, Vec<Record>) {
    let mut kept: Vec<Record> = Vec::new();
    let mut next = 0;
    for _ in 0..12 {
        let batch: Vec<Record> = (0..rng.random_range(1..40))
            .map(|i| decision(next + i))
            .collect();
        next += batch.len() as u64;
        match log.append(&batch) {
            Ok(()) => kept.extend(batch),
            Err(LogError::Failed { .. }) => {
                let again = log.append(&[decision(999)]);
                assert!(matches!(again, Err(LogError::Poisoned)), "{again:?}");
                assert!(matches!(
                    log.forget(&[], Gtrid::MIN),
                    Err(LogError::Poisoned)
                ));
                assert!(matches!(log.replay(), Err(LogError::Poisoned)));
                return (kept, batch);
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    (kept, Vec::new())
}

/// What is found must be what was acknowledged, with the last batch whole or not at all.
fn assert_kept(seed: u64, bytes: Vec<u8>, kept: &[Record], last: &[Record]) -> bool {
    let log = open_bytes(bytes).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let found = replay(&log);
    let whole: Vec<Record> = kept.iter().chain(last).cloned().collect();
    let survived = found == whole;
    assert!(
        survived || found == kept,
        "seed {seed}: {} found, {} acknowledged, {} in the last batch",
        found.len(),
        kept.len(),
        last.len()
    );
    survived
}

#[test]
fn a_torn_commit_is_rolled_back_and_nothing_else() {
    let (mut cut, mut survived) = (0, 0);
    for seed in 0..400 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = Disk::default();
        let mut log = open(&disk).expect("a log");
        disk.set_faults(Faults {
            dead_after: Some(rng.random_range(0..80)),
            ..Faults::default()
        });
        let (kept, last) = work(&mut log, &mut rng);
        drop(log);
        cut += u64::from(!last.is_empty());
        for power_loss in 0..4 {
            let image = disk.after_power_loss(seed * 10 + power_loss);
            survived += u64::from(assert_kept(seed, image, &kept, &last) && !last.is_empty());
        }
        assert_kept(seed, disk.after_kill(), &kept, &last);
    }
    assert!(
        cut > 200 && survived > 20,
        "{cut} commits were cut, {survived} survived"
    );
}

#[test]
fn a_log_survives_a_crash_while_it_is_opened() {
    for seed in 0..150 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = Disk::default();
        let mut log = open(&disk).expect("a log");
        let (kept, _) = work(&mut log, &mut rng);
        let crashed = Disk::holding(disk.after_power_loss(seed));
        crashed.set_faults(Faults {
            dead_after: Some(seed % 30),
            ..Faults::default()
        });
        drop(open(&crashed));
        assert_kept(seed, crashed.after_power_loss(seed + 1), &kept, &[]);
    }
}

#[test]
fn a_log_whose_creation_was_cut_is_created_again() {
    let mut created = 0;
    for operations in 0..60 {
        for seed in 0..5 {
            let disk = Disk::default();
            disk.set_faults(Faults {
                dead_after: Some(operations),
                ..Faults::default()
            });
            created += u64::from(open(&disk).is_ok());
            assert_kept(seed, disk.after_power_loss(seed), &[], &[]);
        }
    }
    assert!(
        created > 0 && created < 300,
        "{created} of 300 were created"
    );
}

#[test]
fn a_failed_fsync_stops_the_log() {
    let mut failed = 0;
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = Disk::default();
        let mut log = open(&disk).expect("a log");
        disk.set_faults(Faults {
            failing_sync: Some(1 + seed % 10),
            ..Faults::default()
        });
        let (kept, last) = work(&mut log, &mut rng);
        failed += u64::from(!last.is_empty());
        let image = disk.after_power_loss(seed);
        drop(log);
        assert_kept(seed, image, &kept, &last);
    }
    assert!(failed > 50, "{failed} syncs failed");
}

#[test]
fn a_full_disk_stops_the_log_and_harms_nothing() {
    let mut full = 0;
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = Disk::default();
        let mut log = open(&disk).expect("a log");
        let capacity = Some(disk.len().unwrap() + seed * 2_000);
        disk.set_faults(Faults {
            capacity,
            ..Faults::default()
        });
        let mut kept = Vec::new();
        let mut last = Vec::new();
        for number in 0..200 {
            let batch: Vec<Record> = (0..100).map(|i| decision(number * 100 + i)).collect();
            if let Err(error) = log.append(&batch) {
                assert!(matches!(error, LogError::Failed { .. }), "{error:?}");
                last = batch;
                break;
            }
            kept.extend(batch);
        }
        full += u64::from(!last.is_empty());
        drop(log);
        // With space again, the log goes on where it was.
        disk.set_faults(Faults::default());
        let mut log = open_bytes(disk.after_kill()).expect("the log");
        assert_kept(seed, disk.after_power_loss(rng.random()), &kept, &last);
        log.append(&[Record::Epoch(Epoch(9))]).expect("append");
    }
    assert!(full > 30, "{full} disks were full");
}

/// The log of the two tests below: as it is found after a kill, after it was closed, and what it
/// holds.
fn images() -> (Vec<u8>, Vec<u8>, Vec<Record>) {
    let disk = Disk::default();
    let mut log = open(&disk).expect("a log");
    log.append(&one_of_each()).expect("append");
    log.append(&[decision(6)]).expect("append");
    let killed = disk.after_kill();
    let records = replay(&log);
    drop(log);
    (killed, disk.after_kill(), records)
}

/// Every byte of a log, flipped: the log is refused and left as it is, or it is what it was.
fn flip_every_byte(image: Vec<u8>, expected: &[Record]) {
    let image = Arc::new(image);
    let (mut refused, mut same) = (0, 0);
    for position in positions(&image) {
        // Every bit takes its turn.
        let disk = Flipped::new(&image, position, 1 << (position % 8));
        match open_few(Arc::new(disk.clone())) {
            Ok(log) => {
                assert_eq!(replay(&log), expected, "position {position}");
                same += 1;
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("simulated"), "position {position}: {text}");
                assert!(
                    !disk.was_written_to(),
                    "position {position}: was written to"
                );
                refused += 1;
            }
        }
    }
    println!("{refused} refused, {same} without effect");
    assert!(refused > 1_000, "{refused} refused, {same} without effect");
}

#[test]
fn a_flipped_byte_of_a_killed_log_is_never_believed() {
    let (killed, _, records) = images();
    flip_every_byte(killed, &records);
}

#[test]
fn a_flipped_byte_of_a_closed_log_is_never_believed() {
    let (_, closed, records) = images();
    flip_every_byte(closed, &records);
}

/// Every byte that is in use; of a run of zeros, which is free space, the ends and some between.
fn positions(image: &[u8]) -> Vec<usize> {
    let used = |at: usize| image[at.saturating_sub(16)..(at + 16).min(image.len())] != [0; 32];
    (0..image.len())
        .filter(|at| at % 509 == 0 || used(*at))
        .collect()
}

#[test]
fn a_decision_that_rotted_is_not_taken_for_a_torn_one() {
    let disk = Disk::default();
    let mut log = open(&disk).expect("a log");
    log.append(&[decision(1)]).expect("append");
    let before = disk.after_kill();
    log.append(&[decision(2)]).expect("append");
    let after = disk.after_kill();
    drop(log);
    // The last commit's pages are as they were before it; only the acknowledgement is there.
    let mut bytes = before.clone();
    bytes.resize(after.len(), 0);
    bytes[..4_096].copy_from_slice(&after[..4_096]);
    let error = open_bytes(bytes).expect_err("a commit is missing");
    assert!(matches!(&error, LogError::Damaged { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("was acknowledged and is not there"),
        "{error}"
    );
    assert_eq!(
        replay(&open_bytes(before).expect("an older log")),
        [decision(1)]
    );
}

#[test]
fn garbage_is_refused_and_left_alone() {
    let mut rng = SmallRng::seed_from_u64(5);
    let disk = Disk::default();
    drop(open(&disk).expect("a log"));
    let log = disk.after_kill();
    let mut random = vec![0; 20_000];
    rng.fill(random.as_mut_slice());
    let zeroed_block = [vec![0; 4_096], {
        let mut log = open(&disk).expect("the log");
        log.append(&[Record::Epoch(Epoch(1))]).expect("append");
        drop(log);
        disk.after_kill()[4_096..].to_vec()
    }]
    .concat();
    let cases = [
        ("random bytes", random),
        ("text", b"this is a letter, and no log at all".repeat(1_000)),
        ("half a log", log[..log.len() / 2].to_vec()),
        ("a longer log", [log.clone(), vec![0; 100]].concat()),
        ("a lost first block", zeroed_block),
    ];
    for (name, bytes) in cases {
        let disk = Disk::holding(bytes.clone());
        let error = open(&disk)
            .err()
            .unwrap_or_else(|| panic!("{name} was taken for a log"));
        assert!(
            matches!(error, LogError::Damaged { .. } | LogError::Open { .. }),
            "{error:?}"
        );
        assert_eq!(disk.after_kill(), bytes, "{name} was changed");
    }
}

/// One fsync a commit is what the whole design of the commit point rests on; one write and one
/// mark beside it is what makes it cheap.
#[test]
fn a_commit_costs_one_fsync() {
    let disk = Disk::default();
    let mut log =
        EmbeddedLog::open_with_journal(Arc::new(disk.clone()), Path::new("simulated"), "test", 200)
            .expect("a log");
    log.append(&[decision(0)]).expect("append");
    let (writes, syncs) = disk.counts();
    for number in 1..=100 {
        log.append(&[decision(number)]).expect("append");
    }
    let counts = (disk.counts().0 - writes, disk.counts().1 - syncs);
    assert_eq!(counts, (200, 100), "writes and syncs");
    // With folds among them, of which each is an append's own commit.
    let disk = Disk::default();
    let mut log = open(&disk).expect("a log");
    let (_, syncs) = disk.counts();
    for number in 0..90 {
        log.append(&[decision(number)]).expect("append");
    }
    let syncs = disk.counts().1 - syncs;
    // redb adds one where the file changes its length.
    assert!((90..=93).contains(&syncs), "{syncs} syncs");
}
