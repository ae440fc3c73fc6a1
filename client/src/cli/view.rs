//! Messages of the gateway as JSON for programs, and times as people and programs read them.
//!
//! Field names are those of `proto/v1`; amounts stay integers of minor units. Integers that a
//! reader of JSON may round are strings.

use std::fmt::Write as _;

use concord_core::reason::Reason;
use prost_types::Timestamp;
use serde_json::{Value, json};

use crate::v1;
use crate::v1::value::Kind;

/// The largest integer that is exact for readers which take every number for a double, as
/// JavaScript and jq do: 2^53 - 1.
const EXACT_MAX: u64 = (1 << 53) - 1;

/// An integer, as a string where a reader might round it.
fn integer(number: impl Into<i128>) -> Value {
    let number = number.into();
    match i64::try_from(number) {
        Ok(number) if number.unsigned_abs() <= EXACT_MAX => json!(number),
        _ => Value::String(number.to_string()),
    }
}

/// `2026-01-31T12:00:00.123Z`, or nothing.
pub(crate) fn time(time: Option<&Timestamp>) -> Option<String> {
    let time = time?;
    let days = time.seconds.div_euclid(86_400);
    let second = time.seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    let milli = time.nanos / 1_000_000;
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{milli:03}Z",
        second % 60
    ))
}

/// The date of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// A protobuf enum's name without its prefix, e.g. `COMMITTED`.
pub(crate) fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_owned()
}

pub(crate) fn state(state: v1::TransactionState) -> String {
    short(state.as_str_name(), "TRANSACTION_STATE_")
}

pub(crate) fn branch_state(state: v1::BranchState) -> String {
    short(state.as_str_name(), "BRANCH_STATE_")
}

pub(crate) fn reason(reason: &Reason) -> Value {
    json!({ "code": &*reason.code, "message": &*reason.message })
}

pub(crate) fn told(reason: Option<&v1::Reason>) -> Value {
    match reason {
        Some(reason) if !reason.code.is_empty() => {
            json!({ "code": reason.code, "message": reason.message })
        }
        _ => Value::Null,
    }
}

pub(crate) fn told_text(reason: Option<&v1::Reason>) -> String {
    match reason {
        Some(reason) if !reason.code.is_empty() => format!("{}: {}", reason.code, reason.message),
        _ => String::new(),
    }
}

pub(crate) fn account(account: &v1::Account) -> Value {
    json!({
        "account_id": account.account_id,
        "currency": account.currency,
        "balance": integer(account.balance),
        "participant": account.participant,
        "open_time": time(account.open_time.as_ref()),
    })
}

pub(crate) fn journal_entry(entry: &v1::JournalEntry) -> Value {
    json!({
        "gtrid": entry.gtrid,
        "counterparty": entry.counterparty,
        "amount": integer(entry.amount),
        "memo": entry.memo,
        "time": time(entry.time.as_ref()),
    })
}

pub(crate) fn product(product: &v1::Product) -> Value {
    json!({
        "product_id": product.product_id,
        "name": product.name,
        "price": integer(product.price),
        "currency": product.currency,
        "stock": integer(product.stock),
        "participant": product.participant,
    })
}

pub(crate) fn order(order: &v1::Order) -> Value {
    let lines: Vec<Value> = order
        .lines
        .iter()
        .map(|line| {
            json!({
                "product_id": line.product_id,
                "quantity": integer(line.quantity),
                "price": integer(line.price),
            })
        })
        .collect();
    let payment = order.payment.as_ref().map(|payment| {
        json!({
            "from_account_id": payment.from_account_id,
            "to_account_id": payment.to_account_id,
        })
    });
    json!({
        "order_id": order.order_id,
        "gtrid": order.gtrid,
        "lines": lines,
        "total": integer(order.total),
        "currency": order.currency,
        "payment": payment,
        "place_time": time(order.place_time.as_ref()),
        "participant": order.participant,
    })
}

pub(crate) fn transaction(transaction: &v1::Transaction) -> Value {
    let branches: Vec<Value> = transaction
        .branches
        .iter()
        .map(|branch| {
            json!({
                "bqual": branch.bqual,
                "participant": branch.participant,
                "state": branch_state(branch.state()),
                "reason": told(branch.reason.as_ref()),
                "attempts": branch.attempts,
            })
        })
        .collect();
    json!({
        "gtrid": transaction.gtrid,
        "state": state(transaction.state()),
        "branches": branches,
        "reason": told(transaction.reason.as_ref()),
        "request_id": transaction.request_id,
        "begin_time": time(transaction.begin_time.as_ref()),
        "update_time": time(transaction.update_time.as_ref()),
        "stuck": transaction.stuck,
        "epoch": transaction.epoch,
    })
}

pub(crate) fn statement_result(result: &v1::StatementResult) -> Value {
    let names: Vec<&str> = result
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .collect();
    let rows: Vec<Value> = result
        .result
        .iter()
        .map(|row| Value::Array(row.values.iter().map(value).collect()))
        .collect();
    json!({
        "rows": integer(result.rows),
        "last_insert_id": integer(result.last_insert_id),
        "columns": names,
        "result": rows,
    })
}

/// A column's value. Numbers that JSON's readers would round are strings, and so are decimals.
pub(crate) fn value(value: &v1::Value) -> Value {
    match &value.kind {
        None | Some(Kind::Null(_)) => Value::Null,
        Some(Kind::Bool(value)) => json!(value),
        Some(Kind::Int64(value)) => integer(*value),
        Some(Kind::Uint64(value)) => integer(*value),
        Some(Kind::Double(value)) => json!(value),
        Some(Kind::Bytes(bytes)) => json!({ "bytes": hex(bytes) }),
        Some(
            Kind::Decimal(text)
            | Kind::String(text)
            | Kind::Date(text)
            | Kind::Time(text)
            | Kind::Datetime(text),
        ) => json!(text),
    }
}

/// A column's value for people.
pub(crate) fn value_text(value: &v1::Value) -> String {
    match &value.kind {
        None | Some(Kind::Null(_)) => "NULL".to_owned(),
        Some(Kind::Bool(value)) => value.to_string(),
        Some(Kind::Int64(value)) => value.to_string(),
        Some(Kind::Uint64(value)) => value.to_string(),
        Some(Kind::Double(value)) => value.to_string(),
        Some(Kind::Bytes(bytes)) => format!("0x{}", hex(bytes)),
        Some(
            Kind::Decimal(text)
            | Kind::String(text)
            | Kind::Date(text)
            | Kind::Time(text)
            | Kind::Datetime(text),
        ) => text.clone(),
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_and_sortable() {
        let show = |seconds, nanos| time(Some(&Timestamp { seconds, nanos })).unwrap();
        assert_eq!(show(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(show(951_782_400, 5_000_000), "2000-02-29T00:00:00.005Z");
        assert_eq!(show(1_798_761_599, 0), "2026-12-31T23:59:59.000Z");
        assert_eq!(show(-1, 0), "1969-12-31T23:59:59.000Z");
        assert_eq!(time(None), None);
    }

    #[test]
    fn states_lose_their_prefix() {
        assert_eq!(state(v1::TransactionState::Committed), "COMMITTED");
        assert_eq!(branch_state(v1::BranchState::ReadOnly), "READ_ONLY");
    }

    #[test]
    fn integers_that_a_reader_of_json_may_round_are_strings() {
        let shown = |kind| value(&v1::Value { kind: Some(kind) });
        let largest = 9_007_199_254_740_991_i64;
        assert_eq!(shown(Kind::Int64(largest)), json!(largest));
        assert_eq!(shown(Kind::Int64(-largest)), json!(-largest));
        assert_eq!(shown(Kind::Int64(largest + 1)), json!("9007199254740992"));
        assert_eq!(shown(Kind::Int64(i64::MIN)), json!("-9223372036854775808"));
        assert_eq!(shown(Kind::Uint64(5)), json!(5));
        assert_eq!(shown(Kind::Uint64(u64::MAX)), json!("18446744073709551615"));
        let rich = v1::Account {
            balance: i64::MAX,
            ..v1::Account::default()
        };
        assert_eq!(account(&rich)["balance"], json!("9223372036854775807"));
        let stocked = v1::Product {
            price: 5,
            stock: i64::MAX,
            ..v1::Product::default()
        };
        let stocked = product(&stocked);
        assert_eq!(stocked["price"], json!(5));
        assert_eq!(stocked["stock"], json!("9223372036854775807"));
    }

    #[test]
    fn a_missing_value_is_null_and_bytes_are_hexadecimal() {
        assert_eq!(value(&v1::Value { kind: None }), Value::Null);
        let bytes = v1::Value {
            kind: Some(Kind::Bytes(vec![0, 255])),
        };
        assert_eq!(value(&bytes), json!({ "bytes": "00ff" }));
        assert_eq!(value_text(&bytes), "0x00ff");
    }
}
