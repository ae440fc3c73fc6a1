//! What goes wrong, in which order, and how often it did.
//!
//! A deck of cards is shuffled by the seed and dealt with short pauses; most faults last longer
//! than a pause, so that several are there at once. A deck holds every kind of fault, so that none
//! can be missing from a run that dealt a whole one. What was begun is undone when its time has
//! come, or when everything is healed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::ensure;
use concord_client::local::process::ProcessId;
use nix::sys::signal::Signal;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use tokio::task::JoinSet;

use super::stage::{CLIENTS, SERVERS, Stage, Wire};
use crate::proxy::packet::Verb;
use crate::proxy::{Cut, Fault, Link, Point, lock};

/// Between two faults.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(60)..Duration::from_millis(440);
/// How long a fault lasts that is not over at once.
const LASTING: std::ops::Range<Duration> = Duration::from_millis(300)..Duration::from_millis(2_500);
/// One in so many lasts longer than the daemons' patience with a silent link.
const LONG_ONE_IN: u32 = 8;
const LONG: Duration = Duration::from_millis(6_500);
/// How long nothing passes before the last blow of a round.
const MUTED: Duration = Duration::from_millis(400);
/// Far more than a process needs to go once it was killed.
const KILLED_IN: Duration = Duration::from_secs(20);
/// How many others come before a fault that met nobody is tried again.
const LATER: usize = 4;
/// What such a blow is counted as.
const BLOW: &str = "blow";
/// A cut that met nobody in this time is taken back, and counts for nothing.
const ARMED: Duration = Duration::from_secs(4);

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Coordinator,
    Participant,
    Server,
    Client,
}

impl Target {
    fn word(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Participant => "participant",
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// One fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Card {
    Kill(Target),
    Pause(Target),
    Link(Wire, Fault),
    CutAll(Wire),
    Cut(Cut),
}

impl Card {
    fn name(self) -> String {
        let wire = |wire| match wire {
            Wire::Commands => "commands",
            Wire::Inquiries => "inquiries",
            Wire::Sql => "sql",
        };
        match self {
            Self::Kill(target) => format!("kill {}", target.word()),
            Self::Pause(target) => format!("pause {}", target.word()),
            Self::CutAll(on) => format!("cut {}", wire(on)),
            Self::Link(on, fault) => {
                let fault = match fault {
                    Fault::Stall => "stall",
                    Fault::StallRequests => "stall requests of",
                    Fault::StallAnswers => "stall answers of",
                    Fault::Refuse => "refuse",
                    Fault::Slow => "slow",
                };
                format!("{fault} {}", wire(on))
            }
            Self::Cut(cut) => format!("cut {cut}"),
        }
    }
}

/// Every kind, each as often as it is to come in one deck.
fn deck() -> Vec<Card> {
    let mut cards = Vec::new();
    let mut put = |count: usize, card| cards.extend(std::iter::repeat_n(card, count));
    put(9, Card::Kill(Target::Coordinator));
    put(24, Card::Kill(Target::Participant));
    put(6, Card::Kill(Target::Server));
    put(5, Card::Kill(Target::Client));
    for (count, target) in [
        (2, Target::Coordinator),
        (3, Target::Participant),
        (3, Target::Server),
        (2, Target::Client),
    ] {
        put(count, Card::Pause(target));
    }
    // A connection for inquiries is seldom open; refusing cuts it too.
    put(2, Card::CutAll(Wire::Commands));
    for wire in [Wire::Commands, Wire::Inquiries] {
        for fault in [
            Fault::Stall,
            Fault::StallRequests,
            Fault::StallAnswers,
            Fault::Refuse,
            Fault::Slow,
        ] {
            put(2, Card::Link(wire, fault));
        }
    }
    put(3, Card::CutAll(Wire::Sql));
    for fault in [
        Fault::Stall,
        Fault::StallAnswers,
        Fault::Refuse,
        Fault::Slow,
    ] {
        put(2, Card::Link(Wire::Sql, fault));
    }
    for verb in Verb::ALL {
        for point in Point::ALL {
            put(2, Card::Cut(Cut { verb, point }));
        }
    }
    cards
}

/// The end of a round: nothing passes on some link of every participant, then some die at once.
#[derive(Clone, Copy, Debug)]
struct Blow {
    muted: Option<(Wire, Fault)>,
    killed: &'static [Target],
}

/// Branches are prepared and their votes do not arrive; decisions are made and not heard; answers
/// of the servers are lost; and everybody who could know dies, alone or with others.
const BLOWS: [Blow; 7] = [
    Blow {
        muted: Some((Wire::Commands, Fault::StallAnswers)),
        killed: &[Target::Coordinator],
    },
    Blow {
        muted: Some((Wire::Commands, Fault::StallAnswers)),
        killed: &[Target::Participant],
    },
    Blow {
        muted: Some((Wire::Commands, Fault::StallRequests)),
        killed: &[Target::Coordinator, Target::Participant],
    },
    Blow {
        muted: Some((Wire::Commands, Fault::Stall)),
        killed: &[Target::Server],
    },
    Blow {
        muted: Some((Wire::Sql, Fault::Refuse)),
        killed: &[],
    },
    Blow {
        muted: None,
        killed: &[Target::Participant, Target::Server],
    },
    Blow {
        muted: Some((Wire::Commands, Fault::StallAnswers)),
        killed: &[Target::Coordinator, Target::Participant, Target::Server],
    },
];

/// A process that is stopped until this is dropped.
struct Stopped(ProcessId);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGCONT);
    }
}

/// A cut that is taken back when this is dropped.
struct Armed(Arc<Link>, Cut);

impl Drop for Armed {
    fn drop(&mut self) {
        self.0.disarm(self.1);
    }
}

/// Deals faults, and counts them.
#[derive(Debug)]
pub struct Chaos {
    rng: StdRng,
    deck: Vec<Card>,
    decks: u64,
    lasting: JoinSet<()>,
    counts: BTreeMap<String, u64>,
    fired: BTreeMap<Cut, u64>,
    server_kills: Arc<Mutex<Vec<Instant>>>,
    /// Faults that began while another one lasted.
    pub overlaps: u64,
    trace: bool,
}

impl Chaos {
    /// With choices of this seed.
    pub fn new(rng: StdRng, trace: bool) -> Self {
        Self {
            rng,
            deck: Vec::new(),
            decks: 0,
            lasting: JoinSet::new(),
            counts: BTreeMap::new(),
            fired: BTreeMap::new(),
            server_kills: Arc::default(),
            overlaps: 0,
            trace,
        }
    }

    /// Deals faults until then. Those that last are left lasting.
    pub async fn deal(&mut self, stage: &mut Stage, until: Instant) -> anyhow::Result<()> {
        loop {
            let pause = self.rng.random_range(PAUSE);
            if Instant::now() + pause >= until {
                tokio::time::sleep_until(until.into()).await;
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            while self.lasting.try_join_next().is_some() {}
            if self.deck.is_empty() {
                self.deck = deck();
                self.deck.shuffle(&mut self.rng);
                self.decks += 1;
            }
            if let Some(card) = self.deck.pop()
                && !self.play(card, stage).await?
            {
                self.deck
                    .insert(self.deck.len().saturating_sub(LATER), card);
            }
        }
    }

    /// Whether a whole deck was dealt, and every kind of fault came.
    pub fn dealt_a_deck(&self) -> bool {
        self.decks > 1 || (self.decks == 1 && self.deck.is_empty())
    }

    /// Undoes every fault that lasts.
    pub async fn heal(&mut self, stage: &Stage) {
        self.lasting.shutdown().await;
        let mut fired: BTreeMap<Cut, u64> = BTreeMap::new();
        for n in 1..=SERVERS {
            stage.link(n, Wire::Sql).calm();
            for (cut, count) in stage.link(n, Wire::Sql).fired() {
                *fired.entry(cut).or_default() += count;
            }
        }
        self.fired = fired;
    }

    /// Whether it met somebody, or still may.
    async fn play(&mut self, card: Card, stage: &mut Stage) -> anyhow::Result<bool> {
        // All choices are made before anything is looked at, so that a schedule is its seed's.
        let n = self.rng.random_range(1..=SERVERS);
        let client = self.rng.random_range(0..CLIENTS);
        let client = usize::try_from(client)?;
        let lasting = if self.rng.random_ratio(1, LONG_ONE_IN) {
            LONG
        } else {
            self.rng.random_range(LASTING)
        };
        let overlaps = !self.lasting.is_empty();
        let played = match card {
            Card::Kill(Target::Client) => {
                stage.kill_client(client).await?;
                true
            }
            Card::Kill(target) => self.kill(target, n, stage)?,
            Card::Pause(target) => self.pause(target, n, client, lasting, stage)?,
            // As with kills, a link without a connection is spared, and the next one is taken.
            Card::CutAll(wire) => from(n).any(|n| stage.link(n, wire).cut() > 0),
            Card::Link(wire, fault) => {
                let held = stage.link(n, wire).hold(fault);
                self.keep(lasting, held);
                true
            }
            Card::Cut(cut) => {
                let link = Arc::clone(stage.link(n, Wire::Sql));
                link.arm(cut);
                self.keep(ARMED, Armed(link, cut));
                // Counted when it is made.
                return Ok(true);
            }
        };
        if self.trace {
            eprintln!("{} at {n}: {played}", card.name());
        }
        if played {
            *self.counts.entry(card.name()).or_default() += 1;
            self.overlaps += u64::from(overlaps);
        }
        Ok(played)
    }

    fn kill(&mut self, target: Target, n: u16, stage: &Stage) -> anyhow::Result<bool> {
        // One that is just being started again is spared, and the next one is taken.
        for n in from(n) {
            if self.kill_this(target, n, stage)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What was killed, if it ran. It may be a moment until it has gone.
    fn kill_this(
        &mut self,
        target: Target,
        n: u16,
        stage: &Stage,
    ) -> anyhow::Result<Option<ProcessId>> {
        let process = stage.process(&name(target, n))?;
        if let Some(process) = process {
            process.signal(Signal::SIGKILL);
            if target == Target::Server {
                lock(&self.server_kills).push(Instant::now());
            }
        }
        Ok(process)
    }

    /// The last fault of a round, while all work is going well: it leaves as many branches in doubt
    /// as it can. When this returns what lasts is over, and what was killed has gone.
    pub async fn blow(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let blow = BLOWS[self.rng.random_range(0..BLOWS.len())];
        if self.trace {
            eprintln!("{blow:?}");
        }
        let mut held = Vec::new();
        for n in 1..=SERVERS {
            let fault = match blow.muted {
                Some((wire, fault)) => stage.link(n, wire).hold(fault),
                None => continue,
            };
            held.push(fault);
        }
        if !held.is_empty() {
            tokio::time::sleep(MUTED).await;
        }
        let mut killed = Vec::new();
        for target in blow.killed {
            let count = if *target == Target::Coordinator {
                1
            } else {
                SERVERS
            };
            for n in 1..=count {
                if let Some(process) = self.kill_this(*target, n, stage)? {
                    killed.push(process);
                    *self.counts.entry(Card::Kill(*target).name()).or_default() += 1;
                }
            }
        }
        drop(held);
        for process in killed {
            ensure!(process.ended(KILLED_IN).await, "it outlives SIGKILL");
        }
        *self.counts.entry(BLOW.to_owned()).or_default() += 1;
        Ok(())
    }

    fn pause(
        &mut self,
        target: Target,
        n: u16,
        client: usize,
        lasting: Duration,
        stage: &Stage,
    ) -> anyhow::Result<bool> {
        let process = match target {
            Target::Client => stage.client_process(client),
            _ => stage.process(&name(target, n))?,
        };
        let Some(process) = process else {
            return Ok(false);
        };
        process.signal(Signal::SIGSTOP);
        self.keep(lasting, Stopped(process));
        Ok(true)
    }

    fn keep(&mut self, lasting: Duration, fault: impl Send + 'static) {
        self.lasting.spawn(async move {
            tokio::time::sleep(lasting).await;
            drop(fault);
        });
    }

    /// When servers were killed.
    pub fn server_kills(&self) -> Arc<Mutex<Vec<Instant>>> {
        Arc::clone(&self.server_kills)
    }

    /// How often each kind came, with zero for those that never did.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let all = deck().into_iter().map(|card| {
            let count = match card {
                Card::Cut(cut) => self.fired.get(&cut).copied(),
                _ => self.counts.get(&card.name()).copied(),
            };
            (card.name(), count.unwrap_or_default())
        });
        let blows = self.counts.get(BLOW).copied().unwrap_or_default();
        all.chain([(BLOW.to_owned(), blows)]).collect()
    }

    /// Kills of these.
    fn kills(&self, targets: &[Target]) -> u64 {
        let counted = targets
            .iter()
            .filter_map(|target| self.counts.get(&Card::Kill(*target).name()));
        counted.sum()
    }

    /// Kills of coordinator and participants.
    pub fn daemon_kills(&self) -> u64 {
        self.kills(&[Target::Coordinator, Target::Participant])
    }

    /// Kills of servers.
    pub fn servers_killed(&self) -> u64 {
        self.kills(&[Target::Server])
    }

    /// Kills of clients.
    pub fn client_kills(&self) -> u64 {
        self.kills(&[Target::Client])
    }
}

/// Every server, this one first.
fn from(n: u16) -> impl Iterator<Item = u16> {
    (0..SERVERS).map(move |k| (n - 1 + k) % SERVERS + 1)
}

fn name(target: Target, n: u16) -> String {
    match target {
        Target::Coordinator => "coordinator".to_owned(),
        Target::Participant => format!("p{n}"),
        Target::Server | Target::Client => format!("s{n}"),
    }
}
