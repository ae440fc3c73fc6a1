//! The last commits that this process knows of, and whether the server still has them.
//!
//! A server that was away may come back with other data under the same identity: a snapshot, a copy
//! of its folder, or what a crash left of commits that were not flushed. Whoever voted on top of
//! that would build on what is lost. See `coordinator/src/driver/witness.rs` for what the
//! coordinator remembers across restarts of both.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use concord_core::id::{Bqual, BranchId, Gtrid};
use concord_core::limits::WITNESSES_MAX;
use concord_core::reason::{Reason, code};
use tokio::time::Instant as Deadline;

use super::answers::{self, keys};
use super::error::Failure;
use super::pool::{Class, Conn};
use super::preflight::Flavor;
use super::{MySql, ledger};

/// The last commits.
#[derive(Debug, Default)]
pub(super) struct Witnesses(Mutex<Last>);

#[derive(Debug, Default)]
struct Last {
    branches: VecDeque<BranchId>,
    /// Ledger rows below it may be deleted.
    below: Gtrid,
}

impl Witnesses {
    /// A branch with a ledger row is committed.
    pub(super) fn note(&self, branch: BranchId) {
        self.change(|last| {
            if branch.gtrid < last.below {
                return;
            }
            if last.branches.len() == WITNESSES_MAX {
                last.branches.pop_front();
            }
            last.branches.push_back(branch);
        });
    }

    /// A branch was rolled back, whatever it was before: an operator forced it.
    pub(super) fn forget(&self, branch: BranchId) {
        self.change(|last| last.branches.retain(|known| *known != branch));
    }

    /// Ledger rows below this one are about to be deleted.
    pub(super) fn forget_below(&self, below: Gtrid) {
        self.change(|last| {
            last.below = last.below.max(below);
            last.branches.retain(|branch| branch.gtrid >= below);
        });
    }

    fn all(&self) -> Vec<BranchId> {
        self.change(|last| last.branches.iter().copied().collect())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Last) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl MySql {
    /// The problem that the server's data is older than what this process has seen. Takes the
    /// newest commits from the ledger when it has seen none yet.
    pub(super) async fn missing_witness(
        &self,
        conn: &mut Conn,
        flavor: Flavor,
        deadline: Deadline,
    ) -> Result<Option<Reason>, Failure> {
        let known = self.witnesses.all();
        if known.is_empty() {
            let text = ledger::select_newest(WITNESSES_MAX);
            let rows = conn.rows(text, deadline, "the ledger").await?;
            for (gtrid, bqual) in keys(&rows).unwrap_or_default().into_iter().rev() {
                let bqual = Bqual(bqual);
                self.witnesses.note(BranchId { gtrid, bqual });
            }
            return Ok(None);
        }
        let lost = self.lost_on(conn, flavor, &known, deadline).await?;
        // Rows may have been deleted meanwhile.
        let still = self.witnesses.all();
        let lost = lost.into_iter().filter(|branch| still.contains(branch));
        Ok(lost.max().map(older_data))
    }

    /// See [`crate::resource::ResourceManager::lost`].
    pub(super) async fn lost_branches(
        &self,
        branches: &[BranchId],
    ) -> Result<Vec<BranchId>, Reason> {
        let flavor = self.facts().await?.flavor;
        let deadline = self.finish_deadline();
        let mut conn = self.pool.acquire_by(Class::Finish, deadline).await?;
        let lost = self.lost_on(&mut conn, flavor, branches, deadline).await;
        let lost = lost.map_err(|failure| failure.reason().clone())?;
        conn.release();
        Ok(lost)
    }

    async fn lost_on(
        &self,
        conn: &mut Conn,
        flavor: Flavor,
        branches: &[BranchId],
        deadline: Deadline,
    ) -> Result<Vec<BranchId>, Failure> {
        let lost = uncommitted(conn, branches, false, deadline).await?;
        if lost.is_empty() {
            return Ok(lost);
        }
        // A commit that a crash undid leaves the branch prepared, and the sweep commits it again.
        let rows = conn.rows(flavor.recover(), deadline, "XA RECOVER").await?;
        let prepared = answers::recovered(&self.xids, &rows).ours;
        let mut lost = lost;
        lost.retain(|branch| !prepared.contains(branch));
        // It may have done so between the two looks, or be about to.
        uncommitted(conn, &lost, true, deadline).await
    }
}

async fn uncommitted(
    conn: &mut Conn,
    branches: &[BranchId],
    wait: bool,
    deadline: Deadline,
) -> Result<Vec<BranchId>, Failure> {
    if branches.is_empty() {
        return Ok(Vec::new());
    }
    let text = ledger::select_committed(branches, wait);
    let rows = conn.rows(text, deadline, "the ledger").await?;
    let keys = keys(&rows).ok_or_else(|| Failure::out_of_step("a ledger row is not readable"))?;
    let mut lost = branches.to_vec();
    lost.retain(|branch| !keys.contains(&(branch.gtrid, branch.bqual.0)));
    Ok(lost)
}

fn older_data(branch: BranchId) -> Reason {
    Reason::new(
        code::DATA_LOST,
        format!(
            "the server's data is older than it was: it lacks branch {branch}, whose commit it \
             had acknowledged. A snapshot or a copy of its data folder was brought back, or it \
             lost commits in a crash. Bring the newer data back; or, to go on without what is \
             lost, restart the participant and follow what the coordinator says then"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(ms: u64) -> BranchId {
        BranchId {
            gtrid: Gtrid::lowest_at(ms),
            bqual: Bqual(1),
        }
    }

    #[test]
    fn the_last_commits_stay_until_their_rows_may_go() {
        let witnesses = Witnesses::default();
        assert_eq!(witnesses.all(), []);
        for ms in 1..=100 {
            witnesses.note(branch(ms));
        }
        assert_eq!(witnesses.all().len(), WITNESSES_MAX);
        witnesses.forget_below(Gtrid::lowest_at(99));
        assert_eq!(witnesses.all(), [branch(99), branch(100)]);
        witnesses.forget(branch(100));
        assert_eq!(witnesses.all(), [branch(99)]);
        witnesses.forget_below(Gtrid::lowest_at(101));
        assert_eq!(witnesses.all(), []);
        witnesses.note(branch(100));
        assert_eq!(witnesses.all(), [], "its row may be gone");
    }
}
