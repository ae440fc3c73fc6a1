//! A simulated machine: a runtime of its own with a clock of its own, which can be run for a while,
//! paused, killed and started again.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What a process ended with.
pub type Ended = Result<(), String>;

#[derive(Debug)]
struct Process {
    runtime: Runtime,
    main: Option<JoinHandle<Ended>>,
    /// Its clock's beginning, and the world's time then.
    began: Instant,
    began_us: u64,
}

/// A machine that has at most one process.
#[derive(Debug, Default)]
pub struct Host {
    process: Option<Process>,
    paused: bool,
    jumps: bool,
}

impl Host {
    /// Starts a process at the world's time `now_us`.
    pub fn start(&mut self, now_us: u64, main: impl Future<Output = Ended> + Send + 'static) {
        // Its timers and nothing else: all that is outside comes through the world.
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            // Without threads and sockets there is nothing that could fail.
            Err(error) => unreachable!("a runtime without I/O: {error}"),
        };
        let began = runtime.block_on(async { Instant::now() });
        let main = Some(runtime.spawn(main));
        self.process = Some(Process {
            runtime,
            main,
            began,
            began_us: now_us,
        });
        (self.paused, self.jumps) = (false, false);
    }

    /// Whether there is a process.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Stops or continues it, as SIGSTOP and SIGCONT do.
    pub fn pause(&mut self, on: bool) {
        self.jumps |= self.paused && !on;
        self.paused = on;
    }

    /// Whether it is stopped by a signal.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Runs the process up to the world's time; what it ended with, if it did.
    pub fn run(&mut self, now_us: u64) -> Option<Ended> {
        if self.paused {
            return None;
        }
        let process = self.process.as_mut()?;
        let until = Duration::from_micros(now_us.saturating_sub(process.began_us));
        let until = process.began + until;
        let jumps = std::mem::take(&mut self.jumps);
        process.runtime.block_on(async {
            if jumps {
                // Its clock went on while it did not: all its timers are late together.
                let late = until.saturating_duration_since(Instant::now());
                tokio::time::advance(late).await;
            }
            tokio::time::sleep_until(until).await;
        });
        if !process.main.as_ref().is_some_and(JoinHandle::is_finished) {
            return None;
        }
        let main = process.main.take()?;
        let ended = process.runtime.block_on(main);
        Some(ended.unwrap_or_else(|error| Err(format!("it panicked: {error}"))))
    }

    /// Ends the process at once. Its way out of the world must be shut before: its destructors
    /// run.
    pub fn kill(&mut self) {
        self.process = None;
        (self.paused, self.jumps) = (false, false);
    }
}
