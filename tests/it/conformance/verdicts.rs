//! What may be taken for proven by what a server shows: only that server's own word, and only when
//! a crash of its host could not take it back.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use concord_client::local::server::ServerKind;
use concord_core::id::BranchId;
use concord_core::reason::{Reason, code};
use concord_participant::resource::mysql::{Address, MySql, Secret};
use concord_participant::resource::{Finished, LedgerEntry, Prepared, ResourceManager as _};
use concord_tests::proxy::{self, Fault, Kind, Proxy};

use super::types::{branch, statement, work};
use super::{Real, text, under_test};

/// How often a participant made all that is visible durable.
const FLUSHED: &str = "SELECT times FROM concord.flushed";

async fn prepare(rm: &MySql, sql: &str) -> BranchId {
    let id = branch();
    let prepared = rm
        .prepare(id, Some(&work(vec![statement(sql, Vec::new())])))
        .await;
    assert!(
        matches!(prepared, Prepared::Prepared { .. }),
        "{prepared:?}"
    );
    id
}

pub async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let patience = tokio::time::Instant::now() + Duration::from_secs(30);
    while !is().await {
        assert!(tokio::time::Instant::now() < patience, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A row that is visible is made durable before anybody is told of it; a server that takes no
/// writes has ended its commits before.
async fn what_is_visible_is_made_durable(real: &Real) {
    let rm = MySql::start(real.options());
    let id = prepare(&rm, "INSERT INTO conformance.t VALUES ('visible', 1)").await;
    assert_eq!(rm.ledger(id).await, Ok(LedgerEntry::Absent));
    let before = real.sql(FLUSHED).await;
    assert_eq!(rm.commit(id).await, Finished::Done);
    assert_eq!(real.sql(FLUSHED).await, before, "its own answer is enough");
    for look in 0..2 {
        let before = real.sql(FLUSHED).await;
        let found = if look == 0 {
            rm.ledger(id).await
        } else {
            rm.tombstone(id).await
        };
        assert_eq!(found, Ok(LedgerEntry::Committed));
        assert_ne!(real.sql(FLUSHED).await, before);
    }
    let aborted = branch();
    assert_eq!(rm.tombstone(aborted).await, Ok(LedgerEntry::Tombstone));
    let before = real.sql(FLUSHED).await;
    assert_eq!(rm.ledger(aborted).await, Ok(LedgerEntry::Tombstone));
    assert_ne!(real.sql(FLUSHED).await, before);
    real.sql("SET GLOBAL read_only = ON").await;
    assert_eq!(rm.ledger(id).await, Ok(LedgerEntry::Committed));
    real.sql("SET GLOBAL read_only = OFF").await;
}

/// A participant whose answers can be held up, with one open and idle connection, and a branch that
/// neither it nor its server knows.
struct HeldUp {
    rm: Arc<MySql>,
    proxy: Proxy,
    id: BranchId,
    _folder: tempfile::TempDir,
}

impl HeldUp {
    async fn start(real: &Real) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut options = real.options();
        let Address::Socket(socket) = options.address else {
            panic!("it listens on a socket")
        };
        let near = folder.path().join("socket");
        let far = proxy::Address::Unix(socket);
        let proxy = Proxy::on_socket(near.clone(), far, Kind::Sql).expect("a proxy");
        options.address = Address::Socket(near);
        // A look of its own would have the idle connection for a moment.
        options.check_interval = Duration::from_secs(3_600);
        let rm = MySql::start(options);
        until("it votes", async || rm.health().borrow().can_vote()).await;
        // Leaves a connection behind that is open and idle.
        let id = branch();
        assert_eq!(rm.ledger(id).await, Ok(LedgerEntry::Absent));
        Self {
            rm,
            proxy,
            id,
            _folder: folder,
        }
    }

    /// The branch's global id as its server writes it.
    fn gtrid(&self) -> String {
        format!("x'{:032x}'", u128::from_be_bytes(self.id.gtrid.0))
    }

    /// What inserts the branch's ledger row.
    fn row(&self) -> String {
        format!(
            "INSERT INTO concord.ledger (gtrid,bqual,state,connection_id) \
             VALUES ({},{},1,CONNECTION_ID())",
            self.gtrid(),
            self.id.bqual
        )
    }

    /// Looks, and lets something happen when the server has answered a text with these words
    /// around the global id, and nobody has heard it yet.
    async fn look(
        &self,
        real: &Real,
        look: impl Future<Output = Result<LedgerEntry, Reason>> + Send + 'static,
        words: (&str, &str),
        happens: impl AsyncFnOnce(),
    ) -> Result<LedgerEntry, Reason> {
        real.sql("SET GLOBAL log_output = 'TABLE'; SET GLOBAL general_log = ON")
            .await;
        let held = self.proxy.link().hold(Fault::StallAnswers);
        let looking = tokio::spawn(look);
        let (before, after) = words;
        let gtrid = self.gtrid().replace('\'', "''");
        let answered = format!(
            "SELECT COUNT(*) FROM mysql.general_log g JOIN information_schema.processlist p \
             ON p.id = g.thread_id WHERE p.command = 'Sleep' \
             AND CONVERT(g.argument USING utf8mb4) LIKE '%{before}%{gtrid}%{after}%'"
        );
        until("the look is answered", async || {
            looking.is_finished() || real.sql(&answered).await[0][0].as_deref() != Some("0")
        })
        .await;
        if looking.is_finished() {
            let ended = looking.await;
            unreachable!("nobody has heard the answer, and it ended: {ended:?}");
        }
        happens().await;
        drop(held);
        let found = looking.await.expect("no panic");
        real.sql("SET GLOBAL general_log = OFF").await;
        found
    }
}

/// A commit that becomes visible between the two looks at its row is made durable as well.
async fn what_becomes_visible_between_two_looks_is_made_durable(real: &Real) {
    let held_up = HeldUp::start(real).await;
    let (rm, id) = (held_up.rm.clone(), held_up.id);
    let before = real.sql(FLUSHED).await;
    let first = ("SELECT state", "");
    let look = async move { rm.ledger(id).await };
    let commits = async || {
        real.sql(&held_up.row()).await;
        assert_eq!(real.sql(FLUSHED).await, before);
    };
    let found = held_up.look(real, look, first, commits).await;
    assert_eq!(found, Ok(LedgerEntry::Committed));
    assert_ne!(
        real.sql(FLUSHED).await,
        before,
        "it was told and may be lost"
    );
    held_up.rm.stop().await;
}

/// A setting for imports that an operator left behind: keys are checked all the same.
async fn keys_are_checked_whatever_the_server_says(real: &Real) {
    real.sql(
        "SET GLOBAL foreign_key_checks = 0; SET GLOBAL unique_checks = 0; \
         CREATE TABLE conformance.parent (id INT PRIMARY KEY) ENGINE=InnoDB; \
         CREATE TABLE conformance.child (id INT PRIMARY KEY, \
         FOREIGN KEY (id) REFERENCES conformance.parent (id)) ENGINE=InnoDB",
    )
    .await;
    let rm = MySql::start(real.options());
    let orphan = work(vec![statement(
        "INSERT INTO conformance.child VALUES (1)",
        Vec::new(),
    )]);
    match rm.prepare(branch(), Some(&orphan)).await {
        Prepared::NotPrepared { reason, .. } => {
            assert_eq!(&*reason.code, code::CONSTRAINT_VIOLATED, "{reason}");
        }
        other => panic!("{other:?}"),
    }
    real.sql("SET GLOBAL foreign_key_checks = 1; SET GLOBAL unique_checks = 1")
        .await;
}

/// An address that leads to another server for a while: what that one does not know is no proof
/// that a branch is gone.
async fn another_server_proves_nothing(real: &Real, other: &Real) {
    let folder = tempfile::tempdir().expect("a folder");
    let address = folder.path().join("socket");
    let lead_to = |real: &Real| {
        let Address::Socket(socket) = real.options().address else {
            panic!("it listens on a socket")
        };
        let beside = folder.path().join("next");
        symlink(socket, &beside).expect("a link");
        std::fs::rename(&beside, &address).expect("the link");
    };
    lead_to(real);
    let mut options = real.options();
    options.address = Address::Socket(address.clone());
    let rm = MySql::start(options);
    let id = prepare(&rm, "INSERT INTO conformance.t VALUES ('elsewhere', 1)").await;

    // The same account and the same password there.
    let password = std::fs::read_to_string(real.password_file().await).expect("a password");
    other
        .sql(&format!(
            "ALTER USER concord@localhost IDENTIFIED BY '{}'",
            password.trim()
        ))
        .await;
    let mut options = other.options();
    options.password = Secret(password.trim().to_owned());
    let there = MySql::start(options);
    until("the other server has a ledger", async || {
        there.load().await.is_ok()
    })
    .await;
    assert_eq!(there.ledger(id).await, Ok(LedgerEntry::Absent));
    there.stop().await;
    lead_to(other);
    let mut root = real.root().await;
    let own = "SELECT CONCAT('KILL ', id) FROM information_schema.processlist WHERE user='concord'";
    for row in text(&mut root, own).await.expect("the list") {
        let kill = row[0].as_deref().expect("a text").to_owned();
        // One that has gone by itself is fine.
        let _ = text(&mut root, &kill).await;
    }
    for _ in 0..3 {
        let finished = rm.commit(id).await;
        assert!(
            matches!(finished, Finished::NotDone(_) | Finished::Unknown(_)),
            "{finished:?}"
        );
        assert!(rm.ledger(id).await.is_err());
        assert!(rm.tombstone(id).await.is_err());
        assert!(rm.recover().await.is_err());
    }
    lead_to(real);
    until("the branch is committed where it is", async || {
        rm.commit(id).await == Finished::Done
    })
    .await;
    assert_eq!(rm.ledger(id).await, Ok(LedgerEntry::Committed));
}

/// A branch that ends between the look that its row refuses and the question whose row that was:
/// no backup and no DDL held it, whose lock has the same error on MariaDB.
async fn a_row_that_went_meanwhile_was_a_branchs(real: &Real) {
    let held_up = HeldUp::start(real).await;
    let (rm, id) = (held_up.rm.clone(), held_up.id);
    let mut holder = real.root().await;
    let row = format!("START TRANSACTION; {}", held_up.row());
    text(&mut holder, &row).await.expect("the row");
    let refused = ("", "NOWAIT");
    let look = async move { rm.tombstone(id).await };
    let goes = async || {
        text(&mut holder, "ROLLBACK").await.expect("it goes");
    };
    let found = held_up.look(real, look, refused, goes).await;
    let reason = found.expect_err("it was alive");
    assert_eq!(&*reason.code, code::BRANCH_ATTACHED, "{reason}");
    let rm = held_up.rm;
    assert_eq!(rm.tombstone(id).await, Ok(LedgerEntry::Tombstone));
    rm.stop().await;
}

async fn on(kind: ServerKind) {
    let Some(binary) = under_test(kind) else {
        return;
    };
    let again = binary.clone();
    let real = Real::start(binary).await;
    what_is_visible_is_made_durable(&real).await;
    what_becomes_visible_between_two_looks_is_made_durable(&real).await;
    keys_are_checked_whatever_the_server_says(&real).await;
    a_row_that_went_meanwhile_was_a_branchs(&real).await;
    let other = Real::start(again).await;
    another_server_proves_nothing(&real, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_on_mysql() {
    on(ServerKind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_on_mariadb() {
    on(ServerKind::Mariadb).await;
}
