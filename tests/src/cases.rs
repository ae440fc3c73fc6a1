//! Named cases that share one cluster, and the servers and foreign clients that they need.
//!
//! A cluster takes seconds to start, so that a test starts one for a kind of server and runs many
//! cases on it. It refuses to stop at the first case that fails: all are told.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use concord_client::local::binary::{ServerBinary, ServerKind};

use crate::cluster::servers;

/// The server of this kind under test; none, said aloud, when the run leaves it out.
pub fn server_of(kind: ServerKind) -> anyhow::Result<Option<ServerBinary>> {
    let found = servers()?.into_iter().find(|server| server.kind() == kind);
    if found.is_none() {
        eprintln!("SKIPPED: there is no server of kind {kind:?} in this run");
    }
    Ok(found)
}

/// A tool that `tests/run` installs and names in `variable`; without that, one that an earlier run
/// left in the cache. None, said aloud, when there is none; a failure in CI.
pub fn tool(variable: &str, in_cache: &str, file: &str) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        return Ok(Some(path.into()));
    }
    let cache = match std::env::var_os("CONCORD_CACHE") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?)
            .join(".cache/concord"),
    };
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(in_cache))
        .map(|entry| entry.path().join(file))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    if found.is_empty() {
        skip(&format!("{variable} is not set, and the cache has none"))?;
    }
    Ok(found.pop())
}

/// Whether a program can be found by its name; said aloud when it cannot, and a failure in CI.
pub fn in_path(program: &str) -> anyhow::Result<bool> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        skip(&format!("there is no {program}"))?;
    }
    Ok(found)
}

/// Says aloud why something is left out; a failure in CI.
fn skip(why: &str) -> anyhow::Result<()> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
    ensure!(!ci, "{why}: run ./tests/run");
    eprintln!("SKIPPED: {why}: run ./tests/run");
    Ok(())
}

/// A Python with grpcio and grpcio-reflection.
pub fn python() -> anyhow::Result<Option<PathBuf>> {
    tool("CONCORD_TEST_PYTHON", "python-grpcio-", "bin/python")
}

/// Buf, which is a gRPC client on Go's stack and the linter of the contract.
pub fn buf() -> anyhow::Result<Option<PathBuf>> {
    tool("CONCORD_TEST_BUF", "buf-", "node_modules/.bin/buf")
}

/// Runs async functions of one argument, says how long each took, and fails with the names and
/// errors of all that failed.
#[macro_export]
macro_rules! cases {
    ($world:expr, $($case:path),+ $(,)?) => {{
        let mut failed: Vec<String> = Vec::new();
        $(
            let begun = std::time::Instant::now();
            let result: anyhow::Result<()> = $case($world).await;
            eprintln!("case {}: {:.1?}", stringify!($case), begun.elapsed());
            if let Err(error) = result {
                failed.push(format!("{}: {error:#}", stringify!($case)));
            }
        )+
        anyhow::ensure!(failed.is_empty(), "failed cases:\n{}", failed.join("\n"));
    }};
}
