//! The thread that owns the log (in a simulation, the task): takes batches, makes each durable,
//! says so.
//!
//! One batch is under way at a time; what comes in meanwhile is the next one. That is group commit.

use std::sync::Arc;

use concord_core::id::Gtrid;
use concord_core::record::Record;
use concord_daemon::crash::{CrashPoint, reach};
use tokio::sync::mpsc;

use crate::log::{DecisionLog, LogError, LogStats};
use crate::surroundings::Surroundings;

/// Records that become durable together.
#[derive(Debug, Default)]
pub struct Batch {
    /// In order.
    pub records: Vec<Record>,
    /// Ended transactions to delete, and the horizon that they are below.
    pub forget: Option<(Vec<Gtrid>, Gtrid)>,
    /// Position of the last forced record in it.
    pub upto: u64,
}

/// What came of a batch.
#[derive(Debug)]
pub struct Written {
    /// Everything up to this position is durable.
    pub upto: u64,
    /// The log's size now.
    pub stats: LogStats,
}

/// The driver's end of the thread.
#[derive(Debug)]
pub struct Writer {
    batches: mpsc::UnboundedSender<Batch>,
    results: mpsc::UnboundedReceiver<Result<Written, LogError>>,
}

impl Writer {
    /// Starts the thread. It ends when the writer is dropped, or at the first failure.
    pub fn start(
        log: impl DecisionLog,
        surroundings: &Arc<dyn Surroundings>,
    ) -> std::io::Result<Self> {
        let (batches, mut inbox) = mpsc::unbounded_channel::<Batch>();
        let (outbox, results) = mpsc::unbounded_channel();
        let mut scribe = Scribe { log, outbox };
        if surroundings.disk_pause().is_none() {
            std::thread::Builder::new()
                .name("decision-log".to_owned())
                .spawn(move || {
                    while let Some(batch) = inbox.blocking_recv()
                        && scribe.write(&batch)
                    {}
                })?;
        } else {
            let surroundings = Arc::clone(surroundings);
            let rest = move || tokio::time::sleep(surroundings.disk_pause().unwrap_or_default());
            tokio::spawn(async move {
                while let Some(batch) = inbox.recv().await {
                    rest().await;
                    let result = scribe.attempt(&batch);
                    rest().await;
                    if !scribe.tell(result) {
                        return;
                    }
                }
            });
        }
        Ok(Self { batches, results })
    }

    /// Hands a batch over; its result comes from [`Writer::written`]. False when the thread ended.
    pub fn write(&self, batch: Batch) -> bool {
        self.batches.send(batch).is_ok()
    }

    /// The next result; None when the thread has ended.
    pub async fn written(&mut self) -> Option<Result<Written, LogError>> {
        self.results.recv().await
    }
}

/// Who writes, and tells the driver.
struct Scribe<L> {
    log: L,
    outbox: mpsc::UnboundedSender<Result<Written, LogError>>,
}

impl<L: DecisionLog> Scribe<L> {
    /// False: nothing more may be written.
    fn write(&mut self, batch: &Batch) -> bool {
        let result = self.attempt(batch);
        self.tell(result)
    }

    fn attempt(&mut self, batch: &Batch) -> Result<Written, LogError> {
        for record in &batch.records {
            reach_around(record, false);
        }
        self.log.append(&batch.records)?;
        for record in &batch.records {
            reach_around(record, true);
        }
        // After the append: the ends of these transactions may be in this very batch.
        if let Some((gtrids, horizon)) = &batch.forget {
            reach(CrashPoint::CoordinatorForgetBefore);
            self.log.forget(gtrids, *horizon)?;
            reach(CrashPoint::CoordinatorForgetAfter);
        }
        Ok(Written {
            upto: batch.upto,
            stats: self.log.stats(),
        })
    }

    /// After a failed write or fsync nothing says what is on the disk: a retried fsync proves
    /// nothing (the kernel may have dropped the dirty pages and cleared the error). The log is not
    /// touched again.
    fn tell(&self, result: Result<Written, LogError>) -> bool {
        let failed = result.is_err();
        self.outbox.send(result).is_ok() && !failed
    }
}

/// Before a record is written, and when it is.
fn reach_around(record: &Record, written: bool) {
    let (before, after) = match record {
        Record::Decision { .. } => (
            CrashPoint::CoordinatorDecisionBeforeForce,
            CrashPoint::CoordinatorDecisionAfterForce,
        ),
        Record::OnePhase { .. } => (
            CrashPoint::CoordinatorDelegationBeforeForce,
            CrashPoint::CoordinatorDelegationAfterForce,
        ),
        Record::Refused { .. } => (
            CrashPoint::CoordinatorRefusalBeforeForce,
            CrashPoint::CoordinatorRefusalAfterForce,
        ),
        Record::Heuristic { .. } => (
            CrashPoint::CoordinatorHeuristicBeforeForce,
            CrashPoint::CoordinatorHeuristicAfterForce,
        ),
        Record::End { .. } => (
            CrashPoint::CoordinatorEndBeforeWrite,
            CrashPoint::CoordinatorEndAfterWrite,
        ),
        Record::Horizon(_) => (
            CrashPoint::CoordinatorHorizonBeforeForce,
            CrashPoint::CoordinatorHorizonAfterForce,
        ),
        // The first is written at the start only, and the others carry no promise.
        Record::Epoch(_) | Record::Placement(_) | Record::Incarnation { .. } => return,
    };
    reach(if written { after } else { before });
}
