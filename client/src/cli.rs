//! The `concord` command line: what can be said, and who does it.
//!
//! It owns the arguments and the exit code. Each command has a module of its own; none of them
//! prints to stdout what is not its result.

mod account;
mod bench;
mod cluster;
mod deed;
mod demo;
pub mod down;
mod exit;
mod indoubt;
mod interruption;
mod list;
mod money;
mod order;
mod output;
mod product;
#[doc(hidden)]
pub mod reading;
mod servers;
mod sql;
pub mod status;
mod transfer;
mod tx;
pub mod up;
mod view;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use crate::retry::RetryPolicy;
use crate::{Client, ClientBuilder};
pub use exit::{Exit, Failure};
use output::Ctx;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    something else went wrong
  2    wrong usage, or a request that is invalid as such
  3    refused: the transaction was aborted by a vote, or what it names does not exist
  4    the outcome is unknown: repeat with the same --request-id, never as new
  5    unavailable: the cluster, or a part of it that is needed, cannot work now
  130  interrupted with Ctrl-C before all was done

Examples:
  concord up --detach
  concord account open alice --currency EUR --balance 100.00EUR
  concord transfer alice bob 12.30EUR
  concord tx exec 'p1: SELECT * FROM shop.till WHERE id = ?' -p int:1
  concord --json account list";

/// One transaction over many MySQL servers: committed on all of them, or on none.
#[derive(Debug, Parser)]
#[command(name = "concord", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Where the gateway listens when nothing else is said.
pub(crate) const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7400";

/// What every command understands.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Address of the coordinator's gateway; unix:/PATH for its socket on this host.
    #[arg(
        long,
        global = true,
        env = "CONCORD_ENDPOINT",
        default_value = DEFAULT_ENDPOINT,
        value_name = "URL"
    )]
    pub endpoint: String,
    /// Print JSON for programs: one object or array on stdout, and nothing else.
    #[arg(long, global = true)]
    pub json: bool,
    /// Time until an undecided transaction is aborted, and the longest wait for any other answer.
    /// `account open`, `product create` and `restock` carry no time-out: the server aborts them
    /// after its own 10s, and that is waited for.
    #[arg(long, global = true, default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// How long transient failures are retried, with the same request id
    /// [default: 5s; 60s a line for transfer --file].
    #[arg(long, global = true, value_parser = duration, value_name = "DURATION")]
    pub retry_for: Option<Duration>,
    /// PEM file of the CA to trust; needed for https:// endpoints.
    #[arg(long, global = true, env = "CONCORD_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file of the certificate to show to the server.
    #[arg(long, global = true, requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of that certificate's key.
    #[arg(long, global = true, requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Name that the server's certificate carries, when it is not the endpoint's host.
    #[arg(long, global = true, value_name = "NAME")]
    pub tls_name: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a local cluster of real servers and keep it running.
    Up(up::UpArgs),
    /// Stop a local cluster; the data is kept unless --wipe is given.
    Down(down::DownArgs),
    /// Show the processes of the local cluster, and the gateway's view of it.
    Status(status::StatusArgs),
    /// Show how to move money, and what happens when things are killed, on the local cluster.
    Demo(demo::DemoArgs),
    /// Open, show and list accounts.
    #[command(subcommand)]
    Account(account::AccountCommand),
    /// Move money between two accounts, or run a file of payments.
    Transfer(transfer::TransferArgs),
    /// Create and list products.
    #[command(subcommand)]
    Product(product::ProductCommand),
    /// Add to a product's stock.
    Restock(product::RestockArgs),
    /// Place, show and list orders.
    #[command(subcommand)]
    Order(order::OrderCommand),
    /// Run SQL in one transaction over several servers, and look at transactions.
    #[command(subcommand)]
    Tx(tx::TxCommand),
    /// Look at branches in doubt, and finish one by hand.
    #[command(subcommand)]
    Indoubt(indoubt::IndoubtCommand),
    /// Measure transfers and orders per second, and check the books afterwards.
    Bench(bench::BenchArgs),
    /// Print the completion script of a shell.
    #[command(after_help = "Example:\n  concord completions bash > \
                            ~/.local/share/bash-completion/completions/concord")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Half of the processors: a client waits most of its time, and what it works for runs beside it
/// more often than not. A single thread hands nothing over to another one.
fn runtime() -> std::io::Result<Runtime> {
    let threads = available_parallelism().map_or(1, NonZeroUsize::get) / 2;
    let mut builder = if threads > 1 {
        Builder::new_multi_thread()
    } else {
        Builder::new_current_thread()
    };
    builder.worker_threads(threads.max(1)).enable_all().build()
}

/// Reads the arguments, runs the command and tells the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.global.json;
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure = Failure::new(Exit::Other, "cannot start").why(error);
            output::complain(&failure);
            return Exit::Other.into();
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => Exit::Done.into(),
        Err(error) => {
            let failure = Failure::from_error(error);
            if !failure.is_silent() {
                output::complain(&failure);
            }
            tracing::debug!(json, code = ?failure.code(), "failed");
            failure.code().into()
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { global, command } = cli;
    if let Command::Completions { shell } = command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "concord", &mut script);
        return Ok(output::print_bytes(&script)?);
    }
    let command = match command {
        Command::Up(args) => return up::run(args).await,
        Command::Down(args) => return down::run(args).await,
        Command::Status(args) if args.dir.exists() => {
            return status::run(args, global.json).await;
        }
        command => command,
    };
    let ctx = Ctx::new(&global)?;
    match command {
        Command::Demo(args) => Ok(demo::run(&ctx, args).await?),
        Command::Account(command) => Ok(account::run(&ctx, command).await?),
        Command::Transfer(args) => Ok(transfer::run(&ctx, args).await?),
        Command::Product(command) => Ok(product::run(&ctx, command).await?),
        Command::Restock(args) => Ok(product::restock(&ctx, args).await?),
        Command::Order(command) => Ok(order::run(&ctx, command).await?),
        Command::Tx(command) => Ok(tx::run(&ctx, command).await?),
        Command::Indoubt(command) => Ok(indoubt::run(&ctx, command).await?),
        Command::Bench(args) => Ok(bench::run(&ctx, args).await?),
        // Without a local cluster there is still the gateway that --endpoint names.
        Command::Status(_) => Ok(cluster::run(&ctx).await?),
        Command::Up(_) | Command::Down(_) | Command::Completions { .. } => Ok(()),
    }
}

impl Global {
    /// How to reach the gateway that the arguments name.
    pub(crate) fn builder(&self) -> ClientBuilder {
        let mut builder = Client::builder(&self.endpoint).call_timeout(self.timeout);
        if let Some(time) = self.retry_for {
            builder = builder.retry(RetryPolicy::lasting(time));
        }
        if let Some(ca) = &self.tls_ca {
            builder = builder.ca_file(ca);
        }
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            builder = builder.identity_files(cert, key);
        }
        if let Some(name) = &self.tls_name {
            builder = builder.server_name(name);
        }
        builder
    }
}

/// Reads `500ms`, `10s`, `2m`, `1h`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| "write a whole number and a unit: 500ms, 10s, 2m or 1h".to_owned())?;
    let millis = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(format!("\"{unit}\" is no unit; write ms, s, m or h")),
    };
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| "this is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_need_a_known_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "1.5s", "-1s", "3 s", "1d", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(duration("18446744073709551615h").is_err());
    }

    #[test]
    fn every_command_has_an_example() {
        fn visit(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                if sub.get_subcommands().next().is_some() {
                    visit(sub, &path);
                } else if sub.get_name() != "help" {
                    let help = sub
                        .get_after_help()
                        .map(ToString::to_string)
                        .unwrap_or_default();
                    assert!(help.contains("concord "), "{path} has no example");
                }
            }
        }
        visit(&Cli::command(), "concord");
    }
}
