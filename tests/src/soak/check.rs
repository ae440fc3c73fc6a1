//! What the servers hold at the end of a round, against what the clients were told.
//!
//! It reads by plain SQL as root, past every daemon. It refuses to repair or to explain: a
//! violation is a sentence.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use sqlx::{Row as _, mysql::MySqlConnection};

use super::record::{Operation, Operations, Told, What};
use super::stage::{SERVERS, STOCK, Stage, merchant};
use crate::books::Books;

/// Where an operation left its traces.
#[derive(Clone, Debug, Default)]
struct Traces {
    /// Entries of the bank's journal by what their memo says.
    entries: BTreeMap<String, Vec<(Vec<u8>, String, i64)>>,
    /// Steps of counters by operation, with the server.
    steps: BTreeMap<String, Vec<(u16, i64)>>,
    /// Servers that have an operation's row.
    items: BTreeMap<String, BTreeSet<u16>>,
    /// Orders by id: transaction and total.
    orders: BTreeMap<String, (Vec<u8>, i64)>,
    /// Lines of orders by transaction.
    lines: BTreeMap<Vec<u8>, Vec<(String, i64)>>,
    /// What left the stock, by transaction.
    taken: BTreeMap<Vec<u8>, Vec<(String, i64)>>,
    /// What is left of each product.
    stock: BTreeMap<String, i64>,
    /// The counters of each server.
    counters: Vec<Vec<(i64, i64)>>,
    /// The steps of each server, in the order of each counter's value.
    ways: Vec<Vec<(i64, i64, String)>>,
}

/// Everything that is not as it must be.
pub async fn all(stage: &Stage, operations: &Operations) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    let books = Books::read(&stage.cluster, SERVERS.into()).await;
    match books {
        Ok(books) => {
            if let Err(error) = books.check() {
                violations.push(format!("{error:#}"));
            }
            if books.sum() != stage.money {
                let (sum, money) = (books.sum(), stage.money);
                violations.push(format!("there is {sum} on all accounts, not {money}"));
            }
        }
        // A request that took effect twice is one of these.
        Err(error) => violations.push(format!("{error:#}")),
    }
    let traces = Traces::of(stage).await?;
    violations.extend(traces.stock_adds_up());
    violations.extend(traces.counters_are_equal());
    violations.extend(traces.nobody_else_wrote(operations));
    violations.extend(traces.judge_all(operations));
    Ok(violations)
}

/// Operations that did not take effect as they were told, or not wholly.
pub async fn told(stage: &Stage, operations: &Operations) -> anyhow::Result<Vec<String>> {
    Ok(Traces::of(stage).await?.judge_all(operations).collect())
}

impl Traces {
    async fn of(stage: &Stage) -> anyhow::Result<Self> {
        let mut traces = Self::default();
        for n in 1..=SERVERS {
            let read = traces.read(stage, n).await;
            read.with_context(|| format!("server {n}"))?;
        }
        Ok(traces)
    }

    fn judge_all(&self, operations: &Operations) -> impl Iterator<Item = String> {
        operations.iter().filter_map(|(id, operation)| {
            let violation = self.judge(id, operation).err()?;
            Some(format!("{id} ({operation:?}): {violation}"))
        })
    }

    async fn read(&mut self, stage: &Stage, n: u16) -> anyhow::Result<()> {
        let mut root = stage.cluster.root(n.into()).await?;
        self.read_shop(&mut root).await?;
        let sql = "SELECT memo, gtrid, account_id, amount FROM concord_bank.journal";
        for row in sqlx::query(sql).fetch_all(&mut root).await? {
            let (memo, gtrid): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            let entry = (gtrid, row.try_get(2)?, row.try_get(3)?);
            self.entries.entry(memo).or_default().push(entry);
        }
        let sql = "SELECT counter, n, op FROM soak.steps ORDER BY counter, n, op";
        let mut way = Vec::new();
        for row in sqlx::query(sql).fetch_all(&mut root).await? {
            let (counter, value, op): (i64, i64, String) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            self.steps.entry(op.clone()).or_default().push((n, counter));
            way.push((counter, value, op));
        }
        self.ways.push(way);
        let sql = "SELECT id, n FROM soak.counters ORDER BY id";
        let rows = sqlx::query(sql).fetch_all(&mut root).await?;
        let counters = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        self.counters.push(counters.collect::<anyhow::Result<_>>()?);
        let sql = "SELECT op FROM soak.items";
        for op in sqlx::query_scalar::<_, String>(sql)
            .fetch_all(&mut root)
            .await?
        {
            self.items.entry(op).or_default().insert(n);
        }
        Ok(())
    }

    async fn read_shop(&mut self, root: &mut MySqlConnection) -> anyhow::Result<()> {
        let sql = "SELECT id, gtrid, total FROM concord_inventory.orders";
        for row in sqlx::query(sql).fetch_all(&mut *root).await? {
            let order = (row.try_get(1)?, row.try_get(2)?);
            self.orders.insert(row.try_get(0)?, order);
        }
        let sql = "SELECT gtrid, product_id, quantity FROM concord_inventory.order_lines";
        for row in sqlx::query(sql).fetch_all(&mut *root).await? {
            let line = (row.try_get(1)?, row.try_get(2)?);
            self.lines.entry(row.try_get(0)?).or_default().push(line);
        }
        let sql = "SELECT gtrid, product_id, delta FROM concord_inventory.stock_journal";
        for row in sqlx::query(sql).fetch_all(&mut *root).await? {
            let taken: (String, i64) = (row.try_get(1)?, -row.try_get::<i64, _>(2)?);
            self.taken.entry(row.try_get(0)?).or_default().push(taken);
        }
        let sql = "SELECT id, stock FROM concord_inventory.products";
        for row in sqlx::query(sql).fetch_all(&mut *root).await? {
            self.stock.insert(row.try_get(0)?, row.try_get(1)?);
        }
        Ok(())
    }

    /// What is left of a product and what was ordered of it is what there was.
    fn stock_adds_up(&self) -> Vec<String> {
        let mut ordered: BTreeMap<&str, i64> = BTreeMap::new();
        for (product, quantity) in self.lines.values().flatten() {
            *ordered.entry(product).or_default() += quantity;
        }
        let wrong = self.stock.iter().filter_map(|(product, left)| {
            let gone = ordered.get(product.as_str()).copied().unwrap_or_default();
            (left + gone != STOCK || *left < 0)
                .then(|| format!("{product}: {left} left and {gone} ordered of {STOCK}"))
        });
        wrong.collect()
    }

    /// Counters are equal on all servers, as is the way that each came.
    fn counters_are_equal(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (n, (counters, way)) in (2..).zip(self.counters.iter().zip(&self.ways).skip(1)) {
            if *counters != self.counters[0] {
                let first = &self.counters[0];
                wrong.push(format!(
                    "counters differ: {first:?} on 1, {counters:?} on {n}"
                ));
            }
            if let Some((first, other)) = self.ways[0].iter().zip(way).find(|(a, b)| a != b) {
                wrong.push(format!("steps differ: {first:?} on 1, {other:?} on {n}"));
            } else if way.len() != self.ways[0].len() {
                let (first, other) = (self.ways[0].len(), way.len());
                wrong.push(format!("{first} steps on 1, {other} on {n}"));
            }
        }
        wrong
    }

    /// Nothing is there that no client wrote down before it sent it.
    fn nobody_else_wrote(&self, operations: &Operations) -> Vec<String> {
        let orders = self.orders.keys();
        let ids = self.items.keys().chain(self.steps.keys()).chain(orders);
        let strange = ids.filter(|id| !operations.contains_key(*id));
        strange
            .map(|id| format!("{id} took effect, and nobody sent it"))
            .collect()
    }

    /// An operation took effect wholly or not at all, and as its client was told.
    fn judge(&self, id: &str, operation: &Operation) -> Result<(), String> {
        let there = match &operation.what {
            What::Transfer { from, to, amount } => self.transfer(id, from, to, *amount)?,
            What::Count { counter, .. } => self.count(id, *counter)?,
            What::Insert { servers } => {
                let wanted: BTreeSet<u16> = servers.iter().copied().collect();
                match self.items.get(id) {
                    None => false,
                    Some(found) if *found == wanted => true,
                    Some(found) => return Err(format!("it is on the servers {found:?} alone")),
                }
            }
            What::Never { .. } => match self.items.get(id) {
                None => return Ok(()),
                Some(found) => return Err(format!("it was taken back and is on {found:?}")),
            },
            What::Order { from, lines } => self.order(id, from, lines)?,
        };
        match (operation.told, there) {
            (Told::Committed, false) => Err("its client was told that it is done".to_owned()),
            (Told::Aborted, true) => Err("its client was told that it is not done".to_owned()),
            _ => Ok(()),
        }
    }

    fn transfer(&self, id: &str, from: &str, to: &str, amount: i64) -> Result<bool, String> {
        let Some(entries) = self.entries.get(id) else {
            return Ok(false);
        };
        let gtrids: BTreeSet<_> = entries.iter().map(|(gtrid, ..)| gtrid).collect();
        let mut moved: Vec<(&str, i64)> = entries
            .iter()
            .map(|(_, account, amount)| (account.as_str(), *amount))
            .collect();
        moved.sort_unstable();
        let mut wanted = vec![(from, -amount), (to, amount)];
        wanted.sort_unstable();
        if gtrids.len() == 1 && moved == wanted {
            return Ok(true);
        }
        Err(format!("in the journal it is {entries:?}"))
    }

    fn count(&self, id: &str, counter: i64) -> Result<bool, String> {
        let Some(steps) = self.steps.get(id) else {
            return Ok(false);
        };
        let everywhere = (1..=SERVERS).map(|n| (n, counter));
        if steps.iter().copied().eq(everywhere) {
            return Ok(true);
        }
        Err(format!("its steps are {steps:?}"))
    }

    fn order(&self, id: &str, from: &str, lines: &[(String, i64)]) -> Result<bool, String> {
        let paid = self.entries.get(&format!("order {id}"));
        let Some((gtrid, total)) = self.orders.get(id) else {
            return match paid {
                None => Ok(false),
                Some(paid) => Err(format!("there is no order, and it was paid: {paid:?}")),
            };
        };
        let sorted = |list: Option<&Vec<(String, i64)>>| {
            let mut list = list.cloned().unwrap_or_default();
            list.sort_unstable();
            list
        };
        let wanted = sorted(Some(&lines.to_vec()));
        let (written, taken) = (self.lines.get(gtrid), self.taken.get(gtrid));
        if sorted(written) != wanted || sorted(taken) != wanted {
            return Err(format!(
                "its lines are {written:?}, the stock gave {taken:?}"
            ));
        }
        let to = merchant();
        let mut payment = paid.cloned().unwrap_or_default();
        payment.sort_by_key(|(_, _, amount)| *amount);
        let legal = [
            (gtrid.clone(), from.to_owned(), -total),
            (gtrid.clone(), to, *total),
        ];
        if payment == legal {
            return Ok(true);
        }
        Err(format!("it costs {total}, and the payment is {payment:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(what: What, told: Told) -> Operation {
        Operation {
            what,
            told,
            gtrid: None,
        }
    }

    fn transfer(told: Told) -> Operation {
        let (from, to) = ("a".to_owned(), "b".to_owned());
        operation(
            What::Transfer {
                from,
                to,
                amount: 5,
            },
            told,
        )
    }

    #[test]
    fn a_transfer_is_whole_and_as_it_was_told() {
        let mut traces = Traces::default();
        assert!(traces.judge("t", &transfer(Told::Committed)).is_err());
        assert!(traces.judge("t", &transfer(Told::Unknown)).is_ok());
        let debit = (vec![1], "a".to_owned(), -5);
        let credit = (vec![1], "b".to_owned(), 5);
        traces.entries.insert("t".into(), vec![debit.clone()]);
        assert!(traces.judge("t", &transfer(Told::Unknown)).is_err(), "half");
        traces
            .entries
            .insert("t".into(), vec![debit.clone(), credit.clone()]);
        assert!(traces.judge("t", &transfer(Told::Committed)).is_ok());
        assert!(traces.judge("t", &transfer(Told::Aborted)).is_err());
        let other = (vec![2], "b".to_owned(), 5);
        traces.entries.insert("t".into(), vec![debit, other]);
        assert!(
            traces.judge("t", &transfer(Told::Unknown)).is_err(),
            "two transactions"
        );
    }

    #[test]
    fn inserts_and_counts_are_on_all_servers_or_none() {
        let mut traces = Traces::default();
        let insert = |told| {
            operation(
                What::Insert {
                    servers: vec![1, 3],
                },
                told,
            )
        };
        let never = operation(
            What::Never {
                servers: vec![1, 3],
            },
            Told::Unknown,
        );
        assert!(traces.judge("i", &insert(Told::Committed)).is_err());
        assert!(traces.judge("i", &never).is_ok());
        traces.items.insert("i".into(), [1].into());
        assert!(traces.judge("i", &insert(Told::Unknown)).is_err());
        assert!(traces.judge("i", &never).is_err());
        traces.items.insert("i".into(), [1, 3].into());
        assert!(traces.judge("i", &insert(Told::Committed)).is_ok());
        assert!(traces.judge("i", &insert(Told::Aborted)).is_err());
        assert_eq!(traces.nobody_else_wrote(&Operations::new()).len(), 1);

        let count = |told| {
            operation(
                What::Count {
                    counter: 4,
                    plus: 1,
                },
                told,
            )
        };
        traces.steps.insert("c".into(), vec![(1, 4), (2, 4)]);
        assert!(traces.judge("c", &count(Told::Unknown)).is_err());
        traces
            .steps
            .insert("c".into(), vec![(1, 4), (2, 4), (3, 4)]);
        assert!(traces.judge("c", &count(Told::Committed)).is_ok());
        traces
            .steps
            .insert("c".into(), vec![(1, 4), (1, 4), (2, 4), (3, 4)]);
        assert!(traces.judge("c", &count(Told::Unknown)).is_err(), "twice");
    }

    #[test]
    fn an_order_has_its_stock_and_its_payment() {
        let what = What::Order {
            from: "a".into(),
            lines: vec![("tea".into(), 2)],
        };
        let order = |told| operation(what.clone(), told);
        let mut traces = Traces::default();
        let paid = vec![(vec![1], "a".into(), -6), (vec![1], merchant(), 6)];
        traces.entries.insert("order o".into(), paid);
        assert!(
            traces.judge("o", &order(Told::Unknown)).is_err(),
            "paid for nothing"
        );
        traces.orders.insert("o".into(), (vec![1], 6));
        traces.lines.insert(vec![1], vec![("tea".into(), 2)]);
        assert!(
            traces.judge("o", &order(Told::Unknown)).is_err(),
            "nothing taken"
        );
        traces.taken.insert(vec![1], vec![("tea".into(), 2)]);
        assert!(traces.judge("o", &order(Told::Committed)).is_ok());
        assert!(traces.judge("o", &order(Told::Aborted)).is_err());
        traces.stock.insert("tea".into(), STOCK - 2);
        assert!(traces.stock_adds_up().is_empty());
        traces.stock.insert("tea".into(), STOCK - 1);
        assert_eq!(traces.stock_adds_up().len(), 1);
        traces.entries.clear();
        assert!(
            traces.judge("o", &order(Told::Unknown)).is_err(),
            "not paid"
        );
    }

    #[test]
    fn counters_that_came_another_way_are_seen() {
        let step = |op: &str| (0, 1, op.to_owned());
        let mut traces = Traces {
            counters: vec![vec![(0, 1)]; 3],
            ways: vec![vec![step("x")]; 3],
            ..Traces::default()
        };
        assert!(traces.counters_are_equal().is_empty());
        traces.ways[2] = vec![step("y")];
        assert_eq!(traces.counters_are_equal().len(), 1);
        traces.ways[2].clear();
        traces.counters[1][0].1 = 2;
        assert_eq!(traces.counters_are_equal().len(), 2);
    }
}
