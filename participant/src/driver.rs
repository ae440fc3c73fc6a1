//! The driver: one task that owns the machine, feeds it and carries out its steps.
//!
//! It owns the order of things: inputs in, records appended, effects released ([`gate`]), calls to
//! the server on tasks of their own ([`call`]), and the clock of interactive branches
//! ([`beside`]). It refuses to know the wire ([`crate::rpc`], [`crate::link`]), the coordinator's
//! address ([`crate::inquiry`]) and the server's language ([`crate::resource`]).
//!
//! The driver never waits for anything but its inbox and its clock, so a server that hangs delays
//! only the branches that wait for it.

mod beside;
mod call;
mod event;
mod gate;
mod handle;
mod load;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use concord_core::id::{BranchId, Epoch, Gtrid};
use concord_core::message::{Decision, Finish, Vote};
use concord_core::participant::{Command, Effect, Input, Participant, State, Token};
use concord_core::reason::{Reason, code};
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::convert::link::{Finished, Voted};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use event::{Answer, BranchView, LinkAnswer, Order, Request, Responder, Summary};
pub use handle::Handle;

use crate::resource::{Durable, Health, Recovered, ResourceManager};
use beside::Beside;
use call::Call;
use event::{Event, Payload, branch_of};
use gate::{Gate, Released};
use handle::{queue_full, stopping};

/// Events that wait for the driver. It handles one in microseconds, so a full queue means that
/// the machine is overloaded, and more waiting would only make every answer late.
const INBOX_EVENTS: usize = 8_192;
/// Events that are taken from the inbox at once; their records share one append.
const BATCH_EVENTS: usize = 1_024;
/// A connection that a branch was attached to is ended: how soon the prepared branches are looked
/// at again. The server needs a moment to let go of it, and the branch holds its locks meanwhile.
const DETACHED_SWEEP: Duration = Duration::from_millis(50);
/// The same after several looks in a row that came too soon: what it rolls back may be large.
const DETACHED_SWEEP_MAX: Duration = Duration::from_millis(400);
/// Orders that wait for an answer. Each may hold a call to the server, and a coordinator that
/// repeats itself must not fill the memory.
pub const WAITING_MAX: usize = 65_536;

/// How the driver is to behave.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Branches that may be here at once; more are refused.
    pub branches_max: usize,
    /// Time between two sweeps of the server's prepared branches.
    pub sweep_interval: Duration,
}

/// What the driver wants done in the background: the latest wish replaces the one before.
#[derive(Debug)]
pub struct Wishes {
    /// Branches in doubt that the coordinator is to be asked about.
    pub inquire: watch::Receiver<Vec<BranchId>>,
    /// Ledger rows below this transaction can be deleted.
    pub prune: watch::Receiver<Gtrid>,
}

/// Owns the machine.
#[derive(Debug)]
pub struct Driver<R> {
    rm: Arc<R>,
    settings: Settings,
    machine: Participant,
    gate: Gate,
    beside: Beside,
    waiting: BTreeMap<Token, Responder>,
    next_token: Token,
    inbox: mpsc::Receiver<Event>,
    /// Where calls bring their results.
    results: mpsc::Sender<Event>,
    calls: TaskTracker,
    /// Room for calls that finish branches. After a crash there may be ten thousand at once, and
    /// the time that one may wait for a connection is not the time to wait for all others.
    finishing: Arc<Semaphore>,
    /// Cuts off what still runs when the driver ends.
    cut: CancellationToken,
    health: watch::Receiver<Health>,
    loaded: watch::Sender<bool>,
    inquire: watch::Sender<Vec<BranchId>>,
    prune: watch::Sender<Gtrid>,
    /// Whether a branch was detached, so that the next sweep is to come soon.
    detached: bool,
    /// Whether it comes soon.
    soon: bool,
    /// How soon the next such sweep comes.
    haste: Duration,
    /// Whether the server has listed what is prepared since it was last away.
    listed: bool,
    /// Whoever waits for nothing to run.
    draining: Option<oneshot::Sender<()>>,
}

impl<R: ResourceManager> Driver<R> {
    /// A driver that runs when [`Self::run`] is called.
    pub fn new(rm: Arc<R>, settings: Settings) -> (Self, Handle, Wishes) {
        let (results, inbox) = mpsc::channel(INBOX_EVENTS);
        let (loaded, is_loaded) = watch::channel(false);
        let (inquire, wanted) = watch::channel(Vec::new());
        let (prune, prunable) = watch::channel(Gtrid::MIN);
        let handle = Handle {
            inbox: results.clone(),
            loaded: is_loaded,
        };
        let driver = Self {
            health: rm.health(),
            settings,
            machine: Participant::default(),
            gate: Gate::default(),
            beside: Beside::default(),
            waiting: BTreeMap::new(),
            next_token: 0,
            inbox,
            results,
            calls: TaskTracker::new(),
            finishing: Arc::new(Semaphore::new(rm.connections().max.max(1) as usize)),
            cut: CancellationToken::new(),
            loaded,
            inquire,
            prune,
            detached: false,
            soon: false,
            haste: DETACHED_SWEEP,
            listed: false,
            draining: None,
            rm,
        };
        let wishes = Wishes {
            inquire: wanted,
            prune: prunable,
        };
        (driver, handle, wishes)
    }

    /// Runs until it has drained, or until `stop`. What still runs then is cut off as by a crash,
    /// which every branch survives.
    pub async fn run(mut self, stop: CancellationToken) {
        if let Some(Some((durable, listed))) = stop.run_until_cancelled(self.load()).await {
            self.machine = Participant::new(durable.epoch, durable.forget_below);
            self.prune.send_replace(durable.forget_below);
            // The machine begins nothing before it has seen what a former life left prepared.
            self.found(listed);
            reach(CrashPoint::ParticipantRecoverTaken);
            self.loaded.send_replace(true);
            stop.run_until_cancelled(self.serve()).await;
        }
        self.inbox.close();
        self.cut.cancel();
        self.calls.close();
        self.calls.wait().await;
    }

    /// Reads what the ledger schema kept. Until that succeeds every order is told that the
    /// participant cannot work; None when it is to stop.
    async fn load(&mut self) -> Option<(Durable, Vec<BranchId>)> {
        let mut load = std::pin::pin!(load::load(self.rm.clone()));
        loop {
            tokio::select! {
                biased;
                durable = &mut load => return Some(durable),
                event = self.inbox.recv() => match event? {
                    Event::Requests(requests) => {
                        for request in requests {
                            self.not_loaded(request);
                        }
                    }
                    Event::Request(request) => self.not_loaded(*request),
                    Event::Branches(_, _, look) => { let _ = look.send(Vec::new()); }
                    Event::Knows(_, look) => { let _ = look.send(false); }
                    Event::Summary(look) => { let _ = look.send(Summary::default()); }
                    Event::Drain(drained) => {
                        let _ = drained.send(());
                        return None;
                    }
                    // The coordinator repeats its horizon; the rest cannot come yet.
                    Event::ForgetBelow(_)
                    | Event::Linked
                    | Event::Done(_)
                    | Event::Detached
                    | Event::Durable(_)
                    | Event::Swept(_)
                    | Event::Decided(..) => {}
                },
            }
        }
    }

    fn not_loaded(&self, request: Request) {
        let reason = self.health.borrow().problems.first().cloned();
        let reason = reason.unwrap_or_else(|| {
            let text = "the server behind this participant has not been reached yet";
            Reason::new(code::SERVER_DOWN, text)
        });
        request.respond.answer(Answer::Unavailable(reason));
    }

    async fn serve(&mut self) {
        let mut events = Vec::with_capacity(BATCH_EVENTS);
        let mut sweeps = tokio::time::interval(self.settings.sweep_interval);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reachable = self.health.borrow_and_update().reachable;
        loop {
            tokio::select! {
                // What is rare comes first, so that a full inbox cannot starve it.
                biased;
                branch = self.beside.expired() => {
                    self.step(branch, Input::Expired { branch }, Payload::None);
                    self.beside.expire_again(&self.machine, branch);
                }
                Ok(()) = self.health.changed() => {
                    let now = self.health.borrow_and_update().reachable;
                    if now && !reachable {
                        self.sweep_now(&mut sweeps);
                    }
                    reachable = now;
                }
                _ = sweeps.tick() => {
                    if !std::mem::take(&mut self.soon) {
                        self.haste = DETACHED_SWEEP;
                    }
                    self.begin_sweep(reachable);
                }
                _ = self.inbox.recv_many(&mut events, BATCH_EVENTS) => {
                    for event in events.drain(..) {
                        self.handle(event);
                    }
                }
            }
            // Only the first one brings the sweep forward, so that others cannot put it off.
            if std::mem::take(&mut self.detached) && !std::mem::replace(&mut self.soon, true) {
                sweeps.reset_after(self.haste.min(self.settings.sweep_interval));
                self.haste = (self.haste * 2).min(DETACHED_SWEEP_MAX);
            }
            if let Some(records) = self.gate.next_append() {
                self.append(records);
            }
            if self.draining.is_some() && self.is_idle() {
                if let Some(drained) = self.draining.take() {
                    let _ = drained.send(());
                }
                return;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Requests(requests) => {
                for request in requests {
                    self.request(request);
                }
            }
            Event::Request(request) => self.request(*request),
            Event::Done(done) => {
                let (input, payload) = *done;
                if let Some(branch) = branch_of(&input) {
                    self.step(branch, input, payload);
                }
            }
            Event::Durable(records) => {
                for released in self.gate.appended(records) {
                    self.release(released);
                }
            }
            Event::Detached => self.detached = true,
            Event::Swept(result) => self.swept(result),
            Event::Decided(epoch, decisions) => {
                self.decided(epoch, decisions);
                reach(CrashPoint::ParticipantDecidedTaken);
            }
            Event::Linked => {
                let step = self.machine.step(Input::Linked);
                self.carry_out(step, Payload::None);
            }
            Event::ForgetBelow(gtrid) => {
                let step = self.machine.step(Input::ForgetBelow { gtrid });
                self.carry_out(step, Payload::None);
            }
            Event::Branches(after, limit, look) => {
                let _ = look.send(self.views(after, limit));
            }
            Event::Knows(branch, look) => {
                let _ = look.send(self.machine.branch(branch).is_some());
            }
            Event::Summary(look) => {
                let _ = look.send(Summary {
                    epoch: self.machine.epoch(),
                    branches: self.machine.branch_count(),
                    in_doubt: self.machine.in_doubt(),
                    unfinished_from: self.unfinished_from(),
                });
            }
            Event::Drain(drained) => self.draining = Some(drained),
        }
    }

    fn request(&mut self, request: Request) {
        let Request { order, respond } = request;
        if self.waiting.len() >= WAITING_MAX {
            return respond.answer(Answer::Refused(queue_full()));
        }
        if let Some(refusal) = self.refuse_new(&order) {
            return respond.answer(refusal);
        }
        let token = self.next_token;
        self.next_token += 1;
        self.waiting.insert(token, respond);
        let branch = order.branch();
        reach(order.point());
        let (input, payload) = order.split(token);
        self.step(branch, input, payload);
    }

    /// Refuses to open a branch when there are too many, or when the participant stops. Nothing
    /// was begun, so a vote ABORT is true; but a one-phase commit may have been done in a former
    /// life, so it is only told to ask again.
    fn refuse_new(&self, order: &Order) -> Option<Answer> {
        let opens = match order {
            Order::Begin(_) => true,
            Order::Prepare(order) => order.work.is_some(),
            Order::Commit(order) => order.work.is_some(),
            Order::Execute(_) | Order::Abort(_) => false,
        };
        let full = self.machine.branch_count() >= self.settings.branches_max;
        let stale = order.epoch() < self.machine.epoch();
        let refused = opens && (full || self.draining.is_some()) && !stale;
        if !refused || self.machine.branch(order.branch()).is_some() {
            return None;
        }
        let reason = if full {
            let max = self.settings.branches_max;
            let text = format!("{max} branches are in flight at this participant, its limit");
            Reason::new(code::LIMIT_REACHED, text)
        } else {
            stopping()
        };
        let (results, failed_statement) = (Vec::new(), None);
        Some(match order {
            Order::Prepare(_) => Answer::Voted(Voted {
                vote: Vote::Abort(reason),
                results,
                failed_statement,
            }),
            Order::Commit(_) => Answer::Finished(Finished {
                finish: Finish::Retry(reason),
                results,
                failed_statement,
            }),
            Order::Begin(_) | Order::Execute(_) | Order::Abort(_) => Answer::Refused(reason),
        })
    }

    fn decided(&mut self, epoch: Epoch, decisions: Vec<(BranchId, Decision)>) {
        for (branch, decision) in decisions {
            let input = Input::Decided {
                branch,
                epoch,
                decision,
            };
            self.step(branch, input, Payload::None);
        }
    }

    /// Takes a step about one branch.
    fn step(&mut self, branch: BranchId, input: Input, payload: Payload) {
        let timeout = match &payload {
            Payload::Begin { timeout, .. } => Some(*timeout),
            _ => None,
        };
        let epoch = self.machine.epoch();
        let step = self.machine.step(input);
        let payload = self.beside.attach(branch, &step.release, payload);
        self.beside.note(&self.machine, branch, timeout);
        if self.machine.epoch() != epoch {
            tracing::info!(epoch = %self.machine.epoch(), "a new coordinator speaks");
            self.beside.note_all(&self.machine);
        }
        self.carry_out(step, payload);
    }

    fn carry_out(&mut self, step: concord_core::participant::ParticipantStep, payload: Payload) {
        if let Some(released) = self.gate.admit(step, payload) {
            self.release(released);
        }
    }

    fn append(&self, records: Vec<concord_core::record::ParticipantRecord>) {
        let (rm, results) = (self.rm.clone(), self.results.clone());
        self.spawn_call(async move {
            let count = records.len();
            gate::append(rm, records).await;
            drop(results.send(Event::Durable(count)).await);
        });
    }

    /// Carries out effects that may leave.
    fn release(&mut self, released: Released) {
        let Released {
            effects,
            mut payload,
        } = released;
        let replies = |effect: &&Effect| matches!(effect, Effect::Reply { .. });
        let mut unanswered = effects.iter().filter(replies).count();
        for effect in effects {
            match effect {
                Effect::Run { branch, command } => self.run_command(branch, command, &mut payload),
                Effect::Cancel { branch } => self.rm.cancel(branch),
                Effect::Detach { branch } => self.detach(branch),
                Effect::RunStatement { token, branch } => {
                    if let Payload::Statement(statement) = std::mem::take(&mut payload) {
                        self.spawn(branch, Call::Statement(token, statement));
                    }
                }
                Effect::StatementRefused { token, reason } => {
                    self.answer(token, Answer::Refused(reason));
                }
                Effect::Reply { token, message } => {
                    unanswered -= 1;
                    let answer = Answer::of(message, &mut payload, unanswered == 0);
                    self.answer(token, answer);
                }
                Effect::Inquire { branches } => drop(self.inquire.send_replace(branches)),
                Effect::Damaged { branch, reason } => {
                    tracing::error!(
                        %branch, %reason,
                        "heuristic damage: compare the servers, then acknowledge the report"
                    );
                }
                Effect::Prune { below } => drop(self.prune.send_replace(below)),
            }
        }
        if let Payload::Executed(token, result) = payload {
            self.answer(token, result.map_or_else(Answer::Refused, Answer::Executed));
        }
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        if let Some(respond) = self.waiting.remove(&token) {
            respond.answer_between(answer);
        }
    }

    fn run_command(&self, branch: BranchId, command: Command, payload: &mut Payload) {
        let call = match command {
            Command::Begin => match std::mem::take(payload) {
                Payload::Begin { isolation, timeout } => Call::Begin { isolation, timeout },
                // A Begin runs in the step of its own message only.
                _ => return,
            },
            Command::Prepare { work: true, .. } => Call::Prepare(payload.take_work()),
            Command::Prepare { work: false, .. } => Call::Prepare(None),
            Command::CommitOnePhase { work: true } => Call::CommitOnePhase(payload.take_work()),
            Command::CommitOnePhase { work: false } => Call::CommitOnePhase(None),
            Command::Commit => Call::Commit,
            Command::Rollback => Call::Rollback,
            Command::ReadLedger => Call::ReadLedger,
            Command::Tombstone => Call::Tombstone,
            Command::List => Call::List,
        };
        self.spawn(branch, call);
    }

    fn spawn_call(&self, call: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        self.calls
            .spawn(async move { cut.run_until_cancelled(call).await });
    }

    fn spawn(&self, branch: BranchId, call: Call) {
        let (rm, results) = (self.rm.clone(), self.results.clone());
        let finishing = call.finishes().then(|| self.finishing.clone());
        self.spawn_call(async move {
            let _room = match &finishing {
                Some(finishing) => finishing.acquire().await.ok(),
                None => None,
            };
            let done = call::run(&*rm, branch, call).await;
            drop(results.send(Event::Done(Box::new(done))).await);
        });
    }

    fn detach(&self, branch: BranchId) {
        let (rm, results) = (self.rm.clone(), self.results.clone());
        self.spawn_call(async move {
            reach(CrashPoint::ParticipantDetachBefore);
            let detached = rm.detach(branch).await;
            reach(CrashPoint::ParticipantDetachAfter);
            match detached {
                Ok(()) => drop(results.send(Event::Detached).await),
                Err(reason) => {
                    tracing::warn!(%branch, %reason, "the branch's other connection is still open");
                }
            }
        });
    }

    /// The server is back: what it has prepared is looked at without delay.
    fn sweep_now(&mut self, sweeps: &mut Interval) {
        tracing::info!("the server is reachable; looking at its prepared branches");
        sweeps.reset();
        self.soon = false;
        self.listed = false;
        self.begin_sweep(true);
    }

    fn begin_sweep(&mut self, reachable: bool) {
        if !reachable || !self.beside.begin_sweep() {
            return;
        }
        let (rm, results) = (self.rm.clone(), self.results.clone());
        self.spawn_call(async move {
            reach(CrashPoint::ParticipantSweepBefore);
            let listed = call::unless_it_panics(rm.recover()).await;
            reach(CrashPoint::ParticipantSweepAfter);
            drop(results.send(Event::Swept(listed)).await);
        });
    }

    fn swept(&mut self, result: Result<Recovered, Reason>) {
        let ended = self.beside.end_sweep();
        let mut listed = match result {
            Ok(recovered) => recovered.ours,
            Err(reason) => {
                return tracing::warn!(%reason, "the prepared branches could not be listed");
            }
        };
        listed.retain(|branch| !ended.contains(branch));
        self.found(listed);
    }

    fn found(&mut self, listed: Vec<BranchId>) {
        let before = self.machine.branch_count();
        let step = self.machine.step(Input::Sweep {
            listed: listed.clone(),
        });
        self.listed = true;
        let found = self.machine.branch_count() - before;
        if found > 0 {
            tracing::info!(found, "found prepared branches; asking the coordinator");
        }
        for branch in listed {
            self.beside.note(&self.machine, branch, None);
        }
        self.carry_out(step, Payload::None);
    }

    fn views(&self, after: Option<BranchId>, limit: usize) -> Vec<BranchView> {
        self.machine
            .branches()
            .filter(|(branch, _)| after.is_none_or(|after| *branch > after))
            .take(limit)
            .map(|(branch, entry)| self.beside.view(branch, entry))
            .collect()
    }

    /// The oldest transaction that is unfinished here, if that is known: a server that was away may
    /// have more prepared than before, when it lost the end of a commit.
    fn unfinished_from(&self) -> Option<Gtrid> {
        let known = self.listed && self.health.borrow().reachable;
        known.then(|| self.machine.unfinished_from()).flatten()
    }

    /// Whether nothing runs: every branch is prepared, or waits for a server that is away.
    fn is_idle(&self) -> bool {
        self.gate.is_idle()
            && self.machine.branches().all(|(_, entry)| match entry.state {
                State::Prepared | State::Failed(_) | State::AbortLater => true,
                State::Beginning
                | State::Active
                | State::Executing
                | State::Working { .. }
                | State::Committing(_)
                | State::Aborting(_) => false,
            })
    }
}
