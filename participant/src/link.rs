//! A coordinator's link: many orders in a frame, many answers in a frame.
//!
//! It owns the stream's frames and its room for answers. It refuses to interpret orders: all go to
//! the driver at once, and each answer leaves as soon as it is there, together with whatever else
//! is there by then. A link that takes no answers is not read any further.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use concord_core::id::Epoch;
use concord_core::limits::{LINK_BATCH_MAX, LINK_FRAME_BYTES};
use concord_core::reason::{Reason, code};
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::convert::link::{Reply, link_reply};
use concord_proto::convert::participant::{Command, link};
use concord_proto::{status, v1};
use futures::Stream;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use crate::driver::{Answer, Handle, LinkAnswer, Order, Request, Responder};

/// Orders of one link that wait for their answers; more are not read from the stream. A recovery
/// sends as many outcomes as there are branches in doubt.
const IN_FLIGHT_MAX: usize = 16_384;

/// The links of this participant. Only one of them is current.
#[derive(Clone, Debug, Default)]
pub struct Links {
    current: Arc<Mutex<Option<Current>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Current {
    epoch: Epoch,
    replaced: CancellationToken,
}

impl Links {
    /// Serves a link; the stream is what it answers.
    pub fn serve(
        &self,
        handle: Handle,
        frames: Streaming<v1::LinkRequest>,
    ) -> impl Stream<Item = Result<v1::LinkResponse, Status>> + Send + 'static {
        let (room, answers) = mpsc::channel(IN_FLIGHT_MAX);
        let (failed, failure) = oneshot::channel();
        let reader = Reader {
            links: self.clone(),
            handle,
            room,
            epoch: Epoch::default(),
            replaced: CancellationToken::new(),
        };
        self.tasks.spawn(async move {
            if let Err(status) = reader.run(frames).await {
                let _ = failed.send(status);
            }
        });
        responses(answers, failure)
    }

    /// Ends all links; answers that are on their way still leave.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Makes the link of this epoch the current one, and ends the one before: its coordinator has
    /// connected anew, or was superseded.
    fn replace(&self, epoch: Epoch, replaced: &CancellationToken) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(other) if other.epoch > epoch => return,
            Some(other) => other.replaced.cancel(),
            None => {}
        }
        *current = Some(Current {
            epoch,
            replaced: replaced.clone(),
        });
    }

    fn forget(&self, epoch: Epoch) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is cancelled was replaced already.
        if current
            .as_ref()
            .is_some_and(|current| current.epoch == epoch && !current.replaced.is_cancelled())
        {
            *current = None;
        }
    }
}

struct Reader {
    links: Links,
    handle: Handle,
    room: mpsc::Sender<LinkAnswer>,
    /// The highest epoch that spoke on this link; 0 before the first.
    epoch: Epoch,
    replaced: CancellationToken,
}

impl Reader {
    async fn run(mut self, mut frames: Streaming<v1::LinkRequest>) -> Result<(), Status> {
        self.handle.linked().await;
        reach(CrashPoint::ParticipantLinkAccepted);
        let stop = self.links.stop.clone();
        let result = loop {
            let replaced = self.replaced.clone();
            let frame = tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                () = replaced.cancelled() => break Err(superseded()),
                frame = frames.message() => frame,
            };
            match frame {
                // Whoever is gone needs no status.
                Ok(None) | Err(_) => break Ok(()),
                Ok(Some(frame)) => match self.frame(frame).await {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(status) => break Err(status),
                },
            }
        };
        if !self.replaced.is_cancelled() {
            self.links.forget(self.epoch);
        }
        result
    }

    /// Hands a frame's orders over; false when the driver has ended.
    async fn frame(&mut self, frame: v1::LinkRequest) -> Result<bool, Status> {
        reach(CrashPoint::ParticipantFrameReceived);
        let commands = link(frame)?;
        let mut requests = Vec::with_capacity(commands.len());
        for (seq, command) in commands {
            let order = match command {
                Ok(Command::Prepare(order)) => Ok(Order::Prepare(order)),
                Ok(Command::Commit(order)) => Ok(Order::Commit(order)),
                Ok(Command::Abort(order)) => Ok(Order::Abort(order)),
                Ok(Command::ForgetBelow(gtrid)) => {
                    self.handle.forget_below(gtrid).await;
                    continue;
                }
                Err(violations) => Err(violations),
            };
            let room = match self.room.clone().try_reserve_owned() {
                Ok(room) => room,
                Err(mpsc::error::TrySendError::Full(sender)) => {
                    // What is at hand must go first: only answers make room.
                    if !self.handle.send(std::mem::take(&mut requests)).await {
                        return Ok(false);
                    }
                    let Ok(room) = sender.reserve_owned().await else {
                        return Ok(false);
                    };
                    room
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return Ok(false),
            };
            match order {
                Ok(order) => {
                    self.spoke(order.epoch());
                    let abort = matches!(order, Order::Abort(_));
                    let respond = Responder::Link { seq, abort, room };
                    requests.push(Request { order, respond });
                }
                Err(violations) => {
                    let respond = Responder::Link {
                        seq,
                        abort: false,
                        room,
                    };
                    respond.answer(Answer::Refused(violations.into()));
                }
            }
        }
        Ok(requests.is_empty() || self.handle.send(requests).await)
    }

    fn spoke(&mut self, epoch: Epoch) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.links.replace(epoch, &self.replaced);
        }
    }
}

fn superseded() -> Status {
    let text = "a newer link of the same or a later epoch took over";
    status::status(&Reason::new(code::STALE_EPOCH, text))
}

/// What is on its way to the coordinator.
struct Outbox {
    answers: mpsc::Receiver<LinkAnswer>,
    failure: oneshot::Receiver<Status>,
    /// Taken from the channel at once.
    batch: Vec<LinkAnswer>,
    /// What did not fit into the last frame.
    rest: VecDeque<v1::LinkReply>,
}

impl Outbox {
    /// A frame of all answers that are there, and fit; none waits for more.
    async fn next(&mut self) -> Option<v1::LinkResponse> {
        if self.rest.is_empty() {
            let taken = self.answers.recv_many(&mut self.batch, LINK_BATCH_MAX);
            if taken.await == 0 {
                return None;
            }
            self.rest.extend(self.batch.drain(..).map(on_the_wire));
        }
        let mut replies = Vec::with_capacity(self.rest.len());
        let mut bytes = 0;
        while let Some(reply) = self.rest.front() {
            bytes += reply.encoded_len();
            if bytes > LINK_FRAME_BYTES && !replies.is_empty() {
                break;
            }
            replies.extend(self.rest.pop_front());
        }
        reach(CrashPoint::ParticipantFrameSent);
        Some(v1::LinkResponse { replies })
    }
}

fn responses(
    answers: mpsc::Receiver<LinkAnswer>,
    failure: oneshot::Receiver<Status>,
) -> impl Stream<Item = Result<v1::LinkResponse, Status>> + Send + 'static {
    let outbox = Outbox {
        answers,
        failure,
        batch: Vec::with_capacity(LINK_BATCH_MAX),
        rest: VecDeque::new(),
    };
    futures::stream::unfold(Some(outbox), |outbox| async move {
        let mut outbox = outbox?;
        match outbox.next().await {
            Some(frame) => Some((Ok(frame), Some(outbox))),
            // All answers have left; the stream ends as its reader did.
            None => outbox.failure.await.ok().map(|status| (Err(status), None)),
        }
    })
}

fn on_the_wire(answer: LinkAnswer) -> v1::LinkReply {
    let reply = match answer.answer {
        Answer::Voted(voted) => Reply::Voted(voted),
        Answer::Finished(finished) if answer.abort => Reply::Aborted(finished),
        Answer::Finished(finished) => Reply::Committed(finished),
        Answer::Refused(reason) => Reply::Refused(reason),
        Answer::Unavailable(reason) => Reply::Unavailable(reason),
        Answer::Begun | Answer::Executed(_) => {
            let text = "an answer that belongs to no command of a link";
            Reply::Refused(Reason::new(code::UNEXPECTED_ANSWER, text))
        }
    };
    link_reply(answer.seq, reply)
}
