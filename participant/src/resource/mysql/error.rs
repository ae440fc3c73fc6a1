//! The table of server errors: what each one proves, and what a client is told.
//!
//! An error packet proves that its statement did not take effect. Anything else (a cut socket, a
//! time-out, a packet that makes no sense) proves nothing.

use concord_core::reason::{Reason, code};
use sqlx::mysql::MySqlDatabaseError;

/// `XAER_NOTA`: no such branch, or not from this connection.
pub const XAER_NOTA: u16 = 1397;
/// `XAER_RMFAIL`: the branch's state, or the session's, does not allow the verb.
pub const XAER_RMFAIL: u16 = 1399;
/// `XA_RBROLLBACK`: the branch was rolled back.
pub const XA_RBROLLBACK: u16 = 1402;
/// `XAER_DUPID`: the xid exists.
pub const XAER_DUPID: u16 = 1440;
/// `XA_RBTIMEOUT`.
pub const XA_RBTIMEOUT: u16 = 1613;
/// `XA_RBDEADLOCK`.
pub const XA_RBDEADLOCK: u16 = 1614;
/// A unique key refused a row.
pub const DUPLICATE_KEY: u16 = 1062;
/// A lock was not granted in time.
pub const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// MySQL: a lock was not granted at once (NOWAIT).
pub const LOCK_NOWAIT: u16 = 3572;
/// No such connection to kill.
pub const NO_SUCH_THREAD: u16 = 1094;

/// An error of one statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server said no: the statement had no effect.
    Refused {
        /// The server's error number.
        number: u16,
        /// What a client is told.
        reason: Reason,
    },
    /// No answer, or one that proves nothing. The connection is useless.
    Broken(Reason),
}

impl Failure {
    /// What a client is told.
    pub fn reason(&self) -> &Reason {
        match self {
            Self::Refused { reason, .. } | Self::Broken(reason) => reason,
        }
    }

    /// The server's error number.
    pub fn number(&self) -> Option<u16> {
        match self {
            Self::Refused { number, .. } => Some(*number),
            Self::Broken(_) => None,
        }
    }

    /// Whether nothing is wrong but that our own patience has ended. What the server said of time
    /// is a refusal.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Broken(reason) if &*reason.code == code::DEADLINE_EXCEEDED)
    }
}

impl Failure {
    /// Whether the connection was cut.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Broken(reason) if &*reason.code == code::CONNECTION_LOST)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => {
                match database.try_downcast_ref::<MySqlDatabaseError>() {
                    Some(answer) => Self::refused(answer.number(), answer.code(), answer.message()),
                    None => Self::Broken(unexpected(&error.to_string())),
                }
            }
            sqlx::Error::Io(_) => Self::Broken(lost(&error.to_string())),
            _ => Self::Broken(unexpected(&error.to_string())),
        }
    }
}

impl Failure {
    fn refused(number: u16, sql_state: Option<&str>, message: &str) -> Self {
        let code = code_of(number, sql_state, message);
        let text = match code {
            code::LOCK_TIMEOUT => {
                format!("a lock was not granted in time; try again (error {number}: {message})")
            }
            code::DEADLOCK => {
                format!("it lost against concurrent work; try again (error {number}: {message})")
            }
            code::READ_ONLY_SERVER => format!(
                "read_only is in force on the server: run SET GLOBAL read_only = OFF on the one \
                 that shall take writes (error {number}: {message})"
            ),
            _ => format!("the server refused it with error {number}: {message}"),
        };
        Self::Refused {
            number,
            reason: Reason::new(code, text),
        }
    }

    /// A verb got no answer in its time.
    pub fn timed_out(what: &str) -> Self {
        Self::Broken(Reason::new(
            code::DEADLINE_EXCEEDED,
            format!("{what} got no answer from the server in its time"),
        ))
    }

    /// Results came in an order or number that this program did not ask for.
    pub fn out_of_step(what: &str) -> Self {
        Self::Broken(unexpected(what))
    }

    /// Whether what came back made no sense.
    pub fn is_out_of_step(&self) -> bool {
        matches!(self, Self::Broken(reason) if &*reason.code == code::UNEXPECTED_ANSWER)
    }
}

fn lost(detail: &str) -> Reason {
    Reason::new(
        code::CONNECTION_LOST,
        format!("the connection to the server broke: {detail}"),
    )
}

fn unexpected(detail: &str) -> Reason {
    Reason::new(
        code::UNEXPECTED_ANSWER,
        format!("the server's answer makes no sense: {detail}"),
    )
}

/// The reason's code for an error number. Codes that tell a client "final" are only for errors
/// that the same statement gets again on the same data.
fn code_of(number: u16, sql_state: Option<&str>, message: &str) -> &'static str {
    match number {
        LOCK_WAIT_TIMEOUT | LOCK_NOWAIT | 1689 => code::LOCK_TIMEOUT,
        // A victim; a changed snapshot (MariaDB); a lock table that is full.
        1213 | XA_RBDEADLOCK | XA_RBTIMEOUT | 1020 | 1206 => code::DEADLOCK,
        // Unique, foreign and not-null keys, checks.
        1022 | 1048 | DUPLICATE_KEY | 1169 | 1216 | 1217 | 1364 | 1451 | 1452 | 1557 | 1586
        | 1761 | 1762 | 1859 | 3819 => code::CONSTRAINT_VIOLATED,
        // MariaDB's check constraint; MySQL uses the number for something else.
        4025 if sql_state == Some("23000") => code::CONSTRAINT_VIOLATED,
        // MySQL counts "Cannot update a read-only server" with other options under 1290.
        1290 if message.contains("read-only") || message.contains("read_only") => {
            code::READ_ONLY_SERVER
        }
        1836 | 3100 => code::READ_ONLY_SERVER,
        1792 => code::STATEMENT_NOT_ALLOWED,
        XAER_NOTA | XA_RBROLLBACK => code::BRANCH_LOST,
        XAER_RMFAIL | XAER_DUPID | 1398 | 1400 | 1401 => code::WRONG_STATE,
        // Statement time limits of the server itself.
        1969 | 3024 => code::DEADLINE_EXCEEDED,
        // Interrupted, killed, closed for idleness.
        1317 | 1927 | 3169 | 4031 => code::CONNECTION_LOST,
        // Going down; not letting us in.
        1053 | 1045 | 1044 | 1049 | 1130 | 1698 | 1820 | 1862 => code::SERVER_DOWN,
        // Connections, memory, disks, undo slots.
        1040 | 1203 | 1226 => code::POOL_EXHAUSTED,
        1021 | 1037 | 1038 | 1041 | 1114 | 1135 | 1637 => code::LIMIT_REACHED,
        // A table changed under the transaction.
        1412 => code::METADATA_LOCK,
        // Everything else, e.g. an unknown table or column, a value out of range (1264, 1690), too
        // long (1406) or of the wrong form (1292, 1366).
        _ => code::STATEMENT_FAILED,
    }
}

/// What an error proves when it answers `XA COMMIT` or `XA ROLLBACK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerbFailure {
    /// The server does not know the branch, or not from here.
    NoSuchBranch,
    /// The branch is as it was.
    Unchanged,
    /// It proves nothing.
    Unclear,
}

/// What an error proves when it answers `XA COMMIT` or `XA ROLLBACK` of a prepared branch.
pub fn verb_failure(failure: &Failure) -> VerbFailure {
    match failure.number() {
        Some(XAER_NOTA) => VerbFailure::NoSuchBranch,
        // A backup's or DDL's metadata lock; a read-only server; a session in another branch; a
        // server that is short of something before it begins.
        Some(LOCK_WAIT_TIMEOUT | 1290 | 1836 | XAER_RMFAIL | 1040 | 1041 | 1227) => {
            VerbFailure::Unchanged
        }
        _ => VerbFailure::Unclear,
    }
}

/// Why a prepared branch could not be finished. Finishing takes no row lock, so a time-out is
/// that of a metadata lock, which is another operator's doing.
pub fn verb_reason(failure: &Failure) -> Reason {
    match failure.number() {
        Some(LOCK_WAIT_TIMEOUT) => metadata_lock(failure),
        _ => failure.reason().clone(),
    }
}

/// What a time-out of a metadata lock is told as.
pub fn metadata_lock(failure: &Failure) -> Reason {
    Reason::new(
        code::METADATA_LOCK,
        format!(
            "a backup (FLUSH TABLES WITH READ LOCK) or DDL holds a lock of the server; the branch \
             stays as it is and is tried again ({})",
            failure.reason().message
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(number: u16) -> &'static str {
        code_of(number, Some("HY000"), "the --read-only option")
    }

    #[test]
    fn every_number_of_the_table_has_its_code() {
        for (number, expected) in [
            (1205, code::LOCK_TIMEOUT),
            (3572, code::LOCK_TIMEOUT),
            (1213, code::DEADLOCK),
            (1614, code::DEADLOCK),
            (1062, code::CONSTRAINT_VIOLATED),
            (1452, code::CONSTRAINT_VIOLATED),
            (3819, code::CONSTRAINT_VIOLATED),
            (1290, code::READ_ONLY_SERVER),
            (1836, code::READ_ONLY_SERVER),
            (1397, code::BRANCH_LOST),
            (1402, code::BRANCH_LOST),
            (1399, code::WRONG_STATE),
            (1264, code::STATEMENT_FAILED),
            (1690, code::STATEMENT_FAILED),
            (1146, code::STATEMENT_FAILED),
            (4025, code::STATEMENT_FAILED),
            (1040, code::POOL_EXHAUSTED),
            (1045, code::SERVER_DOWN),
            (1053, code::SERVER_DOWN),
            (1927, code::CONNECTION_LOST),
            (1317, code::CONNECTION_LOST),
            (3024, code::DEADLINE_EXCEEDED),
            (1969, code::DEADLINE_EXCEEDED),
            (1114, code::LIMIT_REACHED),
        ] {
            assert_eq!(code(number), expected, "{number}");
        }
        assert_eq!(code_of(4025, Some("23000"), ""), code::CONSTRAINT_VIOLATED);
        assert_eq!(
            code_of(1290, None, "--skip-grant-tables"),
            code::STATEMENT_FAILED
        );
    }

    #[test]
    fn what_a_retry_can_mend_is_never_final() {
        for number in [
            1205, 1213, 1614, 1290, 1836, 1040, 1053, 1317, 1927, 3024, 1114, 1412,
        ] {
            let reason = Failure::refused(number, None, "read-only").reason().clone();
            assert!(!reason.kind().is_final(), "{number}");
        }
    }

    #[test]
    fn only_our_own_patience_says_nothing_of_the_server() {
        assert!(Failure::timed_out("a read").is_timeout());
        for number in [1205, 1969, 3024] {
            assert!(!Failure::refused(number, None, "").is_timeout(), "{number}");
        }
        let cut = std::io::Error::from(std::io::ErrorKind::TimedOut);
        for failure in [
            sqlx::Error::Io(cut).into(),
            Failure::out_of_step("an answer"),
        ] {
            assert!(!failure.is_timeout(), "{failure:?}");
        }
    }

    #[test]
    fn only_nota_means_no_such_branch_and_a_broken_connection_proves_nothing() {
        let refused = |number| verb_failure(&Failure::refused(number, None, ""));
        assert_eq!(refused(1397), VerbFailure::NoSuchBranch);
        for number in [1205, 1290, 1836, 1399] {
            assert_eq!(refused(number), VerbFailure::Unchanged);
        }
        for number in [1402, 1401, 1317, 1053, 1614, 1030] {
            assert_eq!(refused(number), VerbFailure::Unclear);
        }
        let waited = verb_reason(&Failure::refused(1205, None, ""));
        assert_eq!(&*waited.code, code::METADATA_LOCK);
        assert_eq!(
            verb_failure(&Failure::timed_out("XA COMMIT")),
            VerbFailure::Unclear
        );
    }
}
