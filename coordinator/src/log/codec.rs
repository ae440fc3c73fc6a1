//! The whole disk format of the decision log. Numbers here are for ever.
//!
//! Two tables. `records` maps 23 bytes to a sealed body, in this order:
//!
//! ```text
//! gtrid 16 ‖ kind u8 ‖ bqual u32 ‖ ordinal u16
//!   kind 1 Decision    epoch u64 ‖ request ‖ count u16 ‖ count × (bqual u32 ‖ participant text)
//!   kind 2 OnePhase    epoch u64 ‖ request ‖ participant text               bqual in the key
//!   kind 3 Refused     request ‖ reason
//!   kind 4 Heuristic   participant text ‖ committed u8 ‖ reason   bqual and ordinal in the key
//!                      and after it the request, unless there is none
//!   kind 5 End         committed u8
//! request   0u8 for none, or 1u8 ‖ id text ‖ fingerprint u64
//! reason    code text ‖ message text
//! text      length u32 ‖ UTF-8
//! committed 0 no, 1 yes, and in Heuristic 2 for unknown
//! ```
//!
//! `meta` maps a name to a sealed body: `format` u32, `cluster` text, `epoch` u64, `horizon` 16
//! bytes, `placement` count u16 ‖ count × text, `incarnation/<participant>` text, and
//! after it 16 bytes unless they are all 0, and `sums` (see [`Sums`]).
//!
//! A sealed body is `version u8 ‖ body ‖ crc32 u32`, the CRC over key, version and body, so that a
//! body under the wrong key is garbage too. All integers are big-endian. Reading is strict: an
//! unknown number, a byte too many or too few, is an error and never a guess.

use concord_core::id::{Bqual, Epoch, Gtrid, ParticipantName, Request, RequestId};
use concord_core::reason::Reason;
use concord_core::record::Record;

/// Format of the file as a whole, in `meta`.
pub const FORMAT: u32 = 1;
/// Version of every sealed body.
pub const VERSION: u8 = 1;
/// Bytes of a key of `records`.
pub const KEY_BYTES: usize = 23;

/// Kind numbers in keys; their order is the order of replay.
pub mod kind {
    /// `Decision`
    pub const DECISION: u8 = 1;
    /// `OnePhase`
    pub const ONE_PHASE: u8 = 2;
    /// `Refused`
    pub const REFUSED: u8 = 3;
    /// `Heuristic`
    pub const HEURISTIC: u8 = 4;
    /// `End`
    pub const END: u8 = 5;
}

/// Names in `meta`.
pub mod name {
    /// Format of the file.
    pub const FORMAT: &str = "format";
    /// The cluster it belongs to.
    pub const CLUSTER: &str = "cluster";
    /// The last epoch.
    pub const EPOCH: &str = "epoch";
    /// The horizon.
    pub const HORIZON: &str = "horizon";
    /// The placement.
    pub const PLACEMENT: &str = "placement";
    /// A participant's incarnation; its name follows.
    pub const INCARNATION: &str = "incarnation/";
    /// Sums over the whole log.
    pub const SUMS: &str = "sums";
}

/// Why bytes are not of this format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// The bytes are not those that were written.
    #[error("its checksum does not match")]
    Checksum,
    /// It was written by a later version.
    #[error("it has version {0}, and this program knows {VERSION}")]
    Version(u8),
    /// It ends early.
    #[error("it ends within its {0}")]
    Short(&'static str),
    /// It goes on after its end.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// A number or text that this format does not have.
    #[error("its {0} is not legal")]
    Illegal(&'static str),
}

/// Position of a record of a transaction.
pub type Key = [u8; KEY_BYTES];

/// The key of a transaction's record.
pub fn key(gtrid: Gtrid, kind: u8, bqual: Bqual, ordinal: u16) -> Key {
    let mut key = [0; KEY_BYTES];
    key[..16].copy_from_slice(&gtrid.0);
    key[16] = kind;
    key[17..21].copy_from_slice(&bqual.0.to_be_bytes());
    key[21..].copy_from_slice(&ordinal.to_be_bytes());
    key
}

/// The ordinal in a key.
pub fn ordinal(key: &Key) -> u16 {
    u16::from_be_bytes([key[KEY_BYTES - 2], key[KEY_BYTES - 1]])
}

/// The body with version and checksum.
pub fn seal(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(body.len() + 5);
    sealed.push(VERSION);
    sealed.extend_from_slice(body);
    let crc = checksum(key, &sealed);
    sealed.extend_from_slice(&crc.to_be_bytes());
    sealed
}

/// The body of a sealed one.
pub fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], Garbage> {
    let (versioned, crc) = sealed
        .split_last_chunk::<4>()
        .ok_or(Garbage::Short("checksum"))?;
    if checksum(key, versioned) != u32::from_be_bytes(*crc) {
        return Err(Garbage::Checksum);
    }
    match versioned.split_first().ok_or(Garbage::Short("version"))? {
        (&VERSION, body) => Ok(body),
        (&version, _) => Err(Garbage::Version(version)),
    }
}

fn checksum(key: &[u8], versioned: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(versioned);
    crc.finalize()
}

/// Sums over the whole log, kept in every commit: a record that is missing, or one too many, shows
/// even when each of the others is sound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Number of the commit, from 1.
    pub commit: u64,
    /// Records of transactions.
    pub count: u64,
    /// Sum of [`Sums::weight`] of each, modulo 2⁶⁴.
    pub weight: u64,
}

impl Sums {
    /// What an entry adds to the sum: a mix of its key's and its own CRC.
    pub fn weight(key: &[u8], sealed: &[u8]) -> u64 {
        u64::from(crc32fast::hash(key)) << 32 | u64::from(crc32fast::hash(sealed))
    }

    /// Counts an entry in.
    pub fn add(&mut self, key: &[u8], sealed: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.weight = self.weight.wrapping_add(Self::weight(key, sealed));
    }

    /// Counts an entry out.
    pub fn remove(&mut self, key: &[u8], sealed: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.weight = self.weight.wrapping_sub(Self::weight(key, sealed));
    }

    /// Its body.
    pub fn encode(self) -> Vec<u8> {
        [self.commit, self.count, self.weight]
            .iter()
            .flat_map(|n| n.to_be_bytes())
            .collect()
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, Garbage> {
        let mut reader = Reader(body);
        let commit = reader.u64("commit number")?;
        let count = reader.u64("count")?;
        let weight = reader.u64("weight")?;
        reader.end(Self {
            commit,
            count,
            weight,
        })
    }
}

/// A record of a transaction: its kind, the branch in its key, and its body. None for the other
/// records, which live in `meta`.
pub fn encode(record: &Record) -> Option<(Gtrid, u8, Bqual, Vec<u8>)> {
    let mut body = Vec::with_capacity(128);
    let (gtrid, kind, bqual) = match record {
        Record::Decision {
            gtrid,
            epoch,
            branches,
            request,
        } => {
            body.extend_from_slice(&epoch.0.to_be_bytes());
            put_request(&mut body, request.as_ref());
            put_count(&mut body, branches.len());
            for (bqual, participant) in branches {
                body.extend_from_slice(&bqual.0.to_be_bytes());
                put_text(&mut body, participant.as_str());
            }
            (gtrid, kind::DECISION, Bqual(0))
        }
        Record::OnePhase {
            gtrid,
            epoch,
            bqual,
            participant,
            request,
        } => {
            body.extend_from_slice(&epoch.0.to_be_bytes());
            put_request(&mut body, request.as_ref());
            put_text(&mut body, participant.as_str());
            (gtrid, kind::ONE_PHASE, *bqual)
        }
        Record::Refused {
            gtrid,
            request,
            reason,
        } => {
            put_request(&mut body, Some(request));
            put_reason(&mut body, reason);
            (gtrid, kind::REFUSED, Bqual(0))
        }
        Record::Heuristic {
            gtrid,
            bqual,
            participant,
            committed,
            reason,
            request,
        } => {
            put_text(&mut body, participant.as_str());
            body.push(committed.map_or(2, u8::from));
            put_reason(&mut body, reason);
            if request.is_some() {
                put_request(&mut body, request.as_ref());
            }
            (gtrid, kind::HEURISTIC, *bqual)
        }
        Record::End { gtrid, committed } => {
            body.push(u8::from(*committed));
            (gtrid, kind::END, Bqual(0))
        }
        Record::Epoch(_)
        | Record::Horizon(_)
        | Record::Placement(_)
        | Record::Incarnation { .. } => return None,
    };
    Some((*gtrid, kind, bqual, body))
}

/// Reads an entry of `records`.
pub fn decode(key: &[u8], sealed: &[u8]) -> Result<Record, Garbage> {
    let key: &Key = key.try_into().map_err(|_| Garbage::Illegal("key"))?;
    let mut reader = Reader(unseal(key, sealed)?);
    let mut at = Reader(key);
    let gtrid = Gtrid(at.array("gtrid")?);
    let kind = at.u8("kind")?;
    let bqual = Bqual(at.u32("bqual")?);
    let ordinal = u16::from_be_bytes(at.array("ordinal")?);
    let has_bqual = matches!(kind, kind::ONE_PHASE | kind::HEURISTIC);
    if has_bqual != (bqual.0 != 0) || (kind != kind::HEURISTIC && ordinal != 0) {
        return Err(Garbage::Illegal("key"));
    }
    let record = match kind {
        kind::DECISION => decision(gtrid, &mut reader)?,
        kind::ONE_PHASE => {
            let epoch = Epoch(reader.u64("epoch")?);
            let request = reader.request()?;
            Record::OnePhase {
                gtrid,
                epoch,
                bqual,
                participant: reader.name()?,
                request,
            }
        }
        kind::REFUSED => {
            let request = reader.request()?.ok_or(Garbage::Illegal("request"))?;
            Record::Refused {
                gtrid,
                request,
                reason: reader.reason()?,
            }
        }
        kind::HEURISTIC => {
            let participant = reader.name()?;
            let committed = match reader.u8("outcome")? {
                0 => Some(false),
                1 => Some(true),
                2 => None,
                _ => return Err(Garbage::Illegal("outcome")),
            };
            Record::Heuristic {
                gtrid,
                bqual,
                participant,
                committed,
                reason: reader.reason()?,
                request: reader.last_request()?,
            }
        }
        kind::END => match reader.u8("outcome")? {
            0 => Record::End {
                gtrid,
                committed: false,
            },
            1 => Record::End {
                gtrid,
                committed: true,
            },
            _ => return Err(Garbage::Illegal("outcome")),
        },
        _ => return Err(Garbage::Illegal("kind")),
    };
    reader.end(record)
}

fn decision(gtrid: Gtrid, reader: &mut Reader<'_>) -> Result<Record, Garbage> {
    let epoch = Epoch(reader.u64("epoch")?);
    let request = reader.request()?;
    let count = reader.u16("count")?;
    let branches = (0..count)
        .map(|_| Ok((Bqual(reader.u32("bqual")?), reader.name()?)))
        .collect::<Result<_, Garbage>>()?;
    Ok(Record::Decision {
        gtrid,
        epoch,
        branches,
        request,
    })
}

/// A record that lives in `meta`: its name and body. None for records of transactions.
pub fn encode_meta(record: &Record) -> Option<(String, Vec<u8>)> {
    let mut body = Vec::new();
    let name = match record {
        Record::Epoch(epoch) => {
            body.extend_from_slice(&epoch.0.to_be_bytes());
            name::EPOCH.to_owned()
        }
        Record::Horizon(gtrid) => {
            body.extend_from_slice(&gtrid.0);
            name::HORIZON.to_owned()
        }
        Record::Placement(participants) => {
            put_count(&mut body, participants.len());
            for name in participants {
                put_text(&mut body, name.as_str());
            }
            name::PLACEMENT.to_owned()
        }
        Record::Incarnation {
            participant,
            incarnation,
            after,
        } => {
            put_text(&mut body, incarnation);
            if *after != Gtrid::MIN {
                body.extend_from_slice(&after.0);
            }
            format!("{}{participant}", name::INCARNATION)
        }
        Record::Decision { .. }
        | Record::OnePhase { .. }
        | Record::Refused { .. }
        | Record::End { .. }
        | Record::Heuristic { .. } => return None,
    };
    Some((name, body))
}

/// Reads an entry of `meta`. None for one that is no record: format, cluster, sums.
pub fn decode_meta(name: &str, sealed: &[u8]) -> Result<Option<Record>, Garbage> {
    let mut reader = Reader(unseal(name.as_bytes(), sealed)?);
    let record = match name {
        name::EPOCH => Record::Epoch(Epoch(reader.u64("epoch")?)),
        name::HORIZON => Record::Horizon(Gtrid(reader.array("horizon")?)),
        name::PLACEMENT => {
            let count = reader.u16("count")?;
            Record::Placement(
                (0..count)
                    .map(|_| reader.name())
                    .collect::<Result<_, _>>()?,
            )
        }
        name::FORMAT | name::CLUSTER | name::SUMS => return Ok(None),
        _ => match name.strip_prefix(name::INCARNATION) {
            Some(participant) if !participant.is_empty() => Record::Incarnation {
                participant: ParticipantName::new(participant),
                incarnation: reader.text("incarnation")?.to_owned(),
                after: reader.after()?,
            },
            _ => return Err(Garbage::Illegal("name")),
        },
    };
    reader.end(record).map(Some)
}

/// The body of `cluster`.
pub fn encode_text(text: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(text.len() + 4);
    put_text(&mut body, text);
    body
}

/// Reads the body of `cluster`.
pub fn decode_text(body: &[u8]) -> Result<String, Garbage> {
    let mut reader = Reader(body);
    let text = reader.text("text")?.to_owned();
    reader.end(text)
}

fn put_text(body: &mut Vec<u8>, text: &str) {
    // Texts are bounded at the door, far below this; a longer one is cut rather than written
    // with a length that is not its own.
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(&text.as_bytes()[..length as usize]);
}

fn put_count(body: &mut Vec<u8>, count: usize) {
    // At most BRANCHES_MAX branches, and as many participants as a configuration names.
    let count = u16::try_from(count).expect("lists are bounded at the door");
    body.extend_from_slice(&count.to_be_bytes());
}

fn put_request(body: &mut Vec<u8>, request: Option<&Request>) {
    match request {
        None => body.push(0),
        Some(request) => {
            body.push(1);
            put_text(body, request.id.as_str());
            body.extend_from_slice(&request.fingerprint.to_be_bytes());
        }
    }
}

fn put_reason(body: &mut Vec<u8>, reason: &Reason) {
    put_text(body, &reason.code);
    put_text(body, &reason.message);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Garbage> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(Garbage::Short(what))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, Garbage> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, Garbage> {
        self.array(what).map(u16::from_be_bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Garbage> {
        self.array(what).map(u32::from_be_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Garbage> {
        self.array(what).map(u64::from_be_bytes)
    }

    fn text(&mut self, what: &'static str) -> Result<&'a str, Garbage> {
        let length = self.u32(what)? as usize;
        let (text, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Garbage::Short(what))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| Garbage::Illegal(what))
    }

    /// What an incarnation ends with, if anything.
    fn after(&mut self) -> Result<Gtrid, Garbage> {
        if self.0.is_empty() {
            return Ok(Gtrid::MIN);
        }
        match Gtrid(self.array("after")?) {
            Gtrid::MIN => Err(Garbage::Illegal("after")),
            after => Ok(after),
        }
    }

    fn name(&mut self) -> Result<ParticipantName, Garbage> {
        self.text("participant").map(ParticipantName::new)
    }

    fn request(&mut self) -> Result<Option<Request>, Garbage> {
        match self.u8("request")? {
            0 => Ok(None),
            1 => {
                let id = RequestId::new(self.text("request id")?);
                Ok(Some(Request {
                    id,
                    fingerprint: self.u64("fingerprint")?,
                }))
            }
            _ => Err(Garbage::Illegal("request")),
        }
    }

    /// What a heuristic outcome ends with, if anything: those of before had no request.
    fn last_request(&mut self) -> Result<Option<Request>, Garbage> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let request = self.request()?.ok_or(Garbage::Illegal("request"))?;
        Ok(Some(request))
    }

    fn reason(&mut self) -> Result<Reason, Garbage> {
        let code = self.text("reason's code")?;
        Ok(Reason::new(code, self.text("reason's message")?))
    }

    fn end<T>(self, value: T) -> Result<T, Garbage> {
        match self.0.len() {
            0 => Ok(value),
            more => Err(Garbage::Trailing(more)),
        }
    }
}

#[cfg(test)]
mod tests;
