//! Rows that servers return, read back into types, and pages of them merged.
//!
//! It owns how a column becomes a value. It refuses to guess: a row of another shape than asked
//! for is `UNEXPECTED_ANSWER`.

use std::slice;

use concord_core::id::Gtrid;
use concord_core::reason::{Reason, code};
use concord_proto::convert::{self, AccountId, At, Page, Violations};
use concord_proto::model::Value;
use concord_proto::v1;
use concord_proto::v1::value::Kind;
use prost_types::Timestamp;

use super::plan::{id_of, text};

/// The values of one row, from left to right.
#[derive(Clone, Debug)]
pub struct Cells<'a>(slice::Iter<'a, v1::Value>);

impl<'a> Cells<'a> {
    /// Of this row.
    pub fn of(row: &'a v1::Row) -> Self {
        Self(row.values.iter())
    }

    fn next(&mut self) -> Result<&'a Kind, Reason> {
        self.0
            .next()
            .and_then(|value| value.kind.as_ref())
            .ok_or_else(|| odd("a column", None))
    }

    /// Text.
    pub fn text(&mut self) -> Result<String, Reason> {
        self.optional_text()?.ok_or_else(|| odd("text", None))
    }

    /// Text or NULL.
    pub fn optional_text(&mut self) -> Result<Option<String>, Reason> {
        match self.next()? {
            Kind::Null(_) => Ok(None),
            Kind::String(text) => Ok(Some(text.clone())),
            other => Err(odd("text", Some(other))),
        }
    }

    /// An integer.
    pub fn int(&mut self) -> Result<i64, Reason> {
        match self.next()? {
            Kind::Int64(number) => Ok(*number),
            other => Err(odd("an integer", Some(other))),
        }
    }

    /// A transaction's id.
    pub fn gtrid(&mut self) -> Result<Gtrid, Reason> {
        match self.next()? {
            Kind::Bytes(bytes) => {
                let bytes = <[u8; 16]>::try_from(bytes.as_slice());
                bytes.map(Gtrid).map_err(|_| odd("16 bytes", None))
            }
            other => Err(odd("16 bytes", Some(other))),
        }
    }

    /// A DATETIME in UTC.
    pub fn time(&mut self) -> Result<Timestamp, Reason> {
        match self.next()? {
            Kind::Datetime(text) => {
                let iso = format!("{}Z", text.replacen(' ', "T", 1));
                iso.parse().map_err(|_| odd("a time", None))
            }
            other => Err(odd("a time", Some(other))),
        }
    }
}

/// The time in a transaction's id, by the coordinator's clock.
pub fn time_of(gtrid: Gtrid) -> Timestamp {
    convert::time::timestamp(gtrid.unix_ms())
}

/// A time as a DATETIME in UTC.
pub fn datetime(time: &Timestamp) -> String {
    time.to_string()
        .replacen('T', " ", 1)
        .trim_end_matches('Z')
        .to_owned()
}

fn odd(wanted: &str, got: Option<&Kind>) -> Reason {
    let got = match got {
        None => "nothing of that form",
        Some(Kind::Null(_)) => "NULL",
        Some(Kind::Bool(_)) => "a boolean",
        Some(Kind::Int64(_) | Kind::Uint64(_)) => "an integer",
        Some(Kind::Double(_)) => "a double",
        Some(Kind::Decimal(_)) => "a decimal",
        Some(Kind::String(_)) => "text",
        Some(Kind::Bytes(_)) => "bytes",
        Some(Kind::Date(_) | Kind::Time(_) | Kind::Datetime(_)) => "a date or time",
    };
    Reason::new(
        code::UNEXPECTED_ANSWER,
        format!("a row of the gateway's own tables has {got} where {wanted} is expected"),
    )
}

/// How many rows to ask each participant for, so that a page of `size` can be filled by any of
/// them and it is known whether another page follows.
pub fn limit(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX).saturating_add(1)
}

/// The bound below which the gtrids of a page newest first are.
pub fn before(page: &Page) -> Result<Value, Reason> {
    match &page.after {
        None => Ok(Value::Bytes(vec![u8::MAX; 16])),
        Some(cursor) => convert::text::parse_gtrid(cursor)
            .map(id_of)
            .ok_or_else(bad_token),
    }
}

/// The bound above which the ids of a page by id are.
pub fn after(page: &Page) -> Result<Value, Reason> {
    let cursor = page.after.as_deref().unwrap_or_default();
    // Accounts and products have ids of one form.
    if page.after.is_some() && AccountId::parse(cursor).is_none() {
        return Err(bad_token());
    }
    Ok(text(cursor))
}

/// A forged token: its checksum is right, and its cursor of another form.
fn bad_token() -> Reason {
    Violations::one(
        &At::root("page_token"),
        "is not a token of a former answer of this list",
    )
    .into()
}

/// Merges what each participant returned, everyone in the order of `key` and up to [`limit`] long,
/// into one page, and tells whether more follows it.
pub fn merge<T, K: Ord>(
    parts: impl IntoIterator<Item = Vec<T>>,
    size: usize,
    key: impl Fn(&T) -> K,
) -> (Vec<T>, bool) {
    let mut page: Vec<T> = parts.into_iter().flatten().collect();
    page.sort_by_key(key); // a merge sort: it takes the runs as they are
    let more = page.len() > size;
    page.truncate(size);
    (page, more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Reverse;

    fn row(kinds: Vec<Kind>) -> v1::Row {
        let values = kinds
            .into_iter()
            .map(|kind| v1::Value { kind: Some(kind) })
            .collect();
        v1::Row { values }
    }

    #[test]
    fn a_row_is_read_from_left_to_right() {
        let row = row(vec![
            Kind::String("a".into()),
            Kind::Int64(-5),
            Kind::Bytes(vec![7; 16]),
            Kind::Datetime("2026-01-02 03:04:05.000006".into()),
            Kind::Null(1),
        ]);
        let mut cells = Cells::of(&row);
        assert_eq!(cells.text().as_deref(), Ok("a"));
        assert_eq!(cells.int(), Ok(-5));
        assert_eq!(cells.gtrid(), Ok(Gtrid([7; 16])));
        assert_eq!(
            cells.time(),
            Ok(Timestamp {
                seconds: 1_767_323_045,
                nanos: 6_000
            })
        );
        assert_eq!(cells.optional_text(), Ok(None));
        assert_eq!(
            cells.int().map_err(|r| r.code),
            Err(code::UNEXPECTED_ANSWER.into())
        );
    }

    #[test]
    fn a_row_of_another_shape_is_refused() {
        let cases = [Kind::Null(1), Kind::Int64(1), Kind::Bytes(vec![1; 15])];
        for kind in cases {
            let row = row(vec![kind]);
            assert!(Cells::of(&row).text().is_err());
            assert!(Cells::of(&row).gtrid().is_err());
            assert!(Cells::of(&row).time().is_err());
        }
        let row = row(vec![Kind::Datetime("0000-00-00 00:00:00".into())]);
        assert!(Cells::of(&row).time().is_err());
    }

    #[test]
    fn times_go_to_the_database_and_back() {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&[0x01, 0x9b, 0x7d, 0x3e, 0x2a, 0x15]);
        let time = time_of(Gtrid(bytes));
        let text = datetime(&time);
        assert_eq!(text, "2026-01-02 05:46:24.661");
        let row = row(vec![Kind::Datetime(text)]);
        assert_eq!(Cells::of(&row).time(), Ok(time));
        assert_eq!(
            datetime(&Timestamp {
                seconds: 0,
                nanos: 0
            }),
            "1970-01-01 00:00:00"
        );
    }

    #[test]
    fn pages_merge_in_order_and_know_whether_more_follows() {
        let parts = || [vec!["a", "d", "e"], vec![], vec!["b", "c", "f"]];
        assert_eq!(merge(parts(), 2, |id| *id), (vec!["a", "b"], true));
        assert_eq!(
            merge(parts(), 5, |id| *id),
            (vec!["a", "b", "c", "d", "e"], true)
        );
        assert!(!merge(parts(), 6, |id| *id).1);
        let newest = merge([vec![9, 4], vec![7, 5]], 3, |n| Reverse(*n));
        assert_eq!(newest, (vec![9, 7, 5], true));
        assert_eq!(merge([vec![], vec![]], 3, |n: &u8| *n), (vec![], false));
    }

    /// Whatever the distribution and the page size, paging to the end shows each row once.
    #[test]
    fn paging_to_the_end_shows_every_row_once_in_order() {
        let servers: [Vec<u32>; 3] = [
            (0..50).filter(|n| n % 7 < 3).collect(),
            (0..50).filter(|n| n % 7 == 3).collect(),
            (0..50).filter(|n| n % 7 > 3).collect(),
        ];
        for size in 1..=51_usize {
            let (mut seen, mut after) = (Vec::<u32>::new(), None);
            loop {
                let parts = servers.iter().map(|rows| {
                    let rest = rows
                        .iter()
                        .copied()
                        .filter(|n| after.is_none_or(|a| *n > a));
                    rest.take(usize::try_from(limit(size)).unwrap()).collect()
                });
                let (page, more) = merge(parts, size, |n| *n);
                assert!(page.len() == size || !more);
                seen.extend(&page);
                after = page.last().copied();
                if !more {
                    break;
                }
            }
            assert_eq!(seen, (0..50).collect::<Vec<_>>(), "page size {size}");
        }
    }
}
