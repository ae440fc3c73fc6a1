//! Folding: what is pending, and what is to be forgotten, becomes one commit of redb.
//!
//! It owns the tables' content and the sums over them. It refuses to forget what has not ended.

use concord_core::id::{Bqual, Gtrid};
use concord_core::record::Record;
use redb::{ReadableTable, Table, WriteTransaction};

use super::super::LogError;
use super::super::codec::{self, Key, Sums, kind, name};
use super::pending::Pending;
use super::{META, RECORDS, begins, failed};

type Records<'t> = Table<'t, &'static [u8], &'static [u8]>;
type Meta<'t> = Table<'t, &'static str, &'static [u8]>;

/// What redb will hold after the commit.
pub struct Fold {
    /// The sums.
    pub sums: Sums,
    /// Transactions with a decision.
    pub decisions: u64,
}

impl Fold {
    /// Writes it all; the commit is the caller's. What was pending first comes first.
    pub fn write(
        &mut self,
        transaction: &WriteTransaction,
        pending: [&Pending; 2],
        forgotten: &[Gtrid],
        horizon: Option<Gtrid>,
    ) -> Result<(), LogError> {
        let mut table = transaction
            .open_table(RECORDS)
            .map_err(|error| failed("open a table", error))?;
        let mut meta = transaction
            .open_table(META)
            .map_err(|error| failed("open a table", error))?;
        for pending in pending {
            for (key, sealed) in &pending.records {
                self.insert(&mut table, key, sealed)?;
            }
            for (name, sealed) in &pending.meta {
                put(&mut meta, name, sealed)?;
            }
        }
        for gtrid in forgotten {
            self.forget(&mut table, *gtrid)?;
        }
        if let Some(horizon) = horizon {
            move_horizon(&mut meta, horizon)?;
        }
        let sums = codec::seal(name::SUMS.as_bytes(), &self.sums.encode());
        put(&mut meta, name::SUMS, &sums)
    }

    fn insert(
        &mut self,
        table: &mut Records<'_>,
        key: &Key,
        sealed: &[u8],
    ) -> Result<(), LogError> {
        let former = table
            .insert(key.as_slice(), sealed)
            .map_err(|error| failed("insert", error))?;
        match former {
            Some(former) => self.sums.remove(key, former.value()),
            None => self.decisions += u64::from(begins(key[16])),
        }
        self.sums.add(key, sealed);
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
        let ended = has(kind::END) || has(kind::REFUSED);
        if (has(kind::DECISION) || has(kind::ONE_PHASE)) && !ended {
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

/// The highest ordinal of a branch's heuristic outcomes in redb.
pub fn last_ordinal(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    gtrid: Gtrid,
    bqual: Bqual,
) -> Result<Option<u16>, LogError> {
    let first = codec::key(gtrid, kind::HEURISTIC, bqual, 0);
    let last = codec::key(gtrid, kind::HEURISTIC, bqual, u16::MAX);
    let mut range = table
        .range(first.as_slice()..=last.as_slice())
        .map_err(|error| failed("read", error))?;
    match range.next_back() {
        None => Ok(None),
        Some(entry) => {
            let (key, _) = entry.map_err(|error| failed("read", error))?;
            Ok(<&Key>::try_from(key.value()).ok().map(codec::ordinal))
        }
    }
}

fn put(meta: &mut Meta<'_>, name: &str, sealed: &[u8]) -> Result<(), LogError> {
    meta.insert(name, sealed)
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
    let sealed = codec::seal(name::HORIZON.as_bytes(), &horizon.0);
    put(meta, name::HORIZON, &sealed)
}
