//! AdminService: what operators see and do.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use concord_core::coordinator::{Resolve, Seen};
use concord_core::id::{BranchId, Epoch, Gtrid, ParticipantName};
use concord_core::message::Finish;
use concord_core::reason::{Reason, ReasonKind, code};
use concord_proto::convert::admin::{self as door, ResolveBranch};
use concord_proto::convert::participant::Resolution;
use concord_proto::convert::time::timestamp;
use concord_proto::convert::work::branch_ref;
use concord_proto::convert::{link, text};
use concord_proto::model::{Statement, Value};
use concord_proto::status::{connect_failure, is_of_transport, status, status_of};
use concord_proto::v1;
use concord_proto::v1::admin_service_server::AdminService;
use futures::Stream;
use futures::future::join_all;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::{Request, Response, Status};

use super::placement::Placement;
use super::{in_doubt, view};
use crate::counters::Counters;
use crate::driver::Ordered;
use crate::engine::Engine;
use crate::handle::Handle;
use crate::history::History;
use crate::participants::{Peer, reason_of};
use crate::surroundings::Surroundings;

/// Time for one question to one participant.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a participant to finish a branch by order.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);

/// What does not change while the coordinator runs.
#[derive(Debug)]
pub struct Facts {
    /// The cluster's name.
    pub cluster: String,
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// The configuration in force.
    pub settings: Vec<v1::Setting>,
    /// The machine.
    pub surroundings: Arc<dyn Surroundings>,
    /// Where accounts and products live.
    pub placement: Placement,
}

/// AdminService.
#[derive(Clone, Debug)]
pub struct AdminGateway {
    handle: Handle,
    history: History,
    counters: Arc<Counters>,
    facts: Arc<Facts>,
    accepting: Arc<AtomicBool>,
    start_ms: u64,
}

impl AdminGateway {
    /// The service on a driver. `accepting` turns false while the coordinator drains.
    pub fn new(
        handle: Handle,
        history: History,
        counters: Arc<Counters>,
        facts: Facts,
        accepting: Arc<AtomicBool>,
    ) -> Self {
        let start_ms = facts.surroundings.unix_ms();
        let facts = Arc::new(facts);
        Self {
            handle,
            history,
            counters,
            facts,
            accepting,
            start_ms,
        }
    }

    fn participants(&self) -> Vec<v1::ParticipantInfo> {
        self.handle
            .peers()
            .all()
            .iter()
            .map(|peer| self.participant(peer))
            .collect()
    }

    fn participant(&self, peer: &Peer) -> v1::ParticipantInfo {
        let health = peer.health();
        v1::ParticipantInfo {
            name: peer.name.to_string(),
            address: peer.address.clone(),
            connected: health.connected,
            status: health.status,
            outstanding: u32::try_from(health.outstanding).unwrap_or(u32::MAX),
            reason: health.reason.as_ref().map(Into::into),
            slots: self.facts.placement.slots_of(&peer.name),
        }
    }

    /// The branch's participant: named, or known from the transaction.
    async fn participant_of(&self, order: &ResolveBranch) -> Result<ParticipantName, Reason> {
        let gtrid = order.branch.gtrid;
        let known = match self.handle.look(gtrid).await? {
            Seen::Live(tx) => tx.branch(order.branch.bqual).map(|b| b.participant.clone()),
            _ => None,
        };
        let known = known.or_else(|| {
            let tx = self.history.get(gtrid)?;
            tx.branches
                .get(&order.branch.bqual)
                .map(|branch| branch.participant.clone())
        });
        match (known, order.participant.clone()) {
            (Some(known), Some(named)) if known != named => {
                let text = format!("branch {} is on {known}, not on {named}", order.branch);
                Err(Reason::new(code::WRONG_STATE, text))
            }
            (Some(name), _) | (None, Some(name)) => Ok(name),
            (None, None) => {
                let text = format!(
                    "the coordinator does not know branch {}: name its participant, which \
                     ListInDoubt shows",
                    order.branch
                );
                Err(Reason::new(code::BRANCH_NOT_FOUND, text))
            }
        }
    }

    /// What the ledgers of all other participants say of the transaction: true when a branch of
    /// it is committed, false when one has an abort's tombstone, None when none says anything.
    async fn sibling(&self, gtrid: Gtrid, except: &ParticipantName) -> Option<bool> {
        let sql = "SELECT state FROM concord.ledger WHERE gtrid = ?";
        let asks = self
            .handle
            .peers()
            .all()
            .iter()
            .filter(|peer| peer.name != *except)
            .map(|peer| {
                let params = vec![Value::Bytes(gtrid.0.to_vec())];
                let statement = Statement {
                    sql: sql.into(),
                    params,
                    expect: None,
                };
                self.handle.query(&peer.name, statement, ASK_TIMEOUT)
            });
        let answers = join_all(asks).await;
        let states: Vec<i64> = answers
            .into_iter()
            .flatten()
            .flat_map(|result| result.result)
            .filter_map(|row| match row.values.into_iter().next()?.kind? {
                v1::value::Kind::Int64(state) => Some(state),
                v1::value::Kind::Uint64(state) => i64::try_from(state).ok(),
                _ => None,
            })
            .collect();
        // 1 is a branch's own row, 2 a tombstone: see the participant's ledger.
        if states.contains(&1) {
            Some(true)
        } else {
            states.contains(&2).then_some(false)
        }
    }

    async fn order(
        &self,
        branch: BranchId,
        participant: &ParticipantName,
        resolution: Resolution,
        reason: String,
    ) -> Result<Finish, Reason> {
        let peer = self.handle.peers().get(participant)?;
        let resolution = match resolution {
            Resolution::Commit => v1::Resolution::Commit,
            Resolution::Abort => v1::Resolution::Abort,
        };
        let request = v1::ResolveRequest {
            branch: Some(branch_ref(branch, self.facts.epoch)),
            resolution: resolution.into(),
            reason,
        };
        let unknown = |why: &dyn fmt::Display| {
            let text = format!(
                "{participant} was told, and it is not known whether the branch ended as ordered: \
                 {why}"
            );
            Reason::new(code::OUTCOME_UNKNOWN, text)
        };
        match timeout(RESOLVE_TIMEOUT, peer.client().resolve(request)).await {
            Ok(Ok(response)) => link::resolved(&response.into_inner()),
            Ok(Err(status)) => {
                let reason = reason_of(participant, &status);
                let was_told = is_of_transport(&status) && connect_failure(&status).is_none();
                Err(if was_told { unknown(&reason) } else { reason })
            }
            Err(_) => Err(unknown(&format_args!("no answer in {RESOLVE_TIMEOUT:?}"))),
        }
    }
}

#[tonic::async_trait]
impl AdminService for AdminGateway {
    async fn get_cluster_status(
        &self,
        _: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::GetClusterStatusResponse>, Status> {
        let numbers = self
            .handle
            .numbers()
            .await
            .map_err(|reason| status(&reason))?;
        Ok(Response::new(v1::GetClusterStatusResponse {
            cluster: self.facts.cluster.clone(),
            epoch: self.facts.epoch.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_time: Some(timestamp(self.start_ms)),
            pid: std::process::id(),
            accepting: self.accepting.load(Ordering::Relaxed),
            active: numbers.active,
            committing: numbers.committing,
            stuck: numbers.stuck,
            counters: Some(self.counters.snapshot()),
            log_decisions: numbers.remembered + u64::from(numbers.committing),
            log_bytes: numbers.log_bytes,
            participants: self.participants(),
        }))
    }

    async fn list_participants(
        &self,
        _: Request<v1::ListParticipantsRequest>,
    ) -> Result<Response<v1::ListParticipantsResponse>, Status> {
        let mut participants = self.participants();
        participants.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(v1::ListParticipantsResponse { participants }))
    }

    async fn list_in_doubt(
        &self,
        request: Request<v1::ListInDoubtRequest>,
    ) -> Result<Response<v1::ListInDoubtResponse>, Status> {
        let page = door::list_in_doubt(&request.into_inner())?;
        let mut response = in_doubt::list(self.handle.peers(), &page).await;
        for found in &mut response.branches {
            let Some(gtrid) = found
                .branch
                .as_ref()
                .and_then(|b| text::parse_gtrid(&b.gtrid))
            else {
                continue;
            };
            let seen = self
                .handle
                .look(gtrid)
                .await
                .map_err(|reason| status(&reason))?;
            if !matches!(seen, Seen::Nothing | Seen::Forgotten) {
                let history = self.history.get(gtrid);
                found.transaction = view::of_seen(gtrid, seen, history.as_ref()).ok();
            }
        }
        Ok(Response::new(response))
    }

    async fn resolve_branch(
        &self,
        request: Request<v1::ResolveBranchRequest>,
    ) -> Result<Response<v1::ResolveBranchResponse>, Status> {
        let order = door::resolve_branch(request.into_inner())?;
        let (branch, gtrid) = (order.branch, order.branch.gtrid);
        let participant = self
            .participant_of(&order)
            .await
            .map_err(|reason| status(&reason))?;
        let refuse = |reason: Reason| status_of(&reason, Some(gtrid), Some(&participant));
        // Nothing is put on record for somebody who does not exist.
        self.handle.peers().get(&participant).map_err(refuse)?;
        let resolve = Resolve {
            branch,
            participant: participant.clone(),
            commit: order.resolution == Resolution::Commit,
            sibling: self.sibling(gtrid, &participant).await,
            force: order.force,
            reason: Reason::new(code::OPERATOR, order.reason.as_str()),
            token: 0,
        };
        let heuristic = match self.handle.resolve(resolve).await.map_err(refuse)? {
            Ordered::Go { heuristic, .. } => heuristic,
            Ordered::Refused(reason) => return Err(refuse(reason)),
        };
        tracing::warn!(%branch, %participant, resolution = ?order.resolution, heuristic,
            reason = order.reason, "an operator resolves a branch");
        let finish = self
            .order(branch, &participant, order.resolution, order.reason)
            .await
            .map_err(|reason| {
                if !heuristic {
                    return refuse(reason);
                }
                // It stays on record: a participant that has the branch acts on it when it asks.
                let text = format!("the order is on record as a heuristic outcome: {reason}");
                let code = if reason.kind() == ReasonKind::NotFound {
                    reason.code
                } else {
                    code::OUTCOME_UNKNOWN.into()
                };
                refuse(Reason::new(code, text))
            })?;
        let (finish, _) = link::finish_parts(finish);
        Ok(Response::new(v1::ResolveBranchResponse {
            finish: finish.into(),
            heuristic,
        }))
    }

    async fn get_config(
        &self,
        _: Request<v1::GetConfigRequest>,
    ) -> Result<Response<v1::GetConfigResponse>, Status> {
        Ok(Response::new(v1::GetConfigResponse {
            settings: self.facts.settings.clone(),
        }))
    }

    async fn update_config(
        &self,
        request: Request<v1::UpdateConfigRequest>,
    ) -> Result<Response<v1::UpdateConfigResponse>, Status> {
        let wanted = door::update_config(request.into_inner())?;
        let key = wanted.keys().next().cloned().unwrap_or_default();
        let text = format!("{key} cannot be changed while running; restart with a new value");
        Err(status(&Reason::new(code::WRONG_STATE, text)))
    }

    type TailLogsStream = Pin<Box<dyn Stream<Item = Result<v1::TailLogsResponse, Status>> + Send>>;

    async fn tail_logs(
        &self,
        _: Request<v1::TailLogsRequest>,
    ) -> Result<Response<Self::TailLogsStream>, Status> {
        Err(Status::unimplemented(
            "this version does not stream its log; read its standard error",
        ))
    }

    type WatchMetricsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchMetricsResponse, Status>> + Send>>;

    async fn watch_metrics(
        &self,
        request: Request<v1::WatchMetricsRequest>,
    ) -> Result<Response<Self::WatchMetricsStream>, Status> {
        let every = door::watch_metrics(request.into_inner())?;
        let mut tick = interval(every);
        // What was missed is not told twice at once.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stream = futures::stream::unfold((tick, self.clone()), |(mut tick, this)| async move {
            tick.tick().await;
            let numbers = this.handle.numbers().await.ok()?;
            let shown = v1::WatchMetricsResponse {
                time: Some(timestamp(this.facts.surroundings.unix_ms())),
                counters: Some(this.counters.snapshot()),
                active: numbers.active,
                committing: numbers.committing,
            };
            Some((Ok(shown), (tick, this)))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
