//! The short run of all targets, within `cargo test`: the whole corpus, then mutations of it from
//! one seed. It is no search, which is the long run's work; it keeps what was found from coming
//! back, and the targets from rotting.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::{Target, check, corpus, mutate, remember_panics, reproduce};

/// Replays a target's corpus and tries mutations of it; how many inputs were tried.
pub fn run(target: &Target, seed: u64) -> anyhow::Result<usize> {
    remember_panics();
    let files = corpus(target.name).context("the corpus cannot be read")?;
    ensure!(!files.is_empty(), "{} has no corpus", target.name);
    for (file, input) in &files {
        if let Err(violated) = check(target, input) {
            let again = reproduce(target.name, file);
            bail!("{}: {violated}\nagain: {again}", target.name);
        }
    }
    let inputs: Vec<Vec<u8>> = files.into_iter().map(|(_, input)| input).collect();
    let mut rng = SmallRng::seed_from_u64(seed);
    for number in 0..target.short_runs {
        let input = mutate::next(&mut rng, &inputs, target.words, target.max_len);
        if let Err(violated) = check(target, &input) {
            let file = keep(target, &input)?;
            let again = reproduce(target.name, &file);
            bail!(
                "{}, seed {seed}, input {number}: {violated}\nagain: {again}",
                target.name
            );
        }
    }
    Ok(inputs.len() + target.short_runs)
}

/// Writes an input where it can be looked at.
fn keep(target: &Target, input: &[u8]) -> anyhow::Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz/crashes");
    std::fs::create_dir_all(&folder)?;
    let name = format!("{}-{:08x}", target.name, crc32fast::hash(input));
    let file = folder.canonicalize()?.join(name);
    std::fs::write(&file, input)?;
    Ok(file)
}
