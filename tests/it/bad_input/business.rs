//! Bad fields of bank and inventory, ids that name nothing, amounts that would overflow.

use concord_proto::v1;
use tonic::Code;

use super::{Refusals, World, transfer};
use crate::inventory;

/// Texts that are no id of an account, product or order.
const BAD_IDS: &[&str] = &[
    "",
    " ",
    "a b",
    " a",
    "a ",
    "ä",
    "a\0",
    "a\0b",
    "a\nb",
    "a\tb",
    "\u{1b}[2J",
    "a/b",
    "../../etc",
    "a'b",
    "a\"b",
    "a`b",
    "a;b",
    "'; DROP TABLE concord_bank.accounts; --",
    "1' OR '1'='1",
    "a%00",
    "a\\b",
    "${jndi:ldap://x}",
    "\u{202e}abc",
    "\u{feff}a",
    "a\u{301}",
    "\u{ff41}",
    "{}",
    "a,b",
    "a=b",
    "<script>",
    "%s%n%x",
    "🦀",
];
/// Numbers that are out of every range.
const BAD_NUMBERS: &[i64] = &[-1, i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1];
/// Texts that are no request id.
const BAD_REQUEST_IDS: &[&str] = &["ä", "a\nb", "\0", "a\u{7f}", " a", "a ", "\u{200b}"];
/// Texts that are no currency.
const BAD_CURRENCIES: &[&str] = &[
    "eur", "EU", "EURO", "E1R", "€", "EU ", " EUR", "ÉUR", "EU\0",
];
/// Texts that no person sees on purpose.
const CONTROLS: &[&str] = &["a\0b", "a\nb", "a\r", "\u{1b}[31m", "\u{7f}", "\u{85}"];

fn open(id: &str, currency: &str, balance: i64) -> v1::OpenAccountRequest {
    v1::OpenAccountRequest {
        account_id: id.into(),
        currency: currency.into(),
        initial_balance: balance,
        request_id: String::new(),
    }
}

fn create(id: &str, price: i64, stock: i64) -> v1::CreateProductRequest {
    v1::CreateProductRequest {
        product_id: id.into(),
        name: String::new(),
        price,
        currency: "EUR".into(),
        initial_stock: stock,
        request_id: String::new(),
    }
}

fn order(lines: &[(&str, i64)]) -> v1::PlaceOrderRequest {
    inventory::order("", lines)
}

pub async fn fields_of_the_bank(world: &World) -> anyhow::Result<()> {
    let mut bank = world.bank();
    let mut r = Refusals::default();
    let long = "a".repeat(65);
    let huge = "a".repeat(2 << 20);
    for id in BAD_IDS.iter().copied().chain([&*long, &*huge]) {
        let shown: String = id.chars().take(40).collect();
        r.invalid(
            &shown,
            bank.open_account(open(id, "EUR", 1)).await,
            "account_id",
        );
        let get = v1::GetAccountRequest {
            account_id: id.into(),
        };
        r.invalid(&shown, bank.get_account(get).await, "account_id");
        r.invalid(
            &shown,
            bank.transfer(transfer(id, "payee", 1)).await,
            "from_account_id",
        );
        r.invalid(
            &shown,
            bank.transfer(transfer("payer", id, 1)).await,
            "to_account_id",
        );
        let list = v1::ListTransfersRequest {
            account_id: id.into(),
            ..Default::default()
        };
        r.invalid(&shown, bank.list_transfers(list).await, "account_id");
    }
    for currency in BAD_CURRENCIES {
        r.invalid(
            currency,
            bank.open_account(open("new", currency, 1)).await,
            "currency",
        );
        let mut request = transfer("payer", "payee", 1);
        request.currency = (*currency).into();
        r.invalid(currency, bank.transfer(request).await, "currency");
    }
    r.invalid(
        "no currency",
        bank.open_account(open("new", "", 1)).await,
        "currency",
    );
    for number in BAD_NUMBERS.iter().copied().chain([1_000_000_000_000_001]) {
        r.invalid(
            number,
            bank.open_account(open("new", "EUR", number)).await,
            "initial_balance",
        );
        r.invalid(
            number,
            bank.transfer(transfer("payer", "payee", number)).await,
            "amount",
        );
    }
    r.invalid(
        "nothing moved",
        bank.transfer(transfer("payer", "payee", 0)).await,
        "amount",
    );
    r.invalid(
        "to itself",
        bank.transfer(transfer("payer", "payer", 1)).await,
        "to_account_id",
    );
    let long = "m".repeat(201);
    for memo in CONTROLS.iter().copied().chain([&*long]) {
        let mut request = transfer("payer", "payee", 1);
        request.memo = memo.into();
        r.invalid(format!("{memo:?}"), bank.transfer(request).await, "memo");
    }
    let long = "r".repeat(129);
    for id in BAD_REQUEST_IDS.iter().copied().chain([&*long]) {
        let mut request = transfer("payer", "payee", 1);
        request.request_id = id.into();
        r.invalid(
            format!("{id:?}"),
            bank.transfer(request).await,
            "request_id",
        );
        let mut request = open("new", "EUR", 1);
        request.request_id = id.into();
        r.invalid(
            format!("{id:?}"),
            bank.open_account(request).await,
            "request_id",
        );
    }
    for timeout in [3_600_001, u32::MAX] {
        let mut request = transfer("payer", "payee", 1);
        request.timeout_ms = timeout;
        r.invalid(timeout, bank.transfer(request).await, "timeout_ms");
    }
    // An empty request names all that it misses, in one answer.
    for field in ["from_account_id", "to_account_id", "amount"] {
        r.invalid(
            "empty",
            bank.transfer(v1::TransferRequest::default()).await,
            field,
        );
    }
    r.finish(200)?;
    world.left_nothing().await
}

pub async fn fields_of_the_inventory(world: &World) -> anyhow::Result<()> {
    let mut shop = world.inventory();
    let mut r = Refusals::default();
    for id in BAD_IDS {
        r.invalid(
            id,
            shop.create_product(create(id, 1, 1)).await,
            "product_id",
        );
        let get = v1::GetProductRequest {
            product_id: (*id).into(),
        };
        r.invalid(id, shop.get_product(get).await, "product_id");
        let restock = v1::RestockRequest {
            product_id: (*id).into(),
            quantity: 1,
            ..Default::default()
        };
        r.invalid(id, shop.restock(restock).await, "product_id");
        r.invalid(
            id,
            shop.place_order(order(&[(id, 1)])).await,
            "lines[0].product_id",
        );
        let get = v1::GetOrderRequest {
            order_id: (*id).into(),
        };
        r.invalid(id, shop.get_order(get).await, "order_id");
        if !id.is_empty() {
            let mut request = order(&[("x", 1)]);
            request.order_id = (*id).into();
            r.invalid(id, shop.place_order(request).await, "order_id");
        }
    }
    for number in BAD_NUMBERS.iter().copied() {
        r.invalid(
            number,
            shop.create_product(create("x", number, 1)).await,
            "price",
        );
        r.invalid(
            number,
            shop.create_product(create("x", 1, number)).await,
            "initial_stock",
        );
        let restock = v1::RestockRequest {
            product_id: "x".into(),
            quantity: number,
            ..Default::default()
        };
        r.invalid(number, shop.restock(restock).await, "quantity");
        r.invalid(
            number,
            shop.place_order(order(&[("x", number)])).await,
            "lines[0].quantity",
        );
    }
    for (price, stock, field) in [
        (1_000_000_000_001, 1, "price"),
        (1, 1_000_000_001, "initial_stock"),
    ] {
        r.invalid(
            field,
            shop.create_product(create("x", price, stock)).await,
            field,
        );
    }
    let mut request = create("x", 1, 1);
    request.currency = "eur".into();
    r.invalid("currency", shop.create_product(request).await, "currency");
    for name in CONTROLS.iter().copied().chain([&*"n".repeat(201)]) {
        let mut request = create("x", 1, 1);
        request.name = name.into();
        r.invalid(
            format!("{name:?}"),
            shop.create_product(request).await,
            "name",
        );
    }
    r.invalid(
        "no piece",
        shop.place_order(order(&[("x", 0)])).await,
        "lines[0].quantity",
    );
    r.invalid(
        "too many",
        shop.place_order(order(&[("x", 1_000_001)])).await,
        "lines[0].quantity",
    );
    r.invalid("no line", shop.place_order(order(&[])).await, "lines");
    r.invalid(
        "65 lines",
        shop.place_order(order(&[("x", 1); 65])).await,
        "lines",
    );
    let twice = order(&[("x", 1), ("y", 1), ("x", 2)]);
    r.invalid(
        "a product twice",
        shop.place_order(twice).await,
        "lines[2].product_id",
    );
    for (from, to, field) in [
        ("", "payee", "payment.from_account_id"),
        ("payer", "", "payment.to_account_id"),
        ("payer", "payer", "payment.to_account_id"),
        ("pay er", "payee", "payment.from_account_id"),
    ] {
        let mut request = order(&[("x", 1)]);
        let (from_account_id, to_account_id) = (from.into(), to.into());
        request.payment = Some(v1::Payment {
            from_account_id,
            to_account_id,
        });
        r.invalid(field, shop.place_order(request).await, field);
    }
    r.finish(200)?;
    world.left_nothing().await
}

pub async fn what_does_not_exist(world: &World) -> anyhow::Result<()> {
    let (mut bank, mut shop) = (world.bank(), world.inventory());
    let mut r = Refusals::default();
    let (code, no_account, no_product) = (Code::NotFound, "ACCOUNT_NOT_FOUND", "PRODUCT_NOT_FOUND");
    for id in ["nobody", "Payer", "PAYER", "payer.", "pay-er"] {
        let get = v1::GetAccountRequest {
            account_id: id.into(),
        };
        r.expect(id, bank.get_account(get).await, code, no_account);
        let list = v1::ListTransfersRequest {
            account_id: id.into(),
            ..Default::default()
        };
        r.expect(id, bank.list_transfers(list).await, code, no_account);
        for mut request in [
            transfer(id, "payee", 1),
            transfer("payer", id, 1),
            transfer(id, "nil", 1),
        ] {
            r.expect(id, bank.transfer(request.clone()).await, code, no_account);
            request.request_id = format!("{}-{}", request.from_account_id, request.to_account_id);
            r.expect(id, bank.transfer(request.clone()).await, code, no_account);
            r.expect("again", bank.transfer(request).await, code, no_account);
        }
        let get = v1::GetProductRequest {
            product_id: id.into(),
        };
        r.expect(id, shop.get_product(get).await, code, no_product);
        let restock = v1::RestockRequest {
            product_id: id.into(),
            quantity: 1,
            ..Default::default()
        };
        r.expect(id, shop.restock(restock).await, code, no_product);
        r.expect(
            id,
            shop.place_order(order(&[(id, 1)])).await,
            code,
            no_product,
        );
        let get = v1::GetOrderRequest {
            order_id: id.into(),
        };
        r.expect(id, shop.get_order(get).await, code, "ORDER_NOT_FOUND");
    }
    shop.create_product(create("thing", 10, 5)).await?;
    let exists = Code::AlreadyExists;
    r.expect(
        "twice",
        shop.create_product(create("thing", 10, 5)).await,
        exists,
        "PRODUCT_EXISTS",
    );
    r.expect(
        "twice",
        bank.open_account(open("payer", "EUR", 0)).await,
        exists,
        "ACCOUNT_EXISTS",
    );
    let some = order(&[("thing", 1), ("nothing", 1)]);
    r.expect("one of two", shop.place_order(some).await, code, no_product);
    let mut unpaid = order(&[("thing", 1)]);
    let (from_account_id, to_account_id) = ("nobody".into(), "payee".into());
    unpaid.payment = Some(v1::Payment {
        from_account_id,
        to_account_id,
    });
    r.expect("a payer", shop.place_order(unpaid).await, code, no_account);
    r.finish(60)?;
    world.left_nothing().await
}

pub async fn what_would_overflow(world: &World) -> anyhow::Result<()> {
    let (mut bank, mut shop) = (world.bank(), world.inventory());
    let mut r = Refusals::default();
    let (refused, limit) = (Code::FailedPrecondition, "LIMIT_EXCEEDED");
    let most = 1_000_000_000_000_000;
    bank.open_account(open("rich", "EUR", most)).await?;
    bank.open_account(open("richer", "EUR", most)).await?;
    let rich = "UPDATE concord_bank.accounts SET balance = 1000000000000000000 WHERE id = 'rich'";
    for n in 1..=2 {
        world.cluster.sql(n, rich).await?;
    }
    for (from, amount) in [("payer", 1), ("richer", most), ("richer", 1)] {
        r.expect(
            from,
            bank.transfer(transfer(from, "rich", amount)).await,
            refused,
            limit,
        );
    }
    let poor = "INSUFFICIENT_FUNDS";
    r.expect(
        "all",
        bank.transfer(transfer("payer", "payee", most)).await,
        refused,
        poor,
    );

    for n in 0..64 {
        shop.create_product(create(
            &format!("gold-{n}"),
            1_000_000_000_000,
            1_000_000_000,
        ))
        .await?;
    }
    let ids: Vec<String> = (0..64).map(|n| format!("gold-{n}")).collect();
    for (count, quantity) in [(1, 1_001), (10, 1_000_000), (64, 1_000_000)] {
        let lines: Vec<(&str, i64)> = ids.iter().take(count).map(|id| (&**id, quantity)).collect();
        let what = format!("{count} lines of {quantity}");
        r.expect(what, shop.place_order(order(&lines)).await, refused, limit);
    }
    let short = shop
        .place_order(order(&[("gold-0", 1)]))
        .await?
        .into_inner();
    anyhow::ensure!(
        short
            .order
            .is_some_and(|order| order.total == 1_000_000_000_000),
        "exact"
    );
    let stock = "UPDATE concord_inventory.products SET stock = 1000000000000 WHERE id = 'gold-1'";
    for n in 1..=2 {
        world.cluster.sql(n, stock).await?;
    }
    let restock = v1::RestockRequest {
        product_id: "gold-1".into(),
        quantity: 1,
        ..Default::default()
    };
    r.expect("stock", shop.restock(restock).await, refused, limit);
    r.finish(8)?;
    world.left_nothing().await
}

pub async fn page_tokens(world: &World) -> anyhow::Result<()> {
    let (mut bank, mut shop, mut tx) = (world.bank(), world.inventory(), world.transactions());
    let mut r = Refusals::default();
    let list = v1::ListAccountsRequest {
        page_size: 1,
        page_token: String::new(),
    };
    let good = bank.list_accounts(list).await?.into_inner().next_page_token;
    let cut = &good[..good.len() - 2];
    let mut changed = good.clone();
    changed.replace_range(0..1, if good.starts_with('0') { "1" } else { "0" });
    let doubled = format!("{good}{good}");
    let huge = "00".repeat(100_000);
    let tokens = [
        "x",
        "0",
        "00",
        "zz",
        "../..",
        "' OR 1=1",
        "\0",
        "ff00ff00ff00ff00",
        "🦀🦀",
        cut,
        &changed,
        &doubled,
        &huge,
    ];
    for token in tokens {
        let shown: String = token.chars().take(40).collect();
        let list = v1::ListAccountsRequest {
            page_size: 1,
            page_token: token.into(),
        };
        r.invalid(&shown, bank.list_accounts(list).await, "page_token");
        let list = v1::ListProductsRequest {
            page_size: 1,
            page_token: token.into(),
        };
        r.invalid(&shown, shop.list_products(list).await, "page_token");
        let list = v1::ListOrdersRequest {
            page_size: 1,
            page_token: token.into(),
        };
        r.invalid(&shown, shop.list_orders(list).await, "page_token");
        let list = v1::ListTransactionsRequest {
            page_token: token.into(),
            ..Default::default()
        };
        r.invalid(&shown, tx.list_transactions(list).await, "page_token");
        let list = v1::ListInDoubtRequest {
            page_size: 1,
            page_token: token.into(),
        };
        r.invalid(
            &shown,
            world.admin().list_in_doubt(list).await,
            "page_token",
        );
        let list = v1::ListBranchesRequest {
            page_size: 1,
            page_token: token.into(),
        };
        r.invalid(
            &shown,
            world.participant().list_branches(list).await,
            "page_token",
        );
    }
    // A good token of another list is none of this one.
    let list = v1::ListProductsRequest {
        page_size: 1,
        page_token: good.clone(),
    };
    r.invalid(
        "another list's",
        shop.list_products(list).await,
        "page_token",
    );
    let list = v1::ListTransfersRequest {
        account_id: "payer".into(),
        page_size: 1,
        page_token: good.clone(),
    };
    r.invalid(
        "another list's",
        bank.list_transfers(list).await,
        "page_token",
    );
    for page_size in [1_001, u32::MAX] {
        let list = v1::ListAccountsRequest {
            page_size,
            page_token: String::new(),
        };
        r.invalid(page_size, bank.list_accounts(list).await, "page_size");
        let list = v1::ListTransactionsRequest {
            page_size,
            ..Default::default()
        };
        r.invalid(page_size, tx.list_transactions(list).await, "page_size");
    }
    r.finish(80)?;
    world.left_nothing().await
}
