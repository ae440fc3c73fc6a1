//! What a server takes for a call of a stored function, asked of the server itself: no word that
//! passes for one of its own, no function that the allow-list lets through, and nothing that stands
//! where only a name can.

use anyhow::ensure;
use concord_client::local::binary::ServerKind;
use concord_participant::resource::mysql::calls::keywords;
use concord_participant::resource::mysql::functions::allowed;
use concord_proto::v1::value::Kind;
use sqlx::mysql::{MySqlConnection, MySqlDatabaseError};
use tonic::Code;

use super::transactions::{of, on};
use super::{Refusals, World};

/// It looked for a stored function: there is none, or not with such arguments, and the same after a
/// name that is a function's own only when the parenthesis follows at once.
const LOOKED_FOR: &[u16] = &[1305, 1318, 1370, 1630];
/// What is told when the text is no SQL (1064), or a type is unknown (4161).
const NO_SQL: &[u16] = &[1064, 4161];

/// Places of a name before a parenthesis where a server must not look for a function.
const NAMED: &[&str] = &[
    "SELECT 'x' f(1)",
    "SELECT (1) f(1)",
    "SELECT `n` f(1) FROM canary",
    "SELECT 1 f(1)",
    "SELECT x'41' f(1)",
    "SELECT b'1' f(1)",
    "SELECT 1 AS f(1)",
    "SELECT NULL f(1)",
    "SELECT DATE '2026-01-01' f(1)",
    "SELECT CAST(1 AS f(1))",
    "SELECT n, f(1) AS (1) FROM canary",
    "SELECT 1, f(1) AS (SELECT 1)",
    "SELECT 1 FROM canary WHERE n IN (1) f(1)",
    "SELECT 1 FROM canary GROUP BY n WITH f(1)",
    "SELECT 1 FROM canary PARTITION (p) f(1)",
    "SELECT 1 FROM canary LIMIT 1 f(1)",
    "SELECT 1 FROM `canary` f(1)",
    "SELECT INTERVAL 1 f(1)",
    "SELECT CASE (1) f(1)",
    "SELECT MATCH (v) AGAINST ('x' f(1)) FROM canary",
    "SELECT member of(1) FROM canary",
    "SELECT lateral(SELECT 1)",
    "SELECT 1, lateral(WITH c AS (SELECT 1) SELECT 1 FROM c)",
    "SELECT 1, lateral(SELECT 1)",
    "SELECT json_table('[1]', '$[*]' COLUMNS (a INT PATH '$'))",
    "SELECT 1, json_table('[1]', '$[*]' COLUMNS (a INT PATH '$'))",
    "INSERT INTO canary (n) f(1)",
    "INSERT INTO canary VALUES (1, 1, '') f(1)",
    "INSERT INTO f(1) VALUES (1)",
    "INSERT IGNORE f(1) VALUES (1)",
    "WITH f(1) AS (SELECT 1) SELECT 1",
    "WITH RECURSIVE f(1) AS (SELECT 1) SELECT 1",
];

/// A session as those of a participant: this program's driver asks for IGNORE_SPACE.
async fn root(world: &World) -> anyhow::Result<MySqlConnection> {
    let mut root = world.cluster.root(1).await?;
    let plain = "SET SESSION sql_mode = @@GLOBAL.sql_mode; USE bad";
    sqlx::raw_sql(plain).execute(&mut root).await?;
    Ok(root)
}

/// The server's answer to a text: its error.
async fn error(root: &mut MySqlConnection, sql: &str) -> anyhow::Result<Option<u16>> {
    let Err(error) = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(root).await else {
        return Ok(None);
    };
    match error.as_database_error() {
        Some(answer) => Ok(Some(answer.downcast_ref::<MySqlDatabaseError>().number())),
        None => Err(error.into()),
    }
}

pub async fn only_functions_are_called(world: &World) -> anyhow::Result<()> {
    let mut root = root(world).await?;
    let mysql = world.kind == ServerKind::Mysql;
    // The oracle itself: it is told when there is no such function.
    for sql in ["SELECT f(1)", "SELECT `count`(1)", "SELECT count (1)"] {
        let told = error(&mut root, sql).await?;
        ensure!(
            told.is_some_and(|number| LOOKED_FOR.contains(&number)),
            "{sql}: {told:?}"
        );
    }
    let mut wrong = Vec::new();
    let words = keywords()
        .iter()
        .filter(|word| !(mysql && **word == "RETURNING"));
    for word in words {
        for form in [
            "SELECT {}(1)",
            "SELECT {} ()",
            "SELECT 1 FROM canary WHERE n = {} (1)",
        ] {
            let sql = form.replace("{}", word);
            let told = error(&mut root, &sql).await?;
            if told.is_some_and(|number| LOOKED_FOR.contains(&number)) {
                wrong.push((sql, told));
            }
        }
    }
    for sql in NAMED {
        let told = error(&mut root, sql).await?;
        if !told.is_some_and(|number| NO_SQL.contains(&number)) {
            wrong.push(((*sql).to_owned(), told));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    world.left_nothing().await
}

pub async fn functions_that_a_server_lacks(world: &World) -> anyhow::Result<()> {
    let mut root = root(world).await?;
    let mut r = Refusals::default();
    let mut lacking = Vec::new();
    for name in allowed() {
        let told = error(&mut root, &format!("SELECT {name}(1)")).await?;
        if told.is_some_and(|number| LOOKED_FOR.contains(&number)) {
            lacking.push(*name);
        }
    }
    let known = match world.kind {
        ServerKind::Mysql => "md5",
        ServerKind::Mariadb => "uuid_to_bin",
    };
    ensure!(lacking.contains(&known), "{known} is not among {lacking:?}");
    for name in &lacking {
        let sql = format!("SELECT {name}(v) FROM bad.canary");
        let mut transactions = world.transactions();
        let answer = transactions.execute(of(vec![on("p1", &sql, vec![])]));
        let (code, reason) = (Code::InvalidArgument, "STATEMENT_NOT_ALLOWED");
        r.expect(name, answer.await, code, reason);
    }
    r.finish(lacking.len())?;
    // A blank before the parenthesis is not the server's business.
    let sql = "SELECT COUNT (*), max /* */ (n) FROM bad.canary WHERE id IN (1)";
    let told = world
        .transactions()
        .execute(of(vec![on("p1", sql, vec![])]))
        .await?;
    let rows = &told.into_inner().results[0].result;
    let first = rows
        .first()
        .and_then(|row| row.values.first()?.kind.clone());
    ensure!(first == Some(Kind::Int64(1)), "{rows:?}");
    world.left_nothing().await
}
