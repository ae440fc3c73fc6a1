//! What can be remembered of accounts and products because it never changes.
//!
//! It owns a bounded cache of immutable facts. It refuses to keep balances, stock or absence:
//! those change, and only the servers know them.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Facts in one cache. An entry takes about 150 B, so a full cache takes about 10 MB; what does
/// not fit costs one read more for each use.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("it is not zero");

/// A bounded cache of facts by id.
#[derive(Debug)]
pub struct Known<V>(Mutex<LruCache<Box<str>, V>>);

impl<V> Default for Known<V> {
    fn default() -> Self {
        Self(Mutex::new(LruCache::sparse(KNOWN_MAX)))
    }
}

impl<V: Copy> Known<V> {
    /// The fact about this id.
    pub fn get(&self, id: &str) -> Option<V> {
        self.lock().get(id).copied()
    }

    /// Remembers a fact that was read, or is committed.
    pub fn put(&self, id: &str, fact: V) {
        self.lock().put(id.into(), fact);
    }

    /// The server said otherwise: its data was replaced.
    pub fn forget(&self, id: &str) {
        self.lock().pop(id);
    }

    /// Facts stay true when a holder of the lock panicked.
    fn lock(&self) -> MutexGuard<'_, LruCache<Box<str>, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remembers_and_forgets() {
        let known = Known::default();
        known.put("a", 1);
        assert_eq!((known.get("a"), known.get("b")), (Some(1), None));
        known.forget("a");
        assert_eq!(known.get("a"), None);
    }

    #[test]
    fn it_is_bounded_and_drops_what_was_not_used_for_longest() {
        let known = Known::default();
        for i in 0..=KNOWN_MAX.get() {
            known.put(&i.to_string(), i);
            known.get("0");
        }
        assert_eq!((known.get("0"), known.get("1")), (Some(0), None));
    }
}
