//! Each invariant holds for facts that are right, and is violated by those that it is there for.

use super::*;

fn branch(fate: Fate) -> BranchFacts {
    BranchFacts {
        fate,
        voted_commit: true,
        acknowledged: true,
        ..BranchFacts::default()
    }
}

/// A transaction that is decided, with these branches.
fn facts(fates: &[Fate]) -> Facts {
    let branches = (1..)
        .map(Bqual)
        .zip(fates.iter().copied().map(branch))
        .collect();
    Facts {
        branches,
        durable: true,
        ..Facts::default()
    }
}

fn edit(facts: &Facts, bqual: u32, edit: impl Fn(&mut BranchFacts)) -> Facts {
    let mut facts = facts.clone();
    edit(facts.branches.get_mut(&Bqual(bqual)).unwrap());
    facts
}

fn violated(verdict: Verdict) -> Option<Invariant> {
    verdict.err().map(|violation| violation.invariant)
}

#[test]
fn a_transaction_that_goes_well_violates_nothing() {
    for promised in [false, true] {
        for second in [Fate::Committed, Fate::Prepared] {
            let good = Facts {
                promised,
                ..facts(&[Fate::Committed, second])
            };
            let good = edit(&good, 2, |branch| branch.told_commit = true);
            assert_eq!(check(&good), Ok(()));
        }
    }
    let aborted = Facts {
        durable: false,
        refused: true,
        ..edit(&facts(&[Fate::RolledBack, Fate::Open]), 1, |branch| {
            branch.told_abort = true;
        })
    };
    assert_eq!(check(&aborted), Ok(()));
    assert_eq!(check(&Facts::default()), Ok(()));
}

#[test]
fn atomicity_needs_all_or_none() {
    for other in [Fate::RolledBack, Fate::Open] {
        let torn = facts(&[Fate::Committed, other]);
        assert_eq!(violated(atomicity(&torn)), Some(Invariant::Atomicity));
        assert_eq!(violated(check(&torn)), Some(Invariant::Atomicity));
        let left = edit(&torn, 2, |branch| branch.left = true);
        assert_eq!(atomicity(&left), Ok(()));
        assert_eq!(
            atomicity(&Facts {
                interfered: true,
                ..torn
            }),
            Ok(())
        );
    }
    assert_eq!(
        atomicity(&facts(&[Fate::RolledBack, Fate::Prepared])),
        Ok(())
    );
}

#[test]
fn a_branch_that_left_is_never_committed() {
    let left = edit(&facts(&[Fate::Committed, Fate::Committed]), 2, |branch| {
        branch.left = true;
    });
    assert_eq!(violated(atomicity(&left)), Some(Invariant::Atomicity));
}

#[test]
fn a_promise_needs_a_commit_or_a_durable_decision() {
    let told = |fate| Facts {
        promised: true,
        ..facts(&[Fate::Committed, fate])
    };
    for fate in [Fate::Open, Fate::RolledBack] {
        assert_eq!(
            violated(promise_kept(&told(fate))),
            Some(Invariant::PromiseKept)
        );
    }
    assert_eq!(promise_kept(&told(Fate::Prepared)), Ok(()));
    let volatile = Facts {
        durable: false,
        ..told(Fate::Prepared)
    };
    assert_eq!(
        violated(promise_kept(&volatile)),
        Some(Invariant::PromiseKept)
    );
    let delegated = Facts {
        one_phase: true,
        ..told(Fate::Prepared)
    };
    assert_eq!(
        violated(promise_kept(&delegated)),
        Some(Invariant::PromiseKept)
    );
}

#[test]
fn a_refusal_allows_no_commit() {
    let told = |fate| Facts {
        refused: true,
        ..facts(&[Fate::RolledBack, fate])
    };
    assert_eq!(
        violated(refusal_kept(&told(Fate::Committed))),
        Some(Invariant::RefusalKept)
    );
    for fate in [Fate::Open, Fate::Prepared, Fate::RolledBack] {
        assert_eq!(refusal_kept(&told(fate)), Ok(()));
    }
}

#[test]
fn commit_and_abort_exclude_each_other_unless_abort_is_a_question() {
    let commit = edit(&facts(&[Fate::Prepared, Fate::Prepared]), 1, |b| {
        b.told_commit = true;
    });
    assert_eq!(one_decision(&commit), Ok(()));
    let both = edit(&commit, 2, |branch| branch.told_abort = true);
    assert_eq!(violated(one_decision(&both)), Some(Invariant::OneDecision));
    assert_eq!(
        one_decision(&Facts {
            one_phase: true,
            ..both
        }),
        Ok(())
    );
}

#[test]
fn what_is_not_durable_is_told_to_nobody() {
    let volatile = Facts {
        durable: false,
        ..facts(&[Fate::Prepared])
    };
    assert_eq!(log_before_send(&volatile), Ok(()));
    let sent = edit(&volatile, 1, |branch| branch.told_commit = true);
    assert_eq!(
        violated(log_before_send(&sent)),
        Some(Invariant::LogBeforeSend)
    );
    let promised = Facts {
        promised: true,
        ..volatile
    };
    assert_eq!(
        violated(log_before_send(&promised)),
        Some(Invariant::LogBeforeSend)
    );
    let readers = edit(&promised, 1, |branch| branch.left = true);
    assert_eq!(log_before_send(&readers), Ok(()), "nothing was written");
}

#[test]
fn a_decision_is_forgotten_after_the_last_acknowledgement() {
    let over = Facts {
        forgotten: true,
        ..facts(&[Fate::Committed, Fate::Committed])
    };
    assert_eq!(not_forgotten_early(&over), Ok(()));
    let early = edit(&over, 2, |branch| branch.acknowledged = false);
    assert_eq!(
        violated(not_forgotten_early(&early)),
        Some(Invariant::NotForgottenEarly)
    );
}

#[test]
fn a_decision_needs_every_vote() {
    let decided = facts(&[Fate::Prepared, Fate::Prepared]);
    assert_eq!(all_votes(&decided), Ok(()));
    let missing = edit(&decided, 2, |branch| branch.voted_commit = false);
    assert_eq!(violated(all_votes(&missing)), Some(Invariant::AllVotes));
    assert_eq!(
        all_votes(&edit(&missing, 2, |branch| branch.left = true)),
        Ok(())
    );
    assert_eq!(
        all_votes(&Facts {
            one_phase: true,
            ..missing
        }),
        Ok(())
    );
}

#[test]
fn nothing_stays_in_doubt() {
    assert_eq!(
        drains(&facts(&[Fate::Committed, Fate::RolledBack, Fate::Open])),
        Ok(())
    );
    let stuck = facts(&[Fate::Committed, Fate::Prepared]);
    assert_eq!(violated(drains(&stuck)), Some(Invariant::Drains));
    let left = edit(&stuck, 2, |branch| branch.left = true);
    assert_eq!(violated(drains(&left)), Some(Invariant::Drains));
}

#[test]
fn totals_are_constant() {
    let totals = |eur, usd| BTreeMap::from([("EUR".to_owned(), eur), ("USD".to_owned(), usd)]);
    assert_eq!(conservation(&totals(5, 7), &totals(5, 7)), Ok(()));
    assert_eq!(
        conservation(&totals(5, 0), &BTreeMap::from([("EUR".to_owned(), 5)])),
        Ok(())
    );
    for now in [totals(5, 8), totals(4, 7), BTreeMap::new()] {
        assert_eq!(
            violated(conservation(&totals(5, 7), &now)),
            Some(Invariant::Conservation)
        );
        assert_eq!(
            violated(conservation(&now, &totals(5, 7))),
            Some(Invariant::Conservation)
        );
    }
}

#[test]
fn a_request_takes_effect_as_often_as_its_client_was_told() {
    for (told, legal) in [
        (Told::Committed, [false, true, false]),
        (Told::Refused, [true, false, false]),
        (Told::Unknown, [true, true, false]),
    ] {
        for (effects, legal) in (0..).zip(legal) {
            assert_eq!(
                exactly_once(&"r", told, effects).is_ok(),
                legal,
                "{told:?} {effects}"
            );
        }
    }
}

#[test]
fn a_violation_names_its_number_and_its_facts() {
    let violation = drains(&facts(&[Fate::Prepared])).unwrap_err();
    let text = violation.to_string();
    assert!(
        text.starts_with("invariant 8 (Drains) is violated: transaction 0000"),
        "{text}"
    );
    assert!(text.contains("branch 1 is still in doubt"), "{text}");
}
