//! What is remembered across restarts, and reads outside branches.

use std::time::Duration;

use concord_core::id::{BranchId, Epoch, Gtrid};
use concord_core::reason::{Reason, code};
use concord_core::record::ParticipantRecord;
use concord_proto::model::Work;
use concord_proto::v1::value::Kind;

use super::super::{Finished, LedgerEntry, ResourceManager};
use super::{Harness, Verdict, branch, ensure, insert, key, ok, prepare, seeded, select, take};

pub(super) async fn records_survive<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let before = ok(rm.load().await)?;
    let (low, high) = (Epoch(before.epoch.0 + 5), Epoch(before.epoch.0 + 9));
    ok(rm.append(&[ParticipantRecord::Epoch(high)]).await)?;
    ok(rm.append(&[ParticipantRecord::Epoch(low)]).await)?;
    let horizon = branch().gtrid;
    let horizon = Gtrid(std::array::from_fn(
        |at| if at < 3 { 0 } else { horizon.0[at] },
    ));
    let records = [
        ParticipantRecord::ForgetBelow(horizon),
        ParticipantRecord::Epoch(high),
    ];
    ok(rm.append(&records).await)?;
    ok(rm
        .append(&[ParticipantRecord::ForgetBelow(Gtrid::MIN)])
        .await)?;
    ok(rm.append(&[]).await)?;
    let after = ok(h.open().await.load().await)?;
    ensure!(after.epoch == high, "{after:?}");
    ensure!(
        after.forget_below == horizon.max(before.forget_below),
        "{after:?}"
    );
    Ok(())
}

pub(super) async fn damage_is_kept_until_acknowledged<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let id = branch();
    let found = |code: &'static str, message: &str| ParticipantRecord::Damage {
        gtrid: id.gtrid,
        bqual: id.bqual,
        reason: Reason::new(code, message),
    };
    let message = "O'Brien \\ \u{1F600} rolled it back; -- \0";
    ok(rm.append(&[found(code::HEURISTIC_ROLLBACK, message)]).await)?;
    ok(rm.append(&[found(code::HEURISTIC_ROLLBACK, "again")]).await)?;
    ok(rm
        .append(&[found(code::HEURISTIC_COMMIT, &"x".repeat(5_000))])
        .await)?;
    let restarted = h.open().await;
    let mine = |damage: Vec<concord_proto::v1::Damage>| -> Vec<_> {
        damage
            .into_iter()
            .filter(|d| d.gtrid == id.gtrid.to_string())
            .collect()
    };
    let open = mine(ok(restarted.load().await)?.damage);
    ensure!(open.len() == 2, "{open:?}");
    ensure!(
        open[0]
            .reason
            .as_ref()
            .is_some_and(|r| r.message == message),
        "{open:?}"
    );
    ensure!(
        open[0].bqual == id.bqual.0 && !open[0].acknowledged,
        "{open:?}"
    );
    for _ in 0..2 {
        ensure!(
            ok(restarted.acknowledge(open[1].id).await)?,
            "not acknowledged"
        );
    }
    ensure!(
        !ok(restarted.acknowledge(u64::MAX).await)?,
        "there is no such report"
    );
    ensure!(mine(ok(rm.load().await)?.damage).len() == 1, "still open");
    // The newer one, which comes behind it now.
    let all = mine(ok(rm.damage(100).await)?);
    ensure!(
        all.len() == 2 && all[1].acknowledged && !all[0].acknowledged,
        "{all:?}"
    );
    Ok(())
}

async fn committed<R: ResourceManager>(rm: &R, id: BranchId, work: &Work) -> Verdict {
    let prepared = rm.prepare(id, Some(work)).await;
    ensure!(
        matches!(prepared, super::Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    super::certainly_committed(rm, id).await
}

/// More than a case takes.
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A late retry must find what its first attempt did, long after everything else is forgotten, and
/// also when a clock was wrong: by its id this one is half a century old.
pub(super) async fn requests_are_forgotten_later<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "late retry", 100).await?;
    let (mut first, mut plain) = (branch(), branch());
    let name = super::key("late retry");
    let work = |amount| super::request(super::work(vec![take(&account, amount)]), &name);
    for (year, old) in [(0, &mut first), (1, &mut plain)] {
        old.gtrid.0[..6].fill(year);
    }
    committed(&*rm, first, &work(1)).await?;
    let unnamed = super::work(vec![take(&account, 1)]);
    committed(&*rm, plain, &unnamed).await?;
    let mut horizon = plain.gtrid;
    horizon.0[5] = 2;
    ok(rm.prune(horizon, DAY).await)?;
    ensure!(
        ok(rm.ledger(plain).await)? == LedgerEntry::Absent,
        "the row without a request stays"
    );
    ensure!(
        ok(rm.ledger(first).await)? == LedgerEntry::Committed,
        "the request is forgotten"
    );
    let retry = rm.prepare(branch(), Some(&work(1))).await;
    let (reason, _) = super::refusal(retry)?;
    ensure!(
        &*reason.code == concord_core::reason::code::REQUEST_ALREADY_COMMITTED,
        "{reason}"
    );
    let young = branch();
    let named = super::request(unnamed, &super::key("young"));
    committed(&*rm, young, &named).await?;
    ok(rm.prune(horizon, Duration::ZERO).await)?;
    ensure!(
        ok(rm.ledger(first).await)? == LedgerEntry::Absent,
        "the request is never forgotten"
    );
    ensure!(
        ok(rm.ledger(young).await)? == LedgerEntry::Committed,
        "too much was forgotten"
    );
    Ok(())
}

pub(super) async fn old_rows_are_forgotten<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "forget", 100).await?;
    // Older than everything else: its time is 1970.
    let mut old = branch();
    old.gtrid.0[..6].fill(0);
    let prepared = rm
        .prepare(old, Some(&super::work(vec![take(&account, 1)])))
        .await;
    ensure!(
        matches!(prepared, super::Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    let mut horizon = old.gtrid;
    horizon.0[5] = 1;
    // A row of a branch that is in doubt is not there yet, and stays.
    ok(rm.prune(horizon, DAY).await)?;
    super::certainly_committed(&*rm, old).await?;
    ensure!(
        ok(rm.ledger(old).await)? == LedgerEntry::Committed,
        "the row is gone"
    );
    // Rows that come late are found by the next process.
    let rm = h.open().await;
    ensure!(
        ok(rm.prune(horizon, DAY).await)? >= 1,
        "nothing was deleted"
    );
    ensure!(
        ok(rm.ledger(old).await)? == LedgerEntry::Absent,
        "not forgotten"
    );
    let young = prepare(&*rm, vec![take(&account, 1)]).await?;
    ensure!(rm.commit(young).await == Finished::Done, "not committed");
    ok(rm.prune(horizon, DAY).await)?;
    ensure!(
        ok(rm.ledger(young).await)? == LedgerEntry::Committed,
        "too much was forgotten"
    );
    Ok(())
}

pub(super) async fn reads_outside_branches<H: Harness>(h: &H) -> Verdict {
    let rm = h.open().await;
    let account = seeded(&*rm, "query", 100).await?;
    let result = ok(rm.query(&select(&account), Duration::from_secs(5)).await)?;
    ensure!(result.rows == 1, "{result:?}");
    let value = result
        .result
        .first()
        .and_then(|row| row.values.first()?.kind.clone());
    ensure!(value == Some(Kind::Int64(100)), "{value:?}");
    let none = ok(rm
        .query(&select(&key("nobody")), Duration::from_secs(5))
        .await)?;
    ensure!(none.rows == 0 && none.result.is_empty(), "{none:?}");
    let write = rm
        .query(&insert(&key("write"), 1), Duration::from_secs(5))
        .await;
    ensure!(write.is_err(), "{write:?}");
    // A branch in doubt does not keep readers waiting.
    let id = prepare(&*rm, vec![take(&account, 1)]).await?;
    let result = rm.query(&select(&account), Duration::from_secs(5)).await;
    super::certainly_committed(&*rm, id).await?;
    ensure!(ok(result)?.rows == 1, "a reader waits");
    Ok(())
}
