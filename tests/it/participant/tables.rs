//! What a statement may write to, and what a session must not tell of whoever had it before.

use concord_proto::status::reason_of;
use concord_proto::v1;
use concord_proto::v1::value::Kind;
use concord_proto::v1::{Finish, QueryRequest, Vote};

use super::PLUS;
use super::harness::{Daemon, World, branch, code, on_every_server, statement, work};

const TAKE: &str = "UPDATE shop.till SET n = n - 1 WHERE id = 1";

/// The one value of a read outside branches.
async fn read(daemon: &Daemon, sql: &str) -> Option<Kind> {
    let query = QueryRequest {
        statement: Some(statement(sql)),
        timeout_ms: 0,
    };
    let answer = daemon.client.clone().query(query).await.expect("a row");
    let result = answer.into_inner().result.expect("a result");
    result.result[0].values[0].kind.clone()
}

async fn till(world: &World) -> i64 {
    world
        .number("SELECT CAST(n AS SIGNED) FROM shop.till WHERE id = 1")
        .await
}

#[test]
fn a_table_that_cannot_roll_back_is_not_written_to() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let create = "CREATE TABLE shop.till (id INT PRIMARY KEY, n INT NOT NULL) ENGINE=MyISAM; \
                      INSERT INTO shop.till VALUES (1, 100); \
                      CREATE TABLE shop.`tïll``'` (n INT) ENGINE=MyISAM";
        world.sql(create).await;

        let vote = daemon.prepare(&branch(1), &[PLUS, TAKE]).await;
        assert_eq!(vote.vote(), Vote::Abort);
        assert_eq!(code(vote.reason.as_ref()), "STATEMENT_NOT_ALLOWED");
        let why = vote.reason.expect("a reason").message;
        let mend = "ALTER TABLE `shop`.`till` ENGINE=InnoDB";
        assert!(why.contains("MyISAM") && why.contains(mend), "{why}");
        assert_eq!(vote.failed_statement, Some(1));
        let one = daemon.one_phase(&branch(1), &[TAKE]).await;
        assert_eq!(one.finish(), Finish::Aborted, "{one:?}");
        let open = branch(1);
        daemon.begin(&open, 10_000).await;
        daemon.execute(&open, PLUS).await.expect("it runs");
        let refused = daemon.execute(&open, TAKE).await.expect_err("a refusal");
        let reason = reason_of(&refused).expect("a reason");
        assert_eq!(&*reason.code, "STATEMENT_NOT_ALLOWED", "{reason}");
        assert_eq!(daemon.prepare(&open, &[]).await.vote(), Vote::Abort);
        for sql in [
            "INSERT INTO shop.`tïll``'` VALUES (1)",
            "REPLACE INTO shop.till VALUES (1, 1)",
            "DELETE FROM shop.till",
            "UPDATE IGNORE shop.till SET n = 0",
            "UPDATE LOW_PRIORITY shop.till SET n = 0",
            "DELETE a FROM shop.till AS a JOIN shop.t AS b ON a.id = b.id",
            "UPDATE shop.t AS b JOIN shop.till AS a ON a.id = b.id SET a.n = 0",
        ] {
            let vote = daemon.prepare(&branch(1), &[sql]).await;
            assert_eq!(code(vote.reason.as_ref()), "STATEMENT_NOT_ALLOWED", "{sql}");
        }
        assert_eq!((till(&world).await, world.n(1).await), (100, 100));

        // It may be read, and a table that is none is the server's to refuse.
        let read = "INSERT INTO shop.t SELECT id + 10, n FROM shop.till";
        let one = daemon.one_phase(&branch(1), &[read]).await;
        assert_eq!(one.finish(), Finish::Committed, "{one:?}");
        let vote = daemon.prepare(&branch(1), &["DELETE FROM shop.no"]).await;
        assert_eq!(code(vote.reason.as_ref()), "STATEMENT_FAILED");

        world.sql("ALTER TABLE shop.till ENGINE=InnoDB").await;
        let one = daemon.one_phase(&branch(1), &[PLUS, TAKE]).await;
        assert_eq!(one.finish(), Finish::Committed, "{one:?}");
        assert_eq!((till(&world).await, world.n(1).await), (99, 101));
    });
}

/// What is looked at before anything is sent must not tell a client that nothing happened.
#[test]
fn a_request_that_took_effect_is_told_so_whatever_stands_against_it_now() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let pay = async |daemon: &Daemon| {
            let paid = v1::Work {
                request_id: "invoice-17".to_owned(),
                request_fingerprint: 17,
                ..work(&[PLUS])
            };
            let request = v1::CommitRequest {
                branch: Some(branch(1)),
                one_phase: true,
                work: Some(paid),
            };
            let answer = daemon.client.clone().commit(request).await;
            answer.expect("an answer").into_inner()
        };
        let one = pay(&daemon).await;
        assert_eq!(one.finish(), Finish::Committed, "{one:?}");
        world.sql("ALTER TABLE shop.t ENGINE=MyISAM").await;
        // A look at a table's engine is remembered for a while, and not by a new participant.
        daemon.stop().await;
        let daemon = world.start().await;
        let refused = daemon.one_phase(&branch(1), &[PLUS]).await;
        assert_eq!(code(refused.reason.as_ref()), "STATEMENT_NOT_ALLOWED");
        let again = pay(&daemon).await;
        assert_eq!(again.finish(), Finish::Aborted, "{again:?}");
        assert_eq!(
            code(again.reason.as_ref()),
            "REQUEST_ALREADY_COMMITTED",
            "{again:?}"
        );
        assert_eq!(world.n(1).await, 101);
    });
}

#[test]
fn the_last_generated_id_is_the_branchs_own() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        world
            .sql(
                "CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, word VARCHAR(9), \
                 UNIQUE (word)) AUTO_INCREMENT = 41",
            )
            .await;
        let (add, again) = (
            "INSERT INTO shop.orders (word) VALUES ('one')",
            "INSERT IGNORE INTO shop.orders (word) VALUES ('one')",
        );
        let keep = |id| format!("INSERT INTO shop.t VALUES ({id}, LAST_INSERT_ID())");
        let one = daemon.one_phase(&branch(1), &[add, &keep(50)]).await;
        assert_eq!(one.finish(), Finish::Committed, "{one:?}");
        assert_eq!(world.n(50).await, 41);

        // Nothing is generated: what an earlier branch of the session generated is not told.
        let one = daemon.one_phase(&branch(1), &[again, &keep(51)]).await;
        assert_eq!(one.finish(), Finish::Committed, "{one:?}");
        assert_eq!(world.n(51).await, 0);
        let one = daemon.one_phase(&branch(1), &["SELECT 1", add]).await;
        assert_eq!(one.finish(), Finish::Aborted, "{one:?}");
        let open = branch(1);
        daemon.begin(&open, 10_000).await;
        daemon.execute(&open, &keep(52)).await.expect("it runs");
        let one = daemon.one_phase(&open, &[]).await;
        assert_eq!(one.finish(), Finish::Committed, "{one:?}");
        assert_eq!(world.n(52).await, 0);
    });
}

#[test]
fn a_read_is_not_told_what_its_session_generated_for_others() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let create = "CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY) \
                      AUTO_INCREMENT = 41";
        world.sql(create).await;
        for _ in 0..10 {
            let add = "INSERT INTO shop.orders VALUES ()";
            let one = daemon.one_phase(&branch(1), &[add]).await;
            assert_eq!(one.finish(), Finish::Committed, "{one:?}");
            let told = read(&daemon, "SELECT LAST_INSERT_ID()").await;
            let nothing = matches!(told, Some(Kind::Uint64(0) | Kind::Int64(0)));
            assert!(nothing, "{told:?}");
        }
    });
}

/// Operators are told by such reads what became of the other branches of a transaction.
#[test]
fn a_read_sees_only_what_is_committed_whatever_the_servers_level() {
    on_every_server(|world| async move {
        world
            .sql("SET GLOBAL TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
            .await;
        let daemon = world.start().await;
        let written = branch(1);
        let vote = daemon.prepare(&written, &[PLUS]).await;
        assert_eq!(vote.vote(), Vote::Commit, "{vote:?}");
        let n = "SELECT n FROM shop.t WHERE id = 1";
        assert_eq!(read(&daemon, n).await, Some(Kind::Int64(100)));
        let done = daemon.commit_until_final(&written).await;
        assert_eq!(done.finish(), Finish::Committed, "{done:?}");
        assert_eq!(read(&daemon, n).await, Some(Kind::Int64(101)));
    });
}
