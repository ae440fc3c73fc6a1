//! The way to the driver, for those who serve RPCs and answer inquiries.

use concord_core::id::{BranchId, Epoch, Gtrid};
use concord_core::message::Decision;
use concord_core::reason::{Reason, code};
use tokio::sync::{mpsc, oneshot, watch};

use super::event::{Answer, BranchView, Event, Order, Request, Responder, Summary};

/// Gives orders to the driver.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) inbox: mpsc::Sender<Event>,
    pub(super) loaded: watch::Receiver<bool>,
}

impl Handle {
    /// Gives one order and waits for its answer. When the driver is behind by its whole queue,
    /// the order is refused at once.
    pub async fn call(&self, order: Order) -> Answer {
        let (sender, answer) = oneshot::channel();
        let respond = Responder::Call(sender);
        let event = Event::Request(Box::new(Request { order, respond }));
        match self.inbox.try_send(event) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Answer::Refused(queue_full()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Answer::Unavailable(stopping()),
        }
        answer
            .await
            .unwrap_or_else(|_| Answer::Unavailable(stopping()))
    }

    /// Gives the orders of a link's frame, and waits while the driver's queue is full. False when
    /// the driver has ended.
    pub async fn send(&self, requests: Vec<Request>) -> bool {
        self.inbox.send(Event::Requests(requests)).await.is_ok()
    }

    /// A coordinator has connected.
    pub async fn linked(&self) {
        drop(self.inbox.send(Event::Linked).await);
    }

    /// Ledger rows of transactions below this one may go, and Prepares of them must be refused.
    pub async fn forget_below(&self, gtrid: Gtrid) {
        drop(self.inbox.send(Event::ForgetBelow(gtrid)).await);
    }

    /// Brings the coordinator's answer to an inquiry.
    pub async fn decided(&self, epoch: Epoch, decisions: Vec<(BranchId, Decision)>) {
        drop(self.inbox.send(Event::Decided(epoch, decisions)).await);
    }

    /// At most `limit` branches after `after`, in order; none when the driver has ended.
    pub async fn branches(&self, after: Option<BranchId>, limit: usize) -> Option<Vec<BranchView>> {
        let (sender, branches) = oneshot::channel();
        let event = Event::Branches(after, limit, sender);
        self.inbox.send(event).await.ok()?;
        branches.await.ok()
    }

    /// Whether the branch is known, and not over.
    pub async fn knows(&self, branch: BranchId) -> Option<bool> {
        let (sender, known) = oneshot::channel();
        self.inbox.send(Event::Knows(branch, sender)).await.ok()?;
        known.await.ok()
    }

    /// The whole in figures; none when the driver has ended.
    pub async fn summary(&self) -> Option<Summary> {
        let (sender, summary) = oneshot::channel();
        self.inbox.send(Event::Summary(sender)).await.ok()?;
        summary.await.ok()
    }

    /// Takes no new branch any more, and returns when nothing runs. Prepared branches stay as
    /// they are: that is what they are for.
    pub async fn drain(&self) {
        let (sender, drained) = oneshot::channel();
        if self.inbox.send(Event::Drain(sender)).await.is_ok() {
            drop(drained.await);
        }
    }

    /// Whether what the ledger schema kept has been read: before that no order is taken.
    pub fn loaded(&self) -> watch::Receiver<bool> {
        self.loaded.clone()
    }
}

pub(super) fn queue_full() -> Reason {
    let text = "the participant has more orders waiting than it can hold; try again";
    Reason::new(code::LIMIT_REACHED, text)
}

pub(super) fn stopping() -> Reason {
    Reason::new(code::SHUTTING_DOWN, "the participant stops")
}
