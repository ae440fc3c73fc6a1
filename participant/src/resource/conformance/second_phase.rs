//! Committing, rolling back, and telling the outcomes apart.

use std::time::{Duration, Instant};

use concord_core::reason::code;

use super::super::{Finished, LedgerEntry, Prepared, ResourceManager as _};
use super::{
    Harness, LOCK_WAIT, Verdict, add, branch, certainly_aborted, certainly_committed, ensure, ok,
    prepare, prepare_after_kills, refusal, seeded, take, work,
};

pub(super) async fn a_branch_that_is_over_is_no_such_branch<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "over", 100).await?;
    let never = branch();
    for finished in [rm.commit(never).await, rm.rollback(never).await] {
        ensure!(finished == Finished::NoSuchBranch, "{finished:?}");
    }
    let committed = prepare(&*rm, vec![take(&account, 1)]).await?;
    ensure!(
        rm.commit(committed).await == Finished::Done,
        "not committed"
    );
    for finished in [rm.commit(committed).await, rm.rollback(committed).await] {
        ensure!(finished == Finished::NoSuchBranch, "{finished:?}");
    }
    ensure!(
        ok(rm.ledger(committed).await)? == LedgerEntry::Committed,
        "not in the ledger"
    );
    let aborted = prepare(&*rm, vec![take(&account, 1)]).await?;
    ensure!(
        rm.rollback(aborted).await == Finished::Done,
        "not rolled back"
    );
    for finished in [rm.rollback(aborted).await, rm.commit(aborted).await] {
        ensure!(finished == Finished::NoSuchBranch, "{finished:?}");
    }
    ensure!(
        ok(rm.ledger(aborted).await)? == LedgerEntry::Absent,
        "in the ledger"
    );
    ensure!(h.value(&account).await == Some(99), "not exactly once");
    Ok(())
}

pub(super) async fn a_repeated_prepare_gives_the_same_vote<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "repeat", 100).await?;
    let once = work(vec![take(&account, 10)]);
    let id = branch();
    let prepared = rm.prepare(id, Some(&once)).await;
    ensure!(
        matches!(prepared, Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    // As after a restart of the participant: nothing is known but what the server knows.
    let restarted = h.open().await;
    let again = restarted.prepare(id, Some(&once)).await;
    ensure!(matches!(again, Prepared::Prepared { .. }), "{again:?}");
    certainly_committed(&*rm, id).await?;
    // Committed: it cannot be voted for any more, and is not done again.
    let late = restarted.prepare(id, Some(&once)).await;
    let (reason, _) = refusal(late)?;
    ensure!(&*reason.code == code::WRONG_STATE, "{reason}");
    ensure!(
        ok(rm.ledger(id).await)? == LedgerEntry::Committed,
        "not in the ledger"
    );
    ensure!(h.value(&account).await == Some(90), "not exactly once");
    Ok(())
}

pub(super) async fn a_tombstone_stops_a_late_prepare<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "tombstone", 100).await?;
    let id = branch();
    for _ in 0..2 {
        ensure!(
            ok(rm.tombstone(id).await)? == LedgerEntry::Tombstone,
            "no tombstone"
        );
        ensure!(
            ok(rm.ledger(id).await)? == LedgerEntry::Tombstone,
            "no tombstone"
        );
    }
    let (reason, _) = refusal(rm.prepare(id, Some(&work(vec![take(&account, 1)]))).await)?;
    ensure!(&*reason.code == code::ALREADY_ABORTED, "{reason}");
    ensure!(
        rm.begin(id, None, Duration::from_secs(9)).await.is_err(),
        "begun after its abort"
    );
    ensure!(h.value(&account).await == Some(100), "committed");
    Ok(())
}

pub(super) async fn a_tombstone_tells_of_a_commit<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "late-abort", 100).await?;
    let id = prepare(&*rm, vec![take(&account, 1)]).await?;
    ensure!(rm.commit(id).await == Finished::Done, "not committed");
    ensure!(
        ok(rm.tombstone(id).await)? == LedgerEntry::Committed,
        "the commit is hidden"
    );
    ensure!(
        ok(rm.ledger(id).await)? == LedgerEntry::Committed,
        "the commit is hidden"
    );
    Ok(())
}

pub(super) async fn a_living_branch_has_no_tombstone<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "living", 100).await?;
    let id = prepare(&*rm, vec![take(&account, 1)]).await?;
    // A wait for its row would take a second each time, and it can be rolled back meanwhile.
    let (mut attached, mut quick) = (Vec::new(), 0);
    for _ in 0..6 {
        let began = Instant::now();
        attached.push(rm.tombstone(id).await);
        quick += usize::from(began.elapsed() < LOCK_WAIT);
    }
    certainly_committed(&*rm, id).await?;
    for tried in attached {
        let reason = tried.err().ok_or("a tombstone of a living branch")?;
        ensure!(&*reason.code == code::BRANCH_ATTACHED, "{reason}");
    }
    ensure!(quick >= 3, "it waited: {quick} of 6 were quick");
    ensure!(h.value(&account).await == Some(99), "not committed");
    Ok(())
}

pub(super) async fn a_branch_attached_elsewhere_is_not_taken_for_committed<H: Harness>(
    h: &H,
) -> Verdict {
    let (rm, restarted) = (h.open().await, h.open().await);
    let account = seeded(&*rm, "attached", 100).await?;
    for commit in [true, false] {
        let before = h.value(&account).await;
        let id = prepare(&*rm, vec![take(&account, 10)]).await?;
        let mut finished = restarted.commit(id).await;
        // The look whether the server has the branch came too late.
        while matches!(&finished, Finished::NotDone(why) if &*why.code == code::DEADLINE_EXCEEDED) {
            finished = restarted.commit(id).await;
        }
        if h.keeps_attached() {
            ensure!(finished == Finished::NoSuchBranch, "{finished:?}");
            ensure!(
                ok(restarted.ledger(id).await)? == LedgerEntry::Absent,
                "taken for committed"
            );
            ensure!(
                ok(restarted.recover().await)?.ours.contains(&id),
                "not listed"
            );
            ensure!(h.value(&account).await == before, "committed");
            ok(restarted.detach(id).await)?;
            if commit {
                certainly_committed(&*restarted, id).await?;
            } else {
                certainly_aborted(&*restarted, id).await?;
            }
        } else {
            ensure!(finished == Finished::Done, "{finished:?}");
        }
        let again = rm.commit(id).await;
        ensure!(!matches!(again, Finished::Done), "{again:?}");
    }
    let expected = if h.keeps_attached() { 90 } else { 80 };
    ensure!(
        h.value(&account).await == Some(expected),
        "{:?}",
        h.value(&account).await
    );
    Ok(())
}

pub(super) async fn a_branch_of_a_lost_connection_commits<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "lost", 100).await?;
    let id = prepare(&*rm, vec![take(&account, 10)]).await?;
    h.kill_connections().await;
    certainly_committed(&*rm, id).await?;
    ensure!(h.value(&account).await == Some(90), "not committed");
    // A connection that died idle is not handed out for ever.
    super::unlocked(&*rm, &account).await
}

pub(super) async fn a_commit_waits_for_a_backup<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "backup", 100).await?;
    let id = prepare(&*rm, vec![take(&account, 10)]).await?;
    h.block_commits(true).await;
    let blocked = rm.commit(id).await;
    let listed = rm.recover().await;
    h.block_commits(false).await;
    ensure!(matches!(blocked, Finished::NotDone(_)), "{blocked:?}");
    ensure!(ok(listed)?.ours.contains(&id), "it is not as it was");
    certainly_committed(&*rm, id).await?;
    ensure!(h.value(&account).await == Some(90), "not committed");
    Ok(())
}

/// Its lock has the same error as that of a living branch, whose connection is ended.
pub(super) async fn a_backup_is_not_taken_for_a_living_branch<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "backup", 100).await?;
    let (never, living) = (branch(), prepare(&*rm, vec![take(&account, 10)]).await?);
    h.block_commits(true).await;
    let barred = rm.tombstone(never).await.err();
    let read = rm.ledger(never).await.err();
    let attached = rm.tombstone(living).await.err();
    h.block_commits(false).await;
    for reason in [barred, read].into_iter().flatten() {
        ensure!(&*reason.code == code::METADATA_LOCK, "{reason}");
    }
    let attached = attached.ok_or("a tombstone of a living branch")?;
    ensure!(&*attached.code == code::BRANCH_ATTACHED, "{attached}");
    certainly_committed(&*rm, living).await?;
    ensure!(
        ok(rm.tombstone(never).await)? == LedgerEntry::Tombstone,
        "no tombstone"
    );
    Ok(())
}

pub(super) async fn a_commit_whose_answer_is_lost_is_in_the_ledger<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "unknown", 100).await?;
    for round in 1..=5 {
        let id = prepare_after_kills(&*rm, &add(&account, 1)).await?;
        h.block_commits(true).await;
        let killed = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            h.kill_connections().await;
            h.block_commits(false).await;
        };
        // Whatever it says, it must not be wrong.
        let (first, ()) = tokio::join!(rm.commit(id), killed);
        if first == Finished::Done {
            ensure!(
                ok(rm.ledger(id).await)? == LedgerEntry::Committed,
                "done, and not in the ledger"
            );
        }
        certainly_committed(&*rm, id).await?;
        ensure!(
            h.value(&account).await == Some(100 + round),
            "not exactly once"
        );
    }
    Ok(())
}

pub(super) async fn only_what_is_neither_committed_nor_prepared_is_lost<H: Harness>(
    h: &H,
) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "lost", 100).await?;
    let committed = prepare(&*rm, vec![take(&account, 1)]).await?;
    ensure!(
        rm.commit(committed).await == Finished::Done,
        "not committed"
    );
    let prepared = prepare(&*rm, vec![take(&account, 1)]).await?;
    let (never, aborted) = (branch(), branch());
    ok(rm.tombstone(aborted).await)?;
    ensure!(ok(rm.lost(&[]).await)?.is_empty(), "lost of nothing");
    let asked = [committed, never, prepared, aborted];
    let lost = ok(rm.lost(&asked).await)?;
    ensure!(lost == [never, aborted], "{lost:?} of {asked:?}");
    ensure!(rm.commit(prepared).await == Finished::Done, "not committed");
    let lost = ok(rm.lost(&asked).await)?;
    ensure!(lost == [never, aborted], "{lost:?} of {asked:?}");
    Ok(())
}
