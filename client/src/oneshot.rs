//! [`OneShot`]: a whole transaction in one call.

use std::time::Duration;

use concord_core::limits::WORK_BYTES_MAX;
use concord_core::reason::{Reason, code};

use crate::client::Client;
use crate::outcome::Outcome;
use crate::statement::Statement;
use crate::v1;

/// A whole transaction that is sent in one call. See [`Client::one_shot`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `send`"]
pub struct OneShot {
    client: Client,
    request: v1::ExecuteTransactionRequest,
}

impl Client {
    /// Begins to write a one-shot transaction; nothing is sent before [`OneShot::send`].
    pub fn one_shot(&self) -> OneShot {
        OneShot {
            client: self.clone(),
            request: v1::ExecuteTransactionRequest::default(),
        }
    }
}

impl OneShot {
    /// Adds a statement. Those of one participant run in order, in one branch.
    pub fn on(mut self, participant: &str, statement: impl Into<Statement>) -> Self {
        self.request
            .statements
            .push(statement.into().on(participant));
        self
    }

    /// Makes a retry safe: the same id gets the outcome of the first attempt.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request.request_id = id.into();
        self
    }

    /// Isolation level of every branch.
    pub fn isolation(mut self, isolation: v1::Isolation) -> Self {
        self.request.isolation = isolation.into();
        self
    }

    /// When to answer: after every branch applied the commit (default), or once it is decided.
    pub fn ack(mut self, ack: v1::Ack) -> Self {
        self.request.ack = ack.into();
        self
    }

    /// Time until the transaction is aborted if it is not decided by then.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.request.timeout_ms = millis(timeout);
        self
    }

    /// Sends it, and repeats it as the client's retry policy allows.
    pub async fn send(self) -> Outcome {
        let request = &self.request;
        // A larger message is cut off by the peer's decoder without a reason, and its outcome
        // would have to be called unknown.
        if prost_len(request) > WORK_BYTES_MAX {
            let message = format!(
                "the transaction has more than {WORK_BYTES_MAX} bytes; nothing was sent. \
                 Split it, or write large values another way"
            );
            return Outcome::Aborted {
                reason: Reason::new(code::LIMIT_REACHED, message),
                gtrid: None,
            };
        }
        self.client
            .settle(|| self.client.execute_once(request.clone()))
            .await
    }
}

/// Bytes of the statements of a request, as they travel.
fn prost_len(request: &v1::ExecuteTransactionRequest) -> usize {
    use prost::Message as _;
    request.encoded_len()
}

/// A duration as the milliseconds of a request's field; 0 is never sent for a short one, since it
/// means the default.
pub(crate) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis())
        .unwrap_or(u32::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_time_out_does_not_become_the_default() {
        assert_eq!(millis(Duration::from_micros(10)), 1);
        assert_eq!(millis(Duration::from_secs(10_000_000)), u32::MAX);
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused_without_sending() {
        let client = Client::connect("http://127.0.0.1:1").unwrap();
        let huge = Statement::new("SELECT ?").bind("x".repeat(WORK_BYTES_MAX));
        let outcome = client.one_shot().on("p1", huge).send().await;
        let Outcome::Aborted { reason, .. } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(&*reason.code, code::LIMIT_REACHED);
    }
}
