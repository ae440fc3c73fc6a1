//! The fuzzers' short run: the corpus, and mutations of it from a seed.
//!
//! `CONCORD_FUZZ_SEED=<number>` repeats a run. The long run is `./tests/fuzz`.

use std::time::Instant;

use concord_tests::fuzz::{TARGETS, corpus_folder, find, short};

mod servers;

/// The seed of a run that asks for none. It is always the same one, so that a failure is of the
/// change that is tested and not of chance: the search for what is new is the long run's.
const SEED: u64 = 20_261_127;

/// The seed that is asked for.
fn seed() -> anyhow::Result<u64> {
    match std::env::var("CONCORD_FUZZ_SEED") {
        Ok(seed) => Ok(seed.parse()?),
        Err(_) => Ok(SEED),
    }
}

/// The short run of one target.
fn short_run(name: &str) -> anyhow::Result<()> {
    let target = find(name).expect("a target of this name");
    let seed = seed()?;
    let began = Instant::now();
    let inputs = short::run(target, seed)?;
    println!(
        "{name}: seed {seed}, {inputs} inputs in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

macro_rules! short_runs {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() -> anyhow::Result<()> {
                short_run(stringify!($name))
            }
        )*

        /// No target is forgotten, here or in the corpus.
        #[test]
        fn every_target_has_its_short_run() {
            let run = [$(stringify!($name)),*];
            let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, run);
            let corpora = std::fs::read_dir(corpus_folder("")).expect("the corpus");
            for folder in corpora {
                let name = folder.expect("an entry").file_name();
                assert!(
                    run.iter().any(|target| name == **target),
                    "{} is the corpus of no target",
                    name.display()
                );
            }
        }
    };
}

short_runs! {
    log_record,
    log_file,
    ledger,
    xa_recover,
    columns,
    sql,
    sql_words,
    migration,
    literal,
    requests,
    answers,
    texts,
    payments,
    money,
    statements,
}
