//! What the contract does not say: files, locks, faults.

use super::super::conformance;
use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("log").tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/../target").expect("a directory")
}

#[test]
fn it_keeps_the_contract() {
    let root = directory();
    let count = std::cell::Cell::new(0);
    let make = || {
        count.set(count.get() + 1);
        EmbeddedLog::open(&root.path().join(count.get().to_string()), "test").expect("a log")
    };
    let reopen = |log: EmbeddedLog| {
        let path = log.path.clone();
        drop(log);
        EmbeddedLog::open(&path, "test").expect("the log")
    };
    conformance::run_all(make, reopen);
}
