//! Answers that were meant for somebody else: MySQL may write the last answer of a connection that
//! is killed into one that has just been opened; MariaDB does not. Whatever comes, nothing may be
//! said of a branch that is not so.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use concord_client::local::server::ServerKind;
use concord_core::id::BranchId;
use concord_participant::resource::mysql::{Address, MySql, Options};
use concord_participant::resource::{
    Finished, LedgerEntry, OnePhase, Prepared, ResourceManager as _,
};
use concord_proto::model::Work;
use concord_tests::proxy::lock;
use concord_tests::proxy::packet::take_packet;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::types::{branch, statement, work};
use super::verdicts::until;
use super::{Real, under_test};

/// Longest time that a text is withheld when nobody gives up on it.
const WITHHELD_MAX: Duration = Duration::from_secs(1);

/// Length of a request for TLS: the fixed part of a login.
const TLS_REQUEST_BYTES: usize = 36;

/// What a vote must never be.
const NOT_PREPARED: &str = "said to be prepared, and is not";

/// What comes instead of the answer, packet by packet.
const STRAY: &[(&str, &[&[u8]])] = &[
    ("done", &[DONE]),
    ("done, and more follows", &[MORE]),
    ("done and done", &[MORE, DONE]),
    (
        "done eight times",
        &[MORE, MORE, MORE, MORE, MORE, MORE, MORE, DONE],
    ),
    ("no row", &[COLUMNS, COLUMN, END]),
    ("a row", &[COLUMNS, COLUMN, b"\x011", END]),
    ("done, and a row", &[MORE, COLUMNS, COLUMN, b"\x011", END]),
    (
        "no such branch",
        &[b"\xff\x75\x05#XAE04XAER_NOTA: Unknown XID"],
    ),
    (
        "interrupted",
        &[b"\xff\x25\x05#70100Query execution was interrupted"],
    ),
];
const DONE: &[u8] = b"\x00\x00\x00\x02\x00\x00\x00";
const MORE: &[u8] = b"\x00\x00\x00\x0a\x00\x00\x00";
const COLUMNS: &[u8] = b"\x01";
const COLUMN: &[u8] =
    b"\x03def\x00\x00\x00\x011\x00\x0c\x3f\x00\x02\x00\x00\x00\x08\x81\x00\x00\x00";
const END: &[u8] = b"\xfe\x00\x00\x02\x00\x00\x00";

fn framed(payloads: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (payload, sequence) in payloads.iter().zip(5..) {
        let length = u8::try_from(payload.len()).expect("short");
        bytes.extend([length, 0, 0, sequence]);
        bytes.extend(*payload);
    }
    bytes
}

/// A text that gets another's answer, and reaches the server only when its sender has given up.
#[derive(Clone, Debug)]
struct Armed {
    /// Is part of the text; of the greeting when it is empty.
    marker: &'static str,
    stray: Vec<u8>,
}

/// Between the resource manager and the server.
struct Between {
    armed: Arc<Mutex<Option<Armed>>>,
    _serving: JoinSet<()>,
}

impl Between {
    fn listen(near: &Path, far: PathBuf) -> Self {
        let listener = UnixListener::bind(near).expect("a socket");
        let armed: Arc<Mutex<Option<Armed>>> = Arc::default();
        let mut serving = JoinSet::new();
        let shared = Arc::clone(&armed);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = UnixStream::connect(&far).await.expect("the server");
                connections.spawn(pass(near, far, Arc::clone(&shared)));
            }
        });
        Self {
            armed,
            _serving: serving,
        }
    }

    fn arm(&self, marker: &'static str, stray: &[&[u8]]) {
        let stray = framed(stray);
        *lock(&self.armed) = Some(Armed { marker, stray });
    }

    fn has_fired(&self) -> bool {
        lock(&self.armed).is_none()
    }
}

fn take(armed: &Mutex<Option<Armed>>, text: &[u8]) -> Option<Vec<u8>> {
    let mut armed = lock(armed);
    let fits = armed.as_ref().is_some_and(|armed| {
        let marker = armed.marker.as_bytes();
        !marker.is_empty() && text.windows(marker.len()).any(|part| part == marker)
    });
    armed.take_if(|_| fits).map(|armed| armed.stray)
}

/// Passes both ways until one side ends.
async fn pass(mut near: UnixStream, mut far: UnixStream, armed: Arc<Mutex<Option<Armed>>>) {
    let at_login = lock(&armed).take_if(|armed| armed.marker.is_empty());
    if let Some(armed) = at_login {
        drop(near.write_all(&armed.stray).await);
    }
    let (mut requests, mut answers) = (Vec::new(), Vec::new());
    let mut begins = true;
    loop {
        tokio::select! {
            count = near.read_buf(&mut requests) => if count.unwrap_or(0) == 0 { return },
            count = far.read_buf(&mut answers) => if count.unwrap_or(0) == 0 { return },
        }
        while let Some(packet) = take_packet(&mut requests) {
            if let Some(stray) = take(&armed, &packet) {
                drop(near.write_all(&stray).await);
                // Until its sender says or does something else.
                let more = near.read_buf(&mut requests);
                let more = tokio::time::timeout(WITHHELD_MAX, more).await;
                drop(far.write_all(&packet).await);
                if matches!(more, Ok(Ok(0) | Err(_))) {
                    // The server goes on with it, and finds out when it answers.
                    return;
                }
                continue;
            }
            if far.write_all(&packet).await.is_err() {
                return;
            }
            if std::mem::take(&mut begins) && packet.len() == TLS_REQUEST_BYTES {
                // What TLS begins with may have come along.
                if far.write_all(&requests).await.is_ok() {
                    drop(copy_bidirectional(&mut near, &mut far).await);
                }
                return;
            }
        }
        if near.write_all(&answers).await.is_err() {
            return;
        }
        answers.clear();
    }
}

struct World {
    real: Real,
    rm: Arc<MySql>,
    /// Sees the server as it is.
    judge: Arc<MySql>,
    between: Between,
    rows: AtomicU32,
    folder: tempfile::TempDir,
}

impl World {
    async fn start(real: Real) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let judge = MySql::start(real.options());
        let Address::Socket(far) = real.options().address else {
            panic!("it listens on a socket")
        };
        let between = Between::listen(&folder.path().join("socket"), far);
        let rm = MySql::start(Self::through(&real, &folder));
        for rm in [&rm, &judge] {
            until("it votes", async || rm.health().borrow().can_vote()).await;
        }
        Self {
            real,
            rm,
            judge,
            between,
            rows: AtomicU32::new(0),
            folder,
        }
    }

    fn through(real: &Real, folder: &tempfile::TempDir) -> Options {
        let mut options = real.options();
        options.address = Address::Socket(folder.path().join("socket"));
        // Its looks would meet what is meant for others.
        options.check_interval = Duration::from_secs(3_600);
        options
    }

    /// Work that inserts a row of its own, and a look at that row.
    fn insert(&self) -> (Work, String) {
        let number = self.rows.fetch_add(1, Ordering::Relaxed);
        let insert = format!("INSERT INTO conformance.t VALUES ('stray-{number}', 1)");
        let look = format!("SELECT 1 FROM conformance.t WHERE k = 'stray-{number}'");
        (work(vec![statement(&insert, Vec::new())]), look)
    }

    async fn shows(&self, look: &str) -> bool {
        !self.real.sql(look).await.is_empty()
    }

    async fn is_prepared(&self, id: BranchId) -> bool {
        let listed = self.judge.recover().await.expect("a list");
        listed.ours.contains(&id)
    }

    async fn prepared(&self) -> (BranchId, String) {
        let (work, look) = self.insert();
        let id = branch();
        let prepared = self.rm.prepare(id, Some(&work)).await;
        assert!(
            matches!(prepared, Prepared::Prepared { .. }),
            "{prepared:?}"
        );
        (id, look)
    }

    async fn committed(&self) -> BranchId {
        let (id, _) = self.prepared().await;
        assert_eq!(self.rm.commit(id).await, Finished::Done);
        id
    }

    fn arm(&self, marker: &'static str, stray: &[&[u8]]) {
        self.between.arm(marker, stray);
    }

    async fn votes_what_is_so(&self, id: BranchId, prepared: &Prepared) {
        let is_prepared = self.is_prepared(id).await;
        match prepared {
            Prepared::Prepared { .. } => assert!(is_prepared, "{NOT_PREPARED}"),
            Prepared::NotPrepared { .. } => assert!(!is_prepared, "{prepared:?}"),
            Prepared::ReadOnly { .. } => panic!("{prepared:?}"),
            Prepared::Unknown { .. } => {}
        }
    }

    /// The branch is rolled back in the end, whatever was said before.
    async fn is_undone(&self, id: BranchId, look: &str) {
        assert!(self.between.has_fired(), "nobody sent such a text");
        until("it is rolled back", async || {
            let _ = self.rm.rollback(id).await;
            let tombstone = self.rm.tombstone(id).await;
            tombstone == Ok(LedgerEntry::Tombstone) && !self.is_prepared(id).await
        })
        .await;
        assert!(!self.shows(look).await);
    }
}

async fn a_vote(world: &World, stray: &[&[u8]]) {
    let (work, look) = world.insert();
    let id = branch();
    world.arm("XA PREPARE", stray);
    let prepared = world.rm.prepare(id, Some(&work)).await;
    world.votes_what_is_so(id, &prepared).await;
    world.is_undone(id, &look).await;
}

async fn an_interactive_vote(world: &World, stray: &[&[u8]]) {
    let (work, look) = world.insert();
    let id = branch();
    let rm = &world.rm;
    rm.begin(id, None, work.timeout).await.expect("it begins");
    let inserted = rm.execute(id, &work.statements[0]).await;
    inserted.expect("it is inserted");
    world.arm("XA PREPARE", stray);
    let prepared = rm.prepare(id, None).await;
    world.votes_what_is_so(id, &prepared).await;
    world.is_undone(id, &look).await;
}

async fn a_commit(world: &World, stray: &[&[u8]]) {
    let (id, look) = world.prepared().await;
    world.arm("XA COMMIT", stray);
    let finished = world.rm.commit(id).await;
    if finished == Finished::Done {
        assert!(world.shows(&look).await, "said to be committed, and is not");
    }
    assert!(world.between.has_fired(), "nobody sent such a text");
    until("it is committed", async || {
        let _ = world.rm.commit(id).await;
        world.rm.ledger(id).await == Ok(LedgerEntry::Committed)
    })
    .await;
    assert!(world.shows(&look).await);
}

async fn a_commit_in_one_phase(world: &World, stray: &[&[u8]]) {
    let (work, look) = world.insert();
    let id = branch();
    world.arm("ONE PHASE", stray);
    let committed = world.rm.commit_one_phase(id, Some(&work)).await;
    let shown = world.shows(&look).await;
    match committed {
        OnePhase::Committed { .. } => assert!(shown, "said to be committed, and is not"),
        OnePhase::NotCommitted { .. } => world.is_undone(id, &look).await,
        OnePhase::Unknown { .. } => {}
    }
    assert!(world.between.has_fired(), "nobody sent such a text");
}

async fn a_rollback(world: &World, stray: &[&[u8]]) {
    let (id, look) = world.prepared().await;
    world.arm("XA ROLLBACK", stray);
    let finished = world.rm.rollback(id).await;
    if finished == Finished::Done {
        assert!(
            !world.is_prepared(id).await,
            "said to be rolled back, and is not"
        );
    }
    world.is_undone(id, &look).await;
}

async fn a_look_at_the_ledger(world: &World, stray: &[&[u8]]) {
    let id = world.committed().await;
    world.arm("SELECT state FROM concord.ledger", stray);
    let found = world.rm.ledger(id).await;
    assert!(
        matches!(found, Ok(LedgerEntry::Committed) | Err(_)),
        "{found:?}"
    );
    assert!(world.between.has_fired(), "nobody sent such a text");
    world.arm("SELECT state FROM concord.ledger", stray);
    let found = world.rm.ledger(branch()).await;
    assert!(
        matches!(found, Ok(LedgerEntry::Absent) | Err(_)),
        "{found:?}"
    );
    assert!(world.between.has_fired(), "nobody sent such a text");
}

async fn a_tombstone(world: &World, stray: &[&[u8]]) {
    for marker in [
        "SELECT state FROM concord.ledger",
        "INSERT INTO concord.ledger",
    ] {
        let id = branch();
        world.arm(marker, stray);
        let left = world.rm.tombstone(id).await;
        let written = world.judge.ledger(id).await;
        assert!(
            left.is_err() || left == written,
            "{left:?} was said, and {written:?} is so"
        );
        assert!(world.between.has_fired(), "nobody sent such a text");
    }
}

async fn a_list_of_prepared_branches(world: &World, stray: &[&[u8]]) {
    let (id, look) = world.prepared().await;
    world.arm("XA RECOVER", stray);
    let listed = world.rm.recover().await;
    if let Ok(listed) = listed {
        assert!(listed.ours.contains(&id), "{listed:?}");
    }
    world.is_undone(id, &look).await;
}

/// Nobody notices: the second attempt is the server's own.
async fn a_new_connection(world: &World, stray: &[&[u8]]) {
    let refused = stray.iter().any(|packet| packet.starts_with(b"\xff"));
    // Before the greeting; and before the answer to the login, which names the account.
    for marker in ["", "concord\0"] {
        world.arm(marker, stray);
        let rm = MySql::start(World::through(&world.real, &world.folder));
        let mut health = rm.health();
        let seen =
            health.wait_for(|health| health.reachable || (!refused && !health.problems.is_empty()));
        let seen = seen.await.expect("it looks").clone();
        assert!(seen.can_vote(), "{seen:?}");
        assert!(world.between.has_fired(), "nobody connected");
        rm.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stray_answers_on_mysql() {
    let Some(binary) = under_test(ServerKind::Mysql) else {
        return;
    };
    let world = World::start(Real::start(binary).await).await;
    for (name, stray) in STRAY {
        eprintln!("{name}");
        a_vote(&world, stray).await;
        an_interactive_vote(&world, stray).await;
        a_commit(&world, stray).await;
        a_commit_in_one_phase(&world, stray).await;
        a_rollback(&world, stray).await;
        a_look_at_the_ledger(&world, stray).await;
        a_tombstone(&world, stray).await;
        a_list_of_prepared_branches(&world, stray).await;
        a_new_connection(&world, stray).await;
    }
    world.rm.stop().await;
    world.judge.stop().await;
}
