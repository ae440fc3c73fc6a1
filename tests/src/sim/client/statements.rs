//! The statements of the clients, and where they run.

use concord_proto::v1;
use concord_proto::v1::value::Kind;

use super::{EFFECTS, MONEY_TABLE};

/// Name of the participant before a server.
pub fn participant(server: usize) -> String {
    format!("p{}", server + 1)
}

fn targeted(
    server: usize,
    sql: String,
    params: Vec<Kind>,
    expect: Option<&str>,
) -> v1::TargetedStatement {
    let params = params
        .into_iter()
        .map(|kind| v1::Value { kind: Some(kind) });
    let statement = v1::Statement {
        sql,
        params: params.collect(),
        expect: expect.map(|reason| v1::ExpectRows {
            min: Some(1),
            max: Some(1),
            reason: reason.to_owned(),
        }),
    };
    v1::TargetedStatement {
        participant: participant(server),
        statement: Some(statement),
    }
}

/// Counts that a label took effect.
pub(super) fn effect(label: &str, server: usize) -> v1::TargetedStatement {
    add(server, EFFECTS, label, 1, None)
}

pub(super) fn add(
    server: usize,
    table: &str,
    key: &str,
    amount: i64,
    at_least: Option<i64>,
) -> v1::TargetedStatement {
    let sql = format!("UPDATE {table} SET v = v + ? WHERE k = ?");
    let params = vec![Kind::Int64(amount), Kind::String(key.to_owned())];
    match at_least {
        None => targeted(server, sql, params, Some("NO_SUCH_ROW")),
        Some(least) => {
            let params = params.into_iter().chain([Kind::Int64(least)]).collect();
            targeted(server, sql + " AND v >= ?", params, Some("TOO_LITTLE"))
        }
    }
}

pub(super) fn read(server: usize, key: &str, locking: bool) -> v1::TargetedStatement {
    let tail = if locking { " FOR UPDATE" } else { "" };
    let sql = format!("SELECT v FROM {MONEY_TABLE} WHERE k = ?{tail}");
    targeted(server, sql, vec![Kind::String(key.to_owned())], None)
}
