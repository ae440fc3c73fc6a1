//! Bad fields of generic transactions: statements, values, sizes, ids.

use anyhow::ensure;
use concord_proto::v1;
use concord_proto::v1::value::Kind;
use tonic::{Code, Response, Status};

use super::{Refusals, World};

/// A statement of one participant.
pub fn on(participant: &str, sql: &str, params: Vec<v1::Value>) -> v1::TargetedStatement {
    let statement = Some(v1::Statement {
        sql: sql.into(),
        params,
        expect: None,
    });
    v1::TargetedStatement {
        participant: participant.into(),
        statement,
    }
}

/// A value.
pub fn value(kind: Kind) -> v1::Value {
    v1::Value { kind: Some(kind) }
}

/// A transaction of these statements.
pub fn of(statements: Vec<v1::TargetedStatement>) -> v1::ExecuteTransactionRequest {
    v1::ExecuteTransactionRequest {
        statements,
        ..Default::default()
    }
}

type Answer = Result<Response<v1::ExecuteTransactionResponse>, Status>;

async fn execute(world: &World, request: v1::ExecuteTransactionRequest) -> Answer {
    world.transactions().execute(request).await
}

/// A transaction that would be fine.
fn fine() -> v1::ExecuteTransactionRequest {
    of(vec![
        on("p1", "SELECT 1", vec![]),
        on("p2", "SELECT 1", vec![]),
    ])
}

pub async fn fields_of_a_transaction(world: &World) -> anyhow::Result<()> {
    let mut r = Refusals::default();
    let empty = v1::ExecuteTransactionRequest::default();
    r.invalid("empty", execute(world, empty).await, "statements");
    let naked = v1::TargetedStatement {
        participant: "p1".into(),
        statement: None,
    };
    r.invalid(
        "no statement",
        execute(world, of(vec![naked])).await,
        "statements[0].statement",
    );
    let nothing = of(vec![v1::TargetedStatement::default()]);
    r.invalid(
        "nothing",
        execute(world, nothing).await,
        "statements[0].participant",
    );
    for name in ["", " ", "p 1", "p1\0", "-p1", "ä", "p1;", &"p".repeat(33)] {
        let request = of(vec![on(name, "SELECT 1", vec![])]);
        r.invalid(
            name,
            execute(world, request).await,
            "statements[0].participant",
        );
    }
    for sql in [
        "",
        " ",
        "\n\t",
        "SELECT '\0'",
        "\0",
        &"x".repeat((64 << 10) + 1),
    ] {
        let request = of(vec![on("p1", sql, vec![])]);
        let shown: String = sql.chars().take(20).collect();
        r.invalid(
            shown,
            execute(world, request).await,
            "statements[0].statement.sql",
        );
    }
    for number in [-1, 4, 99, i32::MAX, i32::MIN] {
        let isolation = v1::ExecuteTransactionRequest {
            isolation: number,
            ..fine()
        };
        r.invalid(number, execute(world, isolation).await, "isolation");
        let ack = v1::ExecuteTransactionRequest {
            ack: number,
            ..fine()
        };
        r.invalid(number, execute(world, ack).await, "ack");
        let begin = v1::BeginTransactionRequest {
            isolation: number,
            timeout_ms: 0,
        };
        r.invalid(number, world.transactions().begin(begin).await, "isolation");
        let list = v1::ListTransactionsRequest {
            states: vec![2, number.max(9)],
            ..Default::default()
        };
        r.invalid(
            number,
            world.transactions().list_transactions(list).await,
            "states[1]",
        );
    }
    for timeout_ms in [3_600_001, u32::MAX] {
        let late = v1::ExecuteTransactionRequest {
            timeout_ms,
            ..fine()
        };
        r.invalid(timeout_ms, execute(world, late).await, "timeout_ms");
        let begin = v1::BeginTransactionRequest {
            isolation: 0,
            timeout_ms,
        };
        r.invalid(
            timeout_ms,
            world.transactions().begin(begin).await,
            "timeout_ms",
        );
    }
    for id in ["ä", "a\n", "\0", &"r".repeat(129)] {
        let named = v1::ExecuteTransactionRequest {
            request_id: id.into(),
            ..fine()
        };
        r.invalid(format!("{id:?}"), execute(world, named).await, "request_id");
    }
    for (min, max, reason, field) in [
        (Some(2), Some(1), "", "expect"),
        (Some(u64::MAX), Some(0), "", "expect"),
        (None, None, "lower", "expect.reason"),
        (None, None, "WITH SPACE", "expect.reason"),
        (None, None, "OUTCOME_UNKNOWN", "expect.reason"),
        (None, None, "REQUEST_ALREADY_COMMITTED", "expect.reason"),
        (None, None, "_X", "expect.reason"),
        (None, None, &"X".repeat(64), "expect.reason"),
    ] {
        let mut request = fine();
        let expect = v1::ExpectRows {
            min,
            max,
            reason: reason.into(),
        };
        if let Some(statement) = &mut request.statements[0].statement {
            statement.expect = Some(expect);
        }
        let field = format!("statements[0].statement.{field}");
        r.invalid(reason, execute(world, request).await, &field);
    }
    r.finish(50)?;
    world.left_nothing().await
}

pub async fn values(world: &World) -> anyhow::Result<()> {
    let mut r = Refusals::default();
    let text = |form: fn(String) -> Kind, texts: &[&str]| -> Vec<Kind> {
        texts.iter().map(|text| form((*text).to_owned())).collect()
    };
    let lists: Vec<(&str, Vec<Kind>)> = vec![
        ("null", [0, 2, -1, i32::MAX].map(Kind::Null).into()),
        (
            "double",
            [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
                .map(Kind::Double)
                .into(),
        ),
        (
            "decimal",
            text(
                Kind::Decimal,
                &[
                    "",
                    "-",
                    ".",
                    "1.",
                    ".5",
                    "+1",
                    "1e5",
                    "1,5",
                    "0x1",
                    " 1",
                    "1 ",
                    "1.2.3",
                    "--1",
                    "NaN",
                    "Infinity",
                    "1'",
                    "1;",
                    "１",
                    "1\0",
                    &"9".repeat(66),
                    &format!("0.{}", "1".repeat(39)),
                ],
            ),
        ),
        (
            "date",
            text(
                Kind::Date,
                &[
                    "",
                    "2026",
                    "2026-1-1",
                    "2026-02-30",
                    "2026-13-01",
                    "2026-00-01",
                    "2026-01-32",
                    "01.02.2026",
                    "2026-01-01 ",
                    "2026-01-01'",
                    "20260101",
                    "-001-01-01",
                    "2026-01-01T00:00:00",
                ],
            ),
        ),
        (
            "time",
            text(
                Kind::Time,
                &[
                    "",
                    "1",
                    "12:00",
                    "839:00:00",
                    "-839:00:00",
                    "12:60:00",
                    "12:00:60",
                    "12:00:00.1234567",
                    "12:00:00'",
                    "noon",
                    "+12:00:00",
                    "12:00:00 ",
                ],
            ),
        ),
        (
            "datetime",
            text(
                Kind::Datetime,
                &[
                    "",
                    "2026-01-01",
                    "2026-01-01T00:00:00",
                    "2026-01-01 24:00:00",
                    "2026-02-29 00:00:00",
                    "2026-01-01 00:00:00Z",
                    "2026-01-01 00:00:00+01:00",
                    "2026-01-01 00:00:00'",
                    "now()",
                ],
            ),
        ),
        ("string", vec![Kind::String("x".repeat((1 << 20) + 1))]),
        ("bytes", vec![Kind::Bytes(vec![0; (1 << 20) + 1])]),
    ];
    for (kind, values) in lists {
        for bad in values {
            let shown: String = format!("{bad:?}").chars().take(60).collect();
            let params = vec![value(Kind::Int64(1)), value(bad)];
            let request = of(vec![on("p1", "SELECT ?, ?", params)]);
            let field = format!("statements[0].statement.params[1].{kind}");
            r.invalid(shown, execute(world, request).await, &field);
        }
    }
    let unset = of(vec![on("p1", "SELECT ?", vec![v1::Value { kind: None }])]);
    r.invalid(
        "unset",
        execute(world, unset).await,
        "statements[0].statement.params[0]",
    );
    // As many values as `?`: neither more nor fewer.
    let (code, reason) = (Code::InvalidArgument, "STATEMENT_NOT_ALLOWED");
    for (sql, count) in [
        ("SELECT ?", 0),
        ("SELECT ?", 2),
        ("SELECT 1", 1),
        ("SELECT '?', ?", 2),
    ] {
        let params = vec![value(Kind::Int64(1)); count];
        for request in [
            of(vec![on("p1", sql, params.clone())]),
            of(vec![on("p1", sql, params), on("p2", "SELECT 1", vec![])]),
        ] {
            r.expect(
                format!("{sql} with {count}"),
                execute(world, request).await,
                code,
                reason,
            );
        }
    }
    r.finish(70)?;
    world.left_nothing().await
}

pub async fn too_much(world: &World) -> anyhow::Result<()> {
    let mut r = Refusals::default();
    let select = on("p1", "SELECT 1", vec![]);
    r.invalid(
        "1,001 statements",
        execute(world, of(vec![select; 1_001])).await,
        "statements",
    );
    let many: Vec<_> = (1..=65)
        .map(|n| on(&format!("p{n}"), "SELECT 1", vec![]))
        .collect();
    r.invalid(
        "65 participants",
        execute(world, of(many)).await,
        "statements",
    );
    let marks = format!("SELECT {}", vec!["?"; 5_000].join(","));
    let params = of(vec![on("p1", &marks, vec![value(Kind::Int64(1)); 5_000])]);
    r.invalid(
        "5,000 values",
        execute(world, params).await,
        "statements[0].statement.params",
    );
    let mib = value(Kind::String("x".repeat(1 << 20)));
    let heavy = vec![on("p1", "SELECT LENGTH(?)", vec![mib]); 5];
    r.invalid("5 MiB", execute(world, of(heavy)).await, "statements");
    let mib = value(Kind::Bytes(vec![7; 1 << 20]));
    let heavy = vec![on("p1", "SELECT LENGTH(?)", vec![mib]); 9];
    let (code, reason) = (Code::ResourceExhausted, "LIMIT_REACHED");
    r.expect("9 MiB", execute(world, of(heavy)).await, code, reason);
    // What comes back is bounded too, and the refusal undoes what was written before.
    let write = "UPDATE bad.canary SET n = n + 1 WHERE id = 1";
    for read in [
        "SELECT a.id FROM bad.canary a JOIN (WITH RECURSIVE c AS (SELECT 1 AS i UNION ALL \
         SELECT i + 1 FROM c WHERE i < 900) SELECT x.i FROM c x JOIN c y ON y.i < 20) b",
        "SELECT REPEAT('x', 2000000)",
        "SELECT REPEAT('x', 600000), REPEAT('y', 600000)",
    ] {
        let request = of(vec![on("p1", write, vec![]), on("p1", read, vec![])]);
        let answer = execute(world, request).await;
        r.expect(read, answer, Code::FailedPrecondition, "RESULT_TOO_LARGE");
    }
    // And so is what a branch returns in many statements; a link would end on more.
    let heavy = || on("p1", "SELECT REPEAT('x', 1000000)", vec![]);
    let mut many = vec![on("p1", write, vec![]), on("p2", write, vec![])];
    many.extend(std::iter::repeat_with(heavy).take(70));
    let answer = execute(world, of(many)).await;
    let code = Code::FailedPrecondition;
    r.expect("70 MB of results", answer, code, "RESULT_TOO_LARGE");
    r.finish(9)?;
    world.left_nothing().await
}

pub async fn garbage_gtrids(world: &World) -> anyhow::Result<()> {
    let mut r = Refusals::default();
    let mut tx = world.transactions();
    for gtrid in [
        "",
        "x",
        "0",
        "null",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "3fa85f64-5717-4562-b3fc-2c963f66afa6",
        "01920000-0000-7000-0000-000000000000",
        "{01920000-0000-7000-8000-000000000000}",
        "urn:uuid:01920000-0000-7000-8000-000000000000",
        "01920000000070008000000000000000",
        "01920000-0000-7000-8000-00000000000",
        "01920000-0000-7000-8000-0000000000000",
        "01920000-0000-7000-8000-00000000000g",
        "01920000-0000-7000-8000-00000000000\0",
        " 01920000-0000-7000-8000-000000000000",
        "x'00'",
        "' OR 1=1 -- ",
        "../../../etc/passwd",
        "ü",
    ] {
        let statement = Some(on("p1", "SELECT 1", vec![]));
        let request = v1::ExecuteStatementRequest {
            gtrid: gtrid.into(),
            statement,
        };
        r.invalid(gtrid, tx.execute_statement(request).await, "gtrid");
        let request = v1::CommitTransactionRequest {
            gtrid: gtrid.into(),
            ack: 0,
        };
        r.invalid(gtrid, tx.commit(request).await, "gtrid");
        let request = v1::RollbackTransactionRequest {
            gtrid: gtrid.into(),
        };
        r.invalid(gtrid, tx.rollback(request).await, "gtrid");
        let request = v1::GetTransactionRequest {
            gtrid: gtrid.into(),
            request_id: String::new(),
        };
        r.invalid(gtrid, tx.get_transaction(request).await, "gtrid");
        if !gtrid.is_empty() {
            let request = v1::WatchTransactionsRequest {
                gtrid: gtrid.into(),
            };
            r.invalid(gtrid, tx.watch_transactions(request).await, "gtrid");
        }
        let request = v1::ResolveBranchRequest {
            gtrid: gtrid.into(),
            bqual: 1,
            ..Default::default()
        };
        r.invalid(gtrid, world.admin().resolve_branch(request).await, "gtrid");
    }
    r.finish(110)?;
    world.left_nothing().await
}

pub async fn what_is_not_there(world: &World) -> anyhow::Result<()> {
    let mut r = Refusals::default();
    let mut tx = world.transactions();
    let (code, reason) = (Code::NotFound, "TRANSACTION_NOT_FOUND");
    let past = "01920000-0000-7000-8000-000000000000";
    let future = "ffffffff-ffff-7fff-bfff-ffffffffffff";
    for gtrid in [past, future] {
        let statement = Some(on("p1", "SELECT 1", vec![]));
        let request = v1::ExecuteStatementRequest {
            gtrid: gtrid.into(),
            statement,
        };
        r.expect(gtrid, tx.execute_statement(request).await, code, reason);
        let request = v1::CommitTransactionRequest {
            gtrid: gtrid.into(),
            ack: 0,
        };
        r.expect(gtrid, tx.commit(request).await, code, reason);
        let request = v1::RollbackTransactionRequest {
            gtrid: gtrid.into(),
        };
        r.expect(gtrid, tx.rollback(request).await, code, reason);
    }
    let get = |gtrid: &str, id: &str| v1::GetTransactionRequest {
        gtrid: gtrid.into(),
        request_id: id.into(),
    };
    // No decision on record is an answer: it was not committed, and never will be. But nothing can
    // be said of what is older than the record itself.
    let found = tx.get_transaction(get(future, "")).await?;
    let found = found.into_inner().transaction;
    let told = found.and_then(|tx| tx.reason).unwrap_or_default().code;
    ensure!(told == "PRESUMED_ABORT", "{future}: {told}");
    r.expect(
        "older",
        tx.get_transaction(get(past, "")).await,
        code,
        reason,
    );
    r.expect(
        "no request",
        tx.get_transaction(get("", "nobody's")).await,
        code,
        reason,
    );
    r.invalid("neither", tx.get_transaction(get("", "")).await, "gtrid");
    r.invalid(
        "both",
        tx.get_transaction(get(past, "x")).await,
        "request_id",
    );
    let nobody = "PARTICIPANT_NOT_FOUND";
    for name in ["p3", "P1", "p", "coordinator", "p1.evil.example"] {
        let alone = of(vec![on(name, "SELECT 1", vec![])]);
        r.expect(name, execute(world, alone).await, code, nobody);
        let write = on("p1", "UPDATE bad.canary SET n = n + 1 WHERE id = 1", vec![]);
        let with = of(vec![write, on(name, "SELECT 1", vec![])]);
        r.expect(name, execute(world, with).await, code, nobody);
    }
    let gtrid = tx
        .begin(v1::BeginTransactionRequest::default())
        .await?
        .into_inner()
        .gtrid;
    let statement = Some(on("p3", "SELECT 1", vec![]));
    let request = v1::ExecuteStatementRequest {
        gtrid: gtrid.clone(),
        statement,
    };
    r.expect(
        "interactive",
        tx.execute_statement(request).await,
        code,
        nobody,
    );
    let request = v1::ExecuteStatementRequest {
        gtrid: gtrid.clone(),
        statement: None,
    };
    r.invalid(
        "no statement",
        tx.execute_statement(request).await,
        "statement",
    );
    tx.rollback(v1::RollbackTransactionRequest { gtrid })
        .await?;
    for (sql, reason) in [
        ("SELECT * FROM bad.nothing", "STATEMENT_FAILED"),
        ("SELECT nothing FROM bad.canary", "STATEMENT_FAILED"),
        (
            "INSERT INTO bad.canary VALUES (1, 1, 'twin')",
            "CONSTRAINT_VIOLATED",
        ),
        ("UPDATE bad.canary SET id = 'x'", "STATEMENT_FAILED"),
        ("UPDATE bad.canary SET n = NULL", "CONSTRAINT_VIOLATED"),
        (
            "UPDATE bad.canary SET n = 9223372036854775807 + 1",
            "STATEMENT_FAILED",
        ),
    ] {
        let write = on("p2", "UPDATE bad.canary SET n = n + 1 WHERE id = 1", vec![]);
        let request = of(vec![write, on("p1", sql, vec![])]);
        r.expect(
            sql,
            execute(world, request).await,
            Code::FailedPrecondition,
            reason,
        );
    }
    r.finish(26)?;
    world.left_nothing().await
}
