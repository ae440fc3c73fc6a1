//! Audits the books of a cluster by plain SQL on every server: what the daemons say does not count.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::Row;

use crate::cluster::{Cluster, eventually};

/// Longest time that anything may stay in doubt once every process is up again.
pub const IN_DOUBT_MAX: Duration = Duration::from_secs(10);

/// What the books say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Balance of each account.
    pub balances: BTreeMap<String, i64>,
    /// Entries of each transaction: account and amount, over all servers.
    pub journal: BTreeMap<Vec<u8>, Vec<(String, i64)>>,
    /// The transaction of each request id that took effect.
    pub requests: BTreeMap<String, Vec<u8>>,
}

impl Books {
    /// Reads the books of all servers.
    pub async fn read(cluster: &Cluster, servers: usize) -> anyhow::Result<Self> {
        let mut books = Self::default();
        for n in 1..=servers {
            books
                .read_server(cluster, n)
                .await
                .with_context(|| format!("server {n}"))?;
        }
        Ok(books)
    }

    async fn read_server(&mut self, cluster: &Cluster, n: usize) -> anyhow::Result<()> {
        let mut root = cluster.root(n).await?;
        let rows = sqlx::query("SELECT id, balance FROM concord_bank.accounts")
            .fetch_all(&mut root)
            .await?;
        for row in rows {
            let (id, balance): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            ensure!(
                self.balances.insert(id.clone(), balance).is_none(),
                "{id} is on two servers"
            );
        }
        let rows = sqlx::query("SELECT gtrid, account_id, amount FROM concord_bank.journal")
            .fetch_all(&mut root)
            .await?;
        for row in rows {
            let (gtrid, account, amount): (Vec<u8>, String, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            self.journal
                .entry(gtrid)
                .or_default()
                .push((account, amount));
        }
        let rows = sqlx::query(
            "SELECT request_id, gtrid FROM concord.ledger \
             WHERE request_id IS NOT NULL AND state = 1",
        )
        .fetch_all(&mut root)
        .await?;
        for row in rows {
            let (request, gtrid): (Vec<u8>, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            let request = String::from_utf8(request)?;
            let former = self.requests.insert(request.clone(), gtrid);
            ensure!(former.is_none(), "request {request} took effect twice");
        }
        Ok(())
    }

    /// Sum of all balances.
    pub fn sum(&self) -> i64 {
        self.balances.values().sum()
    }

    /// Every balance is the sum of its journal, none is negative, and every transaction's entries
    /// add up to nothing unless it opened an account.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
        for (gtrid, entries) in &self.journal {
            for (account, amount) in entries {
                *sums.entry(account).or_default() += amount;
            }
            let total: i64 = entries.iter().map(|(_, amount)| amount).sum();
            let opens = entries.len() == 1 && entries[0].1 > 0;
            ensure!(
                opens || (entries.len() == 2 && total == 0),
                "transaction {gtrid:02x?} is torn: {entries:?}"
            );
        }
        for (account, balance) in &self.balances {
            ensure!(*balance >= 0, "account {account} is overdrawn: {balance}");
            let sum = sums.get(account.as_str()).copied().unwrap_or_default();
            ensure!(
                sum == *balance,
                "account {account}: balance {balance}, journal {sum}"
            );
        }
        Ok(())
    }

    /// Waits until every process is up, and then until nothing is in doubt, which may not take
    /// longer than it is said to.
    pub async fn drain(cluster: &Cluster, servers: usize) -> anyhow::Result<()> {
        cluster.until_up().await?;
        eventually("nothing in doubt", IN_DOUBT_MAX, async || {
            let over = Self::nothing_in_doubt(cluster, servers).await?;
            Ok(over.then_some(()))
        })
        .await
    }

    /// Nothing is in doubt on any server of the cluster.
    pub async fn nothing_in_doubt(cluster: &Cluster, servers: usize) -> anyhow::Result<bool> {
        for n in 1..=servers {
            let mut root = cluster.root(n).await?;
            if !sqlx::raw_sql("XA RECOVER")
                .fetch_all(&mut root)
                .await?
                .is_empty()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
