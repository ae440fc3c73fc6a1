//! The tables of bank and inventory: their versioned migrations, and when these are applied.
//!
//! Each participant's server gets every schema, because any of them may keep any account, product
//! or order. It refuses to keep what was applied: each server's own version table does. What is
//! remembered here only saves asking again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use concord_core::id::ParticipantName;
use concord_core::reason::Reason;
use futures::future::try_join_all;
use tokio::sync::Mutex;

use crate::engine::{Engine, Migration};

/// Schema of the bank's tables.
pub const BANK_SCHEMA: &str = "concord_bank";
/// Schema of the inventory's tables.
pub const INVENTORY_SCHEMA: &str = "concord_inventory";

/// The journal is clustered by gtrid, which grows with time: an insert goes to the end of the
/// table, whatever the number of accounts, and the entries of one transaction lie together. The
/// index for the listing of one account holds nothing but the two keys. Against clustering by
/// account, see `coordinator/docs/adr/0003-placement.md`.
pub const BANK: &[Migration] = &[Migration {
    version: 1,
    statements: &[
        "CREATE TABLE IF NOT EXISTS concord_bank.accounts (\
         id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         currency CHAR(3) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         balance BIGINT NOT NULL, \
         opened DATETIME(6) NOT NULL, \
         PRIMARY KEY (id), \
         CONSTRAINT accounts_balance_not_negative CHECK (balance >= 0)\
         ) ENGINE=InnoDB",
        "CREATE TABLE IF NOT EXISTS concord_bank.journal (\
         gtrid BINARY(16) NOT NULL, \
         account_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         counterparty VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         amount BIGINT NOT NULL, \
         memo VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL, \
         created DATETIME(6) NOT NULL, \
         PRIMARY KEY (gtrid, account_id), \
         KEY journal_by_account (account_id, gtrid)\
         ) ENGINE=InnoDB",
    ],
}];

/// Orders are clustered by gtrid for the same reason, and found by their id through a unique key;
/// their lines lie on the same server under the same gtrid.
pub const INVENTORY: &[Migration] = &[Migration {
    version: 1,
    statements: &[
        "CREATE TABLE IF NOT EXISTS concord_inventory.products (\
         id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         name VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL, \
         price BIGINT NOT NULL, \
         currency CHAR(3) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         stock BIGINT NOT NULL, \
         PRIMARY KEY (id), \
         CONSTRAINT products_stock_not_negative CHECK (stock >= 0)\
         ) ENGINE=InnoDB",
        "CREATE TABLE IF NOT EXISTS concord_inventory.stock_journal (\
         gtrid BINARY(16) NOT NULL, \
         product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         delta BIGINT NOT NULL, \
         order_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL, \
         created DATETIME(6) NOT NULL, \
         PRIMARY KEY (gtrid, product_id)\
         ) ENGINE=InnoDB",
        "CREATE TABLE IF NOT EXISTS concord_inventory.orders (\
         gtrid BINARY(16) NOT NULL, \
         id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         total BIGINT NOT NULL, \
         currency CHAR(3) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         payer VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL, \
         payee VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL, \
         placed DATETIME(6) NOT NULL, \
         PRIMARY KEY (gtrid), \
         UNIQUE KEY orders_by_id (id)\
         ) ENGINE=InnoDB",
        "CREATE TABLE IF NOT EXISTS concord_inventory.order_lines (\
         gtrid BINARY(16) NOT NULL, \
         line SMALLINT NOT NULL, \
         product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         quantity BIGINT NOT NULL, \
         price BIGINT NOT NULL, \
         PRIMARY KEY (gtrid, line)\
         ) ENGINE=InnoDB",
    ],
}];

/// Every schema of the gateway with its migrations.
const SCHEMAS: &[(&str, &[Migration])] = &[(BANK_SCHEMA, BANK), (INVENTORY_SCHEMA, INVENTORY)];

/// One participant's server.
#[derive(Debug, Default)]
struct Server {
    /// All schemas were up to date when last looked at.
    ready: AtomicBool,
    /// Held while they are brought there, so that many first calls make one.
    working: Mutex<()>,
}

/// Remembers which servers have the tables, and brings them to those that have not.
#[derive(Debug)]
pub struct Migrations {
    servers: HashMap<ParticipantName, Server>,
}

impl Migrations {
    /// Nothing is known yet of these participants.
    pub fn new(participants: &[ParticipantName]) -> Self {
        let servers = participants
            .iter()
            .map(|name| (name.clone(), Server::default()))
            .collect();
        Self { servers }
    }

    /// Returns when every one of these participants' servers has all tables.
    pub async fn ensure<'a, E: Engine>(
        &self,
        engine: &E,
        participants: impl Iterator<Item = &'a ParticipantName>,
    ) -> Result<(), Reason> {
        let missing: Vec<_> = participants
            .filter_map(|name| self.servers.get_key_value(name))
            .filter(|(_, server)| !server.ready.load(Ordering::Acquire))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        try_join_all(
            missing
                .into_iter()
                .map(|(name, server)| migrate(engine, name, server)),
        )
        .await
        .map(drop)
    }

    /// The server behind a participant may be another one, or have lost its tables: look again
    /// before the next use.
    pub fn forget(&self, participant: &ParticipantName) {
        if let Some(server) = self.servers.get(participant) {
            server.ready.store(false, Ordering::Release);
        }
    }
}

async fn migrate<E: Engine>(
    engine: &E,
    name: &ParticipantName,
    server: &Server,
) -> Result<(), Reason> {
    let _working = server.working.lock().await;
    if server.ready.load(Ordering::Acquire) {
        return Ok(());
    }
    for (schema, migrations) in SCHEMAS {
        engine.migrate(name, schema, migrations).await?;
    }
    server.ready.store(true, Ordering::Release);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_from_one_without_gaps() {
        for (schema, migrations) in SCHEMAS {
            assert!(schema.starts_with("concord_"));
            for (i, migration) in migrations.iter().enumerate() {
                assert_eq!(migration.version as usize, i + 1, "{schema}");
            }
        }
    }

    #[test]
    fn statements_are_repeatable_and_stay_in_their_schema() {
        for (schema, migrations) in SCHEMAS {
            for statement in migrations.iter().flat_map(|migration| migration.statements) {
                let start = format!("CREATE TABLE IF NOT EXISTS {schema}.");
                assert!(statement.starts_with(&start), "{statement}");
                assert!(
                    statement.ends_with("ENGINE=InnoDB"),
                    "XA needs it: {statement}"
                );
            }
        }
    }
}
