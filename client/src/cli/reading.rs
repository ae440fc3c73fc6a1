//! What users write, as the command line reads it: for tests that are not of this crate.
//!
//! Nothing here decides anything. It only lets a fuzzer see what became of text.

use super::{money, sql, transfer};
use crate::statement::Statement;

/// A line of a payment file that is a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// What it is called, so that a repetition is one.
    pub request_id: String,
    /// Debited.
    pub from: String,
    /// Credited.
    pub to: String,
    /// The amount as it is written.
    pub amount: String,
    /// In minor units.
    pub minor: i64,
    /// The currency that is written with it.
    pub currency: Option<String>,
    /// For the journal.
    pub memo: String,
}

/// One line of a payment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// From 1; the header is one of them.
    pub number: u64,
    /// Position after the line, in bytes.
    pub end: u64,
    /// The payment, or why it is none.
    pub payment: Result<Payment, String>,
}

/// Every line of a payment file that is not blank, or why its header is refused.
pub fn payments(file: &[u8]) -> Result<Vec<Line>, String> {
    transfer::read_all(file)
}

/// An amount in minor units, and the currency that is written with it.
pub fn amount(text: &str) -> Result<(i64, Option<String>), String> {
    let amount: money::Amount = text.parse()?;
    Ok((amount.minor, amount.currency))
}

/// An amount as it is shown.
pub fn show(minor: i64, currency: &str) -> String {
    money::show(minor, currency)
}

/// A file of statements: where each runs, and what it is.
pub fn statements(text: &str) -> Result<Vec<(String, Statement)>, String> {
    let read = sql::file(text)?.into_iter();
    Ok(read.map(|one| (one.participant, one.statement)).collect())
}
