//! Faults, carried out and healed.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::operator::Order;
use super::plan::{Fault, Planned, Target};
use super::wire::{LinkProxy, Mischief};
use super::world::{COORDINATOR, World};
use concord_participant::resource::ResourceManager as _;
use concord_participant::resource::memory::server::Cut;

/// A supervisor starts what died after a time in this range, in microseconds.
const RESTART_US: std::ops::Range<u64> = 50_000..1_500_000;
/// An operator accepts replaced data after a time in this range.
const ACCEPT_US: std::ops::Range<u64> = 1_000_000..4_000_000;
/// Longest time of a slow disk before and after a batch.
pub(super) const SLOW_DISK_US: u64 = 4_000_000;
/// Time between two backups of every server.
const BACKUP_US: u64 = 1_500_000;
/// How often an operator, or a DBA, looks for a branch in doubt, and how long it takes in between.
const LOOKS: u32 = 200;
const LOOK_US: u64 = 4_000;

/// Something that is to happen.
#[derive(Clone, Debug)]
pub enum Action {
    /// A fault begins.
    Begin(Planned),
    /// The coordinator is started, unless it runs.
    StartCoordinator,
    /// A participant is started, unless it runs.
    StartParticipant(usize),
    /// A server is started.
    StartServer(usize),
    /// A process goes on.
    Resume(usize),
    /// A direction is whole again.
    Uncut(usize, usize),
    /// A direction is as fast as before.
    Unslow(usize, usize),
    /// Messages pass as they are.
    Behave(usize),
    /// The log's disk works again.
    MendDisk,
    /// A server is writable, safe, and without a backup's lock.
    MendServer(usize),
    /// An operator accepts the data of a server, and restarts the coordinator with it.
    Accept(usize, Option<String>),
    /// A backup of every server is taken.
    BackUp,
    /// An operator looks for a branch in doubt at a server, for so many times.
    Order(usize, bool, u32),
    /// And a DBA, who goes past the coordinator.
    ByHand(usize, u32),
}

impl World {
    /// Puts something in line.
    pub(super) fn later(&mut self, after_us: u64, action: Action) {
        self.next_action += 1;
        let at = self.clock.now_us() + after_us;
        self.actions.insert((at, self.next_action), action);
    }

    /// Puts all planned faults in line.
    pub(super) fn plan_faults(&mut self) {
        for planned in self.plan.faults.clone() {
            self.next_action += 1;
            let key = (planned.at_us, self.next_action);
            self.actions.insert(key, Action::Begin(planned));
        }
        self.later(BACKUP_US, Action::BackUp);
    }

    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Begin(planned) => self.begin(&planned),
            Action::StartCoordinator => {
                self.net.power_on(COORDINATOR);
                if !self.hosts[COORDINATOR].is_running() {
                    self.start_coordinator();
                }
            }
            Action::StartParticipant(index) => {
                self.net.power_on(Self::participant(index));
                if !self.hosts[Self::participant(index)].is_running() {
                    self.start_participant(index);
                }
            }
            Action::StartServer(index) => {
                if !self.servers[index].is_up() {
                    self.note(format_args!("server {} is up", index + 1));
                    self.servers[index].restart();
                }
            }
            Action::Resume(host) => {
                self.note(format_args!("host {host} goes on"));
                self.hosts[host].pause(false);
            }
            Action::Uncut(from, to) => {
                self.note(format_args!("{from} reaches {to} again"));
                self.net.cut(from, to, false);
            }
            Action::Unslow(from, to) => self.net.slow(from, to, 0),
            Action::Behave(index) => self.proxies[index].set_mischief(Mischief::default()),
            Action::MendDisk => {
                self.note(format_args!("the disk works"));
                self.disk.set_faults(|faults| {
                    (faults.writes_fail, faults.syncs_fail, faults.full) = (false, false, false);
                });
                self.disk_us.store(self.plan.disk_us, Ordering::Relaxed);
            }
            Action::MendServer(index) => {
                self.servers[index].set_read_only(false);
                self.servers[index].set_backup(false);
                self.servers[index].set_unsafe(false);
            }
            Action::Accept(index, incarnation) => {
                self.note(format_args!("the data of server {} is accepted", index + 1));
                match incarnation {
                    Some(incarnation) => self.accepted[index].incarnation = Some(incarnation),
                    None => self.accepted[index].without = self.judge.newest(),
                }
                self.shared.judge.accepted(index);
                self.kill(COORDINATOR, false);
                self.later(20_000, Action::StartCoordinator);
            }
            Action::BackUp => {
                self.backups = self.servers.iter().map(|server| server.back_up()).collect();
                if !self.healed {
                    self.later(BACKUP_US, Action::BackUp);
                }
            }
            Action::Order(server, commit, looks) => self.order(server, commit, looks),
            Action::ByHand(server, looks) => self.dba(server, looks),
        }
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.trace.note("**", None, what);
    }

    /// A supervisor starts the coordinator again.
    pub(super) fn restart_coordinator(&mut self) {
        let after = self.chance.between(RESTART_US);
        self.later(after, Action::StartCoordinator);
    }

    /// The coordinator ended by itself, which only a log that failed may make it do.
    pub(super) fn coordinator_ended(&mut self, ended: super::host::Ended) {
        let text = match ended {
            Ok(()) => "without a word".to_owned(),
            Err(text) => text,
        };
        self.trace
            .note("c", None, format_args!("ends by itself: {text}"));
        if !self.disk.take_failed() {
            self.judge
                .broken(None, format!("the coordinator ended by itself: {text}"));
        }
        self.kill(COORDINATOR, false);
        self.restart_coordinator();
    }

    fn begin(&mut self, planned: &Planned) {
        if self.healed {
            return;
        }
        self.note(format_args!(
            "fault: {:?} for {} ms",
            planned.fault,
            planned.for_us / 1_000
        ));
        let for_us = planned.for_us;
        let happened = match &planned.fault {
            Fault::Crash { target, power } => self.crash(*target, *power, for_us),
            Fault::Pause(target) => {
                let host = node_of(*target);
                let runs = self.hosts[host].is_running() && !self.hosts[host].is_paused();
                let pausable = self.hosts[host].is_running();
                self.hosts[host].pause(pausable);
                self.later(for_us, Action::Resume(host));
                runs
            }
            Fault::Partition { .. }
            | Fault::Disconnect(_)
            | Fault::DisconnectClients
            | Fault::PartitionClients
            | Fault::Slow { .. }
            | Fault::Mischief(_)
            | Fault::Stale(_)
            | Fault::ClientGone
            | Fault::Order { .. } => self.disturb(&planned.fault, for_us),
            Fault::WritesFail
            | Fault::SyncsFail
            | Fault::DiskFull
            | Fault::SlowDisk
            | Fault::Torn { .. } => self.spoil_disk(&planned.fault, for_us),
            Fault::ClockJump { by_ms } => {
                self.skew_ms.fetch_add(*by_ms, Ordering::Relaxed);
                true
            }
            Fault::ServerCrash(_)
            | Fault::SessionKill(_)
            | Fault::Cut { .. }
            | Fault::ReadOnly(_)
            | Fault::BackupLock(_)
            | Fault::Unsafe(_)
            | Fault::Foreign(_)
            | Fault::Dba { .. }
            | Fault::Restore { .. } => self.hurt_server(&planned.fault, for_us),
        };
        // One that is counted where it strikes is not counted here.
        if happened && !planned.fault.strikes_later() {
            self.count(planned.fault.kind());
        }
    }

    fn crash(&mut self, target: Target, power: bool, for_us: u64) -> bool {
        let node = node_of(target);
        if !self.hosts[node].is_running() {
            return false;
        }
        self.kill(node, power);
        let start = match target {
            Target::Coordinator => Action::StartCoordinator,
            Target::Participant(index) => Action::StartParticipant(index),
        };
        self.later(for_us, start);
        true
    }

    fn disturb(&mut self, fault: &Fault, for_us: u64) -> bool {
        match fault {
            Fault::Partition {
                participant,
                to,
                from,
            } => {
                let (there, wire) = (Self::participant(*participant), self.wire(*participant));
                let mut cuts = Vec::new();
                if *to {
                    cuts.extend([(COORDINATOR, wire), (wire, there), (COORDINATOR, there)]);
                }
                if *from {
                    cuts.extend([(wire, COORDINATOR), (there, wire), (there, COORDINATOR)]);
                }
                self.cut_for(&cuts, for_us);
                true
            }
            Fault::PartitionClients => {
                let clients = self.clients();
                self.cut_for(&[(clients, COORDINATOR), (COORDINATOR, clients)], for_us);
                true
            }
            Fault::Disconnect(index) => {
                let (there, wire) = (Self::participant(*index), self.wire(*index));
                let count = self.net.reset(COORDINATOR, wire) + self.net.reset(wire, there);
                count + self.net.reset(COORDINATOR, there) > 0
            }
            Fault::DisconnectClients => self.net.reset(COORDINATOR, self.clients()) > 0,
            Fault::Slow { participant, by_us } => {
                let (there, wire) = (Self::participant(*participant), self.wire(*participant));
                for (from, to) in [(wire, there), (there, wire)] {
                    self.net.slow(from, to, *by_us);
                    self.later(for_us, Action::Unslow(from, to));
                }
                true
            }
            Fault::Mischief(index) => {
                let mischief = Mischief {
                    double: self.chance.between(30..500),
                    delay: self.chance.between(0..300),
                    delay_answer: self.chance.between(0..200),
                };
                self.proxies[*index].set_mischief(mischief);
                self.later(for_us, Action::Behave(*index));
                true
            }
            Fault::Stale(index) => {
                let count = 1 + self.chance.index(12);
                self.proxies[*index].bring_back(count) > 0
            }
            Fault::ClientGone => {
                self.shared.leave.notify_one();
                true
            }
            Fault::Order { server, commit } => {
                self.later(0, Action::Order(*server, *commit, LOOKS));
                true
            }
            _ => false,
        }
    }

    /// An operator sees a branch in doubt, or one that was a while ago.
    fn order(&mut self, place: usize, commit: bool, looks: u32) {
        let prepared = self.servers[place].prepared();
        if prepared.is_empty() && looks > 0 && !self.healed {
            return self.later(LOOK_US, Action::Order(place, commit, looks - 1));
        }
        let branch = prepared.first().copied();
        let Some(branch) = branch.or_else(|| self.judge.newest_at(place)) else {
            return;
        };
        let order = Order {
            branch,
            place,
            commit,
        };
        if self.orders.send(order).is_ok() {
            self.count("resolved by an operator");
        }
    }

    fn cut_for(&mut self, cuts: &[(usize, usize)], for_us: u64) {
        for (from, to) in cuts {
            self.net.cut(*from, *to, true);
            self.later(for_us, Action::Uncut(*from, *to));
        }
    }

    fn spoil_disk(&mut self, fault: &Fault, for_us: u64) -> bool {
        if *fault == Fault::SlowDisk {
            self.disk_us.store(SLOW_DISK_US, Ordering::Relaxed);
        }
        self.disk.set_faults(|faults| match fault {
            Fault::WritesFail => faults.writes_fail = true,
            Fault::SyncsFail => faults.syncs_fail = true,
            Fault::DiskFull => faults.full = true,
            Fault::Torn { after } => faults.dies_after = Some(*after),
            _ => {}
        });
        if !matches!(fault, Fault::Torn { .. }) {
            self.later(for_us, Action::MendDisk);
        }
        true
    }

    fn hurt_server(&mut self, fault: &Fault, for_us: u64) -> bool {
        match fault {
            Fault::ServerCrash(index) => {
                let was_up = self.servers[*index].is_up();
                self.servers[*index].crash();
                self.later(for_us, Action::StartServer(*index));
                return was_up;
            }
            Fault::SessionKill(index) => {
                let sessions = self.sessions(*index);
                self.servers[*index].kill_connections();
                return sessions > 0;
            }
            Fault::Cut { server, after } => {
                let cut = if *after { Cut::After } else { Cut::Before };
                let count = 1 + self.chance.index(2);
                self.servers[*server].plan_cuts(&vec![cut; count]);
            }
            Fault::ReadOnly(index) => {
                self.servers[*index].set_read_only(true);
                self.later(for_us, Action::MendServer(*index));
            }
            Fault::BackupLock(index) => {
                self.servers[*index].set_backup(true);
                self.later(for_us, Action::MendServer(*index));
            }
            Fault::Unsafe(index) => {
                self.servers[*index].set_unsafe(true);
                self.later(for_us, Action::MendServer(*index));
            }
            Fault::Foreign(index) => {
                let name = format!("stranger-{}", self.next_action);
                self.servers[*index].prepare_foreign(&name, "foreign.t", &name, 1);
                self.foreign.push((*index, name));
            }
            Fault::Dba { server, patient } => {
                let looks = if *patient { LOOKS } else { 0 };
                self.later(0, Action::ByHand(*server, looks));
            }
            Fault::Restore { server, same } => return self.restore(*server, *same),
            _ => return false,
        }
        true
    }

    /// Sessions that a participant has at its server.
    fn sessions(&self, index: usize) -> u32 {
        let memory = self.memories[index].upgrade();
        memory.map_or(0, |memory| memory.connections().open)
    }

    /// How often each kind of fault struck, with those that are counted where they do.
    pub(super) fn struck(&self) -> BTreeMap<&'static str, u64> {
        let mut all = self.injected.clone();
        let disk = self.disk.counts();
        let messages = self.proxies.iter().map(LinkProxy::counts);
        let (doubled, delayed) =
            messages.fold((0, 0), |sums, (two, late, _)| (sums.0 + two, sums.1 + late));
        let book = self.shared.book.all();
        let gone = book.values().filter(|record| record.left).count();
        for (kind, count) in [
            ("writes fail", disk.failed_writes),
            ("syncs fail", disk.failed_syncs),
            ("disk full", disk.refused),
            ("write lost or torn", disk.lost),
            ("slow disk", self.slow_batches.load(Ordering::Relaxed)),
            ("message doubled", doubled),
            ("message delayed", delayed),
            ("connection reset", self.net.resets()),
            (
                "connection cut at a verb",
                self.cuts.load(Ordering::Relaxed),
            ),
            ("client gone", gone as u64),
        ] {
            if count > 0 {
                *all.entry(kind).or_default() += count;
            }
        }
        all
    }

    fn dba(&mut self, index: usize, looks: u32) {
        let prepared = self.servers[index].prepared();
        if self.healed {
            return;
        }
        let Some(branch) = prepared.first().copied() else {
            if looks > 0 {
                self.later(LOOK_US, Action::ByHand(index, looks - 1));
            }
            return;
        };
        if !self.servers[index].finish_by_hand(branch, false) {
            return;
        }
        self.count("rolled back by hand");
        self.trace.note(
            "**",
            Some(branch.gtrid),
            format_args!("a DBA rolls {branch} back"),
        );
        self.judge.interfere(branch, false);
    }

    /// The server, its participant and its data: all of them are what they were at the last
    /// backup, under the same identity or a new one.
    fn restore(&mut self, index: usize, same: bool) -> bool {
        // A backup has the identity of its time: before the last restore, or after it.
        if same && self.judge.is_restored(index) {
            return false;
        }
        self.servers[index].crash();
        if self.hosts[Self::participant(index)].is_running() {
            self.kill(Self::participant(index), false);
        }
        let incarnation = (!same).then(|| format!("uuid-{}/{}", index + 1, self.next_action + 2));
        self.servers[index].restore(&self.backups[index].clone(), incarnation.as_deref());
        self.foreign.retain(|(server, _)| *server != index);
        if same {
            self.judge.went_back(index, &self.servers[index]);
        } else {
            self.judge.restored(index);
        }
        self.later(100_000, Action::StartServer(index));
        self.later(200_000, Action::StartParticipant(index));
        // What is not there any more is not accepted, and not last by chance.
        self.actions
            .retain(|_, action| !matches!(action, Action::Accept(place, _) if *place == index));
        let after = self.chance.between(ACCEPT_US);
        self.later(after, Action::Accept(index, incarnation));
        true
    }

    /// Everything is mended at once, and no fault begins any more.
    pub(super) fn heal(&mut self) {
        self.healed = true;
        self.note(format_args!("everything heals"));
        self.disk
            .set_faults(|faults| *faults = super::disk::Faults::default());
        self.disk_us.store(self.plan.disk_us, Ordering::Relaxed);
        let rest = std::mem::take(&mut self.actions);
        for action in rest.into_values() {
            match action {
                Action::Begin(_) | Action::BackUp => {}
                // An operator does not hurry because the network heals.
                accept @ Action::Accept(..) => self.later(500_000, accept),
                start @ (Action::StartCoordinator | Action::StartParticipant(_)) => {
                    self.later(1_000, start);
                }
                action => self.act(action),
            }
        }
        for server in &self.servers {
            server.plan_cuts(&[]);
        }
    }
}

fn node_of(target: Target) -> usize {
    match target {
        Target::Coordinator => COORDINATOR,
        Target::Participant(index) => World::participant(index),
    }
}
