//! Votes, the decision, and the acknowledgements.

use super::*;
use BranchState as B;
use TransactionState as S;

#[test]
fn a_vote_that_is_not_the_last_decides_nothing() {
    let mut machine = coordinator();
    machine.step(run_of(g(1), 2, None, Ack::Applied)).unwrap();
    assert_eq!(
        machine.step(voted(g(1), 1, Vote::Commit)).unwrap(),
        [step(vec![], 0, vec![branch_now(g(1), 1, B::Prepared)])]
    );
}

#[test]
fn the_last_vote_forces_the_decision_and_nothing_tells_of_it_before() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    let release = vec![now(g(1), S::Committing), commit(g(1), 1), commit(g(1), 2)];
    assert_eq!(
        machine.step(voted(g(1), 2, Vote::Commit)).unwrap(),
        [
            step(
                vec![],
                0,
                vec![branch_now(g(1), 2, B::Prepared), now(g(1), S::Prepared)]
            ),
            step(vec![decision(g(1), &[1, 2], None)], 1, release),
        ]
    );
}

#[test]
fn with_decided_the_client_is_answered_by_the_decision() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), Some(request("r", 1)), Ack::Decided);
    let steps = machine.step(voted(g(1), 2, Vote::Commit)).unwrap();
    let release = vec![
        now(g(1), S::Committing),
        commit(g(1), 1),
        commit(g(1), 2),
        reply(g(1), Outcome::Committed),
    ];
    let record = decision(g(1), &[1, 2], Some(request("r", 1)));
    assert_eq!(steps[1], step(vec![record], 1, release));
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    let release = vec![branch_now(g(1), 2, B::Committed), now(g(1), S::Committed)];
    assert_eq!(
        machine.step(finished(g(1), 2, Finish::Committed)).unwrap(),
        [
            step(vec![], 1, release),
            step(
                vec![Record::End {
                    gtrid: g(1),
                    committed: true
                }],
                0,
                vec![]
            ),
        ],
        "nobody is answered twice"
    );
}

#[test]
fn with_applied_the_client_is_answered_by_the_last_acknowledgement() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    assert_eq!(
        machine.step(finished(g(1), 2, Finish::Committed)).unwrap(),
        [step(vec![], 1, vec![branch_now(g(1), 2, B::Committed)])]
    );
    assert_eq!(
        machine.step(finished(g(1), 2, Finish::Committed)).unwrap(),
        [],
        "doubled"
    );
    let release = vec![
        branch_now(g(1), 1, B::Committed),
        now(g(1), S::Committed),
        reply(g(1), Outcome::Committed),
    ];
    assert_eq!(
        machine.step(finished(g(1), 1, Finish::Committed)).unwrap(),
        [
            step(vec![], 1, release),
            step(
                vec![Record::End {
                    gtrid: g(1),
                    committed: true
                }],
                0,
                vec![]
            ),
        ]
    );
    assert_eq!((machine.live(), machine.remembered()), (0, 1));
    assert_eq!(
        machine.step(finished(g(1), 1, Finish::Committed)).unwrap(),
        [],
        "late"
    );
}

#[test]
fn only_the_first_vote_counts() {
    let mut machine = coordinator();
    machine.step(run_of(g(1), 3, None, Ack::Applied)).unwrap();
    machine.step(voted(g(1), 1, Vote::Commit)).unwrap();
    for vote in [Vote::Commit, Vote::ReadOnly, Vote::Abort(transient())] {
        assert_eq!(machine.step(voted(g(1), 1, vote)).unwrap(), []);
    }
    machine.step(voted(g(1), 2, Vote::Commit)).unwrap();
    machine.step(voted(g(1), 3, Vote::Commit)).unwrap();
    for vote in [Vote::Commit, Vote::ReadOnly, Vote::Abort(transient())] {
        assert_eq!(
            machine.step(voted(g(1), 1, vote)).unwrap(),
            [],
            "after the decision"
        );
    }
}

#[test]
fn a_vote_of_another_epoch_participant_or_branch_does_not_count() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    let foreign = voted_in(Epoch(2), g(1), 2, Vote::Commit);
    assert_eq!(machine.step(foreign).unwrap(), []);
    let message = FromParticipant::Voted {
        branch: branch(g(1), 2),
        epoch: EPOCH,
        vote: Vote::Commit,
    };
    assert_eq!(
        machine
            .step(Input::Received {
                from: p(3),
                message
            })
            .unwrap(),
        []
    );
    assert_eq!(machine.step(voted(g(1), 3, Vote::Commit)).unwrap(), []);
    assert_eq!(machine.transactions().next().unwrap().state, S::Preparing);
}

#[test]
fn readers_leave_and_are_not_told() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    let release = vec![now(g(1), S::Committing), commit(g(1), 1)];
    assert_eq!(
        machine.step(voted(g(1), 2, Vote::ReadOnly)).unwrap(),
        [
            step(
                vec![],
                0,
                vec![branch_now(g(1), 2, B::ReadOnly), now(g(1), S::Prepared)]
            ),
            step(vec![decision(g(1), &[1], None)], 1, release),
        ]
    );
    let steps = machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    assert_eq!(
        steps[1],
        step(
            vec![Record::End {
                gtrid: g(1),
                committed: true
            }],
            0,
            vec![]
        )
    );
}

#[test]
fn a_transaction_of_readers_leaves_no_record_and_frees_its_request() {
    let mut machine = coordinator();
    machine
        .step(run_of(g(1), 2, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    machine.step(voted(g(1), 1, Vote::ReadOnly)).unwrap();
    let release = vec![
        branch_now(g(1), 2, B::ReadOnly),
        now(g(1), S::Prepared),
        now(g(1), S::Committed),
        reply(g(1), Outcome::Committed),
    ];
    assert_eq!(
        machine.step(voted(g(1), 2, Vote::ReadOnly)).unwrap(),
        [step(vec![], 0, release)]
    );
    assert_eq!((machine.live(), machine.remembered()), (0, 0));
    let again = machine
        .step(run_of(g(2), 2, Some(request("r", 9)), Ack::Applied))
        .unwrap();
    assert_eq!(again[0].release[0], began(g(2), Some(request("r", 9))));
}

#[test]
fn a_serializable_branch_that_leaves_early_aborts_the_transaction() {
    let mut machine = coordinator();
    machine
        .step(Input::Run {
            gtrid: g(1),
            branches: vec![p(1), p(2)],
            request: None,
            ack: Ack::Applied,
            may_leave: false,
        })
        .unwrap();
    let steps = machine.step(voted(g(1), 1, Vote::ReadOnly)).unwrap();
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
    assert!(release.contains(&abort(g(1), 2)));
    let Some(Effect::Reply {
        outcome: Outcome::Aborted(reason),
        ..
    }) = release.last()
    else {
        panic!("{release:?}")
    };
    assert_eq!(&*reason.code, code::UNEXPECTED_ANSWER);
}

#[test]
fn a_late_vote_commit_for_what_is_not_running_is_told_to_abort() {
    let mut machine = coordinator();
    assert_eq!(
        machine.step(voted(g(7), 1, Vote::Commit)).unwrap(),
        [step(vec![], 0, vec![abort(g(7), 1)])]
    );
    for vote in [Vote::ReadOnly, Vote::Abort(transient())] {
        assert_eq!(machine.step(voted(g(7), 1, vote)).unwrap(), []);
    }
    ended(&mut machine, g(8), None);
    assert_eq!(
        machine.step(voted(g(8), 1, Vote::Commit)).unwrap(),
        [],
        "it was committed"
    );
    let forced = heuristic(g(7), 2, Some(true), &transient());
    machine.apply(&forced).unwrap();
    assert_eq!(
        machine.step(voted(g(7), 2, Vote::Commit)).unwrap(),
        [],
        "an operator has forced it to commit"
    );
    machine.step(Input::Forget { below: g(9) }).unwrap();
    assert_eq!(
        machine.step(voted(g(7), 1, Vote::Commit)).unwrap(),
        [],
        "nobody remembers"
    );
}

#[test]
fn two_transactions_wait_for_their_own_records_only() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    decided(&mut machine, g(2), None, Ack::Applied);
    let steps = machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    assert_eq!(steps[0].after, 1);
    let steps = machine.step(finished(g(2), 1, Finish::Committed)).unwrap();
    assert_eq!(steps[0].after, 2);
}
