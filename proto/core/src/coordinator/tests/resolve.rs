//! An operator's orders.

use super::*;
use crate::message::Decision;
use BranchState as B;
use TransactionState as S;

fn order(gtrid: Gtrid, n: u32, commit: bool, force: bool) -> Resolve {
    Resolve {
        branch: branch(gtrid, n),
        participant: p(n),
        commit,
        sibling: None,
        force,
        reason: Reason::new(code::OPERATOR, "a human said so"),
        token: 5,
    }
}

fn goes(after: u64, resolve: &Resolve) -> CoordinatorStep {
    step(
        vec![],
        after,
        vec![Effect::Order {
            resolve: resolve.clone(),
            heuristic: false,
        }],
    )
}

fn refused_with(steps: &[CoordinatorStep], after: u64, why: &str) {
    let [
        Step {
            append,
            after: got,
            release,
        },
    ] = steps
    else {
        panic!("{steps:?}")
    };
    assert_eq!((append.as_slice(), *got), ([].as_slice(), after));
    let [Effect::OrderRefused { token: 5, reason }] = release.as_slice() else {
        panic!("{release:?}")
    };
    assert_eq!(&*reason.code, why);
}

/// What is kept for ever of a forced order: a damage, and not the mere wish of an operator.
fn damage(resolve: &Resolve) -> Reason {
    let code = if resolve.commit {
        code::HEURISTIC_COMMIT
    } else {
        code::HEURISTIC_ROLLBACK
    };
    Reason::new(code, "an operator forced it: a human said so")
}

fn is_damaged(resolve: &Resolve) -> Effect {
    Effect::BranchChanged {
        branch: resolve.branch,
        participant: resolve.participant.clone(),
        state: B::Heuristic,
        reason: Some(damage(resolve)),
        attempts: 0,
    }
}

fn forced(machine: &mut Coordinator, resolve: &Resolve) -> Vec<CoordinatorStep> {
    let (n, reason) = (resolve.branch.bqual.0, &damage(resolve));
    let record = heuristic(resolve.branch.gtrid, n, Some(resolve.commit), reason);
    let steps = machine.step(Input::Resolve(resolve.clone())).unwrap();
    assert_eq!(steps[0].append, [record]);
    let effect = Effect::Order {
        resolve: resolve.clone(),
        heuristic: true,
    };
    assert_eq!(steps[0].release[..2], [effect, is_damaged(resolve)]);
    steps
}

#[test]
fn rolling_back_an_undecided_branch_aborts_the_transaction() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    let resolve = order(g(1), 1, false, false);
    let why = &resolve.reason;
    let release = vec![
        now_for(g(1), S::Aborting, why),
        abort(g(1), 1),
        abort(g(1), 2),
        reply(g(1), Outcome::Aborted(why.clone())),
        Effect::Order {
            resolve: resolve.clone(),
            heuristic: false,
        },
    ];
    assert_eq!(
        machine.step(Input::Resolve(resolve.clone())).unwrap(),
        [step(vec![], 0, release)]
    );
}

#[test]
fn committing_an_undecided_branch_is_refused_even_by_force() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    for force in [false, true] {
        let steps = machine
            .step(Input::Resolve(order(g(1), 1, true, force)))
            .unwrap();
        refused_with(&steps, 0, code::WRONG_STATE);
    }
}

#[test]
fn a_delegated_branch_takes_no_orders() {
    let mut machine = coordinator();
    machine.step(run_of(g(1), 1, None, Ack::Applied)).unwrap();
    for (commit, force) in [(false, false), (false, true), (true, false), (true, true)] {
        let steps = machine
            .step(Input::Resolve(order(g(1), 1, commit, force)))
            .unwrap();
        refused_with(&steps, 1, code::WRONG_STATE);
    }
}

#[test]
fn an_order_that_agrees_with_the_decision_is_a_nudge() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    let commit = order(g(1), 1, true, false);
    assert_eq!(
        machine.step(Input::Resolve(commit.clone())).unwrap(),
        [goes(1, &commit)]
    );
    ended(&mut machine, g(2), None);
    let commit = order(g(2), 1, true, false);
    assert_eq!(
        machine.step(Input::Resolve(commit.clone())).unwrap(),
        [goes(2, &commit)]
    );
    let roll_back = order(g(7), 1, false, false);
    assert_eq!(
        machine.step(Input::Resolve(roll_back.clone())).unwrap(),
        [goes(0, &roll_back)],
        "presumed abort"
    );
}

#[test]
fn an_order_against_the_decision_must_be_forced() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    let steps = machine
        .step(Input::Resolve(order(g(1), 1, false, false)))
        .unwrap();
    refused_with(&steps, 1, code::CONTRADICTS_OUTCOME);
    let steps = machine
        .step(Input::Resolve(order(g(7), 1, true, false)))
        .unwrap();
    refused_with(&steps, 0, code::CONTRADICTS_OUTCOME);
    ended(&mut machine, g(2), None);
    machine.step(Input::Forget { below: g(3) }).unwrap();
    assert_eq!(machine.horizon(), g(1));
}

#[test]
fn what_is_forgotten_must_be_forced_either_way() {
    let mut machine = coordinator();
    ended(&mut machine, g(1), None);
    machine.step(Input::Forget { below: g(3) }).unwrap();
    for commit in [false, true] {
        let mut machine = machine.clone();
        let steps = machine
            .step(Input::Resolve(order(g(1), 1, commit, false)))
            .unwrap();
        refused_with(&steps, 0, code::CONTRADICTS_OUTCOME);
        forced(&mut machine, &order(g(1), 1, commit, true));
    }
}

/// The participant of a forced branch may be away, and ask when it is back: it must not be told
/// what the order contradicts.
#[test]
fn an_inquiry_about_a_forced_branch_is_answered_with_the_order() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    forced(&mut machine, &order(g(1), 1, false, true));
    let ask = |machine: &mut Coordinator, n: u32| {
        machine
            .step(Input::Inquire {
                from: p(n),
                branch: branch(g(1), n),
                token: 8,
            })
            .unwrap()
    };
    let told = |after, decision| step(vec![], after, vec![Effect::Answer { token: 8, decision }]);
    assert_eq!(ask(&mut machine, 1), [told(2, Decision::Abort)]);
    assert_eq!(ask(&mut machine, 2), [told(2, Decision::Commit)]);
    machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    assert_eq!(ask(&mut machine, 1), [told(2, Decision::Abort)]);
    // A repeated order agrees with it and needs no force; its opposite does.
    let again = order(g(1), 1, false, false);
    assert_eq!(
        machine.step(Input::Resolve(again.clone())).unwrap(),
        [goes(2, &again)]
    );
    let steps = machine
        .step(Input::Resolve(order(g(1), 1, true, false)))
        .unwrap();
    refused_with(&steps, 2, code::CONTRADICTS_OUTCOME);
}

#[test]
fn a_sibling_tells_what_nothing_else_does() {
    let mut machine = recovered(&[Record::Horizon(g(5))]);
    for sibling in [true, false] {
        let mut agrees = order(g(1), 1, sibling, false);
        agrees.sibling = Some(sibling);
        assert_eq!(
            machine.step(Input::Resolve(agrees.clone())).unwrap(),
            [goes(0, &agrees)]
        );
        let mut contradicts = order(g(1), 1, !sibling, false);
        contradicts.sibling = Some(sibling);
        let steps = machine.step(Input::Resolve(contradicts)).unwrap();
        refused_with(&steps, 0, code::CONTRADICTS_OUTCOME);
    }
}

/// What is on no record was aborted, as the branch itself is told when it asks: one that somebody
/// has committed by hand is damage, and no reason to commit another.
#[test]
fn a_sibling_is_no_proof_against_what_is_presumed() {
    let mut machine = coordinator();
    let mut contradicts = order(g(1), 1, true, false);
    contradicts.sibling = Some(true);
    let steps = machine.step(Input::Resolve(contradicts)).unwrap();
    refused_with(&steps, 0, code::CONTRADICTS_OUTCOME);
    let mut agrees = order(g(1), 1, false, false);
    agrees.sibling = Some(true);
    assert_eq!(
        machine.step(Input::Resolve(agrees.clone())).unwrap(),
        [goes(0, &agrees)]
    );
}

/// Nobody knows how it was decided; a client that repeats it finds that out by its other branch,
/// and must not take it for whole.
#[test]
fn what_is_forced_of_the_forgotten_is_damage() {
    for commit in [true, false] {
        let horizon = Record::Horizon(g(5));
        let mut live = recovered(std::slice::from_ref(&horizon));
        let mut order = order(g(1), 2, commit, true);
        order.sibling = Some(!commit);
        forced(&mut live, &order);
        let why = damage(&order);
        let record = heuristic(g(1), 2, Some(commit), &why);
        let restarted = recovered(&[horizon, record]);
        for mut machine in [live, restarted] {
            let look = Input::Look {
                gtrid: g(1),
                token: 4,
            };
            let steps = machine.step(look).unwrap();
            let [Effect::Seen { seen, .. }] = &steps[0].release[..] else {
                panic!("{steps:?}");
            };
            let outcome = Outcome::Damaged(why.clone());
            let gtrid = g(1);
            assert_eq!(*seen, Seen::Ended { gtrid, outcome });
        }
    }
}

#[test]
fn a_branch_that_an_undecided_transaction_does_not_have_ends_nothing() {
    let mut machine = coordinator();
    one_vote_missing(&mut machine, g(1), None, Ack::Applied);
    for (commit, force) in [(true, false), (false, false), (false, true)] {
        let steps = machine
            .step(Input::Resolve(order(g(1), 7, commit, force)))
            .unwrap();
        refused_with(&steps, 0, code::BRANCH_NOT_FOUND);
    }
    assert_eq!(machine.live(), 1);
}

#[test]
fn a_client_of_a_forced_transaction_is_not_told_committed() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), Some(request("r", 1)), Ack::Applied);
    machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    let resolve = order(g(1), 1, false, true);
    let steps = forced(&mut machine, &resolve);
    let (why, damaged) = (damage(&resolve), is_damaged(&resolve));
    let release = vec![
        Effect::Order {
            resolve,
            heuristic: true,
        },
        damaged,
        now_for(g(1), S::Committed, &why),
        reply(g(1), Outcome::Damaged(why.clone())),
    ];
    let record = heuristic(g(1), 1, Some(false), &why);
    let end = Record::End {
        gtrid: g(1),
        committed: true,
    };
    assert_eq!(
        steps,
        [step(vec![record], 2, release), step(vec![end], 0, vec![])]
    );
    let again = machine
        .step(run_of(g(9), 2, Some(request("r", 1)), Ack::Applied))
        .unwrap();
    let outcome = Outcome::Damaged(why);
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
fn a_forced_branch_is_waited_for_no_longer_but_its_siblings_are() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    assert_eq!(forced(&mut machine, &order(g(1), 1, false, true)).len(), 1);
    let states: Vec<_> = machine
        .transactions()
        .next()
        .unwrap()
        .branches
        .iter()
        .map(|b| b.state)
        .collect();
    assert_eq!(states, [B::Heuristic, B::Committing]);
    assert_eq!(
        machine.step(finished(g(1), 1, Finish::Committed)).unwrap(),
        []
    );
    machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    assert_eq!(machine.live(), 0);
}

/// Its reason says how the transaction was decided: what a later order says does not.
#[test]
fn an_order_that_takes_a_forced_one_back_is_told_the_same_after_a_restart() {
    let roll_back = order(g(1), 1, false, true);
    let look = |machine: &mut Coordinator| {
        let steps = machine.step(Input::Look {
            gtrid: g(1),
            token: 4,
        });
        let steps = steps.unwrap();
        let [Effect::Seen { seen, .. }] = &steps[0].release[..] else {
            panic!("{steps:?}");
        };
        seen.clone()
    };
    for ends_between in [false, true] {
        let mut live = coordinator();
        one_vote_missing(&mut live, g(1), None, Ack::Applied);
        let mut log = Vec::new();
        let mut keep = |steps: Vec<CoordinatorStep>| {
            log.extend(steps.into_iter().flat_map(|step| step.append));
        };
        keep(live.step(voted(g(1), 2, Vote::Commit)).unwrap());
        keep(forced(&mut live, &roll_back));
        if ends_between {
            keep(live.step(finished(g(1), 2, Finish::Committed)).unwrap());
        }
        keep(forced(&mut live, &order(g(1), 1, true, true)));
        if !ends_between {
            keep(live.step(finished(g(1), 2, Finish::Committed)).unwrap());
        }
        // A log gives the heuristic outcomes of a transaction before its end.
        log.sort_by_key(|record| matches!(record, Record::End { .. }));
        let seen = Seen::Ended {
            gtrid: g(1),
            outcome: Outcome::Damaged(damage(&roll_back)),
        };
        assert_eq!(look(&mut live), seen);
        assert_eq!(look(&mut recovered(&log)), seen);
    }
}

/// Half of it is rolled back, on record, before the client gives up waiting for the other half.
#[test]
fn whoever_waits_until_the_deadline_is_told_of_a_forced_branch() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), None, Ack::Applied);
    let order = order(g(1), 1, false, true);
    let steps = forced(&mut machine, &order);
    let on_record = steps[0].after;
    let told = reply(g(1), Outcome::Damaged(damage(&order)));
    assert_eq!(
        machine.step(Input::Deadline { gtrid: g(1) }).unwrap(),
        [step(vec![], on_record, vec![told])]
    );
}

#[test]
fn forcing_a_commit_into_an_abort_ends_it_when_nobody_is_missing() {
    let mut machine = coordinator();
    machine.step(run_of(g(1), 2, None, Ack::Applied)).unwrap();
    machine
        .step(voted(g(1), 1, Vote::Abort(transient())))
        .unwrap();
    let steps = forced(&mut machine, &order(g(1), 2, true, true));
    let why = damage(&order(g(1), 2, true, true));
    assert_eq!(steps[0].release[2], now_for(g(1), S::Aborted, &why));
    assert_eq!(machine.live(), 0);
}
