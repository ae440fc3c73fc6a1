//! Values as SQL literals: no value can break out of its literal, and each is there as it was.

use concord_participant::resource::mysql::literal::{literal_len_max, push_literal};
use concord_proto::convert::{At, Violations, value};
use concord_proto::model::Value;

use super::input::Input;
use super::server_lexer::{MODES, Token, cut};

/// A value of any kind, well-formed or not.
pub fn any(input: &mut Input<'_>) -> Value {
    match input.u8() % 11 {
        0 => Value::Null,
        1 => Value::Bool(input.u8() & 1 == 1),
        2 => Value::Int(input.u64().cast_signed()),
        3 => Value::UInt(input.u64()),
        4 => Value::Double(f64::from_bits(input.u64())),
        5 => Value::Decimal(input.text()),
        6 => Value::String(input.text()),
        7 => Value::Bytes(input.piece().to_vec()),
        8 => Value::Date(input.text()),
        9 => Value::Time(input.text()),
        _ => Value::DateTime(input.text()),
    }
}

/// The target: one value.
pub fn literal(data: &[u8]) {
    let value = any(&mut Input(data));
    let mut sql = "SELECT 'before',".to_owned();
    let before = sql.len();
    let pushed = push_literal(&mut sql, &value);
    if passes_the_door(&value) {
        assert!(pushed.is_ok(), "{value:?} passed the door: {pushed:?}");
    }
    if pushed.is_err() {
        return;
    }
    let length = sql.len() - before;
    assert!(
        length <= literal_len_max(&value),
        "{value:?} took {length} bytes"
    );
    sql.push_str(",'after'");
    for mode in MODES {
        let tokens = cut(&sql, mode).unwrap_or_else(|why| panic!("{sql:?}, {mode:?}: {why}"));
        let (head, tail) = (&tokens[..3], &tokens[tokens.len() - 2..]);
        assert_eq!(head[1..], [Token::Text("before".into()), comma()], "{sql}");
        assert_eq!(*tail, [comma(), Token::Text("after".into())], "{sql}");
        let own = &tokens[3..tokens.len() - 2];
        assert!(says(own, &value), "{value:?} became {sql:?}: {own:?}");
    }
}

fn comma() -> Token {
    Token::Symbol(',')
}

fn passes_the_door(value: &Value) -> bool {
    let mut violations = Violations::default();
    value::value(&mut violations, &At::root("value"), value.clone().into()).is_some()
}

/// Whether the tokens of a literal say this value and nothing else.
pub fn says(tokens: &[Token], value: &Value) -> bool {
    let number = |text: &str, parenthesised: bool| -> bool {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (Some(Token::Symbol('-')), digits),
            None => (None, text),
        };
        let number = Some(Token::Number(digits.to_owned()));
        let mut expected: Vec<Token> = sign.into_iter().chain(number).collect();
        if parenthesised {
            expected.insert(0, Token::Symbol('('));
            expected.push(Token::Symbol(')'));
        }
        tokens == expected
    };
    let text = |keyword: &str, text: &str| -> bool {
        matches!(tokens, [word, Token::Text(held)]
            if word.is(keyword) && held == text.as_bytes())
    };
    let hex = |introducer: &str, bytes: &[u8]| -> bool {
        matches!(tokens, [word, Token::Hex(held)] if word.is(introducer) && held == bytes)
    };
    // A date of zeros has no keyword.
    let zeros = |text: &str| matches!(tokens, [Token::Text(held)] if held == text.as_bytes());
    match value {
        Value::Null => matches!(tokens, [word] if word.is("NULL")),
        Value::Bool(true) => matches!(tokens, [word] if word.is("TRUE")),
        Value::Bool(false) => matches!(tokens, [word] if word.is("FALSE")),
        Value::Int(int) => number(&int.to_string(), *int < 0),
        Value::UInt(int) => number(&int.to_string(), false),
        Value::Double(double) => says_double(tokens, *double),
        Value::Decimal(decimal) => number(decimal, true),
        Value::String(string) => hex("_utf8mb4", string.as_bytes()),
        Value::Bytes(bytes) => hex("_binary", bytes),
        Value::Date(date) => text("DATE", date) || zeros(date),
        Value::Time(time) => text("TIME", time),
        Value::DateTime(time) => text("TIMESTAMP", time) || zeros(time),
    }
}

fn says_double(tokens: &[Token], double: f64) -> bool {
    let (negative, digits) = match tokens {
        [
            Token::Symbol('('),
            Token::Symbol('-'),
            Token::Number(digits),
            Token::Symbol(')'),
        ] => (true, digits),
        [
            Token::Symbol('('),
            Token::Number(digits),
            Token::Symbol(')'),
        ] => (false, digits),
        _ => return false,
    };
    // Without an exponent the server takes it for a DECIMAL.
    let read: Option<f64> = digits.parse().ok().filter(|_| digits.contains('e'));
    read.is_some_and(|read| {
        let signed = if negative { -read } else { read };
        signed.to_bits() == double.to_bits()
    })
}
