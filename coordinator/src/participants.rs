//! The participants as the coordinator reaches them: one link each, kept up for ever.
//!
//! A link is connected, checked (is it who it should be?), announced to the driver, pumped, and
//! when it breaks announced as lost and connected again with capped back-off and jitter. It decides
//! nothing: what was on a broken link is the machine's business.

pub mod link;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use concord_core::id::ParticipantName;
use concord_core::reason::{Reason, code};
use concord_proto::convert::link::reason;
use concord_proto::v1::participant_client::ParticipantClient;
use concord_proto::{local, v1};
use tonic::transport::{Channel, Endpoint};

/// Time to establish a connection, and for the first answers on it.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Silence on a connection after which it is probed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// Time for the answer to a probe: a partition is noticed after both.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest message of a participant: the results of a branch may have 4 MiB and more.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What is known of one participant now.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Whether its link is up.
    pub connected: bool,
    /// What it said of itself last.
    pub status: Option<v1::GetStatusResponse>,
    /// Messages sent and not answered.
    pub outstanding: usize,
    /// Why the link is down.
    pub reason: Option<Reason>,
}

/// One participant.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub name: ParticipantName,
    /// Its address, for people.
    pub address: String,
    channel: Channel,
    health: Mutex<Health>,
}

impl Peer {
    /// What is known of it now.
    pub fn health(&self) -> Health {
        self.lock().clone()
    }

    /// Why no branch can end on the server behind it, not even by a rollback, if it said so last:
    /// the server cannot be reached, or takes no tombstone.
    pub fn stands_still(&self) -> Option<Reason> {
        let health = self.lock();
        health.status.as_ref().and_then(standstill)
    }

    /// Why its link was refused, if that is because of what data is behind it.
    pub fn strange_data(&self) -> Option<Reason> {
        let health = self.lock();
        let strange =
            |reason: &&Reason| matches!(&*reason.code, code::INCARNATION_CHANGED | code::DATA_LOST);
        health.reason.as_ref().filter(strange).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Health)) {
        change(&mut self.lock());
    }

    /// A client on its connection.
    pub fn client(&self) -> ParticipantClient<Channel> {
        ParticipantClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

/// Why a participant of this status can end no branch.
fn standstill(status: &v1::GetStatusResponse) -> Option<Reason> {
    let standing = |problem: &&v1::Reason| {
        matches!(&*problem.code, code::SERVER_DOWN | code::READ_ONLY_SERVER)
    };
    let problem = status.problems.iter().find(standing);
    problem.filter(|_| !status.can_vote).map(reason)
}

/// All participants, in the configuration's order.
#[derive(Clone, Debug)]
pub struct Participants {
    peers: Arc<[Arc<Peer>]>,
    by_name: Arc<HashMap<ParticipantName, usize>>,
}

impl Participants {
    /// Prepares a lazy connection to each.
    pub fn new(endpoints: impl IntoIterator<Item = (ParticipantName, String, Endpoint)>) -> Self {
        Self::from_channels(endpoints.into_iter().map(|(name, address, endpoint)| {
            let channel = local::connect_lazy(&address, &tuned(endpoint));
            (name, address, channel)
        }))
    }

    /// The same on connections of any kind.
    pub fn from_channels(
        channels: impl IntoIterator<Item = (ParticipantName, String, Channel)>,
    ) -> Self {
        let peers: Vec<_> = channels
            .into_iter()
            .map(|(name, address, channel)| {
                Arc::new(Peer {
                    name,
                    address,
                    channel,
                    health: Mutex::default(),
                })
            })
            .collect();
        let by_name = peers
            .iter()
            .enumerate()
            .map(|(index, peer)| (peer.name.clone(), index))
            .collect();
        Self {
            peers: peers.into(),
            by_name: Arc::new(by_name),
        }
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Peer>] {
        &self.peers
    }

    /// Their names, in the configuration's order.
    pub fn names(&self) -> Vec<ParticipantName> {
        self.peers.iter().map(|peer| peer.name.clone()).collect()
    }

    /// One of them.
    pub fn get(&self, name: &ParticipantName) -> Result<&Arc<Peer>, Reason> {
        self.by_name
            .get(name)
            .and_then(|index| self.peers.get(*index))
            .ok_or_else(|| {
                let text = format!("no participant is called {name}");
                Reason::new(code::PARTICIPANT_NOT_FOUND, text)
            })
    }
}

/// Sets what every connection to a participant needs.
pub fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

/// The reason behind a failed call of a participant; one that carries none of ours comes from the
/// transport.
pub fn reason_of(peer: &ParticipantName, status: &tonic::Status) -> Reason {
    concord_proto::status::reason_of(status).unwrap_or_else(|| {
        let text = format!(
            "participant {peer}: {} ({:?})",
            status.message(),
            status.code()
        );
        Reason::new(code::PARTICIPANT_DOWN, text)
    })
}

/// The result beside a participant's answer, which every statement has: one that is missing is not
/// taken for an empty one.
pub fn result_of(
    peer: &ParticipantName,
    result: Option<v1::StatementResult>,
) -> Result<v1::StatementResult, Reason> {
    result.ok_or_else(|| {
        let text = format!("participant {peer} answered a statement without its result");
        Reason::new(code::UNEXPECTED_ANSWER, text)
    })
}
