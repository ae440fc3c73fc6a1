//! The bank, the inventory, generic transactions and the command line, end to end on real servers.
//!
//! One cluster for each kind of server; `inventory`, `transactions` and `command_line` run on it
//! too, because a cluster takes longer to start than their cases to run.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use concord_client::local::binary::ServerKind;
use concord_client::{Client, Outcome, RetryPolicy, v1};
use concord_tests::books::Books;
use concord_tests::cases;
use concord_tests::cases::server_of;
use concord_tests::cluster::{Cluster, READY_TIMEOUT, eventually};
use futures::future::join_all;

use crate::{command_line, inventory, transactions};

/// Servers of the cluster.
pub const SERVERS: u16 = 2;
/// Longest wait for what happens a moment later.
pub const SOON: Duration = Duration::from_secs(20);

/// A cluster with accounts on both servers, and a client that never retries by itself.
pub struct World {
    pub cluster: Cluster,
    pub client: Client,
    /// Accounts of 1,000.00 EUR each by participant: at least four on each.
    accounts: BTreeMap<String, Vec<String>>,
}

#[tokio::test(flavor = "multi_thread")]
async fn and_inventory_and_transactions_on_mariadb() -> anyhow::Result<()> {
    on(ServerKind::Mariadb).await
}

#[tokio::test(flavor = "multi_thread")]
async fn and_inventory_and_transactions_on_mysql() -> anyhow::Result<()> {
    on(ServerKind::Mysql).await
}

async fn on(kind: ServerKind) -> anyhow::Result<()> {
    let Some(server) = server_of(kind)? else {
        return Ok(());
    };
    let world = World::start(Cluster::start_with(&server, SERVERS, &["--no-seed"])?).await?;
    cases!(
        &world,
        accounts_page_over_both_servers,
        money_moves_between_servers_and_within_one,
        exactly_what_is_there_can_be_spent,
        currencies_do_not_mix,
        accounts_that_do_not_exist,
        a_request_takes_effect_once,
        a_final_refusal_is_kept,
        one_request_at_once_from_many,
        opening_an_account_twice,
        hot_accounts_keep_their_sum,
        inventory::products_page_over_both_servers,
        inventory::an_order_takes_stock_and_money_at_once,
        inventory::a_lack_of_stock_or_money_changes_nothing,
        inventory::an_order_exists_once,
        inventory::the_last_piece_is_sold_once,
        inventory::orders_page_newest_first,
        transactions::the_sockets_of_one_host,
        transactions::interactive_commit_and_rollback,
        transactions::a_failed_statement_aborts_all,
        transactions::a_statement_that_is_refused_at_the_door_aborts_all,
        transactions::one_statement_at_a_time,
        transactions::a_client_that_disappears_leaves_no_lock,
        transactions::isolation_is_a_choice,
        transactions::branches_that_only_read,
        transactions::locks_of_reads_last,
        transactions::results_of_every_type,
        transactions::the_same_row_twice,
        transactions::watchers_see_the_states_in_order,
        transactions::a_decision_is_answered_before_it_is_applied,
        command_line::what_statements_return_is_shown,
        command_line::a_write_that_returns_rows,
        command_line::each_end_has_its_exit_code,
        command_line::an_outcome_that_nobody_knows,
        command_line::a_lost_answer_is_looked_up_only_under_an_id_of_its_own,
        command_line::an_interruption_loses_no_request_id,
        command_line::an_outcome_outweighs_a_full_disk,
        requests_survive_a_killed_coordinator,
        requests_survive_the_loss_of_the_log,
        the_books_agree,
    );
    Ok(())
}

impl World {
    async fn start(cluster: Cluster) -> anyhow::Result<Self> {
        // The first account waits for the tables of the business.
        let first = v1::OpenAccountRequest {
            account_id: "first-account".into(),
            currency: "EUR".into(),
            ..Default::default()
        };
        committed(cluster.client()?.open_account(first).await)?;
        let client = cluster.client()?.with_retry(RetryPolicy::none());
        let mut world = Self {
            cluster,
            client,
            accounts: BTreeMap::new(),
        };
        for n in 0..24 {
            // Ids whose last characters alone differ have neighbouring slots.
            let id = format!("{n}-account");
            let opened = world.open(&id, "EUR", 100_000).await?;
            world
                .accounts
                .entry(opened.participant)
                .or_default()
                .push(id);
        }
        let few: Vec<usize> = world.accounts.values().map(Vec::len).collect();
        ensure!(
            few.len() == 2 && few.iter().all(|count| *count >= 4),
            "accounts: {few:?}"
        );
        transactions::create_tables(&world.cluster).await?;
        Ok(world)
    }

    /// The n-th account on the first or second participant.
    pub fn account(&self, participant: &str, n: usize) -> &str {
        &self.accounts[participant][n]
    }

    pub async fn open(
        &self,
        id: &str,
        currency: &str,
        balance: i64,
    ) -> anyhow::Result<v1::Account> {
        let request = v1::OpenAccountRequest {
            account_id: id.into(),
            currency: currency.into(),
            initial_balance: balance,
            request_id: String::new(),
        };
        committed(self.client.open_account(request).await)
    }

    pub async fn balance(&self, id: &str) -> anyhow::Result<i64> {
        Ok(self.client.account(id).await?.balance)
    }

    async fn pay(&self, from: &str, to: &str, amount: i64, request: &str) -> Outcome<()> {
        self.client
            .transfer(transfer(from, to, amount, request))
            .await
    }
}

/// A transfer with or without a request id.
pub fn transfer(from: &str, to: &str, amount: i64, request: &str) -> v1::TransferRequest {
    v1::TransferRequest {
        from_account_id: from.into(),
        to_account_id: to.into(),
        amount,
        request_id: request.into(),
        ..v1::TransferRequest::default()
    }
}

/// What a committed call returned.
pub fn committed<R: std::fmt::Debug>(outcome: Outcome<R>) -> anyhow::Result<R> {
    match outcome {
        Outcome::Committed { results, .. } => Ok(results),
        other => bail!("not committed: {other:?}"),
    }
}

/// Whether a call was refused for this reason.
pub fn refused<R: std::fmt::Debug>(outcome: Outcome<R>, code: &str) -> anyhow::Result<String> {
    match outcome {
        Outcome::Aborted { reason, .. } if &*reason.code == code => Ok(reason.message.to_string()),
        other => bail!("not refused with {code}: {other:?}"),
    }
}

/// Whether a call was answered with the outcome of this earlier transaction.
fn replayed(outcome: &Outcome<()>, first: &str) -> anyhow::Result<()> {
    match outcome {
        Outcome::Committed {
            gtrid,
            replayed: true,
            ..
        } if gtrid == first => Ok(()),
        other => bail!("no replay of {first}: {other:?}"),
    }
}

async fn accounts_page_over_both_servers(world: &World) -> anyhow::Result<()> {
    let all = world.client.list_accounts(1_000).await?;
    let ids: Vec<&str> = all.iter().map(|account| &*account.account_id).collect();
    ensure!(ids.len() >= 24 && ids.is_sorted(), "{ids:?}");
    let channel = tonic::transport::Endpoint::from_shared(world.cluster.endpoint())?.connect_lazy();
    let mut bank = v1::bank_service_client::BankServiceClient::new(channel);
    for page_size in [1, 2, 7, 24] {
        let (mut paged, mut page_token) = (Vec::new(), String::new());
        loop {
            let list = v1::ListAccountsRequest {
                page_size,
                page_token,
            };
            let page = bank.list_accounts(list).await?.into_inner();
            ensure!(
                page.accounts.len() <= page_size as usize,
                "a page of {}",
                page.accounts.len()
            );
            paged.extend(page.accounts);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        ensure!(paged == all, "pages of {page_size} are not the whole");
    }
    for account in all.iter().take(5) {
        ensure!(
            world.client.account(&account.account_id).await? == *account,
            "{account:?}"
        );
    }
    Ok(())
}

async fn money_moves_between_servers_and_within_one(world: &World) -> anyhow::Result<()> {
    let (a, b, c) = (
        world.account("p1", 0),
        world.account("p2", 0),
        world.account("p1", 1),
    );
    for (from, to, branches) in [(a, b, 2), (b, a, 2), (a, c, 1)] {
        let before = (world.balance(from).await?, world.balance(to).await?);
        let mut request = transfer(from, to, 70, "");
        request.memo = format!("{branches} ünïcode 🦀");
        let Outcome::Committed {
            gtrid,
            replayed: false,
            ..
        } = world.client.transfer(request).await
        else {
            bail!("{from} to {to} is not committed");
        };
        let after = (world.balance(from).await?, world.balance(to).await?);
        ensure!(
            after == (before.0 - 70, before.1 + 70),
            "{before:?} became {after:?}"
        );
        let known = world.client.transaction(&gtrid).await?;
        ensure!(known.branches.len() == branches, "{known:?}");
        ensure!(
            known.state() == v1::TransactionState::Committed,
            "{known:?}"
        );
        for (account, other, amount) in [(from, to, -70), (to, from, 70)] {
            let journal = world.client.list_transfers(account, 1).await?;
            let entry = journal.first().context("an entry")?;
            ensure!(
                entry.gtrid == gtrid && entry.counterparty == other,
                "{entry:?}"
            );
            ensure!(
                entry.amount == amount && entry.memo.ends_with("🦀"),
                "{entry:?}"
            );
        }
    }
    Ok(())
}

async fn exactly_what_is_there_can_be_spent(world: &World) -> anyhow::Result<()> {
    let (from, far, near) = (
        world.account("p1", 2),
        world.account("p2", 2),
        world.account("p1", 3),
    );
    for to in [far, near] {
        let balance = world.balance(from).await?;
        let entries = world.client.list_transfers(from, 100).await?.len();
        let message = refused(
            world.pay(from, to, balance + 1, "").await,
            "INSUFFICIENT_FUNDS",
        )?;
        ensure!(
            message.contains(&balance.to_string()),
            "the balance is told: {message}"
        );
        ensure!(
            world.balance(from).await? == balance,
            "a refusal moves nothing"
        );
        ensure!(
            world.client.list_transfers(from, 100).await?.len() == entries,
            "nor journals"
        );
        committed(world.pay(from, to, balance, "").await)?;
        ensure!(world.balance(from).await? == 0, "all is spent");
        refused(world.pay(from, to, 1, "").await, "INSUFFICIENT_FUNDS")?;
        committed(world.pay(to, from, balance, "").await)?;
    }
    Ok(())
}

async fn currencies_do_not_mix(world: &World) -> anyhow::Result<()> {
    world.open("dollars", "USD", 500).await?;
    let euros = world.account("p1", 0);
    for (from, to) in [("dollars", euros), (euros, "dollars")] {
        refused(world.pay(from, to, 1, "").await, "CURRENCY_MISMATCH")?;
        refused(
            world.pay(from, to, 1, &format!("mix-{from}")).await,
            "CURRENCY_MISMATCH",
        )?;
    }
    let mut request = transfer(euros, world.account("p2", 0), 1, "");
    request.currency = "USD".into();
    refused(
        world.client.transfer(request.clone()).await,
        "CURRENCY_MISMATCH",
    )?;
    request.currency = "EUR".into();
    committed(world.client.transfer(request).await)
}

async fn accounts_that_do_not_exist(world: &World) -> anyhow::Result<()> {
    let here = world.account("p1", 0);
    let before = world.balance(here).await?;
    refused(world.pay(here, "ghost", 1, "").await, "ACCOUNT_NOT_FOUND")?;
    refused(world.pay("ghost", here, 1, "").await, "ACCOUNT_NOT_FOUND")?;
    refused(
        world.pay(here, "ghost", 1, "to-a-ghost").await,
        "ACCOUNT_NOT_FOUND",
    )?;
    // What was refused for good stays refused, also when the reason is gone.
    world.open("ghost", "EUR", 0).await?;
    refused(
        world.pay(here, "ghost", 1, "to-a-ghost").await,
        "ACCOUNT_NOT_FOUND",
    )?;
    ensure!(world.balance(here).await? == before, "nothing moved");
    committed(world.pay(here, "ghost", 1, "to-the-living").await)
}

async fn a_request_takes_effect_once(world: &World) -> anyhow::Result<()> {
    let (a, b) = (world.account("p1", 1), world.account("p2", 1));
    let before = world.balance(a).await?;
    let first = world.pay(a, b, 25, "rent-2026-11").await;
    let gtrid = first.gtrid().context("a gtrid")?.to_owned();
    committed(first)?;
    for _ in 0..3 {
        replayed(&world.pay(a, b, 25, "rent-2026-11").await, &gtrid)?;
    }
    refused(
        world.pay(a, b, 26, "rent-2026-11").await,
        "REQUEST_ID_REUSED",
    )?;
    refused(
        world.pay(b, a, 25, "rent-2026-11").await,
        "REQUEST_ID_REUSED",
    )?;
    let mut other = transfer(a, b, 25, "rent-2026-11");
    other.memo = "another".into();
    refused(world.client.transfer(other).await, "REQUEST_ID_REUSED")?;
    ensure!(world.balance(a).await? == before - 25, "paid once");
    let known = world.client.transaction_of_request("rent-2026-11").await?;
    ensure!(known.gtrid == gtrid, "{known:?}");
    Ok(())
}

async fn a_final_refusal_is_kept(world: &World) -> anyhow::Result<()> {
    world.open("poor", "EUR", 10).await?;
    let (rich, to) = (world.account("p1", 0), world.account("p2", 0));
    refused(
        world.pay("poor", to, 11, "too-much").await,
        "INSUFFICIENT_FUNDS",
    )?;
    committed(world.pay(rich, "poor", 100, "").await)?;
    refused(
        world.pay("poor", to, 11, "too-much").await,
        "INSUFFICIENT_FUNDS",
    )?;
    committed(world.pay("poor", to, 11, "not-too-much").await)?;
    ensure!(
        world.balance("poor").await? == 99,
        "one of them took effect"
    );
    Ok(())
}

async fn one_request_at_once_from_many(world: &World) -> anyhow::Result<()> {
    let (a, b) = (world.account("p1", 0), world.account("p2", 0));
    let before = world.balance(a).await?;
    let calls = (0..16).map(|_| world.pay(a, b, 5, "at-once"));
    let outcomes = join_all(calls).await;
    let new = outcomes.iter().filter(|o| {
        matches!(
            o,
            Outcome::Committed {
                replayed: false,
                ..
            }
        )
    });
    ensure!(
        new.count() == 1,
        "not one of them is the first: {outcomes:?}"
    );
    let mut gtrids: Vec<_> = outcomes.iter().map(Outcome::gtrid).collect();
    gtrids.dedup();
    ensure!(
        gtrids.len() == 1 && outcomes.iter().all(Outcome::is_committed),
        "{outcomes:?}"
    );
    ensure!(world.balance(a).await? == before - 5, "paid once");
    Ok(())
}

async fn opening_an_account_twice(world: &World) -> anyhow::Result<()> {
    let request = |balance, id: &str| v1::OpenAccountRequest {
        account_id: "opened".into(),
        currency: "EUR".into(),
        initial_balance: balance,
        request_id: id.into(),
    };
    let first = committed(world.client.open_account(request(7, "open-1")).await)?;
    let again = committed(world.client.open_account(request(7, "open-1")).await)?;
    ensure!(first == again, "{first:?} is not {again:?}");
    refused(
        world.client.open_account(request(8, "open-1")).await,
        "REQUEST_ID_REUSED",
    )?;
    refused(
        world.client.open_account(request(7, "open-2")).await,
        "ACCOUNT_EXISTS",
    )?;
    refused(
        world.client.open_account(request(7, "")).await,
        "ACCOUNT_EXISTS",
    )?;
    let journal = world.client.list_transfers("opened", 10).await?;
    ensure!(journal.len() == 1 && journal[0].amount == 7, "{journal:?}");
    Ok(())
}

/// Transfers in circles over few accounts, in both directions at once: they wait for each other,
/// some may lose, none is left, and no cent is made or lost.
async fn hot_accounts_keep_their_sum(world: &World) -> anyhow::Result<()> {
    let ids: Vec<&str> = ["p1", "p2"]
        .iter()
        .flat_map(|p| (0..2).map(|n| world.account(p, n)))
        .collect();
    let before = Books::read(&world.cluster, SERVERS.into()).await?.sum();
    let calls = (0..24).map(|n| {
        let (from, to) = (ids[n % 4], ids[(n + 1 + n % 3) % 4]);
        world.pay(from, to, 1, "")
    });
    let outcomes = join_all(calls).await;
    let done = outcomes
        .iter()
        .filter(|outcome| outcome.is_committed())
        .count();
    let conflict = |o: &Outcome<()>| match o {
        Outcome::Committed { .. } => true,
        Outcome::Aborted { reason, .. } => {
            ["LOCK_TIMEOUT", "DEADLOCK", "DEADLINE_EXCEEDED"].contains(&&*reason.code)
        }
        Outcome::Unknown { .. } => false,
    };
    let strange: Vec<_> = outcomes
        .iter()
        .filter(|outcome| !conflict(outcome))
        .collect();
    ensure!(strange.is_empty(), "{strange:?}");
    ensure!(done >= 1, "none was done: {outcomes:?}");
    let after = Books::read(&world.cluster, SERVERS.into()).await?.sum();
    ensure!(after == before, "the sum was {before} and is {after}");
    Ok(())
}

/// Waits until the cluster does what it is asked again.
async fn works_again(world: &World) -> anyhow::Result<()> {
    let (a, b) = (world.account("p1", 0), world.account("p2", 0));
    eventually("a transfer works again", READY_TIMEOUT, async || {
        committed(world.pay(a, b, 1, "").await).map(Some)
    })
    .await
}

async fn requests_survive_a_killed_coordinator(world: &World) -> anyhow::Result<()> {
    let (a, b, near) = (
        world.account("p1", 1),
        world.account("p2", 1),
        world.account("p1", 0),
    );
    let first = world.pay(a, b, 3, "before-the-kill").await;
    let local = world.pay(a, near, 3, "local-before-the-kill").await;
    refused(
        world.pay(a, b, 1_000_000_000, "refused-before").await,
        "INSUFFICIENT_FUNDS",
    )?;
    let before = world.balance(a).await?;
    ensure!(world.cluster.kill9("coordinator")?, "the coordinator ran");
    works_again(world).await?;
    for (request, to, outcome) in [
        ("before-the-kill", b, &first),
        ("local-before-the-kill", near, &local),
    ] {
        let gtrid = outcome.gtrid().context("a gtrid")?;
        replayed(&world.pay(a, to, 3, request).await, gtrid)?;
        refused(world.pay(a, to, 4, request).await, "REQUEST_ID_REUSED")?;
        let known = world.client.transaction(gtrid).await?;
        ensure!(
            known.state() == v1::TransactionState::Committed,
            "{known:?}"
        );
    }
    refused(
        world.pay(a, b, 1_000_000_000, "refused-before").await,
        "INSUFFICIENT_FUNDS",
    )?;
    ensure!(
        world.balance(a).await? == before,
        "nothing was executed twice"
    );
    Ok(())
}

/// An operator's disaster: the decision log is gone. The ledgers of the servers still know which
/// requests took effect.
async fn requests_survive_the_loss_of_the_log(world: &World) -> anyhow::Result<()> {
    let (a, b, near) = (
        world.account("p1", 1),
        world.account("p2", 1),
        world.account("p1", 0),
    );
    let first = world.pay(a, b, 9, "before-the-loss").await;
    let local = world.pay(a, near, 9, "local-before-the-loss").await;
    let before = world.balance(a).await?;
    eventually("nothing is in doubt", SOON, async || {
        Ok(Books::nothing_in_doubt(&world.cluster, SERVERS.into())
            .await?
            .then_some(()))
    })
    .await?;
    world.cluster.stop()?;
    std::fs::remove_dir_all(world.cluster.dir().join("coordinator"))?;
    world.cluster.resume()?;
    works_again(world).await?;
    for (request, to, outcome) in [
        ("before-the-loss", b, &first),
        ("local-before-the-loss", near, &local),
    ] {
        let gtrid = outcome.gtrid().context("a gtrid")?;
        for _ in 0..2 {
            replayed(&world.pay(a, to, 9, request).await, gtrid)?;
        }
    }
    ensure!(
        world.balance(a).await? == before,
        "nothing was executed twice"
    );
    Ok(())
}

async fn the_books_agree(world: &World) -> anyhow::Result<()> {
    eventually("nothing is in doubt", SOON, async || {
        Ok(Books::nothing_in_doubt(&world.cluster, SERVERS.into())
            .await?
            .then_some(()))
    })
    .await?;
    // Accounts that were opened with nothing have an entry of nothing, which `check` calls torn.
    let mut books = Books::read(&world.cluster, SERVERS.into()).await?;
    books
        .journal
        .retain(|_, entries| entries.len() != 1 || entries[0].1 != 0);
    books.check()
}
