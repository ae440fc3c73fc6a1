//! The decision log in one file on the coordinator's own disk, on redb.
//!
//! It owns the file, its lock and its integrity. It refuses to open what another process uses,
//! what belongs to another cluster or a later version, and what is not exactly what was written:
//! a torn end, which nobody was told of, is rolled back silently, and anything else that is wrong
//! is an error that names what to do. The choice of redb and of its settings is explained, with
//! measurements, in `coordinator/docs/adr/0001-embedded-log.md`; the format is [`super::codec`].

mod check;
mod files;
mod frame;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use concord_core::id::{Bqual, Epoch, Gtrid};
use concord_core::record::Record;
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, Table, TableDefinition,
    WriteTransaction,
};

use self::files::Directory;
use self::frame::{Block, Frame};
use super::codec::{self, Key, Sums, kind, name};
use super::{DecisionLog, LogError, LogStats};

/// Bytes that redb may cache. Replay reads once and appends touch the newest pages, so more would
/// only be memory.
const CACHE_BYTES: usize = 16 << 20;
/// A file is compacted when it is opened, when it is larger than this (what a few thousand
/// decisions need)...
const COMPACT_MIN_BYTES: u64 = 2 << 20;
/// ...and more than this many times the records in it. A log in steady use has about twice.
const COMPACT_RATIO: u64 = 4;

/// Number of the commit that creates a log.
const FIRST_COMMIT: u64 = 1;

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

/// The log.
pub struct EmbeddedLog {
    path: PathBuf,
    database: Database,
    disk: Arc<dyn StorageBackend>,
    epoch: Epoch,
    sums: Sums,
    decisions: u64,
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
        let disk = if let Some(disk) = directory.open_file()? {
            disk
        } else {
            let disk = directory.create_file()?;
            create(&path, &disk, cluster)?;
            directory.publish_file()?;
            disk
        };
        Self::open_disk(path, disk, cluster, Some(directory))
    }

    /// Opens the log on any storage. One that was never finished being created is created; `path`
    /// is what errors call it.
    pub fn open_with_backend(
        disk: Box<dyn StorageBackend>,
        path: &Path,
        cluster: &str,
    ) -> Result<Self, LogError> {
        let disk: Arc<dyn StorageBackend> = Arc::from(disk);
        let block = frame::read_block(&*disk).map_err(|source| check::unreadable(path, source))?;
        if block == Block::Blank && !check::holds_commits(&disk) {
            create(path, &disk, cluster)?;
        }
        Self::open_disk(path.to_owned(), disk, cluster, None)
    }

    fn open_disk(
        path: PathBuf,
        disk: Arc<dyn StorageBackend>,
        cluster: &str,
        directory: Option<Directory>,
    ) -> Result<Self, LogError> {
        let found = check::examine(&path, &disk, cluster)?;
        let mut database = builder()
            .create_with_backend(Frame(Arc::clone(&disk)))
            .map_err(|error| failed("open", error))?;
        compact(&mut database, &*disk)?;
        Ok(Self {
            path,
            database,
            disk,
            epoch: found.epoch,
            sums: found.sums,
            decisions: found.decisions,
            forgotten: Vec::new(),
            next_horizon: None,
            poisoned: false,
            _directory: directory,
        })
    }

    /// One commit: the records, then what was to be forgotten.
    fn commit(&mut self, records: &[Record]) -> Result<(), LogError> {
        let mut next = Next {
            epoch: self.epoch,
            sums: self.sums,
            decisions: self.decisions,
        };
        next.sums.commit += 1;
        let transaction = self
            .database
            .begin_write()
            .map_err(|error| failed("begin a commit", error))?;
        let forgotten = std::mem::take(&mut self.forgotten);
        let horizon = self.next_horizon.take();
        next.write(&transaction, records, &forgotten, horizon)?;
        transaction
            .commit()
            .map_err(|error| failed("commit", error))?;
        frame::acknowledge(&*self.disk, next.sums.commit)
            .map_err(|error| failed("write", error))?;
        (self.epoch, self.sums, self.decisions) = (next.epoch, next.sums, next.decisions);
        Ok(())
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
        let result = self.commit(records);
        self.poisoned = match &result {
            // Found before anything was written: redb has rolled the transaction back.
            Ok(()) | Err(LogError::NotEnded(_) | LogError::EpochWentDown { .. }) => false,
            Err(_) => true,
        };
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
        check::read(&self.path, &transaction, each).map(|_| ())
    }

    fn stats(&self) -> LogStats {
        LogStats {
            decisions: self.decisions,
            bytes: self.disk.len().unwrap_or_default(),
        }
    }
}

/// What the log will be after a commit.
struct Next {
    epoch: Epoch,
    sums: Sums,
    decisions: u64,
}

type Records<'t> = Table<'t, &'static [u8], &'static [u8]>;

impl Next {
    fn write(
        &mut self,
        transaction: &WriteTransaction,
        records: &[Record],
        forgotten: &[Gtrid],
        horizon: Option<Gtrid>,
    ) -> Result<(), LogError> {
        let mut table = transaction
            .open_table(RECORDS)
            .map_err(|error| failed("open a table", error))?;
        let mut meta = transaction
            .open_table(META)
            .map_err(|error| failed("open a table", error))?;
        for record in records {
            if let Some((gtrid, kind, bqual, body)) = codec::encode(record) {
                self.insert(&mut table, gtrid, kind, bqual, &body)?;
            } else if let Record::Horizon(gtrid) = record {
                move_horizon(&mut meta, *gtrid)?;
            } else if let Some((name, body)) = codec::encode_meta(record) {
                if let Record::Epoch(appended) = *record {
                    if appended < self.epoch {
                        let current = self.epoch;
                        return Err(LogError::EpochWentDown { appended, current });
                    }
                    self.epoch = appended;
                }
                put_meta(&mut meta, &name, &body)?;
            }
        }
        for gtrid in forgotten {
            self.forget(&mut table, *gtrid)?;
        }
        if let Some(horizon) = horizon {
            move_horizon(&mut meta, horizon)?;
        }
        put_meta(&mut meta, name::SUMS, &self.sums.encode())
    }

    fn insert(
        &mut self,
        table: &mut Records<'_>,
        gtrid: Gtrid,
        kind: u8,
        bqual: Bqual,
        body: &[u8],
    ) -> Result<(), LogError> {
        let ordinal = if kind == kind::HEURISTIC {
            next_ordinal(table, gtrid, bqual)?
        } else {
            0
        };
        let key = codec::key(gtrid, kind, bqual, ordinal);
        let sealed = codec::seal(&key, body);
        let former = table
            .insert(key.as_slice(), sealed.as_slice())
            .map_err(|error| failed("insert", error))?;
        match former {
            Some(former) => self.sums.remove(&key, former.value()),
            None => self.decisions += u64::from(begins(kind)),
        }
        self.sums.add(&key, &sealed);
        Ok(())
    }

    fn forget(&mut self, table: &mut Records<'_>, gtrid: Gtrid) -> Result<(), LogError> {
        let first = codec::key(gtrid, 0, Bqual(0), 0);
        let last = codec::key(gtrid, u8::MAX, Bqual(u32::MAX), u16::MAX);
        let mut keys: Vec<Key> = Vec::new();
        for entry in table
            .range(first.as_slice()..=last.as_slice())
            .map_err(|error| failed("read", error))?
        {
            let (key, _) = entry.map_err(|error| failed("read", error))?;
            keys.extend(Key::try_from(key.value()));
        }
        let has = |kind| keys.iter().any(|key| key[16] == kind);
        if (has(kind::DECISION) || has(kind::ONE_PHASE)) && !has(kind::END) {
            return Err(LogError::NotEnded(gtrid));
        }
        for key in keys.iter().filter(|key| key[16] != kind::HEURISTIC) {
            let former = table
                .remove(key.as_slice())
                .map_err(|error| failed("delete", error))?;
            if let Some(former) = former {
                self.sums.remove(key, former.value());
                self.decisions -= u64::from(begins(key[16]));
            }
        }
        Ok(())
    }
}

/// Whether a record of this kind counts as a decision; a transaction has one of them.
fn begins(kind: u8) -> bool {
    matches!(kind, kind::DECISION | kind::ONE_PHASE | kind::REFUSED)
}

/// The ordinal of a branch's next heuristic outcome: none of them replaces another.
fn next_ordinal(table: &Records<'_>, gtrid: Gtrid, bqual: Bqual) -> Result<u16, LogError> {
    let first = codec::key(gtrid, kind::HEURISTIC, bqual, 0);
    let last = codec::key(gtrid, kind::HEURISTIC, bqual, u16::MAX);
    let mut range = table
        .range(first.as_slice()..=last.as_slice())
        .map_err(|error| failed("read", error))?;
    match range.next_back() {
        None => Ok(0),
        Some(entry) => {
            let (key, _) = entry.map_err(|error| failed("read", error))?;
            let ordinal = key
                .value()
                .last_chunk()
                .map_or(0, |bytes| u16::from_be_bytes(*bytes));
            // The 65,536th replaces the last one: somebody is hammering one branch by hand.
            Ok(ordinal.saturating_add(1))
        }
    }
}

type Meta<'t> = Table<'t, &'static str, &'static [u8]>;

fn put_meta(meta: &mut Meta<'_>, name: &str, body: &[u8]) -> Result<(), LogError> {
    let sealed = codec::seal(name.as_bytes(), body);
    meta.insert(name, sealed.as_slice())
        .map_err(|error| failed("insert", error))?;
    Ok(())
}

fn move_horizon(meta: &mut Meta<'_>, horizon: Gtrid) -> Result<(), LogError> {
    let current = meta
        .get(name::HORIZON)
        .map_err(|error| failed("read", error))?
        .and_then(|sealed| {
            codec::decode_meta(name::HORIZON, sealed.value())
                .ok()
                .flatten()
        });
    if current >= Some(Record::Horizon(horizon)) {
        return Ok(());
    }
    put_meta(meta, name::HORIZON, &horizon.0)
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
fn create(path: &Path, disk: &Arc<dyn StorageBackend>, cluster: &str) -> Result<(), LogError> {
    let written = || -> Result<(), redb::Error> {
        disk.set_len(0)?;
        disk.set_len(frame::BLOCK_BYTES)?;
        let database = builder().create_with_backend(Frame(Arc::clone(disk)))?;
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
        frame::write_block(&**disk, FIRST_COMMIT)?;
        Ok(())
    };
    written().map_err(|error| LogError::Open {
        doing: "create the decision log in",
        path: path.to_owned(),
        source: std::io::Error::other(error),
    })
}

fn failed(doing: &str, error: impl fmt::Display) -> LogError {
    LogError::Failed {
        what: format!("cannot {doing}: {error}"),
    }
}

/// Gives back what deleted records occupied, when it is much.
fn compact(database: &mut Database, disk: &dyn StorageBackend) -> Result<(), LogError> {
    let bytes = disk.len().map_err(|error| failed("measure", error))?;
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
        database
            .compact()
            .map_err(|error| failed("compact", error))?;
    }
    Ok(())
}
