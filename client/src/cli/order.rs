//! `concord order`: places, shows and lists orders.

use std::str::FromStr;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::deed::Deed;
use crate::cli::exit::Failure;
use crate::cli::list::{ListArgs, cut, one_more, tell_cut};
use crate::cli::output::{self, Ctx};
use crate::cli::{money, view};
use crate::v1;

#[derive(Debug, Subcommand)]
pub(crate) enum OrderCommand {
    /// Take stock, write the order and move the payment: all of it, or nothing.
    #[command(after_help = "Examples:\n  \
        concord order place mug=2 tea                        # two mugs and one tea, no payment\n  \
        concord order place mug=2 --from alice --to shop     # paid in the same transaction\n  \
        concord order place mug --order-id 4711 --request-id web-4711")]
    Place(PlaceArgs),
    /// Show an order with its lines.
    #[command(after_help = "Example:\n  concord order get 4711")]
    Get {
        /// Which.
        order_id: String,
    },
    /// List orders, newest first.
    #[command(after_help = "Examples:\n  concord order list\n  concord --json order list")]
    List(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// What is ordered: PRODUCT=QUANTITY, or PRODUCT for one piece.
    #[arg(required = true, value_name = "LINE")]
    lines: Vec<Line>,
    /// The account that pays.
    #[arg(long, requires = "to", value_name = "ACCOUNT")]
    from: Option<String>,
    /// The account that is paid: the merchant's.
    #[arg(long, requires = "from", value_name = "ACCOUNT")]
    to: Option<String>,
    /// 1 to 64 characters of [A-Za-z0-9._:-] [default: the transaction's gtrid].
    #[arg(long, value_name = "ID")]
    order_id: Option<String>,
    /// Makes a repetition safe; made up when it is not given.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

/// One line of an order as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    product_id: String,
    quantity: i64,
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (product_id, quantity) = match text.split_once('=') {
            Some((product_id, quantity)) => (product_id, quantity.parse().unwrap_or(0)),
            None => (text, 1),
        };
        if product_id.is_empty() || quantity < 1 {
            return Err("write PRODUCT=QUANTITY with a quantity of at least 1".to_owned());
        }
        Ok(Self {
            product_id: product_id.to_owned(),
            quantity,
        })
    }
}

pub(crate) async fn run(ctx: &Ctx, command: OrderCommand) -> Result<(), Failure> {
    match command {
        OrderCommand::Place(args) => place(ctx, args).await,
        OrderCommand::Get { order_id } => get(ctx, &order_id).await,
        OrderCommand::List(args) => list(ctx, args.limit).await,
    }
}

async fn place(ctx: &Ctx, args: PlaceArgs) -> Result<(), Failure> {
    let lines = args.lines.into_iter().map(|line| v1::OrderLine {
        product_id: line.product_id,
        quantity: line.quantity,
        price: 0,
    });
    let deed = Deed::new("the order", "placed", args.request_id);
    let request = v1::PlaceOrderRequest {
        lines: lines.collect(),
        order_id: args.order_id.unwrap_or_default(),
        payment: args
            .from
            .zip(args.to)
            .map(|(from_account_id, to_account_id)| v1::Payment {
                from_account_id,
                to_account_id,
            }),
        request_id: deed.request_id().to_owned(),
        timeout_ms: crate::oneshot::millis(ctx.timeout),
    };
    ctx.carry_out(&deed, ctx.client.place_order(request), |order, _, value| {
        value["order"] = view::order(order);
        format!("placed\n{}", show(order))
    })
    .await
}

fn show(order: &v1::Order) -> String {
    let paid = order.payment.as_ref().map_or_else(String::new, |payment| {
        format!(
            "from {} to {}",
            payment.from_account_id, payment.to_account_id
        )
    });
    let mut text = output::facts(&[
        ("order", order.order_id.clone()),
        ("total", money::show(order.total, &order.currency)),
        ("paid", paid),
        (
            "placed",
            view::time(order.place_time.as_ref()).unwrap_or_default(),
        ),
        ("participant", order.participant.clone()),
        ("gtrid", order.gtrid.clone()),
    ]);
    if !order.lines.is_empty() {
        let rows = order.lines.iter().map(|line| {
            vec![
                line.product_id.clone(),
                line.quantity.to_string(),
                money::show(line.price, &order.currency),
            ]
        });
        text.push('\n');
        text.push_str(&output::table(&["product", "quantity>", "price>"], rows));
    }
    text
}

async fn get(ctx: &Ctx, order_id: &str) -> Result<(), Failure> {
    let order = ctx.client.order(order_id).await.map_err(|error| {
        Failure::of_call(format!("the order \"{order_id}\" cannot be shown"), &error)
    })?;
    ctx.print(&view::order(&order), || show(&order))
}

async fn list(ctx: &Ctx, limit: usize) -> Result<(), Failure> {
    let mut orders = ctx
        .client
        .list_orders(one_more(limit))
        .await
        .map_err(|error| Failure::of_call("orders cannot be listed", &error))?;
    let more = cut(&mut orders, limit);
    let value = json!(orders.iter().map(view::order).collect::<Vec<_>>());
    ctx.print(&value, || {
        let rows = orders.iter().map(|order| {
            vec![
                view::time(order.place_time.as_ref()).unwrap_or_default(),
                order.order_id.clone(),
                money::show(order.total, &order.currency),
                order.participant.clone(),
            ]
        });
        output::table(&["time", "order", "total>", "participant"], rows)
    })?;
    tell_cut(orders.len(), more);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_product_and_a_positive_quantity() {
        let line = |text: &str| {
            text.parse::<Line>()
                .map(|line| (line.product_id, line.quantity))
        };
        assert_eq!(line("mug=2"), Ok(("mug".into(), 2)));
        assert_eq!(line("mug"), Ok(("mug".into(), 1)));
        for bad in [
            "=2",
            "mug=",
            "mug=0",
            "mug=-1",
            "mug=x",
            "mug=99999999999999999999",
            "",
        ] {
            assert!(line(bad).is_err(), "{bad:?}");
        }
    }
}
