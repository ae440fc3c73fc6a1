//! Fresh transaction ids: UUIDv7 with 74 random bits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use concord_core::id::Gtrid;

/// Mints ids whose time never runs backwards: below the ids on record, whatever the clock says,
/// no id is ever minted again.
#[derive(Debug)]
pub struct Mint {
    floor_ms: AtomicU64,
}

impl Mint {
    /// All ids will be above `highest`.
    pub fn above(highest: Gtrid) -> Self {
        Self {
            floor_ms: AtomicU64::new(highest.unix_ms() + 1),
        }
    }

    /// A fresh id.
    pub fn mint(&self) -> Gtrid {
        let now = unix_ms();
        let ms = self.floor_ms.fetch_max(now, Ordering::Relaxed).max(now);
        let random: [u8; 10] = rand::random();
        Gtrid(
            *uuid::Builder::from_unix_timestamp_millis(ms, &random)
                .as_uuid()
                .as_bytes(),
        )
    }
}

/// Milliseconds since 1970, by this machine's clock.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_above_the_record_when_the_clock_runs_behind() {
        let future = Gtrid::lowest_at(unix_ms() + 3_600_000);
        let mint = Mint::above(future);
        for _ in 0..100 {
            assert!(mint.mint() > future);
        }
    }

    #[test]
    fn ids_are_uuids_of_version_7() {
        let id = Mint::above(Gtrid::MIN).mint();
        let uuid = uuid::Uuid::from_bytes(id.0);
        assert_eq!(uuid.get_version_num(), 7);
        assert_eq!(uuid.to_string(), id.to_string());
    }
}
