//! Request ids: a request takes effect at most once.

use super::*;

fn run_again(machine: &mut Coordinator, gtrid: Gtrid, fingerprint: u64) -> Vec<CoordinatorStep> {
    machine
        .step(run_of(
            gtrid,
            2,
            Some(request("r", fingerprint)),
            Ack::Applied,
        ))
        .unwrap()
}

fn replay(after: u64, first: Gtrid, outcome: Outcome) -> [CoordinatorStep; 1] {
    [step(
        vec![],
        after,
        vec![Effect::Replay {
            gtrid: g(9),
            first,
            outcome,
        }],
    )]
}

fn starts(machine: &mut Coordinator, gtrid: Gtrid, fingerprint: u64) {
    let steps = run_again(machine, gtrid, fingerprint);
    assert_eq!(
        steps[0].release[0],
        began(gtrid, Some(request("r", fingerprint)))
    );
}

#[test]
fn a_repetition_joins_what_is_running() {
    let mut machine = coordinator();
    let join = [step(
        vec![],
        0,
        vec![Effect::Join {
            gtrid: g(9),
            first: g(1),
        }],
    )];
    starts(&mut machine, g(1), 1);
    assert_eq!(run_again(&mut machine, g(9), 1), join);
    machine.step(voted(g(1), 1, Vote::Commit)).unwrap();
    machine.step(voted(g(1), 2, Vote::Commit)).unwrap();
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        join,
        "decided, and not applied"
    );
    assert_eq!(machine.live(), 1);
}

#[test]
fn a_repetition_after_the_answer_gets_it_again() {
    let mut machine = coordinator();
    decided(&mut machine, g(1), Some(request("r", 1)), Ack::Decided);
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(1, g(1), Outcome::Committed)
    );
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(1, g(1), Outcome::Committed)
    );
}

#[test]
fn reuse_for_something_else_is_refused() {
    let mut machine = coordinator();
    starts(&mut machine, g(1), 1);
    rejected(g(9), code::REQUEST_ID_REUSED)(&run_again(&mut machine, g(9), 2));
    machine.step(voted(g(1), 1, Vote::Commit)).unwrap();
    machine.step(voted(g(1), 2, Vote::Commit)).unwrap();
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    rejected(g(9), code::REQUEST_ID_REUSED)(&run_again(&mut machine, g(9), 2));
}

#[test]
fn a_transient_abort_frees_it() {
    let mut machine = coordinator();
    starts(&mut machine, g(1), 1);
    machine
        .step(voted(g(1), 1, Vote::Abort(transient())))
        .unwrap();
    starts(&mut machine, g(2), 1);
    machine
        .step(finished(g(1), 2, Finish::Aborted(None)))
        .unwrap();
    let join = [step(
        vec![],
        0,
        vec![Effect::Join {
            gtrid: g(9),
            first: g(2),
        }],
    )];
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        join,
        "the end of the first frees nothing"
    );
}

#[test]
fn a_final_refusal_keeps_it() {
    let mut machine = coordinator();
    starts(&mut machine, g(1), 1);
    machine
        .step(voted(g(1), 1, Vote::Abort(refused())))
        .unwrap();
    let outcome = Outcome::Aborted(refused());
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(1, g(1), outcome.clone())
    );
    machine
        .step(finished(g(1), 2, Finish::Aborted(None)))
        .unwrap();
    assert_eq!(run_again(&mut machine, g(9), 1), replay(1, g(1), outcome));
    rejected(g(9), code::REQUEST_ID_REUSED)(&run_again(&mut machine, g(9), 2));
}

#[test]
fn it_survives_a_restart() {
    let refusal = Record::Refused {
        gtrid: g(1),
        request: request("r", 1),
        reason: refused(),
    };
    let mut machine = recovered(&[refusal]);
    let outcome = Outcome::Aborted(refused());
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(0, g(1), outcome),
        "what was read from the log waits for nothing"
    );
    let decision = decision(g(1), &[1, 2], Some(request("r", 1)));
    let mut machine = recovered(std::slice::from_ref(&decision));
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(0, g(1), Outcome::Committed)
    );
    let mut machine = recovered(&[
        decision,
        Record::End {
            gtrid: g(1),
            committed: true,
        },
    ]);
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(0, g(1), Outcome::Committed)
    );
    rejected(g(9), code::REQUEST_ID_REUSED)(&run_again(&mut machine, g(9), 2));
}

#[test]
fn a_delegation_that_failed_leaves_it_free_after_a_restart() {
    let mut machine = recovered(&[
        delegation(g(1), Some(request("r", 1))),
        Record::End {
            gtrid: g(1),
            committed: false,
        },
        decision(g(2), &[1, 2], Some(request("r", 1))),
    ]);
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(0, g(2), Outcome::Committed)
    );
}

#[test]
fn a_refusal_of_the_call_itself_remembers_nothing() {
    let mut machine = coordinator();
    machine.step(Input::LinkDown { participant: p(2) }).unwrap();
    rejected(g(1), code::PARTICIPANT_DOWN)(&run_again(&mut machine, g(1), 1));
    machine.step(Input::LinkUp { participant: p(2) }).unwrap();
    starts(&mut machine, g(2), 2);
}

#[test]
fn a_final_refusal_waits_for_the_branch_that_carries_the_request() {
    let mut machine = coordinator();
    starts(&mut machine, g(1), 1);
    let steps = machine
        .step(voted(g(1), 2, Vote::Abort(refused())))
        .unwrap();
    let changed = branch_now_for(g(1), 2, BranchState::Aborted, Some(refused()), 0);
    assert_eq!(
        steps,
        [step(vec![], 0, vec![changed])],
        "nobody is told yet"
    );
    // It took effect before anything here remembers: that is the answer, not the lack of funds.
    let before = Reason::new(code::REQUEST_ALREADY_COMMITTED, g(7).to_string());
    let steps = machine
        .step(voted(g(1), 1, Vote::Abort(before.clone())))
        .unwrap();
    let told = steps.iter().flat_map(|step| &step.release);
    let told: Vec<_> = told
        .filter(|e| matches!(e, Effect::Reply { .. }))
        .cloned()
        .collect();
    assert_eq!(told, [reply(g(1), Outcome::Aborted(before))]);
}

#[test]
fn a_refusal_that_was_held_back_stands_when_the_request_is_new() {
    let mut machine = coordinator();
    starts(&mut machine, g(1), 1);
    machine
        .step(voted(g(1), 2, Vote::Abort(refused())))
        .unwrap();
    let steps = machine.step(voted(g(1), 1, Vote::Commit)).unwrap();
    let all: Vec<_> = steps.iter().flat_map(|step| step.release.clone()).collect();
    assert!(
        all.contains(&reply(g(1), Outcome::Aborted(refused()))),
        "{all:?}"
    );
    assert!(!all.iter().any(|e| {
        matches!(
            e,
            Effect::Send {
                message: ToParticipant::Commit { .. },
                ..
            }
        )
    }));
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(1, g(1), Outcome::Aborted(refused()))
    );
}

#[test]
fn an_attempt_that_came_to_nothing_does_not_hide_the_one_that_settled_it() {
    // Replay goes by id: the attempt of the higher one came first, and its request was free again.
    let attempt = [
        delegation(g(2), Some(request("r", 1))),
        Record::End {
            gtrid: g(2),
            committed: false,
        },
    ];
    let refusal = Record::Refused {
        gtrid: g(1),
        request: request("r", 1),
        reason: refused(),
    };
    let commit = decision(g(1), &[1, 2], Some(request("r", 1)));
    let end = Record::End {
        gtrid: g(1),
        committed: true,
    };
    for (settled, outcome) in [
        (vec![refusal], Outcome::Aborted(refused())),
        (vec![commit.clone()], Outcome::Committed),
        (vec![commit, end], Outcome::Committed),
    ] {
        let mut machine = recovered(&[settled, attempt.to_vec()].concat());
        assert_eq!(run_again(&mut machine, g(9), 1), replay(0, g(1), outcome));
    }
}

/// The horizon is durable before the records below it are deleted, and a crash may come between.
#[test]
fn a_refusal_that_is_forgotten_does_not_hide_the_attempt_that_came_after() {
    let records = [
        Record::Horizon(g(2)),
        Record::Refused {
            gtrid: g(1),
            request: request("r", 1),
            reason: refused(),
        },
        delegation(g(2), Some(request("r", 1))),
    ];
    let mut machine = recovered(&records);
    let unknown = Outcome::Unknown(g(2));
    assert_eq!(run_again(&mut machine, g(9), 1), replay(0, g(2), unknown));
    machine.step(finished(g(2), 1, Finish::Committed)).unwrap();
    let committed = replay(0, g(2), Outcome::Committed);
    assert_eq!(run_again(&mut machine, g(9), 1), committed);
}

#[test]
fn a_commit_that_is_found_late_takes_its_request_back() {
    let mut machine = recovered(&[
        delegation(g(1), Some(request("r", 1))),
        delegation(g(2), Some(request("r", 1))),
    ]);
    machine
        .step(finished(g(2), 1, Finish::Aborted(None)))
        .unwrap();
    machine.step(finished(g(1), 1, Finish::Committed)).unwrap();
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(0, g(1), Outcome::Committed)
    );
}

#[test]
fn what_a_ledger_says_of_a_former_request_is_not_the_end_of_this_one() {
    for code in [code::REQUEST_ALREADY_COMMITTED, code::REQUEST_ID_REUSED] {
        let mut machine = coordinator();
        starts(&mut machine, g(1), 1);
        let former = Reason::new(code, "of a former life");
        machine
            .step(voted(g(1), 2, Vote::Abort(refused())))
            .unwrap();
        let steps = machine
            .step(voted(g(1), 1, Vote::Abort(former.clone())))
            .unwrap();
        let reply = Effect::Reply {
            gtrid: g(1),
            outcome: Outcome::Aborted(former),
        };
        let told = |step: &CoordinatorStep| step.release.contains(&reply);
        assert!(steps.iter().any(told), "{steps:?}");
        assert!(steps.iter().all(|step| step.append.is_empty()), "{steps:?}");
        starts(&mut machine, g(2), 2);
    }
}

#[test]
fn a_damaged_one_is_never_told_as_committed_and_never_forgotten() {
    let damage = Reason::new(code::HEURISTIC_ROLLBACK, "by hand");
    let outcome = Outcome::Damaged(damage.clone());
    let mut machine = coordinator();
    decided(&mut machine, g(1), Some(request("r", 1)), Ack::Applied);
    machine
        .step(finished(g(1), 1, Finish::Damaged(damage.clone())))
        .unwrap();
    // Branch 2 is still being told.
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(2, g(1), outcome.clone())
    );
    machine.step(finished(g(1), 2, Finish::Committed)).unwrap();
    decided(&mut machine, g(2), Some(request("other", 1)), Ack::Applied);
    for n in 1..=2 {
        machine.step(finished(g(2), n, Finish::Committed)).unwrap();
    }
    let steps = machine.step(Input::Forget { below: g(3) }).unwrap();
    let forgotten = Effect::Forgotten {
        gtrids: vec![g(2)],
        horizon: g(3),
    };
    assert_eq!(steps.last().unwrap().release, [forgotten]);
    assert_eq!(
        run_again(&mut machine, g(9), 1),
        replay(2, g(1), outcome.clone())
    );
    let mut machine = recovered(&[
        decision(g(1), &[1, 2], Some(request("r", 1))),
        heuristic(g(1), 1, None, &damage),
        Record::End {
            gtrid: g(1),
            committed: true,
        },
        Record::Horizon(g(3)),
    ]);
    assert_eq!(run_again(&mut machine, g(9), 1), replay(0, g(1), outcome));
}
