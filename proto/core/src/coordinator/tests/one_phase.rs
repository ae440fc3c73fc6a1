//! A single branch: its participant decides.

use super::*;
use BranchState as B;
use TransactionState as S;

fn delegated(machine: &mut Coordinator, gtrid: Gtrid, request: Option<Request>) {
    machine
        .step(run_of(gtrid, 1, request, Ack::Applied))
        .unwrap();
}

#[test]
fn handing_the_decision_over_is_forced_before_it_happens() {
    let mut machine = coordinator();
    let release = vec![now(g(1), S::Preparing), commit_one_phase(g(1), 1, true)];
    assert_eq!(
        machine.step(run_of(g(1), 1, None, Ack::Applied)).unwrap(),
        [
            step(vec![], 0, vec![began(g(1), None)]),
            step(vec![delegation(g(1), None)], 1, release),
        ]
    );
}

#[test]
fn an_interactive_branch_is_committed_without_its_work() {
    let mut machine = coordinator();
    machine.step(Input::Begin { gtrid: g(1) }).unwrap();
    machine
        .step(Input::Enlist {
            gtrid: g(1),
            participant: p(1),
        })
        .unwrap();
    let release = vec![now(g(1), S::Preparing), commit_one_phase(g(1), 1, false)];
    assert_eq!(
        machine
            .step(Input::Commit {
                gtrid: g(1),
                ack: Ack::Applied
            })
            .unwrap(),
        [step(vec![delegation(g(1), None)], 1, release)]
    );
}

#[test]
fn committed_ends_it() {
    let mut machine = coordinator();
    delegated(&mut machine, g(1), Some(request("r", 1)));
    let release = vec![branch_now(g(1), 1, B::Committed)];
    let told = vec![now(g(1), S::Committed), reply(g(1), Outcome::Committed)];
    let end = Record::End {
        gtrid: g(1),
        committed: true,
    };
    assert_eq!(
        machine.step(finished(g(1), 1, Finish::Committed)).unwrap(),
        [step(vec![], 1, release), step(vec![end], 1, told)]
    );
    assert_eq!(
        machine.step(finished(g(1), 1, Finish::Committed)).unwrap(),
        []
    );
    let again = machine
        .step(run_of(g(2), 1, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    let replay = Effect::Replay {
        gtrid: g(2),
        first: g(1),
        outcome: Outcome::Committed,
    };
    assert_eq!(again, [step(vec![], 1, vec![replay])]);
}

#[test]
fn aborted_ends_it_with_the_participants_reason() {
    let mut machine = coordinator();
    delegated(&mut machine, g(1), None);
    let told = vec![
        now_for(g(1), S::Aborted, &refused()),
        reply(g(1), Outcome::Aborted(refused())),
    ];
    let end = Record::End {
        gtrid: g(1),
        committed: false,
    };
    assert_eq!(
        machine
            .step(finished(g(1), 1, Finish::Aborted(Some(refused()))))
            .unwrap(),
        [
            step(vec![], 1, vec![branch_now(g(1), 1, B::Aborted)]),
            step(vec![end], 1, told),
        ]
    );
    assert_eq!((machine.live(), machine.remembered()), (0, 1));
}

#[test]
fn a_final_refusal_is_recorded_instead_of_an_end() {
    let mut machine = coordinator();
    delegated(&mut machine, g(1), Some(request("r", 1)));
    let told = vec![
        now_for(g(1), S::Aborted, &refused()),
        reply(g(1), Outcome::Aborted(refused())),
    ];
    let record = Record::Refused {
        gtrid: g(1),
        request: request("r", 1),
        reason: refused(),
    };
    assert_eq!(
        machine
            .step(finished(g(1), 1, Finish::Aborted(Some(refused()))))
            .unwrap(),
        [
            step(vec![], 1, vec![branch_now(g(1), 1, B::Aborted)]),
            step(vec![record], 2, told),
        ]
    );
    assert_eq!((machine.live(), machine.remembered()), (0, 1));
}

#[test]
fn after_retry_it_is_asked_for_by_abort_and_never_sent_again() {
    let mut machine = coordinator();
    delegated(&mut machine, g(1), None);
    machine
        .step(finished(g(1), 1, Finish::Retry(transient())))
        .unwrap();
    assert_eq!(
        machine.step(Input::Sweep).unwrap(),
        [step(vec![], 1, vec![abort(g(1), 1)])]
    );
    let steps = machine
        .step(finished(g(1), 1, Finish::Aborted(None)))
        .unwrap();
    let told = reply(g(1), Outcome::Aborted(transient()));
    assert_eq!(
        steps[1].release[1], told,
        "the reason of the refusal is not lost"
    );
}

#[test]
fn a_commit_that_won_against_the_question_counts() {
    let mut machine = coordinator();
    delegated(&mut machine, g(1), None);
    assert_eq!(
        machine.step(Input::LinkDown { participant: p(1) }).unwrap(),
        []
    );
    assert_eq!(
        machine.step(Input::LinkUp { participant: p(1) }).unwrap(),
        [step(vec![], 1, vec![abort(g(1), 1)])]
    );
    let steps = machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    assert_eq!(steps[1].release[1], reply(g(1), Outcome::Committed));
}

#[test]
fn at_the_deadline_its_outcome_is_unknown_and_asked_for() {
    let mut machine = coordinator();
    delegated(&mut machine, g(1), Some(request("r", 1)));
    let unknown = Outcome::Unknown(g(1));
    assert_eq!(
        machine.step(Input::Deadline { gtrid: g(1) }).unwrap(),
        [step(
            vec![],
            1,
            vec![abort(g(1), 1), reply(g(1), unknown.clone())]
        )]
    );
    assert_eq!(machine.step(Input::Deadline { gtrid: g(1) }).unwrap(), []);
    let again = machine
        .step(run_of(g(2), 1, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    let replay = Effect::Replay {
        gtrid: g(2),
        first: g(1),
        outcome: unknown,
    };
    assert_eq!(
        again,
        [step(vec![], 1, vec![replay])],
        "never executed blindly"
    );
    let steps = machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    assert_eq!(
        steps[1].release,
        [now(g(1), S::Committed)],
        "its client was answered"
    );
}

#[test]
fn it_cannot_be_rolled_back_by_the_client_nor_by_a_lost_link() {
    let mut machine = coordinator();
    delegated(&mut machine, g(1), None);
    let steps = machine
        .step(Input::Abort {
            gtrid: g(1),
            reason: transient(),
        })
        .unwrap();
    rejected(g(1), code::WRONG_STATE)(&steps);
    assert_eq!(steps[0].after, 1);
    assert_eq!(
        machine.step(Input::LinkDown { participant: p(1) }).unwrap(),
        []
    );
}

#[test]
fn a_vote_means_nothing_to_it() {
    let mut machine = coordinator();
    delegated(&mut machine, g(1), None);
    for vote in [Vote::Commit, Vote::ReadOnly, Vote::Abort(transient())] {
        assert_eq!(machine.step(voted(g(1), 1, vote)).unwrap(), []);
    }
}

#[test]
fn after_a_restart_it_is_asked_for_and_not_executed_again() {
    let record = delegation(g(1), Some(request("r", 1)));
    let mut machine = recovered(std::slice::from_ref(&record));
    let again = machine
        .step(run_of(g(2), 1, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    let replay = Effect::Replay {
        gtrid: g(2),
        first: g(1),
        outcome: Outcome::Unknown(g(1)),
    };
    assert_eq!(again, [step(vec![], 0, vec![replay])]);
    assert_eq!(
        machine.step(Input::LinkUp { participant: p(1) }).unwrap(),
        [step(vec![], 0, vec![abort_in(Epoch(2), g(1), 1)])]
    );
    let steps = machine
        .step(finished(g(1), 1, Finish::Aborted(None)))
        .unwrap();
    assert_eq!(
        steps[1].append,
        [Record::End {
            gtrid: g(1),
            committed: false
        }]
    );
    let again = machine
        .step(run_of(g(3), 1, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    assert_eq!(
        again[0].release[0],
        began(g(3), Some(request("r", 1))),
        "now it may run"
    );
}
