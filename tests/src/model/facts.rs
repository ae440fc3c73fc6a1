//! What a state shows of each transaction, for the invariants to judge, and what must be reached.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use concord_core::id::{Bqual, BranchId, Epoch};
use concord_core::invariant::{
    self, BranchFacts, Facts, Fate, Invariant, Told, Verdict, Violation,
};
use concord_core::record::Record;
use stateright::Property;

use super::action::{self, Action};
use super::server::How;
use super::world::{Packet, World, gtrid};
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

fn decision(world: &World, plan: usize) -> Option<(usize, &Record)> {
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
    let branches = config.bquals(plan).map(|(bqual, node)| {
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
            acknowledged: fate == Fate::Committed,
        };
        (bqual, facts)
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
    branch_ids(config, plan).map(of).max().unwrap_or(0).into()
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

fn is_quiet(world: &World) -> bool {
    world.coordinator.live() == 0
        && world.net.is_empty()
        && world.nodes.iter().all(|node| {
            node.running.is_empty()
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
                Action::Flush | Action::Deliver(_) | Action::Execute(_, _, _, How::Well)
            )
        });
        match next {
            Some(action) => action.happen(config, world),
            None => return,
        }
    }
}

fn all(config: &Config, world: &World, plan: usize, is: impl Fn(&BranchFacts) -> bool) -> bool {
    facts(config, world, plan).branches.values().all(is)
}

fn any_plan(model: &Cluster, is: impl Fn(&Config, usize) -> bool) -> bool {
    (0..model.config.plans.len()).any(|plan| is(&model.config, plan))
}

fn is_two_phase(config: &Config, plan: usize) -> bool {
    config.plans[plan].branches.len() > 1
}

fn commits(model: &Cluster, world: &World) -> bool {
    any_plan(model, |config, plan| {
        let committed = |branch: &BranchFacts| branch.fate == Fate::Committed;
        is_two_phase(config, plan)
            && world.seen[plan].promised
            && all(config, world, plan, committed)
    })
}

fn aborts(model: &Cluster, world: &World) -> bool {
    any_plan(model, |config, plan| {
        let aborted = |branch: &BranchFacts| branch.voted_commit && branch.fate == Fate::Open;
        is_two_phase(config, plan) && world.seen[plan].refused && all(config, world, plan, aborted)
    })
}

/// A decision of the first epoch is carried out by a later one, for a daemon of a later life.
fn recovers(model: &Cluster, world: &World) -> bool {
    world.coordinator.epoch() > Epoch(1)
        && world.nodes.iter().any(|node| node.lives > 1)
        && any_plan(model, |config, plan| {
            let of_first = |record: &Record| {
                matches!(
                    record,
                    Record::Decision {
                        epoch: Epoch(1),
                        ..
                    }
                ) && record.gtrid() == Some(gtrid(plan))
            };
            let ended = |record: &Record| {
                matches!(record, Record::End { .. }) && record.gtrid() == Some(gtrid(plan))
            };
            is_two_phase(config, plan)
                && world.log[..world.start].iter().any(of_first)
                && world.log[world.start..].iter().any(ended)
        })
}

fn one_phase_asks(model: &Cluster, world: &World, committed: bool) -> bool {
    let ended = |plan: usize| {
        world.log.iter().any(|record| {
            *record
                == Record::End {
                    gtrid: gtrid(plan),
                    committed,
                }
        })
    };
    any_plan(model, |config, plan| {
        !is_two_phase(config, plan) && world.seen[plan].told_abort != 0 && ended(plan)
    })
}

fn leaves(model: &Cluster, world: &World) -> bool {
    any_plan(model, |config, plan| {
        let facts = facts(config, world, plan);
        facts.durable && facts.branches.values().any(|branch| branch.left)
    })
}

fn repeats(_: &Cluster, world: &World) -> bool {
    world.seen.iter().any(|seen| seen.repeated)
}

fn is_fenced(_: &Cluster, world: &World) -> bool {
    use concord_core::message::FromParticipant as From;
    world
        .net
        .iter()
        .any(|packet| matches!(packet, Packet::Answer(_, From::Stale { .. })))
}

/// What the model checker looks at.
pub(super) fn properties() -> Vec<Property<Cluster>> {
    vec![
        Property::always("nothing is wrong", |model: &Cluster, world| {
            model.wrong(world).is_none()
        }),
        Property::always(
            "no damage is found where nobody interferes",
            |_, world: &World| {
                !world
                    .log
                    .iter()
                    .any(|record| matches!(record, Record::Heuristic { .. }))
            },
        ),
        Property::sometimes("a transaction commits", commits),
        Property::sometimes("a prepared transaction aborts", aborts),
        Property::sometimes("a decision outlives everybody who made it", recovers),
        Property::sometimes(
            "a lost one-phase commit turns out committed",
            |model, world| one_phase_asks(model, world, true),
        ),
        Property::sometimes(
            "a lost one-phase commit turns out aborted",
            |model, world| one_phase_asks(model, world, false),
        ),
        Property::sometimes("a reader leaves and the others commit", leaves),
        Property::sometimes("a repeated request is recognised", repeats),
        Property::sometimes("a late message of a former epoch is refused", is_fenced),
    ]
}
