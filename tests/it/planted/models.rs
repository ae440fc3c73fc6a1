//! Small configurations of the model, each the smallest in which a planted bug shows.
//!
//! What the shipped machines do in all of them, and in larger ones, is the subject of
//! [`crate::model`]; here the numbers of states are not pinned.

use concord_tests::model::explore::{Manner, explore};
use concord_tests::model::{Budget, Config, Flavour, Plan};

fn both(second: Flavour, budget: Budget) -> Config {
    let plans = vec![Plan::on(&[0, 1])];
    Config::new(vec![Flavour::MySql, second], plans, budget)
}

fn single(plans: Vec<Plan>, budget: Budget) -> Config {
    Config::new(vec![Flavour::MySql], plans, budget)
}

/// Explores all of a configuration, in which nothing may be wrong.
fn check(config: Config) {
    let manner = Manner {
        // Which of several violations is found first is then always the same.
        threads: 1,
        until_wrong: true,
        cap: None,
    };
    let explored = explore(config, manner);
    println!("{explored}");
    let wrong = explored.wrong.unwrap_or_default();
    assert!(wrong.is_empty(), "{wrong}");
    assert!(explored.states > 20, "hardly anything happens");
}

#[test]
fn no_fault() {
    check(both(Flavour::MySql, Budget::NONE));
}

#[test]
fn a_killed_participant_and_forgetting() {
    let budget = Budget {
        participant_kills: 1,
        forgets: 1,
        ..Budget::NONE
    };
    check(both(Flavour::MariaDb, budget));
}

#[test]
fn a_server_that_cannot_and_forgetting() {
    let budget = Budget {
        hitches: 1,
        forgets: 1,
        ..Budget::NONE
    };
    check(both(Flavour::MySql, budget));
}

#[test]
fn a_repeated_request_and_a_killed_coordinator() {
    let budget = Budget {
        coordinator_kills: 1,
        deadlines: 1,
        ..Budget::NONE
    };
    let retried = Plan {
        request: Some("r"),
        ..Plan::on(&[0])
    };
    check(single(vec![retried; 2], budget));
}

#[test]
fn an_order_and_a_deadline() {
    let budget = Budget {
        orders: 1,
        deadlines: 1,
        ..Budget::NONE
    };
    check(both(Flavour::MySql, budget));
}

#[test]
fn one_phase_refused_and_doubled() {
    let budget = Budget {
        refusals: 1,
        doubles: 1,
        ..Budget::NONE
    };
    check(single(vec![Plan::on(&[0])], budget));
}
