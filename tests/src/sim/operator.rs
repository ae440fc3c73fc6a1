//! An operator who resolves branches through the coordinator, without force.
//!
//! Whatever the moment of such an order, it must not break anything: the judges know nothing of
//! it, and excuse nothing.

use std::time::Duration;

use concord_core::id::BranchId;
use concord_proto::v1;
use concord_proto::v1::admin_service_client::AdminServiceClient;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use super::client::participant;
use super::trace::Trace;

/// Longest time for one order.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// The branch.
    pub branch: BranchId,
    /// Its server.
    pub place: usize,
    /// By commit.
    pub commit: bool,
}

/// Carries out orders, all at once if need be.
pub async fn run(mut told: mpsc::UnboundedReceiver<Order>, channel: Channel, trace: Trace) {
    while let Some(order) = told.recv().await {
        tokio::spawn(carry_out(order, channel.clone(), trace.clone()));
    }
}

async fn carry_out(order: Order, channel: Channel, trace: Trace) {
    let resolution = if order.commit {
        v1::Resolution::Commit
    } else {
        v1::Resolution::Abort
    };
    let request = v1::ResolveBranchRequest {
        gtrid: order.branch.gtrid.to_string(),
        bqual: order.branch.bqual.0,
        participant: participant(order.place),
        resolution: resolution.into(),
        reason: "the simulation's operator".to_owned(),
        force: false,
    };
    let note = |what: std::fmt::Arguments<'_>| trace.note("op", Some(order.branch.gtrid), what);
    note(format_args!("orders {resolution:?} of {}", order.branch));
    let mut client = AdminServiceClient::new(channel);
    match tokio::time::timeout(PATIENCE, client.resolve_branch(request)).await {
        Err(_) => note(format_args!("does not know")),
        Ok(Ok(response)) => note(format_args!("is told {:?}", response.into_inner())),
        Ok(Err(status)) => note(format_args!(
            "is told {}: {}",
            status.code(),
            status.message()
        )),
    }
}
