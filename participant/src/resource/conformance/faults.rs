//! What DBAs, unsafe settings and crashes do.

use std::time::Duration;

use concord_core::reason::code;
use concord_proto::model::Value;

use super::super::{Finished, LedgerEntry, Prepared, ResourceManager};
use super::{
    Harness, TABLE, Verdict, add, branch, certainly_committed, done, ensure, eventually, ok,
    prepare, refusal, seeded, statement, take, work,
};

/// Waits until votes are given again.
async fn votes<R: ResourceManager>(rm: &R, key: &str) -> Verdict {
    eventually(|| done(rm, vec![add(key, 0)])).await?;
    ensure!(
        health_becomes(rm, true).await,
        "votes are given and the health does not say so"
    );
    Ok(())
}

async fn health_becomes<R: ResourceManager>(rm: &R, can_vote: bool) -> bool {
    let mut health = rm.health();
    let change = health.wait_for(|health| health.can_vote() == can_vote);
    // What it returns locks the channel, so it must not live on.
    matches!(
        tokio::time::timeout(super::PATIENCE, change).await,
        Ok(Ok(_))
    )
}

pub(super) async fn a_rollback_by_hand_shows<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "by-hand", 100).await?;
    let id = prepare(&*rm, vec![take(&account, 10)]).await?;
    h.roll_back_by_hand(id).await;
    // On MariaDB the DBA had to end the connection first, so the first attempt may find it cut.
    let finished = rm.commit(id).await;
    ensure!(
        !matches!(finished, Finished::Done | Finished::NotDone(_)),
        "{finished:?}"
    );
    let finished = rm.commit(id).await;
    ensure!(finished == Finished::NoSuchBranch, "{finished:?}");
    ensure!(
        ok(rm.ledger(id).await)? == LedgerEntry::Absent,
        "taken for committed"
    );
    ensure!(!ok(rm.recover().await)?.ours.contains(&id), "still listed");
    ensure!(h.value(&account).await == Some(100), "committed");
    Ok(())
}

pub(super) async fn a_foreign_branch_stays<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "foreign", 100).await?;
    let before = ok(rm.recover().await)?;
    h.prepare_foreign(&account).await;
    let listed = ok(rm.recover().await)?;
    ensure!(
        listed.foreign == before.foreign + 1,
        "{before:?} {listed:?}"
    );
    ensure!(listed.ours == before.ours, "taken for ours: {listed:?}");
    ensure!(h.commit_foreign().await, "it is gone");
    ensure!(h.value(&account).await == Some(101), "not committed");
    Ok(())
}

pub(super) async fn an_unsafe_server_gets_no_vote<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "unsafe", 100).await?;
    let before = prepare(&*rm, vec![take(&account, 10)]).await?;
    let open = branch();
    ok(rm.begin(open, None, Duration::from_secs(20)).await)?;
    h.set_unsafe(true).await;
    let id = branch();
    let refused = rm.prepare(id, Some(&work(vec![add(&account, 1)]))).await;
    let opened = rm.prepare(open, None).await;
    let committed = rm.commit(before).await;
    let noticed = health_becomes(&*rm, false).await;
    h.set_unsafe(false).await;
    // On MariaDB the row is locked by the branch that is prepared until then; either refusal is
    // right, but a vote is not.
    let (reason, _) = refusal(refused)?;
    ensure!(
        matches!(&*reason.code, code::UNSAFE_SERVER | code::LOCK_TIMEOUT),
        "{reason}"
    );
    let (reason, _) = refusal(opened)?;
    ensure!(&*reason.code == code::UNSAFE_SERVER, "{reason}");
    ensure!(
        reason.message.contains("innodb_flush_log_at_trx_commit"),
        "{reason}"
    );
    ensure!(reason.message.contains("SET GLOBAL"), "{reason}");
    ensure!(
        committed == Finished::Done,
        "what is prepared must commit: {committed:?}"
    );
    ensure!(noticed, "the health does not show it");
    ensure!(!ok(rm.recover().await)?.ours.contains(&id), "listed");
    votes(&*rm, &account).await?;
    ensure!(
        h.value(&account).await == Some(90),
        "{:?}",
        h.value(&account).await
    );
    Ok(())
}

pub(super) async fn an_unsafe_server_gets_no_vote_from_the_start<H: Harness>(h: &H) -> Verdict {
    let account = seeded(&*h.open().await, "unsafe-start", 100).await?;
    h.set_unsafe(true).await;
    let rm = h.open().await;
    let refused = rm
        .prepare(branch(), Some(&work(vec![add(&account, 1)])))
        .await;
    let begun = rm.begin(branch(), None, Duration::from_secs(9)).await;
    h.set_unsafe(false).await;
    let (reason, _) = refusal(refused)?;
    ensure!(&*reason.code == code::UNSAFE_SERVER, "{reason}");
    ensure!(begun.is_err(), "a branch was begun");
    votes(&*rm, &account).await
}

pub(super) async fn a_read_only_server_gets_no_vote<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "read-only", 100).await?;
    let other = seeded(&*rm, "read-only-other", 100).await?;
    let id = prepare(&*rm, vec![take(&account, 10)]).await?;
    h.set_read_only(true).await;
    let refused = rm
        .prepare(branch(), Some(&work(vec![add(&other, 1)])))
        .await;
    let committed = rm.commit(id).await;
    h.set_read_only(false).await;
    let (reason, _) = refusal(refused)?;
    ensure!(&*reason.code == code::READ_ONLY_SERVER, "{reason}");
    match committed {
        // Who may write in spite of it may commit, too.
        Finished::Done => {}
        Finished::NotDone(reason) => {
            ensure!(&*reason.code == code::READ_ONLY_SERVER, "{reason}");
            certainly_committed(&*rm, id).await?;
        }
        other => return Err(format!("{other:?}")),
    }
    ensure!(h.value(&account).await == Some(90), "not committed");
    votes(&*rm, &other).await
}

pub(super) async fn a_crash_loses_no_prepared_branch<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let mut branches = Vec::new();
    for _ in 0..6 {
        let account = seeded(&*rm, "crash", 100).await?;
        branches.push((prepare(&*rm, vec![take(&account, 10)]).await?, account));
    }
    h.crash().await;
    eventually(|| async {
        let listed = ok(rm.recover().await)?;
        for (id, _) in &branches {
            ensure!(listed.ours.contains(id), "{id} is lost");
        }
        Ok(())
    })
    .await?;
    for (index, (id, account)) in branches.iter().enumerate() {
        // Its rows are still locked.
        let outcome = rm
            .prepare(branch(), Some(&work(vec![add(account, 1)])))
            .await;
        ensure!(!matches!(outcome, Prepared::Prepared { .. }), "{outcome:?}");
        if index % 2 == 0 {
            certainly_committed(&*rm, *id).await?;
        } else {
            super::certainly_aborted(&*rm, *id).await?;
        }
        let expected = if index % 2 == 0 { 90 } else { 100 };
        ensure!(h.value(account).await == Some(expected), "branch {index}");
    }
    Ok(())
}

/// Locks are not in the log of a server: after a crash it takes those again that its prepared
/// branches need to be rolled back.
pub(super) async fn a_crash_loses_locks_of_what_was_only_read<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let read = seeded(&*rm, "crash-read", 100).await?;
    let changed = seeded(&*rm, "crash-changed", 100).await?;
    let look = statement(
        format!("SELECT v FROM {TABLE} WHERE k = ? FOR UPDATE"),
        vec![Value::String(read.as_str().into())],
    );
    let id = prepare(&*rm, vec![look, add(&changed, 1)]).await?;
    for key in [&read, &changed] {
        let outcome = rm.prepare(branch(), Some(&work(vec![add(key, 1)]))).await;
        refusal(outcome)?;
    }
    h.crash().await;
    eventually(|| async {
        ensure!(ok(rm.recover().await)?.ours.contains(&id), "it is lost");
        Ok(())
    })
    .await?;
    super::unlocked(&*rm, &read).await?;
    let outcome = rm
        .prepare(branch(), Some(&work(vec![add(&changed, 1)])))
        .await;
    refusal(outcome)?;
    certainly_committed(&*rm, id).await?;
    ensure!(h.value(&changed).await == Some(101), "not committed");
    Ok(())
}

pub(super) async fn a_crash_loses_every_unprepared_branch<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "crash-open", 100).await?;
    let id = branch();
    ok(rm.begin(id, None, Duration::from_secs(30)).await)?;
    ok(rm.execute(id, &take(&account, 10)).await)?;
    h.crash().await;
    let prepared = rm.prepare(id, None).await;
    ensure!(
        !matches!(prepared, Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    super::certainly_aborted(&*rm, id).await?;
    super::unlocked(&*rm, &account).await?;
    ensure!(h.value(&account).await == Some(100), "committed");
    Ok(())
}
