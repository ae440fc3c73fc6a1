//! From the first statement to the vote.

use super::{Command, Effect, Entry, OnePhase, Out, Participant, Prepared, Stage, State, Token};
use crate::id::{BranchId, Epoch};
use crate::message::{Finish, FromParticipant, Vote};
use crate::planted::{self, Bug};
use crate::reason::{Reason, code};

impl Participant {
    pub(super) fn begin(&mut self, token: Token, branch: BranchId, epoch: Epoch, out: &mut Out) {
        let refusal = match self
            .branches
            .get_mut(&branch)
            .map(|entry| (&entry.state, entry.epoch))
        {
            None if branch.gtrid < self.forget_below => Some(too_old(branch)),
            None if !self.recovered => Some(recovering()),
            None => {
                let mut entry = Entry::new(State::Beginning, epoch);
                entry.asking.push((token, epoch));
                self.branches.insert(branch, entry);
                out.run(branch, Command::Begin);
                return;
            }
            Some((State::Beginning, _)) => {
                if let Some(entry) = self.branches.get_mut(&branch) {
                    entry.asking.push((token, epoch));
                }
                return;
            }
            Some((State::Active, _)) => None,
            Some((State::Failed(reason), _)) => Some(reason.clone()),
            Some((state, _)) => Some(Reason::new(
                code::WRONG_STATE,
                format!("branch {branch} is {state:?}"),
            )),
        };
        let result = refusal.map_or(Ok(()), Err);
        let message = FromParticipant::Begun {
            branch,
            epoch,
            result,
        };
        out.release.push(Effect::Reply { token, message });
    }

    pub(super) fn begun(&mut self, branch: BranchId, result: &Result<(), Reason>, out: &mut Out) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        for (token, epoch) in std::mem::take(&mut entry.asking) {
            let message = FromParticipant::Begun {
                branch,
                epoch,
                result: result.clone(),
            };
            out.release.push(Effect::Reply { token, message });
        }
        match result {
            Ok(()) if entry.abort_wanted => self.start_abort(branch, out),
            Ok(()) => entry.state = State::Active,
            // It may have been begun on a connection that is gone: then the server has rolled it
            // back, or does so when it notices.
            Err(_) => self.end_aborted(branch, None, out),
        }
    }

    pub(super) fn statement(
        &mut self,
        token: Token,
        branch: BranchId,
        epoch: Epoch,
        out: &mut Out,
    ) {
        let reason = if self.admit(epoch, out) {
            match self.branches.get_mut(&branch) {
                Some(entry) if entry.state == State::Active => {
                    entry.state = State::Executing;
                    out.release.push(Effect::RunStatement { token, branch });
                    return;
                }
                Some(Entry {
                    state: State::Failed(reason),
                    ..
                }) => reason.clone(),
                Some(Entry {
                    state: State::Executing,
                    ..
                }) => Reason::new(
                    code::WRONG_STATE,
                    "another statement of the branch is running",
                ),
                Some(entry) => {
                    let text = format!("branch {branch} is {:?}", entry.state);
                    Reason::new(code::WRONG_STATE, text)
                }
                None => lost(branch),
            }
        } else {
            let text = format!("epoch {epoch} was superseded by {}", self.epoch);
            Reason::new(code::STALE_EPOCH, text)
        };
        out.release.push(Effect::StatementRefused { token, reason });
    }

    /// Any error in a branch leaves one legal step, to abort it: a lock wait time-out has undone
    /// one statement only, and the branch would prepare happily with half its work.
    pub(super) fn statement_done(
        &mut self,
        branch: BranchId,
        failed: Option<Reason>,
        out: &mut Out,
    ) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        if entry.state != State::Executing {
            return;
        }
        let forgiven = planted::is(Bug::FailedStatementForgiven);
        if let Some(reason) = failed.filter(|_| !forgiven) {
            entry.reason = Some(reason);
            entry.failed = true;
            self.start_abort(branch, out);
        } else if entry.abort_wanted {
            self.start_abort(branch, out);
        } else {
            entry.state = State::Active;
        }
    }

    pub(super) fn prepare(
        &mut self,
        (token, epoch): (Token, Epoch),
        branch: BranchId,
        work: bool,
        may_leave: bool,
        out: &mut Out,
    ) {
        let to = vec![(token, epoch)];
        let Some(entry) = self.branches.get_mut(&branch) else {
            if branch.gtrid < self.forget_below {
                return out.vote(branch, to, &Vote::Abort(too_old(branch)));
            }
            if !work {
                return out.vote(branch, to, &Vote::Abort(lost(branch)));
            }
            if !self.recovered {
                return out.vote(branch, to, &Vote::Abort(recovering()));
            }
            let mut entry = Entry::new(State::Working { one_phase: false }, epoch);
            entry.two_phase = true;
            entry.asking = to;
            self.branches.insert(branch, entry);
            return out.run(branch, Command::Prepare { work, may_leave });
        };
        entry.epoch = entry.epoch.max(epoch);
        match &entry.state {
            State::Active if !work => {
                entry.two_phase = true;
                entry.asking = to;
                entry.state = State::Working { one_phase: false };
                out.run(branch, Command::Prepare { work, may_leave });
            }
            State::Working { one_phase: false } if !entry.abort_wanted => {
                entry.asking.push((token, epoch));
            }
            State::Prepared | State::Committing(_)
                if entry.witnessed || planted::is(Bug::FormerLifeVouchedFor) =>
            {
                out.vote(branch, to, &Vote::Commit);
            }
            // Nobody here saw it being prepared: the server's list may be older than its end, and
            // a Commit may have come for what is long over. Its vote, if it gave one, was given
            // by a former incarnation; its outcome is asked for whatever this vote does.
            State::Prepared | State::Committing(_) => {
                out.vote(branch, to, &Vote::Abort(lost(branch)));
            }
            State::Failed(reason) => {
                let vote = Vote::Abort(reason.clone());
                self.branches.remove(&branch);
                out.vote(branch, to, &vote);
            }
            State::Aborting(_) | State::AbortLater => {
                out.vote(branch, to, &Vote::Aborting(already_aborted(branch)));
            }
            State::Beginning | State::Active | State::Executing | State::Working { .. } => {
                let text = format!("branch {branch} cannot be prepared while {:?}", entry.state);
                out.vote(
                    branch,
                    to,
                    &Vote::Aborting(Reason::new(code::WRONG_STATE, text)),
                );
                // That was a vote: it must come true.
                self.want_abort(branch, out);
            }
        }
    }

    pub(super) fn prepared(&mut self, branch: BranchId, result: Prepared, out: &mut Out) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        if entry.state != (State::Working { one_phase: false }) {
            return;
        }
        let asking = std::mem::take(&mut entry.asking);
        match result {
            // The vote is given when it has come true: it counts as an acknowledgement, after
            // which nobody asks for the branch any more.
            Prepared::Prepared if entry.abort_wanted => {
                entry.asking = asking;
                self.start_abort(branch, out);
            }
            Prepared::Prepared => {
                entry.state = State::Prepared;
                entry.witnessed = true;
                out.vote(branch, asking, &Vote::Commit);
            }
            Prepared::ReadOnly => {
                out.vote(branch, asking, &Vote::ReadOnly);
                self.end_aborted(branch, None, out);
            }
            Prepared::NotPrepared(reason) => {
                out.vote(branch, asking, &Vote::Abort(reason.clone()));
                self.end_aborted(branch, Some(reason), out);
            }
            // It may be prepared: it is ours to end, and the coordinator must not forget it before.
            Prepared::Unknown(reason) => {
                entry.state = State::Aborting(Stage::Bar);
                entry.unclear = true;
                out.vote(branch, asking, &Vote::Aborting(reason));
                out.run(branch, Command::Tombstone);
            }
        }
    }

    pub(super) fn commit_one_phase(
        &mut self,
        (token, epoch): (Token, Epoch),
        branch: BranchId,
        work: bool,
        out: &mut Out,
    ) {
        let to = vec![(token, epoch)];
        let Some(entry) = self.branches.get_mut(&branch) else {
            if branch.gtrid < self.forget_below {
                return out.finish(branch, to, &Finish::Aborted(Some(too_old(branch))));
            }
            let mut entry = Entry::new(State::Working { one_phase: true }, epoch);
            entry.finishing = to;
            if work && !self.recovered {
                return out.finish(branch, entry.finishing, &Finish::Retry(recovering()));
            }
            if work {
                out.run(branch, Command::CommitOnePhase { work });
            } else {
                // Begun before a crash of this daemon, and perhaps committed: the ledger tells.
                entry.reason = Some(lost(branch));
                entry.state = State::Aborting(Stage::Ledger);
                out.run(branch, Command::Tombstone);
            }
            self.branches.insert(branch, entry);
            return;
        };
        entry.epoch = entry.epoch.max(epoch);
        match &entry.state {
            State::Active if !work => {
                entry.finishing = to;
                entry.state = State::Working { one_phase: true };
                out.run(branch, Command::CommitOnePhase { work });
            }
            State::Failed(reason) => {
                let reason = reason.clone();
                self.branches.remove(&branch);
                out.finish(branch, to, &Finish::Aborted(Some(reason)));
            }
            State::Working { one_phase: true } | State::Aborting(_) | State::Committing(_) => {
                entry.finishing.push((token, epoch));
            }
            State::Beginning
            | State::Active
            | State::Executing
            | State::Working { .. }
            | State::Prepared
            | State::AbortLater => {
                let text = format!("branch {branch} is {:?}", entry.state);
                let reason = Reason::new(code::WRONG_STATE, text);
                out.finish(branch, to, &Finish::Retry(reason));
            }
        }
    }

    pub(super) fn one_phase_done(&mut self, branch: BranchId, result: OnePhase, out: &mut Out) {
        let Some(entry) = self.branches.get_mut(&branch) else {
            return;
        };
        if entry.state != (State::Working { one_phase: true }) {
            return;
        }
        match result {
            OnePhase::Committed => self.end_committed(branch, out),
            OnePhase::NotCommitted(reason) if planted::is(Bug::OnePhaseWithoutTombstone) => {
                self.end_aborted(branch, Some(reason), out);
            }
            // The ledger tells, and its tombstone settles it for ever. That is needed for a clean
            // failure too: a doubled Commit would do the work of a transaction whose client was
            // told that it is aborted, or may have failed because its first copy has committed.
            OnePhase::NotCommitted(reason) | OnePhase::Unknown(reason) => {
                entry.reason = Some(reason);
                entry.state = State::Aborting(Stage::Ledger);
                out.run(branch, Command::Tombstone);
            }
        }
    }
}

pub(super) fn lost(branch: BranchId) -> Reason {
    let text = format!("branch {branch} is not known here: a restart has rolled it back");
    Reason::new(code::BRANCH_LOST, text)
}

pub(super) fn already_aborted(branch: BranchId) -> Reason {
    Reason::new(
        code::ALREADY_ABORTED,
        format!("branch {branch} was aborted before it voted"),
    )
}

fn recovering() -> Reason {
    let text = "the participant has started and has not yet read its server's list of prepared \
                branches; try again";
    Reason::new(code::SERVER_DOWN, text)
}

pub(super) fn too_old(branch: BranchId) -> Reason {
    let text = format!(
        "transaction {} is older than what is remembered here",
        branch.gtrid
    );
    Reason::new(code::GTRID_TOO_OLD, text)
}
