//! Votes, the decision, and what a lost link means before it.

use super::finish::send_outcome;
use super::run::down;
use super::{ApplyError, Coordinator, Effect, Out, branch_changed, changed};
use crate::id::{BranchId, Epoch, Gtrid, ParticipantName};
use crate::message::{Outcome, ToParticipant, Vote};
use crate::planted::{self, Bug};
use crate::reason::{Reason, code};
use crate::record::Record;
use crate::transaction::{Ack, Branch, BranchState, TransactionState};

impl Coordinator {
    pub(super) fn voted(
        &mut self,
        from: &ParticipantName,
        id: BranchId,
        epoch: Epoch,
        vote: Vote,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        let own_epoch = self.epoch;
        let Some(tx) = self.transactions.get_mut(&id.gtrid) else {
            self.late_vote(from, id, &vote, out);
            return Ok(());
        };
        let may_leave = tx.may_leave;
        let collecting = tx.state == TransactionState::Preparing && !tx.one_phase;
        let aborting = tx.state == TransactionState::Aborting;
        let position = tx.position;
        let Some(branch) = tx.branch_mut(id.bqual) else {
            return Ok(());
        };
        if branch.participant != *from || epoch != own_epoch {
            return Ok(());
        }
        if aborting {
            // It rolled back by itself: that is an acknowledgement of the Abort on its way.
            if branch.state == BranchState::Aborting && matches!(vote, Vote::Abort(_)) {
                branch.state = BranchState::Aborted;
                out.release(position, branch_changed(id.gtrid, branch));
                self.end_if_aborted(id.gtrid, out);
            }
            return Ok(());
        }
        // Only the first vote counts: a repeated or late one changes nothing.
        if !collecting || branch.state != BranchState::Preparing {
            return Ok(());
        }
        if let Some(reason) = count_vote(branch, vote, may_leave) {
            return self.refused(id.gtrid, reason, out);
        }
        out.release(0, branch_changed(id.gtrid, branch));
        if let Some(held_back) = tx.reason.clone() {
            return self.refused(id.gtrid, held_back, out);
        }
        if tx
            .branches
            .iter()
            .all(|b| b.state != BranchState::Preparing)
            || planted::is(Bug::MissingVoteIsYes)
        {
            return self.all_voted(id.gtrid, out);
        }
        Ok(())
    }

    /// A branch refused. When the reason is final and the client gave a request id, nobody is told
    /// before the branch that carries the id into its ledger has voted too: the request may have
    /// taken effect in a transaction that nothing here remembers, which is then the answer. The
    /// data would refuse it now just *because* it took effect (the money is gone).
    fn refused(&mut self, gtrid: Gtrid, reason: Reason, out: &mut Out) -> Result<(), ApplyError> {
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        let carrier = tx.branches.first();
        let mut reason = reason;
        if tx.request.is_some() && reason.kind().is_final() {
            if carrier.is_some_and(|branch| branch.state == BranchState::Preparing) {
                let over = [BranchState::Aborted, BranchState::Aborting];
                let refused = tx.branches.iter().filter(|b| over.contains(&b.state));
                for branch in refused {
                    out.release(0, branch_changed(gtrid, branch));
                }
                tx.reason = Some(reason);
                return Ok(());
            }
            // One that failed for a passing reason has not looked, and a retry will.
            if let Some(why) = carrier.and_then(|branch| branch.reason.clone())
                && !why.settles_request()
            {
                reason = why;
            }
        }
        self.begin_abort(gtrid, reason, out)
    }

    /// A vote for a transaction that is not running: it was aborted, or its coordinator died
    /// before it decided. Unless it is older than what is remembered, the branch need not wait
    /// for its own inquiry.
    fn late_vote(&self, from: &ParticipantName, id: BranchId, vote: &Vote, out: &mut Out) {
        let forgotten = id.gtrid < self.horizon;
        let committed = self
            .ended
            .get(&id.gtrid)
            .is_some_and(|ended| ended.ordered != 0);
        // What an operator has forced is told to the branch when it asks.
        let forced = self.heuristics.contains_key(&id);
        if *vote == Vote::Commit && !forgotten && !committed && !forced {
            let message = ToParticipant::Abort {
                branch: id,
                epoch: self.epoch,
            };
            out.release(
                0,
                Effect::Send {
                    to: from.clone(),
                    message,
                },
            );
        }
    }

    /// Decides to commit. The record is the commit point; all that tells of it waits for it.
    pub(super) fn all_voted(&mut self, gtrid: Gtrid, out: &mut Out) -> Result<(), ApplyError> {
        let epoch = self.epoch;
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        let branches: Vec<_> = tx
            .branches
            .iter()
            .filter(|branch| {
                branch.state == BranchState::Prepared || planted::is(Bug::MissingVoteIsYes)
            })
            .map(|branch| (branch.bqual, branch.participant.clone()))
            .collect();
        tx.state = TransactionState::Prepared;
        out.release(0, changed(tx));
        if branches.is_empty() {
            // Nothing was written anywhere, so nothing is on record and nobody waits.
            tx.state = TransactionState::Committed;
            out.release(0, changed(tx));
            out.release(
                0,
                Effect::Reply {
                    gtrid,
                    outcome: Outcome::Committed,
                },
            );
            if let Some(request) = tx.request.clone() {
                self.free_request(&request.id, gtrid);
            }
            self.transactions.remove(&gtrid);
            return Ok(());
        }
        let request = tx.request.clone();
        let record = Record::Decision {
            gtrid,
            epoch,
            branches,
            request,
        };
        let after = self.record(record, out)?;
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        let after = if planted::is(Bug::DecisionBeforeDurable) {
            0
        } else {
            after
        };
        tx.position = after;
        out.release(after, changed(tx));
        for branch in &mut tx.branches {
            send_outcome(epoch, gtrid, after, branch, out);
        }
        if tx.ack == Ack::Decided {
            tx.answered = true;
            out.release(
                after,
                Effect::Reply {
                    gtrid,
                    outcome: Outcome::Committed,
                },
            );
        }
        Ok(())
    }

    /// Whatever was on the link is gone: a vote that did not come will not come.
    pub(super) fn link_down(
        &mut self,
        participant: &ParticipantName,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        self.links.remove(participant);
        let waits = |state| matches!(state, BranchState::Active | BranchState::Preparing);
        let lost: Vec<Gtrid> = self
            .transactions
            .values()
            .filter(|tx| tx.is_undecided() && !tx.one_phase)
            .filter(|tx| {
                tx.branches
                    .iter()
                    .any(|b| b.participant == *participant && waits(b.state))
            })
            .map(|tx| tx.gtrid)
            .collect();
        for gtrid in lost {
            self.begin_abort(gtrid, lost_link(participant), out)?;
        }
        Ok(())
    }
}

/// Takes the first vote of a branch; why it stands in the way of a commit, if it does.
fn count_vote(branch: &mut Branch, vote: Vote, may_leave: bool) -> Option<Reason> {
    match vote {
        Vote::Commit => {
            branch.state = BranchState::Prepared;
            None
        }
        Vote::ReadOnly if may_leave => {
            branch.state = BranchState::ReadOnly;
            None
        }
        Vote::ReadOnly => {
            branch.state = BranchState::Aborted;
            let text = "a branch of a SERIALIZABLE transaction left before the others voted";
            Some(Reason::new(code::UNEXPECTED_ANSWER, text))
        }
        Vote::Abort(reason) => {
            branch.state = BranchState::Aborted;
            branch.reason = Some(reason.clone());
            Some(reason)
        }
        // Not over: it is asked for until it is.
        Vote::Aborting(reason) => {
            branch.state = BranchState::Aborting;
            branch.reason = Some(reason.clone());
            Some(reason)
        }
    }
}

fn lost_link(participant: &ParticipantName) -> Reason {
    let text = format!("the link to participant {participant} was lost before it voted");
    Reason::new(down(participant).code, text)
}
