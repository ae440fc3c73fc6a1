//! What users of the command line write: payment files, amounts, files of statements.

use concord_client::cli::reading;

/// The largest amount, in minor units.
const AMOUNT_MAX: i64 = 1_000_000_000_000_000;

/// The target: a payment file. What is paid is what stands there, in the one way in which it can
/// be read.
pub fn file(data: &[u8]) {
    let Ok(lines) = reading::payments(data) else {
        return;
    };
    let mut end = 0;
    let header = data.iter().position(|byte| *byte == b'\n');
    let columns = strict(&data[..header.unwrap_or(data.len())]).expect("a header is strict");
    let columns: Vec<String> = columns
        .iter()
        .map(|name| name.to_ascii_lowercase())
        .collect();
    for line in lines {
        let position = usize::try_from(line.end).expect("64 bits");
        assert!(
            position > end && position <= data.len(),
            "line {}",
            line.number
        );
        let start = data[..position - 1]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        end = position;
        let Ok(payment) = line.payment else { continue };
        let raw = &data[start..position];
        let commented_out = raw.trim_ascii_start().starts_with(b"#");
        assert!(
            !commented_out,
            "{:?} was paid",
            String::from_utf8_lossy(raw)
        );
        let fields = strict(raw).unwrap_or_else(|why| {
            panic!("{:?} was paid, and {why}", String::from_utf8_lossy(raw));
        });
        assert_eq!(fields.len(), columns.len(), "{raw:?}");
        let field = |name: &str| {
            let at = columns.iter().position(|column| column == name);
            at.map(|at| fields[at].clone()).unwrap_or_default()
        };
        assert_eq!(payment.request_id, field("request_id"), "{raw:?}");
        assert_eq!(payment.from, field("from"), "{raw:?}");
        assert_eq!(payment.to, field("to"), "{raw:?}");
        assert_eq!(payment.amount, field("amount"), "{raw:?}");
        assert_eq!(payment.memo, field("memo"), "{raw:?}");
        assert!(!payment.request_id.is_empty(), "{raw:?}");
        assert!((1..=AMOUNT_MAX).contains(&payment.minor), "{raw:?}");
        let amount = reading::amount(&payment.amount);
        assert_eq!(amount, Ok((payment.minor, payment.currency)), "{raw:?}");
    }
}

/// The fields of a line by RFC 4180, and nothing beside it: a quote opens a field at its very
/// beginning and closes it at its very end.
fn strict(line: &[u8]) -> Result<Vec<String>, &'static str> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8")?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.contains(['\r', '\n']) {
        return Err("a line ends within it");
    }
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let field;
        if let Some(mut quoted) = rest.strip_prefix('"') {
            let mut held = String::new();
            loop {
                let (part, after) = quoted.split_once('"').ok_or("a quote is not closed")?;
                held.push_str(part);
                match after.strip_prefix('"') {
                    Some(after) => {
                        held.push('"');
                        quoted = after;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
            field = held;
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            field = rest[..end].to_owned();
            rest = &rest[end..];
            if field.contains('"') {
                return Err("a quote stands within a field");
            }
        }
        fields.push(field.trim().to_owned());
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => return Ok(fields),
            None => return Err("something follows a closing quote"),
        }
    }
}

/// The target: an amount.
pub fn money(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok((minor, currency)) = reading::amount(text) else {
        return;
    };
    assert!((0..=AMOUNT_MAX).contains(&minor), "{text:?} is {minor}");
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    assert!(!digits.is_empty(), "{text:?} has no digits");
    let decimals = match currency.as_deref() {
        None => {
            assert_eq!(text.trim(), digits, "without a currency it is an integer");
            0
        }
        Some("JPY" | "KRW" | "CLP" | "VND" | "ISK") => 0,
        Some("KWD" | "BHD" | "TND") => 3,
        Some("CLF") => 4,
        Some("EUR" | "USD" | "GBP" | "CHF") => 2,
        Some(other) => {
            let shown = reading::show(0, other);
            shown.bytes().filter(|byte| *byte == b'0').count() - 1
        }
    };
    let written = text.split_once('.').map_or(0, |(_, fraction)| {
        fraction.chars().filter(char::is_ascii_digit).count()
    });
    assert!(
        written <= decimals,
        "{text:?} has more decimals than {decimals}"
    );
    let missing = u32::try_from(decimals - written).expect("four at most");
    let exact = digits
        .parse::<u128>()
        .ok()
        .and_then(|number| number.checked_mul(10_u128.pow(missing)));
    assert_eq!(exact, u128::try_from(minor).ok(), "{text:?} is not {minor}");
    let shown = reading::show(minor, currency.as_deref().unwrap_or_default());
    assert_eq!(reading::amount(&shown), Ok((minor, currency)), "{shown:?}");
}

/// The target: a file of statements.
pub fn statements(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match reading::statements(text) {
        Err(why) => assert!(!why.is_empty(), "{text:?}"),
        Ok(read) => {
            assert!(!read.is_empty(), "{text:?}");
            for (participant, _) in read {
                assert!(!participant.is_empty(), "{text:?}");
            }
        }
    }
}
