//! Requests of random and damaged content.

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;
use crate::model::{Expect, Isolation, Statement, Work};

fn random_statement(rng: &mut SmallRng) -> Statement {
    let text = |rng: &mut SmallRng| -> String {
        (0..rng.random_range(1..20))
            .map(|_| rng.random::<char>())
            .collect()
    };
    let mut params = vec![
        Value::Null,
        Value::Bool(rng.random()),
        Value::Int(rng.random()),
        Value::UInt(rng.random()),
        Value::Double(f64::from(rng.random::<f32>())),
        Value::Decimal(format!(
            "-{}.{:03}",
            rng.random::<u64>(),
            rng.random_range(0..1_000)
        )),
        Value::String(text(rng)),
        Value::Bytes((0..rng.random_range(0..50)).map(|_| rng.random()).collect()),
        Value::Date(format!(
            "{:04}-{:02}-28",
            rng.random_range(1..=9_999),
            1 + rng.next_u32() % 12
        )),
        Value::Time(format!("{:02}:59:00.5", rng.random_range(0..=838))),
        Value::DateTime(format!("2026-01-02 {:02}:00:59", rng.random_range(0..24))),
    ];
    params.truncate(rng.random_range(0..=params.len()));
    let expect = rng.random::<bool>().then(|| {
        let min = rng.random_range(0..1_000);
        let max = rng.random::<bool>().then(|| min + rng.random_range(0..5));
        Expect {
            min,
            max,
            reason: "OUT_OF_TICKETS".into(),
        }
    });
    Statement {
        sql: format!("SELECT {}", rng.next_u32()).into(),
        params,
        expect,
    }
}

#[test]
fn work_survives_the_wire() {
    let mut rng = SmallRng::seed_from_u64(1);
    for seed in 0..300 {
        let levels = [
            None,
            Some(Isolation::ReadCommitted),
            Some(Isolation::RepeatableRead),
            Some(Isolation::Serializable),
        ];
        let expected = participant::Prepare {
            branch: BranchId {
                gtrid: text::parse_gtrid(GTRID).expect("a gtrid"),
                bqual: Bqual(rng.random_range(1..=64)),
            },
            epoch: Epoch(rng.random_range(1..=u64::MAX)),
            work: rng.random::<bool>().then(|| Work {
                statements: (0..rng.random_range(1..9))
                    .map(|_| random_statement(&mut rng))
                    .collect(),
                isolation: levels[rng.random_range(0..4)],
                allow_read_only: rng.random(),
                timeout: std::time::Duration::from_millis(rng.random_range(1..=3_600_000)),
                request: rng.random::<bool>().then(|| concord_core::id::Request {
                    id: concord_core::id::RequestId::new(format!("r{seed}")),
                    fingerprint: rng.random(),
                }),
            }),
        };
        let sent = link::prepare_request(expected.branch, expected.epoch, expected.work.clone());
        let bytes = sent.encode_to_vec();
        let read = v1::PrepareRequest::decode(bytes.as_slice()).expect("it was encoded");
        assert_eq!(participant::prepare(read), Ok(expected), "round {seed}");
    }
}

/// Bytes that were damaged here and there pass or are refused, and nothing else happens.
#[test]
fn damaged_requests_never_panic() {
    let mut rng = SmallRng::seed_from_u64(2);
    let (mut passed, mut refused) = (0, 0);
    for _ in 0..3_000 {
        let raw = v1::ExecuteTransactionRequest {
            statements: vec![v1::TargetedStatement {
                participant: "p1".into(),
                statement: Some(random_statement(&mut rng).into()),
            }],
            request_id: "r".into(),
            timeout_ms: rng.next_u32() % 4_000_000,
            ..Default::default()
        };
        let mut bytes = raw.encode_to_vec();
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << rng.random_range(0..8);
        }
        let Ok(raw) = v1::ExecuteTransactionRequest::decode(bytes.as_slice()) else {
            continue;
        };
        match transaction::execute(raw) {
            Ok(_) => passed += 1,
            Err(violations) => {
                let status = tonic::Status::from(violations);
                assert_eq!(status.code(), tonic::Code::InvalidArgument);
                assert!(!crate::status::violations_of(&status).is_empty());
                refused += 1;
            }
        }
    }
    assert!(
        passed > 300 && refused > 300,
        "{passed} passed, {refused} were refused"
    );
}

/// Text of any kind at all: each parser takes it or refuses it.
#[test]
fn random_text_never_panics() {
    let mut rng = SmallRng::seed_from_u64(3);
    let alphabet: Vec<char> = "0123456789-:. aZ_é\0\u{7f}\u{1f600}".chars().collect();
    for _ in 0..20_000 {
        let length = rng.random_range(0..40);
        let text: String = (0..length)
            .map(|_| alphabet[rng.random_range(0..alphabet.len())])
            .collect();
        for kind in [
            Kind::Decimal(text.clone()),
            Kind::Date(text.clone()),
            Kind::Time(text.clone()),
            Kind::Datetime(text.clone()),
        ] {
            let _ = one_value(kind);
        }
        let mut v = Violations::default();
        let _ = Page::check(&mut v, "list", 1, &text);
        let _ = text::gtrid(&mut v, &At::root("gtrid"), &text);
        let _ = text::participant(&mut v, &At::root("participant"), &text);
        let _ = text::request_id(&mut v, &At::root("request_id"), &text);
        let _ = AccountId::check(&mut v, &At::root("account_id"), &text);
        let _ = text::words(&mut v, &At::root("reason"), text);
        assert!(tonic::Status::from(v).details().len() < 16 << 10);
    }
    assert_eq!(text::gtrid_of_bytes(&[]), None::<Gtrid>);
}
