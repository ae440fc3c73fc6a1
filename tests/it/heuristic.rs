//! Branches that somebody else finished: found, reported, kept, and never taken for anything else.

use anyhow::{Context, ensure};
use concord_client::{CallError, Outcome, v1};
use concord_coordinator::log::{DecisionLog, EmbeddedLog};
use concord_coordinator::mint::Mint;
use concord_coordinator::surroundings::{Machine, Surroundings};
use concord_core::id::{Bqual, BranchId, Gtrid};
use concord_core::record::Record;
use concord_daemon::crash::CrashPoint;
use concord_participant::resource::mysql::ledger;
use concord_participant::resource::mysql::xa::{FORMAT_ID, Xids};
use concord_tests::by_hand;
use concord_tests::cluster::eventually;
use concord_tests::rig::{
    CLUSTER, COORDINATOR, Listed, PATIENCE, Rig, START, branch_of, leave_foreign_branch,
    on_every_server, run, unlock, xid,
};
use nix::sys::signal::Signal;
use v1::TransactionState as State;
use v1::transaction_service_client::TransactionServiceClient;

/// The request that is damaged.
const REQUEST: &str = "damaged";

/// A transaction whose first branch is prepared and whose second waits for a row lock. When this
/// returns, `p1` is dead, its vote is with the coordinator, and the lock is still held.
async fn half_prepared(
    rig: &mut Rig,
    id: i32,
    request: &str,
) -> anyhow::Result<(
    String,
    tokio::task::JoinHandle<Outcome>,
    sqlx::mysql::MySqlConnection,
)> {
    let lock = rig.lock(2, id).await?;
    let running = rig.plus_as(id, request)?;
    let gtrid = rig.voted("p1").await?.gtrid;
    rig.kill9("p1")?;
    Ok((gtrid, running, lock))
}

/// A DBA finishes the branch of the first server by hand.
async fn by_hand(rig: &Rig, verb: &str, branch: BranchId) -> anyhow::Result<()> {
    by_hand::end(&mut rig.root(1).await?, verb, &xid(branch)).await
}

/// The client is told neither COMMITTED nor ABORTED, because neither is true everywhere.
fn told_of_damage(outcome: &Outcome, tx: &str) -> anyhow::Result<()> {
    let Outcome::Unknown { gtrid, message, .. } = outcome else {
        anyhow::bail!("a client was told that a damaged transaction is {outcome:?}");
    };
    ensure!(gtrid.as_deref() == Some(tx), "{outcome:?}");
    ensure!(message.contains("HEURISTIC_ROLLBACK"), "{outcome:?}");
    Ok(())
}

/// Nor is anybody who asks later, in whatever way.
async fn never_called_done(rig: &Rig, tx: &str) -> anyhow::Result<()> {
    let client = rig.client()?;
    told_of_damage(&client.outcome_of(tx).await.map(|()| Vec::new()), tx)?;
    told_of_damage(&rig.plus_as(1, REQUEST)?.await?, tx)?;
    let mut raw = TransactionServiceClient::connect(rig.endpoint()).await?;
    let gtrid = tx.to_owned();
    let commit = v1::CommitTransactionRequest { gtrid, ack: 0 };
    let gtrid = tx.to_owned();
    let rollback = v1::RollbackTransactionRequest { gtrid };
    for refused in [
        raw.commit(commit).await.map(|_| ()),
        raw.rollback(rollback).await.map(|_| ()),
    ] {
        let status = refused.expect_err("a damaged transaction is done");
        let reason = concord_proto::status::reason_of(&status).context("a reason")?;
        ensure!(&*reason.code == "HEURISTIC_ROLLBACK", "{status:?}");
    }
    Ok(())
}

async fn damage(rig: &Rig, branch: BranchId) -> anyhow::Result<v1::Damage> {
    let gtrid = branch.gtrid.to_string();
    eventually("a report of damage", PATIENCE, async || {
        let reports = rig.status(1).await?.damage;
        Ok(reports.into_iter().find(|report| report.gtrid == gtrid))
    })
    .await
}

async fn heuristics(rig: &Rig) -> anyhow::Result<u64> {
    let status = rig.client()?.cluster_status().await?;
    Ok(status.counters.unwrap_or_default().heuristic)
}

#[test]
fn a_rollback_by_hand_of_a_decided_branch_is_damage_until_it_is_acknowledged() -> anyhow::Result<()>
{
    on_every_server(2, async |rig| {
        rolled_back_by_hand(rig).await?;
        committed_by_hand(rig).await?;
        stuck_while_away(rig).await
    })
}

async fn rolled_back_by_hand(rig: &mut Rig) -> anyhow::Result<()> {
    let (gtrid, running, lock) = half_prepared(rig, 1, REQUEST).await?;
    unlock(lock).await?;
    rig.reaches(&gtrid, State::Committing).await?;
    let branch = branch_of(&gtrid, 1)?;
    by_hand(rig, "XA ROLLBACK", branch).await?;
    rig.spawn("p1")?;
    told_of_damage(&running.await?, &gtrid)?;
    never_called_done(rig, &gtrid).await?;
    // The client is told of damage before the other branch has ended.
    rig.drained().await?;
    ensure!(rig.n(1, 1).await? == START && rig.n(2, 1).await? == START + 1);

    let report = damage(rig, branch).await?;
    ensure!(
        report
            .reason
            .as_ref()
            .is_some_and(|r| r.code == "HEURISTIC_ROLLBACK"),
        "{report:?}"
    );
    ensure!(
        (report.bqual, report.acknowledged) == (1, false),
        "{report:?}"
    );
    let tx = rig.client()?.transaction(&gtrid).await?;
    ensure!(
        tx.branches[0].state() == v1::BranchState::Heuristic,
        "{tx:?}"
    );
    ensure!(
        tx.branches[1].state() == v1::BranchState::Committed,
        "{tx:?}"
    );
    ensure!(heuristics(rig).await? == 1);
    for (daemon, words) in [
        (COORDINATOR, "heuristic outcome"),
        ("p1", "heuristic damage"),
    ] {
        let log = rig.log(daemon)?;
        let line = log
            .lines()
            .find(|line| line.contains(words) && line.contains("ERROR"));
        ensure!(
            line.is_some_and(|line| line.contains(&gtrid)),
            "{daemon} does not cry for help"
        );
    }

    // It outlives both daemons, and the restarted participant says it again.
    rig.kill9("p1")?;
    rig.kill9(COORDINATOR)?;
    rig.up().await?;
    let found = damage(rig, branch).await?;
    ensure!(found == report, "{found:?} was {report:?}");
    ensure!(rig.log("p1")?.contains("nobody has acknowledged yet"));
    let tx = rig.client()?.transaction(&gtrid).await?;
    ensure!(
        tx.reason.is_some_and(|r| r.code == "HEURISTIC_ROLLBACK"),
        "the coordinator forgot"
    );
    never_called_done(rig, &gtrid).await?;

    let request = v1::AcknowledgeDamageRequest { id: report.id };
    rig.participant(1)?.acknowledge_damage(request).await?;
    let again = v1::AcknowledgeDamageRequest {
        id: report.id + 1_000,
    };
    let refused = rig.participant(1)?.acknowledge_damage(again).await;
    ensure!(refused.is_err_and(|status| status.code() == tonic::Code::NotFound));
    ensure!(damage(rig, branch).await?.acknowledged);
    rig.kill9("p1")?;
    rig.up().await?;
    ensure!(
        damage(rig, branch).await?.acknowledged,
        "the acknowledgement was forgotten"
    );
    rig.sql(1, "UPDATE shop.t SET n = n + 1 WHERE id = 1").await
}

/// While another branch of it is still being told.
#[test]
fn whoever_asks_before_all_branches_have_ended_is_told_of_damage() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        let armed = rig.crash_folder()?;
        rig.kill9("p2")?;
        rig.up().await?;
        let (gtrid, running, lock) = half_prepared(rig, 1, REQUEST).await?;
        let point = armed
            .path()
            .join(CrashPoint::ParticipantCommitReceived.name());
        std::fs::write(&point, "")?;
        unlock(lock).await?;
        rig.ended("p2").await?;
        by_hand(rig, "XA ROLLBACK", branch_of(&gtrid, 1)?).await?;
        rig.spawn("p1")?;
        told_of_damage(&running.await?, &gtrid)?;
        never_called_done(rig, &gtrid).await?;
        let live = rig.client()?.transaction(&gtrid).await?;
        ensure!(live.state() == State::Committing, "{live:?}");
        rig.kill9(COORDINATOR)?;
        rig.spawn(COORDINATOR)?;
        eventually("a new coordinator", PATIENCE, async || {
            Ok(Some(rig.client()?.transaction(&gtrid).await?))
        })
        .await?;
        never_called_done(rig, &gtrid).await?;
        rig.up().await?;
        rig.drained().await?;
        never_called_done(rig, &gtrid).await?;
        ensure!(rig.n(1, 1).await? == START && rig.n(2, 1).await? == START + 1);
        Ok(())
    })
}

async fn committed_by_hand(rig: &mut Rig) -> anyhow::Result<()> {
    let before = heuristics(rig).await?;
    let lock = rig.lock(2, 2).await?;
    let running = rig.plus(2)?;
    let gtrid = rig.voted("p1").await?.gtrid;
    let branch = branch_of(&gtrid, 1)?;
    rig.kill9("p1")?;
    by_hand(rig, "XA COMMIT", branch).await?;
    // The second branch cannot vote any more: the transaction aborts.
    rig.kill9("p2")?;
    let Outcome::Aborted { reason, .. } = running.await? else {
        panic!("a transaction without all votes was committed");
    };
    ensure!(&*reason.code == "PARTICIPANT_DOWN", "{reason}");
    unlock(lock).await?;
    rig.up().await?;
    eventually("the heuristic commit", PATIENCE, async || {
        Ok((heuristics(rig).await? > before).then_some(()))
    })
    .await?;
    let log = rig.log(COORDINATOR)?;
    let line = log.lines().find(|line| line.contains("HEURISTIC_COMMIT"));
    ensure!(
        line.is_some_and(|line| line.contains(&gtrid) && line.contains("ERROR")),
        "{line:?}"
    );
    rig.drained().await?;
    ensure!(rig.n(1, 2).await? == START + 1 && rig.n(2, 2).await? == START);
    rig.sql(2, "UPDATE shop.t SET n = n + 1 WHERE id = 2").await
}

/// A participant that is away after the decision: its transaction is shown as stuck with the
/// reason, and ends when it is back.
async fn stuck_while_away(rig: &mut Rig) -> anyhow::Result<()> {
    let (gtrid, running, lock) = half_prepared(rig, 3, "").await?;
    unlock(lock).await?;
    let client = rig.client()?;
    let stuck = eventually("the stuck transaction", PATIENCE, async || {
        Ok(client.list_transactions(&[], true, 10).await?.pop())
    })
    .await?;
    ensure!(stuck.gtrid == gtrid && stuck.stuck, "{stuck:?}");
    ensure!(stuck.state() == State::Committing, "{stuck:?}");
    let away = &stuck.branches[0];
    let reason = away.reason.clone().unwrap_or_default();
    ensure!(
        away.participant == "p1" && reason.code == "PARTICIPANT_DOWN",
        "{stuck:?}"
    );
    ensure!(reason.message.contains("p1"), "{reason:?}");
    ensure!(client.cluster_status().await?.stuck == 1);
    ensure!(
        !running.is_finished(),
        "the client was answered before everything is applied"
    );
    rig.up().await?;
    ensure!(
        running.await?.is_committed(),
        "a decided transaction was not committed"
    );
    ensure!(client.list_transactions(&[], true, 10).await?.is_empty());
    rig.settled(3, START + 1).await
}

#[test]
fn foreign_branches_stay_untouched_through_everything() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        let strangers = strangers()?;
        for (id, stranger) in (7..).zip(&strangers) {
            leave_foreign_branch(rig.root(1).await?, stranger, id).await?;
        }
        let foreign = async |rig: &Rig| -> anyhow::Result<Vec<Listed>> {
            let mut listed = rig.recover(1).await?;
            listed.retain(|row| row.branch().is_none());
            listed.sort_by(|a, b| a.data.cmp(&b.data));
            Ok(listed)
        };
        let before = foreign(rig).await?;
        ensure!(before.len() == strangers.len(), "{before:?}");
        let listed = rig
            .participant(1)?
            .list_branches(v1::ListBranchesRequest::default())
            .await?;
        ensure!(
            listed.into_inner().foreign_branches == 2,
            "they are not counted as foreign"
        );
        let (in_doubt, _) = rig.client()?.list_in_doubt(10).await?;
        ensure!(
            in_doubt.is_empty(),
            "a foreign branch is shown as ours: {in_doubt:?}"
        );

        ensure!(rig.plus(1)?.await?.is_committed());
        let (_, running, lock) = half_prepared(rig, 2, "").await?;
        rig.kill9(COORDINATOR)?;
        ensure!(matches!(running.await?, Outcome::Unknown { .. }));
        rig.servers[0].kill9();
        rig.servers[0].restart().await?;
        unlock(lock).await?;
        rig.up().await?;
        rig.settled(2, START).await?;
        rig.kill9("p1")?;
        rig.up().await?;
        ensure!(rig.plus(3)?.await?.is_committed());
        ensure!(
            foreign(rig).await? == before,
            "a foreign branch was touched"
        );
        // They still are what their owner left.
        for stranger in &strangers {
            rig.sql(1, &format!("XA COMMIT {stranger}")).await?;
        }
        ensure!(rig.n(1, 7).await? == START + 1_000 && rig.n(1, 8).await? == START + 1_000);
        Ok(())
    })
}

/// One of another program, and one of another Concord cluster on the same server.
fn strangers() -> anyhow::Result<Vec<String>> {
    let gtrid = Mint::above(Gtrid::MIN, std::sync::Arc::new(Machine)).mint();
    let other = Xids::new("other").text(BranchId {
        gtrid,
        bqual: Bqual(1),
    });
    ensure!(other.ends_with(&FORMAT_ID.to_string()));
    Ok(vec!["'somebody','else',7".to_owned(), other])
}

/// An operator's order: what agrees with the outcome is done, what contradicts it or cannot be
/// checked must be forced, and is then on record for ever.
#[test]
fn an_operators_order_is_refused_when_it_contradicts_unless_it_is_forced() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        forgotten_branches(rig).await?;
        against_a_decision(rig).await
    })
}

fn resolve(branch: BranchId, commit: bool, force: bool) -> v1::ResolveBranchRequest {
    let resolution = if commit {
        v1::Resolution::Commit
    } else {
        v1::Resolution::Abort
    };
    v1::ResolveBranchRequest {
        gtrid: branch.gtrid.to_string(),
        bqual: branch.bqual.0,
        participant: "p1".into(),
        resolution: resolution.into(),
        reason: "the test's operator has looked at the books".into(),
        force,
    }
}

fn refusal<T>(answer: Result<T, CallError>) -> anyhow::Result<String> {
    match answer {
        Err(CallError::Refused { reason, .. }) => Ok(reason.code.to_string()),
        Err(other) => anyhow::bail!("not refused but failed: {other}"),
        Ok(_) => anyhow::bail!("not refused"),
    }
}

/// Branches of transactions that the coordinator has long forgotten, as of a restored backup.
async fn forgotten_branches(rig: &mut Rig) -> anyhow::Result<()> {
    for daemon in [COORDINATOR, "p1", "p2"] {
        rig.kill9(daemon)?;
    }
    let armed = rig.crash_folder()?;
    let horizon = Gtrid::lowest_at(Machine.unix_ms());
    EmbeddedLog::open(&rig.data_dir(), CLUSTER)?.append(&[Record::Horizon(horizon)])?;
    let old = |n: u8| {
        // Of version 7 and of the RFC's variant, as minted an hour ago.
        let mut gtrid = Gtrid::lowest_at(Machine.unix_ms() - 3_600_000);
        (gtrid.0[6], gtrid.0[8], gtrid.0[15]) = (0x70, 0x80, n);
        BranchId {
            gtrid,
            bqual: Bqual(1),
        }
    };
    let (unknown, sibling) = (old(1), old(2));
    for (id, branch) in [(4, unknown), (5, sibling)] {
        prepare_by_hand(rig, branch, id).await?;
    }
    // What the other server's ledger knows: the second branch of one of them is committed.
    let mut row = String::new();
    ledger::push_branch_row(
        &mut row,
        BranchId {
            bqual: Bqual(2),
            ..sibling
        },
        1,
        None,
    );
    rig.sql(2, &row).await?;
    rig.up().await?;
    let client = rig.client()?;
    let (in_doubt, unreachable) = eventually("both in the list", PATIENCE, async || {
        let (found, unreachable) = client.list_in_doubt(10).await?;
        let explained = found.iter().all(|b| {
            let branch = b.branch.as_ref();
            branch.is_some_and(|b| {
                b.reason
                    .as_ref()
                    .is_some_and(|r| r.code == "OUTCOME_UNKNOWN")
            })
        });
        Ok((found.len() == 2 && explained).then_some((found, unreachable)))
    })
    .await?;
    ensure!(unreachable.is_empty() && in_doubt.iter().all(|b| b.participant == "p1"));

    for commit in [true, false] {
        let code = refusal(client.resolve_branch(resolve(unknown, commit, false)).await)?;
        ensure!(code == "CONTRADICTS_OUTCOME", "{code}");
    }
    let code = refusal(client.resolve_branch(resolve(sibling, false, false)).await)?;
    ensure!(code == "CONTRADICTS_OUTCOME", "{code}");
    ensure!(rig.prepared(1).await? == 2, "a refused order had an effect");

    // It dies between the commit and its answer.
    let point = armed.path().join(CrashPoint::ServerCommitAnswered.name());
    std::fs::write(&point, "")?;
    let code = refusal(client.resolve_branch(resolve(sibling, true, false)).await)?;
    ensure!(code == "OUTCOME_UNKNOWN", "{code}");
    rig.ended("p1").await?;
    ensure!(rig.n(1, 5).await? == START + 1);
    rig.up().await?;
    let done = client.resolve_branch(resolve(sibling, true, false)).await?;
    ensure!(
        (done.finish(), done.heuristic) == (v1::Finish::Committed, false),
        "{done:?}"
    );
    let done = client.resolve_branch(resolve(unknown, false, true)).await?;
    ensure!(
        (done.finish(), done.heuristic) == (v1::Finish::Aborted, true),
        "{done:?}"
    );
    rig.drained().await?;
    ensure!(rig.n(1, 4).await? == START && rig.n(1, 5).await? == START + 1);

    // A branch that nobody has: whoever forced it is told that it is on record all the same.
    let told = client.resolve_branch(resolve(old(3), true, true)).await;
    match told {
        Err(CallError::Refused { reason, .. }) if &*reason.code == "BRANCH_NOT_FOUND" => {
            ensure!(reason.message.contains("is on record"), "{reason}");
        }
        other => anyhow::bail!("not refused as unknown: {other:?}"),
    }
    Ok(())
}

async fn prepare_by_hand(rig: &Rig, branch: BranchId, id: i32) -> anyhow::Result<()> {
    let mut root = rig.root(1).await?;
    let xid = xid(branch);
    let mut sql = format!("XA START {xid}; ");
    ledger::push_branch_row(&mut sql, branch, 1, None);
    sql +=
        &format!("; UPDATE shop.t SET n = n + 1 WHERE id = {id}; XA END {xid}; XA PREPARE {xid}");
    run(&mut root, &sql).await
}

/// A decided transaction whose branch cannot be told: rolling it back needs force, the fact is
/// kept for ever, and the client is told.
async fn against_a_decision(rig: &mut Rig) -> anyhow::Result<()> {
    let (gtrid, running, lock) = half_prepared(rig, 6, "").await?;
    unlock(lock).await?;
    rig.reaches(&gtrid, State::Committing).await?;
    let (client, branch) = (rig.client()?, branch_of(&gtrid, 1)?);
    let code = refusal(client.resolve_branch(resolve(branch, false, false)).await)?;
    ensure!(code == "CONTRADICTS_OUTCOME", "{code}");
    let known = heuristics(rig).await?;
    // On record before its participant hears of it, which is away: that is not nothing.
    let forced = client.resolve_branch(resolve(branch, false, true)).await;
    let told = format!("{forced:?}");
    ensure!(refusal(forced)? == "OUTCOME_UNKNOWN", "{told}");
    ensure!(
        told.contains("on record") && told.contains("PARTICIPANT_DOWN"),
        "{told}"
    );
    told_of_damage(&running.await?, &gtrid)?;
    ensure!(heuristics(rig).await? == known + 1);
    rig.kill9(COORDINATOR)?;
    let mut kept = 0;
    EmbeddedLog::open(&rig.data_dir(), CLUSTER)?.visit(&mut |record| {
        if let Record::Heuristic {
            gtrid,
            committed,
            reason,
            ..
        } = record
        {
            let ordered = gtrid == branch.gtrid && committed == Some(false);
            kept += u32::from(ordered && reason.message.contains("looked at the books"));
        }
    })?;
    ensure!(kept == 1, "{kept} records of the forced order");
    rig.up().await?;
    // The participant asks when it is back, and is told the order: perhaps before it is repeated.
    match rig
        .client()?
        .resolve_branch(resolve(branch, false, false))
        .await
    {
        Ok(answer) => ensure!(answer.finish() == v1::Finish::Aborted, "{answer:?}"),
        Err(_) => ensure!(rig.prepared(1).await? == 0, "an agreed order was refused"),
    }
    rig.drained().await?;
    ensure!(rig.n(1, 6).await? == START && rig.n(2, 6).await? == START + 1);
    Ok(())
}

/// A backup that holds its lock while a decided branch is to commit.
#[test]
fn a_commit_waits_for_a_backup_lock_and_is_stuck_meanwhile() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        let lock = rig.lock(2, 1).await?;
        let running = rig.plus(1)?;
        let gtrid = rig.voted("p1").await?.gtrid;
        let mut backup = rig.root(1).await?;
        run(&mut backup, "FLUSH TABLES WITH READ LOCK").await?;
        unlock(lock).await?;
        let client = rig.client()?;
        let stuck = eventually("the stuck transaction", PATIENCE, async || {
            Ok(client.list_transactions(&[], true, 10).await?.pop())
        })
        .await?;
        ensure!(stuck.gtrid == gtrid, "{stuck:?}");
        let reason = stuck.branches[0].reason.clone().unwrap_or_default();
        ensure!(reason.code == "METADATA_LOCK", "{reason:?}");
        // Reads of the participant go on.
        ensure!(rig.status(1).await?.damage.is_empty());
        run(&mut backup, "UNLOCK TABLES").await?;
        ensure!(running.await?.is_committed());
        rig.settled(1, START + 1).await?;
        rig.signal("p1", Signal::SIGTERM)?;
        ensure!(rig.ended("p1").await?.success());
        Ok(())
    })
}
