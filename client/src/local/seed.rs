//! Puts sample accounts and products into a new cluster, through its gateway like any client.
//!
//! Each has a fixed request id, and what is there already counts as done, so this may be
//! interrupted and repeated.

use std::time::Duration;

use concord_core::reason::ReasonKind;

use crate::{Client, Outcome, RetryPolicy, v1};

/// Participants make their business tables and connect within this time of their start.
const SEED_PATIENCE_S: u64 = 60;

const CURRENCY: &str = "EUR";

/// Accounts and their opening balances in cents. With two to four servers alice and bob live on
/// different ones.
const ACCOUNTS: [(&str, i64); 6] = [
    ("alice", 100_000),
    ("bob", 50_000),
    ("carol", 25_000),
    ("heidi", 50_000),
    ("oscar", 10_000),
    ("merchant", 0),
];

/// Products: id, name, price in cents, pieces in stock; with two servers tea and mug live on
/// different ones.
const PRODUCTS: [(&str, &str, i64, i64); 5] = [
    ("coffee", "Coffee beans, 1 kg", 1_890, 200),
    ("tea", "Green tea, 250 g", 790, 150),
    ("mug", "Mug, stoneware", 1_200, 80),
    ("filter", "Paper filters, 100 pieces", 450, 300),
    ("kettle", "Kettle, 1.7 l", 4_500, 25),
];

/// Seeds a cluster; the error is a text for people.
pub async fn seed(gateway: &str) -> Result<(), String> {
    let retry = RetryPolicy::lasting(Duration::from_secs(SEED_PATIENCE_S));
    let client = Client::builder(gateway)
        .retry(retry)
        .build()
        .map_err(|error| error.to_string())?;
    for (id, balance) in ACCOUNTS {
        let request = v1::OpenAccountRequest {
            account_id: id.into(),
            currency: CURRENCY.into(),
            initial_balance: balance,
            request_id: format!("seed-account-{id}"),
        };
        done(&format!("account {id}"), client.open_account(request).await)?;
    }
    for (id, name, price, stock) in PRODUCTS {
        let request = v1::CreateProductRequest {
            product_id: id.into(),
            name: name.into(),
            price,
            currency: CURRENCY.into(),
            initial_stock: stock,
            request_id: format!("seed-product-{id}"),
        };
        done(
            &format!("product {id}"),
            client.create_product(request).await,
        )?;
    }
    Ok(())
}

fn done<R>(what: &str, outcome: Outcome<R>) -> Result<(), String> {
    match outcome {
        Outcome::Committed { .. } => Ok(()),
        Outcome::Aborted { reason, .. } if reason.kind() == ReasonKind::Exists => Ok(()),
        Outcome::Aborted { reason, .. } => Err(format!("{what}: {reason}")),
        Outcome::Unknown { message, .. } => Err(format!("{what}: outcome unknown: {message}")),
    }
}
