//! After everything was healed: how long branches stay in doubt, and that all of them leave it.
//!
//! What the servers list is looked at all the time, from the moment at which the last fault ends.
//! The daemons' own word does not count.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use concord_client::local::server::ServerKind;
use concord_client::v1;
use concord_core::id::BranchId;
use concord_participant::resource::mysql::xa::Xids;
use futures::future::join_all;
use sqlx::mysql::MySqlConnection;

use super::stage::{FOREIGN_XID, SERVERS, Stage};
use crate::cluster::eventually;
use crate::rig::{self, DRAINED_IN, Listed, OPEN};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for one answer of a server that is being started.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// All processes are up again in this time, recovery of the servers included.
const UP_TIMEOUT: Duration = Duration::from_secs(60);
/// Nothing is in doubt and no client at work for this long: it is over.
const QUIET: Duration = Duration::from_millis(300);
/// Far more than may be needed; what takes as long will not come.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(40);
/// Open transactions that a failure shows.
const SHOWN_MAX: usize = 5;
/// The name in every xid of a cluster of `concord up`.
const CLUSTER: &str = "local";

/// How it went.
#[derive(Clone, Debug, Default)]
pub struct Drained {
    /// From the end of the last fault until every process served again.
    pub up_after: Duration,
    /// Branches that were in doubt when everything was up, or came to be while the last clients
    /// ended: how long they still were.
    pub after_up: Vec<Duration>,
    /// Branches that were in doubt when the last fault ended: how long they still were.
    pub after_faults: Vec<Duration>,
    /// The one that was in doubt for longest after everything was up, and its server.
    pub slowest: Option<(Duration, usize, BranchId)>,
    /// From the time when everything was up until the coordinator had no open transaction.
    pub settled_after: Duration,
    /// From the same time until the last client had ended.
    pub clients_after: Duration,
    /// A transaction that was open after that.
    pub open: Option<v1::Transaction>,
}

/// Branches of one server.
#[derive(Default)]
struct Watch {
    root: Option<MySqlConnection>,
    /// When each was seen first.
    listed: BTreeMap<BranchId, Instant>,
    looked: bool,
}

/// Watches until nothing is in doubt any more, and all clients have ended.
pub async fn watch(stage: &mut Stage) -> anyhow::Result<Drained> {
    let healed = Instant::now();
    let mut drained = Drained::default();
    let mut watches: Vec<Watch> = (1..=SERVERS).map(|_| Watch::default()).collect();
    let mut up: Option<Instant> = None;
    let mut quiet: Option<Instant> = None;
    loop {
        let working = stage.clients_work()?;
        let all_up = stage.cluster.is_up()?;
        // All at once: a server that is slow to answer keeps no other from being asked.
        let looks = (1..)
            .zip(&mut watches)
            .map(|(n, watch)| look(stage, n, &mut watch.root));
        let seen = join_all(looks).await;
        for ((n, watch), seen) in (1..).zip(&mut watches).zip(seen) {
            watch.note(n, seen, (healed, up), &mut drained)?;
        }
        let now = Instant::now();
        if up.is_none() && all_up && watches.iter().all(|watch| watch.looked) {
            up = Some(now);
            drained.up_after = now - healed;
        }
        let waited = up.map(|up| now - up);
        if working {
            drained.clients_after = waited.unwrap_or_default();
        }
        let idle = !working && watches.iter().all(|watch| watch.listed.is_empty());
        quiet = if idle { quiet.or(Some(now)) } else { None };
        match (waited, quiet) {
            (Some(_), Some(since)) if now - since >= QUIET => break,
            (Some(waited), _) if waited > DRAIN_TIMEOUT => {
                let left: Vec<_> = watches.iter().map(|watch| &watch.listed).collect();
                bail!("still in doubt {waited:?} after everything was up: {left:?}");
            }
            (None, _) if now - healed > UP_TIMEOUT => {
                bail!(
                    "not up {UP_TIMEOUT:?} after the last fault: {:?}",
                    stage.cluster.state()?
                );
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
    stage.clients_ended().await?;
    drained.open = settled(stage).await?;
    drained.settled_after = up.map_or(Duration::ZERO, |up| up.elapsed());
    Ok(drained)
}

/// Waits until the coordinator has no transaction that is not over: of one that is on a single
/// server no branch is ever listed there as prepared.
async fn settled(stage: &Stage) -> anyhow::Result<Option<v1::Transaction>> {
    let client = stage.client()?;
    let mut first = None;
    eventually("every transaction over", DRAINED_IN, async || {
        let open = client.list_transactions(&OPEN, false, SHOWN_MAX).await?;
        first = first.take().or(open.first().cloned());
        ensure!(open.is_empty(), "still open: {open:?}");
        Ok(Some(()))
    })
    .await?;
    Ok(first)
}

/// Waits until every process serves.
pub async fn up(stage: &Stage) -> anyhow::Result<()> {
    eventually("every process up", UP_TIMEOUT, async || {
        Ok(stage.cluster.is_up()?.then_some(()))
    })
    .await
}

impl Watch {
    /// Takes a look at the n-th server, if it answered.
    fn note(
        &mut self,
        n: usize,
        seen: Option<(Instant, Vec<Listed>)>,
        (healed, up): (Instant, Option<Instant>),
        drained: &mut Drained,
    ) -> anyhow::Result<()> {
        let Some((at, listed)) = seen else {
            // It is being started; once it was up nobody kills it any more.
            self.looked = false;
            return Ok(());
        };
        let (ours, foreign) = sort(listed);
        ensure!(
            foreign == 1,
            "server {n} lists {foreign} foreign branches: {FOREIGN_XID} was one"
        );
        // Whatever a server lists at its first answer was there before it was asked.
        let since = if self.looked { at } else { healed };
        self.looked = true;
        for branch in &ours {
            self.listed.entry(*branch).or_insert(since);
        }
        self.listed.retain(|branch, since| {
            if ours.contains(branch) {
                return true;
            }
            if *since <= healed {
                drained.after_faults.push(at - healed);
            }
            if let Some(up) = up {
                let took = at.saturating_duration_since(up.max(*since));
                drained.after_up.push(took);
                drained.slowest = drained.slowest.max(Some((took, n, *branch)));
            }
            false
        });
        Ok(())
    }
}

/// What the n-th server lists, and when it said so; `None`, and no connection, when it does not
/// answer.
async fn look(
    stage: &Stage,
    n: usize,
    root: &mut Option<MySqlConnection>,
) -> Option<(Instant, Vec<Listed>)> {
    let asked = tokio::time::timeout(ANSWER_TIMEOUT, ask(stage, n, root)).await;
    if let Ok(Ok(listed)) = asked {
        return Some((Instant::now(), listed));
    }
    *root = None;
    None
}

async fn ask(
    stage: &Stage,
    n: usize,
    root: &mut Option<MySqlConnection>,
) -> anyhow::Result<Vec<Listed>> {
    if root.is_none() {
        *root = Some(stage.cluster.root(n).await?);
    }
    let Some(connection) = root else {
        bail!("no connection");
    };
    let kind: ServerKind = stage.cluster.server.kind();
    rig::recover(connection, kind).await
}

/// Ours, and how many there are of others.
fn sort(listed: Vec<Listed>) -> (Vec<BranchId>, usize) {
    let xids = Xids::new(CLUSTER);
    let all = listed.len();
    let ours: Vec<BranchId> = listed
        .iter()
        .filter_map(|row| xids.parse(row.format_id, row.gtrid_len, row.bqual_len, &row.data))
        .collect();
    let foreign = all - ours.len();
    (ours, foreign)
}

/// A share of the durations, from 0 to 1, in ms.
pub fn percentile(durations: &mut [Duration], share: f64) -> u64 {
    durations.sort_unstable();
    let Some(last) = durations.len().checked_sub(1) else {
        return 0;
    };
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )] // a few thousand at most
    let at = (last as f64 * share).ceil() as usize;
    u64::try_from(durations[at.min(last)].as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let mut none = [];
        assert_eq!(percentile(&mut none, 0.5), 0);
        let mut some: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut some, 0.0), 1);
        assert_eq!(percentile(&mut some, 0.5), 51);
        assert_eq!(percentile(&mut some, 0.99), 100);
        assert_eq!(percentile(&mut some, 1.0), 100);
    }
}
