//! Tests of the door as a whole: what passes, what is refused and how it is named, and that no
//! input whatever makes it panic.

use concord_core::id::{Bqual, BranchId, Epoch, Gtrid};
use prost::Message;

mod random;

use super::*;
use crate::model::Value;
use crate::v1;
use crate::v1::value::Kind;

const GTRID: &str = "01920000-0000-7000-8000-00000000000a";

fn fields<T: std::fmt::Debug>(result: Result<T, Violations>) -> Vec<String> {
    let violations = result.expect_err("violations");
    violations
        .list()
        .iter()
        .map(|violation| violation.field.clone())
        .collect()
}

fn raw_statement() -> v1::Statement {
    v1::Statement {
        sql: "UPDATE t SET a = ?".into(),
        params: vec![v1::Value {
            kind: Some(Kind::Int64(1)),
        }],
        expect: None,
    }
}

#[allow(clippy::unnecessary_wraps)] // as the field has it
fn raw_branch() -> Option<v1::BranchRef> {
    let gtrid = text::parse_gtrid(GTRID).expect("a gtrid");
    Some(v1::BranchRef {
        gtrid: gtrid.0.to_vec(),
        bqual: 1,
        epoch: 1,
    })
}

fn one_value(kind: Kind) -> Result<Value, Violations> {
    let mut v = Violations::default();
    let value = value::value(&mut v, &At::root("x"), v1::Value { kind: Some(kind) });
    v.finish(|| value)
}

#[test]
fn a_gtrid_has_one_spelling() {
    let gtrid = text::parse_gtrid(GTRID).expect("a gtrid");
    assert_eq!(gtrid.to_string(), GTRID);
    assert_eq!(text::parse_gtrid(&GTRID.to_uppercase()), Some(gtrid));
    let bad = [
        String::new(),
        GTRID.replace('-', ""),
        format!("{{{GTRID}}}"),
        format!("urn:uuid:{GTRID}"),
        format!("{GTRID} "),
        GTRID.replace("-7000-", "-4000-"),
        GTRID.replace("-8000-", "-0000-"),
        GTRID.replace('a', "g"),
        GTRID.replace("0a", "é"),
        "0".repeat(1 << 20),
    ];
    for text in bad {
        assert_eq!(text::parse_gtrid(&text), None, "{text:.50}");
    }
}

#[test]
fn a_branch_is_checked_field_by_field() {
    let raw = v1::BranchRef {
        gtrid: vec![0; 16],
        bqual: 65,
        epoch: 0,
    };
    let abort = participant::abort(v1::AbortRequest { branch: Some(raw) });
    assert_eq!(
        fields(abort),
        ["branch.gtrid", "branch.bqual", "branch.epoch"]
    );
    assert_eq!(
        fields(participant::abort(v1::AbortRequest::default())),
        ["branch"]
    );
    let good = participant::abort(v1::AbortRequest {
        branch: raw_branch(),
    })
    .expect("an abort");
    assert_eq!((good.branch.bqual, good.epoch), (Bqual(1), Epoch(1)));
}

#[test]
fn values_at_their_limits_pass() {
    let good = [
        Kind::Null(1),
        Kind::Int64(i64::MIN),
        Kind::Uint64(u64::MAX),
        Kind::Double(f64::MAX),
        Kind::Decimal(format!("-{}.{}", "9".repeat(27), "9".repeat(38))),
        Kind::Decimal("0".into()),
        Kind::String("x".repeat(1 << 20)),
        Kind::String("\0 \n is data".into()),
        Kind::Bytes(vec![0; 1 << 20]),
    ];
    for kind in good {
        let value = one_value(kind.clone()).expect("a value");
        assert_eq!(v1::Value::from(value).kind, Some(kind));
    }
}

#[test]
fn values_beyond_their_limits_do_not() {
    let bad = [
        (Kind::Null(0), "x.null"),
        (Kind::Null(2), "x.null"),
        (Kind::Double(f64::NAN), "x.double"),
        (Kind::Double(f64::NEG_INFINITY), "x.double"),
        (Kind::Decimal("9".repeat(66)), "x.decimal"),
        (Kind::Decimal(format!("0.{}", "9".repeat(39))), "x.decimal"),
        (Kind::Decimal("1e5".into()), "x.decimal"),
        (Kind::Decimal("+1".into()), "x.decimal"),
        (Kind::Decimal("--1".into()), "x.decimal"),
        (Kind::Decimal("1.".into()), "x.decimal"),
        (Kind::Decimal(".5".into()), "x.decimal"),
        (Kind::Decimal("1.2.3".into()), "x.decimal"),
        (Kind::Decimal("1); DROP TABLE t".into()), "x.decimal"),
        (Kind::Decimal("١".into()), "x.decimal"),
        (Kind::Decimal(String::new()), "x.decimal"),
        (Kind::String("x".repeat((1 << 20) + 1)), "x.string"),
        (Kind::Bytes(vec![0; (1 << 20) + 1]), "x.bytes"),
        (Kind::Date("2026-02-30".into()), "x.date"),
        (Kind::Time("839:00:00".into()), "x.time"),
        (Kind::Datetime("2026-01-01".into()), "x.datetime"),
    ];
    for (kind, field) in bad {
        assert_eq!(fields(one_value(kind)), [field]);
    }
}

#[test]
fn every_violation_of_a_transaction_is_named() {
    let mut bad = raw_statement();
    bad.params.push(v1::Value {
        kind: Some(Kind::Decimal("abc".into())),
    });
    bad.params.push(v1::Value { kind: None });
    bad.expect = Some(v1::ExpectRows {
        min: Some(2),
        max: Some(1),
        reason: "no code".into(),
    });
    let target = |participant: &str, statement| v1::TargetedStatement {
        participant: participant.into(),
        statement,
    };
    let raw = v1::ExecuteTransactionRequest {
        statements: vec![
            target("p1", Some(raw_statement())),
            target("", None),
            target("p\u{7f}", Some(bad)),
            target(
                "p1",
                Some(v1::Statement {
                    sql: " \n".into(),
                    ..Default::default()
                }),
            ),
        ],
        request_id: "naïve".into(),
        isolation: 9,
        ack: -1,
        timeout_ms: 3_600_001,
    };
    let expected = [
        "statements[1].participant",
        "statements[1].statement",
        "statements[2].participant",
        "statements[2].statement.params[1].decimal",
        "statements[2].statement.params[2]",
        "statements[2].statement.expect",
        "statements[2].statement.expect.reason",
        "statements[3].statement.sql",
        "request_id",
        "isolation",
        "ack",
        "timeout_ms",
    ];
    assert_eq!(fields(transaction::execute(raw)), expected);
}

#[test]
fn a_transaction_is_bounded_in_every_direction() {
    let execute = |statements: Vec<(String, v1::Statement)>| {
        let statements = statements
            .into_iter()
            .map(|(participant, statement)| v1::TargetedStatement {
                participant,
                statement: Some(statement),
            })
            .collect();
        transaction::execute(v1::ExecuteTransactionRequest {
            statements,
            ..Default::default()
        })
    };
    let many = |count: usize| {
        (0..count)
            .map(|_| ("p1".to_owned(), raw_statement()))
            .collect()
    };
    let spread = |count: usize| {
        (0..count)
            .map(|i| (format!("p{i}"), raw_statement()))
            .collect()
    };
    let heavy = |count: usize| {
        let value = v1::Value {
            kind: Some(Kind::Bytes(vec![0; 1 << 20])),
        };
        let statement = v1::Statement {
            params: vec![value; count],
            sql: "S".into(),
            expect: None,
        };
        vec![("p1".to_owned(), statement)]
    };
    let long_sql = |bytes: usize| {
        let statement = v1::Statement {
            sql: "x".repeat(bytes),
            ..Default::default()
        };
        vec![("p1".to_owned(), statement)]
    };
    assert!(execute(many(1_000)).is_ok());
    assert_eq!(fields(execute(many(1_001))), ["statements"]);
    assert_eq!(fields(execute(many(0))), ["statements"]);
    assert!(execute(spread(64)).is_ok());
    assert_eq!(fields(execute(spread(65))), ["statements"]);
    assert!(execute(heavy(3)).is_ok());
    assert_eq!(fields(execute(heavy(4))), ["statements"]);
    assert!(execute(long_sql(64 << 10)).is_ok());
    assert_eq!(
        fields(execute(long_sql((64 << 10) + 1))),
        ["statements[0].statement.sql"]
    );
    assert_eq!(
        fields(execute(long_sql(0))),
        ["statements[0].statement.sql"]
    );
}

#[test]
fn an_expectation_may_not_borrow_a_code_that_means_something_else() {
    let check = |reason: &str| {
        let mut v = Violations::default();
        let code = text::expectation_code(&mut v, &At::root("reason"), reason);
        v.finish(|| code)
    };
    for good in [
        "",
        "INSUFFICIENT_FUNDS",
        "OUT_OF_TICKETS",
        "A",
        "PRICE_CHANGED",
    ] {
        assert!(check(good).is_ok(), "{good}");
    }
    for bad in [
        "OUTCOME_UNKNOWN",
        "REQUEST_ALREADY_COMMITTED",
        "HEURISTIC_COMMIT",
        "PARTICIPANT_DOWN",
        "lower",
        "_X",
        "9X",
        "A B",
        "Ä",
    ] {
        assert!(check(bad).is_err(), "{bad}");
    }
    assert!(check(&"A".repeat(63)).is_ok() && check(&"A".repeat(64)).is_err());
}

#[test]
fn a_transfer_is_refused_for_what_is_wrong_with_it() {
    let good = v1::TransferRequest {
        from_account_id: "a".into(),
        to_account_id: "b".into(),
        amount: 1,
        ..Default::default()
    };
    let transfer = bank::transfer(good.clone()).expect("a transfer");
    assert_eq!(transfer.timeout.as_millis(), 10_000);
    assert_eq!((transfer.request, transfer.currency), (None, None));
    for amount in [0, -1, i64::MIN, 1_000_000_000_000_001, i64::MAX] {
        let raw = v1::TransferRequest {
            amount,
            ..good.clone()
        };
        assert_eq!(fields(bank::transfer(raw)), ["amount"]);
    }
    let same = v1::TransferRequest {
        to_account_id: "a".into(),
        ..good.clone()
    };
    assert_eq!(fields(bank::transfer(same)), ["to_account_id"]);
    for currency in ["eur", "EURO", "E", "ÉU", "E\0R"] {
        let raw = v1::TransferRequest {
            currency: currency.into(),
            ..good.clone()
        };
        assert_eq!(fields(bank::transfer(raw)), ["currency"]);
    }
    for memo in ["a\nb", "\u{1b}[2J", "\0", "\u{85}", &"x".repeat(201)] {
        let raw = v1::TransferRequest {
            memo: memo.into(),
            ..good.clone()
        };
        assert_eq!(fields(bank::transfer(raw)), ["memo"]);
    }
    let memo = "é".repeat(200);
    assert!(bank::transfer(v1::TransferRequest { memo, ..good }).is_ok());
}

#[test]
fn ids_keep_their_alphabet() {
    for good in ["a", "A.b_c:d-9", &"x".repeat(64)] {
        assert!(AccountId::parse(good).is_some(), "{good}");
    }
    for bad in ["", " ", "a b", "a/b", "a'", "ä", "a\0", &"x".repeat(65)] {
        assert!(AccountId::parse(bad).is_none(), "{bad}");
    }
    for (good, id) in [
        (true, "order 17/b"),
        (false, " x"),
        (false, "x "),
        (false, "a\tb"),
    ] {
        let mut v = Violations::default();
        assert_eq!(
            text::request_id(&mut v, &At::root("request_id"), id).is_some(),
            good,
            "{id}"
        );
    }
    assert!(text::is_name("p1") && text::is_name(&"x".repeat(32)));
    for bad in ["", "-p", ".", "p 1", "p/1", &"x".repeat(33)] {
        assert!(!text::is_name(bad), "{bad}");
    }
}

#[test]
fn an_order_is_checked_line_by_line() {
    let line = |id: &str, quantity| v1::OrderLine {
        product_id: id.into(),
        quantity,
        ..Default::default()
    };
    let order = |lines| v1::PlaceOrderRequest {
        lines,
        ..Default::default()
    };
    let raw = v1::PlaceOrderRequest {
        order_id: "o 1".into(),
        payment: Some(v1::Payment {
            from_account_id: "a".into(),
            to_account_id: "a".into(),
        }),
        ..order(vec![
            line("p", 1),
            line("p", 2),
            line("", 0),
            line("q", 1_000_001),
        ])
    };
    let expected = [
        "lines[1].product_id",
        "lines[2].product_id",
        "lines[2].quantity",
        "lines[3].quantity",
        "order_id",
        "payment.to_account_id",
    ];
    assert_eq!(fields(inventory::place_order(&raw)), expected);
    assert_eq!(fields(inventory::place_order(&order(vec![]))), ["lines"]);
    let many = |count: usize| order((0..count).map(|i| line(&format!("p{i}"), 1)).collect());
    assert!(inventory::place_order(&many(64)).is_ok());
    assert_eq!(fields(inventory::place_order(&many(65))), ["lines"]);
}

#[test]
fn a_product_takes_its_id_for_a_missing_name() {
    let raw = v1::CreateProductRequest {
        product_id: "p".into(),
        currency: "EUR".into(),
        ..Default::default()
    };
    assert_eq!(
        inventory::create_product(raw.clone())
            .expect("a product")
            .name,
        "p"
    );
    let bad = v1::CreateProductRequest {
        price: -1,
        initial_stock: i64::MAX,
        ..raw
    };
    assert_eq!(
        fields(inventory::create_product(bad)),
        ["price", "initial_stock"]
    );
}

#[test]
fn a_retry_has_the_fingerprint_of_its_first_attempt_and_nothing_else_has() {
    let raw = v1::TransferRequest {
        from_account_id: "a".into(),
        to_account_id: "b".into(),
        amount: 5,
        request_id: "r".into(),
        ..Default::default()
    };
    let sum = |raw: &v1::TransferRequest| {
        bank::transfer(raw.clone())
            .expect("a transfer")
            .request
            .expect("a request")
            .fingerprint
    };
    let later = v1::TransferRequest {
        timeout_ms: 60_000,
        ..raw.clone()
    };
    assert_eq!(sum(&raw), sum(&later));
    // Pinned: the decision log keeps it across versions.
    assert_eq!(sum(&raw), 0xd7d5_9bfd_329e_e6e8);
    for other in [
        v1::TransferRequest {
            amount: 6,
            ..raw.clone()
        },
        v1::TransferRequest {
            memo: "x".into(),
            ..raw.clone()
        },
        v1::TransferRequest {
            to_account_id: "c".into(),
            ..raw.clone()
        },
        v1::TransferRequest {
            currency: "EUR".into(),
            ..raw.clone()
        },
    ] {
        assert_ne!(sum(&raw), sum(&other));
    }
}

#[test]
fn an_operators_order_needs_words() {
    let raw = v1::ResolveBranchRequest {
        gtrid: GTRID.into(),
        bqual: 1,
        resolution: 1,
        reason: "restored from backup".into(),
        ..Default::default()
    };
    assert!(admin::resolve_branch(raw.clone()).is_ok());
    let bad = v1::ResolveBranchRequest {
        gtrid: "x".into(),
        bqual: 0,
        participant: "?".into(),
        resolution: 0,
        reason: "  ".into(),
        force: true,
    };
    let expected = ["gtrid", "bqual", "participant", "resolution", "reason"];
    assert_eq!(fields(admin::resolve_branch(bad)), expected);
}

#[test]
fn a_transaction_is_named_in_exactly_one_way() {
    let get = |gtrid: &str, request_id: &str| {
        let raw = v1::GetTransactionRequest {
            gtrid: gtrid.into(),
            request_id: request_id.into(),
        };
        transaction::get(&raw)
    };
    assert!(get(GTRID, "").is_ok() && get("", "r").is_ok());
    assert_eq!(fields(get("", "")), ["gtrid"]);
    assert_eq!(fields(get(GTRID, "r")), ["request_id"]);
    assert_eq!(fields(get("r", "")), ["gtrid"]);
}

#[test]
fn a_frame_survives_one_bad_command() {
    use crate::v1::link_command::Command as Raw;
    let abort = Raw::Abort(v1::AbortRequest {
        branch: raw_branch(),
    });
    let command = |seq, command| v1::LinkCommand { seq, command };
    let commands = vec![
        command(1, Some(abort.clone())),
        command(2, None),
        command(3, Some(Raw::ForgetBelow(vec![0; 16]))),
        command(4, Some(Raw::ForgetBelow(vec![0; 17]))),
        command(
            5,
            Some(Raw::Commit(v1::CommitRequest {
                branch: raw_branch(),
                one_phase: false,
                work: Some(v1::Work {
                    statements: vec![raw_statement()],
                    ..Default::default()
                }),
            })),
        ),
    ];
    let frame = participant::link(v1::LinkRequest { commands }).expect("a frame");
    let good: Vec<(u64, bool)> = frame.iter().map(|(seq, one)| (*seq, one.is_ok())).collect();
    assert_eq!(
        good,
        [(1, true), (2, false), (3, true), (4, false), (5, false)]
    );
    let frame = v1::LinkRequest {
        commands: vec![command(1, Some(abort)); 1_025],
    };
    assert_eq!(fields(participant::link(frame)), ["commands"]);
}

#[test]
fn what_is_no_gtrid_tells_nothing_of_what_is_unfinished() {
    let read = |bytes: &[u8]| {
        link::unfinished_from(&v1::GetStatusResponse {
            unfinished_from: bytes.to_vec(),
            ..v1::GetStatusResponse::default()
        })
    };
    for from in [None, Some(Gtrid([7; 16])), Some(Gtrid::MAX)] {
        assert_eq!(read(&link::unfinished_bytes(from)), from);
    }
    assert_eq!(read(&[7; 15]), None);
    assert_eq!(read(&[7; 17]), None);
}
