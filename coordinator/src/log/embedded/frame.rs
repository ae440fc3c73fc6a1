//! What stands between redb and the disk: one block of our own, and the journal, before redb's
//! bytes.
//!
//! The block says what the file is, and keeps the [`Mark`] of the last append that was
//! acknowledged. An append is durable after a single fsync, so after a crash an end that does not
//! verify is taken for an unfinished one and dropped. That is right for a torn end, which nobody
//! was told of, and wrong for a durable one that rotted since. The mark tells them apart: it is
//! written after an append is durable and before anybody is told of it. It needs no fsync of its
//! own, being only ever too low after a power loss, and then by one append: the next one's fsync
//! covers it too.
//!
//! ```text
//! offset    0   magic 16 bytes ‖ version u32 ‖ crc32 u32 of these 20 bytes
//! offset   24   pages of the journal u32 ‖ its salt u32 ‖ crc32 u32 of the 32 bytes before
//! offset  512   commit u64 ‖ frames u64 ‖ crc32 u32     these two take turns
//! offset 1024   commit u64 ‖ frames u64 ‖ crc32 u32
//! offset 4096   the journal, see [`super::journal`]
//! after it      redb's file
//! ```
//!
//! Version 1 had no journal: redb's file began at 4096, and the two marks were `commit u64 ‖ crc32
//! u32`. Such a file is read, and written anew as version 2 when it is opened.

#![allow(clippy::cast_possible_truncation)] // u64 offsets within a block become usize

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use redb::StorageBackend;

/// Bytes of our block: a page, so that redb's pages stay aligned.
pub const BLOCK_BYTES: u64 = 4_096;
/// Version of the layout.
pub const VERSION: u32 = 2;
/// The version that had no journal.
pub const VERSION_WITHOUT_JOURNAL: u32 = 1;
const MAGIC: &[u8; 16] = b"concord decision";
const SLOT_OFFSETS: [u64; 2] = [512, 1_024];

/// A point in the log's history: so many commits of redb, and so many frames of the journal after
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Number of the last commit of redb.
    pub commit: u64,
    /// Frames of the journal after it.
    pub frames: u64,
}

/// What the first block of a log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Version of the layout.
    pub version: u32,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// What the checksums of the journal's frames start from.
    pub salt: u32,
    /// What was acknowledged, or one append less.
    pub acknowledged: Mark,
    /// The slot that the next mark goes to: not that of the last one.
    free_slot: usize,
}

impl Head {
    /// Where redb's bytes begin.
    pub fn redb_start(&self) -> u64 {
        BLOCK_BYTES + self.journal_bytes
    }
}

/// What the first block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Nothing: the log was never finished being created.
    Blank,
    /// That of a log.
    Log(Head),
    /// That of a log of a later version of the layout.
    Newer(u32),
    /// Something else.
    Foreign,
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Whether the four bytes after the first `length` are their checksum.
fn is_sealed(bytes: &[u8], length: usize) -> bool {
    bytes[length..length + 4] == crc32fast::hash(&bytes[..length]).to_be_bytes()
}

/// Reads the first block.
pub fn read_block(disk: &dyn StorageBackend) -> io::Result<Block> {
    if disk.len()? < BLOCK_BYTES {
        return Ok(Block::Blank);
    }
    let mut block = [0; BLOCK_BYTES as usize];
    disk.read(0, &mut block)?;
    if block[..36].iter().all(|byte| *byte == 0) {
        return Ok(Block::Blank);
    }
    if &block[..16] != MAGIC || !is_sealed(&block, 20) {
        return Ok(Block::Foreign);
    }
    let version = number(&block[16..20]) as u32;
    let mark_bytes = match version {
        VERSION_WITHOUT_JOURNAL => 8,
        VERSION if is_sealed(&block, 32) => 16,
        VERSION => return Ok(Block::Foreign),
        _ => return Ok(Block::Newer(version)),
    };
    let has_journal = version == VERSION;
    let mark = |slot: usize| {
        let slot = &block[SLOT_OFFSETS[slot] as usize..];
        is_sealed(slot, mark_bytes).then(|| Mark {
            commit: number(&slot[..8]),
            frames: number(&slot[8..mark_bytes]),
        })
    };
    // A slot that was torn or rotted away leaves the other one, which is lower by one append.
    let (acknowledged, free_slot) = match (mark(0), mark(1)) {
        (None, None) => return Ok(Block::Foreign),
        (first, second) if first > second => (first, 1),
        (_, second) => (second, 0),
    };
    Ok(Block::Log(Head {
        version,
        journal_bytes: u64::from(has_journal) * number(&block[24..28]) * BLOCK_BYTES,
        salt: if has_journal {
            number(&block[28..32]) as u32
        } else {
            0
        },
        acknowledged: acknowledged.unwrap_or_default(),
        free_slot,
    }))
}

/// Writes the first block of a log whose content is durable up to a mark. Its head, which is what
/// makes it a log, lies within one sector and comes after everything else.
pub fn write_block(
    disk: &Arc<dyn StorageBackend>,
    journal_pages: u32,
    salt: u32,
    acknowledged: Mark,
) -> io::Result<()> {
    let mut marks = Marks {
        disk: Arc::clone(disk),
        slot: 0,
    };
    marks.write(acknowledged)?;
    marks.write(acknowledged)?;
    disk.sync_data()?;
    let mut head = Vec::with_capacity(36);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_be_bytes());
    head.extend_from_slice(&crc32fast::hash(&head).to_be_bytes());
    head.extend_from_slice(&journal_pages.to_be_bytes());
    head.extend_from_slice(&salt.to_be_bytes());
    head.extend_from_slice(&crc32fast::hash(&head).to_be_bytes());
    disk.write(0, &head)?;
    disk.sync_data()
}

/// Writes marks, each over the one before the last.
#[derive(Debug)]
pub struct Marks {
    disk: Arc<dyn StorageBackend>,
    slot: usize,
}

impl Marks {
    /// Goes on where the head's marks end.
    pub fn after(disk: Arc<dyn StorageBackend>, head: &Head) -> Self {
        let slot = head.free_slot;
        Self { disk, slot }
    }

    /// Notes that everything up to here is durable and about to be acknowledged.
    pub fn write(&mut self, mark: Mark) -> io::Result<()> {
        let mut slot = [0; 20];
        slot[..8].copy_from_slice(&mark.commit.to_be_bytes());
        slot[8..16].copy_from_slice(&mark.frames.to_be_bytes());
        let crc = crc32fast::hash(&slot[..16]);
        slot[16..].copy_from_slice(&crc.to_be_bytes());
        self.disk.write(SLOT_OFFSETS[self.slot], &slot)?;
        self.slot = 1 - self.slot;
        Ok(())
    }
}

/// redb's view of the disk: everything after our block and the journal. The disk outlives it:
/// redb's close, which also ends every look at it, does not close the disk.
#[derive(Debug)]
pub struct Frame {
    disk: Arc<dyn StorageBackend>,
    start: u64,
}

impl Frame {
    /// The part of the disk that begins there.
    pub fn new(disk: Arc<dyn StorageBackend>, start: u64) -> Self {
        Self { disk, start }
    }
}

impl StorageBackend for Frame {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.len()?.saturating_sub(self.start))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset + self.start, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len + self.start)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write(offset + self.start, data)
    }
}

/// A disk that is only read: what is written stays in memory and is lost with it. The log is
/// examined through it first, because redb repairs what it opens, and a log that is damaged must
/// stay as it is.
#[derive(Debug)]
pub struct Overlay {
    disk: Arc<dyn StorageBackend>,
    state: Mutex<OverlayState>,
}

#[derive(Debug)]
struct OverlayState {
    len: u64,
    /// Bytes of the disk that still show: less than its length after a cut.
    visible: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    /// An untouched view of a disk.
    pub fn new(disk: Arc<dyn StorageBackend>) -> io::Result<Self> {
        let len = disk.len()?;
        let state = OverlayState {
            len,
            visible: len,
            blocks: BTreeMap::new(),
        };
        Ok(Self {
            disk,
            state: Mutex::new(state),
        })
    }

    /// Whether anything was written to it.
    #[cfg(test)]
    pub fn is_changed(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        !state.blocks.is_empty() || state.len != self.disk.len().unwrap_or_default()
    }

    fn block(&self, state: &OverlayState, index: u64) -> io::Result<Vec<u8>> {
        if let Some(block) = state.blocks.get(&index) {
            return Ok(block.clone());
        }
        let mut block = vec![0; BLOCK_BYTES as usize];
        let start = index * BLOCK_BYTES;
        let shown = state.visible.saturating_sub(start).min(BLOCK_BYTES) as usize;
        if shown > 0 {
            self.disk.read(start, &mut block[..shown])?;
        }
        Ok(block)
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if offset.saturating_add(out.len() as u64) > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let block = self.block(&state, at / BLOCK_BYTES)?;
            let part = &block[(at % BLOCK_BYTES) as usize..];
            let count = part.len().min(out.len() - done);
            out[done..done + count].copy_from_slice(&part[..count]);
            done += count;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if len < state.len {
            state.visible = state.visible.min(len);
            state.blocks.retain(|index, _| index * BLOCK_BYTES < len);
            let (last, within) = (len / BLOCK_BYTES, (len % BLOCK_BYTES) as usize);
            if let Some(block) = state.blocks.get_mut(&last) {
                block[within..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let mut block = self.block(&state, at / BLOCK_BYTES)?;
            let part = &mut block[(at % BLOCK_BYTES) as usize..];
            let count = part.len().min(data.len() - done);
            part[..count].copy_from_slice(&data[done..done + count]);
            state.blocks.insert(at / BLOCK_BYTES, block);
            done += count;
        }
        state.len = state.len.max(offset + data.len() as u64);
        Ok(())
    }
}
