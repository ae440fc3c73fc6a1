//! What is wrong with a request: every violated field, with its path and what it should be.

use std::fmt;

use concord_core::reason::{Reason, code};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::status::{DOMAIN, shorten};

/// Violations that one answer names. A status travels in HTTP/2 trailers, which most clients
/// bound at 16 KiB, and a request can hold 4,096 bad values.
pub const VIOLATIONS_MAX: usize = 16;
/// Bytes of one description: it may quote what the client sent.
const DESCRIPTION_BYTES_MAX: usize = 200;

/// Where a field is, as a chain of stack frames: it is written out only when it is violated, so
/// that a good request pays nothing for it.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// The message itself.
    Root,
    /// A field of a message.
    Field(&'a At<'a>, &'static str),
    /// An element of a list.
    Index(&'a At<'a>, usize),
    /// A path that somebody else wrote out.
    Named(&'a str),
}

impl At<'_> {
    /// A field of the request itself.
    pub fn root(name: &'static str) -> At<'static> {
        At::Field(&At::Root, name)
    }

    /// A field of the message here.
    pub fn field(&self, name: &'static str) -> At<'_> {
        At::Field(self, name)
    }

    /// An element of the list here.
    pub fn index(&self, index: usize) -> At<'_> {
        At::Index(self, index)
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Named(path) => f.write_str(path),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// One violated field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its path, e.g. `statements[3].statement.params[0].decimal`.
    pub field: String,
    /// What it must be, and what it is.
    pub description: String,
}

/// All violated fields of one request, of which the first [`VIOLATIONS_MAX`] are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    list: Vec<Violation>,
    omitted: usize,
}

impl Violations {
    /// One violation alone, for those who find it behind the door, e.g. in the SQL.
    pub fn one(at: &At<'_>, description: impl fmt::Display) -> Self {
        let mut violations = Self::default();
        violations.add(at, description);
        violations
    }

    /// Adds a violated field.
    pub fn add(&mut self, at: &At<'_>, description: impl fmt::Display) {
        if self.list.len() == VIOLATIONS_MAX {
            self.omitted += 1;
            return;
        }
        let description = shorten(&description.to_string(), DESCRIPTION_BYTES_MAX).into_owned();
        self.list.push(Violation {
            field: at.to_string(),
            description,
        });
    }

    /// Whether nothing was violated.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What was found, in the order of the fields.
    pub fn list(&self) -> &[Violation] {
        &self.list
    }

    /// The validated value, or all that was found. `value` is built from parts that are there
    /// exactly when nothing was found in them.
    pub fn finish<T>(mut self, value: impl FnOnce() -> Option<T>) -> Result<T, Self> {
        if !self.list.is_empty() {
            return Err(self);
        }
        value().ok_or_else(|| {
            self.add(&At::Root, "is not valid");
            self
        })
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{} {}", violation.field, violation.description)?;
        }
        match self.omitted {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for Violations {}

impl From<Violations> for Reason {
    fn from(violations: Violations) -> Self {
        Self::new(code::INVALID_FIELD, violations.to_string())
    }
}

impl From<Violations> for Status {
    fn from(violations: Violations) -> Self {
        let message =
            shorten(&violations.to_string(), crate::status::MESSAGE_BYTES_MAX).into_owned();
        let fields: Vec<FieldViolation> = violations
            .list
            .into_iter()
            .map(|violation| FieldViolation::new(violation.field, violation.description))
            .collect();
        let mut details = ErrorDetails::with_bad_request(fields);
        details.set_error_info(code::INVALID_FIELD, DOMAIN, []);
        Status::with_error_details(Code::InvalidArgument, message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_like_the_request() {
        let statements = At::root("statements");
        let third = statements.index(3);
        let statement = third.field("statement");
        let params = statement.field("params");
        let first = params.index(0);
        assert_eq!(
            first.field("decimal").to_string(),
            "statements[3].statement.params[0].decimal"
        );
    }

    #[test]
    fn one_status_names_every_field() {
        let mut violations = Violations::default();
        violations.add(&At::root("amount"), "must be from 1 to 10");
        violations.add(&At::root("memo"), "is too long");
        let status = Status::from(violations);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "amount must be from 1 to 10; memo is too long"
        );
        let fields = status
            .get_details_bad_request()
            .expect("a BadRequest")
            .field_violations;
        assert_eq!(fields[1].field, "memo");
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(
            (&*info.reason, &*info.domain),
            ("INVALID_FIELD", "concord.v1")
        );
    }

    #[test]
    fn a_status_stays_small_whatever_is_wrong() {
        let mut violations = Violations::default();
        for _ in 0..5_000 {
            violations.add(&At::root("x"), "é".repeat(10_000));
        }
        assert!(violations.to_string().ends_with("; and 4984 more"));
        let status = Status::from(violations);
        assert!(status.details().len() + status.message().len() < 8 << 10);
    }
}
