//! What happens in a run, in order: hashed as it comes, so that two runs can be compared, and kept,
//! so that the story of a transaction can be told.

use std::fmt::Write as _;
use std::fmt::{self, Arguments};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use concord_core::id::Gtrid;

/// Events that are kept for stories; older ones are only hashed.
const EVENTS_KEPT: usize = 200_000;

/// The world's clock, in microseconds since the run began. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    /// Now.
    pub fn now_us(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_us(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }
}

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Microseconds since the run began.
    pub at_us: u64,
    /// Where.
    pub place: String,
    /// About which transaction, if about one.
    pub gtrid: Option<Gtrid>,
    /// What.
    pub what: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, us) = (self.at_us / 1_000_000, self.at_us % 1_000_000);
        write!(f, "{s:3}.{us:06} {:<4} {}", self.place, self.what)
    }
}

#[derive(Debug)]
struct Kept {
    events: Vec<Event>,
    count: u64,
    hash: u64,
    line: String,
}

/// The record of a run. Clones are the same record.
#[derive(Clone, Debug)]
pub struct Trace {
    clock: Clock,
    kept: Arc<Mutex<Kept>>,
}

impl Trace {
    /// An empty one, on a clock.
    pub fn new(clock: Clock) -> Self {
        let kept = Kept {
            events: Vec::new(),
            count: 0,
            // The offset basis of FNV-1a.
            hash: 0xCBF2_9CE4_8422_2325,
            line: String::new(),
        };
        Self {
            clock,
            kept: Arc::new(Mutex::new(kept)),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// Notes an event.
    pub fn note(&self, place: &str, gtrid: Option<Gtrid>, what: Arguments<'_>) {
        let at_us = self.clock.now_us();
        let mut guard = self.kept();
        let kept = &mut *guard;
        kept.line.clear();
        // Writing to a String cannot fail.
        let _ = write!(kept.line, "{at_us} {place} {what}");
        let hash = kept
            .line
            .bytes()
            .chain([b'\n'])
            .fold(kept.hash, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
            });
        kept.hash = hash;
        kept.count += 1;
        if kept.events.len() < EVENTS_KEPT {
            kept.events.push(Event {
                at_us,
                place: place.to_owned(),
                gtrid,
                what: what.to_string(),
            });
        }
    }

    /// The hash of all events, and how many there are.
    pub fn hash(&self) -> (u64, u64) {
        let kept = self.kept();
        (kept.hash, kept.count)
    }

    /// The story of a transaction: its own events, with those of the whole world between its first
    /// and its last one.
    pub fn story(&self, gtrid: Gtrid) -> Vec<Event> {
        let kept = self.kept();
        let mine = |event: &&Event| event.gtrid == Some(gtrid);
        let first = kept.events.iter().find(mine).map_or(0, |event| event.at_us);
        kept.events
            .iter()
            .filter(|event| {
                event.gtrid == Some(gtrid) || (event.gtrid.is_none() && event.at_us >= first)
            })
            .cloned()
            .collect()
    }

    /// All events.
    pub fn all(&self) -> Vec<Event> {
        self.kept().events.clone()
    }
}
