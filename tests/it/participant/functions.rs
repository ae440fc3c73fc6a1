//! No function of somebody else's is called, whatever it is named: it could write where nothing is
//! rolled back, wait, or end the branch.

use concord_client::local::server::ACCOUNT;
use concord_proto::v1::Finish;

use super::PLUS;
use super::harness::{branch, code, on_every_server};

/// What a stored function of such a name leaves behind, also when its branch is rolled back.
const CALLED: &str = "SELECT COUNT(*) FROM shop.called";

/// This program's driver asks for IGNORE_SPACE, which no session of a participant has.
const PLAIN: &str = "SET SESSION sql_mode = @@GLOBAL.sql_mode";

#[test]
fn a_stored_function_is_never_called() {
    on_every_server(|world| async move {
        world
            .sql(
                "SET GLOBAL log_bin_trust_function_creators = 1; \
                 CREATE TABLE shop.called (id INT) ENGINE=MyISAM",
            )
            .await;
        // What MySQL gave up, what MariaDB never had, and what a blank makes of native names.
        for name in [
            "md5",
            "uuid_to_bin",
            "count",
            "max",
            "lateral",
            "columns",
            "escape",
            "f",
        ] {
            let create = format!(
                "CREATE FUNCTION shop.`{name}`(a INT) RETURNS INT MODIFIES SQL DATA BEGIN \
                 INSERT INTO shop.called VALUES (1); RETURN a; END"
            );
            world.sql(&create).await;
        }
        let grant = format!("GRANT ALL ON shop.* TO '{ACCOUNT}'@'localhost'");
        world.sql(&grant).await;
        // The trap works.
        for (called, sql) in [
            (1, "SELECT count (1)"),
            (2, "SELECT `max`(1)"),
            (3, "SELECT f(1)"),
        ] {
            world.sql(&format!("{PLAIN}; USE shop; {sql}")).await;
            assert_eq!(world.number(CALLED).await, called, "{sql}");
        }
        world.sql("TRUNCATE shop.called").await;

        let mut options = world.options();
        options.database = Some("shop".to_owned());
        let daemon = world.start_on(options, |_| ()).await;
        for sql in [
            "UPDATE t SET n = md5(n)",
            "UPDATE t SET n = uuid_to_bin(n)",
            "UPDATE t SET n = `count`(n)",
            "UPDATE t SET n = shop.max(n)",
            "UPDATE t SET n = lateral(n)",
            "UPDATE t SET n = columns(n)",
            "UPDATE t SET n = escape (n)",
            "UPDATE t SET n = f(n)",
            "INSERT INTO t (id) SELECT f(n) FROM t",
            "DELETE FROM t WHERE CONVERT(n, f(n))",
        ] {
            // Refused, here or by the server, which takes it for a function of its own.
            let one = daemon.one_phase(&branch(1), &[PLUS, sql]).await;
            assert_eq!(one.finish(), Finish::Aborted, "{sql}: {one:?}");
            assert_eq!(world.number(CALLED).await, 0, "{sql}");
        }
        let counted = "UPDATE t SET n = (SELECT count (*) + max /* */ (v) FROM \
                       (SELECT 7 AS v) AS d) WHERE id = 1";
        let one = daemon.one_phase(&branch(2), &[counted]).await;
        assert_eq!(one.finish(), Finish::Committed, "{one:?}");
        assert_eq!((world.n(1).await, world.number(CALLED).await), (8, 0));
    });
}

#[test]
fn a_sequence_is_not_drawn_from() {
    on_every_server(|world| async move {
        if world.number("SELECT VERSION() LIKE '%MariaDB%'").await == 0 {
            return;
        }
        world
            .sql("CREATE SEQUENCE shop.s; SET GLOBAL sql_mode = 'ORACLE'")
            .await;
        let daemon = world.start().await;
        for (sql, told) in [
            (
                "INSERT INTO shop.s VALUES (9,1,9,1,1,1,0,0)",
                "STATEMENT_NOT_ALLOWED",
            ),
            (
                "UPDATE shop.t SET n = NEXT VALUE FOR shop.s",
                "STATEMENT_NOT_ALLOWED",
            ),
            (
                "UPDATE shop.t SET n = NEXTVAL(shop.s)",
                "STATEMENT_NOT_ALLOWED",
            ),
            // In the mode ORACLE it would be the same.
            ("UPDATE shop.t SET n = shop.s.nextval", "STATEMENT_FAILED"),
        ] {
            let vote = daemon.prepare(&branch(1), &[PLUS, sql]).await;
            assert_eq!(code(vote.reason.as_ref()), told, "{sql}: {vote:?}");
        }
        let next = "SELECT next_not_cached_value FROM shop.s";
        assert_eq!(world.number(next).await, 1);
    });
}
