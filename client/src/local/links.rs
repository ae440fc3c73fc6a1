//! Waits until the coordinator has its link to every participant, and knows that it votes. Until
//! then it refuses their work, so that a cluster whose processes are all ready may still refuse the
//! first payment, or says of one that is ready that it is not.

use std::time::Duration;

use concord_proto::convert::link::reason;
use concord_proto::v1;
use tokio::time::{Instant, sleep};

use crate::{Client, RetryPolicy};

/// Links are up within this time; a participant that still has none is refused its link, or cannot
/// be reached, and waiting does not mend that.
const LINKS_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Returns when all links are up and all participants vote, or in the end which does not, and why.
pub async fn wait(gateway: &str) -> Result<(), String> {
    let client = Client::builder(gateway)
        .retry(RetryPolicy::none())
        .call_timeout(LINKS_TIMEOUT)
        .build()
        .map_err(|error| error.to_string())?;
    let deadline = Instant::now() + LINKS_TIMEOUT;
    loop {
        let missing = missing(&client).await;
        if missing.is_ok() || Instant::now() >= deadline {
            return missing;
        }
        sleep(LOOK).await;
    }
}

async fn missing(client: &Client) -> Result<(), String> {
    let listed = client.list_participants().await;
    let listed = listed.map_err(|error| format!("the coordinator does not answer: {error}"))?;
    listed.iter().try_for_each(votes)
}

/// Why the coordinator cannot have a vote of this participant, as far as it knows.
fn votes(info: &v1::ParticipantInfo) -> Result<(), String> {
    let name = &info.name;
    let (what, why) = match &info.status {
        _ if !info.connected => ("the coordinator has no link to", info.reason.as_ref()),
        Some(status) if status.can_vote => return Ok(()),
        status => {
            let why = status.as_ref().and_then(|status| status.problems.first());
            ("the coordinator gets no vote of", why)
        }
    };
    let why = why.map(|told| format!(": {}", reason(told)));
    Err(format!(
        "{what} participant {name}{}",
        why.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(connected: bool, status: Option<v1::GetStatusResponse>) -> v1::ParticipantInfo {
        v1::ParticipantInfo {
            name: "p1".to_owned(),
            connected,
            status,
            ..v1::ParticipantInfo::default()
        }
    }

    #[test]
    fn whoever_votes_has_a_link_and_says_so() {
        let status = |can_vote, message: &str| {
            let problem = v1::Reason {
                code: "SHUTTING_DOWN".to_owned(),
                message: message.to_owned(),
            };
            Some(v1::GetStatusResponse {
                can_vote,
                problems: if can_vote { vec![] } else { vec![problem] },
                ..v1::GetStatusResponse::default()
            })
        };
        assert_eq!(votes(&info(true, status(true, ""))), Ok(()));
        for (connected, status, words) in [
            (false, status(true, ""), "no link to participant p1"),
            (true, status(false, "it starts"), "it starts"),
            (true, None, "no vote of participant p1"),
        ] {
            let told = votes(&info(connected, status)).unwrap_err();
            assert!(told.contains(words), "{told}");
        }
    }
}
