//! `concord product` and `concord restock`.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::deed::Deed;
use crate::cli::exit::{Exit, Failure};
use crate::cli::list::{ListArgs, cut, one_more, tell_cut};
use crate::cli::money::{self, Amount};
use crate::cli::output::{self, Ctx};
use crate::cli::view;
use crate::v1;

#[derive(Debug, Subcommand)]
pub(crate) enum ProductCommand {
    /// Create a product on the server that its id's hash slot names.
    #[command(after_help = "Examples:\n  \
        concord product create mug --name 'Coffee mug' --price 7.50EUR --stock 100\n  \
        concord product create mug --currency EUR --price 750 --stock 100")]
    Create(CreateArgs),
    /// List products by id.
    #[command(after_help = "Examples:\n  \
        concord product list\n  \
        concord --json product list --limit 1000")]
    List(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// 1 to 64 characters of [A-Za-z0-9._:-].
    product_id: String,
    /// For people [default: the id].
    #[arg(long)]
    name: Option<String>,
    /// Price of one piece: an integer of minor units, or a decimal amount with its currency.
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true)]
    price: Amount,
    /// ISO 4217, three capitals; may be left out when the price names it.
    #[arg(long)]
    currency: Option<String>,
    /// Pieces in stock.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(0..))]
    stock: i64,
    /// Makes a repetition safe; made up when it is not given.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    concord restock mug 50\n  \
    concord restock mug 50 --request-id delivery-4711   # may be repeated safely")]
pub(crate) struct RestockArgs {
    /// Which product.
    product_id: String,
    /// Pieces to add.
    #[arg(allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(1..))]
    quantity: i64,
    /// Makes a repetition safe; made up when it is not given.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

pub(crate) async fn run(ctx: &Ctx, command: ProductCommand) -> Result<(), Failure> {
    match command {
        ProductCommand::Create(args) => create(ctx, args).await,
        ProductCommand::List(args) => list(ctx, args.limit).await,
    }
}

async fn create(ctx: &Ctx, args: CreateArgs) -> Result<(), Failure> {
    let currency = money::agree(args.currency.as_deref(), Some(&args.price))
        .map_err(|why| Failure::new(Exit::Usage, "the product cannot be created").why(why))?;
    let deed = Deed::new("the product", "created", args.request_id);
    let request = v1::CreateProductRequest {
        product_id: args.product_id,
        name: args.name.unwrap_or_default(),
        price: args.price.minor,
        currency,
        initial_stock: args.stock,
        request_id: deed.request_id().to_owned(),
    };
    ctx.carry_out(
        &deed,
        ctx.client.create_product(request),
        |product, _, value| {
            value["product"] = view::product(product);
            format!(
                "created {} at {}, {} in stock, on {}",
                product.product_id,
                money::show(product.price, &product.currency),
                product.stock,
                product.participant
            )
        },
    )
    .await
}

pub(crate) async fn restock(ctx: &Ctx, args: RestockArgs) -> Result<(), Failure> {
    let deed = Deed::new("the stock", "added", args.request_id);
    let request = v1::RestockRequest {
        product_id: args.product_id.clone(),
        quantity: args.quantity,
        request_id: deed.request_id().to_owned(),
    };
    ctx.carry_out(&deed, ctx.client.restock(request), |(), _, _| {
        format!("added {} to {}", args.quantity, args.product_id)
    })
    .await
}

async fn list(ctx: &Ctx, limit: usize) -> Result<(), Failure> {
    let mut products = ctx
        .client
        .list_products(one_more(limit))
        .await
        .map_err(|error| Failure::of_call("products cannot be listed", &error))?;
    let more = cut(&mut products, limit);
    let value = json!(products.iter().map(view::product).collect::<Vec<_>>());
    ctx.print(&value, || {
        let rows = products.iter().map(|product| {
            vec![
                product.product_id.clone(),
                product.name.clone(),
                money::show(product.price, &product.currency),
                product.stock.to_string(),
                product.participant.clone(),
            ]
        });
        output::table(
            &["product", "name", "price>", "stock>", "participant"],
            rows,
        )
    })?;
    tell_cut(products.len(), more);
    Ok(())
}
