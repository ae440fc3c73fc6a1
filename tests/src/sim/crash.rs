//! Crash points in a simulation: the process that reaches one is killed there, and starts again.
//!
//! A point is reached in the middle of its host's code, which goes on until it waits. So the host
//! is shut off from the world at once: its connections, its disk, its server's sessions; the world
//! drops its tasks as soon as it has control again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use concord_daemon::crash::{CrashPoint, Hook, set_hook};

use super::plan::WHEN_FORGETTING;

/// Whether a simulated world has this point. It has no real server to talk with, no directory, and
/// no log of megabytes that is compacted: those are points of real processes
/// (`tests/it/crash_points.rs`).
pub fn is_here(point: CrashPoint) -> bool {
    !matches!(
        point,
        CrashPoint::ServerWorkBeforeSend
            | CrashPoint::ServerStartAnswered
            | CrashPoint::ServerLedgerAnswered
            | CrashPoint::ServerStatementAnswered
            | CrashPoint::ServerEndAnswered
            | CrashPoint::ServerPrepareAnswered
            | CrashPoint::ServerOnePhaseAnswered
            | CrashPoint::ServerCommitBeforeSend
            | CrashPoint::ServerCommitAnswered
            | CrashPoint::ServerRollbackBeforeSend
            | CrashPoint::ServerRollbackAnswered
            | CrashPoint::ServerUndoBeforeSend
            | CrashPoint::ServerUndoEnded
            | CrashPoint::ServerUndoAnswered
            | CrashPoint::LogLockTaken
            | CrashPoint::LogCreatePublishBefore
            | CrashPoint::LogCreatePublishAfter
            | CrashPoint::LogCompactBefore
            | CrashPoint::LogCompactAfter
    )
}

/// What is to happen at which point, and what has happened.
#[derive(Debug)]
pub struct Docket {
    /// In order: the next point, and how often it must still be reached.
    armed: RefCell<VecDeque<(CrashPoint, u64)>>,
    /// The host that runs now, if it may die.
    running: Cell<Option<usize>>,
    /// The host that has just been killed.
    dead: Cell<Option<usize>>,
    /// Points at which a host died.
    hit: RefCell<Vec<CrashPoint>>,
}

impl Docket {
    /// With these points.
    pub fn new(armed: &[(CrashPoint, u64)]) -> Rc<Self> {
        Rc::new(Self {
            armed: RefCell::new(armed.iter().copied().collect()),
            running: Cell::new(None),
            dead: Cell::new(None),
            hit: RefCell::default(),
        })
    }

    /// Says who runs from now on.
    pub fn runs(&self, host: Option<usize>) {
        self.running.set(host);
    }

    /// The host that died since this was last asked.
    pub fn take_dead(&self) -> Option<usize> {
        self.dead.take()
    }

    /// Points at which a host died.
    pub fn hit(&self) -> Vec<CrashPoint> {
        self.hit.borrow().clone()
    }

    /// Everything heals: takes the points away that were not reached, unless the next one is only
    /// reached when all is quiet.
    pub fn heal(&self) {
        let mut armed = self.armed.borrow_mut();
        let later = |(point, _): &(CrashPoint, u64)| WHEN_FORGETTING.contains(point);
        if !armed.front().is_some_and(later) {
            armed.clear();
        }
    }

    /// A point is reached; the host that dies of it.
    fn reached(&self, point: CrashPoint) -> Option<usize> {
        assert!(
            is_here(point),
            "{} is no point of a simulation",
            point.name()
        );
        let host = self.running.get()?;
        if self.dead.get().is_some() {
            return None;
        }
        let mut armed = self.armed.borrow_mut();
        let (wanted, left) = armed.front_mut()?;
        if *wanted != point {
            return None;
        }
        *left = left.saturating_sub(1);
        if *left > 0 {
            return None;
        }
        armed.pop_front();
        self.hit.borrow_mut().push(point);
        self.dead.set(Some(host));
        Some(host)
    }
}

/// The hook of this thread, as long as it is held.
pub struct Hooked(Option<Hook>);

impl Hooked {
    /// Calls `shut_off` for a host that dies.
    pub fn new(docket: &Rc<Docket>, shut_off: impl Fn(usize, CrashPoint) + 'static) -> Self {
        let docket = Rc::clone(docket);
        let hook: Hook = Rc::new(move |point| {
            if let Some(host) = docket.reached(point) {
                shut_off(host, point);
            }
        });
        Self(set_hook(Some(hook)))
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooked").finish_non_exhaustive()
    }
}

impl Drop for Hooked {
    fn drop(&mut self) {
        set_hook(self.0.take());
    }
}
