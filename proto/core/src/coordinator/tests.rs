//! A test for each row of the coordinator's transition table: an input, and the exact steps.
//!
//! The helpers here only build values; what is expected is written out in each test.

mod abort;
mod commit;
mod damage;
mod finish;
mod inquiry;
mod one_phase;
mod random;
mod recovery;
mod request;
mod resolve;
mod start;

use super::{Coordinator, CoordinatorStep, Effect, Input, Resolve, Seen};
use crate::id::{Bqual, BranchId, Epoch, Gtrid, ParticipantName, Request, RequestId};
use crate::message::{Finish, FromParticipant, Outcome, ToParticipant, Vote};
use crate::reason::{Reason, code};
use crate::record::Record;
use crate::step::Step;
use crate::transaction::{Ack, BranchState, TransactionState};

const EPOCH: Epoch = Epoch(1);

fn g(n: u8) -> Gtrid {
    let mut bytes = [0; 16];
    bytes[15] = n;
    Gtrid(bytes)
}

fn p(n: u32) -> ParticipantName {
    ParticipantName::new(format!("p{n}"))
}

fn branch(gtrid: Gtrid, n: u32) -> BranchId {
    BranchId {
        gtrid,
        bqual: Bqual(n),
    }
}

fn request(id: &str, fingerprint: u64) -> Request {
    Request {
        id: RequestId::new(id),
        fingerprint,
    }
}

fn refused() -> Reason {
    Reason::new(code::INSUFFICIENT_FUNDS, "too little")
}

fn transient() -> Reason {
    Reason::new(code::LOCK_TIMEOUT, "too slow")
}

/// A coordinator of the first epoch with links to p1, p2 and p3.
fn coordinator() -> Coordinator {
    let mut machine = Coordinator::new();
    machine.apply(&Record::Epoch(EPOCH)).unwrap();
    for n in 1..=3 {
        assert_eq!(
            machine.step(Input::LinkUp { participant: p(n) }).unwrap(),
            []
        );
    }
    machine
}

fn run_of(gtrid: Gtrid, branches: u32, request: Option<Request>, ack: Ack) -> Input {
    let branches = (1..=branches).map(p).collect();
    Input::Run {
        gtrid,
        branches,
        request,
        ack,
        may_leave: true,
    }
}

/// Runs a transaction of two branches up to the last vote but one.
fn one_vote_missing(machine: &mut Coordinator, gtrid: Gtrid, request: Option<Request>, ack: Ack) {
    machine.step(run_of(gtrid, 2, request, ack)).unwrap();
    machine.step(voted(gtrid, 1, Vote::Commit)).unwrap();
}

/// Runs a transaction of two branches up to its decision.
fn decided(machine: &mut Coordinator, gtrid: Gtrid, request: Option<Request>, ack: Ack) {
    one_vote_missing(machine, gtrid, request, ack);
    machine.step(voted(gtrid, 2, Vote::Commit)).unwrap();
}

/// Runs a transaction of two branches to its end.
fn ended(machine: &mut Coordinator, gtrid: Gtrid, request: Option<Request>) {
    decided(machine, gtrid, request, Ack::Applied);
    machine.step(finished(gtrid, 1, Finish::Committed)).unwrap();
    machine.step(finished(gtrid, 2, Finish::Committed)).unwrap();
}

fn voted(gtrid: Gtrid, n: u32, vote: Vote) -> Input {
    voted_in(EPOCH, gtrid, n, vote)
}

fn voted_in(epoch: Epoch, gtrid: Gtrid, n: u32, vote: Vote) -> Input {
    let message = FromParticipant::Voted {
        branch: branch(gtrid, n),
        epoch,
        vote,
    };
    Input::Received {
        from: p(n),
        message,
    }
}

fn finished(gtrid: Gtrid, n: u32, finish: Finish) -> Input {
    let message = FromParticipant::Finished {
        branch: branch(gtrid, n),
        epoch: EPOCH,
        finish,
    };
    Input::Received {
        from: p(n),
        message,
    }
}

fn step(append: Vec<Record>, after: u64, release: Vec<Effect>) -> CoordinatorStep {
    Step {
        append,
        after,
        release,
    }
}

fn began(gtrid: Gtrid, request: Option<Request>) -> Effect {
    Effect::Began { gtrid, request }
}

fn now(gtrid: Gtrid, state: TransactionState) -> Effect {
    Effect::Changed {
        gtrid,
        state,
        reason: None,
    }
}

fn now_for(gtrid: Gtrid, state: TransactionState, reason: &Reason) -> Effect {
    Effect::Changed {
        gtrid,
        state,
        reason: Some(reason.clone()),
    }
}

fn branch_now(gtrid: Gtrid, n: u32, state: BranchState) -> Effect {
    branch_now_for(gtrid, n, state, None, 0)
}

fn branch_now_for(
    gtrid: Gtrid,
    n: u32,
    state: BranchState,
    reason: Option<Reason>,
    attempts: u32,
) -> Effect {
    Effect::BranchChanged {
        branch: branch(gtrid, n),
        participant: p(n),
        state,
        reason,
        attempts,
    }
}

fn reply(gtrid: Gtrid, outcome: Outcome) -> Effect {
    Effect::Reply { gtrid, outcome }
}

fn rejected(gtrid: Gtrid, code: &str) -> impl Fn(&[CoordinatorStep]) {
    let code = code.to_owned();
    move |steps| match steps {
        [
            Step {
                append,
                after: _,
                release,
            },
        ] if append.is_empty() => match release.as_slice() {
            [
                Effect::Rejected {
                    gtrid: got, reason, ..
                },
            ] => {
                assert_eq!((*got, &*reason.code), (gtrid, code.as_str()));
            }
            other => panic!("not one rejection: {other:?}"),
        },
        other => panic!("not one step: {other:?}"),
    }
}

fn prepare(gtrid: Gtrid, n: u32, work: bool, may_leave: bool) -> Effect {
    let message = ToParticipant::Prepare {
        branch: branch(gtrid, n),
        epoch: EPOCH,
        work,
        may_leave,
    };
    Effect::Send { to: p(n), message }
}

fn commit_in(epoch: Epoch, gtrid: Gtrid, n: u32) -> Effect {
    let branch = branch(gtrid, n);
    let message = ToParticipant::Commit {
        branch,
        epoch,
        one_phase: false,
        work: false,
    };
    Effect::Send { to: p(n), message }
}

fn commit(gtrid: Gtrid, n: u32) -> Effect {
    commit_in(EPOCH, gtrid, n)
}

fn commit_one_phase(gtrid: Gtrid, n: u32, work: bool) -> Effect {
    let branch = branch(gtrid, n);
    let message = ToParticipant::Commit {
        branch,
        epoch: EPOCH,
        one_phase: true,
        work,
    };
    Effect::Send { to: p(n), message }
}

fn abort_in(epoch: Epoch, gtrid: Gtrid, n: u32) -> Effect {
    let message = ToParticipant::Abort {
        branch: branch(gtrid, n),
        epoch,
    };
    Effect::Send { to: p(n), message }
}

fn abort(gtrid: Gtrid, n: u32) -> Effect {
    abort_in(EPOCH, gtrid, n)
}

fn decision(gtrid: Gtrid, branches: &[u32], request: Option<Request>) -> Record {
    let branches = branches.iter().map(|n| (Bqual(*n), p(*n))).collect();
    Record::Decision {
        gtrid,
        epoch: EPOCH,
        branches,
        request,
    }
}

fn delegation(gtrid: Gtrid, request: Option<Request>) -> Record {
    Record::OnePhase {
        gtrid,
        epoch: EPOCH,
        bqual: Bqual(1),
        participant: p(1),
        request,
    }
}

fn heuristic(gtrid: Gtrid, n: u32, committed: Option<bool>, reason: &Reason) -> Record {
    let (bqual, participant) = (Bqual(n), p(n));
    Record::Heuristic {
        gtrid,
        bqual,
        participant,
        committed,
        reason: reason.clone(),
        request: None,
    }
}

/// What a fresh coordinator knows after it read these records and took epoch 2.
fn recovered(records: &[Record]) -> Coordinator {
    let mut machine = Coordinator::new();
    for record in [Record::Epoch(EPOCH)].iter().chain(records) {
        machine.apply(record).unwrap();
    }
    machine.apply(&Record::Epoch(Epoch(2))).unwrap();
    machine
}
