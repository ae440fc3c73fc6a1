//! Inquiries of participants, and their answers.

use concord_core::id::{BranchId, Epoch, ParticipantName};
use concord_core::limits::INQUIRY_BRANCHES_MAX;
use concord_core::message::Decision;
use concord_core::reason::{Reason, code};

use super::text;
use super::violations::{At, Violations};
use super::work::bqual;
use crate::v1;

/// A participant asks what became of branches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// Who asks.
    pub participant: ParticipantName,
    /// About what.
    pub branches: Vec<BranchId>,
}

/// The coordinator's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// As many as branches were asked about, in that order.
    pub decisions: Vec<Decision>,
}

/// Checks an inquiry.
pub fn inquire(raw: v1::InquireRequest) -> Result<Inquiry, Violations> {
    let mut v = Violations::default();
    let participant = text::participant(&mut v, &At::root("participant"), &raw.participant);
    let at = At::root("branches");
    let mut branches = Vec::new();
    if raw.branches.len() > INQUIRY_BRANCHES_MAX {
        let count = raw.branches.len();
        v.add(
            &at,
            format_args!("must be at most {INQUIRY_BRANCHES_MAX}, and are {count}"),
        );
    } else {
        for (i, raw) in raw.branches.into_iter().enumerate() {
            let at = at.index(i);
            let gtrid = text::gtrid_bytes(&mut v, &at.field("gtrid"), &raw.gtrid);
            let bqual = bqual(&mut v, &at.field("bqual"), raw.bqual);
            branches.extend(
                gtrid
                    .zip(bqual)
                    .map(|(gtrid, bqual)| BranchId { gtrid, bqual }),
            );
        }
    }
    v.finish(|| {
        Some(Inquiry {
            participant: participant?,
            branches,
        })
    })
}

impl From<&Inquiry> for v1::InquireRequest {
    fn from(inquiry: &Inquiry) -> Self {
        let branches = inquiry.branches.iter().map(|branch| v1::InquireBranch {
            gtrid: branch.gtrid.0.to_vec(),
            bqual: branch.bqual.0,
        });
        Self {
            participant: inquiry.participant.as_str().to_owned(),
            branches: branches.collect(),
        }
    }
}

impl From<Decision> for v1::Decision {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Commit => Self::Commit,
            Decision::Abort => Self::Abort,
            Decision::Running => Self::Running,
            Decision::Forgotten => Self::Forgotten,
        }
    }
}

impl From<&Answer> for v1::InquireResponse {
    fn from(answer: &Answer) -> Self {
        let decisions = answer
            .decisions
            .iter()
            .map(|decision| v1::Decision::from(*decision).into());
        Self {
            epoch: answer.epoch.0,
            decisions: decisions.collect(),
            reason: None,
        }
    }
}

/// Reads the answer to an inquiry about `asked` branches. An answer that does not fit the
/// question is no answer at all: decisions that are shifted by one would commit what was aborted.
pub fn answer(raw: &v1::InquireResponse, asked: usize) -> Result<Answer, Reason> {
    let refused = |message: String| Reason::new(code::UNEXPECTED_ANSWER, message);
    if raw.decisions.len() != asked {
        let count = raw.decisions.len();
        return Err(refused(format!("{count} decisions about {asked} branches")));
    }
    if raw.epoch == 0 {
        return Err(refused("an answer without an epoch".to_owned()));
    }
    let decisions = raw
        .decisions
        .iter()
        .map(|number| match v1::Decision::try_from(*number) {
            Ok(v1::Decision::Commit) => Ok(Decision::Commit),
            Ok(v1::Decision::Abort) => Ok(Decision::Abort),
            Ok(v1::Decision::Running) => Ok(Decision::Running),
            Ok(v1::Decision::Forgotten) => Ok(Decision::Forgotten),
            Ok(v1::Decision::Unspecified) | Err(_) => {
                Err(refused(format!("a decision of number {number}")))
            }
        });
    Ok(Answer {
        epoch: Epoch(raw.epoch),
        decisions: decisions.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_decision_survives_the_wire() {
        let decisions = vec![
            Decision::Commit,
            Decision::Abort,
            Decision::Running,
            Decision::Forgotten,
        ];
        let expected = Answer {
            epoch: Epoch(3),
            decisions,
        };
        assert_eq!(answer(&(&expected).into(), 4), Ok(expected));
    }

    #[test]
    fn an_answer_that_does_not_fit_is_none() {
        let good = v1::InquireResponse {
            epoch: 1,
            decisions: vec![1, 2],
            reason: None,
        };
        assert!(answer(&good, 2).is_ok());
        assert!(answer(&good, 1).is_err());
        assert!(answer(&good, 3).is_err());
        assert!(
            answer(
                &v1::InquireResponse {
                    epoch: 0,
                    ..good.clone()
                },
                2
            )
            .is_err()
        );
        for number in [0, 5, -7] {
            let raw = v1::InquireResponse {
                decisions: vec![1, number],
                ..good.clone()
            };
            assert!(answer(&raw, 2).is_err());
        }
    }

    #[test]
    fn an_inquiry_is_checked_branch_by_branch() {
        let raw = v1::InquireRequest {
            participant: "p 1".into(),
            branches: vec![v1::InquireBranch {
                gtrid: vec![1; 15],
                bqual: 65,
            }],
        };
        let violations = inquire(raw).expect_err("three violations");
        let fields: Vec<_> = violations.list().iter().map(|v| v.field.as_str()).collect();
        assert_eq!(
            fields,
            ["participant", "branches[0].gtrid", "branches[0].bqual"]
        );
        let raw = v1::InquireRequest {
            participant: "p1".into(),
            branches: vec![v1::InquireBranch::default(); 1_001],
        };
        assert_eq!(inquire(raw).expect_err("too many").list().len(), 1);
    }
}
