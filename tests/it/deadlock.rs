//! A deadlock that no server can see: each of two transactions waits on another server for a row
//! that the other one holds.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use concord_client::{CallError, Outcome, Statement, Transaction};
use concord_tests::cluster::{eventually, servers};
use concord_tests::rig::{Rig, START};

/// Longest wait for a row lock, in seconds.
const LOCK_WAIT_S: u64 = 2;
/// The lock time-out, and what comes after it.
const BOUND: Duration = Duration::from_secs(15 * LOCK_WAIT_S);

fn plus(id: i32) -> Statement {
    Statement::new(format!("UPDATE shop.t SET n = n + 1 WHERE id = {id}"))
}

/// The second statement of a transaction, and its end: committed, or rolled back with it.
async fn end(mut tx: Transaction, participant: &str, id: i32) -> anyhow::Result<bool> {
    match tx.execute(participant, plus(id)).await {
        Ok(_) => match tx.commit().await {
            Outcome::Committed { .. } => Ok(true),
            other => bail!("it held all its locks: {other:?}"),
        },
        Err(CallError::Refused { reason, .. }) if &*reason.code == "LOCK_TIMEOUT" => {
            match tx.commit().await {
                Outcome::Aborted { .. } => Ok(false),
                other => bail!("half a transaction: {other:?}"),
            }
        }
        Err(error) => bail!("neither done nor a lock time-out: {error:?}"),
    }
}

#[test]
fn a_deadlock_across_servers_ends_with_the_lock_timeout() -> anyhow::Result<()> {
    for binary in servers()? {
        let name = format!("{} {}", binary.kind(), binary.version());
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let mut rig = Rig::servers_only(&binary, 2).await?;
            for participant in ["p1", "p2"] {
                rig.configure(participant, |own| {
                    let server = own.get_mut("server").and_then(|of| of.as_table_mut());
                    let wait = i64::try_from(LOCK_WAIT_S).unwrap_or(1);
                    if let Some(server) = server {
                        server.insert("lock_wait_timeout_s".into(), wait.into());
                    }
                });
            }
            rig.up().await?;
            let client = rig.client()?;
            let mut one = client.begin().await?;
            let mut other = client.begin().await?;
            one.execute("p1", plus(1)).await?;
            other.execute("p2", plus(1)).await?;
            let began = Instant::now();
            let (one, other) = tokio::join!(end(one, "p2", 1), end(other, "p1", 1));
            let (one, other) = (one?, other?);
            ensure!(!(one && other), "{name}: both committed");
            ensure!(began.elapsed() < BOUND, "{name}: {:?}", began.elapsed());
            rig.settled(1, START + i64::from(one || other)).await?;
            // The rows are free again, the sooner the loser's participant hears of it.
            eventually("the rows free", BOUND, async || {
                let outcome = rig.plus(1)?.await?;
                Ok(outcome.is_committed().then_some(()))
            })
            .await
            .with_context(|| name.clone())?;
            Ok::<(), anyhow::Error>(())
        })?;
    }
    Ok(())
}
