//! The links, as the driver uses them: who is connected, since when, and what it said on the link.
//!
//! It owns what is known of a link and forgets it with the link. It refuses to connect anything:
//! that is the business of [`crate::participants`].

use concord_core::coordinator::Input;
use concord_core::id::{Gtrid, ParticipantName};
use concord_core::reason::Reason;
use concord_daemon::crash::{CrashPoint, reach};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Data, Driver, DriverError, Outbound};

/// A link, as the driver uses it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) generation: u64,
    pub(super) sender: mpsc::UnboundedSender<Outbound>,
    pub(super) since: Instant,
    /// From which transaction on the participant has unfinished branches, as it said last on this
    /// link; none while that is not known.
    pub(super) unfinished: Option<Gtrid>,
}

impl Link {
    pub(super) fn new(generation: u64, sender: mpsc::UnboundedSender<Outbound>) -> Self {
        Self {
            generation,
            sender,
            since: Instant::now(),
            unfinished: None,
        }
    }
}

impl Driver {
    pub(super) fn link_up(
        &mut self,
        participant: ParticipantName,
        data: Data,
        link: Link,
        answer: oneshot::Sender<Result<(), Reason>>,
    ) -> Result<(), DriverError> {
        if let Err(reason) = self.recognize(&participant, data) {
            let _ = answer.send(Err(reason));
            return Ok(());
        }
        if self.links.insert(participant.clone(), link).is_some() {
            self.input(Input::LinkDown {
                participant: participant.clone(),
            })?;
        }
        let _ = answer.send(Ok(()));
        reach(CrashPoint::CoordinatorResendBefore);
        self.input(Input::LinkUp { participant })?;
        reach(CrashPoint::CoordinatorResendAfter);
        Ok(())
    }

    pub(super) fn link_down(
        &mut self,
        participant: ParticipantName,
        generation: u64,
    ) -> Result<(), DriverError> {
        if self
            .links
            .get(&participant)
            .is_none_or(|link| link.generation != generation)
        {
            return Ok(());
        }
        self.links.remove(&participant);
        self.forgettable = Gtrid::MIN;
        self.input(Input::LinkDown { participant })
    }

    /// What a participant said, in its status, of what is unfinished there.
    // As what a call comes to.
    #[allow(clippy::unnecessary_wraps)]
    pub(super) fn unfinished(
        &mut self,
        participant: &ParticipantName,
        generation: u64,
        from: Option<Gtrid>,
    ) -> Result<(), DriverError> {
        if let Some(link) = self.links.get_mut(participant)
            && link.generation == generation
        {
            link.unfinished = from;
            self.forgettable = self.forgettable.min(from.unwrap_or(Gtrid::MIN));
        }
        Ok(())
    }
}
