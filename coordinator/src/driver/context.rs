//! What the driver keeps of a running transaction beside the machine: its statements, the results
//! so far, and who waits for its end.

use std::time::Duration;

use concord_core::coordinator::Input;
use concord_core::id::{BranchId, Gtrid, ParticipantName, Request};
use concord_core::limits::{TIMEOUT_DEFAULT_MS, TRANSACTION_RESULT_BYTES_MAX};
use concord_core::message::{Finish, FromParticipant, Vote};
use concord_core::planted::{self, Bug};
use concord_core::reason::{Reason, code};
use concord_core::transaction::Ack;
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::convert::work::statement_size;
use concord_proto::model::{Isolation, Work};
use concord_proto::v1;
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::time::delay_queue::Key;

use super::calls::{Ended, Enlisted, Refuser, Told};
use super::{Driver, DriverError};
use crate::engine::{AckMode, OneShot};

/// A running transaction.
#[derive(Debug)]
pub(super) struct Context {
    /// Work of its branches that was not sent yet.
    pub work: Vec<Option<Work>>,
    /// How many statements each of its branches has; none when they come one by one.
    statements: Vec<usize>,
    /// Results of its branches.
    pub results: Vec<Vec<v1::StatementResult>>,
    /// The vote that aborted it.
    pub refused_by: Option<Refuser>,
    /// Who runs or commits it, and waits for its end.
    pub waiters: Vec<oneshot::Sender<Told>>,
    /// Who rolls it back, and waits for its end.
    pub rolling_back: Vec<oneshot::Sender<Told>>,
    /// Who sent the same request meanwhile, and waits for the same end.
    pub joined: Vec<oneshot::Sender<Told>>,
    /// Who waits for its beginning.
    pub beginning: Option<oneshot::Sender<Result<(), Reason>>>,
    /// Who waits for a branch.
    pub enlisting: Option<oneshot::Sender<Result<Enlisted, Reason>>>,
    /// Whether a statement of it is running.
    pub executing: bool,
    pub isolation: Option<Isolation>,
    pub deadline: Instant,
    /// Its place among the deadlines, until that has passed: then the place is another's.
    key: Option<Key>,
    /// Of statements and results.
    bytes: usize,
    /// Of the results only.
    result_bytes: usize,
}

impl Context {
    /// Whether somebody waits for its outcome.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiters.is_empty() || !self.rolling_back.is_empty() || !self.joined.is_empty()
    }

    /// Whether its statements come one by one; nobody else's can end one that came whole.
    fn is_interactive(&self) -> bool {
        self.work.is_empty()
    }

    fn new(isolation: Option<Isolation>, deadline: Instant, key: Key) -> Self {
        Self {
            work: Vec::new(),
            statements: Vec::new(),
            results: Vec::new(),
            refused_by: None,
            waiters: Vec::new(),
            rolling_back: Vec::new(),
            joined: Vec::new(),
            beginning: None,
            enlisting: None,
            executing: false,
            isolation,
            deadline,
            key: Some(key),
            bytes: 0,
            result_bytes: 0,
        }
    }
}

impl Driver {
    fn limit_reached(&self, bytes: usize) -> Option<Reason> {
        let live = self.machine.live();
        let text = if live >= self.config.max_in_flight {
            format!("{live} transactions are in flight, which is the limit; try again later")
        } else if self.bytes_in_flight + bytes > self.config.max_in_flight_bytes {
            let limit = self.config.max_in_flight_bytes;
            format!("transactions in flight hold {limit} bytes, which is the limit")
        } else {
            return None;
        };
        Some(Reason::new(code::LIMIT_REACHED, text))
    }

    fn unknown_participant(&self, name: &ParticipantName) -> Option<Reason> {
        (!self.participants.contains(name)).then(|| {
            let known: Vec<_> = self
                .participants
                .iter()
                .map(ParticipantName::as_str)
                .collect();
            let text = format!(
                "no participant is called {name}; there are {}",
                known.join(", ")
            );
            Reason::new(code::PARTICIPANT_NOT_FOUND, text)
        })
    }

    fn open(&mut self, gtrid: Gtrid, isolation: Option<Isolation>, timeout: Duration) -> Context {
        let key = self.deadlines.insert(gtrid, timeout);
        Context::new(isolation, Instant::now() + timeout, key)
    }

    /// Closes the books of a transaction that was answered or refused.
    pub(super) fn close(&mut self, gtrid: Gtrid) -> Option<Context> {
        let context = self.contexts.remove(&gtrid)?;
        self.bytes_in_flight -= context.bytes;
        if let Some(key) = &context.key {
            self.deadlines.try_remove(key);
        }
        Some(context)
    }

    pub(super) fn run_transaction(
        &mut self,
        tx: OneShot,
        down: Option<Reason>,
        answer: oneshot::Sender<Told>,
    ) -> Result<(), DriverError> {
        reach(CrashPoint::CoordinatorRunReceived);
        let statements = tx.branches.iter().flat_map(|branch| &branch.statements);
        let bytes = statements.map(statement_size).sum();
        // A repetition begins nothing, and must not be told that nothing was done.
        let known = |request: &Request| self.machine.knows_request(&request.id);
        let refused = || {
            let mut names = tx.branches.iter().map(|branch| &branch.participant);
            names
                .find_map(|name| self.unknown_participant(name))
                .or(down)
                .or_else(|| self.limit_reached(bytes))
        };
        let new = !tx.request.as_ref().is_some_and(known);
        if let Some(reason) = new.then(refused).flatten() {
            // A caller that left needs no answer; here and below.
            let _ = answer.send(Told::Refused(reason));
            return Ok(());
        }
        let may_leave = tx.isolation != Some(Isolation::Serializable)
            || planted::is(Bug::ReadOnlyLeavesSerializable);
        let mut context = self.open(tx.gtrid, tx.isolation, tx.timeout);
        let mut request = tx.request.clone();
        let mut branches = Vec::with_capacity(tx.branches.len());
        for branch in tx.branches {
            branches.push(branch.participant);
            context.statements.push(branch.statements.len());
            context.results.push(Vec::new());
            context.work.push(Some(Work {
                statements: branch.statements,
                isolation: tx.isolation,
                allow_read_only: may_leave,
                timeout: tx.timeout,
                request: request.take(),
            }));
        }
        context.bytes = bytes;
        context.waiters.push(answer);
        self.bytes_in_flight += bytes;
        self.contexts.insert(tx.gtrid, context);
        let ack = match tx.ack {
            AckMode::Applied => Ack::Applied,
            AckMode::Decided => Ack::Decided,
        };
        let (gtrid, request) = (tx.gtrid, tx.request);
        self.input(Input::Run {
            gtrid,
            branches,
            request,
            ack,
            may_leave,
        })
    }

    /// What became of a request that is known here, for a caller who cannot say what it does.
    pub(super) fn repeat(
        &mut self,
        gtrid: Gtrid,
        request: Request,
        answer: oneshot::Sender<Option<oneshot::Receiver<Told>>>,
    ) -> Result<(), DriverError> {
        if !self.machine.knows_request(&request.id) {
            let _ = answer.send(None);
            return Ok(());
        }
        let (waiter, wait) = oneshot::channel();
        let _ = answer.send(Some(wait));
        let mut context = self.open(
            gtrid,
            None,
            Duration::from_millis(TIMEOUT_DEFAULT_MS.into()),
        );
        context.waiters.push(waiter);
        self.contexts.insert(gtrid, context);
        self.input(Input::Run {
            gtrid,
            branches: Vec::new(),
            request: Some(request),
            ack: Ack::Applied,
            may_leave: false,
        })
    }

    pub(super) fn begin(
        &mut self,
        gtrid: Gtrid,
        isolation: Option<Isolation>,
        timeout: Duration,
        answer: oneshot::Sender<Result<(), Reason>>,
    ) -> Result<(), DriverError> {
        reach(CrashPoint::CoordinatorBeginReceived);
        if let Some(reason) = self.limit_reached(0) {
            let _ = answer.send(Err(reason));
            return Ok(());
        }
        let mut context = self.open(gtrid, isolation, timeout);
        context.beginning = Some(answer);
        self.contexts.insert(gtrid, context);
        self.input(Input::Begin { gtrid })
    }

    pub(super) fn enlist(
        &mut self,
        gtrid: Gtrid,
        participant: ParticipantName,
        down: Option<Reason>,
        answer: oneshot::Sender<Result<Enlisted, Reason>>,
    ) -> Result<(), DriverError> {
        let unknown = self.unknown_participant(&participant);
        let down = down.filter(|_| !self.machine.has_branch(gtrid, &participant));
        let refusal = match self.contexts.get_mut(&gtrid) {
            None => Some(not_running(gtrid)),
            Some(_) if unknown.is_some() => unknown,
            Some(context) if context.executing => Some(busy(gtrid)),
            Some(_) if down.is_some() => down,
            Some(context) => {
                context.executing = true;
                context.enlisting = Some(answer);
                return self.input(Input::Enlist { gtrid, participant });
            }
        };
        let _ = answer.send(Err(refusal.unwrap_or_else(|| not_running(gtrid))));
        Ok(())
    }

    pub(super) fn statement_done(
        &mut self,
        gtrid: Gtrid,
        failed: Option<Reason>,
    ) -> Result<(), DriverError> {
        let Some(context) = self.contexts.get_mut(&gtrid) else {
            return Ok(());
        };
        context.executing = false;
        match failed {
            Some(reason) if context.is_interactive() => self.input(Input::Abort { gtrid, reason }),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn commit(
        &mut self,
        gtrid: Gtrid,
        ack: Ack,
        answer: oneshot::Sender<Told>,
    ) -> Result<(), DriverError> {
        reach(CrashPoint::CoordinatorAskReceived);
        let refusal = match self.contexts.get_mut(&gtrid) {
            None => not_running(gtrid),
            Some(context) if context.executing => busy(gtrid),
            Some(context) => {
                context.waiters.push(answer);
                return self.input(Input::Commit { gtrid, ack });
            }
        };
        let _ = answer.send(Told::Refused(refusal));
        Ok(())
    }

    pub(super) fn rollback(
        &mut self,
        gtrid: Gtrid,
        reason: Reason,
        answer: oneshot::Sender<Told>,
    ) -> Result<(), DriverError> {
        reach(CrashPoint::CoordinatorRollbackReceived);
        let Some(context) = self.contexts.get_mut(&gtrid) else {
            let _ = answer.send(Told::Refused(not_running(gtrid)));
            return Ok(());
        };
        context.rolling_back.push(answer);
        self.input(Input::Abort { gtrid, reason })
    }

    pub(super) fn expired(&mut self, gtrid: Gtrid) -> Result<(), DriverError> {
        reach(CrashPoint::CoordinatorDeadlinePassed);
        if let Some(context) = self.contexts.get_mut(&gtrid) {
            context.key = None;
        }
        self.input(Input::Deadline { gtrid })?;
        // Nobody waits for an interactive transaction that was never committed.
        if self
            .contexts
            .get(&gtrid)
            .is_some_and(|context| !context.is_awaited())
        {
            self.close(gtrid);
        }
        Ok(())
    }

    /// Keeps what came beside a participant's answer, until the client is answered. A vote with
    /// which there would be too much of it, or too little, is one against the transaction.
    pub(super) fn keep_results(
        &mut self,
        from: &ParticipantName,
        message: &mut FromParticipant,
        mut results: Vec<v1::StatementResult>,
        failed_statement: Option<u32>,
    ) {
        let mut bytes = results.iter().map(v1::StatementResult::encoded_len).sum();
        if let FromParticipant::Voted { branch, vote, .. } = message
            && let Some(reason) = self
                .too_much(branch.gtrid, bytes)
                .or_else(|| self.missing(from, *branch, vote, results.len()))
        {
            *vote = Vote::Aborting(reason);
            results.clear();
            bytes = 0;
        }
        let (branch, refused) = match message {
            FromParticipant::Voted { branch, vote, .. } => {
                (branch, matches!(vote, Vote::Abort(_) | Vote::Aborting(_)))
            }
            FromParticipant::Finished { branch, finish, .. } => {
                (branch, matches!(finish, Finish::Aborted(_)))
            }
            FromParticipant::Begun { .. } | FromParticipant::Stale { .. } => return,
        };
        let Some(context) = self.contexts.get_mut(&branch.gtrid) else {
            return;
        };
        let Some(index) = index_of(*branch) else {
            return;
        };
        if refused && context.refused_by.is_none() {
            context.refused_by = Some(Refuser {
                participant: from.clone(),
                branch_index: index,
                failed_statement: failed_statement.and_then(|n| usize::try_from(n).ok()),
            });
        }
        if let Some(kept) = context.results.get_mut(index)
            && kept.is_empty()
        {
            context.bytes += bytes;
            context.result_bytes += bytes;
            self.bytes_in_flight += bytes;
            *kept = results;
        }
    }

    /// A vote without a result for each statement: of a Prepare that came twice, or of a
    /// participant that breaks its contract. As long as the results of a branch are not here,
    /// nothing is decided.
    fn missing(
        &self,
        from: &ParticipantName,
        branch: BranchId,
        vote: &Vote,
        arrived: usize,
    ) -> Option<Reason> {
        let context = self.contexts.get(&branch.gtrid)?;
        let index = index_of(branch)?;
        let wanted = *context.statements.get(index)?;
        let there = match context.results.get(index)?.len() {
            0 => arrived,
            kept => kept,
        };
        let stands = matches!(vote, Vote::Commit | Vote::ReadOnly);
        (stands && there < wanted && !planted::is(Bug::LostResultsMadeUp)).then(|| {
            let text = format!(
                "what the statements returned at participant {from} was lost on its way; \
                 nothing was changed, try again"
            );
            Reason::new(code::RESULT_LOST, text)
        })
    }

    fn too_much(&self, gtrid: Gtrid, bytes: usize) -> Option<Reason> {
        let kept = self.contexts.get(&gtrid)?.result_bytes;
        (kept + bytes > TRANSACTION_RESULT_BYTES_MAX).then(|| {
            let text = format!(
                "the statements of a transaction return at most {TRANSACTION_RESULT_BYTES_MAX} \
                 bytes together: ask for less, in pages"
            );
            Reason::new(code::RESULT_TOO_LARGE, text)
        })
    }
}

impl Context {
    /// Tells everybody who waits how it ended.
    pub(super) fn tell(self, gtrid: Gtrid, outcome: &concord_core::message::Outcome) {
        let Self {
            waiters,
            rolling_back,
            joined,
            results,
            refused_by,
            ..
        } = self;
        let ended = Ended {
            gtrid,
            outcome: outcome.clone(),
            results,
            refused_by,
        };
        for waiter in waiters.into_iter().chain(rolling_back) {
            let _ = waiter.send(Told::Ended(ended.clone()));
        }
        for waiter in joined {
            let _ = waiter.send(Told::Replayed {
                first: gtrid,
                outcome: outcome.clone(),
            });
        }
    }
}

/// The branch's place among those of its transaction.
fn index_of(branch: BranchId) -> Option<usize> {
    usize::try_from(branch.bqual.0).ok()?.checked_sub(1)
}

fn not_running(gtrid: Gtrid) -> Reason {
    let text = format!("transaction {gtrid} is not running; GetTransaction tells how it ended");
    Reason::new(code::TRANSACTION_NOT_FOUND, text)
}

fn busy(gtrid: Gtrid) -> Reason {
    let text = format!("a statement of transaction {gtrid} is still running");
    Reason::new(code::WRONG_STATE, text)
}
