//! What a state shows of each transaction, for the invariants to judge.
//!
//! A branch that somebody has finished by hand is left out of the facts: what was done to it
//! excuses nothing of the others. In the end it must agree with the outcome, or be on record as
//! damage.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use concord_core::id::{Bqual, BranchId};
use concord_core::invariant::{
    self, BranchFacts, Facts, Fate, Invariant, Told, Verdict, Violation,
};
use concord_core::record::Record;

use super::action::{self, Action};
use super::server::How;
use super::world::{World, gtrid};
use super::{Cluster, Config};

/// Rounds after which a cluster without faults must have nothing in doubt: a chain of a deadline,
/// an abort that is refused once, an inquiry and their answers takes ten.
const HEALING_ROUNDS: usize = 30;

impl Cluster {
    /// All invariants, of all transactions.
    pub(super) fn check(&self, world: &World) -> Verdict {
        for plan in 0..self.config.plans.len() {
            invariant::check(&facts(&self.config, world, plan))?;
        }
        requests(&self.config, world)?;
        if self.is_healed(world) {
            return drains(&self.config, world);
        }
        Ok(())
    }

    fn is_healed(&self, world: &World) -> bool {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        hasher.finish().is_multiple_of(self.config.heal_every)
    }
}

pub(super) fn decision(world: &World, plan: usize) -> Option<(usize, &Record)> {
    let of_plan = |record: &&Record| match record {
        Record::Decision { .. } | Record::OnePhase { .. } => record.gtrid() == Some(gtrid(plan)),
        _ => false,
    };
    let at = world.log.iter().position(|record| of_plan(&record))?;
    Some((at, &world.log[at]))
}

/// What can be seen of a plan's transaction.
pub fn facts(config: &Config, world: &World, plan: usize) -> Facts {
    let (gtrid, seen) = (gtrid(plan), &world.seen[plan]);
    let decision = decision(world, plan);
    let told = |bqual: Bqual| match decision {
        Some((_, Record::Decision { branches, .. })) => {
            branches.iter().any(|(told, _)| *told == bqual)
        }
        Some(_) => true,
        None => false,
    };
    let branches = config.bquals(plan).filter_map(|(bqual, node)| {
        let branch = BranchId { gtrid, bqual };
        let server = &world.nodes[node].server;
        let bit = 1 << (bqual.0 - 1);
        let fate = match server.effects(branch) {
            0 if server.has_prepared(branch) => Fate::Prepared,
            0 if server.has_tombstone(branch) => Fate::RolledBack,
            0 => Fate::Open,
            _ => Fate::Committed,
        };
        let facts = BranchFacts {
            fate,
            voted_commit: seen.voted_commit & bit != 0,
            left: seen.voted_read_only & bit != 0 && !told(bqual),
            told_commit: seen.told_commit & bit != 0,
            told_abort: seen.told_abort & bit != 0,
            acknowledged: seen.acknowledged & bit != 0 && fate == Fate::Committed,
        };
        let interfered = world.interfered.contains(&branch);
        (!interfered).then_some((bqual, facts))
    });
    let horizon = world.log[..world.durable]
        .iter()
        .rev()
        .find_map(|record| match record {
            Record::Horizon(horizon) => Some(*horizon),
            _ => None,
        });
    Facts {
        gtrid,
        branches: branches.collect::<BTreeMap<_, _>>(),
        one_phase: config.plans[plan].branches.len() == 1,
        durable: decision.is_some_and(|(at, _)| at < world.durable),
        promised: seen.promised,
        refused: seen.refused,
        forgotten: horizon.is_some_and(|horizon| gtrid < horizon),
        interfered: false,
    }
}

fn branch_ids(config: &Config, plan: usize) -> impl Iterator<Item = (usize, BranchId)> + '_ {
    let of = move |(bqual, node)| {
        (
            node,
            BranchId {
                gtrid: gtrid(plan),
                bqual,
            },
        )
    };
    config.bquals(plan).map(of)
}

/// How often a plan's work is found in the data: as often as its most executed branch.
fn effects(config: &Config, world: &World, plan: usize) -> u64 {
    let of = |(node, branch): (usize, BranchId)| world.nodes[node].server.effects(branch);
    let ours = branch_ids(config, plan).filter(|(_, branch)| !world.interfered.contains(branch));
    ours.map(of).max().unwrap_or(0).into()
}

fn requests(config: &Config, world: &World) -> Verdict {
    let mut requests: BTreeMap<String, (Told, u64)> = BTreeMap::new();
    for (plan, sent) in config.plans.iter().enumerate() {
        let name = sent
            .request
            .map_or_else(|| gtrid(plan).to_string(), str::to_owned);
        let (told, count) = requests.entry(name).or_insert((Told::Unknown, 0));
        *count += effects(config, world, plan);
        if world.seen[plan].refused_finally {
            *told = Told::Refused;
        }
        // Readers leave nothing that could be found.
        if world.seen[plan].promised && decision(world, plan).is_some() && *count > 0 {
            *told = Told::Committed;
        }
    }
    for (request, (told, effects)) in requests {
        invariant::exactly_once(&request, told, effects)?;
    }
    Ok(())
}

/// Everything is up and connected, no fault happens any more, and everybody tries again: whether
/// what was on its way arrives, or none of it.
fn drains(config: &Config, world: &World) -> Verdict {
    healed(config, world.clone())?;
    let mut lost = world.clone();
    lost.net.clear();
    healed(config, lost)
}

fn healed(config: &Config, mut world: World) -> Verdict {
    for _ in 0..HEALING_ROUNDS {
        heal(config, &mut world);
        if is_quiet(&world) {
            break;
        }
    }
    let mut forgotten = false;
    for plan in 0..config.plans.len() {
        let facts = facts(config, &world, plan);
        invariant::check(&facts)?;
        // Nobody remembers it: retention is longer than a message may be late, but time does not
        // exist here. An operator must look.
        forgotten |= facts.forgotten;
        if !facts.forgotten {
            invariant::drains(&facts)?;
            damage_is_told(config, &world, plan)?;
        }
    }
    let live = world.coordinator.transactions().next().map(|tx| tx.gtrid);
    let waits = world.nodes.iter().any(|node| node.machine.in_doubt() > 0) && !forgotten;
    let text = match (world.broken, live) {
        (Some(broken), _) => broken,
        (None, Some(gtrid)) => format!("transaction {gtrid} is not over"),
        (None, None) if waits => "a participant waits for an outcome for ever".to_owned(),
        (None, None) => return Ok(()),
    };
    let invariant = Invariant::Drains;
    Err(Violation { invariant, text })
}

/// A branch that was finished by hand otherwise than decided breaks atomicity, and that is on
/// record; one that agrees with the outcome is no damage.
fn damage_is_told(config: &Config, world: &World, plan: usize) -> Verdict {
    let decision = decision(world, plan);
    for (node, branch) in branch_ids(config, plan) {
        if !world.interfered.contains(&branch) {
            continue;
        }
        let ordered = match decision {
            Some((_, Record::Decision { branches, .. })) => {
                branches.iter().any(|(bqual, _)| *bqual == branch.bqual)
            }
            _ => false,
        };
        let committed = world.nodes[node].server.effects(branch) > 0;
        let text = match (committed == ordered, world.is_reported(branch)) {
            (true, false) | (false, true) => continue,
            // What is forced is on record before it is tried.
            (true, true) if world.forced.contains(&branch) => continue,
            (false, false) => "was finished by hand against the outcome, and nobody tells",
            (true, true) => "is called damaged, and ended as it was decided",
        };
        return Err(Violation {
            invariant: Invariant::Atomicity,
            text: format!("branch {branch} {text}"),
        });
    }
    Ok(())
}

fn is_quiet(world: &World) -> bool {
    world.coordinator.live() == 0
        && world.net.is_empty()
        && world.nodes.iter().all(|node| {
            node.running.is_empty()
                && node.pending.is_empty()
                && node.machine.branch_count() == 0
                && node.server.list().is_empty()
        })
}

fn heal(config: &Config, world: &mut World) {
    for index in 0..world.nodes.len() {
        world.nodes[index].server.end_lost();
        if !world.links[index] {
            world.link(config, index, true);
        }
    }
    for plan in 0..config.plans.len() {
        world.left.deadlines = 1;
        Action::Deadline(plan).happen(config, world);
    }
    world.left.resends = 1;
    Action::Resend.happen(config, world);
    for index in 0..world.nodes.len() {
        world.left.sweeps = 1;
        Action::List(index).happen(config, world);
        Action::Sweep(index).happen(config, world);
    }
    world.left = super::Budget::default();
    loop {
        let mut actions = Vec::new();
        action::possible(config, world, &mut actions);
        let next = actions.into_iter().find(|action| {
            matches!(
                action,
                Action::Flush
                    | Action::Keep(_)
                    | Action::Deliver(_)
                    | Action::Execute(_, _, _, How::Well)
            )
        });
        match next {
            Some(action) => action.happen(config, world),
            None => return,
        }
    }
}
