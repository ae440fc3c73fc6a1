//! The driver's last words: whoever still waits is told what is left open, under the right id.
//!
//! It owns the end of a driver that stops or fails. It refuses to leave anybody with the id of an
//! attempt that never ran: asked about later, that one counts as aborted, while the request may
//! have taken effect in the attempt that it joined.

use concord_core::coordinator::Effect;
use concord_core::id::{Gtrid, Request};
use concord_core::message::Outcome;
use tokio::sync::oneshot;

use super::calls::{Call, Told, stopped};
use super::{Driver, DriverError};

impl Driver {
    /// Tells everybody who waits that the outcome is not known, and takes no more calls.
    pub(super) async fn leave_open(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for effect in waiting.into_values().flatten() {
            if let Effect::Replay { gtrid, first, .. } = effect {
                self.replay(gtrid, first, &Outcome::Unknown(first));
            }
        }
        for (gtrid, context) in std::mem::take(&mut self.contexts) {
            context.tell(gtrid, &Outcome::Unknown(gtrid));
        }
        self.calls.close();
        while let Some(call) = self.calls.recv().await {
            self.turn_away(call);
        }
    }

    /// A call that nobody took any more. What it would have begun was not; whoever gets no answer
    /// to another one knows that the driver has ended.
    fn turn_away(&self, call: Call) {
        match call {
            Call::Run { tx, answer, .. } => {
                let first = tx.request.and_then(|request| self.left_open(&request));
                let _ = answer.send(first.unwrap_or_else(|| Told::Refused(stopped())));
            }
            Call::Repeat {
                request, answer, ..
            } => {
                if let Some(first) = self.left_open(&request) {
                    let (waiter, wait) = oneshot::channel();
                    let _ = waiter.send(first);
                    let _ = answer.send(Some(wait));
                }
            }
            _ => {}
        }
    }

    fn left_open(&self, request: &Request) -> Option<Told> {
        let unknown = |first: Gtrid| Told::Replayed {
            first,
            outcome: Outcome::Unknown(first),
        };
        self.machine.attempt_of(request).map(unknown)
    }

    /// What is in line for the log reaches it before a stop; nobody is promised anything by it.
    pub(super) async fn drain_log(mut self) -> Result<(), DriverError> {
        self.rest_written().await?;
        if !self.pending.is_empty() {
            self.hand_over()?;
        }
        self.rest_written().await
    }

    /// What the writer has, if the driver has not written it by itself.
    async fn rest_written(&mut self) -> Result<(), DriverError> {
        if std::mem::take(&mut self.writing) {
            let written = self.writer.written().await;
            written.ok_or(DriverError::LogThread)??;
        }
        Ok(())
    }
}
