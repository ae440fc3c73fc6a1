//! One seed, from its beginning to its verdict.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use concord_core::id::BranchId;
use concord_core::invariant::Told;
use concord_daemon::crash::CrashPoint;

use super::judge::Broken;
use super::plan::{HEAL_DEADLINE_US, IN_DOUBT_MAX_US, Plan};
use super::trace::{Event, Trace};
use super::world::World;

/// Time between two looks at all servers.
const LOOK_US: u64 = 500_000;
/// A long run is quiet for so long, until decisions are forgotten.
const QUIET_US: u64 = 48_000_000;
/// Everything must stay quiet for so long before the end is judged.
const SETTLE_US: u64 = 3_000_000;

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash of all events.
    pub hash: u64,
    /// How many there were.
    pub events: u64,
    /// Simulated time in microseconds.
    pub simulated_us: u64,
    /// Operations by what their clients were told.
    pub committed: u64,
    /// See [`Self::committed`].
    pub refused: u64,
    /// See [`Self::committed`].
    pub unknown: u64,
    /// Decisions to commit in two phases, handings over of one phase, and forgotten ones.
    pub decided: u64,
    /// See [`Self::decided`].
    pub one_phase: u64,
    /// See [`Self::decided`].
    pub forgotten: u64,
    /// Audits that saw everything, and added up.
    pub audits: u64,
    /// Starts of the coordinator.
    pub starts: u64,
    /// Messages doubled, delayed and brought back.
    pub messages: (u64, u64, u64),
    /// Faults that struck, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Crash points at which a process died.
    pub points: Vec<CrashPoint>,
    /// How long each branch was in doubt after everything healed, in microseconds.
    pub in_doubt_us: Vec<u64>,
    /// Whether all is as it must be: empty then.
    pub broken: Vec<Broken>,
    /// The stories of what is broken.
    pub stories: Vec<Vec<Event>>,
}

/// Runs a seed.
pub fn run(plan: Plan) -> Report {
    events(plan).0
}

/// Runs a seed, and gives all of its events too.
pub fn events(plan: Plan) -> (Report, Trace) {
    let mut run = Run {
        world: World::new(plan),
        in_doubt: BTreeMap::new(),
        in_doubt_us: Vec::new(),
        next_look_us: 0,
    };
    let hooked = run.world.hook();
    run.safety();
    run.liveness();
    drop(hooked);
    let trace = run.world.trace.clone();
    (run.end(), trace)
}

struct Run {
    world: World,
    /// Branches in doubt after everything healed, since when.
    in_doubt: BTreeMap<(usize, BranchId), u64>,
    in_doubt_us: Vec<u64>,
    next_look_us: u64,
}

impl Run {
    fn now(&self) -> u64 {
        self.world.clock.now_us()
    }

    fn step(&mut self) {
        self.world.step();
        if self.now() >= self.next_look_us {
            self.next_look_us = self.now() + LOOK_US;
            self.world.judge.look(&self.world.servers, false);
        }
    }

    fn safety(&mut self) {
        self.world.start();
        self.world.plan_faults();
        while self.now() < self.world.plan.heal_us {
            self.step();
        }
    }

    fn liveness(&mut self) {
        self.world.docket.heal();
        self.world.heal();
        self.world.shared.stop.store(true, Ordering::Relaxed);
        let healed = self.now();
        let mut quiet_since = None;
        while self.now() < healed + HEAL_DEADLINE_US {
            self.step();
            self.watch_doubt();
            let quiet = self.world.clients_are_done()
                && self.in_doubt.is_empty()
                && self.world.actions.is_empty();
            if !quiet {
                quiet_since = None;
                continue;
            }
            self.world.idle = true;
            let wanted = if self.world.plan.long {
                QUIET_US
            } else {
                SETTLE_US
            };
            if self.now() - *quiet_since.get_or_insert(self.now()) > wanted {
                return;
            }
        }
        self.overdue(healed);
    }

    fn overdue(&mut self, healed: u64) {
        let waited = (self.now() - healed) / 1_000_000;
        let open: Vec<String> = self
            .world
            .shared
            .book
            .all()
            .into_iter()
            .filter(|(_, record)| record.open)
            .map(|(label, record)| format!("{label} ({})", record.kind))
            .collect();
        if !open.is_empty() {
            let text = format!("8 Drains: {waited} s after all healed, nobody knows {open:?}");
            self.world.judge.broken(None, text);
        }
    }

    /// Times how long branches stay in doubt.
    fn watch_doubt(&mut self) {
        let now = self.now();
        let mut prepared = Vec::new();
        for (place, server) in self.world.servers.iter().enumerate() {
            prepared.extend(server.prepared().into_iter().map(|branch| (place, branch)));
        }
        let ended: Vec<_> = self
            .in_doubt
            .keys()
            .filter(|key| prepared.binary_search(key).is_err())
            .copied()
            .collect();
        for key in ended {
            if let Some(since) = self.in_doubt.remove(&key) {
                self.doubted(key.1, now - since);
            }
        }
        for key in prepared {
            self.in_doubt.entry(key).or_insert(now);
        }
    }

    fn doubted(&mut self, branch: BranchId, for_us: u64) {
        self.in_doubt_us.push(for_us);
        if for_us > IN_DOUBT_MAX_US {
            let ms = for_us / 1_000;
            let text = format!("8 Drains: branch {branch} was in doubt for {ms} ms after the heal");
            self.world.judge.broken(Some(branch.gtrid), text);
        }
    }

    fn end(mut self) -> Report {
        let now = self.now();
        for ((_, branch), since) in std::mem::take(&mut self.in_doubt) {
            self.doubted(branch, now - since);
        }
        self.world.judge_end();
        let world = &self.world;
        let book = world.shared.book.all();
        let told =
            |wanted: Told| book.values().filter(|record| record.told == wanted).count() as u64;
        let facts = world.judge.all();
        let count = |is: fn(&concord_core::invariant::Facts) -> bool| {
            facts.values().filter(|facts| is(facts)).count() as u64
        };
        let messages = world.proxies.iter().map(super::wire::LinkProxy::counts);
        let broken = world.judge.verdicts();
        let stories = broken
            .iter()
            .filter_map(|broken| broken.gtrid)
            .take(3)
            .map(|gtrid| world.trace.story(gtrid))
            .collect();
        let (hash, events) = world.trace.hash();
        Report {
            seed: world.plan.seed,
            hash,
            events,
            simulated_us: now,
            committed: told(Told::Committed),
            refused: told(Told::Refused),
            unknown: told(Told::Unknown),
            decided: count(|facts| facts.durable && !facts.one_phase),
            one_phase: count(|facts| facts.one_phase),
            forgotten: count(|facts| facts.forgotten),
            audits: world.shared.audits.load(Ordering::Relaxed),
            starts: world.starts,
            messages: messages.fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2)),
            faults: world.struck(),
            points: world.docket.hit(),
            in_doubt_us: self.in_doubt_us,
            broken,
            stories,
        }
    }
}
