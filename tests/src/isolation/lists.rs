//! Our own rules, beside `adya`: simple enough to be seen to be right, and of what it does not
//! know, such as what became of unknown outcomes.

use std::collections::{BTreeMap, BTreeSet};

use super::check::{Level, Violation};
use super::history::{Element, End, Key, Op, Txn};

/// An acknowledged append is not there.
pub const LOST: &str = "lost-append";
/// An element stands there more than once.
pub const TWICE: &str = "appended-twice";
/// What an aborted transaction appended was seen.
pub const ABORTED: &str = "aborted-append-seen";
/// A transaction of unknown outcome is there in part.
pub const TORN: &str = "torn-transaction";
/// An element that nobody appended.
pub const STRANGE: &str = "strange-element";
/// What one transaction appended to a list has something else in between, or another order.
pub const SCATTERED: &str = "scattered-appends";
/// A read that is no prefix of the list as it is in the end.
pub const NO_PREFIX: &str = "no-prefix";
/// A read without what was acknowledged before its transaction began.
pub const STALE: &str = "stale-read";
/// A read without what its own transaction appended before.
pub const OWN: &str = "own-append-missed";
/// Two reads of one transaction differ although the level says that they do not.
pub const UNREPEATABLE: &str = "unrepeatable-read";

type Broken = Result<(), Violation>;

struct Lists<'t> {
    /// What is read of each list after everything has ended.
    last: BTreeMap<Key, &'t [Element]>,
    /// Of each element: the list, and whose it is.
    of: BTreeMap<Element, (Key, &'t Txn)>,
}

/// All rules on a history whose last transactions read all lists.
pub(super) fn check(txns: &[Txn], level: Level) -> Vec<Violation> {
    let lists = Lists::new(txns);
    let mut found: Vec<Violation> = lists.elements().err().into_iter().collect();
    for txn in txns {
        let rules = [
            lists.all_or_nothing(txn),
            lists.together(txn),
            lists.prefixes(txn),
            lists.fresh(txn),
            own(txn),
            repeatable(txn, level),
        ];
        found.extend(rules.into_iter().filter_map(Result::err));
    }
    found
}

fn broken(rule: &str, proof: String) -> Broken {
    Err(Violation {
        kind: rule.to_owned(),
        proof,
    })
}

fn reads(txn: &Txn) -> impl Iterator<Item = (usize, Key, &[Element])> {
    let committed = txn.end == End::Committed;
    let ops = txn.ops.iter().enumerate();
    ops.filter_map(move |(at, op)| match op {
        Op::Read { key, seen, .. } if committed => Some((at, *key, seen.as_deref()?)),
        _ => None,
    })
}

impl<'t> Lists<'t> {
    fn new(txns: &'t [Txn]) -> Self {
        let of = txns
            .iter()
            .flat_map(|txn| txn.appends().map(move |(key, at)| (at, (key, txn))));
        let mut latest: BTreeMap<Key, (u64, &[Element])> = BTreeMap::new();
        for txn in txns {
            for (_, key, seen) in reads(txn) {
                let latest = latest.entry(key).or_insert((txn.began, seen));
                if txn.began >= latest.0 {
                    *latest = (txn.began, seen);
                }
            }
        }
        Self {
            last: latest
                .into_iter()
                .map(|(key, (_, seen))| (key, seen))
                .collect(),
            of: of.collect(),
        }
    }

    fn last(&self, key: Key) -> &'t [Element] {
        self.last.get(&key).copied().unwrap_or_default()
    }

    fn elements(&self) -> Broken {
        for (key, list) in &self.last {
            let mut seen = BTreeSet::new();
            for element in *list {
                if !seen.insert(element) {
                    return broken(TWICE, format!("list {key} has {element} twice: {list:?}"));
                }
                match self.of.get(element) {
                    Some((of, _)) if of == key => {}
                    _ => return broken(STRANGE, format!("nobody appended {element} to {key}")),
                }
            }
        }
        Ok(())
    }

    /// Committed: all of it is there. Aborted: nothing. Unknown: either, on all servers.
    fn all_or_nothing(&self, txn: &Txn) -> Broken {
        let is_there = |(key, element): (Key, Element)| self.last(key).contains(&element);
        let there = txn.appends().filter(|append| is_there(*append)).count();
        let all = txn.appends().count();
        let rule = match txn.end {
            End::Committed if there < all => LOST,
            End::Aborted(_) if there > 0 => ABORTED,
            End::Unknown if there > 0 && there < all => TORN,
            _ => return Ok(()),
        };
        broken(
            rule,
            format!("{there} of {all} appends are there of {txn:?}"),
        )
    }

    /// What one transaction appended to a list stands there in its order, with nothing between:
    /// the first of them locks the row until the outcome.
    fn together(&self, txn: &Txn) -> Broken {
        let mut by_list: BTreeMap<Key, Vec<Element>> = BTreeMap::new();
        for (key, element) in txn.appends() {
            by_list.entry(key).or_default().push(element);
        }
        for (key, appended) in by_list {
            let list = self.last(key);
            let Some(at) = list.iter().position(|element| *element == appended[0]) else {
                continue;
            };
            if !list[at..].starts_with(&appended) {
                let proof = format!("{appended:?} of {txn:?} in list {key}: {list:?}");
                return broken(SCATTERED, proof);
            }
        }
        Ok(())
    }

    fn prefixes(&self, txn: &Txn) -> Broken {
        for (_, key, seen) in reads(txn) {
            let list = self.last(key);
            if !list.starts_with(seen) {
                return broken(NO_PREFIX, format!("{seen:?} of {list:?}, in {txn:?}"));
            }
        }
        Ok(())
    }

    /// An acknowledged commit is applied everywhere, so whoever begins later reads it.
    fn fresh(&self, txn: &Txn) -> Broken {
        for (_, key, seen) in reads(txn) {
            let missed = &self.last(key)[seen.len().min(self.last(key).len())..];
            let old = missed.iter().find(|element| {
                self.of.get(element).is_some_and(|(_, writer)| {
                    writer.end == End::Committed && writer.ended < txn.began
                })
            });
            if let Some(old) = old {
                return broken(STALE, format!("{old} of list {key} is missed in {txn:?}"));
            }
        }
        Ok(())
    }
}

fn own(txn: &Txn) -> Broken {
    for (at, key, seen) in reads(txn) {
        let own: Vec<Element> = txn.ops[..at]
            .iter()
            .filter_map(|op| match op {
                Op::Append { key: of, element } if *of == key => Some(*element),
                _ => None,
            })
            .collect();
        if !seen.ends_with(&own) {
            return broken(
                OWN,
                format!("{own:?} is not the end of {seen:?} in {txn:?}"),
            );
        }
    }
    Ok(())
}

/// Under REPEATABLE READ two plain reads of a list with no own append before them are equal; under
/// SERIALIZABLE whatever comes between them is the transaction's own.
fn repeatable(txn: &Txn, level: Level) -> Broken {
    let mut known: BTreeMap<Key, Vec<Element>> = BTreeMap::new();
    let mut appended = BTreeSet::new();
    for op in &txn.ops {
        match (op, level) {
            (_, Level::ReadCommitted) => return Ok(()),
            (Op::Append { key, element }, _) => {
                appended.insert(*key);
                if let Some(list) = known.get_mut(key) {
                    list.push(*element);
                }
            }
            (Op::Read { key, locking, .. }, Level::RepeatableRead)
                if *locking || appended.contains(key) => {}
            (Op::Read { key, seen, .. }, _) => {
                let Some(seen) = seen.as_ref().filter(|_| txn.end == End::Committed) else {
                    continue;
                };
                let before = known.entry(*key).or_insert_with(|| seen.clone());
                if before != seen {
                    return broken(UNREPEATABLE, format!("list {key} in {txn:?}"));
                }
            }
        }
    }
    Ok(())
}
