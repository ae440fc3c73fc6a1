//! What each state of the former transaction makes of a row in a ledger.

use concord_core::coordinator::{Coordinator, Input};
use concord_core::id::{Bqual, BranchId, Epoch, ParticipantName, Request, RequestId};
use concord_core::message::{FromParticipant, Vote};
use concord_core::record::Record;
use concord_core::transaction::Ack;

use super::*;

const FORMER: Gtrid = Gtrid([1, 2, 3, 4, 5, 6, 0x70, 8, 0x80, 10, 11, 12, 13, 14, 15, 16]);

fn aborted(code: &str, message: &str) -> Result<Executed, Failure> {
    Err(damaged(Gtrid::MIN, Reason::new(code, message)))
}

fn ended(outcome: Outcome) -> Seen {
    Seen::Ended {
        gtrid: FORMER,
        outcome,
    }
}

fn is_damage(judged: &Result<Executed, Failure>) -> bool {
    matches!(judged, Err(Failure::Aborted { gtrid, reason, .. })
        if *gtrid == FORMER && reason.leaves_outcome_open())
}

/// The former transaction with so many branches: aborting after a vote, or else asked to vote.
fn live(branches: u32, aborts: bool) -> Seen {
    let mut machine = Coordinator::new();
    machine.apply(&Record::Epoch(Epoch(1))).unwrap();
    let names = (1..=branches).map(|n| ParticipantName::new(format!("p{n}")));
    let names: Vec<_> = names.collect();
    for participant in names.clone() {
        machine.step(Input::LinkUp { participant }).unwrap();
    }
    let run = Input::Run {
        gtrid: FORMER,
        branches: names.clone(),
        request: Some(Request {
            id: RequestId::new("r"),
            fingerprint: 1,
        }),
        ack: Ack::Applied,
        may_leave: true,
    };
    machine.step(run).unwrap();
    if aborts {
        let message = FromParticipant::Voted {
            branch: BranchId {
                gtrid: FORMER,
                bqual: Bqual(2),
            },
            epoch: Epoch(1),
            vote: Vote::Abort(Reason::new(code::LOCK_TIMEOUT, "")),
        };
        let from = names[1].clone();
        machine.step(Input::Received { from, message }).unwrap();
    }
    let tx = machine.transactions().next().expect("a transaction");
    Seen::Live(Box::new(tx.clone()))
}

#[test]
fn a_ledger_names_the_former_transaction() {
    let text = "01920000-0000-7000-8000-000000000001";
    let former = former_of(&aborted(code::REQUEST_ALREADY_COMMITTED, text));
    assert_eq!(
        former.map(|former| former.to_string()).as_deref(),
        Some(text)
    );
    let illegible = aborted(code::REQUEST_ALREADY_COMMITTED, "?");
    assert_eq!(former_of(&illegible), None);
    assert_eq!(former_of(&aborted(code::DEADLOCK, text)), None);
    assert_eq!(former_of(&Err(Failure::Unknown { gtrid: FORMER })), None);
    assert_eq!(former_of(&Ok(replayed(FORMER))), None);
}

#[test]
fn what_committed_or_is_forgotten_is_a_success() {
    let done = Ok(replayed(FORMER));
    for seen in [Seen::Forgotten, ended(Outcome::Committed), live(1, false)] {
        assert_eq!(judged(FORMER, Some(seen)), done);
    }
}

#[test]
fn what_was_aborted_or_damaged_is_neither_committed_nor_aborted() {
    let damage = Reason::new(code::HEURISTIC_ROLLBACK, "by hand");
    let refused = Reason::new(code::INSUFFICIENT_FUNDS, "");
    for seen in [
        Seen::Nothing,
        ended(Outcome::Damaged(damage)),
        ended(Outcome::Aborted(refused)),
    ] {
        let judged = judged(FORMER, Some(seen));
        assert!(is_damage(&judged), "{judged:?}");
    }
}

#[test]
fn what_nobody_can_tell_now_is_unknown() {
    let unknown = Err(Failure::Unknown { gtrid: FORMER });
    for seen in [None, Some(live(2, true)), Some(live(2, false))] {
        assert_eq!(judged(FORMER, seen), unknown);
    }
}
