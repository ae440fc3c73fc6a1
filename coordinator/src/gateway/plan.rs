//! A transaction of the gateway while it is put together: statements, each with its meaning, by
//! participant.
//!
//! It owns the rule that statements of one participant share its branch and keep their order, and
//! that the first participant named has the first branch. It refuses to know what the statements
//! are about.

use std::sync::Arc;

use concord_core::id::{Gtrid, ParticipantName};
use concord_proto::model::{Expect, Statement, Value};

use super::turns::RowKey;
use crate::engine::BranchWork;

/// What is to be done, with a meaning `R` for each statement, so that a failed one can be
/// explained.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan<R> {
    branches: Vec<Branch<R>>,
    rows: Vec<RowKey>,
}

#[derive(Clone, Debug, PartialEq)]
struct Branch<R> {
    participant: ParticipantName,
    statements: Vec<Statement>,
    roles: Vec<R>,
}

impl<R> Default for Plan<R> {
    fn default() -> Self {
        Self {
            branches: Vec::new(),
            rows: Vec::new(),
        }
    }
}

impl<R: Copy> Plan<R> {
    /// Adds a statement at the end of the participant's branch.
    pub fn push(&mut self, participant: &ParticipantName, role: R, statement: Statement) {
        let index = self
            .branches
            .iter()
            .position(|branch| branch.participant == *participant);
        let index = index.unwrap_or_else(|| {
            self.branches.push(Branch {
                participant: participant.clone(),
                statements: Vec::new(),
                roles: Vec::new(),
            });
            self.branches.len() - 1
        });
        let branch = &mut self.branches[index];
        branch.statements.push(statement);
        branch.roles.push(role);
    }

    /// Names a row that a statement changes and that other transactions may want at the same time.
    pub fn touches(&mut self, row: RowKey) {
        self.rows.push(row);
    }

    /// Takes the rows that were named.
    pub fn take_rows(&mut self) -> Vec<RowKey> {
        std::mem::take(&mut self.rows)
    }

    /// Who takes part, the first branch's participant first.
    pub fn participants(&self) -> impl Iterator<Item = &ParticipantName> {
        self.branches.iter().map(|branch| &branch.participant)
    }

    /// What the engine needs, and what is needed to understand its answer.
    pub fn split(self) -> (Vec<BranchWork>, Roles<R>) {
        let mut roles = Vec::with_capacity(self.branches.len());
        let mut works = Vec::with_capacity(self.branches.len());
        for branch in self.branches {
            roles.push(branch.roles);
            let Branch {
                participant,
                statements,
                ..
            } = branch;
            works.push(BranchWork {
                participant,
                statements,
            });
        }
        (works, Roles(roles))
    }
}

/// The meanings of a plan's statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles<R>(Vec<Vec<R>>);

impl<R: Copy> Roles<R> {
    /// The meaning of one statement, when an abort names it.
    pub fn at(&self, branch: Option<usize>, statement: Option<usize>) -> Option<R> {
        self.0.get(branch?)?.get(statement?).copied()
    }
}

/// A statement that is expected to succeed and no more.
pub fn statement(sql: impl Into<Arc<str>>, params: Vec<Value>) -> Statement {
    Statement {
        sql: sql.into(),
        params,
        expect: None,
    }
}

/// A statement that must touch exactly one row, or the transaction is refused for this reason.
pub fn guard(sql: impl Into<Arc<str>>, params: Vec<Value>, code: &str) -> Statement {
    let expect = Expect {
        min: 1,
        max: Some(1),
        reason: code.into(),
    };
    Statement {
        sql: sql.into(),
        params,
        expect: Some(expect),
    }
}

/// A text parameter.
pub fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// A transaction's id as a parameter.
pub fn id_of(gtrid: Gtrid) -> Value {
    Value::Bytes(gtrid.0.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_of_one_participant_share_its_branch_in_order() {
        let (p1, p2) = (ParticipantName::new("p1"), ParticipantName::new("p2"));
        let mut plan = Plan::default();
        plan.push(&p2, 'a', statement("A", vec![]));
        plan.push(&p1, 'b', statement("B", vec![]));
        plan.push(&p2, 'c', guard("C", vec![], "NO_C"));
        assert_eq!(plan.participants().collect::<Vec<_>>(), [&p2, &p1]);
        let (works, roles) = plan.split();
        let sql: Vec<Vec<&str>> = works
            .iter()
            .map(|work| work.statements.iter().map(|s| &*s.sql).collect())
            .collect();
        assert_eq!(sql, [vec!["A", "C"], vec!["B"]]);
        assert_eq!(works[0].participant, p2);
        assert_eq!(roles.at(Some(0), Some(1)), Some('c'));
        assert_eq!(roles.at(Some(1), Some(1)), None);
        assert_eq!(roles.at(None, Some(0)), None);
    }
}
