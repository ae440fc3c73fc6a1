//! Statements that get no answer in their time: because they are slow, because the server hangs,
//! or because their connection has died without a word.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use concord_core::id::{Bqual, BranchId, Gtrid};
use concord_participant::resource::mysql::{Address, MySql, Options};
use concord_participant::resource::{Finished, Health, ResourceManager as _};
use concord_proto::model;
use concord_proto::v1::{self, Finish, Vote};
use concord_tests::proxy::{self, Fault, Kind, Proxy};
use futures::future::join_all;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::PLUS;
use super::harness::{Daemon, World, branch, on_every_server, prepare, statement, until};

/// A read that takes far longer than any test.
const ENDLESS: &str = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n \
                       WHERE i < 999) SELECT COUNT(*) FROM n a CROSS JOIN n b CROSS JOIN n c \
                       CROSS JOIN n d";
/// Connections that are idle when something goes wrong.
const IDLE: usize = 12;
/// As the soak test's longest fault: longer than the daemons' patience with a silent link.
const STALL: Duration = Duration::from_millis(6_500);
/// How long branches may be in doubt after everything passes again: far more than they need, and
/// far less than the time-out of a verb.
const AFTER_STALL: Duration = Duration::from_secs(8);

fn behind(world: &World, socket: &Path) -> Options {
    let mut options = world.options();
    options.address = Address::Socket(socket.to_owned());
    options
}

/// A way to the server that can be held.
fn proxied(world: &World, folder: &Path) -> (PathBuf, Proxy) {
    let socket = folder.join("s.sock");
    let target = proxy::Address::Unix(world.server.socket().to_owned());
    let proxy = Proxy::on_socket(socket.clone(), target, Kind::Bytes).expect("a proxy");
    (socket, proxy)
}

/// Ids of the participants' connections.
async fn connections(world: &World) -> BTreeSet<u64> {
    let mut root = world.server.root().await.expect("root");
    let sql = "SELECT id FROM information_schema.processlist WHERE user = 'concord'";
    let rows = root.fetch_all(AssertSqlSafe(sql)).await;
    let rows = rows.expect("the process list");
    rows.iter()
        .map(|row| row.try_get_unchecked::<u64, _>(0).expect("an id"))
        .collect()
}

/// Thorough looks at the server, so far.
async fn looks(world: &World) -> i64 {
    let mut root = world.server.root().await.expect("root");
    let sql = "SHOW GLOBAL STATUS LIKE 'Com_xa_recover'";
    let row = root.fetch_one(sqlx::raw_sql(sql)).await.expect("a row");
    let count: String = row.get_unchecked(1);
    count.parse().expect("a number")
}

/// Leaves so many connections idle.
async fn warm(rm: &MySql) {
    let branches = [(); IDLE].map(|()| BranchId {
        gtrid: Gtrid(*uuid::Uuid::now_v7().as_bytes()),
        bqual: Bqual(1),
    });
    for branch in branches {
        let begun = rm.begin(branch, None, Duration::from_secs(20)).await;
        begun.expect("it begins");
    }
    for branch in branches {
        assert_eq!(rm.rollback(branch).await, Finished::Done);
    }
}

async fn warm_daemon(daemon: &Daemon) {
    let branches = [(); IDLE].map(|()| branch(1));
    for branch in &branches {
        daemon.begin(branch, 20_000).await;
    }
    for branch in &branches {
        assert_eq!(daemon.abort(branch).await.finish(), Finish::Aborted);
    }
}

#[test]
fn a_statement_out_of_time_costs_nobody_else_anything() {
    on_every_server(|world| async move {
        let mut options = world.options();
        // Only who has reason to looks at the server.
        options.check_interval = Duration::from_secs(3_600);
        let rm = MySql::start(options);
        warm(&rm).await;
        let (before, looks_before) = (connections(&world).await, looks(&world).await);
        assert!(before.len() >= IDLE, "{before:?}");
        let endless = model::Statement {
            sql: ENDLESS.into(),
            params: Vec::new(),
            expect: None,
        };
        let late = rm.query(&endless, Duration::from_millis(300)).await;
        let reason = late.expect_err("it takes longer");
        assert_eq!(&*reason.code, "DEADLINE_EXCEEDED", "{reason}");
        until("the server to be told", || async {
            let running = "SELECT COUNT(*) FROM information_schema.processlist WHERE \
                           user = 'concord' AND info LIKE '%CROSS JOIN%'";
            world.number(running).await == 0
        })
        .await;
        warm(&rm).await;
        let left = connections(&world).await;
        let gone: Vec<_> = before.difference(&left).collect();
        // Its own; and another one, if the statement ended just before it was to be killed.
        assert!(gone.len() <= 2, "{gone:?} of {before:?} are closed");
        let looked = looks(&world).await - looks_before;
        assert_eq!(looked, 0, "votes waited for a look");
        assert!(rm.health().borrow().can_vote());
    });
}

#[test]
fn a_server_that_hangs_is_noticed_and_found_again() {
    on_every_server(|world| async move {
        let folder = tempfile::tempdir().expect("a folder");
        let (socket, proxy) = proxied(&world, folder.path());
        let rm = MySql::start(behind(&world, &socket));
        warm(&rm).await;
        let mut health = rm.health();
        // A look that hangs in a question which may wait for a lock is given up late, and says no
        // more than that; the next look begins with one that waits for nothing.
        let patience = Duration::from_secs(40);
        let held = proxy.link().hold(Fault::Stall);
        let began = Instant::now();
        let down = health.wait_for(|health| {
            let problem = health.problems.first();
            !health.reachable && problem.is_some_and(|problem| &*problem.code == "SERVER_DOWN")
        });
        let down = tokio::time::timeout(patience, down).await;
        down.expect("it is noticed").expect("a health");
        eprintln!("noticed after {:.1?}", began.elapsed());
        drop(held);
        let freed = Instant::now();
        let up = health.wait_for(Health::can_vote);
        let up = tokio::time::timeout(patience, up).await;
        up.expect("it is found").expect("a health");
        eprintln!("found after {:.1?}", freed.elapsed());
        assert!(freed.elapsed() < AFTER_STALL, "{:?}", freed.elapsed());
        warm(&rm).await;
    });
}

/// Where a server is away, no work is sent to it; before the first look it only has to wait.
#[test]
fn a_server_is_away_only_when_the_first_look_at_it_has_failed() {
    on_every_server(|world| async move {
        let folder = tempfile::tempdir().expect("a folder");
        let (socket, proxy) = proxied(&world, folder.path());
        let held = proxy.link().hold(Fault::Stall);
        let daemon = world.launch_on(behind(&world, &socket), |_| ()).await;
        let said = std::cell::RefCell::new(Vec::new());
        until("the look to fail", || async {
            let problems = daemon.status().await.problems;
            let [problem] = &problems[..] else {
                panic!("one problem: {problems:?}");
            };
            let mut said = said.borrow_mut();
            if said.last() != Some(&problem.code) {
                said.push(problem.code.clone());
            }
            problem.code == "SERVER_DOWN"
        })
        .await;
        assert_eq!(said.into_inner(), ["SHUTTING_DOWN", "SERVER_DOWN"]);
        drop(held);
        daemon.serving(true).await;
    });
}

/// Asks for what cannot be answered, with little time for each.
async fn impatient(daemon: &Daemon, end: Instant) {
    let plus = "UPDATE shop.t SET n = n + 1 WHERE id = 2";
    while Instant::now() < end {
        let query = v1::QueryRequest {
            statement: Some(statement("SELECT n FROM shop.t WHERE id = 2")),
            timeout_ms: 300,
        };
        let branch = branch(1);
        let mut work = prepare(&branch, &[plus]);
        work.work.as_mut().expect("a work").timeout_ms = 300;
        let (mut reader, mut writer) = (daemon.client.clone(), daemon.client.clone());
        let (_, vote) = tokio::join!(reader.query(query), writer.prepare(work));
        let vote = vote.expect("a vote").into_inner().vote();
        if vote == Vote::Commit {
            // The last one may have come through.
            until("it to be aborted", || async {
                daemon.abort(&branch).await.finish() == Finish::Aborted
            })
            .await;
        }
    }
}

#[test]
fn branches_in_doubt_end_as_soon_as_something_passes_again() {
    on_every_server(|world| async move {
        let folder = tempfile::tempdir().expect("a folder");
        let (socket, proxy) = proxied(&world, folder.path());
        for id in 11..=18 {
            world
                .sql(&format!("INSERT INTO shop.t VALUES ({id}, 0)"))
                .await;
        }
        let daemon = world.start_on(behind(&world, &socket), |_| ()).await;
        warm_daemon(&daemon).await;
        for fault in [Fault::Stall, Fault::StallAnswers] {
            let mut decided = Vec::new();
            for id in 11..=18 {
                let sql = format!("UPDATE shop.t SET n = n + 1 WHERE id = {id}");
                let branch = branch(1);
                let vote = daemon.prepare(&branch, &[&sql]).await;
                assert_eq!(vote.vote(), Vote::Commit, "{vote:?}");
                decided.push(branch);
            }
            let held = proxy.link().hold(fault);
            let end = Instant::now() + STALL;
            // Half of them are told at once, half in the midst of it.
            let told = decided.iter().enumerate().map(async |(at, branch)| {
                if at % 2 == 0 {
                    tokio::time::sleep(STALL / 2).await;
                }
                let done = daemon.commit_until_final(branch).await;
                assert_eq!(done.finish(), Finish::Committed, "{done:?}");
                Instant::now().saturating_duration_since(end)
            });
            let healed = async {
                tokio::time::sleep_until(end.into()).await;
                drop(held);
            };
            let (after, (), ()) = tokio::join!(join_all(told), healed, impatient(&daemon, end));
            eprintln!("{fault:?}: {after:.2?} after it");
            let longest = after.iter().max().expect("branches");
            assert!(*longest < AFTER_STALL, "{after:?}");
            daemon.serving(true).await;
        }
        super::nothing_left(&daemon).await;
        for id in 11..=18 {
            assert_eq!(world.n(id).await, 2);
        }
    });
}

/// A way to the server on which connections can die so that nobody is told.
async fn relay(listener: UnixListener, target: PathBuf, deaths: watch::Receiver<u64>) {
    let mut all = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        let (target, mut deaths) = (target.clone(), deaths.clone());
        let born = *deaths.borrow_and_update();
        all.spawn(async move {
            let mut far = UnixStream::connect(target).await.expect("the server");
            let dead = async { deaths.wait_for(|deaths| *deaths > born).await.is_ok() };
            tokio::select! {
                biased;
                _ = dead => {}
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
            }
            std::future::pending::<()>().await;
        });
    }
}

#[test]
fn connections_that_died_silently_are_not_tried_one_after_the_other() {
    on_every_server(|world| async move {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let deaths = watch::Sender::new(0);
        let target = world.server.socket().to_owned();
        let relay = tokio::spawn(relay(listener, target, deaths.subscribe()));
        let mut options = behind(&world, &socket);
        options.finish_timeout = Duration::from_secs(3);
        let daemon = world.start_on(options, |_| ()).await;
        warm_daemon(&daemon).await;
        let decided = branch(1);
        let vote = daemon.prepare(&decided, &[PLUS]).await;
        assert_eq!(vote.vote(), Vote::Commit, "{vote:?}");
        deaths.send_modify(|deaths| *deaths += 1);
        let began = Instant::now();
        let done = daemon.commit_until_final(&decided).await;
        assert_eq!(done.finish(), Finish::Committed, "{done:?}");
        eprintln!("committed after {:.1?}", began.elapsed());
        // Each of them would take the time of a verb.
        assert!(
            began.elapsed() < Duration::from_secs(25),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(world.n(1).await, 101);
        relay.abort();
    });
}
