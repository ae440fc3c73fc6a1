//! What a participant's data must still hold: the last branches of each that acknowledged their
//! commit.
//!
//! It owns the memory of such branches, gathered from the records of live running and of recovery
//! alike. Data that lacks one of them is older than what the cluster knows: a snapshot brought
//! back, or a server that lost acknowledged commits. Its identity tells nothing then, for a copy
//! has it too. Several are needed: a snapshot lacks what was committed last on its server, and that
//! need not be what ended last, nor what has the highest id.
//!
//! Only what committed in two phases is a witness: a branch in one phase may have only read, and
//! such a one leaves nothing in the data.

use std::collections::{BTreeMap, VecDeque};

use concord_core::id::{Bqual, BranchId, Gtrid, ParticipantName};
use concord_core::limits::WITNESSES_MAX;
use concord_core::record::Record;

/// The last committed branches of each participant.
#[derive(Clone, Debug, Default)]
pub struct Witnesses {
    /// Branches of decisions that have not ended.
    open: BTreeMap<Gtrid, Vec<(Bqual, ParticipantName)>>,
    last: BTreeMap<ParticipantName, VecDeque<BranchId>>,
    /// Transactions up to here were made with other data.
    after: BTreeMap<ParticipantName, Gtrid>,
    horizon: Gtrid,
}

impl Witnesses {
    /// Takes a record, in the order of the log or of replay.
    pub fn note(&mut self, record: &Record) {
        match record {
            Record::Decision {
                gtrid, branches, ..
            } => {
                self.open.insert(*gtrid, branches.clone());
            }
            // Whatever became of it, it is not what was decided.
            Record::Heuristic { gtrid, bqual, .. } => {
                if let Some(branches) = self.open.get_mut(gtrid) {
                    branches.retain(|(number, _)| number != bqual);
                }
                let (gtrid, bqual) = (*gtrid, *bqual);
                for last in self.last.values_mut() {
                    last.retain(|branch| *branch != BranchId { gtrid, bqual });
                }
            }
            Record::End { gtrid, .. } => {
                for (bqual, participant) in self.open.remove(gtrid).unwrap_or_default() {
                    let last = self.last.entry(participant).or_default();
                    if last.len() == WITNESSES_MAX {
                        last.pop_front();
                    }
                    let gtrid = *gtrid;
                    last.push_back(BranchId { gtrid, bqual });
                }
            }
            Record::Horizon(horizon) => self.horizon = self.horizon.max(*horizon),
            Record::Incarnation {
                participant, after, ..
            } => {
                self.after.insert(participant.clone(), *after);
            }
            Record::OnePhase { .. }
            | Record::Refused { .. }
            | Record::Epoch(_)
            | Record::Placement(_) => {}
        }
    }

    /// The branches that this participant's data must hold; not those that are older than the
    /// data, nor those of which it may have deleted the proof, as it does below the horizon.
    pub fn of(&self, participant: &ParticipantName) -> Vec<BranchId> {
        let last = self.last.get(participant).into_iter().flatten();
        last.copied()
            .filter(|branch| self.is_after(participant, *branch) && branch.gtrid >= self.horizon)
            .collect()
    }

    /// Whether a branch was made with the data that the participant has now.
    pub fn is_after(&self, participant: &ParticipantName, branch: BranchId) -> bool {
        let after = self.after.get(participant).copied();
        branch.gtrid > after.unwrap_or(Gtrid::MIN)
    }
}

#[cfg(test)]
mod tests {
    use concord_core::id::Epoch;
    use concord_core::reason::Reason;

    use super::*;

    fn gtrid(ms: u64) -> Gtrid {
        Gtrid::lowest_at(ms)
    }

    fn name(text: &str) -> ParticipantName {
        ParticipantName::new(text)
    }

    fn decision(ms: u64) -> Record {
        Record::Decision {
            gtrid: gtrid(ms),
            epoch: Epoch(1),
            branches: vec![(Bqual(1), name("p1")), (Bqual(2), name("p2"))],
            request: None,
        }
    }

    fn end(ms: u64) -> Record {
        Record::End {
            gtrid: gtrid(ms),
            committed: true,
        }
    }

    fn after(records: &[Record]) -> Witnesses {
        let mut witnesses = Witnesses::default();
        for record in records {
            witnesses.note(record);
        }
        witnesses
    }

    fn branch(ms: u64, bqual: u32) -> BranchId {
        BranchId {
            gtrid: gtrid(ms),
            bqual: Bqual(bqual),
        }
    }

    #[test]
    fn only_an_ended_commit_is_a_witness_and_the_last_ones_stay() {
        let mut witnesses = after(&[decision(5), decision(7), decision(6)]);
        assert_eq!(witnesses.of(&name("p1")), []);
        witnesses.note(&end(6));
        witnesses.note(&end(7));
        assert_eq!(witnesses.of(&name("p1")), [branch(6, 1), branch(7, 1)]);
        assert_eq!(witnesses.of(&name("p2")), [branch(6, 2), branch(7, 2)]);
        assert_eq!(witnesses.of(&name("p3")), []);
        for ms in 100..200 {
            witnesses.note(&decision(ms));
            witnesses.note(&end(ms));
        }
        let held = witnesses.of(&name("p1"));
        assert_eq!(held.len(), WITNESSES_MAX);
        assert_eq!(held.last(), Some(&branch(199, 1)));
    }

    #[test]
    fn a_branch_in_one_phase_is_none() {
        let one_phase = Record::OnePhase {
            gtrid: gtrid(5),
            epoch: Epoch(1),
            bqual: Bqual(1),
            participant: name("p1"),
            request: None,
        };
        let witnesses = after(&[one_phase, end(5)]);
        assert_eq!(witnesses.of(&name("p1")), []);
    }

    #[test]
    fn a_branch_that_someone_else_finished_is_none() {
        let heuristic = Record::Heuristic {
            gtrid: gtrid(5),
            bqual: Bqual(1),
            participant: name("p1"),
            committed: Some(false),
            reason: Reason::new("HEURISTIC_ROLLBACK", ""),
            request: None,
        };
        let witnesses = after(&[decision(5), heuristic, end(5)]);
        assert_eq!(witnesses.of(&name("p1")), []);
        assert_eq!(witnesses.of(&name("p2")), [branch(5, 2)]);
    }

    #[test]
    fn what_is_below_the_horizon_or_of_other_data_is_none() {
        let mut witnesses = after(&[decision(5), end(5)]);
        let accepted = Record::Incarnation {
            participant: name("p1"),
            incarnation: "uuid/1".to_owned(),
            after: gtrid(5),
        };
        // In the order of replay it comes first.
        assert_eq!(
            after(&[accepted.clone(), decision(5), end(5)]).of(&name("p1")),
            []
        );
        witnesses.note(&accepted);
        assert_eq!(witnesses.of(&name("p1")), []);
        assert_eq!(witnesses.of(&name("p2")), [branch(5, 2)]);
        witnesses.note(&Record::Horizon(gtrid(6)));
        assert_eq!(witnesses.of(&name("p2")), []);
    }
}
