//! `concord bench`: transfers and orders per second, and whether the books are right afterwards.
//!
//! With `--against raw` the same work is done in turn by a raw XA client on the same servers, in
//! one run, so that both see the same machine. See `bench/raw.rs` for what that client leaves out.

mod books;
mod load;
mod raw;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

use crate::cli::DEFAULT_ENDPOINT;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{self, Ctx};
use crate::cli::servers::Folder;
use crate::client::ClientBuilder;
use crate::local::cluster::gateway_socket;
use crate::retry::RetryPolicy;
use books::Books;
use load::{Side, Worker};
use report::{Report, Slices};

/// How long a side runs, uncounted, before the first slice: connections open, caches fill.
const WARM_UP: Duration = Duration::from_millis(500);
/// Clients that share one HTTP/2 connection: one connection is one task, and must not be what
/// limits the measurement.
const CLIENTS_PER_CHANNEL: usize = 8;

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct BenchArgs {
    /// What is done.
    #[arg(long, value_enum, default_value_t = Workload::Transfer)]
    workload: Workload,
    /// Clients that work at once, each with one transaction at a time.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Length of the whole measurement, all sides and rounds together.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Accounts to work on.
    #[arg(long, default_value_t = 1_000,
          value_parser = clap::value_parser!(u32).range(4..=100_000))]
    accounts: u32,
    /// Share of transactions that touch one hot account of each server, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = share, value_name = "SHARE")]
    hot: f64,
    /// Whether the two accounts of a transfer lie on different servers.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    cross_server: bool,
    /// Compare with another client on the same servers, slice by slice.
    #[arg(long, value_enum)]
    against: Option<Against>,
    /// How often the sides take turns with --against.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// Folder of the local cluster; needed with --against, which talks to the servers directly.
    #[arg(long, default_value = ".concord", value_name = "DIR")]
    dir: PathBuf,
}

const HELP: &str = "\
Without --against, `concord` is BankService.Transfer or InventoryService.PlaceOrder: the whole
service, with journals.

With --against raw, `concord` is the same work as raw: one UPDATE on each of two servers, of the
same rows of the same table (concord_raw.accounts), sent through TransactionService.Execute, with
Concord's ledger row, decision log, recovery and exactly-once. `raw` is a client with one
connection to each server that sends `XA START; UPDATE; XA END; XA PREPARE` to both in parallel and
then XA COMMIT to both in parallel, keeps no log, and loses atomicity whenever it dies. `ratio` is
the ratio of the medians of their transactions per second over the slices. The bank's transfers
run in turn with them and are reported as `bank`; they do more work: a journal on both servers.

Examples:
  concord bench
  concord bench --workload order --clients 8 --seconds 30
  concord bench --hot 0.2 --accounts 100
  concord --json bench --against raw --clients 32 --seconds 60 --rounds 10";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Money from one account to another.
    Transfer,
    /// One product of one server, paid from an account of another.
    Order,
    /// Half transfers, half orders.
    Mixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Against {
    /// A raw XA client, written by hand to be fast.
    Raw,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse::<f64>()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a number from 0 to 1".to_owned())
}

pub(crate) async fn run(ctx: &Ctx, args: BenchArgs) -> Result<(), Failure> {
    if args.against.is_some() && args.workload != Workload::Transfer {
        return Err(
            Failure::new(Exit::Usage, "--against raw compares transfers only")
                .next("leave out --workload"),
        );
    }
    // A retry would hide what is measured: aborts are counted, not mended.
    let quiet = builder(ctx, &args).retry(RetryPolicy::none());
    let channels = usize::from(args.clients).div_ceil(CLIENTS_PER_CHANNEL);
    let mut clients = Vec::new();
    for _ in 0..channels {
        clients.push(quiet.clone().build()?);
    }
    say("opening accounts");
    let books = Books::open(ctx, &args).await?;
    let mut sides = sides(&args, &clients, &books).await?;
    let before = books.totals(ctx).await?;
    let slices = measure(&args, &mut sides).await?;
    say("checking the books");
    let in_doubt = books::drain(ctx).await?;
    let conserved = books.check(ctx, &before, &slices).await?;
    let report = Report {
        args: &args,
        slices,
        conserved,
        in_doubt,
    };
    ctx.print(&report.json(), || report.text())?;
    report.verdict()
}

/// The raw client is on the servers' unix sockets; so is Concord's on its gateway's, unless another
/// way is asked for.
fn builder(ctx: &Ctx, args: &BenchArgs) -> ClientBuilder {
    let mut global = ctx.global.clone();
    if args.against.is_some() && global.endpoint == DEFAULT_ENDPOINT {
        let folder = args.dir.canonicalize().ok();
        let socket = folder.and_then(|folder| gateway_socket(&folder));
        if let Some(socket) = socket.filter(|socket| socket.exists()) {
            global.endpoint = format!("unix:{}", socket.display());
        }
    }
    global.builder()
}

/// One line of progress for people; programs read stdout only.
fn say(text: &str) {
    output::note(&format!("{text} …"));
}

/// The workers of every side, ready to go.
async fn sides(
    args: &BenchArgs,
    clients: &[crate::Client],
    books: &Books,
) -> Result<Vec<(Side, Vec<Worker>)>, Failure> {
    let names = match (args.against, args.workload) {
        (Some(Against::Raw), _) => vec![Side::Plain, Side::Raw, Side::Bank],
        (None, Workload::Transfer) => vec![Side::Bank],
        (None, Workload::Order) => vec![Side::Order],
        (None, Workload::Mixed) => vec![Side::Mixed],
    };
    let table = match args.against {
        Some(Against::Raw) => Some(raw::Table::create(&Folder::new(&args.dir), args).await?),
        None => None,
    };
    let mut sides = Vec::new();
    for side in names {
        let mut workers = Vec::new();
        for (i, client) in (0..args.clients).zip(clients.iter().cycle()) {
            workers.push(match (side, &table) {
                (Side::Raw, Some(table)) => Worker::Raw(table.worker(i).await?),
                (Side::Plain, Some(table)) => Worker::Plain(table.plain(client.clone())),
                _ => Worker::Service(books.worker(side, client.clone())),
            });
        }
        sides.push((side, workers));
    }
    Ok(sides)
}

/// Lets the sides take turns, and counts.
async fn measure(args: &BenchArgs, sides: &mut [(Side, Vec<Worker>)]) -> Result<Slices, Failure> {
    let rounds = if sides.len() > 1 {
        u32::from(args.rounds)
    } else {
        1
    };
    let turns = rounds * u32::try_from(sides.len()).unwrap_or(1);
    let slice = Duration::from_secs(args.seconds.into()) / turns;
    let mut slices = Slices::default();
    let stop = stop_on_ctrl_c();
    for (side, workers) in sides.iter_mut() {
        say(&format!("warming up: {}", side.name()));
        let warm = load::slice(workers, WARM_UP.min(slice), &stop).await?;
        slices.uncounted(*side, &warm);
    }
    for round in 1..=rounds {
        for (side, workers) in sides.iter_mut() {
            if stop.is_cancelled() {
                return Err(Failure::new(
                    Exit::Interrupted,
                    "interrupted; nothing was measured",
                ));
            }
            say(&format!(
                "measuring {}, round {round} of {rounds}",
                side.name()
            ));
            let stats = load::slice(workers, slice, &stop).await?;
            slices.add(*side, stats);
        }
    }
    if stop.is_cancelled() {
        return Err(Failure::new(
            Exit::Interrupted,
            "interrupted; nothing was measured",
        ));
    }
    Ok(slices)
}

/// Ends slices when Ctrl-C comes, each client after its transaction: a raw client that is cut off
/// leaves prepared branches that nobody but the next run finishes.
fn stop_on_ctrl_c() -> CancellationToken {
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            token.cancel();
        }
    });
    stop
}
