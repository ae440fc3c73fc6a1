//! The numbered invariants of the design's section 7, as functions.
//!
//! They judge [`Facts`], what somebody with a view of everything has seen of one transaction; who
//! that is does not matter: the model checker and the simulator fill them from their worlds, the
//! tests on real servers from ledgers, `XA RECOVER` and clients' records. Nothing here knows how
//! the machines work, or it would repeat their errors.
//!
//! Each of the first eight may be checked at any moment, except [`drains`], which is for the end
//! of a run in which everything is up and connected again.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use crate::id::{Bqual, Gtrid};

/// The invariants, by their numbers in the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// 1: no transaction has one branch committed and another rolled back.
    Atomicity = 1,
    /// 2: what a client was told is committed is committed, or certain to be.
    PromiseKept = 2,
    /// 3: what a client was told is aborted is committed nowhere, ever.
    RefusalKept = 3,
    /// 4: nobody tells one branch to commit and another to abort.
    OneDecision = 4,
    /// 5: no Commit leaves before its decision is durable.
    LogBeforeSend = 5,
    /// 6: a decision lives until every branch has acknowledged it.
    NotForgottenEarly = 6,
    /// 7: a decision to commit implies a vote of every branch.
    AllVotes = 7,
    /// 8: once everything is up and connected, no branch stays in doubt.
    Drains = 8,
    /// 9: money, and stock with what was ordered of it, are constant.
    Conservation = 9,
    /// 10: a request id takes effect at most once.
    ExactlyOnce = 10,
}

/// An invariant that does not hold, and the facts that show it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {} ({invariant:?}) is violated: {text}", *invariant as u8)]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// What was seen.
    pub text: String,
}

/// What a function of this module says.
pub type Verdict = Result<(), Violation>;

/// How a branch stands on its server, as its ledger and `XA RECOVER` tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// Neither prepared nor over: running, or never seen.
    #[default]
    Open,
    /// Prepared.
    Prepared,
    /// Its ledger row is visible.
    Committed,
    /// Rolled back after it was prepared, or barred by a tombstone.
    RolledBack,
}

/// What was seen of one branch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is an observation of its own"
)]
pub struct BranchFacts {
    /// How it stands on its server.
    pub fate: Fate,
    /// A vote COMMIT of it was ever given.
    pub voted_commit: bool,
    /// Its vote READ_ONLY was the one that counted: it has left, and is no part of the outcome.
    pub left: bool,
    /// A Commit in two phases was ever sent to it, by whatever coordinator.
    pub told_commit: bool,
    /// An Abort was ever sent to it, by whatever coordinator.
    pub told_abort: bool,
    /// It acknowledged the commit.
    pub acknowledged: bool,
}

/// What was seen of one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is an observation of its own"
)]
pub struct Facts {
    /// The transaction.
    pub gtrid: Gtrid,
    /// Its branches, also those that were never begun.
    pub branches: BTreeMap<Bqual, BranchFacts>,
    /// The decision was handed to the participant of its only branch. An Abort is then only a
    /// question, and a vote is not asked for.
    pub one_phase: bool,
    /// A decision to commit, or the handing over, is durable.
    pub durable: bool,
    /// A client was told COMMITTED.
    pub promised: bool,
    /// A client was told ABORTED.
    pub refused: bool,
    /// The coordinator has forgotten the decision.
    pub forgotten: bool,
    /// A human, a restored backup or a forced order finished a branch. What that breaks is
    /// reported as damage, and is nobody's violation.
    pub interfered: bool,
}

impl Facts {
    /// The branches that take part in the outcome.
    fn bound(&self) -> impl Iterator<Item = (&Bqual, &BranchFacts)> {
        self.branches.iter().filter(|(_, branch)| !branch.left)
    }

    fn find(&self, is: impl Fn(&BranchFacts) -> bool) -> Option<Bqual> {
        self.bound()
            .find(|(_, branch)| is(branch))
            .map(|(bqual, _)| *bqual)
    }

    fn violates(&self, invariant: Invariant, text: impl Display) -> Verdict {
        let text = format!("transaction {}: {text}; seen: {self:?}", self.gtrid);
        Err(Violation { invariant, text })
    }
}

/// All invariants that may be checked at any moment, in the design's order.
pub fn check(facts: &Facts) -> Verdict {
    atomicity(facts)?;
    promise_kept(facts)?;
    refusal_kept(facts)?;
    one_decision(facts)?;
    log_before_send(facts)?;
    not_forgotten_early(facts)?;
    all_votes(facts)
}

/// Invariant 1: a committed branch implies that every other one is committed, or prepared and sure
/// to be. A branch that left is no part of that, and is never committed.
pub fn atomicity(facts: &Facts) -> Verdict {
    if facts.interfered {
        return Ok(());
    }
    let strays =
        |(_, branch): &(&Bqual, &BranchFacts)| branch.left && branch.fate == Fate::Committed;
    if let Some((bqual, _)) = facts.branches.iter().find(strays) {
        let text = format_args!("branch {bqual} left and was committed all the same");
        return facts.violates(Invariant::Atomicity, text);
    }
    let committed = facts.find(|branch| branch.fate == Fate::Committed);
    let other = facts.find(|branch| matches!(branch.fate, Fate::RolledBack | Fate::Open));
    match (committed, other) {
        (Some(one), Some(other)) => facts.violates(
            Invariant::Atomicity,
            format_args!("branch {one} is committed and branch {other} is not prepared"),
        ),
        _ => Ok(()),
    }
}

/// Invariant 2: A client that was told COMMITTED finds every branch committed, or prepared with a
/// durable decision.
pub fn promise_kept(facts: &Facts) -> Verdict {
    let kept = |branch: &BranchFacts| match branch.fate {
        Fate::Committed => true,
        Fate::Prepared => facts.durable && !facts.one_phase,
        Fate::Open | Fate::RolledBack => false,
    };
    match facts.find(|branch| !kept(branch)) {
        Some(bqual) if facts.promised && !facts.interfered => facts.violates(
            Invariant::PromiseKept,
            format_args!("a client was told COMMITTED, and branch {bqual} may never be"),
        ),
        _ => Ok(()),
    }
}

/// Invariant 3: A client that was told ABORTED finds no branch committed, ever.
pub fn refusal_kept(facts: &Facts) -> Verdict {
    match facts.find(|branch| branch.fate == Fate::Committed) {
        Some(bqual) if facts.refused && !facts.interfered => facts.violates(
            Invariant::RefusalKept,
            format_args!("a client was told ABORTED, and branch {bqual} is committed"),
        ),
        _ => Ok(()),
    }
}

/// Invariant 4: No transaction has both a commit and an abort message, whichever coordinators
/// lived.
pub fn one_decision(facts: &Facts) -> Verdict {
    let commit = facts.find(|branch| branch.told_commit);
    let abort = facts.find(|branch| branch.told_abort);
    match (commit, abort) {
        (Some(one), Some(other)) if !facts.one_phase && !facts.interfered => facts.violates(
            Invariant::OneDecision,
            format_args!("branch {one} was told to commit and branch {other} to abort"),
        ),
        _ => Ok(()),
    }
}

/// Invariant 5: No Commit leaves before its decision is durable, and no client hears of it before.
pub fn log_before_send(facts: &Facts) -> Verdict {
    let told = facts.find(|branch| branch.told_commit);
    let promised = facts.promised && facts.bound().next().is_some();
    match told {
        _ if facts.durable => Ok(()),
        Some(bqual) => facts.violates(
            Invariant::LogBeforeSend,
            format_args!("branch {bqual} was told to commit before that was durable"),
        ),
        None if promised => facts.violates(
            Invariant::LogBeforeSend,
            "a client was told COMMITTED before that was durable",
        ),
        None => Ok(()),
    }
}

/// Invariant 6: A decision lives until every branch has acknowledged it.
pub fn not_forgotten_early(facts: &Facts) -> Verdict {
    match facts.find(|branch| !branch.acknowledged) {
        Some(bqual) if facts.forgotten && facts.durable && !facts.interfered => facts.violates(
            Invariant::NotForgottenEarly,
            format_args!("the decision is forgotten and branch {bqual} has not acknowledged it"),
        ),
        _ => Ok(()),
    }
}

/// Invariant 7: A decision to commit implies a vote of every branch.
pub fn all_votes(facts: &Facts) -> Verdict {
    match facts.find(|branch| !branch.voted_commit) {
        Some(bqual) if facts.durable && !facts.one_phase => facts.violates(
            Invariant::AllVotes,
            format_args!("it is decided and branch {bqual} never voted COMMIT"),
        ),
        _ => Ok(()),
    }
}

/// Invariant 8: Once everything is up and connected, no branch stays in doubt. Also a branch that
/// left may not: a doubled Prepare makes it hold locks like any other.
pub fn drains(facts: &Facts) -> Verdict {
    let prepared = |(_, branch): &(&Bqual, &BranchFacts)| branch.fate == Fate::Prepared;
    match facts.branches.iter().find(prepared) {
        Some((bqual, _)) => facts.violates(
            Invariant::Drains,
            format_args!("branch {bqual} is still in doubt"),
        ),
        None => Ok(()),
    }
}

/// Invariant 9: What is only moved is constant: `before` and `now` hold a total for each name, such
/// as the balances of a currency, or a product's stock together with what was ordered of it.
pub fn conservation(before: &BTreeMap<String, i128>, now: &BTreeMap<String, i128>) -> Verdict {
    let names = before.keys().chain(now.keys());
    let total = |totals: &BTreeMap<String, i128>, name| totals.get(name).copied().unwrap_or(0);
    for name in names {
        let (was, is) = (total(before, name), total(now, name));
        if was != is {
            let text = format!("{name} was {was} and is {is}");
            return Err(Violation {
                invariant: Invariant::Conservation,
                text,
            });
        }
    }
    Ok(())
}

/// What a client knows of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Told {
    /// COMMITTED.
    Committed,
    /// ABORTED for a reason that a repetition gets again.
    Refused,
    /// Nothing certain: no answer, UNKNOWN, or an abort after which the client may have tried
    /// again.
    Unknown,
}

/// Invariant 10: A request takes effect at most once: exactly once when its client was told
/// COMMITTED, never when it was refused. `effects` is how often its work is found in the data.
pub fn exactly_once(request: &dyn Display, told: Told, effects: u64) -> Verdict {
    let legal = match told {
        Told::Committed => effects == 1,
        Told::Refused => effects == 0,
        Told::Unknown => effects <= 1,
    };
    if legal {
        return Ok(());
    }
    let text = format!("request {request} took effect {effects} times; its client: {told:?}");
    Err(Violation {
        invariant: Invariant::ExactlyOnce,
        text,
    })
}

impl Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[cfg(test)]
mod tests;
