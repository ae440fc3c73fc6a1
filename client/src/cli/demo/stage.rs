//! The stage of the demonstration: its accounts, what the servers themselves say of them, and the
//! narration.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use concord_core::reason::code;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::wait::{Frozen, until};
use crate::cli::exit::{Exit, Failure};
use crate::cli::money;
use crate::cli::output::{self, Ctx};
use crate::cli::servers::{Folder, Server};
use crate::cli::tx;
use crate::client::Client;
use crate::outcome::Outcome;
use crate::retry::RetryPolicy;
use crate::v1;

/// How long a killed daemon and what it left open may take.
pub(super) const RECOVERY: Duration = Duration::from_mins(1);
/// How long one phase of the protocol may take while a daemon is held still. It takes far less: a
/// participant that gives no sign of life for 3 to 5 s loses its link, and its vote with it.
const PHASE: Duration = Duration::from_secs(8);
/// The currency of the demonstration.
pub(super) const EURO: &str = "EUR";
/// What each account begins with.
const OPENING: i64 = 10_000;
/// Price of the product.
pub(super) const PRICE: i64 = 750;
/// Pieces in stock at the beginning.
const STOCK: i64 = 10;
/// Ids that are tried until one lies on another server.
const TRIES: u32 = 64;

/// What the servers hold, read by plain SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Books {
    pub anna: i64,
    pub bert: i64,
    pub stock: i64,
}

/// Accounts, servers, and what was told so far.
#[derive(Debug)]
pub(super) struct Stage {
    json: bool,
    /// Retries nothing, so that every outcome is seen as it comes.
    pub client: Client,
    /// Retries as long as recovery may take.
    pub patient: Client,
    folder: Folder,
    servers: BTreeMap<String, Server>,
    pub anna: v1::Account,
    pub bert: v1::Account,
    pub mug: v1::Product,
    record: Vec<Value>,
    changes: Option<JoinHandle<()>>,
    seen: std::sync::Arc<std::sync::Mutex<Vec<v1::WatchTransactionsResponse>>>,
}

impl Stage {
    /// Opens the accounts: Anna and Bert on different servers, the product on Bert's side.
    pub(super) async fn set(ctx: &Ctx, dir: &Path) -> Result<Self, Failure> {
        let folder = Folder::new(dir);
        let servers = folder.servers()?;
        if servers.len() < 2 {
            return Err(
                Failure::new(Exit::Usage, "the demonstration needs two servers")
                    .next("start the cluster with `concord up --servers 2`"),
            );
        }
        let builder = ctx.global.builder();
        let patient = builder
            .clone()
            .retry(RetryPolicy::lasting(RECOVERY))
            .build()?;
        let client = builder.retry(RetryPolicy::none()).build()?;
        let run = Uuid::now_v7().simple().to_string();
        let run = &run[run.len() - 6..];
        let anna = open(&patient, &format!("demo-{run}-anna")).await?;
        let bert = elsewhere(&anna.participant, |i| {
            let id = format!("demo-{run}-bert{}", suffix(i));
            let patient = patient.clone();
            async move { open(&patient, &id).await }
        });
        let bert = bert.await?;
        let mug = elsewhere(&anna.participant, |i| {
            let id = format!("demo-{run}-mug{}", suffix(i));
            let patient = patient.clone();
            async move { create(&patient, &id).await }
        });
        let mug = mug.await?;
        let stage = Self {
            json: ctx.json,
            client,
            patient,
            folder,
            servers,
            anna,
            bert,
            mug,
            record: Vec::new(),
            changes: None,
            seen: std::sync::Arc::default(),
        };
        stage.introduce();
        Ok(stage)
    }

    fn introduce(&self) {
        let rows = [
            (
                &self.anna.account_id,
                money::show(OPENING, EURO),
                &self.anna.participant,
            ),
            (
                &self.bert.account_id,
                money::show(OPENING, EURO),
                &self.bert.participant,
            ),
            (
                &self.mug.product_id,
                format!("{STOCK} in stock"),
                &self.mug.participant,
            ),
        ]
        .map(|(id, what, place)| vec![id.clone(), what, format!("behind {place}")]);
        self.print(&output::table(&["id", "holds", "server"], rows));
    }

    /// Tells people. That nobody reads, or that it cannot be written, must not end the
    /// demonstration while it holds a daemon still; how it ended is for its exit code to say.
    fn print(&self, text: &str) {
        if !self.json {
            let _ = output::print_bytes(format!("{text}\n").as_bytes());
        }
    }

    /// Begins a step.
    pub(super) fn title(&mut self, title: &str) {
        self.print(&format!("\n{title}\n{}", "─".repeat(title.chars().count())));
    }

    /// Tells one thing.
    pub(super) fn say(&mut self, text: impl Into<String>) {
        let text = output::clean(&text.into());
        self.print(&format!("  {text}"));
        self.record.push(json!(text));
    }

    /// What was told since the last call.
    pub(super) fn take_record(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.record)
    }

    /// The server behind a participant.
    pub(super) fn server(&self, participant: &str) -> Result<&Server, Failure> {
        self.servers.get(participant).ok_or_else(|| {
            Failure::new(
                Exit::Other,
                format!("no configuration of {participant} in the folder"),
            )
        })
    }

    async fn balance(&self, account: &v1::Account) -> Result<i64, Failure> {
        // The id is one of ours: letters, digits and hyphens.
        let id = &account.account_id;
        let sql = format!("SELECT balance FROM concord_bank.accounts WHERE id = '{id}'");
        let found = self.server(&account.participant)?.integer(&sql).await?;
        found.ok_or_else(|| Failure::new(Exit::Other, format!("the server has no account {id}")))
    }

    /// Reads the servers by plain SQL.
    pub(super) async fn books(&self) -> Result<Books, Failure> {
        let id = &self.mug.product_id;
        let sql = format!("SELECT stock FROM concord_inventory.products WHERE id = '{id}'");
        let stock = self.server(&self.mug.participant)?.integer(&sql).await?;
        Ok(Books {
            anna: self.balance(&self.anna).await?,
            bert: self.balance(&self.bert).await?,
            stock: stock.unwrap_or(0),
        })
    }

    /// Tells what the servers hold.
    pub(super) async fn tell_books(&mut self, when: &str) -> Result<Books, Failure> {
        let books = self.books().await?;
        self.say(format!(
            "{when}, plain SQL: Anna {} ({}), Bert {} ({}), mugs {} ({})",
            money::show(books.anna, EURO),
            self.anna.participant,
            money::show(books.bert, EURO),
            self.bert.participant,
            books.stock,
            self.mug.participant,
        ));
        Ok(books)
    }

    /// Fails unless the servers hold what they must.
    pub(super) async fn check(&mut self, expected: &Books) -> Result<(), Failure> {
        let books = self.tell_books("after").await?;
        if books == *expected {
            return Ok(());
        }
        Err(Failure::new(Exit::Other, "the books are wrong")
            .why(format!("expected {expected:?}"))
            .why(format!("found {books:?}"))
            .next("keep the cluster's folder and report this: it must never happen"))
    }

    /// Begins to collect state changes.
    pub(super) async fn watch(&mut self) -> Result<(), Failure> {
        let failed = |error| Failure::of_call("transactions cannot be watched", &error);
        let mut stream = self
            .patient
            .watch_transactions(None)
            .await
            .map_err(failed)?;
        if let Some(old) = self.changes.take() {
            old.abort();
        }
        let seen = std::sync::Arc::clone(&self.seen);
        lock(&seen).clear();
        self.changes = Some(tokio::spawn(async move {
            // The stream ends when the coordinator is killed; what came until then is told.
            while let Ok(Some(change)) = stream.message().await {
                lock(&seen).push(change);
            }
        }));
        Ok(())
    }

    /// Tells the state changes of one transaction that were not told yet.
    pub(super) fn tell_changes(&mut self, gtrid: &str) {
        let changes: Vec<String> = std::mem::take(&mut *lock(&self.seen))
            .iter()
            .filter(|change| change.gtrid == gtrid)
            .map(tx::change_text)
            .collect();
        for change in changes {
            self.say(change);
        }
    }

    /// A transfer from Anna to Bert.
    pub(super) fn transfer(&self, amount: i64, request_id: &str) -> v1::TransferRequest {
        v1::TransferRequest {
            from_account_id: self.anna.account_id.clone(),
            to_account_id: self.bert.account_id.clone(),
            amount,
            currency: EURO.to_owned(),
            memo: "concord demo".to_owned(),
            request_id: request_id.to_owned(),
            timeout_ms: 30_000,
        }
    }

    /// Stops a daemon for a while.
    pub(super) fn freeze(&mut self, name: &str) -> Result<Frozen, Failure> {
        let process = self.folder.process(name)?;
        self.say(format!(
            "hold {name} still (SIGSTOP to pid {})",
            process.pid
        ));
        Ok(Frozen::new(process))
    }

    /// Kills a daemon.
    pub(super) async fn kill(&mut self, name: &str) -> Result<(), Failure> {
        let process = self.folder.process(name)?;
        process.signal(Signal::SIGKILL);
        if !process.ended(PHASE).await {
            return Err(Failure::new(
                Exit::Other,
                format!("{name} survived SIGKILL"),
            ));
        }
        self.say(format!("kill -9 {} ({name})", process.pid));
        Ok(())
    }

    /// The running transaction of a request, once `ready` says that it has come far enough.
    pub(super) async fn until_transaction(
        &self,
        what: &str,
        request_id: &str,
        ready: impl Fn(&v1::Transaction) -> bool,
    ) -> Result<v1::Transaction, Failure> {
        until(what, PHASE, async || {
            let newest = self.client.list_transactions(&[], false, 50).await;
            let newest = newest
                .map_err(|error| Failure::of_call("transactions cannot be listed", &error))?;
            let found = newest
                .into_iter()
                .find(|found| found.request_id == request_id);
            Ok(found.filter(&ready))
        })
        .await
    }

    /// The transaction as the coordinator remembers it, once `ready`; a coordinator that is not
    /// back yet is waited for.
    pub(super) async fn until_remembered(
        &self,
        what: &str,
        gtrid: &str,
        ready: impl Fn(&v1::Transaction) -> bool,
    ) -> Result<v1::Transaction, Failure> {
        until(what, RECOVERY, async || {
            Ok(self.client.transaction(gtrid).await.ok().filter(&ready))
        })
        .await
    }

    /// Waits until neither server lists a branch of the transaction.
    pub(super) async fn until_no_branch(&self, gtrid: &str) -> Result<(), Failure> {
        let id = uuid_of(gtrid)?;
        until("no branch is left on the servers", RECOVERY, async || {
            for server in [&self.anna.participant, &self.bert.participant] {
                if self.server(server)?.lists_branch_of(id).await? {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
    }

    /// Tells what `XA RECOVER` says of a branch, and fails unless it is listed as expected.
    pub(super) async fn tell_branch(
        &mut self,
        participant: &str,
        gtrid: &str,
        expected: bool,
    ) -> Result<(), Failure> {
        let listed = self
            .server(participant)?
            .lists_branch_of(uuid_of(gtrid)?)
            .await?;
        let text = if listed {
            "lists the branch: prepared"
        } else {
            "lists no such branch"
        };
        self.say(format!("XA RECOVER on the server of {participant} {text}"));
        if listed == expected {
            return Ok(());
        }
        Err(Failure::new(
            Exit::Other,
            "a branch is not in the state that this step needs",
        )
        .next("run the demonstration again; another user may have worked on these accounts"))
    }

    /// Waits until everybody is up, can vote, and nothing is in doubt.
    pub(super) async fn until_well(&mut self) -> Result<(), Failure> {
        until("the cluster is well again", RECOVERY, async || {
            let Ok(status) = self.client.cluster_status().await else {
                return Ok(None);
            };
            let well = status.participants.iter().all(|info| {
                info.connected && info.status.as_ref().is_some_and(|status| status.can_vote)
            });
            let in_doubt = self.client.list_in_doubt(1_000).await;
            let still = in_doubt.is_ok_and(|(list, away)| list.is_empty() && away.is_empty());
            Ok((well && still).then_some(()))
        })
        .await?;
        self.say("everybody is up again, and nothing is in doubt");
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(changes) = self.changes.take() {
            changes.abort();
        }
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A gtrid in text form as the bytes that stand in an xid.
fn uuid_of(gtrid: &str) -> Result<Uuid, Failure> {
    gtrid
        .parse()
        .map_err(|error| Failure::new(Exit::Other, format!("{gtrid} is no gtrid")).why(error))
}

/// What makes the next id another one. Random rather than counted, so that it lands anywhere.
fn suffix(i: u32) -> String {
    if i == 0 {
        String::new()
    } else {
        format!("-{:04x}", rand::random::<u16>())
    }
}

/// Something that knows where it lies.
trait Placed {
    fn participant(&self) -> &str;
}

impl Placed for v1::Account {
    fn participant(&self) -> &str {
        &self.participant
    }
}

impl Placed for v1::Product {
    fn participant(&self) -> &str {
        &self.participant
    }
}

/// Makes things until one does not lie behind `there`.
async fn elsewhere<T: Placed, F: Future<Output = Result<T, Failure>>>(
    there: &str,
    make: impl Fn(u32) -> F,
) -> Result<T, Failure> {
    for i in 0..TRIES {
        let thing = make(i).await?;
        if thing.participant() != there {
            return Ok(thing);
        }
    }
    Err(Failure::new(
        Exit::Other,
        format!("{TRIES} ids in a row lie behind {there}"),
    )
    .next("does the cluster have a second participant? See `concord status`"))
}

async fn open(client: &Client, id: &str) -> Result<v1::Account, Failure> {
    let request = v1::OpenAccountRequest {
        account_id: id.to_owned(),
        currency: EURO.to_owned(),
        initial_balance: OPENING,
        request_id: id.to_owned(),
    };
    made(client.open_account(request).await, "opening the accounts")
}

async fn create(client: &Client, id: &str) -> Result<v1::Product, Failure> {
    let request = v1::CreateProductRequest {
        product_id: id.to_owned(),
        name: "Coffee mug".to_owned(),
        price: PRICE,
        currency: EURO.to_owned(),
        initial_stock: STOCK,
        request_id: id.to_owned(),
    };
    made(client.create_product(request).await, "creating the product")
}

/// The results of an outcome that must be a commit.
pub(super) fn made<R>(outcome: Outcome<R>, what: &str) -> Result<R, Failure> {
    match outcome {
        Outcome::Committed { results, .. } => Ok(results),
        Outcome::Aborted { reason, .. } => {
            let failure = Failure::new(Exit::of(&reason), format!("{what} failed")).why(&reason);
            Err(if &*reason.code == code::COORDINATOR_DOWN {
                failure.next("start the cluster with `concord up --detach`")
            } else {
                failure
            })
        }
        Outcome::Unknown { message, .. } => {
            Err(Failure::new(Exit::Unknown, format!("{what}: the outcome is unknown")).why(message))
        }
    }
}
