//! What clients did and were told, and the same in the form that `adya` reads.
//!
//! A history is recorded from outside: what was sent, what came back, and in which order these
//! moments were seen on one counter. Nothing here asks the servers or the daemons.

use adya::History;
use adya::history::{Id, Interner, Mop, Op as Event, OpType, ReadValue, Scalar};

/// A list that transactions append to.
pub type Key = u32;
/// An appended element; no two appends have the same.
pub type Element = i64;

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Appends an element.
    Append { key: Key, element: Element },
    /// Reads a whole list; a locking read is `FOR UPDATE`.
    Read {
        key: Key,
        locking: bool,
        /// What was read, in a transaction that committed.
        seen: Option<Vec<Element>>,
    },
}

impl Op {
    /// The list that it concerns.
    pub fn key(&self) -> Key {
        match self {
            Self::Append { key, .. } | Self::Read { key, .. } => *key,
        }
    }
}

/// How a transaction ended, as its client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// COMMITTED.
    Committed,
    /// ABORTED, for a reason with this code.
    Aborted(String),
    /// Nothing certain.
    Unknown,
}

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// Its number in the run.
    pub number: u64,
    /// What it did, in order.
    pub ops: Vec<Op>,
    /// How it ended.
    pub end: End,
    /// When it was sent, on the run's counter.
    pub began: u64,
    /// When its end was known; for a commit, when all its branches were applied at the latest.
    pub ended: u64,
}

impl Txn {
    /// Its appends, in order.
    pub fn appends(&self) -> impl Iterator<Item = (Key, Element)> + '_ {
        self.ops.iter().filter_map(|op| match op {
            Op::Append { key, element } => Some((*key, *element)),
            Op::Read { .. } => None,
        })
    }

    /// Whether another transaction ran at the same time and touched a list that this one touched,
    /// at least one of them with an append.
    pub fn meets_any(&self, others: &[Self]) -> bool {
        others.iter().any(|other| {
            let together = self.began < other.ended && other.began < self.ended;
            together && self.number != other.number && self.conflicts_with(other)
        })
    }

    fn conflicts_with(&self, other: &Self) -> bool {
        let is_append = |op: &Op| matches!(op, Op::Append { .. });
        self.ops.iter().any(|one| {
            let same = |two: &Op| two.key() == one.key() && (is_append(one) || is_append(two));
            other.ops.iter().any(same)
        })
    }

    fn with_ops(&self, ops: Vec<Op>) -> Self {
        Self {
            ops,
            ..self.clone()
        }
    }
}

/// The server that a list lives on, from 1.
pub fn server_of(key: Key, servers: u16) -> u16 {
    u16::try_from(key % u32::from(servers)).unwrap_or_default() + 1
}

/// What happened on one server, of each transaction that came there.
pub fn of_server(txns: &[Txn], server: u16, servers: u16) -> Vec<Txn> {
    let of_branch = |txn: &Txn| -> Vec<Op> {
        let here = |op: &&Op| server_of(op.key(), servers) == server;
        txn.ops.iter().filter(here).cloned().collect()
    };
    let branches = txns.iter().map(|txn| txn.with_ops(of_branch(txn)));
    branches.filter(|txn| !txn.ops.is_empty()).collect()
}

/// Each branch as two transactions: one of its plain reads of lists that it has not appended to,
/// which under REPEATABLE READ all see one snapshot, and one of its appends, which see the present.
/// Locking reads and reads of own appends see the present too and prove nothing of the snapshot.
pub fn split_snapshots(branches: &[Txn]) -> Vec<Txn> {
    let mut split = Vec::with_capacity(2 * branches.len());
    for branch in branches {
        let mut own = Vec::new();
        let (mut reads, mut appends) = (Vec::new(), Vec::new());
        for op in &branch.ops {
            match op {
                Op::Append { key, .. } => {
                    own.push(*key);
                    appends.push(op.clone());
                }
                Op::Read { key, locking, .. } if !locking && !own.contains(key) => {
                    reads.push(op.clone());
                }
                Op::Read { .. } => {}
            }
        }
        for ops in [reads, appends] {
            if !ops.is_empty() {
                split.push(branch.with_ops(ops));
            }
        }
    }
    split
}

/// The history as `adya` reads it. Each transaction is a process of its own: what one client did
/// before is real-time order, which the moments tell.
pub fn for_adya(txns: &[Txn]) -> History {
    let mut interner = Interner::default();
    let mut events: Vec<(u64, Event)> = Vec::with_capacity(2 * txns.len());
    for (process, txn) in txns.iter().enumerate() {
        let kind = match txn.end {
            End::Committed => OpType::Ok,
            End::Aborted(_) => OpType::Fail,
            End::Unknown => OpType::Info,
        };
        for (moment, kind) in [(txn.began, OpType::Invoke), (txn.ended, kind)] {
            let event = Event {
                index: txn.number,
                kind,
                process: i64::try_from(process).ok(),
                value: mops(&txn.ops, kind, &mut interner),
                time: None,
            };
            events.push((moment, event));
        }
    }
    // Both halves of a split transaction have the same moments: their order says nothing.
    events.sort_by_key(|(moment, _)| *moment);
    let events = events.into_iter().map(|(_, event)| event).collect();
    History::from_ops(events, interner)
}

fn mops(ops: &[Op], kind: OpType, interner: &mut Interner) -> Vec<Mop> {
    let mut id = |number: i64| -> Id { interner.intern(Scalar::Int(number)) };
    let mop = |op: &Op| match op {
        Op::Append { key, element } => Mop::Append {
            key: id(i64::from(*key)),
            value: id(*element),
        },
        Op::Read { key, seen, .. } => Mop::Read {
            key: id(i64::from(*key)),
            value: match seen {
                Some(seen) if kind == OpType::Ok => {
                    ReadValue::List(seen.iter().map(|element| id(*element)).collect())
                }
                _ => ReadValue::Nil,
            },
        },
    };
    ops.iter().map(mop).collect()
}
