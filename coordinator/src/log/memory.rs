//! A decision log in memory, for models and tests: it follows the contract and forgets everything
//! when it is dropped. It goes through no disk format and proves nothing about disks.

use std::collections::BTreeMap;

use concord_core::id::{Bqual, Epoch, Gtrid, ParticipantName};
use concord_core::record::Record;

use super::{DecisionLog, LogError, LogStats};

/// Place of a record among those of its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Place {
    Decision,
    OnePhase,
    Refused,
    Heuristic(Bqual, usize),
    End,
}

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemoryLog {
    epoch: Option<Epoch>,
    placement: Option<Vec<ParticipantName>>,
    incarnations: BTreeMap<ParticipantName, (String, Gtrid)>,
    horizon: Option<Gtrid>,
    transactions: BTreeMap<(Gtrid, Place), Record>,
    /// What the next append deletes, and where it moves the horizon.
    forgotten: Vec<Gtrid>,
    next_horizon: Option<Gtrid>,
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a transaction would still be running after these records.
    fn is_early(&self, gtrid: Gtrid, records: &[Record]) -> bool {
        let mut own = records
            .iter()
            .filter(|record| record.gtrid() == Some(gtrid));
        let logged = |place| self.transactions.contains_key(&(gtrid, place));
        let begins =
            |record: &Record| matches!(record, Record::Decision { .. } | Record::OnePhase { .. });
        let begun = logged(Place::Decision) || logged(Place::OnePhase) || own.clone().any(begins);
        let ends = |record: &Record| matches!(record, Record::End { .. } | Record::Refused { .. });
        let ended = logged(Place::End) || logged(Place::Refused) || own.any(ends);
        begun && !ended
    }

    fn put(&mut self, record: &Record) {
        let (gtrid, place) = match record {
            Record::Epoch(epoch) => return self.epoch = Some(*epoch),
            Record::Horizon(gtrid) => {
                self.horizon = self.horizon.max(Some(*gtrid));
                return;
            }
            Record::Placement(names) => return self.placement = Some(names.clone()),
            Record::Incarnation {
                participant,
                incarnation,
                after,
            } => {
                self.incarnations
                    .insert(participant.clone(), (incarnation.clone(), *after));
                return;
            }
            Record::Decision { gtrid, .. } => (*gtrid, Place::Decision),
            Record::OnePhase { gtrid, .. } => (*gtrid, Place::OnePhase),
            Record::Refused { gtrid, .. } => (*gtrid, Place::Refused),
            Record::End { gtrid, .. } => (*gtrid, Place::End),
            Record::Heuristic { gtrid, bqual, .. } => {
                let first = (*gtrid, Place::Heuristic(*bqual, 0));
                let last = (*gtrid, Place::Heuristic(*bqual, usize::MAX));
                (
                    *gtrid,
                    Place::Heuristic(*bqual, self.transactions.range(first..=last).count()),
                )
            }
        };
        self.transactions.insert((gtrid, place), record.clone());
    }
}

impl DecisionLog for MemoryLog {
    fn append(&mut self, records: &[Record]) -> Result<(), LogError> {
        let mut current = self.epoch.unwrap_or_default();
        for record in records {
            if let Record::Epoch(appended) = *record {
                if appended < current {
                    return Err(LogError::EpochWentDown { appended, current });
                }
                current = appended;
            }
        }
        let forgotten = std::mem::take(&mut self.forgotten);
        let next_horizon = self.next_horizon.take();
        if let Some(early) = forgotten
            .iter()
            .find(|gtrid| self.is_early(**gtrid, records))
        {
            return Err(LogError::NotEnded(*early));
        }
        for record in records {
            self.put(record);
        }
        for gtrid in forgotten {
            for place in [Place::Decision, Place::OnePhase, Place::Refused, Place::End] {
                self.transactions.remove(&(gtrid, place));
            }
        }
        self.horizon = self.horizon.max(next_horizon);
        Ok(())
    }

    fn forget(&mut self, gtrids: &[Gtrid], horizon: Gtrid) -> Result<(), LogError> {
        self.forgotten.extend(gtrids);
        self.next_horizon = self.next_horizon.max(Some(horizon));
        Ok(())
    }

    fn visit(&self, each: &mut dyn FnMut(Record)) -> Result<(), LogError> {
        self.epoch
            .map(Record::Epoch)
            .into_iter()
            .for_each(&mut *each);
        self.placement
            .clone()
            .map(Record::Placement)
            .into_iter()
            .for_each(&mut *each);
        for (participant, (incarnation, after)) in &self.incarnations {
            let (participant, incarnation) = (participant.clone(), incarnation.clone());
            each(Record::Incarnation {
                participant,
                incarnation,
                after: *after,
            });
        }
        self.horizon
            .map(Record::Horizon)
            .into_iter()
            .for_each(&mut *each);
        self.transactions.values().cloned().for_each(each);
        Ok(())
    }

    fn stats(&self) -> LogStats {
        let decisions = self
            .transactions
            .keys()
            .filter(|(_, place)| {
                matches!(place, Place::Decision | Place::OnePhase | Place::Refused)
            })
            .count();
        LogStats {
            decisions: decisions as u64,
            bytes: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    #[test]
    fn it_keeps_the_contract() {
        conformance::run_all(MemoryLog::new, |log| log);
    }
}
