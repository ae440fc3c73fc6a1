//! The configurations: what is explored in every run of the tests, and what on demand.
//!
//! The number of states of each is pinned: a model that silently shrinks proves nothing. After a
//! change of the machines that is meant, the new numbers come out of the failed tests. What must
//! have been reached is pinned too.

use concord_core::transaction::Ack;

use super::reached::{
    ABORTS, ASKS_ABORTED, ASKS_COMMITTED, COMMITS, DAMAGE_FOUND, DAMAGE_TOLD, DECISION_LOST,
    FENCED, LEAVES, RECORD_LOST, RECOVERS, REPEATS, TAKES_OVER,
};
use super::{Budget, Config, Flavour, Plan};

/// A configuration with what is expected of it.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its name.
    pub name: &'static str,
    /// What is explored.
    pub config: Config,
    /// Distinct states.
    pub states: usize,
    /// What must be reached; anything else must not.
    pub reached: Vec<&'static str>,
}

fn named(name: &'static str, config: Config, states: usize, reached: &[&'static str]) -> Named {
    Named {
        name,
        config,
        states,
        reached: reached.to_vec(),
    }
}

fn retried(branches: &[usize]) -> Vec<Plan> {
    let plan = Plan {
        request: Some("r"),
        ..Plan::on(branches)
    };
    vec![plan; 2]
}

/// One transaction on both servers.
fn both(second: Flavour, budget: Budget) -> Config {
    let servers = vec![Flavour::MySql, second];
    Config::new(servers, vec![Plan::on(&[0, 1])], budget)
}

/// One transaction on three servers.
fn three(third: Flavour, budget: Budget) -> Config {
    let servers = vec![Flavour::MySql, Flavour::MySql, third];
    Config::new(servers, vec![Plan::on(&[0, 1, 2])], budget)
}

/// The same transactions on the first server only.
fn single(plans: Vec<Plan>, budget: Budget) -> Config {
    Config::new(vec![Flavour::MySql], plans, budget)
}

/// What every run of the tests explores.
pub fn standard() -> Vec<Named> {
    let mut all = three_participants();
    all.extend(two_participants());
    all.extend(interference());
    all.extend(orders());
    all.extend(one_phase());
    all.extend(requests_and_forgetting());
    all
}

fn three_participants() -> Vec<Named> {
    let killed = Budget {
        coordinator_kills: 1,
        ..Budget::NONE
    };
    let restarted = Budget {
        participant_kills: 1,
        ..Budget::NONE
    };
    let taken_over = Budget {
        takeovers: 1,
        wakes: 1,
        ..Budget::NONE
    };
    let refused = Budget {
        refusals: 1,
        readers: 1,
        deadlines: 1,
        ..Budget::NONE
    };
    vec![
        named(
            "three participants, a killed coordinator",
            three(Flavour::MySql, killed),
            31_619,
            &[COMMITS, FENCED, DECISION_LOST],
        ),
        named(
            "three participants, one of them killed",
            three(Flavour::MariaDb, restarted),
            16_918,
            &[COMMITS],
        ),
        named(
            "three participants, two coordinators",
            three(Flavour::MySql, taken_over),
            1_511_462,
            &[COMMITS, ABORTS, FENCED, DECISION_LOST, TAKES_OVER],
        ),
        named(
            "three participants, a refusal, a reader and a deadline",
            three(Flavour::MariaDb, refused),
            230_813,
            &[COMMITS, ABORTS, LEAVES],
        ),
    ]
}

fn two_participants() -> Vec<Named> {
    let killed = Budget {
        coordinator_kills: 1,
        participant_kills: 1,
        deadlines: 1,
        ..Budget::NONE
    };
    let cut = Budget {
        cuts: 1,
        participant_kills: 1,
        doubles: 1,
        ..Budget::NONE
    };
    let taken_over = Budget {
        takeovers: 1,
        wakes: 1,
        sweeps: 1,
        ..Budget::NONE
    };
    let slow = Budget {
        coordinator_kills: 1,
        participant_kills: 1,
        ..Budget::NONE
    };
    let reader = Budget {
        readers: 1,
        doubles: 1,
        sweeps: 1,
        ..Budget::NONE
    };
    let hitch = Budget {
        hitches: 1,
        cuts: 1,
        sweeps: 1,
        ..Budget::NONE
    };
    vec![
        named(
            "kills of everybody and a deadline",
            both(Flavour::MySql, killed),
            618_857,
            &[COMMITS, ABORTS, RECOVERS, FENCED, DECISION_LOST],
        ),
        named(
            "a cut connection, a kill and a doubled message with MariaDB",
            both(Flavour::MariaDb, cut),
            1_172_496,
            &[COMMITS, ABORTS],
        ),
        named(
            "a coordinator that was taken over wakes up",
            both(Flavour::MySql, taken_over),
            298_272,
            &[COMMITS, ABORTS, FENCED, DECISION_LOST, TAKES_OVER],
        ),
        named(
            "kills while records are on their way",
            Config {
                slow_records: true,
                ..both(Flavour::MySql, slow)
            },
            79_913,
            &[COMMITS, RECOVERS, FENCED, DECISION_LOST, RECORD_LOST],
        ),
        named(
            "a reader and a doubled message",
            Config {
                heal_every: 4,
                ..both(Flavour::MySql, reader)
            },
            10_666,
            &[COMMITS, LEAVES],
        ),
        named(
            "a server that cannot and a cut connection",
            Config {
                heal_every: 8,
                ..both(Flavour::MySql, hitch)
            },
            60_844,
            &[COMMITS],
        ),
    ]
}

/// Somebody finishes a branch by hand. That the damage is told is seen after everything has healed,
/// so more states than elsewhere are healed.
fn interference() -> Vec<Named> {
    let alone = Budget {
        interferences: 1,
        sweeps: 1,
        deadlines: 1,
        ..Budget::NONE
    };
    let killed = Budget {
        interferences: 1,
        coordinator_kills: 1,
        ..Budget::NONE
    };
    let restarted = Budget {
        interferences: 1,
        participant_kills: 1,
        deadlines: 1,
        ..Budget::NONE
    };
    vec![
        named(
            "somebody finishes a branch by hand",
            Config {
                heal_every: 4,
                slow_records: true,
                ..both(Flavour::MySql, alone)
            },
            71_234,
            &[COMMITS, ABORTS, DAMAGE_FOUND, DAMAGE_TOLD],
        ),
        named(
            "somebody finishes a branch by hand, and the coordinator is killed",
            Config {
                heal_every: 16,
                slow_records: true,
                ..both(Flavour::MySql, killed)
            },
            13_719,
            &[COMMITS, FENCED, DECISION_LOST, DAMAGE_FOUND, DAMAGE_TOLD],
        ),
        named(
            "somebody finishes a branch by hand, and a participant is killed",
            Config {
                heal_every: 16,
                slow_records: true,
                ..both(Flavour::MariaDb, restarted)
            },
            141_553,
            &[COMMITS, ABORTS, RECORD_LOST, DAMAGE_FOUND, DAMAGE_TOLD],
        ),
    ]
}

/// An operator ends a branch through the coordinator, and nobody may be told what is not so.
fn orders() -> Vec<Named> {
    let alone = Budget {
        orders: 2,
        deadlines: 1,
        ..Budget::NONE
    };
    let killed = Budget {
        orders: 2,
        coordinator_kills: 1,
        ..Budget::NONE
    };
    let restarted = Budget {
        orders: 1,
        participant_kills: 1,
        deadlines: 1,
        ..Budget::NONE
    };
    vec![
        named(
            "an operator's orders and a deadline",
            Config {
                heal_every: 16,
                ..both(Flavour::MySql, alone)
            },
            99_378,
            &[COMMITS, ABORTS, DAMAGE_FOUND, DAMAGE_TOLD],
        ),
        named(
            "an operator's orders, and the coordinator is killed",
            Config {
                heal_every: 16,
                ..both(Flavour::MySql, killed)
            },
            1_199_180,
            &[
                COMMITS,
                ABORTS,
                FENCED,
                DECISION_LOST,
                DAMAGE_FOUND,
                DAMAGE_TOLD,
            ],
        ),
        named(
            "an operator's order, and a participant is killed",
            Config {
                heal_every: 16,
                slow_records: true,
                ..both(Flavour::MariaDb, restarted)
            },
            820_320,
            &[COMMITS, ABORTS, RECORD_LOST, DAMAGE_FOUND, DAMAGE_TOLD],
        ),
    ]
}

fn one_phase() -> Vec<Named> {
    let killed = Budget {
        coordinator_kills: 1,
        participant_kills: 1,
        doubles: 1,
        deadlines: 1,
        refusals: 1,
        ..Budget::NONE
    };
    let cut = Budget {
        cuts: 1,
        participant_kills: 1,
        doubles: 1,
        deadlines: 1,
        hitches: 1,
        ..Budget::NONE
    };
    let repeated = Budget {
        coordinator_kills: 1,
        cuts: 1,
        refusals: 1,
        deadlines: 1,
        ..Budget::NONE
    };
    vec![
        named(
            "one phase with kills and a doubled message",
            single(vec![Plan::on(&[0])], killed),
            44_351,
            &[ASKS_COMMITTED, ASKS_ABORTED, FENCED],
        ),
        named(
            "one phase with a cut connection and a server that cannot",
            single(vec![Plan::on(&[0])], cut),
            44_286,
            &[ASKS_COMMITTED, ASKS_ABORTED],
        ),
        named(
            "a repeated request in one phase",
            single(retried(&[0]), repeated),
            23_879,
            &[ASKS_COMMITTED, ASKS_ABORTED, REPEATS, FENCED],
        ),
    ]
}

fn requests_and_forgetting() -> Vec<Named> {
    let refused = Budget {
        refusals: 1,
        ..Budget::NONE
    };
    let forgotten = Budget {
        forgets: 1,
        doubles: 1,
        ..Budget::NONE
    };
    let held = Budget {
        participant_kills: 1,
        forgets: 1,
        ..Budget::NONE
    };
    let killed = Budget {
        coordinator_kills: 1,
        forgets: 1,
        ..Budget::NONE
    };
    let decided = Plan {
        ack: Ack::Decided,
        ..Plan::on(&[0, 1])
    };
    vec![
        named(
            "a repeated request that is refused",
            Config::new(vec![Flavour::MySql; 2], retried(&[0, 1]), refused),
            297,
            &[COMMITS, REPEATS],
        ),
        named(
            "forgetting with two transactions",
            Config {
                slow_records: true,
                ..Config::new(
                    vec![Flavour::MySql; 2],
                    vec![decided, Plan::on(&[0])],
                    forgotten,
                )
            },
            23_498,
            &[COMMITS],
        ),
        named(
            "forgetting while MariaDB holds a branch of a killed participant",
            Config {
                slow_records: true,
                ..both(Flavour::MariaDb, held)
            },
            1_890,
            &[COMMITS, RECORD_LOST],
        ),
        named(
            "forgetting while the coordinator is killed",
            Config {
                heal_every: 2,
                ..both(Flavour::MySql, killed)
            },
            2_036,
            &[COMMITS, FENCED, DECISION_LOST],
        ),
    ]
}

/// What is explored on demand: minutes, and gigabytes.
pub fn large() -> Vec<Named> {
    let forgetting = Budget {
        forgets: 1,
        coordinator_kills: 1,
        doubles: 1,
        participant_kills: 1,
        ..Budget::NONE
    };
    let twice = Budget {
        coordinator_kills: 2,
        deadlines: 1,
        link_losses: 1,
        ..Budget::NONE
    };
    let links = Budget {
        link_losses: 1,
        resends: 1,
        deadlines: 1,
        hitches: 1,
        ..Budget::NONE
    };
    let repeated = Budget {
        refusals: 1,
        deadlines: 1,
        ..Budget::NONE
    };
    let three_killed = Budget {
        coordinator_kills: 1,
        deadlines: 1,
        ..Budget::NONE
    };
    vec![
        named(
            "large: kills and forgetting",
            both(Flavour::MySql, forgetting),
            1_478_911,
            &[COMMITS, ABORTS, RECOVERS, FENCED, DECISION_LOST],
        ),
        named(
            "large: two kills of the coordinator and lost links",
            both(Flavour::MySql, twice),
            2_217_530,
            &[COMMITS, ABORTS, FENCED, DECISION_LOST],
        ),
        named(
            "large: lost links and repetitions with MariaDB",
            both(Flavour::MariaDb, links),
            2_124_612,
            &[COMMITS, ABORTS],
        ),
        named(
            "large: a repeated request and a deadline",
            Config::new(vec![Flavour::MySql; 2], retried(&[0, 1]), repeated),
            198_184,
            &[COMMITS, ABORTS, REPEATS],
        ),
        named(
            "large: three participants, a killed coordinator and a deadline",
            three(Flavour::MySql, three_killed),
            1_609_451,
            &[COMMITS, ABORTS, FENCED, DECISION_LOST],
        ),
    ]
}
