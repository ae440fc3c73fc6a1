//! The inventory end to end: products and orders on both servers, paid or not.

use anyhow::ensure;
use concord_client::{Outcome, v1};
use futures::future::join_all;
use sqlx::Row;

use crate::bank::{World, committed, refused};

/// Names whose slots lie on both servers.
const PRODUCTS: &[&str] = &[
    "1-lamp", "2-lamp", "3-lamp", "4-lamp", "5-lamp", "6-lamp", "7-lamp", "8-lamp",
];

async fn create(world: &World, id: &str, price: i64, stock: i64) -> anyhow::Result<v1::Product> {
    let request = v1::CreateProductRequest {
        product_id: id.into(),
        name: format!("{id} (ünïcode)"),
        price,
        currency: "EUR".into(),
        initial_stock: stock,
        request_id: String::new(),
    };
    committed(world.client.create_product(request).await)
}

pub fn order(id: &str, lines: &[(&str, i64)]) -> v1::PlaceOrderRequest {
    let lines = lines.iter().map(|(product, quantity)| v1::OrderLine {
        product_id: (*product).into(),
        quantity: *quantity,
        price: 0,
    });
    v1::PlaceOrderRequest {
        lines: lines.collect(),
        order_id: id.into(),
        ..v1::PlaceOrderRequest::default()
    }
}

fn paid(request: v1::PlaceOrderRequest, from: &str, to: &str) -> v1::PlaceOrderRequest {
    let payment = v1::Payment {
        from_account_id: from.into(),
        to_account_id: to.into(),
    };
    v1::PlaceOrderRequest {
        payment: Some(payment),
        ..request
    }
}

async fn stock(world: &World, id: &str) -> anyhow::Result<i64> {
    Ok(world.client.product(id).await?.stock)
}

/// A product on each participant.
async fn one_on_each(world: &World) -> anyhow::Result<[String; 2]> {
    let all = world.client.list_products(1_000).await?;
    let on = |name: &str| {
        let found = all
            .iter()
            .find(|p| p.participant == name && p.product_id.ends_with("-lamp"));
        found.map(|product| product.product_id.clone())
    };
    let found: Vec<String> = ["p1", "p2"].into_iter().filter_map(on).collect();
    found
        .try_into()
        .map_err(|found| anyhow::anyhow!("products on one server only: {found:?}"))
}

pub async fn products_page_over_both_servers(world: &World) -> anyhow::Result<()> {
    for (n, id) in (1..).zip(PRODUCTS) {
        let made = create(world, id, 100 * n, 50).await?;
        ensure!(made.price == 100 * n && made.stock == 50, "{made:?}");
        ensure!(world.client.product(id).await? == made, "{made:?}");
    }
    let all = world.client.list_products(1_000).await?;
    let ids: Vec<&str> = all.iter().map(|product| &*product.product_id).collect();
    ensure!(
        ids.is_sorted() && PRODUCTS.iter().all(|id| ids.contains(id)),
        "{ids:?}"
    );
    let [one, two] = one_on_each(world).await?;
    let restock = |id: &str, request: &str| v1::RestockRequest {
        product_id: id.into(),
        quantity: 5,
        request_id: request.into(),
    };
    committed(world.client.restock(restock(&one, "restock-1")).await)?;
    let again = world.client.restock(restock(&one, "restock-1")).await;
    ensure!(
        matches!(again, Outcome::Committed { replayed: true, .. }),
        "{again:?}"
    );
    refused(
        world.client.restock(restock(&two, "restock-1")).await,
        "REQUEST_ID_REUSED",
    )?;
    ensure!(
        (stock(world, &one).await?, stock(world, &two).await?) == (55, 50),
        "restocked once"
    );
    Ok(())
}

pub async fn an_order_takes_stock_and_money_at_once(world: &World) -> anyhow::Result<()> {
    let [one, two] = one_on_each(world).await?;
    for (n, (from, to)) in [("p1", "p2"), ("p2", "p1"), ("p1", "p1")]
        .into_iter()
        .enumerate()
    {
        let (payer, shop) = (world.account(from, 0), world.account(to, 3));
        let stocks = (stock(world, &one).await?, stock(world, &two).await?);
        let money = (world.balance(payer).await?, world.balance(shop).await?);
        let id = format!("order-{n}");
        let request = paid(order(&id, &[(&one, 2), (&two, 3)]), payer, shop);
        let placed = committed(world.client.place_order(request).await)?;
        let prices: Vec<i64> = placed
            .lines
            .iter()
            .map(|line| line.price * line.quantity)
            .collect();
        ensure!(
            placed.total == prices.iter().sum::<i64>() && placed.currency == "EUR",
            "{placed:?}"
        );
        ensure!(
            world.client.order(&id).await? == placed,
            "it is read as it was placed: {placed:?}"
        );
        let left = (stock(world, &one).await?, stock(world, &two).await?);
        ensure!(
            left == (stocks.0 - 2, stocks.1 - 3),
            "{stocks:?} became {left:?}"
        );
        let now = (world.balance(payer).await?, world.balance(shop).await?);
        ensure!(
            now == (money.0 - placed.total, money.1 + placed.total),
            "{money:?}, {now:?}"
        );
        let entry = world.client.list_transfers(payer, 1).await?;
        ensure!(entry[0].gtrid == placed.gtrid, "one transaction: {entry:?}");
    }
    let unpaid = committed(world.client.place_order(order("", &[(&one, 1)])).await)?;
    ensure!(
        unpaid.order_id == unpaid.gtrid && unpaid.payment.is_none(),
        "{unpaid:?}"
    );
    ensure!(
        world.client.order(&unpaid.order_id).await? == unpaid,
        "{unpaid:?}"
    );
    Ok(())
}

pub async fn a_lack_of_stock_or_money_changes_nothing(world: &World) -> anyhow::Result<()> {
    let [one, two] = one_on_each(world).await?;
    let (payer, shop) = (world.account("p1", 0), world.account("p2", 3));
    world.open("pauper", "EUR", 1).await?;
    world.open("tourist", "USD", 100_000).await?;
    let before = (stock(world, &one).await?, stock(world, &two).await?);
    let money = (world.balance(payer).await?, world.balance(shop).await?);
    for (what, lines, from, code) in [
        (
            "first",
            [(&*one, before.0 + 1), (&*two, 1)],
            payer,
            "INSUFFICIENT_STOCK",
        ),
        (
            "second",
            [(&*one, 1), (&*two, before.1 + 1)],
            payer,
            "INSUFFICIENT_STOCK",
        ),
        (
            "money",
            [(&*one, 1), (&*two, 1)],
            "pauper",
            "INSUFFICIENT_FUNDS",
        ),
        (
            "currency",
            [(&*one, 1), (&*two, 1)],
            "tourist",
            "CURRENCY_MISMATCH",
        ),
        (
            "product",
            [(&*one, 1), ("no-lamp", 1)],
            payer,
            "PRODUCT_NOT_FOUND",
        ),
        (
            "payer",
            [(&*one, 1), (&*two, 1)],
            "no-payer",
            "ACCOUNT_NOT_FOUND",
        ),
    ] {
        for request_id in ["", what] {
            let id = format!("lacks-{what}");
            let mut request = paid(order(&id, &lines), from, shop);
            request.request_id = request_id.into();
            refused(world.client.place_order(request).await, code)?;
            let found = world.client.order(&id).await;
            ensure!(found.is_err(), "a refused order is there: {found:?}");
        }
    }
    let after = (stock(world, &one).await?, stock(world, &two).await?);
    ensure!(after == before, "{before:?} became {after:?}");
    let now = (world.balance(payer).await?, world.balance(shop).await?);
    ensure!(now == money, "{money:?} became {now:?}");
    Ok(())
}

pub async fn an_order_exists_once(world: &World) -> anyhow::Result<()> {
    let [one, two] = one_on_each(world).await?;
    let before = stock(world, &one).await?;
    let request = order("unique", &[(&one, 1)]);
    committed(world.client.place_order(request.clone()).await)?;
    refused(world.client.place_order(request).await, "ORDER_EXISTS")?;
    refused(
        world
            .client
            .place_order(order("unique", &[(&two, 1)]))
            .await,
        "ORDER_EXISTS",
    )?;
    let mut named = order("named", &[(&one, 1), (&two, 1)]);
    named.request_id = "order-request".into();
    let first = committed(world.client.place_order(named.clone()).await)?;
    let again = world.client.place_order(named.clone()).await;
    let Outcome::Committed {
        results,
        replayed: true,
        ..
    } = again
    else {
        anyhow::bail!("no replay: {again:?}");
    };
    ensure!(
        results == first,
        "the replay shows the same order: {results:?}"
    );
    named.lines[0].quantity = 2;
    refused(world.client.place_order(named).await, "REQUEST_ID_REUSED")?;
    // Without an order id the replay still finds its order: that of the first transaction.
    let mut nameless = order("", &[(&one, 1)]);
    nameless.request_id = "nameless".into();
    let first = committed(world.client.place_order(nameless.clone()).await)?;
    let again = committed(world.client.place_order(nameless).await)?;
    ensure!(first == again, "{first:?} is not {again:?}");
    ensure!(
        stock(world, &one).await? == before - 3,
        "each took stock once"
    );
    Ok(())
}

pub async fn the_last_piece_is_sold_once(world: &World) -> anyhow::Result<()> {
    create(world, "last-piece", 10, 7).await?;
    let calls = (0..20).map(|n| {
        let id = format!("rush-{n}");
        async move {
            world
                .client
                .place_order(order(&id, &[("last-piece", 1)]))
                .await
        }
    });
    let outcomes = join_all(calls).await;
    let sold = outcomes
        .iter()
        .filter(|outcome| outcome.is_committed())
        .count();
    for outcome in outcomes
        .into_iter()
        .filter(|outcome| !outcome.is_committed())
    {
        refused(outcome, "INSUFFICIENT_STOCK")?;
    }
    ensure!(
        sold == 7 && stock(world, "last-piece").await? == 0,
        "{sold} of 7 are sold"
    );
    let mut ordered = 0;
    for n in 1..=2 {
        let mut root = world.cluster.root(n).await?;
        let sum = "SELECT CAST(COALESCE(SUM(quantity), 0) AS SIGNED) \
                   FROM concord_inventory.order_lines WHERE product_id = 'last-piece'";
        ordered += sqlx::query(sum)
            .fetch_one(&mut root)
            .await?
            .try_get::<i64, _>(0)?;
    }
    ensure!(ordered == 7, "stock and orders disagree: {ordered}");
    Ok(())
}

pub async fn orders_page_newest_first(world: &World) -> anyhow::Result<()> {
    let all = world.client.list_orders(1_000).await?;
    ensure!(all.len() >= 12, "only {} orders", all.len());
    let gtrids: Vec<&str> = all.iter().map(|order| &*order.gtrid).collect();
    ensure!(
        gtrids.is_sorted_by(|a, b| a > b),
        "newest first: {gtrids:?}"
    );
    let places: std::collections::BTreeSet<&str> =
        all.iter().map(|order| &*order.participant).collect();
    ensure!(places.len() == 2, "orders lie on {places:?} only");
    let channel = tonic::transport::Endpoint::from_shared(world.cluster.endpoint())?.connect_lazy();
    let mut shop = v1::inventory_service_client::InventoryServiceClient::new(channel);
    for page_size in [1, 3, 5] {
        let (mut paged, mut page_token) = (Vec::new(), String::new());
        loop {
            let list = v1::ListOrdersRequest {
                page_size,
                page_token,
            };
            let page = shop.list_orders(list).await?.into_inner();
            ensure!(
                page.orders.len() <= page_size as usize,
                "{}",
                page.orders.len()
            );
            paged.extend(page.orders);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        ensure!(paged == all, "pages of {page_size} are not the whole");
    }
    Ok(())
}
