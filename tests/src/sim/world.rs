//! The world: machines, network, disk, servers and wires, moved step by step.
//!
//! It owns time and who runs when. It refuses to draw faults ([`super::plan`]), to carry them out
//! ([`super::faults`]) and to judge ([`super::judge`], [`super::oracle`]).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use concord_coordinator::app::{App, Ground};
use concord_coordinator::config::{Config, ParticipantConfig, Retention};
use concord_coordinator::driver::Accepted;
use concord_coordinator::log::EmbeddedLog;
use concord_coordinator::participants::{MESSAGE_BYTES_MAX, Participants, tuned};
use concord_coordinator::surroundings::Surroundings;
use concord_core::id::ParticipantName;
use concord_daemon::Loaded;
use concord_participant::driver::Settings;
use concord_participant::resource::memory::server::{Backup, Server};
use concord_participant::resource::memory::{MARIADB, MYSQL, Memory, Options};
use concord_participant::rpc::Identity;
use concord_proto::v1::participant_server::ParticipantServer;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

use super::chance::Chance;
use super::client::{self, Client};
use super::crash::{Docket, Hooked};
use super::disk::Disk;
use super::host::{Ended, Host};
use super::judge::Judge;
use super::log::Watch;
use super::net::{Door, Net, Node};
use super::operator::{self, Order};
use super::plan::{Flavour, Plan};
use super::rm::{CutWatch, SimRm};
use super::trace::{Clock, Trace};
use super::wire::LinkProxy;

/// The cluster's name.
pub const CLUSTER: &str = "sim";
/// The coordinator's node and host.
pub const COORDINATOR: Node = 0;
/// The wall clock when a run begins, by a machine whose clock is right.
const EPOCH_MS: i64 = 1_795_000_000_000;
/// The world's step. It is always the same, and every host takes part in each: were it to depend on
/// what is on its way, one segment more would change when timers fire, and how many segments some
/// bytes travel in depends on the order in which a runtime polls the tasks of one moment.
const STEP_US: u64 = 2_000;
/// The same while nothing is expected to happen.
const IDLE_STEP_US: u64 = 20_000;
/// Time that a participant has to end by itself, which it never does here.
const DRAIN: Duration = Duration::from_secs(1);

/// The machine as the coordinator sees it.
#[derive(Debug)]
struct Machine {
    clock: Clock,
    skew_ms: Arc<AtomicI64>,
    chance: Mutex<Chance>,
    disk_us: Arc<AtomicU64>,
    /// Pauses of a disk that takes its time.
    slow_batches: Arc<AtomicU64>,
}

impl Surroundings for Machine {
    fn unix_ms(&self) -> u64 {
        let now = i64::try_from(self.clock.now_us() / 1_000).unwrap_or(i64::MAX);
        let told = EPOCH_MS + now + self.skew_ms.load(Ordering::Relaxed);
        u64::try_from(told).unwrap_or(0)
    }

    fn random(&self) -> u128 {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        (u128::from(chance.number()) << 64) | u128::from(chance.number())
    }

    fn disk_pause(&self) -> Option<Duration> {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        let disk_us = self.disk_us.load(Ordering::Relaxed);
        if disk_us == super::faults::SLOW_DISK_US {
            self.slow_batches.fetch_add(1, Ordering::Relaxed);
        }
        Some(chance.pause(0..disk_us))
    }
}

/// A channel through a door.
fn channel(endpoint: &Endpoint, door: Door, to: Node) -> Channel {
    let connect = move |_: Uri| {
        let connecting = door.connect(to);
        async move { Ok::<_, std::io::Error>(TokioIo::new(connecting.await?)) }
    };
    endpoint.connect_with_connector_lazy(tower::service_fn(connect))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://simulated:1")
}

/// The participants' processes, as their servers know them. Clones are the same.
#[derive(Clone, Debug)]
pub struct Processes(Rc<RefCell<Vec<Process>>>);

/// A server, and the participant's process that it knows.
type Process = (Arc<Server>, Option<u64>);

impl Processes {
    fn new(servers: &[Arc<Server>]) -> Self {
        let all = servers.iter().map(|server| (Arc::clone(server), None));
        Self(Rc::new(RefCell::new(all.collect())))
    }

    fn set(&self, index: usize, process: Option<u64>) {
        if let Some((_, known)) = self.0.borrow_mut().get_mut(index) {
            *known = process;
        }
    }

    fn of(&self, index: usize) -> Option<(Arc<Server>, u64)> {
        let all = self.0.borrow();
        let (server, process) = all.get(index)?;
        Some((Arc::clone(server), (*process)?))
    }
}

/// The world.
#[derive(Debug)]
pub struct World {
    pub(super) plan: Plan,
    pub(super) clock: Clock,
    pub(super) trace: Trace,
    pub(super) judge: Judge,
    pub(super) net: Net,
    pub(super) disk: Disk,
    pub(super) hosts: Vec<Host>,
    pub(super) servers: Vec<Arc<Server>>,
    /// The process of each participant, as its server knows it.
    pub(super) doomed: Processes,
    pub(super) proxies: Vec<LinkProxy>,
    pub(super) shared: client::Shared,
    pub(super) watch: Watch,
    pub(super) skew_ms: Arc<AtomicI64>,
    /// Longest time of the log's disk before and after a batch.
    pub(super) disk_us: Arc<AtomicU64>,
    /// See [`Machine`].
    pub(super) slow_batches: Arc<AtomicU64>,
    /// Cuts that a verb met.
    pub(super) cuts: Arc<AtomicU64>,
    /// The participants' sides of their servers, as long as their processes live.
    pub(super) memories: Vec<Weak<Memory>>,
    /// What the operator accepted of each server's data.
    pub(super) accepted: Vec<Accepted>,
    pub(super) backups: Vec<Backup>,
    pub(super) chance: Chance,
    /// What is to happen, by time.
    pub(super) actions: BTreeMap<(u64, u64), super::faults::Action>,
    pub(super) next_action: u64,
    /// How often each kind of fault happened.
    pub(super) injected: BTreeMap<&'static str, u64>,
    /// Everything healed.
    pub(super) healed: bool,
    pub(super) idle: bool,
    /// Starts of the coordinator.
    pub(super) starts: u64,
    /// Strangers' branches, with their servers: nobody may touch them.
    pub(super) foreign: Vec<(usize, String)>,
    /// Crash points.
    pub(super) docket: Rc<Docket>,
    /// What the operator is told to do, and where the operator reads it before it is started.
    pub(super) orders: mpsc::UnboundedSender<Order>,
    told: Option<mpsc::UnboundedReceiver<Order>>,
}

impl World {
    /// A world in which nothing runs yet.
    pub fn new(plan: Plan) -> Self {
        let mut chance = plan.chance.clone();
        let clock = Clock::default();
        let trace = Trace::new(clock.clone());
        let judge = Judge::new(trace.clone());
        let count = plan.servers.len();
        let net = Net::new(2 + 2 * count, plan.latency_us, chance.fork(), clock.clone());
        let servers: Vec<Arc<Server>> = plan
            .servers
            .iter()
            .enumerate()
            .map(|(index, flavour)| {
                let rules = match flavour {
                    Flavour::MySql => MYSQL,
                    Flavour::MariaDb => MARIADB,
                };
                Server::start_as(rules, &format!("uuid-{}/1", index + 1))
            })
            .collect();
        let proxies = (0..count)
            .map(|place| LinkProxy::new(place, chance.fork(), (trace.clone(), judge.clone())))
            .collect();
        let names =
            (0..count).map(|index| (ParticipantName::new(client::participant(index)), index));
        let watch = Watch::new(names.collect(), judge.clone(), trace.clone());
        let shared = client::Shared::new(judge.clone(), trace.clone(), servers.clone());
        let disk = Disk::new(chance.fork());
        let (orders, told) = mpsc::unbounded_channel();
        let backups = servers.iter().map(|server| server.back_up()).collect();
        Self {
            clock,
            trace,
            judge,
            net,
            disk,
            hosts: (0..3 + count).map(|_| Host::default()).collect(),
            doomed: Processes::new(&servers),
            accepted: vec![Accepted::default(); count],
            backups,
            servers,
            proxies,
            shared,
            watch,
            skew_ms: Arc::default(),
            disk_us: Arc::new(AtomicU64::new(plan.disk_us)),
            slow_batches: Arc::default(),
            cuts: Arc::default(),
            memories: (0..count).map(|_| Weak::new()).collect(),
            chance,
            actions: BTreeMap::new(),
            next_action: 0,
            injected: BTreeMap::new(),
            healed: false,
            idle: false,
            starts: 0,
            foreign: Vec::new(),
            docket: Docket::new(&plan.crashes),
            orders,
            told: Some(told),
            plan,
        }
    }

    /// The node of a participant, which is its host too.
    pub fn participant(index: usize) -> Node {
        1 + index
    }

    /// The node of the wire before a participant.
    pub fn wire(&self, index: usize) -> Node {
        1 + self.servers.len() + index
    }

    /// The node of the clients.
    pub fn clients(&self) -> Node {
        1 + 2 * self.servers.len()
    }

    /// Starts everything.
    pub fn start(&mut self) {
        self.start_wires();
        for index in 0..self.servers.len() {
            self.start_participant(index);
        }
        self.start_coordinator();
        self.start_clients();
    }

    /// Starts a coordinator on the disk as it is.
    pub fn start_coordinator(&mut self) {
        self.starts += 1;
        self.trace.note("c", None, format_args!("starts"));
        let door = self.net.door(COORDINATOR);
        let surroundings = Arc::new(Machine {
            clock: self.clock.clone(),
            skew_ms: Arc::clone(&self.skew_ms),
            chance: Mutex::new(self.chance.fork()),
            disk_us: Arc::clone(&self.disk_us),
            slow_batches: Arc::clone(&self.slow_batches),
        });
        let loaded = Loaded {
            config: self.coordinator_config(),
            settings: Vec::new(),
        };
        let ways: Vec<(String, Node)> = (0..self.servers.len())
            .map(|index| (client::participant(index), self.wire(index)))
            .collect();
        let (held, watch) = (self.disk.hold(), self.watch.clone());
        let pages = self.plan.journal_pages;
        let main = async move {
            let path = Path::new("the simulated disk");
            let log = EmbeddedLog::open_with_journal(Arc::new(held), path, CLUSTER, pages)?;
            let ways = ways.into_iter().map(|(name, node)| {
                let channel = channel(&tuned(endpoint()), door.clone(), node);
                (ParticipantName::new(name.as_str()), name, channel)
            });
            let ground = Ground {
                log: watch.over(log)?,
                participants: Participants::from_channels(ways),
                surroundings,
            };
            let app = App::on(ground, &loaded).await?;
            app.run(door.listen(), CancellationToken::new()).await
        };
        let now = self.clock.now_us();
        self.hosts[COORDINATOR].start(now, async move {
            main.await
                .map_err(|error: anyhow::Error| format!("{error:#}"))
        });
    }

    fn coordinator_config(&self) -> Config {
        let participants = self.accepted.iter().enumerate().map(|(index, accepted)| {
            let name = client::participant(index);
            ParticipantConfig {
                address: format!("http://{name}"),
                name,
                incarnation: accepted.incarnation.clone(),
                accept_without: accepted.without.map(|gtrid| gtrid.to_string()),
            }
        });
        Config {
            cluster: CLUSTER.to_owned(),
            participants: participants.collect(),
            retention: Retention {
                seconds: if self.plan.long { 1 } else { 3_600 },
                ..Retention::default()
            },
            ..Config::default()
        }
    }

    /// Starts a participant before its server.
    pub fn start_participant(&mut self, index: usize) {
        let name = client::participant(index);
        self.trace.note(&name, None, format_args!("starts"));
        let node = Self::participant(index);
        let door = self.net.door(node);
        let options = Options {
            max_connections: 24,
            ..Options::default()
        };
        let memory = Memory::connect(&self.servers[index], options);
        self.doomed.set(index, Some(memory.process()));
        let seen = (self.trace.clone(), self.judge.clone());
        self.memories[index] = Arc::downgrade(&memory);
        let cuts = CutWatch::new(&self.servers[index], &self.cuts);
        let time = (self.chance.number(), self.plan.verb_us);
        let rm = Arc::new(SimRm::new(memory, &name, door.clone(), time, (seen, cuts)));
        let identity = Identity {
            name: ParticipantName::new(name.as_str()),
            cluster: CLUSTER.to_owned(),
        };
        let settings = Settings {
            branches_max: 4_096,
            sweep_interval: Duration::from_millis(self.plan.sweep_ms),
        };
        let now = self.clock.now_us();
        self.hosts[node].start(now, async move {
            let coordinator = channel(&endpoint(), door.clone(), COORDINATOR);
            let app = concord_participant::app::App::new(identity, settings, rm, coordinator);
            let served = app.serve(door.listen(), CancellationToken::new(), DRAIN);
            served.await.map_err(|error| format!("{error}"))
        });
    }

    fn start_wires(&mut self) {
        let host = 1 + self.servers.len();
        let wires: Vec<(LinkProxy, Door, Node)> = (0..self.servers.len())
            .map(|index| {
                let door = self.net.door(self.wire(index));
                (self.proxies[index].clone(), door, Self::participant(index))
            })
            .collect();
        let now = self.clock.now_us();
        self.hosts[host].start(now, async move {
            let mut all = JoinSet::new();
            for (proxy, door, behind) in wires {
                proxy.lead_to(channel(&tuned(endpoint()), door.clone(), behind));
                let service = ParticipantServer::new(proxy)
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX);
                let server = concord_daemon::serve::server(|_| None).add_service(service);
                all.spawn(server.serve_with_incoming(door.listen()));
            }
            while all.join_next().await.is_some() {}
            Err("the wires are down".to_owned())
        });
    }

    fn start_clients(&mut self) {
        let host = 2 + self.servers.len();
        let door = self.net.door(self.clients());
        let shared = self.shared.clone();
        let operations = self.plan.operations;
        let chances: Vec<Chance> = (0..self.plan.clients).map(|_| self.chance.fork()).collect();
        let now = self.clock.now_us();
        let told = self.told.take();
        self.hosts[host].start(now, async move {
            if let Some(told) = told {
                let channel = channel(&tuned(endpoint()), door.clone(), COORDINATOR);
                // Ends with the clients.
                tokio::spawn(operator::run(told, channel, shared.trace.clone()));
            }
            let mut all = JoinSet::new();
            for (index, chance) in chances.into_iter().enumerate() {
                let channel = channel(&tuned(endpoint()), door.clone(), COORDINATOR);
                let client =
                    Client::new(format!("k{}", index + 1), shared.clone(), chance, channel);
                all.spawn(client.run(operations));
            }
            while all.join_next().await.is_some() {}
            Ok(())
        });
    }

    /// Whether the clients are done.
    pub fn clients_are_done(&self) -> bool {
        !self.hosts[2 + self.servers.len()].is_running()
    }

    /// Kills the process at a node at once, as kill -9 or a power loss does.
    pub fn kill(&mut self, node: Node, power: bool) {
        self.trace.note(
            &self.name_of(node),
            None,
            format_args!("dies, power {power}"),
        );
        self.net.kill(node, power);
        if node == COORDINATOR {
            self.disk.freeze(power);
        } else if let Some((server, process)) = self.doomed.of(node - 1) {
            server.kill_process(process);
            self.doomed.set(node - 1, None);
        }
        self.hosts[node].kill();
    }

    fn name_of(&self, node: Node) -> String {
        match node {
            COORDINATOR => "c".to_owned(),
            node if node <= self.servers.len() => format!("p{node}"),
            node => format!("n{node}"),
        }
    }

    /// Moves the world on by one step.
    pub fn step(&mut self) {
        let step = if self.idle { IDLE_STEP_US } else { STEP_US };
        let next = self.clock.now_us() + step;
        self.clock.set_us(next);
        while let Some(entry) = self.actions.first_entry() {
            if entry.key().0 > next {
                break;
            }
            let action = entry.remove();
            self.act(action);
        }
        self.net.deliver();
        for host in 0..self.hosts.len() {
            let may_die = host <= self.servers.len();
            self.docket.runs(may_die.then_some(host));
            let ended = self.hosts[host].run(next);
            self.docket.runs(None);
            if self.docket.take_dead().is_some() {
                self.died_at_a_point(host);
            } else if let Some(ended) = ended {
                self.ended(host, ended);
            }
        }
        if self.disk.take_died() {
            self.count("power lost in a write");
            self.kill(COORDINATOR, true);
            self.restart_coordinator();
        }
    }

    fn ended(&mut self, host: usize, ended: Ended) {
        let count = self.servers.len();
        match (host, ended) {
            (COORDINATOR, ended) => self.coordinator_ended(ended),
            (host, ended) if host <= count => {
                let text = format!("participant {host} ended by itself: {ended:?}");
                self.judge.broken(None, text);
                self.kill(host, false);
                self.start_participant(host - 1);
            }
            (host, Ok(())) if host == 2 + count => self.hosts[host].kill(),
            (host, ended) => {
                let text = format!("host {host} of the simulation itself ended: {ended:?}");
                self.judge.broken(None, text);
                self.hosts[host].kill();
            }
        }
    }

    /// Shuts a host off from the world when it reaches its crash point.
    pub fn hook(&self) -> Hooked {
        let (net, disk, trace) = (self.net.clone(), self.disk.clone(), self.trace.clone());
        let doomed = self.doomed.clone();
        Hooked::new(&self.docket, move |host, point| {
            let text = format_args!("host {host} reaches crash point {}", point.name());
            trace.note("**", None, text);
            net.kill(host, false);
            if host == COORDINATOR {
                disk.freeze(false);
            } else if let Some((server, process)) = doomed.of(host - 1) {
                server.kill_process(process);
            }
        })
    }

    fn died_at_a_point(&mut self, host: usize) {
        self.count("killed at a point");
        self.kill(host, false);
        let after = self.chance.between(20_000..900_000);
        let start = match host {
            COORDINATOR => super::faults::Action::StartCoordinator,
            host => super::faults::Action::StartParticipant(host - 1),
        };
        self.later(after, start);
    }

    /// Counts a fault.
    pub fn count(&mut self, kind: &'static str) {
        *self.injected.entry(kind).or_default() += 1;
    }
}
