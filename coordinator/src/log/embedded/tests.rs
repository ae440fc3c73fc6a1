//! What the contract does not say: files, locks, sizes; in [`faults`] what disks do, and in
//! [`frames`] what that does to the journal.

mod disk;
mod faults;
mod frames;

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::{RwLock, RwLockReadGuard};

use super::super::conformance::{self, decision, gtrid};
use super::*;

/// A process that is being spawned holds, until its exec, whatever its parent has locked. Tests
/// that lock share this; the one that spawns has it alone.
static SPAWNING: RwLock<()> = RwLock::new(());

/// A directory on the disk that the project is on, which may be of another kind than `/tmp`.
struct Place {
    directory: tempfile::TempDir,
    _quiet: RwLockReadGuard<'static, ()>,
}

impl Place {
    fn new() -> Self {
        let quiet = SPAWNING.read().expect("no test panicked while it spawned");
        Self {
            directory: temporary(),
            _quiet: quiet,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

fn temporary() -> tempfile::TempDir {
    let target = concat!(env!("CARGO_MANIFEST_DIR"), "/../target");
    fs::create_dir_all(target).expect("the target directory");
    tempfile::Builder::new()
        .prefix("log-")
        .tempdir_in(target)
        .expect("a directory")
}

/// Bytes of a page, and of the first block.
const PAGE: usize = 4_096;
/// Pages of the journal of a log on a simulated disk: so few that it is folded again and again.
const FEW_PAGES: u32 = 8;

fn open_few(disk: Arc<dyn StorageBackend>) -> Result<EmbeddedLog, LogError> {
    EmbeddedLog::open_with_journal(disk, Path::new("simulated"), "test", FEW_PAGES)
}

fn end(number: u64) -> Record {
    Record::End {
        gtrid: gtrid(number),
        committed: true,
    }
}

#[test]
fn it_keeps_the_contract() {
    let root = Place::new();
    let count = Cell::new(0);
    let make = || {
        count.set(count.get() + 1);
        EmbeddedLog::open(&root.path().join(count.get().to_string()), "test").expect("a log")
    };
    let reopen = |log: EmbeddedLog| {
        let path = log.path.clone();
        drop(log);
        EmbeddedLog::open(&path, "test").expect("the log")
    };
    conformance::run_all(make, reopen);
}

#[test]
fn it_keeps_the_contract_with_any_journal() {
    for pages in [0, 1, 2, 8, 64] {
        let open = |disk: &disk::Disk| {
            let disk = Arc::new(disk.clone());
            EmbeddedLog::open_with_journal(disk, Path::new("simulated"), "test", pages)
                .expect("a log")
        };
        let disk = Cell::new(disk::Disk::default());
        let make = || {
            let new = disk::Disk::default();
            disk.set(new.clone());
            open(&new)
        };
        let reopen = |log: EmbeddedLog| {
            drop(log);
            let now = disk.take();
            disk.set(now.clone());
            open(&now)
        };
        conformance::run_all(make, reopen);
    }
}

#[test]
fn its_files_are_private() {
    let root = Place::new();
    let path = root.path().join("a/b/log");
    let log = EmbeddedLog::open(&path, "test").expect("a log");
    let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join(files::FILE)), 0o600);
    assert!(log.stats().bytes > 0);
}

#[test]
fn a_second_open_is_refused_and_names_the_holder() {
    let root = Place::new();
    let log = EmbeddedLog::open(root.path(), "test").expect("a log");
    let error = EmbeddedLog::open(root.path(), "test").expect_err("it is in use");
    assert!(matches!(error, LogError::Held { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    drop(log);
    EmbeddedLog::open(root.path(), "test").expect("it is free");
}

#[test]
fn a_second_process_is_refused() {
    let _alone = SPAWNING.write().expect("no test panicked while it spawned");
    let root = temporary();
    drop(EmbeddedLog::open(root.path(), "test").expect("a log"));
    let mut holder = Command::new("flock")
        .args([
            "-x".as_ref(),
            root.path().join(files::LOCK_FILE).as_os_str(),
        ])
        .args(["sh", "-c", "echo locked; cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("flock of util-linux");
    let mut line = String::new();
    let mut output = BufReader::new(holder.stdout.take().expect("it is piped"));
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "locked\n");
    let error = EmbeddedLog::open(root.path(), "test").expect_err("it is in use");
    assert!(matches!(error, LogError::Held { .. }), "{error:?}");
    drop(holder.stdin.take());
    holder.wait().expect("it ends");
    EmbeddedLog::open(root.path(), "test").expect("it is free");
}

#[test]
fn the_log_of_another_cluster_is_refused() {
    let root = Place::new();
    drop(EmbeddedLog::open(root.path(), "east").expect("a log"));
    let error = EmbeddedLog::open(root.path(), "west").expect_err("another cluster");
    let text = error.to_string();
    assert!(
        text.contains("\"east\"") && text.contains("\"west\""),
        "{text}"
    );
}

#[test]
fn a_later_format_is_refused() {
    let disk = disk::Disk::default();
    let open = |cluster| {
        EmbeddedLog::open_with_backend(Box::new(disk.clone()), Path::new("simulated"), cluster)
    };
    drop(open("test").expect("a log"));
    let database = builder()
        .create_with_backend(Frame::new(
            Arc::new(disk.clone()),
            frame::BLOCK_BYTES * (u64::from(JOURNAL_PAGES) + 1),
        ))
        .expect("a file");
    let transaction = database.begin_write().expect("a transaction");
    {
        let mut meta = transaction.open_table(META).expect("a table");
        let sealed = codec::seal(name::FORMAT.as_bytes(), &2_u32.to_be_bytes());
        meta.insert(name::FORMAT, sealed.as_slice())
            .expect("insert");
    }
    transaction.commit().expect("commit");
    drop(database);
    let error = open("test").expect_err("a later format");
    assert!(
        matches!(
            error,
            LogError::NewerFormat {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn an_unfinished_file_is_replaced_and_a_lost_one_is_not() {
    let root = Place::new();
    fs::write(root.path().join("decisions.redb.new"), "unfinished").expect("write");
    drop(EmbeddedLog::open(root.path(), "test").expect("a log"));
    assert!(!root.path().join("decisions.redb.new").exists());
    // An empty file under the log's own name was a log once: names are given to complete ones.
    fs::write(root.path().join(files::FILE), "").expect("write");
    let error = EmbeddedLog::open(root.path(), "test").expect_err("it lost everything");
    assert!(matches!(error, LogError::Damaged { .. }), "{error:?}");
}

#[test]
fn an_unwritable_place_is_named() {
    let root = Place::new();
    let file = root.path().join("file");
    fs::write(&file, "").expect("write");
    let error = EmbeddedLog::open(&file.join("log"), "test").expect_err("a file is in the way");
    assert!(
        error
            .to_string()
            .contains(&file.join("log").display().to_string()),
        "{error}"
    );
}

/// The bytes of a log from before the journal, made of those of one that was closed.
fn without_journal(image: &[u8], pages: u32, commit: u64) -> Vec<u8> {
    let start = PAGE * (pages as usize + 1);
    let mut bytes = vec![0; PAGE];
    bytes[..16].copy_from_slice(b"concord decision");
    bytes[16..20].copy_from_slice(&1_u32.to_be_bytes());
    let crc = crc32fast::hash(&bytes[..20]);
    bytes[20..24].copy_from_slice(&crc.to_be_bytes());
    for (slot, commit) in [(512, commit - 1), (1_024, commit)] {
        bytes[slot..slot + 8].copy_from_slice(&commit.to_be_bytes());
        let crc = crc32fast::hash(&commit.to_be_bytes());
        bytes[slot + 8..slot + 12].copy_from_slice(&crc.to_be_bytes());
    }
    bytes.extend_from_slice(&image[start..]);
    bytes
}

#[test]
fn a_log_from_before_the_journal_is_written_anew() {
    let disk = disk::Disk::default();
    let mut log = open_few(Arc::new(disk.clone())).expect("a log");
    log.append(&conformance::one_of_each()).expect("append");
    log.append(&[decision(6)]).expect("append");
    let records = log.replay().expect("replay");
    drop(log);
    let old = without_journal(&disk.after_kill(), FEW_PAGES, 2);
    let root = Place::new();
    let file = root.path().join(files::FILE);
    let write = |bytes: &[u8]| fs::write(&file, bytes).expect("write");
    write(&old);
    fs::write(root.path().join("decisions.redb.new"), "unfinished").expect("write");
    let open = |cluster| EmbeddedLog::open(root.path(), cluster);
    let error = open("other").expect_err("another cluster");
    assert!(matches!(error, LogError::OtherCluster { .. }), "{error:?}");
    assert_eq!(fs::read(&file).expect("read"), old, "it was changed");
    for _ in 0..3 {
        let log = open("test").expect("the log");
        assert_eq!(log.replay().expect("replay"), records);
        assert_eq!(log.stats().decisions, 6);
    }
    assert!(!root.path().join("decisions.redb.new").exists());
    let mut log = open("test").expect("the log");
    log.append(&[decision(7)]).expect("append");
    assert_eq!(log.pending.records.len(), 1, "it has a journal");
    drop(log);
    // One that lost a commit, or has a flipped byte, is refused as it is.
    let mut flipped = old.clone();
    // Every copy of a text in a record: redb keeps older pages for a while.
    let text = b"INSUFFICIENT_FUNDS";
    for at in 4_096..old.len() - text.len() {
        if old[at..].starts_with(text) {
            flipped[at] ^= 1;
        }
    }
    for damaged in [without_journal(&disk.after_kill(), FEW_PAGES, 3), flipped] {
        write(&damaged);
        let error = open("test").expect_err("it is damaged");
        assert!(matches!(error, LogError::Damaged { .. }), "{error:?}");
        assert_eq!(fs::read(&file).expect("read"), damaged, "it was changed");
    }
}

/// A fold is a pause, which the journal's length alone would not bound: its frames are of any size.
#[test]
fn so_many_records_are_folded_and_no_more() {
    let disk = disk::Disk::default();
    let mut log = EmbeddedLog::open_with_backend(Box::new(disk), Path::new("simulated"), "test")
        .expect("a log");
    let mut most = 0;
    for first in (0..10_000).step_by(100) {
        let records: Vec<Record> = (first..first + 100).map(decision).collect();
        log.append(&records).expect("append");
        most = most.max(log.pending.records.len());
    }
    assert_eq!((most, log.sums.commit), (FOLD_RECORDS / 100 * 100, 10));
    assert_eq!(log.stats().decisions, 10_000);
}

/// Ten retention windows pass through the log, and it is as large as after the second.
#[test]
fn it_stays_small_for_ever() {
    const WINDOW: u64 = 4_000;
    const BATCH: u64 = 100;
    let disk = disk::Disk::default();
    let open = || {
        EmbeddedLog::open_with_backend(Box::new(disk.clone()), Path::new("simulated"), "test")
            .expect("the log")
    };
    let mut log = open();
    let mut sizes = Vec::new();
    for batch in 0..10 * WINDOW / BATCH {
        let first = batch * BATCH;
        let mut records: Vec<Record> = (first..first + BATCH).map(decision).collect();
        records.extend((first..first + BATCH).map(end));
        if let Some(old) = first.checked_sub(WINDOW) {
            let gone: Vec<Gtrid> = (old..old + BATCH).map(gtrid).collect();
            log.forget(&gone, gtrid(old + BATCH)).expect("forget");
        }
        log.append(&records).expect("append");
        sizes.push(log.stats().bytes);
        assert!(log.pending.records.len() <= FOLD_RECORDS);
    }
    assert_eq!(log.stats().decisions, WINDOW);
    let (early, late) = (sizes[sizes.len() / 5], sizes[sizes.len() - 1]);
    println!("{early} bytes after two windows, {late} after ten");
    assert!(
        late <= early + early / 4,
        "{early} bytes after two windows, {late} after ten"
    );
    drop(log);
    assert_eq!(open().stats().decisions, WINDOW);
}

#[test]
fn what_is_free_is_given_back_when_it_is_opened() {
    let disk = disk::Disk::default();
    let open = || {
        EmbeddedLog::open_with_backend(Box::new(disk.clone()), Path::new("simulated"), "test")
            .expect("the log")
    };
    let mut log = open();
    let count = 60_000;
    log.append(
        &(0..count)
            .flat_map(|n| [decision(n), end(n)])
            .collect::<Vec<_>>(),
    )
    .expect("append");
    let large = log.stats().bytes;
    let gone: Vec<Gtrid> = (1..count).map(gtrid).collect();
    log.forget(&gone, gtrid(count)).expect("forget");
    log.append(&[]).expect("append");
    drop(log);
    let log = open();
    let small = log.stats().bytes;
    println!("{large} bytes, then {small}");
    assert!(
        large > 2 * COMPACT_MIN_BYTES && small < large / 4,
        "{large} bytes, then {small}"
    );
    assert_eq!(log.stats().decisions, 1);
}
