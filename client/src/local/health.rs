//! Asks a process whether it is ready: a daemon by gRPC health, a server by a query.

use std::fs;
use std::path::Path;
use std::time::Duration;

use sqlx::{ConnectOptions, Connection};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::server::{ACCOUNT, session_options};

/// A process on the same machine that needs longer than this is not ready.
const PROBE_TIMEOUT_MS: u64 = 2_000;

/// True when the daemon at this URL says that it is serving.
pub async fn daemon_serves(url: &str) -> bool {
    let ask = async {
        let timeout = Duration::from_millis(PROBE_TIMEOUT_MS);
        let endpoint = Endpoint::from_shared(url.to_owned())
            .ok()?
            .connect_timeout(timeout);
        let mut client = HealthClient::new(endpoint.connect().await.ok()?);
        let answer = client.check(HealthCheckRequest::default()).await.ok()?;
        Some(answer.into_inner().status() == ServingStatus::Serving)
    };
    within_limit(ask).await
}

/// True when the server behind this socket answers the participant's account.
pub async fn server_answers(socket: &Path, password_file: &Path) -> bool {
    let ask = async {
        let password = fs::read_to_string(password_file).ok()?;
        let options = session_options(socket)
            .username(ACCOUNT)
            .password(password.trim());
        let mut connection = options.connect().await.ok()?;
        let answered = connection.ping().await.is_ok();
        // A lost goodbye harms nobody.
        let _ = connection.close().await;
        Some(answered)
    };
    within_limit(ask).await
}

async fn within_limit(ask: impl Future<Output = Option<bool>>) -> bool {
    let limit = Duration::from_millis(PROBE_TIMEOUT_MS);
    matches!(tokio::time::timeout(limit, ask).await, Ok(Some(true)))
}
