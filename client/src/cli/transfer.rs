//! `concord transfer`: one transfer, or a file of payments.

mod file;
mod lines;
mod report;

use std::path::PathBuf;

use clap::Args;

use self::lines::Lines;
use crate::cli::deed::Deed;
use crate::cli::exit::{Exit, Failure};
use crate::cli::money::{self, Amount};
use crate::cli::output::Ctx;
use crate::cli::reading::{Line, Payment};
use crate::v1;

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct TransferArgs {
    /// The account that is debited.
    #[arg(required_unless_present = "file", requires_all = ["to", "amount"])]
    from: Option<String>,
    /// The account that is credited.
    to: Option<String>,
    /// An integer of minor units (1230), or a decimal amount with its currency (12.30EUR).
    #[arg(value_parser = money::positive, allow_negative_numbers = true)]
    amount: Option<Amount>,
    /// Refuse unless the accounts have this currency.
    #[arg(long, conflicts_with = "file")]
    currency: Option<String>,
    /// At most 200 characters, kept in the journal.
    #[arg(long, conflicts_with = "file")]
    memo: Option<String>,
    /// Makes a repetition safe; made up when it is not given.
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    request_id: Option<String>,
    /// Run the payments of this CSV file; `-` is stdin.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["from", "to", "amount"])]
    file: Option<PathBuf>,
    /// Payments in flight at once.
    #[arg(long, default_value_t = 32, requires = "file",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Where failed lines are written [default: PATH.failed.csv].
    #[arg(long, value_name = "PATH", requires = "file")]
    failed: Option<PathBuf>,
}

/// Every line of a payment file, for [`crate::cli::reading`].
pub(super) fn read_all(file: &[u8]) -> Result<Vec<Line>, String> {
    let unread = |error: std::io::Error| error.to_string();
    let mut lines = Lines::open(file).map_err(unread)??;
    let mut all = Vec::new();
    while let Some(line) = lines.next().map_err(unread)? {
        all.push(Line {
            number: line.number,
            end: line.end,
            payment: line.content.map_err(|(_, why)| why).map(|payment| Payment {
                request_id: payment.request_id,
                from: payment.from,
                to: payment.to,
                amount: payment.amount,
                minor: payment.minor,
                currency: payment.currency,
                memo: payment.memo,
            }),
        });
    }
    Ok(all)
}

const HELP: &str = "\
Amounts:
  An integer is minor units: 1230 is 12.30 EUR on an account in EUR. A decimal amount must name its
  currency (12.30EUR), and is then refused on accounts of another one. `12.30` alone is refused.

Payment files:
  A CSV file in UTF-8 whose first line names its columns, in any order: request_id, from, to, amount
  and, if wanted, memo; other columns are ignored. One line is one payment. A line that cannot be
  read is reported with its number, and the rest goes on. There are no comments: a line that begins
  with # is one that cannot be read, and is not paid. Each request_id takes effect at most once,
  however often it stands in the file or the file is run: after a crash, run it again. Transient
  failures are retried with the same request_id for --retry-for (60s a line). Failed lines go to
  PATH.failed.csv, in the order in which they failed, with line, outcome, reason and message; that
  file can be run in turn. It is removed when nothing failed.
  The exit code is the gravest: 0 all done, 3 some refused or unreadable, 4 some unknown, 5 some
  unavailable, 130 interrupted.

Examples:
  concord transfer alice bob 12.30EUR --memo lunch
  concord transfer alice bob 1230 --request-id invoice-17    # may be repeated safely
  concord transfer --file transfers.csv --concurrency 32
  concord --json --retry-for 10m transfer --file transfers.csv";

pub(crate) async fn run(ctx: &Ctx, args: TransferArgs) -> Result<(), Failure> {
    if let Some(path) = args.file {
        let job = file::Job {
            path,
            concurrency: args.concurrency.into(),
            failed: args.failed,
        };
        return file::run(ctx, job).await;
    }
    let (Some(from), Some(to), Some(amount)) = (args.from, args.to, args.amount) else {
        return Err(Failure::new(
            Exit::Usage,
            "write concord transfer FROM TO AMOUNT",
        ));
    };
    let currency = match (&args.currency, &amount.currency) {
        (None, None) => String::new(),
        _ => money::agree(args.currency.as_deref(), Some(&amount))
            .map_err(|why| Failure::new(Exit::Usage, "the transfer was not made").why(why))?,
    };
    let deed = Deed::new("the transfer", "made", args.request_id);
    let request = v1::TransferRequest {
        from_account_id: from.clone(),
        to_account_id: to.clone(),
        amount: amount.minor,
        currency: currency.clone(),
        memo: args.memo.unwrap_or_default(),
        request_id: deed.request_id().to_owned(),
        timeout_ms: crate::oneshot::millis(ctx.timeout),
    };
    ctx.carry_out(&deed, ctx.client.transfer(request), |(), gtrid, _| {
        let amount = match currency.as_str() {
            "" => format!("{} minor units", amount.minor),
            currency => money::show(amount.minor, currency),
        };
        format!("moved {amount} from {from} to {to}\ncommitted in {gtrid}")
    })
    .await
}
