//! The tables that clients' statements write to, and whether the server can take that back.
//!
//! A table of an engine without transactions keeps what was written to it when its branch is rolled
//! back, and `XA ROLLBACK` answers OK all the same. So a statement that writes to one is refused
//! before it runs. Looked at are the tables that a statement names; what a view or a trigger leads
//! to is not.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use concord_core::reason::{Reason, code};
use sqlparser::ast::{
    FromTable, ObjectName, Statement, TableFactor, TableObject, TableWithJoins, Visit, Visitor,
};
use tokio::time::{Instant as Deadline, timeout_at};

use super::MySql;
use super::error::Failure;
use super::pool::{Class, lock};
use super::sql::Judged;
use super::xa::hex;

/// How long a table is taken for what it was.
const KNOWN_FOR: Duration = Duration::from_mins(1);
/// Tables that are known at once; with more, all are looked at anew.
const KNOWN_MAX: usize = 4_096;
/// What the look at a table is called.
const LOOK: &str = "the table's engine";
/// The engine that can prepare and roll back, in capitals.
const ENGINE: &str = "INNODB";
/// What MariaDB calls the type of a sequence, whose engine is one with transactions.
const SEQUENCE: &str = "SEQUENCE";

/// A table as a statement names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// None: that of the account's sessions.
    schema: Option<String>,
    name: String,
}

impl Table {
    fn of(name: &ObjectName) -> Option<Self> {
        let mut parts = name.0.iter().rev().map(|part| part.as_ident());
        let table = parts.next()??.value.clone();
        let schema = parts.next().flatten().map(|ident| ident.value.clone());
        Some(Self {
            schema,
            name: table,
        })
    }

    fn engine(&self) -> String {
        let schema = match &self.schema {
            Some(schema) => format!("_utf8mb3 x'{}'", hex(schema.as_bytes())),
            None => "DATABASE()".to_owned(),
        };
        format!(
            "SELECT IF(TABLE_TYPE='{SEQUENCE}',TABLE_TYPE,ENGINE) \
             FROM information_schema.TABLES WHERE TABLE_SCHEMA={schema} \
             AND TABLE_NAME=_utf8mb3 x'{}'",
            hex(self.name.as_bytes())
        )
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "`{schema}`.")?;
        }
        write!(f, "`{}`", self.name)
    }
}

/// The tables that a statement may write to: the target of an INSERT, and all that an UPDATE or a
/// DELETE joins.
pub fn written(statement: &Statement) -> Vec<Table> {
    let mut joined = Joined(Vec::new());
    match statement {
        Statement::Insert(insert) => {
            if let TableObject::TableName(name) = &insert.table {
                joined.0.extend(Table::of(name));
            }
        }
        Statement::Update(update) => joined.take(std::slice::from_ref(&update.table)),
        Statement::Delete(delete) => {
            let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
            joined.take(from);
            joined.take(delete.using.as_deref().unwrap_or_default());
        }
        _ => {}
    }
    joined.0
}

/// Gathers the tables of a join.
struct Joined(Vec<Table>);

impl Joined {
    fn take(&mut self, tables: &[TableWithJoins]) {
        for table in tables {
            let _ = table.visit(self);
        }
    }
}

impl Visitor for Joined {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, .. } = factor {
            self.0.extend(Table::of(name));
        }
        ControlFlow::Continue(())
    }
}

/// Tables that were looked at, and when.
#[derive(Debug, Default)]
pub struct Tables {
    known: Mutex<HashMap<Table, Instant>>,
    /// Held while a table is looked at: one at a time is enough, and leaves the connections to
    /// those who finish branches.
    looking: tokio::sync::Mutex<()>,
}

impl Tables {
    fn knows(&self, table: &Table) -> bool {
        let known = lock(&self.known);
        known.get(table).is_some_and(|at| at.elapsed() < KNOWN_FOR)
    }

    fn note(&self, table: &Table) {
        let mut known = lock(&self.known);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(table.clone(), Instant::now());
    }
}

impl MySql {
    /// Refuses statements that write to what cannot be rolled back; the index is the statement's.
    pub(super) async fn check_tables(
        &self,
        judged: &[Arc<Judged>],
        deadline: Deadline,
    ) -> Result<(), (usize, Reason)> {
        for (index, judged) in judged.iter().enumerate() {
            for table in &judged.written {
                if !self.tables.knows(table) {
                    let looked = timeout_at(deadline, self.look_at(table, deadline)).await;
                    let late = || Failure::timed_out(LOOK).reason().clone();
                    let looked = looked.unwrap_or_else(|_| Err(late()));
                    looked.map_err(|reason| (index, reason))?;
                }
            }
        }
        Ok(())
    }

    async fn look_at(&self, table: &Table, deadline: Deadline) -> Result<(), Reason> {
        let _one_at_a_time = self.tables.looking.lock().await;
        if self.tables.knows(table) {
            return Ok(());
        }
        let mut conn = self.pool.acquire_by(Class::Finish, deadline).await?;
        let rows = conn.rows(table.engine(), deadline, LOOK).await;
        let rows = rows.map_err(|failure| failure.reason().clone())?;
        conn.release();
        let engine = match rows.first().and_then(|row| row.first()) {
            Some(Some(engine)) => engine.as_slice(),
            // A view.
            Some(None) => ENGINE.as_bytes(),
            // No table: the server says so by itself.
            None => return Ok(()),
        };
        if !engine.eq_ignore_ascii_case(ENGINE.as_bytes()) {
            let refused = match &*String::from_utf8_lossy(engine) {
                SEQUENCE => format!("{table} is a sequence, which cannot roll back"),
                engine => format!(
                    "{table} is a table of {engine}, which cannot roll back what is written to \
                     it; run ALTER TABLE {table} ENGINE=InnoDB"
                ),
            };
            return Err(Reason::new(
                code::STATEMENT_NOT_ALLOWED,
                format!("the statement is refused: {refused}"),
            ));
        }
        self.tables.note(table);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::sql::judge;
    use super::*;

    #[test]
    fn what_a_statement_writes_to() {
        for (sql, tables) in [
            ("SELECT * FROM a.b", ""),
            ("INSERT INTO a.b SELECT * FROM c", "`a`.`b`"),
            ("REPLACE INTO b VALUES (1)", "`b`"),
            ("UPDATE `a`.`b c` SET x = (SELECT 1 FROM d)", "`a`.`b c`"),
            (
                "UPDATE a JOIN (b JOIN s.c ON 1) ON 1 SET a.x = 1",
                "`a` `b` `s`.`c`",
            ),
            ("UPDATE IGNORE a SET x = 1", "`a`"),
            ("UPDATE LOW_PRIORITY IGNORE a.b AS c SET x = 1", "`a`.`b`"),
            ("DELETE FROM a WHERE x IN (SELECT x FROM b)", "`a`"),
            ("DELETE x FROM a.b x JOIN c ON x.i = c.i", "`a`.`b` `c`"),
            ("DELETE FROM x USING a.b AS x, c", "`x` `a`.`b` `c`"),
        ] {
            let judged = judge(sql).unwrap_or_else(|refusal| panic!("{sql}: {refusal}"));
            let named: Vec<_> = judged.written.iter().map(ToString::to_string).collect();
            assert_eq!(named.join(" "), tables, "{sql}");
        }
    }

    #[test]
    fn too_many_tables_are_forgotten_at_once() {
        let tables = Tables::default();
        let table = |n: usize| Table {
            schema: None,
            name: n.to_string(),
        };
        for n in 0..=KNOWN_MAX {
            tables.note(&table(n));
        }
        assert!(tables.knows(&table(KNOWN_MAX)));
        assert!(!tables.knows(&table(0)));
    }
}
