//! One text with all that a branch needs, and what its answers say.
//!
//! The server answers each statement of a text in order and stops at the first error, so the
//! number of answers tells how far it came. Every statement of a text has exactly one answer: what
//! could have more of them, or none, is not on the allow-list.
//!
//! After each statement that returns rows stands a *seal*, a SELECT of a random number that nobody
//! else knows. The driver takes a row whose first column has 16 MiB or more for the end of a result
//! (both begin with 0xfe), and the rows after it for the next answers: a client could write those
//! itself, to its own vote and to whoever has the connection next. It cannot write the seal.

use std::sync::Arc;

use concord_core::id::{BranchId, Request};
use concord_core::limits::BRANCH_RESULT_BYTES_MAX;
use concord_core::reason::{Reason, code};
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::model::{Expect, Isolation, Statement};
use concord_proto::v1;
use sqlx::Row as _;
use sqlx::mysql::MySqlQueryResult;
use tokio::time::Instant as Deadline;

use super::error::Failure;
use super::ledger;
use super::pool::{Conn, Item, Text};
use super::preflight::Facts;
use super::rows::Collector;
use super::sql::{Judge, Judged, StatementKind};
use super::xa::hex;

/// One statement of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `SET last_insert_id`.
    Session,
    /// `SET TRANSACTION ISOLATION LEVEL`.
    Isolation,
    /// `XA START` or `START TRANSACTION`.
    Start,
    /// The branch's ledger row.
    Ledger,
    /// The client's n-th statement.
    Statement(usize),
    /// The seal after it.
    Seal(usize),
    /// The guard.
    Guard,
    /// `XA END`.
    End,
    /// `XA PREPARE`.
    Prepare,
    /// `XA COMMIT … ONE PHASE`.
    CommitOnePhase,
    /// `COMMIT`, of a transaction that only read.
    Finish,
}

impl Step {
    /// The place where its answer comes in. The server has gone on meanwhile, and the rest of the
    /// text is done or not.
    fn point(self) -> Option<CrashPoint> {
        Some(match self {
            Self::Start => CrashPoint::ServerStartAnswered,
            Self::Ledger => CrashPoint::ServerLedgerAnswered,
            Self::End => CrashPoint::ServerEndAnswered,
            Self::Prepare => CrashPoint::ServerPrepareAnswered,
            Self::CommitOnePhase => CrashPoint::ServerOnePhaseAnswered,
            Self::Session
            | Self::Isolation
            | Self::Statement(_)
            | Self::Seal(_)
            | Self::Guard
            | Self::Finish => return None,
        })
    }
}

/// A text in the making.
#[derive(Debug, Default)]
pub struct Script {
    text: Text,
    steps: Vec<Step>,
    selects: Vec<bool>,
    expects: Vec<Option<Expect>>,
    seal: Option<[u8; 16]>,
}

impl Script {
    /// Makes the session forget the last id that it generated, for whoever had it before.
    pub fn no_last_insert_id(&mut self) {
        self.verb(Step::Session, "SET last_insert_id=0");
    }

    /// Sets the isolation level of the branch that follows.
    pub fn isolation(&mut self, isolation: Option<Isolation>) {
        let level = match isolation {
            None => return,
            Some(Isolation::ReadCommitted) => "READ COMMITTED",
            Some(Isolation::RepeatableRead) => "REPEATABLE READ",
            Some(Isolation::Serializable) => "SERIALIZABLE",
        };
        self.verb(
            Step::Isolation,
            &format!("SET TRANSACTION ISOLATION LEVEL {level}"),
        );
    }

    /// Appends a statement of our own.
    pub fn verb(&mut self, step: Step, text: &str) {
        self.text.next().push_str(text);
        self.steps.push(step);
    }

    /// Appends the ledger row.
    pub fn ledger(&mut self, branch: BranchId, connection: u64, request: Option<&Request>) {
        ledger::push_branch_row(self.text.next(), branch, connection, request);
        self.steps.push(Step::Ledger);
    }

    /// Appends a client's statement that was judged.
    pub fn statement(&mut self, judged: &Judged, statement: &Statement) -> Result<(), Reason> {
        judged.push_to(self.text.next(), &statement.params)?;
        let index = self.selects.len();
        self.steps.push(Step::Statement(index));
        self.selects
            .push(matches!(judged.kind, StatementKind::Select { .. }));
        self.expects.push(statement.expect.clone());
        if judged.returns_rows() {
            let seal = *self.seal.get_or_insert_with(rand::random);
            self.verb(Step::Seal(index), &format!("SELECT x'{}'", hex(&seal)));
        }
        Ok(())
    }

    /// Appends the guard.
    pub fn guard(&mut self, facts: &Facts) {
        self.verb(Step::Guard, facts.guard());
    }

    /// Runs the text.
    pub async fn run(self, conn: &mut Conn, deadline: Deadline) -> Outcome {
        let mut reader = Reader {
            steps: self.steps,
            at: 0,
            selects: self.selects,
            expects: self.expects,
            collector: Collector::default(),
            bytes: 0,
            results: Vec::new(),
            objection: None,
            seal: self.seal,
            sealed: false,
        };
        let text = self.text;
        reach(CrashPoint::ServerWorkBeforeSend);
        let ran = conn
            .run(text, deadline, "the branch's work", |item| {
                reader.take(item)
            })
            .await;
        reader.finish(ran)
    }
}

/// What a text did.
#[derive(Debug)]
pub struct Outcome {
    /// Results of the client's statements that succeeded, in order.
    pub results: Vec<v1::StatementResult>,
    /// Whether `XA END` succeeded.
    pub ended: bool,
    /// How it ended.
    pub end: End,
}

/// How a text ended.
#[derive(Debug)]
pub enum End {
    /// Every statement succeeded and nothing speaks against the branch.
    Fine,
    /// Every statement succeeded, but the branch must be rolled back.
    Objection {
        /// Why.
        reason: Reason,
        /// The client's statement that it is about.
        failed: Option<usize>,
    },
    /// A statement failed.
    Failed {
        /// Which one; `None` when the text was not even begun or the answers make no sense.
        step: Option<Step>,
        /// How.
        failure: Failure,
    },
}

struct Reader {
    steps: Vec<Step>,
    at: usize,
    selects: Vec<bool>,
    expects: Vec<Option<Expect>>,
    collector: Collector,
    results: Vec<v1::StatementResult>,
    /// Of the results.
    bytes: usize,
    objection: Option<(Reason, Option<usize>)>,
    seal: Option<[u8; 16]>,
    /// Whether the seal that is expected now has come.
    sealed: bool,
}

impl Reader {
    fn take(&mut self, item: Item) -> Result<(), Failure> {
        match (item, self.steps.get(self.at)) {
            (Item::Row(row), Some(Step::Statement(_))) => self.collector.row(&row),
            (Item::Row(row), Some(Step::Seal(_))) if !self.sealed => {
                let found = row.try_get_unchecked::<Option<Vec<u8>>, _>(0);
                let expected = self.seal.as_ref().map(<[u8; 16]>::as_slice);
                self.sealed = matches!(&found, Ok(found) if found.as_deref() == expected);
                if !self.sealed {
                    return Err(unsealed());
                }
            }
            (Item::Row(_), Some(Step::Seal(_))) => return Err(unsealed()),
            (Item::Row(_), _) => return Err(Failure::out_of_step("rows that nobody asked for")),
            (Item::Done(done), Some(Step::Statement(index))) => {
                let index = *index;
                self.at += 1;
                self.statement_done(index, &done);
                reach(CrashPoint::ServerStatementAnswered);
            }
            (Item::Done(_), Some(Step::Seal(_))) => {
                if !std::mem::take(&mut self.sealed) {
                    return Err(unsealed());
                }
                self.at += 1;
            }
            (Item::Done(_), None) => return Err(Failure::out_of_step("too many answers")),
            (Item::Done(_), Some(step)) => {
                if let Some(point) = step.point() {
                    reach(point);
                }
                self.at += 1;
            }
        }
        Ok(())
    }

    fn statement_done(&mut self, index: usize, done: &MySqlQueryResult) {
        let collector = std::mem::take(&mut self.collector);
        if self.objection.is_some() {
            return;
        }
        self.bytes += collector.bytes();
        match collector.finish(done, self.selects[index]) {
            Ok(_) if self.bytes > BRANCH_RESULT_BYTES_MAX => {
                let text = format!(
                    "the statements of a branch return at most {BRANCH_RESULT_BYTES_MAX} bytes \
                     together: ask for less, in pages"
                );
                let reason = Reason::new(code::RESULT_TOO_LARGE, text);
                self.objection = Some((reason, Some(index)));
            }
            Ok(result) => {
                let violated = violated(self.expects[index].as_ref(), result.rows, index);
                self.results.push(result);
                self.objection = violated.map(|reason| (reason, Some(index)));
            }
            Err(reason) => self.objection = Some((reason, Some(index))),
        }
    }

    fn finish(self, ran: Result<(), Failure>) -> Outcome {
        let step = self.steps.get(self.at).copied();
        let end = match (ran, self.objection) {
            (Err(failure), _) => End::Failed {
                failure: match step {
                    Some(Step::Seal(_)) if failure.is_out_of_step() => unsealed(),
                    _ => failure,
                },
                step,
            },
            (Ok(()), Some((reason, failed))) => End::Objection { reason, failed },
            (Ok(()), None) => End::Fine,
        };
        let ended = self.steps[..self.at.min(self.steps.len())].contains(&Step::End);
        Outcome {
            results: self.results,
            ended,
            end,
        }
    }
}

/// What came is not the seal: the result before it had no end that the driver could see.
fn unsealed() -> Failure {
    let text = "a row of the result begins with a column of 16 MiB or more, which cannot be read: \
                ask for less";
    Failure::Broken(Reason::new(code::RESULT_TOO_LARGE, text))
}

/// The reason when a statement touched another number of rows than it had to.
pub fn violated(expect: Option<&Expect>, rows: u64, index: usize) -> Option<Reason> {
    let expect = expect?;
    if rows >= expect.min && expect.max.is_none_or(|max| rows <= max) {
        return None;
    }
    let bounds = match expect.max {
        Some(max) if max == expect.min => format!("exactly {max}"),
        Some(max) => format!("at least {} and at most {max}", expect.min),
        None => format!("at least {}", expect.min),
    };
    let reason = if expect.reason.is_empty() {
        code::EXPECTATION_FAILED
    } else {
        &expect.reason
    };
    Some(Reason::new(
        reason,
        format!("statement {index} touched {rows} rows, and {bounds} were expected"),
    ))
}

/// Judges all statements of a work before any of it is sent.
pub fn judge_all(
    judge: &Judge,
    statements: &[Statement],
) -> Result<Vec<Arc<Judged>>, (usize, Reason)> {
    statements
        .iter()
        .enumerate()
        .map(|(index, statement)| {
            let judged = judge
                .judge(&statement.sql)
                .map_err(|reason| (index, reason))?;
            if judged.params() != statement.params.len() {
                return Err((
                    index,
                    Reason::new(
                        code::STATEMENT_NOT_ALLOWED,
                        format!(
                            "the SQL has {} `?` and {} values came",
                            judged.params(),
                            statement.params.len()
                        ),
                    ),
                ));
            }
            Ok(judged)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expect(min: u64, max: Option<u64>) -> Expect {
        Expect {
            min,
            max,
            reason: "INSUFFICIENT_FUNDS".into(),
        }
    }

    #[test]
    fn an_expectation_is_a_closed_range() {
        assert!(violated(None, 0, 0).is_none());
        for (min, max, rows, legal) in [
            (1, None, 1, true),
            (1, None, 0, false),
            (1, Some(1), 2, false),
            (0, Some(0), 0, true),
            (0, Some(0), 1, false),
            (2, Some(1), 2, false),
        ] {
            let reason = violated(Some(&expect(min, max)), rows, 0);
            assert_eq!(reason.is_none(), legal, "{min}..{max:?} {rows}");
        }
        let reason = violated(Some(&expect(1, None)), 0, 3).unwrap();
        assert_eq!(&*reason.code, "INSUFFICIENT_FUNDS");
        assert!(reason.message.contains("statement 3"));
    }
}
