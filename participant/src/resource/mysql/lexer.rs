//! Cuts SQL into tokens whose limits every lexer agrees on, and refuses everything else.
//!
//! How a server reads text depends on its version and `sql_mode`: backslashes and double quotes in
//! strings, comments that are code (`/*! */`), user variables, delimiters. None of that gets past
//! this file, so the text that [`Token::push_to`] writes means the same to it, to the parser that
//! judges it, and to the server. Comments are dropped.

/// One token of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its text: without quotes for the quoted kinds, with doubled quotes inside still doubled.
    pub text: &'a str,
    /// Whether white space or a comment stood before it.
    pub spaced: bool,
}

/// Kinds of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A keyword or a plain name, ASCII.
    Word,
    /// A name in backticks.
    Quoted,
    /// Text in single quotes, without backslashes.
    Text,
    /// A number without sign.
    Number,
    /// Bytes in hexadecimal, an even number of digits.
    Hex,
    /// Bits.
    Bit,
    /// A `?`.
    Placeholder,
    /// An operator or punctuation.
    Symbol,
}

impl Token<'_> {
    /// Whether it is this keyword; `keyword` is in capitals.
    pub fn is_word(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
    }

    /// Whether it is this symbol.
    pub fn is_symbol(&self, symbol: &str) -> bool {
        self.kind == Kind::Symbol && self.text == symbol
    }

    /// Whether it may name something.
    pub fn is_name(&self) -> bool {
        matches!(self.kind, Kind::Word | Kind::Quoted)
    }

    /// Appends it to SQL text.
    pub fn push_to(&self, sql: &mut String) {
        let (open, close) = match self.kind {
            Kind::Word | Kind::Number | Kind::Placeholder | Kind::Symbol => ("", ""),
            Kind::Quoted => ("`", "`"),
            Kind::Text => ("'", "'"),
            Kind::Hex => ("x'", "'"),
            Kind::Bit => ("b'", "'"),
        };
        sql.push_str(open);
        sql.push_str(self.text);
        sql.push_str(close);
    }
}

/// The symbols that are let through, longer ones first.
const SYMBOLS: &[&str] = &[
    "->>", "<=>", "<<", ">>", "<=", ">=", "<>", "!=", "&&", "||", "->", "(", ")", ",", ".", "+",
    "-", "*", "/", "%", "=", "<", ">", "!", "&", "|", "^", "~",
];

/// Cuts a statement into tokens. The error is a sentence for the client.
pub fn lex(sql: &str) -> Result<Vec<Token<'_>>, String> {
    if let Some(control) = sql
        .chars()
        .find(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
    {
        return Err(format!(
            "it holds the control character {control:?}: bind values instead"
        ));
    }
    let mut lexer = Lexer {
        rest: sql,
        tokens: Vec::new(),
        spaced: false,
    };
    while !lexer.rest.is_empty() {
        lexer.step()?;
    }
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    tokens: Vec<Token<'a>>,
    spaced: bool,
}

impl<'a> Lexer<'a> {
    fn step(&mut self) -> Result<(), String> {
        let first = self.rest.as_bytes()[0];
        match first {
            b' ' | b'\t' | b'\n' | b'\r' => self.skip(1),
            b'#' => self.skip_line(),
            b'-' if self.begins_dash_comment() => self.skip_line(),
            b'/' if self.rest.starts_with("/*") => self.skip_block()?,
            b'\'' => self.quoted(Kind::Text, '\'')?,
            b'`' => self.quoted(Kind::Quoted, '`')?,
            b'"' => {
                return Err(
                    "double quotes mean text or a name, as the server's sql_mode says: \
                            write text in single quotes or bind it, and names in backticks"
                        .into(),
                );
            }
            b'?' => {
                check_after(&self.rest[1..])?;
                self.check_before_literal()?;
                // `x?` would become `x'41'`.
                self.spaced |= self.tokens.last().is_some_and(Token::is_name);
                self.take(Kind::Placeholder, 1);
            }
            b'0'..=b'9' => self.number()?,
            b'.' if self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => self.number()?,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => self.word()?,
            b';' => return Err("only one statement is allowed, without a semicolon".into()),
            b'@' => return Err("variables are not allowed: bind values instead".into()),
            b'\\' => return Err("backslashes are not allowed: bind values instead".into()),
            _ => self.symbol()?,
        }
        Ok(())
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
        self.spaced = true;
    }

    fn take(&mut self, kind: Kind, bytes: usize) {
        let (text, rest) = self.rest.split_at(bytes);
        self.push(kind, text, rest);
    }

    fn push(&mut self, kind: Kind, text: &'a str, rest: &'a str) {
        self.tokens.push(Token {
            kind,
            text,
            spaced: self.spaced,
        });
        self.rest = rest;
        self.spaced = false;
    }

    /// `--` begins a comment only before white space or the end: `5--3` is 8.
    fn begins_dash_comment(&self) -> bool {
        self.rest
            .strip_prefix("--")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']))
    }

    fn skip_line(&mut self) {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        self.skip(end);
    }

    fn skip_block(&mut self) -> Result<(), String> {
        let body = &self.rest[2..];
        if body.starts_with(['!', '+']) || body.starts_with("M!") || body.starts_with("m!") {
            return Err(
                "comments that are code (/*! */) and optimizer hints (/*+ */) are not \
                        allowed"
                    .into(),
            );
        }
        let Some(end) = body.find("*/") else {
            return Err("a comment has no end".into());
        };
        if body[..end].contains("/*") {
            return Err("a comment within a comment".into());
        }
        self.skip(2 + end + 2);
        Ok(())
    }

    fn quoted(&mut self, kind: Kind, quote: char) -> Result<(), String> {
        let body = &self.rest[1..];
        let mut from = 0;
        let end = loop {
            let Some(at) = body[from..].find(quote) else {
                return Err(format!("a {quote} has no counterpart"));
            };
            let at = from + at;
            if body[at + 1..].starts_with(quote) {
                from = at + 2;
            } else {
                break at;
            }
        };
        let text = &body[..end];
        if text.contains('\\') {
            return Err(
                "a backslash within quotes is read differently by servers with different \
                        sql_mode: bind the value instead"
                    .into(),
            );
        }
        if kind == Kind::Quoted && (text.is_empty() || text.ends_with(' ')) {
            return Err("a name is empty or ends with a space".into());
        }
        // MariaDB drops `#mysql50#` before a name, which would be that of a protected schema then.
        if kind == Kind::Quoted && text.starts_with('#') {
            return Err("a name begins with #, which servers give a meaning of their own".into());
        }
        if kind == Kind::Text {
            self.check_before_literal()?;
        }
        // `0x4F'a'` is written back as `x'4F'`, whose quote must not meet the next one: two quotes
        // in a row are one within a literal to the parser that judges, and two to the server.
        self.spaced |= self
            .tokens
            .last()
            .is_some_and(|token| matches!(token.kind, Kind::Hex | Kind::Bit));
        self.push(kind, text, &body[end + 1..]);
        Ok(())
    }

    /// Servers join texts that follow each other, and read `_latin1 'a'` in another character set.
    fn check_before_literal(&self) -> Result<(), String> {
        let joins = self.tokens.last().is_some_and(|last| {
            matches!(last.kind, Kind::Text | Kind::Placeholder)
                || last.is_symbol(".")
                || (last.kind == Kind::Word && last.text.starts_with('_'))
        });
        if joins {
            return Err(
                "write text, or a `?`, in one piece and without a character set or a period before \
                 it"
                .into(),
            );
        }
        Ok(())
    }

    fn word(&mut self) -> Result<(), String> {
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '$')))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if rest.starts_with(|c: char| !c.is_ascii()) {
            return Err(format!(
                "write names that are not ASCII in backticks, near {word}"
            ));
        }
        match rest.strip_prefix('\'') {
            Some(body) if word.eq_ignore_ascii_case("x") => self.radix(Kind::Hex, body),
            Some(body) if word.eq_ignore_ascii_case("b") => self.radix(Kind::Bit, body),
            Some(_) if word.eq_ignore_ascii_case("n") || word.starts_with('_') => {
                Err("write text without a character set before it".into())
            }
            _ => {
                self.push(Kind::Word, word, rest);
                Ok(())
            }
        }
    }

    /// The body of `x'…'` or `b'…'`.
    fn radix(&mut self, kind: Kind, body: &'a str) -> Result<(), String> {
        let end = body.find('\'').ok_or("a ' has no counterpart")?;
        let text = &body[..end];
        self.check_radix(kind, text)?;
        self.push(kind, text, &body[end + 1..]);
        Ok(())
    }

    fn check_radix(&self, kind: Kind, text: &str) -> Result<(), String> {
        let legal = match kind {
            Kind::Hex => {
                text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_hexdigit())
            }
            _ => !text.is_empty() && text.bytes().all(|b| matches!(b, b'0' | b'1')),
        };
        let introduced = self
            .tokens
            .last()
            .is_some_and(|t| t.kind == Kind::Word && t.text.starts_with('_'));
        if legal && !introduced {
            Ok(())
        } else {
            Err(format!(
                "{text} is not a literal of whole bytes without a character set"
            ))
        }
    }

    fn number(&mut self) -> Result<(), String> {
        let after_name = self.tokens.last().is_some_and(Token::is_name);
        if self.rest.starts_with('.') && after_name && !self.spaced {
            return Err("write names that begin with a digit in backticks".into());
        }
        for (prefix, kind) in [("0x", Kind::Hex), ("0b", Kind::Bit)] {
            if let Some(body) = self
                .rest
                .strip_prefix(prefix)
                .filter(|body| !body.is_empty())
            {
                let end = body
                    .find(|c: char| !c.is_ascii_alphanumeric())
                    .unwrap_or(body.len());
                self.check_radix(kind, &body[..end])?;
                check_after(&body[end..])?;
                self.push(kind, &body[..end], &body[end..]);
                return Ok(());
            }
        }
        let bytes = self.rest.as_bytes();
        let digits = |from: usize| {
            from + bytes[from..]
                .iter()
                .take_while(|b| b.is_ascii_digit())
                .count()
        };
        let mut end = digits(0);
        if bytes.get(end) == Some(&b'.') {
            end = digits(end + 1);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = digits(end + 1 + sign);
            if exponent == end + 1 + sign {
                return Err("a number's exponent has no digits".into());
            }
            end = exponent;
        }
        check_after(&self.rest[end..])?;
        self.take(Kind::Number, end);
        Ok(())
    }

    fn symbol(&mut self) -> Result<(), String> {
        let Some(symbol) = SYMBOLS.iter().find(|s| self.rest.starts_with(**s)) else {
            let character = self.rest.chars().next().unwrap_or_default();
            return Err(format!("the character {character:?} is not allowed here"));
        };
        // Two minus signs with nothing between them would begin a comment where a space follows.
        let after_minus = self.tokens.last().is_some_and(|t| t.is_symbol("-"));
        self.spaced |= *symbol == "-" && after_minus;
        self.take(Kind::Symbol, symbol.len());
        Ok(())
    }
}

/// Nothing may be fused to the end of a number or a placeholder.
fn check_after(rest: &str) -> Result<(), String> {
    let fused =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.') || !c.is_ascii();
    if rest.starts_with(fused) {
        Err("write names that begin with a digit in backticks".into())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(sql: &str) -> Vec<&str> {
        lex(sql).unwrap().iter().map(|t| t.text).collect()
    }

    #[test]
    fn cuts_what_every_server_cuts_the_same_way() {
        assert_eq!(
            texts("UPDATE `a``b` SET v=v-?,w=5--3 WHERE k<=>'it''s' AND h=x'4F' -- end"),
            [
                "UPDATE", "a``b", "SET", "v", "=", "v", "-", "?", ",", "w", "=", "5", "-", "-",
                "3", "WHERE", "k", "<=>", "it''s", "AND", "h", "=", "4F",
            ],
        );
        assert_eq!(
            texts("1 .5 1.5e-3 0xAB 0b01"),
            ["1", ".5", "1.5e-3", "AB", "01"]
        );
        assert_eq!(texts("a/* b */c#d\ne"), ["a", "c", "e"]);
        assert_eq!(texts("a--\nb"), ["a", "b"]);
        assert_eq!(texts("t.c->>'$.x'"), ["t", ".", "c", "->>", "$.x"]);
    }

    #[test]
    fn refuses_what_servers_read_differently() {
        for sql in [
            "a;",
            ";",
            "@a",
            "@@b",
            "a := 1",
            "'\\''",
            "\"a\"",
            "`a\\`",
            "/*! a */",
            "/*M! a */",
            "/*+ a */",
            "/* a",
            "/* /* */ */",
            "'a",
            "`a",
            "``",
            "`a `",
            "{d '2024-01-01'}",
            "é",
            "aé",
            "N'a'",
            "_latin1'a'",
            "_latin1 'a'",
            "_latin1 x'41'",
            "x'4'",
            "x'4g'",
            "0x4",
            "b'2'",
            "1a",
            "1e",
            "1.2.3",
            "t.5",
            "a\u{0}b",
            "'\u{1}'",
            "a\u{85}b",
            "[a]",
            "a:b",
            "$a",
            "'a' 'b'",
            "\u{a0}a",
            "0x",
            "1_000",
        ] {
            assert!(lex(sql).is_err(), "{sql:?} was let through: {:?}", lex(sql));
        }
    }

    #[test]
    fn quotes_never_meet() {
        for sql in ["SELECT 0x4F'b0'", "SELECT x'4F''b0'", "SELECT 0b01'b0'"] {
            let text: String = lex(sql)
                .unwrap()
                .iter()
                .fold(String::new(), |mut text, token| {
                    text.push_str(if token.spaced { " " } else { "" });
                    token.push_to(&mut text);
                    text
                });
            assert!(!text.contains("''"), "{sql} became {text}");
        }
    }

    #[test]
    fn what_is_written_back_reads_the_same() {
        for sql in [
            "SELECT a.b,'x''y',`q``r`,1.5,x'ab',b'1',? FROM t WHERE a- -1<>2",
            "SELECT x'4f' 'b0',b'1' 'c'",
        ] {
            let tokens = lex(sql).unwrap();
            let mut text = String::new();
            for token in &tokens {
                if token.spaced {
                    text.push(' ');
                }
                token.push_to(&mut text);
            }
            assert_eq!(lex(&text).unwrap(), tokens, "{text}");
        }
    }
}
