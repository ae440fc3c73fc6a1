//! The participant's gRPC service: the door, the driver, and the way back.
//!
//! Every request is validated by `concord_proto::convert` before anything else happens. Orders
//! about branches go to the driver, whether they come alone or on a link; what only reads, or
//! changes nothing of a branch, goes to the resource manager.

use std::pin::Pin;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use concord_core::id::{Bqual, BranchId, Epoch, Gtrid, ParticipantName};
use concord_core::message::Finish;
use concord_core::reason::{Reason, code};
use concord_proto::convert::link::{Finished, unfinished_bytes};
use concord_proto::convert::participant as door;
use concord_proto::convert::work::branch_ref;
use concord_proto::convert::{At, Page, Violations, page, text, time};
use concord_proto::{status, v1};
use futures::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::driver::{Answer, BranchView, Handle, Order};
use crate::link::Links;
use crate::migrate;
use crate::resource::{Health, LedgerEntry, Recovered, ResourceManager};

/// Reports of damage in one status.
const DAMAGE_MAX: u32 = 100;

/// Who this participant is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name in the cluster.
    pub name: ParticipantName,
    /// The cluster's name.
    pub cluster: String,
}

/// Serves `concord.v1.Participant`.
#[derive(Debug)]
pub struct Service<R> {
    /// Who this is.
    pub identity: Identity,
    /// The driver.
    pub handle: Handle,
    /// The server behind it.
    pub rm: Arc<R>,
    /// The coordinators' links.
    pub links: Links,
    /// Whether the participant takes new branches, for `can_vote`.
    pub open: watch::Receiver<bool>,
}

type Answered<T> = Result<Response<T>, Status>;

impl<R: ResourceManager> Service<R> {
    fn refused(&self, reason: &Reason, branch: Option<BranchId>) -> Status {
        let gtrid = branch.map(|branch| branch.gtrid);
        status::status_of(reason, gtrid, Some(&self.identity.name))
    }

    fn server_says(&self, reason: &Reason) -> Status {
        self.refused(reason, None)
    }

    /// Gives an order. What is neither refused nor impossible now goes through `expected`.
    async fn order<T>(
        &self,
        order: Order,
        expected: impl FnOnce(Answer) -> Option<T>,
    ) -> Answered<T> {
        let branch = order.branch();
        let reason = match self.handle.call(order).await {
            Answer::Refused(reason) | Answer::Unavailable(reason) => reason,
            answer => match expected(answer) {
                Some(response) => return Ok(Response::new(response)),
                None => Reason::new(code::UNEXPECTED_ANSWER, "the answer to another question"),
            },
        };
        Err(self.refused(&reason, Some(branch)))
    }

    /// Gives an order that ends a branch.
    async fn finish(&self, order: Order) -> Result<Finished, Status> {
        let finished = self.order(order, |answer| match answer {
            Answer::Finished(finished) => Some(finished),
            _ => None,
        });
        Ok(finished.await?.into_inner())
    }

    fn stopped(&self) -> Status {
        let reason = Reason::new(code::SHUTTING_DOWN, "the participant stops");
        self.refused(&reason, None)
    }

    /// What is known of a branch that is neither here nor listed by the server.
    async fn resolved_before(
        &self,
        branch: BranchId,
        wanted: door::Resolution,
    ) -> Answered<v1::ResolveResponse> {
        let found = self.rm.ledger(branch).await;
        let committed = match found.map_err(|reason| self.server_says(&reason))? {
            LedgerEntry::Committed => true,
            LedgerEntry::Tombstone => false,
            LedgerEntry::Absent => {
                let text = format!("branch {branch} is neither prepared here nor in the ledger");
                let reason = Reason::new(code::BRANCH_NOT_FOUND, text);
                return Err(self.refused(&reason, Some(branch)));
            }
        };
        let finish = if committed {
            Finish::Committed
        } else {
            Finish::Aborted(None)
        };
        let mut response = v1::ResolveResponse::from(finish);
        if committed != (wanted == door::Resolution::Commit) {
            let text = "the ledger says how it ended before, and that cannot be changed";
            response.reason = Some(Reason::new(code::CONTRADICTS_OUTCOME, text).into());
        }
        Ok(Response::new(response))
    }

    fn problems(&self, health: &Health) -> Vec<v1::Reason> {
        let mut problems: Vec<v1::Reason> = health.problems.iter().map(Into::into).collect();
        // A server that nobody has looked at yet is not known to be away. Were it called so, then
        // work would be refused that has to wait for the first look only.
        let unseen = problems.is_empty() && !health.reachable;
        if unseen || (!*self.open.borrow() && health.can_vote()) {
            let text = "the participant is starting or stopping";
            problems.push(Reason::new(code::SHUTTING_DOWN, text).into());
        }
        problems
    }
}

#[tonic::async_trait]
impl<R: ResourceManager> v1::participant_server::Participant for Service<R> {
    async fn begin(&self, request: Request<v1::BeginRequest>) -> Answered<v1::BeginResponse> {
        let order = Order::Begin(door::begin(request.into_inner())?);
        let answer = self.order(order, |answer| {
            matches!(answer, Answer::Begun).then_some(v1::BeginResponse {})
        });
        answer.await
    }

    async fn execute(&self, request: Request<v1::ExecuteRequest>) -> Answered<v1::ExecuteResponse> {
        let order = Order::Execute(door::execute(request.into_inner())?);
        let answer = self.order(order, |answer| match answer {
            Answer::Executed(result) => Some(v1::ExecuteResponse {
                result: Some(result),
            }),
            _ => None,
        });
        answer.await
    }

    async fn prepare(&self, request: Request<v1::PrepareRequest>) -> Answered<v1::PrepareResponse> {
        let order = Order::Prepare(door::prepare(request.into_inner())?);
        let answer = self.order(order, |answer| match answer {
            Answer::Voted(voted) => Some(voted.into()),
            _ => None,
        });
        answer.await
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Answered<v1::CommitResponse> {
        let order = Order::Commit(door::commit(request.into_inner())?);
        Ok(Response::new(self.finish(order).await?.into()))
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Answered<v1::AbortResponse> {
        let order = Order::Abort(door::abort(request.into_inner())?);
        Ok(Response::new(self.finish(order).await?.into()))
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Answered<v1::QueryResponse> {
        let query = door::query(request.into_inner())?;
        let result = self.rm.query(&query.statement, query.timeout).await;
        let result = Some(result.map_err(|reason| self.server_says(&reason))?);
        Ok(Response::new(v1::QueryResponse { result }))
    }

    async fn list_branches(
        &self,
        request: Request<v1::ListBranchesRequest>,
    ) -> Answered<v1::ListBranchesResponse> {
        let page = door::list_branches(request.get_ref())?;
        let after = cursor(&page)?;
        // What the driver knows is shown also while the server cannot be asked.
        let listed = self.rm.recover().await.unwrap_or_default();
        let known = self.handle.branches(after, page.size + 1).await;
        let known = known.ok_or_else(|| self.stopped())?;
        Ok(Response::new(branches(&known, &listed, after, page.size)))
    }

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Answered<v1::GetStatusResponse> {
        let witnesses = door::get_status(request.into_inner())?;
        let lost = if witnesses.is_empty() {
            Vec::new()
        } else {
            let lost = self.rm.lost(&witnesses).await;
            lost.map_err(|reason| self.server_says(&reason))?
        };
        let health = self.rm.health().borrow().clone();
        let damage = if health.reachable {
            self.rm.damage(DAMAGE_MAX).await.unwrap_or_default()
        } else {
            Vec::new()
        };
        let connections = self.rm.connections();
        // Last: while the server hangs, what was unfinished before is news no more.
        let summary = self.handle.summary().await.unwrap_or_default();
        Ok(Response::new(v1::GetStatusResponse {
            name: self.identity.name.as_str().to_owned(),
            cluster: self.identity.cluster.clone(),
            can_vote: health.can_vote() && *self.open.borrow(),
            problems: self.problems(&health),
            incarnation: health.incarnation,
            server_version: health.server_version,
            epoch: summary.epoch.0,
            in_doubt: u32::try_from(summary.in_doubt).unwrap_or(u32::MAX),
            connections: connections.open,
            max_connections: connections.max,
            damage,
            pid: std::process::id(),
            missing_witness: lost
                .into_iter()
                .max()
                .map(|branch| branch_ref(branch, Epoch::default())),
            unfinished_from: unfinished_bytes(summary.unfinished_from),
        }))
    }

    type LinkStream = Pin<Box<dyn Stream<Item = Result<v1::LinkResponse, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<v1::LinkRequest>>,
    ) -> Answered<Self::LinkStream> {
        let answers = self.links.serve(self.handle.clone(), request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn acknowledge_damage(
        &self,
        request: Request<v1::AcknowledgeDamageRequest>,
    ) -> Answered<v1::AcknowledgeDamageResponse> {
        let id = door::acknowledge_damage(request.into_inner())?;
        let found = self.rm.acknowledge(id).await;
        if !found.map_err(|reason| self.server_says(&reason))? {
            let text = format!("there is no report of damage {id}");
            return Err(self.server_says(&Reason::new(code::DAMAGE_NOT_FOUND, text)));
        }
        tracing::info!(id, "an operator acknowledged a report of damage");
        Ok(Response::new(v1::AcknowledgeDamageResponse {}))
    }

    async fn resolve(&self, request: Request<v1::ResolveRequest>) -> Answered<v1::ResolveResponse> {
        let order = door::resolve(request.into_inner())?;
        let (branch, epoch) = (order.branch, order.epoch);
        let known = self.handle.knows(branch).await;
        if !known.ok_or_else(|| self.stopped())? {
            let listed = self.rm.recover().await;
            let listed = listed.map_err(|reason| self.server_says(&reason))?;
            if listed.ours.binary_search(&branch).is_err() {
                return self.resolved_before(branch, order.resolution).await;
            }
        }
        tracing::warn!(
            %branch, resolution = ?order.resolution, words = order.reason,
            "an operator finishes a branch by hand"
        );
        let order = match order.resolution {
            door::Resolution::Commit => Order::Commit(door::Commit {
                branch,
                epoch,
                one_phase: false,
                work: None,
            }),
            door::Resolution::Abort => Order::Abort(door::Abort { branch, epoch }),
        };
        Ok(Response::new(self.finish(order).await?.finish.into()))
    }

    async fn migrate(&self, request: Request<v1::MigrateRequest>) -> Answered<v1::MigrateResponse> {
        let plan = migrate::check(request.into_inner())?;
        let version = self.rm.migrate(&plan).await;
        let version = version.map_err(|reason| self.server_says(&reason))?;
        Ok(Response::new(v1::MigrateResponse { version }))
    }
}

/// The branch after which a page of branches begins.
fn cursor(page: &Page) -> Result<Option<BranchId>, Violations> {
    let Some(cursor) = &page.after else {
        return Ok(None);
    };
    let parse = || {
        let (gtrid, bqual) = cursor.split_once('/')?;
        let gtrid: Gtrid = text::parse_gtrid(gtrid)?;
        let bqual = Bqual(bqual.parse().ok()?);
        Some(BranchId { gtrid, bqual })
    };
    match parse() {
        Some(branch) => Ok(Some(branch)),
        None => Err(Violations::one(
            &At::root("page_token"),
            "is not a token of a former answer of this list",
        )),
    }
}

/// One page of what the driver knows and what the server lists, by branch.
fn branches(
    known: &[BranchView],
    listed: &Recovered,
    after: Option<BranchId>,
    size: usize,
) -> v1::ListBranchesResponse {
    let is_listed = |branch| listed.ours.binary_search(branch).is_ok();
    let only_listed = listed
        .ours
        .iter()
        .filter(|branch| after.is_none_or(|after| **branch > after))
        .filter(|branch| {
            known
                .binary_search_by_key(*branch, |view| view.branch)
                .is_err()
        })
        .take(size + 1)
        .map(|branch| (*branch, listed_branch(*branch)));
    let mut all: Vec<(BranchId, v1::ParticipantBranch)> = known
        .iter()
        .map(|view| (view.branch, known_branch(view, is_listed(&view.branch))))
        .chain(only_listed)
        .collect();
    all.sort_by_key(|(branch, _)| *branch);
    let more = all.len() > size;
    all.truncate(size);
    let next_page_token = match all.last() {
        Some((last, _)) if more => page::token(door::BRANCHES, &last.to_string()),
        _ => String::new(),
    };
    v1::ListBranchesResponse {
        branches: all.into_iter().map(|(_, branch)| branch).collect(),
        next_page_token,
        foreign_branches: listed.foreign,
    }
}

fn known_branch(view: &BranchView, listed_by_server: bool) -> v1::ParticipantBranch {
    let since = view.since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    v1::ParticipantBranch {
        gtrid: view.branch.gtrid.to_string(),
        bqual: view.branch.bqual.0,
        state: v1::BranchState::from(view.state).into(),
        since: Some(time::timestamp(since)),
        listed_by_server,
        reason: view.reason.as_ref().map(Into::into),
    }
}

/// A branch that the server has and that no sweep has found yet.
fn listed_branch(branch: BranchId) -> v1::ParticipantBranch {
    v1::ParticipantBranch {
        gtrid: branch.gtrid.to_string(),
        bqual: branch.bqual.0,
        state: v1::BranchState::Prepared.into(),
        since: None,
        listed_by_server: true,
        reason: None,
    }
}
