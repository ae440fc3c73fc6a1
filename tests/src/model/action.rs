//! What may happen next, and what it does.

use concord_core::coordinator::Input as Ask;
use concord_core::id::{BranchId, Request, RequestId};
use concord_core::participant::{Command, Input, Verb};

use super::operator::{Order, orders};
use super::server::How;
use super::world::{Packet, World, for_coordinator, gtrid};
use super::{Budget, Config, Fault};

/// Sweeps after which a coordinator has sent again whatever was not acknowledged.
const RESEND_SWEEPS: usize = 8;
/// Sweeps after which a participant has asked for whatever is in doubt.
const INQUIRY_SWEEPS: usize = 3;
/// Records that may reach the disk in a crash although nobody has heard of it.
const LUCKY_MAX: usize = 2;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The client of a plan sends it.
    Run(usize),
    /// The log becomes durable.
    Flush,
    /// A message arrives.
    Deliver(Packet),
    /// A message arrives, and will arrive again.
    Double(Packet),
    /// A command ends.
    Execute(usize, BranchId, Command, How),
    /// A lost connection does what it was told before.
    CarryOutLost(usize, usize),
    /// A server notices that a connection is gone.
    Detach(usize, BranchId),
    /// The coordinator is killed; so many records that were not flushed survive. It starts again.
    KillCoordinator(usize),
    /// The coordinator is paused, and another one takes over.
    TakeOver,
    /// The one that was taken over wakes up and gets a message before it dies.
    Wake(Packet),
    /// It wakes up and finds that a transaction's deadline has passed.
    WakeLate(usize),
    /// A participant is killed, and starts again; whether its records on their way survive.
    KillParticipant(usize, bool),
    /// A participant's records reach its ledger schema.
    Keep(usize),
    /// Somebody finishes a prepared branch by hand: commits it, or rolls it back.
    Interfere(usize, BranchId, bool),
    /// An operator orders a branch's end.
    Order(Order),
    /// The coordinator takes a link for lost.
    LinkDown(usize),
    /// A link is there again.
    LinkUp(usize),
    /// A transaction's deadline passes.
    Deadline(usize),
    /// Outcomes that were not acknowledged for long are sent again.
    Resend,
    /// A participant reads its server's list.
    List(usize),
    /// It looks at what it has read.
    Sweep(usize),
    /// What ended long ago is forgotten.
    Forget,
}

/// All that may happen next.
pub fn possible(config: &Config, world: &World, actions: &mut Vec<Action>) {
    for packet in &world.net {
        actions.push(Action::Deliver(packet.clone()));
        let awake = world.left.wakes > 0 && world.ghost.is_some();
        if awake && matches!(packet, Packet::Answer(..) | Packet::Inquiry(..)) {
            actions.push(Action::Wake(packet.clone()));
        }
        if world.left.doubles > 0 && is_worth_doubling(packet) {
            actions.push(Action::Double(packet.clone()));
        }
    }
    for plan in 0..config.plans.len() {
        let linked = config.plans[plan]
            .branches
            .iter()
            .all(|node| world.links[*node]);
        let in_order = plan == 0 || world.seen[plan - 1].begun;
        if linked && in_order && !world.seen[plan].begun {
            actions.push(Action::Run(plan));
        }
    }
    if world.is_flush_due() {
        actions.push(Action::Flush);
    }
    of_coordinator(world, actions);
    for node in 0..world.nodes.len() {
        of_node(world, node, actions);
    }
}

/// Answers to inquiries change a branch that waits for its outcome and nothing else.
fn is_worth_doubling(packet: &Packet) -> bool {
    match packet {
        Packet::Order(..) | Packet::Answer(..) | Packet::Verdict(..) => true,
        Packet::Inquiry(..) | Packet::ForgetBelow(..) | Packet::ByHand(..) => false,
    }
}

fn of_coordinator(world: &World, actions: &mut Vec<Action>) {
    if world.left.coordinator_kills > 0 {
        let lucky = (world.log.len() - world.durable).min(LUCKY_MAX);
        actions.extend((0..=lucky).map(Action::KillCoordinator));
    }
    if world.left.takeovers > 0 {
        actions.push(Action::TakeOver);
    }
    if let Some((ghost, _)) = &world.ghost
        && world.left.wakes > 0
    {
        let live = ghost.transactions();
        actions.extend(live.map(|tx| Action::WakeLate(super::world::plan(tx.gtrid))));
    }
    if world.left.deadlines > 0 {
        let live = world.coordinator.transactions();
        actions.extend(live.map(|tx| Action::Deadline(super::world::plan(tx.gtrid))));
    }
    if world.left.resends > 0 && world.coordinator.live() > 0 {
        actions.push(Action::Resend);
    }
    if world.left.forgets > 0 && world.coordinator.remembered() > 0 {
        actions.push(Action::Forget);
    }
}

fn of_node(world: &World, index: usize, actions: &mut Vec<Action>) {
    let (node, left) = (&world.nodes[index], &world.left);
    for (branch, command) in &node.running {
        for how in ways(*command, left) {
            actions.push(Action::Execute(index, *branch, *command, how));
        }
    }
    for lost in 0..node.server.lost() {
        actions.push(Action::CarryOutLost(index, lost));
    }
    for branch in node.server.attached() {
        actions.push(Action::Detach(index, branch));
    }
    if left.participant_kills > 0 {
        actions.push(Action::KillParticipant(index, false));
        if !node.pending.is_empty() {
            actions.push(Action::KillParticipant(index, true));
        }
    }
    if !node.pending.is_empty() {
        actions.push(Action::Keep(index));
    }
    if left.interferences > 0 {
        for branch in node.server.within_reach() {
            actions.extend([true, false].map(|commit| Action::Interfere(index, branch, commit)));
        }
    }
    if left.orders > 0 {
        actions.extend(orders(world, index).map(Action::Order));
    }
    match world.links[index] {
        true if left.link_losses > 0 => actions.push(Action::LinkDown(index)),
        true => {}
        false => actions.push(Action::LinkUp(index)),
    }
    match &node.list {
        Some(_) => actions.push(Action::Sweep(index)),
        None if left.sweeps > 0 || !node.swept => actions.push(Action::List(index)),
        None => {}
    }
}

/// How a command may end.
fn ways(command: Command, left: &Budget) -> impl Iterator<Item = How> {
    let (works, leaves) = match command {
        Command::Prepare { may_leave, .. } => (true, may_leave),
        Command::CommitOnePhase { .. } => (true, false),
        _ => (false, false),
    };
    [
        (How::Well, true),
        (How::Refused, works && left.refusals > 0),
        (How::ReadOnly, leaves && left.readers > 0),
        (How::NotNow, left.hitches > 0),
        (How::Cut, command != Command::List && left.cuts > 0),
    ]
    .into_iter()
    .filter_map(|(how, may)| may.then_some(how))
}

impl Action {
    /// Makes it happen.
    pub fn happen(self, config: &Config, world: &mut World) {
        let is_first_list = matches!(self, Self::List(index) if !world.nodes[index].swept);
        if !is_first_list {
            self.pay(&mut world.left);
        }
        match self {
            Self::Run(plan) => run(config, world, plan),
            Self::Flush => world.flush(config),
            Self::Deliver(packet) => {
                world.net.retain(|other| *other != packet);
                world.deliver(config, packet);
            }
            Self::Double(packet) => world.deliver(config, packet),
            Self::Execute(index, branch, command, how) => {
                let node = &mut world.nodes[index];
                node.running.remove(&branch);
                let mut result = node.server.run(branch, command, how);
                if config.fault == Some(Fault::NotaIsSuccess) {
                    nota_is_success(&mut result);
                }
                world.participant(config, index, result);
            }
            Self::CarryOutLost(index, lost) => world.nodes[index].server.carry_out_lost(lost),
            Self::Detach(index, branch) => world.nodes[index].server.detach(branch),
            Self::KillCoordinator(lucky) => world.restart_coordinator(lucky),
            Self::TakeOver => world.take_over(),
            Self::Wake(packet) => {
                world.net.retain(|other| *other != packet);
                if let Some(input) = for_coordinator(config, packet) {
                    world.wake(config, input);
                }
            }
            Self::WakeLate(plan) => world.wake(config, Ask::Deadline { gtrid: gtrid(plan) }),
            Self::KillParticipant(index, lucky) => world.restart_participant(config, index, lucky),
            Self::Keep(index) => world.keep(config, index),
            Self::Interfere(index, branch, commit) => world.interfere(index, branch, commit),
            Self::Order(order) => world.order(config, order),
            Self::LinkDown(index) => world.link(config, index, false),
            Self::LinkUp(index) => world.link(config, index, true),
            Self::Deadline(plan) => {
                world.coordinator(config, Ask::Deadline { gtrid: gtrid(plan) });
            }
            Self::Resend => {
                for _ in 0..RESEND_SWEEPS {
                    world.coordinator(config, Ask::Sweep);
                }
            }
            Self::List(index) => {
                let node = &mut world.nodes[index];
                node.list = Some(node.server.list());
            }
            Self::Sweep(index) => {
                world.nodes[index].swept = true;
                let listed = world.nodes[index].list.take().unwrap_or_default();
                for _ in 0..INQUIRY_SWEEPS {
                    let listed = listed.clone();
                    world.participant(config, index, Input::Sweep { listed });
                }
            }
            Self::Forget => {
                let below = gtrid(config.plans.len());
                world.coordinator(config, Ask::Forget { below });
            }
        }
    }

    fn pay(&self, left: &mut Budget) {
        let budget = match self {
            Self::Double(_) => &mut left.doubles,
            Self::KillCoordinator(_) => &mut left.coordinator_kills,
            Self::TakeOver => &mut left.takeovers,
            Self::Wake(_) | Self::WakeLate(_) => &mut left.wakes,
            Self::KillParticipant(..) => &mut left.participant_kills,
            Self::Interfere(..) => &mut left.interferences,
            Self::Order(_) => &mut left.orders,
            Self::LinkDown(_) => &mut left.link_losses,
            Self::Deadline(_) => &mut left.deadlines,
            Self::Resend => &mut left.resends,
            Self::List(_) => &mut left.sweeps,
            Self::Forget => &mut left.forgets,
            Self::Execute(_, _, _, how) => match how {
                How::Well => return,
                How::Refused => &mut left.refusals,
                How::ReadOnly => &mut left.readers,
                How::NotNow => &mut left.hitches,
                How::Cut => &mut left.cuts,
            },
            _ => return,
        };
        *budget -= 1;
    }
}

fn run(config: &Config, world: &mut World, plan: usize) {
    world.seen[plan].begun = true;
    let sent = &config.plans[plan];
    let branches = sent
        .branches
        .iter()
        .map(|node| config.names[*node].clone())
        .collect();
    let request = sent.request.map(|id| Request {
        id: RequestId::new(id),
        fingerprint: 1,
    });
    let input = Ask::Run {
        gtrid: gtrid(plan),
        branches,
        request,
        ack: sent.ack,
        may_leave: sent.may_leave,
    };
    world.coordinator(config, input);
}

fn nota_is_success(result: &mut Input) {
    if let Input::Verb { result, .. } = result
        && *result == Verb::NoSuchBranch
    {
        *result = Verb::Done;
    }
}
