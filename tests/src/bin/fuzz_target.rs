//! One fuzz target under libFuzzer: the one that `CONCORD_FUZZ_TARGET` names. One program holds
//! them all, so that the instrumented crates are compiled and linked once. `./tests/fuzz` builds it
//! and runs it.

#![no_main]

use std::sync::OnceLock;

use concord_tests::fuzz::{Target, check, find, remember_panics};

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        // Instead of libFuzzer's own hook, which takes every panic for a violation, also one that
        // the code under test expects and catches.
        remember_panics();
        let name = std::env::var("CONCORD_FUZZ_TARGET").unwrap_or_default();
        find(&name).unwrap_or_else(|| {
            eprintln!("CONCORD_FUZZ_TARGET={name} names no target");
            std::process::exit(2);
        })
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(violated) = check(target(), data) {
        eprintln!("VIOLATED: {violated}");
        std::process::abort();
    }
});
