//! Dates and times: those of SQL as text, and timestamps of the wire.

use std::ops::RangeInclusive;

use prost_types::Timestamp;

/// What a DATE looks like.
pub const DATE_FORM: &str = "must be a date \"YYYY-MM-DD\"";
/// What a TIME looks like.
pub const TIME_FORM: &str = "must be a time \"[-]HHH:MM:SS[.ffffff]\" from -838:59:59 to 838:59:59";
/// What a DATETIME looks like.
pub const DATETIME_FORM: &str = "must be a time \"YYYY-MM-DD HH:MM:SS[.ffffff]\"";

/// Largest hour of a TIME: MySQL's and MariaDB's limit.
const TIME_HOURS_MAX: u32 = 838;

/// Whether this is a day of the calendar. MySQL's "zero dates" are none.
pub(super) fn is_date(text: &str) -> bool {
    let mut parts = text.split('-');
    let (Some(year), Some(month), Some(day), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let (Some(year), Some(month)) = (number(year, 4..=4, 1..=9_999), number(month, 2..=2, 1..=12))
    else {
        return false;
    };
    number(day, 2..=2, 1..=days_in(year, month)).is_some()
}

/// Whether this is a TIME.
pub(super) fn is_time(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (clock, fraction) = split_fraction(unsigned);
    let Some((hours, _, _)) = clock_of(clock, 2..=3, TIME_HOURS_MAX) else {
        return false;
    };
    let over = hours == TIME_HOURS_MAX
        && clock.ends_with("59:59")
        && fraction.is_some_and(|digits| digits.bytes().any(|c| c != b'0'));
    fraction.is_none_or(is_fraction) && !over
}

/// Whether this is a DATETIME.
pub(super) fn is_datetime(text: &str) -> bool {
    let Some((date, time)) = text.split_once(' ') else {
        return false;
    };
    let (clock, fraction) = split_fraction(time);
    is_date(date) && clock_of(clock, 2..=2, 23).is_some() && fraction.is_none_or(is_fraction)
}

fn split_fraction(text: &str) -> (&str, Option<&str>) {
    match text.split_once('.') {
        Some((clock, fraction)) => (clock, Some(fraction)),
        None => (text, None),
    }
}

fn is_fraction(digits: &str) -> bool {
    number(digits, 1..=6, 0..=999_999).is_some()
}

fn clock_of(
    text: &str,
    hour_digits: RangeInclusive<usize>,
    hours_max: u32,
) -> Option<(u32, u32, u32)> {
    let mut parts = text.split(':');
    let hours = number(parts.next()?, hour_digits, 0..=hours_max)?;
    let minutes = number(parts.next()?, 2..=2, 0..=59)?;
    let seconds = number(parts.next()?, 2..=2, 0..=59)?;
    parts.next().is_none().then_some((hours, minutes, seconds))
}

fn number(text: &str, digits: RangeInclusive<usize>, range: RangeInclusive<u32>) -> Option<u32> {
    let well_formed = digits.contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit());
    let number = if well_formed {
        text.parse().ok()?
    } else {
        return None;
    };
    range.contains(&number).then_some(number)
}

fn days_in(year: u32, month: u32) -> u32 {
    let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// A wire timestamp of Unix milliseconds. Beyond the year 9999, its last millisecond.
pub fn timestamp(unix_ms: u64) -> Timestamp {
    /// 9999-12-31T23:59:59.999Z, the last that a wire timestamp may be.
    const LAST_UNIX_MS: u64 = 253_402_300_799_999;
    let ms = i64::try_from(unix_ms.min(LAST_UNIX_MS)).unwrap_or(i64::MAX);
    let nanos = i32::try_from(ms % 1_000).unwrap_or_default() * 1_000_000;
    Timestamp {
        seconds: ms / 1_000,
        nanos,
    }
}

/// Unix milliseconds of a wire timestamp; none when it is before 1970 or not normal.
pub fn unix_ms(timestamp: &Timestamp) -> Option<u64> {
    let seconds = u64::try_from(timestamp.seconds).ok()?;
    let nanos = u64::try_from(timestamp.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)?;
    seconds.checked_mul(1_000)?.checked_add(nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_of_the_calendar() {
        for good in [
            "2024-02-29",
            "2000-02-29",
            "0001-01-01",
            "9999-12-31",
            "2026-04-30",
        ] {
            assert!(is_date(good), "{good}");
        }
        for bad in [
            "",
            "2023-02-29",
            "1900-02-29",
            "2026-04-31",
            "2026-13-01",
            "2026-00-01",
            "2026-01-00",
            "0000-00-00",
            "0000-01-01",
            "26-01-01",
            "2026-1-1",
            "2026-01-01 ",
            "2026/01/01",
            "2026-01-01-01",
            "+026-01-01",
            "２０２６-01-01",
        ] {
            assert!(!is_date(bad), "{bad}");
        }
    }

    #[test]
    fn times_up_to_the_servers_limit() {
        for good in [
            "00:00:00",
            "-838:59:59",
            "838:59:59.000000",
            "23:59:59.5",
            "100:00:00",
        ] {
            assert!(is_time(good), "{good}");
        }
        for bad in [
            "",
            "-",
            "24:00",
            "839:00:00",
            "838:59:59.000001",
            "1:00:00",
            "00:60:00",
            "00:00:60",
            "00:00:00.",
            "00:00:00.1234567",
            "--00:00:00",
            "00:00:00:00",
            "0000:00:00",
            "00:00:0x",
        ] {
            assert!(!is_time(bad), "{bad}");
        }
    }

    #[test]
    fn moments_without_a_zone() {
        for good in ["2026-01-02 03:04:05", "2026-01-02 23:59:59.999999"] {
            assert!(is_datetime(good), "{good}");
        }
        for bad in [
            "2026-01-02",
            "2026-01-02T03:04:05",
            "2026-01-02 03:04:05Z",
            "2026-01-02 24:00:00",
            "2026-01-02  03:04:05",
            "2026-02-30 03:04:05",
            "2026-01-02 -03:04:05",
        ] {
            assert!(!is_datetime(bad), "{bad}");
        }
    }

    #[test]
    fn timestamps_there_and_back() {
        for ms in [0, 1, 999, 1_000, 1_767_323_045_678] {
            assert_eq!(unix_ms(&timestamp(ms)), Some(ms));
        }
        assert_eq!(timestamp(u64::MAX).seconds, 253_402_300_799);
        assert_eq!(
            unix_ms(&Timestamp {
                seconds: -1,
                nanos: 0
            }),
            None
        );
        assert_eq!(
            unix_ms(&Timestamp {
                seconds: 1,
                nanos: 1_000_000_000
            }),
            None
        );
        assert_eq!(
            unix_ms(&Timestamp {
                seconds: i64::MAX,
                nanos: 0
            }),
            None
        );
    }
}
