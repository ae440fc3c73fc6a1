//! Sweeps, inquiries, and what is forgotten.

use super::*;

fn sweep(listed: &[BranchId]) -> Input {
    Input::Sweep {
        listed: listed.to_vec(),
    }
}

fn asks(branches: &[BranchId]) -> ParticipantStep {
    step(vec![Effect::Inquire {
        branches: branches.to_vec(),
    }])
}

fn restarted() -> Participant {
    let mut machine = Participant::new(EPOCH, Gtrid::MIN);
    assert_eq!(machine.step(sweep(&[ONLY])), asks(&[ONLY]));
    machine
}

#[test]
fn what_a_former_incarnation_left_is_asked_about_at_once() {
    let mut machine = Participant::new(EPOCH, Gtrid::MIN);
    assert_eq!(
        machine.step(sweep(&[branch(2), ONLY])),
        asks(&[ONLY, branch(2)])
    );
    assert_eq!(machine.in_doubt(), 2);
}

#[test]
fn what_was_prepared_here_is_asked_about_after_two_sweeps() {
    let mut machine = with_prepared();
    assert_eq!(machine.step(sweep(&[ONLY])), quiet());
    assert_eq!(machine.step(sweep(&[ONLY])), quiet());
    assert_eq!(machine.step(sweep(&[ONLY])), asks(&[ONLY]));
    assert_eq!(
        machine.step(sweep(&[ONLY])),
        asks(&[ONLY]),
        "until it is answered"
    );
}

#[test]
fn what_is_being_worked_on_is_not_asked_about() {
    let mut working = participant();
    working.step(prepare(1));
    let mut committing = with_prepared();
    committing.step(commit(2));
    let mut aborting = with_prepared();
    aborting.step(abort(2));
    for mut machine in [working, committing, aborting] {
        for _ in 0..5 {
            assert_eq!(machine.step(sweep(&[ONLY])), quiet());
        }
    }
}

#[test]
fn what_is_no_longer_listed_is_asked_about_too() {
    let mut machine = with_prepared();
    machine.step(sweep(&[ONLY]));
    machine.step(sweep(&[]));
    assert_eq!(
        machine.step(sweep(&[])),
        asks(&[ONLY]),
        "somebody finished it by hand"
    );
}

#[test]
fn the_answer_is_carried_out() {
    let mut machine = restarted();
    assert_eq!(
        machine.step(decided(Decision::Commit)),
        runs(Command::Commit)
    );
    assert_eq!(machine.step(verb(Verb::Done)), quiet());
    assert_eq!(state(&machine), None);

    let mut machine = restarted();
    assert_eq!(
        machine.step(decided(Decision::Abort)),
        runs(Command::Rollback)
    );
    assert_eq!(machine.step(verb(Verb::Done)), quiet());
    assert_eq!(state(&machine), None);

    let mut machine = restarted();
    assert_eq!(machine.step(decided(Decision::Running)), quiet());
    assert_eq!(state(&machine), Some(State::Prepared));
}

#[test]
fn what_nobody_remembers_is_left_to_an_operator() {
    let mut machine = restarted();
    assert_eq!(machine.step(decided(Decision::Forgotten)), quiet());
    let entry = machine.branch(ONLY).unwrap();
    assert_eq!(entry.state, State::Prepared);
    assert_eq!(&*entry.reason.as_ref().unwrap().code, code::OUTCOME_UNKNOWN);
    machine.step(sweep(&[]));
    assert_eq!(machine.step(decided(Decision::Forgotten)), quiet());
    assert_eq!(
        state(&machine),
        None,
        "and the server has nothing of it either"
    );
}

#[test]
fn an_answer_has_no_effect_on_what_is_being_worked_on() {
    let mut machine = restarted();
    machine.step(commit(1));
    assert_eq!(machine.step(decided(Decision::Abort)), quiet());
    assert_eq!(state(&machine), Some(State::Committing(Stage::Verb)));
}

#[test]
fn forgetting_is_recorded_before_rows_go() {
    let mut machine = participant();
    let step = machine.step(Input::ForgetBelow { gtrid: g(5) });
    assert_eq!(step.append, [ParticipantRecord::ForgetBelow(g(5))]);
    assert_eq!(
        (step.after, step.release),
        (1, vec![Effect::Prune { below: g(5) }])
    );
    assert_eq!(machine.forget_below(), g(5));
    assert_eq!(machine.step(Input::ForgetBelow { gtrid: g(5) }), quiet());
    assert_eq!(machine.step(Input::ForgetBelow { gtrid: g(4) }), quiet());
}

#[test]
fn what_is_not_over_is_not_forgotten() {
    let mut machine = with_prepared();
    assert_eq!(machine.step(Input::ForgetBelow { gtrid: g(5) }), quiet());
    assert_eq!(machine.forget_below(), Gtrid::MIN);
    let step = machine.step(Input::ForgetBelow { gtrid: ONLY.gtrid });
    assert_eq!(
        step.release,
        [Effect::Prune { below: ONLY.gtrid }],
        "what is below it is"
    );
}

#[test]
fn what_is_unfinished_is_known_from_the_first_sweep_on() {
    let mut machine = Participant::new(EPOCH, Gtrid::MIN);
    assert_eq!(machine.unfinished_from(), None, "it may be anything");
    machine.step(sweep(&[branch(2), branch(3)]));
    assert_eq!(machine.unfinished_from(), Some(branch(2).gtrid));
    machine.step(Input::Decided {
        branch: branch(2),
        epoch: EPOCH,
        decision: Decision::Abort,
    });
    assert_eq!(machine.unfinished_from(), Some(branch(2).gtrid), "not yet");
    machine.step(Input::Verb {
        branch: branch(2),
        result: Verb::Done,
    });
    assert_eq!(machine.unfinished_from(), Some(branch(3).gtrid));

    let mut machine = participant();
    assert_eq!(machine.unfinished_from(), Some(Gtrid::MAX));
    machine.step(prepare(1));
    assert_eq!(machine.unfinished_from(), Some(ONLY.gtrid), "it works");
    machine.step(prepared(Prepared::Prepared));
    assert_eq!(machine.unfinished_from(), Some(ONLY.gtrid));
    machine.step(commit(2));
    machine.step(verb(Verb::Done));
    assert_eq!(machine.unfinished_from(), Some(Gtrid::MAX));
}

#[test]
fn what_nobody_remembers_holds_back_nothing_that_is_still_remembered() {
    let mut machine = Participant::new(EPOCH, Gtrid::MIN);
    machine.step(sweep(&[ONLY, branch(2)]));
    machine.step(decided(Decision::Forgotten));
    assert_eq!(machine.unfinished_from(), Some(branch(2).gtrid));
    machine.step(abort(1));
    assert_eq!(
        machine.unfinished_from(),
        Some(ONLY.gtrid),
        "an operator's order is being carried out"
    );
}
