//! The coordinator put together: log, driver, links, services, listener.
//!
//! Everything is bound and recovered before anything is spawned, so that a coordinator that
//! cannot work says so and ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use concord_daemon::crash::{CrashPoint, reach};
use concord_daemon::{Loaded, Tasks, serve};
use concord_proto::local::LocalIncoming;
use concord_proto::transport::restate;
use concord_proto::v1;
use concord_proto::v1::admin_service_server::AdminServiceServer;
use concord_proto::v1::bank_service_server::BankServiceServer;
use concord_proto::v1::inventory_service_server::InventoryServiceServer;
use concord_proto::v1::outcome_service_server::OutcomeServiceServer;
use concord_proto::v1::transaction_service_server::TransactionServiceServer;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic_health::server::HealthReporter;

use crate::config::Config;
use crate::counters::Counters;
use crate::driver::{Driver, Parts};
use crate::gateway::admin::{AdminGateway, Facts};
use crate::gateway::bank::BankGateway;
use crate::gateway::business::Business;
use crate::gateway::inventory::InventoryGateway;
use crate::gateway::outcome::OutcomeGateway;
use crate::gateway::transactions::TransactionGateway;
use crate::handle::Handle;
use crate::history::History;
use crate::log::{DecisionLog, EmbeddedLog};
use crate::mint::Mint;
use crate::participants::Participants;
use crate::participants::link::{Expected, run_link};
use crate::recovery;
use crate::surroundings::{Machine, Surroundings};

/// Largest request: 4 MiB of statements with their framing.
const REQUEST_BYTES_MAX: usize = 8 << 20;
/// Largest answer: results of 64 branches.
const RESPONSE_BYTES_MAX: usize = 64 << 20;
/// What the gateway serves, for clients that ask.
const SERVICES: [&str; 5] = [
    v1::transaction_service_server::SERVICE_NAME,
    v1::outcome_service_server::SERVICE_NAME,
    v1::bank_service_server::SERVICE_NAME,
    v1::inventory_service_server::SERVICE_NAME,
    v1::admin_service_server::SERVICE_NAME,
];
/// Time between two looks whether the last transaction has ended, while draining.
const DRAIN_INTERVAL: Duration = Duration::from_millis(20);
/// Time for the tasks to end after the drain.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// What a coordinator stands on: all that it shares with the world outside.
#[derive(Debug)]
pub struct Ground<L> {
    /// Its log, open.
    pub log: L,
    /// The ways to the participants.
    pub participants: Participants,
    /// The machine that it runs on.
    pub surroundings: Arc<dyn Surroundings>,
}

/// A coordinator that is ready to run.
#[derive(Debug)]
pub struct App {
    driver: Driver,
    handle: Handle,
    routes: Routes,
    links: Vec<(Arc<crate::participants::Peer>, Expected)>,
    calls: tokio::sync::mpsc::Sender<crate::driver::Call>,
    accepting: Arc<AtomicBool>,
    health: HealthReporter,
    drain_timeout: Duration,
    local: Option<LocalIncoming>,
}

impl App {
    /// Binds, opens the log, recovers. The second part is for [`Self::run`].
    pub async fn build(loaded: Loaded<Config>) -> anyhow::Result<(Self, TcpIncoming)> {
        let config = &loaded.config;
        let participants = Participants::new(config.endpoints()?);
        let (incoming, address) = serve::bind(config.listen, "listen (or --listen)").await?;
        let local = match &config.listen_socket {
            Some(path) => Some(serve::bind_unix(path, "listen_socket").await?),
            None => None,
        };
        let ground = Ground {
            log: EmbeddedLog::open(&config.data_dir, &config.cluster)?,
            participants,
            surroundings: Arc::new(Machine),
        };
        let app = Self {
            local,
            ..Self::on(ground, &loaded).await?
        };
        tracing::info!(%address, "listening");
        Ok((app, incoming))
    }

    /// Recovers from an open log, whatever it, the participants and the machine are.
    pub async fn on<L: DecisionLog>(
        ground: Ground<L>,
        loaded: &Loaded<Config>,
    ) -> anyhow::Result<Self> {
        let config = &loaded.config;
        let Ground {
            mut log,
            participants,
            surroundings,
        } = ground;
        let names = participants.names();
        let start = recovery::start(&mut log, &names, surroundings.unix_ms())?;
        let epoch = start.recovered.machine.epoch();
        tracing::info!(%epoch, unfinished = start.unfinished, "recovered from the decision log");
        let counters = Arc::new(Counters::default());
        let history = History::new(config.limits.max_history, epoch, surroundings.clone());
        let highest = start.recovered.machine.highest_gtrid();
        let mint = Arc::new(Mint::above(highest, surroundings.clone()));
        let (driver, calls) = Driver::new(Parts {
            recovered: start.recovered,
            log,
            config: config.driver(),
            history: history.clone(),
            counters: Arc::clone(&counters),
            participants: names,
            accepted: config.accepted(),
            surroundings: surroundings.clone(),
        })?;
        let accepting = Arc::new(AtomicBool::new(true));
        let open = Arc::clone(&accepting);
        let handle = Handle::new(calls.clone(), mint, participants.clone(), open);
        let business = Business::new(handle.clone(), start.placement.clone());
        let facts = Facts {
            cluster: config.cluster.clone(),
            epoch,
            settings: loaded.settings.iter().map(setting).collect(),
            surroundings: surroundings.clone(),
            placement: start.placement,
        };
        let (calls_of, known, counted) = (handle.clone(), history.clone(), Arc::clone(&counters));
        let transactions = TransactionGateway::new(calls_of, known, counted, epoch);
        let open = Arc::clone(&accepting);
        let admin = AdminGateway::new(handle.clone(), history, counters, facts, open);
        let (routes, health) = routes(
            transactions,
            OutcomeGateway::new(handle.clone(), epoch),
            BankGateway::new(business.clone()),
            InventoryGateway::new(business),
            admin,
        )
        .await?;
        let expected = Expected {
            cluster: config.cluster.as_str().into(),
            epoch,
            surroundings,
        };
        let peers = participants.all().iter();
        let links = peers.map(|peer| (Arc::clone(peer), expected.clone()));
        Ok(Self {
            driver,
            handle,
            routes,
            links: links.collect(),
            calls,
            accepting,
            health,
            drain_timeout: Duration::from_secs(config.drain_timeout_s),
            local: None,
        })
    }

    /// Serves what comes in until `signal`, then drains: no new transactions, an end for those
    /// that run.
    pub async fn run<I, IO, E>(self, incoming: I, signal: CancellationToken) -> anyhow::Result<()>
    where
        I: Stream<Item = Result<IO, E>> + Send + 'static,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        IO::ConnectInfo: Clone + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        reach(CrashPoint::CoordinatorServeBefore);
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        let driver_stop = stop.clone();
        let driver = self.driver;
        tasks.spawn("driver", async move { Ok(driver.run(driver_stop).await?) });
        for (peer, expected) in self.links {
            let link = run_link(peer, expected, self.calls.clone(), stop.clone());
            tasks.spawn("link", async move {
                link.await;
                Ok(())
            });
        }
        if let Some(local) = self.local {
            let server = serve::server(restate).add_routes(self.routes.clone());
            let serving =
                server.serve_with_incoming_shutdown(local, stop.clone().cancelled_owned());
            tasks.spawn("gateway's socket", async move { Ok(serving.await?) });
        }
        let server = serve::server(restate).add_routes(self.routes);
        let serving = server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tasks.spawn("gateway", async move { Ok(serving.await?) });
        let (handle, accepting, bound) = (self.handle, self.accepting, self.drain_timeout);
        let health = self.health;
        let drained = stop.clone();
        tasks.spawn("drain", async move {
            tokio::select! {
                biased;
                () = drained.cancelled() => return Ok(()),
                () = signal.cancelled() => {}
            }
            accepting.store(false, Ordering::Relaxed);
            serve::report(&health, &SERVICES, false).await;
            drain(&handle, bound).await;
            drained.cancel();
            Ok(())
        });
        tracing::info!("the gateway is open");
        tasks.join(END_TIMEOUT).await
    }
}

/// Waits until no transaction is undecided and everybody is told the outcome, no longer than
/// `bound`.
async fn drain(handle: &Handle, bound: Duration) {
    let deadline = Instant::now() + bound;
    let mut look = interval(DRAIN_INTERVAL);
    while Instant::now() < deadline {
        look.tick().await;
        match handle.numbers().await {
            Ok(numbers) if numbers.active == 0 && numbers.awaited == 0 => return,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    tracing::warn!(
        "transactions are left: what is undecided is aborted by presumption, what is decided is \
         finished after the next start"
    );
}

fn setting(setting: &concord_daemon::Setting) -> v1::Setting {
    v1::Setting {
        key: setting.key.clone(),
        value: setting.value.clone(),
        origin: setting.origin.clone(),
        mutable: false,
    }
}

async fn routes(
    transactions: TransactionGateway,
    outcome: OutcomeGateway,
    bank: BankGateway<Handle>,
    inventory: InventoryGateway<Handle>,
    admin: AdminGateway,
) -> anyhow::Result<(Routes, HealthReporter)> {
    macro_rules! limited {
        ($service:expr) => {
            $service
                .max_decoding_message_size(REQUEST_BYTES_MAX)
                .max_encoding_message_size(RESPONSE_BYTES_MAX)
        };
    }
    let (reporter, health) = tonic_health::server::health_reporter();
    serve::report(&reporter, &SERVICES, true).await;
    let mut routes = Routes::builder();
    routes
        .add_service(health)
        .add_service(serve::reflection_v1(v1::FILE_DESCRIPTOR_SET, &SERVICES)?)
        .add_service(serve::reflection_v1alpha(
            v1::FILE_DESCRIPTOR_SET,
            &SERVICES,
        )?)
        .add_service(limited!(TransactionServiceServer::new(transactions)))
        .add_service(limited!(OutcomeServiceServer::new(outcome)))
        .add_service(limited!(BankServiceServer::new(bank)))
        .add_service(limited!(InventoryServiceServer::new(inventory)))
        .add_service(limited!(AdminServiceServer::new(admin)));
    Ok((routes.routes(), reporter))
}
