//! What every daemon of Concord needs and none of them owns: configuration in layers, telemetry,
//! signals and a bounded end, listeners with health and reflection, secrets from files, and the
//! places at which a test may end it.
//!
//! It refuses to know the protocol, and to hold state: there is no global configuration here.

pub mod config;
pub mod crash;
pub mod runtime;
pub mod secret;
pub mod serve;
pub mod tasks;
pub mod telemetry;
pub mod tls;

pub use config::{ConfigError, Loaded, Setting, load};
pub use runtime::runtime;
pub use tasks::{Tasks, stop_on_signal};
