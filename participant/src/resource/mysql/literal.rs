//! Values as SQL literals: the only place where a client's value meets SQL text.
//!
//! A literal is made of a fixed alphabet that cannot end a literal, begin a comment or hold a
//! quote: text and bytes are hexadecimal with an introducer, so that they have a character set and
//! are never taken for numbers; numbers, dates and times are checked again here, whoever checked
//! them before. Different values give different literals.

use std::fmt::Write as _;

use concord_core::reason::{Reason, code};
use concord_proto::model::Value;

use super::xa::push_hex;

/// Digits of a DECIMAL, on both servers.
const DECIMAL_DIGITS_MAX: usize = 65;

/// Appends a value as a literal with a space on both sides, so that it cannot fuse with what
/// stands beside it.
pub fn push_literal(sql: &mut String, value: &Value) -> Result<(), Reason> {
    sql.push(' ');
    match value {
        Value::Null => sql.push_str("NULL"),
        Value::Bool(true) => sql.push_str("TRUE"),
        Value::Bool(false) => sql.push_str("FALSE"),
        // Parentheses keep a sign from meeting an operator.
        Value::Int(int) if *int < 0 => push_fmt(sql, format_args!("({int})")),
        Value::Int(int) => push_fmt(sql, format_args!("{int}")),
        Value::UInt(int) => push_fmt(sql, format_args!("{int}")),
        Value::Double(double) if double.is_finite() => {
            // Rust prints the shortest text that reads back as the same double; the exponent
            // makes it a DOUBLE for the server, not a DECIMAL.
            push_fmt(sql, format_args!("({double:e})"));
        }
        Value::Double(_) => return Err(invalid("a double is not finite")),
        Value::Decimal(text) if is_decimal(text) => push_fmt(sql, format_args!("({text})")),
        Value::Decimal(_) => return Err(invalid("a decimal is not [-]digits[.digits]")),
        Value::String(text) => push_quoted(sql, "_utf8mb4 x'", text.as_bytes()),
        Value::Bytes(bytes) => push_quoted(sql, "_binary x'", bytes),
        Value::Date(text) if is_date(text) => push_temporal(sql, "DATE", text, text),
        Value::Date(_) => return Err(invalid("a date is not YYYY-MM-DD")),
        Value::Time(text) if is_time(text.strip_prefix('-').unwrap_or(text), 3) => {
            push_fmt(sql, format_args!("TIME'{text}'"));
        }
        Value::Time(_) => return Err(invalid("a time is not [-]HHH:MM:SS[.ffffff]")),
        Value::DateTime(text) => match text.split_at_checked(10) {
            Some((date, time))
                if is_date(date) && time.strip_prefix(' ').is_some_and(|t| is_time(t, 2)) =>
            {
                push_temporal(sql, "TIMESTAMP", text, date);
            }
            _ => return Err(invalid("a datetime is not YYYY-MM-DD HH:MM:SS[.ffffff]")),
        },
    }
    sql.push(' ');
    Ok(())
}

/// Bytes that a literal has at most, for budgets.
pub fn literal_len_max(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() * 2 + 16,
        Value::Bytes(bytes) => bytes.len() * 2 + 16,
        Value::Decimal(text) => text.len() + 8,
        _ => 64,
    }
}

fn push_fmt(sql: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = sql.write_fmt(arguments);
}

fn push_quoted(sql: &mut String, introducer: &str, bytes: &[u8]) {
    sql.push_str(introducer);
    push_hex(sql, bytes);
    sql.push('\'');
}

/// A typed literal is checked by the server whatever its `sql_mode`, and does not take a month or
/// a day of zero; those go as text, which the server's `sql_mode` judges where it is stored.
fn push_temporal(sql: &mut String, keyword: &str, text: &str, date: &str) {
    if date[5..7] == *"00" || date[8..10] == *"00" {
        push_fmt(sql, format_args!("'{text}'"));
    } else {
        push_fmt(sql, format_args!("{keyword}'{text}'"));
    }
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_decimal(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    text.len() <= DECIMAL_DIGITS_MAX + 1
        && match text.split_once('.') {
            Some((whole, fraction)) => digits(whole) && digits(fraction),
            None => digits(text),
        }
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && [0, 1, 2, 3, 5, 6, 8, 9]
            .iter()
            .all(|&at| bytes[at].is_ascii_digit())
}

fn is_time(text: &str, hour_digits_max: usize) -> bool {
    let (clock, fraction) = match text.split_once('.') {
        Some((clock, fraction)) => (clock, Some(fraction)),
        None => (text, None),
    };
    let mut parts = clock.split(':');
    let hours = parts
        .next()
        .is_some_and(|h| digits(h) && (2..=hour_digits_max).contains(&h.len()));
    let sixtieths = |part: Option<&str>| part.is_some_and(|p| digits(p) && p.len() == 2);
    hours
        && sixtieths(parts.next())
        && sixtieths(parts.next())
        && parts.next().is_none()
        && fraction.is_none_or(|f| digits(f) && f.len() <= 6)
}

fn invalid(what: &str) -> Reason {
    Reason::new(
        code::INVALID_FIELD,
        format!("{what}, so the value cannot be sent"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(value: &Value) -> String {
        let mut sql = String::new();
        push_literal(&mut sql, value).unwrap();
        sql
    }

    fn refused(value: &Value) -> bool {
        push_literal(&mut String::new(), value).is_err()
    }

    #[test]
    fn every_kind_has_its_literal() {
        for (value, expected) in [
            (Value::Null, " NULL "),
            (Value::Bool(true), " TRUE "),
            (Value::Int(-5), " (-5) "),
            (Value::Int(i64::MIN), " (-9223372036854775808) "),
            (Value::UInt(u64::MAX), " 18446744073709551615 "),
            (Value::Double(0.1), " (1e-1) "),
            (Value::Double(-0.0), " (-0e0) "),
            (Value::Decimal("-12.30".into()), " (-12.30) "),
            (Value::String("O'B\\".into()), " _utf8mb4 x'4f27425c' "),
            (Value::String(String::new()), " _utf8mb4 x'' "),
            (Value::Bytes(vec![0, 255]), " _binary x'00ff' "),
            (Value::Date("2024-02-29".into()), " DATE'2024-02-29' "),
            (Value::Date("0000-00-00".into()), " '0000-00-00' "),
            (Value::Time("-838:59:59.5".into()), " TIME'-838:59:59.5' "),
            (
                Value::DateTime("2024-01-01 00:00:00.123456".into()),
                " TIMESTAMP'2024-01-01 00:00:00.123456' ",
            ),
        ] {
            assert_eq!(literal(&value), expected, "{value:?}");
        }
    }

    #[test]
    fn what_is_not_exactly_of_its_form_is_refused() {
        for text in [
            "", "-", "1.", ".5", "1e5", "1;2", "--1", "1 ", "0x1", "1.2.3", "١",
        ] {
            assert!(refused(&Value::Decimal(text.into())), "{text}");
        }
        assert!(refused(&Value::Decimal("1".repeat(67))));
        for text in [
            "",
            "2024-1-01",
            "2024-01-01'",
            "2024/01/01",
            "２024-01-0",
            "2024-01-01 ",
        ] {
            assert!(refused(&Value::Date(text.into())), "{text}");
        }
        for text in [
            "1:00:00",
            "01:00",
            "01:00:00.",
            "01:00:00.1234567",
            "01:00:00'--",
            "--01:00:00",
        ] {
            assert!(refused(&Value::Time(text.into())), "{text}");
        }
        for text in [
            "2024-01-01",
            "2024-01-01T00:00:00",
            "2024-01-01 100:00:00",
            "日本語日本",
        ] {
            assert!(refused(&Value::DateTime(text.into())), "{text}");
        }
        assert!(refused(&Value::Double(f64::NAN)) && refused(&Value::Double(f64::INFINITY)));
    }

    #[test]
    fn no_literal_holds_what_could_end_it_or_hide_what_follows() {
        let nasty = [
            "'", "\"", "\\", "`", ";", "--", "/*", "#", "\0", "\u{2019}", "')", "x'",
        ];
        for text in nasty {
            for value in [
                Value::String(text.into()),
                Value::Bytes(text.into()),
                Value::Date(text.into()),
            ] {
                let mut sql = String::new();
                if push_literal(&mut sql, &value).is_ok() {
                    let inner = sql.trim().split_once('\'').unwrap().1;
                    let inner = inner.strip_suffix('\'').unwrap();
                    assert!(inner.bytes().all(|b| b.is_ascii_hexdigit()), "{sql}");
                }
            }
        }
    }

    #[test]
    fn different_values_have_different_literals() {
        let values = [
            Value::Null,
            Value::Bool(false),
            Value::Int(0),
            Value::Int(1),
            Value::Bool(true),
            Value::Double(1.0),
            Value::String("1".into()),
            Value::Bytes(b"1".to_vec()),
            Value::String(String::new()),
            Value::Bytes(Vec::new()),
            Value::Date("2024-01-01".into()),
            Value::DateTime("2024-01-01 00:00:00".into()),
            Value::Time("20:24:01".into()),
        ];
        let literals: std::collections::BTreeSet<_> = values.iter().map(literal).collect();
        assert_eq!(literals.len(), values.len());
    }
}
