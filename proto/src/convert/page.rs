//! Pages of lists, and the tokens that lead to the next one.
//!
//! A token is the cursor of its list with a checksum over both, in hexadecimal: opaque to clients,
//! refused when it was cut, changed or made for another list. It is no secret and grants nothing.

use concord_core::limits::{PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX};

use super::fingerprint::fingerprint;
use super::violations::{At, Violations};

/// Bytes of a cursor: ids, timestamps and one offset per participant fit.
const CURSOR_BYTES_MAX: usize = 4_096;
/// Bytes of the checksum before the cursor.
const CHECKSUM_BYTES: usize = 8;

/// Which page of a list is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most this many entries, at least 1.
    pub size: usize,
    /// Only entries after this cursor.
    pub after: Option<String>,
}

impl Page {
    /// Checks `page_size` and `page_token` of the list of this name.
    pub fn check(v: &mut Violations, list: &str, size: u32, token: &str) -> Option<Self> {
        if size > PAGE_SIZE_MAX {
            v.add(
                &At::root("page_size"),
                format_args!("must be from 1 to {PAGE_SIZE_MAX}, and is {size}"),
            );
        }
        let after = if token.is_empty() {
            None
        } else {
            cursor(list, token)
        };
        if !token.is_empty() && after.is_none() {
            v.add(
                &At::root("page_token"),
                "is not a token of a former answer of this list",
            );
            return None;
        }
        let size = if size == 0 { PAGE_SIZE_DEFAULT } else { size };
        Some(Self {
            size: size as usize,
            after,
        })
    }
}

/// The token that continues the list of this name after `cursor`.
pub fn token(list: &str, cursor: &str) -> String {
    let sum = fingerprint(&[list.as_bytes(), cursor.as_bytes()]).to_be_bytes();
    sum.iter()
        .chain(cursor.as_bytes())
        .fold(String::new(), |mut text, byte| {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
            text
        })
}

fn cursor(list: &str, token: &str) -> Option<String> {
    if token.len() > 2 * (CHECKSUM_BYTES + CURSOR_BYTES_MAX) || !token.len().is_multiple_of(2) {
        return None;
    }
    let mut bytes = Vec::with_capacity(token.len() / 2);
    for pair in token.as_bytes().chunks_exact(2) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        bytes.push(u8::try_from(high << 4 | low).ok()?);
    }
    let cursor = bytes.get(CHECKSUM_BYTES..)?;
    let sum = fingerprint(&[list.as_bytes(), cursor]).to_be_bytes();
    if bytes[..CHECKSUM_BYTES] != sum {
        return None;
    }
    String::from_utf8(cursor.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &str, size: u32, token: &str) -> Result<Page, Violations> {
        let mut v = Violations::default();
        let page = Page::check(&mut v, list, size, token);
        v.finish(|| page)
    }

    #[test]
    fn a_token_leads_on() {
        for cursor in ["", "acc-17", "p1=ü,p2="] {
            let page = check("accounts", 5, &token("accounts", cursor)).expect("a page");
            assert_eq!(
                page,
                Page {
                    size: 5,
                    after: Some(cursor.to_owned())
                }
            );
        }
        assert_eq!(
            check("accounts", 0, ""),
            Ok(Page {
                size: 100,
                after: None
            })
        );
        assert_eq!(
            check("accounts", 1_000, "").map(|page| page.size),
            Ok(1_000)
        );
    }

    #[test]
    fn garbage_is_refused() {
        let good = token("accounts", "acc-17");
        let mut bad = vec![
            "x".into(),
            "00".into(),
            "zz".repeat(9),
            "é".repeat(9),
            "0".repeat(99_998),
        ];
        bad.extend((1..good.len()).map(|cut| good[..cut].to_owned()));
        bad.extend((0..good.len()).map(|i| {
            let digit = if &good[i..=i] == "0" { "1" } else { "0" };
            format!("{}{digit}{}", &good[..i], &good[i + 1..])
        }));
        for token in bad {
            let violations = check("accounts", 1, &token).expect_err(&token);
            assert_eq!(violations.list()[0].field, "page_token");
        }
        assert!(
            check("products", 1, &good).is_err(),
            "made for another list"
        );
        let both = check("accounts", 1_001, "x").expect_err("two violations");
        assert_eq!(both.list().len(), 2);
    }
}
