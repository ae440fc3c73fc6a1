//! `concord tx`: runs SQL in one transaction over several servers, and looks at transactions.

use std::ffi::OsString;
use std::pin::pin;

use clap::{Args, Subcommand, ValueEnum};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};

use crate::cli::deed::Deed;
use crate::cli::exit::{Exit, Failure};
use crate::cli::list::{cut, limit, one_more, tell_cut};
use crate::cli::output::{self, Ctx, Reader};
use crate::cli::sql::{self, StatementArgs, Targeted};
use crate::cli::view;
use crate::v1;

#[derive(Debug, Subcommand)]
pub(crate) enum TxCommand {
    /// Run statements on several servers: all of them take effect, or none.
    #[command(after_help = EXEC_HELP)]
    Exec(ExecArgs),
    /// List transactions, newest first.
    #[command(after_help = "Examples:\n  \
        concord tx list\n  \
        concord tx list --stuck\n  \
        concord --json tx list --state committing --state aborting --limit 1000")]
    List(ListArgs),
    /// Show what became of a transaction.
    #[command(after_help = "Examples:\n  \
        concord tx get 01890c1d-5b9e-7c00-8000-000000000001\n  \
        concord tx get --request-id invoice-17")]
    Get(GetArgs),
    /// Show every state change as it happens; with a gtrid, until that transaction has ended.
    #[command(after_help = "Examples:\n  \
        concord tx watch\n  \
        concord tx watch 01890c1d-5b9e-7c00-8000-000000000001\n  \
        concord --json tx watch          # one JSON object a line\n\n\
        Ctrl-C ends it. With a gtrid the exit code is then 130: that transaction was not seen to \
        end.")]
    Watch {
        /// Only this transaction.
        gtrid: Option<String>,
    },
}

const EXEC_HELP: &str = "\
Examples:
  concord tx exec 'p1: SELECT * FROM shop.till WHERE id = ?' -p str:anna
  concord tx exec \\
    'p1: UPDATE shop.till SET cash = cash - ? WHERE id = ? AND cash >= ?' \\
        -p 500 -p str:anna -p 500 --expect 1:INSUFFICIENT_FUNDS \\
    'p2: UPDATE shop.till SET cash = cash + ? WHERE id = ?' \\
        -p 500 -p str:bert --expect 1:NO_SUCH_TILL
  concord tx exec --file work.sql

A file is JSON:
  [{\"participant\": \"p1\", \"sql\": \"…\", \"params\": [5, \"x\", null, {\"dec\": \"1.50\"}],
    \"expect\": \"1:REASON\"}]
or text, with one option a line:
  # a statement starts at the first column; what belongs to it is indented
  p1: UPDATE shop.till SET cash = cash - ?
      WHERE id = ?
    -p 500
    -p str:anna
    --expect 1:NO_SUCH_TILL";

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    statements: StatementArgs,
    /// Read the statements from this file; `-` is stdin.
    #[arg(long, short, value_name = "PATH", conflicts_with_all = ["statement", "param", "expect"])]
    file: Option<OsString>,
    /// Isolation level of every branch [default: each server's own].
    #[arg(long)]
    isolation: Option<Level>,
    /// Answer as soon as the decision is durable, not only once it is applied everywhere.
    #[arg(long)]
    decided: bool,
    /// Makes a repetition safe; made up when it is not given.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only those in this state; may be given several times.
    #[arg(long = "state", value_name = "STATE")]
    states: Vec<State>,
    /// Only those that are decided and cannot finish.
    #[arg(long)]
    stuck: bool,
    /// Show at most this many; every page that this needs is read.
    #[arg(long, default_value_t = 100, value_parser = limit)]
    limit: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    Init,
    Active,
    Preparing,
    Prepared,
    Committing,
    Committed,
    Aborting,
    Aborted,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["gtrid", "request_id"]))]
pub(crate) struct GetArgs {
    /// The transaction.
    gtrid: Option<String>,
    /// The transaction that this request ran in.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

pub(crate) async fn run(ctx: &Ctx, command: TxCommand) -> Result<(), Failure> {
    match command {
        TxCommand::Exec(args) => exec(ctx, args).await,
        TxCommand::List(args) => list(ctx, args).await,
        TxCommand::Get(args) => get(ctx, args).await,
        TxCommand::Watch { gtrid } => watch(ctx, gtrid).await,
    }
}

fn statements(args: &ExecArgs) -> Result<Vec<Targeted>, Failure> {
    let usage = |what: String| Failure::new(Exit::Usage, what);
    let Some(path) = &args.file else {
        if args.statements.statements.is_empty() {
            return Err(usage("there is nothing to run".to_owned())
                .next("write a statement, e.g. concord tx exec 'p1: SELECT 1', or use --file"));
        }
        return Ok(args.statements.statements.clone());
    };
    let shown = path.display();
    let text = sql::read(path)
        .map_err(|error| usage(format!("the file {shown} cannot be read")).why(error))?;
    sql::file(&text).map_err(|why| usage(format!("the file {shown} cannot be used")).why(why))
}

async fn exec(ctx: &Ctx, args: ExecArgs) -> Result<(), Failure> {
    let statements = statements(&args)?;
    let deed = Deed::new("the transaction", "committed", args.request_id);
    let mut work = ctx
        .client
        .one_shot()
        .request_id(deed.request_id())
        .timeout(ctx.timeout);
    if let Some(level) = args.isolation {
        work = work.isolation(match level {
            Level::ReadCommitted => v1::Isolation::ReadCommitted,
            Level::RepeatableRead => v1::Isolation::RepeatableRead,
            Level::Serializable => v1::Isolation::Serializable,
        });
    }
    if args.decided {
        work = work.ack(v1::Ack::Decided);
    }
    for targeted in &statements {
        work = work.on(&targeted.participant, targeted.statement.clone());
    }
    ctx.carry_out(&deed, work.send(), |results, gtrid, value| {
        value["results"] = Value::Array(results.iter().map(view::statement_result).collect());
        let mut shown: Vec<String> = statements.iter().zip(results).map(show_result).collect();
        shown.push(format!("committed in {gtrid}"));
        shown.join("\n")
    })
    .await
}

fn rows(count: u64) -> String {
    if count == 1 {
        "1 row".to_owned()
    } else {
        format!("{count} rows")
    }
}

fn show_result((targeted, result): (&Targeted, &v1::StatementResult)) -> String {
    if result.columns.is_empty() {
        let id = match result.last_insert_id {
            0 => String::new(),
            id => format!(", AUTO_INCREMENT value {id}"),
        };
        return format!("{}: {}{id}", targeted.participant, rows(result.rows));
    }
    let header: Vec<&str> = result
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .collect();
    let shown = result.result.iter().map(|row| {
        row.values
            .iter()
            .map(view::value_text)
            .collect::<Vec<String>>()
    });
    format!(
        "{}: {}\n{}",
        targeted.participant,
        rows(result.rows),
        output::table(&header, shown)
    )
}

async fn list(ctx: &Ctx, args: ListArgs) -> Result<(), Failure> {
    let states: Vec<v1::TransactionState> = args
        .states
        .iter()
        .map(|state| match state {
            State::Init => v1::TransactionState::Init,
            State::Active => v1::TransactionState::Active,
            State::Preparing => v1::TransactionState::Preparing,
            State::Prepared => v1::TransactionState::Prepared,
            State::Committing => v1::TransactionState::Committing,
            State::Committed => v1::TransactionState::Committed,
            State::Aborting => v1::TransactionState::Aborting,
            State::Aborted => v1::TransactionState::Aborted,
        })
        .collect();
    let mut transactions = ctx
        .client
        .list_transactions(&states, args.stuck, one_more(args.limit))
        .await
        .map_err(|error| Failure::of_call("transactions cannot be listed", &error))?;
    let more = cut(&mut transactions, args.limit);
    let value = json!(
        transactions
            .iter()
            .map(view::transaction)
            .collect::<Vec<_>>()
    );
    ctx.print(&value, || {
        let rows = transactions.iter().map(|transaction| {
            let stuck = if transaction.stuck { " STUCK" } else { "" };
            let branches: Vec<&str> = transaction
                .branches
                .iter()
                .map(|branch| branch.participant.as_str())
                .collect();
            vec![
                view::time(transaction.begin_time.as_ref()).unwrap_or_default(),
                transaction.gtrid.clone(),
                format!("{}{stuck}", view::state(transaction.state())),
                branches.join(" "),
                transaction.reason.clone().unwrap_or_default().code,
                transaction.request_id.clone(),
            ]
        });
        let header = [
            "begun",
            "gtrid",
            "state",
            "participants",
            "reason",
            "request id",
        ];
        output::table(&header, rows)
    })?;
    tell_cut(transactions.len(), more);
    Ok(())
}

async fn get(ctx: &Ctx, args: GetArgs) -> Result<(), Failure> {
    let found = match (&args.gtrid, &args.request_id) {
        (Some(gtrid), _) => ctx.client.transaction(gtrid).await,
        (None, id) => {
            ctx.client
                .transaction_of_request(id.as_deref().unwrap_or_default())
                .await
        }
    };
    let found =
        found.map_err(|error| Failure::of_call("the transaction cannot be shown", &error))?;
    ctx.print(&view::transaction(&found), || show(&found))
}

/// A transaction with its branches, for people.
pub(crate) fn show(transaction: &v1::Transaction) -> String {
    let stuck = if transaction.stuck { " STUCK" } else { "" };
    let head = output::facts(&[
        ("gtrid", transaction.gtrid.clone()),
        (
            "state",
            format!("{}{stuck}", view::state(transaction.state())),
        ),
        ("reason", view::told_text(transaction.reason.as_ref())),
        ("request id", transaction.request_id.clone()),
        (
            "begun",
            view::time(transaction.begin_time.as_ref()).unwrap_or_default(),
        ),
        (
            "changed",
            view::time(transaction.update_time.as_ref()).unwrap_or_default(),
        ),
        ("epoch", transaction.epoch.to_string()),
    ]);
    let rows = transaction.branches.iter().map(|branch| {
        vec![
            branch.bqual.to_string(),
            branch.participant.clone(),
            view::branch_state(branch.state()),
            branch.attempts.to_string(),
            view::told_text(branch.reason.as_ref()),
        ]
    });
    let header = ["bqual>", "participant", "state", "attempts>", "reason"];
    format!("{head}\n{}", output::table(&header, rows))
}

/// Whether a transaction has ended everywhere.
fn has_ended(state: v1::TransactionState) -> bool {
    matches!(
        state,
        v1::TransactionState::Committed | v1::TransactionState::Aborted
    )
}

async fn watch(ctx: &Ctx, gtrid: Option<String>) -> Result<(), Failure> {
    let failed = |error| Failure::of_call("transactions cannot be watched", &error);
    let stop = async {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => Stop::Interrupted,
            () = output::reader_gone() => Stop::Unread,
        }
    };
    let mut stop = pin!(stop);
    let opened = async {
        let changes = ctx.client.watch_transactions(gtrid.as_deref()).await?;
        // Asked after the stream is open, so that no change falls between the two.
        let now = match &gtrid {
            Some(gtrid) => Some(ctx.client.transaction(gtrid).await?),
            None => None,
        };
        Ok((changes, now))
    };
    let (changes, now) = tokio::select! {
        biased;
        why = &mut stop => return stopped(gtrid.as_deref(), why),
        opened = opened => opened.map_err(failed)?,
    };
    if let (Some(gtrid), Some(now)) = (&gtrid, now) {
        let value = view::transaction(&now);
        let reader = line(ctx, &value, || {
            let reason = now.reason.as_ref().map_or_else(String::new, |reason| {
                format!("  ({}: {})", reason.code, output::clean(&reason.message))
            });
            format!("{gtrid}  is {}{reason}", view::state(now.state()))
        })?;
        if has_ended(now.state()) || reader == Reader::Gone {
            return Ok(());
        }
    }
    let changes = changes.map_err(|status| {
        failed(crate::CallError::from_status(
            &status,
            ctx.client.endpoint(),
        ))
    });
    let show = |change: &_| line(ctx, &change_json(change), || change_text(change));
    follow(gtrid.as_deref(), changes, stop, show).await
}

/// Why changes are followed no longer, although there may be more.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// By Ctrl-C.
    Interrupted,
    /// Nobody reads what is printed.
    Unread,
}

/// Shows changes until they end, or those of one transaction until that has ended.
async fn follow(
    gtrid: Option<&str>,
    changes: impl Stream<Item = Result<v1::WatchTransactionsResponse, Failure>>,
    stop: impl Future<Output = Stop>,
    mut show: impl FnMut(&v1::WatchTransactionsResponse) -> Result<Reader, Failure>,
) -> Result<(), Failure> {
    let (mut changes, mut stop) = (pin!(changes), pin!(stop));
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            why = &mut stop => return stopped(gtrid, why),
        };
        let Some(change) = change.transpose()? else {
            return Err(
                Failure::new(Exit::Unavailable, "the coordinator ended the stream")
                    .next("it is being stopped or restarted; watch again"),
            );
        };
        let reader = show(&change)?;
        let over = gtrid.is_some() && change.bqual == 0 && has_ended(change.state());
        if over || reader == Reader::Gone {
            return Ok(());
        }
    }
}

fn stopped(gtrid: Option<&str>, why: Stop) -> Result<(), Failure> {
    match (why, gtrid) {
        (Stop::Interrupted, Some(gtrid)) => Err(end_not_seen(gtrid)),
        // Whoever watches everything has no other way to end it.
        (Stop::Interrupted, None) | (Stop::Unread, _) => Ok(()),
    }
}

fn end_not_seen(gtrid: &str) -> Failure {
    let what = format!("interrupted; the end of {gtrid} was not seen");
    Failure::new(Exit::Interrupted, what).next(format!("ask `concord tx get {gtrid}`"))
}

/// Prints one entry of a stream: one JSON object a line for programs.
fn line(ctx: &Ctx, value: &Value, text: impl FnOnce() -> String) -> Result<Reader, Failure> {
    let text = if ctx.json { value.to_string() } else { text() };
    output::print_part(format!("{text}\n").as_bytes())
}

fn change_json(change: &v1::WatchTransactionsResponse) -> Value {
    let branch = (change.bqual != 0).then(|| view::branch_state(change.branch_state()));
    json!({
        "gtrid": change.gtrid,
        "state": view::state(change.state()),
        "bqual": change.bqual,
        "participant": change.participant,
        "branch_state": branch,
        "reason": view::told(change.reason.as_ref()),
        "time": view::time(change.time.as_ref()),
        "missed": change.missed,
    })
}

/// One state change on one line.
pub(crate) fn change_text(change: &v1::WatchTransactionsResponse) -> String {
    let mut text = String::new();
    if change.missed > 0 {
        output::push(
            &mut text,
            format_args!("({} changes missed)\n", change.missed),
        );
    }
    let time = view::time(change.time.as_ref()).unwrap_or_default();
    let what = if change.bqual == 0 {
        view::state(change.state())
    } else {
        let state = view::branch_state(change.branch_state());
        format!("branch {} on {}: {state}", change.bqual, change.participant)
    };
    output::push(&mut text, format_args!("{time}  {}  {what}", change.gtrid));
    let reason = view::told_text(change.reason.as_ref());
    if !reason.is_empty() {
        output::push(&mut text, format_args!("  ({reason})"));
    }
    output::clean(&text).replace('\u{fffd}', " ")
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::stream;

    use super::*;

    const GTRID: Option<&str> = Some("01890c1d-5b9e-7c00-8000-000000000001");

    fn change(state: v1::TransactionState) -> v1::WatchTransactionsResponse {
        v1::WatchTransactionsResponse {
            state: state.into(),
            ..v1::WatchTransactionsResponse::default()
        }
    }

    /// A reader that stays.
    fn reading() -> impl FnMut(&v1::WatchTransactionsResponse) -> Result<Reader, Failure> {
        |_| Ok(Reader::There)
    }

    #[tokio::test]
    async fn ctrl_c_before_a_watched_transaction_has_ended_is_an_interruption() {
        let stopped = || ready(Stop::Interrupted);
        let failure = follow(GTRID, stream::pending(), stopped(), reading()).await;
        let failure = failure.unwrap_err();
        assert_eq!(failure.code(), Exit::Interrupted);
        assert!(
            failure
                .advice()
                .unwrap()
                .contains("concord tx get 01890c1d")
        );
        follow(None, stream::pending(), stopped(), reading())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_watch_ends_when_its_reader_is_gone() {
        let unread = ready(Stop::Unread);
        follow(GTRID, stream::pending(), unread, reading())
            .await
            .unwrap();
        let endless = || stream::repeat_with(|| Ok(change(v1::TransactionState::Active)));
        for gtrid in [None, GTRID] {
            let mut lines = 0;
            let head = |_: &_| {
                lines += 1;
                Ok(if lines < 3 {
                    Reader::There
                } else {
                    Reader::Gone
                })
            };
            follow(gtrid, endless(), pending(), head).await.unwrap();
            assert_eq!(lines, 3);
        }
    }

    #[tokio::test]
    async fn only_a_watch_of_one_transaction_ends_with_it() {
        let states = [v1::TransactionState::Active, v1::TransactionState::Aborted];
        let changes = || stream::iter(states.map(|state| Ok(change(state))));
        follow(GTRID, changes(), pending(), reading())
            .await
            .unwrap();
        let cut = follow(None, changes(), pending(), reading()).await;
        assert_eq!(cut.unwrap_err().code(), Exit::Unavailable);
    }
}
