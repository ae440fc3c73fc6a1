//! TransactionService: anyone's own SQL, at once or statement by statement.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use concord_core::coordinator::Seen;
use concord_core::id::{Gtrid, ParticipantName};
use concord_core::planted::{self, Bug};
use concord_core::reason::{Reason, code};
use concord_core::transaction::Ack;
use concord_proto::convert::common::timeout_ms;
use concord_proto::convert::transaction::{self as door, TransactionRef};
use concord_proto::convert::work::branch_ref;
use concord_proto::convert::{page, text};
use concord_proto::model::Statement;
use concord_proto::status::{gtrid_of, outcome_unknown, reason_of, status, status_of};
use concord_proto::v1;
use concord_proto::v1::transaction_service_server::TransactionService;
use futures::{Stream, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use super::status::of_failure;
use super::view;
use crate::counters::{Counters, count};
use crate::driver::Enlisted;
use crate::engine::{AckMode, BranchWork, Engine, Executed, OneShot};
use crate::handle::Handle;
use crate::history::{Change, History};
use crate::participants;

/// TransactionService.
#[derive(Clone, Debug)]
pub struct TransactionGateway {
    handle: Handle,
    history: History,
    counters: Arc<Counters>,
    epoch: concord_core::id::Epoch,
}

impl TransactionGateway {
    /// The service on a driver.
    pub fn new(
        handle: Handle,
        history: History,
        counters: Arc<Counters>,
        epoch: concord_core::id::Epoch,
    ) -> Self {
        Self {
            handle,
            history,
            counters,
            epoch,
        }
    }

    fn refused<T>(&self, result: Result<T, impl Into<Status>>) -> Result<T, Status> {
        result.map_err(|refusal| {
            count(&self.counters.refused);
            refusal.into()
        })
    }

    /// How a transaction ended that is not running any more.
    async fn ended(&self, gtrid: Gtrid, not_running: &Reason) -> Result<(), Status> {
        let seen = self
            .handle
            .look(gtrid)
            .await
            .map_err(|reason| status(&reason))?;
        let history = self.history.get(gtrid);
        let reason = match seen {
            Seen::Ended {
                outcome: concord_core::message::Outcome::Committed,
                ..
            } => {
                return Ok(());
            }
            Seen::Ended {
                outcome:
                    concord_core::message::Outcome::Aborted(reason)
                    | concord_core::message::Outcome::Damaged(reason),
                ..
            } => reason,
            Seen::Live(tx) if !tx.is_undecided() => match tx.reason {
                Some(reason) => reason,
                // Decided to commit; branches are still being told.
                None => return Ok(()),
            },
            Seen::Live(_) => return Err(outcome_unknown(gtrid)),
            _ => match history {
                Some(tx) if tx.state == concord_core::transaction::TransactionState::Committed => {
                    return Ok(());
                }
                Some(tx) => tx.reason.unwrap_or_else(|| not_running.clone()),
                None => not_running.clone(),
            },
        };
        Err(status_of(&reason, Some(gtrid), None))
    }

    /// Runs a statement in its branch, which is begun first when it is new.
    async fn in_branch(
        &self,
        enlisted: Enlisted,
        participant: &ParticipantName,
        statement: Statement,
    ) -> Result<v1::StatementResult, Reason> {
        let peer = self.handle.peers().get(participant)?;
        let branch = Some(branch_ref(enlisted.branch, self.epoch));
        let left = enlisted.deadline.saturating_duration_since(Instant::now());
        let call = async {
            if enlisted.new {
                let begin = v1::BeginRequest {
                    branch,
                    isolation: v1::Isolation::from(enlisted.isolation).into(),
                    timeout_ms: timeout_ms(left).max(1),
                };
                peer.client().begin(begin).await?;
            }
            let branch = Some(branch_ref(enlisted.branch, self.epoch));
            let execute = v1::ExecuteRequest {
                branch,
                statement: Some(statement.into()),
            };
            peer.client().execute(execute).await
        };
        match timeout_at(enlisted.deadline, call).await {
            Ok(Ok(response)) => participants::result_of(participant, response.into_inner().result),
            Ok(Err(status)) => Err(participants::reason_of(participant, &status)),
            Err(_) => {
                let text = "the time-out of the transaction passed while a statement was running";
                Err(Reason::new(code::DEADLINE_EXCEEDED, text))
            }
        }
    }
}

/// Statements by participant, and the way back: each statement's branch and place in it.
fn group(statements: Vec<(ParticipantName, Statement)>) -> (Vec<BranchWork>, Vec<(usize, usize)>) {
    let mut branches: Vec<BranchWork> = Vec::new();
    let mut index: HashMap<ParticipantName, usize> = HashMap::new();
    let mut places = Vec::with_capacity(statements.len());
    for (participant, statement) in statements {
        let at = *index.entry(participant.clone()).or_insert_with(|| {
            branches.push(BranchWork {
                participant,
                statements: Vec::new(),
            });
            branches.len() - 1
        });
        places.push((at, branches[at].statements.len()));
        branches[at].statements.push(statement);
    }
    (branches, places)
}

/// A result for each statement; none when one is missing, which is told and never made up.
fn ungroup(executed: &mut Executed, places: &[(usize, usize)]) -> Option<Vec<v1::StatementResult>> {
    let mut take = |(branch, place): &(usize, usize)| {
        let results = executed.results.get_mut(*branch)?;
        let result = results.get_mut(*place).map(std::mem::take);
        result.or_else(|| planted::is(Bug::LostResultsMadeUp).then(Default::default))
    };
    places.iter().map(&mut take).collect()
}

/// Whether the transaction itself was not found. It may have been aborted because something else
/// was not: an account, a participant.
fn is_unknown(status: &Status) -> bool {
    reason_of(status).is_none_or(|reason| &*reason.code == code::TRANSACTION_NOT_FOUND)
}

#[tonic::async_trait]
impl TransactionService for TransactionGateway {
    async fn execute(
        &self,
        request: Request<v1::ExecuteTransactionRequest>,
    ) -> Result<Response<v1::ExecuteTransactionResponse>, Status> {
        let wanted = self.refused(door::execute(request.into_inner()))?;
        let (branches, places) = group(wanted.statements);
        let tx = OneShot {
            gtrid: self.handle.mint(),
            branches,
            request: wanted.request,
            isolation: wanted.isolation,
            ack: match wanted.ack {
                Ack::Applied => AckMode::Applied,
                Ack::Decided => AckMode::Decided,
            },
            timeout: wanted.timeout,
        };
        match self.handle.execute(tx).await {
            Ok(mut executed) => {
                let results = ungroup(&mut executed, &places);
                Ok(Response::new(v1::ExecuteTransactionResponse {
                    gtrid: executed.gtrid.to_string(),
                    results_lost: results.is_none() && !executed.replayed,
                    results: results.unwrap_or_default(),
                    replayed: executed.replayed,
                }))
            }
            Err(failure) => Err(of_failure(&failure)),
        }
    }

    async fn begin(
        &self,
        request: Request<v1::BeginTransactionRequest>,
    ) -> Result<Response<v1::BeginTransactionResponse>, Status> {
        let wanted = self.refused(door::begin(request.into_inner()))?;
        let begun = self.handle.begin(wanted.isolation, wanted.timeout).await;
        let gtrid = self.refused(begun.map_err(|reason| status(&reason)))?;
        Ok(Response::new(v1::BeginTransactionResponse {
            gtrid: gtrid.to_string(),
        }))
    }

    async fn execute_statement(
        &self,
        request: Request<v1::ExecuteStatementRequest>,
    ) -> Result<Response<v1::ExecuteStatementResponse>, Status> {
        let request = request.into_inner();
        let known = text::parse_gtrid(&request.gtrid);
        let wanted = match self.refused(door::execute_statement(request)) {
            Ok(wanted) => wanted,
            Err(refusal) => {
                if let Some(gtrid) = known {
                    let reason = Reason::new(code::INVALID_FIELD, refusal.message());
                    self.handle.statement_done(gtrid, Some(reason)).await;
                }
                return Err(refusal);
            }
        };
        let this = self.clone();
        // On a task of its own: a client that goes away leaves no statement unaccounted for.
        let running = tokio::spawn(async move {
            let (gtrid, participant) = (wanted.gtrid, wanted.participant);
            let enlisted = match this.handle.enlist(gtrid, participant.clone()).await {
                Ok(enlisted) => enlisted,
                Err(reason) => {
                    match &*reason.code {
                        code::TRANSACTION_NOT_FOUND => this.ended(gtrid, &reason).await?,
                        // It is being ended, or another statement runs: this call changes nothing.
                        code::WRONG_STATE => {}
                        // Its client counts it as aborted, and must not be able to commit the rest.
                        _ => {
                            this.handle
                                .statement_done(gtrid, Some(reason.clone()))
                                .await;
                        }
                    }
                    return Err(status_of(&reason, Some(gtrid), Some(&participant)));
                }
            };
            let result = this
                .in_branch(enlisted, &participant, wanted.statement)
                .await;
            let failed = result.as_ref().err().cloned();
            this.handle.statement_done(gtrid, failed).await;
            result.map_err(|reason| status_of(&reason, Some(gtrid), Some(&participant)))
        });
        let result = running
            .await
            .map_err(|_| Status::internal("the statement's task ended"))?;
        Ok(Response::new(v1::ExecuteStatementResponse {
            result: Some(result?),
        }))
    }

    async fn commit(
        &self,
        request: Request<v1::CommitTransactionRequest>,
    ) -> Result<Response<v1::CommitTransactionResponse>, Status> {
        let (gtrid, ack) = self.refused(door::commit(&request.into_inner()))?;
        let response = v1::CommitTransactionResponse {
            gtrid: gtrid.to_string(),
        };
        match self.handle.commit(gtrid, ack).await {
            Ok(_) => Ok(Response::new(response)),
            Err(crate::engine::Failure::Refused(reason)) => {
                if &*reason.code == code::TRANSACTION_NOT_FOUND {
                    // A repeated Commit gets the outcome of the first.
                    self.ended(gtrid, &reason).await?;
                    return Ok(Response::new(response));
                }
                Err(status_of(&reason, Some(gtrid), None))
            }
            Err(failure) => Err(of_failure(&failure)),
        }
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackTransactionRequest>,
    ) -> Result<Response<v1::RollbackTransactionResponse>, Status> {
        let gtrid = self.refused(door::rollback(&request.into_inner()))?;
        let reason = Reason::new(code::ROLLED_BACK, "the client rolled the transaction back");
        match self.handle.rollback(gtrid, reason).await {
            Err(crate::engine::Failure::Aborted { .. }) => {
                Ok(Response::new(v1::RollbackTransactionResponse {}))
            }
            Err(crate::engine::Failure::Refused(reason)) => {
                if &*reason.code != code::TRANSACTION_NOT_FOUND {
                    return Err(status_of(&reason, Some(gtrid), None));
                }
                match self.ended(gtrid, &reason).await {
                    Ok(()) => {
                        let text = format!("transaction {gtrid} is committed");
                        let reason = Reason::new(code::WRONG_STATE, text);
                        Err(status_of(&reason, Some(gtrid), None))
                    }
                    // Aborted already: that is what the client wants.
                    Err(status)
                        if !is_unknown(&status)
                            && gtrid_of(&status).is_some()
                            && reason_of(&status).is_some_and(|r| !r.leaves_outcome_open()) =>
                    {
                        Ok(Response::new(v1::RollbackTransactionResponse {}))
                    }
                    Err(status) => Err(status),
                }
            }
            Err(failure) => Err(of_failure(&failure)),
            Ok(_) => {
                let text = format!("transaction {gtrid} is committed");
                Err(status_of(
                    &Reason::new(code::WRONG_STATE, text),
                    Some(gtrid),
                    None,
                ))
            }
        }
    }

    async fn get_transaction(
        &self,
        request: Request<v1::GetTransactionRequest>,
    ) -> Result<Response<v1::GetTransactionResponse>, Status> {
        let wanted = self.refused(door::get(&request.into_inner()))?;
        let (gtrid, seen) = match wanted {
            TransactionRef::Gtrid(gtrid) => (gtrid, self.handle.look(gtrid).await),
            TransactionRef::RequestId(id) => {
                let what = format!("request {id:?}");
                let seen = self
                    .handle
                    .look_up(id)
                    .await
                    .map_err(|reason| status(&reason))?;
                let gtrid = match &seen {
                    Seen::Live(tx) => tx.gtrid,
                    Seen::Ended { gtrid, .. } => *gtrid,
                    Seen::Nothing | Seen::Forgotten => {
                        return Err(status(&view::not_found(&what)));
                    }
                };
                (gtrid, Ok(seen))
            }
        };
        let seen = seen.map_err(|reason| status(&reason))?;
        let history = self.history.get(gtrid);
        let transaction = view::of_seen(gtrid, seen, history.as_ref())
            .map_err(|reason| status_of(&reason, Some(gtrid), None))?;
        Ok(Response::new(v1::GetTransactionResponse {
            transaction: Some(transaction),
        }))
    }

    async fn list_transactions(
        &self,
        request: Request<v1::ListTransactionsRequest>,
    ) -> Result<Response<v1::ListTransactionsResponse>, Status> {
        let wanted = self.refused(door::list(&request.into_inner()))?;
        let before = wanted.page.after.as_deref().and_then(text::parse_gtrid);
        let found = self.history.list(before, wanted.page.size + 1, |tx| {
            (wanted.states.is_empty() || wanted.states.contains(&tx.state))
                && (!wanted.stuck_only || tx.is_stuck())
        });
        let shown = &found[..found.len().min(wanted.page.size)];
        let next_page_token = match shown.last() {
            Some(last) if found.len() > shown.len() => {
                page::token(door::TRANSACTIONS, &last.gtrid.to_string())
            }
            _ => String::new(),
        };
        let transactions = shown.iter().map(view::of_history).collect();
        Ok(Response::new(v1::ListTransactionsResponse {
            transactions,
            next_page_token,
        }))
    }

    type WatchTransactionsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchTransactionsResponse, Status>> + Send>>;

    async fn watch_transactions(
        &self,
        request: Request<v1::WatchTransactionsRequest>,
    ) -> Result<Response<Self::WatchTransactionsStream>, Status> {
        let only = self.refused(door::watch(&request.into_inner()))?;
        let changes = futures::stream::unfold(
            (self.history.watch(), 0),
            |(mut rx, mut missed)| async move {
                loop {
                    match rx.recv().await {
                        Ok(change) => return Some(((change, missed), (rx, 0))),
                        Err(RecvError::Lagged(count)) => missed += count,
                        Err(RecvError::Closed) => return None,
                    }
                }
            },
        );
        let history = self.history.clone();
        let stream = changes.filter_map(move |(change, missed): (Arc<Change>, u64)| {
            let shown = match only.filter(|gtrid| *gtrid != change.gtrid) {
                None => Some(view::of_change(&change, missed)),
                Some(_) if missed == 0 => None,
                // Its end may be among them.
                Some(gtrid) => history
                    .state_of(gtrid)
                    .map(|now| view::of_change(&now, missed)),
            };
            std::future::ready(shown.map(Ok))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
