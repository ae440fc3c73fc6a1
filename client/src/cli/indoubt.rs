//! `concord indoubt`: looks at branches in doubt, and finishes one by an operator's order.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::exit::{Exit, Failure};
use crate::cli::list::{ListArgs, cut, one_more, tell_cut};
use crate::cli::output::{self, Ctx};
use crate::cli::view;
use crate::v1;

#[derive(Debug, Subcommand)]
pub(crate) enum IndoubtCommand {
    /// List branches that are prepared and not finished, on all participants.
    #[command(after_help = "Examples:\n  \
        concord indoubt list\n  \
        concord --json indoubt list")]
    List(ListArgs),
    /// Finish one branch by hand. Branches normally finish by themselves: do this only when the
    /// coordinator's log is lost.
    #[command(after_help = "Examples:\n  \
        concord indoubt resolve 01890c1d-… 2 --abort --reason 'log lost in the fire of 3 May'\n  \
        concord indoubt resolve 01890c1d-… 1 --commit --participant p1 --reason '…'\n\n\
        --force allows what contradicts a durable decision or a sibling's known outcome. It \
        breaks\natomicity, and is kept as a heuristic outcome for ever.")]
    Resolve(ResolveArgs),
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("how").required(true).args(["commit", "abort"]))]
pub(crate) struct ResolveArgs {
    /// The transaction.
    gtrid: String,
    /// The branch's number.
    bqual: u32,
    /// Commit the branch.
    #[arg(long)]
    commit: bool,
    /// Roll the branch back.
    #[arg(long)]
    abort: bool,
    /// Your words, kept for ever.
    #[arg(long)]
    reason: String,
    /// Name of the participant; needed when the coordinator does not know the transaction.
    #[arg(long, value_name = "NAME")]
    participant: Option<String>,
    /// Allow what contradicts a decision or a sibling.
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(ctx: &Ctx, command: IndoubtCommand) -> Result<(), Failure> {
    match command {
        IndoubtCommand::List(args) => list(ctx, args.limit).await,
        IndoubtCommand::Resolve(args) => resolve(ctx, args).await,
    }
}

async fn list(ctx: &Ctx, limit: usize) -> Result<(), Failure> {
    let (mut branches, unreachable) = ctx
        .client
        .list_in_doubt(one_more(limit))
        .await
        .map_err(|error| Failure::of_call("branches in doubt cannot be listed", &error))?;
    let more = cut(&mut branches, limit);
    let shown = branches.iter().map(|entry| {
        let branch = entry.branch.clone().unwrap_or_default();
        json!({
            "participant": entry.participant,
            "gtrid": branch.gtrid,
            "bqual": branch.bqual,
            "state": view::branch_state(branch.state()),
            "since": view::time(branch.since.as_ref()),
            "listed_by_server": branch.listed_by_server,
            "reason": view::told(branch.reason.as_ref()),
            "transaction": entry.transaction.as_ref().map(view::transaction),
        })
    });
    let value = json!({
        "branches": shown.collect::<Vec<_>>(), "more": more, "unreachable": unreachable,
    });
    ctx.print(&value, || {
        let rows = branches.iter().map(|entry| {
            let branch = entry.branch.clone().unwrap_or_default();
            let decided = entry.transaction.as_ref().map_or_else(
                || "not known".to_owned(),
                |transaction| view::state(transaction.state()),
            );
            vec![
                entry.participant.clone(),
                branch.gtrid.clone(),
                branch.bqual.to_string(),
                view::branch_state(branch.state()),
                view::time(branch.since.as_ref()).unwrap_or_default(),
                decided,
                view::told_text(branch.reason.as_ref()),
            ]
        });
        let header = [
            "participant",
            "gtrid",
            "bqual>",
            "state",
            "since",
            "transaction",
            "reason",
        ];
        output::table(&header, rows)
    })?;
    tell_cut(branches.len(), more);
    if unreachable.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Unavailable, "the list is not complete")
        .why(format!(
            "these participants could not be asked: {}",
            unreachable.join(", ")
        ))
        .next("`concord status` shows what is wrong with them"))
}

async fn resolve(ctx: &Ctx, args: ResolveArgs) -> Result<(), Failure> {
    let resolution = if args.commit {
        v1::Resolution::Commit
    } else {
        v1::Resolution::Abort
    };
    let branch = format!("branch {}/{}", args.gtrid, args.bqual);
    let request = v1::ResolveBranchRequest {
        gtrid: args.gtrid,
        bqual: args.bqual,
        participant: args.participant.unwrap_or_default(),
        resolution: resolution.into(),
        reason: args.reason,
        force: args.force,
    };
    let answer = ctx.client.resolve_branch(request).await.map_err(|error| {
        if error.had_no_effect() {
            return Failure::of_call(format!("{branch} was not resolved"), &error);
        }
        Failure::new(
            Exit::Unknown,
            format!("it is not known whether {branch} was resolved"),
        )
        .why(&error)
        .next("look at `concord indoubt list`")
    })?;
    let finish = view::short(answer.finish().as_str_name(), "FINISH_");
    let value = json!({ "finish": finish, "heuristic": answer.heuristic });
    ctx.print(&value, || {
        let note = if answer.heuristic {
            "; recorded as a heuristic outcome"
        } else {
            ""
        };
        format!("{branch}: {finish}{note}")
    })?;
    let ordered = match resolution {
        v1::Resolution::Commit => v1::Finish::Committed,
        _ => v1::Finish::Aborted,
    };
    match answer.finish() {
        finish if finish == ordered => Ok(()),
        v1::Finish::Retry => Err(Failure::new(
            Exit::Unavailable,
            format!("{branch} cannot be finished now"),
        )
        .next("try again; `concord status` shows what stands in its way")),
        _ => Err(
            Failure::new(Exit::Refused, format!("{branch} did not end as ordered"))
                .why(format!("it is {finish}")),
        ),
    }
}
