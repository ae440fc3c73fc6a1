//! The one place that appends and then releases.
//!
//! Steps enter in order. Records of all steps that are at hand go to the server in one append,
//! one append at a time; a step's effects leave when everything that it must wait for is durable.
//! An append that fails is repeated until it succeeds: a participant whose server is away has
//! nothing else to do with it, and meanwhile nothing that is gated by it leaves.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use concord_core::participant::{Effect, ParticipantStep};
use concord_core::record::ParticipantRecord;
use concord_daemon::crash::{CrashPoint, reach};

use super::call::unless_it_panics;
use super::event::Payload;
use crate::resource::ResourceManager;

/// First pause after a failed append, in ms.
const APPEND_PAUSE_MIN_MS: u64 = 50;
/// Longest pause, in ms: the server may be back at any time, and whoever is gated waits.
const APPEND_PAUSE_MAX_MS: u64 = 2_000;

/// Effects that may leave, with what travels beside them.
#[derive(Debug)]
pub(super) struct Released {
    pub(super) effects: Vec<Effect>,
    pub(super) payload: Payload,
}

#[derive(Debug)]
struct Waiting {
    after: u64,
    released: Released,
}

/// Records on their way to the server, and steps that wait for them.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Records that are durable.
    durable: u64,
    /// Records that wait for the append under way.
    queue: Vec<ParticipantRecord>,
    /// Whether an append is under way.
    appending: bool,
    /// Steps that wait, in order.
    waiting: VecDeque<Waiting>,
}

impl Gate {
    /// Takes a step; gives back its effects when they may leave at once.
    pub(super) fn admit(&mut self, step: ParticipantStep, payload: Payload) -> Option<Released> {
        self.queue.extend(step.append);
        let released = Released {
            effects: step.release,
            payload,
        };
        if step.after <= self.durable {
            return Some(released);
        }
        self.waiting.push_back(Waiting {
            after: step.after,
            released,
        });
        None
    }

    /// Records to append now: all that are at hand, unless an append is under way.
    pub(super) fn next_append(&mut self) -> Option<Vec<ParticipantRecord>> {
        if self.appending || self.queue.is_empty() {
            return None;
        }
        self.appending = true;
        Some(std::mem::take(&mut self.queue))
    }

    /// The append under way made this many records durable: gives what may leave now, in order.
    pub(super) fn appended(&mut self, records: usize) -> Vec<Released> {
        self.appending = false;
        self.durable += records as u64;
        let (leaving, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|step| step.after <= self.durable);
        self.waiting = waiting;
        let leaving: VecDeque<Waiting> = leaving;
        leaving.into_iter().map(|step| step.released).collect()
    }

    /// Whether nothing waits and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        !self.appending && self.queue.is_empty() && self.waiting.is_empty()
    }
}

/// Appends until it succeeds, at once when the server comes back.
pub(super) async fn append<R: ResourceManager>(rm: Arc<R>, records: Vec<ParticipantRecord>) {
    let mut health = rm.health();
    let mut pauses = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(APPEND_PAUSE_MIN_MS))
        .with_max_delay(Duration::from_millis(APPEND_PAUSE_MAX_MS))
        .without_max_times()
        .build();
    let mut before = None;
    loop {
        for record in &records {
            reach(points(record).0);
        }
        let Err(reason) = unless_it_panics(rm.append(&records)).await else {
            for record in &records {
                reach(points(record).1);
            }
            return;
        };
        if before.as_ref() != Some(&reason.code) {
            let records = records.len();
            tracing::warn!(%reason, records, "records cannot be kept; trying until they are");
            before = Some(reason.code);
        }
        let pause = pauses
            .next()
            .unwrap_or(Duration::from_millis(APPEND_PAUSE_MAX_MS));
        // A server that is reachable and refuses all the same is asked again after the pause.
        let away = !health.borrow_and_update().reachable;
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause) => {}
            Ok(_) = health.wait_for(|health| health.reachable), if away => {}
        }
    }
}

/// Before a record is written, and when it is durable.
fn points(record: &ParticipantRecord) -> (CrashPoint, CrashPoint) {
    match record {
        ParticipantRecord::Epoch(_) => (
            CrashPoint::ParticipantEpochBeforeWrite,
            CrashPoint::ParticipantEpochAfterWrite,
        ),
        ParticipantRecord::Damage { .. } => (
            CrashPoint::ParticipantDamageBeforeWrite,
            CrashPoint::ParticipantDamageAfterWrite,
        ),
        ParticipantRecord::ForgetBelow(_) => (
            CrashPoint::ParticipantHorizonBeforeWrite,
            CrashPoint::ParticipantHorizonAfterWrite,
        ),
    }
}
