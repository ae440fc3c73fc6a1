//! Errors of the client: what is wrong with an address, and what became of one call.
//!
//! It owns the judgement whether a failed call can have had an effect, and refuses to be
//! optimistic: whatever is not certain to have had none may have had one.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use concord_core::reason::{Reason, ReasonKind, code};
use concord_proto::status::{connect_failure, with_causes};
use tonic::{Code, Status};

/// A client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The endpoint is not a URI, or its TLS settings are unusable.
    #[error("the endpoint \"{endpoint}\" cannot be used")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What tonic says.
        source: tonic::transport::Error,
    },
    /// The endpoint is not of the form that is understood.
    #[error(
        "the endpoint \"{endpoint}\" must look like http://HOST:PORT, https://HOST:PORT or \
         unix:/ABSOLUTE/PATH"
    )]
    Scheme {
        /// As given.
        endpoint: String,
    },
    /// TLS files were given for an address without TLS.
    #[error("TLS files were given, but the endpoint \"{endpoint}\" is not https://")]
    PlainEndpoint {
        /// As given.
        endpoint: String,
    },
    /// TLS without anything to trust.
    #[error("the endpoint \"{endpoint}\" is https://: name the file of its CA certificate")]
    NoCa {
        /// As given.
        endpoint: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Concord answered, and refused.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: Reason,
        /// The transaction in text form, when there was one.
        gtrid: Option<String>,
    },
    /// No connection could be opened, so nothing was sent.
    #[error("cannot connect to {endpoint}: {message}")]
    NotSent {
        /// The gateway's address.
        endpoint: String,
        /// What the operating system says.
        message: String,
    },
    /// The connection broke after the call was sent, or the peer answered without a reason.
    #[error("the connection to {endpoint} was lost before the answer: {message}")]
    Lost {
        /// The gateway's address.
        endpoint: String,
        /// What the transport says.
        message: String,
    },
    /// No answer came in time.
    #[error("{endpoint} did not answer within {within:?}")]
    TimedOut {
        /// The gateway's address.
        endpoint: String,
        /// The time that was waited.
        within: Duration,
    },
    /// The peer refused the call as such: it does not know it, or does not let us make it.
    #[error("{endpoint} does not serve this call ({code:?}): {message}")]
    NotServed {
        /// The gateway's address.
        endpoint: String,
        /// The gRPC code.
        code: Code,
        /// What the peer says.
        message: String,
    },
}

impl CallError {
    /// Reads a status. `endpoint` is named in messages for people.
    pub fn from_status(status: &Status, endpoint: &str) -> Self {
        let endpoint = endpoint.to_owned();
        if let Some(reason) = concord_proto::status::reason_of(status) {
            let gtrid = concord_proto::status::gtrid_of(status).map(|gtrid| gtrid.to_string());
            return Self::Refused { reason, gtrid };
        }
        if let Some(message) = connect_failure(status) {
            return Self::NotSent { endpoint, message };
        }
        let message = with_sources(status);
        match status.code() {
            Code::Unimplemented
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument => Self::NotServed {
                endpoint,
                code: status.code(),
                message,
            },
            _ => Self::Lost { endpoint, message },
        }
    }

    /// The reason that Concord gave, if it answered.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Refused { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Whether the call is certain to have had no effect.
    pub fn had_no_effect(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => !reason.leaves_outcome_open(),
            Self::NotSent { .. } | Self::NotServed { .. } => true,
            Self::Lost { .. } | Self::TimedOut { .. } => false,
        }
    }

    /// Whether the same call may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => is_transient(reason),
            Self::NotSent { .. } | Self::Lost { .. } | Self::TimedOut { .. } => true,
            Self::NotServed { .. } => false,
        }
    }

    /// Whether the cluster, or a part of it, cannot be reached or cannot work now.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => {
                matches!(
                    reason.kind(),
                    ReasonKind::Unavailable | ReasonKind::Exhausted
                )
            }
            Self::NotSent { .. } | Self::Lost { .. } | Self::TimedOut { .. } => true,
            Self::NotServed { .. } => false,
        }
    }
}

/// Whether the same work may succeed a little later.
pub(crate) fn is_transient(reason: &Reason) -> bool {
    match reason.kind() {
        ReasonKind::Conflict
        | ReasonKind::Unavailable
        | ReasonKind::Deadline
        | ReasonKind::Exhausted => true,
        ReasonKind::Cancelled => &*reason.code == code::CLIENT_GONE,
        ReasonKind::Invalid
        | ReasonKind::Refused
        | ReasonKind::NotFound
        | ReasonKind::Exists
        | ReasonKind::Internal => false,
    }
}

fn with_sources(status: &Status) -> String {
    let message = with_causes(status.message().to_owned(), status.source());
    if message.is_empty() {
        format!("status {:?}", status.code())
    } else {
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_without_a_reason_may_have_had_an_effect() {
        for code in [
            Code::Unavailable,
            Code::Internal,
            Code::DeadlineExceeded,
            Code::Cancelled,
        ] {
            let error = CallError::from_status(&Status::new(code, "x"), "http://h:1");
            assert!(!error.had_no_effect(), "{error}");
            assert!(error.is_transient(), "{error}");
        }
        let error = CallError::from_status(&Status::unimplemented("x"), "http://h:1");
        assert!(error.had_no_effect());
        assert!(!error.is_transient());
    }

    #[test]
    fn heuristic_outcomes_are_not_called_aborted() {
        for code in [
            code::OUTCOME_UNKNOWN,
            code::HEURISTIC_COMMIT,
            code::HEURISTIC_UNKNOWN,
        ] {
            let error = CallError::Refused {
                reason: Reason::new(code, ""),
                gtrid: None,
            };
            assert!(!error.had_no_effect(), "{code}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_known_to_have_sent_nothing() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = crate::Client::connect(address)
            .unwrap()
            .with_retry(crate::RetryPolicy::none());
        let error = client.cluster_status().await.unwrap_err();
        assert!(matches!(error, CallError::NotSent { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_connection_that_is_cut_after_the_call_leaves_the_outcome_open() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let peer = tokio::spawn(async move {
            use tokio::io::AsyncReadExt as _;
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 256];
            // The preface and something of the call; then the peer is gone.
            stream.read_exact(&mut buffer).await.unwrap();
        });
        let client = crate::Client::connect(address)
            .unwrap()
            .with_retry(crate::RetryPolicy::none());
        let outcome = client
            .transfer(crate::v1::TransferRequest {
                from_account_id: "a".repeat(64),
                to_account_id: "b".repeat(64),
                amount: 1,
                memo: "m".repeat(200),
                ..Default::default()
            })
            .await;
        assert!(
            matches!(outcome, crate::Outcome::Unknown { .. }),
            "{outcome:?}"
        );
        peer.await.unwrap();
    }
}
