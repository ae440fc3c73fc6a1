//! Reading, at the start, what a former life left: in the ledger schema, and prepared.

use std::sync::Arc;
use std::time::Duration;

use concord_core::id::BranchId;
use concord_core::reason::Reason;
use concord_daemon::crash::{CrashPoint, reach};

use crate::resource::{Durable, ResourceManager};

/// Pause between attempts, in ms.
const LOAD_PAUSE_MS: u64 = 500;

/// Tries until it succeeds, at once when the server's health changes.
pub(super) async fn load<R: ResourceManager>(rm: Arc<R>) -> (Durable, Vec<BranchId>) {
    let mut health = rm.health();
    let mut before = None;
    loop {
        let read = async {
            reach(CrashPoint::ParticipantLoadBefore);
            let durable = rm.load().await?;
            reach(CrashPoint::ParticipantLoadAfter);
            let listed = rm.recover().await?.ours;
            reach(CrashPoint::ParticipantRecoverAfter);
            Ok::<_, Reason>((durable, listed))
        };
        match read.await {
            Ok((durable, listed)) => {
                for damage in &durable.damage {
                    tracing::error!(
                        id = damage.id, gtrid = %damage.gtrid, bqual = damage.bqual,
                        "heuristic damage that nobody has acknowledged yet"
                    );
                }
                return (durable, listed);
            }
            Err(reason) if before.as_ref() == Some(&reason.code) => {}
            Err(reason) => {
                tracing::warn!(%reason, "the ledger cannot be read yet; trying until it can");
                before = Some(reason.code);
            }
        }
        let pause = tokio::time::sleep(Duration::from_millis(LOAD_PAUSE_MS));
        tokio::select! {
            biased;
            () = pause => {}
            Ok(()) = health.changed() => {}
        }
    }
}
