//! What the allow-list lets through: one statement of a kind that is allowed, which says to the
//! server what it said to those who judged it, whatever is bound to it.

use std::sync::Arc;

use concord_participant::migrate;
use concord_participant::resource::mysql::functions::{is_allowed, is_dangerous};
use concord_participant::resource::mysql::lexer::{self, Kind, lex};
use concord_participant::resource::mysql::sql::{Judge, Judged, StatementKind, judge};
use concord_proto::model::Value;
use concord_proto::v1;
use sqlparser::ast::{SetExpr, Statement};
use sqlparser::dialect::MySqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token as Parsed, Tokenizer};

use super::server_lexer::{MODES, Token, cut, joined};
use super::values;
use super::vocabulary;

/// The target: text.
pub fn text(data: &[u8]) {
    if let Ok(sql) = std::str::from_utf8(data) {
        classify(sql);
    }
}

/// The target: each byte is a word, so that a fuzzer spends no time on spelling. A byte beyond the
/// vocabulary joins its neighbours without a space.
pub fn words(data: &[u8]) {
    classify(&sentence(data));
}

/// The text that bytes mean to [`words`].
pub fn sentence(data: &[u8]) -> String {
    let mut sql = String::new();
    let mut joined = true;
    for byte in data {
        match vocabulary::SQL.get(usize::from(*byte)) {
            Some(word) => {
                if !joined {
                    sql.push(' ');
                }
                sql.push_str(word);
                joined = false;
            }
            None => joined = true,
        }
    }
    sql
}

/// The target: a change of tables. There is nothing to bind, so only its form is looked at.
pub fn migration(data: &[u8]) {
    let Ok(sql) = std::str::from_utf8(data) else {
        return;
    };
    let plan = migrate::check(v1::MigrateRequest {
        schema: "concord_bank".into(),
        migrations: vec![v1::Migration {
            version: 1,
            statements: vec![sql.to_owned()],
        }],
    });
    if plan.is_err() {
        return;
    }
    let tokens = same_in_every_mode(sql);
    let head = [tokens.first(), tokens.get(1)];
    let [Some(first), Some(_)] = head else {
        panic!("{sql:?} is nothing")
    };
    assert!(first.is("CREATE") || first.is("ALTER"), "{sql:?}");
    for (index, token) in tokens.iter().enumerate() {
        let next = tokens.get(index + 2);
        let names_table = (token.is("TABLE") && index == 1)
            // Of an index it is the index's own name.
            || (token.is("EXISTS") && index == 4 && tokens[1].is("TABLE"))
            // After a column; elsewhere it is a name, which servers refuse.
            || (token.is("REFERENCES")
                && !matches!(tokens[index.saturating_sub(1)], Token::Symbol('(' | ','))
                && matches!(next, Some(Token::Symbol('.' | '('))));
        let Some(named) = tokens.get(index + 1).and_then(Token::name) else {
            continue;
        };
        if !names_table {
            continue;
        }
        let fine = named == "concord_bank" && next == Some(&Token::Symbol('.'));
        assert!(
            fine || named.eq_ignore_ascii_case("IF"),
            "{sql:?} names {named}"
        );
    }
    // Where a server takes what stands in parentheses, or after the columns, for a query.
    for pair in tokens.windows(2) {
        let begins = matches!(pair[0], Token::Symbol('(' | ')')) || pair[0].is("AS");
        let query = ["SELECT", "TABLE", "VALUES", "WITH"]
            .iter()
            .any(|word| pair[1].is(word));
        assert!(!(begins && query), "{sql:?} reads");
    }
}

/// Judges a statement, and holds what passed against everything that can be said of it.
pub fn classify(sql: &str) {
    match judge(sql) {
        Err(why) => assert!(!why.is_empty(), "{sql:?} is refused without a word"),
        Ok(judged) => {
            admitted(sql, &judged);
            let shared: Arc<str> = sql.into();
            let judge = Judge::default();
            let in_branch = judge.judge(&shared);
            assert_eq!(
                in_branch.is_err(),
                judged.internal,
                "{sql:?}: {in_branch:?}"
            );
            let read = judge.judge_read(&shared).is_ok();
            let plain = judged.kind == StatementKind::Select { locking: false };
            assert_eq!(read, plain, "{sql:?} outside of a branch");
        }
    }
}

/// Values that would do harm if they could.
pub fn hostile(number: usize) -> Value {
    let text = [
        "'; XA COMMIT x'00' -- ",
        "\\",
        "\\'; DROP TABLE t; -- ",
        "\u{0}'\"`\u{1a}\n",
        "*/ /*! ; */",
        "\u{2019}\u{ff07} \u{1f600}",
    ];
    match number % 8 {
        0 => Value::String(text[number / 8 % text.len()].into()),
        1 => Value::Int(i64::MIN),
        2 => Value::Double(-1e-300),
        3 => Value::Bytes(vec![0xbf, b'\'', 0x5c, 0xe5, 0x5c, b'\'']),
        4 => Value::Decimal("-0.50".into()),
        5 => Value::DateTime("2024-01-01 00:00:00.5".into()),
        6 => Value::Null,
        _ => Value::UInt(u64::MAX),
    }
}

fn admitted(sql: &str, judged: &Judged) {
    let tokens = lex(sql).unwrap_or_else(|why| panic!("{sql:?} passed and is no text: {why}"));
    let holes = tokens
        .iter()
        .filter(|token| token.kind == Kind::Placeholder)
        .count();
    assert_eq!(holes, judged.params(), "{sql:?}: placeholders");
    let canonical = canonical(&tokens);
    assert_eq!(parsers_holes(&canonical), holes, "{canonical:?}");
    let again = judge(&canonical).unwrap_or_else(|why| panic!("{canonical:?} of {sql:?}: {why}"));
    assert_eq!(again, *judged, "{sql:?} and {canonical:?}");
    for turn in 0..3 {
        let params: Vec<Value> = (0..holes)
            .map(|hole| hostile(hole * 7 + turn * 11))
            .collect();
        let mut bound = String::new();
        judged
            .push_to(&mut bound, &params)
            .unwrap_or_else(|why| panic!("{sql:?} with {params:?}: {why}"));
        let server = same_in_every_mode(&bound);
        assert_meant(&tokens, &params, &server, &bound);
        if turn == 0 {
            assert_allowed(&bound, &server, judged);
            assert_one(&canonical, judged.kind);
        }
    }
}

/// The statement as it is written back, with its placeholders.
fn canonical(tokens: &[lexer::Token<'_>]) -> String {
    let mut text = String::new();
    for token in tokens {
        if token.spaced && !text.is_empty() {
            text.push(' ');
        }
        token.push_to(&mut text);
    }
    text
}

fn parsers_holes(text: &str) -> usize {
    let tokens = Tokenizer::new(&MySqlDialect {}, text)
        .tokenize()
        .unwrap_or_else(|error| panic!("{text:?}: {error}"));
    tokens
        .iter()
        .filter(|token| matches!(token, Parsed::Placeholder(_)))
        .count()
}

fn same_in_every_mode(text: &str) -> Vec<Token> {
    let mut cuts = MODES
        .map(|mode| cut(text, mode).unwrap_or_else(|why| panic!("{text:?} in {mode:?} has {why}")));
    for other in &cuts[1..] {
        assert_eq!(cuts[0], *other, "{text:?} is read in two ways");
    }
    std::mem::take(&mut cuts[0])
}

/// The server sees the tokens that were judged, and in the place of each placeholder its value.
fn assert_meant(judged: &[lexer::Token<'_>], params: &[Value], server: &[Token], bound: &str) {
    let mut rest = server;
    let mut params = params.iter();
    for (index, token) in judged.iter().enumerate() {
        if token.kind == Kind::Placeholder {
            let value = params.next().expect("as many as there are placeholders");
            let length = (1..=4.min(rest.len()))
                .find(|length| values::says(&rest[..*length], value))
                .unwrap_or_else(|| panic!("{bound:?}: value {index} is not {value:?}"));
            rest = &rest[length..];
            continue;
        }
        for expected in as_server_has_it(token) {
            let (found, after) = rest
                .split_first()
                .unwrap_or_else(|| panic!("{bound:?} ends before {expected:?}"));
            assert_eq!(*found, expected, "{bound:?}, token {index}");
            rest = after;
        }
    }
    assert!(rest.is_empty(), "{bound:?} goes on with {rest:?}");
}

fn as_server_has_it(token: &lexer::Token<'_>) -> Vec<Token> {
    let text = token.text;
    match token.kind {
        Kind::Word => vec![Token::Word(text.into())],
        Kind::Quoted => vec![Token::Name(text.replace("``", "`"))],
        Kind::Text => vec![Token::Text(text.replace("''", "'").into_bytes())],
        Kind::Number => vec![Token::Number(text.into())],
        Kind::Hex => {
            let bytes = (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("whole bytes"));
            vec![Token::Hex(bytes.collect())]
        }
        Kind::Bit => vec![Token::Bit(text.into())],
        Kind::Symbol => text.chars().map(Token::Symbol).collect(),
        Kind::Placeholder => Vec::new(),
    }
}

/// The parser sees exactly one statement, of the kind that was said.
fn assert_one(canonical: &str, kind: StatementKind) {
    // It does not know MariaDB's word for FOR SHARE.
    const SHARED: &str = "LOCK IN SHARE MODE";
    let split = canonical.len().saturating_sub(SHARED.len());
    let text = match canonical.split_at_checked(split) {
        Some((before, after)) if after.eq_ignore_ascii_case(SHARED) => before,
        _ => canonical,
    };
    let mut parser = Parser::new(&MySqlDialect {})
        .with_recursion_limit(64)
        .try_with_sql(text)
        .unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let statement = parser
        .parse_statement()
        .unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let rest = &parser.peek_token_ref().token;
    assert_eq!(*rest, Parsed::EOF, "{text:?} goes on");
    let fits = match &statement {
        Statement::Query(query) => {
            matches!(kind, StatementKind::Select { .. })
                && !matches!(
                    *query.body,
                    SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_)
                )
        }
        Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) => {
            kind == StatementKind::Write
        }
        _ => false,
    };
    assert!(fits, "{text:?} was taken for {kind:?}: {statement:?}");
}

/// Words that may stand before a parenthesis without calling anything, on both servers.
#[rustfmt::skip]
const BEFORE_PARENTHESIS: &[&str] = &[
    "ALL", "AND", "ANY", "AS", "BETWEEN", "BINARY", "BY", "CASE", "COLUMNS", "CROSS", "DISTINCT",
    "DISTINCTROW", "DIV", "ELSE", "ESCAPE", "EXCEPT", "EXISTS", "FETCH", "FOR", "FROM", "HAVING",
    "IN", "INDEX", "INNER", "INTERSECT", "INTO", "IS", "JOIN", "KEY", "LATERAL", "LIKE", "LIMIT",
    "NOT", "OF", "OFFSET", "ON", "OR", "OVER", "PARTITION", "REGEXP", "RLIKE", "ROW", "SELECT",
    "SET", "SOME", "STRAIGHT_JOIN", "THEN", "UNION", "UPDATE", "USING", "WHEN", "WHERE", "XOR",
    "JSON_TABLE", "MATCH", "AGAINST", "GROUPING", "SEPARATOR", "MEMBER", "HIGH_PRIORITY",
    "SQL_BIG_RESULT", "SQL_BUFFER_RESULT", "SQL_CALC_FOUND_ROWS", "SQL_NO_CACHE",
    "SQL_SMALL_RESULT",
    // Types in a CAST or a CONVERT, and of JSON_TABLE.
    "CHAR", "CHARACTER", "NCHAR", "VARCHAR", "VARBINARY", "DECIMAL", "NUMERIC", "FLOAT", "DOUBLE",
    "REAL", "TIME", "DATETIME", "TIMESTAMP", "YEAR", "BIT", "INT", "INTEGER", "BIGINT", "SMALLINT",
    "TINYINT", "MEDIUMINT", "SIGNED", "UNSIGNED", "ENUM", "BLOB", "TEXT", "INET4", "INET6",
];

/// Nothing that the server may take for a call of a function that is not on the list, no second
/// statement, no schema that is protected.
fn assert_allowed(bound: &str, tokens: &[Token], judged: &Judged) {
    let protected: &[&str] = if judged.internal {
        &["mysql", "performance_schema", "sys"]
    } else {
        &["mysql", "performance_schema", "sys", "concord"]
    };
    let joined = joined(bound, MODES[0]).unwrap_or_else(|why| panic!("{bound:?} has {why}"));
    for (index, token) in tokens.iter().enumerate() {
        let Some(name) = token.name() else { continue };
        match tokens.get(index + 1) {
            Some(Token::Symbol('.')) => assert!(
                !protected
                    .iter()
                    .any(|schema| schema.eq_ignore_ascii_case(name)),
                "{bound:?} names {name}"
            ),
            Some(Token::Symbol('(')) => {
                assert!(!is_dangerous(name), "{bound:?} calls {name}");
                // After a period even a reserved word is a name.
                let after_period = index > 0 && tokens[index - 1] == Token::Symbol('.');
                let plain = matches!(token, Token::Word(_));
                // In backticks, or apart from its parenthesis, no server has it of its own.
                let own = plain && !after_period && joined.contains(&index);
                let fine = (own && is_allowed(name))
                    || (plain && is_one_of(name, BEFORE_PARENTHESIS))
                    || (token.is("RETURNING") && judged.returning && !after_period)
                    || is_named_there(tokens, index);
                assert!(fine, "{bound:?} may call {name}");
            }
            _ => {}
        }
    }
    for word in ["OUTFILE", "DUMPFILE", "XA", "CALL", "PROCEDURE", "HANDLER"] {
        assert!(!tokens.iter().any(|token| token.is(word)), "{bound:?}");
    }
}

fn is_one_of(name: &str, words: &[&str]) -> bool {
    words.iter().any(|word| word.eq_ignore_ascii_case(name))
}

/// Whether the name before a parenthesis is given or used as that of a table, an alias or a window
/// rather than called: after INTO, AS, WITH and the like, or after the table or derived table that
/// it is another name of; or before `) AS (`, as the second of two common table expressions.
fn is_named_there(tokens: &[Token], index: usize) -> bool {
    let before = index.checked_sub(1).map(|at| &tokens[at]);
    let after_table = match before {
        Some(Token::Name(_) | Token::Symbol(')')) => true,
        Some(Token::Word(word)) => {
            let names_next = [
                "INTO",
                "AS",
                "WITH",
                "RECURSIVE",
                "WINDOW",
                "IGNORE",
                "INSERT",
            ];
            is_one_of(word, &names_next)
                || is_one_of(word, &["REPLACE", "LOW_PRIORITY", "HIGH_PRIORITY"])
                || !is_one_of(word, BEFORE_PARENTHESIS)
        }
        // The second part of a table's name: a stored function of a schema is looked for here.
        Some(Token::Symbol('.')) => {
            let into = index.checked_sub(3).map(|at| &tokens[at]);
            into.is_some_and(|token| {
                ["INTO", "INSERT", "REPLACE", "IGNORE"]
                    .iter()
                    .any(|word| token.is(word))
            })
        }
        _ => false,
    };
    after_table || closes_before_as(&tokens[index + 1..])
}

fn closes_before_as(tokens: &[Token]) -> bool {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token {
            Token::Symbol('(') => depth += 1,
            Token::Symbol(')') if depth == 1 => {
                return tokens.get(index + 1).is_some_and(|next| next.is("AS"))
                    && tokens.get(index + 2) == Some(&Token::Symbol('('));
            }
            Token::Symbol(')') => depth -= 1,
            _ => {}
        }
    }
    false
}
