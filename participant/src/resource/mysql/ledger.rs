//! The schema `concord`: its versions, and the texts that read and write it.
//!
//! A ledger row is written inside every branch, so it is visible exactly when the branch is
//! committed: the one proof that survives every crash. A tombstone stands under the same key, so
//! the unique key is where a late Prepare and an Abort meet.

use std::fmt::Write as _;
use std::time::Duration;

use concord_core::id::{BranchId, Gtrid, Request, RequestId};
use concord_core::record::ParticipantRecord;

use super::migrate::Version;
use super::pool::Text;
use super::xa::{hex, push_hex};

/// `ledger.state` of a branch's own row.
pub const STATE_BRANCH: u8 = 1;
/// `ledger.state` of an abort's tombstone.
pub const STATE_TOMBSTONE: u8 = 2;
/// Name of the unique key over request ids, as it stands in the server's message.
pub const REQUEST_KEY: &str = "request_id";
/// Longest message of a damage report, in characters.
const DAMAGE_MESSAGE_MAX: usize = 2_000;
/// The schema.
pub const SCHEMA: &str = "concord";

/// Statements that bring the schema from version `index` to `index + 1`. Each may be repeated:
/// DDL is not transactional, so a crash may leave a version half done.
const MIGRATIONS: &[&[&str]] = &[
    &[
        "CREATE TABLE IF NOT EXISTS concord.ledger (\
        gtrid BINARY(16) NOT NULL, \
        bqual INT UNSIGNED NOT NULL, \
        state TINYINT UNSIGNED NOT NULL COMMENT '1 branch (committed when visible), 2 tombstone', \
        connection_id BIGINT UNSIGNED NOT NULL COMMENT 'that wrote the row', \
        request_id VARBINARY(512) NULL, \
        created TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, \
        PRIMARY KEY (gtrid, bqual), \
        UNIQUE KEY request_id (request_id)\
     ) ENGINE=InnoDB",
        "CREATE TABLE IF NOT EXISTS concord.epoch (\
        one TINYINT UNSIGNED NOT NULL PRIMARY KEY, \
        epoch BIGINT UNSIGNED NOT NULL\
     ) ENGINE=InnoDB COMMENT='the highest epoch of a coordinator that was seen'",
        "INSERT IGNORE INTO concord.epoch (one, epoch) VALUES (1, 0)",
        "CREATE TABLE IF NOT EXISTS concord.forget (\
        one TINYINT UNSIGNED NOT NULL PRIMARY KEY, \
        below BINARY(16) NOT NULL\
     ) ENGINE=InnoDB COMMENT='transactions below this gtrid are refused'",
        "INSERT IGNORE INTO concord.forget (one, below) \
        VALUES (1, x'00000000000000000000000000000000')",
        "CREATE TABLE IF NOT EXISTS concord.damage (\
        id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, \
        gtrid BINARY(16) NOT NULL, \
        bqual INT UNSIGNED NOT NULL, \
        code VARCHAR(63) CHARACTER SET ascii NOT NULL, \
        message VARCHAR(2000) CHARACTER SET utf8mb4 NOT NULL, \
        found BIGINT NOT NULL COMMENT 'Unix milliseconds', \
        acknowledged BIGINT NULL COMMENT 'Unix milliseconds', \
        UNIQUE KEY finding (gtrid, bqual, code)\
     ) ENGINE=InnoDB COMMENT='heuristic outcomes, kept for ever'",
        "CREATE TABLE IF NOT EXISTS concord.identity (\
        one TINYINT UNSIGNED NOT NULL PRIMARY KEY, \
        id BINARY(16) NOT NULL, \
        cluster VARBINARY(32) NOT NULL, \
        participant VARBINARY(32) NOT NULL\
     ) ENGINE=InnoDB COMMENT='whose data this is'",
    ],
    &[
        "ALTER TABLE concord.ledger ADD COLUMN request_fingerprint BIGINT UNSIGNED NULL \
        COMMENT 'hash of what was asked for'",
    ],
    &[
        "CREATE TABLE IF NOT EXISTS concord.flushed (\
        one TINYINT UNSIGNED NOT NULL PRIMARY KEY, \
        times BIGINT UNSIGNED NOT NULL\
     ) ENGINE=InnoDB COMMENT='written to when all that is visible must become durable'",
        "INSERT IGNORE INTO concord.flushed (one, times) VALUES (1, 0)",
    ],
];

/// The version that this program works with.
pub fn current_version() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

/// All versions, for the migration.
pub fn versions() -> Vec<Version<'static>> {
    (1..)
        .zip(MIGRATIONS)
        .map(|(number, statements)| Version {
            number,
            statements: statements.to_vec(),
        })
        .collect()
}

/// Whose data this is.
pub const SELECT_IDENTITY: &str =
    "SELECT id, cluster, participant FROM concord.identity WHERE one = 1";

/// Says whose data this is, unless somebody said so before.
pub fn insert_identity(id: [u8; 16], cluster: &str, participant: &str) -> String {
    format!(
        "INSERT IGNORE INTO concord.identity (one, id, cluster, participant) \
         VALUES (1, x'{}', x'{}', x'{}')",
        hex(&id),
        hex(cluster.as_bytes()),
        hex(participant.as_bytes()),
    )
}

/// The row of a branch, as part of its work.
pub fn push_branch_row(
    sql: &mut String,
    branch: BranchId,
    connection: u64,
    request: Option<&Request>,
) {
    sql.push_str("INSERT INTO concord.ledger (gtrid,bqual,state,connection_id");
    if request.is_some() {
        sql.push_str(",request_id,request_fingerprint");
    }
    sql.push_str(") VALUES (x'");
    push_hex(sql, &branch.gtrid.0);
    let _ = write!(sql, "',{},{STATE_BRANCH},{connection}", branch.bqual);
    if let Some(Request { id, fingerprint }) = request {
        sql.push_str(",x'");
        push_hex(sql, id.as_str().as_bytes());
        let _ = write!(sql, "',{fingerprint}");
    }
    sql.push(')');
}

/// One statement in a transaction of its own.
fn at(level: &str, statement: &str) -> Text {
    Text::of([
        &*format!("SET TRANSACTION ISOLATION LEVEL {level}"),
        statement,
    ])
}

fn key(branch: BranchId) -> String {
    format!(
        "gtrid=x'{}' AND bqual={}",
        hex(&branch.gtrid.0),
        branch.bqual
    )
}

/// The committed row of a branch.
pub fn select_row(branch: BranchId) -> Text {
    let sql = format!("SELECT state FROM concord.ledger WHERE {}", key(branch));
    at("READ COMMITTED", &sql)
}

/// The same with a lock that is refused at once while anybody works on the row.
pub fn select_row_locked(branch: BranchId) -> Text {
    let sql = format!(
        "SELECT state FROM concord.ledger WHERE {} FOR UPDATE NOWAIT",
        key(branch)
    );
    at("READ COMMITTED", &sql)
}

/// A commit of its own.
pub const FLUSH: &str = "UPDATE concord.flushed SET times=times+1 WHERE one=1";

/// The connection that wrote a branch's row, committed or not.
pub fn select_connection(branch: BranchId) -> Text {
    let sql = format!(
        "SELECT connection_id FROM concord.ledger WHERE {}",
        key(branch)
    );
    at("READ UNCOMMITTED", &sql)
}

/// What a branch's row says, committed or not.
pub fn select_uncommitted(branch: BranchId) -> Text {
    let sql = format!("SELECT state FROM concord.ledger WHERE {}", key(branch));
    at("READ UNCOMMITTED", &sql)
}

/// Leaves a tombstone, waiting only a little for whoever holds the row; then restores the wait.
pub fn insert_tombstone(branch: BranchId, connection: u64, lock_wait_s: u64) -> Text {
    let insert = format!(
        "INSERT INTO concord.ledger (gtrid,bqual,state,connection_id) VALUES \
         (x'{}',{},{STATE_TOMBSTONE},{connection})",
        hex(&branch.gtrid.0),
        branch.bqual
    );
    Text::of([
        "SET SESSION innodb_lock_wait_timeout=1",
        &*insert,
        &*format!("SET SESSION innodb_lock_wait_timeout={lock_wait_s}"),
    ])
}

/// Keys of the newest committed branches, newest first.
pub fn select_newest(limit: usize) -> Text {
    let sql = format!(
        "SELECT gtrid,bqual FROM concord.ledger \
         WHERE state={STATE_BRANCH} ORDER BY gtrid DESC,bqual DESC LIMIT {limit}"
    );
    at("READ COMMITTED", &sql)
}

/// Keys of those of these branches that are committed; `wait` for those that are just being
/// committed or rolled back.
pub fn select_committed(branches: &[BranchId], wait: bool) -> Text {
    let lock = if wait { " LOCK IN SHARE MODE" } else { "" };
    let keys: Vec<_> = branches.iter().map(|branch| key(*branch)).collect();
    let sql = format!(
        "SELECT gtrid,bqual FROM concord.ledger \
         WHERE state={STATE_BRANCH} AND ({}){lock}",
        keys.join(" OR ")
    );
    at("READ COMMITTED", &sql)
}

/// The transaction that a request id took effect in, and what it was asked for.
pub fn select_request(request: &RequestId) -> Text {
    let sql = format!(
        "SELECT gtrid,request_fingerprint \
         FROM concord.ledger WHERE request_id=x'{}' AND state={STATE_BRANCH}",
        hex(request.as_str().as_bytes())
    );
    at("READ COMMITTED", &sql)
}

/// Makes records durable, in one transaction.
pub fn append(records: &[ParticipantRecord], unix_ms: u64) -> Text {
    let mut text = Text::of(["START TRANSACTION"]);
    for record in records {
        let sql = text.next();
        let _ = match record {
            ParticipantRecord::Epoch(epoch) => write!(
                sql,
                "UPDATE concord.epoch SET epoch=GREATEST(epoch,{epoch}) WHERE one=1"
            ),
            ParticipantRecord::ForgetBelow(gtrid) => {
                let gtrid = hex(&gtrid.0);
                write!(
                    sql,
                    "UPDATE concord.forget SET below=x'{gtrid}' WHERE one=1 AND below<x'{gtrid}'"
                )
            }
            ParticipantRecord::Damage {
                gtrid,
                bqual,
                reason,
            } => {
                let message: String = reason.message.chars().take(DAMAGE_MESSAGE_MAX).collect();
                let code: String = reason.code.chars().take(63).collect();
                write!(
                    sql,
                    "INSERT IGNORE INTO concord.damage (gtrid,bqual,code,message,found) VALUES \
                     (x'{}',{bqual},_ascii x'{}',_utf8mb4 x'{}',{unix_ms})",
                    hex(&gtrid.0),
                    hex(code.as_bytes()),
                    hex(message.as_bytes()),
                )
            }
        };
    }
    text.next().push_str("COMMIT");
    text
}

/// The highest epoch and the horizon.
pub const SELECT_DURABLE: &str =
    "SELECT e.epoch, f.below FROM concord.epoch e JOIN concord.forget f ON f.one = e.one";

/// Reports of damage, newest first, acknowledged ones behind all others; those that nobody
/// acknowledged when `open` is set.
pub fn select_damage(open: bool, limit: u32) -> String {
    let filter = if open {
        "WHERE acknowledged IS NULL"
    } else {
        ""
    };
    format!(
        "SELECT id,gtrid,bqual,code,message,found,acknowledged IS NOT NULL FROM concord.damage \
         {filter} ORDER BY acknowledged IS NOT NULL,id DESC LIMIT {limit}"
    )
}

/// Marks a report as read.
pub fn acknowledge(id: u64, unix_ms: u64) -> String {
    format!("UPDATE concord.damage SET acknowledged=COALESCE(acknowledged,{unix_ms}) WHERE id={id}")
}

/// Keys of those of the oldest rows below an id that are so old by the server's clock too, with and
/// without a request id. Where a clock was wrong, rows that are not stand before others that are:
/// these wait for them, so that no look is long.
pub fn select_expired(below: Gtrid, age: Duration, limit: usize) -> Text {
    let sql = format!(
        "SELECT gtrid,bqual FROM (SELECT gtrid,bqual,created FROM concord.ledger \
         WHERE gtrid<x'{}' ORDER BY gtrid,bqual LIMIT {limit}) AS oldest \
         WHERE created<=NOW()-INTERVAL {} SECOND",
        hex(&below.0),
        age.as_secs()
    );
    at("READ COMMITTED", &sql)
}

/// Keys of rows without a request id from one id on and below another.
pub fn select_forgotten(from: Gtrid, below: Gtrid, limit: usize) -> Text {
    let sql = format!(
        "SELECT gtrid,bqual FROM concord.ledger \
         WHERE gtrid>=x'{}' AND gtrid<x'{}' AND request_id IS NULL \
         ORDER BY gtrid,bqual LIMIT {limit}",
        hex(&from.0),
        hex(&below.0)
    );
    at("READ COMMITTED", &sql)
}

/// Deletes rows by their keys: no range of the ledger is locked.
pub fn delete_rows(keys: &[(Gtrid, u32)]) -> Text {
    let keys: Vec<_> = keys
        .iter()
        .map(|(gtrid, bqual)| format!("gtrid=x'{}' AND bqual={bqual}", hex(&gtrid.0)))
        .collect();
    let sql = format!("DELETE FROM concord.ledger WHERE {}", keys.join(" OR "));
    at("READ COMMITTED", &sql)
}
