//! Clients: what they do, and the record of what they were told.
//!
//! Each works through its operations one by one and repeats each until it knows the outcome, as
//! the design asks of clients: with the same request id, or by asking what became of it. What it
//! was told is written down and given to the judge; the world compares it with the servers' data.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use concord_coordinator::gateway::placement::Placement;
use concord_core::id::{Gtrid, ParticipantName};
use concord_core::invariant::Told;
use concord_core::reason::code;
use concord_participant::resource::memory::server::Server;
use concord_participant::resource::memory::shape::Cell;
use concord_proto::convert::text::parse_gtrid;
use concord_proto::status::{gtrid_of, reason_of};
use concord_proto::v1;
use concord_proto::v1::bank_service_client::BankServiceClient;
use concord_proto::v1::transaction_service_client::TransactionServiceClient;
use tokio::sync::Notify;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::chance::Chance;
use super::judge::Judge;
use super::trace::Trace;

mod audit;
mod damage;
mod results;
mod statements;

pub use statements::participant;
use statements::{add, effect, read};

/// Rows of the generic tables on each server.
pub const ROWS: usize = 3;
/// What each row of `sim.money` holds at first, and each account.
pub const MONEY: i64 = 1_000;
/// How often each label took effect on a server.
pub const EFFECTS: &str = "sim.effects";
/// Money that is moved by plain SQL.
pub const MONEY_TABLE: &str = "sim.money";
/// The bank's accounts and its journal.
pub const ACCOUNTS_TABLE: &str = "concord_bank.accounts";
/// See [`ACCOUNTS_TABLE`].
pub const JOURNAL_TABLE: &str = "concord_bank.journal";
/// Accounts on each server.
const ACCOUNTS: usize = 2;
/// Counters that are equal on all servers.
pub const COUNTERS: &str = "sim.counters";

/// What is known of one operation.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it does.
    pub kind: &'static str,
    /// Whether it is money of the bank, found by the journal's memo and not by a row of effects.
    pub bank: bool,
    /// Servers that it writes to.
    pub servers: Vec<usize>,
    /// What its client was told in the end.
    pub told: Told,
    /// Whether its client still waits, or left without an answer.
    pub open: bool,
    /// Whether its client left.
    pub left: bool,
    /// The last transaction that it was told of.
    pub gtrid: Option<Gtrid>,
}

/// All operations, by label. Clones are the same book.
#[derive(Clone, Debug, Default)]
pub struct Book(Arc<Mutex<BTreeMap<String, Record>>>);

impl Book {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, label: &str, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.lock().get_mut(label) {
            change(record);
        }
    }

    /// All of it.
    pub fn all(&self) -> BTreeMap<String, Record> {
        self.lock().clone()
    }

    /// Operations whose clients still wait for an outcome.
    pub fn open(&self) -> usize {
        self.lock().values().filter(|record| record.open).count()
    }
}

/// What clients share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// What they were told.
    pub book: Book,
    /// Where things are seen.
    pub judge: Judge,
    /// Where they are noted.
    pub trace: Trace,
    /// The servers, for setting up rows.
    pub servers: Vec<Arc<Server>>,
    /// The bank's accounts, and the server of each.
    pub accounts: Vec<(String, usize)>,
    /// Wakes one client that is to leave.
    pub leave: Arc<Notify>,
    /// No new operations any more.
    pub stop: Arc<AtomicBool>,
    /// Audits that saw everything, and added up.
    pub audits: Arc<AtomicU64>,
}

impl Shared {
    /// Sets the tables up on all servers.
    pub fn new(judge: Judge, trace: Trace, servers: Vec<Arc<Server>>) -> Self {
        let names: Vec<_> = (0..servers.len())
            .map(|server| ParticipantName::new(participant(server)))
            .collect();
        let placement = Placement::new(Placement::initial(&names));
        let mut accounts = Vec::new();
        for (index, server) in servers.iter().enumerate() {
            for row in 0..ROWS {
                server.put(MONEY_TABLE, &format!("m{row}"), Cell::of(MONEY));
                server.put(COUNTERS, &format!("c{row}"), Cell::of(0));
            }
            let here = |id: &String| {
                let placement = placement.as_ref().ok();
                placement.is_some_and(|all| *all.participant_of(id) == names[index])
            };
            // Ids are found by trying: their hashes decide where they live.
            let ids = (0..10_000).map(|number| format!("account-{number}"));
            for id in ids.filter(here).take(ACCOUNTS) {
                let texts = vec!["EUR".to_owned(), "2026-11-27 00:00:00.000000".to_owned()];
                let cell = Cell {
                    number: MONEY,
                    texts,
                };
                server.put(ACCOUNTS_TABLE, &id, cell);
                accounts.push((id, index));
            }
        }
        Self {
            book: Book::default(),
            judge,
            trace,
            servers,
            accounts,
            leave: Arc::default(),
            stop: Arc::default(),
            audits: Arc::default(),
        }
    }
}

/// How an attempt ended, as far as its client can tell.
enum Heard {
    Committed(Option<Gtrid>),
    /// `final`: a repetition gets the same.
    Aborted(bool),
    Unknown,
    /// An outsider finished a branch of it: no more will ever be known.
    Damaged(Option<Gtrid>),
}

/// A client.
#[derive(Debug)]
pub struct Client {
    name: String,
    shared: Shared,
    chance: Chance,
    channel: Channel,
    count: usize,
}

impl Client {
    /// One that has its own connection.
    pub fn new(name: String, shared: Shared, chance: Chance, channel: Channel) -> Self {
        Self {
            name,
            shared,
            chance,
            channel,
            count: 0,
        }
    }

    /// Works through its operations.
    pub async fn run(mut self, operations: usize) {
        for _ in 0..operations {
            let pause = Duration::from_millis(self.chance.between(0..450));
            tokio::time::sleep(pause).await;
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            self.count += 1;
            let leave = Arc::clone(&self.shared.leave);
            let label = format!("{}-{}", self.name, self.count);
            let left = {
                let operation = self.operation(&label);
                tokio::select! {
                    biased;
                    () = leave.notified() => true,
                    () = operation => false,
                }
            };
            if left {
                self.note(&label, None, "leaves");
            }
            self.shared.book.change(&label, |record| {
                (record.open, record.left) = (false, left);
            });
        }
        self.shared
            .trace
            .note(&self.name, None, format_args!("is done"));
    }

    fn note(&self, label: &str, gtrid: Option<Gtrid>, what: &str) {
        self.shared
            .trace
            .note(&self.name, gtrid, format_args!("{label}: {what}"));
    }

    fn open(&self, label: &str, kind: &'static str, bank: bool, servers: Vec<usize>) {
        if !bank {
            for server in &servers {
                self.shared.servers[*server].put(EFFECTS, label, Cell::of(0));
            }
        }
        let record = Record {
            kind,
            bank,
            servers,
            told: Told::Unknown,
            open: true,
            left: false,
            gtrid: None,
        };
        self.note(label, None, kind);
        self.shared.book.lock().insert(label.to_owned(), record);
    }

    async fn operation(&mut self, label: &str) {
        let count = self.shared.servers.len();
        let first = self.chance.index(count);
        let second = (first + 1 + self.chance.index(count - 1)) % count;
        match self.chance.between(0..100) {
            0..30 => self.transfer(label).await,
            30..50 => {
                let all = (0..count).collect();
                let statements = self.everywhere(label);
                self.one_shot(label, "everywhere", all, statements).await;
            }
            50..68 => {
                let statements = self.move_money(label, first, second);
                self.one_shot(label, "move", vec![first, second], statements)
                    .await;
            }
            68..76 => {
                let statements = vec![effect(label, first)];
                self.one_shot(label, "one server", vec![first], statements)
                    .await;
            }
            76..82 => {
                let mut statements = vec![effect(label, first)];
                statements.push(read(
                    second,
                    &format!("m{}", self.chance.index(ROWS)),
                    false,
                ));
                self.one_shot(label, "write and read", vec![first], statements)
                    .await;
            }
            82..88 => self.audit(label).await,
            _ => self.interactive(label, first, second).await,
        }
    }

    fn everywhere(&mut self, label: &str) -> Vec<v1::TargetedStatement> {
        let row = format!("c{}", self.chance.index(ROWS));
        let count = self.shared.servers.len();
        (0..count)
            .flat_map(|server| [effect(label, server), add(server, COUNTERS, &row, 1, None)])
            .collect()
    }

    fn move_money(&mut self, label: &str, from: usize, to: usize) -> Vec<v1::TargetedStatement> {
        let mut amount = i64::try_from(self.chance.between(1..300)).unwrap_or(1);
        if self.chance.permille(30) {
            amount = MONEY * 100;
        }
        let row = |chance: &mut Chance| format!("m{}", chance.index(ROWS));
        let (source, sink) = (row(&mut self.chance), row(&mut self.chance));
        vec![
            effect(label, from),
            add(from, MONEY_TABLE, &source, -amount, Some(amount)),
            effect(label, to),
            add(to, MONEY_TABLE, &sink, amount, None),
        ]
    }

    /// A one-shot transaction with a request id, repeated until its outcome is known.
    async fn one_shot(
        &mut self,
        label: &str,
        kind: &'static str,
        servers: Vec<usize>,
        statements: Vec<v1::TargetedStatement>,
    ) {
        self.open(label, kind, false, servers);
        let ack = if self.chance.permille(250) {
            v1::Ack::Decided
        } else {
            v1::Ack::Applied
        };
        let request = v1::ExecuteTransactionRequest {
            statements,
            request_id: label.to_owned(),
            isolation: v1::Isolation::Unspecified.into(),
            ack: ack.into(),
            timeout_ms: u32::try_from(self.chance.between(800..5_000)).unwrap_or(1_000),
        };
        let channel = self.channel.clone();
        let judge = self.shared.judge.clone();
        self.until_known(label, || {
            let (mut client, request) = (
                TransactionServiceClient::new(channel.clone()),
                request.clone(),
            );
            let judge = judge.clone();
            async move {
                let answer = client.execute(request.clone()).await?.into_inner();
                results::check(&judge, &request.statements, &answer);
                Ok(answer.gtrid)
            }
        })
        .await;
    }

    async fn transfer(&mut self, label: &str) {
        let accounts = self.shared.accounts.clone();
        let from = self.chance.index(accounts.len());
        let to = (from + 1 + self.chance.index(accounts.len() - 1)) % accounts.len();
        let mut servers = vec![accounts[from].1, accounts[to].1];
        servers.dedup();
        self.open(label, "transfer", true, servers);
        let request = v1::TransferRequest {
            from_account_id: accounts[from].0.clone(),
            to_account_id: accounts[to].0.clone(),
            amount: i64::try_from(self.chance.between(1..400)).unwrap_or(1),
            memo: label.to_owned(),
            request_id: label.to_owned(),
            timeout_ms: u32::try_from(self.chance.between(800..5_000)).unwrap_or(1_000),
            ..v1::TransferRequest::default()
        };
        let channel = self.channel.clone();
        self.until_known(label, || {
            let (mut client, request) = (BankServiceClient::new(channel.clone()), request.clone());
            async move { Ok(client.transfer(request).await?.into_inner().gtrid) }
        })
        .await;
    }

    /// Repeats a call with a request id until its outcome is known; gives up after a few aborts
    /// that a repetition may not get again.
    async fn until_known<F>(&mut self, label: &str, call: impl Fn() -> F)
    where
        F: Future<Output = Result<String, Status>>,
    {
        let mut aborts = 0;
        loop {
            let time = Duration::from_millis(self.chance.between(2_000..8_000));
            let heard = match tokio::time::timeout(time, call()).await {
                Err(_) => Heard::Unknown,
                Ok(Ok(gtrid)) => Heard::Committed(parse_gtrid(&gtrid)),
                Ok(Err(status)) => self.refusal(label, &status),
            };
            match heard {
                Heard::Committed(gtrid) => return self.committed(label, gtrid),
                Heard::Aborted(true) => {
                    self.note(label, None, "refused for good");
                    return self
                        .shared
                        .book
                        .change(label, |record| record.told = Told::Refused);
                }
                Heard::Aborted(false) if aborts == 3 => return,
                Heard::Damaged(gtrid) => return self.ask_of_damage(label, gtrid).await,
                Heard::Aborted(false) => aborts += 1,
                Heard::Unknown => self.note(label, None, "does not know"),
            }
            let pause = Duration::from_millis(self.chance.between(50..1_200));
            tokio::time::sleep(pause).await;
        }
    }

    fn committed(&self, label: &str, gtrid: Option<Gtrid>) {
        self.note(label, gtrid, "told COMMITTED");
        self.shared.book.change(label, |record| {
            (record.told, record.gtrid) = (Told::Committed, gtrid);
        });
        if let Some(gtrid) = gtrid {
            self.shared
                .judge
                .learn(gtrid, |facts| facts.promised = true);
        }
    }

    /// What a failed call says.
    fn refusal(&self, label: &str, status: &Status) -> Heard {
        let gtrid = gtrid_of(status);
        let Some(reason) = reason_of(status) else {
            return Heard::Unknown;
        };
        let text = format!("told {} {}", status.code(), reason.code);
        self.note(label, gtrid, &text);
        let damaged = [
            code::HEURISTIC_COMMIT,
            code::HEURISTIC_ROLLBACK,
            code::HEURISTIC_UNKNOWN,
        ];
        if damaged.contains(&&*reason.code) {
            if !gtrid.is_some_and(|gtrid| self.shared.judge.is_interfered(gtrid)) {
                let text = format!("{label} was told of damage that nobody did: {reason}");
                self.shared.judge.broken(gtrid, text);
            }
            return Heard::Damaged(gtrid);
        }
        if &*reason.code == code::OUTCOME_UNKNOWN {
            return Heard::Unknown;
        }
        if let Some(gtrid) = gtrid {
            self.shared
                .book
                .change(label, |record| record.gtrid = Some(gtrid));
            self.shared.judge.learn(gtrid, |facts| facts.refused = true);
        }
        Heard::Aborted(reason.kind().is_final())
    }

    /// Statement by statement.
    async fn interactive(&mut self, label: &str, first: usize, second: usize) {
        self.open(label, "interactive", false, vec![first, second]);
        let mut client = TransactionServiceClient::new(self.channel.clone());
        let begin = v1::BeginTransactionRequest {
            timeout_ms: u32::try_from(self.chance.between(1_000..6_000)).unwrap_or(1_000),
            ..v1::BeginTransactionRequest::default()
        };
        let time = Duration::from_secs(8);
        let Ok(Ok(begun)) = tokio::time::timeout(time, client.begin(begin)).await else {
            return self.note(label, None, "cannot begin");
        };
        let gtrid = begun.into_inner().gtrid;
        let id = parse_gtrid(&gtrid);
        self.shared.book.change(label, |record| record.gtrid = id);
        for server in [first, second] {
            let request = v1::ExecuteStatementRequest {
                gtrid: gtrid.clone(),
                statement: Some(effect(label, server)),
            };
            let ran = tokio::time::timeout(time, client.execute_statement(request)).await;
            if !matches!(ran, Ok(Ok(_))) {
                // What did run may not stay: a client that gave up rolls back.
                return self.rolled_back(label, &gtrid, id).await;
            }
            let pause = Duration::from_millis(self.chance.between(0..400));
            tokio::time::sleep(pause).await;
        }
        match self.chance.between(0..10) {
            0 => self.rolled_back(label, &gtrid, id).await,
            1 => self.note(label, id, "is left alone"),
            _ => self.commit(label, gtrid, id).await,
        }
    }

    async fn rolled_back(&mut self, label: &str, gtrid: &str, id: Option<Gtrid>) {
        let mut client = TransactionServiceClient::new(self.channel.clone());
        let request = v1::RollbackTransactionRequest {
            gtrid: gtrid.to_owned(),
        };
        let call = tokio::time::timeout(Duration::from_secs(5), client.rollback(request));
        if let Ok(Ok(_)) = call.await {
            self.note(label, id, "rolled back");
            self.refused(label, id);
        }
    }

    fn refused(&self, label: &str, id: Option<Gtrid>) {
        self.shared
            .book
            .change(label, |record| record.told = Told::Refused);
        if let Some(id) = id {
            self.shared.judge.learn(id, |facts| facts.refused = true);
        }
    }

    /// Now and then somebody else has to do with a transaction that is being committed: a call of
    /// his is refused or it is not, and whoever commits is told the truth all the same.
    fn meddler(&mut self, gtrid: &str) -> impl Future<Output = ()> + use<> {
        let meddles = self.chance.permille(250);
        let with_statement = self.chance.permille(500);
        let pause = Duration::from_micros(self.chance.pause_us(100..2_000_000));
        let mut client = TransactionServiceClient::new(self.channel.clone());
        let gtrid = gtrid.to_owned();
        async move {
            if !meddles {
                return;
            }
            tokio::time::sleep(pause).await;
            let time = Duration::from_secs(5);
            if with_statement {
                let statement = None;
                let request = v1::ExecuteStatementRequest { gtrid, statement };
                let _ = tokio::time::timeout(time, client.execute_statement(request)).await;
            } else {
                let request = v1::RollbackTransactionRequest { gtrid };
                let _ = tokio::time::timeout(time, client.rollback(request)).await;
            }
        }
    }

    async fn commit(&mut self, label: &str, gtrid: String, id: Option<Gtrid>) {
        let mut client = TransactionServiceClient::new(self.channel.clone());
        loop {
            let request = v1::CommitTransactionRequest {
                gtrid: gtrid.clone(),
                ..v1::CommitTransactionRequest::default()
            };
            let time = Duration::from_millis(self.chance.between(2_000..8_000));
            let told = tokio::time::timeout(time, client.commit(request));
            let meddler = self.meddler(&gtrid);
            let (told, ()) = tokio::join!(told, meddler);
            match told {
                Ok(Ok(_)) => return self.committed(label, id),
                Ok(Err(status)) if status.code() == Code::NotFound => {
                    // A coordinator that restarted has never heard of it: presumed aborted.
                    self.note(label, id, "told NOT FOUND");
                    return;
                }
                Ok(Err(status)) => match self.refusal(label, &status) {
                    Heard::Aborted(_) if gtrid_of(&status) == id => {
                        return self.refused(label, id);
                    }
                    Heard::Damaged(gtrid) => return self.ask_of_damage(label, gtrid).await,
                    _ => {}
                },
                Err(_) => {}
            }
            self.note(label, id, "does not know");
            let pause = Duration::from_millis(self.chance.between(50..1_200));
            tokio::time::sleep(pause).await;
        }
    }
}
