//! The disk under the decision log: it can lose, tear and refuse what it is given, fill up, and
//! stop in the middle of anything.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use super::chance::Chance;

/// A disk writes sectors of this size whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What goes wrong, until it is mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Every write fails.
    pub writes_fail: bool,
    /// Every sync fails, and what it should have made durable is not.
    pub syncs_fail: bool,
    /// There is no room for anything, also not where something is overwritten: a file system that
    /// copies on write needs new blocks for that.
    pub full: bool,
    /// After so many more operations the machine loses its power.
    pub dies_after: Option<u64>,
}

/// What a disk did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes that failed.
    pub failed_writes: u64,
    /// Syncs that failed.
    pub failed_syncs: u64,
    /// Writes refused for want of room.
    pub refused: u64,
    /// Writes that a power loss tore or lost.
    pub lost: u64,
}

#[derive(Debug)]
enum Pending {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug)]
struct State {
    durable: Vec<u8>,
    shown: Vec<u8>,
    pending: Vec<Pending>,
    faults: Faults,
    counts: Counts,
    /// The process that may use it.
    holder: u64,
    died: bool,
    /// A sync failed: what is shown may be on no disk.
    suspect: bool,
    /// Something was refused to whoever has it.
    failed: bool,
    chance: Chance,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// An empty one.
    pub fn new(chance: Chance) -> Self {
        Self(Arc::new(Mutex::new(State {
            durable: Vec::new(),
            shown: Vec::new(),
            pending: Vec::new(),
            faults: Faults::default(),
            counts: Counts::default(),
            holder: 0,
            died: false,
            suspect: false,
            failed: false,
            chance,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk for a new process; a process that had it before has it no more. As when the file
    /// is opened, what a former process left unsynced is synced, and what could not be is dropped.
    pub fn hold(&self) -> Held {
        let mut state = self.lock();
        state.holder += 1;
        if std::mem::take(&mut state.suspect) {
            state.pending.clear();
            let state = &mut *state;
            state.shown.clone_from(&state.durable);
        } else {
            state.sync();
        }
        Held {
            disk: self.clone(),
            holder: state.holder,
        }
    }

    /// Whoever has it is gone: nothing that it still does reaches the disk. What was not synced is
    /// still there, unless the power went too.
    pub fn freeze(&self, power: bool) {
        let mut state = self.lock();
        state.holder += 1;
        if power {
            state.lose_power();
        }
    }

    /// Changes what goes wrong.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.lock().faults);
    }

    /// Whether it died by [`Faults::dies_after`] since this was last asked.
    pub fn take_died(&self) -> bool {
        std::mem::take(&mut self.lock().died)
    }

    /// Whether it refused anything since this was last asked.
    pub fn take_failed(&self) -> bool {
        std::mem::take(&mut self.lock().failed)
    }

    /// What it did.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }
}

impl State {
    /// Of what was not synced, any part in any order is there.
    fn lose_power(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let permille = *self.chance.pick(&[0, 100, 500, 900, 1_000]);
        for one in pending {
            match one {
                Pending::Length(len) => {
                    if self.chance.permille(permille) {
                        self.durable.resize(len, 0);
                    }
                }
                Pending::Write(offset, data) => {
                    let mut whole = true;
                    for (index, part) in data.chunks(SECTOR_BYTES).enumerate() {
                        let at = offset + index * SECTOR_BYTES;
                        let fits = at + part.len() <= self.durable.len();
                        if fits && self.chance.permille(permille) {
                            self.durable[at..at + part.len()].copy_from_slice(part);
                        } else {
                            whole = false;
                        }
                    }
                    self.counts.lost += u64::from(!whole);
                }
            }
        }
        self.shown.clone_from(&self.durable);
    }

    fn sync(&mut self) {
        for one in std::mem::take(&mut self.pending) {
            match one {
                Pending::Length(len) => self.durable.resize(len, 0),
                Pending::Write(offset, data) => {
                    let end = offset + data.len();
                    self.durable.resize(self.durable.len().max(end), 0);
                    self.durable[offset..end].copy_from_slice(&data);
                }
            }
        }
    }

    /// Counts an operation down to the end of the machine.
    fn operate(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.faults.dies_after {
            if *left == 0 {
                self.faults.dies_after = None;
                self.holder += 1;
                (self.died, self.failed) = (true, true);
                self.lose_power();
                return Err(io::Error::other("the machine lost its power"));
            }
            *left -= 1;
        }
        Ok(())
    }

    /// Fails a change as the faults want it; one that needs `room` also when the disk is full.
    fn may_change(&mut self, room: bool) -> io::Result<()> {
        if self.faults.full && room {
            self.failed = true;
            self.counts.refused += 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.faults.writes_fail {
            self.failed = true;
            self.counts.failed_writes += 1;
            return Err(io::Error::other("a write failed"));
        }
        Ok(())
    }
}

/// The disk in the hands of one process.
#[derive(Debug)]
pub struct Held {
    disk: Disk,
    holder: u64,
}

impl Held {
    fn mine(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        if state.holder == self.holder {
            Ok(state)
        } else {
            Err(io::Error::other("the process is gone"))
        }
    }
}

impl StorageBackend for Held {
    fn len(&self) -> io::Result<u64> {
        Ok(self.mine()?.shown.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.mine()?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = start
            .checked_add(out.len())
            .and_then(|end| state.shown.get(start..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.mine()?;
        state.operate()?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let grows = len > state.shown.len();
        state.may_change(grows)?;
        state.shown.resize(len, 0);
        state.pending.push(Pending::Length(len));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.mine()?;
        state.operate()?;
        state.may_change(true)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(data.len());
        if end > state.shown.len() {
            state.shown.resize(end, 0);
            state.pending.push(Pending::Length(end));
        }
        state.shown[start..end].copy_from_slice(data);
        state.pending.push(Pending::Write(start, data.to_vec()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.mine()?;
        state.operate()?;
        if state.faults.syncs_fail {
            state.failed = true;
            state.counts.failed_syncs += 1;
            // The kernel marks the pages clean: a later sync would not write them either.
            state.pending.clear();
            state.suspect = true;
            return Err(io::Error::other("a sync failed"));
        }
        state.sync();
        Ok(())
    }
}
