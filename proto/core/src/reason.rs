//! Why something was aborted, refused or delayed: a code for programs, a sentence for people.

use std::fmt;
use std::sync::Arc;

/// What a caller can do about a reason; edges map it to a gRPC status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReasonKind {
    /// The request itself is wrong: `INVALID_ARGUMENT`.
    Invalid,
    /// The state of the data refuses it, e.g. a lack of funds: `FAILED_PRECONDITION`. Final.
    Refused,
    /// What it names does not exist: `NOT_FOUND`. Final.
    NotFound,
    /// What it creates exists: `ALREADY_EXISTS`. Final.
    Exists,
    /// It lost against concurrent work: `ABORTED`. A retry may succeed.
    Conflict,
    /// Somebody who is needed cannot work now: `UNAVAILABLE`. A retry may succeed.
    Unavailable,
    /// Time ran out: `DEADLINE_EXCEEDED`. A retry may succeed.
    Deadline,
    /// A limit was reached: `RESOURCE_EXHAUSTED`. A retry may succeed.
    Exhausted,
    /// The caller ended it: `CANCELLED`.
    Cancelled,
    /// A fault of Concord or of an operator's making: `INTERNAL`.
    Internal,
}

impl ReasonKind {
    /// Whether a retry of the same request must get the same answer: it has nothing to gain from
    /// being executed again. See `coordinator/docs/adr/0002-request-ids.md`.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Invalid | Self::Refused | Self::NotFound | Self::Exists
        )
    }
}

/// Why something was aborted, refused or delayed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason {
    /// For programs: capitals, digits and underscores, e.g. `LOCK_TIMEOUT`.
    pub code: Arc<str>,
    /// For people: what happened, why, and what to do.
    pub message: Arc<str>,
}

impl Reason {
    /// A reason with one of the codes below, or with one that a client chose for an expectation.
    pub fn new(code: impl Into<Arc<str>>, message: impl Into<Arc<str>>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
        }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ReasonKind {
        kind_of(&self.code)
    }

    /// Whether it tells of a former request under the same id, which a ledger still knows. It is
    /// that one that settled the id: this attempt has nothing to say about it.
    pub fn is_of_former_request(&self) -> bool {
        matches!(
            &*self.code,
            code::REQUEST_ALREADY_COMMITTED | code::REQUEST_ID_REUSED
        )
    }

    /// Whether it leaves open what became of the transaction: it says so, or somebody else
    /// finished a branch, and then neither "committed" nor "aborted" must be claimed.
    pub fn leaves_outcome_open(&self) -> bool {
        matches!(
            &*self.code,
            code::OUTCOME_UNKNOWN
                | code::HEURISTIC_COMMIT
                | code::HEURISTIC_ROLLBACK
                | code::HEURISTIC_UNKNOWN
        )
    }

    /// Whether it is remembered as the end of the client's request, so that a retry gets it again.
    pub fn settles_request(&self) -> bool {
        self.kind().is_final() && !self.is_of_former_request()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident => $kind:ident,)*) => {
        /// The codes that Concord itself uses.
        pub mod code {
            $($(#[$doc])* pub const $name: &str = stringify!($name);)*

            /// All of them.
            pub const ALL: &[&str] = &[$($name),*];
        }

        /// What a caller can do about a code. A code that is not Concord's own was chosen by a
        /// client for an expectation: the state of the data refused the request.
        pub fn kind_of(code: &str) -> ReasonKind {
            match code {
                $(code::$name => ReasonKind::$kind,)*
                _ => ReasonKind::Refused,
            }
        }
    };
}

codes! {
    /// An expectation of a statement was violated and named no reason of its own.
    EXPECTATION_FAILED => Refused,
    /// The debited account holds less than the amount.
    INSUFFICIENT_FUNDS => Refused,
    /// The product's stock is less than ordered.
    INSUFFICIENT_STOCK => Refused,
    /// The two accounts, or account and product, have different currencies.
    CURRENCY_MISMATCH => Refused,
    /// The credited balance or stock would grow over its limit.
    LIMIT_EXCEEDED => Refused,
    /// A unique key or another constraint of the database refused a statement.
    CONSTRAINT_VIOLATED => Refused,
    /// The server refused a statement, e.g. an unknown table or a value out of range.
    STATEMENT_FAILED => Refused,
    /// A result set is larger than what is returned.
    RESULT_TOO_LARGE => Refused,
    /// The price of a product changed between reading and ordering.
    PRICE_CHANGED => Conflict,
    /// No such account.
    ACCOUNT_NOT_FOUND => NotFound,
    /// No such product.
    PRODUCT_NOT_FOUND => NotFound,
    /// No such order.
    ORDER_NOT_FOUND => NotFound,
    /// No such transaction: never begun here, or forgotten after its retention time.
    TRANSACTION_NOT_FOUND => NotFound,
    /// No such branch.
    BRANCH_NOT_FOUND => NotFound,
    /// No such report of damage at this participant.
    DAMAGE_NOT_FOUND => NotFound,
    /// No participant of this name in the configuration.
    PARTICIPANT_NOT_FOUND => NotFound,
    /// An account of this id exists.
    ACCOUNT_EXISTS => Exists,
    /// A product of this id exists.
    PRODUCT_EXISTS => Exists,
    /// An order of this id exists.
    ORDER_EXISTS => Exists,
    /// A field of the request is violated; the status names it.
    INVALID_FIELD => Invalid,
    /// The SQL is not on the allow-list.
    STATEMENT_NOT_ALLOWED => Invalid,
    /// The request id was used before for a request of other content.
    REQUEST_ID_REUSED => Invalid,
    /// The request id has taken effect before; the message is the gtrid that it had.
    REQUEST_ALREADY_COMMITTED => Exists,
    /// The transaction is not in a state that allows the call.
    WRONG_STATE => Refused,
    /// An operator's order contradicts a decision or a sibling, and was not forced.
    CONTRADICTS_OUTCOME => Refused,
    /// A lock was not granted in time.
    LOCK_TIMEOUT => Conflict,
    /// The branch was chosen as a deadlock's victim.
    DEADLOCK => Conflict,
    /// The branch was rolled back by an abort that arrived first.
    ALREADY_ABORTED => Conflict,
    /// The branch is not known: it was never begun here, or a crash rolled it back.
    BRANCH_LOST => Conflict,
    /// The message is of a coordinator that was superseded.
    STALE_EPOCH => Conflict,
    /// The transaction is older than what the participant remembers.
    GTRID_TOO_OLD => Conflict,
    /// The coordinator cannot be reached, and nothing was sent to it. Only clients say it.
    COORDINATOR_DOWN => Unavailable,
    /// The link to a participant is down, or was lost before it voted.
    PARTICIPANT_DOWN => Unavailable,
    /// The MySQL server behind a participant cannot be reached.
    SERVER_DOWN => Unavailable,
    /// The connection to the server broke while the branch was being worked on.
    CONNECTION_LOST => Unavailable,
    /// What a branch's statements returned was lost on the way to the coordinator, so the
    /// transaction was not committed.
    RESULT_LOST => Unavailable,
    /// The server's settings would lose acknowledged prepares, so no vote is given.
    UNSAFE_SERVER => Unavailable,
    /// The server is read-only.
    READ_ONLY_SERVER => Unavailable,
    /// The data behind the participant is not the data that the cluster knows.
    INCARNATION_CHANGED => Unavailable,
    /// The data behind the participant is older than it was: it lacks a committed branch.
    DATA_LOST => Unavailable,
    /// The coordinator stops, or is not ready yet.
    SHUTTING_DOWN => Unavailable,
    /// The branch is attached to another connection of its server.
    BRANCH_ATTACHED => Unavailable,
    /// The server waits for a backup's or DDL's metadata lock.
    METADATA_LOCK => Unavailable,
    /// The transaction's time-out passed before the decision.
    DEADLINE_EXCEEDED => Deadline,
    /// Too many transactions in flight, or too much in one of them.
    LIMIT_REACHED => Exhausted,
    /// No connection to the server became free in time.
    POOL_EXHAUSTED => Exhausted,
    /// The client rolled the transaction back.
    ROLLED_BACK => Cancelled,
    /// The client went away before the decision.
    CLIENT_GONE => Cancelled,
    /// Nothing is on record: presumed abort.
    PRESUMED_ABORT => Conflict,
    /// Someone else rolled back a branch that was to be committed.
    HEURISTIC_ROLLBACK => Internal,
    /// Someone else committed a branch that was to be rolled back.
    HEURISTIC_COMMIT => Internal,
    /// The branch is gone and nothing tells how it ended.
    HEURISTIC_UNKNOWN => Internal,
    /// An operator ordered it.
    OPERATOR => Cancelled,
    /// The outcome is not known; ask again by gtrid.
    OUTCOME_UNKNOWN => Internal,
    /// The server said something that this version does not understand.
    UNEXPECTED_ANSWER => Internal,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_own_code_is_a_refusal_and_final() {
        assert_eq!(kind_of("OUT_OF_TICKETS"), ReasonKind::Refused);
        assert!(Reason::new("OUT_OF_TICKETS", "").kind().is_final());
    }

    #[test]
    fn what_a_retry_may_mend_is_not_final() {
        for code in [
            code::LOCK_TIMEOUT,
            code::PARTICIPANT_DOWN,
            code::DEADLINE_EXCEEDED,
        ] {
            assert!(!kind_of(code).is_final(), "{code}");
        }
    }
}
