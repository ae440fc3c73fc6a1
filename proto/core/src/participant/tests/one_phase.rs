//! One phase: the participant decides.

use super::*;

fn done(result: OnePhase) -> Input {
    Input::OnePhase {
        branch: ONLY,
        result,
    }
}

fn aborted(token: Token) -> ParticipantStep {
    step(vec![finish(token, Finish::Aborted(Some(refused())))])
}

#[test]
fn a_commit_in_one_phase() {
    let mut machine = participant();
    assert_eq!(
        machine.step(one_phase(1, true)),
        runs(Command::CommitOnePhase { work: true })
    );
    assert_eq!(machine.step(one_phase(2, true)), quiet(), "doubled");
    assert_eq!(machine.step(abort(3)), quiet(), "it cannot be overruled");
    let told = [1, 2, 3]
        .map(|token| finish(token, Finish::Committed))
        .to_vec();
    assert_eq!(machine.step(done(OnePhase::Committed)), step(told));
    assert_eq!(state(&machine), None);
}

#[test]
fn a_failed_one_is_told_only_when_it_can_never_succeed() {
    for result in [
        OnePhase::NotCommitted(refused()),
        OnePhase::Unknown(refused()),
    ] {
        let mut machine = participant();
        machine.step(one_phase(1, true));
        assert_eq!(machine.step(done(result)), runs(Command::Tombstone));
        assert_eq!(state(&machine), Some(State::Aborting(Stage::Ledger)));
        assert_eq!(machine.step(ledger(LedgerEntry::Tombstone)), aborted(1));
        assert_eq!(state(&machine), None);
    }
}

#[test]
fn the_ledger_row_overrules_a_failure() {
    for result in [
        OnePhase::NotCommitted(refused()),
        OnePhase::Unknown(refused()),
    ] {
        let mut machine = participant();
        machine.step(one_phase(1, true));
        machine.step(done(result));
        let told = step(vec![finish(1, Finish::Committed)]);
        assert_eq!(machine.step(ledger(LedgerEntry::Committed)), told);
    }
}

#[test]
fn a_tombstone_that_cannot_be_left_is_told_as_retry_and_the_reason_is_kept() {
    let mut machine = participant();
    machine.step(one_phase(1, true));
    machine.step(done(OnePhase::NotCommitted(refused())));
    retries(&machine.step(ledger_failed()), code::SERVER_DOWN);
    assert_eq!(machine.step(abort(2)), runs(Command::Rollback));
    machine.step(verb(Verb::NoSuchBranch));
    assert_eq!(machine.step(ledger(LedgerEntry::Tombstone)), aborted(2));
}

#[test]
fn an_open_branch_is_committed_in_one_phase() {
    let mut machine = with_active();
    let expected = runs(Command::CommitOnePhase { work: false });
    assert_eq!(machine.step(one_phase(2, false)), expected);
    let told = step(vec![finish(2, Finish::Committed)]);
    assert_eq!(machine.step(done(OnePhase::Committed)), told);
}

#[test]
fn an_open_branch_that_is_gone_is_looked_up() {
    let mut machine = participant();
    assert_eq!(machine.step(one_phase(1, false)), runs(Command::Tombstone));
    let mut committed = machine.clone();
    let told = step(vec![finish(1, Finish::Committed)]);
    assert_eq!(
        committed.step(ledger(LedgerEntry::Committed)),
        told,
        "its answer was lost"
    );
    let told = machine.step(ledger(LedgerEntry::Tombstone));
    let [
        Effect::Reply {
            message: FromParticipant::Finished { finish, .. },
            ..
        },
    ] = told.release.as_slice()
    else {
        panic!("{told:?}")
    };
    let Finish::Aborted(Some(reason)) = finish else {
        panic!("{finish:?}")
    };
    assert_eq!(&*reason.code, code::BRANCH_LOST);
}

#[test]
fn a_failed_branch_tells_why() {
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
    assert_eq!(machine.step(one_phase(3, false)), aborted(3));
    assert_eq!(state(&machine), None);
}

#[test]
fn in_other_states_it_is_told_to_ask_again() {
    let mut working = participant();
    working.step(prepare(1));
    let mut executing = with_active();
    executing.step(Input::Statement {
        token: 2,
        branch: ONLY,
        epoch: EPOCH,
    });
    let mut later = with_prepared();
    later.step(abort(2));
    later.step(verb(Verb::NotDone(why())));
    for mut machine in [working, executing, later, with_prepared()] {
        let before = state(&machine);
        retries(&machine.step(one_phase(9, false)), code::WRONG_STATE);
        assert_eq!(state(&machine), before);
    }
}

#[test]
fn what_is_being_finished_tells_its_end() {
    let mut machine = with_prepared();
    machine.step(abort(2));
    assert_eq!(machine.step(one_phase(3, true)), quiet());
    let told = vec![
        finish(2, Finish::Aborted(None)),
        finish(3, Finish::Aborted(None)),
    ];
    assert_eq!(machine.step(verb(Verb::Done)), step(told));
}

#[test]
fn below_what_is_remembered_nothing_is_committed() {
    let mut machine = participant();
    machine.step(Input::ForgetBelow { gtrid: g(2) });
    let told = machine.step(one_phase(1, true));
    let [
        Effect::Reply {
            message: FromParticipant::Finished { finish, .. },
            ..
        },
    ] = told.release.as_slice()
    else {
        panic!("{told:?}")
    };
    let Finish::Aborted(Some(reason)) = finish else {
        panic!("{finish:?}")
    };
    assert_eq!(&*reason.code, code::GTRID_TOO_OLD);
}
