//! What stands between redb and the disk: one block of our own before redb's bytes.
//!
//! The block says what the file is, and keeps the number of the last commit that was acknowledged.
//! redb commits with a single fsync, so after a crash it takes a last commit that does not verify
//! for an unfinished one and returns to the one before. That is right for a torn commit, which
//! nobody was told of, and wrong for a durable one that rotted since. The number tells them apart:
//! it is written after a commit is durable and before anybody is told of it. It needs no fsync of
//! its own, being only ever too low after a power loss, and then by one commit: the next commit's
//! fsync covers it too.
//!
//! ```text
//! offset    0   magic 16 bytes ‖ frame version u32 ‖ crc32 u32 of these 20 bytes
//! offset  512   commit u64 ‖ crc32 u32        of even commits
//! offset 1024   commit u64 ‖ crc32 u32        of odd commits
//! offset 4096   redb's file
//! ```

#![allow(clippy::cast_possible_truncation)] // u64 offsets within a block become usize

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use redb::StorageBackend;

/// Bytes of our block: a page, so that redb's pages stay aligned.
pub const BLOCK_BYTES: u64 = 4_096;
const MAGIC: &[u8; 16] = b"concord decision";
const FRAME_VERSION: u32 = 1;
const SLOT_OFFSETS: [u64; 2] = [512, 1_024];

/// What the first block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Nothing: the log was never finished being created.
    Blank,
    /// It is a log whose last acknowledged commit had this number, or the next one.
    Log { acknowledged: u64 },
    /// A log of a later version of the frame.
    Newer(u32),
    /// Something else.
    Foreign,
}

/// Reads the first block.
pub fn read_block(disk: &dyn StorageBackend) -> io::Result<Block> {
    if disk.len()? < BLOCK_BYTES {
        return Ok(Block::Blank);
    }
    let mut block = [0; BLOCK_BYTES as usize];
    disk.read(0, &mut block)?;
    let (head, rest) = block.split_at(20);
    if head.iter().chain(&rest[..4]).all(|byte| *byte == 0) {
        return Ok(Block::Blank);
    }
    if &head[..16] != MAGIC || rest[..4] != crc32fast::hash(head).to_be_bytes() {
        return Ok(Block::Foreign);
    }
    let version = head[16..]
        .iter()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    if version != FRAME_VERSION {
        return Ok(Block::Newer(version));
    }
    let slot = |offset: u64| {
        let slot = &block[offset as usize..][..12];
        let (commit, crc) = slot.split_at(8);
        (crc == crc32fast::hash(commit).to_be_bytes()).then(|| {
            commit
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        })
    };
    // A slot that was torn or rotted away leaves the other one, which is lower by one.
    match SLOT_OFFSETS.into_iter().filter_map(slot).max() {
        Some(acknowledged) => Ok(Block::Log { acknowledged }),
        None => Ok(Block::Foreign),
    }
}

/// Writes the first block of a log whose first commit is durable. Its head, which is what makes it
/// a log, lies within one sector and comes after everything else.
pub fn write_block(disk: &dyn StorageBackend, commit: u64) -> io::Result<()> {
    acknowledge(disk, commit.saturating_sub(1))?;
    acknowledge(disk, commit)?;
    disk.sync_data()?;
    let mut head = Vec::with_capacity(24);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&FRAME_VERSION.to_be_bytes());
    let crc = crc32fast::hash(&head);
    head.extend_from_slice(&crc.to_be_bytes());
    disk.write(0, &head)?;
    disk.sync_data()
}

/// Notes that a commit is durable and about to be acknowledged.
pub fn acknowledge(disk: &dyn StorageBackend, commit: u64) -> io::Result<()> {
    let number = commit.to_be_bytes();
    let mut slot = [0; 12];
    slot[..8].copy_from_slice(&number);
    slot[8..].copy_from_slice(&crc32fast::hash(&number).to_be_bytes());
    disk.write(SLOT_OFFSETS[usize::from(commit % 2 == 1)], &slot)
}

/// redb's view of the disk: everything after our block. The disk outlives it: redb's close, which
/// also ends every look at it, does not close the disk.
#[derive(Debug)]
pub struct Frame(pub Arc<dyn StorageBackend>);

impl StorageBackend for Frame {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len()?.saturating_sub(BLOCK_BYTES))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset + BLOCK_BYTES, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len + BLOCK_BYTES)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset + BLOCK_BYTES, data)
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
