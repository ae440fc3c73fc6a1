//! The ledger, `XA RECOVER`, and what the participant keeps.

use std::time::Duration;

use concord_core::id::{BranchId, Gtrid};
use concord_core::reason::{Reason, code};
use concord_core::record::ParticipantRecord;
use concord_proto::v1;
use tokio::time::Instant;

use super::{Entry, State, Xid};
use crate::resource::{Durable, LedgerEntry, Recovered};

impl State {
    pub(in crate::resource::memory) fn ledger(&self, branch: BranchId) -> LedgerEntry {
        match self.ledger.get(&branch) {
            Some(Entry {
                tombstone: false, ..
            }) => LedgerEntry::Committed,
            Some(Entry {
                tombstone: true, ..
            }) => LedgerEntry::Tombstone,
            None => LedgerEntry::Absent,
        }
    }

    pub(in crate::resource::memory) fn tombstone(
        &mut self,
        branch: BranchId,
    ) -> Result<LedgerEntry, Reason> {
        if self.branches.contains_key(&Xid::Ours(branch)) {
            return Err(Reason::new(code::BRANCH_ATTACHED, "the branch is alive"));
        }
        self.ledger.entry(branch).or_insert(Entry {
            tombstone: true,
            request: None,
            created: Instant::now(),
        });
        Ok(self.ledger(branch))
    }

    pub(in crate::resource::memory) fn recover(&self) -> Recovered {
        let mut recovered = Recovered::default();
        for (xid, branch) in &self.branches {
            match xid {
                Xid::Ours(id) if branch.prepared => recovered.ours.push(*id),
                Xid::Foreign(_) if branch.prepared => recovered.foreign += 1,
                Xid::Ours(_) | Xid::Foreign(_) => {}
            }
        }
        recovered
    }

    pub(in crate::resource::memory) fn load(&self) -> Durable {
        Durable {
            epoch: self.epoch,
            forget_below: self.forget_below,
            damage: self
                .damage
                .iter()
                .filter(|d| !d.acknowledged)
                .cloned()
                .collect(),
        }
    }

    pub(in crate::resource::memory) fn append(&mut self, records: &[ParticipantRecord]) {
        for record in records {
            match record {
                ParticipantRecord::Epoch(epoch) => self.epoch = self.epoch.max(*epoch),
                ParticipantRecord::ForgetBelow(gtrid) => {
                    self.forget_below = self.forget_below.max(*gtrid);
                }
                ParticipantRecord::Damage {
                    gtrid,
                    bqual,
                    reason,
                } => {
                    let report = v1::Damage {
                        id: self.damage.len() as u64 + 1,
                        gtrid: gtrid.to_string(),
                        bqual: bqual.0,
                        reason: Some(v1::Reason {
                            code: reason.code.to_string(),
                            message: reason.message.to_string(),
                        }),
                        time: None,
                        acknowledged: false,
                    };
                    let same = |known: &v1::Damage| {
                        let code = |damage: &v1::Damage| damage.reason.clone().map(|r| r.code);
                        (&known.gtrid, known.bqual, code(known))
                            == (&report.gtrid, report.bqual, code(&report))
                    };
                    if !self.damage.iter().any(same) {
                        self.damage.push(report);
                    }
                }
            }
        }
    }

    pub(in crate::resource::memory) fn damage(&self, limit: u32) -> Vec<v1::Damage> {
        let mut newest: Vec<_> = self.damage.iter().rev().collect();
        newest.sort_by_key(|damage| damage.acknowledged);
        newest.into_iter().take(limit as usize).cloned().collect()
    }

    pub(in crate::resource::memory) fn acknowledge(&mut self, id: u64) -> bool {
        let report = self.damage.iter_mut().find(|report| report.id == id);
        report.is_some_and(|report| {
            report.acknowledged = true;
            true
        })
    }

    pub(in crate::resource::memory) fn prune(
        &mut self,
        below: Gtrid,
        requests_kept: Duration,
    ) -> u64 {
        let before = self.ledger.len();
        let requests_below = below.before(requests_kept);
        self.ledger.retain(|branch, entry| match entry.request {
            Some(_) => branch.gtrid >= requests_below || entry.created.elapsed() < requests_kept,
            None => branch.gtrid >= below,
        });
        (before - self.ledger.len()) as u64
    }
}
