//! The decision log as it ships, watched: what it called durable, and whether that is still there
//! when it is opened again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use concord_coordinator::log::{DecisionLog, EmbeddedLog, LogError, LogStats};
use concord_core::id::{BranchId, Epoch, Gtrid};
use concord_core::record::Record;

use super::judge::Judge;
use super::trace::Trace;

#[derive(Debug, Default)]
struct Promised {
    /// Transactions whose decision was acknowledged, and not forgotten since.
    decided: BTreeMap<Gtrid, &'static str>,
    forgetting: BTreeSet<Gtrid>,
    epoch: Epoch,
    appends: u64,
    folds: u64,
    opened: u64,
}

/// What the log acknowledged, across all the processes that had it.
#[derive(Clone, Debug)]
pub struct Watch {
    promised: Arc<Mutex<Promised>>,
    places: Arc<BTreeMap<concord_core::id::ParticipantName, usize>>,
    judge: Judge,
    trace: Trace,
}

impl Watch {
    /// Of an empty log; `places` tells which server is behind which participant.
    pub fn new(
        places: BTreeMap<concord_core::id::ParticipantName, usize>,
        judge: Judge,
        trace: Trace,
    ) -> Self {
        Self {
            promised: Arc::default(),
            places: Arc::new(places),
            judge,
            trace,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Promised> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a log that was just opened: everything that was acknowledged must be in it.
    pub fn over(&self, log: EmbeddedLog) -> Result<WatchedLog, LogError> {
        let records = log.replay()?;
        self.audit(&records);
        Ok(WatchedLog {
            log,
            fresh: true,
            watch: self.clone(),
        })
    }

    fn audit(&self, records: &[Record]) {
        let mut promised = self.lock();
        promised.opened += 1;
        let there: BTreeSet<Gtrid> = records
            .iter()
            .filter_map(|record| kind(record).and(record.gtrid()))
            .collect();
        let epoch = records.iter().find_map(|record| match record {
            Record::Epoch(epoch) => Some(*epoch),
            _ => None,
        });
        let lost: Vec<(Gtrid, &'static str)> = promised
            .decided
            .iter()
            .filter(|(gtrid, _)| !there.contains(gtrid) && !promised.forgetting.contains(gtrid))
            .map(|(gtrid, kind)| (*gtrid, *kind))
            .collect();
        let before = promised.epoch;
        // Whether a crash came before or after the commit that forgets, nobody was told.
        let forgetting = std::mem::take(&mut promised.forgetting);
        let forgotten: Vec<Gtrid> = forgetting.difference(&there).copied().collect();
        for gtrid in &forgotten {
            promised.decided.remove(gtrid);
        }
        drop(promised);
        for gtrid in forgotten {
            self.judge.learn(gtrid, |facts| facts.forgotten = true);
        }
        for (gtrid, kind) in lost {
            let text = format!("the log lost the {kind} of {gtrid}, which it had acknowledged");
            self.judge.broken(Some(gtrid), text);
        }
        if epoch.unwrap_or_default() < before {
            let text = format!("the log lost epoch {before}, which it had acknowledged");
            self.judge.broken(None, text);
        }
        // What was written and never acknowledged is durable now, if it is there.
        for record in records {
            self.learn(record);
        }
    }

    fn learn(&self, record: &Record) {
        let mut promised = self.lock();
        if let Record::Epoch(epoch) = record {
            promised.epoch = promised.epoch.max(*epoch);
        }
        if let Record::Incarnation { participant, .. } = record
            && let Some(place) = self.places.get(participant)
        {
            self.judge.met(*place);
        }
        if let (Some(kind), Some(gtrid)) = (kind(record), record.gtrid()) {
            promised.decided.insert(gtrid, kind);
        }
        drop(promised);
        match record {
            Record::Decision {
                gtrid, branches, ..
            } => self.judge.learn(*gtrid, |facts| {
                facts.durable = true;
                for (bqual, _) in branches {
                    facts.branches.entry(*bqual).or_default();
                }
            }),
            Record::End { gtrid, .. } => self.judge.ended(*gtrid),
            Record::OnePhase { gtrid, bqual, .. } => self.judge.learn(*gtrid, |facts| {
                facts.durable = true;
                facts.one_phase = true;
                facts.branches.entry(*bqual).or_default();
            }),
            _ => {}
        }
        if let Record::Decision {
            gtrid, branches, ..
        } = record
        {
            for (bqual, participant) in branches {
                let branch = BranchId {
                    gtrid: *gtrid,
                    bqual: *bqual,
                };
                let place = self.places.get(participant).copied();
                self.judge.learn_branch(branch, place, |_| {});
            }
        }
    }

    /// Every coordinator has an epoch of its own, and that is the first that it writes down.
    fn check_epoch(&self, records: &[Record], first: bool) {
        let before = self.lock().epoch;
        let raised = |record: &Record| matches!(record, Record::Epoch(_));
        if first && !records.iter().any(raised) {
            let text = format!("a coordinator begins without an epoch, after epoch {before}");
            self.judge.broken(None, text);
        }
        for record in records {
            if let Record::Epoch(epoch) = record
                && *epoch <= before
            {
                let text = format!("a coordinator starts as epoch {epoch}, after epoch {before}");
                self.judge.broken(None, text);
            }
        }
    }

    /// Appends, and times that it was opened.
    pub fn counts(&self) -> (u64, u64) {
        let promised = self.lock();
        (promised.appends, promised.opened)
    }
}

/// What the record decides, if it does.
fn kind(record: &Record) -> Option<&'static str> {
    match record {
        Record::Decision { .. } => Some("decision"),
        Record::OnePhase { .. } => Some("handing over"),
        Record::Refused { .. } => Some("refusal"),
        _ => None,
    }
}

/// A log that is watched.
#[derive(Debug)]
pub struct WatchedLog {
    log: EmbeddedLog,
    /// Nothing was appended yet.
    fresh: bool,
    watch: Watch,
}

impl DecisionLog for WatchedLog {
    fn append(&mut self, records: &[Record]) -> Result<(), LogError> {
        let appended = self.log.append(records);
        let done = appended.is_ok();
        for record in records {
            let short = kind(record).unwrap_or(match record {
                Record::Epoch(_) => "epoch",
                Record::End { .. } => "end",
                Record::Heuristic { .. } => "heuristic",
                Record::Horizon(_) => "horizon",
                _ => "placement or incarnation",
            });
            let gtrid = record.gtrid();
            self.watch
                .trace
                .note("log", gtrid, format_args!("{short}: durable {done}"));
        }
        if done {
            let first = std::mem::take(&mut self.fresh);
            self.watch.check_epoch(records, first);
            for record in records {
                self.watch.learn(record);
            }
            let mut promised = self.watch.lock();
            promised.appends += 1;
            let forgotten = std::mem::take(&mut promised.forgetting);
            promised.folds += u64::from(!forgotten.is_empty());
            for gtrid in &forgotten {
                promised.decided.remove(gtrid);
            }
            drop(promised);
            for gtrid in forgotten {
                self.watch
                    .trace
                    .note("log", Some(gtrid), format_args!("forgotten"));
                self.watch
                    .judge
                    .learn(gtrid, |facts| facts.forgotten = true);
            }
        }
        appended
    }

    fn forget(&mut self, gtrids: &[Gtrid], horizon: Gtrid) -> Result<(), LogError> {
        self.watch.lock().forgetting.extend(gtrids);
        self.log.forget(gtrids, horizon)
    }

    fn visit(&self, each: &mut dyn FnMut(Record)) -> Result<(), LogError> {
        self.log.visit(each)
    }

    fn stats(&self) -> LogStats {
        self.log.stats()
    }
}
