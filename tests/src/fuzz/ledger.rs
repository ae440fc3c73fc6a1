//! What the server's rows say to the participant.

use concord_core::id::{Bqual, BranchId, Gtrid, Request, RequestId};
use concord_core::limits::BRANCHES_MAX;
use concord_core::reason::Reason;
use concord_core::record::ParticipantRecord;
use concord_participant::resource::mysql::answers::{self, Rows};
use concord_participant::resource::mysql::ledger;
use concord_participant::resource::mysql::rows::decode;
use concord_participant::resource::mysql::xa::{FORMAT_ID, Xids, hex};
use concord_proto::v1::value::Kind;

use super::input::Input;
use super::server_lexer::{MODES, Token, cut};

fn cell(input: &mut Input<'_>) -> Option<Vec<u8>> {
    match input.u8() % 5 {
        0 => None,
        1 => Some(input.u64().to_string().into_bytes()),
        2 => Some(u64::from(input.u8()).to_string().into_bytes()),
        3 => Some(input.bytes(16).to_vec()),
        _ => Some(input.piece().to_vec()),
    }
}

fn any_rows(input: &mut Input<'_>, columns: usize) -> Rows {
    let count = input.below(4);
    (0..count)
        .map(|_| {
            let odd = input.u8().is_multiple_of(8);
            let columns = if odd { input.below(9) } else { columns };
            (0..columns).map(|_| cell(input)).collect()
        })
        .collect()
}

/// The target: rows of the ledger schema, and records on their way there.
pub fn rows(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 5 {
        0 => {
            let rows = any_rows(&mut input, 1);
            if rows.is_empty() {
                let absent = answers::entry(&rows);
                assert_eq!(
                    absent,
                    Ok(concord_participant::resource::LedgerEntry::Absent)
                );
            } else if let Ok(entry) = answers::entry(&rows) {
                let state = rows[0][0].as_deref().expect("a state");
                assert!(
                    state.ends_with(b"1") || state.ends_with(b"2"),
                    "{entry:?}: {state:?}"
                );
            }
        }
        1 => {
            let rows = any_rows(&mut input, 2);
            let horizon = answers::horizon(&rows);
            assert_eq!(
                horizon.map(|gtrid| gtrid.0.to_vec()),
                rows.first()
                    .and_then(|row| row.get(1)?.clone())
                    .filter(|bytes| bytes.len() == 16)
            );
            let _ = answers::epoch(&rows);
        }
        2 => {
            let rows = any_rows(&mut input, 2);
            if let Some(keys) = answers::keys(&rows) {
                assert_eq!(keys.len(), rows.len(), "a row was lost");
                if !keys.is_empty() {
                    is_plain(ledger::delete_rows(&keys).sql(), 2);
                }
            }
        }
        3 => {
            for row in any_rows(&mut input, 7) {
                if let Some(damage) = answers::damage(&row) {
                    let time = damage.time.expect("a time");
                    assert!((0..1_000_000_000).contains(&time.nanos));
                    assert!(damage.reason.is_some());
                }
            }
        }
        _ => records(&mut input),
    }
}

/// Records of a participant become texts of so many statements, whatever their words are.
fn records(input: &mut Input<'_>) {
    let gtrid = |input: &mut Input<'_>| {
        let mut bytes = [0; 16];
        let given = input.bytes(16);
        bytes[..given.len()].copy_from_slice(given);
        Gtrid(bytes)
    };
    let mut all = Vec::new();
    while !input.is_empty() && all.len() < 8 {
        all.push(match input.u8() % 3 {
            0 => ParticipantRecord::Epoch(concord_core::id::Epoch(input.u64())),
            1 => ParticipantRecord::ForgetBelow(gtrid(input)),
            _ => ParticipantRecord::Damage {
                gtrid: gtrid(input),
                bqual: Bqual(input.u32()),
                reason: Reason::new(input.text(), input.text()),
            },
        });
    }
    is_plain(ledger::append(&all, input.u64()).sql(), all.len() + 2);
    let branch = BranchId {
        gtrid: gtrid(input),
        bqual: Bqual(input.u32()),
    };
    let mut row = String::new();
    let text = input.text();
    let request = Request {
        id: RequestId::new(text.as_str()),
        fingerprint: input.u64(),
    };
    ledger::push_branch_row(&mut row, branch, input.u64(), Some(&request));
    is_plain(&row, 1);
    is_plain(ledger::select_request(&request.id).sql(), 2);
    is_plain(
        &ledger::insert_identity([input.u8(); 16], &text, &input.text()),
        1,
    );
}

/// The text has so many statements in every mode of the server, and reads as one text only.
fn is_plain(sql: &str, statements: usize) {
    let parts: Vec<&str> = sql.split(';').collect();
    assert_eq!(parts.len(), statements, "{sql:?}");
    for part in parts {
        let cuts = MODES
            .map(|mode| cut(part, mode).unwrap_or_else(|why| panic!("{part:?}, {mode:?}: {why}")));
        assert!(cuts.iter().all(|other| *other == cuts[0]), "{part:?}");
        let symbols = |c: char| !matches!(c, ';' | '#' | '\\' | '"' | '`');
        assert!(
            cuts[0]
                .iter()
                .all(|token| !matches!(token, Token::Symbol(c) if !symbols(*c))),
            "{part:?}"
        );
    }
}

/// The target: rows of `XA RECOVER`.
pub fn xa_recover(data: &[u8]) {
    let mut input = Input(data);
    let cluster = input.choose(&[
        "bank",
        "b",
        "ban",
        "bank2",
        "abcdefghijklmnopqrstuvwxyz012345",
    ]);
    let xids = Xids::new(cluster);
    let mut rows: Rows = Vec::new();
    let mut expected = Vec::new();
    while !input.is_empty() && rows.len() < 6 {
        let row = recovered_row(&mut input, cluster);
        expected.extend(ours(&row, cluster));
        rows.push(row);
    }
    expected.sort_unstable();
    let found = answers::recovered(&xids, &rows);
    assert_eq!(found.ours, expected, "{rows:?}");
    assert_eq!(found.ours.len() + found.foreign as usize, rows.len());
    for branch in &found.ours {
        let text = xids.text(*branch);
        let length = format!("{:02x}", cluster.len());
        let prefix = format!(
            "x'{length}{}{}'",
            hex(cluster.as_bytes()),
            hex(&branch.gtrid.0)
        );
        assert!(
            text.starts_with(&prefix) && text.ends_with(&format!(",{FORMAT_ID}")),
            "{text}"
        );
    }
}

/// Ours, nearly ours, or anybody's; in hexadecimal as MySQL prints it, or raw.
fn recovered_row(input: &mut Input<'_>, cluster: &str) -> Vec<Option<Vec<u8>>> {
    let kind = input.u8();
    let number = |n: i64| Some(n.to_string().into_bytes());
    if kind % 4 == 3 {
        return (0..input.below(6)).map(|_| cell(input)).collect();
    }
    let mut bytes = vec![u8::try_from(cluster.len()).unwrap_or_default()];
    bytes.extend_from_slice(cluster.as_bytes());
    let mut gtrid = [0xAB; 16];
    let given = input.bytes(16);
    gtrid[..given.len()].copy_from_slice(given);
    if kind & 4 == 0 {
        gtrid[6] = 0x70 | (gtrid[6] & 15);
        gtrid[8] = 0x80 | (gtrid[8] & 63);
    }
    bytes.extend_from_slice(&gtrid);
    let gtrid_length = bytes.len();
    bytes.extend_from_slice(&u32::from(input.u8() % 80).to_be_bytes());
    let mut lengths = (gtrid_length, bytes.len() - gtrid_length);
    let mut format_id = i64::from(FORMAT_ID);
    match kind >> 3 & 7 {
        0 => {
            let at = input.below(bytes.len());
            bytes[at] ^= input.u8();
        }
        1 => bytes.truncate(input.below(bytes.len() + 1)),
        2 => bytes.extend_from_slice(input.piece()),
        3 => lengths = (usize::from(input.u8()), usize::from(input.u8())),
        4 => format_id = i64::from(input.u32()),
        _ => {}
    }
    if kind & 1 == 0 {
        bytes = format!("0x{}", hex(&bytes)).into_bytes();
    }
    vec![
        number(format_id),
        number(i64::try_from(lengths.0).unwrap_or_default()),
        number(i64::try_from(lengths.1).unwrap_or_default()),
        Some(bytes),
    ]
}

/// The branch of a row, by the words of the format and not by its code.
fn ours(row: &[Option<Vec<u8>>], cluster: &str) -> Option<BranchId> {
    let [
        Some(format_id),
        Some(gtrid_length),
        Some(bqual_length),
        Some(data),
    ] = row
    else {
        return None;
    };
    let number = |cell: &[u8]| std::str::from_utf8(cell).ok()?.parse::<i64>().ok();
    let prefix = 1 + cluster.len();
    let lengths = (i64::try_from(prefix + 16).ok()?, 4);
    let framed = number(format_id)? == 1_131_376_227
        && (number(gtrid_length)?, number(bqual_length)?) == lengths;
    let hexadecimal = data
        .strip_prefix(b"0x")
        .filter(|digits| digits.len() % 2 == 0 && digits.iter().all(u8::is_ascii_hexdigit));
    let bytes: Vec<u8> = match hexadecimal {
        Some(digits) => digits
            .chunks(2)
            .map(|pair| {
                let pair = std::str::from_utf8(pair).expect("digits");
                u8::from_str_radix(pair, 16).expect("digits")
            })
            .collect(),
        None => data.clone(),
    };
    let named = bytes.len() == prefix + 20
        && usize::from(bytes[0]) == cluster.len()
        && &bytes[1..prefix] == cluster.as_bytes();
    if !framed || !named {
        return None;
    }
    let gtrid: [u8; 16] = bytes[prefix..prefix + 16].try_into().expect("16 bytes");
    let bqual = u32::from_be_bytes(bytes[prefix + 16..].try_into().expect("4 bytes"));
    let version_7 = gtrid[6] >> 4 == 7 && gtrid[8] >> 6 == 2;
    let in_range = (1..=BRANCHES_MAX).contains(&usize::try_from(bqual).expect("64 bits"));
    (version_7 && in_range).then_some(BranchId {
        gtrid: Gtrid(gtrid),
        bqual: Bqual(bqual),
    })
}

/// The target: a column of a result set.
pub fn columns(data: &[u8]) {
    #[rustfmt::skip]
    const TYPES: &[&str] = &[
        "BIT", "BOOLEAN", "TINYINT", "INT", "BIGINT", "YEAR", "INT UNSIGNED", "BIGINT UNSIGNED",
        "FLOAT", "DOUBLE", "DECIMAL", "DATE", "TIME", "DATETIME", "TIMESTAMP", "JSON", "ENUM",
        "SET", "GEOMETRY", "VARCHAR", "VARBINARY", "BLOB", "TEXT", "NULL", "VECTOR",
    ];
    let mut input = Input(data);
    let (name, is_text) = (input.choose(TYPES), input.u8() & 1 == 1);
    let bytes = input.rest();
    match decode(name, is_text, bytes) {
        Err(why) => assert!(!why.is_empty()),
        Ok(
            Kind::Decimal(text)
            | Kind::String(text)
            | Kind::Date(text)
            | Kind::Time(text)
            | Kind::Datetime(text),
        ) => assert_eq!(
            text.as_bytes(),
            bytes,
            "{name}: what came is not what is shown"
        ),
        Ok(Kind::Bytes(shown)) => assert_eq!(shown, bytes, "{name}"),
        Ok(Kind::Int64(_) | Kind::Uint64(_) | Kind::Double(_)) => {
            let number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
            assert!(
                name == "BIT" || bytes.iter().all(number),
                "{name}: {bytes:?}"
            );
        }
        Ok(Kind::Null(_) | Kind::Bool(_)) => panic!("{name}: a column is neither"),
    }
}
