//! Mutations for the short run, without coverage to guide them. The long run has libFuzzer's.

use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _};

/// Numbers at which parsers change their mind.
const EDGES: &[u64] = &[
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// One more input: one of the corpus that was changed here and there, or noise.
pub fn next(rng: &mut SmallRng, corpus: &[Vec<u8>], words: &[&str], max_len: usize) -> Vec<u8> {
    let mut input = match corpus.len() {
        0 => Vec::new(),
        count if rng.random_range(0..50) > 0 => corpus[rng.random_range(0..count)].clone(),
        _ => noise(rng, max_len.min(64)),
    };
    for _ in 0..=rng.random_range(0..4) {
        change(rng, &mut input, corpus, words);
    }
    input.truncate(max_len);
    input
}

fn noise(rng: &mut SmallRng, max_len: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=max_len)];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn change(rng: &mut SmallRng, input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&str]) {
    let at = rng.random_range(0..=input.len());
    let count = rng.random_range(0..=(input.len() - at).min(16));
    match rng.random_range(0..9) {
        0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < input.len() => input[at] = rng.random(),
        2 => _ = input.drain(at..at + count),
        3 => {
            let copied = input[at..at + count].to_vec();
            let to = rng.random_range(0..=input.len());
            input.splice(to..to, copied);
        }
        4 => {
            let fresh = noise(rng, 8);
            input.splice(at..at, fresh);
        }
        5 => {
            let edge = EDGES[rng.random_range(0..EDGES.len())].to_be_bytes();
            let width = [1, 2, 4, 8][rng.random_range(0..4)];
            let end = (at + width).min(input.len());
            input.splice(at..end, edge[8 - width..].iter().copied());
        }
        6 if !words.is_empty() => {
            let word = words[rng.random_range(0..words.len())];
            let spaced = rng.random_range(0..3) > 0;
            let spaces = if spaced { " " } else { "" };
            let text = format!("{spaces}{word}{spaces}");
            input.splice(at..at, text.into_bytes());
        }
        7 if !corpus.is_empty() => {
            let other = &corpus[rng.random_range(0..corpus.len())];
            let from = rng.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => input.truncate(at),
    }
}
