//! Which SQL a client may run: a fail-closed allow-list.
//!
//! One statement of SELECT, INSERT, UPDATE, DELETE or REPLACE. Inside a branch both servers would
//! run `XA END; XA COMMIT … ONE PHASE` on a client's word, so text goes to the server only as the
//! tokens that were judged here ([`super::lexer`]), with values as literals ([`super::literal`]).
//! What the parser does not understand is refused, with its words.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use concord_core::limits::SQL_BYTES_MAX;
use concord_core::reason::{Reason, code};
use concord_proto::model::Value;
use lru::LruCache;
use sqlparser::ast::{
    Delete, Distinct, Expr, Insert, OnInsert, Query, Select, SelectFlavor, SetExpr,
    Statement as Ast, TableFactor, TableObject, Update, Visit, Visitor,
};

use super::calls;
use super::expressions::{check_columns, check_expr, is_last_insert_id, stop};
use super::lexer::{Kind, Token, lex};
use super::literal::push_literal;
use super::parse::parse_whole;
use super::preflight::{Facts, Flavor};
use super::tables::{Table, written};

/// Statements whose judgement is remembered: an application has some hundreds of texts.
const CACHE_ENTRIES: NonZeroUsize = NonZeroUsize::new(1_024).unwrap();
/// Longest text that is remembered, in bytes, so that the cache stays below 32 MiB.
const CACHED_SQL_BYTES_MAX: usize = 8 << 10;

/// Schemas that no statement of a branch may name.
const PROTECTED: &[&str] = &["concord", "mysql", "performance_schema", "sys"];

/// Tables of `information_schema` that may be read: those that describe tables. Others show what
/// other sessions do, or, as innodb_trx does, are a copy that frequent readers keep from being
/// renewed: branches that wait for such a look would not end.
const DICTIONARY: &[&str] = &[
    "CHARACTER_SETS",
    "CHECK_CONSTRAINTS",
    "COLLATIONS",
    "COLUMNS",
    "KEY_COLUMN_USAGE",
    "PARTITIONS",
    "REFERENTIAL_CONSTRAINTS",
    "SCHEMATA",
    "STATISTICS",
    "TABLES",
    "TABLE_CONSTRAINTS",
    "VIEWS",
];

/// Words that a statement may begin with; a parenthesis may come before a SELECT.
const FIRST_WORDS: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH"];

/// Words that begin something that is not allowed, wherever they stand without backticks.
const REFUSED_WORDS: &[&str] = &[
    "CALL",
    "DEALLOCATE",
    "DELAYED",
    "DUMPFILE",
    "EXECUTE",
    "HANDLER",
    "LOAD",
    "OUTFILE",
    "PREPARE",
    "PROCEDURE",
    "XA",
];

/// What a statement does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementKind {
    /// A SELECT. One that locks rows keeps its branch from leaving early.
    Select {
        /// FOR UPDATE, FOR SHARE or LOCK IN SHARE MODE.
        locking: bool,
    },
    /// INSERT, UPDATE, DELETE or REPLACE.
    Write,
}

/// A statement that passed.
#[derive(Debug, PartialEq, Eq)]
pub struct Judged {
    /// What it does.
    pub kind: StatementKind,
    /// Whether it names a schema that only reads outside branches may name.
    pub internal: bool,
    /// Tables that it may write to.
    pub written: Vec<Table>,
    /// Whether it is a write with the word RETURNING, without backticks. What follows the word is
    /// never a call on MariaDB, which reserves it. MySQL has no such clause, and [`check_server`]
    /// refuses it there.
    pub returning: bool,
    /// The functions that it calls, all of them on the list.
    pub calls: Vec<&'static str>,
    /// Whether it reads LAST_INSERT_ID(), which the session keeps from whoever had it before.
    pub last_insert_id: bool,
    /// Its text between the placeholders: one piece more than there are values.
    pieces: Vec<String>,
}

impl Judged {
    /// Whether it returns rows: a SELECT, or a write with RETURNING.
    pub fn returns_rows(&self) -> bool {
        self.returning || matches!(self.kind, StatementKind::Select { .. })
    }

    /// Number of values that it needs.
    pub fn params(&self) -> usize {
        self.pieces.len() - 1
    }

    /// Appends its text with the values in their places.
    pub fn push_to(&self, sql: &mut String, params: &[Value]) -> Result<(), Reason> {
        if params.len() != self.params() {
            return Err(Reason::new(
                code::STATEMENT_NOT_ALLOWED,
                format!(
                    "the SQL has {} `?` and {} values came",
                    self.params(),
                    params.len()
                ),
            ));
        }
        sql.push_str(&self.pieces[0]);
        for (value, piece) in params.iter().zip(&self.pieces[1..]) {
            push_literal(sql, value)?;
            sql.push_str(piece);
        }
        Ok(())
    }
}

/// Judges statements and remembers the judgement.
#[derive(Debug)]
pub struct Judge {
    cache: Mutex<LruCache<Arc<str>, Arc<Judged>>>,
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            cache: Mutex::new(LruCache::new(CACHE_ENTRIES)),
        }
    }
}

impl Judge {
    /// Judges a statement of a branch.
    pub fn judge(&self, sql: &Arc<str>) -> Result<Arc<Judged>, Reason> {
        let judged = self.judge_any(sql)?;
        if judged.internal {
            return Err(refused(
                "it names a schema that belongs to the server or to Concord",
            ));
        }
        Ok(judged)
    }

    /// Judges a read outside any branch: a SELECT without locks, which may also look at Concord's
    /// own schema.
    pub fn judge_read(&self, sql: &Arc<str>) -> Result<Arc<Judged>, Reason> {
        let judged = self.judge_any(sql)?;
        match judged.kind {
            StatementKind::Select { locking: false } => Ok(judged),
            _ => Err(refused(
                "only a SELECT without locks may run outside a transaction",
            )),
        }
    }

    fn judge_any(&self, sql: &Arc<str>) -> Result<Arc<Judged>, Reason> {
        if let Some(judged) = self.lock().get(sql) {
            return Ok(Arc::clone(judged));
        }
        let judged = Arc::new(judge(sql).map_err(|message| refused(&message))?);
        if sql.len() <= CACHED_SQL_BYTES_MAX {
            self.lock().put(Arc::clone(sql), Arc::clone(&judged));
        }
        Ok(judged)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<Arc<str>, Arc<Judged>>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(message: &str) -> Reason {
    Reason::new(
        code::STATEMENT_NOT_ALLOWED,
        format!("the statement is refused: {message}"),
    )
}

/// Refuses what this server does not know and would take for something else; the index is the
/// statement's.
pub fn check_server(judged: &[Arc<Judged>], facts: &Facts) -> Result<(), (usize, Reason)> {
    for (index, judged) in judged.iter().enumerate() {
        if judged.returning && facts.flavor == Flavor::MySql {
            let why = "MySQL has no RETURNING: SELECT the rows in the same transaction; a column \
                       of that name needs backticks";
            return Err((index, refused(why)));
        }
        let lacking = |name: &&&str| facts.lacking.contains(name);
        if let Some(name) = judged.calls.iter().find(lacking) {
            let version = &facts.version;
            let why = format!("{version} has no function {name} of its own");
            return Err((index, refused(&why)));
        }
    }
    Ok(())
}

/// Judges a statement. The error is a sentence for the client.
pub fn judge(sql: &str) -> Result<Judged, String> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(format!("it has more than {SQL_BYTES_MAX} bytes"));
    }
    let mut tokens = lex(sql)?;
    let first = tokens.first().ok_or("it is empty")?;
    if !FIRST_WORDS.iter().any(|word| first.is_word(word)) && !first.is_symbol("(") {
        return Err("only SELECT, INSERT, UPDATE, DELETE and REPLACE are allowed".into());
    }
    check_tokens(&tokens)?;
    let calls = calls::check(&mut tokens)?;
    let share_mode = ends_in_share_mode(&tokens);
    let mut checker = walk(&write(&for_parser(&tokens, share_mode)?))?;
    if share_mode {
        // `LOCK IN SHARE MODE` is MariaDB's word for FOR SHARE; the parser does not know it.
        match &mut checker.kind {
            Some(StatementKind::Select { locking }) => *locking = true,
            _ => return Err("LOCK IN SHARE MODE belongs to a SELECT".into()),
        }
    }
    let kind = checker.kind.ok_or("it is empty")?;
    let internal = names_schema(&tokens, PROTECTED);
    let write_to_dictionary = kind == StatementKind::Write
        && (internal || names_schema(&tokens, &["information_schema"]));
    if write_to_dictionary || (internal && !names_only_concord(&tokens)) {
        return Err("it names a schema that belongs to the server or to Concord".into());
    }
    check_dictionary(&tokens)?;
    Ok(Judged {
        kind,
        internal,
        written: checker.written,
        returning: kind == StatementKind::Write
            && tokens.iter().any(|token| token.is_word("RETURNING")),
        calls,
        last_insert_id: checker.last_insert_id,
        pieces: pieces(&tokens),
    })
}

fn check_tokens(tokens: &[Token<'_>]) -> Result<(), String> {
    // With parentheses, which a negative value has too, a server may see a call.
    let may_open = |token: &Token<'_>| token.is_symbol("(") || token.kind == Kind::Placeholder;
    if tokens
        .windows(3)
        .any(|three| three[0].is_word("FETCH") && may_open(&three[2]))
    {
        return Err("FETCH takes a plain number: use LIMIT for a value".into());
    }
    let sequence = |three: &[Token<'_>]| {
        (three[0].is_word("NEXT") || three[0].is_word("PREVIOUS"))
            && three[1].is_word("VALUE")
            && three[2].is_word("FOR")
    };
    if tokens.windows(3).any(sequence) {
        return Err("a sequence cannot roll back what it gave".into());
    }
    for token in tokens {
        if token.kind == Kind::Word
            && REFUSED_WORDS
                .iter()
                .any(|word| token.text.eq_ignore_ascii_case(word))
        {
            let word = token.text;
            return Err(format!(
                "{word} is not allowed; a column of that name needs backticks"
            ));
        }
    }
    Ok(())
}

/// The statement without words that the parser would take for names: what it thinks is written to
/// would be another table.
fn for_parser<'a>(tokens: &[Token<'a>], share_mode: bool) -> Result<Vec<Token<'a>>, String> {
    let mut parsed = tokens.to_vec();
    if share_mode {
        parsed.truncate(tokens.len() - 4);
    }
    if parsed[0].is_word("UPDATE") {
        for word in ["LOW_PRIORITY", "IGNORE"] {
            if parsed.get(1).is_some_and(|token| token.is_word(word)) {
                parsed.remove(1);
            }
        }
    }
    let inserts = ["INSERT", "REPLACE"]
        .iter()
        .any(|word| parsed[0].is_word(word));
    if inserts && parsed.iter().take(5).any(|token| token.is_word("LOCAL")) {
        return Err("LOCAL as a name needs backticks".into());
    }
    Ok(parsed)
}

fn ends_in_share_mode(tokens: &[Token<'_>]) -> bool {
    tokens.len() > 4
        && tokens[tokens.len() - 4..]
            .iter()
            .zip(["LOCK", "IN", "SHARE", "MODE"])
            .all(|(token, word)| token.is_word(word))
}

/// Whether one of these schemas stands before a period.
fn names_schema(tokens: &[Token<'_>], schemas: &[&str]) -> bool {
    tokens.windows(2).any(|pair| {
        pair[0].is_name()
            && pair[1].is_symbol(".")
            && schemas
                .iter()
                .any(|schema| pair[0].text.eq_ignore_ascii_case(schema))
    })
}

fn check_dictionary(tokens: &[Token<'_>]) -> Result<(), String> {
    let named = tokens
        .windows(3)
        .filter(|three| names_schema(&three[..2], &["information_schema"]));
    for table in named.map(|three| three[2].text) {
        if !DICTIONARY
            .iter()
            .any(|known| table.eq_ignore_ascii_case(known))
        {
            return Err(format!("information_schema.{table} is not allowed"));
        }
    }
    Ok(())
}

fn names_only_concord(tokens: &[Token<'_>]) -> bool {
    !names_schema(tokens, &["mysql", "performance_schema", "sys"])
}

fn write(tokens: &[Token<'_>]) -> String {
    let mut text = String::new();
    for token in tokens {
        if token.spaced && !text.is_empty() {
            text.push(' ');
        }
        token.push_to(&mut text);
    }
    text
}

fn pieces(tokens: &[Token<'_>]) -> Vec<String> {
    tokens
        .split(|token| token.kind == Kind::Placeholder)
        .map(write)
        .collect()
}

fn walk(text: &str) -> Result<Checker, String> {
    let statement = parse_whole(text)?;
    let mut checker = Checker {
        kind: None,
        written: written(&statement),
        last_insert_id: false,
    };
    match statement.visit(&mut checker) {
        ControlFlow::Continue(()) => Ok(checker),
        ControlFlow::Break(message) => Err(message),
    }
}

/// Walks the parsed statement and stops at the first thing that is not allowed.
struct Checker {
    kind: Option<StatementKind>,
    written: Vec<Table>,
    last_insert_id: bool,
}

impl Visitor for Checker {
    type Break = String;

    fn pre_visit_statement(&mut self, statement: &Ast) -> ControlFlow<String> {
        if self.kind.is_some() {
            return stop("a statement within a statement");
        }
        let (kind, plain) = match statement {
            Ast::Query(_) => (StatementKind::Select { locking: false }, true),
            Ast::Insert(insert) => (StatementKind::Write, is_plain_insert(insert)),
            Ast::Update(update) => (StatementKind::Write, is_plain_update(update)),
            Ast::Delete(delete) => (StatementKind::Write, is_plain_delete(delete)),
            _ => return stop("only SELECT, INSERT, UPDATE, DELETE and REPLACE are allowed"),
        };
        self.kind = Some(kind);
        if plain {
            ControlFlow::Continue(())
        } else {
            stop("it has a clause that is not allowed")
        }
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<String> {
        if let Some(StatementKind::Select { locking }) = &mut self.kind {
            *locking |= !query.locks.is_empty();
        }
        let plain = query.for_clause.is_none()
            && query.settings.is_none()
            && query.format_clause.is_none()
            && query.pipe_operators.is_empty()
            && is_plain_body(&query.body);
        if plain {
            ControlFlow::Continue(())
        } else {
            stop("it has a clause that is not allowed")
        }
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<String> {
        if select.into.is_some() {
            return stop("SELECT … INTO is not allowed");
        }
        if is_plain_select(select) {
            ControlFlow::Continue(())
        } else {
            stop("it has a clause that is not allowed")
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<String> {
        let plain = match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                version,
                with_ordinality,
                json_path,
                sample,
                ..
            } => {
                name.0.len() <= 2
                    && name.0.iter().all(|part| part.as_ident().is_some())
                    // No server renames a table's columns there. The parser takes the words of
                    // `t JOIN SELECT f (k)` for such names, and not for what they may be.
                    && alias.as_ref().is_none_or(|alias| alias.columns.is_empty())
                    && args.is_none()
                    && version.is_none()
                    && !with_ordinality
                    && json_path.is_none()
                    && sample.is_none()
            }
            TableFactor::Derived { sample, .. } => sample.is_none(),
            TableFactor::JsonTable { columns, .. } => return check_columns(columns),
            TableFactor::NestedJoin { .. } => true,
            _ => false,
        };
        if plain {
            ControlFlow::Continue(())
        } else {
            stop("only tables, subqueries, joins and JSON_TABLE are allowed in FROM")
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<String> {
        if let Expr::Function(function) = expr {
            self.last_insert_id |= is_last_insert_id(function);
        }
        check_expr(expr)
    }
}

/// No clause of other servers, whose words are names here.
fn is_plain_select(select: &Select) -> bool {
    select.optimizer_hints.is_empty()
        && !matches!(select.distinct, Some(Distinct::On(_)))
        && select.top.is_none()
        && select.exclude.is_none()
        && select.lateral_views.is_empty()
        && select.prewhere.is_none()
        && select.connect_by.is_empty()
        && select.cluster_by.is_empty()
        && select.distribute_by.is_empty()
        && select.sort_by.is_empty()
        && select.qualify.is_none()
        && select.value_table_mode.is_none()
        && select.flavor == SelectFlavor::Standard
}

fn is_plain_body(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) => true,
        SetExpr::SetOperation { left, right, .. } => is_plain_body(left) && is_plain_body(right),
        SetExpr::Insert(_)
        | SetExpr::Update(_)
        | SetExpr::Delete(_)
        | SetExpr::Merge(_)
        | SetExpr::Table(_) => false,
    }
}

fn is_plain_insert(insert: &Insert) -> bool {
    matches!(&insert.table, TableObject::TableName(name) if name.0.len() <= 2)
        && insert.or.is_none()
        && !insert.overwrite
        && insert.partitioned.is_none()
        && insert.after_columns.is_empty()
        && !insert.has_table_keyword
        && matches!(insert.on, None | Some(OnInsert::DuplicateKeyUpdate(_)))
        && insert.output.is_none()
        && insert.priority.is_none()
        && insert.settings.is_none()
        && insert.format_clause.is_none()
        && insert.multi_table_insert_type.is_none()
        && insert.multi_table_into_clauses.is_empty()
}

fn is_plain_update(update: &Update) -> bool {
    update.from.is_none() && update.output.is_none() && update.or.is_none()
}

fn is_plain_delete(delete: &Delete) -> bool {
    // MariaDB deletes the history of a table, and not its rows.
    let history = delete
        .tables
        .iter()
        .any(|name| name.to_string().eq_ignore_ascii_case("HISTORY"));
    delete.output.is_none() && !history
}

#[cfg(test)]
#[path = "sql_tests.rs"]
mod tests;
