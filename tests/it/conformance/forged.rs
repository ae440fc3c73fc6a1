//! Rows that the driver takes for the server's own answers: a first column of 16 MiB begins like
//! the end of a result, and the rows after it like the next answers. Nobody may speak for the
//! server so, neither in an own transaction nor to whoever has the connection next.

use std::time::Duration;

use concord_client::local::server::ServerKind;
use concord_core::reason::{Reason, code};
use concord_participant::resource::mysql::MySql;
use concord_participant::resource::{Finished, Prepared, ResourceManager as _};
use concord_proto::model::{Expect, Statement, Value};
use concord_proto::v1::value::Kind;

use super::types::{branch, statement, work};
use super::{Real, under_test};

const TIMEOUT: Duration = Duration::from_secs(20);
/// "The statement is done and more answers follow", "done", "done", and the last one is done:
/// the guard, XA END and XA PREPARE.
const VOTE: &str = "SELECT REPEAT('x', 17301504), x'00' \
    UNION ALL SELECT '', x'0008000000' UNION ALL SELECT '', x'0008000000' \
    UNION ALL SELECT '', x'0000000000'";
/// The same for the seal, if it could be guessed that there is one and not what it says.
const SEALED: &str = "SELECT REPEAT('x', 17301504), x'00' \
    UNION ALL SELECT '', x'0008000000' UNION ALL SELECT '', x'0008000000' \
    UNION ALL SELECT '', x'0008000000' UNION ALL SELECT '', x'0000000000'";
/// "One row was changed", for the statement after this one.
const CHANGED: &str = "SELECT REPEAT('x', 17301504), x'00', x'00' \
    UNION ALL SELECT '', x'00', x'00000000000000000000'";
/// No more answers: what follows waits in the connection for the next one.
const LEFT_BEHIND: &str = "SELECT REPEAT('x', 16777216), x'00', x'00' \
    UNION ALL SELECT '', x'00', x'00000000000000000000' \
    UNION ALL SELECT '', x'00', x'00000000000000000000'";

/// Changes nothing, and must change one row.
fn guarded() -> Statement {
    Statement {
        expect: Some(Expect {
            min: 1,
            max: Some(1),
            reason: "INSUFFICIENT_FUNDS".into(),
        }),
        ..statement(
            "UPDATE conformance.t SET v = v - 1 WHERE k = 'nobody'",
            Vec::new(),
        )
    }
}

/// The rows end the answer too early, or are no packets that the driver can read.
fn is_unread(reason: &Reason) -> bool {
    [code::RESULT_TOO_LARGE, code::UNEXPECTED_ANSWER].contains(&&*reason.code)
}

/// Whoever comes next on each of the few connections hears the server itself.
async fn next_is_told_the_truth(rm: &MySql) {
    for number in 0..8 {
        let sql = statement("SELECT ?", vec![Value::Int(number)]);
        let result = rm.query(&sql, TIMEOUT).await.expect("a number");
        let value = result.result[0].values[0].kind.clone();
        assert_eq!(value, Some(Kind::Int64(number)));
        let id = branch();
        let prepared = rm.prepare(id, Some(&work(vec![guarded()]))).await;
        let Prepared::NotPrepared { reason, .. } = prepared else {
            panic!("{prepared:?}")
        };
        assert_eq!(&*reason.code, "INSUFFICIENT_FUNDS");
    }
}

async fn nobody_speaks_for_the_server(kind: ServerKind) {
    let Some(binary) = under_test(kind) else {
        return;
    };
    let real = Real::start(binary).await;
    real.sql("SET GLOBAL max_allowed_packet = 67108864").await;
    let mut options = real.options();
    options.max_connections = 1;
    options.reserve_connections = 1;
    let rm = MySql::start(options);
    for sql in [VOTE, SEALED, CHANGED, LEFT_BEHIND] {
        for statements in [
            vec![statement(sql, Vec::new())],
            vec![statement(sql, Vec::new()), guarded()],
            vec![guarded(), statement(sql, Vec::new())],
        ] {
            let id = branch();
            let prepared = rm.prepare(id, Some(&work(statements))).await;
            assert!(
                matches!(
                    prepared,
                    Prepared::NotPrepared { .. } | Prepared::Unknown { .. }
                ),
                "{sql}: {prepared:?}"
            );
            next_is_told_the_truth(&rm).await;
            let listed = rm.recover().await.expect("a list");
            assert!(!listed.ours.contains(&id), "{sql}");
        }
        let refused = rm
            .query(&statement(sql, Vec::new()), TIMEOUT)
            .await
            .expect_err(sql);
        assert!(is_unread(&refused), "{refused}");
        next_is_told_the_truth(&rm).await;

        let id = branch();
        rm.begin(id, None, TIMEOUT).await.expect("it begins");
        let refused = rm
            .execute(id, &statement(sql, Vec::new()))
            .await
            .expect_err(sql);
        assert!(is_unread(&refused), "{refused}");
        assert_eq!(rm.rollback(id).await, Finished::Done, "{sql}");
        next_is_told_the_truth(&rm).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_answers_on_mysql() {
    nobody_speaks_for_the_server(ServerKind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_answers_on_mariadb() {
    nobody_speaks_for_the_server(ServerKind::Mariadb).await;
}
