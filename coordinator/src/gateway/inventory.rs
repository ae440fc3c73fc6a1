//! The inventory: products with stock, and orders over products of several servers.
//!
//! It owns the tables of the schema `concord_inventory` and the reads of them; `service` beside it
//! answers the RPCs. It refuses to take stock, write an order or move its payment otherwise than
//! in one transaction.

pub mod order;
mod service;

use std::time::Duration;

use concord_core::id::Gtrid;
use concord_core::reason::{Reason, code};
use concord_proto::convert::{Currency, OrderId, Page, ProductId, inventory as door, page};
use concord_proto::model::Value;
use concord_proto::v1;
use prost_types::Timestamp;

use self::order::{ProductState, no_product};
use super::business::{Business, CallError, Price, READ_TIMEOUT};
use super::plan::{statement, text};
use super::rows::{self, Cells};
use crate::engine::Engine;

pub use self::service::InventoryGateway;

const CREATE: &str = "INSERT INTO concord_inventory.products (id, name, price, currency, stock) \
                      VALUES (?, ?, ?, ?, ?)";
const GET: &str = "SELECT id, name, price, currency, stock FROM concord_inventory.products \
                   WHERE id = ?";
const LIST: &str = "SELECT id, name, price, currency, stock FROM concord_inventory.products \
                    WHERE id > ? ORDER BY id LIMIT ?";
/// An order and its lines in one consistent read.
const GET_ORDER: &str = "SELECT o.gtrid, o.id, o.total, o.currency, o.payer, o.payee, o.placed, \
                         l.product_id, l.quantity, l.price \
                         FROM concord_inventory.orders o \
                         JOIN concord_inventory.order_lines l ON l.gtrid = o.gtrid \
                         WHERE o.id = ? ORDER BY l.line";
const LIST_ORDERS: &str = "SELECT gtrid, id, total, currency, payer, payee, placed \
                           FROM concord_inventory.orders \
                           WHERE gtrid < ? ORDER BY gtrid DESC LIMIT ?";

/// A product as its server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProductRow {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// What an order asks for.
    pub state: ProductState,
}

impl ProductRow {
    /// One row of [`GET`] or [`LIST`].
    fn of(row: &v1::Row) -> Result<Self, Reason> {
        let mut cells = Cells::of(row);
        let (id, name, price) = (cells.text()?, cells.text()?, cells.int()?);
        let currency = Currency::parse(&cells.text()?).ok_or_else(|| {
            Reason::new(
                code::UNEXPECTED_ANSWER,
                format!("product {id} has a broken currency"),
            )
        })?;
        let state = ProductState {
            price: Price { price, currency },
            stock: cells.int()?,
        };
        Ok(Self { id, name, state })
    }

    fn on(self, participant: &str) -> v1::Product {
        let ProductState {
            price: Price { price, currency },
            stock,
        } = self.state;
        v1::Product {
            product_id: self.id,
            name: self.name,
            price,
            currency: currency.to_string(),
            stock,
            participant: participant.to_owned(),
        }
    }
}

/// An order as its server has it, without its lines.
struct OrderRow {
    gtrid: Gtrid,
    id: String,
    total: i64,
    currency: String,
    payment: Option<v1::Payment>,
    placed: Timestamp,
}

impl OrderRow {
    /// The first columns of a row of [`GET_ORDER`] or [`LIST_ORDERS`].
    fn of(cells: &mut Cells<'_>) -> Result<Self, Reason> {
        let (gtrid, id, total) = (cells.gtrid()?, cells.text()?, cells.int()?);
        let currency = cells.text()?;
        let parties = cells.optional_text()?.zip(cells.optional_text()?);
        let payment = parties.map(|(from_account_id, to_account_id)| v1::Payment {
            from_account_id,
            to_account_id,
        });
        Ok(Self {
            gtrid,
            id,
            total,
            currency,
            payment,
            placed: cells.time()?,
        })
    }

    fn on(self, participant: &str, lines: Vec<v1::OrderLine>) -> v1::Order {
        v1::Order {
            order_id: self.id,
            gtrid: self.gtrid.to_string(),
            lines,
            total: self.total,
            currency: self.currency,
            payment: self.payment,
            place_time: Some(self.placed),
            participant: participant.to_owned(),
        }
    }
}

/// Reads a product on its server, and remembers its price.
pub async fn read_product<E: Engine>(
    business: &Business<E>,
    product: &ProductId,
    timeout: Duration,
) -> Result<Option<ProductRow>, Reason> {
    let participant = business.placement().participant_of(product.as_str());
    let get = statement(GET, vec![text(product.as_str())]);
    let rows = business.read(participant, get, timeout).await?;
    let row = rows.first().map(ProductRow::of).transpose()?;
    match &row {
        Some(row) => business.products().put(product.as_str(), row.state.price),
        None => business.products().forget(product.as_str()),
    }
    Ok(row)
}

/// A product for the client.
async fn get_product<E: Engine>(
    business: &Business<E>,
    product: &ProductId,
) -> Result<v1::Product, CallError> {
    let row = read_product(business, product, READ_TIMEOUT).await?;
    let participant = business.placement().participant_of(product.as_str());
    Ok(row
        .ok_or_else(|| no_product(product))?
        .on(participant.as_str()))
}

/// A page of products, by id.
async fn list_products<E: Engine>(
    business: &Business<E>,
    page: &Page,
) -> Result<v1::ListProductsResponse, CallError> {
    let list = statement(
        LIST,
        vec![rows::after(page)?, Value::Int(rows::limit(page.size))],
    );
    let parts = business.read_all(&list, |participant, row| {
        Ok(ProductRow::of(row)?.on(participant.as_str()))
    });
    let (products, more) = rows::merge(parts.await?, page.size, |product| {
        product.product_id.clone()
    });
    let end = products.last().filter(|_| more);
    let next_page_token = end
        .map(|product| page::token(door::PRODUCTS, &product.product_id))
        .unwrap_or_default();
    Ok(v1::ListProductsResponse {
        products,
        next_page_token,
    })
}

/// An order with its lines; none when there is no such order.
async fn read_order<E: Engine>(
    business: &Business<E>,
    order: &OrderId,
) -> Result<Option<v1::Order>, Reason> {
    let participant = business.placement().participant_of(order.as_str());
    let get = statement(GET_ORDER, vec![text(order.as_str())]);
    let rows = business.read(participant, get, READ_TIMEOUT).await?;
    order_of(participant.as_str(), &rows)
}

/// All rows of [`GET_ORDER`].
fn order_of(participant: &str, rows: &[v1::Row]) -> Result<Option<v1::Order>, Reason> {
    let mut head = None;
    let mut lines = Vec::with_capacity(rows.len());
    for row in rows {
        let mut cells = Cells::of(row);
        head = Some(OrderRow::of(&mut cells)?);
        lines.push(v1::OrderLine {
            product_id: cells.text()?,
            quantity: cells.int()?,
            price: cells.int()?,
        });
    }
    Ok(head.map(|head| head.on(participant, lines)))
}

/// A page of orders, newest first.
async fn list_orders<E: Engine>(
    business: &Business<E>,
    page: &Page,
) -> Result<v1::ListOrdersResponse, CallError> {
    let list = statement(
        LIST_ORDERS,
        vec![rows::before(page)?, Value::Int(rows::limit(page.size))],
    );
    let parts = business.read_all(&list, |participant, row| {
        let row = OrderRow::of(&mut Cells::of(row))?;
        Ok((row.gtrid, row.on(participant.as_str(), Vec::new())))
    });
    let (found, more) = rows::merge(parts.await?, page.size, |(gtrid, _)| {
        std::cmp::Reverse(*gtrid)
    });
    let end = found.last().filter(|_| more);
    let next_page_token = end
        .map(|(gtrid, _)| page::token(door::ORDERS, &gtrid.to_string()))
        .unwrap_or_default();
    let orders = found.into_iter().map(|(_, order)| order).collect();
    Ok(v1::ListOrdersResponse {
        orders,
        next_page_token,
    })
}
