//! When a call is repeated, and when it must not be.
//!
//! An aborted transaction is certain not to have been executed, so it may be sent again. An
//! unknown one is repeated only with a request id, which the coordinator recognises. Once an
//! attempt was unknown, only a commit or a final refusal of Concord's settles the matter: that a
//! later attempt could not be made, or met somebody else, says nothing about the first.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::Instant;

use crate::client::Client;
use crate::error::CallError;
use crate::outcome::Outcome;

/// How long transient failures are retried, with exponential back-off and jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// No attempt is started after this time. Zero: one attempt only.
    pub give_up_after: Duration,
    /// The first pause, at least.
    pub min_delay: Duration,
    /// The longest pause, before jitter.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    /// Five seconds: longer than a supervisor needs to restart a process.
    fn default() -> Self {
        Self::lasting(Duration::from_secs(5))
    }
}

impl RetryPolicy {
    /// One attempt only.
    pub fn none() -> Self {
        Self::lasting(Duration::ZERO)
    }

    /// Retries for this long.
    pub fn lasting(give_up_after: Duration) -> Self {
        Self {
            give_up_after,
            min_delay: Duration::from_millis(50),
            max_delay: Duration::from_secs(2),
        }
    }

    fn delays(self) -> impl Iterator<Item = Duration> {
        ExponentialBuilder::default()
            .with_min_delay(self.min_delay)
            .with_max_delay(self.max_delay)
            .without_max_times()
            .with_jitter()
            .build()
    }
}

impl Client {
    /// Waits before the next attempt; false when there must be none.
    async fn pause(&self, started: Instant, delay: Option<Duration>) -> bool {
        let Some(delay) = delay else { return false };
        if started.elapsed() + delay >= self.retry_policy().give_up_after {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => true,
            () = self.stop_token().cancelled() => false,
        }
    }

    /// Repeats a read until it succeeds, is refused for good, or time is over.
    pub(crate) async fn read<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let started = Instant::now();
        let mut delays = self.retry_policy().delays();
        loop {
            match attempt().await {
                Err(error) if error.is_transient() => {
                    if !self.pause(started, delays.next()).await {
                        return Err(error);
                    }
                }
                answer => return answer,
            }
        }
    }

    /// Repeats a call that carries a transaction, as long as that is harmless and may help.
    pub(crate) async fn settle<R, F>(&self, attempt: impl Fn() -> F) -> Outcome<R>
    where
        F: Future<Output = Outcome<R>>,
    {
        let started = Instant::now();
        let mut delays = self.retry_policy().delays();
        let mut open = None;
        loop {
            let outcome = attempt().await;
            let settled = !outcome.is_transient();
            if settled && (open.is_none() || settles(&outcome)) {
                return outcome;
            }
            let outcome = match (open.take(), outcome) {
                (Some(unknown), Outcome::Aborted { .. }) => unknown,
                (_, latest) => latest,
            };
            if !self.pause(started, delays.next()).await {
                return outcome;
            }
            if matches!(outcome, Outcome::Unknown { .. }) {
                open = Some(outcome);
            }
        }
    }
}

/// Whether an outcome also tells what became of an earlier attempt of the same request.
fn settles<R>(outcome: &Outcome<R>) -> bool {
    match outcome {
        Outcome::Committed { .. } => true,
        Outcome::Aborted { reason, .. } => reason.kind().is_final(),
        Outcome::Unknown { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use concord_core::reason::{Reason, code};

    use super::*;

    fn aborted(code: &str) -> Outcome<()> {
        Outcome::Aborted {
            reason: Reason::new(code, ""),
            gtrid: None,
        }
    }

    fn unknown(request_id: Option<&str>) -> Outcome<()> {
        Outcome::Unknown {
            gtrid: None,
            request_id: request_id.map(str::to_owned),
            reason: None,
            message: String::new(),
        }
    }

    fn done() -> Outcome<()> {
        Outcome::Committed {
            gtrid: "g".into(),
            results: (),
            replayed: false,
            results_lost: false,
        }
    }

    async fn settle(seconds: u64, answers: Vec<Outcome<()>>) -> (Outcome<()>, usize) {
        let policy = RetryPolicy::lasting(Duration::from_secs(seconds));
        let client = Client::connect("http://127.0.0.1:1")
            .unwrap()
            .with_retry(policy);
        let left = RefCell::new(answers);
        let last = client
            .settle(|| async {
                let mut left = left.borrow_mut();
                if left.len() > 1 {
                    left.remove(0)
                } else {
                    left[0].clone()
                }
            })
            .await;
        let left = left.borrow().len();
        (last, left)
    }

    #[tokio::test(start_paused = true)]
    async fn transient_aborts_are_repeated_and_final_ones_are_not() {
        let answers = vec![
            aborted(code::LOCK_TIMEOUT),
            aborted(code::PARTICIPANT_DOWN),
            done(),
        ];
        assert_eq!(settle(60, answers).await.0, done());
        let answers = vec![aborted(code::INSUFFICIENT_FUNDS), done()];
        assert_eq!(
            settle(60, answers).await,
            (aborted(code::INSUFFICIENT_FUNDS), 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_outcome_is_repeated_only_with_a_request_id() {
        assert_eq!(settle(60, vec![unknown(Some("r")), done()]).await.0, done());
        assert_eq!(
            settle(60, vec![unknown(None), done()]).await,
            (unknown(None), 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_unknown_once_is_not_settled_by_an_attempt_that_could_not_be_made() {
        let answers = vec![unknown(Some("r")), aborted(code::COORDINATOR_DOWN)];
        assert_eq!(settle(60, answers).await.0, unknown(Some("r")));
        // A proxy without anybody behind it.
        let answers = vec![unknown(Some("r")), aborted(code::UNEXPECTED_ANSWER), done()];
        assert_eq!(settle(60, answers).await.0, done());
        let answers = vec![unknown(Some("r")), aborted(code::UNEXPECTED_ANSWER)];
        assert_eq!(settle(60, answers).await.0, unknown(Some("r")));
        let answers = vec![unknown(Some("r")), aborted(code::INSUFFICIENT_FUNDS)];
        assert_eq!(
            settle(60, answers).await.0,
            aborted(code::INSUFFICIENT_FUNDS)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_time_there_is_one_attempt() {
        let answers = vec![aborted(code::LOCK_TIMEOUT), done()];
        assert_eq!(settle(0, answers).await, (aborted(code::LOCK_TIMEOUT), 1));
    }
}
