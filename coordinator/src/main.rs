//! `concord-coordinator`: telemetry, configuration, build (bind and recover all), run, drain.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use concord_coordinator::app::App;
use concord_coordinator::config::{Config, ENV_PREFIX};
use concord_daemon::{load, runtime, stop_on_signal, telemetry};
use tokio_util::sync::CancellationToken;

/// Many short-lived messages are allocated by few threads, which this allocator is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The coordinator of a Concord cluster: it commits transactions on many MySQL servers, or on
/// none, and serves the gateway.
///
/// Settings come from defaults, then the file, then environment variables such as
/// CONCORD_COORDINATOR_LISTEN or CONCORD_COORDINATOR_LIMITS__MAX_IN_FLIGHT, then flags.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  concord-coordinator --config coordinator.toml
  concord-coordinator --config coordinator.toml --check-config
  CONCORD_LOG=debug concord-coordinator --config coordinator.toml --listen 127.0.0.1:7400"
)]
struct Args {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the gateway listens; overrides the file.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Where the decision log lives; overrides the file.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Checks the configuration, prints every setting with its origin, and ends.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `eprintln!` would panic when the log cannot be written to, e.g. on a full disk.
            let _ = writeln!(io::stderr(), "concord-coordinator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let flags = [
        ("listen", args.listen.map(|address| address.to_string())),
        (
            "data_dir",
            args.data_dir.map(|dir| dir.display().to_string()),
        ),
    ];
    let flags = flags
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.into())));
    let loaded = load::<Config>(args.config.as_deref(), ENV_PREFIX, flags.collect())?;
    loaded.config.endpoints()?;
    if args.check_config {
        for setting in &loaded.settings {
            println!("{} = {}  # {}", setting.key, setting.value, setting.origin);
        }
        return Ok(());
    }
    telemetry::start(loaded.config.log_format);
    runtime(loaded.config.worker_threads)?.block_on(async {
        let signal = CancellationToken::new();
        stop_on_signal(signal.clone())?;
        let (app, incoming) = App::build(loaded).await?;
        app.run(incoming, signal).await
    })
}
