//! Branches that are opened, given statements one by one, and then asked to vote.

use super::*;

fn begin(token: Token) -> Input {
    says(
        token,
        ToParticipant::Begin {
            branch: ONLY,
            epoch: EPOCH,
        },
    )
}

fn begun(token: Token, result: Result<(), Reason>) -> Effect {
    Effect::Reply {
        token,
        message: FromParticipant::Begun {
            branch: ONLY,
            epoch: EPOCH,
            result,
        },
    }
}

fn statement(token: Token) -> Input {
    Input::Statement {
        token,
        branch: ONLY,
        epoch: EPOCH,
    }
}

fn done(failed: Option<Reason>) -> Input {
    Input::StatementDone {
        branch: ONLY,
        failed,
    }
}

fn refuses(step: &ParticipantStep, code: &str) {
    let [Effect::StatementRefused { reason, .. }] = step.release.as_slice() else {
        panic!("{step:?}")
    };
    assert_eq!(&*reason.code, code);
}

fn executing() -> Participant {
    let mut machine = with_active();
    let expected = step(vec![Effect::RunStatement {
        token: 7,
        branch: ONLY,
    }]);
    assert_eq!(machine.step(statement(7)), expected);
    machine
}

/// A branch whose statement failed and that is rolled back.
fn failed() -> Participant {
    let mut machine = executing();
    assert_eq!(machine.step(done(Some(refused()))), runs(Command::Rollback));
    assert_eq!(machine.step(verb(Verb::Done)), quiet());
    assert_eq!(state(&machine), Some(State::Failed(refused())));
    machine
}

#[test]
fn begin_opens_a_branch_once() {
    let mut machine = participant();
    assert_eq!(machine.step(begin(1)), runs(Command::Begin));
    assert_eq!(machine.step(begin(2)), quiet(), "doubled");
    let both = vec![begun(1, Ok(())), begun(2, Ok(()))];
    assert_eq!(
        machine.step(Input::Begun {
            branch: ONLY,
            result: Ok(())
        }),
        step(both)
    );
    assert_eq!(machine.step(begin(3)), step(vec![begun(3, Ok(()))]), "late");
}

#[test]
fn a_begin_that_failed_leaves_nothing() {
    let mut machine = participant();
    machine.step(begin(1));
    let told = step(vec![begun(1, Err(why()))]);
    assert_eq!(
        machine.step(Input::Begun {
            branch: ONLY,
            result: Err(why())
        }),
        told
    );
    assert_eq!(state(&machine), None);
}

#[test]
fn begin_is_refused_where_it_makes_no_sense() {
    let refused_begin = |machine: &mut Participant| {
        let step = machine.step(begin(9));
        let [
            Effect::Reply {
                message:
                    FromParticipant::Begun {
                        result: Err(reason),
                        ..
                    },
                ..
            },
        ] = step.release.as_slice()
        else {
            panic!("{step:?}")
        };
        reason.code.to_string()
    };
    assert_eq!(refused_begin(&mut with_prepared()), code::WRONG_STATE);
    assert_eq!(refused_begin(&mut executing()), code::WRONG_STATE);
    assert_eq!(refused_begin(&mut failed()), code::INSUFFICIENT_FUNDS);
    let mut machine = participant();
    machine.step(Input::ForgetBelow { gtrid: g(2) });
    assert_eq!(refused_begin(&mut machine), code::GTRID_TOO_OLD);
}

#[test]
fn statements_run_one_at_a_time() {
    let mut machine = executing();
    refuses(&machine.step(statement(8)), code::WRONG_STATE);
    assert_eq!(machine.step(done(None)), quiet());
    assert_eq!(state(&machine), Some(State::Active));
    let expected = step(vec![Effect::RunStatement {
        token: 9,
        branch: ONLY,
    }]);
    assert_eq!(machine.step(statement(9)), expected);
}

#[test]
fn statements_are_refused_where_they_make_no_sense() {
    refuses(&participant().step(statement(1)), code::BRANCH_LOST);
    refuses(&with_prepared().step(statement(1)), code::WRONG_STATE);
    refuses(&failed().step(statement(1)), code::INSUFFICIENT_FUNDS);
    let stale = Input::Statement {
        token: 1,
        branch: ONLY,
        epoch: Epoch(2),
    };
    refuses(&with_active().step(stale), code::STALE_EPOCH);
}

#[test]
fn a_failed_statement_poisons_its_branch() {
    let mut machine = failed();
    let told = step(vec![vote(3, Vote::Abort(refused()))]);
    assert_eq!(machine.step(prepare_of(ONLY, 3, false)), told);
    assert_eq!(state(&machine), None, "its coordinator knows");
    let told = step(vec![finish(3, Finish::Aborted(None))]);
    assert_eq!(failed().step(abort(3)), told);
}

#[test]
fn an_abort_that_is_waiting_hears_why_a_statement_failed() {
    let mut machine = executing();
    assert_eq!(
        machine.step(abort(2)),
        step(vec![Effect::Cancel { branch: ONLY }])
    );
    assert_eq!(machine.step(done(Some(refused()))), runs(Command::Rollback));
    let told = step(vec![finish(2, Finish::Aborted(Some(refused())))]);
    assert_eq!(machine.step(verb(Verb::Done)), told);
    assert_eq!(state(&machine), None);
}

#[test]
fn an_abort_ends_a_branch_whose_statement_succeeds_or_that_is_being_opened() {
    let mut machine = executing();
    machine.step(abort(2));
    assert_eq!(machine.step(done(None)), runs(Command::Rollback));
    let mut machine = participant();
    machine.step(begin(1));
    machine.step(abort(2));
    let told = step(vec![begun(1, Ok(())), run(ONLY, Command::Rollback)]);
    assert_eq!(
        machine.step(Input::Begun {
            branch: ONLY,
            result: Ok(())
        }),
        told
    );
    let mut machine = participant();
    machine.step(begin(1));
    machine.step(abort(2));
    let told = step(vec![begun(1, Err(why())), finish(2, Finish::Aborted(None))]);
    assert_eq!(
        machine.step(Input::Begun {
            branch: ONLY,
            result: Err(why())
        }),
        told
    );
}

#[test]
fn prepare_of_an_open_branch() {
    let mut machine = with_active();
    let expected = Command::Prepare {
        work: false,
        may_leave: true,
    };
    assert_eq!(machine.step(prepare_of(ONLY, 2, false)), runs(expected));
    let told = step(vec![vote(2, Vote::Commit)]);
    assert_eq!(machine.step(prepared(Prepared::Prepared)), told);
}

#[test]
fn prepare_of_a_busy_branch_is_a_vote_abort_that_comes_true() {
    let mut opening = participant();
    opening.step(begin(1));
    for mut machine in [executing(), opening] {
        let told = machine.step(prepare_of(ONLY, 2, false));
        votes_aborting(&told, code::WRONG_STATE);
        assert_eq!(told.release[1..], [Effect::Cancel { branch: ONLY }]);
    }
    let told = with_active().step(prepare_of(ONLY, 2, true));
    votes_aborting(&told, code::WRONG_STATE);
    assert_eq!(told.release[1..], [run(ONLY, Command::Rollback)]);
}

#[test]
fn an_unprepared_branch_expires() {
    let expired = || Input::Expired { branch: ONLY };
    let mut machine = with_active();
    assert_eq!(machine.step(expired()), runs(Command::Rollback));
    assert_eq!(machine.step(verb(Verb::Done)), quiet());
    let told = machine.step(prepare_of(ONLY, 2, false));
    votes_abort(&told, code::DEADLINE_EXCEEDED);
    let mut machine = executing();
    assert_eq!(
        machine.step(expired()),
        step(vec![Effect::Cancel { branch: ONLY }])
    );
    let mut machine = failed();
    assert_eq!(machine.step(expired()), quiet());
    assert_eq!(state(&machine), None);
    let mut machine = with_prepared();
    assert_eq!(machine.step(expired()), quiet());
    assert_eq!(
        state(&machine),
        Some(State::Prepared),
        "a vote COMMIT never expires"
    );
}
