//! A test for each row of the participant's transition table: an input, and the exact step.

mod abort;
mod commit;
mod epoch;
mod interactive;
mod one_phase;
mod prepare;
mod sweep;

use super::{
    Command, Effect, Input, LedgerEntry, OnePhase, Participant, ParticipantStep, Prepared, Stage,
    State, Token, Verb,
};
use crate::id::{Bqual, BranchId, Epoch, Gtrid};
use crate::message::{Decision, Finish, FromParticipant, ToParticipant, Vote};
use crate::reason::{Reason, code};
use crate::record::ParticipantRecord;
use crate::step::Step;

const EPOCH: Epoch = Epoch(3);
const ONLY: BranchId = branch(1);

const fn g(n: u8) -> Gtrid {
    let mut bytes = [0; 16];
    bytes[15] = n;
    Gtrid(bytes)
}

const fn branch(n: u8) -> BranchId {
    BranchId {
        gtrid: g(n),
        bqual: Bqual(1),
    }
}

fn why() -> Reason {
    Reason::new(code::SERVER_DOWN, "no answer")
}

fn refused() -> Reason {
    Reason::new(code::INSUFFICIENT_FUNDS, "too little")
}

/// A participant of epoch 3 whose server lists nothing.
fn participant() -> Participant {
    let mut machine = Participant::new(EPOCH, Gtrid::MIN);
    assert_eq!(machine.step(Input::Sweep { listed: vec![] }), quiet());
    machine
}

fn step(release: Vec<Effect>) -> ParticipantStep {
    Step {
        append: vec![],
        after: 0,
        release,
    }
}

fn quiet() -> ParticipantStep {
    step(vec![])
}

fn runs(command: Command) -> ParticipantStep {
    step(vec![run(ONLY, command)])
}

fn run(branch: BranchId, command: Command) -> Effect {
    Effect::Run { branch, command }
}

fn says(token: Token, message: ToParticipant) -> Input {
    Input::Message { token, message }
}

fn prepare_of(branch: BranchId, token: Token, work: bool) -> Input {
    says(
        token,
        ToParticipant::Prepare {
            branch,
            epoch: EPOCH,
            work,
            may_leave: true,
        },
    )
}

fn prepare(token: Token) -> Input {
    prepare_of(ONLY, token, true)
}

fn commit_of(branch: BranchId, token: Token) -> Input {
    says(
        token,
        ToParticipant::Commit {
            branch,
            epoch: EPOCH,
            one_phase: false,
            work: false,
        },
    )
}

fn commit(token: Token) -> Input {
    commit_of(ONLY, token)
}

fn one_phase(token: Token, work: bool) -> Input {
    says(
        token,
        ToParticipant::Commit {
            branch: ONLY,
            epoch: EPOCH,
            one_phase: true,
            work,
        },
    )
}

fn abort(token: Token) -> Input {
    says(
        token,
        ToParticipant::Abort {
            branch: ONLY,
            epoch: EPOCH,
        },
    )
}

fn prepared(result: Prepared) -> Input {
    Input::Prepared {
        branch: ONLY,
        result,
    }
}

fn verb(result: Verb) -> Input {
    Input::Verb {
        branch: ONLY,
        result,
    }
}

fn ledger(entry: LedgerEntry) -> Input {
    Input::Ledger {
        branch: ONLY,
        result: Ok(entry),
    }
}

fn ledger_failed() -> Input {
    Input::Ledger {
        branch: ONLY,
        result: Err(why()),
    }
}

fn listed(listed: bool) -> Input {
    Input::Listed {
        branch: ONLY,
        result: Ok(listed),
    }
}

fn decided(decision: Decision) -> Input {
    Input::Decided {
        branch: ONLY,
        epoch: EPOCH,
        decision,
    }
}

fn vote(token: Token, vote: Vote) -> Effect {
    let message = FromParticipant::Voted {
        branch: ONLY,
        epoch: EPOCH,
        vote,
    };
    Effect::Reply { token, message }
}

fn finish(token: Token, finish: Finish) -> Effect {
    let message = FromParticipant::Finished {
        branch: ONLY,
        epoch: EPOCH,
        finish,
    };
    Effect::Reply { token, message }
}

/// The vote that is the first reply of a step.
fn first_vote(step: &ParticipantStep) -> &Vote {
    match step.release.first() {
        Some(Effect::Reply {
            message: FromParticipant::Voted { vote, .. },
            ..
        }) => vote,
        other => panic!("no vote: {other:?}"),
    }
}

/// The one reply of a step is a vote ABORT with this code.
fn votes_abort(step: &ParticipantStep, code: &str) {
    match first_vote(step) {
        Vote::Abort(reason) => assert_eq!(&*reason.code, code),
        other => panic!("no vote ABORT: {other:?}"),
    }
}

/// The one reply of a step is a vote ABORT with this code, of a branch that is still there.
fn votes_aborting(step: &ParticipantStep, code: &str) {
    match first_vote(step) {
        Vote::Aborting(reason) => assert_eq!(&*reason.code, code),
        other => panic!("no vote ABORT of what is still there: {other:?}"),
    }
}

/// The first reply of a step is RETRY with this code.
fn retries(step: &ParticipantStep, code: &str) {
    let is_reply = |effect: &&Effect| matches!(effect, Effect::Reply { .. });
    match step.release.iter().find(is_reply) {
        Some(Effect::Reply {
            message:
                FromParticipant::Finished {
                    finish: Finish::Retry(reason),
                    ..
                },
            ..
        }) => assert_eq!(&*reason.code, code),
        other => panic!("no RETRY: {other:?}"),
    }
}

fn state(machine: &Participant) -> Option<State> {
    machine.branch(ONLY).map(|entry| entry.state.clone())
}

/// A participant with a prepared branch that voted COMMIT.
fn with_prepared() -> Participant {
    let mut machine = participant();
    machine.step(prepare(1));
    machine.step(prepared(Prepared::Prepared));
    assert_eq!(state(&machine), Some(State::Prepared));
    machine
}

/// A participant with an open interactive branch.
fn with_active() -> Participant {
    let mut machine = participant();
    machine.step(says(
        1,
        ToParticipant::Begin {
            branch: ONLY,
            epoch: EPOCH,
        },
    ));
    machine.step(Input::Begun {
        branch: ONLY,
        result: Ok(()),
    });
    assert_eq!(state(&machine), Some(State::Active));
    machine
}
