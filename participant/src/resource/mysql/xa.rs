//! Names of branches on the server: how a branch becomes an xid, and back.
//!
//! An xid's format id says "Concord", its gtrid part begins with the cluster's name, so that two
//! clusters may share a server and neither touches the other's branches, nor anybody else's.
//! Reading back is strict: what is not exactly what this file writes is foreign.

use std::fmt::Write as _;

use concord_core::id::{Bqual, BranchId};
use concord_core::limits::{BRANCHES_MAX, NAME_LEN_MAX};
use concord_core::planted::{self, Bug};
use concord_proto::convert::text::gtrid_of_bytes;

/// "Conc" in ASCII. Below 2³¹, which is all that MariaDB takes.
pub const FORMAT_ID: u32 = 0x436F_6E63;

/// Bytes of a gtrid.
const GTRID_LEN: usize = 16;
/// Bytes of a bqual.
const BQUAL_LEN: usize = 4;

/// Writes and reads the xids of one cluster.
#[derive(Clone, Debug)]
pub struct Xids {
    /// Length of the cluster's name, and the name.
    prefix: Vec<u8>,
    /// The same in hexadecimal.
    prefix_hex: String,
}

impl Xids {
    /// For a cluster, whose name was validated at the door: 1 to 32 bytes, so that an xid's gtrid
    /// part has at most 49 of its 64 bytes.
    pub fn new(cluster: &str) -> Self {
        debug_assert!(!cluster.is_empty() && cluster.len() <= NAME_LEN_MAX);
        let length = u8::try_from(cluster.len()).unwrap_or(u8::MAX);
        let mut prefix = vec![length];
        prefix.extend_from_slice(cluster.as_bytes());
        let prefix_hex = hex(&prefix);
        Self { prefix, prefix_hex }
    }

    /// The xid of a branch as it stands in an XA statement.
    pub fn text(&self, branch: BranchId) -> String {
        let mut text = String::with_capacity(self.prefix_hex.len() + 64);
        text.push_str("x'");
        text.push_str(&self.prefix_hex);
        push_hex(&mut text, &branch.gtrid.0);
        text.push_str("',x'");
        push_hex(&mut text, &branch.bqual.0.to_be_bytes());
        text.push_str("',");
        let _ = write!(text, "{FORMAT_ID}");
        text
    }

    /// The branch that a row of `XA RECOVER` names; `None` when it is not this cluster's.
    pub fn parse(
        &self,
        format_id: i64,
        gtrid_length: i64,
        bqual_length: i64,
        data: &[u8],
    ) -> Option<BranchId> {
        let expected = self.prefix.len() + GTRID_LEN;
        if format_id != i64::from(FORMAT_ID)
            || usize::try_from(gtrid_length) != Ok(expected)
            || usize::try_from(bqual_length) != Ok(BQUAL_LEN)
            || data.len() != expected + BQUAL_LEN
        {
            return None;
        }
        let mut rest = data.strip_prefix(self.prefix.as_slice());
        if planted::is(Bug::ForeignBranchTaken) {
            rest = data.get(self.prefix.len()..);
        }
        let rest = rest?;
        let bqual: [u8; BQUAL_LEN] = rest.get(GTRID_LEN..)?.try_into().ok()?;
        let bqual = u32::from_be_bytes(bqual);
        // What the wire cannot carry is nothing that this cluster prepared. One such branch in an
        // inquiry would have the whole inquiry refused, and leave every other branch in doubt.
        let is_branch = usize::try_from(bqual).is_ok_and(|n| (1..=BRANCHES_MAX).contains(&n));
        Some(BranchId {
            gtrid: gtrid_of_bytes(rest.get(..GTRID_LEN)?)?,
            bqual: is_branch.then_some(Bqual(bqual))?,
        })
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    push_hex(&mut text, bytes);
    text
}

/// Appends lower-case hexadecimal.
pub fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.reserve(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// Reads `0x…` as MySQL's `XA RECOVER CONVERT XID` prints it.
pub fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(b"0x")?;
    if digits.len() % 2 != 0 {
        return None;
    }
    let value = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|v| u8::try_from(v).ok())
    };
    digits
        .chunks_exact(2)
        .map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use concord_core::id::Gtrid;

    fn branch() -> BranchId {
        // Of version 7, and of the RFC's variant.
        let gtrid = 0x0192_ABAB_ABAB_7BAB_ABAB_ABAB_ABAB_ABAB_u128;
        BranchId {
            gtrid: Gtrid(gtrid.to_be_bytes()),
            bqual: Bqual(58),
        }
    }

    fn data(xids: &Xids, branch: BranchId) -> Vec<u8> {
        let mut data = xids.prefix.clone();
        data.extend_from_slice(&branch.gtrid.0);
        data.extend_from_slice(&branch.bqual.0.to_be_bytes());
        data
    }

    #[test]
    fn the_text_is_hexadecimal_and_has_our_format_id() {
        assert_eq!(
            Xids::new("bank").text(branch()),
            "x'0462616e6b0192abababab7bababababababababab',x'0000003a',1131376227",
        );
    }

    #[test]
    fn a_branch_survives_the_round_trip() {
        let xids = Xids::new("bank");
        assert_eq!(
            xids.parse(1_131_376_227, 21, 4, &data(&xids, branch())),
            Some(branch())
        );
    }

    #[test]
    fn everything_that_differs_in_any_byte_of_the_frame_is_foreign() {
        let xids = Xids::new("bank");
        let data = data(&xids, branch());
        for (format, gtrid, bqual) in [(1, 21, 4), (1_131_376_227, 20, 5), (1_131_376_227, 21, -4)]
        {
            assert_eq!(xids.parse(format, gtrid, bqual, &data), None);
        }
        for other in ["ban", "bank2", "cank", "b"] {
            assert_eq!(
                Xids::new(other).parse(1_131_376_227, 21, 4, &data),
                None,
                "{other}"
            );
        }
        for end in 0..data.len() {
            assert_eq!(xids.parse(1_131_376_227, 21, 4, &data[..end]), None);
        }
        assert_eq!(xids.parse(1_131_376_227, i64::MAX, i64::MIN, &data), None);
    }

    #[test]
    fn what_the_wire_cannot_carry_is_foreign() {
        let xids = Xids::new("bank");
        let parsed = |branch| xids.parse(1_131_376_227, 21, 4, &data(&xids, branch));
        for bqual in [0, 65, u32::MAX] {
            let bqual = Bqual(bqual);
            assert_eq!(parsed(BranchId { bqual, ..branch() }), None);
        }
        let mut other_version = branch();
        other_version.gtrid.0[6] = 0x4B;
        assert_eq!(parsed(other_version), None);
        let mut other_variant = branch();
        other_variant.gtrid.0[8] = 0xFB;
        assert_eq!(parsed(other_variant), None);
    }

    #[test]
    fn a_name_that_is_a_prefix_of_another_is_told_apart_by_its_length() {
        let (short, long) = (Xids::new("a"), Xids::new("ab"));
        let mut data = data(&short, branch());
        data[2] = b'b';
        assert_eq!(long.parse(1_131_376_227, 18, 4, &data), None);
        assert_eq!(
            short.parse(1_131_376_227, 18, 4, &data).map(|b| b.bqual),
            Some(Bqual(58))
        );
    }

    #[test]
    fn hexadecimal_is_read_strictly() {
        assert_eq!(unhex(b"0x09FFab"), Some(vec![9, 255, 171]));
        for bad in [&b"09ff"[..], b"0x0", b"0x0g", b"", b"0x0\xff"] {
            assert_eq!(unhex(bad), None);
        }
    }
}
