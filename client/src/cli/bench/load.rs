//! Workers that make one transaction after the other, and what is counted of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::RngExt as _;
use tokio_util::sync::CancellationToken;

use super::raw::{PlainWorker, RawWorker};
use crate::cli::exit::{Exit, Failure};
use crate::client::Client;
use crate::outcome::Outcome;
use crate::v1;

/// Longest latency that is told apart, in microseconds; longer ones count as this.
const LATENCY_MAX_US: u64 = 600_000_000;

/// Who works in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// The same work as raw, through Concord.
    Plain,
    /// The raw XA client.
    Raw,
    /// The bank's transfers.
    Bank,
    /// Orders.
    Order,
    /// Half transfers, half orders.
    Mixed,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "concord",
            Self::Raw => "raw",
            Self::Bank => "transfers",
            Self::Order => "orders",
            Self::Mixed => "transfers and orders",
        }
    }
}

/// How one transaction ended.
#[derive(Debug)]
pub(super) enum Done {
    Committed { ordered: u64 },
    Aborted(Arc<str>),
    Unknown { ordered: u64 },
}

impl Done {
    pub(super) fn of<R>(outcome: &Outcome<R>, ordered: u64) -> Self {
        match outcome {
            Outcome::Committed { .. } => Self::Committed { ordered },
            Outcome::Aborted { reason, .. } => Self::Aborted(reason.code.clone()),
            Outcome::Unknown { .. } => Self::Unknown { ordered },
        }
    }
}

/// Counts of a slice.
#[derive(Clone, Debug)]
pub(super) struct Stats {
    /// Latencies of committed transactions, in microseconds.
    pub latency: Histogram<u64>,
    pub committed: u64,
    pub aborted: BTreeMap<Arc<str>, u64>,
    pub unknown: u64,
    /// Pieces in committed orders.
    pub ordered: u64,
    /// Pieces in orders of unknown outcome.
    pub perhaps_ordered: u64,
    pub took: Duration,
}

impl Stats {
    pub(super) fn new() -> Result<Self, Failure> {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
            .map_err(|error| Failure::new(Exit::Other, "no histogram").why(error))?;
        Ok(Self {
            latency,
            committed: 0,
            aborted: BTreeMap::new(),
            unknown: 0,
            ordered: 0,
            perhaps_ordered: 0,
            took: Duration::ZERO,
        })
    }

    fn count(&mut self, done: Done, took: Duration) {
        match done {
            Done::Committed { ordered } => {
                self.committed += 1;
                self.ordered += ordered;
                let micros = u64::try_from(took.as_micros()).unwrap_or(LATENCY_MAX_US);
                self.latency.saturating_record(micros);
            }
            Done::Aborted(code) => *self.aborted.entry(code).or_default() += 1,
            Done::Unknown { ordered } => {
                self.unknown += 1;
                self.perhaps_ordered += ordered;
            }
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        // Both have the same bounds, so their counts always fit together.
        let _ = self.latency.add(&other.latency);
        self.committed += other.committed;
        for (code, count) in &other.aborted {
            *self.aborted.entry(code.clone()).or_default() += count;
        }
        self.unknown += other.unknown;
        self.ordered += other.ordered;
        self.perhaps_ordered += other.perhaps_ordered;
        self.took += other.took;
    }

    #[allow(clippy::cast_precision_loss)] // Far fewer than 2^53 transactions.
    pub(super) fn tps(&self) -> f64 {
        self.committed as f64 / self.took.as_secs_f64().max(1e-6)
    }
}

/// One client that works alone.
#[derive(Debug)]
pub(super) enum Worker {
    Plain(PlainWorker),
    Raw(RawWorker),
    Service(ServiceWorker),
}

impl Worker {
    async fn once(&mut self) -> Result<Done, Failure> {
        match self {
            Self::Plain(worker) => Ok(worker.once().await),
            Self::Raw(worker) => worker.once().await,
            Self::Service(worker) => Ok(worker.once().await),
        }
    }
}

/// Runs all workers for a time. Every transaction that was begun is waited for and counted, and
/// the time that this takes counts too.
pub(super) async fn slice(
    workers: &mut Vec<Worker>,
    time: Duration,
    stop: &CancellationToken,
) -> Result<Stats, Failure> {
    let started = Instant::now();
    let tasks: Vec<_> = std::mem::take(workers)
        .into_iter()
        .map(|mut worker| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut stats = Stats::new()?;
                while started.elapsed() < time && !stop.is_cancelled() {
                    let begun = Instant::now();
                    let done = worker.once().await?;
                    stats.count(done, begun.elapsed());
                }
                Ok::<_, Failure>((worker, stats))
            })
        })
        .collect();
    let mut all = Stats::new()?;
    for task in tasks {
        let joined = task.await.map_err(|error| {
            Failure::new(Exit::Other, "a client of the benchmark died").why(error)
        });
        let (worker, stats) = joined??;
        workers.push(worker);
        all.add(&stats);
    }
    all.took = started.elapsed();
    Ok(all)
}

/// Accounts by server, with the choice of pairs.
#[derive(Debug)]
pub(super) struct Places<T> {
    /// The entries of each server, by server; the first of each is the hot one.
    servers: Vec<Vec<T>>,
    hot: f64,
    cross: bool,
}

impl<T> Places<T> {
    /// Needs two servers with entries when pairs must cross.
    pub(super) fn new(servers: Vec<Vec<T>>, hot: f64, cross: bool) -> Result<Self, Failure> {
        let servers: Vec<Vec<T>> = servers
            .into_iter()
            .filter(|list| !list.is_empty())
            .collect();
        if cross && servers.len() < 2 {
            return Err(
                Failure::new(Exit::Usage, "all accounts lie on one server").next(
                    "use more --accounts, a cluster of several servers, or --cross-server false",
                ),
            );
        }
        if servers.iter().map(Vec::len).sum::<usize>() < 2 {
            return Err(Failure::new(Exit::Usage, "a transfer needs two accounts"));
        }
        Ok(Self {
            servers,
            hot,
            cross,
        })
    }

    /// Two different entries; the indices of their servers come with them.
    pub(super) fn pair(&self) -> ((usize, &T), (usize, &T)) {
        let mut rng = rand::rng();
        let hot = rng.random_bool(self.hot);
        loop {
            let from = rng.random_range(0..self.servers.len());
            let to = rng.random_range(0..self.servers.len());
            if self.cross && from == to {
                continue;
            }
            let hot_at = if hot {
                0
            } else {
                rng.random_range(0..self.servers[from].len())
            };
            let other = rng.random_range(0..self.servers[to].len());
            if (from, hot_at) == (to, other) {
                continue;
            }
            let first = (from, &self.servers[from][hot_at]);
            let second = (to, &self.servers[to][other]);
            // The hot account is debited and credited equally often.
            return if rng.random_bool(0.5) {
                (first, second)
            } else {
                (second, first)
            };
        }
    }
}

/// A client of the bank or the shop.
#[derive(Debug)]
pub(super) struct ServiceWorker {
    pub side: Side,
    pub client: Client,
    pub accounts: Arc<Places<String>>,
    pub products: Arc<Vec<String>>,
}

impl ServiceWorker {
    async fn once(&mut self) -> Done {
        let ((_, from), (_, to)) = self.accounts.pair();
        let (from, to) = (from.clone(), to.clone());
        let order = match self.side {
            Side::Order => true,
            Side::Mixed => rand::random_bool(0.5),
            Side::Plain | Side::Raw | Side::Bank => false,
        };
        if !order {
            let request = v1::TransferRequest {
                from_account_id: from,
                to_account_id: to,
                amount: 1,
                ..Default::default()
            };
            return Done::of(&self.client.transfer(request).await, 0);
        }
        let product_id = self.products[rand::random_range(0..self.products.len())].clone();
        let request = v1::PlaceOrderRequest {
            lines: vec![v1::OrderLine {
                product_id,
                quantity: 1,
                price: 0,
            }],
            payment: Some(v1::Payment {
                from_account_id: from,
                to_account_id: to,
            }),
            ..Default::default()
        };
        Done::of(&self.client.place_order(request).await, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_cross_servers_and_are_never_one_account() {
        let places = Places::new(vec![vec![1, 2], vec![3, 4], vec![]], 0.5, true).unwrap();
        let mut hot = 0;
        for _ in 0..1_000 {
            let ((from_server, from), (to_server, to)) = places.pair();
            assert_ne!(from_server, to_server);
            assert_ne!(from, to);
            hot += usize::from([from, to].iter().any(|id| [1, 3].contains(*id)));
        }
        assert!((500..1_000).contains(&hot), "{hot}");
        assert!(Places::new(vec![vec![1, 2]], 0.0, true).is_err());
        let places = Places::new(vec![vec![1, 2]], 1.0, false).unwrap();
        for _ in 0..100 {
            let ((_, from), (_, to)) = places.pair();
            assert_ne!(from, to);
        }
    }

    #[test]
    fn counts_of_slices_add_up() {
        let mut all = Stats::new().unwrap();
        let mut one = Stats::new().unwrap();
        one.count(Done::Committed { ordered: 1 }, Duration::from_millis(2));
        one.count(
            Done::Aborted("LOCK_TIMEOUT".into()),
            Duration::from_millis(9),
        );
        one.count(Done::Unknown { ordered: 1 }, Duration::from_millis(9));
        one.took = Duration::from_secs(1);
        all.add(&one);
        all.add(&one);
        assert_eq!(
            (all.committed, all.unknown, all.ordered, all.perhaps_ordered),
            (2, 2, 2, 2)
        );
        assert_eq!(all.aborted["LOCK_TIMEOUT"], 2);
        assert!((all.tps() - 1.0).abs() < 1e-9);
        assert_eq!(all.latency.len(), 2);
    }
}
