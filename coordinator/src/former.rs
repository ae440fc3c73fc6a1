//! What a ledger said of a request that took effect before: in which transaction, and no more.
//!
//! It owns what that comes to. The ledger tells of one branch; that the whole transaction is
//! committed is the coordinator's to say, as far as it remembers. It refuses to call a request done
//! of which somebody committed one half by hand.

use concord_core::coordinator::Seen;
use concord_core::id::Gtrid;
use concord_core::message::Outcome;
use concord_core::reason::{Reason, code};
use concord_core::transaction::{Transaction, TransactionState};
use concord_proto::convert::text::parse_gtrid;

use crate::engine::{Executed, Failure};

/// The transaction of a former attempt, when a participant's ledger had to say that the request had
/// taken effect, because nothing here knew the request.
pub fn former_of(executed: &Result<Executed, Failure>) -> Option<Gtrid> {
    match executed {
        Err(Failure::Aborted { reason, .. })
            if &*reason.code == code::REQUEST_ALREADY_COMMITTED =>
        {
            parse_gtrid(&reason.message)
        }
        Ok(_) | Err(Failure::Aborted { .. } | Failure::Unknown { .. } | Failure::Refused(_)) => {
            None
        }
    }
}

/// What the request comes to, by what is known of its former transaction; None when nobody could
/// say.
pub fn judged(former: Gtrid, seen: Option<Seen>) -> Result<Executed, Failure> {
    match seen {
        // What is forgotten ended as one, or its damage would be on record.
        Some(Seen::Forgotten) => Ok(replayed(former)),
        Some(Seen::Ended { outcome, .. }) => match outcome {
            Outcome::Committed => Ok(replayed(former)),
            Outcome::Damaged(reason) => Err(damaged(former, reason)),
            Outcome::Aborted(_) => Err(damaged(former, half())),
            Outcome::Unknown(gtrid) => Err(Failure::Unknown { gtrid }),
        },
        Some(Seen::Live(tx)) => running(former, &tx),
        // Presumed aborted, and a branch of it is committed.
        Some(Seen::Nothing) => Err(damaged(former, half())),
        None => Err(Failure::Unknown { gtrid: former }),
    }
}

/// One whose branches are still being told, or asked.
fn running(former: Gtrid, tx: &Transaction) -> Result<Executed, Failure> {
    let damage = tx.reason.as_ref();
    if let Some(damage) = damage.filter(|reason| reason.leaves_outcome_open()) {
        return Err(damaged(former, damage.clone()));
    }
    match tx.state {
        TransactionState::Committing | TransactionState::Committed => Ok(replayed(former)),
        // Its only branch decides, and has.
        _ if tx.one_phase => Ok(replayed(former)),
        // Somebody was faster than the coordinator: its participant is about to tell.
        TransactionState::Init
        | TransactionState::Active
        | TransactionState::Preparing
        | TransactionState::Prepared
        | TransactionState::Aborting
        | TransactionState::Aborted => Err(Failure::Unknown { gtrid: former }),
    }
}

fn replayed(gtrid: Gtrid) -> Executed {
    Executed {
        gtrid,
        results: Vec::new(),
        replayed: true,
    }
}

fn damaged(gtrid: Gtrid, reason: Reason) -> Failure {
    Failure::Aborted {
        gtrid,
        reason,
        participant: None,
        branch_index: None,
        failed_statement: None,
    }
}

fn half() -> Reason {
    let text = "the transaction was aborted and the branch with its request is committed";
    Reason::new(code::HEURISTIC_COMMIT, text)
}

#[cfg(test)]
mod tests;
