//! Values go to the servers and come back as they were, for every type of column.

use std::time::Duration;

use concord_client::local::server::ServerKind;
use concord_core::id::{Bqual, BranchId, Gtrid};
use concord_participant::resource::ResourceManager as _;
use concord_participant::resource::conformance::Harness as _;
use concord_participant::resource::{Finished, Prepared};
use concord_proto::model::{Statement, Value, Work};
use concord_proto::v1::value::Kind;

use super::{Real, under_test};

const TABLE: &str = "CREATE TABLE conformance.types (id INT PRIMARY KEY, \
    tiny TINYINT, flag BOOLEAN, big BIGINT, ubig BIGINT UNSIGNED, f FLOAT, d DOUBLE, \
    dec_ DECIMAL(65,30), s VARCHAR(100) CHARACTER SET utf8mb4, \
    l VARCHAR(100) CHARACTER SET latin1, b VARBINARY(100), bl LONGBLOB, t LONGTEXT, \
    j JSON, e ENUM('a','b'), st SET('x','y'), bits BIT(10), y YEAR, \
    da DATE, ti TIME(6), dt DATETIME(6), ts TIMESTAMP(6) NULL, \
    bin_ VARCHAR(100) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin) ENGINE=InnoDB";

fn columns() -> Vec<(&'static str, Value, Kind)> {
    let text = "O'Brien \\ \"\u{1F600}\" -- ; /* \u{0} % _ ?";
    vec![
        ("tiny", Value::Int(-128), Kind::Int64(-128)),
        ("flag", Value::Bool(true), Kind::Int64(1)),
        ("big", Value::Int(i64::MIN), Kind::Int64(i64::MIN)),
        ("ubig", Value::UInt(u64::MAX), Kind::Uint64(u64::MAX)),
        ("f", Value::Double(1.5), Kind::Double(1.5)),
        (
            "d",
            Value::Double(-2.225_073_858_507_201_4e-308),
            Kind::Double(-2.225_073_858_507_201_4e-308),
        ),
        (
            "dec_",
            Value::Decimal(
                "-12345678901234567890123456789012345.123456789012345678901234567891".into(),
            ),
            Kind::Decimal(
                "-12345678901234567890123456789012345.123456789012345678901234567891".into(),
            ),
        ),
        ("s", Value::String(text.into()), Kind::String(text.into())),
        (
            "l",
            Value::String("caf\u{e9}".into()),
            Kind::String("caf\u{e9}".into()),
        ),
        (
            "b",
            Value::Bytes(vec![0, 39, 92, 255]),
            Kind::Bytes(vec![0, 39, 92, 255]),
        ),
        (
            "bl",
            Value::Bytes(vec![0xFE; 70_000]),
            Kind::Bytes(vec![0xFE; 70_000]),
        ),
        (
            "t",
            Value::String("\u{e9}".repeat(40_000)),
            Kind::String("\u{e9}".repeat(40_000)),
        ),
        (
            "j",
            Value::String(r#"{"a": "b"}"#.into()),
            Kind::String(r#"{"a": "b"}"#.into()),
        ),
        ("e", Value::String("b".into()), Kind::String("b".into())),
        (
            "st",
            Value::String("x,y".into()),
            Kind::String("x,y".into()),
        ),
        ("bits", Value::UInt(0x2FF), Kind::Uint64(0x2FF)),
        ("y", Value::Int(2024), Kind::Int64(2024)),
        (
            "da",
            Value::Date("2024-02-29".into()),
            Kind::Date("2024-02-29".into()),
        ),
        (
            "ti",
            Value::Time("-838:59:58.123456".into()),
            Kind::Time("-838:59:58.123456".into()),
        ),
        (
            "dt",
            Value::DateTime("9999-12-31 23:59:59.999999".into()),
            Kind::Datetime("9999-12-31 23:59:59.999999".into()),
        ),
        (
            "ts",
            Value::DateTime("2024-01-01 00:00:00.5".into()),
            Kind::Datetime("2024-01-01 00:00:00.500000".into()),
        ),
        (
            "bin_",
            Value::String("A b ".into()),
            Kind::String("A b ".into()),
        ),
    ]
}

/// A new branch.
pub fn branch() -> BranchId {
    BranchId {
        gtrid: Gtrid(*uuid::Uuid::now_v7().as_bytes()),
        bqual: Bqual(1),
    }
}

/// A statement without expectation.
pub fn statement(sql: &str, params: Vec<Value>) -> Statement {
    Statement {
        sql: sql.into(),
        params,
        expect: None,
    }
}

/// Statements as the work of a branch.
pub fn work(statements: Vec<Statement>) -> Work {
    Work {
        statements,
        isolation: None,
        allow_read_only: false,
        timeout: Duration::from_secs(20),
        request: None,
    }
}

async fn round_trip(real: &Real) {
    let rm = real.open().await;
    real.sql(TABLE).await;
    let columns = columns();
    let names: Vec<_> = columns.iter().map(|(name, ..)| *name).collect();
    let marks = vec!["?"; names.len()].join(", ");
    let insert = format!(
        "INSERT INTO conformance.types (id, {}) VALUES (?, {marks})",
        names.join(", ")
    );
    let mut params = vec![Value::Int(1)];
    params.extend(columns.iter().map(|(_, value, _)| value.clone()));
    let nulls: Vec<_> = std::iter::once(Value::Int(2))
        .chain(names.iter().map(|_| Value::Null))
        .collect();
    let id = branch();
    let both = work(vec![statement(&insert, params), statement(&insert, nulls)]);
    let prepared = rm.prepare(id, Some(&both)).await;
    assert!(
        matches!(prepared, Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    assert_eq!(rm.commit(id).await, Finished::Done);

    let select = format!(
        "SELECT {} FROM conformance.types WHERE id = ?",
        names.join(", ")
    );
    let result = rm
        .query(
            &statement(&select, vec![Value::Int(1)]),
            Duration::from_secs(5),
        )
        .await
        .expect("the row");
    for ((name, _, expected), value) in columns.iter().zip(&result.result[0].values) {
        assert_eq!(value.kind.as_ref(), Some(expected), "{name}");
    }
    let result = rm
        .query(
            &statement(&select, vec![Value::Int(2)]),
            Duration::from_secs(5),
        )
        .await
        .expect("the row");
    for (value, name) in result.result[0].values.iter().zip(&names) {
        assert!(
            matches!(value.kind, Some(Kind::Null(_))),
            "{name}: {value:?}"
        );
    }
    // What was written finds its row again, by every column of a type that can be compared.
    for (name, value, _) in &columns {
        if matches!(*name, "j" | "f") {
            continue;
        }
        let sql = format!("SELECT id FROM conformance.types WHERE {name} = ?");
        let found = rm
            .query(
                &statement(&sql, vec![value.clone()]),
                Duration::from_secs(5),
            )
            .await
            .unwrap_or_else(|reason| panic!("{name}: {reason}"));
        assert_eq!(found.rows, 1, "{name}");
    }
}

async fn too_much(real: &Real) {
    let rm = real.open().await;
    let rows = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 999) \
                SELECT a.i FROM n a CROSS JOIN n b";
    let bytes = "SELECT REPEAT('x', ?)";
    let zeros = "SELECT CONCAT(CHAR(0 USING utf8mb4), REPEAT('x', ?)) UNION ALL SELECT ''";
    for (sql, params) in [
        (rows, vec![]),
        (bytes, vec![Value::Int(2 << 20)]),
        // The length of such a row looks like the end of a result to the driver.
        (bytes, vec![Value::Int(0x0108_0001)]),
        (zeros, vec![Value::Int(0x0108_0001)]),
    ] {
        let id = branch();
        let prepared = rm
            .prepare(id, Some(&work(vec![statement(sql, params.clone())])))
            .await;
        match prepared {
            Prepared::NotPrepared { .. } | Prepared::Unknown { .. } => {
                assert_ne!(rm.commit(id).await, Finished::Done, "{sql}");
                assert!(
                    !rm.recover().await.expect("a list").ours.contains(&id),
                    "{sql}"
                );
            }
            // MySQL and MariaDB give NULL for what is longer than a packet.
            Prepared::Prepared { results } => {
                assert!(results[0].rows <= 2, "{results:?}");
                assert_eq!(rm.commit(id).await, Finished::Done);
            }
            Prepared::ReadOnly { .. } => panic!("it was not allowed to leave"),
        }
    }
}

async fn on(kind: ServerKind) {
    let Some(binary) = under_test(kind) else {
        return;
    };
    let real = Real::start(binary).await;
    round_trip(&real).await;
    too_much(&real).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_keeps_every_value() {
    on(ServerKind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_keeps_every_value() {
    on(ServerKind::Mariadb).await;
}
