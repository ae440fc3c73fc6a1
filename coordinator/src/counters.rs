//! What is counted since the start.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use concord_proto::v1;

/// Different reason codes that are counted apart; clients choose codes, memory is bounded.
const REASONS_MAX: usize = 256;
/// Where the others are counted.
const OTHER: &str = "OTHER";

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Transactions begun.
    pub begun: AtomicU64,
    /// Transactions committed.
    pub committed: AtomicU64,
    /// Transactions aborted.
    pub aborted: AtomicU64,
    /// Calls refused at the door.
    pub refused: AtomicU64,
    /// Forced appends to the log.
    pub log_forces: AtomicU64,
    /// Records in them.
    pub log_records: AtomicU64,
    /// Heuristic outcomes.
    pub heuristic: AtomicU64,
    reasons: Mutex<BTreeMap<String, u64>>,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// Counts an aborted transaction under its reason's code.
    pub fn aborted_for(&self, code: &str) {
        count(&self.aborted);
        let Ok(mut reasons) = self.reasons.lock() else {
            return;
        };
        if let Some(n) = reasons.get_mut(code) {
            *n += 1;
        } else if reasons.len() < REASONS_MAX {
            reasons.insert(code.to_owned(), 1);
        } else {
            *reasons.entry(OTHER.to_owned()).or_default() += 1;
        }
    }

    /// All of them now.
    pub fn snapshot(&self) -> v1::Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        v1::Counters {
            begun: get(&self.begun),
            committed: get(&self.committed),
            aborted: get(&self.aborted),
            aborted_by_reason: self
                .reasons
                .lock()
                .map(|reasons| reasons.clone().into_iter().collect())
                .unwrap_or_default(),
            refused: get(&self.refused),
            log_forces: get(&self.log_forces),
            log_records: get(&self.log_records),
            heuristic: get(&self.heuristic),
        }
    }
}
