//! A text: statements that are sent at once, and the seal behind them.
//!
//! An answer on a connection is not always an answer to what was asked there. When MySQL kills a
//! connection it closes the socket of a thread that may be about to write to it (`vio_shutdown` in
//! vio/viosocket.cc, called by `THD::awake`); a client that connects at this moment gets the same
//! file descriptor, and then the last answer to the other one. The driver does not look at the
//! numbers of packets. From there on each answer would be taken for that to the statement after
//! its own: a vote or an acknowledgement of a commit that has not happened, or a branch that is not
//! found.
//!
//! So a text to MySQL ends with a *seal*, a SELECT of a number that nobody else knows. A server
//! runs the statements of a text in their order and stops at the first error, so the seal's row is
//! the proof that all of them have succeeded; an error is one only if a seal sent after it is
//! answered next. A seal is allowed in every state of a branch, also between XA END and its
//! outcome. A KILL QUERY that comes between two statements can leave a text without an end: then
//! its time runs out.
//!
//! `MariaDB` only shuts the socket down (`vio_shutdown` there is shutdown(2)), so that its
//! descriptor is nobody else's until the thread has ended: there answers are counted only, and a
//! transaction takes a little less time.

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;

use concord_core::planted::{self, Bug};
use futures::{FutureExt as _, TryStreamExt as _};
use sqlx::mysql::{MySqlConnection, MySqlQueryResult, MySqlRow};
use sqlx::{AssertSqlSafe, Either, Executor as _, Row as _};

use super::super::error::Failure;

/// Statements in the order in which they are run. Each has exactly one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    sql: String,
    statements: usize,
}

/// What one statement of a text gave.
#[derive(Debug)]
pub enum Item {
    /// A row.
    Row(MySqlRow),
    /// The end of a statement.
    Done(MySqlQueryResult),
}

impl Text {
    /// Several statements.
    pub fn of<S: AsRef<str>>(statements: impl IntoIterator<Item = S>) -> Self {
        let mut text = Self::default();
        for statement in statements {
            text.next().push_str(statement.as_ref());
        }
        text
    }

    /// Where the next statement is to be appended.
    pub fn next(&mut self) -> &mut String {
        if self.statements > 0 {
            self.sql.push(';');
        }
        self.statements += 1;
        &mut self.sql
    }

    /// Its statements, without the seal.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Sends it, with a seal or without, and hands what comes for its statements to `take`.
    ///
    /// Succeeds only when each statement has and nothing else came. An error of `take` ends it.
    pub(super) async fn run(
        self,
        raw: &mut MySqlConnection,
        sealed: bool,
        take: impl FnMut(Item) -> Result<(), Failure> + Send,
    ) -> Result<(), Failure> {
        let sent = self.send(raw, sealed, take).await;
        if !sealed || !matches!(sent, Err(Failure::Refused { .. })) {
            return sent;
        }
        // An error may be another's as well, and has no seal behind it: what comes next has.
        match Self::default().send(raw, sealed, |_| Ok(())).await {
            Err(Failure::Broken(reason)) => Err(Failure::Broken(reason)),
            // Also an error, of a branch that takes nothing more, is the answer to this.
            Ok(()) | Err(Failure::Refused { .. }) => sent,
        }
    }

    async fn send(
        mut self,
        raw: &mut MySqlConnection,
        sealed: bool,
        mut take: impl FnMut(Item) -> Result<(), Failure> + Send,
    ) -> Result<(), Failure> {
        let mut expected = Expected {
            statements: self.statements,
            seal: Seal::Whole,
        };
        if sealed {
            let number: u64 = rand::random();
            expected.seal = Seal::Due(number.to_string());
            let _ = write!(self.next(), "SELECT {number}");
        }
        let sql = self.sql;
        let answers = async {
            let mut stream = raw.fetch_many(sqlx::raw_sql(AssertSqlSafe(sql)));
            while let Some(item) = stream.try_next().await? {
                let item = match item {
                    Either::Left(done) => Item::Done(done),
                    Either::Right(row) => Item::Row(row),
                };
                if let Some(item) = expected.admit(item)? {
                    take(item)?;
                }
            }
            expected.finish()
        };
        // The driver panics at a packet that is shorter than it says.
        let answers = AssertUnwindSafe(answers).catch_unwind();
        let unread = |_| Err(Failure::out_of_step("a packet that cannot be read"));
        answers.await.unwrap_or_else(unread)
    }
}

impl From<String> for Text {
    /// One statement.
    fn from(sql: String) -> Self {
        Self { sql, statements: 1 }
    }
}

impl From<&str> for Text {
    /// One statement.
    fn from(sql: &str) -> Self {
        sql.to_owned().into()
    }
}

/// What is still to come.
struct Expected {
    /// Statements that have not ended.
    statements: usize,
    seal: Seal,
}

#[derive(PartialEq, Eq)]
enum Seal {
    /// Its row has not come.
    Due(String),
    /// Its row has come, but not the end of it.
    Shown,
    /// All of it has come, or there is none.
    Whole,
}

impl Expected {
    /// An item that belongs to a statement; none for the seal's own.
    fn admit(&mut self, item: Item) -> Result<Option<Item>, Failure> {
        if self.statements > 0 {
            if let Item::Done(_) = &item {
                self.statements -= 1;
            }
            return Ok(Some(item));
        }
        self.seal = match (&self.seal, &item) {
            (Seal::Due(number), Item::Row(row)) if shows(row, number) => Seal::Shown,
            (Seal::Shown, Item::Done(_)) => Seal::Whole,
            _ => return Err(Failure::out_of_step("an answer to something else")),
        };
        Ok(None)
    }

    fn finish(&self) -> Result<(), Failure> {
        let is_whole = self.statements == 0 && self.seal == Seal::Whole;
        if is_whole || planted::is(Bug::StrayAnswerTaken) {
            return Ok(());
        }
        Err(Failure::out_of_step("it ends too early"))
    }
}

fn shows(row: &MySqlRow, number: &str) -> bool {
    let shown = row.try_get_unchecked::<Option<Vec<u8>>, _>(0);
    matches!(shown, Ok(Some(shown)) if shown == number.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done() -> Item {
        Item::Done(MySqlQueryResult::default())
    }

    fn after(statements: usize, seal: Seal, ends: usize) -> Result<(), Failure> {
        let mut expected = Expected { statements, seal };
        for _ in 0..ends {
            expected.admit(done())?;
        }
        expected.finish()
    }

    #[test]
    fn statements_are_counted() {
        let mut text = Text::of(["SET a", "SET b"]);
        text.next().push_str("SET c");
        assert_eq!((text.sql(), text.statements), ("SET a;SET b;SET c", 3));
        assert_eq!(Text::from("SET a"), Text::of(["SET a"]));
        assert_eq!(Text::of(Vec::<String>::new()), Text::default());
    }

    #[test]
    fn no_number_of_ends_makes_up_for_the_seal() {
        for statements in 0..4 {
            for ends in 0..8 {
                let failure = after(statements, Seal::Due("7".into()), ends).unwrap_err();
                assert!(failure.is_out_of_step(), "{failure:?}");
                let unsealed = after(statements, Seal::Whole, ends);
                assert_eq!(unsealed.is_ok(), ends == statements, "{unsealed:?}");
            }
        }
    }
}
