//! The journal: what was appended since redb's last commit, as frames in a row.
//!
//! A commit of redb writes a dozen pages all over its file. A frame is one write into pages that
//! are there already, so its fsync has no metadata to write and costs a third. What the frames
//! hold is pending: it is shown with what redb holds, and folded into redb, in one commit, when the
//! journal is full, when something is to be forgotten, at an orderly close and at every open. That
//! commit ends the frames' generation; the next frame is written over the first one.
//!
//! It owns the frames: where they are, and which of them count. It refuses to guess: a frame is
//! only ever written after the one before it was synced, so that a crash can tear the last one
//! alone, and whatever else does not verify is damage. It knows nothing of what the frames hold.
//!
//! ```text
//! magic 4 bytes ‖ crc32 u32 ‖ generation u64 ‖ index u64 ‖ length u32 ‖ payload
//! and zeros up to the next page
//! ```
//!
//! The generation is the number of the redb commit that the frames follow, the index counts from
//! zero, and the CRC is over everything after it but for the zeros. Every frame begins a page: no
//! write touches a page with an acknowledged frame of its own generation. The CRC starts from the
//! log's salt, a random number, so that no text in a payload can be taken for a frame.

#![allow(clippy::cast_possible_truncation)] // offsets within the journal are far below 4 GiB

use std::io;
use std::sync::Arc;

use concord_core::planted::{self, Bug};
use concord_daemon::crash::{CrashPoint, reach};
use redb::StorageBackend;

use super::frame::{BLOCK_BYTES, Head, Mark};

const PAGE_BYTES: usize = BLOCK_BYTES as usize;
/// The last byte is the version of the frame.
const MAGIC: [u8; 4] = *b"CDJ\x01";
const HEADER_BYTES: usize = 28;

/// Writes a journal of zeros. They are written and not left to the file system to imagine: a frame
/// must find blocks that are its own, or its fsync would have to write where they are, and could
/// find the disk full.
pub fn write_blank(disk: &dyn StorageBackend, pages: u32) -> io::Result<()> {
    const CHUNK_PAGES: u64 = 64;
    let zeros = vec![0; PAGE_BYTES * CHUNK_PAGES as usize];
    // The block before it, too.
    let end = u64::from(pages) + 1;
    for first in (0..end).step_by(CHUNK_PAGES as usize) {
        let count = (end - first).min(CHUNK_PAGES) as usize;
        disk.write(first * BLOCK_BYTES, &zeros[..count * PAGE_BYTES])?;
    }
    Ok(())
}

/// Whether anything was ever written to a journal of so many pages.
pub fn was_used(disk: &dyn StorageBackend, pages: u32) -> io::Result<bool> {
    let end = disk.len()?.min(BLOCK_BYTES * (u64::from(pages) + 1));
    let mut bytes = vec![0; end.saturating_sub(BLOCK_BYTES) as usize];
    disk.read(BLOCK_BYTES, &mut bytes)?;
    Ok(bytes.iter().any(|byte| *byte != 0))
}

/// The end of the journal, where frames are written.
#[derive(Debug)]
pub struct Journal {
    disk: Arc<dyn StorageBackend>,
    pages: u64,
    salt: u32,
    position: Mark,
    next_page: u64,
}

impl Journal {
    /// A journal without frames, after a commit of redb.
    pub fn new(disk: Arc<dyn StorageBackend>, head: &Head, commit: u64) -> Self {
        Self {
            disk,
            pages: head.journal_bytes / BLOCK_BYTES,
            salt: head.salt,
            position: Mark { commit, frames: 0 },
            next_page: 0,
        }
    }

    /// Whether a payload of this length has room.
    pub fn has_room(&self, length: usize) -> bool {
        self.next_page + pages_of(length) <= self.pages
    }

    /// What is durable now.
    pub fn position(&self) -> Mark {
        self.position
    }

    /// Makes one more frame durable: one write, one sync. After an error nobody knows what the
    /// disk holds, and nothing may be written any more.
    pub fn append(&mut self, payload: &[u8]) -> io::Result<()> {
        let frame = encode(self.salt, self.position, payload);
        reach(CrashPoint::LogJournalBeforeWrite);
        self.disk
            .write(BLOCK_BYTES * (self.next_page + 1), &frame)?;
        reach(CrashPoint::LogJournalBeforeSync);
        let synced = self.disk.sync_data();
        if !planted::is(Bug::FsyncErrorIgnored) {
            synced?;
        }
        reach(CrashPoint::LogJournalAfterSync);
        self.next_page += pages_of(payload.len());
        self.position.frames += 1;
        Ok(())
    }

    /// Begins again: a durable commit of redb has everything that the frames held.
    pub fn restart(&mut self, commit: u64) {
        self.position = Mark { commit, frames: 0 };
        self.next_page = 0;
    }
}

fn pages_of(length: usize) -> u64 {
    (HEADER_BYTES + length).div_ceil(PAGE_BYTES) as u64
}

fn encode(salt: u32, position: Mark, payload: &[u8]) -> Vec<u8> {
    let bytes = PAGE_BYTES * pages_of(payload.len()) as usize;
    let mut frame = Vec::with_capacity(bytes);
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&position.commit.to_be_bytes());
    frame.extend_from_slice(&position.frames.to_be_bytes());
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(payload);
    let crc = checksum(salt, &frame[8..]);
    frame[4..8].copy_from_slice(&crc.to_be_bytes());
    // Whole pages: the kernel need not read what it is about to overwrite.
    frame.resize(bytes, 0);
    frame
}

fn checksum(salt: u32, bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(salt);
    crc.update(bytes);
    crc.finalize()
}

/// Why a journal is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It could not be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// The file ends within it.
    #[error("it ends within its journal, after {0} bytes")]
    Short(u64),
    /// It goes on from a commit that redb does not have.
    #[error(
        "its journal goes on from commit {journal}, and the last readable one is {commit}: the \
         commits between were lost"
    )]
    Ahead {
        /// Where the journal goes on from.
        journal: u64,
        /// What there is.
        commit: u64,
    },
    /// A frame is missing or broken that has others after it.
    #[error(
        "frame {missing} of its journal after commit {commit} is broken, and frame {later} is \
         there: only the last one can be unfinished"
    )]
    Gap {
        /// The commit that the frames follow.
        commit: u64,
        /// The first one that is not there.
        missing: u64,
        /// One that is there nevertheless.
        later: u64,
    },
    /// Frames are missing at the end that were acknowledged.
    #[error(
        "frame {acknowledged} of its journal after commit {commit} was acknowledged and is not \
         there; {readable} are readable"
    )]
    Missing {
        /// The commit that the frames follow.
        commit: u64,
        /// So many frames were acknowledged.
        acknowledged: u64,
        /// So many are there.
        readable: u64,
    },
}

/// The payloads of the frames that follow a commit, in order. An unfinished last frame, of which
/// nobody was told, is left out.
pub fn read(
    disk: &dyn StorageBackend,
    head: &Head,
    commit: u64,
) -> Result<Vec<Vec<u8>>, ReadError> {
    let len = disk.len()?;
    if len < head.redb_start() {
        return Err(ReadError::Short(len));
    }
    let mut bytes = vec![0; head.journal_bytes as usize];
    disk.read(BLOCK_BYTES, &mut bytes)?;
    let image = Image {
        bytes: &bytes,
        salt: head.salt,
    };
    let mut payloads = Vec::new();
    let mut page = 0;
    while let Some((position, payload)) = image.frame(page, commit) {
        let frames = payloads.len() as u64;
        if position != (Mark { commit, frames }) {
            break;
        }
        page += pages_of(payload.len()) as usize;
        payloads.push(payload.to_vec());
    }
    let readable = payloads.len() as u64;
    if planted::is(Bug::RotIsTornTail) {
        return Ok(payloads);
    }
    if planted::is(Bug::TornTailIsRot) && bytes[page * PAGE_BYTES..].starts_with(&MAGIC) {
        return Err(ReadError::Missing {
            commit,
            acknowledged: readable + 1,
            readable,
        });
    }
    for later in page..bytes.len() / PAGE_BYTES {
        if let Some((position, _)) = image.frame(later, commit) {
            return Err(if position.commit > commit {
                ReadError::Ahead {
                    journal: position.commit,
                    commit,
                }
            } else {
                ReadError::Gap {
                    commit,
                    missing: readable + 1,
                    later: position.frames.saturating_add(1),
                }
            });
        }
    }
    let acknowledged = head.acknowledged;
    if acknowledged.commit == commit && acknowledged.frames > readable {
        return Err(ReadError::Missing {
            commit,
            acknowledged: acknowledged.frames,
            readable,
        });
    }
    Ok(payloads)
}

struct Image<'a> {
    bytes: &'a [u8],
    salt: u32,
}

impl<'a> Image<'a> {
    /// The frame that begins a page, unless it is of a generation before this one.
    fn frame(&self, page: usize, generation: u64) -> Option<(Mark, &'a [u8])> {
        let rest = self.bytes.get(page * PAGE_BYTES..)?;
        let (magic, rest) = rest.split_first_chunk::<4>()?;
        let (crc, sealed) = rest.split_first_chunk::<4>()?;
        let (commit, rest) = sealed.split_first_chunk::<8>()?;
        let (frames, rest) = rest.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let payload = rest.get(..u32::from_be_bytes(*length) as usize)?;
        let position = Mark {
            commit: u64::from_be_bytes(*commit),
            frames: u64::from_be_bytes(*frames),
        };
        let sealed = sealed.get(..HEADER_BYTES - 8 + payload.len())?;
        (*magic == MAGIC
            && position.commit >= generation
            && checksum(self.salt, sealed) == u32::from_be_bytes(*crc))
        .then_some((position, payload))
    }
}
