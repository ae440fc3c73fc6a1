//! The fence of epochs.

use super::*;

const HIGHER: Epoch = Epoch(4);
const LOWER: Epoch = Epoch(2);

fn messages(branch: BranchId, epoch: Epoch) -> [ToParticipant; 5] {
    [
        ToParticipant::Begin { branch, epoch },
        ToParticipant::Prepare {
            branch,
            epoch,
            work: true,
            may_leave: true,
        },
        ToParticipant::Commit {
            branch,
            epoch,
            one_phase: false,
            work: false,
        },
        ToParticipant::Commit {
            branch,
            epoch,
            one_phase: true,
            work: true,
        },
        ToParticipant::Abort { branch, epoch },
    ]
}

#[test]
fn a_lower_epoch_has_no_effect() {
    for message in messages(ONLY, LOWER) {
        for mut machine in [participant(), with_prepared(), with_active()] {
            let before = machine.clone();
            let stale = FromParticipant::Stale {
                branch: ONLY,
                epoch: LOWER,
                highest: EPOCH,
            };
            let told = step(vec![Effect::Reply {
                token: 8,
                message: stale,
            }]);
            assert_eq!(machine.step(says(8, message.clone())), told);
            assert_eq!(machine, before);
        }
    }
    let mut machine = Participant::new(EPOCH, Gtrid::MIN);
    machine.step(Input::Sweep { listed: vec![ONLY] });
    for decision in [Decision::Commit, Decision::Abort] {
        let old = Input::Decided {
            branch: ONLY,
            epoch: LOWER,
            decision,
        };
        assert_eq!(
            machine.step(old),
            quiet(),
            "an answer of a superseded coordinator"
        );
    }
}

#[test]
fn a_higher_epoch_is_durable_before_anything_leaves() {
    for message in messages(branch(2), HIGHER) {
        let mut machine = participant();
        let step = machine.step(says(1, message));
        assert_eq!(step.append, [ParticipantRecord::Epoch(HIGHER)]);
        assert_eq!(step.after, 1);
        assert_eq!(machine.epoch(), HIGHER);
        let later = machine.step(Input::Sweep { listed: vec![ONLY] });
        assert_eq!(
            (later.append.len(), later.after),
            (0, 1),
            "nor what comes later"
        );
    }
}

#[test]
fn a_higher_epoch_frees_what_is_not_prepared_and_keeps_what_is() {
    let higher = || {
        says(
            9,
            ToParticipant::Abort {
                branch: branch(2),
                epoch: HIGHER,
            },
        )
    };
    let other = run(branch(2), Command::Rollback);
    let mut working = participant();
    working.step(prepare(1));
    let mut machine = with_active();
    let step = machine.step(higher());
    assert_eq!(step.release, [run(ONLY, Command::Rollback), other.clone()]);
    assert_eq!(state(&machine), Some(State::Aborting(Stage::Verb)));

    let mut machine = working;
    let step = machine.step(higher());
    assert_eq!(
        step.release,
        [Effect::Cancel { branch: ONLY }, other.clone()]
    );
    let told = machine.step(prepared(Prepared::Prepared));
    assert_eq!(told.release, [run(ONLY, Command::Rollback)]);
    let told = machine.step(verb(Verb::Done));
    votes_abort(&told, code::ALREADY_ABORTED);

    let mut decides = participant();
    decides.step(one_phase(1, true));
    let mut commits = with_prepared();
    commits.step(commit(2));
    for mut machine in [with_prepared(), decides, commits] {
        let before = state(&machine);
        assert_eq!(machine.step(higher()).release, std::slice::from_ref(&other));
        assert_eq!(state(&machine), before);
    }
}

#[test]
fn a_higher_epoch_drops_the_memory_of_failed_branches() {
    let mut machine = with_active();
    machine.step(Input::Statement {
        token: 2,
        branch: ONLY,
        epoch: EPOCH,
    });
    machine.step(Input::StatementDone {
        branch: ONLY,
        failed: Some(refused()),
    });
    machine.step(verb(Verb::Done));
    assert_eq!(state(&machine), Some(State::Failed(refused())));
    machine.step(says(
        9,
        ToParticipant::Abort {
            branch: branch(2),
            epoch: HIGHER,
        },
    ));
    assert_eq!(state(&machine), None);
}

#[test]
fn a_statement_and_an_answer_raise_the_epoch_too() {
    let mut machine = with_active();
    let step = machine.step(Input::Statement {
        token: 2,
        branch: ONLY,
        epoch: HIGHER,
    });
    assert_eq!(step.append, [ParticipantRecord::Epoch(HIGHER)]);
    assert_eq!(step.release[0], run(ONLY, Command::Rollback));
    let mut machine = with_prepared();
    let answer = Input::Decided {
        branch: ONLY,
        epoch: HIGHER,
        decision: Decision::Running,
    };
    let step = machine.step(answer);
    assert_eq!(step.append, [ParticipantRecord::Epoch(HIGHER)]);
}

#[test]
fn an_answer_goes_back_with_the_epoch_of_its_question() {
    let mut machine = with_prepared();
    machine.step(commit(2));
    let message = ToParticipant::Commit {
        branch: ONLY,
        epoch: HIGHER,
        one_phase: false,
        work: false,
    };
    machine.step(says(3, message));
    let step = machine.step(verb(Verb::Done));
    let epochs: Vec<_> = step
        .release
        .iter()
        .map(|effect| match effect {
            Effect::Reply {
                message: FromParticipant::Finished { epoch, .. },
                ..
            } => *epoch,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(epochs, [EPOCH, HIGHER]);
}

#[test]
fn a_coordinator_that_connects_is_asked_about_all_that_is_in_doubt() {
    let mut machine = participant();
    assert_eq!(machine.step(Input::Linked).release, []);
    machine.step(Input::Sweep {
        listed: vec![branch(1)],
    });
    let step = machine.step(Input::Linked);
    assert_eq!(
        step.release,
        [Effect::Inquire {
            branches: vec![branch(1)]
        }]
    );
}
