//! From the client to the votes: beginning, enlisting, asking to commit, giving up.

use super::finish::send_outcome;
use super::{ApplyError, Coordinator, Effect, Out, Refusable, branch_changed, changed};
use crate::id::{Bqual, BranchId, Gtrid, ParticipantName, Request};
use crate::limits::BRANCHES_MAX;
use crate::message::{Outcome, ToParticipant};
use crate::planted::{self, Bug};
use crate::reason::{Reason, code};
use crate::record::Record;
use crate::transaction::{Ack, Branch, BranchState, Transaction, TransactionState};

impl Coordinator {
    pub(super) fn begin(&mut self, gtrid: Gtrid, out: &mut Out) {
        if let Some(reason) = self.refuse_gtrid(gtrid) {
            return out.release(0, rejected(gtrid, Refusable::Begin, reason));
        }
        out.release(
            0,
            Effect::Began {
                gtrid,
                request: None,
            },
        );
        self.transactions
            .insert(gtrid, Transaction::new(gtrid, self.epoch));
    }

    /// A fresh id is above the horizon and unknown: a driver that violates it would bind two
    /// transactions to one set of branches.
    fn refuse_gtrid(&self, gtrid: Gtrid) -> Option<Reason> {
        let known = self.transactions.contains_key(&gtrid)
            || self.ended.contains_key(&gtrid)
            || self.aborted.contains(&gtrid);
        if known {
            let text = format!("the id {gtrid} was used before");
            return Some(Reason::new(code::WRONG_STATE, text));
        }
        // It waited for long, e.g. for its turn, and nothing is wrong with the request.
        (gtrid < self.horizon).then(|| {
            let text = format!("what is as old as {gtrid} is forgotten by now; try again");
            Reason::new(code::GTRID_TOO_OLD, text)
        })
    }

    pub(super) fn enlist(&mut self, gtrid: Gtrid, participant: ParticipantName, out: &mut Out) {
        let linked = self.links.contains(&participant);
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return out.release(0, rejected(gtrid, Refusable::Enlist, not_found(gtrid)));
        };
        if !matches!(tx.state, TransactionState::Init | TransactionState::Active) {
            let reason = wrong_state(tx, "take a statement");
            return out.release(tx.position, rejected(gtrid, Refusable::Enlist, reason));
        }
        if let Some(branch) = tx.branches.iter().find(|b| b.participant == participant) {
            let branch = BranchId {
                gtrid,
                bqual: branch.bqual,
            };
            return out.release(
                0,
                Effect::Enlisted {
                    branch,
                    participant,
                    new: false,
                },
            );
        }
        if tx.branches.len() >= BRANCHES_MAX {
            let text = format!("a transaction has at most {BRANCHES_MAX} branches");
            let reason = Reason::new(code::LIMIT_REACHED, text);
            return out.release(0, rejected(gtrid, Refusable::Enlist, reason));
        }
        if !linked {
            return out.release(0, rejected(gtrid, Refusable::Enlist, down(&participant)));
        }
        let branch = Branch::new(next_bqual(tx), participant.clone(), BranchState::Active);
        let id = BranchId {
            gtrid,
            bqual: branch.bqual,
        };
        tx.branches.push(branch);
        tx.state = TransactionState::Active;
        out.release(0, changed(tx));
        out.release(
            0,
            Effect::Enlisted {
                branch: id,
                participant,
                new: true,
            },
        );
    }

    pub(super) fn commit(
        &mut self,
        gtrid: Gtrid,
        ack: Ack,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            out.release(0, rejected(gtrid, Refusable::Commit, not_found(gtrid)));
            return Ok(());
        };
        match tx.state {
            TransactionState::Init | TransactionState::Active => {
                tx.ack = ack;
                self.ask_votes(gtrid, false, out)
            }
            // A repeated Commit waits for the same answer.
            TransactionState::Preparing | TransactionState::Prepared => Ok(()),
            TransactionState::Committing | TransactionState::Committed => {
                if tx.answered {
                    let outcome = tx.damage().map_or(Outcome::Committed, Outcome::Damaged);
                    out.release(tx.position, Effect::Reply { gtrid, outcome });
                }
                Ok(())
            }
            TransactionState::Aborting | TransactionState::Aborted => {
                let reason = wrong_state(tx, "be committed");
                out.release(tx.position, rejected(gtrid, Refusable::Commit, reason));
                Ok(())
            }
        }
    }

    pub(super) fn run(
        &mut self,
        gtrid: Gtrid,
        branches: Vec<ParticipantName>,
        request: Option<Request>,
        ack: Ack,
        may_leave: bool,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        if let Some(request) = &request
            && self.is_repeated(gtrid, request, out)
        {
            return Ok(());
        }
        let missing = branches.iter().find(|name| !self.links.contains(*name));
        let refusal = self.refuse_gtrid(gtrid).or_else(|| missing.map(down));
        if let Some(reason) = refusal {
            out.release(0, rejected(gtrid, Refusable::Run, reason));
            return Ok(());
        }
        let mut tx = Transaction::new(gtrid, self.epoch);
        tx.ack = ack;
        tx.may_leave = may_leave;
        tx.request.clone_from(&request);
        for participant in branches {
            tx.branches.push(Branch::new(
                next_bqual(&tx),
                participant,
                BranchState::Active,
            ));
        }
        tx.state = TransactionState::Active;
        self.remember_request(gtrid, request.as_ref());
        out.release(0, Effect::Began { gtrid, request });
        self.transactions.insert(gtrid, tx);
        self.ask_votes(gtrid, true, out)
    }

    /// Recognises a request that is running or ended: it is never executed a second time.
    fn is_repeated(&self, gtrid: Gtrid, request: &Request, out: &mut Out) -> bool {
        let Some((fingerprint, first)) = self.requests.get(&request.id) else {
            return false;
        };
        let first = *first;
        if *fingerprint != request.fingerprint {
            let text = format!(
                "request id {:?} was used before for something else",
                request.id
            );
            let reason = Reason::new(code::REQUEST_ID_REUSED, text);
            out.release(0, rejected(gtrid, Refusable::Run, reason));
        } else if let Some(ended) = self.ended.get(&first) {
            let outcome = ended.outcome.clone();
            out.release(
                ended.position,
                Effect::Replay {
                    gtrid,
                    first,
                    outcome,
                },
            );
        } else if let Some(tx) = self.transactions.get(&first) {
            match (tx.answered, tx.state) {
                // Its client was answered while branches are still being told.
                (true, TransactionState::Committing) => {
                    let outcome = tx.damage().map_or(Outcome::Committed, Outcome::Damaged);
                    out.release(
                        tx.position,
                        Effect::Replay {
                            gtrid,
                            first,
                            outcome,
                        },
                    );
                }
                (true, _) if tx.one_phase && planted::is(Bug::UnknownRetriedAsNew) => return false,
                // A recovered or timed-out one-phase commit: its participant will tell.
                (true, _) if tx.one_phase => {
                    let outcome = Outcome::Unknown(first);
                    out.release(
                        tx.position,
                        Effect::Replay {
                            gtrid,
                            first,
                            outcome,
                        },
                    );
                }
                _ => out.release(0, Effect::Join { gtrid, first }),
            }
        } else {
            return false;
        }
        true
    }

    /// Sends Prepare to all branches, or hands the decision to the only one.
    fn ask_votes(&mut self, gtrid: Gtrid, work: bool, out: &mut Out) -> Result<(), ApplyError> {
        let Some(tx) = self.transactions.get(&gtrid) else {
            return Ok(());
        };
        match tx.branches.as_slice() {
            [] => return self.all_voted(gtrid, out),
            [only] => {
                let record = Record::OnePhase {
                    gtrid,
                    epoch: self.epoch,
                    bqual: only.bqual,
                    participant: only.participant.clone(),
                    request: tx.request.clone(),
                };
                return self.delegate(gtrid, record, work, out);
            }
            _ => {}
        }
        let epoch = self.epoch;
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        tx.state = TransactionState::Preparing;
        out.release(0, changed(tx));
        for branch in &mut tx.branches {
            branch.state = BranchState::Preparing;
            let id = BranchId {
                gtrid,
                bqual: branch.bqual,
            };
            // An interactive transaction has acquired all its locks by now.
            let may_leave = tx.may_leave || !work;
            let message = ToParticipant::Prepare {
                branch: id,
                epoch,
                work,
                may_leave,
            };
            out.release(
                0,
                Effect::Send {
                    to: branch.participant.clone(),
                    message,
                },
            );
        }
        Ok(())
    }

    /// One phase: from here on the participant decides. The record must be durable first, or a
    /// coordinator that restarts would presume an abort that never happened.
    fn delegate(
        &mut self,
        gtrid: Gtrid,
        record: Record,
        work: bool,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        let after = self.record(record, out)?;
        let epoch = self.epoch;
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        tx.position = after;
        out.release(after, changed(tx));
        for branch in &tx.branches {
            let id = BranchId {
                gtrid,
                bqual: branch.bqual,
            };
            let message = ToParticipant::Commit {
                branch: id,
                epoch,
                one_phase: true,
                work,
            };
            out.release(
                after,
                Effect::Send {
                    to: branch.participant.clone(),
                    message,
                },
            );
        }
        Ok(())
    }

    pub(super) fn client_abort(
        &mut self,
        gtrid: Gtrid,
        reason: Reason,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        let Some(tx) = self.transactions.get(&gtrid) else {
            out.release(0, rejected(gtrid, Refusable::Abort, not_found(gtrid)));
            return Ok(());
        };
        if tx.is_undecided() && !tx.one_phase {
            return self.begin_abort(gtrid, reason, out);
        }
        let reason = wrong_state(tx, "be rolled back");
        out.release(tx.position, rejected(gtrid, Refusable::Abort, reason));
        Ok(())
    }

    pub(super) fn deadline(&mut self, gtrid: Gtrid, out: &mut Out) -> Result<(), ApplyError> {
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        if tx.is_undecided() && !tx.one_phase {
            let text = "the time-out of the transaction passed before it was decided";
            return self.begin_abort(gtrid, Reason::new(code::DEADLINE_EXCEEDED, text), out);
        }
        if tx.one_phase {
            // No answer came, and perhaps none will: from now on its outcome is asked for.
            let (epoch, position) = (self.epoch, tx.position);
            for branch in &mut tx.branches {
                if branch.state == BranchState::Preparing {
                    branch.state = BranchState::Aborting;
                    send_outcome(epoch, gtrid, position, branch, out);
                }
            }
        }
        if tx.answered {
            return Ok(());
        }
        tx.answered = true;
        let outcome = match tx.state {
            // The decision is durable by the time this leaves, and is never taken back; but an
            // operator may have ended a branch otherwise.
            TransactionState::Committing if planted::is(Bug::ForcedBranchUntold) => {
                Outcome::Committed
            }
            TransactionState::Committing => {
                tx.damage().map_or(Outcome::Committed, Outcome::Damaged)
            }
            _ => Outcome::Unknown(gtrid),
        };
        out.release(tx.position, Effect::Reply { gtrid, outcome });
        Ok(())
    }

    /// Decides to abort: nothing is forced, for nothing on record means abort.
    pub(super) fn begin_abort(
        &mut self,
        gtrid: Gtrid,
        reason: Reason,
        out: &mut Out,
    ) -> Result<(), ApplyError> {
        let epoch = self.epoch;
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        tx.state = TransactionState::Aborting;
        tx.reason = Some(reason.clone());
        out.release(tx.position, changed(tx));
        for branch in &mut tx.branches {
            match branch.state {
                BranchState::Active
                | BranchState::Preparing
                | BranchState::Prepared
                | BranchState::Aborting => {
                    branch.state = BranchState::Aborting;
                    send_outcome(epoch, gtrid, tx.position, branch, out);
                }
                BranchState::Aborted => out.release(tx.position, branch_changed(gtrid, branch)),
                _ => {}
            }
        }
        let answered = std::mem::replace(&mut tx.answered, true);
        let mut after = tx.position;
        // One that is damaged already has settled its request.
        let request = tx.request.clone();
        if let Some(request) = request.filter(|_| !self.ended.contains_key(&gtrid)) {
            if reason.settles_request() {
                let reason = reason.clone();
                after = self.record(
                    Record::Refused {
                        gtrid,
                        request,
                        reason,
                    },
                    out,
                )?;
            } else {
                self.free_request(&request.id, gtrid);
            }
        }
        if !answered {
            out.release(
                after,
                Effect::Reply {
                    gtrid,
                    outcome: Outcome::Aborted(reason),
                },
            );
        }
        self.end_if_aborted(gtrid, out);
        Ok(())
    }
}

fn rejected(gtrid: Gtrid, call: Refusable, reason: Reason) -> Effect {
    Effect::Rejected {
        gtrid,
        call,
        reason,
    }
}

fn next_bqual(tx: &Transaction) -> Bqual {
    let count = u32::try_from(tx.branches.len()).unwrap_or(u32::MAX);
    Bqual(count.saturating_add(1))
}

fn not_found(gtrid: Gtrid) -> Reason {
    let text = format!("transaction {gtrid} is not running here; ask GetTransaction for its end");
    Reason::new(code::TRANSACTION_NOT_FOUND, text)
}

fn wrong_state(tx: &Transaction, what: &str) -> Reason {
    let text = format!(
        "transaction {} is {:?} and cannot {what}",
        tx.gtrid, tx.state
    );
    Reason::new(code::WRONG_STATE, text)
}

pub(super) fn down(participant: &ParticipantName) -> Reason {
    let text = format!("participant {participant} is not connected; nothing was done");
    Reason::new(code::PARTICIPANT_DOWN, text)
}
