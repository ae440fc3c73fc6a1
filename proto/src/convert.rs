//! The door: the one place where raw input becomes validated types.
//!
//! It owns every check that needs nothing but the message itself: presence, range, length, form,
//! known enum numbers. Each function collects *all* violated fields into one [`Violations`], which
//! becomes one `INVALID_ARGUMENT` that names them; nothing behind this door checks them again. It
//! refuses to look at anything else: whether an account exists, what a statement's SQL says, or
//! whether a participant is configured is decided by those who know.
//!
//! Answers of participants are raw input too ([`link`]): what cannot be understood becomes a
//! [`Reason`](concord_core::reason::Reason) of code `UNEXPECTED_ANSWER`.

pub mod admin;
pub mod bank;
pub mod common;
pub mod fingerprint;
pub mod inventory;
pub mod link;
pub mod outcome;
pub mod page;
pub mod participant;
pub mod text;
pub mod time;
pub mod transaction;
pub mod value;
pub mod violations;
pub mod work;

#[cfg(test)]
mod tests;

pub use fingerprint::fingerprint;
pub use page::Page;
pub use text::{AccountId, Currency, OrderId, ProductId};
pub use violations::{At, Violations};
