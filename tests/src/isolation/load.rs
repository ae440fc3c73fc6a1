//! The load: clients that run transactions over all servers and write down what they were told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use concord_client::{CallError, Client, Outcome, RetryPolicy, Statement, v1};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;

use super::check::Level;
use super::history::{Element, End, Key, Op, Txn, server_of};

/// Time-out of a transaction. It is also what ends a deadlock that spans two servers, which none
/// of them sees.
const TIMEOUT: Duration = Duration::from_millis(500);
/// The moment at which a commit ended that is applied at nobody knows which.
const ANY_TIME: u64 = u64::MAX / 2;
/// Pause of a client that was turned away because something is down.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Operations of a transaction, at most.
const OPS_MAX: usize = 5;

/// How a load looks.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The level of all transactions.
    pub level: Level,
    /// How many servers.
    pub servers: u16,
    /// Transactions that must have ended.
    pub transactions: u64,
    /// Transactions that share one set of lists. A checker needs time for each that grows faster
    /// than their number, and lists that nobody else touches can be checked by themselves.
    pub round: u64,
    /// Lists of one set.
    pub lists: u32,
    /// Decides what each transaction does.
    pub seed: u64,
    /// Number of the first set of lists.
    pub first: u64,
}

impl Shape {
    /// Sets of lists.
    pub fn rounds(&self) -> u64 {
        self.transactions.div_ceil(self.round)
    }

    /// The lists of a set.
    pub fn lists_of(&self, round: u64) -> std::ops::Range<Key> {
        let first = u32::try_from(self.first + round).unwrap_or_default() * self.lists;
        first..first + self.lists
    }

    /// What a transaction does: decided by its number alone.
    fn ops(&self, number: u64) -> Vec<Op> {
        let mut rng = StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let lists = self.lists_of(number / self.round);
        let count = rng.random_range(1..=OPS_MAX);
        let writes = rng.random_bool(0.8);
        let locks = self.level != Level::Serializable && rng.random_bool(0.2);
        let mut ops: Vec<Op> = (0..count)
            .map(|at| {
                let key = rng.random_range(lists.clone());
                if writes && rng.random_bool(0.6) {
                    let element = (self.first * self.round + number) * OPS_MAX as u64 + at as u64;
                    let element = Element::try_from(element).unwrap_or_default() + 1;
                    return Op::Append { key, element };
                }
                Op::Read {
                    key,
                    locking: locks,
                    seen: None,
                }
            })
            .collect();
        // Those that go through the lists in one order do not end in each other's deadlocks.
        if rng.random_bool(0.7) {
            ops.sort_by_key(|op| (server_of(op.key(), self.servers), op.key()));
        }
        ops
    }

    fn isolation(&self) -> v1::Isolation {
        match self.level {
            Level::ReadCommitted => v1::Isolation::ReadCommitted,
            Level::RepeatableRead => v1::Isolation::RepeatableRead,
            Level::Serializable => v1::Isolation::Serializable,
        }
    }
}

/// What clients share.
#[derive(Debug, Default)]
pub struct Clock {
    /// The next moment.
    moment: AtomicU64,
    /// The next transaction.
    number: watch::Sender<u64>,
}

impl Clock {
    /// A moment later than all that were seen before.
    pub fn now(&self) -> u64 {
        self.moment.fetch_add(1, Ordering::SeqCst)
    }

    fn next_number(&self) -> u64 {
        let mut number = 0;
        self.number.send_modify(|next| {
            number = *next;
            *next += 1;
        });
        number
    }

    /// Waits until so many transactions have begun.
    pub async fn has_begun(&self, transactions: u64) {
        let mut number = self.number.subscribe();
        // The sender is this clock's own.
        let _ = number.wait_for(|number| *number >= transactions).await;
    }
}

/// What one client brings back.
#[derive(Debug, Default)]
pub struct Done {
    /// Its transactions.
    pub txns: Vec<Txn>,
    /// Attempts that were turned away before anything was done.
    pub turned_away: u64,
    /// Commits that were answered at the time-out, and are applied at any later time.
    pub late: u64,
    /// Commits whose results were lost, so that nobody knows what they read.
    pub lost: u64,
}

/// Runs transactions until there are enough of them.
pub async fn run(endpoint: &str, shape: Shape, clock: Arc<Clock>) -> anyhow::Result<Done> {
    let client = Client::connect(endpoint)?.with_retry(RetryPolicy::none());
    let mut done = Done::default();
    loop {
        let number = clock.next_number();
        if number >= shape.transactions {
            return Ok(done);
        }
        // Half of them in one call, half of them statement by statement.
        let one_shot = number.is_multiple_of(2);
        loop {
            let mut ops = shape.ops(number);
            let (began, sent) = (clock.now(), Instant::now());
            let end = if one_shot {
                let told = in_one_call(&client, &shape, &mut ops).await?;
                done.lost += u64::from(told.results_lost);
                told.end
            } else {
                step_by_step(&client, &shape, &mut ops).await
            };
            let Some(end) = end else {
                done.turned_away += 1;
                tokio::time::sleep(BACK_OFF).await;
                continue;
            };
            // When the time-out passes after the decision, the client hears of it although a branch
            // whose server is away is not applied before that is back.
            let late = end == End::Committed && sent.elapsed() >= TIMEOUT;
            done.late += u64::from(late);
            let ended = if late { ANY_TIME } else { clock.now() };
            done.txns.push(Txn {
                number: shape.first * shape.round + number,
                ops,
                end,
                began,
                ended,
            });
            break;
        }
    }
}

fn statement(op: &Op) -> Statement {
    match op {
        Op::Append { key, element } => {
            let sql = "UPDATE isolation.lists SET elements = CONCAT(elements, ?) WHERE id = ?";
            Statement::new(sql)
                .bind(format!("{element} "))
                .bind(*key)
                .expect_rows(1, Some(1), "NO_SUCH_LIST")
        }
        Op::Read { key, locking, .. } => {
            let sql = match locking {
                true => "SELECT elements FROM isolation.lists WHERE id = ? FOR UPDATE",
                false => "SELECT elements FROM isolation.lists WHERE id = ?",
            };
            Statement::new(sql).bind(*key)
        }
    }
}

fn participant(key: Key, servers: u16) -> String {
    format!("p{}", server_of(key, servers))
}

/// The elements of a list, as they are stored.
pub fn elements(text: &str) -> Vec<Element> {
    let parsed = text.split_whitespace().map(str::parse);
    // What is no number is an element that nobody appended.
    parsed.map(|element| element.unwrap_or(-1)).collect()
}

fn note(op: &mut Op, result: &v1::StatementResult) {
    if let Op::Read { seen, .. } = op {
        let value = result.result.first().and_then(|row| row.values.first());
        let text = match value.and_then(|value| value.kind.as_ref()) {
            Some(v1::value::Kind::String(text)) => text.clone(),
            other => format!("no text: {other:?}"),
        };
        *seen = Some(elements(&text));
    }
}

/// How it ended; none when nothing was done because something is down.
fn end_of<R>(outcome: Outcome<R>) -> (Option<End>, Option<R>) {
    match outcome {
        Outcome::Committed { results, .. } => (Some(End::Committed), Some(results)),
        Outcome::Unknown { .. } => (Some(End::Unknown), None),
        Outcome::Aborted { reason, .. } => {
            let code = reason.code.to_string();
            let down = ["COORDINATOR_DOWN", "PARTICIPANT_DOWN", "SERVER_DOWN"];
            let end = (!down.contains(&code.as_str())).then_some(End::Aborted(code));
            (end, None)
        }
    }
}

/// What a call said.
struct Told {
    end: Option<End>,
    results_lost: bool,
}

/// # Errors
///
/// An answer of a shape that no answer may have.
async fn in_one_call(client: &Client, shape: &Shape, ops: &mut Vec<Op>) -> anyhow::Result<Told> {
    let mut call = client
        .one_shot()
        .isolation(shape.isolation())
        .timeout(TIMEOUT);
    for op in ops.iter() {
        call = call.on(&participant(op.key(), shape.servers), statement(op));
    }
    let outcome = call.send().await;
    let results_lost = matches!(
        outcome,
        Outcome::Committed {
            results_lost: true,
            ..
        }
    );
    let (mut end, results) = end_of(outcome);
    if results_lost {
        let mut servers = ops.iter().map(|op| server_of(op.key(), shape.servers));
        let first = servers.next();
        let leaves_a_row = |op: &Op| !matches!(op, Op::Read { locking: false, .. });
        ensure!(
            ops.iter().any(leaves_a_row) && servers.all(|server| Some(server) == first),
            "only what leaves a ledger row on one server may lose its results: {ops:?}"
        );
        // To the checkers a read without a result is one of an empty list, unless the outcome is
        // unknown; and of one that only read there is nothing to be known.
        let is_append = |op: &Op| matches!(op, Op::Append { .. });
        if ops.iter().any(is_append) {
            ops.retain(is_append);
        } else {
            end = Some(End::Unknown);
        }
    }
    if let Some(results) = results.filter(|_| !results_lost) {
        let (told, asked) = (results.len(), ops.len());
        ensure!(
            told == asked,
            "{told} results of {asked} statements: {ops:?}"
        );
        for (op, result) in ops.iter_mut().zip(&results) {
            note(op, result);
        }
    }
    Ok(Told { end, results_lost })
}

async fn step_by_step(client: &Client, shape: &Shape, ops: &mut [Op]) -> Option<End> {
    let begun = client.begin_with(shape.isolation(), Some(TIMEOUT)).await;
    let mut transaction = begun.ok()?;
    for op in ops.iter_mut() {
        let participant = participant(op.key(), shape.servers);
        match transaction.execute(&participant, statement(op)).await {
            Ok(result) => note(op, &result),
            // Commit is never sent, so it never commits.
            Err(error) => return failed_statement(&error),
        }
    }
    end_of(transaction.commit().await).0
}

fn failed_statement(error: &CallError) -> Option<End> {
    let code = error.reason().map(|reason| reason.code.to_string());
    match code {
        Some(code) if code.ends_with("_DOWN") => None,
        Some(code) => Some(End::Aborted(code)),
        None => Some(End::Aborted("LOST".into())),
    }
}
