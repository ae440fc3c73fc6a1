//! The second phase: repeating, giving way, finding damage.

use super::*;
use crate::coordinator::finish::{NO_ANSWER_SWEEPS, RETRY_SWEEPS_MAX};
use BranchState as B;
use TransactionState as S;

fn sweep(machine: &mut Coordinator) -> Vec<CoordinatorStep> {
    machine.step(Input::Sweep).unwrap()
}

/// Sweeps until something is sent; how many it took.
fn sweeps_until_sent(machine: &mut Coordinator) -> u32 {
    (1..=100)
        .find(|_| !sweep(machine).is_empty())
        .expect("it is never sent again")
}

#[test]
fn an_outcome_without_an_answer_is_sent_again_after_some_sweeps() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    for _ in 1..NO_ANSWER_SWEEPS {
        assert_eq!(sweep(&mut machine), []);
    }
    assert_eq!(
        sweep(&mut machine),
        [step(vec![], 1, vec![commit(g(1), 1), commit(g(1), 2)])]
    );
    assert_eq!(sweeps_until_sent(&mut machine), NO_ANSWER_SWEEPS);
}

#[test]
fn after_retry_it_is_sent_again_sooner_then_ever_later_up_to_a_cap() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    for (attempt, wait) in [(1, 1), (2, 2), (3, RETRY_SWEEPS_MAX), (4, RETRY_SWEEPS_MAX)] {
        let why = Reason::new(code::READ_ONLY_SERVER, "read-only");
        let known = branch_now_for(g(1), 1, B::Committing, Some(why.clone()), attempt);
        assert_eq!(
            machine.step(finished(g(1), 1, Finish::Retry(why))).unwrap(),
            [step(vec![], 1, vec![known])]
        );
        assert_eq!(sweeps_until_sent(&mut machine), wait);
    }
    assert!(machine.transactions().next().unwrap().is_stuck());
    let done = machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    assert_eq!(
        done[0].release[0],
        branch_now_for(g(1), 1, B::Committed, None, 4)
    );
    assert_eq!(machine.live(), 0);
}

#[test]
fn a_link_that_comes_up_gets_what_it_has_not_acknowledged() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    machine.step(run_of(g(2), 2, None, Ack::Applied)).unwrap();
    assert_eq!(
        machine.step(Input::LinkDown { participant: p(1) }).unwrap()[0].release[1..3],
        [abort(g(2), 1), abort(g(2), 2)]
    );
    assert_eq!(
        machine.step(Input::LinkUp { participant: p(1) }).unwrap(),
        [
            step(vec![], 1, vec![commit(g(1), 1)]),
            step(vec![], 0, vec![abort(g(2), 1)]),
        ]
    );
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    machine
        .step(finished(g(2), 1, Finish::Aborted(None)))
        .unwrap();
    assert_eq!(
        machine.step(Input::LinkUp { participant: p(1) }).unwrap(),
        []
    );
}

#[test]
fn nothing_is_sent_over_a_lost_link_and_the_transaction_counts_as_stuck() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    machine.step(Input::LinkDown { participant: p(1) }).unwrap();
    for _ in 0..3 {
        assert_eq!(sweeps_until_sent(&mut machine), NO_ANSWER_SWEEPS);
        let branch = machine.transactions().next().unwrap().branches[0].clone();
        assert_eq!(branch.state, B::Committing);
        assert_eq!(&*branch.reason.unwrap().code, code::PARTICIPANT_DOWN);
    }
    assert!(machine.transactions().next().unwrap().is_stuck());
}

#[test]
fn an_answer_of_the_wrong_participant_or_to_nothing_has_no_effect() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    let finish = Finish::Committed;
    let message = FromParticipant::Finished {
        branch: branch(g(1), 1),
        epoch: EPOCH,
        finish,
    };
    assert_eq!(
        machine
            .step(Input::Received {
                from: p(2),
                message
            })
            .unwrap(),
        []
    );
    assert_eq!(
        machine.step(finished(g(1), 3, Finish::Committed)).unwrap(),
        []
    );
    machine.step(run_of(g(2), 2, None, Ack::Applied)).unwrap();
    assert_eq!(
        machine.step(finished(g(2), 1, Finish::Committed)).unwrap(),
        []
    );
    assert_eq!(
        machine
            .step(finished(g(9), 1, Finish::Aborted(None)))
            .unwrap(),
        []
    );
}

#[test]
fn damage_is_recorded_before_the_client_hears_of_it() {
    for (finish, committed, why) in [
        (Finish::Damaged(transient()), None, None),
        (
            Finish::Aborted(None),
            Some(false),
            Some(code::HEURISTIC_ROLLBACK),
        ),
    ] {
        let mut machine = coordinator();
        decided(&mut machine, g(1), Some(request("r", 1)), Ack::Applied);
        let steps = machine.step(finished(g(1), 1, finish)).unwrap();
        let [
            Step {
                append,
                after: 2,
                release,
            },
        ] = steps.as_slice()
        else {
            panic!("{steps:?}")
        };
        let [
            Record::Heuristic {
                committed: got,
                reason,
                ..
            },
        ] = append.as_slice()
        else {
            panic!("{append:?}")
        };
        assert_eq!(*got, committed);
        assert_eq!(&*reason.code, why.unwrap_or(&transient().code));
        let outcome = Outcome::Damaged(reason.clone());
        let known = branch_now_for(g(1), 1, B::Heuristic, Some(reason.clone()), 0);
        assert_eq!(*release, [known, reply(g(1), outcome.clone())]);

        let steps = machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
        assert_eq!(
            steps[1].append,
            [Record::End {
                gtrid: g(1),
                committed: true
            }]
        );
        let again = machine
            .step(run_of(g(2), 2, Some(request("r", 1)), Ack::Applied))
            .unwrap();
        let replay = Effect::Replay {
            gtrid: g(2),
            first: g(1),
            outcome,
        };
        assert_eq!(again, [step(vec![], 2, vec![replay])], "never hidden later");
        assert_eq!(
            machine.heuristics().collect::<Vec<_>>(),
            [(branch(g(1), 1), committed)]
        );
    }
}

#[test]
fn a_commit_of_an_aborted_branch_is_damage() {
    let mut machine = coordinator();
    machine.step(run_of(g(1), 2, None, Ack::Applied)).unwrap();
    machine
        .step(voted(g(1), 1, Vote::Abort(refused())))
        .unwrap();
    let steps = machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    let [
        Step {
            append,
            after: 1,
            release,
        },
    ] = steps.as_slice()
    else {
        panic!("{steps:?}")
    };
    let [
        Record::Heuristic {
            committed: Some(true),
            reason,
            ..
        },
    ] = append.as_slice()
    else {
        panic!("{append:?}")
    };
    assert_eq!(&*reason.code, code::HEURISTIC_COMMIT);
    let known = branch_now_for(g(1), 2, B::Heuristic, Some(reason.clone()), 0);
    assert_eq!(*release, [known, now_for(g(1), S::Aborted, reason)]);
    assert_eq!(machine.live(), 0);
}

#[test]
fn a_commit_of_what_nobody_remembers_is_damage_and_told_once() {
    let mut machine = coordinator();
    let steps = machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    let [
        Step {
            append,
            after: 1,
            release,
        },
    ] = steps.as_slice()
    else {
        panic!("{steps:?}")
    };
    assert!(matches!(
        append[..],
        [Record::Heuristic {
            committed: Some(true),
            ..
        }]
    ));
    assert!(matches!(
        release[..],
        [Effect::BranchChanged {
            state: B::Heuristic,
            ..
        }]
    ));
    assert_eq!(
        machine.step(finished(g(1), 1, Finish::Committed)).unwrap(),
        []
    );
    machine.step(Input::Forget { below: g(3) }).unwrap();
    assert_eq!(
        machine.step(finished(g(2), 1, Finish::Committed)).unwrap(),
        []
    );
}

#[test]
fn a_stale_answer_stops_a_superseded_coordinator_only() {
    let mut machine = coordinator();
    let stale = |highest| Input::Received {
        from: p(1),
        message: FromParticipant::Stale {
            branch: branch(g(1), 1),
            epoch: EPOCH,
            highest,
        },
    };
    assert_eq!(machine.step(stale(EPOCH)).unwrap(), []);
    assert_eq!(
        machine.step(stale(Epoch(2))).unwrap(),
        [step(vec![], 0, vec![Effect::Superseded { by: Epoch(2) }])]
    );
}
