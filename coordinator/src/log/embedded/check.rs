//! Whether a file is exactly the log that was written. It reads everything and changes nothing.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;

use concord_core::id::{Epoch, Gtrid};
use concord_core::record::Record;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableError,
};

use super::super::LogError;
use super::super::codec::{self, Garbage, Sums, name};
use super::frame::{self, Block, Frame, Head, Overlay};
use super::journal::{self, ReadError};
use super::pending::Pending;
use super::{FIRST_COMMIT, META, RECORDS, begins, builder};

/// Whether a storage without a first block, but with a journal of so many pages, has commits of a
/// log nevertheless: then the block was lost, and the log is damaged rather than new.
pub fn holds_commits(disk: &Arc<dyn StorageBackend>, journal_pages: u32) -> bool {
    let look = || -> Result<bool, redb::Error> {
        if journal::was_used(&**disk, journal_pages)? {
            return Ok(true);
        }
        let start = frame::BLOCK_BYTES * (u64::from(journal_pages) + 1);
        if disk.len()? <= start {
            return Ok(false);
        }
        let database = open_overlay(disk, start)?;
        let meta = database.begin_read()?.open_table(META)?;
        let sums = meta.get(name::SUMS)?.map(|sealed| sealed.value().to_vec());
        let sums = sums.as_deref().and_then(|sealed| {
            codec::unseal(name::SUMS.as_bytes(), sealed)
                .and_then(Sums::decode)
                .ok()
        });
        Ok(sums.is_some_and(|sums| sums.commit > FIRST_COMMIT))
    };
    panic::catch_unwind(AssertUnwindSafe(look)).is_ok_and(|found| found.unwrap_or(false))
}

fn open_overlay(disk: &Arc<dyn StorageBackend>, start: u64) -> Result<Database, redb::Error> {
    let overlay = Arc::new(Overlay::new(Arc::clone(disk))?);
    Ok(builder().create_with_backend(Frame::new(overlay, start))?)
}

/// Reads the first block, which must be that of a log.
pub fn head(path: &Path, disk: &Arc<dyn StorageBackend>) -> Result<Head, LogError> {
    match frame::read_block(&**disk) {
        Ok(Block::Log(head)) => Ok(head),
        Ok(Block::Newer(found)) => Err(LogError::NewerFormat {
            path: path.to_owned(),
            found,
            known: frame::VERSION,
        }),
        Ok(Block::Blank | Block::Foreign) => Err(LogError::Damaged {
            path: path.to_owned(),
            what: "its first block is not that of a decision log".to_owned(),
        }),
        Err(source) => Err(unreadable(path, source)),
    }
}

/// Reads the whole log without changing a byte, and refuses it when anything is wrong.
pub fn examine(
    path: &Path,
    disk: &Arc<dyn StorageBackend>,
    cluster: &str,
) -> Result<Found, LogError> {
    let damaged = |what: String| LogError::Damaged {
        path: path.to_owned(),
        what,
    };
    let head = head(path, disk)?;
    // redb asserts what it never writes otherwise. On a damaged file that is one more way of
    // finding the damage, and no reason to die without saying what to do.
    let looked = panic::catch_unwind(AssertUnwindSafe(|| {
        let database = open_overlay(disk, head.redb_start()).map_err(|error| match error {
            redb::Error::Io(source) => unreadable(path, source),
            error => damaged(error.to_string()),
        })?;
        let transaction = database
            .begin_read()
            .map_err(|error| damaged(error.to_string()))?;
        check_owner(path, &transaction, cluster)?;
        read(path, &transaction, &Pending::default(), &mut |_| {})
    }));
    let mut found = looked.map_err(|_| damaged("its pages contradict each other".to_owned()))??;
    let acknowledged = head.acknowledged.commit;
    if found.sums.commit < acknowledged {
        return Err(damaged(format!(
            "commit {acknowledged} was acknowledged and is not there; the last readable one is {}",
            found.sums.commit
        )));
    }
    let payloads = match journal::read(&**disk, &head, found.sums.commit) {
        Ok(payloads) => payloads,
        Err(ReadError::Io(source)) => return Err(unreadable(path, source)),
        Err(error) => return Err(damaged(error.to_string())),
    };
    for (index, payload) in payloads.iter().enumerate() {
        let what = format!("frame {} of its journal", index + 1);
        found
            .pending
            .extend_from(payload)
            .map_err(|garbage| refuse(path, &what, &garbage))?;
    }
    Ok(found)
}

fn check_owner(path: &Path, transaction: &ReadTransaction, cluster: &str) -> Result<(), LogError> {
    let damaged = |what: String| LogError::Damaged {
        path: path.to_owned(),
        what,
    };
    let meta = transaction
        .open_table(META)
        .map_err(|error| damaged(error.to_string()))?;
    let body = |name: &'static str| -> Result<Vec<u8>, LogError> {
        let sealed = meta
            .get(name)
            .map_err(|error| damaged(error.to_string()))?
            .ok_or_else(|| damaged(format!("it has no {name}")))?;
        codec::unseal(name.as_bytes(), sealed.value())
            .map(<[u8]>::to_vec)
            .map_err(|garbage| refuse(path, name, &garbage))
    };
    let format = body(name::FORMAT)?;
    let found = <[u8; 4]>::try_from(format.as_slice())
        .map(u32::from_be_bytes)
        .map_err(|_| damaged("its format is not a number".to_owned()))?;
    if found > codec::FORMAT {
        let known = codec::FORMAT;
        return Err(LogError::NewerFormat {
            path: path.to_owned(),
            found,
            known,
        });
    }
    let found = codec::decode_text(&body(name::CLUSTER)?)
        .map_err(|garbage| refuse(path, name::CLUSTER, &garbage))?;
    if found != cluster {
        let expected = cluster.to_owned();
        return Err(LogError::OtherCluster {
            path: path.to_owned(),
            found,
            expected,
        });
    }
    Ok(())
}

/// What a pass over the whole log found.
#[derive(Default)]
pub struct Found {
    /// The last epoch in redb.
    pub epoch: Epoch,
    /// The horizon in redb.
    pub horizon: Option<Gtrid>,
    /// The sums of redb, which are right.
    pub sums: Sums,
    /// Transactions with a decision in redb.
    pub decisions: u64,
    /// What the journal holds; only [`examine`] looks there.
    pub pending: Pending,
}

/// Shows every record in the order of replay, the pending ones in their places, and checks every
/// seal and the sums.
pub fn read(
    path: &Path,
    transaction: &ReadTransaction,
    pending: &Pending,
    each: &mut dyn FnMut(Record),
) -> Result<Found, LogError> {
    let damaged = |what: String| LogError::Damaged {
        path: path.to_owned(),
        what,
    };
    let mut found = Found::default();
    let sums = read_meta(path, transaction, pending, &mut found, each)?;
    let show = |key: &[u8], sealed: &[u8]| {
        let what = || format!("the record under {key:02x?}");
        codec::decode(key, sealed).map_err(|garbage| refuse(path, &what(), &garbage))
    };
    let mut waiting = pending.records.iter().peekable();
    let records = transaction
        .open_table(RECORDS)
        .map_err(|error| damaged(error.to_string()))?;
    for entry in records.iter().map_err(|error| damaged(error.to_string()))? {
        let (key, sealed) = entry.map_err(|error| damaged(error.to_string()))?;
        let (key, sealed) = (key.value(), sealed.value());
        let record = show(key, sealed)?;
        found.sums.add(key, sealed);
        found.decisions += u64::from(key.get(16).is_some_and(|kind| begins(*kind)));
        while let Some((key, sealed)) = waiting.next_if(|(at, _)| at.as_slice() < key) {
            each(show(key, sealed)?);
        }
        match waiting.next_if(|(at, _)| at.as_slice() == key) {
            Some((key, sealed)) => each(show(key, sealed)?),
            None => each(record),
        }
    }
    for (key, sealed) in waiting {
        each(show(key, sealed)?);
    }
    found.sums.commit = sums.commit;
    if found.sums != sums {
        return Err(damaged(format!(
            "it holds {} records and should hold {}, or they are not those that were written",
            found.sums.count, sums.count
        )));
    }
    Ok(found)
}

/// Shows what is not of a transaction, and returns the sums as they are stored.
fn read_meta(
    path: &Path,
    transaction: &ReadTransaction,
    pending: &Pending,
    found: &mut Found,
    each: &mut dyn FnMut(Record),
) -> Result<Sums, LogError> {
    let damaged = |what: String| LogError::Damaged {
        path: path.to_owned(),
        what,
    };
    let unopened = |error: TableError| damaged(error.to_string());
    let decode = |name: &str, sealed: &[u8]| {
        codec::decode_meta(name, sealed).map_err(|garbage| refuse(path, name, &garbage))
    };
    let meta = transaction.open_table(META).map_err(unopened)?;
    let mut sums = None;
    let mut heads: BTreeMap<String, Record> = BTreeMap::new();
    for entry in meta.iter().map_err(|error| damaged(error.to_string()))? {
        let (name, sealed) = entry.map_err(|error| damaged(error.to_string()))?;
        let (name, sealed) = (name.value(), sealed.value());
        if name == name::SUMS {
            let body = codec::unseal(name.as_bytes(), sealed);
            sums = Some(
                body.and_then(Sums::decode)
                    .map_err(|garbage| refuse(path, name, &garbage))?,
            );
        }
        if let Some(record) = decode(name, sealed)? {
            match record {
                Record::Epoch(epoch) => found.epoch = epoch,
                Record::Horizon(gtrid) => found.horizon = Some(gtrid),
                _ => {}
            }
            heads.insert(name.to_owned(), record);
        }
    }
    let sums = sums.ok_or_else(|| damaged("it has no sums".to_owned()))?;
    for (name, sealed) in &pending.meta {
        heads.extend(decode(name, sealed)?.map(|record| (name.clone(), record)));
    }
    // The order of replay is that of the record's variants, Horizon's alone excepted.
    let mut heads: Vec<Record> = heads.into_values().collect();
    heads.sort_by_key(|record| match record {
        Record::Epoch(_) => 0,
        Record::Placement(_) => 1,
        Record::Incarnation { .. } => 2,
        _ => 3,
    });
    heads.into_iter().for_each(each);
    Ok(sums)
}

fn refuse(path: &Path, what: &str, garbage: &Garbage) -> LogError {
    let path = path.to_owned();
    match garbage {
        Garbage::Version(found) => LogError::NewerFormat {
            path,
            found: (*found).into(),
            known: codec::VERSION.into(),
        },
        garbage => LogError::Damaged {
            path,
            what: format!("{what}: {garbage}"),
        },
    }
}

pub fn unreadable(path: &Path, source: std::io::Error) -> LogError {
    LogError::Open {
        doing: "read the decision log in",
        path: path.to_owned(),
        source,
    }
}
