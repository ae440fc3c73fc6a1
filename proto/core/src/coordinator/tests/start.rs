//! Beginning, enlisting, asking for votes.

use super::*;
use crate::limits::BRANCHES_MAX;
use TransactionState as S;

#[test]
fn a_one_shot_transaction_asks_all_branches_for_votes_and_forces_nothing() {
    let mut machine = coordinator();
    let steps = machine.step(run_of(g(1), 2, None, Ack::Applied)).unwrap();
    let release = vec![
        began(g(1), None),
        now(g(1), S::Preparing),
        prepare(g(1), 1, true, true),
        prepare(g(1), 2, true, true),
    ];
    assert_eq!(steps, [step(vec![], 0, release)]);
}

#[test]
fn a_serializable_one_shot_transaction_forbids_leaving_early() {
    let mut machine = coordinator();
    let branches = vec![p(1), p(2)];
    let steps = machine
        .step(Input::Run {
            gtrid: g(1),
            branches,
            request: None,
            ack: Ack::Applied,
            may_leave: false,
        })
        .unwrap();
    assert_eq!(
        steps[0].release[2..],
        [prepare(g(1), 1, true, false), prepare(g(1), 2, true, false)]
    );
}

#[test]
fn a_transaction_whose_participant_is_away_is_not_begun() {
    let mut machine = coordinator();
    let steps = machine.step(run_of(g(1), 4, None, Ack::Applied)).unwrap();
    rejected(g(1), code::PARTICIPANT_DOWN)(&steps);
    assert_eq!(machine.live(), 0);
}

#[test]
fn an_id_is_never_used_twice() {
    let mut machine = coordinator();
    machine.step(run_of(g(1), 2, None, Ack::Applied)).unwrap();
    rejected(g(1), code::WRONG_STATE)(&machine.step(Input::Begin { gtrid: g(1) }).unwrap());
    ended(&mut machine, g(2), None);
    let again = machine.step(run_of(g(2), 2, None, Ack::Applied)).unwrap();
    rejected(g(2), code::WRONG_STATE)(&again);
}

#[test]
fn an_id_below_the_horizon_is_refused() {
    let mut machine = coordinator();
    machine.step(Input::Forget { below: g(5) }).unwrap();
    rejected(g(4), code::GTRID_TOO_OLD)(&machine.step(Input::Begin { gtrid: g(4) }).unwrap());
    assert_eq!(machine.highest_gtrid(), g(5));
}

#[test]
fn an_interactive_transaction_enlists_each_participant_once() {
    let mut machine = coordinator();
    assert_eq!(
        machine.step(Input::Begin { gtrid: g(1) }).unwrap(),
        [step(vec![], 0, vec![began(g(1), None)])]
    );
    let enlist = || Input::Enlist {
        gtrid: g(1),
        participant: p(2),
    };
    let enlisted = |new| Effect::Enlisted {
        branch: branch(g(1), 1),
        participant: p(2),
        new,
    };
    assert_eq!(
        machine.step(enlist()).unwrap(),
        [step(vec![], 0, vec![now(g(1), S::Active), enlisted(true)])]
    );
    assert_eq!(
        machine.step(enlist()).unwrap(),
        [step(vec![], 0, vec![enlisted(false)])]
    );
}

#[test]
fn enlisting_is_refused_where_it_cannot_work() {
    let mut machine = coordinator();
    let enlist = |gtrid, participant| Input::Enlist { gtrid, participant };
    let steps = machine.step(enlist(g(1), p(1))).unwrap();
    rejected(g(1), code::TRANSACTION_NOT_FOUND)(&steps);
    machine.step(Input::Begin { gtrid: g(1) }).unwrap();
    rejected(g(1), code::PARTICIPANT_DOWN)(&machine.step(enlist(g(1), p(9))).unwrap());
    machine.step(run_of(g(2), 2, None, Ack::Applied)).unwrap();
    rejected(g(2), code::WRONG_STATE)(&machine.step(enlist(g(2), p(1))).unwrap());
}

#[test]
fn a_transaction_has_a_limit_of_branches() {
    let mut machine = coordinator();
    machine.step(Input::Begin { gtrid: g(1) }).unwrap();
    let max = u32::try_from(BRANCHES_MAX).unwrap();
    for n in 1..=max + 1 {
        machine.step(Input::LinkUp { participant: p(n) }).unwrap();
        let steps = machine
            .step(Input::Enlist {
                gtrid: g(1),
                participant: p(n),
            })
            .unwrap();
        if n > max {
            rejected(g(1), code::LIMIT_REACHED)(&steps);
        }
    }
    assert_eq!(
        machine.transactions().next().unwrap().branches.len(),
        BRANCHES_MAX
    );
}

#[test]
fn an_interactive_commit_prepares_what_was_begun_and_lets_readers_leave() {
    let mut machine = coordinator();
    machine.step(Input::Begin { gtrid: g(1) }).unwrap();
    for n in 1..=2 {
        machine
            .step(Input::Enlist {
                gtrid: g(1),
                participant: p(n),
            })
            .unwrap();
    }
    let commit = || Input::Commit {
        gtrid: g(1),
        ack: Ack::Applied,
    };
    let release = vec![
        now(g(1), S::Preparing),
        prepare(g(1), 1, false, true),
        prepare(g(1), 2, false, true),
    ];
    assert_eq!(machine.step(commit()).unwrap(), [step(vec![], 0, release)]);
    assert_eq!(
        machine.step(commit()).unwrap(),
        [],
        "a repeated Commit waits"
    );
}

#[test]
fn an_empty_transaction_commits_without_a_record() {
    let mut machine = coordinator();
    machine.step(Input::Begin { gtrid: g(1) }).unwrap();
    let steps = machine
        .step(Input::Commit {
            gtrid: g(1),
            ack: Ack::Applied,
        })
        .unwrap();
    let release = vec![
        now(g(1), S::Prepared),
        now(g(1), S::Committed),
        reply(g(1), Outcome::Committed),
    ];
    assert_eq!(steps, [step(vec![], 0, release)]);
    assert_eq!(machine.live(), 0);
}

#[test]
fn commit_of_what_is_not_running_is_refused() {
    let mut machine = coordinator();
    let commit = |gtrid| Input::Commit {
        gtrid,
        ack: Ack::Applied,
    };
    rejected(g(1), code::TRANSACTION_NOT_FOUND)(&machine.step(commit(g(1))).unwrap());
    one_vote_missing(&mut machine, g(2), None, Ack::Applied);
    machine.step(Input::Deadline { gtrid: g(2) }).unwrap();
    rejected(g(2), code::WRONG_STATE)(&machine.step(commit(g(2))).unwrap());
}

#[test]
fn a_repeated_commit_after_the_decision_gets_the_outcome() {
    let mut machine = coordinator();
    let commit = |gtrid| Input::Commit {
        gtrid,
        ack: Ack::Applied,
    };
    decided(&mut machine, g(1), None, Ack::Applied);
    assert_eq!(
        machine.step(commit(g(1))).unwrap(),
        [],
        "it waits like the first"
    );
    decided(&mut machine, g(2), None, Ack::Decided);
    assert_eq!(
        machine.step(commit(g(2))).unwrap(),
        [step(vec![], 2, vec![reply(g(2), Outcome::Committed)])]
    );
}

#[test]
fn begun_tells_the_machine_nothing() {
    let mut machine = coordinator();
    machine.step(Input::Begin { gtrid: g(1) }).unwrap();
    machine
        .step(Input::Enlist {
            gtrid: g(1),
            participant: p(1),
        })
        .unwrap();
    let message = FromParticipant::Begun {
        branch: branch(g(1), 1),
        epoch: EPOCH,
        result: Err(transient()),
    };
    assert_eq!(
        machine
            .step(Input::Received {
                from: p(1),
                message
            })
            .unwrap(),
        []
    );
}
