//! Columns of the text protocol as values, bounded in number and bytes.
//!
//! The text protocol is the only one that takes XA verbs, so every value arrives as text and is
//! read by its column's type.

use concord_core::limits::{RESULT_BYTES_MAX, RESULT_ROWS_MAX};
use concord_core::reason::{Reason, code};
use concord_proto::v1;
use concord_proto::v1::value::Kind;
use sqlx::mysql::{MySql, MySqlQueryResult, MySqlRow, MySqlValueRef};
use sqlx::{Column as _, Decode, Row as _, Type, TypeInfo as _, ValueRef as _};

/// Collects what one statement returns.
#[derive(Debug, Default)]
pub struct Collector {
    result: v1::StatementResult,
    bytes: usize,
    rows: u64,
    refused: Option<Reason>,
}

impl Collector {
    /// Takes one row. Once the limits are passed, rows are only counted.
    pub fn row(&mut self, row: &MySqlRow) {
        self.rows += 1;
        if self.refused.is_some() {
            return;
        }
        if self.result.columns.is_empty() {
            self.result.columns = row.columns().iter().map(column).collect();
            self.bytes += self.result.columns.iter().map(column_bytes).sum::<usize>();
        }
        let values: Result<Vec<_>, _> = (0..row.columns().len()).map(|at| value(row, at)).collect();
        match values {
            Ok(values) => {
                self.bytes += values.iter().map(value_bytes).sum::<usize>();
                self.result.result.push(v1::Row { values });
                if self.result.result.len() > RESULT_ROWS_MAX || self.bytes > RESULT_BYTES_MAX {
                    self.refuse(Reason::new(
                        code::RESULT_TOO_LARGE,
                        format!(
                            "a statement returns at most {RESULT_ROWS_MAX} rows and \
                             {RESULT_BYTES_MAX} bytes: ask for less, in pages"
                        ),
                    ));
                }
            }
            Err(error) => self.refuse(Reason::new(code::UNEXPECTED_ANSWER, error)),
        }
    }

    /// What the rows so far take in memory, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn refuse(&mut self, reason: Reason) {
        self.refused = Some(reason);
        self.result.result = Vec::new();
    }

    /// Ends the statement. A write counts the rows that it matched, a read those that it returned.
    pub fn finish(
        mut self,
        done: &MySqlQueryResult,
        is_select: bool,
    ) -> Result<v1::StatementResult, Reason> {
        if let Some(reason) = self.refused {
            return Err(reason);
        }
        let reads = is_select || !self.result.columns.is_empty();
        self.result.rows = if reads {
            self.rows
        } else {
            done.rows_affected()
        };
        self.result.last_insert_id = done.last_insert_id();
        Ok(self.result)
    }
}

fn column(column: &sqlx::mysql::MySqlColumn) -> v1::Column {
    v1::Column {
        name: column.name().into(),
        r#type: column.type_info().name().into(),
    }
}

/// What a value or a column costs in memory, or on the wire, beside its text.
const OVERHEAD: usize = 16;

fn column_bytes(column: &v1::Column) -> usize {
    OVERHEAD + column.name.len() + column.r#type.len()
}

fn value_bytes(value: &v1::Value) -> usize {
    OVERHEAD
        + match &value.kind {
            Some(
                Kind::Decimal(text)
                | Kind::String(text)
                | Kind::Date(text)
                | Kind::Time(text)
                | Kind::Datetime(text),
            ) => text.len(),
            Some(Kind::Bytes(bytes)) => bytes.len(),
            _ => 0,
        }
}

fn value(row: &MySqlRow, at: usize) -> Result<v1::Value, String> {
    let raw = row.try_get_raw(at).map_err(|error| error.to_string())?;
    let kind = if raw.is_null() {
        Kind::Null(v1::NullValue::Null.into())
    } else {
        let info = raw.type_info().into_owned();
        let is_text = <str as Type<MySql>>::compatible(&info);
        decode(info.name(), is_text, bytes(raw)?)?
    };
    Ok(v1::Value { kind: Some(kind) })
}

fn bytes(raw: MySqlValueRef<'_>) -> Result<&[u8], String> {
    <&[u8] as Decode<'_, MySql>>::decode(raw).map_err(|error| error.to_string())
}

/// Reads one value by the name of its column's type; `is_text` when its bytes are characters.
pub fn decode(type_name: &str, is_text: bool, bytes: &[u8]) -> Result<Kind, String> {
    let text = || {
        std::str::from_utf8(bytes)
            .map_err(|_| format!("a {type_name} column returned bytes that are not UTF-8"))
    };
    let wrong = |text: &str| format!("a {type_name} column returned {text:?}");
    match type_name {
        "BIT" => Ok(bit(bytes)),
        // MySQL's BOOLEAN is a TINYINT(1), which holds any small number: keep it one.
        "BOOLEAN" | "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" | "YEAR" => text()?
            .parse()
            .map(Kind::Int64)
            .map_err(|_| wrong(&String::from_utf8_lossy(bytes))),
        name if name.ends_with("UNSIGNED") => text()?
            .parse()
            .map(Kind::Uint64)
            .map_err(|_| wrong(&String::from_utf8_lossy(bytes))),
        // Servers have no other numbers than finite ones.
        "FLOAT" | "DOUBLE" => text()?
            .parse()
            .ok()
            .filter(|number: &f64| number.is_finite())
            .map(Kind::Double)
            .ok_or_else(|| wrong(&String::from_utf8_lossy(bytes))),
        "DECIMAL" => Ok(Kind::Decimal(text()?.into())),
        "DATE" => Ok(Kind::Date(text()?.into())),
        "TIME" => Ok(Kind::Time(text()?.into())),
        "DATETIME" | "TIMESTAMP" => Ok(Kind::Datetime(text()?.into())),
        // JSON travels as UTF-8 whatever its column's collation says.
        "JSON" | "ENUM" | "SET" => Ok(Kind::String(text()?.into())),
        "GEOMETRY" => Ok(Kind::Bytes(bytes.into())),
        _ if is_text => Ok(Kind::String(text()?.into())),
        _ => Ok(Kind::Bytes(bytes.into())),
    }
}

/// BIT(1..64) arrives as big-endian bytes.
fn bit(bytes: &[u8]) -> Kind {
    if bytes.len() > 8 {
        return Kind::Bytes(bytes.into());
    }
    Kind::Uint64(
        bytes
            .iter()
            .fold(0, |bits, byte| (bits << 8) | u64::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read_by_its_name() {
        for (name, is_text, bytes, expected) in [
            ("BOOLEAN", false, &b"2"[..], Kind::Int64(2)),
            (
                "BIGINT",
                false,
                b"-9223372036854775808",
                Kind::Int64(i64::MIN),
            ),
            (
                "BIGINT UNSIGNED",
                false,
                b"18446744073709551615",
                Kind::Uint64(u64::MAX),
            ),
            (
                "DOUBLE",
                false,
                b"1.7976931348623157e308",
                Kind::Double(f64::MAX),
            ),
            ("DECIMAL", false, b"-12.30", Kind::Decimal("-12.30".into())),
            ("BIT", false, &[1, 0], Kind::Uint64(256)),
            ("YEAR", false, b"2024", Kind::Int64(2024)),
            (
                "TIME",
                false,
                b"-01:00:00.5",
                Kind::Time("-01:00:00.5".into()),
            ),
            (
                "DATE",
                false,
                b"0000-00-00",
                Kind::Date("0000-00-00".into()),
            ),
            ("VARCHAR", true, "é".as_bytes(), Kind::String("é".into())),
            ("VARBINARY", false, &[0xFF], Kind::Bytes(vec![0xFF])),
            ("JSON", false, b"{}", Kind::String("{}".into())),
        ] {
            assert_eq!(decode(name, is_text, bytes), Ok(expected), "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_its_type_is_an_error_and_not_a_guess() {
        assert!(decode("BIGINT", false, b"x").is_err());
        assert!(decode("INT UNSIGNED", false, b"-1").is_err());
        assert!(decode("VARCHAR", true, &[0xFF]).is_err());
    }
}
