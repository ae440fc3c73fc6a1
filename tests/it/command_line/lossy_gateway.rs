//! A way to the gateway on which answers are lost, after the real gateway has given them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use concord_client::v1::transaction_service_server::SERVICE_NAME;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Server};
use tower::{Service, ServiceExt as _};

/// Passes calls of the transaction service on, and loses the answers of one method.
#[derive(Clone)]
struct LossyGateway {
    to: Channel,
    method: &'static str,
}

/// Serves for as long as the runtime does; its URL.
pub async fn loses_answers_of(method: &'static str, gateway: String) -> anyhow::Result<String> {
    let to = Endpoint::from_shared(gateway)?.connect_lazy();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let server = Server::builder()
        .add_service(LossyGateway { to, method })
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    Ok(url)
}

impl NamedService for LossyGateway {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for LossyGateway {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let to = self.to.clone();
        let lost = request.uri().path().ends_with(self.method);
        Box::pin(async move {
            Ok(match to.oneshot(request).await {
                Ok(_) if lost => Status::unavailable("the test lost this answer").into_http(),
                Ok(answer) => answer,
                Err(error) => Status::from_error(error.into()).into_http(),
            })
        })
    }
}
