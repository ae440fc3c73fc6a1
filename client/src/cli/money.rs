//! Amounts of money as people write and read them.
//!
//! A bare integer is minor units, as everywhere in Concord. A decimal amount must name its
//! currency (`12.30EUR`), because only the currency tells how many decimals there are, and because
//! `12` and `12.00` must never differ by a factor of a hundred.

use std::fmt;
use std::str::FromStr;

/// The largest amount that Concord moves at once, in minor units.
const AMOUNT_MAX: i64 = 1_000_000_000_000_000;
/// Currencies without minor units, of ISO 4217.
const NO_DECIMALS: &[&str] = &[
    "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND",
    "VUV", "XAF", "XOF", "XPF",
];
/// Currencies with three decimals.
const THREE_DECIMALS: &[&str] = &["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"];
/// Currencies with four decimals.
const FOUR_DECIMALS: &[&str] = &["CLF", "UYW"];

/// How many decimals a currency has; two for all that are not known otherwise.
pub(crate) fn decimals(currency: &str) -> usize {
    if NO_DECIMALS.contains(&currency) {
        0
    } else if THREE_DECIMALS.contains(&currency) {
        3
    } else if FOUR_DECIMALS.contains(&currency) {
        4
    } else {
        2
    }
}

/// Minor units as people read them, e.g. `12.30 EUR`.
pub(crate) fn show(minor: i64, currency: &str) -> String {
    if currency.is_empty() {
        return minor.to_string();
    }
    let places = decimals(currency);
    let sign = if minor < 0 { "-" } else { "" };
    let digits = format!("{:0>width$}", minor.unsigned_abs(), width = places + 1);
    let (whole, part) = digits.split_at(digits.len() - places);
    if part.is_empty() {
        format!("{sign}{whole} {currency}")
    } else {
        format!("{sign}{whole}.{part} {currency}")
    }
}

/// An amount that is not negative, with its currency if one was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Amount {
    /// In minor units.
    pub minor: i64,
    /// The currency that was written with it.
    pub currency: Option<String>,
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(
            self.minor,
            self.currency.as_deref().unwrap_or_default(),
        ))
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with('-') {
            return Err("an amount cannot be negative".to_owned());
        }
        let (number, currency) = split_currency(text)?;
        let (whole, part) = match number.split_once('.') {
            Some((whole, part)) if currency.is_none() => {
                let bad_part = part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit());
                if bad_part || !whole.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(not_a_number(text));
                }
                return Err(format!(
                    "\"{text}\" names no currency: write minor units as an integer ({whole}{part} \
                     if it has {} decimals) or a decimal amount with its currency ({text}EUR)",
                    part.len()
                ));
            }
            Some((whole, part)) => (whole, part),
            None => (number, ""),
        };
        let numeric = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !numeric(whole) || !numeric(part) || number.ends_with('.') {
            return Err(not_a_number(text));
        }
        let places = currency.map_or(0, decimals);
        if part.len() > places {
            return Err(format!(
                "{} has {places} decimals",
                currency.unwrap_or_default()
            ));
        }
        let digits = format!("{whole}{part:0<places$}");
        let minor = digits
            .parse::<i64>()
            .ok()
            .filter(|minor| *minor <= AMOUNT_MAX);
        let minor =
            minor.ok_or_else(|| format!("it is more than 10^15 minor units: \"{text}\""))?;
        Ok(Self {
            minor,
            currency: currency.map(str::to_owned),
        })
    }
}

fn not_a_number(text: &str) -> String {
    format!("\"{text}\" is not an amount: write minor units (1230) or 12.30EUR")
}

/// Splits `12.30EUR`, `12.30 EUR` and `EUR 12.30`.
fn split_currency(text: &str) -> Result<(&str, Option<&str>), String> {
    let is_code = |s: &str| s.len() == 3 && s.bytes().all(|b| b.is_ascii_uppercase());
    for (at, code_first) in [(text.len().checked_sub(3), false), (Some(3), true)] {
        let Some((left, right)) = at.and_then(|at| text.split_at_checked(at)) else {
            continue;
        };
        let (code, number) = if code_first {
            (left, right)
        } else {
            (right, left)
        };
        if is_code(code) {
            return Ok((number.trim(), Some(code)));
        }
    }
    if text.bytes().any(|b| b.is_ascii_alphabetic()) {
        return Err(format!(
            "\"{text}\" is not an amount: a currency is three capitals, e.g. 12.30EUR"
        ));
    }
    Ok((text, None))
}

/// A positive amount.
pub(crate) fn positive(text: &str) -> Result<Amount, String> {
    let amount: Amount = text.parse()?;
    if amount.minor == 0 {
        Err("an amount must be at least 1".to_owned())
    } else {
        Ok(amount)
    }
}

/// The one currency that an option and amounts name together.
pub(crate) fn agree(option: Option<&str>, amount: Option<&Amount>) -> Result<String, String> {
    let written = amount.and_then(|amount| amount.currency.as_deref());
    match (option, written) {
        (Some(a), Some(b)) if a != b => Err(format!("--currency {a} and an amount in {b}")),
        (Some(currency), _) | (None, Some(currency)) => Ok(currency.to_owned()),
        (None, None) => Err("no currency: add --currency, e.g. --currency EUR".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(text: &str) -> Result<(i64, Option<String>), String> {
        text.parse::<Amount>()
            .map(|amount| (amount.minor, amount.currency))
    }

    #[test]
    fn a_bare_integer_is_minor_units_and_a_currency_makes_it_decimal() {
        assert_eq!(amount("1230"), Ok((1230, None)));
        for text in ["12.30EUR", "12.30 EUR", "EUR 12.30", "EUR12.3"] {
            assert_eq!(amount(text), Ok((1230, Some("EUR".into()))), "{text}");
        }
        assert_eq!(amount("12EUR"), Ok((1200, Some("EUR".into()))));
        assert_eq!(amount("12JPY"), Ok((12, Some("JPY".into()))));
        assert_eq!(amount("1.234KWD"), Ok((1234, Some("KWD".into()))));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        assert!(amount("12.30").unwrap_err().contains("names no currency"));
        for bad in [
            "",
            "-5",
            "+5",
            "1,000",
            "1e3",
            "0x10",
            "12.",
            ".5EUR",
            "12.345EUR",
            "1.5JPY",
            "EUR",
            "12.30eur",
            "12.30EURO",
            "1 2",
            "99999999999999999999",
            "1000000000000001",
            "٣",
            "1.2.3",
            "12.30.EUR",
            "EUR12EUR",
        ] {
            assert!(amount(bad).is_err(), "{bad:?} was read");
        }
        assert!(positive("0").is_err());
    }

    #[test]
    fn amounts_are_shown_with_the_decimals_of_their_currency() {
        assert_eq!(show(1230, "EUR"), "12.30 EUR");
        assert_eq!(show(5, "EUR"), "0.05 EUR");
        assert_eq!(show(-5, "EUR"), "-0.05 EUR");
        assert_eq!(show(5, "JPY"), "5 JPY");
        assert_eq!(show(i64::MIN, "KWD"), "-9223372036854775.808 KWD");
        assert_eq!(show(7, ""), "7");
    }

    #[test]
    fn option_and_amount_must_name_the_same_currency() {
        let euro = "1EUR".parse::<Amount>().unwrap();
        assert_eq!(agree(None, Some(&euro)), Ok("EUR".to_owned()));
        assert!(agree(Some("USD"), Some(&euro)).is_err());
        assert!(agree(None, None).is_err());
    }
}
