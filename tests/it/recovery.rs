//! Kills at chosen moments of the protocol, refused second coordinators, and graceful ends: all
//! or nothing, soon after everything is up again.

use anyhow::{Context, bail, ensure};
use concord_client::local::health::daemon_serves;
use concord_client::local::process::Child;
use concord_client::{Outcome, RetryPolicy, v1};
use concord_tests::backlog;
use concord_tests::cluster::{eventually, servers};
use concord_tests::rig::{
    COORDINATOR, DRAINED_IN, OPEN, PATIENCE, Rig, START, on_every_server, refused_with, unlock,
};
use nix::sys::signal::Signal;
use sqlx::mysql::MySqlConnection;
use tokio::task::JoinHandle;
use v1::TransactionState as State;

/// A transaction whose first branch has voted COMMIT and whose second waits for a row lock.
struct Half {
    gtrid: String,
    running: JoinHandle<Outcome>,
    lock: MySqlConnection,
}

async fn half_prepared(rig: &Rig, id: i32) -> anyhow::Result<Half> {
    let lock = rig.lock(2, id).await?;
    let running = rig.plus(id)?;
    let gtrid = rig.voted("p1").await?.gtrid;
    Ok(Half {
        gtrid,
        running,
        lock,
    })
}

#[test]
fn every_kill_ends_in_all_or_nothing() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        coordinator_before_its_decision(rig)
            .await
            .context("coordinator before its decision")?;
        coordinator_after_its_decision(rig)
            .await
            .context("coordinator after its decision")?;
        participant_after_its_vote(rig)
            .await
            .context("participant after its vote")?;
        participant_before_its_vote(rig)
            .await
            .context("participant before its vote")?;
        server_after_its_prepare(rig)
            .await
            .context("server after its prepare")?;
        server_before_its_prepare(rig)
            .await
            .context("server before its prepare")?;
        everything(rig, false)
            .await
            .context("everything before the decision")?;
        everything(rig, true)
            .await
            .context("everything after the decision")
    })
}

/// Nothing is on record: both branches are rolled back, also the one that votes to nobody.
async fn coordinator_before_its_decision(rig: &mut Rig) -> anyhow::Result<()> {
    let half = half_prepared(rig, 1).await?;
    rig.kill9(COORDINATOR)?;
    let outcome = half.running.await?;
    ensure!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    unlock(half.lock).await?;
    rig.up().await?;
    rig.settled(1, START).await?;
    let tx = rig.client()?.transaction(&half.gtrid).await?;
    ensure!(tx.state() == State::Aborted, "{tx:?}");
    Ok(())
}

/// The decision is on record, and the first branch was not told.
async fn coordinator_after_its_decision(rig: &mut Rig) -> anyhow::Result<()> {
    let half = half_prepared(rig, 2).await?;
    rig.signal("p1", Signal::SIGSTOP)?;
    unlock(half.lock).await?;
    rig.reaches(&half.gtrid, State::Committing).await?;
    rig.kill9(COORDINATOR)?;
    let outcome = half.running.await?;
    ensure!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    rig.signal("p1", Signal::SIGCONT)?;
    rig.up().await?;
    rig.settled(2, START + 1).await?;
    rig.reaches(&half.gtrid, State::Committed).await?;
    Ok(())
}

/// Its vote counts: the client waits for it and is told COMMITTED.
async fn participant_after_its_vote(rig: &mut Rig) -> anyhow::Result<()> {
    let half = half_prepared(rig, 3).await?;
    rig.kill9("p1")?;
    unlock(half.lock).await?;
    rig.reaches(&half.gtrid, State::Committing).await?;
    rig.up().await?;
    let outcome = half.running.await?;
    ensure!(outcome.is_committed(), "{outcome:?}");
    rig.settled(3, START + 1).await
}

/// The one without a vote dies: the other one is rolled back at once.
async fn participant_before_its_vote(rig: &mut Rig) -> anyhow::Result<()> {
    let half = half_prepared(rig, 4).await?;
    rig.kill9("p2")?;
    let (code, message) = refused_with(&half.running.await?)?;
    ensure!(code == "PARTICIPANT_DOWN", "{code}: {message}");
    unlock(half.lock).await?;
    rig.up().await?;
    rig.settled(4, START).await
}

/// The prepared branch is in the server's log, and commits when the server is back.
async fn server_after_its_prepare(rig: &mut Rig) -> anyhow::Result<()> {
    let half = half_prepared(rig, 5).await?;
    rig.servers[0].kill9();
    unlock(half.lock).await?;
    rig.reaches(&half.gtrid, State::Committing).await?;
    ensure!(
        !half.running.is_finished(),
        "the client was answered too early"
    );
    rig.servers[0].restart().await?;
    rig.linked().await?;
    let outcome = half.running.await?;
    ensure!(outcome.is_committed(), "{outcome:?}");
    rig.settled(5, START + 1).await
}

/// The branch that was not prepared is lost with its server, and so is the transaction.
async fn server_before_its_prepare(rig: &mut Rig) -> anyhow::Result<()> {
    let half = half_prepared(rig, 6).await?;
    rig.servers[1].kill9();
    drop(half.lock);
    let outcome = half.running.await?;
    ensure!(matches!(outcome, Outcome::Aborted { .. }), "{outcome:?}");
    rig.servers[1].restart().await?;
    rig.linked().await?;
    rig.settled(6, START).await
}

async fn everything(rig: &mut Rig, decided: bool) -> anyhow::Result<()> {
    let (id, value) = if decided { (8, START + 1) } else { (7, START) };
    let half = half_prepared(rig, id).await?;
    if decided {
        rig.signal("p1", Signal::SIGSTOP)?;
        unlock(half.lock).await?;
        rig.reaches(&half.gtrid, State::Committing).await?;
    } else {
        drop(half.lock);
    }
    for daemon in [COORDINATOR, "p1", "p2"] {
        rig.kill9(daemon)?;
    }
    for server in &mut rig.servers {
        server.kill9();
    }
    let outcome = half.running.await?;
    if decided {
        ensure!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    }
    for server in &mut rig.servers {
        server.restart().await?;
    }
    rig.up().await?;
    rig.drained().await?;
    let (first, second) = (rig.n(1, id).await?, rig.n(2, id).await?);
    ensure!(first == second, "torn: {first} and {second}");
    // Without the lock the transaction may have run on while its killers came one by one.
    ensure!(
        first == value || (!decided && first == START + 1),
        "{first}, not {value}"
    );
    Ok(())
}

#[test]
fn a_second_coordinator_on_the_same_log_is_refused() -> anyhow::Result<()> {
    on_every_server(1, async |rig| {
        let mut launch = rig.launch(COORDINATOR)?;
        launch
            .args
            .extend(["--listen".into(), "127.0.0.1:0".into()]);
        launch.output = rig.data_dir().with_extension("second.log");
        let status = Child::spawn(&launch)?.exited().await;
        ensure!(
            !status.success(),
            "a second coordinator runs on the same log"
        );
        let said = std::fs::read_to_string(&launch.output)?;
        ensure!(said.contains("is in use by"), "{said}");
        let pid = rig.pid(COORDINATOR)?.to_string();
        ensure!(
            said.contains(&pid),
            "it does not say who has the log: {said}"
        );
        // The first one has not noticed.
        let sql = "UPDATE shop.t SET n = n + 1 WHERE id = 1";
        ensure!(
            rig.client()?
                .one_shot()
                .on("p1", sql)
                .send()
                .await
                .is_committed()
        );
        rig.settled(1, START + 1).await
    })
}

#[test]
fn sigterm_ends_every_daemon_gracefully() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        coordinator_drains(rig).await?;
        participant_drains(rig).await
    })
}

/// What runs may end, what is new is refused, and then the process ends with success.
async fn coordinator_drains(rig: &mut Rig) -> anyhow::Result<()> {
    rig.kill9(COORDINATOR)?;
    rig.configure(COORDINATOR, |own| {
        own.insert("drain_timeout_s".into(), 60.into());
    });
    rig.up().await?;
    let half = half_prepared(rig, 1).await?;
    let client = rig.client()?;
    ensure!(client.cluster_status().await?.accepting);
    eventually("it to serve", PATIENCE, async || {
        Ok(daemon_serves(&rig.endpoint()).await.then_some(()))
    })
    .await?;
    rig.signal(COORDINATOR, Signal::SIGTERM)?;
    eventually("the drain", PATIENCE, async || {
        Ok((!client.cluster_status().await?.accepting).then_some(()))
    })
    .await?;
    eventually("whoever balances load to be told", PATIENCE, async || {
        Ok((!daemon_serves(&rig.endpoint()).await).then_some(()))
    })
    .await?;
    let sql = "UPDATE shop.t SET n = n + 1 WHERE id = 2";
    let late = client.one_shot().on("p1", sql).on("p2", sql).send().await;
    let (code, message) = refused_with(&late)?;
    ensure!(code == "SHUTTING_DOWN", "{code}: {message}");
    ensure!(
        client.begin().await.is_err(),
        "an interactive transaction began during the drain"
    );
    ensure!(rig.is_running(COORDINATOR), "it did not wait for what runs");
    unlock(half.lock).await?;
    let outcome = half.running.await?;
    ensure!(outcome.is_committed(), "{outcome:?}");
    let status = rig.ended(COORDINATOR).await?;
    ensure!(status.success(), "the coordinator ended with {status}");
    rig.up().await?;
    rig.settled(1, START + 1).await?;
    rig.settled(2, START).await
}

/// A prepared branch stays as it is: that is what it is for.
async fn participant_drains(rig: &mut Rig) -> anyhow::Result<()> {
    let half = half_prepared(rig, 3).await?;
    rig.signal("p1", Signal::SIGTERM)?;
    let status = rig.ended("p1").await?;
    ensure!(status.success(), "the participant ended with {status}");
    unlock(half.lock).await?;
    rig.reaches(&half.gtrid, State::Committing).await?;
    rig.up().await?;
    let outcome = half.running.await?;
    ensure!(outcome.is_committed(), "{outcome:?}");
    rig.settled(3, START + 1).await
}

/// The short form of `cargo run -p concord-tests --bin backlog`: everything is resolved as
/// decided. How fast is for the long form to judge.
#[test]
fn a_backlog_of_decided_transactions_is_resolved_after_a_crash() -> anyhow::Result<()> {
    let plan = backlog::Plan {
        transactions: 400,
        rounds: 1,
        raw_connections: 8,
    };
    for server in servers()? {
        let report = tokio::runtime::Runtime::new()?.block_on(backlog::prove(&server, &plan))?;
        eprintln!("on {} {}: {report:?}", server.kind(), server.version());
    }
    Ok(())
}

/// Waits until p1 knows of a problem of its server.
async fn has_problem(rig: &Rig, code: &str) -> anyhow::Result<()> {
    eventually(&format!("p1 to say {code}"), PATIENCE, async || {
        let problems = rig.status(1).await?.problems;
        let found = problems.iter().any(|problem| problem.code == code);
        Ok(found.then_some(()))
    })
    .await
}

/// Branches in doubt wait for it, whatever the interval at which healthy servers are looked at.
#[test]
fn a_server_that_is_back_is_found_at_once() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        rig.kill9("p1")?;
        rig.configure("p1", |own| {
            let behind = own["server"].as_table_mut().expect("a table");
            behind.insert("check_interval_ms".into(), 3_600_000.into());
        });
        rig.up().await?;
        rig.servers[0].kill9();
        // The vote is what finds out that it is away.
        refused_with(&rig.plus(1)?.await?)?;
        has_problem(rig, "SERVER_DOWN").await?;
        rig.servers[0].restart().await?;
        eventually("p1 to find its server", DRAINED_IN, async || {
            Ok(rig.serves(1).await.then_some(()))
        })
        .await?;
        rig.linked().await
    })
}

/// A branch that only read, in a transaction in which reading counts (SERIALIZABLE), is finished
/// from another connection than it ran on. A server may forget a prepared branch without changes;
/// ours has its ledger row.
#[test]
fn a_branch_that_only_read_ends_from_another_connection() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        let lock = rig.lock(2, 1).await?;
        let tx = rig
            .client()?
            .one_shot()
            .isolation(v1::Isolation::Serializable)
            .on("p1", "SELECT n FROM shop.t WHERE id = 1")
            .on("p2", "UPDATE shop.t SET n = n + 1 WHERE id = 1");
        let running = tokio::spawn(tx.timeout(PATIENCE).send());
        let gtrid = rig.voted("p1").await?.gtrid;
        rig.kill9("p1")?;
        unlock(lock).await?;
        rig.reaches(&gtrid, State::Committing).await?;
        rig.up().await?;
        let outcome = running.await?;
        ensure!(outcome.is_committed(), "{outcome:?}");
        rig.drained().await?;
        let held = (rig.n(1, 1).await?, rig.n(2, 1).await?);
        ensure!(held == (START, START + 1), "{held:?}");
        let damage = rig.status(1).await?.damage;
        ensure!(damage.is_empty(), "{damage:?}");
        Ok(())
    })
}

/// Nothing that the gateway must read first stands between a repetition and its answer.
#[test]
fn a_repeated_payment_is_recognised_while_a_server_is_away() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        let client = rig.client()?;
        let mut ids = Vec::new();
        for n in 0..16 {
            let opened = client
                .open_account(v1::OpenAccountRequest {
                    account_id: format!("account-{n}"),
                    currency: "EUR".into(),
                    initial_balance: 1_000,
                    request_id: String::new(),
                })
                .await;
            let Outcome::Committed { results, .. } = opened else {
                bail!("{opened:?}");
            };
            ids.push((results.participant, results.account_id));
        }
        let on = |participant: &str| {
            let found = ids.iter().find(|(there, _)| there == participant);
            found.map(|(_, id)| id.clone()).context("an account")
        };
        let pay = |request_id: &str| -> anyhow::Result<v1::TransferRequest> {
            Ok(v1::TransferRequest {
                from_account_id: on("p1")?,
                to_account_id: on("p2")?,
                amount: 70,
                request_id: request_id.into(),
                ..v1::TransferRequest::default()
            })
        };
        let first = client.transfer(pay("rent")?).await;
        ensure!(first.is_committed(), "{first:?}");
        // What it knew of accounts and tables is gone with it.
        rig.kill9(COORDINATOR)?;
        rig.servers[1].kill9();
        rig.spawn(COORDINATOR)?;
        let impatient = rig.client()?.with_retry(RetryPolicy::none());
        eventually(
            "the coordinator to see that s2 is away",
            PATIENCE,
            async || {
                let other = impatient.transfer(pay("other")?).await;
                let (code, message) = refused_with(&other)?;
                let away = ["PARTICIPANT_DOWN", "SERVER_DOWN"].contains(&&*code);
                ensure!(away, "{code}: {message}");
                Ok(Some(()))
            },
        )
        .await?;
        let again = impatient.transfer(pay("rent")?).await;
        let Outcome::Committed {
            gtrid, replayed, ..
        } = &again
        else {
            bail!("it was paid, and the answer is {again:?}");
        };
        ensure!(
            *replayed && Some(gtrid.as_str()) == first.gtrid(),
            "{again:?}"
        );
        let mut changed = pay("rent")?;
        changed.amount = 71;
        let (code, _) = refused_with(&impatient.transfer(changed).await)?;
        ensure!(code == "REQUEST_ID_REUSED", "{code}");
        rig.servers[1].restart().await?;
        rig.linked().await
    })
}

/// A coordinator that is new to a server that takes no writes cannot be remembered there, and what
/// it begins elsewhere must not wait for that.
#[test]
fn a_new_coordinator_leaves_a_read_only_server_alone_until_it_takes_writes() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        rig.sql(1, "SET GLOBAL read_only = ON").await?;
        has_problem(rig, "READ_ONLY_SERVER").await?;
        rig.kill9(COORDINATOR)?;
        rig.spawn(COORDINATOR)?;
        let client = rig.client()?.with_retry(RetryPolicy::none());
        let add = "UPDATE shop.t SET n = n + 1 WHERE id = 4";
        eventually("p2 to be linked and p1 not", PATIENCE, async || {
            let alone = client.one_shot().on("p2", add).send().await;
            ensure!(alone.is_committed(), "{alone:?}");
            let participants = client.list_participants().await?;
            let p1 = participants.first().context("p1")?;
            let why = p1.reason.as_ref().context("no reason yet")?;
            ensure!(!p1.connected && why.code == "READ_ONLY_SERVER", "{p1:?}");
            Ok(Some(()))
        })
        .await?;
        for _ in 0..20 {
            let both = client.one_shot().on("p1", add).on("p2", add).send().await;
            let (code, message) = refused_with(&both)?;
            ensure!(code == "READ_ONLY_SERVER", "{code}: {message}");
            let mut tx = client.begin().await?;
            ensure!(tx.execute("p1", add).await.is_err(), "a branch on p1");
        }
        let mut open = client.list_transactions(&OPEN, false, 50).await?;
        // What the former one had decided is told p1 when that takes writes.
        open.retain(|tx| tx.epoch > 1);
        ensure!(open.is_empty(), "they pile up: {open:?}");
        rig.sql(1, "SET GLOBAL read_only = OFF").await?;
        rig.linked().await?;
        rig.drained().await
    })
}
