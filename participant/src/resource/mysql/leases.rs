//! Who has which connection, so that a kill ends the work that it is meant for and nobody else's.
//!
//! A connection goes from hand to hand; each time is a *lease* with a number of its own. Whoever
//! wants to interrupt work names the lease, never the connection, which may be another's by then.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::pool::lock;

/// All leases of a pool.
#[derive(Debug)]
pub struct Leases {
    /// The lease of each connection that is in somebody's hands.
    held: Mutex<HashMap<u64, u64>>,
    next: AtomicU64,
    /// Connections that are about to be killed, and by how many: nobody may get one of them before
    /// the last of these is done.
    doomed: Mutex<HashMap<u64, u32>>,
    kill: mpsc::UnboundedSender<u64>,
}

impl Leases {
    /// No leases; ids of connections that somebody must kill go to `kill`.
    pub fn new(kill: mpsc::UnboundedSender<u64>) -> Self {
        Self {
            held: Mutex::default(),
            next: AtomicU64::new(1),
            doomed: Mutex::default(),
            kill,
        }
    }

    /// A connection comes into somebody's hands: the number of the lease, which is never 0.
    pub fn begin(&self, connection: u64) -> u64 {
        let lease = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.held).insert(connection, lease);
        lease
    }

    /// It leaves them. Before somebody else can have it.
    pub fn end(&self, connection: u64) {
        lock(&self.held).remove(&connection);
    }

    /// Whether a connection is in somebody's hands.
    pub fn holds(&self, connection: u64) -> bool {
        lock(&self.held).contains_key(&connection)
    }

    /// Asks for the end of a connection, which nobody gets from here any more. Returns at once.
    pub fn kill(&self, connection: u64) {
        self.doom(connection);
        self.send(connection);
    }

    /// Asks for the end of what runs in a lease; nothing when the lease is over.
    pub fn kill_lease(&self, lease: u64) {
        let found = lock(&self.held)
            .iter()
            .find_map(|(connection, held)| (*held == lease).then_some(*connection));
        let Some(connection) = found else { return };
        self.doom(connection);
        // Looked at after the connection was doomed: from there it cannot reach anybody else.
        if lock(&self.held).get(&connection) == Some(&lease) {
            self.send(connection);
        } else {
            self.killed(connection);
        }
    }

    fn doom(&self, connection: u64) {
        *lock(&self.doomed).entry(connection).or_default() += 1;
    }

    fn send(&self, connection: u64) {
        // Without a receiver the process is stopping, and closes every connection anyway.
        let _ = self.kill.send(connection);
    }

    /// One of those who wanted a connection killed is done with it.
    pub fn killed(&self, connection: u64) {
        let mut doomed = lock(&self.doomed);
        match doomed.get_mut(&connection) {
            Some(killers) if *killers > 1 => *killers -= 1,
            _ => _ = doomed.remove(&connection),
        }
    }

    /// Whether it is about to be killed.
    pub fn is_doomed(&self, connection: u64) -> bool {
        lock(&self.doomed).contains_key(&connection)
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
        leases.end(7);
        let second = leases.begin(7);
        leases.kill_lease(first);
        assert!(kills.try_recv().is_err(), "it is another's now");
        assert!(!leases.is_doomed(7));
        leases.kill_lease(second);
        assert_eq!(kills.try_recv(), Ok(7));
        assert!(leases.is_doomed(7) && leases.holds(7));
        leases.kill(7);
        leases.killed(7);
        assert!(leases.is_doomed(7), "another killer is not done");
        leases.killed(7);
        assert!(!leases.is_doomed(7));
    }
}
