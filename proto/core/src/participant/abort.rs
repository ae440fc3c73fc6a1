//! Rolling a branch back, and remembering it.

use super::epoch::SWEEPS_BEFORE_INQUIRY;
use super::{Command, Effect, Entry, LedgerEntry, Out, Participant, Stage, State, Token, Verb};
use crate::id::{BranchId, Epoch};
use crate::message::{Finish, Vote};
use crate::planted::{self, Bug};
use crate::reason::{Reason, code};

impl Participant {
    pub(super) fn abort(
        &mut self,
        (token, epoch): (Token, Epoch),
        branch: BranchId,
        out: &mut Out,
    ) {
        let entry = self
            .branches
            .entry(branch)
            .or_insert_with(|| Entry::new(State::AbortLater, epoch));
        entry.epoch = entry.epoch.max(epoch);
        entry.finishing.push((token, epoch));
        match entry.state {
            State::Failed(_) => self.end_aborted(branch, None, out),
            State::Active | State::Prepared | State::AbortLater => self.start_abort(branch, out),
            State::Beginning | State::Executing | State::Working { one_phase: false } => {
                self.want_abort(branch, out);
            }
            // Who decides in one phase cannot be overruled: the answer is its outcome. The same
            // holds for a commit that is under way.
            State::Working { one_phase: true } | State::Committing(_) | State::Aborting(_) => {}
        }
    }

    /// Rolls the branch back as soon as what runs in it has ended.
    pub(super) fn want_abort(&mut self, branch: BranchId, out: &mut Out) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        match entry.state {
            State::Active | State::Prepared => self.start_abort(branch, out),
            State::Beginning | State::Executing | State::Working { one_phase: false } => {
                entry.abort_wanted = true;
                out.release.push(Effect::Cancel { branch });
            }
            State::Failed(_)
            | State::Working { one_phase: true }
            | State::Committing(_)
            | State::Aborting(_)
            | State::AbortLater => {}
        }
    }

    pub(super) fn start_abort(&mut self, branch: BranchId, out: &mut Out) {
        if let Some(entry) = self.branches.get_mut(&branch) {
            entry.state = State::Aborting(Stage::Verb);
            out.run(branch, Command::Rollback);
        }
    }

    pub(super) fn expired(&mut self, branch: BranchId, out: &mut Out) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        match entry.state {
            State::Beginning | State::Active | State::Executing => {
                let text = "the branch's time-out passed before it was asked to vote";
                entry.reason = Some(Reason::new(code::DEADLINE_EXCEEDED, text));
                entry.failed = true;
                self.want_abort(branch, out);
            }
            State::Failed(_) => {
                self.branches.remove(&branch);
            }
            State::Working { .. }
            | State::Prepared
            | State::Committing(_)
            | State::Aborting(_)
            | State::AbortLater => {}
        }
    }

    pub(super) fn rollback_done(&mut self, branch: BranchId, result: Verb, out: &mut Out) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        match result {
            Verb::Done if !entry.unclear => self.end_aborted(branch, None, out),
            Verb::NotDone(reason) => self.abort_later(branch, reason, out),
            Verb::NoSuchBranch if planted::is(Bug::LatePrepareAccepted) => {
                self.end_aborted(branch, None, out);
            }
            // Never there, over, or attached elsewhere; and a Prepare may still arrive late. The
            // ledger's unique key is where all of these meet.
            Verb::Done | Verb::NoSuchBranch | Verb::Unknown(_) => {
                entry.unclear |= matches!(result, Verb::Unknown(_));
                entry.state = State::Aborting(Stage::Ledger);
                out.run(branch, Command::Tombstone);
            }
        }
    }

    /// A tombstone was tried first. Where it cannot stand, the branch is there to be rolled back.
    pub(super) fn bar_done(
        &mut self,
        branch: BranchId,
        result: Result<LedgerEntry, Reason>,
        out: &mut Out,
    ) {
        match result {
            Ok(LedgerEntry::Tombstone | LedgerEntry::Committed) => {
                self.tombstone_done(branch, result, out);
            }
            Ok(LedgerEntry::Absent) | Err(_) => self.start_abort(branch, out),
        }
    }

    pub(super) fn tombstone_done(
        &mut self,
        branch: BranchId,
        result: Result<LedgerEntry, Reason>,
        out: &mut Out,
    ) {
        match result {
            Ok(LedgerEntry::Tombstone) => self.end_aborted(branch, None, out),
            Ok(LedgerEntry::Committed) => {
                let Some(entry) = self.branches.get_mut(&branch) else {
                    return;
                };
                let asked = !entry.finishing.is_empty();
                if entry.ordered || (asked && entry.two_phase) {
                    // The coordinator may not wait for the answer, and the answer may be lost.
                    let text = "the branch was to be rolled back and is committed";
                    let reason = Reason::new(code::HEURISTIC_COMMIT, text);
                    self.damaged(branch, reason, &Finish::Committed, out);
                } else if asked {
                    // One phase: it won. Else the coordinator knows that it is damage.
                    self.end_committed(branch, out);
                } else {
                    // The rollback was this participant's own idea. A doubled Prepare after the
                    // commit looks like this, and somebody's commit by hand too: the coordinator
                    // knows which it is, and is asked by the next sweep.
                    entry.state = State::Prepared;
                    entry.sweeps = SWEEPS_BEFORE_INQUIRY;
                }
            }
            Ok(LedgerEntry::Absent) => {
                let text = "the tombstone did not stay; trying again";
                self.abort_later(branch, Reason::new(code::UNEXPECTED_ANSWER, text), out);
            }
            Err(reason) => {
                if &*reason.code == code::BRANCH_ATTACHED {
                    out.release.push(Effect::Detach { branch });
                }
                self.abort_later(branch, reason, out);
            }
        }
    }

    /// The branch may still be there; whoever waits asks again, and the next sweep tries again.
    fn abort_later(&mut self, branch: BranchId, reason: Reason, out: &mut Out) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        entry.state = State::AbortLater;
        let finishing = std::mem::take(&mut entry.finishing);
        out.finish(branch, finishing, &Finish::Retry(reason));
    }

    /// The branch is rolled back, or ended without a trace. A failed interactive branch is kept
    /// as such until its coordinator has asked for it, so that it learns the reason.
    pub(super) fn end_aborted(&mut self, branch: BranchId, reason: Option<Reason>, out: &mut Out) {
        let Some(mut entry) = self.branches.remove(&branch) else {
            return;
        };
        let reason = reason.or(entry.reason.take());
        let vote = reason
            .clone()
            .unwrap_or_else(|| super::prepare::already_aborted(branch));
        let asked = !entry.finishing.is_empty() || !entry.asking.is_empty();
        out.vote(branch, entry.asking, &Vote::Abort(vote));
        out.finish(branch, entry.finishing, &Finish::Aborted(reason.clone()));
        if let (false, true, Some(reason)) = (asked, entry.failed, reason) {
            self.branches
                .insert(branch, Entry::new(State::Failed(reason), entry.epoch));
        }
    }
}
