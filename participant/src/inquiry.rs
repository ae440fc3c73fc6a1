//! Asking the coordinator what became of branches in doubt.
//!
//! One task asks; a newer wish of the driver replaces the one before, so that inquiries never pile
//! up. A coordinator that cannot be reached is asked again after the next sweep: nothing is
//! decided here, ever.

use std::time::Duration;

use concord_core::id::{BranchId, ParticipantName};
use concord_core::limits::INQUIRY_BRANCHES_MAX;
use concord_core::reason::{Reason, code};
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::convert::outcome::{self, Answer, Inquiry};
use concord_proto::v1::outcome_service_client::OutcomeServiceClient;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::driver::Handle;

/// Time for one inquiry, in ms. The coordinator answers from memory; later than this the next
/// sweep asks again.
pub const INQUIRY_TIMEOUT_MS: u64 = 5_000;

/// Asks on the driver's behalf until the driver ends, or until `stop`.
pub async fn run(
    channel: Channel,
    name: ParticipantName,
    handle: Handle,
    mut wanted: watch::Receiver<Vec<BranchId>>,
    stop: CancellationToken,
) {
    let mut client = OutcomeServiceClient::new(channel);
    let mut answered = true;
    while let Some(Ok(())) = stop.run_until_cancelled(wanted.changed()).await {
        let branches = wanted.borrow_and_update().clone();
        for some in branches.chunks(INQUIRY_BRANCHES_MAX) {
            reach(CrashPoint::ParticipantInquiryBefore);
            let asked = ask(&mut client, &name, some);
            let Some(answer) = stop.run_until_cancelled(asked).await else {
                return;
            };
            match answer {
                Ok(answer) => {
                    reach(CrashPoint::ParticipantInquiryAfter);
                    answered = true;
                    let decisions = some.iter().copied().zip(answer.decisions).collect();
                    handle.decided(answer.epoch, decisions).await;
                }
                Err(reason) => {
                    // Once, not at every sweep of a long outage.
                    if std::mem::replace(&mut answered, false) {
                        let in_doubt = branches.len();
                        tracing::warn!(in_doubt, %reason, "the coordinator does not answer");
                    }
                    break;
                }
            }
        }
    }
}

async fn ask(
    client: &mut OutcomeServiceClient<Channel>,
    name: &ParticipantName,
    branches: &[BranchId],
) -> Result<Answer, Reason> {
    let inquiry = Inquiry {
        participant: name.clone(),
        branches: branches.to_vec(),
    };
    let time = Duration::from_millis(INQUIRY_TIMEOUT_MS);
    let request = v1_request(&inquiry);
    match tokio::time::timeout(time, client.inquire(request)).await {
        Ok(Ok(response)) => outcome::answer(response.get_ref(), branches.len()),
        Ok(Err(status)) => {
            let text = format!("{}: {}", status.code(), status.message());
            Err(Reason::new(code::COORDINATOR_DOWN, text))
        }
        Err(_) => {
            let text = format!("no answer within {INQUIRY_TIMEOUT_MS} ms");
            Err(Reason::new(code::COORDINATOR_DOWN, text))
        }
    }
}

fn v1_request(inquiry: &Inquiry) -> concord_proto::v1::InquireRequest {
    inquiry.into()
}
