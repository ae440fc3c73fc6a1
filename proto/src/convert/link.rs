//! What coordinator and participant say to each other: core messages on the wire, and back.
//!
//! Towards the wire nothing can fail. From the wire the coordinator reads answers of participants,
//! and what it cannot understand becomes a reason `UNEXPECTED_ANSWER`: it is never taken for a
//! vote or an acknowledgement.

use concord_core::id::{BranchId, Epoch, Gtrid};
use concord_core::message::{Finish, Vote};
use concord_core::reason::{Reason, code};

use super::text;
use super::work::branch_ref;
use crate::model::Work;
use crate::status::shorten;
use crate::v1;

/// Bytes of a reason's message that are taken from the wire: it is shown, logged and kept.
pub const REASON_BYTES_MAX: usize = 4_096;

/// The answer to Prepare, with what travels beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Voted {
    /// The vote.
    pub vote: Vote,
    /// Results of the statements that came with Prepare, up to the failed one.
    pub results: Vec<v1::StatementResult>,
    /// Index of the failed statement.
    pub failed_statement: Option<u32>,
}

/// The answer to Commit and Abort, with what travels beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// What became of the branch.
    pub finish: Finish,
    /// Results of one-phase work.
    pub results: Vec<v1::StatementResult>,
    /// Index of the failed statement.
    pub failed_statement: Option<u32>,
}

/// One answer of a link.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// To a Prepare.
    Voted(Voted),
    /// To a Commit.
    Committed(Finished),
    /// To an Abort.
    Aborted(Finished),
    /// The command was refused.
    Refused(Reason),
    /// Every command up to this frame is refused.
    Unavailable(Reason),
}

/// A Prepare on the wire.
pub fn prepare_request(branch: BranchId, epoch: Epoch, work: Option<Work>) -> v1::PrepareRequest {
    v1::PrepareRequest {
        branch: Some(branch_ref(branch, epoch)),
        work: work.map(Into::into),
    }
}

/// A Commit on the wire.
pub fn commit_request(
    branch: BranchId,
    epoch: Epoch,
    one_phase: bool,
    work: Option<Work>,
) -> v1::CommitRequest {
    let branch = Some(branch_ref(branch, epoch));
    v1::CommitRequest {
        branch,
        one_phase,
        work: work.map(Into::into),
    }
}

/// An Abort on the wire.
pub fn abort_request(branch: BranchId, epoch: Epoch) -> v1::AbortRequest {
    v1::AbortRequest {
        branch: Some(branch_ref(branch, epoch)),
    }
}

impl From<&Reason> for v1::Reason {
    fn from(reason: &Reason) -> Self {
        Self {
            code: (*reason.code).to_owned(),
            message: (*reason.message).to_owned(),
        }
    }
}

impl From<Reason> for v1::Reason {
    fn from(reason: Reason) -> Self {
        Self::from(&reason)
    }
}

/// Reads a reason. One without a legal code is `UNEXPECTED_ANSWER`.
pub fn reason(raw: &v1::Reason) -> Reason {
    let message = shorten(&raw.message, REASON_BYTES_MAX);
    if text::is_code(&raw.code) {
        Reason::new(raw.code.as_str(), message)
    } else {
        unexpected(format!("a reason without a legal code: {message}"))
    }
}

/// From which transaction on a participant has unfinished branches, on the wire; empty when that is
/// not known.
pub fn unfinished_bytes(from: Option<Gtrid>) -> Vec<u8> {
    from.map_or_else(Vec::new, |gtrid| gtrid.0.to_vec())
}

/// The same from the wire. What is no gtrid tells nothing.
pub fn unfinished_from(status: &v1::GetStatusResponse) -> Option<Gtrid> {
    let bytes = <[u8; 16]>::try_from(&*status.unfinished_from).ok()?;
    Some(Gtrid(bytes))
}

fn required_reason(raw: Option<&v1::Reason>) -> Reason {
    raw.map_or_else(|| unexpected("the participant gave no reason"), reason)
}

fn unexpected(message: impl Into<std::sync::Arc<str>>) -> Reason {
    Reason::new(code::UNEXPECTED_ANSWER, message)
}

fn vote_parts(vote: Vote) -> (v1::Vote, Option<v1::Reason>) {
    match vote {
        Vote::Commit => (v1::Vote::Commit, None),
        Vote::ReadOnly => (v1::Vote::ReadOnly, None),
        Vote::Abort(reason) => (v1::Vote::Abort, Some(reason.into())),
        Vote::Aborting(reason) => (v1::Vote::Aborting, Some(reason.into())),
    }
}

fn vote(number: i32, why: Option<&v1::Reason>) -> Result<Vote, Reason> {
    match v1::Vote::try_from(number) {
        Ok(v1::Vote::Commit) => Ok(Vote::Commit),
        Ok(v1::Vote::ReadOnly) => Ok(Vote::ReadOnly),
        Ok(v1::Vote::Abort) => Ok(Vote::Abort(required_reason(why))),
        Ok(v1::Vote::Aborting) => Ok(Vote::Aborting(required_reason(why))),
        Ok(v1::Vote::Unspecified) | Err(_) => Err(unexpected(format!(
            "the participant answered Prepare with vote {number}"
        ))),
    }
}

/// What became of a branch, on the wire.
pub fn finish_parts(finish: Finish) -> (v1::Finish, Option<v1::Reason>) {
    match finish {
        Finish::Committed => (v1::Finish::Committed, None),
        Finish::Aborted(reason) => (v1::Finish::Aborted, reason.map(Into::into)),
        Finish::Retry(reason) => (v1::Finish::Retry, Some(reason.into())),
        Finish::Damaged(reason) => (v1::Finish::Damaged, Some(reason.into())),
    }
}

/// Reads what became of a branch.
pub fn finish(number: i32, why: Option<&v1::Reason>) -> Result<Finish, Reason> {
    match v1::Finish::try_from(number) {
        Ok(v1::Finish::Committed) => Ok(Finish::Committed),
        Ok(v1::Finish::Aborted) => Ok(Finish::Aborted(why.map(reason))),
        Ok(v1::Finish::Retry) => Ok(Finish::Retry(required_reason(why))),
        Ok(v1::Finish::Damaged) => Ok(Finish::Damaged(required_reason(why))),
        Ok(v1::Finish::Unspecified) | Err(_) => Err(unexpected(format!(
            "the participant answered with finish {number}"
        ))),
    }
}

impl From<Voted> for v1::PrepareResponse {
    fn from(voted: Voted) -> Self {
        let (vote, reason) = vote_parts(voted.vote);
        Self {
            vote: vote.into(),
            reason,
            results: voted.results,
            failed_statement: voted.failed_statement,
        }
    }
}

/// Reads the answer to a Prepare.
pub fn voted(raw: v1::PrepareResponse) -> Result<Voted, Reason> {
    Ok(Voted {
        vote: vote(raw.vote, raw.reason.as_ref())?,
        results: raw.results,
        failed_statement: raw.failed_statement,
    })
}

impl From<Finished> for v1::CommitResponse {
    fn from(finished: Finished) -> Self {
        let (finish, reason) = finish_parts(finished.finish);
        Self {
            finish: finish.into(),
            reason,
            results: finished.results,
            failed_statement: finished.failed_statement,
        }
    }
}

/// Reads the answer to a Commit.
pub fn committed(raw: v1::CommitResponse) -> Result<Finished, Reason> {
    Ok(Finished {
        finish: finish(raw.finish, raw.reason.as_ref())?,
        results: raw.results,
        failed_statement: raw.failed_statement,
    })
}

impl From<Finished> for v1::AbortResponse {
    fn from(finished: Finished) -> Self {
        let (finish, reason) = finish_parts(finished.finish);
        Self {
            finish: finish.into(),
            reason,
            results: finished.results,
            failed_statement: finished.failed_statement,
        }
    }
}

impl From<Finish> for v1::ResolveResponse {
    fn from(finish: Finish) -> Self {
        let (finish, reason) = finish_parts(finish);
        Self {
            finish: finish.into(),
            reason,
        }
    }
}

/// Reads the answer to an Abort.
pub fn aborted(raw: v1::AbortResponse) -> Result<Finished, Reason> {
    Ok(Finished {
        finish: finish(raw.finish, raw.reason.as_ref())?,
        results: raw.results,
        failed_statement: raw.failed_statement,
    })
}

/// Reads the answer to a Resolve.
pub fn resolved(raw: &v1::ResolveResponse) -> Result<Finish, Reason> {
    finish(raw.finish, raw.reason.as_ref())
}

/// An answer on the wire, under its command's number.
pub fn link_reply(seq: u64, reply: Reply) -> v1::LinkReply {
    use v1::link_reply::Reply as Raw;
    let reply = match reply {
        Reply::Voted(voted) => Raw::Prepare(voted.into()),
        Reply::Committed(finished) => Raw::Commit(finished.into()),
        Reply::Aborted(finished) => Raw::Abort(finished.into()),
        Reply::Refused(reason) => Raw::Refused(reason.into()),
        Reply::Unavailable(reason) => Raw::Unavailable(reason.into()),
    };
    v1::LinkReply {
        seq,
        reply: Some(reply),
    }
}

/// Reads an answer.
pub fn reply(raw: v1::LinkReply) -> (u64, Result<Reply, Reason>) {
    use v1::link_reply::Reply as Raw;
    let reply = match raw.reply {
        None => Err(unexpected("the participant sent an empty reply")),
        Some(Raw::Prepare(raw)) => voted(raw).map(Reply::Voted),
        Some(Raw::Commit(raw)) => committed(raw).map(Reply::Committed),
        Some(Raw::Abort(raw)) => aborted(raw).map(Reply::Aborted),
        Some(Raw::Refused(raw)) => Ok(Reply::Refused(reason(&raw))),
        Some(Raw::Unavailable(raw)) => Ok(Reply::Unavailable(reason(&raw))),
    };
    (raw.seq, reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why() -> Reason {
        Reason::new(code::LOCK_TIMEOUT, "account a is locked")
    }

    fn replies() -> Vec<Reply> {
        let finishes = [
            Finish::Committed,
            Finish::Aborted(None),
            Finish::Aborted(Some(why())),
            Finish::Retry(why()),
            Finish::Damaged(why()),
        ];
        let mut all: Vec<Reply> = [
            Vote::Commit,
            Vote::ReadOnly,
            Vote::Abort(why()),
            Vote::Aborting(why()),
        ]
        .into_iter()
        .map(|vote| {
            let results = vec![v1::StatementResult {
                rows: 3,
                ..Default::default()
            }];
            Reply::Voted(Voted {
                vote,
                results,
                failed_statement: Some(1),
            })
        })
        .collect();
        for finish in finishes {
            let finished = Finished {
                finish,
                results: vec![v1::StatementResult::default()],
                failed_statement: Some(1),
            };
            all.push(Reply::Aborted(finished.clone()));
            all.push(Reply::Committed(finished));
        }
        all.extend([Reply::Refused(why()), Reply::Unavailable(why())]);
        all
    }

    #[test]
    fn every_answer_survives_the_wire() {
        for (seq, expected) in (7..).zip(replies()) {
            assert_eq!(
                reply(link_reply(seq, expected.clone())),
                (seq, Ok(expected))
            );
        }
    }

    #[test]
    fn what_cannot_be_understood_is_no_vote() {
        for number in [0, 5, -1, i32::MAX] {
            let raw = v1::PrepareResponse {
                vote: number,
                ..Default::default()
            };
            assert_eq!(
                &*voted(raw).expect_err("no vote").code,
                code::UNEXPECTED_ANSWER
            );
        }
        for number in [0, 5, -1] {
            assert!(finish(number, None).is_err());
        }
        assert!(reply(v1::LinkReply::default()).1.is_err());
    }

    #[test]
    fn an_abort_without_a_legal_reason_is_still_an_abort() {
        let raw = |reason| v1::PrepareResponse {
            vote: v1::Vote::Abort.into(),
            reason,
            ..Default::default()
        };
        for bad in [
            None,
            Some(v1::Reason {
                code: "not a code".into(),
                message: "m".into(),
            }),
        ] {
            let Ok(Voted {
                vote: Vote::Abort(reason),
                ..
            }) = voted(raw(bad))
            else {
                panic!("an abort")
            };
            assert_eq!(&*reason.code, code::UNEXPECTED_ANSWER);
        }
    }

    #[test]
    fn a_reasons_message_is_bounded() {
        let raw = v1::Reason {
            code: "X".into(),
            message: "é".repeat(1 << 20),
        };
        assert!(reason(&raw).message.len() <= REASON_BYTES_MAX);
    }
}
