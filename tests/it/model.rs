//! The shipped machines under the model checker: every standard configuration to its end. The large
//! ones, and each by itself: `cargo run -p concord-tests --bin model -- --help`.

use concord_tests::model::configs::standard;
use concord_tests::model::explore::{Manner, explore};
use concord_tests::model::{Budget, Config, Fault, Flavour, Plan};

/// Distinct states without which the standard configurations prove too little.
const STATES_MIN: usize = 1_000_000;

#[test]
fn every_standard_configuration_is_explored_to_its_end() {
    let (mut states, mut objections) = (0, Vec::new());
    for named in standard() {
        let explored = explore(named.config.clone(), Manner::default());
        println!("{explored}, {}", named.name);
        states += explored.states;
        if let Some(objection) = explored.objection(&named) {
            let name = named.name;
            let again = "cargo run -p concord-tests --bin model -- --only";
            objections.push(format!("{name}: {objection}\n  again: {again} '{name}'"));
        }
    }
    println!("{states} states");
    assert!(objections.is_empty(), "{}", objections.join("\n"));
    assert!(states >= STATES_MIN, "only {states} states");
}

/// A model that cannot fail proves nothing: each fault of the drivers is found, by the invariant
/// that it breaks.
#[test]
fn planted_faults_are_found() {
    let planted = [
        (
            Fault::SentBeforeDurable,
            "kills of everybody and a deadline",
            "LogBeforeSend",
        ),
        (
            Fault::NotaIsSuccess,
            "somebody finishes a branch by hand",
            "nobody tells",
        ),
        (
            Fault::PrunedTooEarly,
            "forgetting while the coordinator is killed",
            "Drains",
        ),
        (
            Fault::DamageNotKept,
            "somebody finishes a branch by hand, and the coordinator is killed",
            "nobody tells",
        ),
        (
            Fault::RollbackAtStart,
            "three participants, one of them killed",
            "Atomicity",
        ),
    ];
    for (fault, name, shown_by) in planted {
        let named = standard().into_iter().find(|named| named.name == name);
        let mut config = named.unwrap_or_else(|| panic!("no {name}")).config;
        config.fault = Some(fault);
        let manner = Manner {
            until_wrong: true,
            threads: 1,
            ..Manner::default()
        };
        let explored = explore(config, manner);
        println!("{fault:?}: {explored}, {name}");
        let wrong = explored
            .wrong
            .unwrap_or_else(|| panic!("{fault:?} is not found in {name}"));
        assert!(wrong.contains(shown_by), "{fault:?}: {wrong}");
    }
}

/// What the README says is not told: a commit by hand of an undecided branch whose participant and
/// coordinator both die before either has looked again. Nobody who lives then knows of the branch.
#[test]
fn only_two_crashes_hide_a_commit_by_hand() {
    let budget = Budget {
        interferences: 1,
        coordinator_kills: 1,
        participant_kills: 1,
        ..Budget::NONE
    };
    let plans = vec![Plan::on(&[0, 1])];
    let config = Config {
        heal_every: 1,
        ..Config::new(vec![Flavour::MySql; 2], plans, budget)
    };
    let manner = Manner {
        until_wrong: true,
        threads: 1,
        ..Manner::default()
    };
    let explored = explore(config, manner);
    let wrong = explored
        .wrong
        .expect("it is told after all: say so in the README");
    assert!(wrong.contains("nobody tells"), "{wrong}");
    for fault in [
        "Interfere(",
        ", true)",
        "KillCoordinator(",
        "KillParticipant(",
    ] {
        assert!(wrong.contains(fault), "{fault}: {wrong}");
    }
}
