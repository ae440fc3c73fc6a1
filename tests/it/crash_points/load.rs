//! Clients that work while processes die, and the record of what they were told.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use concord_client::{Client, Outcome, Statement};
use tokio::task::JoinSet;

/// Clients of each kind.
const CLIENTS: usize = 2;
/// Time-out of a transaction: a branch in doubt holds its rows no longer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after an attempt that did not commit: the coordinator may be away.
const PAUSE: Duration = Duration::from_millis(20);

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is done.
    Committed,
    /// It never will be.
    Aborted,
    /// It may be either.
    Unknown,
}

impl From<&Outcome> for Told {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Committed { .. } => Self::Committed,
            Outcome::Aborted { .. } => Self::Aborted,
            Outcome::Unknown { .. } => Self::Unknown,
        }
    }
}

/// The form of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One-shot: a key on both servers, and 1 from a row of the first to one of the second.
    Transfer,
    /// The same, whose second branch is refused.
    Refused,
    /// One-shot: a key on one server.
    Single,
    /// The same on the second server.
    Second,
    /// A key on both servers, statement by statement.
    Interactive,
    /// The same, rolled back.
    RolledBack,
}

const FORMS: [&[Form]; 3] = [
    &[Form::Transfer],
    &[Form::Refused, Form::Single, Form::Second],
    &[Form::Interactive, Form::RolledBack],
];

impl Form {
    /// The servers that have its key once it is committed.
    pub fn servers(self) -> &'static [usize] {
        match self {
            Self::Single => &[1],
            Self::Second => &[2],
            Self::Transfer | Self::Refused | Self::Interactive | Self::RolledBack => &[1, 2],
        }
    }
}

/// One transaction, as its client remembers it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its key in `shop.seen`, and its request id when it is one-shot.
    pub key: String,
    /// The row of `shop.t` that it moves 1 from and to.
    pub row: usize,
    /// Its form.
    pub form: Form,
    /// What was told in the end.
    pub told: Told,
}

/// All clients.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    entries: Arc<Mutex<Vec<Entry>>>,
    tasks: JoinSet<()>,
}

/// Numbers keys, so that none is used twice.
static NEXT: AtomicUsize = AtomicUsize::new(0);

impl Load {
    /// Starts to work.
    pub fn start(client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let entries = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for n in 0..CLIENTS {
            for (kind, forms) in FORMS.iter().enumerate() {
                let (client, stop, entries) = (client.clone(), stop.clone(), entries.clone());
                // Rows 1 to 4 are moved by transfers; the refused ones touch them as well.
                let row = 1 + 2 * kind.min(1) + n;
                tasks.spawn(async move {
                    for form in forms.iter().cycle() {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let entry = attempt(&client, *form, row).await;
                        let committed = entry.told == Told::Committed;
                        entries
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(entry);
                        if !committed && !matches!(form, Form::Refused | Form::RolledBack) {
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                });
            }
        }
        Self {
            stop,
            entries,
            tasks,
        }
    }

    /// How many transactions have ended.
    pub fn ended(&self) -> usize {
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Ends the work; what clients were told.
    pub async fn stop(mut self) -> anyhow::Result<Vec<Entry>> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task?;
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *entries))
    }
}

async fn attempt(client: &Client, form: Form, row: usize) -> Entry {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut entry = Entry {
        key: format!("k{n}"),
        row,
        form,
        told: Told::Unknown,
    };
    entry.told = match form {
        Form::Interactive | Form::RolledBack => interactive(client, &entry).await,
        _ => Told::from(&send(client, &entry).await),
    };
    entry
}

/// Sends a one-shot transaction, for the first time or again.
pub async fn send(client: &Client, entry: &Entry) -> Outcome {
    let key = || Statement::new("INSERT INTO shop.seen VALUES (?)").bind(entry.key.as_str());
    let moves = |sign: char| {
        let row = entry.row;
        Statement::new(format!("UPDATE shop.t SET n = n {sign} 1 WHERE id = {row}"))
    };
    let tx = client.one_shot().request_id(&entry.key).timeout(TIMEOUT);
    let tx = match entry.form {
        Form::Second => tx.on("p2", key()),
        Form::Single => tx.on("p1", key()),
        Form::Transfer => tx
            .on("p1", key())
            .on("p1", moves('-'))
            .on("p2", key())
            .on("p2", moves('+')),
        Form::Refused | Form::Interactive | Form::RolledBack => {
            tx.on("p1", key()).on("p1", moves('-')).on("p2", key()).on(
                "p2",
                Statement::new("UPDATE shop.t SET n = n + 1 WHERE id = 0").expect_rows(
                    1,
                    Some(1),
                    "NO_SUCH_ROW",
                ),
            )
        }
    };
    tx.send().await
}

async fn interactive(client: &Client, entry: &Entry) -> Told {
    let Ok(mut tx) = client.begin().await else {
        return Told::Aborted;
    };
    for participant in ["p1", "p2"] {
        let insert = Statement::new("INSERT INTO shop.seen VALUES (?)").bind(entry.key.as_str());
        if tx.execute(participant, insert).await.is_err() {
            return Told::Aborted;
        }
    }
    if entry.form == Form::RolledBack {
        // An error here is no commit either: nobody ever asked for one.
        let _ = tx.rollback().await;
        return Told::Aborted;
    }
    Told::from(&tx.commit().await)
}
