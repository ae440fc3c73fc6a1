//! Records that are durable in the journal and not in redb yet, ready for redb's tables.
//!
//! It owns their form: of records of transactions the key and the sealed body, of the others the
//! name and the sealed body, exactly what redb will be given ([`codec`]). A later one replaces an
//! earlier one, so that folding them is putting them, in any order and any number of times.
//!
//! ```text
//! payload   entry*
//! entry     0u8 ‖ key 23 bytes ‖ length u32 ‖ sealed body
//!           1u8 ‖ length u32 ‖ name ‖ length u32 ‖ sealed body
//! ```

use std::collections::BTreeMap;

use concord_core::id::{Bqual, Epoch, Gtrid};
use concord_core::record::Record;

use super::super::codec::{self, Garbage, KEY_BYTES, Key, kind};

const RECORD: u8 = 0;
const META: u8 = 1;

/// Records by their place.
#[derive(Debug, Default)]
pub struct Pending {
    /// Records of transactions: sealed bodies by key.
    pub records: BTreeMap<Key, Vec<u8>>,
    /// The other records: sealed bodies by name.
    pub meta: BTreeMap<String, Vec<u8>>,
    /// The epoch in `meta`.
    pub epoch: Option<Epoch>,
    /// The horizon in `meta`.
    pub horizon: Option<Gtrid>,
}

impl Pending {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.meta.is_empty()
    }

    /// Puts a record of a transaction.
    pub fn put(&mut self, key: Key, body: &[u8]) {
        self.records.insert(key, codec::seal(&key, body));
    }

    /// Puts another record.
    pub fn put_meta(&mut self, record: &Record, name: String, body: &[u8]) {
        self.note(record);
        let sealed = codec::seal(name.as_bytes(), body);
        self.meta.insert(name, sealed);
    }

    fn note(&mut self, record: &Record) {
        match record {
            Record::Epoch(epoch) => self.epoch = Some(*epoch),
            Record::Horizon(gtrid) => self.horizon = Some(*gtrid),
            _ => {}
        }
    }

    /// The highest ordinal of a branch's heuristic outcomes.
    pub fn last_ordinal(&self, gtrid: Gtrid, bqual: Bqual) -> Option<u16> {
        let first = codec::key(gtrid, kind::HEURISTIC, bqual, 0);
        let last = codec::key(gtrid, kind::HEURISTIC, bqual, u16::MAX);
        let (key, _) = self.records.range(first..=last).next_back()?;
        Some(codec::ordinal(key))
    }

    /// Takes in what came after it.
    pub fn extend(&mut self, later: Self) {
        self.records.extend(later.records);
        self.meta.extend(later.meta);
        self.epoch = later.epoch.or(self.epoch);
        self.horizon = later.horizon.or(self.horizon);
    }

    /// Its bytes in the journal.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256 * self.records.len() + 64);
        for (key, sealed) in &self.records {
            bytes.push(RECORD);
            bytes.extend_from_slice(key);
            put_bytes(&mut bytes, sealed);
        }
        for (name, sealed) in &self.meta {
            bytes.push(META);
            put_bytes(&mut bytes, name.as_bytes());
            put_bytes(&mut bytes, sealed);
        }
        bytes
    }

    /// Takes in what a frame holds, strictly: every body must be sealed and legal.
    pub fn extend_from(&mut self, payload: &[u8]) -> Result<(), Garbage> {
        let mut rest = payload;
        while let Some((&tag, after)) = rest.split_first() {
            rest = after;
            match tag {
                RECORD => {
                    let key = Key::try_from(take(&mut rest, KEY_BYTES)?)
                        .map_err(|_| Garbage::Short("key"))?;
                    let sealed = take_bytes(&mut rest)?;
                    codec::decode(&key, sealed)?;
                    self.records.insert(key, sealed.to_vec());
                }
                META => {
                    let name = std::str::from_utf8(take_bytes(&mut rest)?)
                        .map_err(|_| Garbage::Illegal("name"))?;
                    let sealed = take_bytes(&mut rest)?;
                    let record =
                        codec::decode_meta(name, sealed)?.ok_or(Garbage::Illegal("name"))?;
                    self.note(&record);
                    self.meta.insert(name.to_owned(), sealed.to_vec());
                }
                _ => return Err(Garbage::Illegal("entry")),
            }
        }
        Ok(())
    }
}

fn put_bytes(bytes: &mut Vec<u8>, sealed: &[u8]) {
    // A record is far below 4 GiB, and so is what the journal has room for.
    let length = u32::try_from(sealed.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(sealed);
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Garbage> {
    let (taken, after) = rest
        .split_at_checked(length)
        .ok_or(Garbage::Short("entry"))?;
    *rest = after;
    Ok(taken)
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Garbage> {
    let length = take(rest, 4)?
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    take(rest, length)
}
