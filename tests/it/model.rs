//! The shipped machines under the model checker: a few configurations, each explored to its end.
//!
//! The number of states of each is pinned: a model that silently shrinks proves nothing. After a
//! change of the machines that is meant, the new number comes out of the failed test.

use std::time::Instant;

use concord_tests::model::{Budget, Cluster, Config, Flavour, Plan};
use stateright::{Checker, Expectation, Model};

fn explore(name: &str, config: Config) -> usize {
    let started = Instant::now();
    let checker = Cluster { config }.checker().threads(2).spawn_dfs().join();
    let states = checker.unique_state_count();
    println!(
        "{name}: {states} states, depth {}, {:?}",
        checker.max_depth(),
        started.elapsed()
    );
    let model = checker.model();
    for property in model.properties() {
        let found = checker.discovery(property.name);
        match (property.expectation, found) {
            (Expectation::Always, Some(path)) => {
                let last = path.last_state().clone();
                for action in path.into_actions() {
                    println!("  {action}");
                }
                println!("{last:#?}");
                panic!("{name}: {}: {:?}", property.name, model.wrong(&last));
            }
            (Expectation::Sometimes, found) => {
                println!("  {}: {}", property.name, found.is_some());
            }
            _ => {}
        }
    }
    states
}

fn two(branches: &[usize]) -> Plan {
    Plan {
        branches: branches.to_vec(),
        request: None,
        may_leave: true,
    }
}

#[test]
fn model_try() {
    let env = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(0)
    };
    let budget = Budget {
        coordinator_kills: env("CK"),
        takeovers: env("TO"),
        wakes: env("WA"),
        participant_kills: env("PK"),
        doubles: env("DO"),
        cuts: env("CU"),
        refusals: env("RE"),
        readers: env("RD"),
        hitches: env("HI"),
        deadlines: env("DL"),
        link_losses: env("LL"),
        resends: env("RS"),
        sweeps: env("SW"),
        forgets: env("FO"),
    };
    let flavour = |n| {
        if n == 1 {
            Flavour::MariaDb
        } else {
            Flavour::MySql
        }
    };
    let servers = vec![flavour(env("S0")), flavour(env("S1"))];
    let plans = match env("PLAN") {
        0 => vec![two(&[0, 1])],
        1 => vec![two(&[0])],
        2 => vec![two(&[0, 1]), two(&[0])],
        3 => vec![
            Plan {
                request: Some("r"),
                ..two(&[0, 1])
            },
            Plan {
                request: Some("r"),
                ..two(&[0, 1])
            },
        ],
        _ => vec![
            Plan {
                request: Some("r"),
                ..two(&[0])
            },
            Plan {
                request: Some("r"),
                ..two(&[0])
            },
        ],
    };
    let mut config = Config::new(servers, plans, budget);
    config.heal_every = env("HEAL").max(1).into();
    explore("try", config);
}
