//! Every server that is here is initialised, killed, stopped and started again.

use super::*;

/// Starts each server in a folder of its own.
async fn servers() -> Vec<(tempfile::TempDir, Server)> {
    let mut servers = Vec::new();
    for binary in ServerBinary::under_test().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(ServerSpec::new(binary, folder.path().join("s"))).await;
        servers.push((folder, server.unwrap()));
    }
    assert!(
        !servers.is_empty(),
        "no server found; `deploy/servers mariadb` gets one"
    );
    servers
}

async fn value(connection: &mut MySqlConnection, sql: &'static str) -> String {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_keeps_what_was_committed_before_it_was_killed() {
    for (_folder, mut server) in servers().await {
        let mut root = server.root().await.unwrap();
        run(&mut root, "CREATE DATABASE shop".into()).await.unwrap();
        run(&mut root, "CREATE TABLE shop.t (id INT PRIMARY KEY)".into())
            .await
            .unwrap();
        run(&mut root, "INSERT INTO shop.t VALUES (1)".into())
            .await
            .unwrap();
        let first = server.process();

        server.kill9();
        assert!(!server.is_running());
        assert!(!first.is_alive());
        server.restart().await.unwrap();
        assert_ne!(server.process(), first);
        let mut root = server.root().await.unwrap();
        let count = "SELECT CAST(COUNT(*) AS CHAR) FROM shop.t";
        assert_eq!(value(&mut root, count).await, "1");
        drop(root);

        assert!(server.stop().await, "{} had to be killed", server.kind());
        assert!(!server.is_running());
        server.restart().await.unwrap();
        let mut root = server.root().await.unwrap();
        assert_eq!(value(&mut root, count).await, "1");

        let (process, spec) = (server.process(), server.spec_mut().clone());
        drop(server);
        assert!(!process.is_alive());
        let again = Server::start(spec).await.unwrap();
        assert!(again.is_running());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_participant_has_what_it_needs_and_root_only_the_socket() {
    for (_folder, server) in servers().await {
        let options = server.participant_options().unwrap();
        let mut participant = options.connect().await.unwrap();
        for sql in [
            "CREATE DATABASE concord_ledger",
            "CREATE TABLE concord_ledger.l (id INT PRIMARY KEY)",
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (id INT PRIMARY KEY)",
            "XA START 0x01, 0x01, 1",
            "INSERT INTO shop.t VALUES (1)",
            "XA END 0x01, 0x01, 1",
            "XA PREPARE 0x01, 0x01, 1",
            "XA RECOVER",
            "XA COMMIT 0x01, 0x01, 1",
            "SHOW PROCESSLIST",
        ] {
            run(&mut participant, sql.into())
                .await
                .unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        for sql in [
            "CREATE USER thief",
            "SELECT * FROM mysql.user",
            "DELETE FROM mysql.db",
            "GRANT ALL ON *.* TO 'concord'@'localhost'",
            "SELECT 1 INTO OUTFILE '/tmp/concord-thief'",
        ] {
            assert!(
                run(&mut participant, sql.into()).await.is_err(),
                "{}: {sql}",
                server.kind()
            );
        }
        for (name, wanted) in [
            ("innodb_flush_log_at_trx_commit", "1"),
            ("sync_binlog", "1"),
        ] {
            let sql = format!("SELECT CAST(@@global.{name} AS CHAR)");
            let found: String = sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_one(&mut participant)
                .await
                .unwrap();
            assert_eq!(found, wanted, "{name}");
        }
        let mut root = server.root().await.unwrap();
        let others = "SELECT CAST(COUNT(*) AS CHAR) FROM mysql.user \
             WHERE User IN ('root', '') AND Host <> 'localhost'";
        assert_eq!(value(&mut root, others).await, "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_has_only_the_socket_from_the_first_moment_on() {
    for binary in ServerBinary::under_test().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let spec = ServerSpec::new(binary, folder.path()).tcp(Tcp::Free);
        Server::init_datadir(&spec).await.unwrap();
        let server = Server::launch(spec).unwrap();
        // It listens, and nobody has made or mended an account yet.
        let limit = Duration::from_secs(READY_TIMEOUT_S);
        let mut root = server.answering(limit).await.unwrap();
        for others in [
            "SELECT CAST(COUNT(*) AS CHAR) FROM mysql.user \
             WHERE User = '' OR (User = 'root' AND Host <> 'localhost')",
            "SELECT CAST(COUNT(*) AS CHAR) FROM mysql.proxies_priv WHERE Host <> 'localhost'",
        ] {
            assert_eq!(value(&mut root, others).await, "0", "{}", server.kind());
        }
        let by_tcp = MySqlConnectOptions::new()
            .host("127.0.0.1")
            .port(server.port().unwrap())
            .username("root")
            .ssl_mode(MySqlSslMode::Disabled);
        let refused = by_tcp.connect().await.unwrap_err();
        assert!(refused.as_database_error().is_some(), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_start_shows_its_log() {
    for binary in ServerBinary::under_test().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let spec = ServerSpec::new(binary, folder.path()).arg("--no-such-setting=1");
        let error = Server::start(spec).await.unwrap_err();
        assert!(matches!(error, ServerError::Exited { .. }), "{error:?}");
        assert!(error.to_string().contains("no-such-setting"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_made_data_folder_is_made_anew() {
    for binary in ServerBinary::under_test().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data.new-1")).unwrap();
        let server = Server::start(ServerSpec::new(binary, folder.path()).tcp(Tcp::Free)).await;
        let server = server.unwrap();
        assert!(!folder.path().join("data.new-1").exists());
        let address = ("127.0.0.1", server.port().unwrap());
        tokio::net::TcpStream::connect(address).await.unwrap();
    }
}
