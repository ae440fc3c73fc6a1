//! Effects leave: over links, to waiting callers, into the history.

use concord_core::coordinator::{Effect, Refusable};
use concord_core::id::{BranchId, Gtrid, ParticipantName};
use concord_core::message::{Outcome, ToParticipant};
use concord_core::reason::Reason;
use concord_core::transaction::TransactionState;
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::convert::link::{abort_request, commit_request, prepare_request};
use concord_proto::v1::link_command::Command;

use super::Driver;
use super::calls::{Enlisted, Ordered, Outbound, Told};
use crate::counters::count;

impl Driver {
    pub(super) fn release(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.history.note(&effect);
            self.release_one(effect);
        }
    }

    fn release_one(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, message } => self.send(&to, &message),
            Effect::Began { gtrid, .. } => self.began(gtrid),
            Effect::Enlisted { branch, new, .. } => self.enlisted(branch, new),
            Effect::Reply { gtrid, outcome } => {
                reach(CrashPoint::CoordinatorReplyBeforeSend);
                if let Some(context) = self.close(gtrid) {
                    context.tell(gtrid, &outcome);
                }
                reach(CrashPoint::CoordinatorReplyAfterSend);
            }
            Effect::Join { gtrid, first } => self.join(gtrid, first),
            Effect::Replay {
                gtrid,
                first,
                outcome,
            } => self.replay(gtrid, first, &outcome),
            Effect::Rejected {
                gtrid,
                call,
                reason,
            } => self.rejected(gtrid, call, reason),
            Effect::Answer { token, decision } => {
                reach(CrashPoint::CoordinatorInquiryAnswered);
                if let Some(answer) = self.inquiries.remove(&token) {
                    let _ = answer.send(decision);
                }
            }
            Effect::Seen { token, seen } => {
                if let Some(answer) = self.looks.remove(&token) {
                    let _ = answer.send(seen);
                }
            }
            Effect::Order { resolve, heuristic } => {
                reach(CrashPoint::CoordinatorOrderReleased);
                if let Some(answer) = self.orders.remove(&resolve.token) {
                    let _ = answer.send(Ordered::Go { resolve, heuristic });
                }
            }
            Effect::OrderRefused { token, reason } => {
                if let Some(answer) = self.orders.remove(&token) {
                    let _ = answer.send(Ordered::Refused(reason));
                }
            }
            Effect::Changed {
                gtrid,
                state,
                reason,
            } => self.counted(gtrid, state, reason.as_ref()),
            Effect::BranchChanged {
                branch,
                participant,
                state,
                reason,
                ..
            } => {
                if state == concord_core::transaction::BranchState::Heuristic {
                    count(&self.counters.heuristic);
                    let reason = reason.map(|reason| reason.to_string()).unwrap_or_default();
                    tracing::error!(%branch, %participant, reason, "heuristic outcome");
                }
            }
            Effect::Forgotten { gtrids, horizon } => self.forgotten(gtrids, horizon),
            Effect::Superseded { by } => {
                tracing::error!(own = %self.machine.epoch(), %by, "superseded");
                self.superseded = true;
            }
        }
    }

    fn began(&mut self, gtrid: Gtrid) {
        count(&self.counters.begun);
        let context = self.contexts.get_mut(&gtrid);
        if let Some(answer) = context.and_then(|context| context.beginning.take()) {
            // A caller that left needs no answer; here and elsewhere.
            let _ = answer.send(Ok(()));
        }
    }

    fn enlisted(&mut self, branch: BranchId, new: bool) {
        let Some(context) = self.contexts.get_mut(&branch.gtrid) else {
            return;
        };
        reach(CrashPoint::CoordinatorBranchEnlisted);
        let (isolation, deadline) = (context.isolation, context.deadline);
        if let Some(answer) = context.enlisting.take() {
            let _ = answer.send(Ok(Enlisted {
                branch,
                new,
                isolation,
                deadline,
            }));
        }
    }

    fn forgotten(&mut self, gtrids: Vec<Gtrid>, horizon: Gtrid) {
        for link in self.links.values() {
            let _ = link.sender.send(Outbound::ForgetBelow(horizon));
        }
        reach(CrashPoint::CoordinatorForgetTold);
        self.told_horizon = horizon;
        self.forget = Some((gtrids, horizon));
    }

    fn send(&mut self, to: &ParticipantName, message: &ToParticipant) {
        let (command, before, after) = match *message {
            ToParticipant::Prepare {
                branch,
                epoch,
                work,
                ..
            } => {
                let payload = if work { self.branch_work(branch) } else { None };
                (
                    Command::Prepare(prepare_request(branch, epoch, payload)),
                    CrashPoint::CoordinatorPrepareBeforeSend,
                    CrashPoint::CoordinatorPrepareAfterSend,
                )
            }
            ToParticipant::Commit {
                branch,
                epoch,
                one_phase: true,
                work,
            } => {
                let payload = if work { self.branch_work(branch) } else { None };
                (
                    Command::Commit(commit_request(branch, epoch, true, payload)),
                    CrashPoint::CoordinatorOnePhaseBeforeSend,
                    CrashPoint::CoordinatorOnePhaseAfterSend,
                )
            }
            ToParticipant::Commit { branch, epoch, .. } => (
                Command::Commit(commit_request(branch, epoch, false, None)),
                CrashPoint::CoordinatorCommitBeforeSend,
                CrashPoint::CoordinatorCommitAfterSend,
            ),
            ToParticipant::Abort { branch, epoch } => (
                Command::Abort(abort_request(branch, epoch)),
                CrashPoint::CoordinatorAbortBeforeSend,
                CrashPoint::CoordinatorAbortAfterSend,
            ),
            // The call that enlisted the branch begins it, and waits for the answer.
            ToParticipant::Begin { .. } => return,
        };
        reach(before);
        // A link that is down loses it; the machine sends it again when the link is up.
        if let Some(link) = self.links.get(to) {
            let _ = link.sender.send(Outbound::Command {
                branch: message.branch(),
                command,
            });
        }
        reach(after);
    }

    fn join(&mut self, gtrid: Gtrid, first: Gtrid) {
        let Some(joining) = self.close(gtrid) else {
            return;
        };
        match self.contexts.get_mut(&first) {
            Some(context) => context.joined.extend(joining.waiters),
            None => joining.tell(first, &Outcome::Unknown(first)),
        }
    }

    pub(super) fn replay(&mut self, gtrid: Gtrid, first: Gtrid, outcome: &Outcome) {
        let Some(context) = self.close(gtrid) else {
            return;
        };
        for waiter in context.waiters {
            let _ = waiter.send(Told::Replayed {
                first,
                outcome: outcome.clone(),
            });
        }
    }

    /// A call about this transaction had no effect: whoever made it is told, and nobody else. An
    /// abort that a refused statement asked for has nobody who waits for it.
    fn rejected(&mut self, gtrid: Gtrid, call: Refusable, reason: Reason) {
        let Some(context) = self.contexts.get_mut(&gtrid) else {
            return;
        };
        let refused = match call {
            Refusable::Enlist => {
                if let Some(answer) = context.enlisting.take() {
                    context.executing = false;
                    let _ = answer.send(Err(reason));
                }
                return;
            }
            Refusable::Begin => {
                let answer = context.beginning.take();
                self.close(gtrid);
                if let Some(answer) = answer {
                    let _ = answer.send(Err(reason));
                }
                return;
            }
            Refusable::Run | Refusable::Commit => context.waiters.pop(),
            Refusable::Abort => context.rolling_back.pop(),
        };
        if !context.is_awaited() {
            self.close(gtrid);
        }
        if let Some(answer) = refused {
            let _ = answer.send(Told::Refused(reason));
        }
    }

    fn counted(&self, gtrid: Gtrid, state: TransactionState, reason: Option<&Reason>) {
        match state {
            TransactionState::Committed => count(&self.counters.committed),
            TransactionState::Aborted => {
                let code = reason.map_or("", |reason| &*reason.code);
                self.counters.aborted_for(code);
                tracing::debug!(%gtrid, code, "transaction aborted");
            }
            TransactionState::Init
            | TransactionState::Active
            | TransactionState::Preparing
            | TransactionState::Prepared
            | TransactionState::Committing
            | TransactionState::Aborting => {}
        }
    }
}
