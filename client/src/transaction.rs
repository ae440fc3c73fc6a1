//! [`Transaction`]: an interactive transaction, statement by statement.
//!
//! It commits only when [`Transaction::commit`] is called. Whatever else happens to it, an early
//! return, a panic, a lost connection, ends in a rollback.

use std::time::Duration;

use concord_core::reason::{Reason, code};
use tokio::runtime::Handle;

use crate::client::Client;
use crate::error::CallError;
use crate::oneshot::millis;
use crate::outcome::Outcome;
use crate::statement::Statement;
use crate::v1;

/// An interactive transaction. See [`Client::begin`].
///
/// Dropping it before [`commit`](Self::commit) rolls it back: a task on the runtime that was
/// current at `begin` sends the rollback in the background. Should that runtime end first, the
/// coordinator rolls the transaction back when its time-out passes. It is never committed by
/// accident.
#[derive(Debug)]
#[must_use = "dropping a transaction rolls it back"]
pub struct Transaction {
    client: Client,
    gtrid: String,
    progress: Progress,
    runtime: Handle,
}

#[derive(Clone, Debug)]
enum Progress {
    /// Statements may come.
    Open,
    /// A statement failed; the coordinator has aborted, or must be told to.
    Failed { reason: Reason, told: bool },
    /// Commit or rollback was sent: from then on the coordinator alone decides.
    Finished,
}

impl Client {
    /// Begins an interactive transaction with the servers' own isolation level and the default
    /// time-out of 60 s.
    pub async fn begin(&self) -> Result<Transaction, CallError> {
        self.begin_with(v1::Isolation::Unspecified, None).await
    }

    /// Begins an interactive transaction. After `timeout` it is aborted if it is not decided.
    pub async fn begin_with(
        &self,
        isolation: v1::Isolation,
        timeout: Option<Duration>,
    ) -> Result<Transaction, CallError> {
        let request = v1::BeginTransactionRequest {
            isolation: isolation.into(),
            timeout_ms: timeout.map_or(0, millis),
        };
        // A Begin whose answer was lost leaves an empty transaction that its time-out removes, so
        // a second one does no harm.
        let gtrid = self.read(|| self.begin_once(request)).await?.gtrid;
        Ok(Transaction {
            client: self.clone(),
            gtrid,
            progress: Progress::Open,
            runtime: Handle::current(),
        })
    }
}

impl Transaction {
    /// The transaction's id in text form.
    pub fn gtrid(&self) -> &str {
        &self.gtrid
    }

    /// Runs one statement. After an error the transaction can only be rolled back, and a commit
    /// answers with that error.
    pub async fn execute(
        &mut self,
        participant: &str,
        statement: impl Into<Statement>,
    ) -> Result<v1::StatementResult, CallError> {
        if let Progress::Failed { reason, .. } = &self.progress {
            let gtrid = Some(self.gtrid.clone());
            return Err(CallError::Refused {
                reason: reason.clone(),
                gtrid,
            });
        }
        let request = v1::ExecuteStatementRequest {
            gtrid: self.gtrid.clone(),
            statement: Some(statement.into().on(participant)),
        };
        // Until the answer is there the statement may or may not have run: a caller that gives up
        // waiting must not be able to commit half of its work.
        let lost = Reason::new(
            code::CLIENT_GONE,
            "a statement was given up before its answer",
        );
        self.progress = Progress::Failed {
            reason: lost,
            told: false,
        };
        match self.client.execute_statement_once(request).await {
            Ok(answer) => {
                self.progress = Progress::Open;
                Ok(answer.result.unwrap_or_default())
            }
            Err(error) => {
                let told = matches!(error, CallError::Refused { .. });
                let reason = error.reason().cloned().unwrap_or_else(|| {
                    Reason::new(
                        code::CLIENT_GONE,
                        format!("rolled back by the client: {error}"),
                    )
                });
                self.progress = Progress::Failed { reason, told };
                Err(error)
            }
        }
    }

    /// Commits, and answers once every branch has applied it.
    pub async fn commit(self) -> Outcome {
        self.commit_with(v1::Ack::Applied).await
    }

    /// Commits, and answers when `ack` says. It is sent once: a commit that was lost on its way
    /// and one whose answer was lost look the same. Ask [`Client::outcome_of`] then.
    pub async fn commit_with(mut self, ack: v1::Ack) -> Outcome {
        if let Progress::Failed { reason, .. } = &self.progress {
            let reason = reason.clone();
            let gtrid = Some(self.gtrid.clone());
            // Dropping `self` sends the rollback where it is still needed.
            return Outcome::Aborted { reason, gtrid };
        }
        let request = v1::CommitTransactionRequest {
            gtrid: self.gtrid.clone(),
            ack: ack.into(),
        };
        self.progress = Progress::Finished;
        match self.client.commit_once(request).await {
            Ok(answer) => Outcome::Committed {
                gtrid: answer.gtrid,
                results: Vec::new(),
                replayed: false,
                results_lost: false,
            },
            Err(error) => {
                if matches!(error, CallError::NotSent { .. }) {
                    // Nothing was sent, so it may still be rolled back; dropping does.
                    self.progress = Progress::Open;
                }
                Outcome::failed(error, "", Some(&self.gtrid))
            }
        }
    }

    /// Rolls back and waits for the coordinator's word. An error does not mean that it is
    /// committed: it never will be.
    pub async fn rollback(mut self) -> Result<(), CallError> {
        if let Progress::Failed { told: true, .. } = self.progress {
            self.progress = Progress::Finished;
            return Ok(());
        }
        let request = v1::RollbackTransactionRequest {
            gtrid: self.gtrid.clone(),
        };
        let answer = self
            .client
            .read(|| self.client.rollback_once(request.clone()))
            .await;
        if answer.is_ok() {
            self.progress = Progress::Finished;
        }
        answer.map(|_| ())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let needed = match self.progress {
            Progress::Open => true,
            Progress::Failed { told, .. } => !told,
            Progress::Finished => false,
        };
        if needed {
            let client = self.client.clone();
            let request = v1::RollbackTransactionRequest {
                gtrid: self.gtrid.clone(),
            };
            self.runtime.spawn(async move {
                if let Err(error) = client.read(|| client.rollback_once(request.clone())).await {
                    tracing::debug!(%error, "a dropped transaction is left to its time-out");
                }
            });
        }
    }
}
