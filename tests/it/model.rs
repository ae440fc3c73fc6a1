//! The shipped machines under the model checker: a few configurations, each explored to its end.
//!
//! The number of states of each is pinned: a model that silently shrinks proves nothing. After a
//! change of the machines that is meant, the new numbers come out of the failed tests. What must
//! have been reached is pinned too. `CONCORD_MODEL=large` adds configurations that take minutes.

use std::time::Instant;

use concord_tests::model::{Budget, Cluster, Config, Flavour, Plan};
use stateright::{Checker, Expectation, Model};

/// Threads of one exploration.
const THREADS: usize = 2;

const NONE: Budget = Budget {
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
};

const COMMITS: &str = "a transaction commits";
const ABORTS: &str = "a prepared transaction aborts";
const RECOVERS: &str = "a decision outlives everybody who made it";
const ASKS_COMMITTED: &str = "a lost one-phase commit turns out committed";
const ASKS_ABORTED: &str = "a lost one-phase commit turns out aborted";
const LEAVES: &str = "a reader leaves and the others commit";
const REPEATS: &str = "a repeated request is recognised";
const FENCED: &str = "a late message of a former epoch is refused";

/// Explores all of a configuration; these must be reached, in so many states.
fn explore(config: Config, states: usize, reached: &[&str]) {
    let started = Instant::now();
    let checker = Cluster { config }
        .checker()
        .threads(THREADS)
        .spawn_dfs()
        .join();
    let (model, found) = (checker.model(), checker.discoveries());
    let mut missed = Vec::new();
    for property in model.properties() {
        let path = found.get(property.name);
        match (&property.expectation, path) {
            (Expectation::Always, Some(path)) => {
                let wrong = model.wrong(path.last_state());
                let actions: Vec<String> = path
                    .clone()
                    .into_actions()
                    .iter()
                    .map(|action| format!("{action:?}"))
                    .collect();
                panic!(
                    "{}: {wrong:?}, after\n  {}",
                    property.name,
                    actions.join("\n  ")
                );
            }
            (Expectation::Sometimes, found) => {
                let expected = reached.contains(&property.name);
                assert!(!expected || found.is_some(), "never: {}", property.name);
                if found.is_some() && !expected {
                    missed.push(property.name);
                }
            }
            _ => {}
        }
    }
    let count = checker.unique_state_count();
    println!(
        "{count} states, depth {}, {:?}",
        checker.max_depth(),
        started.elapsed()
    );
    assert_eq!(missed, [""; 0], "reached, and nobody expects it");
    assert_eq!(
        count, states,
        "the number of states has changed; is that meant?"
    );
}

fn is_large() -> bool {
    let large = std::env::var("CONCORD_MODEL").is_ok_and(|value| value == "large");
    if !large {
        println!("skipped: CONCORD_MODEL is not \"large\"");
    }
    large
}

fn plan(branches: &[usize]) -> Plan {
    Plan {
        branches: branches.to_vec(),
        request: None,
        may_leave: true,
    }
}

fn retried(branches: &[usize]) -> Vec<Plan> {
    vec![
        Plan {
            request: Some("r"),
            ..plan(branches)
        };
        2
    ]
}

/// One transaction on both servers.
fn both(second: Flavour, budget: Budget) -> Config {
    Config::new(vec![Flavour::MySql, second], vec![plan(&[0, 1])], budget)
}

/// The same transactions on the first server only.
fn single(plans: Vec<Plan>, budget: Budget) -> Config {
    Config::new(vec![Flavour::MySql], plans, budget)
}

#[test]
fn kills_of_everybody_and_a_deadline() {
    let budget = Budget {
        coordinator_kills: 1,
        participant_kills: 1,
        deadlines: 1,
        ..NONE
    };
    let reached = [COMMITS, ABORTS, RECOVERS, FENCED];
    explore(both(Flavour::MySql, budget), 620_841, &reached);
}

#[test]
fn a_cut_connection_a_kill_and_a_doubled_message_with_mariadb() {
    let budget = Budget {
        cuts: 1,
        participant_kills: 1,
        doubles: 1,
        ..NONE
    };
    explore(both(Flavour::MariaDb, budget), 383_660, &[COMMITS, ABORTS]);
}

#[test]
fn a_coordinator_that_was_taken_over_wakes_up() {
    let budget = Budget {
        takeovers: 1,
        wakes: 1,
        sweeps: 1,
        ..NONE
    };
    explore(
        both(Flavour::MySql, budget),
        300_456,
        &[COMMITS, ABORTS, FENCED],
    );
}

#[test]
fn a_reader_and_a_doubled_message() {
    let budget = Budget {
        readers: 1,
        doubles: 1,
        sweeps: 1,
        ..NONE
    };
    let mut config = both(Flavour::MySql, budget);
    config.heal_every = 4;
    explore(config, 10_626, &[COMMITS, LEAVES]);
}

#[test]
fn a_server_that_cannot_and_a_cut_connection() {
    let budget = Budget {
        hitches: 1,
        cuts: 1,
        sweeps: 1,
        ..NONE
    };
    let mut config = both(Flavour::MySql, budget);
    config.heal_every = 8;
    explore(config, 25_512, &[COMMITS]);
}

#[test]
fn one_phase_with_kills_and_a_doubled_message() {
    let budget = Budget {
        coordinator_kills: 1,
        participant_kills: 1,
        doubles: 1,
        deadlines: 1,
        refusals: 1,
        ..NONE
    };
    let reached = [ASKS_COMMITTED, ASKS_ABORTED, FENCED];
    explore(single(vec![plan(&[0])], budget), 43_889, &reached);
}

#[test]
fn one_phase_with_a_cut_connection_and_a_server_that_cannot() {
    let budget = Budget {
        cuts: 1,
        participant_kills: 1,
        doubles: 1,
        deadlines: 1,
        hitches: 1,
        ..NONE
    };
    explore(
        single(vec![plan(&[0])], budget),
        44_286,
        &[ASKS_COMMITTED, ASKS_ABORTED],
    );
}

#[test]
fn a_repeated_request_in_one_phase() {
    let budget = Budget {
        coordinator_kills: 1,
        cuts: 1,
        refusals: 1,
        deadlines: 1,
        ..NONE
    };
    let reached = [ASKS_COMMITTED, ASKS_ABORTED, REPEATS, FENCED];
    explore(single(retried(&[0]), budget), 23_903, &reached);
}

#[test]
fn a_repeated_request_that_is_refused() {
    let budget = Budget {
        refusals: 1,
        ..NONE
    };
    let config = Config::new(vec![Flavour::MySql; 2], retried(&[0, 1]), budget);
    explore(config, 297, &[COMMITS, REPEATS]);
}

#[test]
fn forgetting_with_two_transactions() {
    let budget = Budget {
        forgets: 1,
        doubles: 1,
        ..NONE
    };
    let plans = vec![plan(&[0, 1]), plan(&[0])];
    explore(
        Config::new(vec![Flavour::MySql; 2], plans, budget),
        13_567,
        &[COMMITS],
    );
}

#[test]
fn forgetting_while_mariadb_holds_a_branch_of_a_killed_participant() {
    let budget = Budget {
        participant_kills: 1,
        forgets: 1,
        ..NONE
    };
    explore(both(Flavour::MariaDb, budget), 1_537, &[COMMITS]);
}

#[test]
fn large_kills_and_forgetting() {
    let budget = Budget {
        forgets: 1,
        coordinator_kills: 1,
        doubles: 1,
        participant_kills: 1,
        ..NONE
    };
    if is_large() {
        let reached = [COMMITS, ABORTS, RECOVERS, FENCED];
        explore(both(Flavour::MySql, budget), 1_422_823, &reached);
    }
}

#[test]
fn large_two_kills_of_the_coordinator_and_lost_links() {
    let budget = Budget {
        coordinator_kills: 2,
        deadlines: 1,
        link_losses: 1,
        ..NONE
    };
    if is_large() {
        explore(
            both(Flavour::MySql, budget),
            2_219_941,
            &[COMMITS, ABORTS, FENCED],
        );
    }
}

#[test]
fn large_lost_links_and_repetitions_with_mariadb() {
    let budget = Budget {
        link_losses: 1,
        resends: 1,
        deadlines: 1,
        hitches: 1,
        ..NONE
    };
    if is_large() {
        explore(
            both(Flavour::MariaDb, budget),
            1_858_039,
            &[COMMITS, ABORTS],
        );
    }
}

#[test]
fn large_a_repeated_request_and_a_deadline() {
    let budget = Budget {
        refusals: 1,
        deadlines: 1,
        ..NONE
    };
    if is_large() {
        let config = Config::new(vec![Flavour::MySql; 2], retried(&[0, 1]), budget);
        explore(config, 201_238, &[COMMITS, ABORTS, REPEATS]);
    }
}
