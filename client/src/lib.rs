//! The client of Concord: a library for programs, and the parts of the `concord` command line.
//!
//! [`Client`] talks to a coordinator's gateway. What changes data answers with an [`Outcome`],
//! which has three cases and never two: committed, aborted, or *unknown*. What only reads answers
//! with a `Result` of [`CallError`].
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use concord_client::{Client, Outcome, Statement};
//!
//! let client = Client::connect("http://127.0.0.1:7400")?;
//! let debit = Statement::new("UPDATE shop.till SET cash = cash - ? WHERE id = ? AND cash >= ?")
//!     .bind(500)
//!     .bind("anna")
//!     .bind(500)
//!     .expect_rows(1, Some(1), "INSUFFICIENT_FUNDS");
//! let credit = Statement::new("UPDATE shop.till SET cash = cash + ? WHERE id = ?")
//!     .bind(500)
//!     .bind("bert")
//!     .expect_rows(1, Some(1), "NO_SUCH_TILL");
//! let outcome = client
//!     .one_shot()
//!     .request_id("invoice-2026-17")
//!     .on("p1", debit)
//!     .on("p2", credit)
//!     .send()
//!     .await;
//! match outcome {
//!     Outcome::Committed { gtrid, .. } => println!("paid in {gtrid}"),
//!     Outcome::Aborted { reason, .. } => println!("nothing happened: {reason}"),
//!     Outcome::Unknown { message, .. } => println!("ask again with the same id: {message}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The library refuses to guess: a call that was sent and not answered is `Unknown`, and it is
//! repeated only when it carries a request id, which makes a repetition harmless.

pub mod cli;
mod client;
mod error;
pub mod local;
mod oneshot;
mod outcome;
mod retry;
mod services;
mod statement;
mod transaction;

pub use client::{Client, ClientBuilder};
pub use concord_core::reason::{Reason, ReasonKind};
pub use concord_proto::v1;
pub use error::{CallError, ConnectError};
pub use oneshot::OneShot;
pub use outcome::Outcome;
pub use retry::RetryPolicy;
pub use statement::{Param, Statement};
pub use transaction::Transaction;
