//! A new connection with its session: what it is told, and which server it leads to.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

use concord_core::reason::{Reason, code};
use futures::FutureExt as _;
use sqlx::Row as _;
use sqlx::mysql::MySqlConnection;

use super::super::error::Failure;
use super::super::ledger;
use super::super::preflight::{incarnation, server_id};
use super::super::xa::hex;
use super::login::login;
use super::{Item, Pool, Text, lock};

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
    let mut id = Vec::new();
    let take = |item| {
        if let Item::Row(row) = item {
            id = row.try_get_unchecked(0)?;
        }
        Ok(())
    };
    match Text::from(ledger::SELECT_IDENTITY)
        .run(raw, true, take)
        .await
    {
        Ok(()) => Ok(hex(&id)),
        Err(Failure::Refused { .. }) => Ok(String::new()),
        Err(failure) => Err(failure),
    }
}

impl Pool {
    /// A new connection. A second attempt when what came back made no sense: the server is up, and
    /// an answer to somebody else is all that came, see [`super::text`].
    pub(super) async fn open_session(&self) -> Result<Session, Failure> {
        match self.try_open().await {
            Err(failure) if failure.is_out_of_step() => self.try_open().await,
            opened => opened,
        }
    }

    async fn try_open(&self) -> Result<Session, Failure> {
        // The driver panics at a greeting that is shorter than it should be.
        let login = AssertUnwindSafe(login(&self.options)).catch_unwind().await;
        let unread = |_| Failure::out_of_step("a packet that cannot be read");
        let mut raw = login.map_err(unread)??;
        let mut text = Text::default();
        let extra = lock(&self.sessions).statement.clone();
        if !extra.is_empty() {
            text.next().push_str(&extra);
        }
        for statement in self.options.session() {
            text.next().push_str(&statement);
        }
        let (mut id, mut variables) = (None, BTreeMap::new());
        let take = |item| {
            let Item::Row(row) = item else { return Ok(()) };
            let first = row.try_get_unchecked::<String, _>(0)?;
            if row.len() > 1 {
                variables.insert(first, row.try_get_unchecked::<String, _>(1)?);
            } else {
                id = first.parse().ok();
            }
            Ok(())
        };
        text.run(&mut raw, true, take).await?;
        let id = id.ok_or_else(|| Failure::out_of_step("CONNECTION_ID() is not a number"))?;
        if let Some(database) = &self.options.database {
            let name = database.replace('`', "``");
            let text = Text::from(format!("USE `{name}`"));
            text.run(&mut raw, true, |_| Ok(())).await?;
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
