//! A disk that can lose, tear and refuse what it is given, as real ones do.

use std::io;
use std::sync::{Arc, Mutex};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;

use super::super::frame::Overlay;

/// A disk writes sectors of this size whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// From this operation on (writes, syncs, changes of length), everything fails.
    pub dead_after: Option<u64>,
    /// This sync fails; what it should have written may or may not be on the disk.
    pub failing_sync: Option<u64>,
    /// Bytes that fit.
    pub capacity: Option<u64>,
}

#[derive(Debug)]
enum Pending {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Default)]
struct State {
    durable: Vec<u8>,
    shown: Vec<u8>,
    pending: Vec<Pending>,
    faults: Faults,
    operations: u64,
    syncs: u64,
    writes: u64,
}

/// The disk; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// A disk that holds these bytes durably.
    pub fn holding(bytes: Vec<u8>) -> Self {
        let state = State {
            shown: bytes.clone(),
            durable: bytes,
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.0.lock().unwrap();
        let (operations, syncs) = (state.operations, state.syncs);
        state.faults = Faults {
            dead_after: faults.dead_after.map(|n| n + operations),
            failing_sync: faults.failing_sync.map(|n| n + syncs),
            ..faults
        };
    }

    /// What a process sees that opens it after another one was killed: nothing is lost.
    pub fn after_kill(&self) -> Vec<u8> {
        self.0.lock().unwrap().shown.clone()
    }

    /// What is there after a power loss: of what was not synced, any part in any order.
    pub fn after_power_loss(&self, seed: u64) -> Vec<u8> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let state = self.0.lock().unwrap();
        let lengths: Vec<usize> = state
            .pending
            .iter()
            .filter_map(|one| {
                if let Pending::Length(len) = one {
                    Some(*len)
                } else {
                    None
                }
            })
            .collect();
        let mut bytes = state.durable.clone();
        // Changes of length are the file system's, which keeps their order.
        let kept = rng.random_range(0..=lengths.len());
        let longest = lengths[..kept]
            .iter()
            .copied()
            .chain([bytes.len()])
            .max()
            .unwrap_or(0);
        bytes.resize(longest, 0);
        let odds = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
        for one in &state.pending {
            let Pending::Write(offset, data) = one else {
                continue;
            };
            let mut done = 0;
            while done < data.len() {
                let at = offset + done;
                let count = (SECTOR_BYTES - at % SECTOR_BYTES).min(data.len() - done);
                if rng.random_bool(odds) && at + count <= bytes.len() {
                    bytes[at..at + count].copy_from_slice(&data[done..done + count]);
                }
                done += count;
            }
        }
        bytes.resize(
            lengths[..kept]
                .last()
                .copied()
                .unwrap_or(state.durable.len()),
            0,
        );
        bytes
    }

    /// Writes and syncs so far.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.0.lock().unwrap();
        (state.writes, state.syncs)
    }
}

impl State {
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        if self
            .faults
            .dead_after
            .is_some_and(|last| self.operations > last)
        {
            return Err(io::Error::other("the disk is gone"));
        }
        Ok(())
    }

    fn fits(&self, end: usize) -> io::Result<()> {
        if self
            .faults
            .capacity
            .is_some_and(|capacity| end as u64 > capacity)
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().shown.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        let part = state.shown.get(offset..offset + out.len());
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let len = usize::try_from(len).unwrap();
        state.operate()?;
        state.fits(len)?;
        state.shown.resize(len, 0);
        state.pending.push(Pending::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.operate()?;
        state.syncs += 1;
        if state.faults.failing_sync == Some(state.syncs) {
            return Err(io::Error::other("fsync failed"));
        }
        state.durable = state.shown.clone();
        state.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        state.operate()?;
        state.writes += 1;
        let end = offset + data.len();
        state.fits(end)?;
        if end > state.shown.len() {
            state.shown.resize(end, 0);
            state.pending.push(Pending::Length(end));
        }
        state.shown[offset..end].copy_from_slice(data);
        state.pending.push(Pending::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// A disk with one byte flipped, whose bytes many tests share; what is written to it shows.
#[derive(Clone, Debug)]
pub struct Flipped(Arc<Overlay>);

#[derive(Debug)]
struct FlippedBytes {
    image: Arc<Vec<u8>>,
    position: usize,
    mask: u8,
}

impl Flipped {
    /// These bytes but for one.
    pub fn new(image: &Arc<Vec<u8>>, position: usize, mask: u8) -> Self {
        let bytes = FlippedBytes {
            image: Arc::clone(image),
            position,
            mask,
        };
        Self(Arc::new(Overlay::new(Arc::new(bytes)).unwrap()))
    }

    /// Whether anything was written.
    pub fn was_written_to(&self) -> bool {
        self.0.is_changed()
    }
}

impl StorageBackend for FlippedBytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.image.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.image[offset..offset + out.len()]);
        if let Some(byte) = self
            .position
            .checked_sub(offset)
            .and_then(|at| out.get_mut(at))
        {
            *byte ^= self.mask;
        }
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        unreachable!("an overlay does not write through")
    }

    fn sync_data(&self) -> io::Result<()> {
        unreachable!("an overlay does not write through")
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        unreachable!("an overlay does not write through")
    }
}

impl StorageBackend for Flipped {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}
