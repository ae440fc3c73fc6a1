//! Transactions as the wire shows them.

use concord_core::coordinator::Seen;
use concord_core::id::{Gtrid, ParticipantName};
use concord_core::message::Outcome;
use concord_core::reason::{Reason, code};
use concord_core::transaction::{Transaction, TransactionState};
use concord_proto::convert::time::timestamp;
use concord_proto::v1;

use crate::history::{Change, SeenTransaction};

/// A transaction of the history.
pub fn of_history(tx: &SeenTransaction) -> v1::Transaction {
    let branches = tx
        .branches
        .iter()
        .map(|(bqual, branch)| v1::Branch {
            bqual: bqual.0,
            participant: branch.participant.to_string(),
            state: v1::BranchState::from(branch.state).into(),
            reason: branch.reason.as_ref().map(Into::into),
            attempts: branch.attempts,
        })
        .collect();
    v1::Transaction {
        gtrid: tx.gtrid.to_string(),
        state: v1::TransactionState::from(tx.state).into(),
        branches,
        reason: tx.reason.as_ref().map(Into::into),
        request_id: tx
            .request
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        begin_time: Some(timestamp(tx.began_ms)),
        update_time: Some(timestamp(tx.changed_ms)),
        stuck: tx.is_stuck(),
        epoch: tx.epoch.0,
    }
}

/// A transaction that is not over, as the machine sees it.
fn of_machine(tx: &Transaction) -> v1::Transaction {
    let branches = tx
        .branches
        .iter()
        .map(|branch| v1::Branch {
            bqual: branch.bqual.0,
            participant: branch.participant.to_string(),
            state: v1::BranchState::from(branch.state).into(),
            reason: branch.reason.as_ref().map(Into::into),
            attempts: branch.attempts,
        })
        .collect();
    v1::Transaction {
        gtrid: tx.gtrid.to_string(),
        state: v1::TransactionState::from(tx.state).into(),
        branches,
        reason: tx.reason.as_ref().map(Into::into),
        request_id: tx
            .request
            .as_ref()
            .map(|r| r.id.to_string())
            .unwrap_or_default(),
        begin_time: Some(timestamp(tx.gtrid.unix_ms())),
        update_time: None,
        stuck: tx.is_stuck(),
        epoch: tx.epoch.0,
    }
}

/// What the machine knows of a transaction. It outranks the history, which may be behind or have
/// been lost in a restart.
pub fn of_seen(
    gtrid: Gtrid,
    seen: Seen,
    history: Option<&SeenTransaction>,
) -> Result<v1::Transaction, Reason> {
    let ended = |gtrid: Gtrid, state: TransactionState, reason: Option<&Reason>| {
        let mut tx = history.map_or_else(
            || v1::Transaction {
                gtrid: gtrid.to_string(),
                begin_time: Some(timestamp(gtrid.unix_ms())),
                ..v1::Transaction::default()
            },
            of_history,
        );
        tx.state = v1::TransactionState::from(state).into();
        tx.reason = reason.map(Into::into).or(tx.reason);
        tx
    };
    match seen {
        Seen::Live(tx) => {
            let mut shown = history.map_or_else(|| of_machine(&tx), of_history);
            shown.reason = tx.reason.as_ref().map(Into::into).or(shown.reason);
            Ok(shown)
        }
        Seen::Ended { gtrid, outcome } => Ok(match &outcome {
            Outcome::Committed => ended(gtrid, TransactionState::Committed, None),
            Outcome::Aborted(reason) => ended(gtrid, TransactionState::Aborted, Some(reason)),
            Outcome::Unknown(_) => ended(gtrid, TransactionState::Preparing, None),
            // Its reason says that this is not how all of its branches ended.
            Outcome::Damaged(reason) if &*reason.code == code::HEURISTIC_COMMIT => {
                ended(gtrid, TransactionState::Aborted, Some(reason))
            }
            Outcome::Damaged(reason) => ended(gtrid, TransactionState::Committed, Some(reason)),
        }),
        Seen::Nothing => Ok(history.map_or_else(
            || {
                let text = "no decision is on record: it never began, or it was aborted";
                let reason = Reason::new(code::PRESUMED_ABORT, text);
                ended(gtrid, TransactionState::Aborted, Some(&reason))
            },
            of_history,
        )),
        Seen::Forgotten => match history {
            Some(tx) => Ok(of_history(tx)),
            None => Err(not_found(&format!("transaction {gtrid}"))),
        },
    }
}

/// Nothing is known under this name any more.
pub fn not_found(what: &str) -> Reason {
    let text = format!(
        "{what} is not known: it never began here, its retention time is over, or it is older than \
         the decision log"
    );
    Reason::new(code::TRANSACTION_NOT_FOUND, text)
}

/// A change for watchers.
pub fn of_change(change: &Change, missed: u64) -> v1::WatchTransactionsResponse {
    let none = (0, String::new(), v1::BranchState::Unspecified);
    let (bqual, participant, branch_state) = change.branch.as_ref().map_or(none, |branch| {
        let (bqual, participant, state): &(_, ParticipantName, _) = branch;
        (
            bqual.0,
            participant.to_string(),
            v1::BranchState::from(*state),
        )
    });
    v1::WatchTransactionsResponse {
        gtrid: change.gtrid.to_string(),
        state: v1::TransactionState::from(change.state).into(),
        bqual,
        participant,
        branch_state: branch_state.into(),
        reason: change.reason.as_ref().map(Into::into),
        time: Some(timestamp(change.time_ms)),
        missed,
    }
}
