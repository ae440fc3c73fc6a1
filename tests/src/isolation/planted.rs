//! Known anomalies, planted into histories that are in order: the checkers must report each of
//! them, at each level that promises to be without it, before they are believed to find none.

use anyhow::ensure;

use super::check::{Level, judge};
use super::history::{Element, End, Key, Op, Txn};
use super::lists;

/// Servers of the planted histories; list k lives on server k % 3 + 1.
const SERVERS: u16 = 3;
const EVERYWHERE: &[Level] = &Level::ALL;
const REPEATABLE: &[Level] = &[Level::RepeatableRead, Level::Serializable];
const SERIALIZABLE: &[Level] = &[Level::Serializable];

/// A history with one thing wrong.
struct Planted {
    name: &'static str,
    /// Levels that promise to be without it.
    forbidden: &'static [Level],
    /// What must be reported; one of these is enough.
    kinds: &'static [&'static str],
    txns: Vec<Txn>,
}

fn append(key: Key, element: Element) -> Op {
    Op::Append { key, element }
}

fn read(key: Key, seen: &[Element]) -> Op {
    Op::Read {
        key,
        locking: false,
        seen: Some(seen.to_vec()),
    }
}

/// A transaction that ran alone between two moments.
fn txn(number: u64, ops: Vec<Op>) -> Txn {
    Txn {
        number,
        ops,
        end: End::Committed,
        began: 10 * number,
        ended: 10 * number + 5,
    }
}

/// One that ran while all others did.
fn long(number: u64, ops: Vec<Op>) -> Txn {
    Txn {
        began: number,
        ended: 1_000 + number,
        ..txn(number, ops)
    }
}

fn ended(end: End, txn: Txn) -> Txn {
    Txn { end, ..txn }
}

fn aborted(txn: Txn) -> Txn {
    ended(End::Aborted("LOCK_TIMEOUT".into()), txn)
}

/// All lists after everything has ended.
fn last(lists: &[(Key, &[Element])]) -> Txn {
    let ops = lists.iter().map(|(key, seen)| read(*key, seen)).collect();
    Txn {
        began: 9_000,
        ended: 9_001,
        ..txn(9, ops)
    }
}

/// What is in order at every level.
fn in_order() -> Vec<Txn> {
    vec![
        txn(1, vec![append(0, 1), append(1, 2)]),
        txn(2, vec![read(0, &[1]), append(0, 3), append(0, 4)]),
        aborted(txn(3, vec![append(2, 5)])),
        ended(End::Unknown, txn(4, vec![append(1, 6), append(2, 7)])),
        txn(5, vec![read(1, &[2]), read(0, &[1, 3, 4])]),
        last(&[(0, &[1, 3, 4]), (1, &[2]), (2, &[])]),
    ]
}

#[allow(
    clippy::too_many_lines,
    reason = "a table of cases is read in one piece"
)]
fn of_adya() -> Vec<Planted> {
    let planted = |name, forbidden, kinds, txns| Planted {
        name,
        forbidden,
        kinds,
        txns,
    };
    vec![
        planted(
            "two transactions overwrite each other, on two servers",
            EVERYWHERE,
            &["G0"],
            vec![
                long(1, vec![append(0, 1), append(1, 2)]),
                long(2, vec![append(0, 3), append(1, 4)]),
                last(&[(0, &[1, 3]), (1, &[4, 2])]),
            ],
        ),
        planted(
            "what an aborted transaction wrote is read",
            EVERYWHERE,
            &["G1a"],
            vec![
                aborted(long(1, vec![append(0, 1)])),
                long(2, vec![read(0, &[1])]),
                last(&[(0, &[])]),
            ],
        ),
        planted(
            "half of a transaction is read",
            EVERYWHERE,
            &["G1b"],
            vec![
                long(1, vec![append(0, 1), append(0, 2)]),
                long(2, vec![read(0, &[1])]),
                last(&[(0, &[1, 2])]),
            ],
        ),
        planted(
            "two transactions read each other, on two servers",
            EVERYWHERE,
            &["G1c"],
            vec![
                long(1, vec![append(0, 1), read(1, &[2])]),
                long(2, vec![append(1, 2), read(0, &[1])]),
                last(&[(0, &[1]), (1, &[2])]),
            ],
        ),
        planted(
            "two orders of one list",
            EVERYWHERE,
            &["incompatible-order"],
            vec![
                long(1, vec![append(0, 1)]),
                long(2, vec![append(0, 2)]),
                long(3, vec![read(0, &[2])]),
                last(&[(0, &[1, 2])]),
            ],
        ),
        planted(
            "one element twice",
            EVERYWHERE,
            &["duplicate-elements"],
            vec![long(1, vec![append(0, 1)]), last(&[(0, &[1, 1])])],
        ),
        planted(
            "one server is seen before a commit and the same server after it",
            REPEATABLE,
            &["G-single-item", "G-single-item-realtime"],
            vec![
                long(1, vec![append(0, 1), append(3, 2)]),
                long(2, vec![read(0, &[]), read(3, &[2])]),
                last(&[(0, &[1]), (3, &[2])]),
            ],
        ),
        planted(
            "one server is seen before a commit and another after it",
            SERIALIZABLE,
            &["G-single-item", "G-single-item-realtime"],
            vec![
                long(1, vec![append(0, 1), append(1, 2)]),
                long(2, vec![read(0, &[]), read(1, &[2])]),
                last(&[(0, &[1]), (1, &[2])]),
            ],
        ),
        planted(
            "both append to what the other has read, on two servers",
            SERIALIZABLE,
            &["G2-item"],
            vec![
                long(1, vec![read(0, &[]), append(1, 1)]),
                long(2, vec![read(1, &[]), append(0, 2)]),
                last(&[(0, &[2]), (1, &[1])]),
            ],
        ),
        planted(
            "both append to what they have read",
            SERIALIZABLE,
            &["lost-update"],
            vec![
                long(1, vec![read(0, &[]), append(0, 1)]),
                long(2, vec![read(0, &[]), append(0, 2)]),
                last(&[(0, &[1, 2])]),
            ],
        ),
        planted(
            "what was over is not seen by what began later",
            REPEATABLE,
            &["G-single-item-realtime"],
            vec![
                txn(1, vec![append(0, 1)]),
                txn(2, vec![read(0, &[])]),
                last(&[(0, &[1])]),
            ],
        ),
    ]
}

fn of_ours() -> Vec<Planted> {
    let planted = |name, forbidden, kinds, txns| Planted {
        name,
        forbidden,
        kinds,
        txns,
    };
    let two = || long(1, vec![append(0, 1), append(1, 2)]);
    vec![
        planted(
            "an acknowledged append is gone",
            EVERYWHERE,
            &[lists::LOST],
            vec![two(), last(&[(0, &[1]), (1, &[])])],
        ),
        planted(
            "an aborted append is there",
            EVERYWHERE,
            &[lists::ABORTED],
            vec![aborted(two()), last(&[(0, &[]), (1, &[2])])],
        ),
        planted(
            "half of an unknown transaction is there",
            EVERYWHERE,
            &[lists::TORN],
            vec![ended(End::Unknown, two()), last(&[(0, &[1]), (1, &[])])],
        ),
        planted(
            "an element stands there twice",
            EVERYWHERE,
            &[lists::TWICE],
            vec![two(), last(&[(0, &[1]), (1, &[2, 2])])],
        ),
        planted(
            "nobody appended it",
            EVERYWHERE,
            &[lists::STRANGE],
            vec![two(), last(&[(0, &[1, 7]), (1, &[2])])],
        ),
        planted(
            "something stands between what one transaction appended",
            EVERYWHERE,
            &[lists::SCATTERED],
            vec![
                long(1, vec![append(0, 1), append(0, 2)]),
                long(2, vec![append(0, 3)]),
                last(&[(0, &[1, 3, 2])]),
            ],
        ),
        planted(
            "what was read is not there in the end",
            EVERYWHERE,
            &[lists::NO_PREFIX],
            vec![
                ended(End::Unknown, long(1, vec![append(0, 1)])),
                long(2, vec![read(0, &[1])]),
                last(&[(0, &[])]),
            ],
        ),
        planted(
            "what was acknowledged is not read",
            EVERYWHERE,
            &[lists::STALE],
            vec![
                txn(1, vec![append(0, 1)]),
                txn(2, vec![read(0, &[])]),
                last(&[(0, &[1])]),
            ],
        ),
        planted(
            "its own append is not read",
            EVERYWHERE,
            &[lists::OWN],
            vec![
                long(1, vec![append(0, 1), read(0, &[])]),
                last(&[(0, &[1])]),
            ],
        ),
        planted(
            "the second read differs",
            REPEATABLE,
            &[lists::UNREPEATABLE],
            vec![
                long(1, vec![append(0, 1)]),
                long(2, vec![read(0, &[]), read(0, &[1])]),
                last(&[(0, &[1])]),
            ],
        ),
    ]
}

/// Shows that the checkers can fail: each planted anomaly is found where it is forbidden, and
/// nothing is found where it is not, nor in a history that is in order. The number of findings.
pub fn prove_the_checkers() -> anyhow::Result<usize> {
    for level in Level::ALL {
        let findings = judge(&in_order(), level, SERVERS);
        let broken = findings.violations();
        ensure!(broken == 0, "{level:?}, in order: {:?}", findings.told);
    }
    let mut found = 0;
    for planted in of_adya().into_iter().chain(of_ours()) {
        for level in Level::ALL {
            let findings = judge(&planted.txns, level, SERVERS);
            let name = planted.name;
            if planted.forbidden.contains(&level) {
                let is_found = |kind: &&&str| findings.broken.contains_key(**kind);
                ensure!(
                    planted.kinds.iter().any(|kind| is_found(&kind)),
                    "{name}: not found at {level:?}, only {:?}",
                    findings.broken
                );
                found += 1;
            } else {
                ensure!(
                    !planted
                        .kinds
                        .iter()
                        .any(|kind| findings.broken.contains_key(*kind)),
                    "{name}: {level:?} does not promise that: {:?}",
                    findings.told
                );
            }
        }
    }
    Ok(found)
}
