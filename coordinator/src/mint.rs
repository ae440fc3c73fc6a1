//! Fresh transaction ids: UUIDv7 with 74 random bits.

use std::sync::{Arc, Mutex, PoisonError};

use concord_core::id::Gtrid;

use crate::surroundings::Surroundings;

/// The random bits of an id.
const RANDOM_BITS: u32 = 74;

/// Mints ids of which each is above all before, whatever the clock says: what is forgotten is told
/// from what is young by the order of ids alone.
#[derive(Debug)]
pub struct Mint {
    last: Mutex<Last>,
    surroundings: Arc<dyn Surroundings>,
}

/// The last id.
#[derive(Debug)]
struct Last {
    ms: u64,
    /// Its [`RANDOM_BITS`].
    random: u128,
}

impl Mint {
    /// All ids will be above `highest`.
    pub fn above(highest: Gtrid, surroundings: Arc<dyn Surroundings>) -> Self {
        Self {
            last: Mutex::new(Last {
                ms: highest.unix_ms(),
                random: (1 << RANDOM_BITS) - 1,
            }),
            surroundings,
        }
    }

    /// A fresh id.
    pub fn mint(&self) -> Gtrid {
        let now = self.surroundings.unix_ms();
        let chance = self.surroundings.random();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.advance(now, chance);
        let high = u64::try_from(last.random >> 62).unwrap_or_default();
        let low = u64::try_from(last.random & ((1 << 62) - 1)).unwrap_or_default();
        id(last.ms, high, low)
    }
}

impl Last {
    fn advance(&mut self, now: u64, chance: u128) {
        // Within a millisecond, and while the clock is behind, by a step that nobody can guess
        // (RFC 9562, 6.2, method 2); half of the range is room for steps.
        let next = self.random + 1 + u128::from(u32::try_from(chance >> 96).unwrap_or_default());
        if now > self.ms || next >> RANDOM_BITS != 0 {
            self.ms = now.max(self.ms + 1);
            self.random = chance >> (128 - RANDOM_BITS + 1);
        } else {
            self.random = next;
        }
    }
}

/// A UUID of version 7: 48 bits of time, the version, 12 bits, the variant, 62 bits.
fn id(ms: u64, high: u64, low: u64) -> Gtrid {
    let first = (ms << 16) | 0x7000 | (high & 0xfff);
    let second = (1 << 63) | low;
    Gtrid(*uuid::Uuid::from_u64_pair(first, second).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::surroundings::Machine;

    #[test]
    fn ids_stay_above_the_record_when_the_clock_runs_behind() {
        let future = Gtrid::lowest_at(Machine.unix_ms() + 3_600_000);
        let mint = Mint::above(future, Arc::new(Machine));
        for _ in 0..100 {
            assert!(mint.mint() > future);
        }
    }

    /// A clock that goes back.
    #[derive(Debug)]
    struct Clock(AtomicU64);

    impl Surroundings for Clock {
        fn unix_ms(&self) -> u64 {
            self.0.fetch_sub(1, Ordering::Relaxed)
        }

        fn random(&self) -> u128 {
            Machine.random()
        }

        fn disk_pause(&self) -> Option<Duration> {
            None
        }
    }

    #[test]
    fn each_id_is_above_all_before_also_when_the_clock_goes_back() {
        let clock = Clock(1_800_000_000_001.into());
        let mint = Mint::above(Gtrid::MIN, Arc::new(clock));
        let mut last = Gtrid::MIN;
        for _ in 0..100_000 {
            let next = mint.mint();
            assert!(next > last, "{next} after {last}");
            last = next;
        }
        assert_eq!(last.unix_ms(), 1_800_000_000_001);
    }

    #[test]
    fn a_millisecond_that_is_used_up_is_followed_by_the_next() {
        let mut last = Last {
            ms: 7,
            random: (1 << RANDOM_BITS) - 1,
        };
        last.advance(6, 0);
        assert_eq!((last.ms, last.random), (8, 0));
    }

    #[test]
    fn ids_are_uuids_of_version_7() {
        let id = Mint::above(Gtrid::MIN, Arc::new(Machine)).mint();
        let uuid = uuid::Uuid::from_bytes(id.0);
        assert_eq!(uuid.get_version_num(), 7);
        assert_eq!(uuid.to_string(), id.to_string());
    }
}
