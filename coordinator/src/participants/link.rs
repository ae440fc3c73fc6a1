//! One link: connect, check, announce, pump; and again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use concord_core::id::{BranchId, Epoch};
use concord_core::limits::{LINK_BATCH_MAX, LINK_FRAME_BYTES};
use concord_core::message::{Finish, FromParticipant, Vote};
use concord_core::reason::{Reason, code};
use concord_daemon::crash::{CrashPoint, reach};
use concord_proto::convert::link::{Reply, reason, reply, unfinished_from};
use concord_proto::convert::work::branch_ref;
use concord_proto::v1;
use concord_proto::v1::link_command::Command;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{CONNECT_TIMEOUT, Health, Peer, reason_of, standstill};
use crate::driver::{Call, Data, Outbound};
use crate::surroundings::Surroundings;

/// First wait before connecting again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait, without the jitter, which doubles it at most: what a participant that is back, and
/// its branches in doubt, wait for.
const BACKOFF_MAX: Duration = Duration::from_millis(250);
/// Time between two looks at a participant's own status.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);
/// The same while it cannot vote: so long after it can again, it is still said that it cannot, and
/// where no branch could end, work is still refused.
const NO_VOTE_INTERVAL: Duration = Duration::from_millis(250);

/// What a coordinator expects of a participant.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// The machine that it runs on.
    pub surroundings: Arc<dyn Surroundings>,
}

/// Numbers links, so that news of an old one is not taken for news of its successor.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// Keeps the link to one participant up until stopped.
pub async fn run_link(
    peer: Arc<Peer>,
    expected: Expected,
    driver: mpsc::Sender<Call>,
    stop: CancellationToken,
) {
    let backoff = || {
        let chance = expected.surroundings.random().to_le_bytes();
        let (seed, _) = chance.split_first_chunk().unwrap_or((&[0; 8], &[]));
        ExponentialBuilder::default()
            .with_min_delay(BACKOFF_MIN)
            .with_max_delay(BACKOFF_MAX)
            .with_jitter()
            .with_jitter_seed(u64::from_le_bytes(*seed))
            .without_max_times()
            .build()
    };
    let mut delays = backoff();
    loop {
        let mut was_up = false;
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            ended = one_link(&peer, &expected, &driver, &mut was_up) => ended,
        };
        if was_up {
            delays = backoff();
            tracing::warn!(participant = %peer.name, reason = %ended, "link lost");
        } else {
            tracing::debug!(participant = %peer.name, reason = %ended, "link not established");
        }
        peer.note(|health| {
            health.connected = false;
            health.outstanding = 0;
            health.reason = Some(ended);
        });
        let delay = delays.next().unwrap_or(BACKOFF_MAX);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(delay) => {}
        }
    }
}

/// One life of a link; why it ended.
async fn one_link(
    peer: &Arc<Peer>,
    expected: &Expected,
    driver: &mpsc::Sender<Call>,
    was_up: &mut bool,
) -> Reason {
    let (frames, outbound) = mpsc::unbounded_channel();
    let stream = UnboundedReceiverStream::new(outbound);
    let inbound = match timeout(CONNECT_TIMEOUT, peer.client().link(stream)).await {
        Err(_) => return late("the link"),
        Ok(Err(status)) => return reason_of(&peer.name, &status),
        Ok(Ok(response)) => response.into_inner(),
    };
    // After the link is there: should other data, and another process, come in between, then the
    // link is lost with the process before it.
    let data = match data(peer, expected, driver).await {
        Ok(data) => data,
        Err(reason) => return reason,
    };
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let (sender, commands) = mpsc::unbounded_channel();
    let (answer, accepted) = oneshot::channel();
    let participant = peer.name.clone();
    let up = Call::LinkUp {
        participant: participant.clone(),
        data,
        generation,
        sender,
        answer,
    };
    if driver.send(up).await.is_err() {
        return driver_ended();
    }
    match accepted.await {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => return reason,
        Err(_) => return driver_ended(),
    }
    *was_up = true;
    tracing::info!(participant = %peer.name, address = peer.address, "link up");
    peer.note(|health| {
        health.connected = true;
        health.reason = None;
    });
    let pump = Pump {
        peer: Arc::clone(peer),
        generation,
        epoch: expected.epoch,
        driver: driver.clone(),
        sent: HashMap::new(),
        told: HashSet::new(),
        next_seq: 1,
    };
    let reason = pump.run(commands, frames, inbound).await;
    let _ = driver
        .send(Call::LinkDown {
            participant,
            generation,
        })
        .await;
    reason
}

fn driver_ended() -> Reason {
    Reason::new(code::SHUTTING_DOWN, "the driver has ended")
}

/// What data is there, when it is a participant that we want to have a link with.
async fn data(
    peer: &Arc<Peer>,
    expected: &Expected,
    driver: &mpsc::Sender<Call>,
) -> Result<Data, Reason> {
    let (answer, witnesses) = oneshot::channel();
    let participant = peer.name.clone();
    let ask = Call::Witnesses {
        participant,
        answer,
    };
    driver.send(ask).await.map_err(|_| driver_ended())?;
    let witnesses = witnesses.await.map_err(|_| driver_ended())?;
    let mut client = peer.client();
    let asked = client.get_status(v1::GetStatusRequest {
        witnesses: witnesses
            .iter()
            .map(|branch| branch_ref(*branch, expected.epoch))
            .collect(),
    });
    let status = match timeout(CONNECT_TIMEOUT, asked).await {
        Err(_) => return Err(late("its status")),
        Ok(Err(status)) => return Err(reason_of(&peer.name, &status)),
        Ok(Ok(status)) => status.into_inner(),
    };
    if let Some(reason) = mismatch(peer, expected, &status) {
        return Err(reason);
    }
    let lost = lost_data(&status);
    // Its first command would be a new epoch to it, which it could not remember: nothing would be
    // answered on such a link.
    let still = standstill(&status).filter(|_| status.epoch < expected.epoch.0);
    let data = Data {
        incarnation: status.incarnation.clone(),
        missing: status.missing_witness.as_ref().and_then(|missing| {
            let named = |branch: &&BranchId| {
                *missing.gtrid == branch.gtrid.0 && missing.bqual == branch.bqual.0
            };
            witnesses.iter().find(named).copied()
        }),
    };
    peer.note(|health| health.status = Some(status));
    if let Some(reason) = lost.or(still) {
        return Err(reason);
    }
    if data.incarnation.is_empty() {
        let text = format!(
            "participant {} has not seen its MySQL server yet",
            peer.name
        );
        return Err(Reason::new(code::SERVER_DOWN, text));
    }
    Ok(data)
}

fn late(what: &str) -> Reason {
    Reason::new(
        code::PARTICIPANT_DOWN,
        format!("{what} did not come in {CONNECT_TIMEOUT:?}"),
    )
}

/// The participant itself has seen that its data went back. Without a link nothing is forgotten, so
/// that what proves it stays known until an operator has decided.
fn lost_data(status: &v1::GetStatusResponse) -> Option<Reason> {
    let lost = |problem: &&v1::Reason| problem.code == code::DATA_LOST;
    status.problems.iter().find(lost).map(reason)
}

/// Why this is not the participant that it should be.
fn mismatch(peer: &Peer, expected: &Expected, status: &v1::GetStatusResponse) -> Option<Reason> {
    let text = if status.name != peer.name.as_str() {
        format!(
            "at {} answers {:?}, not {:?}",
            peer.address, status.name, peer.name
        )
    } else if status.cluster != *expected.cluster {
        let (theirs, ours) = (&status.cluster, &expected.cluster);
        format!(
            "participant {} belongs to cluster {theirs:?}, not {ours:?}",
            peer.name
        )
    } else {
        return None;
    };
    Some(Reason::new(code::INCARNATION_CHANGED, text))
}

/// A command that was sent and not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asked {
    Vote(BranchId),
    Commit(BranchId),
    Abort(BranchId),
}

struct Pump {
    peer: Arc<Peer>,
    generation: u64,
    epoch: Epoch,
    driver: mpsc::Sender<Call>,
    sent: HashMap<u64, Asked>,
    /// Outcomes among them. Nothing is lost on a link, so none is sent twice before its answer: a
    /// participant that cannot answer now would only pile them up.
    told: HashSet<Asked>,
    next_seq: u64,
}

impl Pump {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Outbound>,
        frames: mpsc::UnboundedSender<v1::LinkRequest>,
        mut inbound: tonic::Streaming<v1::LinkResponse>,
    ) -> Reason {
        let mut batch = Vec::with_capacity(LINK_BATCH_MAX);
        let mut look = tokio::time::interval(NO_VOTE_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looked: Option<Instant> = None;
        let (found, mut lost) = mpsc::channel(1);
        loop {
            tokio::select! {
                biased;
                _ = look.tick() => {
                    let interval = look_interval(&self.peer.health());
                    if looked.is_none_or(|at| at.elapsed() >= interval) {
                        looked = Some(Instant::now());
                        self.look(found.clone());
                    }
                }
                Some(reason) = lost.recv() => return reason,
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => {
                        reach(CrashPoint::CoordinatorFrameReceived);
                        for raw in frame.replies {
                            let (seq, reply) = reply(raw);
                            if let Err(reason) = self.answered(seq, reply).await {
                                return reason;
                            }
                        }
                    }
                    Ok(None) => {
                        let text = "the participant closed the link";
                        return Reason::new(code::PARTICIPANT_DOWN, text);
                    }
                    Err(status) => return reason_of(&self.peer.name, &status),
                },
                count = commands.recv_many(&mut batch, LINK_BATCH_MAX) => {
                    if count == 0 {
                        return Reason::new(code::SHUTTING_DOWN, "the driver let the link go");
                    }
                    let commands = batch.drain(..).filter_map(|out| self.number(out)).collect();
                    for frame in in_frames(commands) {
                        if frames.send(frame).is_err() {
                            let text = "the link's stream has ended";
                            return Reason::new(code::PARTICIPANT_DOWN, text);
                        }
                    }
                    reach(CrashPoint::CoordinatorFrameSent);
                }
            }
        }
    }

    /// The command with its number; None for an outcome that is still to be answered.
    fn number(&mut self, out: Outbound) -> Option<v1::LinkCommand> {
        let seq = self.next_seq;
        let command = match out {
            Outbound::Command { branch, command } => {
                let asked = match command {
                    Command::Prepare(_) => Some(Asked::Vote(branch)),
                    Command::Commit(_) => Some(Asked::Commit(branch)),
                    Command::Abort(_) => Some(Asked::Abort(branch)),
                    Command::ForgetBelow(_) => None,
                };
                if let Some(outcome @ (Asked::Commit(_) | Asked::Abort(_))) = asked
                    && !self.told.insert(outcome)
                {
                    return None;
                }
                self.sent.extend(asked.map(|asked| (seq, asked)));
                command
            }
            Outbound::ForgetBelow(gtrid) => Command::ForgetBelow(gtrid.0.to_vec()),
        };
        self.next_seq += 1;
        Some(v1::LinkCommand {
            seq,
            command: Some(command),
        })
    }

    /// Hands an answer to the driver. An error ends the link.
    async fn answered(&mut self, seq: u64, reply: Result<Reply, Reason>) -> Result<(), Reason> {
        if let Ok(Reply::Unavailable(reason)) = reply {
            return Err(reason);
        }
        let Some(asked) = self.sent.remove(&seq) else {
            return Ok(());
        };
        self.told.remove(&asked);
        let epoch = self.epoch;
        let refused = |reason: Reason| match asked {
            // Its epoch is higher than ours; how high does not matter any more.
            Asked::Vote(branch) | Asked::Commit(branch) | Asked::Abort(branch)
                if &*reason.code == code::STALE_EPOCH =>
            {
                FromParticipant::Stale {
                    branch,
                    epoch,
                    highest: Epoch(epoch.0 + 1),
                }
            }
            Asked::Vote(branch) => FromParticipant::Voted {
                branch,
                epoch,
                vote: Vote::Abort(reason),
            },
            Asked::Commit(branch) | Asked::Abort(branch) => FromParticipant::Finished {
                branch,
                epoch,
                finish: Finish::Retry(reason),
            },
        };
        let (message, results, failed_statement) = match (asked, reply) {
            (Asked::Vote(branch), Ok(Reply::Voted(voted))) => {
                let message = FromParticipant::Voted {
                    branch,
                    epoch,
                    vote: voted.vote,
                };
                (message, voted.results, voted.failed_statement)
            }
            // An Abort may have been the question whether a commit in one phase has won.
            (Asked::Commit(branch), Ok(Reply::Committed(done)))
            | (Asked::Abort(branch), Ok(Reply::Aborted(done))) => {
                let message = FromParticipant::Finished {
                    branch,
                    epoch,
                    finish: done.finish,
                };
                (message, done.results, done.failed_statement)
            }
            (_, Ok(Reply::Refused(reason)) | Err(reason)) => (refused(reason), Vec::new(), None),
            // An answer of the wrong kind says nothing; the outcome is sent again.
            (_, Ok(_)) => return Ok(()),
        };
        let from = self.peer.name.clone();
        let call = Call::Received {
            from,
            message,
            results,
            failed_statement,
        };
        self.driver.send(call).await.map_err(|_| driver_ended())
    }

    /// Asks how the participant is, without holding up the link. What ends the link is sent to
    /// `found`. A status that does not come tells nothing any more of what is unfinished there.
    fn look(&self, found: mpsc::Sender<Reason>) {
        let (peer, driver) = (Arc::clone(&self.peer), self.driver.clone());
        let generation = self.generation;
        let outstanding = self.sent.len();
        peer.note(|health| health.outstanding = outstanding);
        tokio::spawn(async move {
            let mut client = peer.client();
            let status = client.get_status(v1::GetStatusRequest::default());
            let mut from = None;
            if let Ok(Ok(status)) = timeout(CONNECT_TIMEOUT, status).await {
                let status = status.into_inner();
                from = unfinished_from(&status);
                if let Some(reason) = lost_data(&status) {
                    // One that is told already ends it as well.
                    let _ = found.try_send(reason);
                }
                peer.note(|health| health.status = Some(status));
            }
            let participant = peer.name.clone();
            let unfinished = Call::Unfinished {
                participant,
                generation,
                from,
            };
            // A driver that has ended forgets nothing.
            let _ = driver.send(unfinished).await;
        });
    }
}

/// Time between two looks at a participant of this health.
fn look_interval(health: &Health) -> Duration {
    match &health.status {
        Some(status) if status.can_vote => STATUS_INTERVAL,
        _ => NO_VOTE_INTERVAL,
    }
}

/// Commands in order, in frames that a participant takes.
fn in_frames(commands: Vec<v1::LinkCommand>) -> Vec<v1::LinkRequest> {
    let mut frames = Vec::new();
    let mut frame = v1::LinkRequest::default();
    let mut bytes = 0;
    for command in commands {
        let size = command.encoded_len();
        if bytes + size > LINK_FRAME_BYTES && !frame.commands.is_empty() {
            frames.push(std::mem::take(&mut frame));
            bytes = 0;
        }
        bytes += size;
        frame.commands.push(command);
    }
    if !frame.commands.is_empty() {
        frames.push(frame);
    }
    frames
}

#[cfg(test)]
mod tests;
