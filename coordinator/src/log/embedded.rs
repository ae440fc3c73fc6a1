//! The decision log in one file on the coordinator's own disk: a journal, and redb behind it.
//!
//! It owns the file, its lock and its integrity. It refuses to open what another process uses,
//! what belongs to another cluster or a later version, and what is not exactly what was written:
//! a torn end, which nobody was told of, is rolled back silently, and anything else that is wrong
//! is an error that names what to do. An append writes a frame of the [`journal`]; what the
//! journal holds is folded into redb from time to time. The choice of redb, of the journal and of
//! their settings is explained, with measurements, in `coordinator/docs/adr/0001-embedded-log.md`;
//! the format is [`super::codec`].

mod check;
mod files;
mod fold;
mod frame;
mod journal;
mod pending;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use concord_core::id::{Bqual, Epoch, Gtrid};
use concord_core::record::Record;
use concord_daemon::crash::{CrashPoint, reach};
use redb::{
    Builder, Database, ReadOnlyTable, ReadableDatabase, ReadableTable, StorageBackend,
    TableDefinition,
};

use self::files::Directory;
use self::fold::Fold;
use self::frame::{Block, Frame, Head, Mark, Marks};
use self::journal::Journal;
use self::pending::Pending;
use super::codec::{self, Sums, kind, name};
use super::{DecisionLog, LogError, LogStats};

/// Pages of a new log's journal: 1 MiB, a frame taking one or more. A few hundred appends share
/// what a fold costs, less than 1 ms; more of them would save nothing that can be measured.
const JOURNAL_PAGES: u32 = 256;
/// Records that are folded at once, unless one batch has more: a fold is a pause, of 2 to 3 µs for
/// each of them.
const FOLD_RECORDS: usize = 1_024;
/// Bytes that redb may cache. Replay reads once and appends touch the newest pages, so more would
/// only be memory.
const CACHE_BYTES: usize = 16 << 20;
/// A file is compacted when it is opened, when redb's part is larger than this (what a few
/// thousand decisions need)...
const COMPACT_MIN_BYTES: u64 = 2 << 20;
/// ...and more than this many times the records in it. A log in steady use has about twice.
const COMPACT_RATIO: u64 = 4;
/// Bytes that are copied at a time when an older file is written anew.
const COPY_BYTES: usize = 1 << 18;

/// Number of the commit that creates a log.
const FIRST_COMMIT: u64 = 1;

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

/// The log.
pub struct EmbeddedLog {
    path: PathBuf,
    database: Database,
    disk: Arc<dyn StorageBackend>,
    journal: Journal,
    marks: Marks,
    /// What the journal holds and redb does not.
    pending: Pending,
    /// Transactions with a decision that are pending and not in redb.
    pending_decisions: u64,
    /// The last epoch, pending or not.
    epoch: Epoch,
    /// The horizon, pending or not.
    horizon: Option<Gtrid>,
    /// Of redb.
    sums: Sums,
    /// In redb.
    decisions: u64,
    /// The newest transaction in redb.
    newest: Option<[u8; 16]>,
    /// Size of the file.
    bytes: u64,
    forgotten: Vec<Gtrid>,
    next_horizon: Option<Gtrid>,
    poisoned: bool,
    /// Released last: fields are dropped in this order.
    _directory: Option<Directory>,
}

impl fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedLog")
            .field("path", &self.path)
            .field("epoch", &self.epoch)
            .field("sums", &self.sums)
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}

impl EmbeddedLog {
    /// Opens the log of a cluster in a directory, and makes both when they are missing.
    pub fn open(directory: &Path, cluster: &str) -> Result<Self, LogError> {
        let directory = Directory::lock(directory)?;
        let path = directory.path().to_owned();
        let disk = match directory.open_file()? {
            Some(disk) => {
                if check::head(&path, &disk)?.version == frame::VERSION_WITHOUT_JOURNAL {
                    let new = directory.create_file()?;
                    convert(&path, &disk, &new, cluster)?;
                    directory.publish_file()?;
                    new
                } else {
                    disk
                }
            }
            None => {
                let disk = directory.create_file()?;
                create(&path, &disk, cluster, JOURNAL_PAGES)?;
                directory.publish_file()?;
                disk
            }
        };
        Self::open_disk(path, disk, cluster, Some(directory))
    }

    /// Opens the log on any storage. One that was never finished being created is created; `path`
    /// is what errors call it. One from before the journal is not converted here.
    pub fn open_with_backend(
        disk: Box<dyn StorageBackend>,
        path: &Path,
        cluster: &str,
    ) -> Result<Self, LogError> {
        Self::open_with_journal(Arc::from(disk), path, cluster, JOURNAL_PAGES)
    }

    /// The same, with a journal of so many pages when it is created: fewer are folded more often.
    pub fn open_with_journal(
        disk: Arc<dyn StorageBackend>,
        path: &Path,
        cluster: &str,
        journal_pages: u32,
    ) -> Result<Self, LogError> {
        let block = frame::read_block(&*disk).map_err(|source| check::unreadable(path, source))?;
        if block == Block::Blank && !check::holds_commits(&disk, journal_pages) {
            create(path, &disk, cluster, journal_pages)?;
        }
        Self::open_disk(path.to_owned(), disk, cluster, None)
    }

    fn open_disk(
        path: PathBuf,
        disk: Arc<dyn StorageBackend>,
        cluster: &str,
        directory: Option<Directory>,
    ) -> Result<Self, LogError> {
        let head = check::head(&path, &disk)?;
        if head.version == frame::VERSION_WITHOUT_JOURNAL {
            return Err(check::unreadable(
                &path,
                std::io::Error::other("it is from before the journal and has to be converted"),
            ));
        }
        let found = check::examine(&path, &disk, cluster)?;
        reach(CrashPoint::LogOpenExamined);
        let mut database = builder()
            .create_with_backend(Frame::new(Arc::clone(&disk), head.redb_start()))
            .map_err(|error| failed("open", error))?;
        compact(&mut database, &*disk, &head)?;
        let mut log = Self {
            path,
            database,
            journal: Journal::new(Arc::clone(&disk), &head, found.sums.commit),
            marks: Marks::after(Arc::clone(&disk), &head),
            disk,
            epoch: found.pending.epoch.unwrap_or(found.epoch),
            horizon: found.pending.horizon.max(found.horizon),
            pending: found.pending,
            pending_decisions: 0,
            sums: found.sums,
            decisions: found.decisions,
            newest: None,
            bytes: 0,
            forgotten: Vec::new(),
            next_horizon: None,
            poisoned: false,
            _directory: directory,
        };
        log.measure()?;
        log.settle()?;
        Ok(log)
    }

    /// Folds what is pending.
    fn settle(&mut self) -> Result<(), LogError> {
        if self.poisoned || self.pending.is_empty() {
            return Ok(());
        }
        let result = self.fold(Pending::default());
        self.note(&result);
        result
    }

    /// Takes nothing more after a failure.
    fn note(&mut self, result: &Result<(), LogError>) {
        self.poisoned = match result {
            // Found before anything was written: redb has rolled the transaction back.
            Ok(()) | Err(LogError::NotEnded(_) | LogError::EpochWentDown { .. }) => false,
            Err(_) => true,
        };
    }

    /// One append: a frame, or a fold where a frame does not do.
    fn write(&mut self, records: &[Record]) -> Result<(), LogError> {
        let batch = self.resolve(records)?;
        if !self.forgotten.is_empty() || self.next_horizon.is_some() {
            return self.fold(batch);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let full = self.pending.records.len() + batch.records.len() > FOLD_RECORDS;
        let payload = batch.encode();
        if full || !self.journal.has_room(payload.len()) {
            return self.fold(batch);
        }
        let decisions = self.new_decisions(&batch)?;
        self.journal
            .append(&payload)
            .map_err(|error| failed("write the journal", error))?;
        self.marks
            .write(self.journal.position())
            .map_err(|error| failed("write", error))?;
        reach(CrashPoint::LogJournalMarked);
        self.pending_decisions += decisions;
        self.epoch = batch.epoch.unwrap_or(self.epoch);
        self.horizon = batch.horizon.or(self.horizon);
        self.pending.extend(batch);
        Ok(())
    }

    /// One commit of redb: what is pending, then the batch, then what was to be forgotten. The
    /// journal begins again.
    fn fold(&mut self, batch: Pending) -> Result<(), LogError> {
        reach(CrashPoint::LogFoldBefore);
        let forgotten = std::mem::take(&mut self.forgotten);
        let next_horizon = self.next_horizon.take();
        let mut fold = Fold {
            sums: self.sums,
            decisions: self.decisions,
        };
        fold.sums.commit += 1;
        let transaction = self
            .database
            .begin_write()
            .map_err(|error| failed("begin a commit", error))?;
        fold.write(
            &transaction,
            [&self.pending, &batch],
            &forgotten,
            next_horizon,
        )?;
        reach(CrashPoint::LogFoldBeforeCommit);
        transaction
            .commit()
            .map_err(|error| failed("commit", error))?;
        reach(CrashPoint::LogFoldAfterCommit);
        // From here on redb has it all. Before, and in a crash, the frames still count: they are
        // of the commit before.
        self.journal.restart(fold.sums.commit);
        self.marks
            .write(self.journal.position())
            .map_err(|error| failed("write", error))?;
        reach(CrashPoint::LogFoldMarked);
        (self.sums, self.decisions) = (fold.sums, fold.decisions);
        self.pending = Pending::default();
        self.pending_decisions = 0;
        self.epoch = batch.epoch.unwrap_or(self.epoch);
        self.horizon = self.horizon.max(batch.horizon).max(next_horizon);
        self.measure()
    }

    /// Notes what only a fold changes, so that an append need not look.
    fn measure(&mut self) -> Result<(), LogError> {
        let stored = self.stored()?;
        let last = stored.last().map_err(|error| failed("read", error))?;
        self.newest = last.and_then(|(key, _)| key.value().first_chunk::<16>().copied());
        self.bytes = self.disk.len().map_err(|error| failed("measure", error))?;
        Ok(())
    }

    /// The places of records, after all that is there.
    fn resolve(&self, records: &[Record]) -> Result<Pending, LogError> {
        let mut batch = Pending::default();
        for record in records {
            if let Some((gtrid, kind, bqual, body)) = codec::encode(record) {
                let ordinal = if kind == kind::HEURISTIC {
                    self.next_ordinal(&batch, gtrid, bqual)?
                } else {
                    0
                };
                batch.put(codec::key(gtrid, kind, bqual, ordinal), &body);
            } else if let Some((name, body)) = codec::encode_meta(record) {
                match *record {
                    Record::Epoch(appended) => {
                        let current = batch.epoch.unwrap_or(self.epoch);
                        if appended < current {
                            return Err(LogError::EpochWentDown { appended, current });
                        }
                    }
                    Record::Horizon(gtrid) if self.horizon.max(batch.horizon) >= Some(gtrid) => {
                        continue;
                    }
                    _ => {}
                }
                batch.put_meta(record, name, &body);
            }
        }
        Ok(batch)
    }

    /// The ordinal of a branch's next heuristic outcome: none of them replaces another.
    fn next_ordinal(&self, batch: &Pending, gtrid: Gtrid, bqual: Bqual) -> Result<u16, LogError> {
        let pending = batch
            .last_ordinal(gtrid, bqual)
            .max(self.pending.last_ordinal(gtrid, bqual));
        let stored = fold::last_ordinal(&self.stored()?, gtrid, bqual)?;
        // The 65,536th replaces the last one: somebody is hammering one branch by hand.
        Ok(pending.max(stored).map_or(0, |last| last.saturating_add(1)))
    }

    /// How many transactions get their decision with this batch.
    fn new_decisions(&self, batch: &Pending) -> Result<u64, LogError> {
        let mut count = 0;
        let mut stored = None;
        let pending = self.pending.records.last_key_value();
        let newest = self.newest.as_ref().map(|gtrid| &gtrid[..]);
        let newest = newest.max(pending.map(|(key, _)| &key[..16]));
        for key in batch.records.keys() {
            if !begins(key[16]) || self.pending.records.contains_key(key) {
                continue;
            }
            // Most are newer than all others, for their ids begin with the time.
            if Some(&key[..16]) > newest {
                count += 1;
                continue;
            }
            let stored = match &stored {
                Some(stored) => stored,
                None => stored.insert(self.stored()?),
            };
            let former = stored
                .get(key.as_slice())
                .map_err(|error| failed("read", error))?;
            count += u64::from(former.is_none());
        }
        Ok(count)
    }

    /// redb's records.
    fn stored(&self) -> Result<ReadOnlyTable<&'static [u8], &'static [u8]>, LogError> {
        let transaction = self
            .database
            .begin_read()
            .map_err(|error| failed("read", error))?;
        transaction
            .open_table(RECORDS)
            .map_err(|error| failed("open a table", error))
    }
}

/// An orderly end folds, so that the next start finds nothing to do. When it cannot, the frames
/// are there still.
impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = self.settle();
        }
    }
}

impl DecisionLog for EmbeddedLog {
    fn append(&mut self, records: &[Record]) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned);
        }
        if records.is_empty() && self.forgotten.is_empty() && self.next_horizon.is_none() {
            return Ok(());
        }
        let result = self.write(records);
        self.note(&result);
        result
    }

    fn forget(&mut self, gtrids: &[Gtrid], horizon: Gtrid) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned);
        }
        self.forgotten.extend(gtrids);
        self.next_horizon = self.next_horizon.max(Some(horizon));
        Ok(())
    }

    fn visit(&self, each: &mut dyn FnMut(Record)) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned);
        }
        let transaction = self
            .database
            .begin_read()
            .map_err(|error| failed("read", error))?;
        check::read(&self.path, &transaction, &self.pending, each).map(|_| ())
    }

    fn stats(&self) -> LogStats {
        LogStats {
            decisions: self.decisions + self.pending_decisions,
            bytes: self.bytes,
        }
    }
}

/// Whether a record of this kind counts as a decision; a transaction has one of them.
fn begins(kind: u8) -> bool {
    matches!(kind, kind::DECISION | kind::ONE_PHASE | kind::REFUSED)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    // Every checksum of every page, at every start: a log is small, and rot is found before the
    // first decision is taken from it.
    builder.set_check_integrity_on_open(true);
    builder
}

/// Makes an empty log. Its first block, which makes it a log, is written last.
fn create(
    path: &Path,
    disk: &Arc<dyn StorageBackend>,
    cluster: &str,
    journal_pages: u32,
) -> Result<(), LogError> {
    let written = || -> Result<(), redb::Error> {
        disk.set_len(0)?;
        journal::write_blank(&**disk, journal_pages)?;
        let start = frame::BLOCK_BYTES * (u64::from(journal_pages) + 1);
        let database = builder().create_with_backend(Frame::new(Arc::clone(disk), start))?;
        let transaction = database.begin_write()?;
        {
            transaction.open_table(RECORDS)?;
            let mut meta = transaction.open_table(META)?;
            let sums = Sums {
                commit: FIRST_COMMIT,
                ..Sums::default()
            };
            for (name, body) in [
                (name::FORMAT, codec::FORMAT.to_be_bytes().to_vec()),
                (name::CLUSTER, codec::encode_text(cluster)),
                (name::SUMS, sums.encode()),
            ] {
                meta.insert(name, codec::seal(name.as_bytes(), &body).as_slice())?;
            }
        }
        transaction.commit()?;
        database.close()?;
        let created = Mark {
            commit: FIRST_COMMIT,
            frames: 0,
        };
        frame::write_block(disk, journal_pages, rand::random(), created)?;
        Ok(())
    };
    written().map_err(|error| LogError::Open {
        doing: "create the decision log in",
        path: path.to_owned(),
        source: std::io::Error::other(error),
    })
}

/// Writes a log from before the journal anew, with one. The old one is only read.
fn convert(
    path: &Path,
    old: &Arc<dyn StorageBackend>,
    new: &Arc<dyn StorageBackend>,
    cluster: &str,
) -> Result<(), LogError> {
    let head = check::head(path, old)?;
    let found = check::examine(path, old, cluster)?;
    let copy = || -> std::io::Result<()> {
        new.set_len(0)?;
        journal::write_blank(&**new, JOURNAL_PAGES)?;
        let shift = frame::BLOCK_BYTES * u64::from(JOURNAL_PAGES);
        let end = old.len()?;
        let mut bytes = vec![0; COPY_BYTES];
        for offset in (head.redb_start()..end).step_by(COPY_BYTES) {
            let rest = usize::try_from(end - offset).unwrap_or(COPY_BYTES);
            let part = &mut bytes[..rest.min(COPY_BYTES)];
            old.read(offset, part)?;
            new.write(offset + shift, part)?;
        }
        new.sync_data()?;
        frame::write_block(new, JOURNAL_PAGES, rand::random(), head.acknowledged)
    };
    copy().map_err(|source| LogError::Open {
        doing: "write anew, with a journal, the decision log in",
        path: path.to_owned(),
        source,
    })?;
    let copied = check::examine(path, new, cluster)?;
    if copied.sums != found.sums {
        return Err(LogError::Damaged {
            path: path.to_owned(),
            what: "it does not read twice as the same".to_owned(),
        });
    }
    Ok(())
}

fn failed(doing: &str, error: impl fmt::Display) -> LogError {
    LogError::Failed {
        what: format!("cannot {doing}: {error}"),
    }
}

/// Gives back what deleted records occupied, when it is much.
fn compact(
    database: &mut Database,
    disk: &dyn StorageBackend,
    head: &Head,
) -> Result<(), LogError> {
    let bytes = disk.len().map_err(|error| failed("measure", error))?;
    let bytes = bytes.saturating_sub(head.redb_start());
    if bytes < COMPACT_MIN_BYTES {
        return Ok(());
    }
    let used = {
        let transaction = database
            .begin_write()
            .map_err(|error| failed("measure", error))?;
        // Only what we put in: redb counts pages that wait to be freed as used.
        let used = transaction
            .stats()
            .map_err(|error| failed("measure", error))?
            .stored_bytes();
        transaction
            .abort()
            .map_err(|error| failed("measure", error))?;
        used
    };
    if bytes / COMPACT_RATIO > used {
        reach(CrashPoint::LogCompactBefore);
        database
            .compact()
            .map_err(|error| failed("compact", error))?;
        reach(CrashPoint::LogCompactAfter);
    }
    Ok(())
}
