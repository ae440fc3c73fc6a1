//! The journal on disks that tear, lose, refuse and rot; and against a model.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::super::MemoryLog;
use super::super::super::conformance::{decision, one_of_each};
use super::disk::{Disk, Faults};
use super::*;

/// Where redb begins on the disks of these tests.
const REDB: usize = PAGE * (FEW_PAGES as usize + 1);

fn open(disk: &Disk) -> Result<EmbeddedLog, LogError> {
    open_few(Arc::new(disk.clone()))
}

fn open_bytes(bytes: Vec<u8>) -> Result<EmbeddedLog, LogError> {
    open(&Disk::holding(bytes))
}

fn replay(log: &impl DecisionLog) -> Vec<Record> {
    log.replay().expect("replay")
}

/// The image is refused with these words, and left as it is.
fn assert_damaged(image: &[u8], words: &str, what: &str) {
    let disk = Disk::holding(image.to_vec());
    let error = open(&disk)
        .err()
        .unwrap_or_else(|| panic!("{what}: it was taken for sound"));
    assert!(
        matches!(error, LogError::Damaged { .. }),
        "{what}: {error:?}"
    );
    let text = error.to_string();
    assert!(text.contains(words), "{what}: {text}");
    assert!(disk.after_kill() == image, "{what}: it was changed");
}

/// A batch that takes two pages of the journal.
fn large(first: u64) -> Vec<Record> {
    (first..first + 40).map(decision).collect()
}

/// A log with frames of these batches and none folded: its image after each append.
fn images(batches: &[Vec<Record>]) -> Vec<Vec<u8>> {
    let disk = Disk::default();
    let mut log = open(&disk).expect("a log");
    let mut images = vec![disk.after_kill()];
    for batch in batches {
        log.append(batch).expect("append");
        images.push(disk.after_kill());
    }
    assert_eq!(log.sums.commit, FIRST_COMMIT, "nothing was folded");
    images
}

#[test]
fn every_torn_length_of_the_last_frame_is_dropped() {
    let batches = [vec![decision(0)], one_of_each(), large(10)];
    let images = images(&batches);
    let (before, after) = (&images[2], &images[3]);
    let kept = replay(&open_bytes(before.clone()).expect("a log"));
    let whole = replay(&open_bytes(after.clone()).expect("a log"));
    assert!(whole.len() > kept.len());
    // The first two frames have a page each.
    let frame = 3 * PAGE..5 * PAGE;
    let used = (frame.clone())
        .rev()
        .find(|at| after[*at] != 0)
        .expect("it has bytes")
        + 1;
    for end in frame.clone() {
        let mut torn = before.clone();
        torn[frame.start..end].copy_from_slice(&after[frame.start..end]);
        let log = open_bytes(torn.clone()).unwrap_or_else(|error| panic!("{end}: {error}"));
        let expected = if end < used { &kept } else { &whole };
        assert_eq!(&replay(&log), expected, "cut at {end}");
        // The same bytes are damage when the frame was acknowledged.
        if end < used && end % 7 == 0 {
            torn[..PAGE].copy_from_slice(&after[..PAGE]);
            assert_damaged(&torn, "was acknowledged and is not there", "torn");
        }
    }
    // The end is there and the beginning is not: sectors are written in any order.
    for start in (frame.start + 1..used).step_by(13) {
        let mut torn = before.clone();
        torn[start..frame.end].copy_from_slice(&after[start..frame.end]);
        assert_eq!(replay(&open_bytes(torn).expect("a log")), kept, "{start}");
    }
}

#[test]
fn every_flipped_byte_of_an_acknowledged_frame_is_damage() {
    let batches = [vec![decision(0)], one_of_each(), vec![end(0)]];
    let images = images(&batches);
    let (before, image) = (&images[2], &images[3]);
    let kept = replay(&open_bytes(before.clone()).expect("a log"));
    for page in 1..=3 {
        let frame = page * PAGE..(page + 1) * PAGE;
        let used = frame
            .clone()
            .rev()
            .find(|at| image[*at] != 0)
            .expect("it has bytes");
        for at in frame.start..=used {
            for mask in [1 << (at % 8), 0xff] {
                let mut flipped = image.clone();
                flipped[at] ^= mask;
                let what = format!("byte {at}, mask {mask}");
                assert_damaged(&flipped, "of its journal after commit 1", &what);
                // Without the last mark, the frames after it prove that it was acknowledged;
                // the last one alone is taken for one that nobody was told of.
                flipped[..PAGE].copy_from_slice(&before[..PAGE]);
                if page < 3 {
                    assert_damaged(&flipped, "only the last one can be unfinished", &what);
                } else {
                    assert_eq!(replay(&open_bytes(flipped).expect("a log")), kept, "{what}");
                }
            }
        }
        // What fills the page is nothing.
        let mut flipped = image.clone();
        flipped[used + 1] ^= 1;
        open_bytes(flipped).expect("the zeros after a frame do not count");
    }
}

#[test]
fn an_exchanged_part_is_damage() {
    let first = images(&[vec![decision(1)], vec![decision(2)]]);
    let other = images(&[vec![decision(1)], vec![decision(2)]]);
    let part = |block: &[u8], journal: &[u8], redb: &[u8]| {
        [&block[..PAGE], &journal[PAGE..REDB], &redb[REDB..]].concat()
    };
    let missing = "was acknowledged and is not there";
    let same = part(&first[2], &first[2], &first[2]);
    assert_eq!(
        replay(&open_bytes(same).expect("a log")),
        [decision(1), decision(2)]
    );
    let mixed = part(&first[2], &other[2], &first[2]);
    assert_damaged(&mixed, missing, "the journal of another log");
    let mixed = part(&first[2], &first[1], &first[2]);
    assert_damaged(&mixed, missing, "an older journal");
    let mixed = part(&first[2], &vec![0; REDB], &first[2]);
    assert_damaged(&mixed, missing, "an empty journal");
    let mixed = part(&other[2], &first[2], &first[2]);
    assert_damaged(&mixed, missing, "the block of another log");
    let short = first[2][..REDB - 1].to_vec();
    assert!(open_bytes(short).is_err(), "half a journal");
    // A fold, and a frame after it.
    let disk = Disk::holding(first[2].clone());
    let mut log = open(&disk).expect("the log");
    let folded = disk.after_kill();
    log.append(&[decision(3)]).expect("append");
    let later = disk.after_kill();
    drop(log);
    let mixed = part(&later, &later, &first[2]);
    assert_damaged(&mixed, "commit 2 was acknowledged", "an older redb");
    let mixed = part(&first[2], &later, &first[2]);
    assert_damaged(&mixed, "goes on from commit 2", "redb and block are older");
    let mixed = part(&later, &first[2], &later);
    assert_damaged(&mixed, missing, "a journal from before a fold");
    // The mark of the fold may be lost in a power loss, and the frames of before count no more.
    let mixed = part(&first[2], &first[2], &folded);
    let log = open_bytes(mixed).expect("a fold whose mark was lost");
    assert_eq!(replay(&log), [decision(1), decision(2)]);
    assert_eq!(log.sums.commit, 2, "nothing was left to fold");
}

#[test]
fn frames_of_a_former_generation_never_count() {
    let disk = Disk::default();
    let mut log = open(&disk).expect("a log");
    for number in 0..8 {
        log.append(&[decision(number)]).expect("append");
    }
    // The ninth does not fit: it is folded with the others.
    log.append(&[decision(8)]).expect("append");
    assert_eq!((log.sums.commit, log.pending.is_empty()), (2, true));
    for number in 9..12 {
        let expected: Vec<Record> = (0..number).map(decision).collect();
        let image = disk.after_kill();
        assert_eq!(replay(&open_bytes(image).expect("a log")), expected);
        log.append(&[decision(number)]).expect("append");
        assert_eq!(log.sums.commit, 2, "a frame of the second generation");
    }
    // Replaced in the journal, and in redb, it is counted once.
    log.append(&[decision(3), decision(10)]).expect("append");
    assert_eq!(log.stats().decisions, 12);
    assert_eq!(replay(&log).len(), 12);
    drop(log);
    let log = open(&disk).expect("the log");
    assert_eq!((log.stats().decisions, replay(&log).len()), (12, 12));
}

/// Bytes of an empty log.
fn needed() -> u64 {
    let disk = Disk::default();
    drop(open(&disk).expect("a log"));
    disk.after_kill().len() as u64
}

/// An error that says so, and a log as soon as there is space.
#[test]
fn a_disk_that_is_full_at_creation_makes_no_log() {
    let needed = needed();
    let mut refused = 0;
    for capacity in (0..needed + 10_000).step_by(5_000) {
        let disk = Disk::default();
        let faults = Faults {
            capacity: Some(capacity),
            ..Faults::default()
        };
        disk.set_faults(faults);
        if let Err(error) = open(&disk) {
            assert!(matches!(error, LogError::Open { .. }), "{error:?}");
            refused += 1;
        }
        disk.set_faults(Faults::default());
        open(&disk).expect("space").append(&large(0)).expect("room");
    }
    assert!(refused > 10, "{refused} refused");
}

/// The journal keeps what it has, through starts that find the disk full.
#[test]
fn a_disk_that_is_full_at_a_fold_loses_nothing() {
    let needed = needed();
    let disk = Disk::default();
    let mut log = open(&disk).expect("a log");
    let full = Faults {
        capacity: Some(needed),
        ..Faults::default()
    };
    let mut kept = Vec::new();
    disk.set_faults(full);
    let error = loop {
        let batch = large(kept.len() as u64);
        match log.append(&batch) {
            Ok(()) => kept.extend(batch),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::Failed { .. }), "{error:?}");
    assert!(
        kept.len() >= 160,
        "frames need no space: {} kept",
        kept.len()
    );
    assert!(matches!(
        log.append(&[decision(1)]),
        Err(LogError::Poisoned)
    ));
    drop(log);
    for seed in 0..10 {
        let image = Disk::holding(disk.after_power_loss(seed));
        image.set_faults(full);
        let error = open(&image).err();
        assert!(
            error.is_none_or(|error| matches!(error, LogError::Failed { .. })),
            "the disk is still full"
        );
        let log = open_bytes(image.after_power_loss(seed)).expect("the log");
        assert!(replay(&log).starts_with(&kept), "{seed}");
    }
}

/// As on a file system that copies what it writes.
#[test]
fn a_disk_that_is_full_at_an_append_stops_the_log() {
    let disk = Disk::default();
    let mut log = open(&disk).expect("a log");
    log.append(&[decision(0)]).expect("append");
    disk.set_faults(Faults {
        capacity: Some(0),
        ..Faults::default()
    });
    let error = log.append(&[decision(1)]).expect_err("no space");
    assert!(
        matches!(&error, LogError::Failed { what } if what.contains("journal")),
        "{error:?}"
    );
    assert!(matches!(log.append(&[]), Err(LogError::Poisoned)));
    drop(log);
    let log = open_bytes(disk.after_kill()).expect("the log");
    assert_eq!(replay(&log), [decision(0)]);
}

/// What a test does with a log: appends, some of which forget.
#[derive(Clone, Debug)]
struct Step {
    records: Vec<Record>,
    forgotten: Vec<Gtrid>,
    horizon: Option<Gtrid>,
}

impl Step {
    fn apply(&self, log: &mut impl DecisionLog) -> Result<(), LogError> {
        if let Some(horizon) = self.horizon {
            log.forget(&self.forgotten, horizon)?;
        }
        log.append(&self.records)
    }

    /// Anything that the driver could do, and some that it does not.
    fn random(rng: &mut SmallRng, number: u64) -> Self {
        let old = rng.random_range(0..=number);
        let one = |rng: &mut SmallRng| match rng.random_range(0..10) {
            0..5 => decision(number),
            5 => decision(old),
            6 => end(old),
            7 => Record::Horizon(gtrid(old)),
            8 => Record::Epoch(Epoch(number)),
            _ => one_of_each().swap_remove(8),
        };
        let count = [1, 1, 1, 3, 60][rng.random_range(0..5)];
        let mut records: Vec<Record> = (0..count).map(|_| one(rng)).collect();
        let mut step = Self {
            records: Vec::new(),
            forgotten: Vec::new(),
            horizon: None,
        };
        if rng.random_range(0..6) == 0 {
            // Ended in this very batch, unless it is to be refused.
            if rng.random_range(0..4) > 0 {
                records.push(end(old));
            }
            step.forgotten.push(gtrid(old));
            step.horizon = Some(gtrid(old));
        }
        step.records = records;
        step
    }
}

/// Takes steps until the disk fails: the model as acknowledged, and with the step that failed.
fn take(
    log: &mut EmbeddedLog,
    model: &mut MemoryLog,
    steps: &[Step],
    seed: u64,
) -> Option<MemoryLog> {
    for step in steps {
        let mut next = model.clone();
        let expected = step.apply(&mut next);
        match step.apply(log) {
            Ok(()) => assert!(expected.is_ok(), "seed {seed}: {step:?}"),
            Err(LogError::Failed { .. }) => return Some(next),
            Err(error) => {
                let expected = expected.expect_err("the model refuses it, too").to_string();
                assert_eq!(error.to_string(), expected, "seed {seed}");
            }
        }
        *model = next;
        assert_eq!(replay(log), replay(model), "seed {seed}");
        assert_eq!(
            log.stats().decisions,
            model.stats().decisions,
            "seed {seed}"
        );
    }
    None
}

/// A log that is one of the two; which one.
fn assert_either(
    bytes: Vec<u8>,
    model: &MemoryLog,
    next: Option<&MemoryLog>,
    what: &str,
) -> (EmbeddedLog, MemoryLog) {
    let log = open_bytes(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = replay(&log);
    let survived = [Some(model), next]
        .into_iter()
        .flatten()
        .find(|model| replay(*model) == found)
        .unwrap_or_else(|| panic!("{what}: it holds what nobody wrote"));
    assert_eq!(
        log.stats().decisions,
        survived.stats().decisions,
        "{what}: {survived:?}"
    );
    (log, survived.clone())
}

/// A script with frames, a fold because the journal is full, one because of its size, and two that
/// forget; the disk dies after each of its operations, and each of its syncs fails in turn.
#[test]
fn a_crash_at_every_operation_leaves_all_or_nothing() {
    let append = |records: Vec<Record>| Step {
        records,
        forgotten: Vec::new(),
        horizon: None,
    };
    let forget = |gone: u64, records: Vec<Record>| Step {
        records,
        forgotten: vec![gtrid(gone)],
        horizon: Some(gtrid(gone + 1)),
    };
    let mut steps = vec![append(one_of_each()), append(large(10))];
    steps.extend((100..106).map(|number| append(vec![decision(number)])));
    steps.push(append(vec![end(100), end(101)]));
    steps.push(forget(100, vec![decision(107)]));
    steps.push(append((200..500).map(decision).collect()));
    steps.push(append(vec![decision(500), end(500)]));
    steps.push(forget(500, Vec::new()));
    steps.push(append(vec![decision(501)]));
    let more = [append(vec![end(501)]), forget(101, vec![decision(600)])];
    let (mut cut, mut unacknowledged) = (0, 0);
    for failing_sync in [false, true] {
        for point in 1.. {
            let disk = Disk::default();
            let mut log = open(&disk).expect("a log");
            disk.set_faults(Faults {
                dead_after: (!failing_sync).then_some(point - 1),
                failing_sync: failing_sync.then_some(point),
                capacity: None,
            });
            let mut model = MemoryLog::new();
            let next = take(&mut log, &mut model, &steps, point);
            let done = next.is_none();
            cut += u64::from(!done);
            let crashed: Vec<Vec<u8>> = (0..6).map(|seed| disk.after_power_loss(seed)).collect();
            drop(log);
            let ended = (0..3).map(|seed| disk.after_power_loss(seed));
            let images = crashed.into_iter().chain(ended).chain([disk.after_kill()]);
            for (index, image) in images.enumerate() {
                let what = format!("sync {failing_sync}, operation {point}, image {index}");
                let (mut log, mut model) = assert_either(image, &model, next.as_ref(), &what);
                unacknowledged += u64::from(Some(&model) == next.as_ref());
                assert!(take(&mut log, &mut model, &more, point).is_none());
            }
            if done {
                break;
            }
        }
    }
    println!("{cut} crashes, {unacknowledged} batches survived unacknowledged");
    assert!(
        cut > 60 && unacknowledged > 20,
        "{cut} crashes, {unacknowledged}"
    );
}

/// Lives of a log that end in random crashes, the next one's opening included.
#[test]
fn many_small_batches_and_crashes_match_a_model() {
    let (mut crashes, mut folds) = (0, 0);
    for seed in 0..120 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut disk = Disk::default();
        let mut model = MemoryLog::new();
        let mut number = 0;
        for life in 0..12 {
            let what = format!("seed {seed}, life {life}");
            let mut log = open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(replay(&log), replay(&model), "{what}");
            let faults = match rng.random_range(0..4) {
                0 => Faults::default(),
                1 => Faults {
                    failing_sync: Some(rng.random_range(1..20)),
                    ..Faults::default()
                },
                _ => Faults {
                    dead_after: Some(rng.random_range(0..60)),
                    ..Faults::default()
                },
            };
            disk.set_faults(faults);
            let commits = log.sums.commit;
            let steps: Vec<Step> = (0..20)
                .map(|_| {
                    number += 1;
                    Step::random(&mut rng, number)
                })
                .collect();
            let next = take(&mut log, &mut model, &steps, seed);
            crashes += u64::from(next.is_some());
            folds += log.sums.commit - commits;
            if rng.random_bool(0.3) {
                drop(log);
            } else {
                std::mem::forget(log);
            }
            let image = if rng.random_bool(0.2) {
                disk.after_kill()
            } else {
                disk.after_power_loss(rng.random())
            };
            // A start that crashes within its fold changes nothing.
            let crashed = Disk::holding(image);
            crashed.set_faults(Faults {
                dead_after: Some(rng.random_range(0..30)),
                ..Faults::default()
            });
            let _ = open(&crashed);
            let image = crashed.after_power_loss(rng.random());
            model = assert_either(image.clone(), &model, next.as_ref(), &what).1;
            disk = Disk::holding(image);
        }
    }
    println!("{crashes} crashes, {folds} folds");
    assert!(
        crashes > 500 && folds > 500,
        "{crashes} crashes, {folds} folds"
    );
}

#[test]
fn what_is_pending_comes_back_or_is_refused() {
    let mut batch = Pending::default();
    for record in one_of_each() {
        match codec::encode(&record) {
            Some((gtrid, kind, bqual, body)) => {
                batch.put(codec::key(gtrid, kind, bqual, 0), &body);
            }
            None => {
                let (name, body) = codec::encode_meta(&record).expect("one or the other");
                batch.put_meta(&record, name, &body);
            }
        }
    }
    let payload = batch.encode();
    let mut read = Pending::default();
    read.extend_from(&payload).expect("it is what was written");
    assert_eq!(read.encode(), payload);
    assert_eq!((read.epoch, read.horizon), (Some(Epoch(7)), Some(gtrid(0))));
    // Beyond the frame's checksum, each entry has its own.
    for at in 0..payload.len() {
        let mut flipped = payload.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(
            Pending::default().extend_from(&flipped).is_err(),
            "byte {at}"
        );
    }
    let mut sums = Pending::default();
    sums.meta.insert(
        name::SUMS.to_owned(),
        codec::seal(name::SUMS.as_bytes(), &Sums::default().encode()),
    );
    let refused = Pending::default().extend_from(&sums.encode());
    assert_eq!(refused, Err(codec::Garbage::Illegal("name")));
}
