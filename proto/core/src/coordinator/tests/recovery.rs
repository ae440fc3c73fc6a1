//! What a log makes of a fresh coordinator, and which logs are broken.

use super::*;
use crate::coordinator::ApplyError;
use BranchState as B;
use TransactionState as S;

const SECOND: Epoch = Epoch(2);

#[test]
fn a_decision_without_an_end_is_driven_again() {
    let mut machine = recovered(&[decision(g(1), &[1, 2], None)]);
    assert_eq!(machine.epoch(), SECOND);
    assert_eq!(
        machine.step(Input::LinkUp { participant: p(2) }).unwrap(),
        [step(vec![], 0, vec![commit_in(SECOND, g(1), 2)])]
    );
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    let steps = machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    assert_eq!(
        steps,
        [
            step(
                vec![],
                0,
                vec![branch_now(g(1), 2, B::Committed), now(g(1), S::Committed)]
            ),
            step(
                vec![Record::End {
                    gtrid: g(1),
                    committed: true
                }],
                0,
                vec![]
            ),
        ],
        "nobody waits for a reply"
    );
}

#[test]
fn an_end_that_was_lost_is_found_again() {
    let mut machine = recovered(&[decision(g(1), &[1], None)]);
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    assert_eq!((machine.live(), machine.remembered()), (0, 1));
}

#[test]
fn a_damaged_transaction_whose_end_was_lost_ends_at_the_next_sweep() {
    for first in [
        decision(g(1), &[1], Some(request("r", 1))),
        delegation(g(1), None),
    ] {
        let mut machine = recovered(&[first, heuristic(g(1), 1, None, &transient())]);
        assert_eq!(machine.live(), 1);
        let steps = machine.step(Input::Sweep).unwrap();
        let end = Record::End {
            gtrid: g(1),
            committed: true,
        };
        assert_eq!(
            steps,
            [
                step(vec![], 0, vec![now_for(g(1), S::Committed, &transient())]),
                step(vec![end], 0, vec![]),
            ]
        );
        assert_eq!(machine.live(), 0);
        let seen = machine
            .step(Input::Look {
                gtrid: g(1),
                token: 1,
            })
            .unwrap();
        let outcome = Outcome::Damaged(transient());
        let seen_as = Seen::Ended {
            gtrid: g(1),
            outcome,
        };
        assert_eq!(
            seen[0].release,
            [Effect::Seen {
                token: 1,
                seen: seen_as
            }]
        );
    }
}

#[test]
fn damage_is_remembered_across_restarts() {
    let mut machine = recovered(&[
        decision(g(1), &[1, 2], Some(request("r", 1))),
        heuristic(g(1), 2, Some(false), &transient()),
        Record::End {
            gtrid: g(1),
            committed: true,
        },
        heuristic(g(2), 1, Some(true), &transient()),
    ]);
    let known: Vec<_> = machine.heuristics().collect();
    assert_eq!(
        known,
        [
            (branch(g(1), 2), Some(false)),
            (branch(g(2), 1), Some(true))
        ]
    );
    for n in 1..=2 {
        machine.step(Input::LinkUp { participant: p(n) }).unwrap();
    }
    let again = machine
        .step(run_of(g(9), 2, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    let outcome = Outcome::Damaged(transient());
    assert_eq!(
        again[0].release,
        [Effect::Replay {
            gtrid: g(9),
            first: g(1),
            outcome
        }]
    );
}

#[test]
fn the_horizon_is_remembered_wherever_it_stands_in_the_log() {
    let ended = [
        decision(g(1), &[1], None),
        Record::End {
            gtrid: g(1),
            committed: true,
        },
    ];
    let horizon = Record::Horizon(g(2));
    let last: Vec<_> = ended.iter().cloned().chain([horizon.clone()]).collect();
    let first: Vec<_> = [horizon].into_iter().chain(ended).collect();
    assert_eq!(recovered(&last).remembered(), 0);
    let mut machine = recovered(&first);
    assert_eq!(machine.horizon(), g(2));
    let steps = machine.step(Input::Forget { below: g(3) }).unwrap();
    let forgotten = Effect::Forgotten {
        gtrids: vec![g(1)],
        horizon: g(3),
    };
    assert_eq!(
        steps[0].release,
        [forgotten],
        "its rest is deleted the next time"
    );
}

#[test]
fn the_machine_ignores_what_belongs_to_its_driver() {
    let incarnation = Record::Incarnation {
        participant: p(1),
        incarnation: "x".to_owned(),
        after: Gtrid::MIN,
    };
    let with = recovered(&[Record::Placement(vec![p(1)]), incarnation]);
    assert_eq!(with, recovered(&[]));
}

fn error(records: &[Record]) -> ApplyError {
    let mut machine = Coordinator::new();
    let mut results = records.iter().map(|record| machine.apply(record));
    results
        .find_map(Result::err)
        .expect("the log is broken and was taken")
}

#[test]
fn an_epoch_that_does_not_grow_is_an_error() {
    for (old, new) in [(1, 1), (2, 1)] {
        let (old, new) = (Epoch(old), Epoch(new));
        let got = error(&[Record::Epoch(old), Record::Epoch(new)]);
        assert_eq!(got, ApplyError::EpochNotHigher { old, new });
    }
}

#[test]
fn a_transaction_is_decided_once() {
    let twice = [decision(g(1), &[1], None), decision(g(1), &[1], None)];
    assert_eq!(
        error(&twice),
        ApplyError::NotDecidable {
            gtrid: g(1),
            state: S::Committing
        }
    );
    let both = [delegation(g(1), None), decision(g(1), &[1], None)];
    assert_eq!(
        error(&both),
        ApplyError::NotDecidable {
            gtrid: g(1),
            state: S::Preparing
        }
    );
    let both = [decision(g(1), &[1], None), delegation(g(1), None)];
    assert_eq!(
        error(&both),
        ApplyError::NotDecidable {
            gtrid: g(1),
            state: S::Committing
        }
    );
    let refusal = Record::Refused {
        gtrid: g(1),
        request: request("r", 1),
        reason: refused(),
    };
    let both = [decision(g(1), &[1], None), refusal];
    assert_eq!(
        error(&both),
        ApplyError::NotDecidable {
            gtrid: g(1),
            state: S::Committing
        }
    );
}

#[test]
fn nothing_follows_an_end() {
    let end = Record::End {
        gtrid: g(1),
        committed: true,
    };
    let refusal = Record::Refused {
        gtrid: g(1),
        request: request("r", 1),
        reason: refused(),
    };
    for record in [decision(g(1), &[1], None), delegation(g(1), None), refusal] {
        let log = [decision(g(1), &[1], None), end.clone(), record];
        assert_eq!(error(&log), ApplyError::AlreadyEnded(g(1)));
    }
    let log = [decision(g(1), &[1], None), end.clone(), end];
    assert_eq!(error(&log), ApplyError::NotEndable(g(1)));
}

#[test]
fn an_end_needs_a_decision_and_a_decision_cannot_end_aborted() {
    let end = |committed| Record::End {
        gtrid: g(1),
        committed,
    };
    assert_eq!(error(&[end(true)]), ApplyError::NotEndable(g(1)));
    let log = [decision(g(1), &[1], None), end(false)];
    assert_eq!(error(&log), ApplyError::NotEndable(g(1)));
}

#[test]
fn a_horizon_never_moves_back_nor_over_what_is_not_over() {
    let log = [Record::Horizon(g(2)), Record::Horizon(g(1))];
    assert_eq!(error(&log), ApplyError::BadHorizon(g(1)));
    let log = [decision(g(1), &[1], None), Record::Horizon(g(2))];
    assert_eq!(error(&log), ApplyError::BadHorizon(g(2)));
}

#[test]
fn a_live_decision_needs_every_vote() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    let state = S::Preparing;
    assert_eq!(
        machine.apply(&decision(g(1), &[1, 2], None)),
        Err(ApplyError::NotDecidable { gtrid: g(1), state })
    );
    machine.transactions.get_mut(&g(1)).unwrap().state = S::Prepared;
    for branches in [&[1, 2][..], &[1]] {
        let mut machine = machine.clone();
        assert_eq!(
            machine.apply(&decision(g(1), branches, None)),
            Err(ApplyError::MissingVote {
                gtrid: g(1),
                bqual: Bqual(2)
            })
        );
    }
}
