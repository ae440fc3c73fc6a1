//! Committing a prepared branch, and finding out what became of it when the answer is unclear.

use super::prepare::too_old;
use super::{Command, Effect, Entry, LedgerEntry, Out, Participant, Stage, State, Token, Verb};
use crate::id::{BranchId, Epoch};
use crate::message::Finish;
use crate::planted::{self, Bug};
use crate::reason::{Reason, code};
use crate::record::ParticipantRecord;

impl Participant {
    pub(super) fn commit(
        &mut self,
        (token, epoch): (Token, Epoch),
        branch: BranchId,
        out: &mut Out,
    ) {
        // Everybody has acknowledged what is below, so this is an echo, and its row is gone.
        if branch.gtrid < self.forget_below && !self.branches.contains_key(&branch) {
            let reason = too_old(branch);
            return out.finish(branch, vec![(token, epoch)], &Finish::Retry(reason));
        }
        // After a restart nothing is known of it, and the server decides what there is.
        let entry = self
            .branches
            .entry(branch)
            .or_insert_with(|| Entry::new(State::Prepared, epoch));
        entry.epoch = entry.epoch.max(epoch);
        match entry.state {
            State::Prepared => {
                entry.finishing.push((token, epoch));
                entry.state = State::Committing(Stage::Verb);
                out.run(branch, Command::Commit);
            }
            State::Committing(_) => entry.finishing.push((token, epoch)),
            // It never voted COMMIT in this state, so this is an echo of what is long over.
            State::Beginning
            | State::Active
            | State::Executing
            | State::Failed(_)
            | State::Working { .. }
            | State::Aborting(_)
            | State::AbortLater => {
                let text = format!("branch {branch} is {:?} and not prepared", entry.state);
                let reason = Reason::new(code::WRONG_STATE, text);
                out.finish(branch, vec![(token, epoch)], &Finish::Retry(reason));
            }
        }
    }

    pub(super) fn verb_done(&mut self, branch: BranchId, result: Verb, out: &mut Out) {
        match self.branches.get(&branch).map(|entry| &entry.state) {
            Some(State::Committing(Stage::Verb)) => self.commit_done(branch, result, out),
            Some(State::Aborting(Stage::Verb)) => self.rollback_done(branch, result, out),
            _ => {}
        }
    }

    fn commit_done(&mut self, branch: BranchId, result: Verb, out: &mut Out) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        match result {
            Verb::Done => self.end_committed(branch, out),
            Verb::NotDone(reason) => self.commit_later(branch, reason, out),
            Verb::NoSuchBranch if planted::is(Bug::NotaIsSuccess) => {
                self.end_committed(branch, out);
            }
            // NOTA is never success, and a cut connection is neither: the ledger row tells.
            Verb::NoSuchBranch | Verb::Unknown(_) => {
                entry.state = State::Committing(Stage::Ledger);
                out.run(branch, Command::ReadLedger);
            }
        }
    }

    pub(super) fn ledger_read(
        &mut self,
        branch: BranchId,
        result: Result<LedgerEntry, Reason>,
        out: &mut Out,
    ) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        let stage = match entry.state {
            State::Committing(stage) => stage,
            State::Aborting(Stage::Bar) => return self.bar_done(branch, result, out),
            State::Aborting(Stage::Ledger) => return self.tombstone_done(branch, result, out),
            _ => return,
        };
        match (result, stage) {
            (Ok(LedgerEntry::Committed), _) => self.end_committed(branch, out),
            (Ok(LedgerEntry::Tombstone), _) => {
                let text = "the branch was to be committed, and its ledger holds the tombstone of \
                            an abort";
                self.rolled_back_elsewhere(branch, text, out);
            }
            (Ok(LedgerEntry::Absent), Stage::Ledger) => {
                entry.state = State::Committing(Stage::List);
                out.run(branch, Command::List);
            }
            // Gone without a trace. A commit that was just under way shows in the next attempt.
            (Ok(LedgerEntry::Absent), _) if !entry.suspect => {
                entry.suspect = true;
                let text = "the branch is neither prepared nor in the ledger; looking again";
                self.commit_later(branch, Reason::new(code::HEURISTIC_UNKNOWN, text), out);
            }
            (Ok(LedgerEntry::Absent), _) => {
                let text = "the branch was to be committed; the server has it neither prepared \
                            nor in the ledger: somebody rolled it back by hand, or the data is \
                            older than the transaction (a restored backup, a failed-over replica)";
                self.rolled_back_elsewhere(branch, text, out);
            }
            (Err(reason), _) => self.commit_later(branch, reason, out),
        }
    }

    pub(super) fn listed(&mut self, branch: BranchId, result: Result<bool, Reason>, out: &mut Out) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        if entry.state != State::Committing(Stage::List) {
            return;
        }
        match result {
            Ok(true) => {
                entry.suspect = false;
                out.release.push(Effect::Detach { branch });
                let text = "the branch is prepared and attached to another connection of its \
                            server; that connection is being ended";
                self.commit_later(branch, Reason::new(code::BRANCH_ATTACHED, text), out);
            }
            // Not listed means over: only now does an absent ledger row mean anything.
            Ok(false) => {
                entry.state = State::Committing(Stage::LastLook);
                out.run(branch, Command::ReadLedger);
            }
            Err(reason) => self.commit_later(branch, reason, out),
        }
    }

    /// The branch is as it was; the coordinator asks again.
    fn commit_later(&mut self, branch: BranchId, reason: Reason, out: &mut Out) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        entry.state = State::Prepared;
        entry.reason = Some(reason.clone());
        let finishing = std::mem::take(&mut entry.finishing);
        out.finish(branch, finishing, &Finish::Retry(reason));
    }

    pub(super) fn end_committed(&mut self, branch: BranchId, out: &mut Out) {
        if let Some(entry) = self.branches.remove(&branch) {
            out.finish(branch, entry.finishing, &Finish::Committed);
        }
    }

    fn rolled_back_elsewhere(&mut self, branch: BranchId, text: &str, out: &mut Out) {
        let reason = Reason::new(code::HEURISTIC_ROLLBACK, text);
        let finish = Finish::Damaged(reason.clone());
        self.damaged(branch, reason, &finish, out);
    }

    /// Records a heuristic outcome, and tells it: never hidden, never "success".
    pub(super) fn damaged(
        &mut self,
        branch: BranchId,
        reason: Reason,
        finish: &Finish,
        out: &mut Out,
    ) {
        let Some(entry) = self.branches.remove(&branch) else {
            return;
        };
        out.append.push(ParticipantRecord::Damage {
            gtrid: branch.gtrid,
            bqual: branch.bqual,
            reason: reason.clone(),
        });
        out.release.push(Effect::Damaged { branch, reason });
        out.finish(branch, entry.finishing, finish);
    }
}
