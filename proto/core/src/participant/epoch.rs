//! The fence of epochs, sweeps and inquiries, and what is forgotten.

use std::collections::BTreeSet;

use super::{Command, Effect, Entry, Out, Participant, Stage, State};
use crate::id::{BranchId, Epoch, Gtrid};
use crate::message::Decision;
use crate::planted::{self, Bug};
use crate::reason::{Reason, code};
use crate::record::ParticipantRecord;

/// A branch found prepared by this many sweeps is asked about: one may just be on its way.
pub(super) const SWEEPS_BEFORE_INQUIRY: u8 = 2;

impl Participant {
    /// Whether a message of this epoch may have an effect. A higher one than ever seen is made
    /// durable, and fences off the coordinators before it.
    pub(super) fn admit(&mut self, epoch: Epoch, out: &mut Out) -> bool {
        if epoch < self.epoch {
            return planted::is(Bug::StaleEpochAccepted);
        }
        if epoch > self.epoch {
            self.epoch = epoch;
            out.append.push(ParticipantRecord::Epoch(epoch));
            self.abandon_unprepared(out);
        }
        true
    }

    /// A new coordinator knows nothing of what was undecided: it is presumed aborted, and what is
    /// not prepared can free its locks at once. What is prepared waits for the new coordinator's
    /// word.
    fn abandon_unprepared(&mut self, out: &mut Out) {
        for (branch, entry) in &mut self.branches {
            match entry.state {
                State::Active => {
                    entry.state = State::Aborting(Stage::Verb);
                    out.run(*branch, Command::Rollback);
                }
                State::Beginning | State::Executing | State::Working { one_phase: false } => {
                    entry.abort_wanted = true;
                    out.release.push(Effect::Cancel { branch: *branch });
                }
                State::Failed(_)
                | State::Working { one_phase: true }
                | State::Prepared
                | State::Committing(_)
                | State::Aborting(_)
                | State::AbortLater => {}
            }
        }
        self.branches
            .retain(|_, entry| !matches!(entry.state, State::Failed(_)));
    }

    /// The server's list of prepared branches. Those that nobody works on are asked about, also
    /// when the list is without them: somebody finished them by hand, or the list is older than
    /// their end. Rollbacks that could not be done are tried again.
    pub(super) fn sweep(&mut self, listed: &[BranchId], out: &mut Out) {
        self.recovered = true;
        let listed: BTreeSet<BranchId> = listed.iter().copied().collect();
        for branch in &listed {
            let epoch = self.epoch;
            self.branches.entry(*branch).or_insert_with(|| {
                // Left by a former incarnation of this daemon: nobody else asks for it.
                let mut entry = Entry::new(State::Prepared, epoch);
                entry.sweeps = SWEEPS_BEFORE_INQUIRY;
                entry
            });
        }
        let mut inquire = Vec::new();
        for (branch, entry) in &mut self.branches {
            entry.two_phase |= listed.contains(branch);
            if planted::is(Bug::SweepRollsBackRunning)
                && entry.state == (State::Working { one_phase: false })
                && listed.contains(branch)
            {
                entry.state = State::Aborting(Stage::Verb);
                out.run(*branch, Command::Rollback);
            }
            if entry.state == State::Prepared {
                entry.unlisted = !listed.contains(branch);
                entry.sweeps = entry.sweeps.saturating_add(1);
                if entry.sweeps > SWEEPS_BEFORE_INQUIRY {
                    inquire.push(*branch);
                }
            }
        }
        for (branch, entry) in &mut self.branches {
            if entry.state == State::AbortLater {
                entry.state = State::Aborting(Stage::Verb);
                out.run(*branch, Command::Rollback);
            }
        }
        if !inquire.is_empty() {
            out.release.push(Effect::Inquire { branches: inquire });
        }
    }

    /// Asks at once about all that is in doubt: the coordinator may have been restarted, and what
    /// it had not decided before holds its locks for nothing.
    pub(super) fn linked(&mut self, out: &mut Out) {
        let in_doubt = self
            .branches
            .iter_mut()
            .filter(|(_, e)| e.state == State::Prepared);
        let mut inquire = Vec::new();
        for (branch, entry) in in_doubt {
            entry.sweeps = SWEEPS_BEFORE_INQUIRY;
            inquire.push(*branch);
        }
        if !inquire.is_empty() {
            out.release.push(Effect::Inquire { branches: inquire });
        }
    }

    pub(super) fn decided(
        &mut self,
        branch: BranchId,
        epoch: Epoch,
        decision: Decision,
        out: &mut Out,
    ) {
        if !self.admit(epoch, out) {
            return;
        }
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        // What is under way by another message ends by itself.
        if entry.state != State::Prepared {
            return;
        }
        match decision {
            Decision::Commit => {
                entry.state = State::Committing(Stage::Verb);
                out.run(branch, Command::Commit);
            }
            Decision::Abort => {
                entry.ordered = true;
                entry.state = State::Aborting(Stage::Verb);
                out.run(branch, Command::Rollback);
            }
            Decision::Running => {}
            // Neither the coordinator nor the server has anything of it: it is over.
            Decision::Forgotten if entry.unlisted => {
                self.branches.remove(&branch);
            }
            Decision::Forgotten => {
                let text = "the coordinator no longer remembers this transaction, or the branch \
                            is not this participant's: an operator must resolve it";
                entry.reason = Some(Reason::new(code::OUTCOME_UNKNOWN, text));
            }
        }
    }

    pub(super) fn forget(&mut self, gtrid: Gtrid, out: &mut Out) {
        // Before the first list it is not known what is unfinished.
        let unfinished = !self.recovered || self.branches.keys().any(|branch| branch.gtrid < gtrid);
        if gtrid <= self.forget_below || unfinished {
            return;
        }
        self.forget_below = gtrid;
        if !planted::is(Bug::HorizonNotKept) {
            out.append.push(ParticipantRecord::ForgetBelow(gtrid));
        }
        out.release.push(Effect::Prune { below: gtrid });
    }
}
