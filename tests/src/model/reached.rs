//! What must have been reached for an exploration to mean anything.

use concord_core::id::{BranchId, Epoch};
use concord_core::invariant::{BranchFacts, Fate};
use concord_core::record::Record;
use stateright::Property;

use super::facts::facts;
use super::world::{Packet, World, gtrid};
use super::{Cluster, Config};

/// A transaction with several branches commits, and its client hears of it.
pub const COMMITS: &str = "a transaction commits";
/// One whose branches had voted COMMIT aborts.
pub const ABORTS: &str = "a prepared transaction aborts";
/// Coordinator and a participant die after the decision, and it is carried out.
pub const RECOVERS: &str = "a decision outlives everybody who made it";
/// A coordinator that took over carries out what the one before it has decided.
pub const TAKES_OVER: &str = "a coordinator that took over ends what another one decided";
/// See [`concord_core::coordinator`]: one phase is asked for by an Abort.
pub const ASKS_COMMITTED: &str = "a lost one-phase commit turns out committed";
/// The same with the other answer.
pub const ASKS_ABORTED: &str = "a lost one-phase commit turns out aborted";
/// A vote READ_ONLY counts, and the others commit.
pub const LEAVES: &str = "a reader leaves and the others commit";
/// A request id is recognised.
pub const REPEATS: &str = "a repeated request is recognised";
/// An epoch fences off the one before it.
pub const FENCED: &str = "a late message of a former epoch is refused";
/// A decision was not durable when its coordinator died.
pub const DECISION_LOST: &str = "a decision is lost before it is durable";
/// A participant's record was not durable when it died.
pub const RECORD_LOST: &str = "a participant's record is lost before it is durable";
/// A participant has damage on record.
pub const DAMAGE_FOUND: &str = "a participant has damage on record";
/// The coordinator has damage on record.
pub const DAMAGE_TOLD: &str = "the coordinator has damage on record";

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
        && any_plan(model, |_, plan| {
            is_decided_before_and_ended_since(world, plan)
        })
}

/// Decided in the first epoch, and ended in a later one.
fn is_decided_before_and_ended_since(world: &World, plan: usize) -> bool {
    let of_plan = |record: &&Record| record.gtrid() == Some(gtrid(plan));
    let of_first = |record: &Record| {
        let first = Epoch(1);
        matches!(record, Record::Decision { epoch, .. } if *epoch == first)
    };
    let ended = |record: &Record| matches!(record, Record::End { .. });
    world.coordinator.epoch() > Epoch(1)
        && world.log[..world.start]
            .iter()
            .filter(of_plan)
            .any(of_first)
        && world.log[world.start..].iter().filter(of_plan).any(ended)
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

fn takes_over(model: &Cluster, world: &World) -> bool {
    world.left.takeovers < model.config.budget.takeovers
        && any_plan(model, |_, plan| {
            is_decided_before_and_ended_since(world, plan)
        })
}

fn is_damage(record: &Record) -> bool {
    matches!(record, Record::Heuristic { .. })
}

fn false_damage(world: &World) -> bool {
    world.log.iter().any(|record| match record {
        Record::Heuristic { gtrid, bqual, .. } => {
            let (gtrid, bqual) = (*gtrid, *bqual);
            !world.interfered.contains(&BranchId { gtrid, bqual })
        }
        _ => false,
    })
}

/// What the model checker looks at.
pub(super) fn properties() -> Vec<Property<Cluster>> {
    vec![
        Property::always("nothing is wrong", |model: &Cluster, world| {
            model.wrong(world).is_none()
        }),
        Property::always(
            "no damage is found where nobody interferes",
            |_, world: &World| !false_damage(world),
        ),
        Property::sometimes(COMMITS, commits),
        Property::sometimes(ABORTS, aborts),
        Property::sometimes(RECOVERS, recovers),
        Property::sometimes(TAKES_OVER, takes_over),
        Property::sometimes(ASKS_COMMITTED, |model, world| {
            one_phase_asks(model, world, true)
        }),
        Property::sometimes(ASKS_ABORTED, |model, world| {
            one_phase_asks(model, world, false)
        }),
        Property::sometimes(LEAVES, leaves),
        Property::sometimes(REPEATS, repeats),
        Property::sometimes(FENCED, is_fenced),
        Property::sometimes(DECISION_LOST, |_, world: &World| world.lost_decision),
        Property::sometimes(RECORD_LOST, |_, world: &World| world.lost_record),
        Property::sometimes(DAMAGE_FOUND, |_, world: &World| {
            world.nodes.iter().any(|node| !node.damage.is_empty())
        }),
        Property::sometimes(DAMAGE_TOLD, |_, world: &World| {
            world.log.iter().any(is_damage)
        }),
    ]
}
