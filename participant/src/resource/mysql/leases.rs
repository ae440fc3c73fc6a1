//! Who has which connection, so that a kill ends the work that it is meant for and nobody else's.
//!
//! A connection goes from hand to hand; each time is a *lease* with a number of its own. Whoever
//! wants to interrupt work names the lease, never the connection, which may be another's by then.
//! A connection that was to be killed is never leased again: the server may still answer on it,
//! and close it after that.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::pool::lock;

/// All leases of a pool.
#[derive(Debug)]
pub struct Leases {
    /// Connections that are in somebody's hands.
    held: Mutex<HashMap<u64, Lease>>,
    next: AtomicU64,
    kill: mpsc::UnboundedSender<u64>,
}

#[derive(Debug)]
struct Lease {
    number: u64,
    killed: bool,
}

impl Leases {
    /// No leases; ids of connections that somebody must end go to `kill`.
    pub fn new(kill: mpsc::UnboundedSender<u64>) -> Self {
        Self {
            held: Mutex::default(),
            next: AtomicU64::new(1),
            kill,
        }
    }

    /// A connection comes into somebody's hands: the number of the lease, which is never 0.
    pub fn begin(&self, connection: u64) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let lease = Lease {
            number,
            killed: false,
        };
        lock(&self.held).insert(connection, lease);
        number
    }

    /// It leaves them, before somebody else can have it. False when nobody must: it was to be
    /// killed, or it is a connection of a former life of the server, whose ids start again.
    pub fn end(&self, connection: u64, number: u64) -> bool {
        let mut held = lock(&self.held);
        match held.get(&connection) {
            Some(lease) if lease.number == number => {
                let killed = lease.killed;
                held.remove(&connection);
                !killed
            }
            Some(_) | None => false,
        }
    }

    /// Whether a connection is in somebody's hands, and not to be killed.
    pub fn is_in_use(&self, connection: u64) -> bool {
        let held = lock(&self.held);
        held.get(&connection).is_some_and(|lease| !lease.killed)
    }

    /// Whether a connection is in somebody's hands.
    pub fn is_held(&self, connection: u64) -> bool {
        lock(&self.held).contains_key(&connection)
    }

    /// Whether a lease was to be killed.
    pub fn is_killed(&self, number: u64) -> bool {
        let held = lock(&self.held);
        let lease = held.values().find(|lease| lease.number == number);
        lease.is_some_and(|lease| lease.killed)
    }

    /// Asks for the end of what runs in a lease; nothing when the lease is over, or when its
    /// connection's id is that of a later one. Returns at once.
    pub fn kill(&self, number: u64) {
        let mut held = lock(&self.held);
        let found = held.iter_mut().find(|(_, lease)| lease.number == number);
        let Some((connection, lease)) = found else {
            return;
        };
        lease.killed = true;
        // Without a receiver the process is stopping, and closes every connection anyway.
        let _ = self.kill.send(*connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_reaches_the_lease_that_it_names_and_no_later_one() {
        let (kill, mut kills) = mpsc::unbounded_channel();
        let leases = Leases::new(kill);
        let first = leases.begin(7);
        assert!(leases.end(7, first));
        let second = leases.begin(7);
        leases.kill(first);
        assert!(kills.try_recv().is_err(), "it is another's now");
        assert!(!leases.is_killed(second));
        assert!(leases.is_in_use(7));
        leases.kill(second);
        assert_eq!(kills.try_recv(), Ok(7));
        assert!(leases.is_killed(second) && !leases.is_in_use(7));
        assert!(leases.is_held(7));
        // Whatever the server still answered on it.
        assert!(!leases.end(7, second), "it is leased again");
        assert!(!leases.is_held(7));
    }

    #[test]
    fn a_connection_of_a_servers_former_life_takes_nothing_from_a_later_one() {
        let (kill, mut kills) = mpsc::unbounded_channel();
        let leases = Leases::new(kill);
        let old = leases.begin(40);
        // The server was restarted, and has given the id again.
        let new = leases.begin(40);
        leases.kill(old);
        assert!(kills.try_recv().is_err());
        assert!(!leases.end(40, old));
        assert!(leases.is_in_use(40) && !leases.is_killed(new));
        assert!(leases.end(40, new));
    }
}
