//! Requests to the InventoryService.

use std::collections::BTreeSet;
use std::time::Duration;

use concord_core::id::Request;
use concord_core::limits::TIMEOUT_DEFAULT_MS;

use super::bank::accounts;
use super::common::{range, timeout};
use super::fingerprint::fingerprint;
use super::text::{PRODUCT_NAME_LEN_MAX, plain};
use super::transaction::request;
use super::violations::{At, Violations};
use super::{AccountId, Currency, OrderId, Page, ProductId};
use crate::v1;

/// Largest price of one piece in minor units.
pub const PRICE_MAX: i64 = 1_000_000_000_000;
/// Most pieces in an opening stock or a restock.
pub const STOCK_MAX: i64 = 1_000_000_000;
/// Most pieces in one line of an order.
pub const LINE_QUANTITY_MAX: i64 = 1_000_000;
/// Most lines of an order: each is a statement, and its product's server a branch.
pub const ORDER_LINES_MAX: usize = 64;
/// The list of [`list_products`], for page tokens.
pub const PRODUCTS: &str = "products";
/// The list of [`list_orders`], for page tokens.
pub const ORDERS: &str = "orders";

/// Creates a product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateProduct {
    /// Its id.
    pub product: ProductId,
    /// For people; the id when none was given.
    pub name: String,
    /// In minor units, from 0 to [`PRICE_MAX`].
    pub price: i64,
    /// Of the price.
    pub currency: Currency,
    /// From 0 to [`STOCK_MAX`].
    pub initial_stock: i64,
    /// The client's request.
    pub request: Option<Request>,
}

/// Adds stock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restock {
    /// Which product.
    pub product: ProductId,
    /// Pieces, from 1 to [`STOCK_MAX`].
    pub quantity: i64,
    /// The client's request.
    pub request: Option<Request>,
}

/// One line of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Which product; each at most once in an order.
    pub product: ProductId,
    /// Pieces, from 1 to [`LINE_QUANTITY_MAX`].
    pub quantity: i64,
}

/// Who pays whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Debited.
    pub from: AccountId,
    /// Credited; another one.
    pub to: AccountId,
}

/// Places an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceOrder {
    /// 1 to [`ORDER_LINES_MAX`], in the request's order.
    pub lines: Vec<Line>,
    /// None: the transaction's gtrid.
    pub order: Option<OrderId>,
    /// None: nothing is paid.
    pub payment: Option<Payment>,
    /// The client's request.
    pub request: Option<Request>,
    /// Time until it is aborted when it is not decided.
    pub timeout: Duration,
}

/// Checks a CreateProduct.
pub fn create_product(raw: v1::CreateProductRequest) -> Result<CreateProduct, Violations> {
    let mut v = Violations::default();
    let content = fingerprint(&[
        b"create_product",
        raw.product_id.as_bytes(),
        raw.name.as_bytes(),
        &raw.price.to_be_bytes(),
        raw.currency.as_bytes(),
        &raw.initial_stock.to_be_bytes(),
    ]);
    let product = ProductId::check(&mut v, &At::root("product_id"), &raw.product_id);
    let name = if raw.name.is_empty() {
        raw.product_id
    } else {
        raw.name
    };
    // The id stands in for a missing name and has been checked; it is not blamed twice.
    let name = match &product {
        Some(id) if name == id.as_str() => Some(name),
        _ => plain(&mut v, &At::root("name"), name, PRODUCT_NAME_LEN_MAX),
    };
    let price = range(&mut v, &At::root("price"), raw.price, 0, PRICE_MAX);
    let currency = Currency::check(&mut v, &At::root("currency"), &raw.currency);
    let stock = range(
        &mut v,
        &At::root("initial_stock"),
        raw.initial_stock,
        0,
        STOCK_MAX,
    );
    let request = request(&mut v, &raw.request_id, content);
    v.finish(|| {
        Some(CreateProduct {
            product: product?,
            name: name?,
            price: price?,
            currency: currency?,
            initial_stock: stock?,
            request: request?,
        })
    })
}

/// Checks a GetProduct.
pub fn get_product(raw: &v1::GetProductRequest) -> Result<ProductId, Violations> {
    let mut v = Violations::default();
    let product = ProductId::check(&mut v, &At::root("product_id"), &raw.product_id);
    v.finish(|| product)
}

/// Checks a ListProducts. Its tokens are `page::token(PRODUCTS, …)`.
pub fn list_products(raw: &v1::ListProductsRequest) -> Result<Page, Violations> {
    let mut v = Violations::default();
    let page = Page::check(&mut v, PRODUCTS, raw.page_size, &raw.page_token);
    v.finish(|| page)
}

/// Checks a Restock.
pub fn restock(raw: &v1::RestockRequest) -> Result<Restock, Violations> {
    let mut v = Violations::default();
    let product = ProductId::check(&mut v, &At::root("product_id"), &raw.product_id);
    let quantity = range(&mut v, &At::root("quantity"), raw.quantity, 1, STOCK_MAX);
    let content = fingerprint(&[
        b"restock",
        raw.product_id.as_bytes(),
        &raw.quantity.to_be_bytes(),
    ]);
    let request = request(&mut v, &raw.request_id, content);
    v.finish(|| {
        Some(Restock {
            product: product?,
            quantity: quantity?,
            request: request?,
        })
    })
}

/// Checks a PlaceOrder.
pub fn place_order(raw: &v1::PlaceOrderRequest) -> Result<PlaceOrder, Violations> {
    let mut v = Violations::default();
    let lines = lines(&mut v, &raw.lines);
    let order = match raw.order_id.as_str() {
        "" => Some(None),
        text => OrderId::check(&mut v, &At::root("order_id"), text).map(Some),
    };
    let payment = match &raw.payment {
        None => Some(None),
        Some(raw) => payment(&mut v, raw).map(Some),
    };
    let request = request(&mut v, &raw.request_id, order_content(raw));
    let timeout = timeout(
        &mut v,
        &At::root("timeout_ms"),
        raw.timeout_ms,
        TIMEOUT_DEFAULT_MS,
    );
    v.finish(|| {
        Some(PlaceOrder {
            lines,
            order: order?,
            payment: payment?,
            request: request?,
            timeout: timeout?,
        })
    })
}

fn lines(v: &mut Violations, raw: &[v1::OrderLine]) -> Vec<Line> {
    let at = At::root("lines");
    if !(1..=ORDER_LINES_MAX).contains(&raw.len()) {
        v.add(
            &at,
            format_args!("must be from 1 to {ORDER_LINES_MAX}, and are {}", raw.len()),
        );
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut lines = Vec::with_capacity(raw.len());
    for (i, raw) in raw.iter().enumerate() {
        let at = at.index(i);
        let product = ProductId::check(v, &at.field("product_id"), &raw.product_id);
        let quantity = range(v, &at.field("quantity"), raw.quantity, 1, LINE_QUANTITY_MAX);
        if product.is_some() && !seen.insert(raw.product_id.as_str()) {
            v.add(
                &at.field("product_id"),
                "is in the order twice; add up the quantities",
            );
        }
        lines.extend(
            product
                .zip(quantity)
                .map(|(product, quantity)| Line { product, quantity }),
        );
    }
    lines
}

fn payment(v: &mut Violations, raw: &v1::Payment) -> Option<Payment> {
    let at = At::root("payment");
    let (from, to) = accounts(
        v,
        (&at.field("from_account_id"), &raw.from_account_id),
        (&at.field("to_account_id"), &raw.to_account_id),
    );
    Some(Payment {
        from: from?,
        to: to?,
    })
}

/// What an order asks for. Prices are not part of it: the server fills them in.
fn order_content(raw: &v1::PlaceOrderRequest) -> u64 {
    let quantities: Vec<[u8; 8]> = raw
        .lines
        .iter()
        .map(|line| line.quantity.to_be_bytes())
        .collect();
    let mut parts: Vec<&[u8]> = vec![b"place_order", raw.order_id.as_bytes()];
    match &raw.payment {
        None => parts.push(b"unpaid"),
        Some(payment) => parts.extend([
            b"paid".as_slice(),
            payment.from_account_id.as_bytes(),
            payment.to_account_id.as_bytes(),
        ]),
    }
    for (line, quantity) in raw.lines.iter().zip(&quantities) {
        parts.extend([line.product_id.as_bytes(), quantity.as_slice()]);
    }
    fingerprint(&parts)
}

/// Checks a GetOrder.
pub fn get_order(raw: &v1::GetOrderRequest) -> Result<OrderId, Violations> {
    let mut v = Violations::default();
    let order = OrderId::check(&mut v, &At::root("order_id"), &raw.order_id);
    v.finish(|| order)
}

/// Checks a ListOrders. Its tokens are `page::token(ORDERS, …)`.
pub fn list_orders(raw: &v1::ListOrdersRequest) -> Result<Page, Violations> {
    let mut v = Violations::default();
    let page = Page::check(&mut v, ORDERS, raw.page_size, &raw.page_token);
    v.finish(|| page)
}
