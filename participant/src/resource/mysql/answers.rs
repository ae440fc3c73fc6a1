//! What the server's answers to our own texts say: cells of the ledger schema and of `XA RECOVER`.
//!
//! It owns the way from bytes to ids, epochs and outcomes. It refuses to guess: a cell that is not
//! exactly what this program writes there makes the whole answer unreadable, and a prepared branch
//! that is not exactly one of this cluster's is somebody else's.

use concord_core::id::{BranchId, Epoch, Gtrid};
use concord_core::reason::{Reason, code};
use concord_proto::v1;

use super::ledger;
use super::xa::{Xids, unhex};
use crate::resource::{LedgerEntry, Recovered};

/// Rows of an answer, cell by cell; none for NULL.
pub type Rows = Vec<Vec<Option<Vec<u8>>>>;

/// A cell as a number.
// It is called on cells of rows, which are owned by their row.
#[allow(clippy::ref_option)]
pub fn number(value: &Option<Vec<u8>>) -> Option<u64> {
    std::str::from_utf8(value.as_deref()?).ok()?.parse().ok()
}

/// A cell as a gtrid.
pub fn gtrid(value: &[u8]) -> Option<Gtrid> {
    Some(Gtrid(value.try_into().ok()?))
}

/// What the ledger says of a branch, by the row under its key.
pub fn entry(rows: &Rows) -> Result<LedgerEntry, Reason> {
    let Some(row) = rows.first() else {
        return Ok(LedgerEntry::Absent);
    };
    match row
        .first()
        .and_then(number)
        .and_then(|state| u8::try_from(state).ok())
    {
        Some(ledger::STATE_BRANCH) => Ok(LedgerEntry::Committed),
        Some(ledger::STATE_TOMBSTONE) => Ok(LedgerEntry::Tombstone),
        state => Err(Reason::new(
            code::UNEXPECTED_ANSWER,
            format!("a ledger row has the state {state:?}, which this version does not know"),
        )),
    }
}

/// The highest epoch, of [`ledger::SELECT_DURABLE`].
pub fn epoch(rows: &Rows) -> Option<Epoch> {
    number(rows.first()?.first()?).map(Epoch)
}

/// The horizon, of [`ledger::SELECT_DURABLE`].
pub fn horizon(rows: &Rows) -> Option<Gtrid> {
    gtrid(rows.first()?.get(1)?.as_deref()?)
}

/// Keys of ledger rows; none when one of them is not readable.
pub fn keys(rows: &Rows) -> Option<Vec<(Gtrid, u32)>> {
    rows.iter()
        .map(|row| {
            let bqual = u32::try_from(number(row.get(1)?)?).ok()?;
            Some((gtrid(row.first()?.as_deref()?)?, bqual))
        })
        .collect()
}

/// A report of damage.
pub fn damage(row: &[Option<Vec<u8>>]) -> Option<v1::Damage> {
    let text = |at: usize| Some(String::from_utf8_lossy(row.get(at)?.as_deref()?).into_owned());
    let found = number(row.get(5)?)?;
    Some(v1::Damage {
        id: number(row.first()?)?,
        gtrid: gtrid(row.get(1)?.as_deref()?)?.to_string(),
        bqual: u32::try_from(number(row.get(2)?)?).ok()?,
        reason: Some(v1::Reason {
            code: text(3)?,
            message: text(4)?,
        }),
        time: Some(prost_types::Timestamp {
            seconds: i64::try_from(found / 1_000).ok()?,
            nanos: i32::try_from(found % 1_000).ok()? * 1_000_000,
        }),
        acknowledged: number(row.get(6)?)? == 1,
    })
}

/// What `XA RECOVER` lists: the branches of this cluster, and how many others there are.
pub fn recovered(xids: &Xids, rows: &Rows) -> Recovered {
    let mut recovered = Recovered::default();
    for row in rows {
        match branch(xids, row) {
            Some(branch) => recovered.ours.push(branch),
            None => recovered.foreign = recovered.foreign.saturating_add(1),
        }
    }
    recovered.ours.sort_unstable();
    recovered
}

fn branch(xids: &Xids, row: &[Option<Vec<u8>>]) -> Option<BranchId> {
    let [format_id, gtrid_length, bqual_length, data] = row else {
        return None;
    };
    let number = |value: &Option<Vec<u8>>| -> Option<i64> {
        std::str::from_utf8(value.as_deref()?).ok()?.parse().ok()
    };
    let (format_id, gtrid_length, bqual_length) = (
        number(format_id)?,
        number(gtrid_length)?,
        number(bqual_length)?,
    );
    let data = data.as_deref()?;
    // MySQL was asked for hexadecimal; MariaDB prints the bytes.
    let bytes = unhex(data);
    let bytes = bytes.as_deref().unwrap_or(data);
    xids.parse(format_id, gtrid_length, bqual_length, bytes)
}
