//! Servers that would lose what they acknowledge, that take no writes, or that are not the ones
//! they were: no vote is given, the reason says what mends it, and what is prepared still ends.

use anyhow::{Context, ensure};
use concord_client::local::server::ServerKind;
use concord_client::v1;
use concord_tests::cluster::eventually;
use concord_tests::rig::{
    COORDINATOR, PATIENCE, Rig, START, on_every_server, refused_with, run, unlock,
};

/// A setting that stops votes.
struct Trap {
    set: &'static str,
    mend: &'static str,
    code: &'static str,
    /// What the reason must name: the setting, and the statement that mends it.
    words: [&'static str; 2],
    /// Whether the server refuses XA COMMIT too.
    blocks_commit: bool,
}

fn traps(kind: ServerKind) -> Vec<Trap> {
    let mut traps = vec![
        Trap {
            set: "SET GLOBAL innodb_flush_log_at_trx_commit = 2",
            mend: "SET GLOBAL innodb_flush_log_at_trx_commit = 1",
            code: "UNSAFE_SERVER",
            words: [
                "innodb_flush_log_at_trx_commit is 2",
                "SET GLOBAL innodb_flush_log_at_trx_commit = 1",
            ],
            blocks_commit: false,
        },
        Trap {
            set: "SET GLOBAL read_only = ON",
            mend: "SET GLOBAL read_only = OFF",
            code: "READ_ONLY_SERVER",
            words: ["read_only is ", "SET GLOBAL read_only = OFF"],
            blocks_commit: kind == ServerKind::Mariadb,
        },
    ];
    if kind == ServerKind::Mysql {
        traps.push(Trap {
            set: "SET GLOBAL sync_binlog = 0",
            mend: "SET GLOBAL sync_binlog = 1",
            code: "UNSAFE_SERVER",
            words: ["sync_binlog is 0", "SET GLOBAL sync_binlog = 1"],
            blocks_commit: false,
        });
        traps.push(Trap {
            set: "SET GLOBAL xa_detach_on_prepare = OFF",
            mend: "SET GLOBAL xa_detach_on_prepare = ON",
            code: "UNSAFE_SERVER",
            words: [
                "xa_detach_on_prepare is ",
                "SET GLOBAL xa_detach_on_prepare = ON",
            ],
            blocks_commit: false,
        });
        traps.push(Trap {
            set: "SET GLOBAL super_read_only = ON",
            mend: "SET GLOBAL super_read_only = OFF; SET GLOBAL read_only = OFF",
            code: "READ_ONLY_SERVER",
            words: ["read_only is ", "read_only = OFF"],
            blocks_commit: false,
        });
    }
    traps
}

#[test]
fn a_setting_changed_while_running_stops_votes_until_it_is_mended() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        let mut done = 0;
        for trap in traps(rig.servers[0].kind()) {
            done += 1;
            fall_into(rig, &trap, START + done)
                .await
                .context(trap.set)?;
        }
        Ok(())
    })
}

async fn fall_into(rig: &mut Rig, trap: &Trap, value: i64) -> anyhow::Result<()> {
    let logged = rig.log("p1")?.len();
    let lock = rig.lock(2, 1).await?;
    let before = rig.plus(1)?;
    rig.voted("p1").await?;
    rig.sql(1, trap.set).await?;

    // At once, before the participant has looked at the settings again, and after.
    refused(rig, trap).await?;
    eventually("health to be NOT_SERVING", PATIENCE, async || {
        Ok((!rig.serves(1).await).then_some(()))
    })
    .await?;
    let status = rig.status(1).await?;
    ensure!(!status.can_vote, "{status:?}");
    let told = status.problems.iter().any(|problem| {
        problem.code == trap.code && trap.words.iter().all(|word| problem.message.contains(word))
    });
    ensure!(
        told,
        "the status does not say what mends it: {:?}",
        status.problems
    );
    let cries = |line: &str| line.contains("ERROR") && line.contains(trap.words[1]);
    ensure!(
        rig.log("p1")?[logged..].lines().any(cries),
        "the log does not say what mends it"
    );
    refused(rig, trap).await?;

    // What is prepared still commits, as soon as the server lets it.
    unlock(lock).await?;
    if trap.blocks_commit {
        let client = rig.client()?;
        eventually("the stuck transaction", PATIENCE, async || {
            let stuck = client.list_transactions(&[], true, 10).await?;
            let reason = stuck.first().and_then(|tx| tx.branches[0].reason.clone());
            Ok(reason.filter(|reason| reason.code == trap.code))
        })
        .await?;
        ensure!(
            rig.prepared(1).await? == 1,
            "the branch is not prepared any more"
        );
        rig.sql(1, trap.mend).await?;
        ensure!(before.await?.is_committed());
    } else {
        let outcome = before.await?;
        ensure!(
            outcome.is_committed(),
            "a prepared branch was held up: {outcome:?}"
        );
        rig.sql(1, trap.mend).await?;
    }
    rig.linked().await?;
    eventually("health to be SERVING", PATIENCE, async || {
        Ok(rig.serves(1).await.then_some(()))
    })
    .await?;
    rig.settled(1, value).await?;
    ensure!(
        rig.plus(2)?.await?.is_committed(),
        "mended, and still no vote"
    );
    rig.settled(2, value).await?;
    ensure!(
        rig.n(1, 5).await? == START,
        "a refused transaction took effect"
    );
    Ok(())
}

async fn refused(rig: &Rig, trap: &Trap) -> anyhow::Result<()> {
    let (code, message) = refused_with(&rig.plus(5)?.await?)?;
    ensure!(code == trap.code, "{code}: {message}");
    for word in trap.words {
        ensure!(message.contains(word), "{message:?} does not name {word:?}");
    }
    Ok(())
}

/// What counts is the setting at the vote, and not when the branch began.
#[test]
fn a_setting_changed_while_a_branch_waits_for_a_lock_stops_its_vote() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        // A server does not become read-only before those who write have ended.
        let sets_at_once = |trap: &Trap| trap.code == "UNSAFE_SERVER";
        for trap in traps(rig.servers[0].kind())
            .into_iter()
            .filter(sets_at_once)
        {
            waits_meanwhile(rig, &trap).await.context(trap.set)?;
        }
        Ok(())
    })
}

async fn waits_meanwhile(rig: &mut Rig, trap: &Trap) -> anyhow::Result<()> {
    let lock = rig.lock(1, 3).await?;
    let waiting = rig.plus(3)?;
    eventually("the branch to wait for the row", PATIENCE, async || {
        let sql = "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'";
        let mut root = rig.root(1).await?;
        let (_, waits): (String, String) = sqlx::query_as(sql).fetch_one(&mut root).await?;
        Ok((waits != "0").then_some(()))
    })
    .await?;
    rig.sql(1, trap.set).await?;
    unlock(lock).await?;
    let (code, message) = refused_with(&waiting.await?)?;
    rig.sql(1, trap.mend).await?;
    ensure!(code == trap.code, "{code}: {message}");
    ensure!(rig.n(1, 3).await? == START, "a refused branch committed");
    ensure!(rig.prepared(1).await? == 0, "a refused branch is prepared");
    eventually("health to be SERVING", PATIENCE, async || {
        Ok(rig.serves(1).await.then_some(()))
    })
    .await?;
    rig.linked().await
}

#[test]
fn an_unsafe_setting_at_start_stops_votes_and_lets_prepared_branches_end() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        let lock = rig.lock(2, 1).await?;
        let before = rig.plus(1)?;
        let gtrid = rig.voted("p1").await?.gtrid;
        rig.servers[0].kill9();
        unlock(lock).await?;
        rig.reaches(&gtrid, v1::TransactionState::Committing)
            .await?;
        let spec = rig.servers[0].spec_mut();
        spec.args.push("--innodb-flush-log-at-trx-commit=2".into());
        rig.servers[0].restart().await?;
        ensure!(
            before.await?.is_committed(),
            "an unsafe server must still commit what it holds"
        );
        rig.settled(1, START + 1).await?;
        refused(rig, &traps(rig.servers[0].kind())[0]).await?;
        ensure!(
            !rig.serves(1).await,
            "health is SERVING on an unsafe server"
        );

        // The same for a participant that starts when the server is unsafe already.
        rig.kill9("p1")?;
        rig.spawn("p1")?;
        let status = eventually("its first look at the server", PATIENCE, async || {
            Ok(Some(rig.status(1).await?).filter(|status| !status.server_version.is_empty()))
        })
        .await?;
        ensure!(!status.can_vote, "{status:?}");
        // Not to the one before, whose end the coordinator may not have noticed.
        let pid = rig.pid("p1")?;
        eventually("the link to it", PATIENCE, async || {
            let all = rig.client()?.list_participants().await?;
            let linked = all.iter().all(|p| p.connected);
            let seen = |p: &v1::ParticipantInfo| p.status.as_ref().is_some_and(|s| s.pid == pid);
            Ok((linked && all.iter().any(seen)).then_some(()))
        })
        .await?;
        refused(rig, &traps(rig.servers[0].kind())[0]).await?;

        rig.servers[0].spec_mut().args.clear();
        rig.servers[0].restart().await?;
        rig.linked().await?;
        ensure!(rig.plus(2)?.await?.is_committed());
        rig.settled(2, START + 1).await
    })
}

#[test]
fn other_data_behind_a_participant_is_refused() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        someone_elses_server(rig).await?;
        a_new_ledger_schema(rig).await
    })
}

fn socket_of(rig: &Rig, n: usize) -> String {
    rig.servers[n].socket().display().to_string()
}

fn password_of(rig: &Rig, n: usize) -> String {
    rig.servers[n].password_file().display().to_string()
}

/// Points the first participant to a server.
fn point(rig: &mut Rig, n: usize) -> anyhow::Result<()> {
    let (socket, password) = (socket_of(rig, n), password_of(rig, n));
    rig.kill9("p1")?;
    rig.configure("p1", |own| {
        if let Some(server) = own
            .get_mut("server")
            .and_then(|server| server.as_table_mut())
        {
            server.insert("socket".into(), socket.into());
            server.insert("password_file".into(), password.into());
        }
    });
    rig.spawn("p1")
}

/// The address of the server of another participant.
async fn someone_elses_server(rig: &mut Rig) -> anyhow::Result<()> {
    point(rig, 1)?;
    let status = eventually("its first look at the server", PATIENCE, async || {
        Ok(Some(rig.status(1).await?).filter(|status| !status.server_version.is_empty()))
    })
    .await?;
    let problem = status.problems.first().cloned().unwrap_or_default();
    ensure!(
        !status.can_vote && problem.code == "INCARNATION_CHANGED",
        "{status:?}"
    );
    ensure!(
        problem.message.contains("belongs to participant p2"),
        "{problem:?}"
    );
    ensure!(problem.message.contains("address leads"), "{problem:?}");
    ensure!(!rig.serves(1).await);
    let outcome = rig.plus(1)?.await?;
    ensure!(!outcome.is_committed(), "{outcome:?}");
    point(rig, 0)?;
    rig.linked().await?;
    ensure!(rig.plus(1)?.await?.is_committed());
    rig.settled(1, START + 1).await
}

/// The server's data was replaced: its ledger, which proves what is committed, is another one.
async fn a_new_ledger_schema(rig: &mut Rig) -> anyhow::Result<()> {
    let old = rig.status(1).await?.incarnation;
    // While the participant runs.
    let mut root = rig.root(1).await?;
    run(&mut root, "DROP DATABASE concord").await?;
    let status = eventually("the new data to be noticed", PATIENCE, async || {
        let status = rig.status(1).await?;
        let seen = status
            .problems
            .iter()
            .any(|problem| problem.code == "INCARNATION_CHANGED");
        Ok(seen.then_some(status))
    })
    .await?;
    ensure!(!status.can_vote && status.incarnation != old, "{status:?}");
    let (code, message) = refused_with(&rig.plus(2)?.await?)?;
    ensure!(code == "INCARNATION_CHANGED", "{code}: {message}");
    ensure!(
        message.contains(&old),
        "{message} does not name the data that it should be"
    );

    // A restart of the participant does not make it right: the coordinator remembers.
    rig.kill9("p1")?;
    rig.spawn("p1")?;
    let client = rig.client()?;
    let reason = eventually("the coordinator to refuse it", PATIENCE, async || {
        let all = client.list_participants().await?;
        let p1 = all.into_iter().find(|p| p.name == "p1").context("no p1")?;
        let refused = p1
            .reason
            .filter(|reason| reason.code == "INCARNATION_CHANGED");
        Ok(refused.filter(|_| !p1.connected))
    })
    .await?;
    let new = rig.status(1).await?.incarnation;
    let advice = format!("incarnation = \"{new}\"");
    ensure!(
        reason.message.contains(&advice) && reason.message.contains(&old),
        "{reason:?}"
    );
    let outcome = rig.plus(2)?.await?;
    ensure!(!outcome.is_committed(), "{outcome:?}");

    // An operator who means it says so in the configuration.
    rig.kill9(COORDINATOR)?;
    rig.configure(COORDINATOR, |own| {
        let participants = own
            .get_mut("participants")
            .and_then(|all| all.as_array_mut());
        let first = participants
            .and_then(|all| all.first_mut())
            .and_then(|p| p.as_table_mut());
        if let Some(first) = first {
            first.insert("incarnation".into(), new.into());
        }
    });
    rig.up().await?;
    ensure!(rig.plus(2)?.await?.is_committed());
    rig.settled(2, START + 1).await
}
