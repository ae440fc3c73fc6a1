//! Abort, in each state, and its tombstone.

use super::*;

#[test]
fn abort_of_a_prepared_branch() {
    let mut machine = with_prepared();
    assert_eq!(machine.step(abort(2)), runs(Command::Rollback));
    assert_eq!(machine.step(abort(3)), quiet(), "doubled");
    let both = vec![
        finish(2, Finish::Aborted(None)),
        finish(3, Finish::Aborted(None)),
    ];
    assert_eq!(machine.step(verb(Verb::Done)), step(both));
    assert_eq!(state(&machine), None);
}

#[test]
fn abort_of_an_unknown_branch_leaves_a_tombstone() {
    for result in [Verb::NoSuchBranch, Verb::Unknown(why())] {
        let mut machine = participant();
        assert_eq!(machine.step(abort(1)), runs(Command::Rollback));
        assert_eq!(machine.step(verb(result)), runs(Command::Tombstone));
        let done = step(vec![finish(1, Finish::Aborted(None))]);
        assert_eq!(machine.step(ledger(LedgerEntry::Tombstone)), done);
        assert_eq!(state(&machine), None);
    }
}

#[test]
fn abort_of_what_is_committed_says_so() {
    let mut machine = participant();
    machine.step(abort(1));
    machine.step(verb(Verb::NoSuchBranch));
    let done = step(vec![finish(1, Finish::Committed)]);
    assert_eq!(machine.step(ledger(LedgerEntry::Committed)), done);
}

#[test]
fn a_rollback_that_was_not_done_is_tried_again_by_the_sweep() {
    let mut machine = with_prepared();
    machine.step(abort(2));
    let told = step(vec![finish(2, Finish::Retry(why()))]);
    assert_eq!(machine.step(verb(Verb::NotDone(why()))), told);
    assert_eq!(state(&machine), Some(State::AbortLater));
    let again = machine.step(Input::Sweep { listed: vec![ONLY] });
    assert_eq!(again, runs(Command::Rollback));
    assert_eq!(machine.step(verb(Verb::Done)), quiet());
    assert_eq!(state(&machine), None);
}

#[test]
fn a_rollback_that_was_not_done_is_tried_again_by_the_next_abort() {
    let mut machine = with_prepared();
    machine.step(abort(2));
    machine.step(verb(Verb::NotDone(why())));
    assert_eq!(machine.step(abort(3)), runs(Command::Rollback));
    let done = step(vec![finish(3, Finish::Aborted(None))]);
    assert_eq!(machine.step(verb(Verb::Done)), done);
}

#[test]
fn a_tombstone_that_cannot_be_left_is_left_later() {
    let mut machine = participant();
    machine.step(abort(1));
    machine.step(verb(Verb::NoSuchBranch));
    retries(&machine.step(ledger_failed()), code::SERVER_DOWN);
    assert_eq!(state(&machine), Some(State::AbortLater));
    machine.step(abort(2));
    machine.step(verb(Verb::NoSuchBranch));
    retries(
        &machine.step(ledger(LedgerEntry::Absent)),
        code::UNEXPECTED_ANSWER,
    );
    assert_eq!(state(&machine), Some(State::AbortLater));
}

#[test]
fn a_row_held_by_another_connection_is_detached() {
    let mut machine = participant();
    machine.step(abort(1));
    machine.step(verb(Verb::NoSuchBranch));
    let attached = Reason::new(code::BRANCH_ATTACHED, "alive");
    let told = machine.step(Input::Ledger {
        branch: ONLY,
        result: Err(attached),
    });
    assert_eq!(told.release[0], Effect::Detach { branch: ONLY });
    retries(&told, code::BRANCH_ATTACHED);
}

#[test]
fn abort_waits_for_the_work_and_interrupts_it() {
    let mut machine = participant();
    machine.step(prepare(1));
    assert_eq!(
        machine.step(abort(2)),
        step(vec![Effect::Cancel { branch: ONLY }])
    );
    let mut unknown = machine.clone();
    let done = step(vec![finish(2, Finish::Aborted(None))]);

    // A vote ABORT counts as an acknowledgement, so it waits until it is true.
    assert_eq!(
        machine.step(prepared(Prepared::Prepared)),
        runs(Command::Rollback)
    );
    let told = machine.step(verb(Verb::Done));
    votes_abort(&told, code::ALREADY_ABORTED);
    assert_eq!(told.release[1..], [finish(2, Finish::Aborted(None))]);

    let told = unknown.step(prepared(Prepared::Unknown(why())));
    assert_eq!(
        told.release,
        [
            vote(1, Vote::Aborting(why())),
            run(ONLY, Command::Tombstone)
        ]
    );
    assert_eq!(unknown.step(ledger(LedgerEntry::Tombstone)), done);
}

#[test]
fn a_rollback_that_may_still_happen_ends_with_a_tombstone() {
    let mut machine = with_prepared();
    machine.step(abort(2));
    assert_eq!(
        machine.step(verb(Verb::Unknown(why()))),
        runs(Command::Tombstone)
    );
    retries(&machine.step(ledger_failed()), code::SERVER_DOWN);
    assert_eq!(machine.step(abort(3)), runs(Command::Rollback));
    assert_eq!(machine.step(verb(Verb::Done)), runs(Command::Tombstone));
    let done = step(vec![finish(3, Finish::Aborted(None))]);
    assert_eq!(machine.step(ledger(LedgerEntry::Tombstone)), done);
}

#[test]
fn abort_of_work_that_failed_by_itself_is_done() {
    let mut machine = participant();
    machine.step(prepare(1));
    machine.step(abort(2));
    let both = vec![
        vote(1, Vote::Abort(refused())),
        finish(2, Finish::Aborted(Some(refused()))),
    ];
    assert_eq!(
        machine.step(prepared(Prepared::NotPrepared(refused()))),
        step(both)
    );
    assert_eq!(state(&machine), None);
}

#[test]
fn abort_while_committing_is_told_how_it_ended() {
    let mut machine = with_prepared();
    machine.step(commit(2));
    assert_eq!(machine.step(abort(3)), quiet());
    let both = vec![finish(2, Finish::Committed), finish(3, Finish::Committed)];
    assert_eq!(machine.step(verb(Verb::Done)), step(both));
}

#[test]
fn a_rollback_of_ones_own_that_finds_a_commit_asks_whether_that_is_damage() {
    let mut machine = participant();
    machine.step(prepare(1));
    machine.step(prepared(Prepared::Unknown(why())));
    assert_eq!(machine.step(ledger(LedgerEntry::Committed)), quiet());
    let asks = step(vec![Effect::Inquire {
        branches: vec![ONLY],
    }]);
    assert_eq!(machine.step(Input::Sweep { listed: vec![] }), asks);

    let mut doubled = machine.clone();
    assert_eq!(
        doubled.step(decided(Decision::Commit)),
        runs(Command::Commit)
    );
    doubled.step(verb(Verb::NoSuchBranch));
    assert_eq!(
        doubled.step(ledger(LedgerEntry::Committed)),
        quiet(),
        "a doubled Prepare"
    );
    assert_eq!(state(&doubled), None);

    assert_eq!(
        machine.step(decided(Decision::Abort)),
        runs(Command::Rollback)
    );
    machine.step(verb(Verb::NoSuchBranch));
    let told = machine.step(ledger(LedgerEntry::Committed));
    let [ParticipantRecord::Damage { reason, .. }] = told.append.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(&*reason.code, code::HEURISTIC_COMMIT, "a commit by hand");
}

/// The answer may be lost, and the coordinator may not wait for it: found by the model checker.
#[test]
fn a_commit_by_hand_that_an_abort_finds_is_on_record_here() {
    let mut listed = participant();
    listed.step(Input::Sweep { listed: vec![ONLY] });
    for mut machine in [with_prepared(), listed] {
        assert_eq!(machine.step(abort(2)), runs(Command::Rollback));
        machine.step(verb(Verb::NoSuchBranch));
        let told = machine.step(ledger(LedgerEntry::Committed));
        let [ParticipantRecord::Damage { reason, .. }] = told.append.as_slice() else {
            panic!("{told:?}")
        };
        assert_eq!(&*reason.code, code::HEURISTIC_COMMIT);
        assert_eq!(told.after, 1, "it is durable before it is told");
        assert_eq!(told.release[1..], [finish(2, Finish::Committed)]);
        assert_eq!(state(&machine), None);
    }
}
