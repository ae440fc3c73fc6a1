//! Listeners, and what every gRPC server of Concord has: health, reflection, limits.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use concord_proto::local::LocalIncoming;
use http::Response;
use thiserror::Error;
use tokio::net::TcpListener;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::layer::util::{Identity, Stack};
use tower::util::MapResponseLayer;

/// Silence on a connection after which it is probed, and time for the answer: a client that
/// vanished without a word is noticed after both.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one connection at a time. Ten thousand waiting calls may share one.
const STREAMS_MAX: u32 = 20_000;
/// Bytes of headers of one request.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

/// Services that every server offers beside its own.
const BESIDE: &[&str] = &[
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Why a server cannot be offered.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}; another process may have it. Change {setting}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The setting that chooses it.
        setting: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The unix socket cannot be made, or another process listens on it.
    #[error(
        "cannot listen on {}: its folder must be there and writable, and nobody else may listen \
         there. Change {setting}",
        path.display()
    )]
    BindUnix {
        /// Its path.
        path: PathBuf,
        /// The setting that chooses it.
        setting: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The descriptors are not descriptors.
    #[error("the reflection service cannot be built")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Binds a listener. Port 0 takes a free one; the bound address is the second part.
pub async fn bind(
    address: SocketAddr,
    setting: &'static str,
) -> Result<(TcpIncoming, SocketAddr), ServeError> {
    let failed = |source| ServeError::Bind {
        address,
        setting,
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((TcpIncoming::from(listener).with_nodelay(Some(true)), bound))
}

/// Binds a unix socket, see [`LocalIncoming::bind`].
pub async fn bind_unix(path: &Path, setting: &'static str) -> Result<LocalIncoming, ServeError> {
    let bound = LocalIncoming::bind(path).await;
    bound.map_err(|source| ServeError::BindUnix {
        path: path.to_owned(),
        setting,
        source,
    })
}

/// Says a refusal of the transport in the daemon's own words; none when it is right as it is.
pub type Restate = fn(&Status) -> Option<Status>;

/// A layer over all services of a server.
type Over<F> = Stack<MapResponseLayer<F>, Identity>;

/// A server with the limits that all have. What the transport refuses on its own goes through
/// `restate`, because a caller looks for a reason whoever refused.
pub fn server(
    restate: Restate,
) -> Server<Over<impl Fn(Response<Body>) -> Response<Body> + Clone + Send + Sync + 'static>> {
    let restated = move |response: Response<Body>| {
        let refusal = response.extensions().get::<Status>();
        match refusal.and_then(restate) {
            Some(status) => status.into_http(),
            None => response,
        }
    };
    Server::builder()
        .layer(MapResponseLayer::new(restated))
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(Some(STREAMS_MAX))
        .http2_max_header_list_size(Some(HEADERS_BYTES_MAX))
}

/// The reflection service in the version that current clients ask for.
pub fn reflection_v1(
    descriptors: &'static [u8],
    services: &[&str],
) -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<
        impl tonic_reflection::server::v1::ServerReflection,
    >,
    ServeError,
> {
    Ok(reflection(descriptors, services).build_v1()?)
}

/// The reflection service in the version that older clients ask for.
pub fn reflection_v1alpha(
    descriptors: &'static [u8],
    services: &[&str],
) -> Result<
    tonic_reflection::server::v1alpha::ServerReflectionServer<
        impl tonic_reflection::server::v1alpha::ServerReflection,
    >,
    ServeError,
> {
    Ok(reflection(descriptors, services).build_v1alpha()?)
}

/// Lists what is served and nothing else: a client that knows only the address believes the list.
/// The types of error details are there too, so that it can read those.
fn reflection(
    descriptors: &'static [u8],
    services: &[&str],
) -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(descriptors)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    services
        .iter()
        .chain(BESIDE)
        .fold(builder, |builder, name| builder.with_service_name(*name))
}

/// Tells whoever asks for the health of these services, or of the whole daemon.
pub async fn report(reporter: &HealthReporter, services: &[&str], serving: bool) {
    let status = if serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    for service in services.iter().copied().chain([""]) {
        reporter.set_service_status(service, status).await;
    }
}
