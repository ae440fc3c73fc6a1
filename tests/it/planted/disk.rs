//! A disk in memory that loses what was not synced.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// A disk writes a sector whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct State {
    durable: Vec<u8>,
    shown: Vec<u8>,
    /// The last write that was not synced.
    unsynced: Option<(usize, Vec<u8>)>,
    fails: bool,
}

/// The disk; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next sync fails, and what it was to write is lost.
    pub fn fail_next_sync(&self) {
        self.state().fails = true;
    }

    /// Another disk, with what a power loss leaves of this one. `torn`: of the last write that was
    /// not synced the first sector is there.
    pub fn after_power_loss(&self, torn: bool) -> Self {
        let state = self.state();
        let mut bytes = state.durable.clone();
        if let Some((offset, data)) = state.unsynced.as_ref().filter(|_| torn) {
            bytes[*offset..offset + SECTOR].copy_from_slice(&data[..SECTOR]);
        }
        Self(Arc::new(Mutex::new(State {
            durable: bytes.clone(),
            shown: bytes,
            ..State::default()
        })))
    }

    /// Another disk, with what a killed process leaves: all that it wrote.
    pub fn after_kill(&self) -> Self {
        let bytes = self.state().shown.clone();
        Self(Arc::new(Mutex::new(State {
            durable: bytes.clone(),
            shown: bytes,
            ..State::default()
        })))
    }

    /// Turns one bit, for good.
    pub fn rot(&self, offset: usize) {
        let mut state = self.state();
        state.durable[offset] ^= 1;
        state.shown[offset] ^= 1;
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().shown.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let state = self.state();
        let bytes = state.shown.get(at..at + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.state().shown.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        if std::mem::take(&mut state.fails) {
            // As the kernel does: the pages count as clean, and nobody writes them any more.
            return Err(io::Error::other("the disk is out of order"));
        }
        let shown = state.shown.clone();
        state.durable = shown;
        state.unsynced = None;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let mut state = self.state();
        if state.shown.len() < at + data.len() {
            state.shown.resize(at + data.len(), 0);
        }
        state.shown[at..at + data.len()].copy_from_slice(data);
        // Marks, which are shorter, need no sync.
        if data.len() >= SECTOR {
            state.unsynced = Some((at, data.to_vec()));
        }
        Ok(())
    }
}
