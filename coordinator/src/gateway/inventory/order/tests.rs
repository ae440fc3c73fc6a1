//! Orders without a server: prices, statements, explanations.

use concord_proto::convert::AccountId;

use super::*;
use Entry::{Credit, Debit, Journal};

const GTRID: Gtrid = Gtrid([0x01; 16]);

fn currency(letters: &str) -> Currency {
    Currency::parse(letters).unwrap()
}

fn line(product: &str, quantity: i64, price: Option<(i64, &str)>) -> Line {
    let price = price.map(|(price, letters)| Price {
        price,
        currency: currency(letters),
    });
    Line {
        product: ProductId::parse(product).unwrap(),
        quantity,
        price,
    }
}

fn payment(amount: i64) -> (Movement, Accounts) {
    let account = |id: &str| AccountId::parse(id).unwrap();
    let (from, to) = (account("alice"), account("shop"));
    let known = Some(currency("EUR"));
    let memo = "order o1".to_owned();
    (
        Movement {
            from,
            to,
            amount,
            memo,
        },
        Accounts {
            from: known,
            to: known,
        },
    )
}

fn purchase(order: &str, lines: Vec<Line>) -> Purchase {
    let (total, currency) = quote(&lines).unwrap();
    let payment = Some(payment(total));
    Purchase {
        order: OrderId::parse(order).unwrap(),
        lines,
        total,
        currency,
        payment,
    }
}

fn placement(n: usize) -> Placement {
    let names: Vec<_> = (1..=n)
        .map(|i| ParticipantName::new(format!("p{i}")))
        .collect();
    Placement::new(Placement::initial(&names)).unwrap()
}

fn roles(purchase: &Purchase, placement: &Placement) -> Vec<(String, Vec<Role>)> {
    let (works, roles) = purchase.plan(placement, GTRID).split();
    works
        .iter()
        .enumerate()
        .map(|(b, work)| {
            for statement in &work.statements {
                assert_eq!(statement.params.len(), statement.sql.matches('?').count());
            }
            let of = |s| roles.at(Some(b), Some(s));
            (work.participant.to_string(), (0..).map_while(of).collect())
        })
        .collect()
}

#[test]
fn a_quote_adds_up_in_one_currency() {
    let lines = [
        line("tea", 2, Some((350, "EUR"))),
        line("pot", 1, Some((2_000, "EUR"))),
    ];
    assert_eq!(quote(&lines), Ok((2_700, Some(currency("EUR")))));
    let mixed = [
        line("tea", 2, Some((350, "EUR"))),
        line("pot", 1, Some((2_000, "USD"))),
    ];
    let reason = quote(&mixed).map_err(|reason| reason.to_string());
    let text = "CURRENCY_MISMATCH: product tea is priced in EUR, product pot in USD";
    assert_eq!(reason, Err(text.to_owned()));
    let none = [line("tea", 2, None)];
    assert_eq!(quote(&none), Ok((0, None)));
}

#[test]
fn a_total_beyond_all_limits_is_refused_and_does_not_overflow() {
    let dear = vec![line("tea", 1_000_000, Some((1_000_000_000_000, "EUR"))); 64];
    let reason = quote(&dear).map_err(|reason| reason.code);
    assert_eq!(reason, Err(code::LIMIT_EXCEEDED.into()));
    let limit = [line("tea", 1_000, Some((1_000_000_000_000, "EUR")))];
    assert_eq!(quote(&limit).map(|(total, _)| total), Ok(TOTAL_MAX));
}

#[test]
fn one_server_does_it_all_in_one_branch() {
    let price = Some((100, "EUR"));
    let purchase = purchase("o1", vec![line("tea", 2, price), line("pot", 1, price)]);
    assert_eq!(
        roles(&purchase, &placement(1)),
        [(
            "p1".to_owned(),
            vec![
                Role::Stock(1),
                Role::Stock(0),
                Role::Record,
                Role::Payment(Debit),
                Role::Payment(Journal),
                Role::Payment(Credit),
                Role::Payment(Journal),
                Role::Record,
                Role::Record,
            ]
        )]
    );
}

/// The ledger of the first branch's server knows the request, so a repeated order must have
/// the same first branch, whatever its id, which is a new gtrid when the client named none.
#[test]
fn the_first_branch_is_that_of_the_smallest_product() {
    let placement = placement(7);
    let price = Some((100, "EUR"));
    let lines = vec![
        line("tea", 2, price),
        line("pot", 1, price),
        line("cup", 1, price),
    ];
    let first = placement.participant_of("cup").to_string();
    for order in ["o1", "o2", "o3", "019b7d3e-2a15-7000-8000-000000000000"] {
        assert_eq!(
            roles(&purchase(order, lines.clone()), &placement)[0].0,
            first
        );
    }
}

#[test]
fn everything_is_on_the_server_of_its_own_id() {
    let placement = placement(3);
    let price = Some((100, "EUR"));
    let products = ["a", "b", "c", "d", "e", "f"];
    let lines = products.map(|id| line(id, 1, price)).to_vec();
    let (works, _) = purchase("o1", lines).plan(&placement, GTRID).split();
    for work in works {
        for statement in &work.statements {
            let names_its_row = |id: &&str| statement.params.contains(&text(id));
            let home = |id: &&str| *placement.participant_of(id) == work.participant;
            if statement.sql.contains("products") || statement.sql.contains("stock_journal") {
                assert!(
                    products.iter().filter(|id| names_its_row(id)).all(home),
                    "{statement:?}"
                );
            } else if statement.sql.contains(".order") {
                assert!(home(&"o1"), "{statement:?}");
            }
        }
    }
}

#[test]
fn lines_keep_the_clients_order_and_their_prices() {
    let price = |price| Some((price, "EUR"));
    let purchase = purchase(
        "o1",
        vec![line("tea", 2, price(350)), line("pot", 1, price(90))],
    );
    let (works, _) = purchase.plan(&placement(1), GTRID).split();
    let last = works[0].statements.last().unwrap();
    assert!(
        last.sql
            .ends_with("VALUES (?, ?, ?, ?, ?), (?, ?, ?, ?, ?)")
    );
    let row = |line, id, quantity, price| {
        [
            id_of(GTRID),
            Value::Int(line),
            text(id),
            Value::Int(quantity),
            Value::Int(price),
        ]
    };
    assert_eq!(
        last.params,
        [row(1, "tea", 2, 350), row(2, "pot", 1, 90)].concat()
    );
}

#[test]
fn an_order_without_payment_moves_no_money() {
    let mut purchase = purchase("o1", vec![line("tea", 2, Some((350, "EUR")))]);
    purchase.payment = None;
    let (works, _) = purchase.plan(&placement(1), GTRID).split();
    assert!(
        works[0]
            .statements
            .iter()
            .all(|s| !s.sql.contains("concord_bank"))
    );
    let order = works[0]
        .statements
        .iter()
        .find(|s| s.sql == ORDER.into())
        .unwrap();
    assert_eq!(order.params[4..6], [Value::Null, Value::Null]);
}

#[test]
fn what_does_not_exist_is_named_and_its_guard_says_so() {
    let mut purchase = purchase("o1", vec![line("tea", 2, None)]);
    let text = "PRODUCT_NOT_FOUND: product tea does not exist";
    assert_eq!(
        purchase
            .missing()
            .map(|reason| reason.to_string())
            .as_deref(),
        Some(text)
    );
    let (works, _) = purchase.plan(&placement(1), GTRID).split();
    let expect = works[0].statements[0].expect.as_ref().unwrap();
    assert_eq!(&*expect.reason, code::PRODUCT_NOT_FOUND);
    purchase.lines[0].price = Some(Price {
        price: 1,
        currency: currency("EUR"),
    });
    assert_eq!(purchase.missing(), None);
    if let Some((_, accounts)) = &mut purchase.payment {
        accounts.to = None;
    }
    let text = "ACCOUNT_NOT_FOUND: account shop does not exist";
    assert_eq!(
        purchase
            .missing()
            .map(|reason| reason.to_string())
            .as_deref(),
        Some(text)
    );
}

#[test]
fn a_refusal_is_explained_by_the_product_as_it_is_now() {
    let tea = line("tea", 3, Some((350, "EUR")));
    let state = |price, letters, stock| {
        Some(ProductState {
            price: Price {
                price,
                currency: currency(letters),
            },
            stock,
        })
    };
    for (state, code) in [
        (None, Some(code::PRODUCT_NOT_FOUND)),
        (state(350, "EUR", 2), Some(code::INSUFFICIENT_STOCK)),
        (state(350, "EUR", 3), None),
        (state(351, "EUR", 3), Some(code::PRICE_CHANGED)),
        (state(350, "USD", 3), Some(code::PRICE_CHANGED)),
    ] {
        let reason = tea.explain(state.as_ref());
        assert_eq!(reason.as_ref().map(|r| &*r.code), code, "{state:?}");
    }
    let reason = tea.explain(state(350, "EUR", 2).as_ref()).unwrap();
    assert_eq!(
        &*reason.message,
        "of product tea 2 are in stock, and 3 ordered"
    );
    assert_eq!(told(code::DEADLOCK), None);
}

#[test]
fn added_stock_stays_below_its_limit() {
    let product = ProductId::parse("tea").unwrap();
    let statement = add(&product, 5, true);
    assert_eq!(
        statement.params,
        [Value::Int(5), text("tea"), Value::Int(STOCK_LIMIT - 5)]
    );
    let code = |known| add(&product, 5, known).expect.map(|expect| expect.reason);
    assert_eq!(code(true).as_deref(), Some(code::LIMIT_EXCEEDED));
    assert_eq!(code(false).as_deref(), Some(code::PRODUCT_NOT_FOUND));
}
