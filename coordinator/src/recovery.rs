//! Starting from the log: replay through the same `apply` as live running, then raise the epoch.

use std::collections::BTreeMap;

use concord_core::coordinator::{ApplyError, Coordinator};
use concord_core::id::{Epoch, Gtrid, ParticipantName};
use concord_core::planted::{self, Bug};
use concord_core::record::Record;
use concord_daemon::crash::{CrashPoint, reach};
use thiserror::Error;

use crate::driver::{Recovered, Witnesses};
use crate::gateway::placement::{Placement, PlacementError};
use crate::log::{DecisionLog, LogError};

/// Why a coordinator cannot start from its log.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// The log cannot be read, or the first records cannot be written.
    #[error("the decision log cannot be used")]
    Log(#[from] LogError),
    /// A record does not follow from those before it.
    #[error("the decision log contradicts itself; nothing was changed")]
    Contradiction(#[from] ApplyError),
    /// Data lives on a participant that the configuration does not have.
    #[error(
        "participant {0} holds accounts and products of this cluster, or branches of unfinished \
         transactions, and is missing from the configuration; add it again under [[participants]]"
    )]
    ParticipantMissing(ParticipantName),
    /// The recorded slot map is not one.
    #[error("the decision log holds no usable placement")]
    Placement(#[from] PlacementError),
}

/// What a start finds.
#[derive(Debug)]
pub struct Start {
    /// For the driver.
    pub recovered: Recovered,
    /// Where accounts and products live.
    pub placement: Placement,
    /// Decided transactions that are not acknowledged everywhere.
    pub unfinished: usize,
}

/// Replays the log and makes the new epoch durable. From here on a coordinator that ran before is
/// fenced off by every participant that hears from this one.
pub fn start(
    log: &mut impl DecisionLog,
    participants: &[ParticipantName],
    now_ms: u64,
) -> Result<Start, RecoveryError> {
    let mut machine = Coordinator::new();
    let mut incarnations = BTreeMap::new();
    let mut witnesses = Witnesses::default();
    let mut placement = None;
    reach(CrashPoint::CoordinatorReplayBefore);
    let records = log.replay()?;
    let is_new = records.is_empty();
    for record in records {
        machine.apply(&record)?;
        witnesses.note(&record);
        match record {
            Record::Incarnation {
                participant,
                incarnation,
                ..
            } => {
                incarnations.insert(participant, incarnation);
            }
            Record::Placement(slots) => placement = Some(slots),
            _ => {}
        }
    }
    let epoch = Record::Epoch(Epoch(machine.epoch().0 + 1));
    machine.apply(&epoch)?;
    let mut first = vec![epoch];
    if is_new {
        // Nothing can be presumed of what is older than the log: where there was another one that
        // was lost, its decisions are unknown, and not aborts.
        let horizon = Record::Horizon(Gtrid::lowest_at(now_ms));
        machine.apply(&horizon)?;
        witnesses.note(&horizon);
        first.push(horizon);
    }
    let slots = placement.unwrap_or_else(|| {
        let slots = Placement::initial(participants);
        first.push(Record::Placement(slots.clone()));
        slots
    });
    let known = |name: &&ParticipantName| participants.contains(name);
    let branches = machine.transactions().flat_map(|tx| &tx.branches);
    let holders = slots
        .iter()
        .chain(branches.map(|branch| &branch.participant));
    if let Some(missing) = holders.into_iter().find(|name| !known(name)) {
        return Err(RecoveryError::ParticipantMissing(missing.clone()));
    }
    if planted::is(Bug::EpochNotRaised) {
        first.retain(|record| !matches!(record, Record::Epoch(_)));
    }
    reach(CrashPoint::CoordinatorEpochBeforeForce);
    log.append(&first)?;
    reach(CrashPoint::CoordinatorEpochAfterForce);
    let unfinished = machine.live();
    let recovered = Recovered {
        machine,
        incarnations,
        witnesses,
    };
    Ok(Start {
        recovered,
        placement: Placement::new(slots)?,
        unfinished,
    })
}
