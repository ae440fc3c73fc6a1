//! One call to the resource manager, and the input that its result is.
//!
//! It owns the translation in both directions. It refuses to decide anything: what a result means
//! is the machine's business.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use concord_core::id::BranchId;
use concord_core::participant as core;
use concord_core::participant::{Input, Token};
use concord_core::reason::{Reason, code};
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::model::{Isolation, Statement, Work};
use futures::FutureExt;

use super::event::Payload;
use crate::resource::{Finished, LedgerEntry, OnePhase, Prepared, ResourceManager};

/// What to ask of the server.
#[derive(Debug)]
pub(super) enum Call {
    Begin {
        isolation: Option<Isolation>,
        timeout: Duration,
    },
    Statement(Token, Statement),
    Prepare(Option<Work>),
    CommitOnePhase(Option<Work>),
    Commit,
    Rollback,
    ReadLedger,
    Tombstone,
    List,
}

impl Call {
    /// Before the server is asked, and when it has answered.
    fn points(&self) -> (CrashPoint, CrashPoint) {
        match self {
            Self::Begin { .. } => (
                CrashPoint::ParticipantBeginBefore,
                CrashPoint::ParticipantBeginAfter,
            ),
            Self::Statement(..) => (
                CrashPoint::ParticipantStatementBefore,
                CrashPoint::ParticipantStatementAfter,
            ),
            Self::Prepare(_) => (
                CrashPoint::ParticipantPrepareBefore,
                CrashPoint::ParticipantPrepareAfter,
            ),
            Self::CommitOnePhase(_) => (
                CrashPoint::ParticipantOnePhaseBefore,
                CrashPoint::ParticipantOnePhaseAfter,
            ),
            Self::Commit => (
                CrashPoint::ParticipantCommitBefore,
                CrashPoint::ParticipantCommitAfter,
            ),
            Self::Rollback => (
                CrashPoint::ParticipantRollbackBefore,
                CrashPoint::ParticipantRollbackAfter,
            ),
            Self::ReadLedger => (
                CrashPoint::ParticipantLedgerBefore,
                CrashPoint::ParticipantLedgerAfter,
            ),
            Self::Tombstone => (
                CrashPoint::ParticipantTombstoneBefore,
                CrashPoint::ParticipantTombstoneAfter,
            ),
            Self::List => (
                CrashPoint::ParticipantListBefore,
                CrashPoint::ParticipantListAfter,
            ),
        }
    }

    /// Whether it belongs to the end of a branch rather than to its work.
    pub(super) fn finishes(&self) -> bool {
        match self {
            Self::Begin { .. }
            | Self::Statement(..)
            | Self::Prepare(_)
            | Self::CommitOnePhase(_) => false,
            Self::Commit | Self::Rollback | Self::ReadLedger | Self::Tombstone | Self::List => true,
        }
    }
}

/// Runs a call. A panic inside it must not leave the branch waiting for a result for ever: it
/// counts as an unknown outcome, which the machine resolves by asking the server.
pub(super) async fn run<R: ResourceManager>(
    rm: &R,
    branch: BranchId,
    call: Call,
) -> (Input, Payload) {
    let broken = Broken::of(&call);
    let (before, after) = call.points();
    reach(before);
    let done = AssertUnwindSafe(ask(rm, branch, call)).catch_unwind().await;
    reach(after);
    done.unwrap_or_else(|_| {
        tracing::error!(%branch, "a call to the server panicked: please report it");
        broken.result(branch)
    })
}

/// The same for a call that belongs to no branch: it counts as one that failed.
pub(super) async fn unless_it_panics<T>(
    call: impl Future<Output = Result<T, Reason>>,
) -> Result<T, Reason> {
    let done = AssertUnwindSafe(call).catch_unwind().await;
    done.unwrap_or_else(|_| {
        let text = "a call to the server panicked: please report it";
        tracing::error!("{text}");
        Err(Reason::new(code::UNEXPECTED_ANSWER, text))
    })
}

async fn ask<R: ResourceManager>(rm: &R, branch: BranchId, call: Call) -> (Input, Payload) {
    match call {
        Call::Begin { isolation, timeout } => {
            let result = rm.begin(branch, isolation, timeout).await;
            (Input::Begun { branch, result }, Payload::None)
        }
        Call::Statement(token, statement) => {
            let result = rm.execute(branch, &statement).await;
            let failed = result.as_ref().err().cloned();
            (
                Input::StatementDone { branch, failed },
                Payload::Executed(token, result),
            )
        }
        Call::Prepare(work) => prepared(branch, rm.prepare(branch, work.as_ref()).await),
        Call::CommitOnePhase(work) => {
            one_phase(branch, rm.commit_one_phase(branch, work.as_ref()).await)
        }
        Call::Commit => verb(branch, rm.commit(branch).await),
        Call::Rollback => verb(branch, rm.rollback(branch).await),
        Call::ReadLedger => ledger(branch, rm.ledger(branch).await),
        Call::Tombstone => ledger(branch, rm.tombstone(branch).await),
        Call::List => {
            let result = rm.recover().await;
            let result = result.map(|recovered| recovered.ours.contains(&branch));
            (Input::Listed { branch, result }, Payload::None)
        }
    }
}

fn prepared(branch: BranchId, result: Prepared) -> (Input, Payload) {
    let (result, payload) = match result {
        Prepared::Prepared { results } => {
            (core::Prepared::Prepared, Payload::results(results, None))
        }
        Prepared::ReadOnly { results } => {
            (core::Prepared::ReadOnly, Payload::results(results, None))
        }
        Prepared::NotPrepared {
            reason,
            results,
            failed,
        } => (
            core::Prepared::NotPrepared(reason),
            Payload::results(results, failed),
        ),
        Prepared::Unknown { reason } => (core::Prepared::Unknown(reason), Payload::None),
    };
    (Input::Prepared { branch, result }, payload)
}

fn one_phase(branch: BranchId, result: OnePhase) -> (Input, Payload) {
    let (result, payload) = match result {
        OnePhase::Committed { results } => {
            (core::OnePhase::Committed, Payload::results(results, None))
        }
        OnePhase::NotCommitted {
            reason,
            results,
            failed,
        } => (
            core::OnePhase::NotCommitted(reason),
            Payload::results(results, failed),
        ),
        OnePhase::Unknown { reason, results } => (
            core::OnePhase::Unknown(reason),
            Payload::results(results, None),
        ),
    };
    (Input::OnePhase { branch, result }, payload)
}

fn verb(branch: BranchId, result: Finished) -> (Input, Payload) {
    let result = match result {
        Finished::Done => core::Verb::Done,
        Finished::NotDone(reason) => core::Verb::NotDone(reason),
        Finished::NoSuchBranch => core::Verb::NoSuchBranch,
        Finished::Unknown(reason) => core::Verb::Unknown(reason),
    };
    (Input::Verb { branch, result }, Payload::None)
}

fn ledger(branch: BranchId, result: Result<LedgerEntry, Reason>) -> (Input, Payload) {
    let result = result.map(|entry| match entry {
        LedgerEntry::Committed => core::LedgerEntry::Committed,
        LedgerEntry::Tombstone => core::LedgerEntry::Tombstone,
        LedgerEntry::Absent => core::LedgerEntry::Absent,
    });
    (Input::Ledger { branch, result }, Payload::None)
}

/// Which result a call that panicked has.
enum Broken {
    Begin,
    Statement(Token),
    Prepare,
    OnePhase,
    Verb,
    Ledger,
    List,
}

impl Broken {
    fn of(call: &Call) -> Self {
        match call {
            Call::Begin { .. } => Self::Begin,
            Call::Statement(token, _) => Self::Statement(*token),
            Call::Prepare(_) => Self::Prepare,
            Call::CommitOnePhase(_) => Self::OnePhase,
            Call::Commit | Call::Rollback => Self::Verb,
            Call::ReadLedger | Call::Tombstone => Self::Ledger,
            Call::List => Self::List,
        }
    }

    fn result(self, branch: BranchId) -> (Input, Payload) {
        let reason = Reason::new(
            code::UNEXPECTED_ANSWER,
            "the participant failed inside a call",
        );
        match self {
            Self::Begin => {
                let result = Err(reason);
                (Input::Begun { branch, result }, Payload::None)
            }
            Self::Statement(token) => {
                let failed = Some(reason.clone());
                (
                    Input::StatementDone { branch, failed },
                    Payload::Executed(token, Err(reason)),
                )
            }
            Self::Prepare => prepared(branch, Prepared::Unknown { reason }),
            Self::OnePhase => one_phase(branch, OnePhase::unknown(reason)),
            Self::Verb => verb(branch, Finished::Unknown(reason)),
            Self::Ledger => ledger(branch, Err(reason)),
            Self::List => {
                let result = Err(reason);
                (Input::Listed { branch, result }, Payload::None)
            }
        }
    }
}
