//! The participant put together: driver, background tasks, gRPC server, readiness, and a bounded
//! end.
//!
//! It owns the order in which things start and stop. It refuses to choose: the resource manager,
//! the way to the coordinator and the listener are given to it, so that a test or a simulated
//! network can give others.

use std::sync::Arc;
use std::time::Duration;

use concord_daemon::serve;
use concord_proto::local::LocalIncoming;
use concord_proto::v1::participant_server::ParticipantServer;
use concord_proto::v1::{self, participant_server};
use futures::Stream;
use futures::future::{OptionFuture, try_join};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::transport::server::Connected;
use tonic_health::server::HealthReporter;

use crate::driver::{Driver, Handle, Settings, Wishes};
use crate::link::Links;
use crate::resource::ResourceManager;
use crate::rpc::{Identity, Service};
use crate::{inquiry, prune};

/// Largest message of a coordinator: a frame may hold the work of many branches.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Time for connections to end once everything is answered, in ms.
const LINGER_MS: u64 = 2_000;

/// Services of its own that it offers.
const SERVICES: &[&str] = &[participant_server::SERVICE_NAME];

/// Why a participant ended on its own.
#[derive(Debug, Error)]
pub enum AppError {
    /// The server cannot be offered.
    #[error("the gRPC services cannot be offered")]
    Serve(#[from] serve::ServeError),
    /// The listener or the transport failed.
    #[error("the gRPC server ended")]
    Transport(#[from] tonic::transport::Error),
    /// A part panicked.
    #[error("a part of the participant failed")]
    Part(#[from] JoinError),
    /// A part ended that must not.
    #[error("a part of the participant ended before it was asked to")]
    Ended,
}

/// A participant that is ready to be served.
#[derive(Debug)]
pub struct App<R> {
    identity: Identity,
    rm: Arc<R>,
    driver: Driver<R>,
    handle: Handle,
    wishes: Wishes,
    coordinator: Channel,
    local: Option<LocalIncoming>,
}

impl<R: ResourceManager> App<R> {
    /// Puts a participant together. `coordinator` is where it inquires.
    pub fn new(identity: Identity, settings: Settings, rm: Arc<R>, coordinator: Channel) -> Self {
        let (driver, handle, wishes) = Driver::new(rm.clone(), settings);
        Self {
            identity,
            rm,
            driver,
            handle,
            wishes,
            coordinator,
            local: None,
        }
    }

    /// Serves on a unix socket as well.
    #[must_use]
    pub fn also_on(self, local: LocalIncoming) -> Self {
        Self {
            local: Some(local),
            ..self
        }
    }

    /// Serves until `stop`, or until a part fails. After `stop` no new branch is taken, and what
    /// runs may end within `drain`.
    pub async fn serve<I, IO, E>(
        self,
        incoming: I,
        stop: CancellationToken,
        drain: Duration,
    ) -> Result<(), AppError>
    where
        I: Stream<Item = Result<IO, E>> + Send + 'static,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        IO::ConnectInfo: Clone + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let (reporter, health) = tonic_health::server::health_reporter();
        report(&reporter, false).await;
        let (open, is_open) = watch::channel(false);
        let links = Links::default();
        let service = Service {
            identity: self.identity.clone(),
            handle: self.handle.clone(),
            rm: self.rm.clone(),
            links: links.clone(),
            open: is_open,
        };
        let routes = Routes::new(health)
            .add_service(participant_server(service))
            .add_service(serve::reflection_v1(v1::FILE_DESCRIPTOR_SET, SERVICES)?)
            .add_service(serve::reflection_v1alpha(
                v1::FILE_DESCRIPTOR_SET,
                SERVICES,
            )?);

        let (closed, cut) = (CancellationToken::new(), CancellationToken::new());
        let local = self.local.map(|local| {
            serve::server(concord_proto::transport::restate)
                .add_routes(routes.clone())
                .serve_with_incoming_shutdown(local, closed.clone().cancelled_owned())
        });
        let server = serve::server(concord_proto::transport::restate)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, closed.clone().cancelled_owned());
        let server = async move {
            let local = async { OptionFuture::from(local).await.unwrap_or(Ok(())) };
            try_join(server, local).await.map(|((), ())| ())
        };
        let mut background = JoinSet::new();
        let (rm, handle) = (self.rm.clone(), self.handle.clone());
        background.spawn(readiness(rm, handle, reporter, open, stop.clone()));
        let (name, handle) = (self.identity.name, self.handle.clone());
        let inquire = self.wishes.inquire;
        background.spawn(inquiry::run(
            self.coordinator,
            name,
            handle,
            inquire,
            cut.clone(),
        ));
        background.spawn(prune::run(self.rm.clone(), self.wishes.prune, cut.clone()));
        let running = Running {
            driver: tokio::spawn(self.driver.run(cut.clone())),
            server: tokio::spawn(server),
            background,
            links,
            cut,
            closed,
        };
        let ended = running.until(stop, drain, &self.handle).await;
        self.rm.stop().await;
        ended
    }
}

/// The parts of a participant that runs.
struct Running {
    driver: JoinHandle<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    background: JoinSet<()>,
    links: Links,
    /// Cuts off the driver and the background tasks.
    cut: CancellationToken,
    /// Ends the connections.
    closed: CancellationToken,
}

impl Running {
    /// Waits for `stop` or for a part that fails, then ends all parts in order: what runs, then
    /// the driver, then the links, then the connections.
    async fn until(
        mut self,
        stop: CancellationToken,
        drain: Duration,
        handle: &Handle,
    ) -> Result<(), AppError> {
        let mut driver_runs = true;
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = &mut self.driver => {
                driver_runs = false;
                Err(ended.map_or_else(AppError::from, |()| AppError::Ended))
            }
            ended = &mut self.server => Err(match ended {
                Ok(Ok(())) => AppError::Ended,
                Ok(Err(error)) => error.into(),
                Err(error) => error.into(),
            }),
        };
        stop.cancel();
        if tokio::time::timeout(drain, handle.drain()).await.is_err() {
            tracing::warn!(
                ?drain,
                "not everything ended in time; what is left is cut off"
            );
        }
        self.cut.cancel();
        if driver_runs {
            self.driver.await?;
        }
        while let Some(part) = self.background.join_next().await {
            part?;
        }
        self.links.stop().await;
        self.closed.cancel();
        let linger = Duration::from_millis(LINGER_MS);
        if !self.server.is_finished() {
            let closing = tokio::time::timeout(linger, &mut self.server);
            if closing.await.is_err() {
                self.server.abort();
            }
        }
        ended
    }
}

fn participant_server<R: ResourceManager>(service: Service<R>) -> ParticipantServer<Service<R>> {
    ParticipantServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

async fn report(reporter: &HealthReporter, serving: bool) {
    serve::report(reporter, SERVICES, serving).await;
}

/// Says SERVING exactly while votes can be given.
async fn readiness<R: ResourceManager>(
    rm: Arc<R>,
    handle: Handle,
    reporter: HealthReporter,
    open: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let (mut health, mut loaded) = (rm.health(), handle.loaded());
    let mut before = None;
    while !stop.is_cancelled() {
        let now = health.borrow_and_update().clone();
        let ready = *loaded.borrow_and_update();
        open.send_replace(ready);
        let can_vote = now.can_vote() && ready;
        report(&reporter, can_vote).await;
        // How a server that is away cannot be reached may change; that it is away does not.
        let problems = if now.reachable {
            now.problems
        } else {
            Vec::new()
        };
        let state = (can_vote, now.reachable, problems);
        if before.as_ref() != Some(&state) {
            tell(&state.2, can_vote, now.reachable, &now.server_version);
            before = Some(state);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Ok(()) = health.changed() => {}
            Ok(()) = loaded.changed() => {}
        }
    }
    open.send_replace(false);
    report(&reporter, false).await;
}

fn tell(problems: &[concord_core::reason::Reason], can_vote: bool, reachable: bool, version: &str) {
    if can_vote {
        tracing::info!(server = version, "ready to vote");
    } else if reachable {
        for problem in problems {
            tracing::error!(%problem, "no vote can be given until this is mended");
        }
    } else {
        tracing::warn!("the server cannot be reached");
    }
}
