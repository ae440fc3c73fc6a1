//! Limits of the protocol: named, with a unit and a reason.

/// Branches in one transaction. XA's bqual could hold more; a transaction over more servers than
/// this holds too many locks for too long.
pub const BRANCHES_MAX: usize = 64;
/// Statements in one transaction, so that a branch's work fits in one message and one packet.
pub const STATEMENTS_MAX: usize = 1_000;
/// Bytes of SQL and values in one transaction: MariaDB's default `max_allowed_packet` is 16 MiB,
/// and hex literals double the size.
pub const WORK_BYTES_MAX: usize = 4 << 20;
/// Bytes of one statement's SQL.
pub const SQL_BYTES_MAX: usize = 64 << 10;
/// Parameters of one statement.
pub const PARAMS_MAX: usize = 4_096;
/// Bytes of one value.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Rows that one statement may return: results are held in memory on their way.
pub const RESULT_ROWS_MAX: usize = 10_000;
/// Bytes that the results of one statement may have.
pub const RESULT_BYTES_MAX: usize = 1 << 20;
/// Bytes that the results of a branch may have: they travel in one message.
pub const BRANCH_RESULT_BYTES_MAX: usize = 4 << 20;
/// Bytes that the results of a transaction may have: they wait in the coordinator's memory for its
/// end, and travel to the client in one message.
pub const TRANSACTION_RESULT_BYTES_MAX: usize = 16 << 20;
/// Characters of a request id.
pub const REQUEST_ID_LEN_MAX: usize = 128;
/// Characters of a participant's or a cluster's name. The cluster's name is part of every xid,
/// whose gtrid has 64 bytes.
pub const NAME_LEN_MAX: usize = 32;
/// Longest time-out of a transaction, in ms: locks that are held longer are an outage.
pub const TIMEOUT_MAX_MS: u32 = 3_600_000;
/// Time-out of a one-shot transaction that names none, in ms.
pub const TIMEOUT_DEFAULT_MS: u32 = 10_000;
/// Time-out of an interactive transaction that names none, in ms: a person may be typing.
pub const INTERACTIVE_TIMEOUT_DEFAULT_MS: u32 = 60_000;
/// Branches in one inquiry.
pub const INQUIRY_BRANCHES_MAX: usize = 1_000;
/// Commands in one frame of a link.
pub const LINK_BATCH_MAX: usize = 1_024;
/// Bytes after which a frame of a link is full; one branch's work or results can make one as large.
pub const LINK_FRAME_BYTES: usize = 4 << 20;
/// Branches of which a participant is asked whether its data still has them.
pub const WITNESSES_MAX: usize = 32;
/// Accounts and products are spread over this many hash slots.
pub const SLOTS: u16 = 1_024;
/// Page size of lists when none is given.
pub const PAGE_SIZE_DEFAULT: u32 = 100;
/// Largest page size.
pub const PAGE_SIZE_MAX: u32 = 1_000;
