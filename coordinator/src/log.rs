//! The decision log: what the coordinator must not forget.
//!
//! It owns the durability of [`Record`]s and the promise that what was durable is read back
//! unchanged, or not at all. It refuses to interpret them: which record is appended when, and what
//! may be forgotten, is decided by the protocol (`concord_core`).
//!
//! [`embedded`] keeps one file on the coordinator's own disk; [`memory`] keeps nothing across a
//! restart of its process and serves models and tests. [`conformance`] is the one suite that
//! proves every backend, and [`codec`] the whole disk format.

pub mod codec;
pub mod conformance;
pub mod embedded;
pub mod memory;

use std::io;
use std::path::PathBuf;

use concord_core::id::{Epoch, Gtrid};
use concord_core::record::Record;

pub use embedded::EmbeddedLog;
pub use memory::MemoryLog;

/// A durable log of decisions, owned by one coordinator.
///
/// It is synchronous: the driver calls it from a thread of its own, a simulation inline.
///
/// **Fail-stop.** The first [`LogError::Failed`] is the last thing that a log does: every later
/// call returns [`LogError::Poisoned`], and the coordinator must end its process at once. After a
/// failed write or fsync nobody knows what the disk holds. The kernel marks the pages clean that it
/// could not write, so an fsync that is tried again succeeds and proves nothing; going on would let
/// a Commit leave before its decision is durable. A restart reads what is really there.
///
/// **What is kept.** Of `Epoch`, `Horizon` and `Placement` the last one, of `Incarnation` the last
/// one of each participant, of a transaction one `Decision`, `OnePhase`, `Refused` and `End` each
/// (a second one replaces the first), and every `Heuristic` that was ever appended.
pub trait DecisionLog: Send + 'static {
    /// Makes all records durable, in one commit: after a crash all of them are there, or none. It
    /// returns when they are, so a batch of many transactions is a group commit.
    ///
    /// What [`forget`](Self::forget) was told before is done in the same commit. Appending nothing
    /// does only that.
    fn append(&mut self, records: &[Record]) -> Result<(), LogError>;

    /// Tells it to delete all records of these transactions except `Heuristic` ones, and to move
    /// the horizon there unless it is further already. The next append does it, after writing its
    /// own records; until then a crash may bring the records back, which costs a repetition and
    /// never an outcome.
    ///
    /// Every transaction must have ended by then, by its `End` or its `Refused`: otherwise that
    /// append returns [`LogError::NotEnded`] and does nothing at all, and what was to be forgotten
    /// is kept. A transaction that is not in the log is forgotten already.
    fn forget(&mut self, gtrids: &[Gtrid], horizon: Gtrid) -> Result<(), LogError>;

    /// Shows every record: `Epoch` first, then `Placement`, `Incarnation`s by name, `Horizon`, then
    /// the transactions by gtrid. Of one transaction `Decision`, `OnePhase` or `Refused` comes
    /// before its `Heuristic`s in the order in which they were appended, and `End` last.
    ///
    /// Whoever replays must be able to hold what it is shown: the log keeps no second copy.
    fn visit(&self, each: &mut dyn FnMut(Record)) -> Result<(), LogError>;

    /// Every record, in the order of [`visit`](Self::visit).
    fn replay(&self) -> Result<Vec<Record>, LogError> {
        let mut records = Vec::new();
        self.visit(&mut |record| records.push(record))?;
        Ok(records)
    }

    /// How much it holds.
    fn stats(&self) -> LogStats;
}

/// How much a log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Transactions with a `Decision`, `OnePhase` or `Refused`: live, or within retention.
    pub decisions: u64,
    /// Size on disk, in bytes.
    pub bytes: u64,
}

/// Why a log cannot be opened, or stopped working.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process has it.
    #[error(
        "the decision log {path} is in use by {holder}; two coordinators on one log would decide \
         twice. Stop that process, or give this coordinator another directory"
    )]
    Held {
        /// The log's directory.
        path: PathBuf,
        /// "process 4711", as far as it is known.
        holder: String,
    },
    /// It was written for another cluster.
    #[error(
        "the decision log {path} is that of cluster {found:?}, and this coordinator is configured \
         for {expected:?}. Set the right cluster name or directory"
    )]
    OtherCluster {
        /// The log's directory.
        path: PathBuf,
        /// The cluster it belongs to.
        found: String,
        /// The cluster of the configuration.
        expected: String,
    },
    /// It was written by a later version.
    #[error(
        "the decision log {path} has format {found}, and this version knows formats up to {known}. \
         Start the version that wrote it, or a later one"
    )]
    NewerFormat {
        /// The log's directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        known: u32,
    },
    /// What is on disk is not what was written.
    #[error(
        "the decision log {path} is damaged: {what}. Nothing was changed. Do not delete it: \
         decisions in it may be the only record of committed transactions. Keep a copy, check the \
         disk, and restore the file from a copy of this very moment (a snapshot of the volume); \
         without one, finish each branch in doubt by hand (`concord indoubt list`) before starting \
         with an empty directory"
    )]
    Damaged {
        /// The log's directory.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// It cannot be opened.
    #[error("cannot {doing} {path}")]
    Open {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A write or fsync failed: the coordinator must stop at once.
    #[error(
        "the decision log failed: {what}. Nothing after this is known to be durable; the \
         coordinator must stop and be started again when the disk works and has space"
    )]
    Failed {
        /// What failed.
        what: String,
    },
    /// It failed before.
    #[error("the decision log failed before and takes nothing more")]
    Poisoned,
    /// A transaction was to be forgotten that has no `End`. Nothing was appended or forgotten.
    #[error("transaction {0} was to be forgotten before it ended; nothing was written")]
    NotEnded(Gtrid),
    /// An epoch was appended that is lower than the log's. Nothing was appended.
    #[error("epoch {appended} is lower than the log's {current}")]
    EpochWentDown {
        /// The epoch that was appended.
        appended: Epoch,
        /// The epoch of the log.
        current: Epoch,
    },
}
