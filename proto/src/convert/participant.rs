//! Requests to a participant.

use std::time::Duration;

use concord_core::id::{BranchId, Epoch, Gtrid};
use concord_core::limits::{INTERACTIVE_TIMEOUT_DEFAULT_MS, LINK_BATCH_MAX, WITNESSES_MAX};

use super::Page;
use super::common::{isolation, timeout, timeout_up_to, unknown_number};
use super::text::words;
use super::violations::{At, Violations};
use super::work::{branch, branch_at, statement, work};
use crate::model::{Isolation, Statement, Work};
use crate::v1;

/// Longest read outside a transaction, in ms: it holds one of few connections.
pub const QUERY_TIMEOUT_MAX_MS: u32 = 60_000;
/// Time of a read outside a transaction that names none, in ms.
pub const QUERY_TIMEOUT_DEFAULT_MS: u32 = 5_000;
/// The list of [`list_branches`], for page tokens.
pub const BRANCHES: &str = "branches";

/// Begins an interactive branch.
#[derive(Clone, Debug, PartialEq)]
pub struct Begin {
    /// The branch.
    pub branch: BranchId,
    /// Who speaks.
    pub epoch: Epoch,
    /// None: the server's own default.
    pub isolation: Option<Isolation>,
    /// Time until the participant rolls it back by itself when it is not prepared.
    pub timeout: Duration,
}

/// Runs one statement in an interactive branch.
#[derive(Clone, Debug, PartialEq)]
pub struct Execute {
    /// The branch.
    pub branch: BranchId,
    /// Who speaks.
    pub epoch: Epoch,
    /// The statement.
    pub statement: Statement,
}

/// Asks for a vote.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepare {
    /// The branch.
    pub branch: BranchId,
    /// Who speaks.
    pub epoch: Epoch,
    /// The branch's work, in the one-shot form.
    pub work: Option<Work>,
}

/// Commits a branch.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The branch.
    pub branch: BranchId,
    /// Who speaks.
    pub epoch: Epoch,
    /// Whether it was never prepared.
    pub one_phase: bool,
    /// The branch's work, in the one-shot form; only with `one_phase`.
    pub work: Option<Work>,
}

/// Rolls a branch back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The branch.
    pub branch: BranchId,
    /// Who speaks.
    pub epoch: Epoch,
}

/// Reads outside any transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// One SELECT; whether it is one is for the participant to see.
    pub statement: Statement,
    /// Time for the read.
    pub timeout: Duration,
}

/// What an operator orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// Commit the branch.
    Commit,
    /// Roll it back.
    Abort,
}

/// Finishes a branch by hand.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolve {
    /// The branch.
    pub branch: BranchId,
    /// Who speaks.
    pub epoch: Epoch,
    /// How.
    pub resolution: Resolution,
    /// The operator's words.
    pub reason: String,
}

/// One command of a link.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Asks for a vote.
    Prepare(Prepare),
    /// Commits.
    Commit(Commit),
    /// Rolls back.
    Abort(Abort),
    /// Ledger rows below may go, and Prepares below must be refused.
    ForgetBelow(Gtrid),
}

/// Checks a Begin.
pub fn begin(raw: v1::BeginRequest) -> Result<Begin, Violations> {
    let mut v = Violations::default();
    let branch = branch(&mut v, raw.branch);
    let isolation = isolation(&mut v, &At::root("isolation"), raw.isolation);
    let at = At::root("timeout_ms");
    let timeout = timeout(&mut v, &at, raw.timeout_ms, INTERACTIVE_TIMEOUT_DEFAULT_MS);
    v.finish(|| {
        let (branch, epoch) = branch?;
        Some(Begin {
            branch,
            epoch,
            isolation: isolation?,
            timeout: timeout?,
        })
    })
}

/// Checks an Execute.
pub fn execute(raw: v1::ExecuteRequest) -> Result<Execute, Violations> {
    let mut v = Violations::default();
    let branch = branch(&mut v, raw.branch);
    let statement = statement(&mut v, &At::root("statement"), raw.statement);
    v.finish(|| {
        let (branch, epoch) = branch?;
        Some(Execute {
            branch,
            epoch,
            statement: statement?,
        })
    })
}

/// Checks a Prepare.
pub fn prepare(raw: v1::PrepareRequest) -> Result<Prepare, Violations> {
    let mut v = Violations::default();
    let branch = branch(&mut v, raw.branch);
    let work = optional_work(&mut v, raw.work);
    v.finish(|| {
        let (branch, epoch) = branch?;
        Some(Prepare {
            branch,
            epoch,
            work: work?,
        })
    })
}

/// Checks a Commit.
pub fn commit(raw: v1::CommitRequest) -> Result<Commit, Violations> {
    let mut v = Violations::default();
    let branch = branch(&mut v, raw.branch);
    if raw.work.is_some() && !raw.one_phase {
        v.add(&At::root("work"), "must be absent without one_phase");
    }
    let work = optional_work(&mut v, raw.work);
    v.finish(|| {
        let (branch, epoch) = branch?;
        Some(Commit {
            branch,
            epoch,
            one_phase: raw.one_phase,
            work: work?,
        })
    })
}

#[allow(clippy::option_option)] // outer: valid; inner: given
fn optional_work(v: &mut Violations, raw: Option<v1::Work>) -> Option<Option<Work>> {
    match raw {
        None => Some(None),
        Some(raw) => work(v, &At::root("work"), raw).map(Some),
    }
}

/// Checks an Abort.
pub fn abort(raw: v1::AbortRequest) -> Result<Abort, Violations> {
    let mut v = Violations::default();
    let branch = branch(&mut v, raw.branch);
    v.finish(|| {
        let (branch, epoch) = branch?;
        Some(Abort { branch, epoch })
    })
}

/// Checks a Query.
pub fn query(raw: v1::QueryRequest) -> Result<Query, Violations> {
    let mut v = Violations::default();
    let statement = statement(&mut v, &At::root("statement"), raw.statement);
    let timeout = timeout_up_to(
        &mut v,
        &At::root("timeout_ms"),
        raw.timeout_ms,
        QUERY_TIMEOUT_DEFAULT_MS,
        QUERY_TIMEOUT_MAX_MS,
    );
    v.finish(|| {
        Some(Query {
            statement: statement?,
            timeout: timeout?,
        })
    })
}

/// Checks a ListBranches. Its tokens are `page::token(BRANCHES, …)`.
pub fn list_branches(raw: &v1::ListBranchesRequest) -> Result<Page, Violations> {
    let mut v = Violations::default();
    let page = Page::check(&mut v, BRANCHES, raw.page_size, &raw.page_token);
    v.finish(|| page)
}

/// Checks a GetStatus: the witnesses.
pub fn get_status(raw: v1::GetStatusRequest) -> Result<Vec<BranchId>, Violations> {
    let at = At::root("witnesses");
    if raw.witnesses.len() > WITNESSES_MAX {
        let count = raw.witnesses.len();
        let text = format!("must be at most {WITNESSES_MAX}, and are {count}");
        return Err(Violations::one(&at, text));
    }
    let mut v = Violations::default();
    let mut branches = Some(Vec::with_capacity(raw.witnesses.len()));
    for (index, raw) in raw.witnesses.into_iter().enumerate() {
        let branch = branch_at(&mut v, &at.index(index), Some(raw));
        branches = branches.zip(branch).map(|(mut all, (branch, _))| {
            all.push(branch);
            all
        });
    }
    v.finish(|| branches)
}

/// Checks an AcknowledgeDamage: the number of the report.
pub fn acknowledge_damage(raw: v1::AcknowledgeDamageRequest) -> Result<u64, Violations> {
    if raw.id == 0 {
        return Err(Violations::one(
            &At::root("id"),
            "is required: the number of a report",
        ));
    }
    Ok(raw.id)
}

/// Checks a Resolve.
pub fn resolve(raw: v1::ResolveRequest) -> Result<Resolve, Violations> {
    let mut v = Violations::default();
    let branch = branch(&mut v, raw.branch);
    let resolution = resolution(&mut v, &At::root("resolution"), raw.resolution);
    let reason = words(&mut v, &At::root("reason"), raw.reason);
    v.finish(|| {
        let (branch, epoch) = branch?;
        Some(Resolve {
            branch,
            epoch,
            resolution: resolution?,
            reason: reason?,
        })
    })
}

/// Checks an operator's order, which is required.
pub(super) fn resolution(v: &mut Violations, at: &At<'_>, raw: i32) -> Option<Resolution> {
    match v1::Resolution::try_from(raw) {
        Ok(v1::Resolution::Commit) => Some(Resolution::Commit),
        Ok(v1::Resolution::Abort) => Some(Resolution::Abort),
        Ok(v1::Resolution::Unspecified) => {
            v.add(at, "is required: RESOLUTION_COMMIT or RESOLUTION_ABORT");
            None
        }
        Err(_) => unknown_number(v, at, raw),
    }
}

impl From<Resolution> for v1::Resolution {
    fn from(resolution: Resolution) -> Self {
        match resolution {
            Resolution::Commit => Self::Commit,
            Resolution::Abort => Self::Abort,
        }
    }
}

/// One command of a frame, with its number: checked, or what is wrong with it.
pub type Numbered = (u64, Result<Command, Violations>);

/// Checks a frame of a link. A bad command spoils itself only: its number is answered with what
/// is wrong. A frame of too many commands is refused as a whole.
pub fn link(raw: v1::LinkRequest) -> Result<Vec<Numbered>, Violations> {
    if raw.commands.len() > LINK_BATCH_MAX {
        let count = raw.commands.len();
        return Err(Violations::one(
            &At::root("commands"),
            format_args!("must be at most {LINK_BATCH_MAX}, and are {count}"),
        ));
    }
    Ok(raw
        .commands
        .into_iter()
        .map(|raw| (raw.seq, command(raw)))
        .collect())
}

fn command(raw: v1::LinkCommand) -> Result<Command, Violations> {
    use v1::link_command::Command as Raw;
    match raw.command {
        None => Err(Violations::one(&At::root("command"), "is required")),
        Some(Raw::Prepare(raw)) => prepare(raw).map(Command::Prepare),
        Some(Raw::Commit(raw)) => commit(raw).map(Command::Commit),
        Some(Raw::Abort(raw)) => abort(raw).map(Command::Abort),
        // A horizon is a point in time, not always a transaction's id: any 16 bytes will do.
        Some(Raw::ForgetBelow(bytes)) => <[u8; 16]>::try_from(bytes.as_slice())
            .map(|bytes| Command::ForgetBelow(Gtrid(bytes)))
            .map_err(|_| Violations::one(&At::root("forget_below"), "must be 16 bytes")),
    }
}
