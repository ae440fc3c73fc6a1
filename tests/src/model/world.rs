//! One state of the modelled cluster, and how steps of the shipped machines change it.
//!
//! It plays the drivers' part: records are appended, effects wait until the records that they wait
//! for are durable, messages go into a bag, commands to the servers.

use std::collections::{BTreeMap, BTreeSet};

use concord_core::coordinator::{Coordinator, Effect as Told, Input as Ask};
use concord_core::id::{Bqual, BranchId, Epoch, Gtrid};
use concord_core::message::{Decision, Finish, FromParticipant, Outcome, ToParticipant, Vote};
use concord_core::participant::{Command, Effect, Input, Participant};
use concord_core::record::{ParticipantRecord, Record};

use super::operator::{self, told_falsely};
use super::server::Server;
use super::{Budget, Config, Fault};

/// A message on its way. It may stay there for ever: that is how it is lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Packet {
    /// From the coordinator to a participant.
    Order(usize, ToParticipant),
    /// From a participant to the coordinator.
    Answer(usize, FromParticipant),
    /// A participant in doubt asks.
    Inquiry(usize, BranchId),
    /// It is told.
    Verdict(usize, BranchId, Epoch, Decision),
    /// Ledger rows may go.
    ForgetBelow(usize, Gtrid),
    /// From the coordinator's gateway to a participant, for an operator.
    ByHand(usize, ToParticipant),
}

/// What was seen of a transaction that its present state no longer shows. Bit n is bqual n + 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is an observation of its own"
)]
pub struct Seen {
    /// Its client has sent it.
    pub begun: bool,
    /// Branches that voted COMMIT.
    pub voted_commit: u8,
    /// Branches that voted READ_ONLY.
    pub voted_read_only: u8,
    /// Branches that a Commit in two phases was sent to.
    pub told_commit: u8,
    /// Branches that an Abort was sent to.
    pub told_abort: u8,
    /// Branches whose acknowledgement of the commit was sent.
    pub acknowledged: u8,
    /// A client was told COMMITTED.
    pub promised: bool,
    /// A client was told ABORTED.
    pub refused: bool,
    /// A client was told ABORTED for a reason that is final.
    pub refused_finally: bool,
    /// Its client waits for another transaction of the same request, or was told its outcome.
    pub repeated: bool,
}

impl Seen {
    /// A branch is told its outcome.
    pub fn note_order(&mut self, bqual: Bqual, commit: bool) {
        let told = if commit {
            &mut self.told_commit
        } else {
            &mut self.told_abort
        };
        *told |= bit(bqual);
    }
}

/// A participant's host: the daemon and its server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The daemon's machine.
    pub machine: Participant,
    /// What its ledger schema keeps: the highest epoch, and what is forgotten.
    pub kept: (Epoch, Gtrid),
    /// Branches whose damage it keeps.
    pub damage: BTreeSet<BranchId>,
    /// Records on their way to the schema, and how many have arrived in its present life.
    pub pending: Vec<ParticipantRecord>,
    /// See above.
    pub arrived: u64,
    /// Effects that wait for them.
    pub waiting: Vec<(u64, Effect)>,
    /// Commands on their way to the server, at most one a branch.
    pub running: BTreeMap<BranchId, Command>,
    /// A list that was read and not yet looked at.
    pub list: Option<Vec<BranchId>>,
    /// Whether it has looked at a list in its present life.
    pub swept: bool,
    /// Its server.
    pub server: Server,
    /// Lives that it had, up to a few.
    pub lives: u8,
}

/// One state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The coordinator's machine, in its present incarnation.
    pub coordinator: Coordinator,
    /// A coordinator that was taken over while it was paused, and the position up to which its
    /// records are durable: it appends no more, but may wake up and speak.
    pub ghost: Option<(Coordinator, u64)>,
    /// Its log; the tail that is not durable is lost in a crash.
    pub log: Vec<Record>,
    /// Length of the durable part.
    pub durable: usize,
    /// Length of the log when the present incarnation began.
    pub start: usize,
    /// Effects that wait for a position.
    pub waiting: Vec<(u64, Told)>,
    /// Which links the coordinator takes for up.
    pub links: Vec<bool>,
    /// The participants.
    pub nodes: Vec<Node>,
    /// Messages on their way, in order so that equal bags are equal.
    pub net: Vec<Packet>,
    /// By plan.
    pub seen: Vec<Seen>,
    /// Branches that somebody has finished by hand.
    pub interfered: BTreeSet<BranchId>,
    /// Those among them that an operator has forced, whatever became of it.
    pub forced: BTreeSet<BranchId>,
    /// Faults that may still happen.
    pub left: Budget,
    /// A decision was lost with the coordinator that had not yet made it durable.
    pub lost_decision: bool,
    /// A record was lost with the participant that had not yet made it durable.
    pub lost_record: bool,
    /// What a machine did that its driver cannot carry out.
    pub broken: Option<String>,
}

/// The id of the transaction of a plan.
pub fn gtrid(plan: usize) -> Gtrid {
    let mut bytes = [0; 16];
    bytes[15] = u8::try_from(plan + 1).unwrap_or(u8::MAX);
    Gtrid(bytes)
}

/// The plan of a transaction.
pub fn plan(gtrid: Gtrid) -> usize {
    usize::from(gtrid.0[15]) - 1
}

fn bit(bqual: Bqual) -> u8 {
    1 << (bqual.0 - 1)
}

/// Whether a record is about the damage of this branch.
pub fn is_damage_of(branch: BranchId, record: &Record) -> bool {
    matches!(record, Record::Heuristic { gtrid, bqual, .. }
        if *gtrid == branch.gtrid && *bqual == branch.bqual)
}

fn token(node: usize, branch: BranchId) -> u64 {
    let parts = [
        node as u64,
        u64::from(branch.gtrid.0[15]),
        u64::from(branch.bqual.0),
    ];
    parts.iter().fold(0, |token, part| token << 8 | part)
}

fn of_token(token: u64) -> (usize, BranchId) {
    let [.., node, tx, bqual] = token.to_be_bytes();
    let branch = BranchId {
        gtrid: gtrid(usize::from(tx) - 1),
        bqual: Bqual(u32::from(bqual)),
    };
    (usize::from(node), branch)
}

impl Node {
    fn keep_pending(&mut self, config: &Config) {
        for record in std::mem::take(&mut self.pending) {
            self.arrived += 1;
            match record {
                ParticipantRecord::Epoch(epoch) => self.kept.0 = epoch,
                ParticipantRecord::ForgetBelow(gtrid) => self.kept.1 = gtrid,
                ParticipantRecord::Damage { gtrid, bqual, .. } => {
                    if config.fault != Some(Fault::DamageNotKept) {
                        self.damage.insert(BranchId { gtrid, bqual });
                    }
                }
            }
        }
    }
}

impl World {
    /// Everything is up, linked, and empty.
    pub fn new(config: &Config) -> Self {
        let nodes = config.servers.iter().map(|flavour| Node {
            machine: Participant::new(Epoch(0), Gtrid::MIN),
            kept: (Epoch(0), Gtrid::MIN),
            damage: BTreeSet::new(),
            pending: Vec::new(),
            arrived: 0,
            waiting: Vec::new(),
            running: BTreeMap::new(),
            list: None,
            swept: true,
            server: Server::new(*flavour),
            lives: 1,
        });
        let mut world = Self {
            coordinator: Coordinator::new(),
            ghost: None,
            log: Vec::new(),
            durable: 0,
            start: 0,
            waiting: Vec::new(),
            links: vec![false; config.servers.len()],
            nodes: nodes.collect(),
            net: Vec::new(),
            seen: vec![Seen::default(); config.plans.len()],
            interfered: BTreeSet::new(),
            forced: BTreeSet::new(),
            left: config.budget,
            lost_decision: false,
            lost_record: false,
            broken: None,
        };
        world.restart_coordinator(0);
        for node in 0..world.nodes.len() {
            world.participant(config, node, Input::Sweep { listed: Vec::new() });
            world.link(config, node, true);
        }
        world
    }

    /// The coordinator dies and another one reads the log: its durable part, and of the rest what
    /// happened to reach the disk without anybody having heard of it.
    pub fn restart_coordinator(&mut self, lucky: usize) {
        let lost = self.log.drain(self.durable + lucky..);
        self.lost_decision |= lost
            .into_iter()
            .any(|record| matches!(record, Record::Decision { .. }));
        self.coordinator = Coordinator::new();
        self.waiting.clear();
        self.links.fill(false);
        let epoch = self
            .log
            .iter()
            .filter(|record| matches!(record, Record::Epoch(_)))
            .count();
        self.log.push(Record::Epoch(Epoch(epoch as u64 + 1)));
        self.start = self.log.len();
        self.durable = self.log.len();
        for record in &self.log {
            if let Err(error) = self.coordinator.apply(record) {
                self.broken = Some(format!("recovery: {error}"));
            }
        }
    }

    /// The coordinator is paused, and another one takes over.
    pub fn take_over(&mut self) {
        let ghost = (self.coordinator.clone(), self.position());
        self.restart_coordinator(0);
        self.ghost = Some(ghost);
    }

    /// The coordinator that was taken over wakes up with this input.
    pub fn wake(&mut self, config: &Config, input: Ask) {
        let Some((mut ghost, position)) = self.ghost.take() else {
            return;
        };
        match ghost.step(input) {
            Err(error) => self.broken = Some(error.to_string()),
            Ok(steps) => {
                for step in steps.into_iter().filter(|step| step.after <= position) {
                    for effect in step.release {
                        // It learns that it was superseded, and stops.
                        if matches!(effect, Told::Superseded { .. }) {
                            return;
                        }
                        self.tell(config, ghost.epoch(), effect);
                    }
                }
                self.ghost = Some((ghost, position));
            }
        }
    }

    /// The participant's daemon dies, and another one reads what the server kept. Records on their
    /// way to it are lost, or have just arrived and nobody has heard of it.
    pub fn restart_participant(&mut self, config: &Config, index: usize, lucky: bool) {
        let node = &mut self.nodes[index];
        if lucky {
            node.keep_pending(config);
        }
        self.lost_record |= !node.pending.is_empty();
        node.pending.clear();
        node.waiting.clear();
        node.arrived = 0;
        let running = std::mem::take(&mut node.running);
        node.server.lose_connections(running.into_iter());
        node.machine = Participant::new(node.kept.0, node.kept.1);
        if config.fault == Some(Fault::RollbackAtStart) {
            for branch in node.server.within_reach() {
                node.server.finish_by_hand(branch, false);
            }
        }
        node.list = None;
        node.swept = false;
        node.lives = node.lives.saturating_add(1);
    }

    /// Somebody finishes a prepared branch by hand.
    pub fn interfere(&mut self, index: usize, branch: BranchId, commit: bool) {
        self.nodes[index].server.finish_by_hand(branch, commit);
        self.interfered.insert(branch);
    }

    /// Whether the damage of a branch is on record, at its participant or at the coordinator.
    pub fn is_reported(&self, branch: BranchId) -> bool {
        let by_coordinator = self.log.iter().any(|record| is_damage_of(branch, record));
        by_coordinator || self.nodes.iter().any(|node| node.damage.contains(&branch))
    }

    /// The coordinator's view of a link changes.
    pub fn link(&mut self, config: &Config, node: usize, up: bool) {
        self.links[node] = up;
        let participant = config.names[node].clone();
        let input = if up {
            Ask::LinkUp { participant }
        } else {
            Ask::LinkDown { participant }
        };
        self.coordinator(config, input);
    }

    /// Everything appended becomes durable, and what waited for it leaves.
    pub fn flush(&mut self, config: &Config) {
        self.durable = self.log.len();
        self.release(config);
    }

    /// Whether somebody waits for the log.
    pub fn is_flush_due(&self) -> bool {
        self.log[self.durable..].iter().any(Record::is_forced)
    }

    /// Gives the coordinator one input.
    pub fn coordinator(&mut self, config: &Config, input: Ask) {
        match self.coordinator.step(input) {
            Err(error) => self.broken = Some(error.to_string()),
            Ok(steps) => {
                for step in steps {
                    self.log.extend(step.append);
                    let falsely = |effect| told_falsely(&self.log, effect);
                    let broken = step.release.iter().find_map(falsely);
                    self.broken = self.broken.take().or(broken);
                    let effects = step.release.into_iter().filter(|effect| {
                        !matches!(
                            effect,
                            Told::Changed { .. } | Told::BranchChanged { .. } | Told::Began { .. }
                        )
                    });
                    let early = config.fault == Some(Fault::PrunedTooEarly);
                    self.waiting.extend(effects.map(|effect| match effect {
                        Told::Forgotten { .. } if early => (0, effect),
                        _ => (step.after, effect),
                    }));
                }
                self.release(config);
            }
        }
    }

    /// Up to which position the records of this incarnation are durable.
    fn position(&self) -> u64 {
        let new = &self.log[self.start..self.durable];
        new.iter().filter(|record| record.is_forced()).count() as u64
    }

    fn release(&mut self, config: &Config) {
        let position = match config.fault {
            Some(Fault::SentBeforeDurable) => u64::MAX,
            _ => self.position(),
        };
        let epoch = self.coordinator.epoch();
        let waiting = std::mem::take(&mut self.waiting);
        for (after, effect) in waiting {
            if after <= position {
                self.tell(config, epoch, effect);
            } else {
                self.waiting.push((after, effect));
            }
        }
    }

    fn tell(&mut self, config: &Config, epoch: Epoch, effect: Told) {
        match effect {
            Told::Send { to, message } => {
                let seen = &mut self.seen[plan(message.branch().gtrid)];
                let bqual = message.branch().bqual;
                match message {
                    ToParticipant::Commit {
                        one_phase: false, ..
                    } => seen.note_order(bqual, true),
                    ToParticipant::Abort { .. } => seen.note_order(bqual, false),
                    _ => {}
                }
                self.send(Packet::Order(config.node(&to), message));
            }
            Told::Reply { gtrid, outcome } => self.hear(gtrid, &outcome),
            Told::Replay {
                gtrid,
                first,
                outcome,
            } => {
                self.seen[plan(gtrid)].repeated = true;
                self.hear(first, &outcome);
            }
            Told::Join { gtrid, .. } => self.seen[plan(gtrid)].repeated = true,
            Told::Answer { token, decision } => {
                let (node, branch) = of_token(token);
                self.send(Packet::Verdict(node, branch, epoch, decision));
            }
            Told::Forgotten { horizon, .. } => {
                for node in 0..self.nodes.len() {
                    self.send(Packet::ForgetBelow(node, horizon));
                }
            }
            Told::Order { resolve, .. } => self.send_order(config, epoch, &resolve),
            Told::Superseded { by } => {
                self.broken = Some(format!("superseded by {by}, which never lived"));
            }
            _ => {}
        }
    }

    fn hear(&mut self, gtrid: Gtrid, outcome: &Outcome) {
        let seen = &mut self.seen[plan(gtrid)];
        match outcome {
            Outcome::Committed => seen.promised = true,
            Outcome::Aborted(reason) => {
                seen.refused = true;
                seen.refused_finally |= reason.kind().is_final();
            }
            Outcome::Unknown(_) | Outcome::Damaged(_) => {}
        }
    }

    /// Gives a participant one input.
    pub fn participant(&mut self, config: &Config, index: usize, input: Input) {
        let step = self.nodes[index].machine.step(input);
        let node = &mut self.nodes[index];
        node.pending.extend(step.append);
        let effects = step.release.into_iter().map(|effect| (step.after, effect));
        node.waiting.extend(effects);
        if config.slow_records {
            self.release_participant(index);
        } else {
            self.keep(config, index);
        }
    }

    /// A participant's records reach its ledger schema, and what waited for them leaves.
    pub fn keep(&mut self, config: &Config, index: usize) {
        let node = &mut self.nodes[index];
        for record in &node.pending {
            if let ParticipantRecord::Damage { gtrid, bqual, .. } = record {
                let (gtrid, bqual) = (*gtrid, *bqual);
                let branch = BranchId { gtrid, bqual };
                if !self.interfered.contains(&branch) {
                    self.broken = Some(format!("false damage: {record:?}"));
                }
            }
        }
        node.keep_pending(config);
        self.release_participant(index);
    }

    fn release_participant(&mut self, index: usize) {
        let arrived = self.nodes[index].arrived;
        for (after, effect) in std::mem::take(&mut self.nodes[index].waiting) {
            if after <= arrived {
                self.carry_out(index, effect);
            } else {
                self.nodes[index].waiting.push((after, effect));
            }
        }
    }

    fn carry_out(&mut self, index: usize, effect: Effect) {
        let node = &mut self.nodes[index];
        match effect {
            Effect::Run { branch, command } => {
                let former = node.running.insert(branch, command);
                let broken = former.map(|_| format!("{branch} runs two commands"));
                self.broken = self.broken.take().or(broken);
            }
            Effect::Detach { branch } => node.server.detach(branch),
            Effect::Prune { below } => node.server.prune(below),
            Effect::Reply { token, .. } if token == operator::TOKEN => {}
            Effect::Reply { message, .. } => self.answer(index, message),
            Effect::Inquire { branches } => {
                for branch in branches {
                    self.send(Packet::Inquiry(index, branch));
                }
            }
            _ => {}
        }
    }

    fn answer(&mut self, index: usize, message: FromParticipant) {
        if let FromParticipant::Finished {
            branch,
            finish: Finish::Committed,
            ..
        } = &message
        {
            self.seen[plan(branch.gtrid)].acknowledged |= bit(branch.bqual);
        }
        if let FromParticipant::Voted { branch, vote, .. } = &message {
            let seen = &mut self.seen[plan(branch.gtrid)];
            match vote {
                Vote::Commit => seen.voted_commit |= bit(branch.bqual),
                Vote::ReadOnly => seen.voted_read_only |= bit(branch.bqual),
                Vote::Abort(_) | Vote::Aborting(_) => {}
            }
        }
        self.send(Packet::Answer(index, message));
    }

    /// A message begins its way.
    pub fn send(&mut self, packet: Packet) {
        let at = self.net.partition_point(|other| *other < packet);
        // A message that is there already may be delivered twice by a fault, and a second copy
        // would add nothing but states.
        if self.net.get(at) != Some(&packet) {
            self.net.insert(at, packet);
        }
    }

    /// A message arrives.
    pub fn deliver(&mut self, config: &Config, packet: Packet) {
        let input = match packet {
            Packet::Order(node, message) => {
                return self.participant(config, node, Input::Message { token: 0, message });
            }
            Packet::Verdict(node, branch, epoch, decision) => {
                let input = Input::Decided {
                    branch,
                    epoch,
                    decision,
                };
                return self.participant(config, node, input);
            }
            Packet::ForgetBelow(node, gtrid) => {
                return self.participant(config, node, Input::ForgetBelow { gtrid });
            }
            Packet::ByHand(node, message) => return self.deliver_order(config, node, message),
            Packet::Answer(..) | Packet::Inquiry(..) => for_coordinator(config, packet),
        };
        if let Some(input) = input {
            self.coordinator(config, input);
        }
    }
}

/// What a message says to a coordinator, if it is for one.
pub fn for_coordinator(config: &Config, packet: Packet) -> Option<Ask> {
    match packet {
        Packet::Answer(node, message) => {
            let from = config.names[node].clone();
            Some(Ask::Received { from, message })
        }
        Packet::Inquiry(node, branch) => {
            let (from, token) = (config.names[node].clone(), token(node, branch));
            Some(Ask::Inquire {
                from,
                branch,
                token,
            })
        }
        Packet::ByHand(..) | Packet::Order(..) | Packet::Verdict(..) | Packet::ForgetBelow(..) => {
            None
        }
    }
}
