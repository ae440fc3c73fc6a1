//! What stands before an opening parenthesis.
//!
//! Both servers call a stored function, or one of a plug-in, by its name before a parenthesis, and
//! in no other way. So each such name, as the server cuts the text and whatever a parser makes of
//! it, is one of these, or refused: a word that no server takes for a call; a function that is on
//! the list; a name that stands where only a table, an alias or a type can be named.

use super::functions::{is_dangerous, listed};
use super::lexer::{Kind, Token};

/// Words that both servers take for themselves before a parenthesis, wherever an operand may begin;
/// the test `only_functions_are_called` asks the servers. RETURNING is one on MariaDB only, and in
/// no statement that goes to MySQL.
const KEYWORDS: &[&str] = &[
    "ALL",
    "AND",
    "ANY",
    "AS",
    "BETWEEN",
    "BIGINT",
    "BINARY",
    "BIT",
    "BOTH",
    "BY",
    "CASE",
    "CHARACTER",
    "CROSS",
    "DATETIME",
    "DEC",
    "DECIMAL",
    "DISTINCT",
    "DISTINCTROW",
    "DIV",
    "DOUBLE",
    "ELSE",
    "ENUM",
    "EXCEPT",
    "EXISTS",
    "FLOAT",
    "FOR",
    "FROM",
    "HAVING",
    "HIGH_PRIORITY",
    "IN",
    "INDEX",
    "INT",
    "INTEGER",
    "INTERSECT",
    "JOIN",
    "KEY",
    "LEADING",
    "LIKE",
    "MATCH",
    "MEDIUMINT",
    "NCHAR",
    "NOT",
    "NUMERIC",
    "ON",
    "OR",
    "OVER",
    "PARTITION",
    "REAL",
    "REGEXP",
    "RETURNING",
    "RLIKE",
    "ROW",
    "SELECT",
    "SMALLINT",
    "SOME",
    "STRAIGHT_JOIN",
    "THEN",
    "TINYINT",
    "TRAILING",
    "UNION",
    "USING",
    "VARBINARY",
    "VARCHAR",
    "WHEN",
    "WHERE",
    "XOR",
];

/// Words that may follow SELECT and are columns' names elsewhere.
const AFTER_SELECT: &[&str] = &[
    "SQL_BIG_RESULT",
    "SQL_BUFFER_RESULT",
    "SQL_CALC_FOUND_ROWS",
    "SQL_NO_CACHE",
    "SQL_SMALL_RESULT",
];

/// The words of [`KEYWORDS`], to ask servers about them.
pub fn keywords() -> &'static [&'static str] {
    KEYWORDS
}

/// Looks at every name before a parenthesis and returns the functions that are called. Their
/// parentheses follow at once from here on: `count (1)` is a stored function to a server.
pub fn check(tokens: &mut [Token<'_>]) -> Result<Vec<&'static str>, String> {
    let target = insert_target(tokens);
    let mut called = Vec::new();
    for at in 0..tokens.len().saturating_sub(1) {
        let name = tokens[at];
        if !name.is_name() || !tokens[at + 1].is_symbol("(") {
            continue;
        }
        if is_dangerous(name.text) {
            return Err(format!("the function {} is not allowed", name.text));
        }
        if target == Some(at) {
            continue;
        }
        let qualified = at > 0 && tokens[at - 1].is_symbol(".");
        if !qualified && (is_keyword(&name) || names(tokens, at)) {
            continue;
        }
        let function = listed(name.text).filter(|_| !qualified && name.kind == Kind::Word);
        let function = function.ok_or_else(|| refused(&name))?;
        tokens[at + 1].spaced = false;
        if !called.contains(&function) {
            called.push(function);
        }
    }
    Ok(called)
}

fn refused(name: &Token<'_>) -> String {
    let mut text = String::new();
    name.push_to(&mut text);
    if name.kind == Kind::Quoted && listed(name.text).is_some() {
        format!("a function's name stands without backticks, unlike {text}")
    } else {
        format!("{text} before a parenthesis is not allowed: no such function is on the list")
    }
}

fn is_keyword(name: &Token<'_>) -> bool {
    KEYWORDS.iter().any(|word| name.is_word(word))
}

/// Whether the name at `at` cannot be called there, whatever it is.
fn names(tokens: &[Token<'_>], at: usize) -> bool {
    let Some(before) = at.checked_sub(1).map(|before| tokens[before]) else {
        return false;
    };
    let follows = |words: &[&str]| words.iter().any(|word| before.is_word(word));
    let name = tokens[at];
    ends_operand(&before)
        // A type, an alias, or the parenthesis of a common table expression.
        || follows(&["AS", "WITH"])
        || (follows(&["RECURSIVE"]) && at > 1 && tokens[at - 2].is_word("WITH"))
        || (before.is_symbol(",") && is_next_common_table(&tokens[at + 1..]))
        || (follows(&["SELECT"]) && AFTER_SELECT.iter().any(|word| name.is_word(word)))
        || (follows(&["MEMBER"]) && name.is_word("OF"))
        || ((follows(&["FROM", "JOIN", "STRAIGHT_JOIN"]) || before.is_symbol(","))
            && is_table_form(tokens, at))
}

/// After an operand there is an operator, a word of the server's own, or an alias, and after an
/// alias no parenthesis but one around its columns. A `?` is a literal to the server.
fn ends_operand(token: &Token<'_>) -> bool {
    match token.kind {
        Kind::Quoted | Kind::Text | Kind::Number | Kind::Hex | Kind::Bit | Kind::Placeholder => {
            true
        }
        Kind::Word => false,
        Kind::Symbol => token.text == ")",
    }
}

/// `LATERAL (SELECT` and `JSON_TABLE(… COLUMNS (`: no call has a SELECT right after its
/// parenthesis, or a list of columns among its own arguments.
fn is_table_form(tokens: &[Token<'_>], at: usize) -> bool {
    let name = tokens[at];
    let query = |token: &Token<'_>| token.is_word("SELECT") || token.is_word("WITH");
    if name.is_word("LATERAL") {
        return tokens.get(at + 2).is_some_and(query);
    }
    name.is_word("JSON_TABLE") && lists_columns(&tokens[at + 1..])
}

/// Whether a literal and COLUMNS stand in the first parenthesis, and not in one within it.
fn lists_columns(tokens: &[Token<'_>]) -> bool {
    let held = inside(tokens);
    held.windows(3).zip(depths(held)).any(|(three, depth)| {
        depth == 1
            && is_literal(&three[0])
            && three[1].is_word("COLUMNS")
            && three[2].is_symbol("(")
    })
}

fn is_literal(token: &Token<'_>) -> bool {
    matches!(token.kind, Kind::Text | Kind::Placeholder)
}

/// How many parentheses are open after each token.
fn depths(tokens: &[Token<'_>]) -> impl Iterator<Item = usize> {
    tokens.iter().scan(0_usize, |depth, token| {
        if token.is_symbol("(") {
            *depth += 1;
        } else if token.is_symbol(")") {
            *depth = depth.saturating_sub(1);
        }
        Some(*depth)
    })
}

/// What the first parenthesis holds, with what stands in parentheses there, and itself.
fn inside<'t, 'a>(tokens: &'t [Token<'a>]) -> &'t [Token<'a>] {
    let closing = depths(tokens).position(|depth| depth == 0);
    closing.map_or(tokens, |at| &tokens[..=at])
}

/// `, name (columns) AS (`: the second common table expression of some.
fn is_next_common_table(tokens: &[Token<'_>]) -> bool {
    let rest = &tokens[inside(tokens).len()..];
    matches!(rest, [word, parenthesis, ..] if word.is_word("AS") && parenthesis.is_symbol("("))
}

/// Where the name of the table ends that an INSERT or REPLACE writes to.
fn insert_target(tokens: &[Token<'_>]) -> Option<usize> {
    let is = |at: usize, words: &[&str]| {
        let token = tokens.get(at);
        token.is_some_and(|token| words.iter().any(|word| token.is_word(word)))
    };
    if !is(0, &["INSERT", "REPLACE"]) {
        return None;
    }
    let mut at = 1;
    for words in [
        &["LOW_PRIORITY", "HIGH_PRIORITY"][..],
        &["IGNORE"],
        &["INTO"],
    ] {
        at += usize::from(is(at, words));
    }
    let period = |at: usize| tokens.get(at).is_some_and(|token| token.is_symbol("."));
    if period(at + 1) {
        at += 2;
    }
    tokens.get(at).is_some_and(Token::is_name).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::super::lexer::lex;
    use super::*;

    fn called(sql: &str) -> Result<Vec<&'static str>, String> {
        check(&mut lex(sql).unwrap_or_else(|why| panic!("{sql}: {why}")))
    }

    #[test]
    fn a_name_before_a_parenthesis_is_known() {
        for (sql, functions) in [
            ("SELECT COUNT(*),max (v) FROM t", vec!["count", "max"]),
            ("INSERT INTO t (a) VALUES (1)", vec![]),
            ("INSERT IGNORE s.`t`(a) SELECT 1", vec![]),
            ("REPLACE INTO count (a) SELECT 1", vec![]),
            (
                "WITH RECURSIVE a (x) AS (SELECT 1), b (y) AS (SELECT 2) SELECT 1",
                vec![],
            ),
            ("SELECT CAST(v AS f(3))", vec!["cast"]),
            (
                "SELECT 1 FROM (SELECT 1) f (a), LATERAL (SELECT 2) AS g (b)",
                vec![],
            ),
            (
                "SELECT 1 FROM JSON_TABLE(?, '$[*]' COLUMNS (a INT PATH '$')) j",
                vec![],
            ),
            (
                "SELECT 1 FROM t STRAIGHT_JOIN LATERAL (WITH c AS (SELECT 1) SELECT 1 FROM c) l",
                vec![],
            ),
            (
                "SELECT TRIM(BOTH (s) FROM s), SUBSTRING(s FROM 1 FOR (2))",
                vec!["trim", "substring"],
            ),
            ("SELECT CONVERT(v, DEC(5, 2))", vec!["convert"]),
            ("SELECT SQL_NO_CACHE (1)", vec![]),
            (
                "SELECT v LIKE 'a' ESCAPE ('|') AND v MEMBER OF ('[1]')",
                vec![],
            ),
            ("SELECT MATCH (a) AGAINST ('b')", vec![]),
        ] {
            assert_eq!(called(sql), Ok(functions), "{sql}");
        }
    }

    #[test]
    fn what_may_be_a_call_is_refused() {
        for sql in [
            "SELECT f(1)",
            "SELECT f (1)",
            "SELECT `f`(1)",
            "SELECT `count`(1)",
            "SELECT s.count(1)",
            "SELECT s.in(1)",
            "SELECT 1, f(1) FROM t",
            "SELECT 1 FROM t x (a)",
            "SELECT lateral((SELECT 1))",
            "SELECT 1, lateral(1)",
            "SELECT 1, json_table(1)",
            "SELECT 1, json_table((SELECT a FROM JSON_TABLE('1', '$' COLUMNS (a INT PATH '$')) j))",
            "SELECT columns(1)",
            "SELECT v = sql_no_cache (1)",
            "SELECT of(1)",
            "SELECT v = escape(1)",
            "INSERT INTO t SELECT f(1)",
            "INSERT INTO t SET a = t(1)",
            "UPDATE t SET v = f(1)",
            "SELECT 1 UNION f(1)",
        ] {
            assert!(called(sql).is_err(), "{sql}");
        }
    }
}
