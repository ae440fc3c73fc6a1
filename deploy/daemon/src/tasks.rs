//! The tasks of a process: named, joined, and none of them may end unnoticed.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The main tasks of a process. When one ends before it was asked to, the process ends.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet; `stop` asks them to end.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            set: JoinSet::new(),
            stop,
        }
    }

    /// Starts one.
    pub fn spawn<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits until a stop is asked for or a task ends, then for the others, but no longer than
    /// `bound`. A task that fails ends everything at once: a coordinator whose log failed must not
    /// say another word.
    pub async fn join(mut self, bound: Duration) -> anyhow::Result<()> {
        let mut result = Ok(());
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            Some(ended) = self.set.join_next() => {
                outcome(ended)?;
                if !self.stop.is_cancelled() {
                    result = Err(anyhow::anyhow!("a main task ended before it was asked to"));
                }
            }
        }
        self.stop.cancel();
        let rest = async {
            while let Some(ended) = self.set.join_next().await {
                let ended = outcome(ended);
                if result.is_ok() {
                    result = ended;
                }
            }
        };
        if tokio::time::timeout(bound, rest).await.is_err() {
            tracing::warn!(
                ?bound,
                "not everything ended in time; what is left is cut off"
            );
        }
        result
    }
}

fn outcome(
    ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>,
) -> anyhow::Result<()> {
    match ended {
        Ok((_, Ok(()))) => Ok(()),
        Ok((name, Err(error))) => Err(error.context(format!("task {name} failed"))),
        Err(error) => Err(error.into()),
    }
}

/// Asks for a stop at the first SIGTERM or SIGINT, and ends the process at the second.
pub fn stop_on_signal(stop: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        stop.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("second signal: ending at once");
        std::process::exit(130);
    });
    Ok(())
}
