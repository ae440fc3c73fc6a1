//! The contract of [`DecisionLog`] as a suite that every backend passes.
//!
//! It asks through the trait only. What a backend does about its disk, its lock and its format is
//! its own tests' business.

use concord_core::id::{Bqual, Epoch, Gtrid, ParticipantName, Request, RequestId};
use concord_core::reason::Reason;
use concord_core::record::Record;

use super::{DecisionLog, LogError};

/// Runs every case, each on a new log. `reopen` closes a log and opens it again; a backend that
/// keeps nothing across a restart hands it back.
///
/// # Panics
///
/// When the backend breaks the contract.
pub fn run_all<L: DecisionLog>(make: impl Fn() -> L, reopen: impl Fn(L) -> L) {
    let cases: [(&str, Case<L>); 10] = [
        ("a new log is empty", empty),
        ("records come back in the order of replay", ordered),
        ("the last of its kind counts", replaced),
        ("the epoch never goes down", epochs),
        ("heuristic outcomes add up", heuristics),
        ("what ended is forgotten", forgets),
        ("what was refused is forgotten", forgets_refusals),
        ("what has not ended is not", refuses),
        ("an empty append is legal", nothing),
        ("a large batch is one commit", large),
    ];
    for (name, case) in cases {
        println!("decision log: {name}");
        case(make(), &reopen);
    }
}

/// A gtrid of small number: in order, and of the right version.
pub fn gtrid(number: u64) -> Gtrid {
    let mut bytes = [0; 16];
    bytes[0] = 1;
    bytes[6] = 0x70;
    bytes[8..].copy_from_slice(&(1 << 63 | number).to_be_bytes());
    Gtrid(bytes)
}

fn name(text: &str) -> ParticipantName {
    ParticipantName::new(text)
}

/// A decision of two branches, every second one with a request.
pub fn decision(number: u64) -> Record {
    let request = number.is_multiple_of(2).then(|| Request {
        id: RequestId::new(format!("request-{number}")),
        fingerprint: number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
    });
    Record::Decision {
        gtrid: gtrid(number),
        epoch: Epoch(3),
        branches: vec![(Bqual(1), name("p1")), (Bqual(2), name("p2"))],
        request,
    }
}

/// One record of every kind, in the order of replay; the transactions are 1 to 5.
pub fn one_of_each() -> Vec<Record> {
    let request = Request {
        id: RequestId::new("r"),
        fingerprint: u64::MAX,
    };
    let reason = Reason::new("INSUFFICIENT_FUNDS", "Zu wenig: 3 € statt 5 €");
    vec![
        Record::Epoch(Epoch(7)),
        Record::Placement(vec![name("p1"), name("p2")]),
        Record::Incarnation {
            participant: name("p1"),
            incarnation: "uuid-1/a".to_owned(),
            after: Gtrid::MIN,
        },
        Record::Incarnation {
            participant: name("p2"),
            incarnation: String::new(),
            after: gtrid(1),
        },
        Record::Horizon(gtrid(0)),
        decision(1),
        Record::End {
            gtrid: gtrid(1),
            committed: true,
        },
        decision(2),
        heuristic(2, 1, None),
        heuristic(2, 2, Some(false)),
        Record::End {
            gtrid: gtrid(2),
            committed: true,
        },
        Record::OnePhase {
            gtrid: gtrid(3),
            epoch: Epoch(6),
            bqual: Bqual(1),
            participant: name("p2"),
            request: Some(request.clone()),
        },
        Record::End {
            gtrid: gtrid(3),
            committed: false,
        },
        Record::Refused {
            gtrid: gtrid(4),
            request: request.clone(),
            reason,
        },
        damaged_abort(4, request),
        decision(5),
    ]
}

fn heuristic(number: u64, bqual: u32, committed: Option<bool>) -> Record {
    Record::Heuristic {
        gtrid: gtrid(number),
        bqual: Bqual(bqual),
        participant: name("p1"),
        committed,
        reason: Reason::new("OPERATOR", "restored from backup"),
        request: None,
    }
}

/// A branch of an abort that somebody committed.
fn damaged_abort(number: u64, request: Request) -> Record {
    Record::Heuristic {
        gtrid: gtrid(number),
        bqual: Bqual(1),
        participant: name("p2"),
        committed: Some(true),
        reason: Reason::new("HEURISTIC_COMMIT", "by hand"),
        request: Some(request),
    }
}

fn end(number: u64) -> Record {
    Record::End {
        gtrid: gtrid(number),
        committed: true,
    }
}

fn replay(log: &impl DecisionLog) -> Vec<Record> {
    log.replay().expect("replay")
}

type Reopen<'a, L> = &'a dyn Fn(L) -> L;
type Case<L> = fn(L, Reopen<'_, L>);

fn empty<L: DecisionLog>(log: L, reopen: Reopen<'_, L>) {
    assert_eq!(replay(&log), []);
    assert_eq!(log.stats().decisions, 0);
    assert_eq!(replay(&reopen(log)), []);
}

fn ordered<L: DecisionLog>(mut log: L, reopen: Reopen<'_, L>) {
    let records = one_of_each();
    let backwards: Vec<Record> = records.iter().rev().cloned().collect();
    log.append(&backwards).expect("append");
    assert_eq!(replay(&log), records);
    assert_eq!(log.stats().decisions, 5);
    let log = reopen(log);
    assert_eq!(replay(&log), records);
    assert_eq!(log.stats().decisions, 5);
}

fn replaced<L: DecisionLog>(mut log: L, reopen: Reopen<'_, L>) {
    let placement = |names: &[&str]| Record::Placement(names.iter().map(|n| name(n)).collect());
    let incarnation = |id: &str| Record::Incarnation {
        participant: name("p1"),
        incarnation: id.to_owned(),
        after: Gtrid::MIN,
    };
    log.append(&[
        placement(&["p1"]),
        incarnation("a"),
        Record::Horizon(gtrid(9)),
    ])
    .expect("append");
    log.append(&[decision(1), decision(1)]).expect("append");
    log.append(&[
        placement(&["p2"]),
        incarnation("b"),
        Record::Horizon(gtrid(8)),
        decision(1),
    ])
    .expect("append");
    let expected = [
        placement(&["p2"]),
        incarnation("b"),
        Record::Horizon(gtrid(9)),
        decision(1),
    ];
    assert_eq!(replay(&log), expected);
    assert_eq!(log.stats().decisions, 1);
    assert_eq!(replay(&reopen(log)), expected);
}

fn epochs<L: DecisionLog>(mut log: L, reopen: Reopen<'_, L>) {
    log.append(&[Record::Epoch(Epoch(4))]).expect("append");
    log.append(&[Record::Epoch(Epoch(4))])
        .expect("the same again");
    let refused = log.append(&[decision(1), Record::Epoch(Epoch(3))]);
    assert!(
        matches!(refused, Err(LogError::EpochWentDown { .. })),
        "{refused:?}"
    );
    let mut log = reopen(log);
    assert_eq!(
        replay(&log),
        [Record::Epoch(Epoch(4))],
        "a refused append leaves nothing"
    );
    assert!(log.append(&[Record::Epoch(Epoch(3))]).is_err());
    log.append(&[Record::Epoch(Epoch(5))]).expect("append");
    assert_eq!(replay(&log), [Record::Epoch(Epoch(5))]);
}

fn heuristics<L: DecisionLog>(mut log: L, reopen: Reopen<'_, L>) {
    let outcomes = [
        heuristic(1, 1, None),
        heuristic(1, 1, Some(true)),
        heuristic(1, 1, None),
    ];
    log.append(&outcomes[..2]).expect("append");
    let mut log = reopen(log);
    log.append(&outcomes[2..]).expect("append");
    assert_eq!(
        replay(&log),
        outcomes,
        "none replaces another, though two are equal"
    );
}

fn forgets<L: DecisionLog>(mut log: L, reopen: Reopen<'_, L>) {
    log.append(&one_of_each()).expect("append");
    // The end of 5 comes with the append that forgets it; 99 is not there.
    let all: Vec<Gtrid> = [1, 2, 3, 4, 5, 99].into_iter().map(gtrid).collect();
    log.forget(&all, gtrid(6)).expect("forget");
    log.append(&[end(5)]).expect("append");
    let mut expected = one_of_each();
    let heuristics = expected.split_off(4);
    let heuristics = heuristics
        .into_iter()
        .filter(|record| matches!(record, Record::Heuristic { .. }));
    expected.push(Record::Horizon(gtrid(6)));
    expected.extend(heuristics);
    assert_eq!(replay(&log), expected);
    assert_eq!(log.stats().decisions, 0);
    let mut log = reopen(log);
    assert_eq!(replay(&log), expected);
    log.forget(&all, gtrid(2)).expect("forget");
    log.append(&[]).expect("append");
    assert_eq!(
        replay(&log),
        expected,
        "again, and the horizon does not go back"
    );
}

/// A branch that was to commit in one phase and refused: the refusal is its end.
fn forgets_refusals<L: DecisionLog>(mut log: L, reopen: Reopen<'_, L>) {
    let request = Request {
        id: RequestId::new("r"),
        fingerprint: 1,
    };
    let handed_over = Record::OnePhase {
        gtrid: gtrid(1),
        epoch: Epoch(1),
        bqual: Bqual(1),
        participant: name("p1"),
        request: Some(request.clone()),
    };
    let refused = Record::Refused {
        gtrid: gtrid(1),
        request,
        reason: Reason::new("INSUFFICIENT_FUNDS", ""),
    };
    log.append(&[handed_over, refused]).expect("append");
    let mut log = reopen(log);
    log.forget(&[gtrid(1)], gtrid(2)).expect("forget");
    log.append(&[]).expect("a refused transaction has ended");
    assert_eq!(replay(&reopen(log)), [Record::Horizon(gtrid(2))]);
}

fn refuses<L: DecisionLog>(mut log: L, reopen: Reopen<'_, L>) {
    log.append(&[decision(1), decision(2), end(2)])
        .expect("append");
    log.forget(&[gtrid(2), gtrid(1)], gtrid(3)).expect("forget");
    let refused = log.append(&[decision(3)]);
    assert!(
        matches!(refused, Err(LogError::NotEnded(early)) if early == gtrid(1)),
        "{refused:?}"
    );
    assert_eq!(
        replay(&log),
        [decision(1), decision(2), end(2)],
        "nothing was done"
    );
    log.append(&[end(1)])
        .expect("the log goes on, and has dropped what it was told to forget");
    let expected = [decision(1), end(1), decision(2), end(2)];
    assert_eq!(replay(&log), expected);
    assert_eq!(replay(&reopen(log)), expected);
}

fn nothing<L: DecisionLog>(mut log: L, reopen: Reopen<'_, L>) {
    log.append(&[]).expect("append");
    log.forget(&[], Gtrid::MIN).expect("forget");
    log.append(&[]).expect("append");
    assert_eq!(replay(&reopen(log)), [Record::Horizon(Gtrid::MIN)]);
}

fn large<L: DecisionLog>(mut log: L, reopen: Reopen<'_, L>) {
    const COUNT: u64 = 5_000;
    let records: Vec<Record> = (0..COUNT).map(decision).collect();
    log.append(&records).expect("append");
    let mut log = reopen(log);
    assert_eq!(replay(&log), records);
    log.append(&(0..COUNT).map(end).collect::<Vec<_>>())
        .expect("append");
    log.forget(&(0..COUNT).map(gtrid).collect::<Vec<_>>(), gtrid(COUNT))
        .expect("forget");
    log.append(&[]).expect("append");
    assert_eq!(replay(&reopen(log)), [Record::Horizon(gtrid(COUNT))]);
}
