//! One exploration: how many states there are, what was reached, and what is wrong.

use std::fmt;
use std::time::{Duration, Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use super::configs::Named;
use super::{Cluster, Config};

/// What came of an exploration.
#[derive(Clone, Debug)]
pub struct Explored {
    /// Distinct states.
    pub states: usize,
    /// The longest path.
    pub depth: usize,
    /// How long it took.
    pub time: Duration,
    /// What was reached of what should be, somewhere.
    pub reached: Vec<&'static str>,
    /// What is wrong, with the way there.
    pub wrong: Option<String>,
}

impl Explored {
    /// What speaks against taking this for a proof: something is wrong, was not reached, or is not
    /// as it was when it was looked at last.
    pub fn objection(&self, to: &Named) -> Option<String> {
        if let Some(wrong) = &self.wrong {
            return Some(wrong.clone());
        }
        let missed: Vec<_> = to
            .reached
            .iter()
            .filter(|what| !self.reached.contains(what))
            .collect();
        if !missed.is_empty() {
            return Some(format!("never reached: {missed:?}"));
        }
        let strange: Vec<_> = self
            .reached
            .iter()
            .filter(|what| !to.reached.contains(what))
            .collect();
        if !strange.is_empty() {
            return Some(format!("reached, and nobody expects it: {strange:?}"));
        }
        (self.states != to.states).then(|| {
            let (is, was) = (self.states, to.states);
            format!("{is} states, and there were {was}; is the change meant?")
        })
    }
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (states, depth) = (self.states, self.depth);
        write!(f, "{states} states, depth {depth}, {:.1?}", self.time)
    }
}

/// How to explore.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Threads.
    pub threads: usize,
    /// Stop when something is found to be wrong.
    pub until_wrong: bool,
    /// Stop after about so many states.
    pub cap: Option<usize>,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            threads: 2,
            until_wrong: false,
            cap: None,
        }
    }
}

/// Explores a configuration to its end.
pub fn explore(config: Config, manner: Manner) -> Explored {
    let began = Instant::now();
    let mut checker = Cluster { config }.checker().threads(manner.threads);
    if manner.until_wrong {
        checker = checker.finish_when(HasDiscoveries::AnyFailures);
    }
    if let Some(cap) = manner.cap {
        checker = checker.target_state_count(cap);
    }
    let checker = checker.spawn_dfs().join();
    let (model, found) = (checker.model(), checker.discoveries());
    let mut explored = Explored {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        time: began.elapsed(),
        reached: Vec::new(),
        wrong: None,
    };
    for property in model.properties() {
        match (&property.expectation, found.get(property.name)) {
            (Expectation::Always, Some(path)) => {
                let wrong = model.wrong(path.last_state());
                let actions = path.clone().into_actions();
                let way: Vec<_> = actions.iter().map(|action| format!("{action:?}")).collect();
                let (name, way) = (property.name, way.join("\n  "));
                explored.wrong = Some(format!("not \"{name}\": {wrong:?}, after\n  {way}"));
            }
            (Expectation::Sometimes, Some(_)) => explored.reached.push(property.name),
            _ => {}
        }
    }
    explored
}
