//! Whether a file is exactly the log that was written. It reads everything and changes nothing.

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;

use concord_core::id::Epoch;
use concord_core::record::Record;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableError,
};

use super::super::LogError;
use super::super::codec::{self, Garbage, Sums, name};
use super::frame::{self, Block, Frame, Overlay};
use super::{FIRST_COMMIT, META, RECORDS, begins, builder};

/// Whether a storage without a first block has commits of a log nevertheless: then the block was
/// lost, and the log is damaged rather than new.
pub fn holds_commits(disk: &Arc<dyn StorageBackend>) -> bool {
    let look = || -> Result<bool, redb::Error> {
        if disk.len()? <= frame::BLOCK_BYTES {
            return Ok(false);
        }
        let database = open_overlay(disk)?;
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

fn open_overlay(disk: &Arc<dyn StorageBackend>) -> Result<Database, redb::Error> {
    let overlay = Overlay::new(Arc::clone(disk))?;
    Ok(builder().create_with_backend(Frame(Arc::new(overlay)))?)
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
    let acknowledged = match frame::read_block(&**disk) {
        Ok(Block::Log { acknowledged }) => acknowledged,
        Ok(Block::Newer(found)) => {
            let known = codec::FORMAT;
            return Err(LogError::NewerFormat {
                path: path.to_owned(),
                found,
                known,
            });
        }
        Ok(Block::Blank | Block::Foreign) => {
            return Err(damaged(
                "its first block is not that of a decision log".to_owned(),
            ));
        }
        Err(source) => return Err(unreadable(path, source)),
    };
    // redb asserts what it never writes otherwise. On a damaged file that is one more way of
    // finding the damage, and no reason to die without saying what to do.
    let looked = panic::catch_unwind(AssertUnwindSafe(|| {
        let database = open_overlay(disk).map_err(|error| match error {
            redb::Error::Io(source) => unreadable(path, source),
            error => damaged(error.to_string()),
        })?;
        let transaction = database
            .begin_read()
            .map_err(|error| damaged(error.to_string()))?;
        check_owner(path, &transaction, cluster)?;
        read(path, &transaction, &mut |_| {})
    }));
    let found = looked.map_err(|_| damaged("its pages contradict each other".to_owned()))??;
    if found.sums.commit < acknowledged {
        return Err(damaged(format!(
            "commit {acknowledged} was acknowledged and is not there; the last readable one is {}",
            found.sums.commit
        )));
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
pub struct Found {
    /// The last epoch.
    pub epoch: Epoch,
    /// The sums, which are right.
    pub sums: Sums,
    /// Transactions with a decision.
    pub decisions: u64,
}

/// Shows every record in the order of replay, and checks every seal and the sums.
pub fn read(
    path: &Path,
    transaction: &ReadTransaction,
    each: &mut dyn FnMut(Record),
) -> Result<Found, LogError> {
    let damaged = |what: String| LogError::Damaged {
        path: path.to_owned(),
        what,
    };
    let unopened = |error: TableError| damaged(error.to_string());
    let mut found = Found {
        epoch: Epoch(0),
        sums: Sums::default(),
        decisions: 0,
    };
    let meta = transaction.open_table(META).map_err(unopened)?;
    let mut sums = None;
    let mut heads = Vec::new();
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
        heads.extend(
            codec::decode_meta(name, sealed).map_err(|garbage| refuse(path, name, &garbage))?,
        );
    }
    let sums = sums.ok_or_else(|| damaged("it has no sums".to_owned()))?;
    // The order of replay is that of the record's variants, Horizon's alone excepted.
    heads.sort_by_key(|record| match record {
        Record::Epoch(_) => 0,
        Record::Placement(_) => 1,
        Record::Incarnation { .. } => 2,
        _ => 3,
    });
    for record in heads {
        if let Record::Epoch(epoch) = record {
            found.epoch = epoch;
        }
        each(record);
    }
    let records = transaction.open_table(RECORDS).map_err(unopened)?;
    for entry in records.iter().map_err(|error| damaged(error.to_string()))? {
        let (key, sealed) = entry.map_err(|error| damaged(error.to_string()))?;
        let record = codec::decode(key.value(), sealed.value()).map_err(|garbage| {
            refuse(
                path,
                &format!("the record under {:02x?}", key.value()),
                &garbage,
            )
        })?;
        found.sums.add(key.value(), sealed.value());
        found.decisions += u64::from(key.value().get(16).is_some_and(|kind| begins(*kind)));
        each(record);
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
