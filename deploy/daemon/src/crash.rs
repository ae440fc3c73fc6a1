//! Crash points: named places in the daemons at which a test ends a process, or a simulated host.
//!
//! It owns the list of points, and what happens when one is reached. Without the feature
//! `crash-points`, which only the tests ask for, [`reach`] is nothing. With it, a point can be
//! heard of in two ways:
//!
//! - *in a simulation*, by a hook of the thread ([`set_hook`]). [`reach`] is an ordinary call in
//!   the middle of ordinary code: when it returns, that code goes on to the next place where it
//!   waits. So a hook cannot stop anything itself, least of all within the log, which is called
//!   synchronously: it marks its host as dead, and from that moment on nothing that the host does
//!   may have an effect outside it: no byte on its disk, its network or its server. The simulation
//!   drops the host's tasks as soon as it has control again.
//! - *in a real process*, by a file: where the environment names a directory in
//!   [`CONCORD_CRASH_DIR`](DIRECTORY) and a file with the point's name is in it, the process
//!   deletes the file and then itself, with SIGKILL. Of several processes with the same directory
//!   the first to come dies, alone and once. Only a build with `debug_assertions` does that: what
//!   ships cannot be told to.
//!
//! It refuses to know what a point means: whoever lists a new one places it, once, and the test
//! of all points (`tests/it/crash_points.rs`) fails until it has a workload that comes there.

/// Names the directory with the armed points of a real process.
pub const DIRECTORY: &str = "CONCORD_CRASH_DIR";

macro_rules! points {
    ($($variant:ident $name:literal $doc:literal)*) => {
        /// A place at which a process may end. Its name says where it is: in the coordinator, in
        /// the participant, in the participant's talk with its server, or in the decision log.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum CrashPoint {
            $(#[doc = $doc] $variant,)*
        }

        impl CrashPoint {
            /// Every point.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name, which is stable: records of runs speak of it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The name that it has in the code.
            pub const fn variant(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)*
                }
            }
        }
    };
}

points! {
    CoordinatorReplayBefore "coordinator.replay.before" "The log is open and not read."
    CoordinatorEpochBeforeForce "coordinator.epoch.before-force" "The log is replayed."
    CoordinatorEpochAfterForce "coordinator.epoch.after-force" "The new epoch is durable."
    CoordinatorServeBefore "coordinator.serve.before" "Nobody is answered yet."
    CoordinatorResendBefore "coordinator.resend.before" "A link is up; nothing was sent on it."
    CoordinatorResendAfter "coordinator.resend.after" "Unfinished outcomes are on their way."
    CoordinatorRunReceived "coordinator.run.received" "A whole transaction came."
    CoordinatorBeginReceived "coordinator.begin.received" "An interactive transaction begins."
    CoordinatorBranchEnlisted "coordinator.branch.enlisted" "An interactive one has a branch."
    CoordinatorAskReceived "coordinator.ask.received" "An interactive one is to be committed."
    CoordinatorRollbackReceived "coordinator.rollback.received" "It is to be rolled back."
    CoordinatorDeadlinePassed "coordinator.deadline.passed" "A time-out passed."
    CoordinatorPrepareBeforeSend "coordinator.prepare.before-send" "A Prepare is to leave."
    CoordinatorPrepareAfterSend "coordinator.prepare.after-send" "A Prepare left for its link."
    CoordinatorCommitBeforeSend "coordinator.commit.before-send" "A Commit is to leave."
    CoordinatorCommitAfterSend "coordinator.commit.after-send" "A Commit left for its link."
    CoordinatorOnePhaseBeforeSend "coordinator.one-phase.before-send" "A Commit in one phase."
    CoordinatorOnePhaseAfterSend "coordinator.one-phase.after-send" "It left for its link."
    CoordinatorAbortBeforeSend "coordinator.abort.before-send" "An Abort is to leave."
    CoordinatorAbortAfterSend "coordinator.abort.after-send" "An Abort left for its link."
    CoordinatorFrameSent "coordinator.frame.sent" "A frame left for the network."
    CoordinatorFrameReceived "coordinator.frame.received" "A frame of answers came."
    CoordinatorVoteReceived "coordinator.vote.received" "A vote came."
    CoordinatorVoteTaken "coordinator.vote.taken" "The machine knows the vote."
    CoordinatorAckReceived "coordinator.ack.received" "A branch's end came."
    CoordinatorAckTaken "coordinator.ack.taken" "The machine knows the branch's end."
    CoordinatorDecisionBeforeForce "coordinator.decision.before-force" "A decision is next."
    CoordinatorDecisionAfterForce "coordinator.decision.after-force" "It is; nobody knows."
    CoordinatorDelegationBeforeForce "coordinator.delegation.before-force" "A one-phase record."
    CoordinatorDelegationAfterForce "coordinator.delegation.after-force" "It is durable."
    CoordinatorRefusalBeforeForce "coordinator.refusal.before-force" "A final refusal is next."
    CoordinatorRefusalAfterForce "coordinator.refusal.after-force" "That is durable."
    CoordinatorHeuristicBeforeForce "coordinator.heuristic.before-force" "Damage is to be durable."
    CoordinatorHeuristicAfterForce "coordinator.heuristic.after-force" "It is durable."
    CoordinatorEndBeforeWrite "coordinator.end.before-write" "Ends are to be written."
    CoordinatorEndAfterWrite "coordinator.end.after-write" "They are written."
    CoordinatorHorizonBeforeForce "coordinator.horizon.before-force" "The horizon moves."
    CoordinatorHorizonAfterForce "coordinator.horizon.after-force" "It has moved, durably."
    CoordinatorForgetBefore "coordinator.forget.before" "The log is to forget transactions."
    CoordinatorForgetAfter "coordinator.forget.after" "It does so with its next append."
    CoordinatorForgetTold "coordinator.forget.told" "Participants are told of the horizon."
    CoordinatorReleaseBefore "coordinator.release.before" "Records are durable, and all waits."
    CoordinatorReleaseAfter "coordinator.release.after" "What had to wait has left."
    CoordinatorReplyBeforeSend "coordinator.reply.before-send" "A client is to be told the end."
    CoordinatorReplyAfterSend "coordinator.reply.after-send" "A client was told."
    CoordinatorInquiryReceived "coordinator.inquiry.received" "A participant asks."
    CoordinatorInquiryAnswered "coordinator.inquiry.answered" "It is about to be answered."
    CoordinatorOrderReceived "coordinator.order.received" "An operator resolves a branch."
    CoordinatorOrderReleased "coordinator.order.released" "The participant is to be told."

    ParticipantLoadBefore "participant.load.before" "The ledger schema is to be read."
    ParticipantLoadAfter "participant.load.after" "It was read."
    ParticipantRecoverAfter "participant.recover.after" "The server has listed its branches."
    ParticipantRecoverTaken "participant.recover.taken" "The machine knows them."
    ParticipantLinkAccepted "participant.link.accepted" "A coordinator has connected."
    ParticipantFrameReceived "participant.frame.received" "A frame of orders came."
    ParticipantFrameSent "participant.frame.sent" "A frame of answers leaves."
    ParticipantBeginReceived "participant.begin.received" "A branch is to be opened."
    ParticipantStatementReceived "participant.statement.received" "A statement came."
    ParticipantPrepareReceived "participant.prepare.received" "A Prepare came."
    ParticipantCommitReceived "participant.commit.received" "A Commit came."
    ParticipantOnePhaseReceived "participant.one-phase.received" "A Commit in one phase came."
    ParticipantAbortReceived "participant.abort.received" "An Abort came."
    ParticipantBeginBefore "participant.begin.before" "XA START is to be sent."
    ParticipantBeginAfter "participant.begin.after" "It was answered."
    ParticipantStatementBefore "participant.statement.before" "A statement is to be sent."
    ParticipantStatementAfter "participant.statement.after" "It was answered."
    ParticipantPrepareBefore "participant.prepare.before" "XA PREPARE, with the work."
    ParticipantPrepareAfter "participant.prepare.after" "It was answered."
    ParticipantOnePhaseBefore "participant.one-phase.before" "XA COMMIT ONE PHASE."
    ParticipantOnePhaseAfter "participant.one-phase.after" "It was answered."
    ParticipantCommitBefore "participant.commit.before" "XA COMMIT is to be sent."
    ParticipantCommitAfter "participant.commit.after" "It was answered."
    ParticipantRollbackBefore "participant.rollback.before" "XA ROLLBACK is to be sent."
    ParticipantRollbackAfter "participant.rollback.after" "It was answered."
    ParticipantLedgerBefore "participant.ledger.before" "The ledger row is asked for."
    ParticipantLedgerAfter "participant.ledger.after" "It was read."
    ParticipantTombstoneBefore "participant.tombstone.before" "A tombstone is to stand."
    ParticipantTombstoneAfter "participant.tombstone.after" "It stands, or what else does."
    ParticipantListBefore "participant.list.before" "XA RECOVER about one branch."
    ParticipantListAfter "participant.list.after" "It was answered."
    ParticipantDetachBefore "participant.detach.before" "A branch's connection is to end."
    ParticipantDetachAfter "participant.detach.after" "It has ended."
    ParticipantEpochBeforeWrite "participant.epoch.before-write" "A new epoch was seen."
    ParticipantEpochAfterWrite "participant.epoch.after-write" "It is durable."
    ParticipantDamageBeforeWrite "participant.damage.before-write" "Damage was found."
    ParticipantDamageAfterWrite "participant.damage.after-write" "It is durable."
    ParticipantHorizonBeforeWrite "participant.horizon.before-write" "The horizon moves."
    ParticipantHorizonAfterWrite "participant.horizon.after-write" "It has moved, durably."
    ParticipantPruneBefore "participant.prune.before" "Ledger rows are to be deleted."
    ParticipantPruneAfter "participant.prune.after" "They are deleted."
    ParticipantSweepBefore "participant.sweep.before" "The server is to list its branches."
    ParticipantSweepAfter "participant.sweep.after" "It has."
    ParticipantInquiryBefore "participant.inquiry.before" "The coordinator is to be asked."
    ParticipantInquiryAfter "participant.inquiry.after" "It has answered."
    ParticipantDecidedTaken "participant.decided.taken" "The machine knows the answer."
    ParticipantVoteBeforeSend "participant.vote.before-send" "A vote is to leave."
    ParticipantVoteAfterSend "participant.vote.after-send" "A vote left for the link."
    ParticipantAckBeforeSend "participant.ack.before-send" "A branch's end is to leave."
    ParticipantAckAfterSend "participant.ack.after-send" "It left for the link."

    ServerWorkBeforeSend "server.work.before-send" "A branch's text is to be sent."
    ServerStartAnswered "server.xa-start.answered" "XA START was answered."
    ServerLedgerAnswered "server.ledger-row.answered" "The branch's ledger row is in it."
    ServerStatementAnswered "server.statement.answered" "A client's statement was answered."
    ServerEndAnswered "server.xa-end.answered" "XA END was answered."
    ServerPrepareAnswered "server.xa-prepare.answered" "XA PREPARE was answered."
    ServerOnePhaseAnswered "server.xa-one-phase.answered" "XA COMMIT ONE PHASE was answered."
    ServerCommitBeforeSend "server.xa-commit.before-send" "XA COMMIT has its connection."
    ServerCommitAnswered "server.xa-commit.answered" "XA COMMIT was answered."
    ServerRollbackBeforeSend "server.xa-rollback.before-send" "XA ROLLBACK has its connection."
    ServerRollbackAnswered "server.xa-rollback.answered" "XA ROLLBACK was answered."
    ServerUndoBeforeSend "server.undo.before-send" "Work that failed is to be rolled back."
    ServerUndoEnded "server.undo.ended" "Its XA END was answered."
    ServerUndoAnswered "server.undo.answered" "Its XA ROLLBACK was answered."

    LogLockTaken "log.lock.taken" "The directory is locked."
    LogCreatePublishBefore "log.create.before-publish" "A new log is complete, without its name."
    LogCreatePublishAfter "log.create.after-publish" "It has its name, durably."
    LogOpenExamined "log.open.examined" "The file is what was written."
    LogCompactBefore "log.compact.before" "Free pages are to be given back."
    LogCompactAfter "log.compact.after" "They are."
    LogJournalBeforeWrite "log.journal.before-write" "A frame is to be written."
    LogJournalBeforeSync "log.journal.before-sync" "It is written and not synced."
    LogJournalAfterSync "log.journal.after-sync" "It is durable, without a mark."
    LogJournalMarked "log.journal.marked" "The mark is written."
    LogFoldBefore "log.fold.before" "What is pending is to be folded."
    LogFoldBeforeCommit "log.fold.before-commit" "redb has it and has not committed."
    LogFoldAfterCommit "log.fold.after-commit" "redb has committed; the mark is old."
    LogFoldMarked "log.fold.marked" "The journal begins again."
}

impl CrashPoint {
    /// The point of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|point| point.name() == name)
    }
}

/// Says that a point is reached.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn reach(_: CrashPoint) {}

#[cfg(feature = "crash-points")]
pub use self::armed::{Hook, reach, reached, set_hook};

#[cfg(feature = "crash-points")]
mod armed {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::CrashPoint;

    /// What a simulation does when a point is reached on its thread.
    pub type Hook = Rc<dyn Fn(CrashPoint)>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    static REACHED: [AtomicU64; CrashPoint::ALL.len()] =
        [const { AtomicU64::new(0) }; CrashPoint::ALL.len()];

    /// Sets this thread's hook and gives back the one before. What it may do is said at the head
    /// of this module: it marks a host as dead, it does not stop one.
    pub fn set_hook(hook: Option<Hook>) -> Option<Hook> {
        HOOK.with(|cell| cell.replace(hook))
    }

    /// How often a point was reached in this process so far, on any thread.
    pub fn reached(point: CrashPoint) -> u64 {
        REACHED[point as usize].load(Ordering::Relaxed)
    }

    /// Says that a point is reached.
    pub fn reach(point: CrashPoint) {
        REACHED[point as usize].fetch_add(1, Ordering::Relaxed);
        // A hook that reaches a point itself must find the cell free.
        let hook = HOOK.with(|cell| cell.borrow().clone());
        if let Some(hook) = hook {
            hook(point);
        }
        #[cfg(debug_assertions)]
        die_if_armed(point);
    }

    /// Deleting the file is what claims the death: two threads, or two processes, that come here
    /// at once do not both die of it.
    #[cfg(debug_assertions)]
    fn die_if_armed(point: CrashPoint) {
        use std::io::Write;
        use std::path::PathBuf;
        use std::sync::OnceLock;

        static ARMED: OnceLock<Option<PathBuf>> = OnceLock::new();
        let directory = ARMED.get_or_init(|| std::env::var_os(super::DIRECTORY).map(PathBuf::from));
        let Some(directory) = directory else { return };
        if std::fs::remove_file(directory.join(point.name())).is_ok() {
            // A log that cannot be written to must not turn the death into a panic.
            let _ = writeln!(std::io::stderr(), "crash point {}: SIGKILL", point.name());
            // As a power loss would: no destructor, no answer, no last byte.
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_hook_hears_of_its_own_thread_and_gives_way_to_the_next() {
            let heard = Rc::new(RefCell::new(Vec::new()));
            let hook = |heard: &Rc<RefCell<Vec<CrashPoint>>>| -> Hook {
                let heard = Rc::clone(heard);
                Rc::new(move |point| heard.borrow_mut().push(point))
            };
            assert!(set_hook(Some(hook(&heard))).is_none());
            reach(CrashPoint::LogFoldBefore);
            let elsewhere = std::thread::spawn(|| reach(CrashPoint::LogFoldMarked));
            elsewhere.join().unwrap();
            assert_eq!(*heard.borrow(), [CrashPoint::LogFoldBefore]);
            let outer = set_hook(None);
            reach(CrashPoint::LogFoldBefore);
            assert_eq!(heard.borrow().len(), 1);
            assert!(set_hook(outer).is_none());
            reach(CrashPoint::LogFoldBefore);
            assert_eq!(heard.borrow().len(), 2);
            assert!(reached(CrashPoint::LogFoldBefore) >= 3);
            assert!(reached(CrashPoint::LogFoldMarked) >= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_where_they_are() {
        let names: BTreeSet<_> = CrashPoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), CrashPoint::ALL.len());
        for point in CrashPoint::ALL {
            let name = point.name();
            assert_eq!(CrashPoint::of_name(name), Some(*point));
            let of = name.split('.').next().unwrap();
            assert!(
                ["coordinator", "participant", "server", "log"].contains(&of),
                "{name}"
            );
            assert!(
                name.bytes()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'.' | b'-')),
                "{name}"
            );
            assert_eq!(name.split('.').count(), 3, "{name}");
        }
        assert_eq!(CrashPoint::of_name("nowhere"), None);
    }
}
