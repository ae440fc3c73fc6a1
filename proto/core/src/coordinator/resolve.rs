//! An operator finishes a branch by hand.
//!
//! What agrees with the outcome is only a nudge. What contradicts a durable decision or a
//! sibling's outcome, or cannot be checked against either, breaks atomicity: it must be forced,
//! and is recorded as heuristic for ever before the participant hears of it.

use super::{ApplyError, Coordinator, Effect, Out, Resolve, branch_changed};
use crate::reason::{Reason, code};
use crate::record::Record;
use crate::transaction::{Branch, BranchState, Transaction, TransactionState};

impl Coordinator {
    pub(super) fn resolve(&mut self, resolve: Resolve, out: &mut Out) -> Result<(), ApplyError> {
        let gtrid = resolve.branch.gtrid;
        let (token, after) = (resolve.token, self.position_of(&resolve));
        let known = self.known_outcome(&resolve);
        if let Some(tx) = self.transactions.get(&gtrid).filter(|tx| tx.is_undecided()) {
            if let Some(reason) = undecided(&resolve, tx) {
                out.release(after, Effect::OrderRefused { token, reason });
                return Ok(());
            }
            // An order to roll back a branch of an undecided transaction aborts all of it.
            let reason = resolve.reason.clone();
            self.begin_abort(gtrid, reason, out)?;
            out.release(
                after,
                Effect::Order {
                    resolve,
                    heuristic: false,
                },
            );
            return Ok(());
        }
        match known {
            Some(commit) if commit == resolve.commit => {
                out.release(
                    after,
                    Effect::Order {
                        resolve,
                        heuristic: false,
                    },
                );
                return Ok(());
            }
            Some(_) | None if !resolve.force => {
                let reason = refusal(&resolve, known);
                out.release(after, Effect::OrderRefused { token, reason });
                return Ok(());
            }
            Some(_) | None => {}
        }
        self.force(resolve, out)
    }

    /// Carries out an order that contradicts what is known, or that nothing confirms.
    fn force(&mut self, resolve: Resolve, out: &mut Out) -> Result<(), ApplyError> {
        let gtrid = resolve.branch.gtrid;
        let reason = forced(&resolve);
        let tx = self.transactions.get(&gtrid);
        let record = Record::Heuristic {
            gtrid,
            bqual: resolve.branch.bqual,
            participant: resolve.participant.clone(),
            committed: Some(resolve.commit),
            reason: reason.clone(),
            request: tx.and_then(Transaction::request_of_abort),
        };
        let position = self.record(record, out)?;
        let mut branch = Branch::new(
            resolve.branch.bqual,
            resolve.participant.clone(),
            BranchState::Heuristic,
        );
        branch.reason = Some(reason);
        out.release(
            position,
            Effect::Order {
                resolve,
                heuristic: true,
            },
        );
        out.release(position, branch_changed(gtrid, &branch));
        let Some(tx) = self.transactions.get_mut(&gtrid) else {
            return Ok(());
        };
        tx.position = position;
        match tx.state {
            TransactionState::Committing => self.end_if_committed(gtrid, out),
            TransactionState::Aborting => {
                self.end_if_aborted(gtrid, out);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn position_of(&self, resolve: &Resolve) -> u64 {
        let gtrid = resolve.branch.gtrid;
        if self.heuristics.contains_key(&resolve.branch) {
            return self.position;
        }
        let live = self.transactions.get(&gtrid).map(|tx| tx.position);
        live.or_else(|| self.ended.get(&gtrid).map(|ended| ended.position))
            .unwrap_or(0)
    }

    /// The outcome that the branch must have: that on record for it alone, else of the decision,
    /// else by presumption, or once that is forgotten that of a sibling; None while it is undecided
    /// or when nobody knows it any more.
    fn known_outcome(&self, resolve: &Resolve) -> Option<bool> {
        let gtrid = resolve.branch.gtrid;
        if let Some(&Some(committed)) = self.heuristics.get(&resolve.branch) {
            return Some(committed);
        }
        if let Some(tx) = self.transactions.get(&gtrid) {
            return match tx.state {
                TransactionState::Committing | TransactionState::Committed => {
                    let branch = tx.branch(resolve.branch.bqual);
                    Some(branch.is_some_and(|branch| branch.state != BranchState::ReadOnly))
                }
                TransactionState::Aborting | TransactionState::Aborted => Some(false),
                _ => None,
            };
        }
        let ended = self.ended.get(&gtrid);
        if let Some(ended) = ended.filter(|ended| !ended.is_damaged_abort()) {
            return Some(ended.orders(resolve.branch.bqual));
        }
        // Nothing is on record: it was aborted, whatever somebody did to a sibling since.
        if gtrid >= self.horizon {
            return Some(false);
        }
        resolve.sibling
    }
}

/// Why the branch ends otherwise than its siblings. The operator's own code would tell a client
/// that nothing was done, which is not true of the siblings.
fn forced(resolve: &Resolve) -> Reason {
    let code = if resolve.commit {
        code::HEURISTIC_COMMIT
    } else {
        code::HEURISTIC_ROLLBACK
    };
    let words = &resolve.reason.message;
    Reason::new(code, format!("an operator forced it: {words}"))
}

fn refusal(resolve: &Resolve, known: Option<bool>) -> Reason {
    let gtrid = resolve.branch.gtrid;
    let text = match known {
        Some(true) => {
            format!("this branch of {gtrid} is to be committed; rolling it back breaks that")
        }
        Some(false) => {
            format!("this branch of {gtrid} is to be rolled back; committing it breaks that")
        }
        None => format!("nothing tells how transaction {gtrid} ended or will end"),
    };
    Reason::new(
        code::CONTRADICTS_OUTCOME,
        text + "; use force to do it all the same",
    )
}

/// Why an order about a branch of an undecided transaction is refused. Even force does not help
/// here: the machine is about to decide, and would decide otherwise.
fn undecided(resolve: &Resolve, tx: &Transaction) -> Option<Reason> {
    let (gtrid, bqual) = (resolve.branch.gtrid, resolve.branch.bqual);
    let (code, text) = if tx.branch(bqual).is_none() {
        let text = format!("the transaction has no branch {bqual}");
        (code::BRANCH_NOT_FOUND, text)
    } else if tx.one_phase {
        let text = format!(
            "transaction {gtrid} has one branch, whose participant decides and is being asked"
        );
        (code::WRONG_STATE, text)
    } else if resolve.commit {
        let text =
            format!("transaction {gtrid} is undecided: roll it back, or wait for its time-out");
        (code::WRONG_STATE, text)
    } else {
        return None;
    };
    Some(Reason::new(code, text))
}
