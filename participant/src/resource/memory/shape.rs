//! The statements that the fake understands, on tables of a key and a number.
//!
//! * `INSERT INTO t (k, v) VALUES (?, ?)`
//! * `UPDATE t SET v = v + ? WHERE k = ? [AND v >= ?]`
//! * `SELECT v FROM t WHERE k = ? [FOR UPDATE]`
//!
//! and those of the gateway's bank, whose rows have texts beside the number: an account opened,
//! debited, credited and read, and an entry in the journal, whose key is the transaction and the
//! account.

use concord_core::id::Gtrid;
use concord_core::reason::{Reason, code};
use concord_proto::model::{Statement, Value};

use crate::resource::mysql::lexer::{Kind, lex};

/// A row: its table and its key.
pub type Row = (String, String);

/// What a row holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Its number.
    pub number: i64,
    /// What stands beside it.
    pub texts: Vec<String>,
}

impl Cell {
    /// A number and nothing beside it.
    pub fn of(number: i64) -> Self {
        let texts = Vec::new();
        Self { number, texts }
    }
}

/// A statement with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A new row.
    Insert {
        /// Where.
        row: Row,
        /// What it holds.
        cell: Cell,
    },
    /// A change of a number.
    Add {
        /// Where.
        row: Row,
        /// By how much.
        amount: i64,
        /// Only if the number is at least this.
        at_least: Option<i64>,
        /// Only if it is at most this.
        at_most: Option<i64>,
        /// Only if the first text beside it is this.
        text: Option<String>,
    },
    /// A read.
    Select {
        /// Where.
        row: Row,
        /// Whether it locks the row.
        locking: bool,
        /// Whether the key and the texts are wanted too.
        account: bool,
    },
}

impl Shape {
    /// Reads a statement.
    pub fn read(statement: &Statement) -> Result<Self, Reason> {
        Self::parse(statement).ok_or_else(|| {
            Reason::new(
                code::STATEMENT_FAILED,
                "the server in memory does not know the statement",
            )
        })
    }

    fn parse(statement: &Statement) -> Option<Self> {
        let (table, pattern) = pattern(&statement.sql)?;
        let row = |key: &Value| match key {
            Value::String(key) => Some((table.clone(), key.clone())),
            Value::Int(key) => Some((table.clone(), key.to_string())),
            _ => None,
        };
        match (pattern.as_str(), statement.params.as_slice()) {
            ("INSERT INTO t ( _ , _ ) VALUES ( ? , ? )", [key, value]) => Some(Self::Insert {
                row: row(key)?,
                cell: Cell::of(number(value)?),
            }),
            ("UPDATE t SET _ = _ + ? WHERE _ = ?", [amount, key]) => Some(Self::Add {
                row: row(key)?,
                amount: number(amount)?,
                at_least: None,
                at_most: None,
                text: None,
            }),
            ("UPDATE t SET _ = _ + ? WHERE _ = ? AND _ >= ?", [amount, key, least]) => {
                let at_least = Some(number(least)?);
                Some(Self::Add {
                    row: row(key)?,
                    amount: number(amount)?,
                    at_least,
                    at_most: None,
                    text: None,
                })
            }
            ("SELECT _ FROM t WHERE _ = ?", [key]) => Some(Self::Select {
                row: row(key)?,
                locking: false,
                account: false,
            }),
            ("SELECT _ FROM t WHERE _ = ? FOR UPDATE", [key]) => Some(Self::Select {
                row: row(key)?,
                locking: true,
                account: false,
            }),
            (pattern, params) => Self::of_the_bank(&table, pattern, params),
        }
    }

    fn of_the_bank(table: &str, pattern: &str, params: &[Value]) -> Option<Self> {
        let row = |key: &Value| Some((table.to_owned(), text(key)?));
        match (pattern, params) {
            (OPEN, [key, currency, balance, opened]) => Some(Self::Insert {
                row: row(key)?,
                cell: Cell {
                    number: number(balance)?,
                    texts: vec![text(currency)?, text(opened)?],
                },
            }),
            (JOURNAL, [Value::Bytes(gtrid), account, counterparty, amount, memo]) => {
                let gtrid = Gtrid(gtrid.as_slice().try_into().ok()?);
                Some(Self::Insert {
                    row: (table.to_owned(), format!("{gtrid}/{}", text(account)?)),
                    cell: Cell {
                        number: number(amount)?,
                        texts: vec![text(counterparty)?, text(memo)?],
                    },
                })
            }
            (DEBIT, [amount, key, currency, bound]) => Some(Self::Add {
                row: row(key)?,
                amount: -number(amount)?,
                at_least: Some(number(bound)?),
                at_most: None,
                text: Some(text(currency)?),
            }),
            (CREDIT, [amount, key, currency, bound]) => Some(Self::Add {
                row: row(key)?,
                amount: number(amount)?,
                at_least: None,
                at_most: Some(number(bound)?),
                text: Some(text(currency)?),
            }),
            ("SELECT _ , _ , _ , _ FROM t WHERE _ = ?", [key]) => Some(Self::Select {
                row: row(key)?,
                locking: false,
                account: true,
            }),
            _ => None,
        }
    }
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) | Value::DateTime(text) => Some(text.clone()),
        _ => None,
    }
}

/// The bank's statements: an account, its two changes, its journal.
const OPEN: &str = "INSERT INTO t ( _ , _ , _ , _ ) VALUES ( ? , ? , ? , ? )";
const DEBIT: &str = "UPDATE t SET _ = _ - ? WHERE _ = ? AND _ = ? AND _ >= ?";
const CREDIT: &str = "UPDATE t SET _ = _ + ? WHERE _ = ? AND _ = ? AND _ <= ?";
const JOURNAL: &str = "INSERT INTO t ( _ , _ , _ , _ , _ , _ ) \
                       VALUES ( ? , ? , ? , ? , ? , _ ( 6 ) )";

/// The table, and the statement with `t` for it and `_` for every other name.
fn pattern(sql: &str) -> Option<(String, String)> {
    const KEYWORDS: &[&str] = &[
        "INSERT", "INTO", "VALUES", "UPDATE", "SET", "WHERE", "AND", "SELECT", "FROM", "FOR",
    ];
    let tokens = lex(sql).ok()?;
    let mut table = String::new();
    let mut words = Vec::new();
    let mut in_table = false;
    for token in &tokens {
        let upper = token.text.to_ascii_uppercase();
        let keyword = token.kind == Kind::Word && KEYWORDS.contains(&upper.as_str());
        if in_table && !keyword && (token.is_name() || token.is_symbol(".")) {
            table.push_str(token.text);
            continue;
        }
        if in_table {
            words.push("t".to_owned());
        }
        in_table =
            matches!(upper.as_str(), "INTO" | "FROM") || (upper == "UPDATE" && words.is_empty());
        words.push(match (keyword, token.is_name()) {
            (true, _) => upper,
            (false, true) => "_".to_owned(),
            (false, false) => token.text.to_owned(),
        });
    }
    Some((table, words.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statements_are_understood_and_no_other() {
        let read = |sql: &str, params: Vec<Value>| {
            Shape::read(&Statement {
                sql: sql.into(),
                params,
                expect: None,
            })
            .ok()
        };
        let key = || Value::String("a".into());
        let row = ("s.t".to_owned(), "a".to_owned());
        assert_eq!(
            read(
                "INSERT INTO s.t (k, v) VALUES (?, ?)",
                vec![key(), Value::Int(5)]
            ),
            Some(Shape::Insert {
                row: row.clone(),
                cell: Cell::of(5)
            }),
        );
        assert_eq!(
            read(
                "update s.t set v = v + ? where k = ? and v >= ?",
                vec![Value::Int(-5), key(), Value::Int(5)]
            ),
            Some(Shape::Add {
                row: row.clone(),
                amount: -5,
                at_least: Some(5),
                at_most: None,
                text: None,
            }),
        );
        assert_eq!(
            read("SELECT v FROM s.t WHERE k = ? FOR UPDATE", vec![key()]),
            Some(Shape::Select {
                row,
                locking: true,
                account: false
            }),
        );
        assert_eq!(read("DELETE FROM s.t WHERE k = ?", vec![key()]), None);
        assert_eq!(read("SELECT v FROM s.t WHERE k = ?", vec![]), None);
    }
}
