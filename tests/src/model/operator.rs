//! An operator who ends branches through the coordinator, as its gateway lets one.
//!
//! It owns what orders there may be and what they do. The coordinator's machine decides whether an
//! order is carried out; the participant hears of it as of any other outcome.

use concord_core::coordinator::{Effect as Told, Input as Ask, Resolve};
use concord_core::id::{BranchId, Epoch, Gtrid};
use concord_core::message::{Outcome, ToParticipant};
use concord_core::participant::Input;
use concord_core::reason::{Reason, code};
use concord_core::record::Record;

use super::Config;
use super::world::{Packet, World, is_damage_of, plan};

/// The token of what a participant is told for an operator, who is answered then, and not the
/// coordinator's machine.
pub const TOKEN: u64 = 1;

/// An order about a branch that a server lists as prepared: others are not shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    node: usize,
    branch: BranchId,
    commit: bool,
    force: bool,
}

/// All orders about what a server lists.
pub fn orders(world: &World, node: usize) -> impl Iterator<Item = Order> {
    let listed = world.nodes[node].server.list().into_iter();
    listed.flat_map(move |branch| {
        [(true, false), (true, true), (false, false), (false, true)].map(|(commit, force)| Order {
            node,
            branch,
            commit,
            force,
        })
    })
}

/// What a client is told against what is on record.
pub fn told_falsely(log: &[Record], effect: &Told) -> Option<String> {
    let (gtrid, outcome) = match effect {
        Told::Reply { gtrid, outcome } => (gtrid, outcome),
        Told::Replay { first, outcome, .. } => (first, outcome),
        _ => return None,
    };
    let committed = match outcome {
        Outcome::Committed => true,
        Outcome::Aborted(_) => false,
        Outcome::Unknown(_) | Outcome::Damaged(_) => return None,
    };
    let contradicts = |record: &&Record| match record {
        Record::Heuristic {
            gtrid: of,
            committed: ended,
            ..
        } => of == gtrid && *ended != Some(committed),
        _ => false,
    };
    let record = log.iter().find(contradicts)?;
    Some(format!(
        "a client is told {outcome:?}, and {record:?} is on record"
    ))
}

impl World {
    /// The coordinator is given an order.
    pub fn order(&mut self, config: &Config, order: Order) {
        let branch = order.branch;
        let resolve = Resolve {
            branch,
            participant: config.names[order.node].clone(),
            commit: order.commit,
            sibling: self.sibling(config, &order),
            force: order.force,
            reason: Reason::new(code::OPERATOR, ""),
            token: 0,
        };
        let before = self.log.len();
        self.coordinator(config, Ask::Resolve(resolve));
        if self.log[before..]
            .iter()
            .any(|record| is_damage_of(branch, record))
        {
            self.interfered.insert(branch);
            self.forced.insert(branch);
        }
    }

    /// What the ledgers of the other participants say of the transaction.
    fn sibling(&self, config: &Config, order: &Order) -> Option<bool> {
        let gtrid: Gtrid = order.branch.gtrid;
        let others = config
            .bquals(plan(gtrid))
            .filter(|(_, node)| *node != order.node);
        let rows = others
            .filter_map(|(bqual, node)| self.nodes[node].server.row(BranchId { gtrid, bqual }));
        rows.reduce(|one, other| one || other)
    }

    /// The gateway sends what the machine let go.
    pub fn send_order(&mut self, config: &Config, epoch: Epoch, resolve: &Resolve) {
        let branch = resolve.branch;
        if !self.forced.contains(&branch) {
            self.seen[plan(branch.gtrid)].note_order(branch.bqual, resolve.commit);
        }
        let message = if resolve.commit {
            ToParticipant::Commit {
                branch,
                epoch,
                one_phase: false,
                work: false,
            }
        } else {
            ToParticipant::Abort { branch, epoch }
        };
        let node = config.node(&resolve.participant);
        self.send(Packet::ByHand(node, message));
    }

    /// It arrives. Of a branch that is neither known nor prepared an operator is told what the
    /// ledger says, and nothing is done.
    pub fn deliver_order(&mut self, config: &Config, index: usize, message: ToParticipant) {
        let (node, branch) = (&self.nodes[index], message.branch());
        if node.machine.branch(branch).is_some() || node.server.has_prepared(branch) {
            let token = TOKEN;
            self.participant(config, index, Input::Message { token, message });
        }
    }
}
