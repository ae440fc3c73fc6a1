//! Work, votes, and what a branch leaves behind when it gets none.

use std::time::{Duration, Instant};

use concord_core::reason::code;
use concord_proto::model::{Isolation, Work};
use futures::future::join_all;

use super::super::{Finished, LedgerEntry, OnePhase, Prepared, ResourceManager as _};
use super::{
    Harness, LOCK_WAIT, Verdict, add, branch, certainly_aborted, certainly_committed, done, ensure,
    insert, key, number, ok, prepare, refusal, request, seeded, select, statement, take, unlocked,
    work,
};

pub(super) async fn a_prepared_branch_commits<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "commit", 100).await?;
    let id = branch();
    let prepared = rm
        .prepare(id, Some(&work(vec![take(&account, 30), select(&account)])))
        .await;
    let Prepared::Prepared { results } = prepared else {
        return Err(format!("{prepared:?}"));
    };
    ensure!(results.len() == 2 && results[0].rows == 1, "{results:?}");
    ensure!(number(&results[1]) == Some(70), "{results:?}");
    ensure!(
        h.value(&account).await == Some(100),
        "visible before the commit"
    );
    ensure!(ok(rm.recover().await)?.ours.contains(&id), "not listed");
    ensure!(
        ok(rm.ledger(id).await)? == LedgerEntry::Absent,
        "in the ledger before the commit"
    );
    let finished = rm.commit(id).await;
    ensure!(finished == Finished::Done, "{finished:?}");
    ensure!(h.value(&account).await == Some(70), "not committed");
    ensure!(
        ok(rm.ledger(id).await)? == LedgerEntry::Committed,
        "not in the ledger"
    );
    ensure!(!ok(rm.recover().await)?.ours.contains(&id), "still listed");
    Ok(())
}

pub(super) async fn a_prepared_branch_rolls_back<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "abort", 100).await?;
    let id = prepare(&*rm, vec![take(&account, 30)]).await?;
    let finished = rm.rollback(id).await;
    ensure!(finished == Finished::Done, "{finished:?}");
    ensure!(h.value(&account).await == Some(100), "committed");
    ensure!(
        ok(rm.ledger(id).await)? == LedgerEntry::Absent,
        "in the ledger"
    );
    ensure!(!ok(rm.recover().await)?.ours.contains(&id), "still listed");
    unlocked(&*rm, &account).await
}

pub(super) async fn a_single_branch_commits_in_one_phase<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "single", 100).await?;
    let id = branch();
    let outcome = rm
        .commit_one_phase(id, Some(&work(vec![take(&account, 30)])))
        .await;
    ensure!(
        matches!(&outcome, OnePhase::Committed { results } if results.len() == 1),
        "{outcome:?}"
    );
    ensure!(h.value(&account).await == Some(70), "not committed");
    ensure!(
        ok(rm.ledger(id).await)? == LedgerEntry::Committed,
        "not in the ledger"
    );
    // A repetition, e.g. after a lost answer, tells the same and does nothing again.
    let again = rm
        .commit_one_phase(id, Some(&work(vec![take(&account, 30)])))
        .await;
    ensure!(matches!(again, OnePhase::Committed { .. }), "{again:?}");
    ensure!(h.value(&account).await == Some(70), "committed twice");
    Ok(())
}

pub(super) async fn statements_of_a_branch_see_each_other<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "twice", 100).await?;
    done(
        &*rm,
        vec![take(&account, 60), take(&account, 40), add(&account, 5)],
    )
    .await?;
    ensure!(
        h.value(&account).await == Some(5),
        "{:?}",
        h.value(&account).await
    );
    Ok(())
}

/// Whatever happened on a connection, the next branch that gets one begins anew: no statement of
/// the failed one, no isolation level, no open branch is left in it.
pub(super) async fn a_failed_branch_spoils_no_other<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "spoiled", 0).await?;
    let fails = [
        vec![add(&account, 1_000), insert(&account, 1)],
        vec![add(&account, 1_000), take(&account, 1_000_000)],
    ];
    for round in 0..12 {
        let mut failing = work(fails[round % fails.len()].clone());
        failing.isolation = Some(Isolation::Serializable);
        let id = branch();
        refusal(rm.prepare(id, Some(&failing)).await)?;
        ensure!(rm.commit(id).await != Finished::Done, "committed");
        let single = rm.commit_one_phase(branch(), Some(&failing)).await;
        ensure!(
            matches!(single, OnePhase::NotCommitted { .. }),
            "{single:?}"
        );
        done(&*rm, vec![add(&account, 1)]).await?;
    }
    ensure!(
        h.value(&account).await == Some(12),
        "{:?}",
        h.value(&account).await
    );
    Ok(())
}

pub(super) async fn a_failed_statement_never_commits_half<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "half", 100).await?;
    let id = branch();
    let half = work(vec![
        take(&account, 30),
        insert(&account, 1),
        add(&account, 1),
    ]);
    let prepared = rm.prepare(id, Some(&half)).await;
    let Prepared::NotPrepared {
        reason,
        results,
        failed,
    } = prepared
    else {
        return Err(format!("{prepared:?}"));
    };
    ensure!(&*reason.code == code::CONSTRAINT_VIOLATED, "{reason}");
    ensure!(
        failed == Some(1) && results.len() == 1,
        "{failed:?} {results:?}"
    );
    let finished = rm.commit(id).await;
    ensure!(finished == Finished::NoSuchBranch, "{finished:?}");
    ensure!(!ok(rm.recover().await)?.ours.contains(&id), "listed");
    let single = rm.commit_one_phase(branch(), Some(&half)).await;
    ensure!(
        matches!(single, OnePhase::NotCommitted { .. }),
        "{single:?}"
    );
    unlocked(&*rm, &account).await?;
    ensure!(
        h.value(&account).await == Some(100),
        "half of it is committed"
    );
    Ok(())
}

pub(super) async fn a_violated_expectation_aborts<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "expect", 100).await?;
    let other = key("expect-other");
    let id = branch();
    let prepared = rm
        .prepare(
            id,
            Some(&work(vec![take(&account, 101), insert(&other, 1)])),
        )
        .await;
    let Prepared::NotPrepared {
        reason,
        results,
        failed,
    } = prepared
    else {
        return Err(format!("{prepared:?}"));
    };
    ensure!(&*reason.code == "INSUFFICIENT_FUNDS", "{reason}");
    ensure!(
        failed == Some(0) && results.len() == 1,
        "{failed:?} {results:?}"
    );
    ensure!(!ok(rm.recover().await)?.ours.contains(&id), "listed");
    done(&*rm, vec![add(&account, 0)]).await?;
    ensure!(h.value(&other).await.is_none(), "half of it is committed");
    Ok(())
}

pub(super) async fn a_violated_expectation_aborts_one_phase<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "expect-single", 100).await?;
    let id = branch();
    let too_much = work(vec![add(&account, 1), take(&account, 1_000)]);
    let outcome = rm.commit_one_phase(id, Some(&too_much)).await;
    let OnePhase::NotCommitted { reason, failed, .. } = outcome else {
        return Err(format!("{outcome:?}"));
    };
    ensure!(
        &*reason.code == "INSUFFICIENT_FUNDS" && failed == Some(1),
        "{reason} {failed:?}"
    );
    done(&*rm, vec![add(&account, 0)]).await?;
    ensure!(
        h.value(&account).await == Some(100),
        "half of it is committed"
    );
    ensure!(
        ok(rm.ledger(id).await)? != LedgerEntry::Committed,
        "in the ledger"
    );
    Ok(())
}

pub(super) async fn a_lock_timeout_aborts<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let (one, two) = (
        seeded(&*rm, "wait-1", 100).await?,
        seeded(&*rm, "wait-2", 100).await?,
    );
    h.lock(&two).await;
    let id = branch();
    let prepared = rm
        .prepare(id, Some(&work(vec![take(&one, 30), add(&two, 30)])))
        .await;
    let verdict = refusal(prepared);
    // The first statement's lock is gone while the second's row is still locked.
    let free = done(&*rm, vec![add(&one, 0)]).await;
    h.unlock().await;
    let (reason, failed) = verdict?;
    ensure!(
        &*reason.code == code::LOCK_TIMEOUT && failed == Some(1),
        "{reason} {failed:?}"
    );
    free?;
    let finished = rm.commit(id).await;
    ensure!(finished == Finished::NoSuchBranch, "{finished:?}");
    ensure!(h.value(&one).await == Some(100), "half of it is committed");
    Ok(())
}

pub(super) async fn a_branch_that_only_reads_may_leave<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "reads", 100).await?;
    let reading = |allow_read_only| Work {
        allow_read_only,
        ..work(vec![select(&account)])
    };
    let id = branch();
    let prepared = rm.prepare(id, Some(&reading(true))).await;
    let Prepared::ReadOnly { results } = prepared else {
        return Err(format!("{prepared:?}"));
    };
    ensure!(number(&results[0]) == Some(100), "{results:?}");
    ensure!(!ok(rm.recover().await)?.ours.contains(&id), "listed");
    let serializable = Work {
        isolation: Some(Isolation::Serializable),
        ..reading(true)
    };
    let writing = Work {
        allow_read_only: true,
        ..work(vec![select(&account), add(&account, 0)])
    };
    let named = request(reading(true), &key("request"));
    for stays in [reading(false), serializable, writing, named] {
        let id = branch();
        let prepared = rm.prepare(id, Some(&stays)).await;
        ensure!(
            matches!(prepared, Prepared::Prepared { .. }),
            "{stays:?}: {prepared:?}"
        );
        // It writes its ledger row, so it does not vanish in a crash, nor from another connection.
        certainly_committed(&*rm, id).await?;
    }
    Ok(())
}

pub(super) async fn refused_sql_costs_nothing<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "refused", 100).await?;
    for sql in [
        "XA END x'00'",
        "COMMIT",
        "SELECT 1; COMMIT",
        "CALL p()",
        "SELECT SLEEP(9)",
        "",
    ] {
        let id = branch();
        let bad = statement(sql.into(), Vec::new());
        let prepared = rm
            .prepare(id, Some(&work(vec![take(&account, 1), bad.clone()])))
            .await;
        let (reason, failed) = refusal(prepared)?;
        ensure!(
            &*reason.code == code::STATEMENT_NOT_ALLOWED,
            "{sql}: {reason}"
        );
        ensure!(failed == Some(1), "{sql}: {failed:?}");
        ensure!(
            rm.query(&bad, Duration::from_secs(5)).await.is_err(),
            "{sql} as a read"
        );
    }
    let missing = statement(
        format!("SELECT v FROM {} WHERE k = ?", super::TABLE),
        Vec::new(),
    );
    let (reason, _) = refusal(rm.prepare(branch(), Some(&work(vec![missing]))).await)?;
    ensure!(&*reason.code == code::STATEMENT_NOT_ALLOWED, "{reason}");
    ensure!(h.value(&account).await == Some(100), "it was run");
    Ok(())
}

pub(super) async fn a_request_takes_effect_once<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "request", 100).await?;
    let name = key("request");
    let once = request(work(vec![take(&account, 10)]), &name);
    // An attempt that was rolled back does not count.
    let first = branch();
    let prepared = rm.prepare(first, Some(&once)).await;
    ensure!(
        matches!(prepared, Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    ensure!(
        rm.rollback(first).await == Finished::Done,
        "not rolled back"
    );
    let second = branch();
    let prepared = rm.prepare(second, Some(&once)).await;
    ensure!(
        matches!(prepared, Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    // While it is in doubt, a third one waits, and then fails for another reason.
    let (reason, _) = refusal(rm.prepare(branch(), Some(&once)).await)?;
    ensure!(&*reason.code == code::LOCK_TIMEOUT, "{reason}");
    certainly_committed(&*rm, second).await?;
    let (reason, _) = refusal(rm.prepare(branch(), Some(&once)).await)?;
    ensure!(&*reason.code == code::REQUEST_ALREADY_COMMITTED, "{reason}");
    ensure!(*reason.message == second.gtrid.to_string(), "{reason}");
    let single = rm.commit_one_phase(branch(), Some(&once)).await;
    ensure!(
        matches!(&single, OnePhase::NotCommitted { reason, .. }
            if &*reason.code == code::REQUEST_ALREADY_COMMITTED),
        "{single:?}"
    );
    // The same id for something else: that must not be told as done.
    let mut other = request(work(vec![take(&account, 20)]), &name);
    if let Some(request) = &mut other.request {
        request.fingerprint = u64::MAX;
    }
    let (reason, _) = refusal(rm.prepare(branch(), Some(&other)).await)?;
    ensure!(&*reason.code == code::REQUEST_ID_REUSED, "{reason}");
    let single = rm.commit_one_phase(branch(), Some(&other)).await;
    ensure!(
        matches!(&single, OnePhase::NotCommitted { reason, .. }
            if &*reason.code == code::REQUEST_ID_REUSED),
        "{single:?}"
    );
    // Who does not know what was asked for is told what is known.
    if let Some(request) = &mut other.request {
        request.fingerprint = 0;
    }
    let (reason, _) = refusal(rm.prepare(branch(), Some(&other)).await)?;
    ensure!(&*reason.code == code::REQUEST_ALREADY_COMMITTED, "{reason}");
    ensure!(h.value(&account).await == Some(90), "not exactly once");
    Ok(())
}

pub(super) async fn a_branch_out_of_time_leaves_no_lock<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let (one, two) = (
        seeded(&*rm, "late-1", 100).await?,
        seeded(&*rm, "late-2", 100).await?,
    );
    h.lock(&two).await;
    let id = branch();
    let short = Work {
        timeout: Duration::from_millis(200),
        ..work(vec![take(&one, 30), add(&two, 30)])
    };
    let began = Instant::now();
    let prepared = rm.prepare(id, Some(&short)).await;
    let stalled = began.elapsed() >= LOCK_WAIT;
    let free = unlocked(&*rm, &one).await;
    h.unlock().await;
    free?;
    match prepared {
        Prepared::NotPrepared { reason, .. } => {
            let ended = stalled && &*reason.code == code::LOCK_TIMEOUT;
            ensure!(
                ended || &*reason.code == code::DEADLINE_EXCEEDED,
                "{reason}"
            );
        }
        Prepared::Unknown { .. } => certainly_aborted(&*rm, id).await?,
        other => return Err(format!("{other:?}")),
    }
    ensure!(h.value(&one).await == Some(100), "committed");
    Ok(())
}

pub(super) async fn a_cancelled_branch_leaves_no_lock<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let (one, two) = (
        seeded(&*rm, "cancel-1", 100).await?,
        seeded(&*rm, "cancel-2", 100).await?,
    );
    h.lock(&two).await;
    let id = branch();
    let blocked = work(vec![take(&one, 30), add(&two, 30)]);
    let cancelled = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        rm.cancel(id);
    };
    let (prepared, ()) = tokio::join!(rm.prepare(id, Some(&blocked)), cancelled);
    let free = unlocked(&*rm, &one).await;
    h.unlock().await;
    free?;
    ensure!(
        !matches!(prepared, Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    certainly_aborted(&*rm, id).await?;
    ensure!(h.value(&one).await == Some(100), "committed");
    Ok(())
}

pub(super) async fn a_dropped_call_leaves_no_lock<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let (one, two) = (
        seeded(&*rm, "drop-1", 100).await?,
        seeded(&*rm, "drop-2", 100).await?,
    );
    h.lock(&two).await;
    let id = branch();
    let blocked = work(vec![take(&one, 30), add(&two, 30)]);
    let call = rm.prepare(id, Some(&blocked));
    let began = Instant::now();
    let ended = tokio::time::timeout(Duration::from_millis(200), call).await;
    let stalled = began.elapsed() >= LOCK_WAIT;
    let free = unlocked(&*rm, &one).await;
    h.unlock().await;
    ensure!(ended.is_err() || stalled, "it was to be dropped: {ended:?}");
    free?;
    certainly_aborted(&*rm, id).await?;
    ensure!(h.value(&one).await == Some(100), "committed");
    Ok(())
}

pub(super) async fn more_branches_than_connections<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    // The first look at the server is none of their time.
    done(&*rm, vec![insert(&key("alone"), 1)]).await?;
    // Where votes keep their connections, whoever finds none is refused when its time is up.
    let patience = Duration::from_secs(if h.keeps_attached() { 2 } else { 20 });
    let most = usize::try_from(rm.connections().max).unwrap_or(1);
    let keys: Vec<String> = (0..most * 3).map(|_| key("crowd")).collect();
    let attempts = keys.iter().map(|key| {
        let rm = &rm;
        async move {
            let id = branch();
            let one = Work {
                timeout: patience,
                ..work(vec![insert(key, 1)])
            };
            (id, key, rm.prepare(id, Some(&one)).await)
        }
    });
    let mut prepared = Vec::new();
    for (id, key, outcome) in join_all(attempts).await {
        match outcome {
            Prepared::Prepared { .. } => prepared.push((id, key)),
            Prepared::NotPrepared { reason, .. } => {
                // One that had a connection is late where logging in takes long.
                let fits = [code::POOL_EXHAUSTED, code::DEADLINE_EXCEEDED];
                ensure!(fits.contains(&&*reason.code), "{reason}");
                ensure!(
                    h.keeps_attached(),
                    "connections come back after a vote: {reason}"
                );
            }
            Prepared::Unknown { .. } if h.keeps_attached() => certainly_aborted(&*rm, id).await?,
            other => return Err(format!("{other:?}")),
        }
    }
    ensure!(!prepared.is_empty(), "nothing was prepared");
    // The second phase never waits for the first.
    for (_, outcome) in prepared
        .iter()
        .zip(join_all(prepared.iter().map(|(id, _)| rm.commit(*id))).await)
    {
        ensure!(outcome == Finished::Done, "{outcome:?}");
    }
    for (_, key) in &prepared {
        ensure!(h.value(key).await == Some(1), "not committed");
    }
    Ok(())
}
