//! Commit, and finding out what became of it.

use super::*;

fn damage(code: &str, step: &ParticipantStep, token: Option<Token>) {
    let [
        ParticipantRecord::Damage {
            gtrid,
            bqual,
            reason,
        },
    ] = step.append.as_slice()
    else {
        panic!("{step:?}")
    };
    assert_eq!((*gtrid, *bqual), (ONLY.gtrid, ONLY.bqual));
    assert_eq!(&*reason.code, code);
    assert_eq!(step.after, 1, "it is told only when it is on record");
    let mut expected = vec![Effect::Damaged {
        branch: ONLY,
        reason: reason.clone(),
    }];
    expected.extend(token.map(|token| finish(token, Finish::Damaged(reason.clone()))));
    assert_eq!(step.release, expected);
}

#[test]
fn commit_of_a_prepared_branch() {
    let mut machine = with_prepared();
    assert_eq!(machine.in_doubt(), 1);
    assert_eq!(machine.step(commit(2)), runs(Command::Commit));
    assert_eq!(state(&machine), Some(State::Committing(Stage::Verb)));
    assert_eq!(machine.step(commit(3)), quiet(), "doubled");
    let both = vec![finish(2, Finish::Committed), finish(3, Finish::Committed)];
    assert_eq!(machine.step(verb(Verb::Done)), step(both));
    assert_eq!((state(&machine), machine.in_doubt()), (None, 0));
}

#[test]
fn commit_of_an_unknown_branch_asks_the_server() {
    let mut machine = participant();
    assert_eq!(machine.step(commit(1)), runs(Command::Commit));
    machine.step(verb(Verb::NoSuchBranch));
    let done = step(vec![finish(1, Finish::Committed)]);
    assert_eq!(
        machine.step(ledger(LedgerEntry::Committed)),
        done,
        "committed before"
    );
    assert_eq!(state(&machine), None);
}

#[test]
fn a_commit_that_was_not_done_is_tried_again() {
    let mut machine = with_prepared();
    machine.step(commit(2));
    let told = step(vec![finish(2, Finish::Retry(why()))]);
    assert_eq!(machine.step(verb(Verb::NotDone(why()))), told);
    assert_eq!(state(&machine), Some(State::Prepared));
    assert_eq!(machine.branch(ONLY).unwrap().reason, Some(why()));
    assert_eq!(machine.step(commit(3)), runs(Command::Commit));
}

#[test]
fn nota_and_no_answer_are_neither_success_nor_failure() {
    for result in [Verb::NoSuchBranch, Verb::Unknown(why())] {
        let mut machine = with_prepared();
        machine.step(commit(2));
        assert_eq!(machine.step(verb(result)), runs(Command::ReadLedger));
        assert_eq!(state(&machine), Some(State::Committing(Stage::Ledger)));
        let done = step(vec![finish(2, Finish::Committed)]);
        assert_eq!(machine.step(ledger(LedgerEntry::Committed)), done);
    }
}

#[test]
fn a_branch_attached_to_another_connection_is_detached_and_tried_again() {
    let mut machine = with_prepared();
    machine.step(commit(2));
    machine.step(verb(Verb::NoSuchBranch));
    assert_eq!(
        machine.step(ledger(LedgerEntry::Absent)),
        runs(Command::List)
    );
    let told = machine.step(listed(true));
    assert_eq!(told.release[0], Effect::Detach { branch: ONLY });
    retries(&told, code::BRANCH_ATTACHED);
    assert_eq!(state(&machine), Some(State::Prepared));
}

#[test]
fn a_branch_that_is_gone_is_damage_when_it_is_gone_twice() {
    let mut machine = with_prepared();
    for token in [2, 3] {
        assert_eq!(machine.step(commit(token)), runs(Command::Commit));
        assert_eq!(
            machine.step(verb(Verb::NoSuchBranch)),
            runs(Command::ReadLedger)
        );
        assert_eq!(
            machine.step(ledger(LedgerEntry::Absent)),
            runs(Command::List)
        );
        assert_eq!(machine.step(listed(false)), runs(Command::ReadLedger));
        assert_eq!(state(&machine), Some(State::Committing(Stage::LastLook)));
        let told = machine.step(ledger(LedgerEntry::Absent));
        if token == 2 {
            retries(&told, code::HEURISTIC_UNKNOWN);
        } else {
            damage(code::HEURISTIC_ROLLBACK, &told, Some(token));
        }
    }
    assert_eq!(state(&machine), None);
}

#[test]
fn a_row_that_shows_at_the_last_look_is_a_commit() {
    let mut machine = with_prepared();
    machine.step(commit(2));
    machine.step(verb(Verb::NoSuchBranch));
    machine.step(ledger(LedgerEntry::Absent));
    machine.step(listed(false));
    let done = step(vec![finish(2, Finish::Committed)]);
    assert_eq!(machine.step(ledger(LedgerEntry::Committed)), done);
}

#[test]
fn being_listed_in_between_clears_the_suspicion() {
    let mut machine = with_prepared();
    for lists in [false, true, false] {
        machine.step(commit(2));
        machine.step(verb(Verb::NoSuchBranch));
        machine.step(ledger(LedgerEntry::Absent));
        let told = machine.step(listed(lists));
        if lists {
            retries(&told, code::BRANCH_ATTACHED);
        } else {
            retries(
                &machine.step(ledger(LedgerEntry::Absent)),
                code::HEURISTIC_UNKNOWN,
            );
        }
    }
}

#[test]
fn a_tombstone_where_a_commit_was_ordered_is_damage() {
    let mut machine = with_prepared();
    machine.step(commit(2));
    machine.step(verb(Verb::NoSuchBranch));
    damage(
        code::HEURISTIC_ROLLBACK,
        &machine.step(ledger(LedgerEntry::Tombstone)),
        Some(2),
    );
    assert_eq!(state(&machine), None);
}

#[test]
fn a_question_that_gets_no_answer_is_asked_again_later() {
    let mut machine = with_prepared();
    machine.step(commit(2));
    machine.step(verb(Verb::Unknown(why())));
    retries(&machine.step(ledger_failed()), code::SERVER_DOWN);
    machine.step(commit(3));
    machine.step(verb(Verb::Unknown(why())));
    machine.step(ledger(LedgerEntry::Absent));
    let failed = Input::Listed {
        branch: ONLY,
        result: Err(why()),
    };
    retries(&machine.step(failed), code::SERVER_DOWN);
    assert_eq!(state(&machine), Some(State::Prepared));
}

#[test]
fn a_commit_of_what_never_voted_is_an_echo() {
    let mut working = participant();
    working.step(prepare(1));
    let mut aborting = participant();
    aborting.step(abort(1));
    for mut machine in [working, aborting, with_active()] {
        let before = state(&machine);
        retries(&machine.step(commit(2)), code::WRONG_STATE);
        assert_eq!(state(&machine), before);
    }
}

#[test]
fn a_commit_of_what_everybody_acknowledged_leaves_nothing_behind() {
    let mut machine = participant();
    machine.step(Input::ForgetBelow { gtrid: g(2) });
    let told = machine.step(commit(1));
    assert_eq!(told.append, []);
    retries(&told, code::GTRID_TOO_OLD);
    assert_eq!(machine.branch_count(), 0);
}

#[test]
fn damage_that_nobody_waits_for_is_recorded_too() {
    let mut machine = Participant::new(EPOCH, Gtrid::MIN);
    machine.step(Input::Sweep { listed: vec![ONLY] });
    assert_eq!(
        machine.step(decided(Decision::Commit)),
        runs(Command::Commit)
    );
    machine.step(verb(Verb::NoSuchBranch));
    damage(
        code::HEURISTIC_ROLLBACK,
        &machine.step(ledger(LedgerEntry::Tombstone)),
        None,
    );
}
