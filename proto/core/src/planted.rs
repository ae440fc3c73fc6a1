//! Planted bugs: errors made on purpose, to see that the tests find them.
//!
//! It owns the list. Where the code does the right thing for a reason that somebody else once
//! missed, it asks [`is`] whether to do the wrong one. With a release build the answer is the
//! constant `false`, whatever features it has: without `debug_assertions` there is no other `is`,
//! and the compiler removes what it guards.
//!
//! With the feature `planted-bugs`, which only the tests ask for, and `debug_assertions`, one bug
//! can be chosen by its name in the environment variable [`VARIABLE`], for the life of a process.
//! That is the one thing in this crate that is not an input: the machines stay values without it,
//! and a bug that came in as an input would have to be carried through every type and every call
//! that it shall break, which would change the very code that is to be tested. `tests/PLANTED.md`
//! tells of each bug who had it and which test catches it.

/// Chooses a bug.
pub const VARIABLE: &str = "CONCORD_PLANTED_BUG";

macro_rules! bugs {
    ($($variant:ident $name:literal $doc:literal)*) => {
        /// An error that can be made on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Bug {
            $(#[doc = $doc] $variant,)*
        }

        impl Bug {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name.
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

bugs! {
    DecisionBeforeDurable "decision-before-durable"
        "Commits and the answer leave before the decision is durable."
    NotaIsSuccess "nota-is-success"
        "`XAER_NOTA` after XA COMMIT counts as committed."
    ForgottenBeforeAcknowledged "forgotten-before-acknowledged"
        "A decision ends with its first acknowledgement."
    LatePrepareAccepted "late-prepare-accepted"
        "An Abort of an unknown branch leaves no tombstone."
    UnknownRetriedAsNew "unknown-retried-as-new"
        "A repeated request whose first outcome is unknown is executed again."
    FailedStatementForgiven "failed-statement-forgiven"
        "A failed statement leaves its branch fit to be prepared."
    MissingVoteIsYes "missing-vote-is-yes"
        "The first vote COMMIT decides."
    StaleEpochAccepted "stale-epoch-accepted"
        "A participant obeys a coordinator that was superseded."
    FsyncErrorIgnored "fsync-error-ignored"
        "The log goes on after an fsync that failed."

    OnePhaseWithoutTombstone "one-phase-without-tombstone"
        "A one-phase commit that failed is told as aborted before its tombstone stands."
    InquiryBeforeDurable "inquiry-before-durable"
        "An inquiry is answered with a decision that is not durable."
    RetryGivesUp "retry-gives-up"
        "A branch that cannot be told now counts as told."
    HorizonNotKept "horizon-not-kept"
        "A participant deletes ledger rows below a horizon that it does not remember."
    SweepRollsBackRunning "sweep-rolls-back-running"
        "A sweep rolls back what it finds prepared and does not know the vote of."
    FormerLifeVouchedFor "former-life-vouched-for"
        "A branch votes COMMIT for a preparation that this process has not seen."
    ReadOnlyLeavesSerializable "read-only-leaves-serializable"
        "A branch that only read leaves a SERIALIZABLE transaction at its vote."
    ConnectionReusedUncleaned "connection-reused-uncleaned"
        "A connection goes back to the pool with the branch still open on it."
    StrayAnswerTaken "stray-answer-taken"
        "An answer to another connection is taken for the answer to the text that was sent."
    ForcedBranchUntold "forced-branch-untold"
        "Who waits until the deadline is told COMMITTED although a branch was forced to roll back."
    LostResultsMadeUp "lost-results-made-up"
        "Results that were lost on their way are answered as empty ones."
    UnsafeServerVotes "unsafe-server-votes"
        "A server votes although its flush settings would lose what it prepared."
    ForeignBranchTaken "foreign-branch-taken"
        "A prepared branch of another cluster is taken for one of ours."
    TornTailIsRot "torn-tail-is-rot"
        "An unfinished last append, which nobody was told of, keeps the log from opening."
    RotIsTornTail "rot-is-torn-tail"
        "Acknowledged records that have rotted are dropped like an unfinished append."
    OlderDataTaken "older-data-taken"
        "A participant whose data lacks what it acknowledged is linked all the same."
    EpochNotRaised "epoch-not-raised"
        "A coordinator that starts does not make its new epoch durable."
}

/// Whether this bug is to be made.
#[cfg(not(all(feature = "planted-bugs", debug_assertions)))]
pub const fn is(_: Bug) -> bool {
    false
}

/// Whether this bug is to be made.
///
/// # Panics
///
/// When the variable names no bug: a test that plants a bug of another name would prove nothing.
#[cfg(all(feature = "planted-bugs", debug_assertions))]
pub fn is(bug: Bug) -> bool {
    use std::sync::OnceLock;

    static CHOSEN: OnceLock<Option<Bug>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var(VARIABLE).ok()?;
        let found = Bug::ALL.iter().find(|bug| bug.name() == name);
        assert!(found.is_some(), "{VARIABLE}={name}: there is no such bug");
        found.copied()
    });
    *chosen == Some(bug)
}
