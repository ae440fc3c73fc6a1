//! Deleting ledger rows that nobody can ask for any more.
//!
//! One task deletes, in the resource manager's small batches, up to the horizon that the machine
//! made durable. Rows that stay a while longer cost a little space and nothing else.

use std::sync::Arc;
use std::time::Duration;

use concord_core::id::Gtrid;
use concord_daemon::crash::{CrashPoint, reach};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::resource::ResourceManager;

/// Pause after a failure, in ms: pruning is never urgent.
const PAUSE_MS: u64 = 30_000;
/// How long a row with a request id stays behind the horizon: 30 days. So long a retry is known for
/// what it is, whatever the coordinator remembers.
const REQUESTS_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Deletes up to each new horizon until the driver ends, or until `stop`.
pub async fn run<R: ResourceManager>(
    rm: Arc<R>,
    mut horizon: watch::Receiver<Gtrid>,
    stop: CancellationToken,
) {
    while let Some(Ok(())) = stop.run_until_cancelled(horizon.changed()).await {
        let below = *horizon.borrow_and_update();
        if below == Gtrid::MIN {
            continue;
        }
        let pruned = stop.run_until_cancelled(prune(&*rm, below)).await;
        if let Some(rows @ 1..) = pruned {
            tracing::debug!(rows, %below, "deleted ledger rows");
        }
    }
}

async fn prune<R: ResourceManager>(rm: &R, below: Gtrid) -> u64 {
    let mut deleted = 0;
    loop {
        reach(CrashPoint::ParticipantPruneBefore);
        let pruned = rm.prune(below, REQUESTS_KEPT).await;
        reach(CrashPoint::ParticipantPruneAfter);
        match pruned {
            Ok(0) => return deleted,
            Ok(rows) => deleted += rows,
            Err(reason) => {
                tracing::debug!(%reason, "ledger rows could not be deleted; later");
                tokio::time::sleep(Duration::from_millis(PAUSE_MS)).await;
            }
        }
    }
}
