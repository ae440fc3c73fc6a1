//! OutcomeService: what participants in doubt are told.

use concord_core::id::Epoch;
use concord_core::message::Decision;
use concord_proto::convert::outcome::inquire;
use concord_proto::status::status;
use concord_proto::v1;
use concord_proto::v1::outcome_service_server::OutcomeService;
use futures::future::try_join_all;
use tonic::{Request, Response, Status};

use crate::handle::Handle;

/// OutcomeService.
#[derive(Clone, Debug)]
pub struct OutcomeGateway {
    handle: Handle,
    epoch: Epoch,
}

impl OutcomeGateway {
    /// The service on a driver.
    pub fn new(handle: Handle, epoch: Epoch) -> Self {
        Self { handle, epoch }
    }
}

#[tonic::async_trait]
impl OutcomeService for OutcomeGateway {
    async fn inquire(
        &self,
        request: Request<v1::InquireRequest>,
    ) -> Result<Response<v1::InquireResponse>, Status> {
        let inquiry = inquire(request.into_inner())?;
        let from = &inquiry.participant;
        let answers = inquiry
            .branches
            .iter()
            .map(|b| self.handle.inquire(from.clone(), *b));
        let decisions: Vec<Decision> = try_join_all(answers)
            .await
            .map_err(|reason| status(&reason))?;
        Ok(Response::new(v1::InquireResponse {
            epoch: self.epoch.0,
            decisions: decisions
                .into_iter()
                .map(|d| v1::Decision::from(d).into())
                .collect(),
            reason: None,
        }))
    }
}
