//! SQL values: from the wire with every check, and back.

use concord_core::limits::VALUE_BYTES_MAX;

use super::common::unknown_number;
use super::time;
use super::violations::{At, Violations};
use crate::model::Value;
use crate::v1;
use crate::v1::value::Kind;

/// Digits of a DECIMAL: MySQL's and MariaDB's limit.
pub const DECIMAL_DIGITS_MAX: usize = 65;
/// Digits of a DECIMAL after the point: MariaDB's limit. MySQL has 30 and rounds.
pub const DECIMAL_SCALE_MAX: usize = 38;

/// Checks one value.
pub fn value(v: &mut Violations, at: &At<'_>, raw: v1::Value) -> Option<Value> {
    let Some(kind) = raw.kind else {
        v.add(at, "is empty: for SQL NULL set `null`");
        return None;
    };
    match kind {
        Kind::Null(number) => match v1::NullValue::try_from(number) {
            Ok(v1::NullValue::Null) => Some(Value::Null),
            Ok(v1::NullValue::Unspecified) => {
                v.add(&at.field("null"), "must be NULL_VALUE_NULL");
                None
            }
            Err(_) => unknown_number(v, &at.field("null"), number),
        },
        Kind::Bool(value) => Some(Value::Bool(value)),
        Kind::Int64(value) => Some(Value::Int(value)),
        Kind::Uint64(value) => Some(Value::UInt(value)),
        Kind::Double(value) if value.is_finite() => Some(Value::Double(value)),
        Kind::Double(value) => {
            v.add(
                &at.field("double"),
                format_args!("must be finite, and is {value}"),
            );
            None
        }
        Kind::Decimal(text) if is_decimal(&text) => Some(Value::Decimal(text)),
        Kind::Decimal(text) => refuse(v, &at.field("decimal"), DECIMAL_FORM, &text),
        Kind::String(text) if text.len() <= VALUE_BYTES_MAX => Some(Value::String(text)),
        Kind::String(text) => refuse_long(v, &at.field("string"), text.len()),
        Kind::Bytes(bytes) if bytes.len() <= VALUE_BYTES_MAX => Some(Value::Bytes(bytes)),
        Kind::Bytes(bytes) => refuse_long(v, &at.field("bytes"), bytes.len()),
        Kind::Date(text) if time::is_date(&text) => Some(Value::Date(text)),
        Kind::Date(text) => refuse(v, &at.field("date"), time::DATE_FORM, &text),
        Kind::Time(text) if time::is_time(&text) => Some(Value::Time(text)),
        Kind::Time(text) => refuse(v, &at.field("time"), time::TIME_FORM, &text),
        Kind::Datetime(text) if time::is_datetime(&text) => Some(Value::DateTime(text)),
        Kind::Datetime(text) => refuse(v, &at.field("datetime"), time::DATETIME_FORM, &text),
    }
}

const DECIMAL_FORM: &str =
    "must be \"[-]digits[.digits]\" with at most 65 digits, 38 of them after the point";

fn refuse(v: &mut Violations, at: &At<'_>, form: &str, text: &str) -> Option<Value> {
    v.add(
        at,
        format_args!("{form}, and is {:?}", crate::status::shorten(text, 40)),
    );
    None
}

fn refuse_long(v: &mut Violations, at: &At<'_>, bytes: usize) -> Option<Value> {
    v.add(
        at,
        format_args!("must have at most {VALUE_BYTES_MAX} bytes, and has {bytes}"),
    );
    None
}

fn is_decimal(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = match unsigned.split_once('.') {
        Some((_, "")) => return false,
        Some(parts) => parts,
        None => (unsigned, ""),
    };
    !whole.is_empty()
        && fraction.len() <= DECIMAL_SCALE_MAX
        && whole.len() + fraction.len() <= DECIMAL_DIGITS_MAX
        && whole
            .bytes()
            .chain(fraction.bytes())
            .all(|c| c.is_ascii_digit())
}

impl From<Value> for v1::Value {
    fn from(value: Value) -> Self {
        let kind = match value {
            Value::Null => Kind::Null(v1::NullValue::Null.into()),
            Value::Bool(value) => Kind::Bool(value),
            Value::Int(value) => Kind::Int64(value),
            Value::UInt(value) => Kind::Uint64(value),
            Value::Double(value) => Kind::Double(value),
            Value::Decimal(text) => Kind::Decimal(text),
            Value::String(text) => Kind::String(text),
            Value::Bytes(bytes) => Kind::Bytes(bytes),
            Value::Date(text) => Kind::Date(text),
            Value::Time(text) => Kind::Time(text),
            Value::DateTime(text) => Kind::Datetime(text),
        };
        Self { kind: Some(kind) }
    }
}

/// Bytes that a value adds to a transaction's work.
pub fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 1,
        Value::Int(_) | Value::UInt(_) | Value::Double(_) => 8,
        Value::Bytes(bytes) => bytes.len(),
        Value::Decimal(text)
        | Value::String(text)
        | Value::Date(text)
        | Value::Time(text)
        | Value::DateTime(text) => text.len(),
    }
}
