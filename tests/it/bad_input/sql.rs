//! SQL that is not on the allow-list is refused before it reaches a server.

use anyhow::ensure;
use concord_proto::v1;
use concord_proto::v1::value::Kind;
use sqlx::Row;
use tonic::Code;

use super::transactions::{of, on, value};
use super::{Refusals, World};

/// A harmless statement in the same transaction, which must not be committed either.
const WRITE: &str = "UPDATE bad.canary SET n = n + 1 WHERE id = 1";

/// Attempts to end the branch, to leave the canary's cage, to wait, to lock, to read files, or to
/// slip past whoever reads SQL otherwise than the server does.
const HOSTILE: &[&str] = &[
    // More than one statement.
    "SELECT 1; DROP TABLE bad.canary",
    "UPDATE bad.canary SET n = 1; COMMIT",
    "SELECT 'canary';",
    "SELECT 1;;",
    "SELECT n FROM bad.canary; -- ",
    "DELETE FROM bad.canary WHERE id = '1'; SELECT '1'",
    "SELECT 'a\\'; DROP TABLE bad.canary; -- '",
    "SELECT \"a\"\"; DROP TABLE bad.canary; -- \"; DELETE FROM bad.canary",
    "SELECT 1 /* canary */; /* */ XA COMMIT 'x'",
    "DELIMITER // SELECT canary//",
    // The branch's end.
    "COMMIT",
    "COMMIT AND CHAIN",
    "ROLLBACK",
    "ROLLBACK TO SAVEPOINT canary",
    "SAVEPOINT canary",
    "RELEASE SAVEPOINT canary",
    "BEGIN",
    "BEGIN NOT ATOMIC UPDATE bad.canary SET n = 1; END",
    "START TRANSACTION",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT",
    "XA START 'canary'",
    "XA END 'canary'",
    "XA PREPARE 'canary'",
    "XA COMMIT 'canary'",
    "XA COMMIT 'canary' ONE PHASE",
    "XA ROLLBACK 'canary'",
    "XA RECOVER",
    "xa/**/commit 'canary'",
    "\u{a0}COMMIT",
    "/*!50000 COMMIT */",
    "/*! COMMIT */",
    "/*M! COMMIT */",
    "/*M!100100 UPDATE bad.canary SET n = 1 */",
    "SELECT 1 /*! ; DELETE FROM bad.canary */",
    "SELECT 1 /*!99999 + 1 */ FROM bad.canary",
    "SELECT /*+ SET_VAR(sql_mode='') */ n FROM bad.canary",
    "SELECT 1 /* unclosed canary",
    "/* /* */ COMMIT */ SELECT 1",
    "-- canary\nCOMMIT",
    "# canary\nDROP TABLE bad.canary",
    "--\u{0b}canary\nROLLBACK",
    // What changes the session, which serves others later.
    "SET autocommit = 1",
    "SET SESSION innodb_lock_wait_timeout = 1000",
    "SET GLOBAL innodb_flush_log_at_trx_commit = 0",
    "SET @canary = 1",
    "SET NAMES latin1",
    "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
    "SET PASSWORD = 'canary'",
    "SET ROLE ALL",
    "SET STATEMENT max_statement_time=1 FOR SELECT n FROM bad.canary",
    "USE mysql",
    "SELECT @canary := n FROM bad.canary",
    "SELECT @@global.datadir",
    "SELECT @@session.sql_mode, n FROM bad.canary",
    "SELECT n INTO @canary FROM bad.canary",
    "SELECT LAST_INSERT_ID(4711) FROM bad.canary",
    "PREPARE canary FROM 'COMMIT'",
    "EXECUTE canary",
    "EXECUTE IMMEDIATE 'DROP TABLE bad.canary'",
    "DEALLOCATE PREPARE canary",
    // Routines and everything that is not plain DML.
    "CALL bad.canary()",
    "CALL mysql.rds_kill(1)",
    "DO SLEEP(5)",
    "DO bad.canary()",
    "HANDLER bad.canary OPEN",
    "HANDLER bad.canary READ FIRST",
    "LOCK TABLES bad.canary WRITE",
    "LOCK INSTANCE FOR BACKUP",
    "UNLOCK TABLES",
    "FLUSH TABLES bad.canary WITH READ LOCK",
    "EXPLAIN ANALYZE UPDATE bad.canary SET n = 1",
    "EXPLAIN SELECT n FROM bad.canary",
    "ANALYZE UPDATE bad.canary SET n = 1",
    "ANALYZE FORMAT=JSON DELETE FROM bad.canary",
    "DESCRIBE bad.canary",
    "SHOW CREATE TABLE bad.canary",
    "SHOW GRANTS",
    "TABLE bad.canary",
    "VALUES ROW(1, 2)",
    "KILL 1",
    "SHUTDOWN",
    "RESTART",
    "INSTALL PLUGIN canary SONAME 'canary.so'",
    "INSTALL SONAME 'canary'",
    "CHANGE MASTER TO MASTER_HOST='canary'",
    "STOP REPLICA",
    "PURGE BINARY LOGS TO 'canary'",
    "GET DIAGNOSTICS @a = NUMBER",
    "SIGNAL SQLSTATE '45000'",
    "HELP 'canary'",
    "BINLOG 'canary'",
    "CACHE INDEX bad.canary IN hot",
    "CHECKSUM TABLE bad.canary",
    "OPTIMIZE TABLE bad.canary",
    "REPAIR TABLE bad.canary",
    "IMPORT TABLE FROM 'canary.sdi'",
    // Schemas, users, files.
    "CREATE TABLE bad.t (canary INT)",
    "CREATE TEMPORARY TABLE bad.t (canary INT)",
    "CREATE TABLE bad.t SELECT * FROM bad.canary",
    "CREATE USER canary",
    "CREATE PROCEDURE bad.canary() COMMIT",
    "CREATE TRIGGER bad.canary BEFORE UPDATE ON bad.canary FOR EACH ROW SET NEW.n = 1",
    "CREATE EVENT bad.canary ON SCHEDULE EVERY 1 SECOND DO DELETE FROM bad.canary",
    "ALTER TABLE bad.canary ENGINE=MyISAM",
    "DROP TABLE bad.canary",
    "DROP DATABASE bad",
    "TRUNCATE TABLE bad.canary",
    "TRUNCATE bad.canary",
    "RENAME TABLE bad.canary TO bad.dead",
    "GRANT ALL ON *.* TO 'canary'@'%'",
    "REVOKE ALL ON *.* FROM 'canary'@'%'",
    "LOAD DATA INFILE '/etc/passwd' INTO TABLE bad.canary",
    "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE bad.canary",
    "LOAD XML INFILE '/etc/passwd' INTO TABLE bad.canary",
    "SELECT v FROM bad.canary INTO OUTFILE '/tmp/concord-canary'",
    "SELECT v INTO OUTFILE '/tmp/concord-canary' FROM bad.canary",
    "SELECT v FROM bad.canary INTO DUMPFILE '/tmp/concord-canary'",
    "SELECT LOAD_FILE('/etc/passwd') AS canary",
    "UPDATE bad.canary SET v = LOAD_FILE('/etc/passwd')",
    // Functions that wait, lock, or do what nobody knows.
    "SELECT SLEEP(5) FROM bad.canary",
    "SELECT `sleep`(5) FROM bad.canary",
    "SELECT SLEEP/* canary */(5)",
    "SELECT n FROM bad.canary WHERE SLEEP(5)",
    "SELECT n FROM bad.canary ORDER BY SLEEP(5)",
    "SELECT n FROM bad.canary GROUP BY SLEEP(5)",
    "SELECT IF(n = 0, SLEEP(5), 0) FROM bad.canary",
    "UPDATE bad.canary SET n = SLEEP(5)",
    "INSERT INTO bad.canary SELECT 2, SLEEP(5), ''",
    "INSERT INTO bad.canary VALUES (1, 1, '') ON DUPLICATE KEY UPDATE n = SLEEP(5)",
    "DELETE FROM bad.canary WHERE id = GET_LOCK('canary', 5)",
    "SELECT GET_LOCK('canary', 100)",
    "SELECT RELEASE_ALL_LOCKS() AS canary",
    "SELECT IS_USED_LOCK('canary')",
    "SELECT BENCHMARK(1000000000, MD5('canary'))",
    "SELECT MASTER_POS_WAIT('canary', 4)",
    "SELECT WAIT_FOR_EXECUTED_GTID_SET('canary')",
    "SELECT UPDATEXML(1, CONCAT(0x7e, 'canary'), 1)",
    "SELECT EXTRACTVALUE(1, 'canary')",
    "SELECT sys_exec('touch /tmp/concord-canary')",
    "SELECT bad.canary(1)",
    "SELECT canary(1)",
    "SELECT `count`(*) FROM bad.canary",
    "SELECT TRY_CAST(n AS CHAR) FROM bad.canary",
    "SELECT CONVERT(n, canary()) FROM bad.canary",
    "SELECT NEXT VALUE FOR bad.canary",
    "SELECT NEXT VALUE FOR SHARE",
    "SELECT n FROM bad.canary PROCEDURE ANALYSE()",
    "SELECT {fn SLEEP(5)} AS canary",
    "SELECT {d '2026-01-01'} AS canary",
    // Writes in disguise, and schemas that belong to somebody else.
    "WITH c AS (DELETE FROM bad.canary RETURNING id) SELECT * FROM c",
    "WITH c AS (UPDATE bad.canary SET n = 1) SELECT 1",
    "SELECT * FROM (DELETE FROM bad.canary) canary",
    "SELECT * FROM mysql.user",
    "SELECT * FROM `mysql`.`user`",
    "SELECT * FROM MYSQL . user",
    "SELECT * FROM performance_schema.threads",
    "SELECT * FROM sys.version",
    "SELECT * FROM information_schema.innodb_trx",
    "DELETE FROM `#mysql50#concord`.ledger",
    "SELECT user FROM `#mysql50#mysql`.user",
    "DELETE FROM concord.ledger",
    "UPDATE `concord`.`ledger` SET state = 1",
    "SELECT * FROM concord.ledger",
    "INSERT INTO concord.epoch VALUES (1, 99)",
    "UPDATE information_schema.tables SET table_name = 'canary'",
    "UPDATE bad.canary c JOIN mysql.user u SET c.n = 1",
    "INSERT INTO bad.canary (id, n, v) SELECT 2, 2, user FROM mysql.user",
    // Characters that look like others.
    "ＳＥＬＥＣＴ n FROM bad.canary",
    "SELECT n FROM bad.canary；DROP TABLE bad.canary",
    "SELECT\u{200b} n FROM bad.canary",
    "SELECT n FROM bad.canary WHERE v = ‘sings’",
    "SELECT n FROM bad.canary WHERE v = 'sings\u{0}'",
    "\u{feff}SELECT n FROM bad.canary",
    "SELECT n\u{2028}FROM bad.canary",
    "SELECT _utf8mb4'canary' COLLATE 'x",
    "SELECT 'unclosed canary",
    "SELECT `unclosed canary",
    "SELECT \"unclosed canary",
    "SELECT 1 AS canary WHERE ((((((((((((((((((((((((((((((((((((((((((((((((((((((((((1",
    "canary",
    "\\",
    "';",
    "SELECT",
    "UPDATE bad.canary",
    "{\"$ne\": \"canary\"}",
];

pub async fn hostile_sql_never_reaches_a_server(world: &World) -> anyhow::Result<()> {
    ensure!(HOSTILE.len() >= 60, "only {}", HOSTILE.len());
    for n in 1..=2 {
        let log = "SET GLOBAL log_output = 'TABLE'; SET GLOBAL general_log = ON";
        world.cluster.sql(n, log).await?;
    }
    let mut r = Refusals::default();
    let write = || on("p1", WRITE, vec![]);
    for sql in HOSTILE {
        let hostile = on("p2", sql, vec![]);
        let alone = world
            .transactions()
            .execute(of(vec![hostile.clone()]))
            .await;
        refused(&mut r, sql, alone);
        let among = of(vec![write(), hostile, on("p2", "SELECT 1", vec![])]);
        refused(&mut r, sql, world.transactions().execute(among).await);
    }
    let mut reached: Vec<&str> = Vec::new();
    for n in 1..=2 {
        let mut root = world.cluster.root(n).await?;
        let heard = "SELECT 'the log is on'";
        sqlx::query(heard).fetch_one(&mut root).await?;
        let seen = "SELECT argument FROM mysql.general_log WHERE command_type <> 'Connect'";
        let rows = sqlx::query(seen).fetch_all(&mut root).await?;
        let seen: Result<Vec<Vec<u8>>, sqlx::Error> =
            rows.iter().map(|row| row.try_get(0)).collect();
        let seen: Vec<String> = seen?
            .iter()
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .collect();
        ensure!(
            seen.iter().any(|text| text == heard),
            "the general log is not on: {seen:?}"
        );
        // Only what is no part of the harmless statements around it tells something.
        let telling = HOSTILE
            .iter()
            .filter(|sql| sql.contains("canary") && !WRITE.contains(**sql));
        let sent = |sql: &&&str| seen.iter().any(|text| text.contains(**sql));
        reached.extend(telling.filter(sent));
        world.cluster.sql(n, "SET GLOBAL general_log = OFF").await?;
    }
    ensure!(reached.is_empty(), "reached a server: {reached:#?}");
    r.finish(2 * HOSTILE.len())?;
    world.left_nothing().await
}

/// Hostile SQL is the caller's fault; NUL is one of a field.
fn refused(
    r: &mut Refusals,
    sql: &str,
    answer: Result<tonic::Response<v1::ExecuteTransactionResponse>, tonic::Status>,
) {
    let reason = if sql.contains('\0') {
        "INVALID_FIELD"
    } else {
        "STATEMENT_NOT_ALLOWED"
    };
    r.expect(format!("{sql:?}"), answer, Code::InvalidArgument, reason);
}

pub async fn hostile_sql_ends_an_interactive_transaction(world: &World) -> anyhow::Result<()> {
    let mut r = Refusals::default();
    let mut tx = world.transactions();
    for sql in HOSTILE.iter().step_by(9) {
        let gtrid = tx
            .begin(v1::BeginTransactionRequest::default())
            .await?
            .into_inner()
            .gtrid;
        let execute = |sql: &str| v1::ExecuteStatementRequest {
            gtrid: gtrid.clone(),
            statement: Some(on("p1", sql, vec![])),
        };
        tx.execute_statement(execute(WRITE)).await?;
        let answer = tx.execute_statement(execute(sql)).await;
        if sql.contains('\0') {
            tx.rollback(v1::RollbackTransactionRequest { gtrid })
                .await?;
            continue;
        }
        let (code, reason) = (Code::InvalidArgument, "STATEMENT_NOT_ALLOWED");
        r.expect(sql, answer, code, reason);
        let commit = v1::CommitTransactionRequest {
            gtrid: gtrid.clone(),
            ack: 0,
        };
        r.expect("commit", tx.commit(commit).await, code, reason);
    }
    r.finish(20)?;
    world.left_nothing().await
}

/// Texts that would be SQL if a value were pasted into it come back as they were.
pub async fn values_are_never_sql(world: &World) -> anyhow::Result<()> {
    let texts = [
        "'",
        "''",
        "\\'",
        "\\",
        "\"",
        "`",
        "'; DROP TABLE bad.canary; -- ",
        "\\\\'",
        "%",
        "_",
        "?",
        "x'",
        "\0",
        "a\0b",
        "\n\r\t\u{8}\u{1a}",
        "0x41",
        "NULL",
        "🦀",
        "\u{202e}",
        "\u{feff}",
        "¿'",
        "縗'",
        "é\\'",
        "/*",
        "*/",
        "-- ",
        "#",
        ";",
        "@a",
        "{fn x}",
        ":a",
        "${a}",
        "\u{10ffff}",
    ];
    let mut statements = Vec::new();
    for participant in ["p1", "p2"] {
        for text in texts {
            let params = vec![
                value(Kind::String(text.into())),
                value(Kind::Bytes(text.as_bytes().to_vec())),
                value(Kind::Int64(i64::MIN)),
                value(Kind::Uint64(u64::MAX)),
            ];
            statements.push(on(participant, "SELECT ?, ?, ?, ?", params));
        }
    }
    let done = world
        .transactions()
        .execute(of(statements))
        .await?
        .into_inner();
    let mut wrong = Vec::new();
    for (n, result) in done.results.iter().enumerate() {
        let text = texts[n % texts.len()];
        let row = &result.result[0].values;
        let found = (row[0].kind.as_ref(), row[1].kind.as_ref());
        let string = matches!(found.0, Some(Kind::String(found)) if found == text);
        let bytes = match found.1 {
            Some(Kind::Bytes(found)) => found == text.as_bytes(),
            _ => false,
        };
        if !string || !bytes {
            wrong.push(format!("{text:?} came back as {found:?}"));
        }
    }
    ensure!(
        wrong.is_empty() && done.results.len() == 2 * texts.len(),
        "{wrong:#?}"
    );
    world.left_nothing().await
}
