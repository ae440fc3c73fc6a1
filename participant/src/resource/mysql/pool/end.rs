//! Ending a connection on the server, so that what it holds is free.
//!
//! On MySQL KILL is the last resort: it closes the socket under a thread that may be about to write
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
use super::{Class, Conn, OUR_USER, Pool, lock};

/// Time for a thread that does nothing to find that its client has gone.
const SLEEPER_PATIENCE: Duration = Duration::from_millis(200);
/// The same while somebody here still waits for an answer, or is about to say something.
const OWNED_PATIENCE: Duration = Duration::from_secs(1);
/// Time for a thread to end its statement.
const RUNNER_PATIENCE: Duration = Duration::from_secs(3);
/// First pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(100);

const KILL: &str = "KILL";
const KILL_QUERY: &str = "KILL QUERY";

/// What is known of a thread that is to end.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    /// When it was first seen.
    seen: Option<Deadline>,
    /// When it was last interrupted.
    interrupted: Option<Deadline>,
}

impl Watch {
    /// What to do with it now. Whoever still has it in hands here rolls back on it after the first
    /// interruption, which should not be interrupted as well.
    fn verb(&mut self, sleeps: bool, owned: bool, now: Deadline) -> Option<&'static str> {
        let waited = now - *self.seen.get_or_insert(now);
        let verb = match (sleeps, owned) {
            (true, true) => (waited >= OWNED_PATIENCE).then_some(KILL),
            (true, false) => (waited >= SLEEPER_PATIENCE).then_some(KILL),
            (false, true) => {
                let lately = |at: Deadline| now - at < OWNED_PATIENCE;
                (!self.interrupted.is_some_and(lately)).then_some(KILL_QUERY)
            }
            (false, false) if waited < RUNNER_PATIENCE => Some(KILL_QUERY),
            (false, false) => Some(KILL),
        };
        if verb == Some(KILL_QUERY) {
            self.interrupted = Some(now);
        }
        verb
    }
}

fn late(id: u64) -> Reason {
    Reason::new(
        code::DEADLINE_EXCEEDED,
        format!("connection {id} of the server did not end in time"),
    )
}

impl Pool {
    /// Ends a connection of this account on the server, if it is still there and not in use here.
    /// Whoever waited for a statement in vain comes here, so this is also how a server that hangs
    /// is found out.
    ///
    /// Ids start again when the server does, so an id alone may be somebody else's by now.
    pub async fn end(
        self: &Arc<Self>,
        class: Class,
        id: u64,
        deadline: Deadline,
    ) -> Result<(), Reason> {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(PAUSE_MIN)
            .with_max_delay(PAUSE_MAX)
            .without_max_times();
        let mut watch = Watch::default();
        for pause in pauses.build() {
            {
                let turn = timeout_at(deadline, self.turn(class)).await;
                let _turn = turn.map_err(|_| late(id))?;
                self.check_unused(id)?;
                let mut conn = self.acquire_by(class, deadline).await?;
                // One that is dropped ends by itself.
                if conn.id() != id {
                    let gone = self.end_on(&mut conn, id, &mut watch).await?;
                    conn.release();
                    if gone {
                        return Ok(());
                    }
                }
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

    fn check_unused(&self, id: u64) -> Result<(), Reason> {
        if self.leases.is_in_use(id) {
            let text = "its connection is in use here";
            return Err(Reason::new(code::BRANCH_ATTACHED, text));
        }
        Ok(())
    }

    /// One look and what follows from it; whether nothing is left to be ended.
    async fn end_on(&self, conn: &mut Conn, id: u64, watch: &mut Watch) -> Result<bool, Reason> {
        let refused = |failure: Failure| failure.reason().clone();
        // Closes it, if it is one of our own that nobody has.
        self.forget_idle(id);
        let mine = format!(
            "SELECT command FROM information_schema.processlist WHERE id = {id} \
             AND user = {OUR_USER}"
        );
        let rows = conn.ask(mine, "the process list").await.map_err(refused)?;
        let Some(row) = rows.first() else {
            return Ok(true);
        };
        self.check_unused(id)?;
        let command = row.first().and_then(Option::as_deref).unwrap_or_default();
        let verb = if conn.sealed {
            let sleeps = command.eq_ignore_ascii_case(b"Sleep");
            watch.verb(sleeps, self.leases.is_held(id), Deadline::now())
        } else {
            Some(KILL)
        };
        let Some(verb) = verb else {
            return Ok(false);
        };
        match conn.ask(format!("{verb} {id}"), verb).await {
            Ok(_) => Ok(verb == KILL),
            Err(failure) if failure.number() == Some(NO_SUCH_THREAD) => Ok(true),
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

    /// What is done with a thread that is looked at after so many ms.
    fn verbs(sleeps: bool, owned: bool, looks: &[u64]) -> Vec<Option<&'static str>> {
        let (began, mut watch) = (Deadline::now(), Watch::default());
        let at = |ms: &u64| began + Duration::from_millis(*ms);
        let verb = |ms| watch.verb(sleeps, owned, at(ms));
        looks.iter().map(verb).collect()
    }

    #[tokio::test]
    async fn a_thread_that_may_be_about_to_write_is_killed_last() {
        let (nothing, query, kill) = (None, Some(KILL_QUERY), Some(KILL));
        for (sleeps, owned, looks, expected) in [
            (
                true,
                false,
                [70_000, 70_199, 70_200],
                [nothing, nothing, kill],
            ),
            (true, true, [0, 999, 1_000], [nothing, nothing, kill]),
            (false, false, [0, 2_999, 3_000], [query, query, kill]),
            (false, true, [0, 999, 1_000], [query, nothing, query]),
            (false, true, [0, 500, 9_000], [query, nothing, query]),
        ] {
            assert_eq!(verbs(sleeps, owned, &looks), expected, "{sleeps} {owned}");
        }
    }
}
