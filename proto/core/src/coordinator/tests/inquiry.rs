//! What participants and clients may ask, and what is forgotten.

use super::*;

fn inquire(from: u32, gtrid: Gtrid, n: u32) -> Input {
    Input::Inquire {
        from: p(from),
        branch: branch(gtrid, n),
        token: 7,
    }
}

fn answer(after: u64, decision: crate::message::Decision) -> [CoordinatorStep; 1] {
    [step(
        vec![],
        after,
        vec![Effect::Answer { token: 7, decision }],
    )]
}

use crate::message::Decision as D;

#[test]
fn an_inquiry_is_answered_by_the_state() {
    let mut machine = coordinator();
    assert_eq!(
        machine.step(inquire(1, g(1), 1)).unwrap(),
        answer(0, D::Abort),
        "unknown"
    );
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    assert_eq!(
        machine.step(inquire(1, g(1), 1)).unwrap(),
        answer(0, D::Running)
    );
    assert_eq!(
        machine.step(inquire(1, g(1), 3)).unwrap(),
        answer(0, D::Abort),
        "no branch"
    );
    assert_eq!(
        machine.step(inquire(2, g(1), 1)).unwrap(),
        answer(0, D::Forgotten),
        "foreign"
    );
    machine.step(Input::Deadline { gtrid: g(1) }).unwrap();
    assert_eq!(
        machine.step(inquire(1, g(1), 1)).unwrap(),
        answer(0, D::Abort)
    );
}

#[test]
fn a_decision_is_told_only_when_it_is_durable() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    assert_eq!(
        machine.step(inquire(1, g(1), 1)).unwrap(),
        answer(1, D::Commit)
    );
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    assert_eq!(
        machine.step(inquire(1, g(1), 1)).unwrap(),
        answer(1, D::Commit)
    );
    machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    assert_eq!(
        machine.step(inquire(1, g(1), 1)).unwrap(),
        answer(1, D::Commit),
        "ended"
    );
}

#[test]
fn what_a_doubled_prepare_made_of_a_reader_is_aborted() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    machine.step(voted(g(1), 2, Vote::ReadOnly)).unwrap();
    assert_eq!(
        machine.step(inquire(1, g(1), 1)).unwrap(),
        answer(1, D::Commit)
    );
    assert_eq!(
        machine.step(inquire(2, g(1), 2)).unwrap(),
        answer(1, D::Abort)
    );
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    assert_eq!(
        machine.step(inquire(1, g(1), 1)).unwrap(),
        answer(1, D::Commit)
    );
    assert_eq!(
        machine.step(inquire(2, g(1), 2)).unwrap(),
        answer(1, D::Abort),
        "ended"
    );
    let end = Record::End {
        gtrid: g(1),
        committed: true,
    };
    let mut machine = recovered(&[decision(g(1), &[1], None)]);
    assert_eq!(
        machine.step(inquire(2, g(1), 2)).unwrap(),
        answer(0, D::Abort),
        "recovered"
    );
    machine.apply(&end).unwrap();
    assert_eq!(
        machine.step(inquire(1, g(1), 1)).unwrap(),
        answer(0, D::Commit)
    );
    assert_eq!(
        machine.step(inquire(2, g(1), 2)).unwrap(),
        answer(0, D::Abort),
        "and ended"
    );
}

#[test]
fn a_refused_transaction_is_aborted_for_whoever_asks() {
    let mut machine = coordinator();
    machine
        .step(run_of(g(1), 2, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    machine
        .step(voted(g(1), 1, Vote::Abort(refused())))
        .unwrap();
    machine
        .step(finished(g(1), 2, Finish::Aborted(None)))
        .unwrap();
    assert_eq!(
        machine.step(inquire(2, g(1), 2)).unwrap(),
        answer(1, D::Abort)
    );
}

#[test]
fn below_the_horizon_nothing_is_claimed() {
    let mut machine = coordinator();
    ended(&mut machine, g(1), None);
    machine.step(Input::Forget { below: g(2) }).unwrap();
    assert_eq!(
        machine.step(inquire(1, g(1), 1)).unwrap(),
        answer(0, D::Forgotten)
    );
    assert_eq!(
        machine.step(inquire(1, g(2), 1)).unwrap(),
        answer(0, D::Abort)
    );
}

#[test]
fn forgetting_is_recorded_before_ledger_rows_may_go() {
    let mut machine = coordinator();
    ended(&mut machine, g(1), Some(request("r", 1)));
    ended(&mut machine, g(2), None);
    let forgotten = Effect::Forgotten {
        gtrids: vec![g(1)],
        horizon: g(2),
    };
    assert_eq!(
        machine.step(Input::Forget { below: g(2) }).unwrap(),
        [step(vec![Record::Horizon(g(2))], 3, vec![forgotten])]
    );
    assert_eq!((machine.horizon(), machine.remembered()), (g(2), 1));
    assert_eq!(machine.ended_at(0), Some(g(2)));
    assert_eq!(
        machine.step(Input::Forget { below: g(2) }).unwrap(),
        [],
        "twice"
    );
    assert_eq!(
        machine.step(Input::Forget { below: g(1) }).unwrap(),
        [],
        "backwards"
    );
    let steps = machine
        .step(run_of(g(5), 2, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    assert_eq!(
        steps[0].release[0],
        began(g(5), Some(request("r", 1))),
        "its id is free"
    );
}

#[test]
fn what_a_participant_has_aborted_is_on_record_and_forgotten_too() {
    let mut machine = coordinator();
    for n in [1, 3] {
        machine.step(run_of(g(n), 1, None, Ack::Applied)).unwrap();
        let aborted = finished(g(n), 1, Finish::Aborted(Some(transient())));
        machine.step(aborted).unwrap();
    }
    ended(&mut machine, g(2), None);
    assert_eq!((machine.remembered(), machine.highest_gtrid()), (3, g(3)));
    let order: Vec<_> = (0..4).map(|n| machine.ended_at(n)).collect();
    assert_eq!(order, [Some(g(1)), Some(g(2)), Some(g(3)), None]);
    let steps = machine.step(Input::Forget { below: g(3) }).unwrap();
    let [step] = steps.as_slice() else {
        panic!("{steps:?}")
    };
    let [Effect::Forgotten { gtrids, .. }] = step.release.as_slice() else {
        panic!("{step:?}")
    };
    let mut gtrids = gtrids.clone();
    gtrids.sort();
    assert_eq!(gtrids, [g(1), g(2)]);
    assert_eq!(machine.remembered(), 1);
}

/// What its participant has rolled back is committed after all: that is never forgotten, nor what
/// its request was.
#[test]
fn an_abort_that_turns_out_damaged_keeps_its_records() {
    let mut machine = coordinator();
    let delegated = run_of(g(1), 1, Some(request("r", 1)), Ack::Applied);
    machine.step(delegated).unwrap();
    let aborted = finished(g(1), 1, Finish::Aborted(Some(transient())));
    machine.step(aborted).unwrap();
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    let forgotten = Effect::Forgotten {
        gtrids: vec![],
        horizon: g(3),
    };
    let steps = machine.step(Input::Forget { below: g(3) }).unwrap();
    assert_eq!(steps[0].release, [forgotten]);
}

#[test]
fn what_is_not_over_holds_the_horizon_back() {
    let mut machine = coordinator();
    ended(&mut machine, g(1), None);
    decided(&mut machine, g(2), None, Ack::Decided);
    ended(&mut machine, g(3), None);
    let forgotten = Effect::Forgotten {
        gtrids: vec![g(1)],
        horizon: g(2),
    };
    let steps = machine.step(Input::Forget { below: g(9) }).unwrap();
    assert_eq!(
        steps,
        [step(vec![Record::Horizon(g(2))], 4, vec![forgotten])]
    );
    assert_eq!(
        machine.step(inquire(1, g(2), 1)).unwrap(),
        answer(2, D::Commit)
    );
    assert_eq!(machine.step(Input::Forget { below: g(9) }).unwrap(), []);
}

#[test]
fn a_look_is_answered_by_the_state() {
    let mut machine = coordinator();
    let look = |gtrid| Input::Look { gtrid, token: 9 };
    let seen = |after, seen| [step(vec![], after, vec![Effect::Seen { token: 9, seen }])];
    assert_eq!(machine.step(look(g(1))).unwrap(), seen(0, Seen::Nothing));
    decided(&mut machine, g(1), Some(request("r", 1)), Ack::Applied);
    let live = Box::new(machine.transactions().next().unwrap().clone());
    assert_eq!(
        machine.step(look(g(1))).unwrap(),
        seen(1, Seen::Live(live.clone()))
    );
    let look_up = |id: &str| Input::LookUp {
        request: RequestId::new(id),
        token: 9,
    };
    assert_eq!(
        machine.step(look_up("r")).unwrap(),
        seen(1, Seen::Live(live))
    );
    assert_eq!(machine.step(look_up("s")).unwrap(), seen(0, Seen::Nothing));
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    let outcome = Outcome::Committed;
    let over = Seen::Ended {
        gtrid: g(1),
        outcome,
    };
    assert_eq!(machine.step(look(g(1))).unwrap(), seen(1, over));
    machine.step(Input::Forget { below: g(2) }).unwrap();
    assert_eq!(machine.step(look(g(1))).unwrap(), seen(0, Seen::Forgotten));
    assert_eq!(machine.step(look_up("r")).unwrap(), seen(0, Seen::Nothing));
}
