//! Fingerprints of requests: they tell a retry from another request under the same id.
//!
//! They are kept in the decision log, so they must not change between versions or platforms.

use sha2::{Digest, Sha256};

/// The first 8 bytes of SHA-256 over the parts, each with its length before it, so that moving a
/// byte from one part to the next gives another fingerprint.
pub fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .take(8)
        .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_for_ever() {
        assert_eq!(fingerprint(&[]), 0xe3b0_c442_98fc_1c14);
        assert_eq!(fingerprint(&[b"transfer", b"a", b"b"]), TRANSFER_A_B);
    }

    // printf '\0\0\0\0\0\0\0\010transfer\0\0\0\0\0\0\0\001a\0\0\0\0\0\0\0\001b' | sha256sum
    const TRANSFER_A_B: u64 = 0x9247_11bc_51fa_1216;

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        assert_ne!(fingerprint(&[b"ab"]), fingerprint(&[b"ab", b""]));
    }
}
