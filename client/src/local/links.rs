//! Waits until the coordinator has its link to every participant. Until then it refuses their
//! work, so that a cluster whose processes are all ready may still refuse the first payment.

use std::time::Duration;

use concord_proto::convert::link::reason;
use tokio::time::{Instant, sleep};

use crate::{Client, RetryPolicy};

/// Links are up within this time; a participant that still has none is refused its link, or cannot
/// be reached, and waiting does not mend that.
const LINKS_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Returns when all links are up, or in the end which one is missing, and why.
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
    let Some(away) = listed.into_iter().find(|info| !info.connected) else {
        return Ok(());
    };
    let why = away
        .reason
        .as_ref()
        .map(|told| format!(": {}", reason(told)));
    let why = why.unwrap_or_default();
    Err(format!(
        "the coordinator has no link to participant {}{why}",
        away.name
    ))
}
