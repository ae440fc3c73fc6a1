//! Logs: text for people, JSON for programs, on standard error.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// Environment variable that filters log lines, e.g. `info,concord_participant=debug`.
pub const FILTER_ENV: &str = "CONCORD_LOG";

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. A second call in one process has no effect.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env(FILTER_ENV).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Told on the same stderr, a line that cannot be written (a full disk) would be a panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    // A logger that is there already is good enough: a test may have set one.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
