//! Turns at the rows that several transactions of the gateway want at the same time.
//!
//! Two transfers that cross each other take their row locks in different orders on two servers. No
//! server sees that deadlock, and both wait until a lock time-out ends them. The gateway knows the
//! rows beforehand: it lets one transaction at a time at each, and takes all rows of one in one
//! order. It refuses to be a lock of the data: what comes past this gateway meets in the servers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// A row of the gateway's tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// An account.
    Account(Box<str>),
    /// A product.
    Product(Box<str>),
}

/// Whose turn it is, by row. A row that nobody wants takes no memory.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<RowKey, Arc<Turn<()>>>>);

/// The turn at some rows, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Held {
    turns: Arc<Turns>,
    rows: Vec<(RowKey, Option<OwnedMutexGuard<()>>)>,
}

impl Turns {
    /// Waits for the turn at all these rows. Dropping the future gives up every place in line.
    pub async fn take(self: &Arc<Self>, mut rows: Vec<RowKey>) -> Held {
        rows.sort_unstable();
        rows.dedup();
        let mut held = Held {
            turns: Arc::clone(self),
            rows: Vec::with_capacity(rows.len()),
        };
        for row in rows {
            let turn = Arc::clone(self.lock().entry(row.clone()).or_default());
            // In the list before it waits, so that giving up cleans up.
            held.rows.push((row, None));
            let guard = turn.lock_owned().await;
            if let Some((_, place)) = held.rows.last_mut() {
                *place = Some(guard);
            }
        }
        held
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RowKey, Arc<Turn<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut turns = self.turns.lock();
        for (row, guard) in self.rows.drain(..) {
            drop(guard);
            // Whoever waits holds the turn too.
            if let Entry::Occupied(entry) = turns.entry(row)
                && Arc::strong_count(entry.get()) == 1
            {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::FutureExt as _;

    use super::*;

    fn rows(ids: &[&str]) -> Vec<RowKey> {
        ids.iter().map(|id| RowKey::Account((*id).into())).collect()
    }

    #[tokio::test]
    async fn one_at_a_time_at_each_row_and_nobody_waits_for_other_rows() {
        let turns = Arc::new(Turns::default());
        let first = turns.take(rows(&["b", "a", "a"])).await;
        assert!(turns.take(rows(&["a"])).now_or_never().is_none());
        assert!(turns.take(rows(&["c", "b"])).now_or_never().is_none());
        assert!(turns.take(rows(&["c"])).now_or_never().is_some());
        drop(first);
        assert!(turns.take(rows(&["a", "b", "c"])).now_or_never().is_some());
        assert!(turns.lock().is_empty(), "{turns:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn crossing_orders_all_come_to_an_end_and_leave_nothing() {
        let turns = Arc::new(Turns::default());
        let inside = Arc::new(AtomicU32::new(0));
        let ids = ["a", "b", "c"];
        let tasks: Vec<_> = (0..300)
            .map(|n| {
                let (turns, inside) = (Arc::clone(&turns), Arc::clone(&inside));
                tokio::spawn(async move {
                    let held = turns
                        .take(rows(&[ids[n % 3], ids[(n + 1 + n % 2) % 3]]))
                        .await;
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(held);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(turns.lock().is_empty(), "{turns:?}");
    }
}
