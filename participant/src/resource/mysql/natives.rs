//! Which of the listed functions this server has of its own.
//!
//! Servers and their versions differ: MariaDB has no UUID_TO_BIN, MySQL gave up MD5 with 9.6. A
//! name that a server does not know is that of a stored function to it, so the server is asked
//! about each, once for every version of it that is met.

use std::sync::{Arc, Mutex};

use concord_core::reason::{Reason, code};
use tokio::time::Instant as Deadline;

use super::MySql;
use super::error::Failure;
use super::functions;
use super::pool::{ANSWER_TIMEOUT, Class, lock};

/// It was looked for among stored functions, so the server has none of its own. There is no such
/// function, or the account may not know that.
const LOOKED_FOR: &[u16] = &[1044, 1305, 1370];
/// The arguments are missing: it is the server's own, by its name or in its grammar.
const OWN: &[u16] = &[1064, 1582];
const QUESTION: &str = "the server's functions";

/// Functions on the list that a server lacks.
pub type Lacking = Arc<[&'static str]>;

/// What the last version of the server that was asked lacks.
#[derive(Debug, Default)]
pub struct Natives(Mutex<Option<(String, Lacking)>>);

impl MySql {
    /// Functions on the list that a server of this version lacks.
    pub(super) async fn lacking(&self, version: &str) -> Result<Lacking, Reason> {
        let known = lock(&self.natives.0).clone();
        if let Some((_, lacking)) = known.filter(|(asked, _)| asked == version) {
            return Ok(lacking);
        }
        let asked = self.ask_for_functions().await;
        let lacking: Lacking = asked.map_err(|failure| failure.reason().clone())?.into();
        *lock(&self.natives.0) = Some((version.to_owned(), Arc::clone(&lacking)));
        Ok(lacking)
    }

    /// Calls each without arguments. Stored functions are looked for in a schema that cannot have
    /// any, so that none is run; one of a plug-in may be, and counts as the server's own.
    async fn ask_for_functions(&self) -> Result<Vec<&'static str>, Failure> {
        let deadline = Deadline::now() + ANSWER_TIMEOUT;
        let conn = self.pool.acquire_by(Class::Control, deadline).await;
        // It sees errors, and is not given back.
        let mut conn = conn.map_err(Failure::Broken)?;
        conn.ask("USE information_schema", QUESTION).await?;
        let mut lacking = Vec::new();
        for name in functions::allowed() {
            match conn.ask(format!("SELECT {name}()"), QUESTION).await {
                Ok(_) => {}
                Err(Failure::Refused { number, .. }) if OWN.contains(&number) => {}
                // What is said of the function itself and is not known here is not trusted.
                Err(Failure::Refused { number, reason })
                    if LOOKED_FOR.contains(&number) || &*reason.code == code::STATEMENT_FAILED =>
                {
                    lacking.push(*name);
                }
                // It says nothing of the function: the next look asks again.
                Err(failure) => return Err(failure),
            }
        }
        Ok(lacking)
    }
}
