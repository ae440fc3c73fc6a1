//! Branches that a DBA ends, whose connections have just gone.
//!
//! A server that keeps branches attached answers OK to a verb that comes a moment too early and
//! does nothing (`detached` in `concord_participant::resource::mysql`). So this waits for `InnoDB`,
//! as a DBA should.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sqlx::Row as _;
use sqlx::mysql::MySqlConnection;

use crate::rig::{PATIENCE, run};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(25);

/// The transactions of `InnoDB` that are open now, as it tells them. Not `innodb_trx`: that is a
/// copy which frequent readers keep from being renewed.
pub async fn open_transactions(root: &mut MySqlConnection) -> anyhow::Result<Vec<String>> {
    let status = sqlx::raw_sql("SHOW ENGINE INNODB STATUS").fetch_one(root);
    let status: String = status.await?.try_get("Status")?;
    let (_, transactions) = status
        .split_once("LIST OF TRANSACTIONS FOR EACH SESSION")
        .context("no list of transactions")?;
    let open = transactions.split("---TRANSACTION ").skip(1);
    let open = open.filter(|one| {
        one.lines()
            .next()
            .is_some_and(|line| line.contains(", ACTIVE"))
    });
    Ok(open.map(str::to_owned).collect())
}

/// `XA COMMIT` or `XA ROLLBACK`, once no connection of the server has a prepared branch.
pub async fn end(root: &mut MySqlConnection, verb: &str, xid: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    while let Err(error) = try_to_end(root, verb, xid).await {
        ensure!(start.elapsed() < PATIENCE, "{error:#}");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn try_to_end(root: &mut MySqlConnection, verb: &str, xid: &str) -> anyhow::Result<()> {
    let open = open_transactions(root).await?;
    let attached = |one: &String| one.contains("(PREPARED)") && one.contains("thread id ");
    ensure!(!open.iter().any(attached), "attached: {open:?}");
    run(root, &format!("{verb} {xid}")).await
}
