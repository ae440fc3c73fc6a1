//! Branches whose statements come one by one.

use std::time::Duration;

use concord_core::reason::code;
use concord_proto::model::Isolation;

use super::super::{Finished, LedgerEntry, OnePhase, Prepared, ResourceManager as _};
use super::{
    Harness, Verdict, add, branch, certainly_aborted, done, ensure, insert, number, ok, seeded,
    select, take, unlocked,
};

pub(super) async fn an_interactive_branch_commits<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "open", 100).await?;
    let id = branch();
    ok(rm
        .begin(id, Some(Isolation::ReadCommitted), Duration::from_secs(20))
        .await)?;
    ensure!(
        ok(rm.execute(id, &take(&account, 30)).await)?.rows == 1,
        "not touched"
    );
    ensure!(
        number(&ok(rm.execute(id, &select(&account)).await)?) == Some(70),
        "not seen"
    );
    let again = rm.begin(id, None, Duration::from_secs(20)).await;
    ensure!(again.is_err(), "begun twice");
    let prepared = rm.prepare(id, None).await;
    ensure!(
        matches!(prepared, Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    ensure!(
        rm.execute(id, &select(&account)).await.is_err(),
        "a statement after the vote"
    );
    ensure!(rm.commit(id).await == Finished::Done, "not committed");
    ensure!(h.value(&account).await == Some(70), "not committed");
    Ok(())
}

/// Between XA START and XA END the server forgets the branch with its connection. What comes
/// after must not begin a new one, or half of the work would be prepared.
pub(super) async fn a_connection_lost_within_a_branch_never_prepares<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "cut", 100).await?;
    for goes_on in [false, true] {
        let id = branch();
        ok(rm.begin(id, None, Duration::from_secs(20)).await)?;
        ok(rm.execute(id, &take(&account, 10)).await)?;
        h.kill_connections().await;
        if goes_on {
            let more = rm.execute(id, &add(&account, 1)).await;
            ensure!(more.is_err(), "it goes on: {more:?}");
        }
        let prepared = rm.prepare(id, None).await;
        has_no_vote(&prepared)?;
        let committed = rm.commit(id).await;
        ensure!(committed != Finished::Done, "committed");
        certainly_aborted(&*rm, id).await?;
        ensure!(!ok(rm.recover().await)?.ours.contains(&id), "listed");
        unlocked(&*rm, &account).await?;
        ensure!(
            h.value(&account).await == Some(100),
            "half of it is committed"
        );
    }
    Ok(())
}

pub(super) async fn an_interactive_branch_commits_in_one_phase<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "open-single", 100).await?;
    let id = branch();
    ok(rm.begin(id, None, Duration::from_secs(20)).await)?;
    ok(rm.execute(id, &take(&account, 30)).await)?;
    let outcome = rm.commit_one_phase(id, None).await;
    ensure!(matches!(outcome, OnePhase::Committed { .. }), "{outcome:?}");
    ensure!(
        ok(rm.ledger(id).await)? == LedgerEntry::Committed,
        "not in the ledger"
    );
    ensure!(h.value(&account).await == Some(70), "not committed");
    Ok(())
}

pub(super) async fn an_interactive_branch_rolls_back<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "open-abort", 100).await?;
    let id = branch();
    ok(rm.begin(id, None, Duration::from_secs(20)).await)?;
    ok(rm.execute(id, &take(&account, 30)).await)?;
    let finished = rm.rollback(id).await;
    ensure!(finished == Finished::Done, "{finished:?}");
    ensure!(
        rm.execute(id, &select(&account)).await.is_err(),
        "a statement after the end"
    );
    unlocked(&*rm, &account).await?;
    ensure!(h.value(&account).await == Some(100), "committed");
    Ok(())
}

pub(super) async fn a_failed_interactive_branch_only_rolls_back<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "poisoned", 100).await?;
    for violated in [insert(&account, 1), take(&account, 1_000)] {
        let id = branch();
        ok(rm.begin(id, None, Duration::from_secs(20)).await)?;
        ok(rm.execute(id, &take(&account, 30)).await)?;
        ensure!(rm.execute(id, &violated).await.is_err(), "it was to fail");
        // Its locks are gone at once.
        done(&*rm, vec![add(&account, 0)]).await?;
        ensure!(
            rm.execute(id, &select(&account)).await.is_err(),
            "a statement after an error"
        );
        let committed = rm.commit(id).await;
        ensure!(!matches!(committed, Finished::Done), "{committed:?}");
        let prepared = rm.prepare(id, None).await;
        has_no_vote(&prepared)?;
        certainly_aborted(&*rm, id).await?;
    }
    ensure!(
        h.value(&account).await == Some(100),
        "half of it is committed"
    );
    Ok(())
}

pub(super) async fn a_deadlock_has_one_victim<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let (one, two) = (
        seeded(&*rm, "dead-1", 100).await?,
        seeded(&*rm, "dead-2", 100).await?,
    );
    let (left, right) = (branch(), branch());
    for (id, first) in [(left, &one), (right, &two)] {
        ok(rm.begin(id, None, Duration::from_secs(20)).await)?;
        ok(rm.execute(id, &add(first, 1)).await)?;
    }
    let (cross_left, cross_right) = (add(&two, 1), add(&one, 1));
    let (a, b) = tokio::join!(
        rm.execute(left, &cross_left),
        rm.execute(right, &cross_right)
    );
    let (victim, survivor, reason) = match (a, b) {
        (Err(reason), Ok(_)) => (left, right, reason),
        (Ok(_), Err(reason)) => (right, left, reason),
        other => return Err(format!("not exactly one victim: {other:?}")),
    };
    ensure!(&*reason.code == code::DEADLOCK, "{reason}");
    let prepared = rm.prepare(victim, None).await;
    ensure!(
        !matches!(prepared, Prepared::Prepared { .. }),
        "the victim goes on: {prepared:?}"
    );
    certainly_aborted(&*rm, victim).await?;
    let prepared = rm.prepare(survivor, None).await;
    ensure!(
        matches!(prepared, Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    ensure!(rm.commit(survivor).await == Finished::Done, "not committed");
    let values = (h.value(&one).await, h.value(&two).await);
    ensure!(values == (Some(101), Some(101)), "{values:?}");
    Ok(())
}

pub(super) async fn a_rollback_interrupts_what_runs<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "interrupt", 100).await?;
    h.lock(&account).await;
    let id = branch();
    ok(rm.begin(id, None, Duration::from_secs(20)).await)?;
    let blocked = add(&account, 1);
    let aborted = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        certainly_aborted(&*rm, id).await
    };
    let (executed, aborted) = tokio::join!(rm.execute(id, &blocked), aborted);
    h.unlock().await;
    aborted?;
    ensure!(executed.is_err(), "{executed:?}");
    unlocked(&*rm, &account).await?;
    ensure!(h.value(&account).await == Some(100), "committed");
    Ok(())
}

/// A branch that saw an error must never be prepared.
fn has_no_vote(prepared: &Prepared) -> Verdict {
    ensure!(
        matches!(
            prepared,
            Prepared::NotPrepared { .. } | Prepared::Unknown { .. }
        ),
        "{prepared:?}"
    );
    Ok(())
}
