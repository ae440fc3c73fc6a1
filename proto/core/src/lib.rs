//! Concord's protocol as two pure state machines, and its invariants.
//!
//! This crate owns who says what to whom, in which order, and what must be durable before. It
//! refuses to know sockets, disks, clocks, randomness and logging: inputs go in, [`step::Step`]s
//! come out, and the daemons' drivers carry them out. The same machines run under the model
//! checker.
//!
//! # The protocol on one page
//!
//! A transaction has a branch on each server that it touches. One coordinator asks, participants
//! vote, the coordinator decides, and the branches are told until they acknowledge:
//!
//! ```text
//! client        coordinator               participant (each)         its MySQL server
//!   | Run ------>| Prepare, with the work -->| XA START; ledger row;       |
//!   |            |                           |   work; XA END; XA PREPARE ->|
//!   |            |<------------- vote COMMIT |<------------------------ ok |
//!   |            | all votes are in: DECISION is forced (the commit point)
//!   |<- DECIDED -| Commit ------------------>| XA COMMIT ----------------->|
//!   |            |<--------------- Committed |<------------------------ ok |
//!   |<- APPLIED -| END, not forced
//! ```
//!
//! # What is forced to disk, and when
//!
//! | who | what | forced before | without it |
//! |---|---|---|---|
//! | coordinator | `Epoch` | it says anything | two incarnations would speak as one |
//! | coordinator | `Decision` | a Commit, a reply, an answer | commit here, abort there |
//! | coordinator | `OnePhase` | a Commit in one phase | an abort presumed that never was |
//! | coordinator | `Refused` | a client's id is refused for good | refused now, executed later |
//! | coordinator | `Heuristic` | damage is told, or forced | it would be hidden |
//! | coordinator | `Horizon` | ledger rows are deleted | a commit that nothing proves |
//! | coordinator | `End` | nothing: it is lazy | a question is repeated |
//! | server | XA PREPARE, ledger row | a vote COMMIT | a broken vote |
//! | server | tombstone | Aborted of what was not prepared | a late message would commit it |
//! | participant | `Epoch` | anything of that epoch leaves | a superseded coordinator gets in |
//! | participant | `Damage` | it is told | it would be hidden |
//! | participant | `ForgetBelow` | ledger rows are deleted | a late Prepare looks new |
//!
//! An abort forces nothing at the coordinator. That is *presumed abort*: what is not on record
//! was aborted, so a coordinator that forgot a transaction answers "abort" and is right. It
//! answers "leave it alone" below its horizon, where it has also forgotten commits.
//!
//! *One phase*: with a single branch there is nothing to agree on, so its participant decides,
//! and its ledger row is the decision. The coordinator can only ask, and asks by Abort: a commit
//! that won is answered Committed; otherwise a tombstone makes sure that none ever will. So
//! Aborted is never said of such a branch before its tombstone stands, also when it failed by
//! itself.
//!
//! *Read-only votes*: a branch that wrote nothing may leave at its vote and is not told the
//! outcome. In the one-shot form that is allowed below SERIALIZABLE only: it would release its
//! read locks while other branches still acquire theirs. A transaction of such branches alone
//! leaves no record.
//!
//! # What proves how a branch ended
//!
//! The *ledger row*, and nothing else. It is written inside the branch under the branch's own
//! key, so it is visible exactly when the branch is committed. A *tombstone* under the same key
//! is an abort's: whoever comes first keeps the other out. `XAER_NOTA` proves nothing. Gone,
//! without a row, and not listed, twice: that is damage, recorded and told as such, never as
//! success.
//!
//! # Who may speak
//!
//! Each incarnation of the coordinator has a higher *epoch* than the one before. A participant
//! makes the highest one that it has seen durable and refuses everything lower, so a coordinator
//! that was paused and superseded has no effect when it wakes. What was not prepared under the
//! old epoch is rolled back at once, for nobody can have decided it; what was prepared waits.
//!
//! # What may go wrong on the way
//!
//! Messages may be lost, doubled, late and out of order: each is idempotent or refused. A
//! participant in doubt asks (`Inquire`); a coordinator repeats outcomes until they are
//! acknowledged. After a restart a participant begins nothing before it has read its server's
//! list of prepared branches, and vouches for no branch whose preparation it has not seen itself.
//! Time decides how soon something is tried, never what is right.
//!
//! The numbered invariants that all of this keeps are the functions of [`invariant`].

pub mod coordinator;
pub mod id;
pub mod invariant;
pub mod limits;
pub mod message;
pub mod participant;
pub mod planted;
pub mod reason;
pub mod record;
pub mod step;
pub mod transaction;
