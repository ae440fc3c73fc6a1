//! Typed calls of every service: one method a call, lists that follow their pages.
//!
//! It decides nothing: what may be repeated is in `retry.rs`, what an error means in `error.rs`.

use tonic::Streaming;
use tonic::transport::Channel;

use crate::client::{ANSWER_BYTES_MAX, Client};
use crate::error::CallError;
use crate::outcome::Outcome;
use crate::v1;
use crate::v1::admin_service_client::AdminServiceClient;
use crate::v1::bank_service_client::BankServiceClient;
use crate::v1::inventory_service_client::InventoryServiceClient;
use crate::v1::transaction_service_client::TransactionServiceClient;

/// Entries asked for at once when a list is read to its end.
const PAGE_SIZE: usize = 500;

macro_rules! read {
    ($self:ident . $service:ident () . $method:ident ($request:expr)) => {{
        let request = $request;
        $self
            .read(|| async {
                let mut service = $self.$service();
                $self
                    .once($self.call_timeout(), service.$method(request.clone()))
                    .await
            })
            .await
    }};
}

/// Follows the pages of a list until `limit` entries are there, or the list ends.
macro_rules! pages {
    ($limit:ident, $items:ident, |$size:ident, $token:ident| $call:expr) => {{
        let mut all = Vec::new();
        let mut $token = String::new();
        loop {
            let $size = u32::try_from(PAGE_SIZE.min($limit - all.len()))
                .unwrap_or(1)
                .max(1);
            let page = $call?;
            all.extend(page.$items);
            all.truncate($limit);
            if all.len() >= $limit || page.next_page_token.is_empty() {
                break Ok(all);
            }
            $token = page.next_page_token;
        }
    }};
}

impl Client {
    fn transactions(&self) -> TransactionServiceClient<Channel> {
        TransactionServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    fn bank(&self) -> BankServiceClient<Channel> {
        BankServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    fn inventory(&self) -> InventoryServiceClient<Channel> {
        InventoryServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
}

/// Transactions.
impl Client {
    pub(crate) async fn execute_once(&self, request: v1::ExecuteTransactionRequest) -> Outcome {
        let id = request.request_id.clone();
        let within = self.wait_for(request.timeout_ms);
        match self
            .once(within, self.transactions().execute(request))
            .await
        {
            Ok(answer) => Outcome::Committed {
                gtrid: answer.gtrid,
                results: answer.results,
                replayed: answer.replayed,
                results_lost: answer.results_lost,
            },
            Err(error) => Outcome::failed(error, &id, None),
        }
    }

    pub(crate) async fn begin_once(
        &self,
        request: v1::BeginTransactionRequest,
    ) -> Result<v1::BeginTransactionResponse, CallError> {
        self.once(self.call_timeout(), self.transactions().begin(request))
            .await
    }

    pub(crate) async fn execute_statement_once(
        &self,
        request: v1::ExecuteStatementRequest,
    ) -> Result<v1::ExecuteStatementResponse, CallError> {
        self.once(
            self.call_timeout(),
            self.transactions().execute_statement(request),
        )
        .await
    }

    pub(crate) async fn commit_once(
        &self,
        request: v1::CommitTransactionRequest,
    ) -> Result<v1::CommitTransactionResponse, CallError> {
        self.once(self.call_timeout(), self.transactions().commit(request))
            .await
    }

    pub(crate) async fn rollback_once(
        &self,
        request: v1::RollbackTransactionRequest,
    ) -> Result<v1::RollbackTransactionResponse, CallError> {
        self.once(self.call_timeout(), self.transactions().rollback(request))
            .await
    }

    /// Tells what is known of a transaction.
    pub async fn transaction(&self, gtrid: &str) -> Result<v1::Transaction, CallError> {
        let request = v1::GetTransactionRequest {
            gtrid: gtrid.to_owned(),
            ..Default::default()
        };
        let answer = read!(self.transactions().get_transaction(request))?;
        Ok(answer.transaction.unwrap_or_default())
    }

    /// Tells what is known of the transaction that a request id ran in.
    pub async fn transaction_of_request(&self, id: &str) -> Result<v1::Transaction, CallError> {
        let request = v1::GetTransactionRequest {
            request_id: id.to_owned(),
            ..Default::default()
        };
        let answer = read!(self.transactions().get_transaction(request))?;
        Ok(answer.transaction.unwrap_or_default())
    }

    /// What became of a transaction: the way out of an [`Outcome::Unknown`] with a gtrid. A
    /// transaction that nobody knows stays unknown here, because the coordinator also forgets.
    pub async fn outcome_of(&self, gtrid: &str) -> Outcome<()> {
        match self.transaction(gtrid).await {
            Ok(transaction) => Outcome::of(&transaction),
            Err(error) => Outcome::Unknown {
                gtrid: Some(gtrid.to_owned()),
                request_id: None,
                reason: error.reason().cloned(),
                message: error.to_string(),
            },
        }
    }

    /// Transactions in one of `states` (none: in any), newest first, at most `limit`.
    pub async fn list_transactions(
        &self,
        states: &[v1::TransactionState],
        stuck_only: bool,
        limit: usize,
    ) -> Result<Vec<v1::Transaction>, CallError> {
        let states: Vec<i32> = states.iter().map(|state| i32::from(*state)).collect();
        pages!(limit, transactions, |page_size, page_token| {
            let states = states.clone();
            let page_token = page_token.clone();
            let request = v1::ListTransactionsRequest {
                page_size,
                page_token,
                states,
                stuck_only,
            };
            read!(self.transactions().list_transactions(request))
        })
    }

    /// Streams every state change from now on; with a gtrid, those of one transaction.
    pub async fn watch_transactions(
        &self,
        gtrid: Option<&str>,
    ) -> Result<Streaming<v1::WatchTransactionsResponse>, CallError> {
        let gtrid = gtrid.unwrap_or_default().to_owned();
        let request = v1::WatchTransactionsRequest { gtrid };
        read!(self.transactions().watch_transactions(request))
    }
}

/// The bank.
impl Client {
    /// Opens an account. The outcome's gtrid is empty.
    pub async fn open_account(&self, request: v1::OpenAccountRequest) -> Outcome<v1::Account> {
        let within = self.wait_for(0);
        self.settle(|| async {
            let mut service = self.bank();
            let call = self.once(within, service.open_account(request.clone()));
            match call.await {
                Ok(answer) => Outcome::Committed {
                    gtrid: String::new(),
                    results: answer.account.unwrap_or_default(),
                    replayed: false,
                    results_lost: false,
                },
                Err(error) => Outcome::failed(error, &request.request_id, None),
            }
        })
        .await
    }

    /// Reads an account.
    pub async fn account(&self, account_id: &str) -> Result<v1::Account, CallError> {
        let request = v1::GetAccountRequest {
            account_id: account_id.to_owned(),
        };
        Ok(read!(self.bank().get_account(request))?
            .account
            .unwrap_or_default())
    }

    /// Accounts by id, at most `limit`.
    pub async fn list_accounts(&self, limit: usize) -> Result<Vec<v1::Account>, CallError> {
        pages!(limit, accounts, |page_size, page_token| {
            let request = v1::ListAccountsRequest {
                page_size,
                page_token: page_token.clone(),
            };
            read!(self.bank().list_accounts(request))
        })
    }

    /// Moves money between two accounts.
    pub async fn transfer(&self, request: v1::TransferRequest) -> Outcome<()> {
        let within = self.wait_for(request.timeout_ms);
        self.settle(|| async {
            match self
                .once(within, self.bank().transfer(request.clone()))
                .await
            {
                Ok(answer) => Outcome::Committed {
                    gtrid: answer.gtrid,
                    results: (),
                    replayed: answer.replayed,
                    results_lost: false,
                },
                Err(error) => Outcome::failed(error, &request.request_id, None),
            }
        })
        .await
    }

    /// The journal of an account, newest first, at most `limit` entries.
    pub async fn list_transfers(
        &self,
        account_id: &str,
        limit: usize,
    ) -> Result<Vec<v1::JournalEntry>, CallError> {
        pages!(limit, entries, |page_size, page_token| {
            let account_id = account_id.to_owned();
            let page_token = page_token.clone();
            let request = v1::ListTransfersRequest {
                account_id,
                page_size,
                page_token,
            };
            read!(self.bank().list_transfers(request))
        })
    }
}

/// The inventory.
impl Client {
    /// Creates a product. The outcome's gtrid is empty.
    pub async fn create_product(&self, request: v1::CreateProductRequest) -> Outcome<v1::Product> {
        let within = self.wait_for(0);
        self.settle(|| async {
            let mut service = self.inventory();
            let call = self.once(within, service.create_product(request.clone()));
            match call.await {
                Ok(answer) => Outcome::Committed {
                    gtrid: String::new(),
                    results: answer.product.unwrap_or_default(),
                    replayed: false,
                    results_lost: false,
                },
                Err(error) => Outcome::failed(error, &request.request_id, None),
            }
        })
        .await
    }

    /// Reads a product.
    pub async fn product(&self, product_id: &str) -> Result<v1::Product, CallError> {
        let request = v1::GetProductRequest {
            product_id: product_id.to_owned(),
        };
        Ok(read!(self.inventory().get_product(request))?
            .product
            .unwrap_or_default())
    }

    /// Products by id, at most `limit`.
    pub async fn list_products(&self, limit: usize) -> Result<Vec<v1::Product>, CallError> {
        pages!(limit, products, |page_size, page_token| {
            let request = v1::ListProductsRequest {
                page_size,
                page_token: page_token.clone(),
            };
            read!(self.inventory().list_products(request))
        })
    }

    /// Adds to a product's stock.
    pub async fn restock(&self, request: v1::RestockRequest) -> Outcome<()> {
        let within = self.wait_for(0);
        self.settle(|| async {
            let mut service = self.inventory();
            let call = self.once(within, service.restock(request.clone()));
            match call.await {
                Ok(answer) => Outcome::Committed {
                    gtrid: answer.gtrid,
                    results: (),
                    replayed: answer.replayed,
                    results_lost: false,
                },
                Err(error) => Outcome::failed(error, &request.request_id, None),
            }
        })
        .await
    }

    /// Takes stock, writes the order and moves the payment, all or nothing.
    pub async fn place_order(&self, request: v1::PlaceOrderRequest) -> Outcome<v1::Order> {
        let within = self.wait_for(request.timeout_ms);
        self.settle(|| async {
            match self
                .once(within, self.inventory().place_order(request.clone()))
                .await
            {
                Ok(answer) => {
                    let order = answer.order.unwrap_or_default();
                    Outcome::Committed {
                        gtrid: order.gtrid.clone(),
                        results: order,
                        replayed: answer.replayed,
                        results_lost: false,
                    }
                }
                Err(error) => Outcome::failed(error, &request.request_id, None),
            }
        })
        .await
    }

    /// Reads an order.
    pub async fn order(&self, order_id: &str) -> Result<v1::Order, CallError> {
        let request = v1::GetOrderRequest {
            order_id: order_id.to_owned(),
        };
        Ok(read!(self.inventory().get_order(request))?
            .order
            .unwrap_or_default())
    }

    /// Orders without their lines, newest first, at most `limit`.
    pub async fn list_orders(&self, limit: usize) -> Result<Vec<v1::Order>, CallError> {
        pages!(limit, orders, |page_size, page_token| {
            let request = v1::ListOrdersRequest {
                page_size,
                page_token: page_token.clone(),
            };
            read!(self.inventory().list_orders(request))
        })
    }
}

/// Administration.
impl Client {
    /// The cluster at a glance.
    pub async fn cluster_status(&self) -> Result<v1::GetClusterStatusResponse, CallError> {
        read!(
            self.admin()
                .get_cluster_status(v1::GetClusterStatusRequest {})
        )
    }

    /// Every participant with its health.
    pub async fn list_participants(&self) -> Result<Vec<v1::ParticipantInfo>, CallError> {
        let request = v1::ListParticipantsRequest {};
        Ok(read!(self.admin().list_participants(request))?.participants)
    }

    /// Branches in doubt, at most `limit`, and the participants that could not be asked.
    pub async fn list_in_doubt(
        &self,
        limit: usize,
    ) -> Result<(Vec<v1::InDoubtBranch>, Vec<String>), CallError> {
        let mut unreachable = Vec::new();
        let branches: Result<Vec<_>, CallError> =
            pages!(limit, branches, |page_size, page_token| {
                let request = v1::ListInDoubtRequest {
                    page_size,
                    page_token: page_token.clone(),
                };
                let page = read!(self.admin().list_in_doubt(request));
                if let Ok(page) = &page {
                    unreachable.extend(page.unreachable.iter().cloned());
                }
                page
            });
        unreachable.sort();
        unreachable.dedup();
        Ok((branches?, unreachable))
    }

    /// Finishes a branch by hand. It is sent once.
    pub async fn resolve_branch(
        &self,
        request: v1::ResolveBranchRequest,
    ) -> Result<v1::ResolveBranchResponse, CallError> {
        self.once(self.call_timeout(), self.admin().resolve_branch(request))
            .await
    }

    /// The configuration in force.
    pub async fn config(&self) -> Result<Vec<v1::Setting>, CallError> {
        Ok(read!(self.admin().get_config(v1::GetConfigRequest {}))?.settings)
    }

    /// Changes settings until the next restart. It is sent once.
    pub async fn update_config(
        &self,
        request: v1::UpdateConfigRequest,
    ) -> Result<Vec<v1::Setting>, CallError> {
        let answer = self
            .once(self.call_timeout(), self.admin().update_config(request))
            .await?;
        Ok(answer.settings)
    }

    /// Streams the coordinator's log lines of `level` and above.
    pub async fn tail_logs(
        &self,
        level: &str,
    ) -> Result<Streaming<v1::TailLogsResponse>, CallError> {
        let request = v1::TailLogsRequest {
            level: level.to_owned(),
        };
        read!(self.admin().tail_logs(request))
    }

    /// Streams the coordinator's counters, one answer every `interval_ms`.
    pub async fn watch_metrics(
        &self,
        interval_ms: u32,
    ) -> Result<Streaming<v1::WatchMetricsResponse>, CallError> {
        let request = v1::WatchMetricsRequest { interval_ms };
        read!(self.admin().watch_metrics(request))
    }
}

#[cfg(test)]
mod tests {
    use concord_core::limits::TIMEOUT_DEFAULT_MS;
    use std::time::Duration;

    use tokio::net::UnixListener;
    use tokio::time::Instant;

    use super::*;
    use crate::retry::RetryPolicy;

    /// A server that gives up after its default time-out says so after that time, and a client
    /// that has left by then can only call the outcome unknown.
    #[tokio::test(start_paused = true)]
    async fn a_call_without_a_time_out_waits_for_the_servers_verdict() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway");
        // It takes connections, and never answers.
        let _gateway = UnixListener::bind(&path).unwrap();
        // Each has a connection of its own: one that is silent for longer is given up.
        for call in ["open_account", "create_product", "restock", "transfer"] {
            let client = Client::builder(format!("unix:{}", path.display()))
                .call_timeout(Duration::from_secs(1))
                .retry(RetryPolicy::none())
                .build()
                .unwrap();
            let began = Instant::now();
            let outcome = match call {
                "open_account" => {
                    let request = v1::OpenAccountRequest::default();
                    client.open_account(request).await.map(drop)
                }
                "create_product" => {
                    let request = v1::CreateProductRequest::default();
                    client.create_product(request).await.map(drop)
                }
                "restock" => client.restock(v1::RestockRequest::default()).await,
                _ => client.transfer(v1::TransferRequest::default()).await,
            };
            assert!(
                matches!(outcome, Outcome::Unknown { .. }),
                "{call}: {outcome:?}"
            );
            let server = Duration::from_millis(TIMEOUT_DEFAULT_MS.into());
            let waited = began.elapsed();
            assert!(
                waited >= server + Duration::from_secs(1),
                "{call}: {waited:?}"
            );
        }
    }
}
