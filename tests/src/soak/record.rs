//! What a client wrote down: each operation before it was sent, and what it was told of it.
//!
//! The file outlives its client, which may be killed at any moment: a line is one write, and what a
//! process has written stays when the process goes. An operation without a second line is one whose
//! client never learned its outcome.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context, bail};
use concord_client::Outcome;

/// What an operation does when it takes effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Moves money.
    Transfer {
        /// Debited.
        from: String,
        /// Credited.
        to: String,
        /// How much.
        amount: i64,
    },
    /// Adds to one counter on every server, and notes the step.
    Count {
        /// Which.
        counter: i64,
        /// How much.
        plus: i64,
    },
    /// Inserts one row on each of these servers, from 1.
    Insert {
        /// Which.
        servers: Vec<u16>,
    },
    /// Takes stock, writes an order and pays for it.
    Order {
        /// Who pays.
        from: String,
        /// Products and quantities.
        lines: Vec<(String, i64)>,
    },
    /// Must never take effect, because its own client takes it back or asks for the impossible:
    /// an insert on each of these servers.
    Never {
        /// Which.
        servers: Vec<u16>,
    },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = |servers: &[u16]| {
            let all: Vec<String> = servers.iter().map(u16::to_string).collect();
            all.join(",")
        };
        match self {
            Self::Transfer { from, to, amount } => write!(f, "transfer\t{from}\t{to}\t{amount}"),
            Self::Count { counter, plus } => write!(f, "count\t{counter}\t{plus}"),
            Self::Insert { servers } => write!(f, "insert\t{}", numbers(servers)),
            Self::Never { servers } => write!(f, "never\t{}", numbers(servers)),
            Self::Order { from, lines } => {
                write!(f, "order\t{from}")?;
                lines
                    .iter()
                    .try_for_each(|(product, quantity)| write!(f, "\t{product}={quantity}"))
            }
        }
    }
}

impl What {
    fn parse(words: &[&str]) -> anyhow::Result<Self> {
        let numbers = |list: &str| -> anyhow::Result<Vec<u16>> {
            list.split(',').map(|n| Ok(n.parse()?)).collect()
        };
        Ok(match words {
            ["transfer", from, to, amount] => Self::Transfer {
                from: (*from).to_owned(),
                to: (*to).to_owned(),
                amount: amount.parse()?,
            },
            ["count", counter, plus] => Self::Count {
                counter: counter.parse()?,
                plus: plus.parse()?,
            },
            ["insert", servers] => Self::Insert {
                servers: numbers(servers)?,
            },
            ["never", servers] => Self::Never {
                servers: numbers(servers)?,
            },
            ["order", from, lines @ ..] => {
                let line = |line: &&str| -> anyhow::Result<(String, i64)> {
                    let (product, quantity) = line.split_once('=').context("not a line")?;
                    Ok((product.to_owned(), quantity.parse()?))
                };
                Self::Order {
                    from: (*from).to_owned(),
                    lines: lines.iter().map(line).collect::<anyhow::Result<_>>()?,
                }
            }
            other => bail!("{other:?} is no operation"),
        })
    }
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    /// It is done.
    Committed,
    /// It is not done and never will be.
    Aborted,
    /// Nobody knows, or nobody lived to hear it.
    Unknown,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub what: What,
    /// What its client was told.
    pub told: Told,
    /// Its transaction, if the client knows.
    pub gtrid: Option<String>,
}

/// All operations by id.
pub type Operations = BTreeMap<String, Operation>;

/// A record in the making.
#[derive(Debug)]
pub struct Record {
    file: File,
}

impl Record {
    /// A new one.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(path)?;
        Ok(Self { file })
    }

    /// Notes what is about to be sent.
    pub fn begins(&self, id: &str, what: &What) -> io::Result<()> {
        (&self.file).write_all(format!("B\t{id}\t{what}\n").as_bytes())
    }

    /// Notes what came of it.
    pub fn ended<R>(&self, id: &str, outcome: &Outcome<R>) -> io::Result<()> {
        let (told, why) = match outcome {
            Outcome::Committed { .. } => ("C", ""),
            Outcome::Aborted { reason, .. } => ("A", &*reason.code),
            Outcome::Unknown { .. } => ("U", ""),
        };
        let gtrid = outcome.gtrid().unwrap_or_default();
        (&self.file).write_all(format!("E\t{id}\t{told}\t{gtrid}\t{why}\n").as_bytes())
    }
}

/// Reads a record into `operations`; why operations were refused is counted in `reasons`.
pub fn read(
    path: &Path,
    operations: &mut Operations,
    reasons: &mut BTreeMap<String, u64>,
) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path)?;
    // Half a line was being written when its client was killed, and its operation was never sent.
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    for line in whole.lines() {
        take(line, operations, reasons).with_context(|| format!("{}: {line:?}", path.display()))?;
    }
    Ok(())
}

fn take(
    line: &str,
    operations: &mut Operations,
    reasons: &mut BTreeMap<String, u64>,
) -> anyhow::Result<()> {
    let words: Vec<&str> = line.split('\t').collect();
    match words[..] {
        ["B", id, ref what @ ..] => {
            let operation = Operation {
                what: What::parse(what)?,
                told: Told::Unknown,
                gtrid: None,
            };
            if operations.insert(id.to_owned(), operation).is_some() {
                bail!("begun twice");
            }
        }
        ["E", id, told, gtrid, why] => {
            let operation = operations.get_mut(id).context("it was never begun")?;
            operation.told = match told {
                "C" => Told::Committed,
                "A" => Told::Aborted,
                "U" => Told::Unknown,
                other => bail!("{other:?} is no outcome"),
            };
            operation.gtrid = Some(gtrid.to_owned()).filter(|gtrid| !gtrid.is_empty());
            if operation.told == Told::Aborted {
                *reasons.entry(why.to_owned()).or_default() += 1;
            }
        }
        _ => bail!("not a line of a record"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use concord_core::reason::Reason;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_a_torn_line_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let record = Record::create(&path).unwrap();
        let all = [
            What::Transfer {
                from: "a".into(),
                to: "b".into(),
                amount: 7,
            },
            What::Count {
                counter: 2,
                plus: 3,
            },
            What::Insert {
                servers: vec![1, 3],
            },
            What::Order {
                from: "a".into(),
                lines: vec![("tea".into(), 2), ("mug".into(), 1)],
            },
            What::Never { servers: vec![2] },
        ];
        for (n, what) in all.iter().enumerate() {
            record.begins(&n.to_string(), what).unwrap();
        }
        let committed = Outcome::Committed {
            gtrid: "g".into(),
            results: (),
            replayed: false,
            results_lost: false,
        };
        record.ended("0", &committed).unwrap();
        let aborted: Outcome<()> = Outcome::Aborted {
            reason: Reason::new("WHY", ""),
            gtrid: None,
        };
        record.ended("1", &aborted).unwrap();
        (&record.file).write_all(b"B\t9\tcou").unwrap();
        let (mut read_back, mut reasons) = (Operations::new(), BTreeMap::new());
        read(&path, &mut read_back, &mut reasons).unwrap();
        let told: Vec<Told> = read_back.values().map(|operation| operation.told).collect();
        let unknown = Told::Unknown;
        assert_eq!(
            told,
            [Told::Committed, Told::Aborted, unknown, unknown, unknown]
        );
        assert!(
            all.iter()
                .eq(read_back.values().map(|operation| &operation.what))
        );
        assert_eq!(read_back["0"].gtrid.as_deref(), Some("g"));
        assert_eq!(reasons["WHY"], 1);
    }
}
