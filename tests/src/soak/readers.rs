//! Reads of everything at once, while it is being changed and broken: what they see must add up.
//!
//! A read takes its locks on all servers and holds them to its end, so that it sees one moment.
//! After the crash of a server only changed rows are locked again (the design says so), so that a
//! read that a server did not outlive is left out of account.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use concord_client::v1::value::Kind;
use concord_client::{Client, Outcome, RetryPolicy, v1};
use tokio_util::sync::CancellationToken;

use super::stage::SERVERS;
use crate::proxy::lock;

/// Time-out of one read: while it waits it is in everybody's way.
const TIMEOUT: Duration = Duration::from_millis(700);
/// Between two reads.
const PAUSE: Duration = Duration::from_millis(300);

/// What the reads saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Reads that added up.
    pub sound: u64,
    /// Reads that a server did not outlive.
    pub left_out: u64,
    /// Reads that were refused, most because somebody held a lock.
    pub refused: u64,
    /// What does not add up.
    pub violations: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
enum Subject {
    Money,
    Counters,
}

/// Reads until stopped. `money` is the sum of all balances.
pub async fn run(
    client: Client,
    money: i64,
    server_kills: Arc<Mutex<Vec<Instant>>>,
    stop: CancellationToken,
) -> Seen {
    let client = client.with_retry(RetryPolicy::none());
    let mut seen = Seen::default();
    for subject in [Subject::Money, Subject::Counters].into_iter().cycle() {
        let began = Instant::now();
        let read = read(&client, subject);
        let Some(outcome) = stop.run_until_cancelled(read).await else {
            break;
        };
        if let Outcome::Committed { results, .. } = outcome {
            let found = judge(subject, money, &results);
            if lock(&server_kills).iter().any(|kill| *kill >= began) {
                seen.left_out += 1;
            } else if let Err(violation) = found {
                seen.violations.push(violation);
            } else {
                seen.sound += 1;
            }
        } else {
            seen.refused += 1;
        }
        if stop
            .run_until_cancelled(tokio::time::sleep(PAUSE))
            .await
            .is_none()
        {
            break;
        }
    }
    seen
}

async fn read(client: &Client, subject: Subject) -> Outcome {
    let sql = match subject {
        Subject::Money => "SELECT id, balance FROM concord_bank.accounts LOCK IN SHARE MODE",
        Subject::Counters => "SELECT id, n FROM soak.counters ORDER BY id LOCK IN SHARE MODE",
    };
    let mut tx = client
        .one_shot()
        .isolation(v1::Isolation::Serializable)
        .timeout(TIMEOUT);
    for n in 1..=SERVERS {
        tx = tx.on(&format!("p{n}"), sql);
    }
    tx.send().await
}

fn judge(subject: Subject, money: i64, results: &[v1::StatementResult]) -> Result<(), String> {
    let rows: Vec<Vec<(String, i64)>> = results.iter().map(pairs).collect();
    match subject {
        Subject::Money => {
            let all = rows.iter().flatten();
            if let Some((account, balance)) = all.clone().find(|(_, balance)| *balance < 0) {
                return Err(format!("a read saw {account} overdrawn: {balance}"));
            }
            let sum: i64 = all.map(|(_, balance)| balance).sum();
            if sum == money {
                return Ok(());
            }
            Err(format!("a read saw {sum} on all accounts, not {money}"))
        }
        Subject::Counters => {
            let whole = rows.len() == usize::from(SERVERS) && !rows[0].is_empty();
            if whole && rows.iter().all(|server| *server == rows[0]) {
                return Ok(());
            }
            Err(format!("a read saw counters that differ: {rows:?}"))
        }
    }
}

/// The two columns of each row; what cannot be read as such is a value that nothing equals.
fn pairs(result: &v1::StatementResult) -> Vec<(String, i64)> {
    let pair = |row: &v1::Row| {
        let kind = |at: usize| row.values.get(at).and_then(|value| value.kind.clone());
        let key = match kind(0) {
            Some(Kind::String(text)) => text,
            other => format!("{other:?}"),
        };
        let value = match kind(1) {
            Some(Kind::Int64(value)) => value,
            _ => i64::MIN,
        };
        (key, value)
    };
    result.result.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(rows: &[(&str, i64)]) -> v1::StatementResult {
        let row = |(key, value): &(&str, i64)| v1::Row {
            values: [Kind::String((*key).to_owned()), Kind::Int64(*value)]
                .map(|kind| v1::Value { kind: Some(kind) })
                .to_vec(),
        };
        v1::StatementResult {
            result: rows.iter().map(row).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn what_does_not_add_up_is_seen() {
        let results = [result(&[("a", 3)]), result(&[("b", 4)]), result(&[])];
        assert!(judge(Subject::Money, 7, &results).is_ok());
        assert!(judge(Subject::Money, 8, &results).is_err());
        let overdrawn = [result(&[("a", -1)]), result(&[("b", 8)])];
        assert!(judge(Subject::Money, 7, &overdrawn).is_err());
        let equal = [
            result(&[("0", 5)]),
            result(&[("0", 5)]),
            result(&[("0", 5)]),
        ];
        assert!(judge(Subject::Counters, 0, &equal).is_ok());
        let torn = [
            result(&[("0", 5)]),
            result(&[("0", 5)]),
            result(&[("0", 4)]),
        ];
        assert!(judge(Subject::Counters, 0, &torn).is_err());
        assert!(judge(Subject::Counters, 0, &equal[..2]).is_err());
        assert!(judge(Subject::Counters, 0, &[]).is_err());
    }
}
