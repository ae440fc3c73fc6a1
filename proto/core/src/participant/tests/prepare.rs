//! Prepare and the vote.

use super::*;

const PREPARE: Command = Command::Prepare {
    work: true,
    may_leave: true,
};

#[test]
fn prepare_with_work_runs_it_and_votes_by_its_result() {
    for (result, expected) in [
        (Prepared::Prepared, Vote::Commit),
        (Prepared::ReadOnly, Vote::ReadOnly),
        (Prepared::NotPrepared(refused()), Vote::Abort(refused())),
    ] {
        let mut machine = participant();
        assert_eq!(machine.step(prepare(1)), runs(PREPARE));
        let stays = result == Prepared::Prepared;
        assert_eq!(
            machine.step(prepared(result)),
            step(vec![vote(1, expected)])
        );
        assert_eq!(state(&machine), stays.then_some(State::Prepared));
    }
}

#[test]
fn prepare_passes_on_whether_the_branch_may_leave() {
    let mut machine = participant();
    let message = ToParticipant::Prepare {
        branch: ONLY,
        epoch: EPOCH,
        work: true,
        may_leave: false,
    };
    let expected = Command::Prepare {
        work: true,
        may_leave: false,
    };
    assert_eq!(machine.step(says(1, message)), runs(expected));
}

#[test]
fn prepare_without_work_of_an_unknown_branch_is_a_vote_abort() {
    let mut machine = participant();
    votes_abort(&machine.step(prepare_of(ONLY, 1, false)), code::BRANCH_LOST);
    assert_eq!(state(&machine), None);
}

#[test]
fn an_unknown_result_is_a_vote_abort_that_is_made_true() {
    let mut machine = participant();
    machine.step(prepare(1));
    let expected = step(vec![
        vote(1, Vote::Aborting(why())),
        run(ONLY, Command::Tombstone),
    ]);
    assert_eq!(machine.step(prepared(Prepared::Unknown(why()))), expected);
    assert_eq!(state(&machine), Some(State::Aborting(Stage::Bar)));
    // The vote is no acknowledgement: that is the answer to the Abort which it brings.
    assert_eq!(machine.step(abort(2)), quiet());
    let done = step(vec![finish(2, Finish::Aborted(None))]);
    assert_eq!(machine.step(ledger(LedgerEntry::Tombstone)), done);
    assert_eq!(state(&machine), None);
}

#[test]
fn what_an_unknown_result_prepared_after_all_is_rolled_back_and_barred() {
    let mut machine = participant();
    machine.step(prepare(1));
    machine.step(prepared(Prepared::Unknown(why())));
    assert_eq!(machine.step(ledger_failed()), runs(Command::Rollback));
    assert_eq!(machine.step(verb(Verb::Done)), runs(Command::Tombstone));
    assert_eq!(machine.step(ledger(LedgerEntry::Tombstone)), quiet());
    assert_eq!(state(&machine), None);
}

#[test]
fn a_doubled_prepare_shares_the_vote_or_gets_it_again() {
    let mut machine = participant();
    machine.step(prepare(1));
    assert_eq!(machine.step(prepare(2)), quiet());
    let both = vec![vote(1, Vote::Commit), vote(2, Vote::Commit)];
    assert_eq!(machine.step(prepared(Prepared::Prepared)), step(both));
    assert_eq!(machine.step(prepare(3)), step(vec![vote(3, Vote::Commit)]));
    machine.step(commit(4));
    assert_eq!(
        machine.step(prepare(5)),
        step(vec![vote(5, Vote::Commit)]),
        "committing"
    );
}

#[test]
fn a_prepare_after_the_abort_votes_abort() {
    let mut machine = participant();
    machine.step(abort(1));
    votes_aborting(&machine.step(prepare(2)), code::ALREADY_ABORTED);
    machine.step(verb(Verb::NotDone(why())));
    assert_eq!(state(&machine), Some(State::AbortLater));
    votes_aborting(&machine.step(prepare(3)), code::ALREADY_ABORTED);
}

#[test]
fn a_prepare_while_an_abort_waits_for_the_work_votes_abort() {
    let mut machine = participant();
    machine.step(prepare(1));
    let expected = step(vec![Effect::Cancel { branch: ONLY }]);
    assert_eq!(machine.step(abort(2)), expected);
    votes_aborting(&machine.step(prepare(3)), code::WRONG_STATE);
}

#[test]
fn below_what_is_remembered_nothing_is_prepared() {
    let mut machine = participant();
    machine.step(Input::ForgetBelow { gtrid: g(2) });
    votes_abort(&machine.step(prepare(1)), code::GTRID_TOO_OLD);
    assert_eq!(state(&machine), None);
}

#[test]
fn before_the_first_list_nothing_is_begun_or_prepared() {
    let mut machine = Participant::new(EPOCH, Gtrid::MIN);
    votes_abort(&machine.step(prepare(1)), code::SERVER_DOWN);
    retries(&machine.step(one_phase(2, true)), code::SERVER_DOWN);
    let begin = machine.step(says(
        3,
        ToParticipant::Begin {
            branch: ONLY,
            epoch: EPOCH,
        },
    ));
    let [
        Effect::Reply {
            message:
                FromParticipant::Begun {
                    result: Err(reason),
                    ..
                },
            ..
        },
    ] = begin.release.as_slice()
    else {
        panic!("{begin:?}")
    };
    assert_eq!(&*reason.code, code::SERVER_DOWN);
    assert_eq!(machine.step(Input::ForgetBelow { gtrid: g(9) }), quiet());
    assert_eq!(machine.branch_count(), 0);
    machine.step(Input::Sweep { listed: vec![] });
    assert_eq!(machine.step(prepare(4)), runs(PREPARE));
}

#[test]
fn a_doubled_prepare_after_a_restart_leaves_the_prepared_branch_alone() {
    let mut machine = Participant::new(EPOCH, Gtrid::MIN);
    machine.step(Input::Sweep { listed: vec![ONLY] });
    let step = machine.step(prepare(1));
    votes_abort(&step, code::BRANCH_LOST);
    assert_eq!(
        step.release.len(),
        1,
        "its former vote may have been counted"
    );
    assert_eq!(state(&machine), Some(State::Prepared));
    assert_eq!(machine.step(commit(2)), runs(Command::Commit));
}

#[test]
fn results_that_nobody_asked_for_have_no_effect() {
    let mut machine = participant();
    for input in [
        prepared(Prepared::Prepared),
        verb(Verb::Done),
        ledger(LedgerEntry::Committed),
        listed(true),
        decided(Decision::Commit),
        Input::OnePhase {
            branch: ONLY,
            result: OnePhase::Committed,
        },
        Input::Begun {
            branch: ONLY,
            result: Ok(()),
        },
        Input::StatementDone {
            branch: ONLY,
            failed: None,
        },
        Input::Expired { branch: ONLY },
    ] {
        assert_eq!(machine.step(input.clone()), quiet(), "{input:?}");
    }
    let mut machine = with_prepared();
    let before = machine.clone();
    for input in [
        prepared(Prepared::NotPrepared(why())),
        verb(Verb::Done),
        ledger(LedgerEntry::Committed),
        listed(false),
        Input::OnePhase {
            branch: ONLY,
            result: OnePhase::Committed,
        },
        Input::StatementDone {
            branch: ONLY,
            failed: Some(why()),
        },
        Input::Expired { branch: ONLY },
    ] {
        assert_eq!(machine.step(input.clone()), quiet(), "{input:?}");
    }
    assert_eq!(machine, before);
}
