//! Ending a connection on the server, so that what it holds is free.
//!
//! KILL is the last resort. On MySQL it closes the socket under a thread that may be about to write
//! to it, and whoever connects next may get that answer (see [`super::text`]), be it another
//! application. KILL QUERY leaves the socket alone: the statement ends, and the thread finds that
//! its client has gone. Only one that does not find that out, because what lies between has closed
//! one side only, is killed, and then it mostly sleeps, and writes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use concord_core::reason::{Reason, code};
use tokio::sync::MutexGuard;
use tokio::time::{Instant as Deadline, sleep, timeout_at};

use super::super::error::{Failure, NO_SUCH_THREAD};
use super::{Class, Conn, Pool, lock};

/// Time for a thread that does nothing to find that its client has gone.
const SLEEPER_PATIENCE: Duration = Duration::from_millis(200);
/// Time for a thread to end its statement.
const RUNNER_PATIENCE: Duration = Duration::from_secs(1);
/// First pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What a look found, and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Nothing that is left to end.
    Gone,
    /// A thread that was given more time.
    Alive,
}

/// What to do with a thread, after some time.
fn verb(sleeps: bool, waited: Duration) -> Option<&'static str> {
    match sleeps {
        true if waited < SLEEPER_PATIENCE => None,
        false if waited < RUNNER_PATIENCE => Some("KILL QUERY"),
        true | false => Some("KILL"),
    }
}

fn late(id: u64) -> Reason {
    Reason::new(
        code::DEADLINE_EXCEEDED,
        format!("connection {id} of the server did not end in time"),
    )
}

impl Pool {
    /// Ends a connection of this account on the server, if it is still there and in nobody's hands
    /// here. Whoever waited for a statement in vain comes here, so this is also how a server that
    /// hangs is found out.
    ///
    /// Ids start again when the server does, so an id alone may be somebody else's by now.
    pub async fn end(
        self: &Arc<Self>,
        class: Class,
        id: u64,
        deadline: Deadline,
    ) -> Result<(), Reason> {
        let began = Deadline::now();
        let pauses = ExponentialBuilder::default()
            .with_min_delay(PAUSE_MIN)
            .with_max_delay(PAUSE_MAX)
            .without_max_times();
        for pause in pauses.build() {
            let found = {
                let turn = timeout_at(deadline, self.turn(class)).await;
                let _turn = turn.map_err(|_| late(id))?;
                let mut conn = self.acquire_by(class, deadline).await?;
                let found = self.end_on(&mut conn, id, began.elapsed()).await?;
                conn.release();
                found
            };
            if found == Found::Gone {
                break;
            }
            if Deadline::now() + pause > deadline {
                return Err(late(id));
            }
            sleep(pause).await;
        }
        Ok(())
    }

    /// Given-up work is ended one after the other: it must leave connections to the looks, also
    /// when the server hangs. A branch in doubt waits for nobody.
    async fn turn(&self, class: Class) -> Option<MutexGuard<'_, ()>> {
        match class {
            Class::Control => Some(self.ending.lock().await),
            Class::Work | Class::Finish => None,
        }
    }

    async fn end_on(&self, conn: &mut Conn, id: u64, waited: Duration) -> Result<Found, Reason> {
        let refused = |failure: Failure| failure.reason().clone();
        if self.leases.is_in_use(id) {
            let text = "its connection is in use here";
            return Err(Reason::new(code::BRANCH_ATTACHED, text));
        }
        let mine = format!(
            "SELECT command FROM information_schema.processlist WHERE id = {id} \
             AND user = SUBSTRING_INDEX(CURRENT_USER(), '@', 1)"
        );
        let rows = conn.ask(mine, "the process list").await.map_err(refused)?;
        let Some(row) = rows.first() else {
            return Ok(Found::Gone);
        };
        // Closes it, if it is one of our own that nobody has.
        self.forget_idle(id);
        let command = row.first().and_then(Option::as_deref).unwrap_or_default();
        let Some(verb) = verb(command.eq_ignore_ascii_case(b"Sleep"), waited) else {
            return Ok(Found::Alive);
        };
        match conn.ask(format!("{verb} {id}"), verb).await {
            Ok(_) if verb == "KILL" => Ok(Found::Gone),
            Ok(_) => Ok(Found::Alive),
            Err(failure) if failure.number() == Some(NO_SUCH_THREAD) => Ok(Found::Gone),
            Err(failure) => Err(refused(failure)),
        }
    }

    /// One of our own that nobody has, and that is about to end.
    fn forget_idle(&self, id: u64) {
        let mut idle = lock(&self.idle);
        let before = idle.len();
        idle.retain(|idle| idle.id != id);
        let gone = u32::try_from(before - idle.len()).unwrap_or(0);
        self.open.fetch_sub(gone, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_may_be_about_to_write_is_killed_last() {
        let (soon, late) = (Duration::from_millis(199), Duration::from_millis(200));
        assert_eq!(verb(true, Duration::ZERO), None);
        assert_eq!(verb(true, soon), None);
        assert_eq!(verb(true, late), Some("KILL"));
        assert_eq!(verb(false, Duration::ZERO), Some("KILL QUERY"));
        assert_eq!(verb(false, late), Some("KILL QUERY"));
        assert_eq!(verb(false, Duration::from_secs(1)), Some("KILL"));
    }
}
