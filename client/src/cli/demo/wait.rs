//! Waiting for a condition with a deadline, and stopping a process for a moment.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::cli::exit::{Exit, Failure};
use crate::local::process::ProcessId;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Looks again and again until `look` finds something, or `patience` is over.
pub(super) async fn until<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(
                Failure::new(Exit::Other, format!("{what}: not seen within {patience:?}"))
                    .next("look at `concord status` and at the logs in the cluster's folder"),
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A process that is stopped (SIGSTOP) until this is dropped or released. It holds a moment of the
/// protocol still without any help from the daemons.
#[derive(Debug)]
pub(super) struct Frozen(ProcessId);

impl Frozen {
    pub(super) fn new(process: ProcessId) -> Self {
        process.signal(Signal::SIGSTOP);
        Self(process)
    }

    /// Lets it go on.
    pub(super) fn release(self) {
        drop(self);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGCONT);
    }
}
