//! Signals that ask a command to end: Ctrl-C, `kill`, a terminal that is closed.
//!
//! It refuses to listen to those that whoever started us had us ignore, as `nohup` does, and a
//! shell for what it runs in the background.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use nix::sys::signal::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What is listened to, from the moment that this is made. From then on no such signal ends the
/// process by itself any more.
#[derive(Debug)]
pub(crate) struct Interruption {
    signals: Vec<(Number, Signal)>,
}

impl Interruption {
    /// Begins to listen. A signal that cannot be listened to ends the process, as it does without
    /// us.
    pub(crate) fn listen() -> Self {
        let kinds = [
            (Number::SIGINT, SignalKind::interrupt()),
            (Number::SIGTERM, SignalKind::terminate()),
            (Number::SIGHUP, SignalKind::hangup()),
        ];
        // Once one is listened to, it is not ignored any more.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let heard =
            |(number, kind)| -> io::Result<(Number, Signal)> { Ok((number, signal(kind)?)) };
        let signals = kinds
            .into_iter()
            .filter(|(number, _)| !is_ignored(&status, *number))
            .filter_map(|each| heard(each).ok());
        Self {
            signals: signals.collect(),
        }
    }

    /// The next one's name.
    pub(crate) async fn came(&mut self) -> &'static str {
        poll_fn(|context| {
            for (number, signal) in &mut self.signals {
                if signal.poll_recv(context) == Poll::Ready(Some(())) {
                    return Poll::Ready(number.as_str());
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Whether a process of this `/proc/PID/status` ignores a signal.
fn is_ignored(status: &str, number: Number) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (number as i32 - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read_from_the_mask() {
        let status = "Name:\tconcord\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(status, Number::SIGHUP) && is_ignored(status, Number::SIGPIPE));
        assert!(!is_ignored(status, Number::SIGINT) && !is_ignored(status, Number::SIGTERM));
        assert!(!is_ignored("", Number::SIGHUP));
    }
}
