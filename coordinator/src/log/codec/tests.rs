//! Golden bytes, and garbage.

use super::super::conformance::{gtrid, one_of_each};
use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Key and sealed body of a record, as they are stored.
fn stored(record: &Record) -> (Vec<u8>, Vec<u8>) {
    if let Some((gtrid, kind, bqual, body)) = encode(record) {
        let key = key(gtrid, kind, bqual, 0);
        return (key.to_vec(), seal(&key, &body));
    }
    let (name, body) = encode_meta(record).expect("every record is one or the other");
    let sealed = seal(name.as_bytes(), &body);
    (name.into_bytes(), sealed)
}

fn load(key: &[u8], sealed: &[u8]) -> Result<Option<Record>, Garbage> {
    if key.len() == KEY_BYTES && key[0] == 1 {
        return decode(key, sealed).map(Some);
    }
    decode_meta(std::str::from_utf8(key).expect("a name"), sealed)
}

#[test]
fn every_record_comes_back() {
    for record in one_of_each() {
        let (key, sealed) = stored(&record);
        assert_eq!(load(&key, &sealed), Ok(Some(record)));
    }
}

/// These bytes are in files out there. A change here needs a new version, not new bytes.
#[test]
fn golden_bytes() {
    let golden = include_str!("golden.txt");
    let now = one_of_each().iter().fold(String::new(), |text, record| {
        let (key, sealed) = stored(record);
        text + &format!("{}\n  {}\n", hex(&key), hex(&sealed))
    });
    assert_eq!(now, golden, "\n{now}");
    assert_eq!(
        Sums {
            commit: 1,
            count: 2,
            weight: 3
        }
        .encode()
        .len(),
        24
    );
}

/// A heuristic outcome of before it could hold a request is one without.
#[test]
fn a_heuristic_outcome_without_a_request_is_as_it_was() {
    let record = |request| Record::Heuristic {
        gtrid: gtrid(1),
        bqual: Bqual(1),
        participant: ParticipantName::new("p1"),
        committed: Some(true),
        reason: Reason::new("R", ""),
        request,
    };
    let old = [&[0, 0, 0, 2][..], b"p1", &[1, 0, 0, 0, 1], b"R", &[0; 4]].concat();
    let key = key(gtrid(1), kind::HEURISTIC, Bqual(1), 0);
    let read = |body: &[u8]| decode(&key, &seal(&key, body));
    assert_eq!(read(&old), Ok(record(None)));
    assert_eq!(stored(&record(None)).1, seal(&key, &old));
    let request = Request {
        id: RequestId::new("r"),
        fingerprint: 7,
    };
    let mut new = old.clone();
    put_request(&mut new, Some(&request));
    assert_eq!(read(&new), Ok(record(Some(request))));
    let none = [&old[..], &[0]].concat();
    assert_eq!(read(&none), Err(Garbage::Illegal("request")));
}

#[test]
fn every_cut_and_every_flip_is_garbage() {
    for record in one_of_each() {
        let (key, sealed) = stored(&record);
        for length in 0..sealed.len() {
            assert!(
                load(&key, &sealed[..length]).is_err(),
                "{record:?} cut at {length}"
            );
        }
        for bit in 0..sealed.len() * 8 {
            let mut bytes = sealed.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                load(&key, &bytes).is_err(),
                "{record:?} with bit {bit} flipped"
            );
        }
        let mut longer = sealed.clone();
        longer.push(0);
        assert!(load(&key, &longer).is_err());
    }
}

#[test]
fn a_body_under_another_key_is_garbage() {
    let (_, sealed) = stored(&Record::End {
        gtrid: gtrid(1),
        committed: true,
    });
    let other = key(gtrid(2), kind::END, Bqual(0), 0);
    assert_eq!(decode(&other, &sealed), Err(Garbage::Checksum));
}

/// With a right checksum, every legal number but no other is read.
#[test]
fn illegal_numbers_are_garbage() {
    let check = |kind: u8, bqual: u32, ordinal: u16, body: &[u8]| {
        let key = key(gtrid(1), kind, Bqual(bqual), ordinal);
        decode(&key, &seal(&key, body))
    };
    assert!(check(kind::END, 0, 0, &[1]).is_ok());
    assert_eq!(
        check(kind::END, 0, 0, &[2]),
        Err(Garbage::Illegal("outcome"))
    );
    assert_eq!(check(kind::END, 0, 0, &[]), Err(Garbage::Short("outcome")));
    assert_eq!(check(kind::END, 0, 0, &[1, 0]), Err(Garbage::Trailing(1)));
    assert_eq!(check(kind::END, 1, 0, &[1]), Err(Garbage::Illegal("key")));
    assert_eq!(check(kind::END, 0, 1, &[1]), Err(Garbage::Illegal("key")));
    assert_eq!(check(0, 0, 0, &[1]), Err(Garbage::Illegal("kind")));
    assert_eq!(check(6, 0, 0, &[1]), Err(Garbage::Illegal("kind")));
    assert_eq!(
        check(kind::REFUSED, 0, 0, &[0]),
        Err(Garbage::Illegal("request"))
    );
    let huge_text = [&[0; 8][..], &[0], &[255; 4]].concat();
    assert_eq!(
        check(kind::ONE_PHASE, 1, 0, &huge_text),
        Err(Garbage::Short("participant"))
    );
    let bad_utf8 = [&[0; 8][..], &[0], &[0, 0, 0, 1, 0xff]].concat();
    assert_eq!(
        check(kind::ONE_PHASE, 1, 0, &bad_utf8),
        Err(Garbage::Illegal("participant"))
    );
    let many = [&[0; 8][..], &[0], &[255; 2]].concat();
    assert_eq!(
        check(kind::DECISION, 0, 0, &many),
        Err(Garbage::Short("bqual"))
    );
    for name in ["", "epochs", "incarnation/", "records"] {
        assert!(
            decode_meta(name, &seal(name.as_bytes(), &[])).is_err(),
            "{name}"
        );
    }
}

#[test]
fn a_later_version_is_told_from_garbage() {
    let key = key(gtrid(1), kind::END, Bqual(0), 0);
    let mut versioned = vec![VERSION + 1, 1];
    let crc = checksum(&key, &versioned);
    versioned.extend_from_slice(&crc.to_be_bytes());
    assert_eq!(decode(&key, &versioned), Err(Garbage::Version(VERSION + 1)));
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 1_u64;
    let mut random = || {
        // xorshift64: any bytes will do, and the same each time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..50_000 {
        let body: Vec<u8> = (0..random() % 60)
            .map(|_| random().to_be_bytes()[0] & 0x83)
            .collect();
        let kind = (random() % 8) as u8;
        let key = key(gtrid(1), kind, Bqual((random() % 2) as u32), 0);
        let _ = decode(&key, &seal(&key, &body));
        let _ = decode(&key, &body);
        let _ = decode(&body, &body);
        for name in [
            name::EPOCH,
            name::HORIZON,
            name::PLACEMENT,
            name::SUMS,
            "incarnation/p",
        ] {
            let _ = decode_meta(name, &seal(name.as_bytes(), &body));
        }
        let _ = Sums::decode(&body);
        let _ = decode_text(&body);
    }
}
