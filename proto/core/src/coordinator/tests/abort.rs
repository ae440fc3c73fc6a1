//! Everything that ends a transaction before its decision.

use super::*;
use BranchState as B;
use TransactionState as S;

#[test]
fn a_vote_abort_is_told_to_the_others_and_to_the_client_and_forces_nothing() {
    let mut machine = coordinator();
    machine.step(run_of(g(1), 2, None, Ack::Applied)).unwrap();
    let release = vec![
        now_for(g(1), S::Aborting, &refused()),
        branch_now_for(g(1), 1, B::Aborted, Some(refused()), 0),
        abort(g(1), 2),
        reply(g(1), Outcome::Aborted(refused())),
    ];
    assert_eq!(
        machine
            .step(voted(g(1), 1, Vote::Abort(refused())))
            .unwrap(),
        [step(vec![], 0, release)]
    );
    let release = vec![
        branch_now(g(1), 2, B::Aborted),
        now_for(g(1), S::Aborted, &refused()),
    ];
    assert_eq!(
        machine
            .step(finished(g(1), 2, Finish::Aborted(None)))
            .unwrap(),
        [step(vec![], 0, release)]
    );
    assert_eq!(
        (machine.live(), machine.remembered()),
        (0, 0),
        "presumed abort"
    );
}

#[test]
fn a_final_refusal_of_a_request_is_recorded_before_the_client_hears_it() {
    let mut machine = coordinator();
    machine
        .step(run_of(g(1), 2, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    let record = Record::Refused {
        gtrid: g(1),
        request: request("r", 1),
        reason: refused(),
    };
    let told = vec![
        now_for(g(1), S::Aborting, &refused()),
        branch_now_for(g(1), 1, B::Aborted, Some(refused()), 0),
        abort(g(1), 2),
    ];
    assert_eq!(
        machine
            .step(voted(g(1), 1, Vote::Abort(refused())))
            .unwrap(),
        [
            step(vec![], 0, told),
            step(
                vec![record],
                1,
                vec![reply(g(1), Outcome::Aborted(refused()))]
            ),
        ]
    );
}

#[test]
fn a_transient_abort_of_a_request_is_not_recorded() {
    let mut machine = coordinator();
    machine
        .step(run_of(g(1), 2, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    let steps = machine
        .step(voted(g(1), 1, Vote::Abort(transient())))
        .unwrap();
    assert_eq!(steps.len(), 1);
    assert_eq!(steps[0].append, []);
}

#[test]
fn a_vote_of_what_is_still_there_is_no_acknowledgement() {
    let mut machine = coordinator();
    machine.step(run_of(g(1), 2, None, Ack::Applied)).unwrap();
    let steps = machine
        .step(voted(g(1), 1, Vote::Aborting(transient())))
        .unwrap();
    let [step] = steps.as_slice() else {
        panic!("{steps:?}")
    };
    for effect in [
        abort(g(1), 1),
        abort(g(1), 2),
        reply(g(1), Outcome::Aborted(transient())),
    ] {
        assert!(step.release.contains(&effect), "{effect:?} in {step:?}");
    }
    // Nor when it is repeated.
    let again = voted(g(1), 1, Vote::Aborting(transient()));
    assert_eq!(machine.step(again).unwrap(), []);
    machine
        .step(finished(g(1), 2, Finish::Aborted(None)))
        .unwrap();
    machine.step(Input::Forget { below: g(9) }).unwrap();
    assert_eq!((machine.live(), machine.horizon()), (1, g(1)));
    machine
        .step(finished(g(1), 1, Finish::Aborted(None)))
        .unwrap();
    assert_eq!(machine.live(), 0);
}

#[test]
fn a_refusal_is_not_final_when_the_branch_with_the_ledger_could_not_look() {
    let mut machine = coordinator();
    let run = run_of(g(1), 2, Some(request("r", 1)), Ack::Applied);
    machine.step(run).unwrap();
    let held_back = machine
        .step(voted(g(1), 2, Vote::Abort(refused())))
        .unwrap();
    let is_told = |effect: &Effect| matches!(effect, Effect::Reply { .. });
    assert!(
        !held_back
            .iter()
            .any(|step| step.release.iter().any(is_told))
    );
    let steps = machine
        .step(voted(g(1), 1, Vote::Abort(transient())))
        .unwrap();
    assert!(steps.iter().all(|step| step.append.is_empty()), "{steps:?}");
    let told = reply(g(1), Outcome::Aborted(transient()));
    assert!(
        steps.iter().any(|step| step.release.contains(&told)),
        "{steps:?}"
    );
}

#[test]
fn while_aborting_a_vote_abort_acknowledges_and_a_vote_commit_does_not() {
    let mut machine = coordinator();
    machine.step(run_of(g(1), 2, None, Ack::Applied)).unwrap();
    machine.step(Input::Deadline { gtrid: g(1) }).unwrap();
    for vote in [Vote::Commit, Vote::ReadOnly] {
        assert_eq!(machine.step(voted(g(1), 1, vote)).unwrap(), []);
    }
    assert_eq!(
        machine
            .step(voted(g(1), 1, Vote::Abort(transient())))
            .unwrap(),
        [step(vec![], 0, vec![branch_now(g(1), 1, B::Aborted)])]
    );
    machine
        .step(voted(g(1), 2, Vote::Abort(transient())))
        .unwrap();
    assert_eq!(machine.live(), 0);
}

#[test]
fn a_passed_deadline_aborts_what_is_undecided() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    let steps = machine.step(Input::Deadline { gtrid: g(1) }).unwrap();
    let [
        Step {
            append,
            after: 0,
            release,
        },
    ] = steps.as_slice()
    else {
        panic!("{steps:?}")
    };
    assert!(append.is_empty());
    let Effect::Changed {
        state: S::Aborting,
        reason: Some(reason),
        ..
    } = &release[0]
    else {
        panic!("{release:?}")
    };
    assert_eq!(&*reason.code, code::DEADLINE_EXCEEDED);
    let told = reply(g(1), Outcome::Aborted(reason.clone()));
    assert_eq!(release[1..], [abort(g(1), 1), abort(g(1), 2), told]);
    assert_eq!(
        machine.step(Input::Deadline { gtrid: g(1) }).unwrap(),
        [],
        "twice"
    );
    assert_eq!(
        machine.step(Input::Deadline { gtrid: g(9) }).unwrap(),
        [],
        "unknown"
    );
}

#[test]
fn a_deadline_after_the_decision_answers_committed_early_and_once() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    assert_eq!(
        machine.step(Input::Deadline { gtrid: g(1) }).unwrap(),
        [step(vec![], 1, vec![reply(g(1), Outcome::Committed)])]
    );
    assert_eq!(machine.step(Input::Deadline { gtrid: g(1) }).unwrap(), []);
    decided(&mut machine, g(2), None, Ack::Decided);
    assert_eq!(machine.step(Input::Deadline { gtrid: g(2) }).unwrap(), []);
}

#[test]
fn a_client_rolls_back_what_is_undecided_only() {
    let mut machine = coordinator();
    let reason = Reason::new(code::ROLLED_BACK, "the client rolled back");
    let roll_back = |gtrid| Input::Abort {
        gtrid,
        reason: reason.clone(),
    };
    rejected(g(1), code::TRANSACTION_NOT_FOUND)(&machine.step(roll_back(g(1))).unwrap());
    machine.step(Input::Begin { gtrid: g(1) }).unwrap();
    machine
        .step(Input::Enlist {
            gtrid: g(1),
            participant: p(1),
        })
        .unwrap();
    let release = vec![
        now_for(g(1), S::Aborting, &reason),
        abort(g(1), 1),
        reply(g(1), Outcome::Aborted(reason.clone())),
    ];
    assert_eq!(
        machine.step(roll_back(g(1))).unwrap(),
        [step(vec![], 0, release)]
    );
    rejected(g(1), code::WRONG_STATE)(&machine.step(roll_back(g(1))).unwrap());
    decided(&mut machine, g(2), None, Ack::Applied);
    let steps = machine.step(roll_back(g(2))).unwrap();
    assert_eq!(
        steps[0].after, 1,
        "it tells of a decision, so it waits for it"
    );
    rejected(g(2), code::WRONG_STATE)(&steps);
}

#[test]
fn a_transaction_without_branches_is_rolled_back_at_once() {
    let mut machine = coordinator();
    machine.step(Input::Begin { gtrid: g(1) }).unwrap();
    let reason = Reason::new(code::CLIENT_GONE, "gone");
    let release = vec![
        now_for(g(1), S::Aborting, &reason),
        reply(g(1), Outcome::Aborted(reason.clone())),
        now_for(g(1), S::Aborted, &reason),
    ];
    let steps = machine
        .step(Input::Abort {
            gtrid: g(1),
            reason: reason.clone(),
        })
        .unwrap();
    assert_eq!(steps, [step(vec![], 0, release)]);
    assert_eq!(machine.live(), 0);
}

#[test]
fn a_lost_link_aborts_what_waits_for_its_votes() {
    let mut machine = coordinator();
    machine.step(run_of(g(1), 2, None, Ack::Applied)).unwrap();
    one_vote_missing(&mut machine, g(2), None, Ack::Applied);
    decided(&mut machine, g(3), None, Ack::Applied);
    machine.step(Input::Begin { gtrid: g(4) }).unwrap();
    machine
        .step(Input::Enlist {
            gtrid: g(4),
            participant: p(1),
        })
        .unwrap();
    machine.step(Input::Begin { gtrid: g(5) }).unwrap();
    machine
        .step(Input::Enlist {
            gtrid: g(5),
            participant: p(2),
        })
        .unwrap();
    machine.step(Input::LinkDown { participant: p(1) }).unwrap();
    let state = |machine: &Coordinator, gtrid| {
        machine
            .transactions()
            .find(|tx| tx.gtrid == gtrid)
            .map(|tx| tx.state)
    };
    assert_eq!(state(&machine, g(1)), Some(S::Aborting), "no vote came");
    assert_eq!(state(&machine, g(2)), Some(S::Preparing), "its vote is in");
    assert_eq!(state(&machine, g(3)), Some(S::Committing), "it is decided");
    assert_eq!(
        state(&machine, g(4)),
        Some(S::Aborting),
        "its statements are lost"
    );
    assert_eq!(state(&machine, g(5)), Some(S::Active), "it is not there");
    let steps = machine.step(run_of(g(6), 2, None, Ack::Applied)).unwrap();
    rejected(g(6), code::PARTICIPANT_DOWN)(&steps);
}

#[test]
fn no_vote_revives_an_aborted_transaction() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    machine.step(Input::Deadline { gtrid: g(1) }).unwrap();
    assert_eq!(machine.step(voted(g(1), 2, Vote::Commit)).unwrap(), []);
    machine
        .step(finished(g(1), 1, Finish::Aborted(None)))
        .unwrap();
    machine
        .step(finished(g(1), 2, Finish::Aborted(None)))
        .unwrap();
    assert_eq!(
        machine.step(voted(g(1), 2, Vote::Commit)).unwrap(),
        [step(vec![], 0, vec![abort(g(1), 2)])]
    );
}
