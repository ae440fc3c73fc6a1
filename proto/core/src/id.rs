//! Identities: transactions, branches, participants, epochs, requests.
//!
//! They are created elsewhere (ids need a clock and randomness) and only compared here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Id of one global transaction: the 16 bytes of a UUIDv7.
///
/// Time-ordered (48 bits of Unix milliseconds come first) with 74 random bits, so that knowing
/// one xid does not let anybody guess another: `XA COMMIT` needs no privilege beyond knowing it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gtrid(pub [u8; 16]);

impl Gtrid {
    /// Below every id that is ever minted.
    pub const MIN: Self = Self([0; 16]);

    /// Above every id that is ever minted.
    pub const MAX: Self = Self([u8::MAX; 16]);

    /// The lowest id of a Unix millisecond.
    pub fn lowest_at(ms: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
        Self(bytes)
    }

    /// The Unix milliseconds in its first 48 bits.
    pub fn unix_ms(self) -> u64 {
        self.0[..6]
            .iter()
            .fold(0, |ms, byte| (ms << 8) | u64::from(*byte))
    }

    /// The lowest id of the millisecond that is so much earlier than its own; at the earliest of 0.
    #[must_use]
    pub fn before(self, age: Duration) -> Self {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Self::lowest_at(self.unix_ms().saturating_sub(age))
    }
}

impl fmt::Display for Gtrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Gtrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Number of a branch within its transaction, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bqual(pub u32);

impl fmt::Display for Bqual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One branch of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId {
    /// The transaction.
    pub gtrid: Gtrid,
    /// The branch within it.
    pub bqual: Bqual,
}

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.gtrid, self.bqual)
    }
}

/// Number of the coordinator's incarnation, from 1: a fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps text that was validated at the door.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// Its text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

text_id! {
    /// Name of a participant in its cluster.
    ParticipantName
}

text_id! {
    /// What a client calls its request, so that a retry is recognised.
    RequestId
}

/// A request id with a fingerprint of what was asked, so that its reuse for something else is
/// refused rather than answered with the outcome of another request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// The client's id.
    pub id: RequestId,
    /// A hash of the request's content that is stable across versions and restarts.
    pub fingerprint: u64,
}
