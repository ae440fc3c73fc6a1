//! `InventoryService`: the RPCs, from the door to the answer.
//!
//! It owns the order of things in each call: what is known, what is planned, what is run, what is
//! said. It refuses to write SQL.

use concord_core::id::Gtrid;
use concord_core::reason::{Reason, code};
use concord_proto::convert::inventory as door;
use concord_proto::convert::{OrderId, ProductId};
use concord_proto::model::Value;
use concord_proto::v1;
use concord_proto::v1::inventory_service_server::InventoryService;
use futures::future::try_join;
use tonic::{Request, Response, Status};

use super::order::{self, Line, Purchase, Role, no_product, quote, told};
use super::{
    CREATE, ProductRow, get_product, list_orders, list_products, read_order, read_product,
};
use crate::engine::{Engine, Executed};
use crate::gateway::bank::explain as explain_movement;
use crate::gateway::bank::movement::{Accounts, Movement};
use crate::gateway::business::{
    Business, CallError, DEFAULT_TIMEOUT, Price, READ_TIMEOUT, Terms, because, reason_of,
};
use crate::gateway::plan::{Plan, statement, text};
use crate::gateway::turns::RowKey;
use crate::gateway::{rows, status};

/// `InventoryService` on the coordinator.
#[derive(Clone, Debug)]
pub struct InventoryGateway<E> {
    business: Business<E>,
}

impl<E: Engine> InventoryGateway<E> {
    /// The service; the bank shares the business.
    pub fn new(business: Business<E>) -> Self {
        Self { business }
    }

    async fn create(&self, create: door::CreateProduct) -> Result<v1::Product, CallError> {
        let door::CreateProduct {
            product,
            name,
            price,
            currency,
            initial_stock,
            request,
        } = create;
        let gtrid = self.business.mint();
        let participant = self.business.placement().participant_of(product.as_str());
        let mut plan = Plan::default();
        let values = vec![
            text(product.as_str()),
            text(&name),
            Value::Int(price),
            text(currency.as_str()),
            Value::Int(initial_stock),
        ];
        plan.push(participant, (), statement(CREATE, values));
        plan.push(
            participant,
            (),
            order::journal(gtrid, &product, initial_stock),
        );
        let terms = Terms::new(request, DEFAULT_TIMEOUT);
        match self.business.run(gtrid, plan, &terms).await {
            Ok(executed) if executed.replayed => {
                let kept = get_product(&self.business, &product).await;
                kept.map_err(|_| CallError::not_shown(executed.gtrid))
            }
            Ok(_) => {
                let price = Price { price, currency };
                self.business.products().put(product.as_str(), price);
                let state = order::ProductState {
                    price,
                    stock: initial_stock,
                };
                let row = ProductRow {
                    id: product.to_string(),
                    name,
                    state,
                };
                Ok(row.on(participant.as_str()))
            }
            Err((error, _)) => {
                let message = format!("product {product} exists already");
                Err(exists(error, code::PRODUCT_EXISTS, message))
            }
        }
    }

    async fn restock(&self, restock: door::Restock) -> Result<v1::RestockResponse, CallError> {
        let door::Restock {
            product,
            quantity,
            request,
        } = restock;
        let terms = Terms::new(request, DEFAULT_TIMEOUT);
        let executed = match self.is_known(&product, &terms).await {
            Ok(known) => self.add(&product, quantity, known, &terms).await?,
            Err(reason) => self.business.repeated(&terms, reason).await?,
        };
        Ok(v1::RestockResponse {
            gtrid: executed.gtrid.to_string(),
            replayed: executed.replayed,
        })
    }

    /// Whether there is such a product.
    async fn is_known(&self, product: &ProductId, terms: &Terms) -> Result<bool, Reason> {
        let products = std::iter::once(product);
        let prices = self.business.prices(products, terms.read_timeout()).await?;
        let known = prices.iter().any(Option::is_some);
        terms.refuse_early((!known).then(|| no_product(product)))?;
        Ok(known)
    }

    async fn add(
        &self,
        product: &ProductId,
        quantity: i64,
        known: bool,
        terms: &Terms,
    ) -> Result<Executed, CallError> {
        let gtrid = self.business.mint();
        let participant = self.business.placement().participant_of(product.as_str());
        let mut plan = Plan::default();
        plan.touches(RowKey::Product(product.as_str().into()));
        plan.push(participant, (), order::add(product, quantity, known));
        plan.push(participant, (), order::journal(gtrid, product, quantity));
        match self.business.run(gtrid, plan, terms).await {
            Ok(executed) => Ok(executed),
            Err((error, _)) => Err(self.explain_restock(product, error).await),
        }
    }

    /// Why stock was not added.
    async fn explain_restock(&self, product: &ProductId, error: CallError) -> CallError {
        let reason = match reason_of(&error).map(|reason| &*reason.code) {
            Some(code::PRODUCT_NOT_FOUND) => no_product(product),
            Some(code::LIMIT_EXCEEDED) => {
                // A price that is known may be that of a product which the server has lost.
                match read_product(&self.business, product, READ_TIMEOUT).await {
                    Ok(None) => no_product(product),
                    Ok(Some(_)) | Err(_) => Reason::new(
                        code::LIMIT_EXCEEDED,
                        format!(
                            "the stock of {product} would grow over {}",
                            order::STOCK_LIMIT
                        ),
                    ),
                }
            }
            Some(_) | None => return error,
        };
        because(error, reason)
    }

    async fn place(&self, place: door::PlaceOrder) -> Result<v1::PlaceOrderResponse, CallError> {
        let door::PlaceOrder {
            lines,
            order,
            payment,
            request,
            timeout,
        } = place;
        let terms = Terms::new(request, timeout);
        let gtrid = self.business.mint();
        let named = order.is_some();
        let order = order.map_or_else(|| order_id(gtrid), Ok)?;
        let priced = self.price(order.clone(), lines, payment, &terms).await;
        let executed = match &priced {
            Ok(purchase) => {
                let plan = purchase.plan(self.business.placement(), gtrid);
                match self.business.run(gtrid, plan, &terms).await {
                    Ok(executed) => executed,
                    Err((error, role)) => {
                        return Err(self.explain_order(purchase, error, role).await);
                    }
                }
            }
            Err(reason) => self.business.repeated(&terms, reason.clone()).await?,
        };
        let placed = match &priced {
            Ok(purchase) if !executed.replayed => self.placed(purchase, gtrid),
            // What it was then, at the prices of then, is what its server kept. The first attempt
            // chose its own id when the client named none.
            Ok(_) | Err(_) => {
                let order = if named {
                    order
                } else {
                    order_id(executed.gtrid)?
                };
                let kept = read_order(&self.business, &order).await.ok().flatten();
                kept.ok_or_else(|| CallError::not_shown(executed.gtrid))?
            }
        };
        Ok(v1::PlaceOrderResponse {
            order: Some(placed),
            replayed: executed.replayed,
        })
    }

    /// Reads what is not known of the products and accounts, and adds it up.
    async fn price(
        &self,
        order: OrderId,
        lines: Vec<door::Line>,
        payment: Option<door::Payment>,
        terms: &Terms,
    ) -> Result<Purchase, Reason> {
        let timeout = terms.read_timeout();
        let accounts = async {
            let Some(door::Payment { from, to }) = payment else {
                return Ok(None);
            };
            let [debited, credited] = self.business.currencies([&from, &to], timeout).await?;
            Ok(Some((
                from,
                to,
                Accounts {
                    from: debited,
                    to: credited,
                },
            )))
        };
        let prices = self
            .business
            .prices(lines.iter().map(|line| &line.product), timeout);
        let (prices, accounts) = try_join(prices, accounts).await?;
        let lines: Vec<Line> = lines
            .into_iter()
            .zip(prices)
            .map(|(door::Line { product, quantity }, price)| Line {
                product,
                quantity,
                price,
            })
            .collect();
        let (total, mut currency) = quote(&lines)?;
        let payment = match accounts {
            None => None,
            Some((from, to, accounts)) => {
                let movement = Movement {
                    from,
                    to,
                    amount: total,
                    memo: format!("order {order}"),
                };
                currency = movement.agree(accounts, currency)?;
                Some((movement, accounts))
            }
        };
        let purchase = Purchase {
            order,
            lines,
            total,
            currency,
            payment,
        };
        terms.refuse_early(purchase.missing())?;
        Ok(purchase)
    }

    /// The order as it was just written.
    fn placed(&self, purchase: &Purchase, gtrid: Gtrid) -> v1::Order {
        let lines = purchase.lines.iter().map(|line| v1::OrderLine {
            product_id: line.product.to_string(),
            quantity: line.quantity,
            price: line.price.map_or(0, |price| price.price),
        });
        let payment = purchase.payment.as_ref().map(|(movement, _)| v1::Payment {
            from_account_id: movement.from.to_string(),
            to_account_id: movement.to.to_string(),
        });
        let participant = self
            .business
            .placement()
            .participant_of(purchase.order.as_str());
        v1::Order {
            order_id: purchase.order.to_string(),
            gtrid: gtrid.to_string(),
            lines: lines.collect(),
            total: purchase.total,
            currency: purchase
                .currency
                .map(|currency| currency.to_string())
                .unwrap_or_default(),
            payment,
            place_time: Some(rows::time_of(gtrid)),
            participant: participant.to_string(),
        }
    }

    /// Why an order was not placed, as exactly as can be known.
    async fn explain_order(
        &self,
        purchase: &Purchase,
        error: CallError,
        role: Option<Role>,
    ) -> CallError {
        let Some(code) = reason_of(&error).map(|reason| reason.code.clone()) else {
            return error;
        };
        if &*code == code::CONSTRAINT_VIOLATED {
            let message = format!("order {} exists already", purchase.order);
            return exists(error, code::ORDER_EXISTS, message);
        }
        if let Some(told) = told(&code) {
            let line = match role {
                Some(Role::Stock(index)) => purchase.lines.get(index),
                Some(Role::Payment(_) | Role::Record) | None => None,
            };
            let Some(line) = line else {
                return because(error, told);
            };
            let read = read_product(&self.business, &line.product, READ_TIMEOUT).await;
            let precise = match read {
                Ok(row) => line.explain(row.as_ref().map(|row| &row.state)),
                Err(_) => None, // the transaction's own reason is the one that matters
            };
            return because(error, precise.unwrap_or(told));
        }
        let Some((movement, _)) = &purchase.payment else {
            return error;
        };
        let entry = match role {
            Some(Role::Payment(entry)) => Some(entry),
            Some(Role::Stock(_) | Role::Record) | None => None,
        };
        explain_movement(&self.business, movement, purchase.currency, error, entry).await
    }
}

/// The id of an order that the client gave none.
fn order_id(gtrid: Gtrid) -> Result<OrderId, Reason> {
    // A UUID's text has the form of an id.
    OrderId::parse(&gtrid.to_string())
        .ok_or_else(|| Reason::new(code::UNEXPECTED_ANSWER, "a gtrid is no order id"))
}

/// Nothing but the own key of what is created can refuse its insertion.
fn exists(error: CallError, code: &str, message: String) -> CallError {
    match reason_of(&error) {
        Some(reason) if &*reason.code == code::CONSTRAINT_VIOLATED => {
            because(error, Reason::new(code, message))
        }
        Some(_) | None => error,
    }
}

#[tonic::async_trait]
impl<E: Engine> InventoryService for InventoryGateway<E> {
    async fn create_product(
        &self,
        request: Request<v1::CreateProductRequest>,
    ) -> Result<Response<v1::CreateProductResponse>, Status> {
        let create = door::create_product(request.into_inner())?;
        let product = self
            .create(create)
            .await
            .map_err(|error| status::of_call(&error))?;
        Ok(Response::new(v1::CreateProductResponse {
            product: Some(product),
        }))
    }

    async fn get_product(
        &self,
        request: Request<v1::GetProductRequest>,
    ) -> Result<Response<v1::GetProductResponse>, Status> {
        let product = door::get_product(request.get_ref())?;
        let product = get_product(&self.business, &product).await;
        let product = product.map_err(|error| status::of_call(&error))?;
        Ok(Response::new(v1::GetProductResponse {
            product: Some(product),
        }))
    }

    async fn list_products(
        &self,
        request: Request<v1::ListProductsRequest>,
    ) -> Result<Response<v1::ListProductsResponse>, Status> {
        let page = door::list_products(request.get_ref())?;
        let list = list_products(&self.business, &page).await;
        list.map(Response::new)
            .map_err(|error| status::of_call(&error))
    }

    async fn restock(
        &self,
        request: Request<v1::RestockRequest>,
    ) -> Result<Response<v1::RestockResponse>, Status> {
        let restock = door::restock(request.get_ref())?;
        let added = self.restock(restock).await;
        added
            .map(Response::new)
            .map_err(|error| status::of_call(&error))
    }

    async fn place_order(
        &self,
        request: Request<v1::PlaceOrderRequest>,
    ) -> Result<Response<v1::PlaceOrderResponse>, Status> {
        let place = door::place_order(request.get_ref())?;
        let placed = self.place(place).await;
        placed
            .map(Response::new)
            .map_err(|error| status::of_call(&error))
    }

    async fn get_order(
        &self,
        request: Request<v1::GetOrderRequest>,
    ) -> Result<Response<v1::GetOrderResponse>, Status> {
        let id = door::get_order(request.get_ref())?;
        let found = read_order(&self.business, &id).await;
        let found = found.and_then(|order| {
            let message = format!("order {id} does not exist");
            order.ok_or_else(|| Reason::new(code::ORDER_NOT_FOUND, message))
        });
        match found {
            Ok(order) => Ok(Response::new(v1::GetOrderResponse { order: Some(order) })),
            Err(reason) => Err(status::of_call(&reason.into())),
        }
    }

    async fn list_orders(
        &self,
        request: Request<v1::ListOrdersRequest>,
    ) -> Result<Response<v1::ListOrdersResponse>, Status> {
        let page = door::list_orders(request.get_ref())?;
        let list = list_orders(&self.business, &page).await;
        list.map(Response::new)
            .map_err(|error| status::of_call(&error))
    }
}
