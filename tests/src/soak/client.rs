//! One client process: every workload at once, through the shipped library, until its standard
//! input ends or it is killed.
//!
//! It writes down what it is about to do before it does it. It judges nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use concord_client::{Client, OneShot, Outcome, RetryPolicy, Statement, Transaction, v1};
use concord_core::reason::Reason;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::record::{Record, What};
use super::stage::{
    COUNTERS_PER_CLIENT, COUNTERS_SHARED, HOT_ACCOUNTS, PRODUCTS, SERVERS, UNIFORM_ACCOUNTS,
    account, hot_account, merchant, product,
};

/// What a client process is told.
#[derive(Clone, Debug)]
pub struct Orders {
    /// The gateway.
    pub endpoint: String,
    /// Where it writes down what it does.
    pub record: PathBuf,
    /// Its name, part of every operation's id.
    pub name: String,
    /// Which of the clients it is, from 0: some counters are its own.
    pub number: i64,
    /// Of all its choices.
    pub seed: u64,
}

/// Time-out of every transaction. Short, because what one waits for has often just been killed.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// Longest wait for an answer beside that of the transaction itself.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the library repeats what may be repeated, where it is asked to.
const RETRIES: Duration = Duration::from_secs(2);
/// Most a client thinks between two operations.
const THINKING_MAX: Duration = Duration::from_millis(40);
/// The same after one that did not commit.
const SULKING_MAX: Duration = Duration::from_millis(250);

/// One workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Workload {
    Hot,
    Uniform,
    OwnCounter,
    SharedCounter,
    Insert,
    Never,
    Order,
}

/// Those that run side by side in one client.
const WORKLOADS: [Workload; 8] = [
    Workload::Hot,
    Workload::Uniform,
    Workload::Uniform,
    Workload::OwnCounter,
    Workload::SharedCounter,
    Workload::Insert,
    Workload::Never,
    Workload::Order,
];

/// Runs until the end of standard input.
pub async fn run(orders: Orders) -> anyhow::Result<()> {
    let record = Arc::new(Record::create(&orders.record)?);
    let stop = CancellationToken::new();
    let client = Client::builder(orders.endpoint.clone())
        .call_timeout(CALL_TIMEOUT)
        .build()?
        .with_stop(stop.clone());
    let mut workers = JoinSet::new();
    for (at, workload) in (0..).zip(WORKLOADS) {
        let worker = Worker {
            client: client.clone(),
            record: Arc::clone(&record),
            name: format!("{}-{at}", orders.name),
            number: orders.number,
            rng: StdRng::seed_from_u64(orders.seed.wrapping_mul(31).wrapping_add(at)),
        };
        workers.spawn(worker.run(workload, stop.clone()));
    }
    // Whoever started us closes it to end us, and it closes by itself when he has gone.
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
        .await??;
    stop.cancel();
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(())
}

struct Worker {
    client: Client,
    record: Arc<Record>,
    name: String,
    number: i64,
    rng: StdRng,
}

impl Worker {
    async fn run(mut self, workload: Workload, stop: CancellationToken) -> anyhow::Result<()> {
        let mut n = 0_u64;
        while !stop.is_cancelled() {
            n += 1;
            let id = format!("{}-{n}", self.name);
            let committed = self.once(workload, &id).await?;
            let longest = if committed { THINKING_MAX } else { SULKING_MAX };
            let pause = self.rng.random_range(Duration::ZERO..longest);
            let _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
        Ok(())
    }

    /// One operation, written down before and after; whether it committed.
    async fn once(&mut self, workload: Workload, id: &str) -> anyhow::Result<bool> {
        let what = self.choose(workload);
        let retry = if self.rng.random() {
            RetryPolicy::lasting(RETRIES)
        } else {
            RetryPolicy::none()
        };
        let client = self.client.with_retry(retry);
        // A request id lets the library repeat what is unknown.
        let request = if self.rng.random() { id } else { "" };
        self.record.begins(id, &what)?;
        let outcome = self.send(&client, workload, what, id, request).await;
        self.record.ended(id, &outcome)?;
        Ok(outcome.is_committed())
    }

    async fn send(
        &mut self,
        client: &Client,
        workload: Workload,
        what: What,
        id: &str,
        request: &str,
    ) -> Outcome<()> {
        match what {
            What::Transfer { from, to, amount } => {
                let wanted = v1::TransferRequest {
                    from_account_id: from,
                    to_account_id: to,
                    amount,
                    memo: id.to_owned(),
                    request_id: request.to_owned(),
                    timeout_ms: millis(TIMEOUT),
                    ..Default::default()
                };
                client.transfer(wanted).await
            }
            What::Count { counter, plus } if workload == Workload::OwnCounter => {
                let mut tx = self.one_shot(client, request);
                for participant in participants(&ALL) {
                    for statement in count(counter, plus, id) {
                        tx = tx.on(&participant, statement);
                    }
                }
                tx.send().await.map(drop)
            }
            What::Count { counter, plus } => step_by_step(client, counter, plus, id).await,
            What::Insert { servers } => {
                let mut tx = self.one_shot(client, request);
                for participant in participants(&servers) {
                    tx = tx.on(&participant, insert(id));
                }
                tx.send().await.map(drop)
            }
            What::Never { servers } => self.never(client, &servers, id).await,
            What::Order { from, lines } => {
                let wanted = order(id, from, lines, request);
                client.place_order(wanted).await.map(drop)
            }
        }
    }

    fn one_shot(&mut self, client: &Client, request: &str) -> OneShot {
        let ack = if self.rng.random_ratio(1, 4) {
            v1::Ack::Decided
        } else {
            v1::Ack::Applied
        };
        let tx = client.one_shot().timeout(TIMEOUT);
        tx.request_id(request).ack(ack)
    }

    fn choose(&mut self, workload: Workload) -> What {
        let rng = &mut self.rng;
        match workload {
            Workload::Hot => {
                let (from, to) = two_of(rng, HOT_ACCOUNTS);
                What::Transfer {
                    from: hot_account(from),
                    to: hot_account(to),
                    amount: rng.random_range(1..100),
                }
            }
            Workload::Uniform => {
                let (from, to) = two_of(rng, UNIFORM_ACCOUNTS);
                What::Transfer {
                    from: account(from),
                    to: account(to),
                    amount: rng.random_range(1..3_000),
                }
            }
            Workload::OwnCounter => What::Count {
                counter: COUNTERS_SHARED
                    + self.number * COUNTERS_PER_CLIENT
                    + rng.random_range(0..COUNTERS_PER_CLIENT),
                plus: rng.random_range(1..10),
            },
            Workload::SharedCounter => What::Count {
                counter: rng.random_range(0..COUNTERS_SHARED),
                plus: rng.random_range(1..10),
            },
            Workload::Insert => What::Insert {
                servers: some_servers(rng),
            },
            Workload::Never => What::Never {
                servers: some_servers(rng),
            },
            Workload::Order => {
                let first = rng.random_range(0..PRODUCTS);
                let count = rng.random_range(1..=3);
                let lines = (0..count).map(|n| {
                    let product = product((first + n) % PRODUCTS);
                    (product, rng.random_range(1..5))
                });
                What::Order {
                    lines: lines.collect(),
                    from: account(rng.random_range(0..UNIFORM_ACCOUNTS)),
                }
            }
        }
    }

    /// Inserts and takes back: by a wish that cannot be met, by a rollback, or by letting go.
    async fn never(&mut self, client: &Client, servers: &[u16], id: &str) -> Outcome<()> {
        if self.rng.random() {
            let mut tx = client.one_shot().timeout(TIMEOUT);
            for participant in participants(servers) {
                tx = tx.on(&participant, insert(id));
            }
            let last = format!("p{}", servers[servers.len() - 1]);
            let impossible = Statement::new("UPDATE soak.counters SET n = n + 1 WHERE id = -1")
                .expect_rows(1, None, "IMPOSSIBLE");
            return tx.on(&last, impossible).send().await.map(drop);
        }
        let let_go = self.rng.random();
        let tried = async {
            let mut tx = begin(client).await?;
            for participant in participants(servers) {
                tx.execute(&participant, insert(id)).await?;
            }
            if let_go { Ok(()) } else { tx.rollback().await }
        };
        Outcome::Aborted {
            reason: match tried.await {
                Ok(()) => Reason::new("TAKEN_BACK", ""),
                Err(error) => refused(&error),
            },
            gtrid: None,
        }
    }
}

fn order(
    id: &str,
    from: String,
    lines: Vec<(String, i64)>,
    request: &str,
) -> v1::PlaceOrderRequest {
    let line = |(product_id, quantity): (String, i64)| v1::OrderLine {
        product_id,
        quantity,
        ..Default::default()
    };
    v1::PlaceOrderRequest {
        lines: lines.into_iter().map(line).collect(),
        order_id: id.to_owned(),
        payment: Some(v1::Payment {
            from_account_id: from,
            to_account_id: merchant(),
        }),
        request_id: request.to_owned(),
        timeout_ms: millis(TIMEOUT),
    }
}

/// Every server.
const ALL: [u16; SERVERS as usize] = [1, 2, 3];

fn participants(servers: &[u16]) -> impl Iterator<Item = String> {
    servers.iter().map(|n| format!("p{n}"))
}

/// Adds to a counter and notes the step: how far the counter came with it.
fn count(counter: i64, plus: i64, id: &str) -> [Statement; 2] {
    [
        Statement::new("UPDATE soak.counters SET n = n + ? WHERE id = ?")
            .bind(plus)
            .bind(counter)
            .expect_rows(1, Some(1), "NO_COUNTER"),
        Statement::new(
            "INSERT INTO soak.steps (counter, n, op) \
             SELECT id, n, ? FROM soak.counters WHERE id = ?",
        )
        .bind(id)
        .bind(counter),
    ]
}

fn insert(id: &str) -> Statement {
    Statement::new("INSERT INTO soak.items (op) VALUES (?)").bind(id)
}

/// Counts in the interactive form, server after server, which cannot deadlock.
async fn step_by_step(client: &Client, counter: i64, plus: i64, id: &str) -> Outcome<()> {
    let done = async {
        let mut tx = begin(client).await?;
        for participant in participants(&ALL) {
            for statement in count(counter, plus, id) {
                tx.execute(&participant, statement).await?;
            }
        }
        Ok::<Transaction, concord_client::CallError>(tx)
    };
    match done.await {
        Ok(tx) => tx.commit().await.map(drop),
        // Nobody asked for a commit, so nobody may make one.
        Err(error) => Outcome::Aborted {
            reason: refused(&error),
            gtrid: None,
        },
    }
}

async fn begin(client: &Client) -> Result<Transaction, concord_client::CallError> {
    client
        .begin_with(v1::Isolation::Unspecified, Some(TIMEOUT))
        .await
}

fn refused(error: &concord_client::CallError) -> Reason {
    let given_up = || Reason::new("GIVEN_UP", error.to_string());
    error.reason().cloned().unwrap_or_else(given_up)
}

fn two_of(rng: &mut StdRng, count: u32) -> (u32, u32) {
    let first = rng.random_range(0..count);
    (first, (first + rng.random_range(1..count)) % count)
}

/// Two or three of them, in order.
fn some_servers(rng: &mut StdRng) -> Vec<u16> {
    let left_out = rng.random_range(0..=SERVERS);
    ALL.into_iter().filter(|n| *n != left_out).collect()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
