//! The raw XA client that Concord is measured against, and the same work through Concord.
//!
//! The raw client is as fast as such a client can be written by hand: one connection to each
//! server over its unix socket, both branches in parallel, `XA START; UPDATE; XA END; XA PREPARE`
//! in one packet each, then both `XA COMMIT` in parallel. It keeps no log and no ledger, so its
//! death between the two phases leaves branches that nobody can decide. It is a yardstick, not a
//! way to move money.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, MySqlConnection};
use tokio::try_join;

use super::BenchArgs;
use super::load::{Done, Places};
use crate::cli::exit::{Exit, Failure};
use crate::cli::servers::{Folder, Server};
use crate::client::Client;
use crate::statement::Statement;

/// Balance that every row begins with: more than a benchmark can take from one.
const OPENING: i64 = 1_000_000_000;
/// Rows of one INSERT that fills the table.
const FILL_ROWS: u32 = 1_000;
/// How long the raw client waits for a row lock, in seconds. Two transfers that cross each other
/// on two servers wait for each other, and no server sees it.
const LOCK_WAIT_S: u32 = 2;
/// What the xids of the raw client begin with, by which a later run finds what a killed one left.
const XID_PREFIX: &str = "concord-raw-";
/// What is sent to a server, by either client; the amount is signed.
const UPDATE: &str =
    "UPDATE concord_raw.accounts SET balance = balance + ? WHERE id = ? AND balance + ? >= 0";

/// `concord_raw.accounts` on every server: rows that belong to nobody but the benchmark.
#[derive(Clone, Debug)]
pub(super) struct Table {
    servers: Arc<Vec<Server>>,
    rows: Arc<Places<u32>>,
    run: Arc<str>,
}

impl Table {
    /// Makes the table anew on every server.
    pub(super) async fn create(folder: &Folder, args: &BenchArgs) -> Result<Self, Failure> {
        let servers: Vec<Server> = folder.servers()?.into_values().collect();
        let each = args.accounts / u32::try_from(servers.len()).unwrap_or(1);
        let each = each.max(2);
        for server in &servers {
            server.roll_back_branches_of(XID_PREFIX).await?;
            server
                .run(
                    "CREATE DATABASE IF NOT EXISTS concord_raw; \
                     DROP TABLE IF EXISTS concord_raw.accounts; \
                     CREATE TABLE concord_raw.accounts (id INT UNSIGNED NOT NULL PRIMARY KEY, \
                     balance BIGINT NOT NULL) ENGINE=InnoDB",
                )
                .await?;
            for first in (0..each).step_by(FILL_ROWS as usize) {
                let last = each.min(first + FILL_ROWS);
                let rows: Vec<String> = (first..last)
                    .map(|id| format!("({id},{OPENING})"))
                    .collect();
                let insert = format!("INSERT INTO concord_raw.accounts VALUES {}", rows.join(","));
                server.run(&insert).await?;
            }
        }
        let rows = servers.iter().map(|_| (0..each).collect()).collect();
        Ok(Self {
            rows: Arc::new(Places::new(rows, args.hot, args.cross_server)?),
            servers: Arc::new(servers),
            run: format!("{XID_PREFIX}{}", uuid::Uuid::now_v7().simple()).into(),
        })
    }

    /// A client that speaks XA itself.
    pub(super) async fn worker(&self, number: u16) -> Result<RawWorker, Failure> {
        let mut connections = Vec::new();
        for server in self.servers.iter() {
            let mut connection = server.connect().await?;
            let set = format!("SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}");
            sqlx::raw_sql(AssertSqlSafe(set))
                .execute(&mut connection)
                .await
                .map_err(failed)?;
            connections.push(connection);
        }
        let run = format!("{}-{number}", self.run);
        Ok(RawWorker {
            table: self.clone(),
            connections,
            run,
            next: 0,
        })
    }

    /// A client that asks Concord to do the same.
    pub(super) fn plain(&self, client: Client) -> PlainWorker {
        PlainWorker {
            table: self.clone(),
            client,
        }
    }
}

/// Sum of all balances in the raw table.
pub(super) async fn total(folder: &Folder) -> Result<i64, Failure> {
    let mut total = 0;
    for server in folder.servers()?.values() {
        let sql = "SELECT CAST(SUM(balance) AS SIGNED) FROM concord_raw.accounts";
        total += server.integer(sql).await?.unwrap_or(0);
    }
    Ok(total)
}

fn failed(error: sqlx::Error) -> Failure {
    Failure::new(Exit::Unavailable, "the raw client failed").why(error)
}

/// The raw client.
#[derive(Debug)]
pub(super) struct RawWorker {
    table: Table,
    connections: Vec<MySqlConnection>,
    run: String,
    next: u64,
}

/// What became of the first phase of one branch.
enum Vote {
    Prepared,
    Refused(String),
}

impl RawWorker {
    pub(super) async fn once(&mut self) -> Result<Done, Failure> {
        let ((from, &debtor), (to, &creditor)) = self.table.rows.pair();
        self.next += 1;
        let xid = format!("'{}-{}'", self.run, self.next);
        if from == to {
            return self.local(from, debtor, creditor).await;
        }
        let (debit, credit) = two(&mut self.connections, from, to);
        let first = format!("{xid},'1'");
        let second = format!("{xid},'2'");
        let (take, give) = (update(debtor, -1), update(creditor, 1));
        let (a, b) = try_join!(
            prepare(debit, &first, &take),
            prepare(credit, &second, &give)
        )?;
        let verb = match (&a, &b) {
            (Vote::Prepared, Vote::Prepared) => "COMMIT",
            _ => "ROLLBACK",
        };
        try_join!(
            finish(debit, &first, &a, verb),
            finish(credit, &second, &b, verb)
        )?;
        Ok(match (a, b) {
            (Vote::Prepared, Vote::Prepared) => Done::Committed { ordered: 0 },
            (Vote::Refused(why), _) | (_, Vote::Refused(why)) => Done::Aborted(why.into()),
        })
    }

    /// Both rows on one server: one local transaction.
    async fn local(&mut self, server: usize, debtor: u32, creditor: u32) -> Result<Done, Failure> {
        let text = format!(
            "BEGIN; {}; {}; COMMIT",
            update(debtor, -1),
            update(creditor, 1)
        );
        let connection = &mut self.connections[server];
        match sqlx::raw_sql(AssertSqlSafe(text))
            .execute(&mut *connection)
            .await
        {
            Ok(_) => Ok(Done::Committed { ordered: 0 }),
            Err(sqlx::Error::Database(error)) => {
                sqlx::raw_sql("ROLLBACK")
                    .execute(connection)
                    .await
                    .map_err(failed)?;
                Ok(Done::Aborted(name(&*error).into()))
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// The statement with its values written in, as a hand-made client would.
fn update(row: u32, amount: i64) -> String {
    let amount = amount.to_string();
    let row = row.to_string();
    let mut parts = UPDATE.split('?');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for (value, part) in [&amount, &row, &amount].into_iter().zip(parts) {
        text.push_str(value);
        text.push_str(part);
    }
    text
}

fn two(
    list: &mut [MySqlConnection],
    a: usize,
    b: usize,
) -> (&mut MySqlConnection, &mut MySqlConnection) {
    let (low, high) = list.split_at_mut(a.max(b));
    if a < b {
        (&mut low[a], &mut high[0])
    } else {
        (&mut high[0], &mut low[b])
    }
}

fn name(error: &dyn sqlx::error::DatabaseError) -> String {
    let number = error
        .try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()
        .map_or(0, sqlx::mysql::MySqlDatabaseError::number);
    match number {
        1205 => "LOCK_TIMEOUT".to_owned(),
        1213 | 1613 | 1614 => "DEADLOCK".to_owned(),
        number => format!("ERROR_{number}"),
    }
}

async fn prepare(
    connection: &mut MySqlConnection,
    xid: &str,
    update: &str,
) -> Result<Vote, Failure> {
    let text = format!("XA START {xid}; {update}; XA END {xid}; XA PREPARE {xid}");
    match sqlx::raw_sql(AssertSqlSafe(text))
        .execute(&mut *connection)
        .await
    {
        Ok(done) if done.rows_affected() == 1 => Ok(Vote::Prepared),
        Ok(_) => {
            let text = format!("XA ROLLBACK {xid}");
            sqlx::raw_sql(AssertSqlSafe(text))
                .execute(connection)
                .await
                .map_err(failed)?;
            Ok(Vote::Refused("INSUFFICIENT_FUNDS".to_owned()))
        }
        Err(sqlx::Error::Database(error)) => {
            // A deadlock's victim answers XA END with an error and takes XA ROLLBACK all the same.
            let text = format!("XA END {xid}");
            let _ = sqlx::raw_sql(AssertSqlSafe(text))
                .execute(&mut *connection)
                .await;
            let text = format!("XA ROLLBACK {xid}");
            sqlx::raw_sql(AssertSqlSafe(text))
                .execute(connection)
                .await
                .map_err(failed)?;
            Ok(Vote::Refused(name(&*error)))
        }
        Err(error) => Err(failed(error)),
    }
}

async fn finish(
    connection: &mut MySqlConnection,
    xid: &str,
    vote: &Vote,
    verb: &str,
) -> Result<(), Failure> {
    if let Vote::Prepared = vote {
        let text = format!("XA {verb} {xid}");
        sqlx::raw_sql(AssertSqlSafe(text))
            .execute(connection)
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// The same work through Concord: the same statement on the same rows.
#[derive(Debug)]
pub(super) struct PlainWorker {
    table: Table,
    client: Client,
}

impl PlainWorker {
    pub(super) async fn once(&mut self) -> Done {
        let ((from, &debtor), (to, &creditor)) = self.table.rows.pair();
        let statement = |row: u32, amount: i64| {
            Statement::new(UPDATE)
                .bind(amount)
                .bind(row)
                .bind(amount)
                .expect_rows(1, Some(1), "INSUFFICIENT_FUNDS")
        };
        let outcome = self
            .client
            .one_shot()
            .on(&self.table.servers[from].name, statement(debtor, -1))
            .on(&self.table.servers[to].name, statement(creditor, 1))
            .send()
            .await;
        Done::of(&outcome, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_where_concord_binds_them() {
        assert_eq!(
            update(7, -1),
            "UPDATE concord_raw.accounts SET balance = balance + -1 WHERE id = 7 \
             AND balance + -1 >= 0"
        );
        assert_eq!(UPDATE.matches('?').count(), 3);
    }
}
