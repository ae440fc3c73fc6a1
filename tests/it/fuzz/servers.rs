//! The real servers read what is written for them as it was meant: literals of every kind in every
//! `sql_mode`, statements that were let through within a branch, and xids of anybody.

use std::time::Duration;

use concord_client::local::server::{ServerBinary, ServerKind};
use concord_core::id::{Bqual, BranchId, Gtrid};
use concord_participant::resource::conformance::Harness as _;
use concord_participant::resource::mysql::literal::push_literal;
use concord_participant::resource::mysql::sql::judge;
use concord_participant::resource::mysql::xa::{FORMAT_ID, Xids, hex};
use concord_participant::resource::{Finished, Prepared, ResourceManager as _};
use concord_proto::model::{Statement, Value};
use concord_proto::v1::value::Kind;
use concord_tests::fuzz::{corpus, grammar, mutate, sql, vocabulary};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::mysql::MySqlConnection;

use super::seed;
use crate::conformance::types::work;
use crate::conformance::{Real, text};

/// Modes that change how text is read, or what is made of a value.
const MODES: &[&str] = &[
    "",
    "NO_BACKSLASH_ESCAPES",
    "ANSI_QUOTES,PIPES_AS_CONCAT",
    "TRADITIONAL",
    "ANSI,NO_BACKSLASH_ESCAPES,IGNORE_SPACE,HIGH_NOT_PRECEDENCE,NO_UNSIGNED_SUBTRACTION",
];
/// MariaDB's own, which change its grammar.
const MARIADB_MODES: &[&str] = &["ORACLE", "MSSQL"];
/// Values that are read back in each mode.
const VALUES: usize = 300;
/// Statements that are run in a branch of each server.
const STATEMENTS: usize = 1_500;
/// Longest time of one of them.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

async fn on(kind: ServerKind, proof: impl AsyncFn(&Real, ServerKind, &mut SmallRng)) {
    let found = ServerBinary::under_test().expect("the servers under test");
    let Some(binary) = found.into_iter().find(|binary| binary.kind() == kind) else {
        eprintln!("SKIPPED: no {kind} here");
        return;
    };
    let seed = seed().expect("a seed");
    println!("{kind} {}, seed {seed}", binary.version());
    let real = Real::start(binary).await;
    proof(&real, kind, &mut SmallRng::seed_from_u64(seed)).await;
}

fn modes(kind: ServerKind) -> Vec<&'static str> {
    let own = match kind {
        ServerKind::Mysql => &[][..],
        ServerKind::Mariadb => MARIADB_MODES,
    };
    MODES.iter().chain(own).copied().collect()
}

/// What a literal is asked for, so that the answer can be told exactly.
fn question(value: &Value, literal: &str) -> String {
    match value {
        Value::String(_) | Value::Bytes(_) => {
            format!("CONCAT(HEX({literal}), CHARSET({literal}))")
        }
        Value::Null => format!("({literal} IS NULL)"),
        Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Decimal(_) => {
            format!("CAST({literal} AS CHAR)")
        }
        Value::Double(_) => literal.to_owned(),
        Value::Date(_) | Value::Time(_) | Value::DateTime(_) => format!("CAST({literal} AS CHAR)"),
    }
}

fn is_answer(value: &Value, answer: &str) -> bool {
    match value {
        Value::String(text) => answer == format!("{}utf8mb4", hex(text.as_bytes()).to_uppercase()),
        Value::Bytes(bytes) => answer == format!("{}binary", hex(bytes).to_uppercase()),
        Value::Null => answer == "1",
        Value::Bool(value) => answer == u8::from(*value).to_string(),
        Value::Int(int) => answer == int.to_string(),
        Value::UInt(int) => answer == int.to_string(),
        Value::Double(double) => answer
            .parse()
            .is_ok_and(|read: f64| (read - *double).abs() <= 0.0),
        Value::Decimal(decimal) => plain(answer) == plain(decimal),
        Value::Date(text) | Value::DateTime(text) => answer == text,
        Value::Time(text) => {
            // There is no negative zero.
            let is_zero = !text.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
            answer == text || (is_zero && answer == text.trim_start_matches('-'))
        }
    }
}

/// A decimal without zeros before it, and without a sign when it is zero.
fn plain(decimal: &str) -> String {
    let (sign, digits) = match decimal.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", decimal),
    };
    let digits = digits.trim_start_matches('0');
    let whole = if digits.is_empty() || digits.starts_with('.') {
        format!("0{digits}")
    } else {
        digits.to_owned()
    };
    let is_zero = whole.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    format!("{}{whole}", if is_zero { "" } else { sign })
}

async fn literals_are_read_back(real: &Real, kind: ServerKind, rng: &mut SmallRng) {
    let mut root = real.root().await;
    for mode in modes(kind) {
        let settings = format!("SET NAMES utf8mb4; SET SESSION sql_mode = '{mode}'");
        text(&mut root, &settings).await.expect("a mode");
        for _ in 0..VALUES / 20 {
            let values: Vec<Value> = (0..20).map(|_| grammar::value(rng)).collect();
            let mut questions = Vec::new();
            for value in &values {
                let mut literal = String::new();
                push_literal(&mut literal, value).expect("a value of the door");
                questions.push(question(value, &literal));
            }
            let sql = format!("SELECT {}", questions.join(", "));
            let rows = text(&mut root, &sql)
                .await
                .unwrap_or_else(|error| panic!("{mode}: {error}: {sql}"));
            assert_eq!(rows.len(), 1, "{mode}: {sql}");
            for (value, answer) in values.iter().zip(&rows[0]) {
                let answer = answer.as_deref().unwrap_or("NULL");
                assert!(
                    is_answer(value, answer),
                    "{mode}: {value:?} came back as {answer:?}"
                );
            }
        }
    }
}

fn fresh() -> BranchId {
    BranchId {
        gtrid: Gtrid(*uuid::Uuid::now_v7().as_bytes()),
        bqual: Bqual(1),
    }
}

/// Through the participant, prepared and committed: what was stored is what was bound.
async fn branches_store_what_was_bound(real: &Real, kind: ServerKind, rng: &mut SmallRng) {
    real.sql(
        "CREATE DATABASE fuzzed; CREATE TABLE fuzzed.kept (id INT PRIMARY KEY, \
         s VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, \
         b VARBINARY(300) NOT NULL) ENGINE=InnoDB",
    )
    .await;
    let mut id = 0;
    for mode in modes(kind) {
        real.sql(&format!("SET GLOBAL sql_mode = '{mode}'")).await;
        let rm = real.open().await;
        let mut statements = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..40 {
            id += 1;
            let (text, bytes) = (grammar::hostile(rng), grammar::hostile(rng).into_bytes());
            let params = vec![
                Value::Int(id),
                Value::String(text.clone()),
                Value::Bytes(bytes.clone()),
            ];
            statements.push(Statement {
                sql: "INSERT INTO fuzzed.kept (id, s, b) VALUES (?, ?, ?)".into(),
                params,
                expect: None,
            });
            expected.push((id, text, bytes));
        }
        let branch = fresh();
        let prepared = rm.prepare(branch, Some(&work(statements))).await;
        assert!(
            matches!(prepared, Prepared::Prepared { .. }),
            "{mode}: {prepared:?}"
        );
        assert_eq!(rm.commit(branch).await, Finished::Done, "{mode}");
        for (id, text, bytes) in expected {
            let by_both = Statement {
                sql: "SELECT s, b FROM fuzzed.kept WHERE id = ? AND s = ? AND b = ?".into(),
                params: vec![
                    Value::Int(id),
                    Value::String(text.clone()),
                    Value::Bytes(bytes.clone()),
                ],
                expect: None,
            };
            let read = rm.query(&by_both, Duration::from_secs(5)).await;
            let read = read.unwrap_or_else(|why| panic!("{mode}: {why}"));
            assert_eq!(read.rows, 1, "{mode}: {text:?} was not found");
            let kinds: Vec<_> = read.result[0]
                .values
                .iter()
                .map(|value| &value.kind)
                .collect();
            assert_eq!(
                kinds,
                [&Some(Kind::String(text)), &Some(Kind::Bytes(bytes))],
                "{mode}"
            );
        }
        rm.stop().await;
    }
}

/// Statements that mean something, those of the corpus, and mutations of both.
fn admitted(rng: &mut SmallRng) -> Vec<(String, Vec<Value>)> {
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for (_, bytes) in corpus("sql").expect("a corpus") {
        seeds.push(bytes);
    }
    for (_, bytes) in corpus("sql_words").expect("a corpus") {
        seeds.push(sql::sentence(&bytes).into_bytes());
    }
    let mut passed = Vec::new();
    while passed.len() < STATEMENTS {
        let (statement, params) = grammar::statement(rng);
        let (statement, params) = match rng.random_range(0..3) {
            0 => (statement, Some(params)),
            1 => {
                let bytes = mutate::next(rng, &[statement.into_bytes()], vocabulary::SQL, 800);
                (String::from_utf8_lossy(&bytes).into_owned(), None)
            }
            _ => {
                let bytes = mutate::next(rng, &seeds, vocabulary::SQL, 800);
                (String::from_utf8_lossy(&bytes).into_owned(), None)
            }
        };
        let Ok(judged) = judge(&statement) else {
            continue;
        };
        let params = params.filter(|params| params.len() == judged.params());
        let params =
            params.unwrap_or_else(|| (0..judged.params()).map(|_| grammar::value(rng)).collect());
        let mut bound = String::new();
        judged.push_to(&mut bound, &params).expect("as many values");
        passed.push((bound, params));
    }
    passed
}

/// Nothing that is let through ends its branch or leaves anything behind: our own XA END returns
/// OK, and after the rollback everything is as it was.
async fn admitted_statements_stay_in_their_branch(
    real: &Real,
    _kind: ServerKind,
    rng: &mut SmallRng,
) {
    let mut root = real.root().await;
    let schema = "CREATE DATABASE fuzzed; USE fuzzed; \
                  CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT NOT NULL) ENGINE=InnoDB; \
                  CREATE TABLE u (k BIGINT PRIMARY KEY, v BIGINT NOT NULL) ENGINE=InnoDB; \
                  INSERT INTO t VALUES (1, 10), (2, 20), (3, 30); \
                  INSERT INTO u VALUES (1, 11), (2, 21); \
                  CREATE FUNCTION f(a INT) RETURNS INT DETERMINISTIC NO SQL RETURN a";
    text(&mut root, schema).await.expect("tables");
    let before = everything(&mut root).await;
    let (mut worked, mut refused) = (0, 0);
    for (number, (bound, _)) in admitted(rng).into_iter().enumerate() {
        let xid = format!("'fuzz{number}','b',7");
        text(&mut root, &format!("XA START {xid}"))
            .await
            .expect("a branch");
        let ran = tokio::time::timeout(STATEMENT_TIMEOUT, text(&mut root, &bound)).await;
        match ran.unwrap_or_else(|_| panic!("{bound}: it runs for {STATEMENT_TIMEOUT:?}")) {
            Ok(_) => worked += 1,
            Err(sqlx::Error::Database(_)) => refused += 1,
            Err(error) => panic!("{bound}: {error}"),
        }
        for verb in ["XA END", "XA ROLLBACK"] {
            text(&mut root, &format!("{verb} {xid}"))
                .await
                .unwrap_or_else(|error| panic!("{verb} after {bound}: {error}"));
        }
    }
    assert_eq!(
        everything(&mut root).await,
        before,
        "something was left behind"
    );
    assert!(worked > STATEMENTS / 10, "{worked} statements worked");
    assert!(
        refused > STATEMENTS / 20,
        "{refused} statements were refused"
    );
    println!("{worked} statements worked, {refused} were refused by the server");
}

async fn everything(root: &mut MySqlConnection) -> Vec<Vec<Option<String>>> {
    let all = "SELECT 't', k, v FROM fuzzed.t UNION ALL SELECT 'u', k, v FROM fuzzed.u \
               ORDER BY 1, 2";
    text(root, all).await.expect("the tables")
}

/// Prepared branches of others, with names that look like ours or like nothing, are counted and
/// never taken for ours; ours is found among them.
async fn xids_of_others_are_foreign(real: &Real, kind: ServerKind, rng: &mut SmallRng) {
    let xids = Xids::new("conformance");
    let own = fresh();
    let gtrid = |prefix: &[u8]| [prefix, &own.gtrid.0[..]].concat();
    let ours = gtrid(b"\x0bconformance");
    let mut foreign: Vec<(Vec<u8>, Vec<u8>, u32)> = vec![
        (ours.clone(), vec![0, 0, 0, 0], FORMAT_ID),
        (ours.clone(), vec![0, 0, 0, 65], FORMAT_ID),
        // With other bytes than ours: both servers compare xids without their format ids.
        (
            [b"\x0bconformance", &fresh().gtrid.0[..]].concat(),
            vec![0, 0, 0, 1],
            7,
        ),
        (ours.clone(), b"\0\0\0\x01\0".to_vec(), FORMAT_ID),
        (ours.clone(), Vec::new(), FORMAT_ID),
        (gtrid(b"\x0bconformancf"), vec![0, 0, 0, 1], FORMAT_ID),
        (gtrid(b"\x0aconformanc"), vec![0, 0, 0, 1], FORMAT_ID),
        (b"0x0b".to_vec(), b"0x01".to_vec(), FORMAT_ID),
        (vec![0; 64], vec![0xff; 64], FORMAT_ID),
        (vec![0xff; 64], Vec::new(), 1),
    ];
    for _ in 0..10 {
        let mut part = |limit: usize| -> Vec<u8> {
            (0..rng.random_range(1..=limit))
                .map(|_| rng.random())
                .collect()
        };
        let (gtrid, bqual) = (part(64), part(64));
        let format = rng.random_range(1..0x7fff_ffff);
        foreign.push((gtrid, bqual, format));
    }
    let mut connections = Vec::new();
    let key = "INSERT INTO conformance.t (k, v) VALUES";
    let key = key.replace(
        "conformance.t",
        concord_participant::resource::conformance::TABLE,
    );
    for (number, (gtrid, bqual, format)) in foreign.iter().enumerate() {
        let xid = format!("x'{}',x'{}',{format}", hex(gtrid), hex(bqual));
        let sql =
            format!("XA START {xid}; {key} ('foreign{number}', 1); XA END {xid}; XA PREPARE {xid}");
        let mut root = real.root().await;
        text(&mut root, &sql)
            .await
            .unwrap_or_else(|error| panic!("{kind}: {xid}: {error}"));
        connections.push((root, xid));
    }
    let rm = real.open().await;
    let insert = Statement {
        sql: format!("{key} (?, ?)").into(),
        params: vec![Value::String("ours".into()), Value::Int(1)],
        expect: None,
    };
    let prepared = rm.prepare(own, Some(&work(vec![insert]))).await;
    assert!(
        matches!(prepared, Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    let found = rm.recover().await.expect("a list");
    assert_eq!(found.ours, [own], "{}", xids.text(own));
    assert_eq!(found.foreign as usize, foreign.len());
    assert_eq!(rm.rollback(own).await, Finished::Done);
    let found = rm.recover().await.expect("a list");
    assert_eq!(
        (found.ours.len(), found.foreign as usize),
        (0, foreign.len())
    );
    for (mut root, xid) in connections {
        text(&mut root, &format!("XA ROLLBACK {xid}"))
            .await
            .unwrap_or_else(|error| panic!("{xid} was touched: {error}"));
    }
}

macro_rules! on_both {
    ($($mysql:ident, $mariadb:ident: $proof:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $mysql() {
                on(ServerKind::Mysql, $proof).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn $mariadb() {
                on(ServerKind::Mariadb, $proof).await;
            }
        )*
    };
}

on_both! {
    mysql_reads_literals_back, mariadb_reads_literals_back: literals_are_read_back;
    mysql_stores_what_was_bound, mariadb_stores_what_was_bound: branches_store_what_was_bound;
    mysql_keeps_statements_in_their_branch, mariadb_keeps_statements_in_their_branch:
        admitted_statements_stay_in_their_branch;
    mysql_tells_xids_of_others, mariadb_tells_xids_of_others: xids_of_others_are_foreign;
}
