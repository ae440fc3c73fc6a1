//! The benchmark's accounts and products, and whether they add up afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use super::load::{Places, ServiceWorker, Side};
use super::report::Slices;
use super::{Against, BenchArgs, Workload, raw};
use crate::cli::exit::{Exit, Failure, advice};
use crate::cli::output::Ctx;
use crate::cli::servers::Folder;
use crate::client::Client;
use crate::outcome::Outcome;
use crate::retry::RetryPolicy;
use crate::v1;

/// What every account begins with, in minor units: more than a benchmark can take from one.
const OPENING: i64 = 1_000_000_000;
/// What every product begins with.
const STOCK: i64 = 1_000_000_000;
/// Products of the order workload.
const PRODUCTS: u32 = 100;
/// The currency of it all; XTS is ISO 4217's code for tests.
const CURRENCY: &str = "XTS";
/// Calls at once while accounts are opened and read.
const SETUP_CONCURRENCY: usize = 32;
/// How long the books may take to be still: every branch finished.
const DRAIN_DEADLINE: Duration = Duration::from_mins(1);
/// Time between two looks at branches in doubt.
const DRAIN_PAUSE: Duration = Duration::from_millis(100);

/// The benchmark's own accounts and products.
#[derive(Debug)]
pub(super) struct Books {
    accounts: Vec<String>,
    places: Arc<Places<String>>,
    products: Arc<Vec<String>>,
    raw: Option<Folder>,
}

/// Sums over everything that the benchmark owns.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Totals {
    money: i64,
    stock: i64,
    raw: i64,
}

/// Turns anything but a commit into a failure of the set-up.
fn opened<R>(outcome: Outcome<R>) -> Result<R, Failure> {
    match outcome {
        Outcome::Committed { results, .. } => Ok(results),
        Outcome::Aborted { reason, .. } => {
            let failure = Failure::new(Exit::of(&reason), "the benchmark cannot be set up");
            let failure = failure.why(&reason);
            Err(match advice(&reason.code) {
                Some(next) => failure.next(next),
                None => failure,
            })
        }
        Outcome::Unknown { message, .. } => {
            Err(Failure::new(Exit::Unavailable, "the benchmark cannot be set up").why(message))
        }
    }
}

/// A client that is patient with transient failures, for everything that is not measured.
fn patient(ctx: &Ctx) -> Client {
    ctx.client
        .with_retry(RetryPolicy::lasting(Duration::from_secs(30)))
}

impl Books {
    /// Opens accounts and creates products, all of a run that nobody else knows.
    pub(super) async fn open(ctx: &Ctx, args: &BenchArgs) -> Result<Self, Failure> {
        let run = uuid::Uuid::now_v7().simple().to_string();
        let client = patient(ctx);
        let opened_accounts: Vec<v1::Account> = futures::stream::iter(0..args.accounts)
            .map(|number| {
                let id = format!("bench-{run}-{number}");
                let request = v1::OpenAccountRequest {
                    account_id: id.clone(),
                    currency: CURRENCY.to_owned(),
                    initial_balance: OPENING,
                    request_id: id,
                };
                let client = client.clone();
                async move { opened(client.open_account(request).await) }
            })
            .buffer_unordered(SETUP_CONCURRENCY)
            .try_collect()
            .await?;
        let mut by_server: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for account in &opened_accounts {
            by_server
                .entry(account.participant.clone())
                .or_default()
                .push(account.account_id.clone());
        }
        let places = Places::new(
            by_server.into_values().collect(),
            args.hot,
            args.cross_server,
        )?;
        let products = if args.workload == Workload::Transfer {
            Vec::new()
        } else {
            products(&client, &run).await?
        };
        Ok(Self {
            accounts: opened_accounts
                .into_iter()
                .map(|account| account.account_id)
                .collect(),
            places: Arc::new(places),
            products: Arc::new(products),
            raw: args.against.map(|Against::Raw| Folder::new(&args.dir)),
        })
    }

    /// A client of the bank or the shop.
    pub(super) fn worker(&self, side: Side, client: Client) -> ServiceWorker {
        ServiceWorker {
            side,
            client,
            accounts: self.places.clone(),
            products: self.products.clone(),
        }
    }

    /// Adds everything up. Nothing may be in flight.
    pub(super) async fn totals(&self, ctx: &Ctx) -> Result<Totals, Failure> {
        let client = patient(ctx);
        let failed = |error| Failure::of_call("the books cannot be read", &error);
        let balances: Vec<i64> = futures::stream::iter(self.accounts.clone())
            .map(|id| {
                let client = client.clone();
                async move { client.account(&id).await.map(|account| account.balance) }
            })
            .buffer_unordered(SETUP_CONCURRENCY)
            .try_collect()
            .await
            .map_err(failed)?;
        let mut stock = 0;
        for id in self.products.iter() {
            stock += client.product(id).await.map_err(failed)?.stock;
        }
        let raw = match &self.raw {
            Some(folder) => raw::total(folder).await?,
            None => 0,
        };
        Ok(Totals {
            money: balances.iter().sum(),
            stock,
            raw,
        })
    }

    /// Whether money and stock are what they must be.
    pub(super) async fn check(
        &self,
        ctx: &Ctx,
        before: &Totals,
        slices: &Slices,
    ) -> Result<bool, Failure> {
        let after = self.totals(ctx).await?;
        let (ordered, perhaps) = slices.ordered();
        let gone = before.stock - after.stock;
        let orders_fit = (ordered..=ordered + perhaps).contains(&gone);
        Ok(after.money == before.money && after.raw == before.raw && orders_fit)
    }
}

async fn products(client: &Client, run: &str) -> Result<Vec<String>, Failure> {
    futures::stream::iter(0..PRODUCTS)
        .map(|number| {
            let id = format!("bench-{run}-{number}");
            let request = v1::CreateProductRequest {
                product_id: id.clone(),
                price: 1,
                currency: CURRENCY.to_owned(),
                initial_stock: STOCK,
                request_id: format!("{id}-product"),
                ..Default::default()
            };
            let client = client.clone();
            async move { opened(client.create_product(request).await) }
        })
        .buffer_unordered(SETUP_CONCURRENCY)
        .map_ok(|product| product.product_id)
        .try_collect()
        .await
}

/// Waits until no branch is in doubt; tells how many still are when time is over.
pub(super) async fn drain(ctx: &Ctx) -> Result<usize, Failure> {
    let client = patient(ctx);
    let deadline = Instant::now() + DRAIN_DEADLINE;
    loop {
        let (branches, unreachable) = client
            .list_in_doubt(10_000)
            .await
            .map_err(|error| Failure::of_call("branches in doubt cannot be listed", &error))?;
        let still = branches.is_empty() && unreachable.is_empty();
        if still || Instant::now() >= deadline {
            return Ok(branches.len());
        }
        tokio::time::sleep(DRAIN_PAUSE).await;
    }
}
