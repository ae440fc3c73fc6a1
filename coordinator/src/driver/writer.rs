//! Who writes the log: takes batches, makes each durable, says so.
//!
//! It is a thread (in a simulation, a task), so that a slow disk holds up nothing else. One batch
//! is under way at a time; what comes in meanwhile is the next one. That is group commit. A batch
//! that has nothing beside it to be held up is written at once by the driver itself: to wake up a
//! thread and to be woken by it takes as long as a fast disk.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use concord_core::id::Gtrid;
use concord_core::record::Record;
use concord_daemon::crash::{CrashPoint, reach};
use tokio::sync::mpsc;

use crate::log::{DecisionLog, LogError, LogStats};
use crate::surroundings::Surroundings;

/// The driver writes by itself only while the disk is faster than this.
const QUICK: Duration = Duration::from_millis(1);

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
    /// How long it took.
    took: Duration,
}

/// The driver's end.
pub struct Writer {
    batches: mpsc::UnboundedSender<Batch>,
    results: mpsc::UnboundedReceiver<Result<Written, LogError>>,
    /// The log, while the driver may write by itself; not in a simulation, where writing takes
    /// simulated time.
    own: Option<Arc<Mutex<dyn DecisionLog>>>,
    /// How long the last batch took.
    took: Duration,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("took", &self.took)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Starts the thread. It ends when the writer is dropped, or at the first failure.
    pub fn start(
        log: impl DecisionLog,
        surroundings: &Arc<dyn Surroundings>,
    ) -> std::io::Result<Self> {
        let (batches, mut inbox) = mpsc::unbounded_channel::<Batch>();
        let (outbox, results) = mpsc::unbounded_channel();
        let log = Arc::new(Mutex::new(log));
        let mut own: Option<Arc<Mutex<dyn DecisionLog>>> = None;
        if surroundings.disk_pause().is_none() {
            own = Some(log.clone());
            std::thread::Builder::new()
                .name("decision-log".to_owned())
                .spawn(move || {
                    while let Some(batch) = inbox.blocking_recv()
                        && tell(&outbox, attempt(&*log, &batch))
                    {}
                })?;
        } else {
            let surroundings = Arc::clone(surroundings);
            let rest = move || tokio::time::sleep(surroundings.disk_pause().unwrap_or_default());
            tokio::spawn(async move {
                while let Some(batch) = inbox.recv().await {
                    rest().await;
                    let result = attempt(&*log, &batch);
                    rest().await;
                    if !tell(&outbox, result) {
                        return;
                    }
                }
            });
        }
        Ok(Self {
            batches,
            results,
            own,
            took: Duration::MAX,
        })
    }

    /// Hands a batch over; its result comes from [`Writer::written`]. False when the thread ended.
    pub fn write(&self, batch: Batch) -> bool {
        self.batches.send(batch).is_ok()
    }

    /// Writes a batch while the caller waits, if the disk has been quick; else gives it back.
    /// Nothing may be under way. After an error nothing may be written any more.
    pub fn write_now(&mut self, batch: Batch) -> Result<Result<Written, LogError>, Batch> {
        match &self.own {
            Some(log) if self.took < QUICK => {
                let result = attempt(&**log, &batch);
                self.note(&result);
                Ok(result)
            }
            _ => Err(batch),
        }
    }

    /// The next result; None when the thread has ended.
    pub async fn written(&mut self) -> Option<Result<Written, LogError>> {
        let result = self.results.recv().await?;
        self.note(&result);
        Some(result)
    }

    fn note(&mut self, result: &Result<Written, LogError>) {
        self.took = result.as_ref().map_or(Duration::MAX, |done| done.took);
    }
}

fn attempt(log: &Mutex<dyn DecisionLog>, batch: &Batch) -> Result<Written, LogError> {
    // Whoever panicked with the log in hands may have left anything behind.
    let mut log = log.lock().map_err(|_| LogError::Poisoned)?;
    let begun = Instant::now();
    for record in &batch.records {
        reach_around(record, false);
    }
    log.append(&batch.records)?;
    for record in &batch.records {
        reach_around(record, true);
    }
    // After the append: the ends of these transactions may be in this very batch.
    if let Some((gtrids, horizon)) = &batch.forget {
        reach(CrashPoint::CoordinatorForgetBefore);
        log.forget(gtrids, *horizon)?;
        reach(CrashPoint::CoordinatorForgetAfter);
    }
    Ok(Written {
        upto: batch.upto,
        stats: log.stats(),
        took: begun.elapsed(),
    })
}

/// False: nothing more may be written. After a failed write or fsync nothing says what is on the
/// disk: a retried fsync proves nothing (the kernel may have dropped the dirty pages and cleared
/// the error). The log is not touched again.
fn tell(
    outbox: &mpsc::UnboundedSender<Result<Written, LogError>>,
    result: Result<Written, LogError>,
) -> bool {
    let failed = result.is_err();
    outbox.send(result).is_ok() && !failed
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
