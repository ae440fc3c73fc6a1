//! The driver: one task that owns the machine and has the one place that appends and then
//! releases.
//!
//! Calls come in and become inputs; the steps that come out put their records in line for the log
//! and their effects in line behind those records. While the log writes, more steps pile up behind
//! it. Statements and results, which the machine ignores, are kept beside it by transaction.

mod calls;
mod context;
mod data;
mod end;
mod links;
mod release;
mod retention;
#[cfg(test)]
mod tests;
mod witness;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use concord_core::coordinator::{
    ApplyError, Coordinator, CoordinatorStep, Effect, Input, Resolve, Seen,
};
use concord_core::id::{BranchId, Epoch, Gtrid, ParticipantName};
use concord_core::message::{Decision, FromParticipant};
use concord_core::record::Record;
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::v1;
use futures::StreamExt;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;

pub use calls::{Call, Ended, Enlisted, Numbers, Ordered, Outbound, Refuser, Told, stopped};
use context::Context;
pub use data::{Accepted, Data};
use links::Link;
pub use witness::Witnesses;
use writer::{Batch, Writer, Written};

use crate::counters::Counters;
use crate::history::History;
use crate::log::{DecisionLog, LogError};
use crate::surroundings::Surroundings;

/// Time between two sweeps: the unit of all back-off in the second phase.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// Records that nobody waits for reach the disk after this long, when nothing else does earlier.
const LAZY_FLUSH: Duration = Duration::from_millis(500);
/// Calls that wait for the driver; beyond it, callers wait.
const CALLS_MAX: usize = 16_384;
/// Calls taken before the log gets the next batch.
const DRAIN_MAX: usize = 1_024;

/// Why the driver ended.
#[derive(Debug, Error)]
pub enum DriverError {
    /// The log failed: what is on the disk is unknown, so nothing may be said any more.
    #[error("the decision log failed; the coordinator stops at once")]
    Log(#[from] LogError),
    /// The log's thread is gone.
    #[error("the decision log's thread has ended")]
    LogThread,
    /// The machine refused its own record.
    #[error("the protocol machine is broken; the coordinator stops at once")]
    Machine(#[from] ApplyError),
    /// Another coordinator took over.
    #[error("superseded: a coordinator of a higher epoch than {own} has taken over")]
    Superseded { own: Epoch },
    /// The log's thread could not be started.
    #[error("cannot start the decision log's thread")]
    Thread(#[source] std::io::Error),
}

/// Limits and times of the driver.
#[derive(Clone, Copy, Debug)]
pub struct DriverConfig {
    /// Transactions that are not over, at most.
    pub max_in_flight: usize,
    /// Bytes of statements and results of all transactions in flight; beyond it none begins.
    pub max_in_flight_bytes: usize,
    /// How long an ended transaction is remembered.
    pub retention: Duration,
    /// How many ended transactions are remembered, at most.
    pub max_remembered: usize,
    /// Time between two looks for what can be forgotten. All participants must have been connected
    /// for three times as long.
    pub forget_interval: Duration,
}

/// What recovery hands to the driver.
#[derive(Debug)]
pub struct Recovered {
    /// The machine, with its own epoch applied.
    pub machine: Coordinator,
    /// The data that each participant had at the first contact.
    pub incarnations: BTreeMap<ParticipantName, String>,
    /// What that data must still hold.
    pub witnesses: Witnesses,
}

/// The driver's task.
#[derive(Debug)]
pub struct Driver {
    machine: Coordinator,
    config: DriverConfig,
    calls: mpsc::Receiver<Call>,
    writer: Writer,
    history: History,
    counters: Arc<Counters>,
    /// Participants, in the configuration's order.
    participants: Vec<ParticipantName>,
    /// Participants whose data is replaced on purpose.
    accepted: BTreeMap<ParticipantName, Accepted>,
    incarnations: BTreeMap<ParticipantName, String>,
    witnesses: Witnesses,
    links: BTreeMap<ParticipantName, Link>,
    contexts: BTreeMap<Gtrid, Context>,
    bytes_in_flight: usize,
    deadlines: DelayQueue<Gtrid>,
    looks: BTreeMap<u64, oneshot::Sender<Seen>>,
    inquiries: BTreeMap<u64, oneshot::Sender<Decision>>,
    orders: BTreeMap<u64, oneshot::Sender<Ordered>>,
    next_token: u64,
    /// Records in line for the log.
    pending: Vec<Record>,
    /// Everything below can be forgotten; nothing when no participant may be missing.
    forgettable: Gtrid,
    forget: Option<(Vec<Gtrid>, Gtrid)>,
    /// The horizon that is durable and told.
    told_horizon: Gtrid,
    /// The log was told to forget, which it does with its next append.
    forgetting: bool,
    pending_forced: bool,
    /// Position of the last forced record in line or with the writer.
    appended: u64,
    durable: u64,
    writing: bool,
    /// Effects that wait for a position to become durable.
    waiting: BTreeMap<u64, Vec<Effect>>,
    log_bytes: u64,
    superseded: bool,
    surroundings: Arc<dyn Surroundings>,
    /// When the driver was made, and what the machine's clock said.
    started: Instant,
    started_ms: u64,
}

/// The parts that a driver is made of.
#[derive(Debug)]
pub struct Parts<L> {
    /// What recovery found.
    pub recovered: Recovered,
    /// The open log.
    pub log: L,
    /// Limits and times.
    pub config: DriverConfig,
    /// Where changes are shown.
    pub history: History,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Participants, in the configuration's order.
    pub participants: Vec<ParticipantName>,
    /// What the configuration accepts of their data.
    pub accepted: BTreeMap<ParticipantName, Accepted>,
    /// The machine.
    pub surroundings: Arc<dyn Surroundings>,
}

impl Driver {
    /// A driver, and the way to call it.
    pub fn new<L: DecisionLog>(parts: Parts<L>) -> Result<(Self, mpsc::Sender<Call>), DriverError> {
        let (sender, calls) = mpsc::channel(CALLS_MAX);
        let log_bytes = parts.log.stats().bytes;
        let writer = Writer::start(parts.log, &parts.surroundings).map_err(DriverError::Thread)?;
        for tx in parts.recovered.machine.transactions() {
            parts.history.recovered(tx);
        }
        let driver = Self {
            told_horizon: parts.recovered.machine.horizon(),
            machine: parts.recovered.machine,
            config: parts.config,
            calls,
            writer,
            history: parts.history,
            counters: parts.counters,
            participants: parts.participants,
            accepted: parts.accepted,
            incarnations: parts.recovered.incarnations,
            witnesses: parts.recovered.witnesses,
            links: BTreeMap::new(),
            contexts: BTreeMap::new(),
            bytes_in_flight: 0,
            deadlines: DelayQueue::new(),
            looks: BTreeMap::new(),
            inquiries: BTreeMap::new(),
            orders: BTreeMap::new(),
            next_token: 0,
            pending: Vec::new(),
            forgettable: Gtrid::MIN,
            forget: None,
            forgetting: false,
            pending_forced: false,
            appended: 0,
            durable: 0,
            writing: false,
            waiting: BTreeMap::new(),
            log_bytes,
            superseded: false,
            started: Instant::now(),
            started_ms: parts.surroundings.unix_ms(),
            surroundings: parts.surroundings,
        };
        Ok((driver, sender))
    }

    /// Runs until stopped, or until something makes it unsafe to go on.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), DriverError> {
        let ended = self.work(stop).await;
        self.leave_open().await;
        ended?;
        self.drain_log().await
    }

    async fn work(&mut self, stop: CancellationToken) -> Result<(), DriverError> {
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flush = interval(LAZY_FLUSH);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut forget = interval(self.config.forget_interval);
        forget.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut calls = Vec::with_capacity(DRAIN_MAX);
        loop {
            tokio::select! {
                // What is rare comes first, so that calls without end cannot starve it.
                biased;
                () = stop.cancelled() => return Ok(()),
                written = self.writer.written() => {
                    self.writing = false;
                    self.written(&written.ok_or(DriverError::LogThread)??);
                }
                Some(expired) = self.deadlines.next(), if !self.deadlines.is_empty() => {
                    self.expired(expired.into_inner())?;
                }
                _ = sweep.tick() => self.input(Input::Sweep)?,
                _ = flush.tick() => {
                    self.forget_some()?;
                    let lazy =
                        !self.pending.is_empty() || self.forget.is_some() || self.forgetting;
                    if lazy && !self.writing {
                        self.hand_over()?;
                    }
                }
                _ = forget.tick() => {
                    self.find_forgettable();
                    self.forget_some()?;
                }
                count = self.calls.recv_many(&mut calls, DRAIN_MAX) => {
                    if count == 0 {
                        return Ok(());
                    }
                    for call in calls.drain(..) {
                        self.call(call)?;
                    }
                }
            }
            if self.superseded {
                return Err(DriverError::Superseded {
                    own: self.machine.epoch(),
                });
            }
            if self.pending_forced && !self.writing {
                self.hand_over()?;
            }
        }
    }

    /// Gives the machine one input and puts its steps in line.
    fn input(&mut self, input: Input) -> Result<(), DriverError> {
        for step in self.machine.step(input)? {
            self.take(step);
        }
        Ok(())
    }

    /// The one place that appends and then releases: records get in line for the log, effects
    /// behind the position that they must wait for.
    fn take(&mut self, step: CoordinatorStep) {
        for record in step.append {
            self.witnesses.note(&record);
            if record.is_forced() {
                self.appended += 1;
                self.pending_forced = true;
            }
            self.pending.push(record);
        }
        if step.after <= self.durable {
            self.release(step.release);
        } else {
            self.waiting
                .entry(step.after)
                .or_default()
                .extend(step.release);
        }
    }

    fn release_durable(&mut self) {
        let still = self.waiting.split_off(&(self.durable + 1));
        for effects in std::mem::replace(&mut self.waiting, still).into_values() {
            self.release(effects);
        }
    }

    fn written(&mut self, written: &Written) {
        self.durable = written.upto;
        self.log_bytes = written.stats.bytes;
        reach(CrashPoint::CoordinatorReleaseBefore);
        self.release_durable();
        reach(CrashPoint::CoordinatorReleaseAfter);
    }

    /// Gives the writer everything in line.
    fn hand_over(&mut self) -> Result<(), DriverError> {
        let batch = Batch {
            records: std::mem::take(&mut self.pending),
            forget: self.forget.take(),
            upto: self.appended,
        };
        if self.pending_forced {
            crate::counters::count(&self.counters.log_forces);
        }
        let records = batch.records.len() as u64;
        self.counters
            .log_records
            .fetch_add(records, std::sync::atomic::Ordering::Relaxed);
        self.pending_forced = false;
        self.forgetting = batch.forget.is_some();
        // With nothing else in flight there is nothing that a slow disk could hold up.
        let batch = if self.machine.live() <= 1 && batch.forget.is_none() {
            match self.writer.write_now(batch) {
                Ok(written) => {
                    self.written(&written?);
                    return Ok(());
                }
                Err(batch) => batch,
            }
        } else {
            batch
        };
        self.writing = true;
        if self.writer.write(batch) {
            Ok(())
        } else {
            Err(DriverError::LogThread)
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn call(&mut self, call: Call) -> Result<(), DriverError> {
        match call {
            Call::Run { tx, down, answer } => self.run_transaction(*tx, down, answer),
            Call::Repeat {
                gtrid,
                request,
                answer,
            } => self.repeat(gtrid, request, answer),
            Call::Begin {
                gtrid,
                isolation,
                timeout,
                answer,
            } => self.begin(gtrid, isolation, timeout, answer),
            Call::Enlist {
                gtrid,
                participant,
                down,
                answer,
            } => self.enlist(gtrid, participant, down, answer),
            Call::StatementDone { gtrid, failed } => self.statement_done(gtrid, failed),
            Call::Commit { gtrid, ack, answer } => self.commit(gtrid, ack, answer),
            Call::Rollback {
                gtrid,
                reason,
                answer,
            } => self.rollback(gtrid, reason, answer),
            Call::Look { gtrid, answer } => self.look(answer, |token| Input::Look { gtrid, token }),
            Call::LookUp { request, answer } => {
                self.look(answer, |token| Input::LookUp { request, token })
            }
            Call::Inquire {
                from,
                branch,
                answer,
            } => self.inquire(from, branch, answer),
            Call::Resolve { resolve, answer } => self.resolve(resolve, answer),
            Call::Witnesses {
                participant,
                answer,
            } => told(answer, self.witnesses_of(&participant)),
            Call::LinkUp {
                participant,
                data,
                generation,
                sender,
                answer,
            } => {
                let link = Link::new(generation, sender);
                self.link_up(participant, data, link, answer)
            }
            Call::LinkDown {
                participant,
                generation,
            } => self.link_down(participant, generation),
            Call::Unfinished {
                participant,
                generation,
                from,
            } => self.unfinished(&participant, generation, from),
            Call::Received {
                from,
                message,
                results,
                failed_statement,
            } => self.received(from, message, results, failed_statement),
            Call::Numbers { answer } => told(answer, self.numbers()),
        }
    }

    fn received(
        &mut self,
        from: ParticipantName,
        mut message: FromParticipant,
        results: Vec<v1::StatementResult>,
        failed_statement: Option<u32>,
    ) -> Result<(), DriverError> {
        let points = calls::points(&message);
        reach(points.0);
        self.keep_results(&from, &mut message, results, failed_statement);
        self.input(Input::Received { from, message })?;
        reach(points.1);
        Ok(())
    }

    fn resolve(
        &mut self,
        resolve: Resolve,
        answer: oneshot::Sender<Ordered>,
    ) -> Result<(), DriverError> {
        reach(CrashPoint::CoordinatorOrderReceived);
        let token = self.token();
        self.orders.insert(token, answer);
        self.input(Input::Resolve(Resolve { token, ..resolve }))
    }

    fn inquire(
        &mut self,
        from: ParticipantName,
        branch: BranchId,
        answer: oneshot::Sender<Decision>,
    ) -> Result<(), DriverError> {
        reach(CrashPoint::CoordinatorInquiryReceived);
        let token = self.token();
        self.inquiries.insert(token, answer);
        self.input(Input::Inquire {
            from,
            branch,
            token,
        })
    }

    fn look(
        &mut self,
        answer: oneshot::Sender<Seen>,
        input: impl FnOnce(u64) -> Input,
    ) -> Result<(), DriverError> {
        let token = self.token();
        self.looks.insert(token, answer);
        self.input(input(token))
    }

    fn numbers(&self) -> Numbers {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let undecided = self
            .machine
            .transactions()
            .filter(|tx| tx.is_undecided())
            .count();
        Numbers {
            active: count(undecided),
            committing: count(self.machine.live() - undecided),
            stuck: count(
                self.machine
                    .transactions()
                    .filter(|tx| tx.is_stuck())
                    .count(),
            ),
            awaited: count(
                self.contexts
                    .values()
                    .filter(|context| context.is_awaited())
                    .count(),
            ),
            remembered: self.machine.remembered() as u64,
            log_bytes: self.log_bytes,
        }
    }

    fn branch_work(&mut self, branch: BranchId) -> Option<concord_proto::model::Work> {
        let index = usize::try_from(branch.bqual.0).ok()?.checked_sub(1)?;
        self.contexts
            .get_mut(&branch.gtrid)?
            .work
            .get_mut(index)?
            .take()
    }
}

/// Answers a caller; one that left needs no answer.
// As what a call comes to.
#[allow(clippy::unnecessary_wraps)]
fn told<T>(answer: oneshot::Sender<T>, what: T) -> Result<(), DriverError> {
    let _ = answer.send(what);
    Ok(())
}
