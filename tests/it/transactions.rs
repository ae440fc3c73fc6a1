//! Generic transactions end to end: one-shot and interactive, on both servers.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use concord_client::{CallError, Client, Outcome, RetryPolicy, Statement, v1};
use concord_tests::cluster::{Cluster, eventually, voted};
use concord_tests::rig;
use nix::sys::signal::Signal;
use sqlx::Row;
use tokio::time::timeout;
use v1::transaction_service_client::TransactionServiceClient;
use v1::value::Kind;

use crate::bank::{SOON, World, committed, refused};

const ADD: &str = "UPDATE work.t SET n = n + 1 WHERE id = ?";
const READ: &str = "SELECT n FROM work.t WHERE id = ?";

/// Ten rows on each server.
pub async fn create_tables(cluster: &Cluster) -> anyhow::Result<()> {
    for n in 1..=2 {
        let sql = "CREATE DATABASE work; \
                   CREATE TABLE work.t (id BIGINT PRIMARY KEY, n BIGINT NOT NULL) ENGINE=InnoDB; \
                   INSERT INTO work.t VALUES (1,0),(2,0),(3,0),(4,0),(5,0),(6,0),(7,0),(8,0), \
                   (9,0); \
                   CREATE TABLE work.types (id BIGINT UNSIGNED PRIMARY KEY, small TINYINT, \
                   deci DECIMAL(20,4), doub DOUBLE, word VARCHAR(50) CHARACTER SET utf8mb4, \
                   raw VARBINARY(50), day DATE, clock TIME(3), moment DATETIME(6), nil INT) \
                   ENGINE=InnoDB";
        cluster.sql(n, sql).await?;
    }
    Ok(())
}

fn add(id: i64) -> Statement {
    Statement::new(ADD)
        .bind(id)
        .expect_rows(1, Some(1), "NO_ROW")
}

fn read(id: i64) -> Statement {
    Statement::new(READ).bind(id)
}

/// The one number of a result.
fn number(result: &v1::StatementResult) -> anyhow::Result<i64> {
    let row = result.result.first().context("a row")?;
    match row.values.first().and_then(|value| value.kind.as_ref()) {
        Some(Kind::Int64(number)) => Ok(*number),
        other => bail!("no number: {other:?}"),
    }
}

/// What the server itself says that a row holds.
async fn held(world: &World, server: usize, id: i64) -> anyhow::Result<i64> {
    let mut root = world.cluster.root(server).await?;
    Ok(sqlx::query(READ)
        .bind(id)
        .fetch_one(&mut root)
        .await?
        .try_get(0)?)
}

/// Whether a call was refused for this reason.
fn refusal<T: std::fmt::Debug>(answer: Result<T, CallError>, code: &str) -> anyhow::Result<()> {
    match answer {
        Err(CallError::Refused { reason, .. }) if &*reason.code == code => Ok(()),
        other => bail!("not refused with {code}: {other:?}"),
    }
}

pub async fn the_sockets_of_one_host(world: &World) -> anyhow::Result<()> {
    let socket = world.cluster.dir().canonicalize()?.join("gateway.sock");
    let client = Client::connect(format!("unix:{}", socket.display()))?;
    committed(client.one_shot().on("p1", add(9)).send().await)?;
    let participants = client.list_participants().await?;
    ensure!(
        participants.iter().all(|p| p.address.starts_with("unix:/")),
        "{participants:?}"
    );
    for wrong in ["unix:", "unix:gateway.sock", "unix://host/path"] {
        let refused = Client::connect(wrong).map(|_| ());
        ensure!(refused.is_err(), "{wrong} is no address");
    }
    let nobody = format!("unix:{}/nobody.sock", world.cluster.dir().display());
    let nobody = Client::connect(nobody)?.with_retry(RetryPolicy::none());
    let refused = nobody.cluster_status().await;
    ensure!(
        matches!(refused, Err(CallError::NotSent { .. })),
        "{refused:?}"
    );
    Ok(())
}

pub async fn interactive_commit_and_rollback(world: &World) -> anyhow::Result<()> {
    let mut tx = world.client.begin().await?;
    for participant in ["p1", "p2"] {
        ensure!(tx.execute(participant, add(1)).await?.rows == 1, "one row");
        ensure!(
            number(&tx.execute(participant, read(1)).await?)? == 1,
            "it reads its own writes"
        );
    }
    ensure!(
        (held(world, 1, 1).await?, held(world, 2, 1).await?) == (0, 0),
        "nobody else does"
    );
    let gtrid = tx.gtrid().to_owned();
    committed(tx.commit().await)?;
    ensure!(
        (held(world, 1, 1).await?, held(world, 2, 1).await?) == (1, 1),
        "committed"
    );
    let known = world.client.transaction(&gtrid).await?;
    ensure!(
        known.state() == v1::TransactionState::Committed,
        "{known:?}"
    );
    ensure!(known.branches.len() == 2, "{known:?}");

    let mut tx = world.client.begin().await?;
    tx.execute("p1", add(1)).await?;
    tx.execute("p2", add(1)).await?;
    tx.rollback().await?;
    let mut dropped = world.client.begin().await?;
    dropped.execute("p2", add(2)).await?;
    drop(dropped);
    let empty = world.client.begin().await?;
    committed(empty.commit().await)?;
    eventually("the rows are free", SOON, async || {
        committed(
            world
                .client
                .one_shot()
                .on("p1", add(1))
                .on("p2", add(2))
                .send()
                .await,
        )
        .map(Some)
    })
    .await?;
    let now = (
        held(world, 1, 1).await?,
        held(world, 2, 1).await?,
        held(world, 2, 2).await?,
    );
    ensure!(
        now == (2, 1, 1),
        "what was rolled back is not there: {now:?}"
    );
    Ok(())
}

pub async fn a_failed_statement_aborts_all(world: &World) -> anyhow::Result<()> {
    let before = (held(world, 1, 3).await?, held(world, 2, 3).await?);
    let twin = "INSERT INTO work.t VALUES (3, 0)";
    for (bad, code) in [
        (Statement::new(twin), "CONSTRAINT_VIOLATED"),
        (
            Statement::new("UPDATE work.nothing SET n = 1"),
            "STATEMENT_FAILED",
        ),
        (Statement::new("COMMIT"), "STATEMENT_NOT_ALLOWED"),
        (add(99), "NO_ROW"),
    ] {
        for order in [["p1", "p2"], ["p2", "p1"]] {
            let all = world
                .client
                .one_shot()
                .on(order[0], add(3))
                .on(order[1], bad.clone());
            refused(all.on(order[0], read(3)).send().await, code)?;
            let mut tx = world.client.begin().await?;
            tx.execute(order[0], add(3)).await?;
            tx.execute(order[1], add(3)).await?;
            let gtrid = tx.gtrid().to_owned();
            refusal(tx.execute(order[1], bad.clone()).await, code)?;
            refusal(tx.execute(order[0], add(3)).await, code)?;
            refused(tx.commit().await, code)?;
            let known = world.client.transaction(&gtrid).await?;
            ensure!(
                known.reason.as_ref().is_some_and(|r| r.code == code),
                "{known:?}"
            );
        }
    }
    let after = (held(world, 1, 3).await?, held(world, 2, 3).await?);
    ensure!(
        after == before,
        "half a transaction: {before:?} became {after:?}"
    );
    Ok(())
}

/// A statement that never reached a branch has failed like any other: what was done before it
/// cannot be committed without it, and holds no lock until the time-out.
pub async fn a_statement_that_is_refused_at_the_door_aborts_all(
    world: &World,
) -> anyhow::Result<()> {
    let mut client = raw(world).await?;
    let before = held(world, 1, 3).await?;
    let nobody = |gtrid: &str| {
        let mut request = on_p1(gtrid, add(3));
        if let Some(statement) = &mut request.statement {
            statement.participant = "p3".into();
        }
        request
    };
    let empty = |gtrid: &str| v1::ExecuteStatementRequest {
        gtrid: gtrid.into(),
        statement: None,
    };
    let requests: [&dyn Fn(&str) -> v1::ExecuteStatementRequest; 2] = [&nobody, &empty];
    for refused in requests {
        let begun = client.begin(v1::BeginTransactionRequest::default()).await?;
        let gtrid = begun.into_inner().gtrid;
        client.execute_statement(on_p1(&gtrid, add(3))).await?;
        let answer = client.execute_statement(refused(&gtrid)).await;
        ensure!(answer.is_err(), "{answer:?}");
        let commit = v1::CommitTransactionRequest { gtrid, ack: 0 };
        let answer = client.commit(commit).await;
        ensure!(answer.is_err(), "the rest was committed: {answer:?}");
        // Its row is free again.
        let alone = world.client.one_shot().timeout(SOON).on("p1", add(3));
        ensure!(alone.send().await.is_committed());
    }
    let after = held(world, 1, 3).await?;
    ensure!(after == before + 2, "{before} became {after}");
    Ok(())
}

/// A client of the generated code: the library would not let two calls of one transaction run.
async fn raw(world: &World) -> anyhow::Result<TransactionServiceClient<tonic::transport::Channel>> {
    Ok(TransactionServiceClient::connect(world.cluster.endpoint()).await?)
}

fn on_p1(gtrid: &str, statement: Statement) -> v1::ExecuteStatementRequest {
    let statement = Some(statement.into_message());
    let statement = Some(v1::TargetedStatement {
        participant: "p1".into(),
        statement,
    });
    v1::ExecuteStatementRequest {
        gtrid: gtrid.into(),
        statement,
    }
}

pub async fn one_statement_at_a_time(world: &World) -> anyhow::Result<()> {
    let mut client = raw(world).await?;
    let gtrid = client
        .begin(v1::BeginTransactionRequest::default())
        .await?
        .into_inner()
        .gtrid;
    let mut root = world.cluster.root(1).await?;
    sqlx::raw_sql("BEGIN; UPDATE work.t SET n = n WHERE id = 4")
        .execute(&mut root)
        .await?;
    let (waiting, mut other) = (on_p1(&gtrid, add(4)), client.clone());
    let waiting = tokio::spawn(async move { other.execute_statement(waiting).await });
    eventually("the first statement waits for the row", SOON, async || {
        // Not innodb_trx: that is a copy which frequent readers keep from being renewed.
        let waits = "SELECT COUNT(*) FROM information_schema.processlist \
                     WHERE info LIKE '%work.t%' AND id <> CONNECTION_ID()";
        let waits: i64 = sqlx::query_scalar(waits).fetch_one(&mut root).await?;
        Ok((waits > 0).then_some(()))
    })
    .await?;
    // Meanwhile every other call of the transaction is refused.
    let second = client.execute_statement(on_p1(&gtrid, read(5))).await;
    let second = second.err().context("a second statement is refused")?;
    let reason = concord_proto::status::reason_of(&second).context("a reason")?;
    ensure!(&*reason.code == "WRONG_STATE", "{reason}");
    let commit = v1::CommitTransactionRequest {
        gtrid: gtrid.clone(),
        ack: 0,
    };
    let early = client
        .commit(commit.clone())
        .await
        .err()
        .context("an early commit is refused")?;
    let reason = concord_proto::status::reason_of(&early).context("a reason")?;
    ensure!(&*reason.code == "WRONG_STATE", "{reason}");
    sqlx::raw_sql("ROLLBACK").execute(&mut root).await?;
    ensure!(
        waiting
            .await??
            .into_inner()
            .result
            .is_some_and(|r| r.rows == 1),
        "it ran"
    );
    client.commit(commit.clone()).await?;
    ensure!(
        held(world, 1, 4).await? == 1,
        "the refused calls did no harm"
    );
    // A repeated commit gets the outcome of the first.
    client.commit(commit).await?;
    Ok(())
}

pub async fn a_client_that_disappears_leaves_no_lock(world: &World) -> anyhow::Result<()> {
    let long = Some(Duration::from_secs(5));
    let mut tx = world
        .client
        .begin_with(v1::Isolation::Unspecified, long)
        .await?;
    tx.execute("p1", add(5)).await?;
    tx.execute("p2", add(5)).await?;
    let gtrid = tx.gtrid().to_owned();
    // As if its process were gone: nothing is sent any more.
    std::mem::forget(tx);
    let short = Duration::from_millis(300);
    let early = world
        .client
        .one_shot()
        .on("p1", add(5))
        .timeout(short)
        .send()
        .await;
    ensure!(!early.is_committed(), "the row was locked: {early:?}");
    eventually("the rows are free", SOON, async || {
        let both = world.client.one_shot().on("p1", add(5)).on("p2", add(5));
        committed(both.send().await).map(Some)
    })
    .await?;
    ensure!(
        (held(world, 1, 5).await?, held(world, 2, 5).await?) == (1, 1),
        "only ours is there"
    );
    let known = world.client.transaction(&gtrid).await?;
    ensure!(
        known
            .reason
            .as_ref()
            .is_some_and(|r| r.code == "DEADLINE_EXCEEDED"),
        "{known:?}"
    );
    let commit = v1::CommitTransactionRequest { gtrid, ack: 0 };
    let late = raw(world)
        .await?
        .commit(commit)
        .await
        .err()
        .context("a late commit is refused")?;
    ensure!(late.code() == tonic::Code::DeadlineExceeded, "{late:?}");
    Ok(())
}

pub async fn isolation_is_a_choice(world: &World) -> anyhow::Result<()> {
    let wanted = [
        (v1::Isolation::ReadCommitted, true),
        (v1::Isolation::RepeatableRead, false),
    ];
    for (isolation, sees) in wanted {
        let mut tx = world.client.begin_with(isolation, None).await?;
        let first = number(&tx.execute("p1", read(6)).await?)?;
        world
            .cluster
            .sql(1, "UPDATE work.t SET n = n + 1 WHERE id = 6")
            .await?;
        let second = number(&tx.execute("p1", read(6)).await?)?;
        ensure!(
            (second == first + 1) == sees,
            "{isolation:?}: {first}, then {second}"
        );
        tx.rollback().await?;
    }
    let mut tx = world
        .client
        .begin_with(v1::Isolation::Serializable, None)
        .await?;
    tx.execute("p1", read(6)).await?;
    let mut root = world.cluster.root(1).await?;
    sqlx::raw_sql("SET SESSION innodb_lock_wait_timeout = 1")
        .execute(&mut root)
        .await?;
    let write = sqlx::raw_sql("UPDATE work.t SET n = n + 1 WHERE id = 6")
        .execute(&mut root)
        .await;
    ensure!(write.is_err(), "a serializable reader holds its row");
    tx.rollback().await?;
    eventually("the row is free", SOON, async || {
        sqlx::raw_sql("UPDATE work.t SET n = n WHERE id = 6")
            .execute(&mut root)
            .await?;
        Ok(Some(()))
    })
    .await
}

/// The state of each branch, by participant.
async fn branches(world: &World, outcome: Outcome) -> anyhow::Result<[v1::BranchState; 2]> {
    let gtrid = outcome.gtrid().context("a gtrid")?.to_owned();
    committed(outcome)?;
    let known = world.client.transaction(&gtrid).await?;
    let state = |name: &str| {
        let branch = known
            .branches
            .iter()
            .find(|branch| branch.participant == name);
        branch
            .map(v1::Branch::state)
            .with_context(|| format!("no branch on {name}: {known:?}"))
    };
    Ok([state("p1")?, state("p2")?])
}

pub async fn branches_that_only_read(world: &World) -> anyhow::Result<()> {
    use v1::BranchState::{Committed, ReadOnly};
    let writer = world.client.one_shot().on("p1", add(7)).on("p2", read(7));
    ensure!(
        branches(world, writer.send().await).await? == [Committed, ReadOnly],
        "one reads"
    );
    let readers = world.client.one_shot().on("p1", read(7)).on("p2", read(7));
    ensure!(
        branches(world, readers.send().await).await? == [ReadOnly, ReadOnly],
        "both read"
    );
    let serializable = world
        .client
        .one_shot()
        .isolation(v1::Isolation::Serializable)
        .on("p1", add(7))
        .on("p2", read(7));
    let kept = branches(world, serializable.send().await).await?;
    ensure!(
        kept == [Committed, Committed],
        "its read locks must last: {kept:?}"
    );
    let locking = Statement::new("SELECT n FROM work.t WHERE id = 7 FOR UPDATE");
    let locking = world
        .client
        .one_shot()
        .on("p1", add(7))
        .on("p2", locking)
        .send()
        .await;
    let kept = branches(world, locking).await?;
    ensure!(
        kept == [Committed, Committed],
        "so must explicit locks: {kept:?}"
    );
    Ok(())
}

/// Locks of reads last until the outcome, also when the branch is prepared long before another one
/// has its own.
pub async fn locks_of_reads_last(world: &World) -> anyhow::Result<()> {
    for lock in ["LOCK IN SHARE MODE", "FOR UPDATE"] {
        let mut other = world.cluster.root(1).await?;
        sqlx::raw_sql("BEGIN; SELECT n FROM work.t WHERE id = 6 FOR UPDATE")
            .execute(&mut other)
            .await?;
        let locking = Statement::new(format!("SELECT n FROM work.t WHERE id = 6 {lock}"));
        let tx = world.client.one_shot().on("p1", add(6)).on("p2", locking);
        let running = tokio::spawn(async move { tx.send().await });
        let kind = world.cluster.server.kind();
        let mut probe = world.cluster.root(2).await?;
        eventually("its locking branch is prepared", SOON, async || {
            let listed = rig::recover(&mut probe, kind).await?;
            Ok((!listed.is_empty()).then_some(()))
        })
        .await?;
        let write = "SET innodb_lock_wait_timeout = 1; UPDATE work.t SET n = n + 1 WHERE id = 6";
        let written = sqlx::raw_sql(write).execute(&mut probe).await;
        let refused = written.as_ref().err().map(ToString::to_string);
        let waited = refused.is_some_and(|error| error.contains("Lock wait timeout"));
        ensure!(waited, "{lock}: its lock is gone: {written:?}");
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
        committed(running.await?)?;
    }
    Ok(())
}

pub async fn results_of_every_type(world: &World) -> anyhow::Result<()> {
    let kinds = vec![
        Kind::Uint64(u64::MAX),
        Kind::Int64(-128),
        Kind::Decimal("-1234567890123456.7890".into()),
        Kind::Double(-0.1),
        Kind::String("it's \"ünïcode\" \\ 🦀\n".into()),
        Kind::Bytes(vec![0, 255, 39, 92, 10]),
        Kind::Date("2028-02-29".into()),
        Kind::Time("-838:59:59.000".into()),
        Kind::Datetime("9999-12-31 23:59:59.999999".into()),
        Kind::Null(v1::NullValue::Null.into()),
    ];
    let params = kinds
        .iter()
        .map(|kind| v1::Value {
            kind: Some(kind.clone()),
        })
        .collect();
    let insert = v1::Statement {
        sql: "INSERT INTO work.types VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)".into(),
        params,
        expect: None,
    };
    let select = Statement::new("SELECT * FROM work.types WHERE id = ?")
        .bind(u64::MAX)
        .into_message();
    let mut statements = Vec::new();
    for participant in ["p1", "p2"] {
        for statement in [insert.clone(), select.clone()] {
            let statement = Some(statement);
            statements.push(v1::TargetedStatement {
                participant: participant.into(),
                statement,
            });
        }
    }
    let request = v1::ExecuteTransactionRequest {
        statements,
        ..Default::default()
    };
    let done = raw(world).await?.execute(request).await?.into_inner();
    ensure!(done.results.len() == 4, "{done:?}");
    for result in [&done.results[1], &done.results[3]] {
        let names: Vec<&str> = result.columns.iter().map(|column| &*column.name).collect();
        ensure!(names[0] == "id" && names[9] == "nil", "{names:?}");
        let row = result.result.first().context("a row")?;
        let found: Vec<Kind> = row
            .values
            .iter()
            .filter_map(|value| value.kind.clone())
            .collect();
        ensure!(found == kinds, "{found:#?}");
    }
    Ok(())
}

pub async fn the_same_row_twice(world: &World) -> anyhow::Result<()> {
    let before = held(world, 1, 8).await?;
    let outcome = world
        .client
        .one_shot()
        .on("p1", add(8))
        .on("p2", add(8))
        .on("p1", add(8))
        .on("p1", read(8))
        .send()
        .await;
    let results = committed(outcome)?;
    ensure!(number(&results[3])? == before + 2, "{results:?}");
    ensure!(held(world, 1, 8).await? == before + 2, "both are there");
    Ok(())
}

pub async fn watchers_see_the_states_in_order(world: &World) -> anyhow::Result<()> {
    use v1::TransactionState::{Aborted, Aborting, Committed, Committing, Prepared, Preparing};
    for (commit, expected) in [
        (true, vec![Preparing, Prepared, Committing, Committed]),
        (false, vec![Aborting, Aborted]),
    ] {
        let mut tx = world.client.begin().await?;
        let gtrid = tx.gtrid().to_owned();
        let mut changes = world.client.watch_transactions(Some(&gtrid)).await?;
        tx.execute("p1", add(9)).await?;
        tx.execute("p2", add(9)).await?;
        if commit {
            committed(tx.commit().await)?;
        } else {
            tx.rollback().await?;
        }
        let (mut states, mut times, mut branches) = (Vec::new(), Vec::new(), 0);
        while states.last() != expected.last() {
            let change = timeout(SOON, changes.message())
                .await
                .context("no more changes")??;
            let change = change.context("the stream ended")?;
            ensure!(change.gtrid == gtrid && change.missed == 0, "{change:?}");
            let time = change.time.context("a time")?;
            times.push((time.seconds, time.nanos));
            match change.bqual {
                0 => states.push(change.state()),
                _ => branches += 1,
            }
        }
        let last = &states[states.len().saturating_sub(expected.len())..];
        ensure!(last == expected, "{states:?} does not end in {expected:?}");
        ensure!(
            times.is_sorted() && branches >= 2,
            "{branches} changes of branches at {times:?}"
        );
    }
    Ok(())
}

pub async fn a_decision_is_answered_before_it_is_applied(world: &World) -> anyhow::Result<()> {
    let before = (held(world, 1, 2).await?, held(world, 2, 2).await?);
    let mut lock = world.cluster.root(2).await?;
    sqlx::raw_sql("BEGIN; UPDATE work.t SET n = n WHERE id = 2")
        .execute(&mut lock)
        .await?;
    let both = world.client.one_shot().on("p1", add(2)).on("p2", add(2));
    let running = tokio::spawn(both.ack(v1::Ack::Decided).timeout(3 * SOON).send());
    voted(&world.client, "p1").await?;
    // Nobody can tell p1 of the decision, and the client hears of it all the same.
    ensure!(
        world.cluster.signal("p1", Signal::SIGSTOP)?,
        "it did not run"
    );
    sqlx::raw_sql("ROLLBACK").execute(&mut lock).await?;
    // Whoever waits for p1 would be answered when the transaction's time is up.
    let outcome = timeout(SOON, running).await??;
    let gtrid = outcome.gtrid().context("a gtrid")?.to_owned();
    committed(outcome)?;
    let known = world.client.transaction(&gtrid).await?;
    ensure!(
        known.state() == v1::TransactionState::Committing,
        "{known:?}"
    );
    ensure!(held(world, 1, 2).await? == before.0, "p1 was stopped");
    world.cluster.signal("p1", Signal::SIGCONT)?;
    eventually("it is applied", SOON, async || {
        let now = (held(world, 1, 2).await?, held(world, 2, 2).await?);
        Ok((now == (before.0 + 1, before.1 + 1)).then_some(()))
    })
    .await
}
