//! Connections to one server: bounded, never reused after an error, and with a reserve for the
//! second phase.
//!
//! `sqlx::Pool` is not used: a branch keeps its connection from XA START to its outcome and beyond
//! the life of a call, a connection that saw an error must never come back, and commits must not
//! queue behind votes.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use concord_core::reason::{Reason, code};
use sqlx::Row as _;
use sqlx::mysql::MySqlConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant as Deadline, timeout_at};

use self::backoff::Backoff;
pub use self::session::other_data;
pub use self::text::{Item, Text};
use super::answers::Rows;
use super::error::Failure;
use super::leases::Leases;
use super::options::Options;

mod backoff;
mod end;
mod login;
mod session;
#[cfg(test)]
mod tests;
mod text;

/// Longest time for a new connection with its session settings; or the acquire time-out, when that
/// is shorter. A server that takes longer is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for an answer that waits for no lock. A server that takes longer hangs, or nothing
/// passes to it or from it.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The user of our own sessions, as the process list names it. A user's name may contain an `@`, a
/// host's does not.
pub const OUR_USER: &str = "LEFT(USER(),CHAR_LENGTH(USER())-1-\
                            CHAR_LENGTH(SUBSTRING_INDEX(USER(),'@',-1)))";
/// An idle connection is closed after this time.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// Which connections a caller may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// For the work of a branch.
    Work,
    /// For finishing branches and for housekeeping: an idle work connection, else the reserve.
    Finish,
    /// For looking at the server and for ending connections, which must work when everything else
    /// is busy.
    Control,
}

/// Connections of [`Class::Control`]: a look, its migration lock and one change at a time; the
/// end of a connection.
pub const CONTROL_CONNECTIONS: u32 = 4;

/// What a new session is like, as far as that depends on the server's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// Statement that begins it; none when it is empty.
    pub statement: String,
    /// Whether a branch leaves it when it is prepared. A session keeps what the server's setting
    /// was when it began, and an account like ours cannot change that.
    pub detaches: bool,
    /// Whether KILL leaves a thread its socket until it has ended, so that what comes in a session
    /// is its own for certain.
    pub keeps_socket: bool,
}

/// What the pool counts and keeps.
#[derive(Debug)]
pub struct Pool {
    options: Options,
    work: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    control: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    open: AtomicU32,
    backoff: Mutex<Backoff>,
    /// Connections of an older generation are closed instead of reused.
    generation: AtomicU64,
    /// What new sessions are like, as far as that depends on what preflight found.
    sessions: Mutex<Sessions>,
    /// The server may have been restarted since preflight looked.
    suspect: AtomicBool,
    /// A statement got no answer in its time.
    doubtful: AtomicBool,
    leases: Leases,
    /// Held while the connection of given-up work is being ended.
    ending: tokio::sync::Mutex<()>,
    /// Whose data this is, once that is known. A connection that leads to other data is for looking
    /// at it only: "no such branch" there proves nothing.
    incarnation: OnceLock<String>,
}

#[derive(Debug)]
struct Idle {
    raw: MySqlConnection,
    id: u64,
    generation: u64,
    since: Instant,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool, and the ids of connections that somebody must end for it.
    pub fn new(options: Options) -> (Arc<Self>, mpsc::UnboundedReceiver<u64>) {
        let (kill, kills) = mpsc::unbounded_channel();
        let pool = Self {
            work: Arc::new(Semaphore::new(options.max_connections.max(1) as usize)),
            reserve: Arc::new(Semaphore::new(options.reserve_connections.max(2) as usize)),
            control: Arc::new(Semaphore::new(CONTROL_CONNECTIONS as usize)),
            idle: Mutex::default(),
            open: AtomicU32::new(0),
            backoff: Mutex::default(),
            generation: AtomicU64::new(0),
            sessions: Mutex::default(),
            suspect: AtomicBool::new(true),
            doubtful: AtomicBool::new(false),
            leases: Leases::new(kill),
            ending: tokio::sync::Mutex::default(),
            incarnation: OnceLock::new(),
            options,
        };
        (Arc::new(pool), kills)
    }

    /// Who has which of its connections.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Whether one of its connections has this id now, in somebody's hands or idle.
    pub fn has(&self, id: u64) -> bool {
        self.leases.is_held(id) || lock(&self.idle).iter().any(|idle| idle.id == id)
    }

    /// Its options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Connections that are open.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether the server may have been restarted since this was last asked with `clear`.
    pub fn take_suspicion(&self) -> bool {
        self.suspect.swap(false, Ordering::AcqRel)
    }

    /// Whether the server may have been restarted.
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// Remembers that the server may have been restarted.
    pub fn raise_suspicion(&self) {
        self.suspect.store(true, Ordering::Release);
    }

    /// Whether a statement got no answer in its time since this was last asked.
    pub fn take_doubt(&self) -> bool {
        self.doubtful.swap(false, Ordering::AcqRel)
    }

    /// Remembers that a statement got no answer in its time. Mostly it is the statement that is
    /// slow, so nobody waits for a look because of it, as they do for a suspicion; but should the
    /// server have been exchanged meanwhile, then the next look is to find out.
    pub fn raise_doubt(&self) {
        self.doubtful.store(true, Ordering::Release);
    }

    /// From now on new sessions are as these are, and older ones are not reused.
    pub fn set_sessions(&self, sessions: &Sessions) {
        let mut current = lock(&self.sessions);
        if *current != *sessions {
            current.clone_from(sessions);
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whose data this is: that which was found first. From then on connections for the work and
    /// the end of branches lead to it only.
    pub fn expect(&self, incarnation: &str) -> &str {
        self.incarnation.get_or_init(|| incarnation.to_owned())
    }

    /// Closes connections that were idle for long, or all.
    pub fn close_idle(&self, all: bool) {
        let generation = self.generation.load(Ordering::Acquire);
        let closed = {
            let mut idle = lock(&self.idle);
            let before = idle.len();
            idle.retain(|idle| {
                !all && idle.generation == generation && idle.since.elapsed() < IDLE_MAX
            });
            before - idle.len()
        };
        self.open
            .fetch_sub(u32::try_from(closed).unwrap_or(0), Ordering::Relaxed);
    }

    /// A connection by `deadline`. One that is free is waited for no longer than the acquire
    /// time-out; a new one has a time of its own.
    pub async fn acquire_by(
        self: &Arc<Self>,
        class: Class,
        deadline: Deadline,
    ) -> Result<Conn, Reason> {
        let permit = self.permit(class, deadline).await?;
        let generation = self.generation.load(Ordering::Acquire);
        loop {
            let Some(idle) = lock(&self.idle).pop() else {
                break;
            };
            if idle.generation == generation {
                return Ok(self.conn(idle.raw, idle.id, generation, permit));
            }
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
        self.connect(class, permit, generation, deadline).await
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    async fn permit(
        self: &Arc<Self>,
        class: Class,
        deadline: Deadline,
    ) -> Result<OwnedSemaphorePermit, Reason> {
        let semaphore = match class {
            Class::Work => &self.work,
            Class::Control => &self.control,
            Class::Finish => match Arc::clone(&self.work).try_acquire_owned() {
                Ok(permit) => return Ok(permit),
                Err(_) => &self.reserve,
            },
        };
        let deadline = deadline.min(Deadline::now() + self.options.acquire_timeout);
        match timeout_at(deadline, Arc::clone(semaphore).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Reason::new(
                code::SHUTTING_DOWN,
                "the participant is stopping",
            )),
            Err(_) => Err(Reason::new(
                code::POOL_EXHAUSTED,
                format!(
                    "no connection to the server became free in time (max_connections = {})",
                    self.options.max_connections
                ),
            )),
        }
    }

    async fn connect(
        self: &Arc<Self>,
        class: Class,
        permit: OwnedSemaphorePermit,
        generation: u64,
        deadline: Deadline,
    ) -> Result<Conn, Reason> {
        lock(&self.backoff).check()?;
        let patience = CONNECT_TIMEOUT.min(self.options.acquire_timeout);
        let too_long = Deadline::now() + patience;
        let attempt = timeout_at(deadline.min(too_long), self.open_session());
        let outcome = match attempt.await {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(Failure::Refused { number, reason })) => Err((Some(number), reason)),
            Ok(Err(Failure::Broken(reason))) => Err((None, reason)),
            // It tells of the caller's time only, so it keeps nobody else from trying.
            Err(_) if deadline < too_long => {
                return Err(Reason::new(
                    code::DEADLINE_EXCEEDED,
                    "the time was over before there was a connection to the server",
                ));
            }
            Err(_) => Err((
                None,
                Reason::new(code::SERVER_DOWN, "connecting took too long"),
            )),
        };
        match outcome {
            Ok(opened) => {
                *lock(&self.backoff) = Backoff::default();
                let (found, expected) = (opened.incarnation.as_ref(), self.incarnation.get());
                let strange = found.zip(expected).filter(|(found, first)| found != first);
                if let Some((found, first)) = strange.filter(|_| class != Class::Control) {
                    self.raise_suspicion();
                    return Err(other_data(found, first));
                }
                self.open.fetch_add(1, Ordering::Relaxed);
                let mut conn = self.conn(opened.raw, opened.id, generation, permit);
                // It does not come back to the others.
                conn.tainted = strange.is_some();
                Ok(conn)
            }
            Err((number, reason)) => {
                self.raise_suspicion();
                let reason = self.down(number, &reason);
                lock(&self.backoff).begin(&reason);
                Err(reason)
            }
        }
    }

    fn conn(
        self: &Arc<Self>,
        raw: MySqlConnection,
        id: u64,
        generation: u64,
        permit: OwnedSemaphorePermit,
    ) -> Conn {
        let lease = self.leases.begin(id);
        let pool = Arc::clone(self);
        Conn {
            raw: Some(raw),
            id,
            lease,
            generation,
            busy: false,
            tainted: false,
            sealed: !lock(&self.sessions).keeps_socket,
            pool,
            _permit: permit,
        }
    }
}

/// A connection in somebody's hands. Dropping it closes it, and kills what still runs in it;
/// only [`Conn::release`] gives it back, and only if it never saw an error.
#[derive(Debug)]
pub struct Conn {
    raw: Option<MySqlConnection>,
    id: u64,
    lease: u64,
    generation: u64,
    /// A text was sent and its last answer has not come.
    busy: bool,
    /// It saw an error.
    tainted: bool,
    /// Its texts end with a seal.
    sealed: bool,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Conn {
    /// The server's id of it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The number of this lease, for [`Leases::kill`].
    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// Sends a text and hands each row and each end of a statement to `take`.
    ///
    /// At the first error the server stops the text; that error is returned. One of `take` ends
    /// the connection: what is still to come in it was not asked for.
    pub async fn run(
        &mut self,
        text: impl Into<Text> + Send,
        deadline: Deadline,
        what: &str,
        take: impl FnMut(Item) -> Result<(), Failure> + Send,
    ) -> Result<(), Failure> {
        let Some(raw) = &mut self.raw else {
            return Err(Failure::out_of_step("a closed connection"));
        };
        self.busy = true;
        let outcome = timeout_at(deadline, text.into().run(raw, self.sealed, take)).await;
        let failure = match outcome {
            Ok(Ok(())) => {
                self.busy = false;
                return Ok(());
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::timed_out(what),
        };
        self.tainted = true;
        match &failure {
            Failure::Refused { .. } => self.busy = false,
            // Our own patience has ended. That ends this connection, and says nothing of others.
            failure if failure.is_timeout() => self.pool.raise_doubt(),
            // Nor does one that we have ended, or an answer that could not be read.
            failure if !failure.is_lost() || self.pool.leases.is_killed(self.lease) => {
                self.pool.raise_doubt();
            }
            Failure::Broken(_) => {
                self.pool.raise_suspicion();
                // What ended this one may have ended the idle ones as well.
                self.pool.close_idle(true);
            }
        }
        Err(failure)
    }

    /// Runs a text whose rows do not matter.
    pub async fn execute(
        &mut self,
        text: impl Into<Text> + Send,
        deadline: Deadline,
        what: &str,
    ) -> Result<u64, Failure> {
        let mut affected = 0;
        self.run(text, deadline, what, |item| {
            if let Item::Done(done) = item {
                affected = done.rows_affected();
            }
            Ok(())
        })
        .await?;
        Ok(affected)
    }

    /// Runs a text and keeps its rows, as texts. For housekeeping only: nothing bounds them.
    pub async fn rows(
        &mut self,
        text: impl Into<Text> + Send,
        deadline: Deadline,
        what: &str,
    ) -> Result<Rows, Failure> {
        let mut rows = Rows::new();
        self.run(text, deadline, what, |item| {
            if let Item::Row(row) = item {
                rows.push(
                    (0..row.len())
                        .map(|at| {
                            row.try_get_unchecked::<Option<Vec<u8>>, _>(at)
                                .ok()
                                .flatten()
                        })
                        .collect(),
                );
            }
            Ok(())
        })
        .await?;
        Ok(rows)
    }

    /// Asks something that waits for no lock. No answer means that the server hangs, or that
    /// nothing passes to it; then idle connections are as good as cut, and would be found so one
    /// after the other, each by a branch in doubt.
    pub async fn ask(&mut self, text: impl Into<Text> + Send, what: &str) -> Result<Rows, Failure> {
        let deadline = Deadline::now() + ANSWER_TIMEOUT;
        let asked = self.rows(text, deadline, what).await;
        asked.map_err(|failure| {
            if !failure.is_timeout() {
                return failure;
            }
            self.pool.raise_suspicion();
            self.pool.close_idle(true);
            Failure::Broken(Reason::new(
                code::SERVER_DOWN,
                format!("the server does not answer: {}", failure.reason().message),
            ))
        })
    }

    /// Gives it back, or closes it when it saw an error or was to be killed.
    pub fn release(mut self) {
        if self.tainted || self.busy || self.generation != self.pool.generation() {
            return;
        }
        if let Some(raw) = self.raw.take() {
            let (id, generation) = (self.id, self.generation);
            if !self.pool.leases.end(id, self.lease) {
                self.pool.open.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            lock(&self.pool.idle).push(Idle {
                raw,
                id,
                generation,
                since: Instant::now(),
            });
        }
    }

    /// Ends it on the server too, whatever runs in it.
    pub fn kill(mut self) {
        self.busy = true;
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if self.raw.take().is_some() {
            if self.busy {
                self.pool.leases.kill(self.lease);
            }
            self.pool.leases.end(self.id, self.lease);
            self.pool.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
