//! What a seed stands for: the cluster, the tempers of its parts, and the faults with their times.

use concord_daemon::crash::CrashPoint;

use super::chance::Chance;

/// Longest time until everything must have come to its end after everything healed.
pub const HEAL_DEADLINE_US: u64 = 60_000_000;
/// Longest time that a branch may stay in doubt after everything healed.
pub const IN_DOUBT_MAX_US: u64 = 10_000_000;
/// The same of 99 branches in a hundred.
pub const IN_DOUBT_P99_MS: u64 = 2_000;

/// Which of a server's two flavours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// A prepared branch leaves its connection.
    MySql,
    /// It stays attached until the connection closes.
    MariaDb,
}

/// A machine that faults happen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The coordinator.
    Coordinator,
    /// A participant, by its index.
    Participant(usize),
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 of a process, or a power loss of its machine; back after a while.
    Crash {
        /// Whose.
        target: Target,
        /// The machine too.
        power: bool,
    },
    /// SIGSTOP, and SIGCONT after a while.
    Pause(Target),
    /// One direction, or both, between the coordinator and a participant.
    Partition {
        /// Which participant.
        participant: usize,
        /// To it.
        to: bool,
        /// From it.
        from: bool,
    },
    /// The connections between the coordinator and a participant are reset.
    Disconnect(usize),
    /// The clients' connections are reset.
    DisconnectClients,
    /// The clients cannot reach the coordinator.
    PartitionClients,
    /// The way to and from a participant takes longer.
    Slow {
        /// Which.
        participant: usize,
        /// By how much.
        by_us: u64,
    },
    /// Messages are doubled and delayed at the wire of a participant.
    Mischief(usize),
    /// Old messages come back.
    Stale(usize),
    /// Writes of the log fail.
    WritesFail,
    /// Syncs of the log fail.
    SyncsFail,
    /// The log's disk is full.
    DiskFull,
    /// The log's disk takes its time: longer than a transaction has.
    SlowDisk,
    /// The coordinator's machine loses its power in the middle of the log's work.
    Torn {
        /// After so many operations.
        after: u64,
    },
    /// A server is killed; back after a while.
    ServerCrash(usize),
    /// All sessions of a server are killed.
    SessionKill(usize),
    /// Connections break around a verb.
    Cut {
        /// Of which server.
        server: usize,
        /// After the server did it.
        after: bool,
    },
    /// A server is read-only for a while.
    ReadOnly(usize),
    /// A backup's lock holds commits up for a while.
    BackupLock(usize),
    /// A setting is unsafe for a while: no votes.
    Unsafe(usize),
    /// A stranger's branch is prepared.
    Foreign(usize),
    /// A DBA rolls a prepared branch back.
    Dba {
        /// Of which server.
        server: usize,
        /// And waits for one.
        patient: bool,
    },
    /// A server's data is replaced by a backup.
    Restore {
        /// Of which server.
        server: usize,
        /// Under the same identity, as a snapshot of its folder is.
        same: bool,
    },
    /// The coordinator's wall clock jumps.
    ClockJump {
        /// By so many milliseconds.
        by_ms: i64,
    },
    /// A client goes away in the middle of a call.
    ClientGone,
    /// An operator resolves a branch through the coordinator, without force: whatever the moment,
    /// that must not break anything.
    Order {
        /// Of which server.
        server: usize,
        /// By commit.
        commit: bool,
    },
}

impl Fault {
    /// Whether it only strikes when something comes its way, and is counted there: by the disk, the
    /// wires, the servers and the clients.
    pub fn strikes_later(&self) -> bool {
        matches!(
            self,
            Self::Torn { .. }
                | Self::WritesFail
                | Self::SyncsFail
                | Self::DiskFull
                | Self::SlowDisk
                | Self::Mischief(_)
                | Self::Cut { .. }
                | Self::ClientGone
                | Self::Dba { .. }
                | Self::Order { .. }
        )
    }

    /// Its kind, as it is counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Crash { target, power } => match (target, power) {
                (Target::Coordinator, false) => "coordinator killed",
                (Target::Coordinator, true) => "coordinator lost power",
                (Target::Participant(_), false) => "participant killed",
                (Target::Participant(_), true) => "participant lost power",
            },
            Self::Pause(Target::Coordinator) => "coordinator paused",
            Self::Pause(Target::Participant(_)) => "participant paused",
            Self::Partition {
                to: true,
                from: true,
                ..
            } => "partition",
            Self::Partition { .. } => "one-way partition",
            Self::Disconnect(_) => "link reset",
            Self::DisconnectClients => "clients reset",
            Self::PartitionClients => "clients cut off",
            Self::Slow { .. } => "slow network",
            Self::Mischief(_) => "message doubled",
            Self::Stale(_) => "old messages",
            Self::WritesFail => "writes fail",
            Self::SyncsFail => "syncs fail",
            Self::DiskFull => "disk full",
            Self::SlowDisk => "slow disk",
            Self::Torn { .. } => "power lost in a write",
            Self::ServerCrash(_) => "server killed",
            Self::SessionKill(_) => "sessions killed",
            Self::Cut { .. } => "connection cut at a verb",
            Self::ReadOnly(_) => "server read-only",
            Self::BackupLock(_) => "backup lock",
            Self::Unsafe(_) => "unsafe setting",
            Self::Foreign(_) => "foreign branch",
            Self::Dba { .. } => "rolled back by hand",
            Self::Restore { same: false, .. } => "data restored",
            Self::Restore { same: true, .. } => "data went back",
            Self::ClockJump { .. } => "clock jump",
            Self::ClientGone => "client gone",
            Self::Order { .. } => "resolved by an operator",
        }
    }
}

/// Every kind of fault, as it is counted.
pub const KINDS: &[&str] = &[
    "coordinator killed",
    "coordinator lost power",
    "participant killed",
    "participant lost power",
    "coordinator paused",
    "participant paused",
    "partition",
    "one-way partition",
    "link reset",
    "clients reset",
    "clients cut off",
    "slow network",
    "message doubled",
    "message delayed",
    "old messages",
    "writes fail",
    "syncs fail",
    "disk full",
    "slow disk",
    "power lost in a write",
    "write lost or torn",
    "connection reset",
    "server killed",
    "sessions killed",
    "connection cut at a verb",
    "server read-only",
    "backup lock",
    "unsafe setting",
    "foreign branch",
    "rolled back by hand",
    "data restored",
    "data went back",
    "clock jump",
    "client gone",
    "resolved by an operator",
];

/// Points that only an order by an operator leads to.
const AT_AN_ORDER: &[CrashPoint] = &[
    CrashPoint::CoordinatorOrderReceived,
    CrashPoint::CoordinatorOrderReleased,
];
/// Points at a transaction of which somebody else finished a branch.
const AT_DAMAGE: &[CrashPoint] = &[
    CrashPoint::CoordinatorHeuristicBeforeForce,
    CrashPoint::CoordinatorHeuristicAfterForce,
    CrashPoint::ParticipantDamageBeforeWrite,
    CrashPoint::ParticipantDamageAfterWrite,
    CrashPoint::ParticipantListBefore,
    CrashPoint::ParticipantListAfter,
];
/// Points that a transaction without an answer leads to.
const AT_A_DEADLINE: &[CrashPoint] = &[CrashPoint::CoordinatorDeadlinePassed];
/// Faults more in a world that has to come to such a rare point, and how long they last.
const MORE: usize = 8;
const MORE_US: std::ops::Range<u64> = 1_000_000..4_000_000;
/// Points on the way to forgetting decisions, which comes when all is quiet.
pub const WHEN_FORGETTING: &[CrashPoint] = &[
    CrashPoint::CoordinatorHorizonBeforeForce,
    CrashPoint::CoordinatorHorizonAfterForce,
    CrashPoint::CoordinatorForgetBefore,
    CrashPoint::CoordinatorForgetAfter,
    CrashPoint::CoordinatorForgetTold,
    CrashPoint::ParticipantHorizonBeforeWrite,
    CrashPoint::ParticipantHorizonAfterWrite,
    CrashPoint::ParticipantPruneBefore,
    CrashPoint::ParticipantPruneAfter,
];

/// A fault with its time.
#[derive(Clone, Debug)]
pub struct Planned {
    /// When.
    pub at_us: u64,
    /// How long, where it has a length.
    pub for_us: u64,
    /// What.
    pub fault: Fault,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// The servers, and with them the participants.
    pub servers: Vec<Flavour>,
    /// Clients.
    pub clients: usize,
    /// Operations that each client begins.
    pub operations: usize,
    /// Time of a segment on the network, in microseconds.
    pub latency_us: (u64, u64),
    /// Longest time of a verb on its way to a server or back, in microseconds.
    pub verb_us: u64,
    /// Longest time of the log's disk before and after a batch, in microseconds.
    pub disk_us: u64,
    /// Pages of a new log's journal.
    pub journal_pages: u32,
    /// Time between two sweeps of a participant, in milliseconds.
    pub sweep_ms: u64,
    /// When everything heals.
    pub heal_us: u64,
    /// Faults, by time.
    pub faults: Vec<Planned>,
    /// Whether the run goes on until decisions are forgotten.
    pub long: bool,
    /// Crash points, in this order: the process that reaches one is killed there.
    pub crashes: Vec<(CrashPoint, u64)>,
    /// The rest of chance.
    pub chance: Chance,
}

impl Plan {
    /// Of a seed.
    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::of(seed);
        let flavour = |chance: &mut Chance| {
            if chance.permille(500) {
                Flavour::MySql
            } else {
                Flavour::MariaDb
            }
        };
        let servers: Vec<Flavour> = (0..2 + chance.index(2))
            .map(|_| flavour(&mut chance))
            .collect();
        let heal_us = chance.between(4_000_000..9_000_000);
        let count = chance.between(4..16);
        let mut faults: Vec<Planned> = (0..count)
            .map(|_| Planned {
                at_us: chance.between(300_000..heal_us),
                for_us: chance.pause_us(20_000..6_000_000),
                fault: draw(&mut chance, servers.len()),
            })
            .collect();
        faults.sort_by_key(|planned| planned.at_us);
        Self {
            seed,
            clients: 3 + chance.index(4),
            operations: 8 + chance.index(20),
            latency_us: *chance.pick(&[(50, 300), (100, 2_000), (500, 8_000)]),
            verb_us: *chance.pick(&[400, 4_000, 40_000]),
            disk_us: *chance.pick(&[300, 4_000, 60_000]),
            journal_pages: *chance.pick(&[4, 8, 16, 64]),
            sweep_ms: *chance.pick(&[500, 1_000, 2_000]),
            heal_us,
            faults,
            long: chance.permille(120),
            crashes: Vec::new(),
            servers,
            chance,
        }
    }

    /// The same world, in which processes die at these points. It has what leads to them.
    pub fn crashing(seed: u64, crashes: &[(CrashPoint, u64)]) -> Self {
        let mut plan = Self::of(seed);
        let has = |points: &[CrashPoint]| crashes.iter().any(|(point, _)| points.contains(point));
        if has(AT_AN_ORDER) {
            plan.add(|chance, server| Fault::Order {
                server,
                commit: chance.permille(300),
            });
        }
        if has(AT_DAMAGE) {
            plan.add(|_, server| Fault::Dba {
                server,
                patient: true,
            });
        }
        if has(AT_A_DEADLINE) {
            plan.add(|_, server| Fault::Pause(Target::Participant(server)));
        }
        plan.long |= has(WHEN_FORGETTING);
        plan.crashes = crashes.to_vec();
        plan
    }

    /// Adds faults that lead to what is rare without them.
    fn add(&mut self, fault: impl Fn(&mut Chance, usize) -> Fault) {
        for _ in 0..MORE {
            let server = self.chance.index(self.servers.len());
            let planned = Planned {
                at_us: self.chance.between(300_000..self.heal_us),
                for_us: self.chance.between(MORE_US),
                fault: fault(&mut self.chance, server),
            };
            self.faults.push(planned);
        }
        self.faults.sort_by_key(|planned| planned.at_us);
    }

    /// The same world without any fault.
    pub fn calm(seed: u64) -> Self {
        Self {
            faults: Vec::new(),
            ..Self::of(seed)
        }
    }
}

fn draw(chance: &mut Chance, servers: usize) -> Fault {
    let server = chance.index(servers);
    let target = if chance.permille(500) {
        Target::Coordinator
    } else {
        Target::Participant(server)
    };
    match chance.between(0..100) {
        0..14 => Fault::Crash {
            target,
            power: chance.permille(350),
        },
        14..20 => Fault::Pause(target),
        20..28 => {
            let (to, from) = *chance.pick(&[(true, true), (true, false), (false, true)]);
            Fault::Partition {
                participant: server,
                to,
                from,
            }
        }
        28..33 => Fault::Disconnect(server),
        33..36 => Fault::DisconnectClients,
        36..38 => Fault::PartitionClients,
        38..41 => Fault::Slow {
            participant: server,
            by_us: chance.between(5_000..400_000),
        },
        41..48 => Fault::Mischief(server),
        48..53 => Fault::Stale(server),
        53 => Fault::WritesFail,
        54 => Fault::SlowDisk,
        55..58 => Fault::SyncsFail,
        58..60 => Fault::DiskFull,
        60..65 => Fault::Torn {
            after: chance.between(0..12),
        },
        65..72 => Fault::ServerCrash(server),
        72..76 => Fault::SessionKill(server),
        76..82 => Fault::Cut {
            server,
            after: chance.permille(500),
        },
        82..85 => Fault::ReadOnly(server),
        85..87 => Fault::BackupLock(server),
        87..89 => Fault::Unsafe(server),
        89..91 => Fault::Foreign(server),
        91..94 => Fault::Dba {
            server,
            patient: false,
        },
        94..96 => Fault::Restore {
            server,
            same: chance.permille(500),
        },
        96..98 => Fault::ClockJump {
            by_ms: *chance.pick(&[-3_600_000, -5_000, 700, 86_400_000]),
        },
        98 => Fault::ClientGone,
        _ => Fault::Order {
            server,
            commit: chance.permille(300),
        },
    }
}
