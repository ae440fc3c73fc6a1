//! The second phase: outcomes are sent until they are acknowledged, whatever it takes.

use super::{ApplyError, Coordinator, Effect, Out, branch_changed, changed};
use crate::id::{BranchId, Epoch, Gtrid, ParticipantName};
use crate::message::{Finish, Outcome, ToParticipant};
use crate::planted::{self, Bug};
use crate::reason::{Reason, code};
use crate::record::Record;
use crate::transaction::{Branch, BranchState, Transaction, TransactionState};

/// After an answer RETRY the outcome is sent again after 1, 2, then always this many sweeps.
pub(super) const RETRY_SWEEPS_MAX: u32 = 4;
/// Without an answer the outcome is sent again after this many sweeps: a server may be busy, and
/// a participant recognises what it is already doing.
pub(super) const NO_ANSWER_SWEEPS: u32 = 8;

impl Coordinator {
    pub(super) fn finished(
        &mut self,
        from: &ParticipantName,
        id: BranchId,
        finish: Finish,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        let Some(tx) = self.transactions.get_mut(&id.gtrid) else {
            return self.late_finish(from, id, &finish, out);
        };
        let one_phase = tx.one_phase;
        let aborting = tx.state == TransactionState::Aborting;
        let position = tx.position;
        let Some(branch) = tx.branch_mut(id.bqual) else {
            return Ok(());
        };
        let awaited =
            branch.state.is_finishing() || (one_phase && branch.state == BranchState::Preparing);
        if branch.participant != *from || !awaited {
            return Ok(());
        }
        let gives_up = planted::is(Bug::RetryGivesUp) && branch.state == BranchState::Committing;
        let finish = match finish {
            Finish::Retry(_) if gives_up => Finish::Committed,
            other => other,
        };
        if let Finish::Retry(reason) = finish {
            branch.wait = (1 << branch.attempts.min(3)).min(RETRY_SWEEPS_MAX);
            branch.attempts = branch.attempts.saturating_add(1);
            branch.reason = Some(reason);
            if one_phase {
                // Its outcome is asked for from now on; the work is never sent again.
                branch.state = BranchState::Aborting;
            }
            out.release(position, branch_changed(id.gtrid, branch));
            return Ok(());
        }
        if one_phase {
            return self.one_phase_finished(id, finish, out);
        }
        match (branch.state, finish) {
            (BranchState::Committing, Finish::Committed) => branch.state = BranchState::Committed,
            (BranchState::Aborting, Finish::Aborted(_)) => branch.state = BranchState::Aborted,
            (_, Finish::Damaged(reason)) => {
                return self.damaged(id, None, reason, out);
            }
            (_, Finish::Committed) => {
                let text = "the branch was to be rolled back and is committed";
                let reason = Reason::new(code::HEURISTIC_COMMIT, text);
                return self.damaged(id, Some(true), reason, out);
            }
            (_, Finish::Aborted(_)) => {
                let text = "the branch was to be committed and is rolled back";
                let reason = Reason::new(code::HEURISTIC_ROLLBACK, text);
                return self.damaged(id, Some(false), reason, out);
            }
            (_, Finish::Retry(_)) => {}
        }
        branch.reason = None;
        out.release(position, branch_changed(id.gtrid, branch));
        if aborting {
            self.end_if_aborted(id.gtrid, out);
            return Ok(());
        }
        self.end_if_committed(id.gtrid, out)
    }

    /// An end of a transaction that is not running. What is not on record was aborted, so a
    /// branch of it that is committed is damage, and nobody else would tell.
    fn late_finish(
        &mut self,
        from: &ParticipantName,
        id: BranchId,
        finish: &Finish,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        let BranchId { gtrid, bqual } = id;
        let ordered = self.ended.get(&gtrid).is_some_and(|e| e.orders(bqual));
        let known = gtrid < self.horizon || ordered || self.heuristics.contains_key(&id);
        if *finish != Finish::Committed || known {
            return Ok(());
        }
        let text = "the transaction was aborted and one of its branches is committed";
        let reason = Reason::new(code::HEURISTIC_COMMIT, text);
        let record = Record::Heuristic {
            gtrid,
            bqual,
            participant: from.clone(),
            committed: Some(true),
            reason: reason.clone(),
            // Nobody here knows it any more, unless a refusal that is on record names it.
            request: None,
        };
        let after = self.record(record, out)?;
        let mut branch = Branch::new(bqual, from.clone(), BranchState::Heuristic);
        branch.reason = Some(reason);
        out.release(after, branch_changed(gtrid, &branch));
        Ok(())
    }

    /// The participant of a delegated transaction has decided.
    fn one_phase_finished(
        &mut self,
        id: BranchId,
        finish: Finish,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        let gtrid = id.gtrid;
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        let request = tx.request.clone();
        let answered = std::mem::replace(&mut tx.answered, true);
        let (state, outcome) = match finish {
            Finish::Committed => (TransactionState::Committed, Outcome::Committed),
            Finish::Aborted(reason) => {
                let text = "its participant has no record of a commit";
                // Why it was not finished then is not why it ended: it must settle nothing.
                let former = tx.branches.first().and_then(|branch| branch.reason.clone());
                let former = former.filter(|reason| !reason.settles_request());
                let reason = reason
                    .or(former)
                    .unwrap_or_else(|| Reason::new(code::BRANCH_LOST, text));
                (TransactionState::Aborted, Outcome::Aborted(reason))
            }
            Finish::Damaged(reason) => {
                tx.answered = answered;
                return self.damaged(id, None, reason, out);
            }
            Finish::Retry(_) => return Ok(()),
        };
        let committed = outcome == Outcome::Committed;
        tx.state = state;
        let mut after = tx.position;
        if let Outcome::Aborted(reason) = &outcome {
            tx.reason = Some(reason.clone());
        }
        if let Some(branch) = tx.branches.first_mut() {
            branch.state = if committed {
                BranchState::Committed
            } else {
                BranchState::Aborted
            };
            out.release(after, branch_changed(gtrid, branch));
        }
        let change = changed(tx);
        match (&outcome, request) {
            (Outcome::Aborted(reason), Some(request)) if reason.settles_request() => {
                let reason = reason.clone();
                after = self.record(
                    Record::Refused {
                        gtrid,
                        request,
                        reason,
                    },
                    out,
                )?;
            }
            _ => {
                self.record(Record::End { gtrid, committed }, out)?;
            }
        }
        out.release(after, change);
        if !answered {
            out.release(after, Effect::Reply { gtrid, outcome });
        }
        Ok(())
    }

    /// Somebody else finished a branch. That is never hidden: it is recorded for ever, the client
    /// is told, and the transaction ends so that it does not ask for ever.
    fn damaged(
        &mut self,
        id: BranchId,
        committed: Option<bool>,
        reason: Reason,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        let gtrid = id.gtrid;
        let bqual = id.bqual;
        let Some(tx) = self.transactions.get(&gtrid) else {
            return Ok(());
        };
        let Some(participant) = tx.branch(bqual).map(|branch| branch.participant.clone()) else {
            return Ok(());
        };
        let record = Record::Heuristic {
            gtrid,
            bqual,
            participant,
            committed,
            reason: reason.clone(),
            request: tx.request_of_abort(),
        };
        let after = self.record(record, out)?;
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        tx.position = after;
        if let Some(branch) = tx.branch(bqual) {
            out.release(after, branch_changed(gtrid, branch));
        }
        if !std::mem::replace(&mut tx.answered, true) {
            out.release(
                after,
                Effect::Reply {
                    gtrid,
                    outcome: Outcome::Damaged(reason),
                },
            );
        }
        if tx.state == TransactionState::Aborting {
            self.end_if_aborted(gtrid, out);
            Ok(())
        } else {
            self.end_if_committed(gtrid, out)
        }
    }

    /// Ends a decided transaction whose branches have all acknowledged.
    pub(super) fn end_if_committed(
        &mut self,
        gtrid: Gtrid,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        if tx.has_unfinished_branch() && !planted::is(Bug::ForgottenBeforeAcknowledged) {
            return Ok(());
        }
        tx.state = TransactionState::Committed;
        let after = tx.position;
        out.release(after, changed(tx));
        if !std::mem::replace(&mut tx.answered, true) {
            let outcome = tx.damage().map_or(Outcome::Committed, Outcome::Damaged);
            out.release(after, Effect::Reply { gtrid, outcome });
        }
        tx.state = TransactionState::Committing;
        self.record(
            Record::End {
                gtrid,
                committed: true,
            },
            out,
        )?;
        Ok(())
    }

    /// Drops an aborted transaction whose branches have all acknowledged: nothing on record means
    /// abort, so there is nothing to remember but damage, which is among what ended already.
    pub(super) fn end_if_aborted(&mut self, gtrid: Gtrid, out: &mut Out) {
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return;
        };
        if tx.has_unfinished_branch() {
            return;
        }
        tx.state = TransactionState::Aborted;
        out.release(tx.position, changed(tx));
        self.transactions.remove(&gtrid);
    }

    /// A participant is back: everything that it has not acknowledged is sent again.
    pub(super) fn link_up(&mut self, participant: ParticipantName, out: &mut Out) {
        for tx in self.transactions.values_mut() {
            let (gtrid, position) = (tx.gtrid, tx.position);
            for branch in tx
                .branches
                .iter_mut()
                .filter(|b| b.participant == participant)
            {
                if tx.one_phase && branch.state == BranchState::Preparing {
                    branch.state = BranchState::Aborting;
                }
                send_outcome(self.epoch, gtrid, position, branch, out);
            }
        }
        self.links.insert(participant);
    }

    /// Sends outcomes again whose time has come.
    pub(super) fn sweep(&mut self, out: &mut Out) -> Result<(), ApplyError> {
        let mut over = Vec::new();
        for tx in self.transactions.values_mut() {
            let Transaction {
                gtrid, position, ..
            } = *tx;
            for branch in tx.branches.iter_mut().filter(|b| b.state.is_finishing()) {
                branch.wait = branch.wait.saturating_sub(1);
                if branch.wait > 0 {
                    continue;
                }
                if self.links.contains(&branch.participant) {
                    send_outcome(self.epoch, gtrid, position, branch, out);
                } else {
                    branch.attempts = branch.attempts.saturating_add(1);
                    branch.reason = Some(absent(&branch.participant));
                    branch.wait = NO_ANSWER_SWEEPS;
                    out.release(position, branch_changed(gtrid, branch));
                }
            }
            // A crash may have lost the End after the last branch was found damaged.
            let decided = tx.one_phase || tx.state == TransactionState::Committing;
            if decided && !tx.has_unfinished_branch() {
                over.push(gtrid);
            }
        }
        for gtrid in over {
            self.end_if_committed(gtrid, out)?;
        }
        Ok(())
    }
}

fn absent(participant: &ParticipantName) -> Reason {
    let text = format!("participant {participant} is not connected; it is told when it is back");
    Reason::new(code::PARTICIPANT_DOWN, text)
}

/// Tells a branch its outcome, unless it is not one to be told.
pub(super) fn send_outcome(
    epoch: Epoch,
    gtrid: Gtrid,
    after: u64,
    branch: &mut Branch,
    out: &mut Out,
) {
    let id = BranchId {
        gtrid,
        bqual: branch.bqual,
    };
    let message = match branch.state {
        BranchState::Committing => ToParticipant::Commit {
            branch: id,
            epoch,
            one_phase: false,
            work: false,
        },
        BranchState::Aborting => ToParticipant::Abort { branch: id, epoch },
        _ => return,
    };
    branch.wait = NO_ANSWER_SWEEPS;
    out.release(
        after,
        Effect::Send {
            to: branch.participant.clone(),
            message,
        },
    );
}
