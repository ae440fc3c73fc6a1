//! The steps of the demonstration.
//!
//! The moment between prepare and commit is held from outside, without help from the daemons:
//! Bert's participant is stopped, so that only Anna's branch can vote; then Anna's participant is
//! stopped and Bert's goes on, so that the decision falls and Anna's branch cannot hear of it.

use concord_core::reason::code;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::stage::{Books, PRICE, Stage, made};
use super::wait::Frozen;
use crate::cli::exit::{Exit, Failure};
use crate::cli::{money, view};
use crate::client::Client;
use crate::outcome::Outcome;
use crate::v1;

/// What is transferred in each step, in minor units.
const AMOUNT: i64 = 1_000;
/// More than Anna has.
const TOO_MUCH: i64 = 100_000_000;

fn request_id(step: &str) -> String {
    format!("demo-{step}-{}", Uuid::now_v7())
}

fn unexpected<R: std::fmt::Debug>(what: &str, outcome: &Outcome<R>) -> Failure {
    Failure::new(Exit::Other, format!("{what} ended otherwise than it must"))
        .why(format!("{outcome:?}"))
        .next("look at `concord status` and at the logs in the cluster's folder")
}

/// What the books must be after Anna paid Bert.
fn paid(before: &Books, amount: i64) -> Books {
    Books {
        anna: before.anna - amount,
        bert: before.bert + amount,
        ..before.clone()
    }
}

pub(super) async fn commits(stage: &mut Stage) -> Result<(), Failure> {
    let before = stage.tell_books("before").await?;
    stage.watch().await?;
    stage.say(format!(
        "concord transfer anna bert {}",
        money::show(AMOUNT, "EUR")
    ));
    let outcome = stage
        .patient
        .transfer(stage.transfer(AMOUNT, &request_id("commit")))
        .await;
    let Outcome::Committed { gtrid, .. } = &outcome else {
        return Err(unexpected("the transfer", &outcome));
    };
    stage.say(format!("committed in {gtrid}"));
    tell_transaction(stage, gtrid).await?;
    stage.check(&paid(&before, AMOUNT)).await
}

pub(super) async fn refused(stage: &mut Stage) -> Result<(), Failure> {
    let before = stage.tell_books("before").await?;
    stage.watch().await?;
    stage.say(format!(
        "concord transfer anna bert {}",
        money::show(TOO_MUCH, "EUR")
    ));
    let outcome = stage
        .patient
        .transfer(stage.transfer(TOO_MUCH, &request_id("refuse")))
        .await;
    let Outcome::Aborted { reason, gtrid } = &outcome else {
        return Err(unexpected("the transfer", &outcome));
    };
    if &*reason.code != code::INSUFFICIENT_FUNDS {
        return Err(unexpected("the transfer", &outcome));
    }
    stage.say(format!("aborted: {reason}"));
    if let Some(gtrid) = gtrid {
        stage.tell_changes(gtrid);
    }
    stage.check(&before).await
}

pub(super) async fn order(stage: &mut Stage) -> Result<(), Failure> {
    let before = stage.tell_books("before").await?;
    stage.watch().await?;
    let request = v1::PlaceOrderRequest {
        lines: vec![v1::OrderLine {
            product_id: stage.mug.product_id.clone(),
            quantity: 2,
            price: 0,
        }],
        payment: Some(v1::Payment {
            from_account_id: stage.anna.account_id.clone(),
            to_account_id: stage.bert.account_id.clone(),
        }),
        request_id: request_id("order"),
        ..Default::default()
    };
    stage.say("concord order place mug=2 --from anna --to bert");
    let order = made(stage.patient.place_order(request).await, "the order")?;
    let total = money::show(order.total, &order.currency);
    stage.say(format!(
        "order {} over {total}, committed in {}",
        order.order_id, order.gtrid
    ));
    tell_transaction(stage, &order.gtrid).await?;
    let expected = Books {
        stock: before.stock - 2,
        ..paid(&before, 2 * PRICE)
    };
    stage.check(&expected).await
}

async fn tell_transaction(stage: &mut Stage, gtrid: &str) -> Result<(), Failure> {
    let found = stage
        .patient
        .transaction(gtrid)
        .await
        .map_err(|error| Failure::of_call("the transaction cannot be shown", &error))?;
    stage.tell_changes(gtrid);
    let branches: Vec<String> = found
        .branches
        .iter()
        .map(|branch| {
            format!(
                "{} {}",
                branch.participant,
                view::branch_state(branch.state())
            )
        })
        .collect();
    stage.say(format!(
        "{}: {}",
        view::state(found.state()),
        branches.join(", ")
    ));
    Ok(())
}

fn branch_is(found: &v1::Transaction, participant: &str, state: v1::BranchState) -> bool {
    found
        .branches
        .iter()
        .any(|branch| branch.participant == participant && branch.state() == state)
}

/// A transfer that was sent and is waited for elsewhere.
type Sent = JoinHandle<Outcome<()>>;

fn send(client: &Client, request: v1::TransferRequest) -> Sent {
    let client = client.clone();
    tokio::spawn(async move { client.transfer(request).await })
}

async fn answer(sent: Sent) -> Result<Outcome<()>, Failure> {
    sent.await
        .map_err(|error| Failure::new(Exit::Other, "the transfer's task died").why(error))
}

/// Sends a transfer with Bert's participant stopped, and waits until Anna's branch has voted.
async fn half_prepared(
    stage: &mut Stage,
    client: &Client,
    id: &str,
) -> Result<(Sent, Frozen, String), Failure> {
    stage.watch().await?;
    let (anna, bert) = (
        stage.anna.participant.clone(),
        stage.bert.participant.clone(),
    );
    let frozen = stage.freeze(&bert)?;
    stage.say(format!(
        "concord transfer anna bert {}",
        money::show(AMOUNT, "EUR")
    ));
    let sent = send(client, stage.transfer(AMOUNT, id));
    let found = stage
        .until_transaction("Anna's branch is prepared", id, |found| {
            branch_is(found, &anna, v1::BranchState::Prepared)
        })
        .await?;
    stage.say(format!(
        "{}: {anna} is PREPARED, {bert} has not voted",
        found.gtrid
    ));
    stage.tell_changes(&found.gtrid);
    stage.tell_branch(&anna, &found.gtrid, true).await?;
    Ok((sent, frozen, found.gtrid))
}

/// Goes on to the moment after the decision at which Bert's branch is committed and Anna's is in
/// doubt, its participant stopped.
async fn half_committed(
    stage: &mut Stage,
    client: &Client,
    id: &str,
    before: &Books,
) -> Result<(Sent, Frozen, String), Failure> {
    let (sent, bert_frozen, gtrid) = half_prepared(stage, client, id).await?;
    let (anna, bert) = (
        stage.anna.participant.clone(),
        stage.bert.participant.clone(),
    );
    let anna_frozen = stage.freeze(&anna)?;
    bert_frozen.release();
    stage.say(format!(
        "let {bert} go on: it votes, the coordinator decides"
    ));
    stage
        .until_transaction("the decision, and Bert's commit", id, |found| {
            branch_is(found, &bert, v1::BranchState::Committed)
        })
        .await?;
    stage.tell_changes(&gtrid);
    let between = stage.tell_books("between prepare and commit").await?;
    stage.tell_branch(&anna, &gtrid, true).await?;
    stage.tell_branch(&bert, &gtrid, false).await?;
    let half = Books {
        bert: before.bert + AMOUNT,
        ..before.clone()
    };
    if between != half {
        return Err(Failure::new(
            Exit::Other,
            "this is not the moment between prepare and commit",
        )
        .why(format!("expected {half:?}, found {between:?}"))
        .next("run the demonstration again; another user may have worked on these accounts"));
    }
    Ok((sent, anna_frozen, gtrid))
}

pub(super) async fn participant_killed(stage: &mut Stage) -> Result<(), Failure> {
    let before = stage.tell_books("before").await?;
    let (id, client) = (request_id("participant"), stage.patient.clone());
    let (sent, frozen, gtrid) = half_committed(stage, &client, &id, &before).await?;
    let anna = stage.anna.participant.clone();
    stage.kill(&anna).await?;
    frozen.release();
    stage.say(format!(
        "the supervisor starts {anna} again; it finds the branch and asks"
    ));
    let outcome = answer(sent).await?;
    if !outcome.is_committed() {
        return Err(unexpected("the transfer", &outcome));
    }
    stage.say("the client's call, which was waiting all the time, says: committed");
    stage.until_no_branch(&gtrid).await?;
    stage.tell_branch(&anna, &gtrid, false).await?;
    tell_transaction(stage, &gtrid).await?;
    stage.check(&paid(&before, AMOUNT)).await?;
    stage.until_well().await
}

pub(super) async fn coordinator_killed_undecided(stage: &mut Stage) -> Result<(), Failure> {
    let before = stage.tell_books("before").await?;
    let (id, client) = (request_id("undecided"), stage.client.clone());
    let (sent, frozen, gtrid) = half_prepared(stage, &client, &id).await?;
    stage.kill("coordinator").await?;
    frozen.release();
    let outcome = answer(sent).await?;
    if !matches!(outcome, Outcome::Unknown { .. }) {
        return Err(unexpected("the call", &outcome));
    }
    stage.say("the client is told the truth: the outcome is unknown");
    stage.until_well().await?;
    stage.until_no_branch(&gtrid).await?;
    stage.say("no decision was on record, so the branches were rolled back (presumed abort)");
    stage.check(&before).await?;
    stage.say(format!(
        "the client repeats the call with the same request id {id}"
    ));
    let outcome = stage.patient.transfer(stage.transfer(AMOUNT, &id)).await;
    let Outcome::Committed {
        gtrid,
        replayed: false,
        ..
    } = &outcome
    else {
        return Err(unexpected("the repeated transfer", &outcome));
    };
    stage.say(format!("committed in {gtrid}"));
    stage.check(&paid(&before, AMOUNT)).await
}

pub(super) async fn both_killed_decided(stage: &mut Stage) -> Result<(), Failure> {
    let before = stage.tell_books("before").await?;
    let (id, client) = (request_id("decided"), stage.client.clone());
    let (sent, frozen, gtrid) = half_committed(stage, &client, &id, &before).await?;
    let anna = stage.anna.participant.clone();
    stage.kill("coordinator").await?;
    stage.kill(&anna).await?;
    frozen.release();
    let outcome = answer(sent).await?;
    if !matches!(outcome, Outcome::Unknown { .. }) {
        return Err(unexpected("the call", &outcome));
    }
    stage.say("the client is told the truth: the outcome is unknown");
    stage.say("the supervisor starts both again; the decision is in the coordinator's log");
    stage
        .until_remembered("the transaction is committed", &gtrid, |found| {
            found.state() == v1::TransactionState::Committed
        })
        .await?;
    stage.until_no_branch(&gtrid).await?;
    tell_transaction(stage, &gtrid).await?;
    stage.check(&paid(&before, AMOUNT)).await?;
    stage.say(format!(
        "the client repeats the call with the same request id {id}"
    ));
    let outcome = stage.patient.transfer(stage.transfer(AMOUNT, &id)).await;
    if !matches!(&outcome, Outcome::Committed { gtrid: same, replayed: true, .. } if *same == gtrid)
    {
        return Err(unexpected("the repeated transfer", &outcome));
    }
    stage.say("it is answered with the outcome of the first attempt; nothing is paid twice");
    stage.check(&paid(&before, AMOUNT)).await?;
    stage.until_well().await
}
