//! [`Statement`] and [`Param`]: one SQL statement, its values and what it must touch.
//!
//! Nothing is checked here: the coordinator and the participant are the ones that refuse.

use crate::v1;
use crate::v1::value::Kind;

/// A value for one `?`.
#[derive(Clone, Debug, PartialEq)]
pub struct Param(pub(crate) v1::Value);

impl Param {
    fn new(kind: Kind) -> Self {
        Self(v1::Value { kind: Some(kind) })
    }

    /// SQL NULL.
    pub fn null() -> Self {
        Self::new(Kind::Null(v1::NullValue::Null.into()))
    }

    /// A DECIMAL, e.g. `-12.30`.
    pub fn decimal(text: impl Into<String>) -> Self {
        Self::new(Kind::Decimal(text.into()))
    }

    /// A DATE, `YYYY-MM-DD`.
    pub fn date(text: impl Into<String>) -> Self {
        Self::new(Kind::Date(text.into()))
    }

    /// A TIME, `[-]HHH:MM:SS[.ffffff]`.
    pub fn time(text: impl Into<String>) -> Self {
        Self::new(Kind::Time(text.into()))
    }

    /// A DATETIME, `YYYY-MM-DD HH:MM:SS[.ffffff]`.
    pub fn datetime(text: impl Into<String>) -> Self {
        Self::new(Kind::Datetime(text.into()))
    }

    /// As it travels.
    pub fn into_value(self) -> v1::Value {
        self.0
    }
}

macro_rules! param_from {
    ($($type:ty => |$value:ident| $kind:expr,)*) => {
        $(impl From<$type> for Param {
            fn from($value: $type) -> Self {
                Self::new($kind)
            }
        })*
    };
}

param_from! {
    bool => |value| Kind::Bool(value),
    i32 => |value| Kind::Int64(value.into()),
    i64 => |value| Kind::Int64(value),
    u32 => |value| Kind::Uint64(value.into()),
    u64 => |value| Kind::Uint64(value),
    f64 => |value| Kind::Double(value),
    &str => |value| Kind::String(value.to_owned()),
    String => |value| Kind::String(value),
    Vec<u8> => |value| Kind::Bytes(value),
    &[u8] => |value| Kind::Bytes(value.to_vec()),
}

impl<T: Into<Self>> From<Option<T>> for Param {
    fn from(value: Option<T>) -> Self {
        value.map_or_else(Self::null, Into::into)
    }
}

/// One statement of the allow-list, with a `?` for each value.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement(v1::Statement);

impl Statement {
    /// A statement without values or expectations.
    pub fn new(sql: impl Into<String>) -> Self {
        Self(v1::Statement {
            sql: sql.into(),
            ..Default::default()
        })
    }

    /// Adds the value of the next `?`.
    #[must_use]
    pub fn bind(mut self, param: impl Into<Param>) -> Self {
        self.0.params.push(param.into().0);
        self
    }

    /// The transaction aborts with `reason` unless the statement touches `min` to `max` rows.
    /// An empty reason means `EXPECTATION_FAILED`.
    #[must_use]
    pub fn expect_rows(mut self, min: u64, max: Option<u64>, reason: &str) -> Self {
        self.0.expect = Some(v1::ExpectRows {
            min: Some(min),
            max,
            reason: reason.to_owned(),
        });
        self
    }

    /// As it travels.
    pub fn into_message(self) -> v1::Statement {
        self.0
    }

    pub(crate) fn on(self, participant: impl Into<String>) -> v1::TargetedStatement {
        v1::TargetedStatement {
            participant: participant.into(),
            statement: Some(self.0),
        }
    }
}

impl From<&str> for Statement {
    fn from(sql: &str) -> Self {
        Self::new(sql)
    }
}

impl From<v1::Statement> for Statement {
    fn from(message: v1::Statement) -> Self {
        Self(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_null_and_never_an_empty_value() {
        assert_eq!(Param::from(None::<i64>), Param::null());
        assert_eq!(Param::from(Some(5)).0.kind, Some(Kind::Int64(5)));
        assert!(Param::null().0.kind.is_some());
    }
}
