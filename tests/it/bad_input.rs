//! Malformed, oversized, negative, overflowing, unknown, duplicated, empty and hostile input.
//!
//! Each gets a precise status and reason, costs nothing, and leaves no branch, lock or connection
//! behind; afterwards the cluster works as before. Bytes that no proper client can send are in
//! `tests/foreign/bad_bytes.py`.

mod business;
mod functions;
mod protocol;
mod sql;
mod transactions;
mod wire;

use std::time::Duration;

use anyhow::{Context, ensure};
use concord_client::local::binary::ServerKind;
use concord_proto::status::{reason_of, violations_of};
use concord_proto::v1;
use concord_proto::v1::admin_service_client::AdminServiceClient;
use concord_proto::v1::bank_service_client::BankServiceClient;
use concord_proto::v1::inventory_service_client::InventoryServiceClient;
use concord_proto::v1::outcome_service_client::OutcomeServiceClient;
use concord_proto::v1::participant_client::ParticipantClient;
use concord_proto::v1::transaction_service_client::TransactionServiceClient;
use concord_tests::by_hand::open_transactions;
use concord_tests::cases;
use concord_tests::cases::server_of;
use concord_tests::cluster::{Cluster, eventually};
use sqlx::Row;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

/// Longest wait for what a refused call may still hold for a moment.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// A cluster and plain clients of it: those of the library check too much themselves.
struct World {
    kind: ServerKind,
    cluster: Cluster,
    gateway: Channel,
    participant: Channel,
}

#[tokio::test(flavor = "multi_thread")]
async fn is_refused_precisely_and_leaves_nothing_on_mariadb() -> anyhow::Result<()> {
    on(ServerKind::Mariadb).await
}

#[tokio::test(flavor = "multi_thread")]
async fn is_refused_precisely_and_leaves_nothing_on_mysql() -> anyhow::Result<()> {
    on(ServerKind::Mysql).await
}

async fn on(kind: ServerKind) -> anyhow::Result<()> {
    let Some(server) = server_of(kind)? else {
        return Ok(());
    };
    let world = World::start(kind, Cluster::start_with(&server, 2, &["--no-seed"])?).await?;
    cases!(
        &world,
        business::fields_of_the_bank,
        business::fields_of_the_inventory,
        business::what_does_not_exist,
        business::what_would_overflow,
        business::page_tokens,
        transactions::fields_of_a_transaction,
        transactions::values,
        transactions::too_much,
        transactions::garbage_gtrids,
        transactions::what_is_not_there,
        protocol::fields_of_administration,
        protocol::fields_of_a_participant,
        protocol::migrations,
        functions::only_functions_are_called,
        functions::functions_that_a_server_lacks,
        sql::hostile_sql_never_reaches_a_server,
        sql::hostile_sql_ends_an_interactive_transaction,
        sql::values_are_never_sql,
        wire::garbage_on_the_ports,
        wire::half_open_connections,
        wire::a_thousand_connections,
    );
    Ok(())
}

impl World {
    async fn start(kind: ServerKind, cluster: Cluster) -> anyhow::Result<Self> {
        let gateway = Endpoint::from_shared(cluster.endpoint())?.connect_lazy();
        let participant = format!("http://{}", cluster.process("p1")?.address);
        let participant = Endpoint::from_shared(participant)?.connect_lazy();
        let world = Self {
            kind,
            cluster,
            gateway,
            participant,
        };
        for n in 1..=2 {
            let sql = "CREATE DATABASE bad; \
                       CREATE TABLE bad.canary (id BIGINT PRIMARY KEY, n BIGINT NOT NULL, \
                       v TEXT) ENGINE=InnoDB; INSERT INTO bad.canary VALUES (1, 0, 'sings')";
            world.cluster.sql(n, sql).await?;
        }
        for id in ["payer", "payee"] {
            let open = v1::OpenAccountRequest {
                account_id: id.into(),
                currency: "EUR".into(),
                initial_balance: 1_000_000,
                request_id: String::new(),
            };
            // It may have to wait for the tables of the business, which are made only now.
            let opened = world.cluster.client()?.open_account(open).await;
            ensure!(opened.is_committed(), "{opened:?}");
        }
        Ok(world)
    }

    fn bank(&self) -> BankServiceClient<Channel> {
        BankServiceClient::new(self.gateway.clone())
    }

    fn inventory(&self) -> InventoryServiceClient<Channel> {
        InventoryServiceClient::new(self.gateway.clone())
    }

    fn transactions(&self) -> TransactionServiceClient<Channel> {
        TransactionServiceClient::new(self.gateway.clone())
    }

    fn outcomes(&self) -> OutcomeServiceClient<Channel> {
        OutcomeServiceClient::new(self.gateway.clone())
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.gateway.clone())
    }

    fn participant(&self) -> ParticipantClient<Channel> {
        ParticipantClient::new(self.participant.clone())
    }

    /// No branch, lock, or connection above the limit is left; the canary sings; money moves.
    async fn left_nothing(&self) -> anyhow::Result<()> {
        eventually("the coordinator is idle", SETTLE_TIMEOUT, async || {
            let request = v1::GetClusterStatusRequest {};
            let status = self.admin().get_cluster_status(request).await?.into_inner();
            let busy = (status.active, status.committing, status.stuck);
            ensure!(busy == (0, 0, 0), "active, committing, stuck are {busy:?}");
            Ok(Some(()))
        })
        .await?;
        for n in 1..=2 {
            eventually("the participant votes", SETTLE_TIMEOUT, async || {
                let state = self.cluster.status(n).await?;
                ensure!(state.can_vote && state.damage.is_empty(), "{state:?}");
                Ok(Some(()))
            })
            .await?;
        }
        for n in 1..=2 {
            eventually("the server is idle", SETTLE_TIMEOUT, async || {
                self.server_is_idle(n).await.map(Some)
            })
            .await
            .with_context(|| format!("server {n}"))?;
        }
        let status = self.cluster.status(1).await?;
        let (open, max) = (status.connections, status.max_connections);
        ensure!(open <= max, "{open} connections of at most {max}");
        ensure!(status.in_doubt == 0, "{} in doubt", status.in_doubt);
        let transfer = transfer("payer", "payee", 1);
        self.bank()
            .transfer(transfer)
            .await
            .context("a plain transfer afterwards")?;
        Ok(())
    }

    async fn server_is_idle(&self, n: usize) -> anyhow::Result<()> {
        let mut root = self.cluster.root(n).await?;
        let prepared = sqlx::raw_sql("XA RECOVER").fetch_all(&mut root).await?;
        ensure!(
            prepared.is_empty(),
            "{} branches are prepared",
            prepared.len()
        );
        let open = open_transactions(&mut root).await?;
        ensure!(open.is_empty(), "transactions of InnoDB are open: {open:?}");
        let canary = "SELECT id, n, v FROM bad.canary";
        let rows = sqlx::query(canary).fetch_all(&mut root).await?;
        let canaries: Result<Vec<(i64, i64, String)>, sqlx::Error> = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
            .collect();
        let canaries = canaries?;
        ensure!(
            canaries == [(1, 0, "sings".to_owned())],
            "the canary is {canaries:?}"
        );
        Ok(())
    }
}

fn transfer(from: &str, to: &str, amount: i64) -> v1::TransferRequest {
    v1::TransferRequest {
        from_account_id: from.into(),
        to_account_id: to.into(),
        amount,
        ..v1::TransferRequest::default()
    }
}

/// Collects what was not refused as it should be, so that all of a list is told at once.
#[derive(Default)]
struct Refusals {
    wrong: Vec<String>,
    seen: usize,
}

impl Refusals {
    /// A call must have been refused with this code and reason.
    fn expect<T>(
        &mut self,
        what: impl std::fmt::Display,
        answer: Result<Response<T>, Status>,
        code: Code,
        reason: &str,
    ) {
        self.expect_field(what, answer, code, reason, None);
    }

    /// A call must have been refused for this field, among others.
    fn invalid<T>(
        &mut self,
        what: impl std::fmt::Display,
        answer: Result<Response<T>, Status>,
        field: &str,
    ) {
        self.expect_field(
            what,
            answer,
            Code::InvalidArgument,
            "INVALID_FIELD",
            Some(field),
        );
    }

    fn expect_field<T>(
        &mut self,
        what: impl std::fmt::Display,
        answer: Result<Response<T>, Status>,
        code: Code,
        reason: &str,
        field: Option<&str>,
    ) {
        self.seen += 1;
        let status = match answer {
            Ok(_) => {
                return self
                    .wrong
                    .push(format!("{what}: was answered, not {reason}"));
            }
            Err(status) => status,
        };
        let told = reason_of(&status)
            .map(|reason| reason.code.to_string())
            .unwrap_or_default();
        if (status.code(), told.as_str()) != (code, reason) {
            let (found, text) = (status.code(), status.message());
            self.wrong.push(format!(
                "{what}: {found:?} / {told} ({text}), not {code:?} / {reason}"
            ));
        }
        let fields = violations_of(&status);
        if let Some(field) = field
            && !fields.iter().any(|violation| violation.field == field)
        {
            let found: Vec<_> = fields.iter().map(|violation| &*violation.field).collect();
            self.wrong
                .push(format!("{what}: names {found:?}, not {field}"));
        }
        if status.message().is_empty() || status.message().len() > 1_100 {
            self.wrong.push(format!(
                "{what}: a message of {} bytes",
                status.message().len()
            ));
        }
    }

    /// Fails with all that was wrong; and when the list was shorter than it should be.
    fn finish(self, at_least: usize) -> anyhow::Result<()> {
        ensure!(
            self.wrong.is_empty(),
            "{} wrong:\n{}",
            self.wrong.len(),
            self.wrong.join("\n")
        );
        ensure!(
            self.seen >= at_least,
            "only {} were tried, not {at_least}",
            self.seen
        );
        Ok(())
    }
}
