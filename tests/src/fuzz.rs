//! Fuzzing of everything that parses bytes: what each parser must keep, whatever it is given.
//!
//! A [`Target`] takes bytes and panics when a property is violated. The same targets are run by
//! libFuzzer, guided by coverage and for as long as is wanted (`./tests/fuzz`), and by
//! `cargo test`, which replays the corpus and adds some mutations of it ([`short`]). The corpus is
//! in `tests/corpus`, a folder for each target: seeds written by hand, what the long runs found to
//! reach new code, and every input that ever violated a property.

// A target says what was violated by panicking.
#![allow(clippy::missing_panics_doc)]

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

pub mod grammar;
pub mod input;
pub mod ledger;
pub mod log;
pub mod mutate;
pub mod payments;
pub mod server_lexer;
pub mod short;
pub mod sql;
pub mod values;
pub mod vocabulary;
pub mod wire;

/// One parser and what it must keep.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its folder in the corpus.
    pub name: &'static str,
    /// What is parsed.
    pub about: &'static str,
    /// Longest input that is worth trying.
    pub max_len: usize,
    /// Words that its input is made of, so that a fuzzer need not guess them.
    pub words: &'static [&'static str],
    /// How many inputs the short run tries beside the corpus.
    pub short_runs: usize,
    /// Parses, and panics when a property is violated.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "log_record",
        about: "records of the decision log, sealed and unsealed",
        max_len: 512,
        words: &["epoch", "horizon", "placement", "incarnation/p1", "sums"],
        short_runs: 600_000,
        run: log::record,
    },
    Target {
        name: "log_file",
        about: "opening a decision log whose file was damaged",
        max_len: 256,
        words: &["CDJ\u{1}", "concord decision", "redb"],
        short_runs: 1_500,
        run: log::file,
    },
    Target {
        name: "ledger",
        about: "rows of the ledger schema and participant records",
        max_len: 1_024,
        words: &["1", "2", "18446744073709551615", "-1"],
        short_runs: 60_000,
        run: ledger::rows,
    },
    Target {
        name: "xa_recover",
        about: "rows of XA RECOVER, ours and foreign ones",
        max_len: 512,
        words: &["1131376227", "25", "21", "4", "0x", "bank", "\u{4}bank"],
        short_runs: 150_000,
        run: ledger::xa_recover,
    },
    Target {
        name: "columns",
        about: "columns of result sets",
        max_len: 256,
        words: &["1e308", "-0", "NaN", "0000-00-00", "\u{feff}"],
        short_runs: 600_000,
        run: ledger::columns,
    },
    Target {
        name: "sql",
        about: "classification of SQL text",
        max_len: 1_024,
        words: vocabulary::SQL,
        short_runs: 60_000,
        run: sql::text,
    },
    Target {
        name: "sql_words",
        about: "classification of sequences of SQL words",
        max_len: 160,
        words: &[],
        short_runs: 60_000,
        run: sql::words,
    },
    Target {
        name: "migration",
        about: "classification of DDL that a coordinator asks for",
        max_len: 1_024,
        words: vocabulary::DDL,
        short_runs: 30_000,
        run: sql::migration,
    },
    Target {
        name: "literal",
        about: "values as SQL literals",
        max_len: 512,
        words: &["2024-02-29", "838:59:59", "12.30", "'", "\\", "--", "/*"],
        short_runs: 300_000,
        run: values::literal,
    },
    Target {
        name: "requests",
        about: "requests as they come from the wire",
        max_len: 1_024,
        words: &[
            "p1",
            "EUR",
            "SELECT 1",
            "01920000-0000-7000-8000-000000000000",
        ],
        short_runs: 300_000,
        run: wire::requests,
    },
    Target {
        name: "answers",
        about: "answers of participants and coordinators as they come from the wire",
        max_len: 1_024,
        words: &["LOCK_TIMEOUT", "OUTCOME_UNKNOWN"],
        short_runs: 300_000,
        run: wire::answers,
    },
    Target {
        name: "texts",
        about: "ids, page tokens and statuses",
        max_len: 512,
        words: &[
            "01920000-0000-7000-8000-000000000000",
            "concord.v1",
            "gtrid",
        ],
        short_runs: 150_000,
        run: wire::texts,
    },
    Target {
        name: "payments",
        about: "payment files",
        max_len: 1_024,
        words: &[
            "request_id,from,to,amount\n",
            "request_id,from,to,amount,memo\n",
            "\"",
            "\"\"",
            ",",
            "\r\n",
            "\u{feff}",
            "12.30EUR",
            "#",
        ],
        short_runs: 60_000,
        run: payments::file,
    },
    Target {
        name: "money",
        about: "amounts of money",
        max_len: 64,
        words: &["EUR", "JPY", "KWD", "CLF", ".", "1000000000000000", " "],
        short_runs: 600_000,
        run: payments::money,
    },
    Target {
        name: "statements",
        about: "files of statements for the command line",
        max_len: 512,
        words: &[
            "p1: SELECT ?",
            "-p ",
            "--expect ",
            "int:",
            "hex:",
            "[{",
            "\"sql\"",
        ],
        short_runs: 100_000,
        run: payments::statements,
    },
];

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Where the corpus of a target is kept.
pub fn corpus_folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

/// The corpus of a target, by file name.
pub fn corpus(target: &str) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(corpus_folder(target))? {
        let path = entry?.path();
        let bytes = std::fs::read(&path)?;
        files.push((path, bytes));
    }
    files.sort();
    Ok(files)
}

/// What the last panic said and where, in whichever thread: parsers may catch panics of what they
/// rest on, and those are no violation, so nothing is printed when one happens.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Keeps panics quiet and remembered. Called by whoever runs targets, once.
pub fn remember_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
        }));
    });
}

/// Runs a target on one input. The error is what was violated.
pub fn check(target: &Target, input: &[u8]) -> Result<(), String> {
    panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|payload| {
        let said = payload
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string));
        let remembered = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.is_empty() {
            said.unwrap_or_else(|| "a panic without words".to_owned())
        } else {
            remembered.clone()
        }
    })
}

/// The one command that shows a violation again.
pub fn reproduce(target: &str, file: &Path) -> String {
    format!("./tests/fuzz --replay {} {target}", file.display())
}
