//! Validated types: what a statement is once it has passed the door.
//!
//! Results are not here: they only travel outwards, so the daemons use the generated
//! `v1::StatementResult` for them.

use std::sync::Arc;
use std::time::Duration;

use concord_core::id::Request;

/// A value bound to one `?` of a statement. Each variant keeps the limits of `v1/types.proto`.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// BOOLEAN.
    Bool(bool),
    /// Signed, 64 bits.
    Int(i64),
    /// Unsigned, 64 bits.
    UInt(u64),
    /// Finite.
    Double(f64),
    /// `[-]digits[.digits]`, at most 65 digits of which at most 38 after the point.
    Decimal(String),
    /// UTF-8.
    String(String),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// `YYYY-MM-DD`.
    Date(String),
    /// `[-]HHH:MM:SS[.ffffff]`.
    Time(String),
    /// `YYYY-MM-DD HH:MM:SS[.ffffff]`.
    DateTime(String),
}

/// How many rows a statement must touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The smallest legal number.
    pub min: u64,
    /// The largest legal number.
    pub max: Option<u64>,
    /// The reason's code when violated.
    pub reason: Arc<str>,
}

/// One statement with its values. The SQL has not been parsed: the participant does that.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// One statement with a `?` for each value.
    pub sql: Arc<str>,
    /// The values.
    pub params: Vec<Value>,
    /// What it must touch.
    pub expect: Option<Expect>,
}

/// Isolation level of a transaction's branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// READ COMMITTED.
    ReadCommitted,
    /// REPEATABLE READ.
    RepeatableRead,
    /// SERIALIZABLE.
    Serializable,
}

/// The whole work of one branch.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// In order.
    pub statements: Vec<Statement>,
    /// None: the server's own default.
    pub isolation: Option<Isolation>,
    /// Whether the branch may vote READ_ONLY and leave when it wrote nothing.
    pub allow_read_only: bool,
    /// Time for the whole work.
    pub timeout: Duration,
    /// The client's request, carried by exactly one branch of the transaction, whose ledger row
    /// keeps it under a unique key.
    pub request: Option<Request>,
}
