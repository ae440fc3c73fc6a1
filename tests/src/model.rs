//! The shipped machines under a model checker: every order of events within the bounds of a
//! [`Config`], with crashes, late and doubled messages, and connections lost at the worst moment.
//!
//! The machines are those of `concord-core`, unchanged; modelled are their drivers ([`world`]), the
//! servers behind the participants ([`server`]), clients and the network. A message may stay on its
//! way for ever, so loss and delay are the same here and need no event of their own. Time does not
//! exist: whatever a timer starts may happen at any moment.

mod action;
pub mod configs;
pub mod explore;
mod facts;
mod operator;
pub mod reached;
pub mod server;
pub mod world;

use std::fmt;

use concord_core::id::{Bqual, ParticipantName};
use concord_core::invariant::Violation;
use concord_core::transaction::Ack;
use stateright::{Model, Property};

pub use action::Action;
pub use server::{Flavour, How};
pub use world::World;

/// A transaction that a client sends.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The participants of its branches.
    pub branches: Vec<usize>,
    /// The client's request id.
    pub request: Option<&'static str>,
    /// Whether branches that wrote nothing may leave at their vote.
    pub may_leave: bool,
    /// When the client is answered.
    pub ack: Ack,
}

impl Plan {
    /// A transaction on these participants.
    pub fn on(branches: &[usize]) -> Self {
        Self {
            branches: branches.to_vec(),
            request: None,
            may_leave: true,
            ack: Ack::Applied,
        }
    }
}

/// A fault of a driver, planted to see that the model finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Fault {
    /// The coordinator's messages leave before the records that they wait for are durable.
    SentBeforeDurable,
    /// `XAER_NOTA` is taken for success.
    NotaIsSuccess,
    /// Ledger rows are deleted although the horizon is not durable.
    PrunedTooEarly,
    /// A participant's report of damage is not kept.
    DamageNotKept,
    /// A prepared branch is rolled back when its participant starts.
    RollbackAtStart,
}

/// How often each kind of fault or choice may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// The coordinator is killed and started again.
    pub coordinator_kills: u8,
    /// The coordinator is paused, and another one takes over.
    pub takeovers: u8,
    /// A coordinator that was taken over wakes up and does something.
    pub wakes: u8,
    /// A participant is killed and started again.
    pub participant_kills: u8,
    /// A message is delivered and stays on its way.
    pub doubles: u8,
    /// A connection to a server is lost while a command runs.
    pub cuts: u8,
    /// A branch's statements fail for a reason that is final.
    pub refusals: u8,
    /// A branch writes nothing.
    pub readers: u8,
    /// A server does not do what it is told, for now.
    pub hitches: u8,
    /// A transaction's deadline passes.
    pub deadlines: u8,
    /// A link goes down.
    pub link_losses: u8,
    /// Outcomes are sent again.
    pub resends: u8,
    /// A participant looks at its server's list.
    pub sweeps: u8,
    /// Ended transactions are forgotten.
    pub forgets: u8,
    /// Somebody finishes a prepared branch by hand.
    pub interferences: u8,
    /// An operator orders that a prepared branch be ended.
    pub orders: u8,
}

impl Budget {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        coordinator_kills: 0,
        takeovers: 0,
        wakes: 0,
        participant_kills: 0,
        doubles: 0,
        cuts: 0,
        refusals: 0,
        readers: 0,
        hitches: 0,
        deadlines: 0,
        link_losses: 0,
        resends: 0,
        sweeps: 0,
        forgets: 0,
        interferences: 0,
        orders: 0,
    };
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Config {
    /// A server for each participant.
    pub servers: Vec<Flavour>,
    /// Their participants' names.
    pub names: Vec<ParticipantName>,
    /// What clients send.
    pub plans: Vec<Plan>,
    /// Bounds.
    pub budget: Budget,
    /// From every n-th state all is healed, to see that nothing stays in doubt. Healing a state
    /// takes as long as exploring a few hundred.
    pub heal_every: u64,
    /// Whether a participant's records take their time to reach its ledger schema: until then what
    /// waits for them does not leave, and a crash loses them.
    pub slow_records: bool,
    /// A fault of the drivers, planted to be found.
    pub fault: Option<Fault>,
}

impl Config {
    /// A configuration with as many participants as servers.
    pub fn new(servers: Vec<Flavour>, plans: Vec<Plan>, budget: Budget) -> Self {
        let names = (0..servers.len())
            .map(|n| ParticipantName::new(format!("p{n}")))
            .collect();
        Self {
            servers,
            names,
            plans,
            budget,
            heal_every: 64,
            slow_records: false,
            fault: None,
        }
    }

    fn node(&self, name: &ParticipantName) -> usize {
        let found = self.names.iter().position(|known| known == name);
        found.unwrap_or_default()
    }

    fn bquals(&self, plan: usize) -> impl Iterator<Item = (Bqual, usize)> + '_ {
        (1..)
            .map(Bqual)
            .zip(self.plans[plan].branches.iter().copied())
    }
}

/// The cluster as a model.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// What is explored.
    pub config: Config,
}

impl Cluster {
    /// What is wrong with a state, if anything is.
    pub fn wrong(&self, world: &World) -> Option<String> {
        if let Some(broken) = &world.broken {
            return Some(broken.clone());
        }
        let told = |violation: Violation| violation.to_string();
        self.check(world).err().map(told)
    }
}

impl Model for Cluster {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.config)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        // What is wrong already is looked at, not gone on with.
        if world.broken.is_none() {
            action::possible(&self.config, world, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        action.happen(&self.config, &mut world);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        reached::properties()
    }

    fn format_action(&self, action: &Action) -> String {
        format!("{action}")
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
