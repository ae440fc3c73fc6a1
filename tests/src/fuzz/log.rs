//! The decision log: a record is read as it was written, or not at all; and a file that was
//! damaged is refused and left as it is, or has lost nothing that was acknowledged.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use concord_coordinator::log::codec::{self, Key, kind};
use concord_coordinator::log::conformance::{decision, one_of_each};
use concord_coordinator::log::{DecisionLog as _, EmbeddedLog, LogError};
use concord_core::record::Record;
use redb::StorageBackend;

use super::input::Input;

/// The target: a record's bytes, sealed by whoever sends them or by us.
pub fn record(data: &[u8]) {
    let mut input = Input(data);
    let which = input.u8();
    if which & 1 == 0 {
        let key = input.bytes(codec::KEY_BYTES);
        let body = input.rest();
        let _ = codec::decode(key, body);
        // What nobody sealed is refused for its checksum; this is what gets past it.
        let sealed = codec::seal(key, body);
        let Ok(record) = codec::decode(key, &sealed) else {
            return;
        };
        let (gtrid, kind, bqual, again) = codec::encode(&record).expect("of a transaction");
        let key: &Key = key.try_into().expect("it was decoded");
        let ordinal = codec::ordinal(key);
        assert_eq!(*key, codec::key(gtrid, kind, bqual, ordinal), "{record:?}");
        assert_eq!(again, body, "{record:?} has two forms");
        assert!(ordinal == 0 || kind == kind::HEURISTIC);
        flipped(&sealed, &mut input, |bytes| {
            codec::decode(key, bytes).is_err()
        });
    } else {
        let name = input.text();
        let body = input.rest();
        let _ = codec::decode_meta(&name, body);
        let sealed = codec::seal(name.as_bytes(), body);
        let Ok(Some(record)) = codec::decode_meta(&name, &sealed) else {
            let _ = codec::Sums::decode(body);
            let _ = codec::decode_text(body);
            return;
        };
        let (again, encoded) = codec::encode_meta(&record).expect("not of a transaction");
        assert_eq!(
            (again, encoded.as_slice()),
            (name.clone(), body),
            "{record:?}"
        );
        flipped(&sealed, &mut input, |bytes| {
            codec::decode_meta(&name, bytes).is_err()
        });
    }
}

/// No record survives a change of one byte.
fn flipped(sealed: &[u8], input: &mut Input<'_>, is_refused: impl Fn(&[u8]) -> bool) {
    let mut bytes = sealed.to_vec();
    let at = input.below(bytes.len());
    bytes[at] ^= input.u8() | 1;
    assert!(
        is_refused(&bytes),
        "byte {at} was changed and nobody saw it"
    );
}

/// Bytes of a page, of the first block, and of a journal's page.
const PAGE: usize = 4_096;
/// Where frames of the journal begin, in a log of 256 pages.
const JOURNAL: usize = PAGE;
/// Where redb begins.
const REDB: usize = PAGE * 257;
const CLUSTER: &str = "fuzz";

/// A log with records in redb, and frames after them.
struct Image {
    bytes: Arc<[u8]>,
    /// What was acknowledged, in the order of replay.
    whole: Vec<Record>,
    /// The same without the last frame, of which nobody need have been told.
    cut: Vec<Record>,
    /// The number of redb's last commit, that of the next frame, and the salt of their checksums.
    commit: u64,
    next_frame: u64,
    salt: u32,
    /// The page after the last frame.
    next_page: usize,
}

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let disk = Disk::default();
        let open = || {
            let log = EmbeddedLog::open_with_backend(Box::new(disk.clone()), path(), CLUSTER);
            log.expect("a log")
        };
        let mut log = open();
        log.append(&one_of_each()).expect("append");
        // An orderly end folds what the journal holds.
        drop(log);
        let mut log = open();
        let mut cut = Vec::new();
        for number in [20, 30, 40] {
            cut = log.replay().expect("replay");
            let batch: Vec<Record> = (number..number + 3).map(decision).collect();
            log.append(&batch).expect("append");
        }
        let whole = log.replay().expect("replay");
        let bytes: Arc<[u8]> = disk.bytes().into();
        drop(log);
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8"));
        Image {
            commit: number(JOURNAL + 8),
            next_frame: 3,
            salt: u32::from_be_bytes(bytes[28..32].try_into().expect("4")),
            next_page: 3,
            whole,
            cut,
            bytes,
        }
    })
}

fn path() -> &'static Path {
    Path::new("a damaged log")
}

/// The target: damage to a log's file, and then opening it.
pub fn file(data: &[u8]) {
    let image = image();
    let mut disk = Disk::of(Arc::clone(&image.bytes));
    let mut damage = Damage::default();
    let mut input = Input(data);
    while !input.is_empty() && damage.steps < 12 {
        damage.step(&mut input, &mut disk, image);
    }
    // A file without a first block is one that was never finished: the daemon refuses it, and
    // storage that is opened directly becomes a new log.
    let mut head = [0; 36];
    if disk.read(0, &mut head).is_err() || head == [0; 36] || disk.len().unwrap_or(0) < 4_096 {
        return;
    }
    let before = disk.bytes();
    match EmbeddedLog::open_with_backend(Box::new(disk.clone()), path(), CLUSTER) {
        Err(
            LogError::Damaged { .. }
            | LogError::NewerFormat { .. }
            | LogError::OtherCluster { .. }
            | LogError::Open { .. },
        ) => assert!(disk.bytes() == before, "a damaged log was changed"),
        Err(other) => panic!("{other:?}"),
        Ok(log) => {
            let found = log.replay().expect("replay");
            drop(log);
            // The last frame may be gone when its acknowledgement is damaged, too.
            let fits =
                found == image.whole || (damage.of_block && found == image.cut) || damage.forged;
            assert!(fits, "{damage:?}: {} records are there", found.len());
            let again = EmbeddedLog::open_with_backend(Box::new(disk), path(), CLUSTER);
            let again = again.expect("it was opened before").replay();
            assert_eq!(again.expect("replay"), found, "it is not the same twice");
        }
    }
}

/// What was done to a file.
#[derive(Debug, Default)]
struct Damage {
    steps: usize,
    /// The first block was touched, where acknowledgements are noted.
    of_block: bool,
    /// A frame was written whose checksum is right.
    forged: bool,
}

impl Damage {
    fn step(&mut self, input: &mut Input<'_>, disk: &mut Disk, image: &Image) {
        self.steps += 1;
        let which = input.u8() % 7;
        let at = place(input, image.bytes.len());
        match which {
            0 => {
                let mut byte = [0];
                if disk.read(at as u64, &mut byte).is_ok() {
                    byte[0] ^= input.u8() | 1;
                    self.write(disk, at, &byte);
                }
            }
            1 => {
                let length = input.below(8_192);
                self.write(disk, at, &vec![0; length]);
            }
            2 => {
                // A page that was written in another's place.
                let from = place(input, image.bytes.len()) / PAGE * PAGE;
                let mut page = vec![0; PAGE];
                if disk.read(from as u64, &mut page).is_ok() {
                    self.write(disk, at / PAGE * PAGE, &page);
                }
            }
            3 => {
                let length = disk.len().unwrap_or_default().min(at as u64);
                self.of_block |= length < PAGE as u64;
                disk.set_len(length).expect("a length");
            }
            4 => {
                let bytes = input.piece();
                self.write(disk, at, bytes);
            }
            5 => {
                let length = disk.len().unwrap_or_default() + input.below(9_000) as u64;
                disk.set_len(length).expect("a length");
            }
            _ => self.forge(input, disk, image),
        }
    }

    fn write(&mut self, disk: &Disk, at: usize, bytes: &[u8]) {
        // Nothing writes beyond the end, which would be another kind of damage.
        let room = usize::try_from(disk.len().unwrap_or_default()).unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(room.saturating_sub(at))];
        self.of_block |= at < PAGE && !bytes.is_empty();
        disk.write(at as u64, bytes).expect("a write");
    }

    /// A frame with a right checksum, of anything: what gets past it must be found by the rest.
    fn forge(&mut self, input: &mut Input<'_>, disk: &Disk, image: &Image) {
        self.forged = true;
        let mode = input.u8();
        let page = if mode & 1 == 0 {
            image.next_page
        } else {
            input.below(256)
        };
        let commit = if mode & 2 == 0 {
            image.commit
        } else {
            input.u64()
        };
        let frame = if mode & 4 == 0 {
            image.next_frame
        } else {
            input.u64()
        };
        let mut payload = input.piece().to_vec();
        if mode & 8 != 0 {
            payload = entry(&payload);
        }
        let length = if mode & 16 == 0 {
            u32::try_from(payload.len()).unwrap_or_default()
        } else {
            input.u32()
        };
        let mut sealed = Vec::new();
        sealed.extend_from_slice(&commit.to_be_bytes());
        sealed.extend_from_slice(&frame.to_be_bytes());
        sealed.extend_from_slice(&length.to_be_bytes());
        sealed.extend_from_slice(&payload);
        let mut crc = crc32fast::Hasher::new_with_initial(image.salt);
        crc.update(&sealed);
        let head = [*b"CDJ\x01", crc.finalize().to_be_bytes()].concat();
        let at = JOURNAL + page * PAGE;
        self.write(disk, at, &[head, sealed].concat());
    }
}

/// An entry of a frame with a right seal around any key and body.
fn entry(bytes: &[u8]) -> Vec<u8> {
    let mut input = Input(bytes);
    let mut key = [0; codec::KEY_BYTES];
    let given = input.bytes(codec::KEY_BYTES);
    key[..given.len()].copy_from_slice(given);
    let sealed = codec::seal(&key, input.rest());
    let length = u32::try_from(sealed.len())
        .unwrap_or_default()
        .to_be_bytes();
    [&[0], &key[..], &length, &sealed].concat()
}

/// A place in the file; most of it is empty, and less interesting.
fn place(input: &mut Input<'_>, length: usize) -> usize {
    let at = match input.u8() % 6 {
        0 => input.below(64),
        1 => 480 + input.below(600),
        2 => JOURNAL + input.below(16_384),
        3 => REDB + input.below(512),
        4 => REDB + input.below(65_536),
        _ => input.u32() as usize,
    };
    at % length.max(1)
}

/// A disk in memory that copies the pages it changes, and nothing else.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    base: Arc<[u8]>,
    /// Bytes of the base that still show: fewer than it has after a cut.
    visible: usize,
    length: usize,
    changed: BTreeMap<usize, Box<[u8]>>,
}

impl Disk {
    fn of(base: Arc<[u8]>) -> Self {
        let length = base.len();
        Self(Arc::new(Mutex::new(Pages {
            base,
            visible: length,
            length,
            changed: BTreeMap::new(),
        })))
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.pages().length];
        self.read(0, &mut bytes).expect("all of it");
        bytes
    }
}

impl Pages {
    fn page(&self, index: usize) -> Box<[u8]> {
        if let Some(page) = self.changed.get(&index) {
            return page.clone();
        }
        let mut page = vec![0; PAGE].into_boxed_slice();
        let start = (index * PAGE).min(self.visible);
        let shown = &self.base[start..self.visible.min(start + PAGE)];
        page[..shown.len()].copy_from_slice(shown);
        page
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.pages().length as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let pages = self.pages();
        let offset = position(offset)?;
        if offset.saturating_add(out.len()) > pages.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < out.len() {
            let at = offset + done;
            let page = pages.page(at / PAGE);
            let part = &page[at % PAGE..];
            let count = part.len().min(out.len() - done);
            out[done..done + count].copy_from_slice(&part[..count]);
            done += count;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut pages = self.pages();
        let length = position(length)?;
        if length < pages.length {
            pages.visible = pages.visible.min(length);
            pages.changed.retain(|index, _| index * PAGE < length);
            if let Some(page) = pages.changed.get_mut(&(length / PAGE)) {
                page[length % PAGE..].fill(0);
            }
        }
        pages.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut pages = self.pages();
        let offset = position(offset)?;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done;
            let mut page = pages.page(at / PAGE);
            let part = &mut page[at % PAGE..];
            let count = part.len().min(data.len() - done);
            part[..count].copy_from_slice(&data[done..done + count]);
            pages.changed.insert(at / PAGE, page);
            done += count;
        }
        pages.length = pages.length.max(offset + data.len());
        Ok(())
    }
}
