//! `concord account`: opens, shows and lists accounts.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::deed::Deed;
use crate::cli::exit::{Exit, Failure};
use crate::cli::list::{ListArgs, cut, one_more, tell_cut, tell_cut_by};
use crate::cli::money::{self, Amount};
use crate::cli::output::{self, Ctx};
use crate::cli::view;
use crate::v1;

#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Open an account on the server that its id's hash slot names.
    #[command(after_help = "Examples:\n  \
        concord account open alice --currency EUR\n  \
        concord account open alice --balance 100.00EUR\n  \
        concord account open alice --currency EUR --balance 10000   # minor units: 100.00 EUR")]
    Open(OpenArgs),
    /// Show an account and its journal.
    #[command(after_help = "Examples:\n  \
        concord account get alice\n  \
        concord account get alice --journal 20\n  \
        concord --json account get alice")]
    Get(GetArgs),
    /// List accounts by id.
    #[command(after_help = "Examples:\n  \
        concord account list\n  \
        concord --json account list --limit 5000")]
    List(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// 1 to 64 characters of [A-Za-z0-9._:-].
    account_id: String,
    /// ISO 4217, three capitals; may be left out when the balance names it.
    #[arg(long)]
    currency: Option<String>,
    /// Opening balance: an integer of minor units, or a decimal amount with its currency.
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true)]
    balance: Option<Amount>,
    /// Makes a repetition safe; made up when it is not given.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Which.
    account_id: String,
    /// Show the newest N entries of the journal too.
    #[arg(long, value_name = "N", default_value_t = 0)]
    journal: usize,
}

pub(crate) async fn run(ctx: &Ctx, command: AccountCommand) -> Result<(), Failure> {
    match command {
        AccountCommand::Open(args) => open(ctx, args).await,
        AccountCommand::Get(args) => get(ctx, args).await,
        AccountCommand::List(args) => list(ctx, args.limit).await,
    }
}

async fn open(ctx: &Ctx, args: OpenArgs) -> Result<(), Failure> {
    let currency = money::agree(args.currency.as_deref(), args.balance.as_ref())
        .map_err(|why| Failure::new(Exit::Usage, "the account cannot be opened").why(why))?;
    let deed = Deed::new("the account", "opened", args.request_id);
    let request = v1::OpenAccountRequest {
        account_id: args.account_id,
        currency,
        initial_balance: args.balance.map_or(0, |balance| balance.minor),
        request_id: deed.request_id().to_owned(),
    };
    ctx.carry_out(
        &deed,
        ctx.client.open_account(request),
        |account, _, value| {
            value["account"] = view::account(account);
            format!(
                "opened {} with {} on {}",
                account.account_id,
                money::show(account.balance, &account.currency),
                account.participant
            )
        },
    )
    .await
}

async fn get(ctx: &Ctx, args: GetArgs) -> Result<(), Failure> {
    let failed = |error| {
        Failure::of_call(
            format!("the account \"{}\" cannot be shown", args.account_id),
            &error,
        )
    };
    let account = ctx.client.account(&args.account_id).await.map_err(failed)?;
    let mut journal = if args.journal > 0 {
        ctx.client
            .list_transfers(&args.account_id, one_more(args.journal))
            .await
            .map_err(failed)?
    } else {
        Vec::new()
    };
    let more = cut(&mut journal, args.journal);
    let mut value = view::account(&account);
    if args.journal > 0 {
        value["journal"] = Value::Array(journal.iter().map(view::journal_entry).collect());
    }
    ctx.print(&value, || {
        let mut text = output::facts(&[
            ("account", account.account_id.clone()),
            ("balance", money::show(account.balance, &account.currency)),
            ("participant", account.participant.clone()),
            (
                "opened",
                view::time(account.open_time.as_ref()).unwrap_or_default(),
            ),
        ]);
        if args.journal > 0 {
            let rows = journal.iter().map(|entry| {
                vec![
                    view::time(entry.time.as_ref()).unwrap_or_default(),
                    money::show(entry.amount, &account.currency),
                    entry.counterparty.clone(),
                    entry.memo.clone(),
                    entry.gtrid.clone(),
                ]
            });
            text.push('\n');
            text.push_str(&output::table(
                &["time", "amount>", "counterparty", "memo", "gtrid"],
                rows,
            ));
        }
        text
    })?;
    tell_cut_by("--journal", journal.len(), more);
    Ok(())
}

async fn list(ctx: &Ctx, limit: usize) -> Result<(), Failure> {
    let mut accounts = ctx
        .client
        .list_accounts(one_more(limit))
        .await
        .map_err(|error| Failure::of_call("accounts cannot be listed", &error))?;
    let more = cut(&mut accounts, limit);
    let value = json!(accounts.iter().map(view::account).collect::<Vec<_>>());
    ctx.print(&value, || {
        let rows = accounts.iter().map(|account| {
            vec![
                account.account_id.clone(),
                money::show(account.balance, &account.currency),
                account.participant.clone(),
            ]
        });
        output::table(&["account", "balance>", "participant"], rows)
    })?;
    tell_cut(accounts.len(), more);
    Ok(())
}
