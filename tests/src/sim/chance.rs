//! Chance, drawn from a seed: the same seed gives the same numbers for ever, on every machine.
//!
//! SplitMix64 (Steele, Lea, Flood 2014). Each part of a simulated world has a stream of its own, so
//! that one draw more in one part changes nothing in another.

use std::ops::Range;
use std::time::Duration;

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The stream of a seed.
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D)
    }

    /// Another stream, of its own.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.number())
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number of a range; its start when it is empty.
    pub fn between(&mut self, range: Range<u64>) -> u64 {
        let width = range.end.saturating_sub(range.start);
        if width == 0 {
            return range.start;
        }
        range.start + self.number() % width
    }

    /// An index below `count`, which is not 0.
    pub fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.between(0..count as u64)).unwrap_or(0)
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }

    /// True so often in a thousand times.
    pub fn permille(&mut self, times: u64) -> bool {
        self.between(0..1_000) < times
    }

    /// A time of a range in microseconds, mostly near its start: sometimes something takes long.
    pub fn pause(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.pause_us(range))
    }

    /// The same as a number.
    pub fn pause_us(&mut self, range: Range<u64>) -> u64 {
        let width = range.end.saturating_sub(range.start);
        let part = match self.between(0..20) {
            0 => width,
            1..4 => width / 4,
            _ => width / 16,
        };
        self.between(range.start..range.start + part.max(1))
    }
}
