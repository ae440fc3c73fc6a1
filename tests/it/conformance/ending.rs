//! Connections whose work was given up let go of their locks. On MySQL, where the last answer of a
//! connection that is killed may reach another one, they are killed only when nothing else helps.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use concord_client::local::server::ServerKind;
use concord_participant::resource::conformance::Harness as _;
use concord_participant::resource::mysql::{Address, MySql};
use concord_participant::resource::{Finished, Prepared, ResourceManager as _};
use tokio::io::AsyncWriteExt;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::types::{branch, statement, work};
use super::verdicts::until;
use super::{Real, text, under_test};

/// The statements of our own account that begin so, as the server has logged them.
async fn said(real: &Real, verb: &str) -> usize {
    let count = format!(
        "SELECT COUNT(*) FROM mysql.general_log WHERE user_host LIKE 'concord%' \
         AND CONVERT(argument USING utf8mb4) REGEXP '^{verb} [0-9]'"
    );
    let rows = real.sql(&count).await;
    rows[0][0]
        .as_deref()
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

/// A statement that waits is interrupted, and nothing is left of it.
async fn a_wait_is_interrupted(real: &Real) {
    let verb = match real.kind {
        ServerKind::Mysql => "KILL QUERY",
        ServerKind::Mariadb => "KILL",
    };
    let mut options = real.options();
    options.lock_wait_timeout = Duration::from_secs(600);
    let rm = MySql::start(options);
    until("it votes", async || rm.health().borrow().can_vote()).await;
    real.sql("INSERT INTO conformance.t VALUES ('held', 0)")
        .await;
    real.lock("held").await;
    for (given_up, cancels) in [("by its time", false), ("by a cancel", true)] {
        let before = said(real, verb).await;
        let id = branch();
        let update = "UPDATE conformance.t SET v = v + 1 WHERE k = 'held'";
        let mut waiting = work(vec![statement(update, Vec::new())]);
        waiting.timeout = Duration::from_secs(if cancels { 600 } else { 5 });
        let prepared = tokio::spawn({
            let rm = Arc::clone(&rm);
            async move { rm.prepare(id, Some(&waiting)).await }
        });
        let waits = "SELECT 1 FROM information_schema.processlist WHERE user = 'concord' \
                     AND state = 'updating' AND info LIKE 'UPDATE%held%'";
        until("it waits", async || !real.sql(waits).await.is_empty()).await;
        if cancels {
            rm.cancel(id);
        }
        let prepared = prepared.await.expect("no panic");
        assert!(
            matches!(prepared, Prepared::NotPrepared { .. }),
            "{given_up}: {prepared:?}"
        );
        assert!(said(real, verb).await > before, "{given_up}");
        let left = "SELECT 1 FROM information_schema.processlist WHERE user = 'concord' \
                    AND command NOT IN ('Sleep') AND info LIKE '%held%'";
        until("nothing of it runs", async || {
            real.sql(left).await.is_empty()
        })
        .await;
    }
    real.unlock().await;
    rm.stop().await;
}

/// What lies between has forgotten a connection and tells the server nothing.
async fn a_thread_that_hears_nothing_is_killed(real: &Real) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = real.options();
    let Address::Socket(far) = options.address else {
        panic!("it listens on a socket")
    };
    let near = folder.path().join("socket");
    let forget = Arc::new(Notify::new());
    let mut between = JoinSet::new();
    between.spawn(pass(
        UnixListener::bind(&near).expect("a socket"),
        far,
        Arc::clone(&forget),
    ));
    options.address = Address::Socket(near);
    let rm = MySql::start(options);
    until("it votes", async || rm.health().borrow().can_vote()).await;
    real.sql("INSERT INTO conformance.t VALUES ('forgotten', 0)")
        .await;
    let id = branch();
    let update = "UPDATE conformance.t SET v = v + 1 WHERE k = 'forgotten'";
    let update = statement(update, Vec::new());
    let begun = rm.begin(id, None, Duration::from_secs(60)).await;
    begun.expect("it begins");
    rm.execute(id, &update).await.expect("it has the row");
    forget.notify_waiters();
    rm.execute(id, &update).await.expect_err("its end is heard");
    assert_eq!(rm.rollback(id).await, Finished::Done);
    let mut root = real.root().await;
    let locked = "SET SESSION innodb_lock_wait_timeout = 10; \
                  UPDATE conformance.t SET v = 7 WHERE k = 'forgotten'";
    text(&mut root, locked).await.expect("the row is free");
    assert!(said(real, "KILL").await > 0, "what else has freed it?");
    rm.stop().await;
}

/// Passes each connection until it is to be forgotten: then the near side is closed, and the far
/// side stays open.
async fn pass(listener: UnixListener, far: PathBuf, forget: Arc<Notify>) {
    let mut connections = JoinSet::new();
    let mut forgotten = Vec::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (mut near, _) = accepted.expect("a connection");
                let mut far = UnixStream::connect(&far).await.expect("the server");
                let forget = Arc::clone(&forget);
                connections.spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => None,
                        () = forget.notified() => {
                            drop(near.shutdown().await);
                            Some((near, far))
                        }
                    }
                });
            }
            Some(ended) = connections.join_next() => forgotten.extend(ended.expect("no panic")),
        }
    }
}

async fn on(kind: ServerKind) {
    let Some(binary) = under_test(kind) else {
        return;
    };
    let real = Real::start(binary).await;
    real.sql("SET GLOBAL log_output = 'TABLE'; SET GLOBAL general_log = ON")
        .await;
    a_wait_is_interrupted(&real).await;
    a_thread_that_hears_nothing_is_killed(&real).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_on_mysql() {
    on(ServerKind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_on_mariadb() {
    on(ServerKind::Mariadb).await;
}
