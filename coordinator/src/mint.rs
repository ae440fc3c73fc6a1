//! Fresh transaction ids: UUIDv7 with 74 random bits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use concord_core::id::Gtrid;

use crate::surroundings::Surroundings;

/// Mints ids whose time never runs backwards: below the ids on record, whatever the clock says,
/// no id is ever minted again.
#[derive(Debug)]
pub struct Mint {
    floor_ms: AtomicU64,
    surroundings: Arc<dyn Surroundings>,
}

impl Mint {
    /// All ids will be above `highest`.
    pub fn above(highest: Gtrid, surroundings: Arc<dyn Surroundings>) -> Self {
        Self {
            floor_ms: AtomicU64::new(highest.unix_ms() + 1),
            surroundings,
        }
    }

    /// A fresh id.
    pub fn mint(&self) -> Gtrid {
        let now = self.surroundings.unix_ms();
        let ms = self.floor_ms.fetch_max(now, Ordering::Relaxed).max(now);
        let chance = self.surroundings.random().to_be_bytes();
        let mut random = [0; 10];
        random.copy_from_slice(&chance[..10]);
        Gtrid(
            *uuid::Builder::from_unix_timestamp_millis(ms, &random)
                .as_uuid()
                .as_bytes(),
        )
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn ids_are_uuids_of_version_7() {
        let id = Mint::above(Gtrid::MIN, Arc::new(Machine)).mint();
        let uuid = uuid::Uuid::from_bytes(id.0);
        assert_eq!(uuid.get_version_num(), 7);
        assert_eq!(uuid.to_string(), id.to_string());
    }
}
