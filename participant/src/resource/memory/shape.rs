//! The statements that the fake understands, on tables of a key and a number.
//!
//! * `INSERT INTO t (k, v) VALUES (?, ?)`
//! * `UPDATE t SET v = v + ? WHERE k = ? [AND v >= ?]`
//! * `SELECT v FROM t WHERE k = ? [FOR UPDATE]`

use concord_core::reason::{Reason, code};
use concord_proto::model::{Statement, Value};

use crate::resource::mysql::lexer::{Kind, lex};

/// A row: its table and its key.
pub type Row = (String, String);

/// A statement with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A new row.
    Insert {
        /// Where.
        row: Row,
        /// Its number.
        value: i64,
    },
    /// A change of a number.
    Add {
        /// Where.
        row: Row,
        /// By how much.
        amount: i64,
        /// Only if the number is at least this.
        at_least: Option<i64>,
    },
    /// A read.
    Select {
        /// Where.
        row: Row,
        /// Whether it locks the row.
        locking: bool,
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
        let number = |value: &Value| match value {
            Value::Int(number) => Some(*number),
            _ => None,
        };
        match (pattern.as_str(), statement.params.as_slice()) {
            ("INSERT INTO t ( _ , _ ) VALUES ( ? , ? )", [key, value]) => Some(Self::Insert {
                row: row(key)?,
                value: number(value)?,
            }),
            ("UPDATE t SET _ = _ + ? WHERE _ = ?", [amount, key]) => Some(Self::Add {
                row: row(key)?,
                amount: number(amount)?,
                at_least: None,
            }),
            ("UPDATE t SET _ = _ + ? WHERE _ = ? AND _ >= ?", [amount, key, least]) => {
                let at_least = Some(number(least)?);
                Some(Self::Add {
                    row: row(key)?,
                    amount: number(amount)?,
                    at_least,
                })
            }
            ("SELECT _ FROM t WHERE _ = ?", [key]) => Some(Self::Select {
                row: row(key)?,
                locking: false,
            }),
            ("SELECT _ FROM t WHERE _ = ? FOR UPDATE", [key]) => Some(Self::Select {
                row: row(key)?,
                locking: true,
            }),
            _ => None,
        }
    }
}

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
    fn the_three_statements_are_understood_and_no_other() {
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
                value: 5
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
                at_least: Some(5)
            }),
        );
        assert_eq!(
            read("SELECT v FROM s.t WHERE k = ? FOR UPDATE", vec![key()]),
            Some(Shape::Select { row, locking: true }),
        );
        assert_eq!(read("DELETE FROM s.t WHERE k = ?", vec![key()]), None);
        assert_eq!(read("SELECT v FROM s.t WHERE k = ?", vec![]), None);
    }
}
