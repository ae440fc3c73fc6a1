//! [`Client`]: one lazily connected channel to a gateway, with its time limits.
//!
//! It owns the channel and the one place where a call is made and timed. It knows no service.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use concord_core::limits::TIMEOUT_DEFAULT_MS;
use concord_proto::local;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Response, Status};

use crate::error::{CallError, ConnectError};
use crate::retry::RetryPolicy;

/// Longest wait for an answer when nothing else is asked for: longer than the default time-out of
/// a transaction (10 s), so that the coordinator's verdict arrives rather than none.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer than a transaction's own time-out its caller waits: the time that the
/// coordinator needs to abort it everywhere and to say so.
const VERDICT_GRACE: Duration = Duration::from_secs(5);
/// Longest wait for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two HTTP/2 pings, so that a peer that vanished without a word is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Largest answer taken, in bytes: a one-shot transaction may return many results of 1 MiB each.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A connection to one coordinator's gateway. Clones share the channel.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    endpoint: Arc<str>,
    call_timeout: Duration,
    retry: RetryPolicy,
    stop: CancellationToken,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint)
            .field("call_timeout", &self.call_timeout)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

/// How to reach a gateway.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    endpoint: String,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    server_name: Option<String>,
    call_timeout: Duration,
    retry: RetryPolicy,
}

impl ClientBuilder {
    /// Trusts the certificates of this PEM file. Without it an `https://` endpoint is refused.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca = Some(path.into());
        self
    }

    /// Shows this certificate to the server; both files are PEM.
    #[must_use]
    pub fn identity_files(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((cert.into(), key.into()));
        self
    }

    /// The name that the server's certificate must carry, when it is not the endpoint's host.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// The longest wait for an answer. A call that carries a transaction waits at least as long as
    /// that transaction may take. Default 30 s.
    #[must_use]
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// How long transient failures are retried. Default: [`RetryPolicy::default`].
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Builds the client. Nothing is sent: the first call connects, and every later one reconnects
    /// when it must. It has to be called within a tokio runtime.
    pub fn build(self) -> Result<Client, ConnectError> {
        let invalid = |source| ConnectError::Endpoint {
            endpoint: self.endpoint.clone(),
            source,
        };
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone()).map_err(invalid)?;
        let scheme = match local::path_of(&self.endpoint) {
            Some(_) => "http".to_owned(),
            None if self.endpoint.starts_with(local::SCHEME) => String::new(),
            None => endpoint.uri().scheme_str().unwrap_or_default().to_owned(),
        };
        if scheme != "http" && scheme != "https" || endpoint.uri().host().is_none() {
            return Err(ConnectError::Scheme {
                endpoint: self.endpoint,
            });
        }
        if scheme == "https" {
            endpoint = endpoint.tls_config(self.tls()?).map_err(invalid)?;
        } else if self.ca.is_some() || self.identity.is_some() {
            return Err(ConnectError::PlainEndpoint {
                endpoint: self.endpoint,
            });
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let channel = local::connect_lazy(&self.endpoint, &endpoint);
        Ok(Client {
            channel,
            endpoint: self.endpoint.into(),
            call_timeout: self.call_timeout,
            retry: self.retry,
            stop: CancellationToken::new(),
        })
    }

    fn tls(&self) -> Result<ClientTlsConfig, ConnectError> {
        let Some(ca) = &self.ca else {
            return Err(ConnectError::NoCa {
                endpoint: self.endpoint.clone(),
            });
        };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        if let Some((cert, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        Ok(tls)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|source| ConnectError::File {
        path: path.to_owned(),
        source,
    })
}

impl Client {
    /// A client of the gateway at `endpoint`, e.g. `http://127.0.0.1:7400`, or
    /// `unix:/run/concord/gateway.sock` on the same host, with the defaults.
    /// Nothing is sent before the first call. It has to be called within a tokio runtime.
    pub fn connect(endpoint: impl Into<String>) -> Result<Self, ConnectError> {
        Self::builder(endpoint).build()
    }

    /// A client with other settings, e.g. TLS.
    pub fn builder(endpoint: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            endpoint: endpoint.into(),
            ca: None,
            identity: None,
            server_name: None,
            call_timeout: CALL_TIMEOUT,
            retry: RetryPolicy::default(),
        }
    }

    /// The same channel with another retry policy.
    #[must_use]
    pub fn with_retry(&self, policy: RetryPolicy) -> Self {
        Self {
            retry: policy,
            ..self.clone()
        }
    }

    /// The same channel, whose retries end when `stop` is cancelled. A call that was sent is still
    /// waited for: cutting it off would only make its outcome unknown.
    #[must_use]
    pub fn with_stop(&self, stop: CancellationToken) -> Self {
        Self {
            stop,
            ..self.clone()
        }
    }

    /// The address that it was built for.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn retry_policy(&self) -> RetryPolicy {
        self.retry
    }

    pub(crate) fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    pub(crate) fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    /// How long a call waits that carries a transaction with this time-out (0: the server's
    /// default).
    pub(crate) fn wait_for(&self, timeout_ms: u32) -> Duration {
        let timeout_ms = match timeout_ms {
            0 => TIMEOUT_DEFAULT_MS,
            own => own,
        };
        let own = Duration::from_millis(u64::from(timeout_ms)) + VERDICT_GRACE;
        self.call_timeout.max(own)
    }

    /// Makes one call, once, and waits at most `within`.
    pub(crate) async fn once<T>(
        &self,
        within: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(within, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CallError::from_status(&status, &self.endpoint)),
            Err(_) => Err(CallError::TimedOut {
                endpoint: self.endpoint.to_string(),
                within,
            }),
        }
    }
}
