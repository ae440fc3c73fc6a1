//! An order: what it costs, its statements, and why it was refused.
//!
//! It owns the SQL that takes stock and writes orders. It refuses to read: what it needs to know
//! is given to it, so that all of it can be tested without a server.

use concord_core::id::{Gtrid, ParticipantName};
use concord_core::reason::{Reason, code};
use concord_proto::convert::bank::AMOUNT_MAX;
use concord_proto::convert::{Currency, OrderId, ProductId};
use concord_proto::model::{Statement, Value};

use crate::gateway::bank::movement::{Accounts, Entry, Movement};
use crate::gateway::business::{NO_CURRENCY, Price};
use crate::gateway::placement::Placement;
use crate::gateway::plan::{Plan, guard, id_of, statement, text};
use crate::gateway::rows;
use crate::gateway::turns::RowKey;

/// The largest total of an order, in minor units: as much as one transfer may move.
pub const TOTAL_MAX: i64 = AMOUNT_MAX;
/// The largest stock of a product, in pieces: a thousand of the largest restocks.
pub const STOCK_LIMIT: i64 = 1_000_000_000_000;

const TAKE: &str = "UPDATE concord_inventory.products SET stock = stock - ? \
                    WHERE id = ? AND price = ? AND currency = ? AND stock >= ?";
const ADD: &str = "UPDATE concord_inventory.products SET stock = stock + ? \
                   WHERE id = ? AND stock <= ?";
const STOCK_JOURNAL: &str = "INSERT INTO concord_inventory.stock_journal \
                             (gtrid, product_id, delta, order_id, created) VALUES ";
const STOCK_JOURNAL_ROW: &str = "(?, ?, ?, ?, UTC_TIMESTAMP(6))";
const ORDER: &str = "INSERT INTO concord_inventory.orders \
                     (gtrid, id, total, currency, payer, payee, placed) \
                     VALUES (?, ?, ?, ?, ?, ?, ?)";
const LINES: &str = "INSERT INTO concord_inventory.order_lines \
                     (gtrid, line, product_id, quantity, price) VALUES ";
const LINES_ROW: &str = "(?, ?, ?, ?, ?)";

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Which product; each at most once in an order.
    pub product: ProductId,
    /// Pieces.
    pub quantity: i64,
    /// None when there is no such product.
    pub price: Option<Price>,
}

/// The meaning of one statement of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes the stock of the line at this index.
    Stock(usize),
    /// Part of the payment.
    Payment(Entry),
    /// Writes down what the others did.
    Record,
}

/// A product as it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductState {
    /// What never changes.
    pub price: Price,
    /// Pieces.
    pub stock: i64,
}

/// The total of the lines, and the one currency of the products that exist.
pub fn quote(lines: &[Line]) -> Result<(i64, Option<Currency>), Reason> {
    let mut priced: Option<(&ProductId, Currency)> = None;
    let mut total: i128 = 0; // 64 lines of 10^6 pieces at 10^12 each do not fit in 64 bits
    for line in lines {
        let Some(Price { price, currency }) = line.price else {
            continue;
        };
        total += i128::from(price) * i128::from(line.quantity);
        match priced {
            Some((product, other)) if other != currency => {
                let message = format!(
                    "product {product} is priced in {other}, product {} in {currency}",
                    line.product
                );
                return Err(Reason::new(code::CURRENCY_MISMATCH, message));
            }
            Some(_) => {}
            None => priced = Some((&line.product, currency)),
        }
    }
    let total = i64::try_from(total)
        .ok()
        .filter(|total| *total <= TOTAL_MAX)
        .ok_or_else(|| {
            Reason::new(
                code::LIMIT_EXCEEDED,
                format!("the order's total is over {TOTAL_MAX}"),
            )
        })?;
    Ok((total, priced.map(|(_, currency)| currency)))
}

/// The refusal when a product does not exist.
fn missing(lines: &[Line]) -> Option<Reason> {
    lines
        .iter()
        .find(|line| line.price.is_none())
        .map(|line| no_product(&line.product))
}

/// An order that is ready to be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purchase {
    /// Its id.
    pub order: OrderId,
    /// Its lines, as the client gave them.
    pub lines: Vec<Line>,
    /// What they cost.
    pub total: i64,
    /// In this currency; none when nothing that was named exists.
    pub currency: Option<Currency>,
    /// Who pays whom.
    pub payment: Option<(Movement, Accounts)>,
}

impl Purchase {
    /// The refusal when something that it needs does not exist.
    pub fn missing(&self) -> Option<Reason> {
        let account = || {
            self.payment
                .as_ref()
                .and_then(|(paid, known)| paid.missing(*known))
        };
        missing(&self.lines).or_else(account)
    }

    /// The statements. Stock comes first and by product id, then money, then the order: with one
    /// order of locks on each server, two orders never wait for each other inside one. The first
    /// branch is that of the smallest product id, also when the order's id is not the client's.
    pub fn plan(&self, placement: &Placement, gtrid: Gtrid) -> Plan<Role> {
        let mut plan = Plan::default();
        let mut lines: Vec<(usize, &Line)> = self.lines.iter().enumerate().collect();
        lines.sort_by_key(|(_, line)| &line.product);
        for (index, line) in &lines {
            let participant = placement.participant_of(line.product.as_str());
            plan.touches(RowKey::Product(line.product.as_str().into()));
            plan.push(participant, Role::Stock(*index), self.take(line));
        }
        for (participant, params) in self.stock_entries(placement, gtrid, &lines) {
            plan.push(
                participant,
                Role::Record,
                rows_of(STOCK_JOURNAL, STOCK_JOURNAL_ROW, params),
            );
        }
        if let Some((movement, accounts)) = &self.payment {
            let known = (*accounts, self.currency);
            movement.plan(&mut plan, placement, gtrid, known, Role::Payment);
        }
        let home = placement.participant_of(self.order.as_str());
        plan.push(home, Role::Record, self.record(gtrid));
        let numbered = self.lines.iter().zip(1_i64..);
        let params = numbered.map(|(line, number)| {
            let price = line.price.map_or(0, |price| price.price);
            let product = text(line.product.as_str());
            [
                id_of(gtrid),
                Value::Int(number),
                product,
                Value::Int(line.quantity),
                Value::Int(price),
            ]
        });
        let params = params.map(Vec::from).collect();
        plan.push(home, Role::Record, rows_of(LINES, LINES_ROW, params));
        plan
    }

    /// The guard of one line. The price is part of it although it never changes: a server whose
    /// data was replaced must not sell at a price that nobody saw.
    fn take(&self, line: &Line) -> Statement {
        let code = match line.price {
            Some(_) => code::INSUFFICIENT_STOCK,
            None => code::PRODUCT_NOT_FOUND,
        };
        let currency = self.currency.as_ref().map_or(NO_CURRENCY, Currency::as_str);
        let quantity = Value::Int(line.quantity);
        let price = Value::Int(line.price.map_or(0, |price| price.price));
        let id = text(line.product.as_str());
        guard(
            TAKE,
            vec![quantity.clone(), id, price, text(currency), quantity],
            code,
        )
    }

    /// The journal's rows for each server that has products of the order.
    fn stock_entries<'a>(
        &self,
        placement: &'a Placement,
        gtrid: Gtrid,
        lines: &[(usize, &Line)],
    ) -> Vec<(&'a ParticipantName, Vec<Vec<Value>>)> {
        let mut entries: Vec<(&ParticipantName, Vec<Vec<Value>>)> = Vec::new();
        for (_, line) in lines {
            let participant = placement.participant_of(line.product.as_str());
            let row = stock_entry(gtrid, &line.product, -line.quantity, Some(&self.order));
            match entries.iter_mut().find(|(other, _)| *other == participant) {
                Some((_, rows)) => rows.push(row),
                None => entries.push((participant, vec![row])),
            }
        }
        entries
    }

    fn record(&self, gtrid: Gtrid) -> Statement {
        let currency = self.currency.as_ref().map_or(NO_CURRENCY, Currency::as_str);
        let party = |side: fn(&Movement) -> &str| {
            self.payment
                .as_ref()
                .map_or(Value::Null, |(movement, _)| text(side(movement)))
        };
        let params = vec![
            id_of(gtrid),
            text(self.order.as_str()),
            Value::Int(self.total),
            text(currency),
            party(|movement| movement.from.as_str()),
            party(|movement| movement.to.as_str()),
            Value::DateTime(rows::datetime(&rows::time_of(gtrid))),
        ];
        statement(ORDER, params)
    }
}

impl Line {
    /// Why the line's guard refused, from its product as it was read afterwards. None when the
    /// product would pass the guard now: then the guard's own word stands.
    pub fn explain(&self, state: Option<&ProductState>) -> Option<Reason> {
        let Self {
            product,
            quantity,
            price,
        } = self;
        let Some(state) = state else {
            return Some(no_product(product));
        };
        if price.is_some_and(|price| price != state.price) {
            let message = format!("product {product} has another price now; order again");
            return Some(Reason::new(code::PRICE_CHANGED, message));
        }
        let ProductState { stock, .. } = state;
        (stock < quantity).then(|| {
            let message =
                format!("of product {product} {stock} are in stock, and {quantity} ordered");
            Reason::new(code::INSUFFICIENT_STOCK, message)
        })
    }
}

/// A guard's code in words, when its product was not read.
pub fn told(code: &str) -> Option<Reason> {
    let message = match code {
        code::INSUFFICIENT_STOCK => "the stock of a product was less than ordered",
        code::PRODUCT_NOT_FOUND => "a product of the order did not exist",
        _ => return None,
    };
    Some(Reason::new(code, message))
}

/// A statement that adds stock to a product.
pub fn add(product: &ProductId, quantity: i64, known: bool) -> Statement {
    let code = if known {
        code::LIMIT_EXCEEDED
    } else {
        code::PRODUCT_NOT_FOUND
    };
    let id = text(product.as_str());
    guard(
        ADD,
        vec![Value::Int(quantity), id, Value::Int(STOCK_LIMIT - quantity)],
        code,
    )
}

/// A statement that adds one entry to the journal of the stock.
pub fn journal(gtrid: Gtrid, product: &ProductId, delta: i64) -> Statement {
    rows_of(
        STOCK_JOURNAL,
        STOCK_JOURNAL_ROW,
        vec![stock_entry(gtrid, product, delta, None)],
    )
}

/// No such product.
pub fn no_product(product: &ProductId) -> Reason {
    Reason::new(
        code::PRODUCT_NOT_FOUND,
        format!("product {product} does not exist"),
    )
}

fn stock_entry(
    gtrid: Gtrid,
    product: &ProductId,
    delta: i64,
    order: Option<&OrderId>,
) -> Vec<Value> {
    let order = order.map_or(Value::Null, |order| text(order.as_str()));
    vec![
        id_of(gtrid),
        text(product.as_str()),
        Value::Int(delta),
        order,
    ]
}

/// One INSERT of several rows.
fn rows_of(head: &str, row: &str, rows: Vec<Vec<Value>>) -> Statement {
    let tuples = vec![row; rows.len()].join(", ");
    statement(
        format!("{head}{tuples}"),
        rows.into_iter().flatten().collect(),
    )
}

#[cfg(test)]
mod tests;
