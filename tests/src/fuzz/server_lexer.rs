//! How MySQL and MariaDB cut text into tokens, as their manuals say it, for every `sql_mode` that
//! matters. It was written from the manuals and shares nothing with the participant's own lexer,
//! whose text it is held against.

/// The modes that change where a token ends.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// A backslash escapes: `NO_BACKSLASH_ESCAPES` is off.
    pub backslash: bool,
    /// Double quotes hold a name: `ANSI_QUOTES` is on.
    pub ansi_quotes: bool,
}

/// All combinations.
pub const MODES: [Mode; 4] = [
    Mode {
        backslash: true,
        ansi_quotes: false,
    },
    Mode {
        backslash: false,
        ansi_quotes: false,
    },
    Mode {
        backslash: true,
        ansi_quotes: true,
    },
    Mode {
        backslash: false,
        ansi_quotes: true,
    },
];

/// A token as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A keyword or a plain name.
    Word(String),
    /// A name in quotes, without them.
    Name(String),
    /// What a string holds.
    Text(Vec<u8>),
    /// A number as it is written.
    Number(String),
    /// Bytes of a hexadecimal literal.
    Hex(Vec<u8>),
    /// Digits of a bit literal.
    Bit(String),
    /// One character of an operator, or punctuation.
    Symbol(char),
}

impl Token {
    /// Whether it is this keyword.
    pub fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// The name that it may be.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Word(name) | Self::Name(name) => Some(name),
            _ => None,
        }
    }
}

/// Cuts a text. What no statement of ours may hold, a comment for one, is an error.
pub fn cut(text: &str, mode: Mode) -> Result<Vec<Token>, String> {
    Ok(lex(text, mode)?.tokens)
}

/// The tokens after which something follows at once, by their numbers: to a server `count(1)` is
/// not `count (1)`.
pub fn joined(text: &str, mode: Mode) -> Result<Vec<usize>, String> {
    Ok(lex(text, mode)?.joined)
}

fn lex(text: &str, mode: Mode) -> Result<Lexer<'_>, String> {
    let mut lexer = Lexer {
        text: text.as_bytes(),
        at: 0,
        mode,
        tokens: Vec::new(),
        joined: Vec::new(),
    };
    while lexer.at < lexer.text.len() {
        let before = lexer.tokens.len();
        lexer.step()?;
        if lexer.tokens.len() > before && lexer.peek(0) > b' ' {
            lexer.joined.push(before);
        }
    }
    Ok(lexer)
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    mode: Mode,
    tokens: Vec<Token>,
    joined: Vec<usize>,
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn step(&mut self) -> Result<(), String> {
        let (first, second) = (self.peek(0), self.peek(1));
        match first {
            b' ' | b'\t'..=b'\r' => self.at += 1,
            b'#' => return Err("a comment".into()),
            b'-' if second == b'-' && (self.peek(2) <= b' ' || self.peek(2) == 0x7f) => {
                return Err("a comment".into());
            }
            b'/' if second == b'*' => return Err("a comment".into()),
            b'@' => return Err("a variable".into()),
            b'\\' => return Err("a backslash outside of quotes".into()),
            b';' => return Err("a second statement".into()),
            b'\'' => {
                let text = self.quoted(b'\'', self.mode.backslash)?;
                self.tokens.push(Token::Text(text));
            }
            b'"' if !self.mode.ansi_quotes => {
                let text = self.quoted(b'"', self.mode.backslash)?;
                self.tokens.push(Token::Text(text));
            }
            b'"' | b'`' => {
                let name = self.quoted(first, false)?;
                let name = String::from_utf8(name).map_err(|error| error.to_string())?;
                self.tokens.push(Token::Name(name));
            }
            b'x' | b'X' if second == b'\'' => self.hex()?,
            b'b' | b'B' if second == b'\'' => self.bit()?,
            b'n' | b'N' if second == b'\'' => return Err("a national string".into()),
            b'0'..=b'9' => self.number(),
            b'.' if second.is_ascii_digit() && !self.follows_name() => self.number(),
            byte if is_name_byte(byte) => self.word(),
            0..=0x1f | 0x7f => return Err("a control character".into()),
            _ => {
                self.tokens.push(Token::Symbol(char::from(first)));
                self.at += 1;
            }
        }
        Ok(())
    }

    /// After a name a period begins a part of it, even when a digit follows.
    fn follows_name(&self) -> bool {
        self.at > 0 && (is_name_byte(self.text[self.at - 1]) || self.text[self.at - 1] == b'`')
    }

    fn quoted(&mut self, quote: u8, backslash: bool) -> Result<Vec<u8>, String> {
        let mut held = Vec::new();
        self.at += 1;
        loop {
            let Some(&byte) = self.text.get(self.at) else {
                return Err("a quote without an end".into());
            };
            self.at += 1;
            if byte == quote {
                if self.text.get(self.at) != Some(&quote) {
                    return Ok(held);
                }
                self.at += 1;
            } else if byte == b'\\' && backslash {
                // What it escapes is not of interest: that there was one is.
                self.at += 1;
                held.extend_from_slice(b"\\ESCAPED");
                continue;
            }
            held.push(byte);
        }
    }

    /// The digits of `x'…'` and `b'…'`. They end at the next quote: there is no doubled one.
    fn digits(&mut self) -> Result<Vec<u8>, String> {
        let from = self.at + 2;
        let length = self.text[from..]
            .iter()
            .position(|byte| *byte == b'\'')
            .ok_or("a quote without an end")?;
        self.at = from + length + 1;
        Ok(self.text[from..from + length].to_vec())
    }

    fn hex(&mut self) -> Result<(), String> {
        let digits = self.digits()?;
        self.tokens.push(Token::Hex(unhex(&digits)?));
        Ok(())
    }

    fn bit(&mut self) -> Result<(), String> {
        let digits = self.digits()?;
        if !digits.iter().all(|digit| matches!(digit, b'0' | b'1')) {
            return Err("a bit literal of other digits".into());
        }
        let digits = String::from_utf8(digits).map_err(|error| error.to_string())?;
        self.tokens.push(Token::Bit(digits));
        Ok(())
    }

    fn take(&mut self, of: impl Fn(u8) -> bool) -> String {
        let from = self.at;
        while self.at < self.text.len() && of(self.text[self.at]) {
            self.at += 1;
        }
        String::from_utf8_lossy(&self.text[from..self.at]).into_owned()
    }

    fn word(&mut self) {
        let word = self.take(is_name_byte);
        self.tokens.push(Token::Word(word));
    }

    /// `1`, `1.5`, `.5`, `1e5`; digits that go on as a name are one, as in `1a`.
    fn number(&mut self) {
        let from = self.at;
        let whole = self.take(|byte| byte.is_ascii_digit());
        let is_name = !whole.is_empty() && is_name_byte(self.peek(0)) && !self.is_exponent();
        if is_name {
            self.at = from;
            return self.word();
        }
        if self.peek(0) == b'.' {
            self.at += 1;
            self.take(|byte| byte.is_ascii_digit());
        }
        if self.is_exponent() {
            self.at += 2;
            self.take(|byte| byte.is_ascii_digit());
        }
        let text = String::from_utf8_lossy(&self.text[from..self.at]).into_owned();
        self.tokens.push(Token::Number(text));
    }

    fn is_exponent(&self) -> bool {
        matches!(self.peek(0), b'e' | b'E')
            && (self.peek(1).is_ascii_digit()
                || (matches!(self.peek(1), b'+' | b'-') && self.peek(2).is_ascii_digit()))
    }
}

fn unhex(digits: &[u8]) -> Result<Vec<u8>, String> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
            .ok_or("a hexadecimal literal of other digits")
    };
    let (pairs, []) = digits.as_chunks::<2>() else {
        return Err("a hexadecimal literal of half bytes".into());
    };
    pairs
        .iter()
        .map(|[high, low]| Ok(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_change_where_a_token_ends() {
        let plain = |backslash| Mode {
            backslash,
            ansi_quotes: false,
        };
        assert!(cut(r"SELECT '\'", plain(true)).is_err());
        assert_eq!(cut(r"SELECT '\'", plain(false)).map(|t| t.len()), Ok(2));
        let ansi = Mode {
            backslash: true,
            ansi_quotes: true,
        };
        assert_eq!(cut("\"a\"", ansi), Ok(vec![Token::Name("a".into())]));
        for text in ["a -- b", "a#", "/*! b */", "a;b", "@a", "'a"] {
            assert!(cut(text, plain(true)).is_err(), "{text}");
        }
        assert_eq!(joined("a (b) c('d')", plain(true)), Ok(vec![1, 2, 4, 5, 6]));
        assert_eq!(
            cut("5--3 t.5 1.5e3", plain(true)).map(|tokens| tokens.len()),
            Ok(8)
        );
    }
}
