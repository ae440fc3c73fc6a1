//! A new connection with its session: what it is told, and which server it leads to.

use std::collections::BTreeMap;

use concord_core::reason::{Reason, code};
use futures::TryStreamExt as _;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Either, Executor as _, Row as _};

use super::super::error::Failure;
use super::super::ledger;
use super::super::preflight::{incarnation, server_id};
use super::super::xa::hex;
use super::login::login;
use super::{Pool, lock};

/// A connection that has just been opened.
pub(super) struct Session {
    pub(super) raw: MySqlConnection,
    pub(super) id: u64,
    /// Whose data it leads to; `None` while the pool does not know whose it should be.
    pub(super) incarnation: Option<String>,
}

/// Why nothing is taken from what an address leads to.
pub fn other_data(found: &str, expected: &str) -> Reason {
    Reason::new(
        code::INCARNATION_CHANGED,
        format!(
            "the data behind this participant is {found} and was {expected} when it started: check \
             where its address leads, then restart the participant"
        ),
    )
}

/// The id of the data; empty where the schema is missing or not ours to read. `MariaDB`'s own id is
/// that of the machine and the port, so that it alone tells too little.
async fn identity(raw: &mut MySqlConnection) -> Result<String, Failure> {
    let asked = raw
        .fetch_optional(sqlx::raw_sql(ledger::SELECT_IDENTITY))
        .await;
    match asked.map_err(Failure::from) {
        Ok(Some(row)) => Ok(hex(&row.try_get_unchecked::<Vec<u8>, _>(0)?)),
        Ok(None) | Err(Failure::Refused { .. }) => Ok(String::new()),
        Err(failure) => Err(failure),
    }
}

impl Pool {
    pub(super) async fn open_raw(&self) -> Result<Session, Failure> {
        let mut raw = login(&self.options).await?;
        let extra = lock(&self.sessions).statement.clone();
        let text = format!("{extra}{}", self.options.session());
        let (mut id, mut variables) = (None, BTreeMap::new());
        {
            let mut stream = raw.fetch_many(sqlx::raw_sql(AssertSqlSafe(text)));
            while let Some(item) = stream.try_next().await? {
                let Either::Right(row) = item else { continue };
                let first = row.try_get_unchecked::<String, _>(0)?;
                if row.len() > 1 {
                    variables.insert(first, row.try_get_unchecked::<String, _>(1)?);
                } else {
                    id = first.parse().ok();
                }
            }
        }
        let id = id.ok_or_else(|| Failure::out_of_step("CONNECTION_ID() is not a number"))?;
        if let Some(database) = &self.options.database {
            let name = database.replace('`', "``");
            raw.execute(sqlx::raw_sql(AssertSqlSafe(format!("USE `{name}`"))))
                .await?;
        }
        let incarnation = match self.incarnation.get() {
            Some(_) => {
                let identity = identity(&mut raw).await?;
                Some(incarnation(server_id(&variables), &identity))
            }
            None => None,
        };
        Ok(Session {
            raw,
            id,
            incarnation,
        })
    }

    pub(super) fn down(&self, number: Option<u16>, reason: &Reason) -> Reason {
        match number {
            Some(1040 | 1203 | 1226) => reason.clone(),
            Some(_) => Reason::new(
                code::SERVER_DOWN,
                format!(
                    "the server does not let {} in: {}",
                    self.options.user, reason.message
                ),
            ),
            None => Reason::new(
                code::SERVER_DOWN,
                format!("the server cannot be reached: {}", reason.message),
            ),
        }
    }
}
