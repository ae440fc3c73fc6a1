//! RETURNING: MariaDB has it and reserves the word; MySQL has not, and would take what follows the
//! word for a call.

use concord_client::local::server::ServerKind;
use concord_proto::status::reason_of;
use concord_proto::v1::{Finish, Vote};

use super::PLUS;
use super::harness::{branch, code, on_every_server};

const ADD: &str = "INSERT INTO shop.t VALUES (60, 7) RETURNING n";
const DROP: &str = "DELETE FROM shop.t WHERE id = 60 RETURNING (n + 1)";

#[test]
fn a_write_returns_rows_on_mariadb_and_is_refused_on_mysql() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        if world.server.kind() == ServerKind::Mariadb {
            for (sql, rows) in [(ADD, 1), (DROP, 0)] {
                let one = daemon.one_phase(&branch(1), &[sql]).await;
                assert_eq!(one.finish(), Finish::Committed, "{one:?}");
                assert_eq!(one.results[0].result.len(), 1, "{one:?}");
                let there = "SELECT COUNT(*) FROM shop.t WHERE id = 60";
                assert_eq!(world.number(there).await, rows);
            }
            return;
        }
        let vote = daemon.prepare(&branch(1), &[PLUS, ADD]).await;
        assert_eq!(vote.vote(), Vote::Abort, "{vote:?}");
        assert_eq!(code(vote.reason.as_ref()), "STATEMENT_NOT_ALLOWED");
        assert_eq!(vote.failed_statement, Some(1));
        let why = vote.reason.expect("a reason").message;
        assert!(why.contains("MySQL has no RETURNING"), "{why}");
        let one = daemon.one_phase(&branch(1), &[DROP]).await;
        assert_eq!(one.finish(), Finish::Aborted, "{one:?}");
        assert_eq!(code(one.reason.as_ref()), "STATEMENT_NOT_ALLOWED");
        let open = branch(1);
        daemon.begin(&open, 10_000).await;
        daemon.execute(&open, PLUS).await.expect("it runs");
        let refused = daemon.execute(&open, ADD).await.expect_err("a refusal");
        let reason = reason_of(&refused).expect("a reason");
        assert_eq!(&*reason.code, "STATEMENT_NOT_ALLOWED", "{reason}");
        assert_eq!(daemon.prepare(&open, &[]).await.vote(), Vote::Abort);
        assert_eq!(world.n(1).await, 100);

        // A column may have the name: in backticks, or where nothing is written.
        world
            .sql("ALTER TABLE shop.t ADD COLUMN `returning` INT NOT NULL DEFAULT 3")
            .await;
        let (set, read) = (
            "UPDATE shop.t SET n = `returning` WHERE id = 1",
            "SELECT returning FROM shop.t",
        );
        let one = daemon.one_phase(&branch(1), &[set, read]).await;
        assert_eq!(one.finish(), Finish::Committed, "{one:?}");
        assert_eq!(world.n(1).await, 3);
    });
}
