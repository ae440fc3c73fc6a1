//! Bad input to the services that operators and daemons call.

use std::collections::HashMap;

use concord_proto::v1;
use tonic::Code;

use super::{Refusals, World};

/// A transaction that nobody has begun.
const NOBODYS: &str = "01920000-0000-7000-8000-000000000000";

fn resolve(reason: &str, resolution: i32) -> v1::ResolveBranchRequest {
    v1::ResolveBranchRequest {
        gtrid: NOBODYS.into(),
        bqual: 1,
        participant: "p1".into(),
        resolution,
        reason: reason.into(),
        force: true,
    }
}

pub async fn fields_of_administration(world: &World) -> anyhow::Result<()> {
    let mut r = Refusals::default();
    let mut admin = world.admin();
    for bqual in [0, 65, u32::MAX] {
        let request = v1::ResolveBranchRequest {
            bqual,
            ..resolve("why", 2)
        };
        r.invalid(bqual, admin.resolve_branch(request).await, "bqual");
    }
    for resolution in [0, 3, -1, i32::MAX] {
        r.invalid(
            resolution,
            admin.resolve_branch(resolve("why", resolution)).await,
            "resolution",
        );
    }
    for reason in ["", "  ", "a\nb", "\u{1b}[2J", &"w".repeat(1_001)] {
        r.invalid(
            format!("{reason:.9?}"),
            admin.resolve_branch(resolve(reason, 2)).await,
            "reason",
        );
    }
    let request = v1::ResolveBranchRequest {
        participant: "p 1".into(),
        ..resolve("why", 2)
    };
    r.invalid("a name", admin.resolve_branch(request).await, "participant");
    let request = v1::ResolveBranchRequest {
        participant: "p9".into(),
        ..resolve("why", 2)
    };
    let answer = admin.resolve_branch(request).await;
    r.expect("nobody", answer, Code::NotFound, "PARTICIPANT_NOT_FOUND");
    for number in [1, 2] {
        let answer = admin.resolve_branch(resolve("why", number)).await;
        r.expect(
            "nobody's branch",
            answer,
            Code::NotFound,
            "BRANCH_NOT_FOUND",
        );
    }
    for interval_ms in [1, 99, 60_001, u32::MAX] {
        let request = v1::WatchMetricsRequest { interval_ms };
        r.invalid(
            interval_ms,
            admin.watch_metrics(request).await,
            "interval_ms",
        );
    }
    let many: HashMap<String, String> = (0..101).map(|n| (n.to_string(), String::new())).collect();
    let control = HashMap::from([("a".to_owned(), "\0".to_owned())]);
    let nameless = HashMap::from([(String::new(), "1".to_owned())]);
    for settings in [HashMap::new(), many, control, nameless] {
        let request = v1::UpdateConfigRequest { settings };
        r.invalid("settings", admin.update_config(request).await, "settings");
    }
    let gtrid = |bytes: usize| v1::InquireBranch {
        gtrid: vec![0; bytes],
        bqual: 1,
    };
    for bytes in [0, 1, 15, 16, 17, 4_096] {
        let branches = vec![gtrid(bytes)];
        let request = v1::InquireRequest {
            participant: "p1".into(),
            branches,
        };
        r.invalid(
            bytes,
            world.outcomes().inquire(request).await,
            "branches[0].gtrid",
        );
    }
    let request = v1::InquireRequest {
        participant: String::new(),
        branches: vec![],
    };
    r.invalid(
        "nobody",
        world.outcomes().inquire(request).await,
        "participant",
    );
    let branches = vec![gtrid(16); 1_001];
    let request = v1::InquireRequest {
        participant: "p1".into(),
        branches,
    };
    r.invalid("1,001", world.outcomes().inquire(request).await, "branches");
    r.finish(30)?;
    world.left_nothing().await
}

/// A branch that nobody has begun, of a coordinator of this epoch.
fn branch(epoch: u64) -> v1::BranchRef {
    let gtrid = uuid::Uuid::now_v7().as_bytes().to_vec();
    v1::BranchRef {
        gtrid,
        bqual: 1,
        epoch,
    }
}

fn statement(sql: &str) -> v1::Statement {
    v1::Statement {
        sql: sql.into(),
        params: vec![],
        expect: None,
    }
}

pub async fn fields_of_a_participant(world: &World) -> anyhow::Result<()> {
    let mut r = Refusals::default();
    let mut p = world.participant();
    let epoch = p
        .get_status(v1::GetStatusRequest::default())
        .await?
        .into_inner()
        .epoch;
    let good = branch(epoch);
    let mut bad = vec![(None, "branch")];
    bad.push((
        Some(v1::BranchRef {
            epoch: 0,
            ..good.clone()
        }),
        "branch.epoch",
    ));
    for bqual in [0, 65, u32::MAX] {
        bad.push((
            Some(v1::BranchRef {
                bqual,
                ..good.clone()
            }),
            "branch.bqual",
        ));
    }
    for bytes in [0, 15, 16, 17, 1_000] {
        let gtrid = vec![9; bytes];
        bad.push((
            Some(v1::BranchRef {
                gtrid,
                ..good.clone()
            }),
            "branch.gtrid",
        ));
    }
    for (branch, field) in bad {
        let begin = v1::BeginRequest {
            branch: branch.clone(),
            ..Default::default()
        };
        r.invalid(field, p.begin(begin).await, field);
        let execute = v1::ExecuteRequest {
            branch: branch.clone(),
            statement: None,
        };
        r.invalid(field, p.execute(execute).await, field);
        let prepare = v1::PrepareRequest {
            branch: branch.clone(),
            work: None,
        };
        r.invalid(field, p.prepare(prepare).await, field);
        let commit = v1::CommitRequest {
            branch: branch.clone(),
            ..Default::default()
        };
        r.invalid(field, p.commit(commit).await, field);
        r.invalid(
            field,
            p.abort(v1::AbortRequest {
                branch: branch.clone(),
            })
            .await,
            field,
        );
        let resolve = v1::ResolveRequest {
            branch,
            ..Default::default()
        };
        r.invalid(field, p.resolve(resolve).await, field);
    }
    let work = v1::Work {
        statements: vec![statement("SELECT 1")],
        ..Default::default()
    };
    let commit = v1::CommitRequest {
        branch: Some(good.clone()),
        one_phase: false,
        work: Some(work.clone()),
    };
    r.invalid("two-phase work", p.commit(commit).await, "work");
    let empty = v1::Work::default();
    let prepare = v1::PrepareRequest {
        branch: Some(good.clone()),
        work: Some(empty),
    };
    r.invalid("no work", p.prepare(prepare).await, "work.statements");
    r.invalid(
        "no query",
        p.query(v1::QueryRequest::default()).await,
        "statement",
    );
    let query = v1::QueryRequest {
        statement: Some(statement("SELECT 1")),
        timeout_ms: 60_001,
    };
    r.invalid("a long query", p.query(query).await, "timeout_ms");
    let acknowledge = v1::AcknowledgeDamageRequest { id: 0 };
    r.invalid("no report", p.acknowledge_damage(acknowledge).await, "id");
    for id in [1, u64::MAX] {
        let answer = p
            .acknowledge_damage(v1::AcknowledgeDamageRequest { id })
            .await;
        r.expect(id, answer, Code::NotFound, "DAMAGE_NOT_FOUND");
    }
    // Reads outside a transaction only read.
    for sql in [
        "UPDATE bad.canary SET n = 9",
        "DELETE FROM bad.canary",
        "SELECT * FROM bad.canary FOR UPDATE",
        "INSERT INTO bad.canary VALUES (2, 2, '')",
        "SELECT SLEEP(9)",
        "SELECT 1; SELECT 2",
        "SELECT * FROM mysql.user",
        "SELECT 1 INTO OUTFILE '/tmp/concord-bad'",
    ] {
        let query = v1::QueryRequest {
            statement: Some(statement(sql)),
            timeout_ms: 0,
        };
        r.expect(
            sql,
            p.query(query).await,
            Code::InvalidArgument,
            "STATEMENT_NOT_ALLOWED",
        );
    }
    // A branch that was never begun can neither run a statement nor vote.
    let execute = v1::ExecuteRequest {
        branch: Some(branch(epoch)),
        statement: Some(statement("UPDATE bad.canary SET n = 9")),
    };
    r.expect(
        "no branch",
        p.execute(execute).await,
        Code::Aborted,
        "BRANCH_LOST",
    );
    r.finish(70)?;
    world.left_nothing().await
}

pub async fn migrations(world: &World) -> anyhow::Result<()> {
    let mut r = Refusals::default();
    let mut p = world.participant();
    let migrate = |schema: &str, versions: &[u32], sql: &str| v1::MigrateRequest {
        schema: schema.into(),
        migrations: versions
            .iter()
            .map(|version| v1::Migration {
                version: *version,
                statements: vec![sql.into()],
            })
            .collect(),
    };
    let table = "CREATE TABLE IF NOT EXISTS concord_bad.t (id INT PRIMARY KEY)";
    for schema in [
        "",
        "mysql",
        "concord",
        "bad",
        "concord_",
        "concord_X",
        "concord_a b",
        "concord_`",
        "concord_ä",
        "concord_a;",
        "information_schema",
        "concord_a.b",
        "concord_1234567890123456789012345",
    ] {
        r.invalid(
            schema,
            p.migrate(migrate(schema, &[1], table)).await,
            "schema",
        );
    }
    for versions in [&[0][..], &[2], &[1, 1], &[1, 3], &[2, 1], &[u32::MAX]] {
        let what = format!("versions {versions:?}");
        let request = migrate("concord_bad", versions, table);
        let answer = p.migrate(request).await;
        r.expect(what, answer, Code::InvalidArgument, "INVALID_FIELD");
    }
    for sql in [
        "",
        ";",
        "DROP TABLE bad.canary",
        "DROP DATABASE bad",
        "UPDATE bad.canary SET n = 9",
        "COMMIT",
        "CREATE TABLE bad.t (id INT)",
        "CREATE TABLE t (id INT)",
        "CREATE TABLE mysql.t (id INT)",
        "CREATE TABLE concord_bad.t AS SELECT * FROM bad.canary",
        "CREATE DATABASE evil",
        "CREATE TABLE concord_bad.t (id INT); DROP TABLE bad.canary",
        "CREATE USER evil",
        "CREATE TABLE concord_bad.t (id INT) /*! ENGINE=MyISAM */",
        "GRANT ALL ON *.* TO evil",
        "CREATE TRIGGER concord_bad.t BEFORE INSERT ON bad.canary FOR EACH ROW SET @a = 1",
        "ALTER TABLE bad.canary ADD x INT",
        "CREATE VIEW concord_bad.v AS SELECT 1",
        "XA COMMIT 'a'",
        "CREATE TABLE concord_bad.t (id INT) DATA DIRECTORY='/tmp'",
        "RENAME TABLE bad.canary TO bad.x",
        "ALTER TABLE concord_bad.t RENAME TO bad.t",
    ] {
        let answer = p.migrate(migrate("concord_bad", &[1], sql)).await;
        let told = answer.as_ref().err().map(tonic::Status::code);
        if told != Some(Code::InvalidArgument) {
            r.wrong.push(format!("{sql}: {answer:?}"));
        }
        r.seen += 1;
    }
    r.finish(40)?;
    world.left_nothing().await
}
