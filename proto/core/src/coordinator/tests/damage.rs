//! Damage of what was aborted, or has ended: told to whoever asks, for ever, with its request.

use super::*;
use crate::message::Decision;

fn wanted() -> Request {
    request("r", 1)
}

fn by_hand() -> Reason {
    let text = "the branch was to be rolled back and is committed";
    Reason::new(code::HEURISTIC_COMMIT, text)
}

fn recorded(request: Option<Request>) -> Record {
    let (bqual, participant) = (Bqual(1), p(1));
    Record::Heuristic {
        gtrid: g(1),
        bqual,
        participant,
        committed: Some(true),
        reason: by_hand(),
        request,
    }
}

fn refusal() -> Record {
    Record::Refused {
        gtrid: g(1),
        request: request("r", 1),
        reason: refused(),
    }
}

/// Aborts for this reason while branch 1 is prepared, and may be committed by hand.
fn aborting(reason: &Reason) -> Coordinator {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), Some(wanted()), Ack::Applied);
    let vote = Vote::Abort(reason.clone());
    machine.step(voted(g(1), 2, vote)).unwrap();
    machine
}

/// Whoever repeats the request, or asks for the transaction, hears of the damage after this record.
fn is_told(machine: &mut Coordinator, after: u64, damage: &Reason) {
    let outcome = Outcome::Damaged(damage.clone());
    let replay = Effect::Replay {
        gtrid: g(9),
        first: g(1),
        outcome: outcome.clone(),
    };
    let again = run_of(g(9), 2, Some(wanted()), Ack::Applied);
    assert_eq!(
        machine.step(again).unwrap(),
        [step(vec![], after, vec![replay])]
    );
    let seen = Effect::Seen {
        token: 4,
        seen: Seen::Ended {
            gtrid: g(1),
            outcome,
        },
    };
    for look in [
        Input::Look {
            gtrid: g(1),
            token: 4,
        },
        Input::LookUp {
            request: RequestId::new("r"),
            token: 4,
        },
    ] {
        let step = step(vec![], after, vec![seen.clone()]);
        assert_eq!(machine.step(look).unwrap(), [step]);
    }
}

#[test]
fn a_branch_of_an_abort_that_is_committed_by_hand_takes_the_request_back() {
    let mut machine = aborting(&transient());
    let steps = machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    assert_eq!(steps[0].append, [recorded(Some(wanted()))]);
    assert_eq!(machine.live(), 0);
    is_told(&mut machine, 1, &by_hand());
    machine.step(Input::Forget { below: g(5) }).unwrap();
    is_told(&mut machine, 1, &by_hand());
    let mut machine = recovered(&[Record::Horizon(g(5)), recorded(Some(wanted()))]);
    is_told(&mut machine, 0, &by_hand());
}

#[test]
fn it_takes_the_request_back_from_the_attempt_that_came_after() {
    let mut machine = aborting(&transient());
    decided(&mut machine, g(2), Some(wanted()), Ack::Applied);
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    is_told(&mut machine, 2, &by_hand());
    for n in 1..=2 {
        machine.step(finished(g(2), n, Finish::Committed)).unwrap();
    }
    is_told(&mut machine, 2, &by_hand());
    let end = Record::End {
        gtrid: g(2),
        committed: true,
    };
    let records = [
        recorded(Some(wanted())),
        decision(g(2), &[1, 2], Some(wanted())),
        end.clone(),
    ];
    is_told(&mut recovered(&records[..2]), 0, &by_hand());
    is_told(&mut recovered(&records), 0, &by_hand());
    let records = [
        recorded(Some(wanted())),
        delegation(g(2), Some(wanted())),
        end,
    ];
    is_told(&mut recovered(&records), 0, &by_hand());
}

#[test]
fn a_final_refusal_does_not_hide_it() {
    let mut machine = aborting(&refused());
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    is_told(&mut machine, 2, &by_hand());
    machine.step(Input::Forget { below: g(5) }).unwrap();
    is_told(&mut machine, 2, &by_hand());
    for request in [None, Some(wanted())] {
        let mut machine = recovered(&[refusal(), recorded(request)]);
        is_told(&mut machine, 0, &by_hand());
    }
}

#[test]
fn nor_does_the_end_of_one_phase() {
    let end = Record::End {
        gtrid: g(1),
        committed: false,
    };
    let records = [delegation(g(1), Some(wanted())), recorded(None), end];
    is_told(&mut recovered(&records), 0, &by_hand());
}

/// An operator ends the first branch, whatever was decided.
fn forced(commit: bool) -> Input {
    Input::Resolve(Resolve {
        branch: branch(g(1), 1),
        participant: p(1),
        commit,
        sibling: None,
        force: true,
        reason: Reason::new(code::OPERATOR, "a human said so"),
        token: 5,
    })
}

#[test]
fn a_commit_that_is_forced_on_an_abort_is_damage_too() {
    let mut machine = aborting(&transient());
    let steps = machine.step(forced(true)).unwrap();
    let [Record::Heuristic { reason, .. }] = steps[0].append.as_slice() else {
        panic!("{steps:?}");
    };
    is_told(&mut machine, 1, reason);
    is_told(&mut recovered(&steps[0].append), 0, reason);
}

#[test]
fn a_rollback_that_is_forced_on_an_ended_commit_is_told_as_after_a_restart() {
    let mut machine = coordinator();
    ended(&mut machine, g(1), Some(wanted()));
    let steps = machine.step(forced(false)).unwrap();
    let [Record::Heuristic { reason, .. }] = steps[0].append.as_slice() else {
        panic!("{steps:?}");
    };
    is_told(&mut machine, 2, reason);
    let decision = decision(g(1), &[1, 2], Some(wanted()));
    let end = Record::End {
        gtrid: g(1),
        committed: true,
    };
    let records = [decision, steps[0].append[0].clone(), end];
    is_told(&mut recovered(&records), 0, reason);
}

/// Branch 2 refused, branch 1 carries the request and is committed before it votes: nothing may
/// settle the request otherwise afterwards.
#[test]
fn damage_before_the_abort_is_not_settled_again() {
    for vote in [Vote::Commit, Vote::Abort(refused())] {
        let mut machine = coordinator();
        let run = run_of(g(1), 2, Some(wanted()), Ack::Applied);
        machine.step(run).unwrap();
        let refusal = Vote::Aborting(refused());
        machine.step(voted(g(1), 2, refusal)).unwrap();
        machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
        let steps = machine.step(voted(g(1), 1, vote)).unwrap();
        assert!(steps.iter().all(|step| step.append.is_empty()), "{steps:?}");
        machine
            .step(finished(g(1), 1, Finish::Aborted(None)))
            .unwrap();
        is_told(&mut machine, 1, &by_hand());
    }
}

#[test]
fn what_is_on_record_for_its_damage_only_says_nothing_of_its_other_branches() {
    let mut machine = recovered(&[recorded(None)]);
    assert_eq!(machine.highest_gtrid(), Gtrid::MIN, "anybody may name one");
    let told = |machine: &mut Coordinator| {
        let inquire = Input::Inquire {
            from: p(2),
            branch: branch(g(1), 2),
            token: 7,
        };
        let steps = machine.step(inquire).unwrap();
        match steps[0].release[..] {
            [Effect::Answer { token: 7, decision }] => decision,
            _ => panic!("{steps:?}"),
        }
    };
    assert_eq!(told(&mut machine), Decision::Abort);
    machine.step(Input::Forget { below: g(5) }).unwrap();
    assert_eq!(told(&mut machine), Decision::Forgotten);
}
