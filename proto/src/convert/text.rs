//! Names and ids: text with a form.

use std::fmt;
use std::sync::Arc;

use concord_core::id::{Gtrid, ParticipantName, RequestId};
use concord_core::limits::{NAME_LEN_MAX, REQUEST_ID_LEN_MAX};
use concord_core::reason::code;
use uuid::Uuid;

use super::violations::{At, Violations};

/// Characters of an account's, product's or order's id: they are keys of indexed columns.
pub const KEY_LEN_MAX: usize = 64;
/// Characters of a product's name.
pub const PRODUCT_NAME_LEN_MAX: usize = 200;
/// Characters of a transfer's memo.
pub const MEMO_LEN_MAX: usize = 200;
/// Characters of an operator's words.
pub const WORDS_LEN_MAX: usize = 1_000;
/// Characters of a reason's code.
pub const CODE_LEN_MAX: usize = 63;

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id of this text, when it has the form: 1 to 64 of `[A-Za-z0-9._:-]`.
            pub fn parse(text: &str) -> Option<Self> {
                is_key(text).then(|| Self(text.into()))
            }

            /// Its text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Checks a required field.
            pub fn check(violations: &mut Violations, at: &At<'_>, raw: &str) -> Option<Self> {
                let parsed = Self::parse(raw);
                if parsed.is_none() {
                    refuse_key(violations, at, raw);
                }
                parsed
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

key! {
    /// Id of an account. Case counts.
    AccountId
}

key! {
    /// Id of a product. Case counts.
    ProductId
}

key! {
    /// Id of an order. Case counts.
    OrderId
}

/// Currency of an account or product: three capitals of ISO 4217.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// The currency of this text, when it has the form.
    pub fn parse(text: &str) -> Option<Self> {
        let letters: [u8; 3] = text.as_bytes().try_into().ok()?;
        letters
            .iter()
            .all(u8::is_ascii_uppercase)
            .then_some(Self(letters))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Checks a required field.
    pub fn check(violations: &mut Violations, at: &At<'_>, raw: &str) -> Option<Self> {
        let parsed = Self::parse(raw);
        if parsed.is_none() {
            violations.add(
                at,
                "must be three capital letters of ISO 4217, e.g. \"EUR\"",
            );
        }
        parsed
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn is_key(text: &str) -> bool {
    (1..=KEY_LEN_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"._:-".contains(&c))
}

fn refuse_key(violations: &mut Violations, at: &At<'_>, raw: &str) {
    if raw.is_empty() {
        violations.add(at, "is required");
    } else if raw.chars().count() > KEY_LEN_MAX {
        violations.add(
            at,
            format_args!("must have at most {KEY_LEN_MAX} characters"),
        );
    } else {
        violations.add(
            at,
            format_args!("must be of [A-Za-z0-9._:-], and is {raw:?}"),
        );
    }
}

/// Whether this is a name of a participant or a cluster: 1 to 32 of `[A-Za-z0-9._-]`, the first a
/// letter or digit. It becomes part of xids, file names and log lines.
pub fn is_name(text: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// Checks a required name of a participant.
pub fn participant(v: &mut Violations, at: &At<'_>, raw: &str) -> Option<ParticipantName> {
    if is_name(raw) {
        return Some(ParticipantName::new(raw));
    }
    if raw.is_empty() {
        v.add(at, "is required: the name of a participant");
    } else {
        v.add(
            at,
            format_args!(
                "must be a name of at most {NAME_LEN_MAX} characters of [A-Za-z0-9._-], \
                 and is {raw:?}"
            ),
        );
    }
    None
}

/// Whether this is a reason's code: capitals, digits and underscores, at most 63.
pub fn is_code(text: &str) -> bool {
    (1..=CODE_LEN_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_')
        && text.as_bytes()[0].is_ascii_uppercase()
}

/// Concord's own codes that an expectation may name. All others mean something that a violated
/// expectation is not: a client that could name `OUTCOME_UNKNOWN` would turn a plain refusal into
/// an outcome that nobody knows.
const EXPECTATION_CODES: &[&str] = &[
    code::EXPECTATION_FAILED,
    code::INSUFFICIENT_FUNDS,
    code::INSUFFICIENT_STOCK,
    code::CURRENCY_MISMATCH,
    code::LIMIT_EXCEEDED,
    code::PRICE_CHANGED,
    code::ACCOUNT_NOT_FOUND,
    code::PRODUCT_NOT_FOUND,
    code::ORDER_NOT_FOUND,
    code::ACCOUNT_EXISTS,
    code::PRODUCT_EXISTS,
    code::ORDER_EXISTS,
];

/// Checks the code of an expectation; empty is the default.
pub fn expectation_code(v: &mut Violations, at: &At<'_>, raw: &str) -> Option<Arc<str>> {
    if raw.is_empty() {
        return Some(code::EXPECTATION_FAILED.into());
    }
    if !is_code(raw) {
        v.add(
            at,
            format_args!(
                "must have at most {CODE_LEN_MAX} capitals, digits and underscores, and begin \
                 with a capital"
            ),
        );
        return None;
    }
    if code::ALL.contains(&raw) && !EXPECTATION_CODES.contains(&raw) {
        v.add(
            at,
            format_args!("must not be {raw}, which means something else"),
        );
        return None;
    }
    Some(raw.into())
}

/// Checks an optional request id; empty is none.
#[allow(clippy::option_option)] // outer: valid; inner: given
pub fn request_id(v: &mut Violations, at: &At<'_>, raw: &str) -> Option<Option<RequestId>> {
    if raw.is_empty() {
        return Some(None);
    }
    if raw.len() > REQUEST_ID_LEN_MAX {
        v.add(
            at,
            format_args!("must have at most {REQUEST_ID_LEN_MAX} characters"),
        );
        return None;
    }
    if !raw.bytes().all(|c| (b' '..=b'~').contains(&c)) {
        v.add(at, "must be of printable ASCII characters");
        return None;
    }
    // Databases pad and trim at the end; two ids must never differ in blanks alone.
    if raw.starts_with(' ') || raw.ends_with(' ') {
        v.add(at, "must not begin or end with a space");
        return None;
    }
    Some(Some(RequestId::new(raw)))
}

/// Checks text for people: bounded, and without control characters, which could forge log lines
/// or move a terminal's cursor.
pub fn plain(v: &mut Violations, at: &At<'_>, raw: String, max: usize) -> Option<String> {
    // Characters are at most 4 bytes: a hostile text is not walked through first.
    if raw.len() > max * 4 || raw.chars().count() > max {
        v.add(at, format_args!("must have at most {max} characters"));
        return None;
    }
    if let Some(c) = raw.chars().find(|c| c.is_control()) {
        v.add(
            at,
            format_args!("must not have control characters, and has {c:?}"),
        );
        return None;
    }
    Some(raw)
}

/// Checks an operator's words, which are required and kept for ever.
pub fn words(v: &mut Violations, at: &At<'_>, raw: String) -> Option<String> {
    if raw.trim().is_empty() {
        v.add(at, "is required: say why");
        return None;
    }
    plain(v, at, raw, WORDS_LEN_MAX)
}

/// The transaction that 36 characters of UUID text name. Other spellings of a UUID, and other
/// versions than 7, are none.
pub fn parse_gtrid(text: &str) -> Option<Gtrid> {
    // Uuid's own parser also takes braces, urn: and text without hyphens.
    let hyphenated = text.len() == 36
        && text.bytes().enumerate().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => c == b'-',
            _ => c.is_ascii_hexdigit(),
        });
    if !hyphenated {
        return None;
    }
    gtrid_of_bytes(Uuid::try_parse(text).ok()?.as_bytes())
}

/// The transaction that 16 bytes of a UUIDv7 name.
pub fn gtrid_of_bytes(bytes: &[u8]) -> Option<Gtrid> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    let uuid = Uuid::from_bytes(bytes);
    let is_v7 = uuid.get_version_num() == 7 && uuid.get_variant() == uuid::Variant::RFC4122;
    is_v7.then_some(Gtrid(bytes))
}

/// Checks a required transaction id in text form.
pub fn gtrid(v: &mut Violations, at: &At<'_>, raw: &str) -> Option<Gtrid> {
    let parsed = parse_gtrid(raw);
    if parsed.is_none() {
        if raw.is_empty() {
            v.add(at, "is required: the id of a transaction");
        } else {
            v.add(
                at,
                "must be a transaction's id: a UUID of version 7 such as \
                 \"01920000-0000-7000-8000-000000000000\"",
            );
        }
    }
    parsed
}

/// Checks a required transaction id of 16 bytes.
pub fn gtrid_bytes(v: &mut Violations, at: &At<'_>, raw: &[u8]) -> Option<Gtrid> {
    let parsed = gtrid_of_bytes(raw);
    if parsed.is_none() {
        v.add(
            at,
            format_args!(
                "must be the 16 bytes of a UUIDv7, and has {} bytes",
                raw.len()
            ),
        );
    }
    parsed
}
