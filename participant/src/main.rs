//! The participant's process: settings, then everything bound, then served until a signal.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use concord_daemon::{runtime, serve, stop_on_signal, telemetry};
use concord_participant::app::App;
use concord_participant::config::{Config, ENV_PREFIX};
use concord_participant::resource::mysql::MySql;
use figment::value::Dict;
use tokio_util::sync::CancellationToken;

/// Many short-lived messages are allocated by few threads, which this allocator is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "Examples:
  concord-participant --config p1.toml
  concord-participant --config p1.toml --check-config
  concord-participant --name p1 --socket /run/mysqld/mysqld.sock --listen 127.0.0.1:7411

Settings come from the file, from CONCORD_PARTICIPANT_* (CONCORD_PARTICIPANT_SERVER__USER sets
server.user), and from flags; later ones win. CONCORD_LOG filters log lines, e.g.
CONCORD_LOG=info,concord_participant=debug.";

/// The daemon in front of one MySQL or MariaDB server of a Concord cluster.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Args {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this participant in the cluster.
    #[arg(long)]
    name: Option<String>,
    /// Address to listen on; port 0 takes a free one. [default: 127.0.0.1:7411]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Where the coordinator listens. [default: http://127.0.0.1:7400]
    #[arg(long, value_name = "URL")]
    coordinator: Option<String>,
    /// Unix socket of the server.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Check the settings, print those in force with their origin, and end.
    #[arg(long)]
    check_config: bool,
}

impl Args {
    fn load(&self) -> anyhow::Result<concord_daemon::Loaded<Config>> {
        let mut flags = Dict::new();
        let given = [
            ("name", &self.name),
            ("listen", &self.listen),
            ("coordinator", &self.coordinator),
        ];
        for (setting, value) in given {
            flags.extend(
                value
                    .clone()
                    .map(|value| (setting.to_owned(), value.into())),
            );
        }
        if let Some(socket) = &self.socket {
            let socket = Dict::from([("socket".to_owned(), socket.display().to_string().into())]);
            flags.insert("server".to_owned(), socket.into());
        }
        Ok(concord_daemon::load(
            self.config.as_deref(),
            ENV_PREFIX,
            flags,
        )?)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `eprintln!` would panic when the log cannot be written to, e.g. on a full disk.
            let _ = writeln!(io::stderr(), "concord-participant: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let loaded = args.load()?;
    let checked = loaded.config.check()?;
    if args.check_config {
        for setting in loaded.settings {
            println!("{} = {} ({})", setting.key, setting.value, setting.origin);
        }
        return Ok(());
    }
    telemetry::start(loaded.config.log_format);
    runtime(loaded.config.worker_threads)
        .context("cannot start the runtime")?
        .block_on(async {
            let stop = CancellationToken::new();
            stop_on_signal(stop.clone()).context("cannot listen to signals")?;
            let (incoming, address) = serve::bind(checked.listen, "listen").await?;
            tracing::info!(%address, name = %checked.identity.name, "listening");
            let rm = MySql::start(checked.server);
            let coordinator = checked.coordinator.connect_lazy();
            let mut app = App::new(checked.identity, checked.driver, rm, coordinator);
            if let Some(path) = &checked.listen_socket {
                app = app.also_on(serve::bind_unix(path, "listen_socket").await?);
            }
            Ok(app.serve(incoming, stop, checked.drain).await?)
        })
}
