//! Connections whose work was given up let go of their locks. On MySQL, where the last answer of a
//! connection that is killed may reach another one, they are killed only when nothing else helps.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use concord_client::local::server::ServerKind;
use concord_core::id::BranchId;
use concord_core::reason::code;
use concord_participant::resource::conformance::Harness as _;
use concord_participant::resource::mysql::xa::Xids;
use concord_participant::resource::mysql::{Address, MySql, ledger};
use concord_participant::resource::{Finished, Prepared, ResourceManager as _};
use sqlx::Connection as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use tokio::io::AsyncWriteExt;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::types::{branch, statement, work};
use super::verdicts::until;
use super::{CLUSTER, Real, text, under_test};

/// Branches that are ended while their connection is, for each verb.
const LEFT: usize = 25;
/// Far more than one of them needs.
const ENDED_IN: Duration = Duration::from_secs(30);
/// What a server has to give back between letting go of a branch and telling `InnoDB` so.
const LOCKS: &str = "WITH RECURSIVE n (i) AS \
                     (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) \
                     SELECT COUNT(GET_LOCK(CONCAT(CONNECTION_ID(), '-', i), 0)) FROM n";

/// The statements of our own account that begin so, as the server has logged them.
async fn said(real: &Real, verb: &str) -> usize {
    let count = format!(
        "SELECT COUNT(*) FROM mysql.general_log WHERE user_host LIKE '{}[%' \
         AND CONVERT(argument USING utf8mb4) REGEXP '^{verb} [0-9]'",
        real.options.user
    );
    let rows = real.sql(&count).await;
    rows[0][0]
        .as_deref()
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

/// How the work of a branch is given up while a statement of it waits for a lock.
#[derive(Clone, Copy, Debug)]
enum GivenUp {
    OutOfTime,
    Cancelled,
    /// Whoever waited for the vote has gone.
    Dropped,
    /// An interactive branch.
    RolledBack,
}

impl GivenUp {
    const ALL: [Self; 4] = [
        Self::OutOfTime,
        Self::Cancelled,
        Self::Dropped,
        Self::RolledBack,
    ];
}

/// A statement that waits is interrupted, and nothing is left of it.
async fn a_wait_is_interrupted(real: &Real, ways: &[GivenUp]) {
    let verb = match real.kind {
        ServerKind::Mysql => "KILL QUERY",
        ServerKind::Mariadb => "KILL",
    };
    let mut options = real.options();
    options.lock_wait_timeout = Duration::from_secs(600);
    let rm = MySql::start(options);
    until("it votes", async || rm.health().borrow().can_vote()).await;
    real.sql("REPLACE INTO conformance.t VALUES ('held', 0)")
        .await;
    let runs = format!(
        "SELECT 1 FROM information_schema.processlist WHERE user = '{}' AND info LIKE '%held%'",
        real.options.user
    );
    real.lock("held").await;
    for given_up in ways.iter().copied() {
        let before = said(real, verb).await;
        let id = branch();
        let rm_of_it = Arc::clone(&rm);
        let waiting = tokio::spawn(async move { wait(&rm_of_it, id, given_up).await });
        let waits = format!("{runs} AND state = 'updating' AND info LIKE 'UPDATE%'");
        until("it waits", async || !real.sql(&waits).await.is_empty()).await;
        match given_up {
            GivenUp::OutOfTime => {}
            GivenUp::Cancelled => rm.cancel(id),
            GivenUp::Dropped => waiting.abort(),
            GivenUp::RolledBack => is_given_up(&rm.rollback(id).await),
        }
        match waiting.await {
            Ok(()) => {}
            Err(dropped) if dropped.is_cancelled() => {}
            Err(panic) => panic!("{given_up:?}: {panic}"),
        }
        until("it is interrupted", async || {
            said(real, verb).await > before
        })
        .await;
        let left = format!("{runs} AND command NOT IN ('Sleep')");
        until("nothing of it runs", async || {
            real.sql(&left).await.is_empty()
        })
        .await;
    }
    real.unlock().await;
    rm.stop().await;
}

/// A branch that was not prepared is rolled back, or gone with its connection.
fn is_given_up(finished: &Finished) {
    let gone = matches!(finished, Finished::Done | Finished::NoSuchBranch);
    assert!(gone || looked_too_long(finished), "{finished:?}");
}

/// Runs a statement that waits until it is given up.
async fn wait(rm: &MySql, id: BranchId, given_up: GivenUp) {
    let update = "UPDATE conformance.t SET v = v + 1 WHERE k = 'held'";
    let update = statement(update, Vec::new());
    let time = Duration::from_secs(match given_up {
        GivenUp::OutOfTime => 5,
        GivenUp::Cancelled | GivenUp::Dropped | GivenUp::RolledBack => 600,
    });
    if matches!(given_up, GivenUp::RolledBack) {
        rm.begin(id, None, time).await.expect("it begins");
        rm.execute(id, &update).await.expect_err("it is given up");
        return;
    }
    let mut waiting = work(vec![update]);
    waiting.timeout = time;
    match rm.prepare(id, Some(&waiting)).await {
        Prepared::NotPrepared { .. } => {}
        // The look whether it is gone came too late.
        Prepared::Unknown { .. } => {
            let ended = async {
                loop {
                    let finished = rm.rollback(id).await;
                    is_given_up(&finished);
                    if !looked_too_long(&finished) {
                        break;
                    }
                }
            };
            timeout(ENDED_IN, ended).await.expect("it is rolled back");
        }
        other => panic!("{given_up:?}: {other:?}"),
    }
}

/// What lies between has forgotten a connection and tells the server nothing.
async fn a_thread_that_hears_nothing_is_killed(real: &Real) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = real.options();
    let Address::Socket(far) = options.address else {
        panic!("it listens on a socket")
    };
    let near = folder.path().join("socket");
    let listener = UnixListener::bind(&near).expect("a socket");
    let (forget, orders) = mpsc::channel(1);
    let mut between = JoinSet::new();
    between.spawn(pass(listener, far, orders));
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
    let before = said(real, "KILL").await;
    let (done, forgotten) = oneshot::channel();
    forget.send(done).await.expect("it listens");
    forgotten.await.expect("they are forgotten");
    rm.execute(id, &update).await.expect_err("its end is heard");
    is_given_up(&rm.rollback(id).await);
    let mut root = real.root().await;
    let locked = "SET SESSION innodb_lock_wait_timeout = 10; \
                  UPDATE conformance.t SET v = 7 WHERE k = 'forgotten'";
    text(&mut root, locked).await.expect("the row is free");
    assert!(said(real, "KILL").await > before, "what else freed it?");
    rm.stop().await;
}

/// Passes connections. Told to forget them, it closes their near sides, leaves their far sides
/// open, and then answers: nothing passes on them any more.
async fn pass(
    listener: UnixListener,
    far: PathBuf,
    mut orders: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let forget = Arc::new(Notify::new());
    let mut passing = JoinSet::new();
    let mut forgotten = Vec::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (mut near, _) = accepted.expect("a connection");
                let mut far = UnixStream::connect(&far).await.expect("the server");
                // Hears of every order from here on, also of one before its task has run.
                let told = Arc::clone(&forget).notified_owned();
                passing.spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => None,
                        () = told => {
                            drop(near.shutdown().await);
                            Some((near, far))
                        }
                    }
                });
            }
            Some(done) = orders.recv() => {
                forget.notify_waiters();
                forgotten.extend(std::mem::take(&mut passing).join_all().await);
                done.send(()).expect("somebody waits");
            }
        }
    }
}

/// Ends branches whose connections are just being killed. A server that keeps branches attached
/// answers OK to a verb that comes a moment too early, and does nothing.
async fn a_verb_that_was_answered_has_had_its_effect(real: &Real) {
    if real.kind == ServerKind::Mysql {
        real.sql("SET GLOBAL xa_detach_on_prepare = OFF").await;
    }
    let rm = MySql::start(real.options());
    until("it has looked", async || rm.health().borrow().reachable).await;
    let mut root = real.root().await;
    for round in 0..2 * LEFT {
        let (id, commits) = (branch(), round < LEFT);
        let (_owner, number) = leave_prepared(real, id, round).await;
        let kill = format!("KILL {number}");
        let ended = async {
            loop {
                let finished = if commits {
                    rm.commit(id).await
                } else {
                    rm.rollback(id).await
                };
                match finished {
                    Finished::Done => break,
                    Finished::NoSuchBranch => tokio::task::yield_now().await,
                    other => assert!(looked_too_long(&other), "round {round}: {other:?}"),
                }
            }
        };
        let ended = timeout(ENDED_IN, ended);
        let (killed, ended) = tokio::join!(text(&mut root, &kill), ended);
        ended.expect("it ends");
        killed.expect("it is killed");
        let level = if commits { "COMMITTED" } else { "UNCOMMITTED" };
        let seen = format!(
            "SET TRANSACTION ISOLATION LEVEL READ {level}; \
             SELECT v FROM conformance.t WHERE k = 'left {round}'"
        );
        let seen = text(&mut root, &seen).await.expect("a look");
        assert_eq!(!seen.is_empty(), commits, "round {round}: {seen:?}");
    }
    rm.stop().await;
    if real.kind == ServerKind::Mysql {
        real.sql("SET GLOBAL xa_detach_on_prepare = ON").await;
    }
}

/// A connection of the participants' account, as one of a former life has.
async fn log_in(real: &Real) -> MySqlConnection {
    let options = real.options();
    let Address::Socket(socket) = options.address else {
        panic!("it listens on a socket")
    };
    let options = MySqlConnectOptions::new()
        .socket(socket)
        .username(&options.user)
        .password(&options.password.0);
    MySqlConnection::connect_with(&options)
        .await
        .expect("it logs in")
}

/// A verb is sent when `InnoDB` has let go of the branch, and not before.
async fn no_verb_is_sent_while_a_branch_is_attached(real: &Real) {
    if real.kind == ServerKind::Mysql {
        return;
    }
    let rm = MySql::start(real.options());
    until("it votes", async || rm.health().borrow().can_vote()).await;
    let id = branch();
    let (owner, _) = leave_prepared(real, id, 2 * LEFT).await;
    let sent = "SELECT COUNT(*) FROM mysql.general_log WHERE user_host LIKE 'concord%' \
                AND CONVERT(argument USING utf8mb4) REGEXP '^XA (COMMIT|ROLLBACK)'";
    let before = real.sql(sent).await;
    for _ in 0..3 {
        for refused in [rm.commit(id).await, rm.rollback(id).await] {
            let waits = refused == Finished::NoSuchBranch || looked_too_long(&refused);
            assert!(waits, "{refused:?}");
        }
    }
    assert_eq!(real.sql(sent).await, before);
    drop(owner.close().await);
    until("it is committed", async || {
        rm.commit(id).await == Finished::Done
    })
    .await;
    assert_ne!(real.sql(sent).await, before);
    rm.stop().await;
}

/// Whatever a server answers, a verb whose effect the ledger row does not show has not happened.
async fn an_answer_without_its_effect_is_not_believed(real: &Real) {
    let rm = MySql::start(real.options());
    until("it votes", async || rm.health().borrow().can_vote()).await;
    if real.kind == ServerKind::Mariadb {
        // Its own row would show the commit, and it has none.
        let (id, _) = prepare_by_hand(real).await;
        until("it is free", async || is_doubted(&rm.commit(id).await)).await;
    }
    // Its own row would be gone after the rollback, and another one stands there.
    let (id, number) = prepare_by_hand(real).await;
    let mut other = real.root().await;
    let mut row = String::from("BEGIN; ");
    ledger::push_branch_row(&mut row, id, number, None);
    text(&mut other, &row).await.expect("a row");
    until("it is free", async || is_doubted(&rm.rollback(id).await)).await;
    text(&mut other, "ROLLBACK").await.expect("no row");
    rm.stop().await;
}

/// Prepares a branch that has no ledger row, on a connection of this id that is closed then.
async fn prepare_by_hand(real: &Real) -> (BranchId, u64) {
    let (id, mut owner) = (branch(), real.root().await);
    let number = number_of(&mut owner).await;
    let xid = Xids::new(CLUSTER).text(id);
    let insert = format!("INSERT INTO conformance.t VALUES ('by hand {number}', 1)");
    let prepare = format!("XA START {xid}; {insert}; XA END {xid}; XA PREPARE {xid}");
    text(&mut owner, &prepare).await.expect("it is prepared");
    drop(owner.close().await);
    (id, number)
}

/// Whether the server has answered OK, and was not believed.
fn is_doubted(finished: &Finished) -> bool {
    match finished {
        Finished::NoSuchBranch => false,
        Finished::Unknown(reason) => {
            assert!(reason.message.contains("does not show it"), "{reason}");
            true
        }
        other => {
            assert!(looked_too_long(other), "{other:?}");
            false
        }
    }
}

/// The server's id of a connection.
async fn number_of(connection: &mut MySqlConnection) -> u64 {
    let rows = text(connection, "SELECT CONNECTION_ID()").await;
    let number = rows.expect("an id")[0][0].clone().expect("an id");
    number.parse().expect("a number")
}

/// What ends connections and branches knows its own account by its name.
async fn an_account_may_have_any_name(real: &mut Real) {
    real.sql("RENAME USER 'concord'@'localhost' TO 'con@cord'@'localhost'")
        .await;
    "con@cord".clone_into(&mut real.options.user);
    a_wait_is_interrupted(real, &[GivenUp::Cancelled]).await;
    let rm = MySql::start(real.options());
    until("it votes", async || rm.health().borrow().can_vote()).await;
    let id = branch();
    let (owner, _) = leave_prepared(real, id, 2 * LEFT + 1).await;
    drop(owner.close().await);
    until("it is committed", async || {
        rm.commit(id).await == Finished::Done
    })
    .await;
    rm.stop().await;
}

/// Nothing was done, because the machine had no time to look whether it may be.
fn looked_too_long(finished: &Finished) -> bool {
    matches!(finished, Finished::NotDone(reason) if &*reason.code == code::DEADLINE_EXCEEDED)
}

/// Prepares a branch that writes `left {round}`; its connection, which has much to give back when
/// it ends, and the id of that.
async fn leave_prepared(real: &Real, id: BranchId, round: usize) -> (MySqlConnection, u64) {
    let xid = Xids::new(CLUSTER).text(id);
    let mut owner = log_in(real).await;
    text(&mut owner, LOCKS).await.expect("they are free");
    let number = number_of(&mut owner).await;
    let mut row = String::new();
    ledger::push_branch_row(&mut row, id, number, None);
    let prepare = format!(
        "XA START {xid}; {row}; INSERT INTO conformance.t VALUES ('left {round}', 1); \
         XA END {xid}; XA PREPARE {xid}"
    );
    text(&mut owner, &prepare).await.expect("it is prepared");
    (owner, number)
}

async fn on(kind: ServerKind) {
    let Some(binary) = under_test(kind) else {
        return;
    };
    let mut real = Real::start(binary).await;
    real.sql("SET GLOBAL log_output = 'TABLE'; SET GLOBAL general_log = ON")
        .await;
    a_wait_is_interrupted(&real, &GivenUp::ALL).await;
    a_thread_that_hears_nothing_is_killed(&real).await;
    a_verb_that_was_answered_has_had_its_effect(&real).await;
    no_verb_is_sent_while_a_branch_is_attached(&real).await;
    an_answer_without_its_effect_is_not_believed(&real).await;
    an_account_may_have_any_name(&mut real).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_on_mysql() {
    on(ServerKind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_on_mariadb() {
    on(ServerKind::Mariadb).await;
}
