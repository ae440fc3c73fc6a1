//! What comes from the wire: any bytes are a request that passes, or one that is refused with
//! words, within the limits; and what passes goes out as it came in.

use concord_core::limits::{
    BRANCHES_MAX, INQUIRY_BRANCHES_MAX, LINK_BATCH_MAX, PARAMS_MAX, STATEMENTS_MAX, WORK_BYTES_MAX,
};
use concord_core::reason::Reason;
use concord_participant::migrate;
use concord_participant::resource::mysql::literal::push_literal;
use concord_proto::convert::violations::Violations;
use concord_proto::convert::{
    AccountId, At, Currency, Page, admin, bank, inventory, link, outcome, page, participant, text,
    time, transaction, work,
};
use concord_proto::model::Statement;
use concord_proto::{status, v1};
use prost::Message as _;
use tonic::{Code, Status};

use super::input::Input;

/// Bytes of all that a status says: most clients bound their trailers.
const STATUS_BYTES_MAX: usize = 16 << 10;

fn refused(violations: Violations) {
    assert!(!violations.list().is_empty(), "refused without a word");
    let status = Status::from(violations);
    assert_eq!(status.code(), Code::InvalidArgument);
    let bytes = status.details().len() + status.message().len();
    assert!(bytes < STATUS_BYTES_MAX, "{bytes} bytes of words");
    assert!(!status::violations_of(&status).is_empty());
}

fn passed<T>(checked: Result<T, Violations>) -> Option<T> {
    checked.map_err(refused).ok()
}

/// What a branch would run is within the limits, and can be written as SQL.
fn bounded(statements: &[&Statement]) {
    assert!((1..=STATEMENTS_MAX).contains(&statements.len()));
    let bytes: usize = statements.iter().map(|one| work::statement_size(one)).sum();
    assert!(bytes <= WORK_BYTES_MAX, "{bytes} bytes of work");
    for statement in statements {
        assert!(statement.params.len() <= PARAMS_MAX);
        for value in &statement.params {
            let pushed = push_literal(&mut String::new(), value);
            assert!(pushed.is_ok(), "{value:?} passed the door: {pushed:?}");
        }
    }
}

/// The target: a request; the first byte says which.
pub fn requests(data: &[u8]) {
    let Some((&which, bytes)) = data.split_first() else {
        return;
    };
    /// Decodes, and checks by reference or by value.
    macro_rules! check {
        (&$message:ident, $check:path) => {
            v1::$message::decode(bytes)
                .ok()
                .and_then(|raw| passed($check(&raw)))
        };
        ($message:ident, $check:path) => {
            v1::$message::decode(bytes)
                .ok()
                .and_then(|raw| passed($check(raw)))
        };
    }
    match which % 34 {
        0 => _ = check!(AcknowledgeDamageRequest, participant::acknowledge_damage),
        1 => _ = check!(&ListBranchesRequest, participant::list_branches),
        2 => _ = check!(QueryRequest, participant::query),
        3 => _ = check!(ResolveRequest, participant::resolve),
        4 => _ = check!(BeginRequest, participant::begin),
        5 => {
            if let Some(execute) = check!(ExecuteRequest, participant::execute) {
                bounded(&[&execute.statement]);
            }
        }
        6 => _ = check!(MigrateRequest, migrate::check),
        7 => _ = check!(&ListInDoubtRequest, admin::list_in_doubt),
        8 => _ = check!(ResolveBranchRequest, admin::resolve_branch),
        9 => _ = check!(UpdateConfigRequest, admin::update_config),
        10 => _ = check!(&TailLogsRequest, admin::tail_logs),
        11 => _ = check!(WatchMetricsRequest, admin::watch_metrics),
        12 => _ = check!(&OpenAccountRequest, bank::open_account),
        13 => _ = check!(&GetAccountRequest, bank::get_account),
        14 => _ = check!(&ListAccountsRequest, bank::list_accounts),
        15 => {
            if let Some(transfer) = check!(TransferRequest, bank::transfer) {
                assert!((1..=bank::AMOUNT_MAX).contains(&transfer.amount));
                assert_ne!(transfer.from, transfer.to);
            }
        }
        16 => _ = check!(&ListTransfersRequest, bank::list_transfers),
        17 => _ = check!(CreateProductRequest, inventory::create_product),
        18 => _ = check!(&GetProductRequest, inventory::get_product),
        19 => _ = check!(&ListProductsRequest, inventory::list_products),
        20 => _ = check!(&RestockRequest, inventory::restock),
        21 => _ = check!(&PlaceOrderRequest, inventory::place_order),
        22 => _ = check!(&GetOrderRequest, inventory::get_order),
        23 => _ = check!(&ListOrdersRequest, inventory::list_orders),
        24 => {
            if let Some(whole) = check!(ExecuteTransactionRequest, transaction::execute) {
                let statements: Vec<_> = whole.statements.iter().map(|(_, one)| one).collect();
                bounded(&statements);
            }
        }
        25 => _ = check!(BeginTransactionRequest, transaction::begin),
        26 => _ = check!(ExecuteStatementRequest, transaction::execute_statement),
        27 => _ = check!(&CommitTransactionRequest, transaction::commit),
        28 => _ = check!(&RollbackTransactionRequest, transaction::rollback),
        29 => _ = check!(&GetTransactionRequest, transaction::get),
        30 => _ = check!(&ListTransactionsRequest, transaction::list),
        31 => _ = check!(&WatchTransactionsRequest, transaction::watch),
        32 => {
            if let Some(inquiry) = check!(InquireRequest, outcome::inquire) {
                assert!(inquiry.branches.len() <= INQUIRY_BRANCHES_MAX);
                let again = outcome::inquire((&inquiry).into());
                assert_eq!(again, Ok(inquiry), "an inquiry changed on its way");
            }
        }
        _ => commands(bytes),
    }
}

/// A frame of a link: what passes goes out as it came in.
fn commands(bytes: &[u8]) {
    let Ok(raw) = v1::LinkRequest::decode(bytes) else {
        return;
    };
    let count = raw.commands.len();
    let Some(commands) = passed(participant::link(raw)) else {
        assert!(count > LINK_BATCH_MAX);
        return;
    };
    assert_eq!(commands.len(), count, "a command was lost");
    for (_, command) in commands {
        let Some(command) = passed(command) else {
            continue;
        };
        command_survives(command);
    }
}

fn command_survives(command: participant::Command) {
    use participant::Command;
    match command {
        Command::Prepare(prepare) => {
            if let Some(work) = &prepare.work {
                bounded(&work.statements.iter().collect::<Vec<_>>());
            }
            let sent = link::prepare_request(prepare.branch, prepare.epoch, prepare.work.clone());
            assert_eq!(participant::prepare(sent), Ok(prepare));
        }
        Command::Commit(commit) => {
            let (branch, epoch, one_phase) = (commit.branch, commit.epoch, commit.one_phase);
            let sent = link::commit_request(branch, epoch, one_phase, commit.work.clone());
            assert_eq!(participant::commit(sent), Ok(commit));
        }
        Command::Abort(abort) => {
            assert!((1..=BRANCHES_MAX).contains(&(abort.branch.bqual.0 as usize)));
            let sent = link::abort_request(abort.branch, abort.epoch);
            assert_eq!(participant::abort(sent), Ok(abort));
        }
        Command::ForgetBelow(_) => {}
    }
}

/// The target: an answer; the first byte says which.
pub fn answers(data: &[u8]) {
    let Some((&which, bytes)) = data.split_first() else {
        return;
    };
    match which % 6 {
        0 => {
            let Ok(raw) = v1::LinkResponse::decode(bytes) else {
                return;
            };
            for reply in raw.replies {
                let (seq, reply) = link::reply(reply);
                match reply {
                    Err(reason) => understood(&reason),
                    Ok(reply) => {
                        let again = link::reply(link::link_reply(seq, reply.clone()));
                        assert_eq!(again, (seq, Ok(reply)), "a reply changed on its way");
                    }
                }
            }
        }
        1 => {
            let asked = usize::from(bytes.first().copied().unwrap_or_default() % 4);
            let Ok(raw) = v1::InquireResponse::decode(bytes) else {
                return;
            };
            match outcome::answer(&raw, asked) {
                Err(reason) => understood(&reason),
                Ok(answer) => {
                    assert_eq!(answer.decisions.len(), asked);
                    assert_eq!(outcome::answer(&(&answer).into(), asked), Ok(answer));
                }
            }
        }
        2 => {
            if let Ok(raw) = v1::PrepareResponse::decode(bytes) {
                link::voted(raw).map_or_else(|why| understood(&why), drop);
            }
        }
        3 => {
            if let Ok(raw) = v1::CommitResponse::decode(bytes) {
                link::committed(raw).map_or_else(|why| understood(&why), drop);
            }
        }
        4 => {
            if let Ok(raw) = v1::AbortResponse::decode(bytes) {
                link::aborted(raw).map_or_else(|why| understood(&why), drop);
            }
        }
        _ => {
            if let Ok(raw) = v1::Reason::decode(bytes) {
                understood(&link::reason(&raw));
            }
        }
    }
}

/// A reason has a code for programs, and few words; and as a status it stays what it is.
fn understood(reason: &Reason) {
    assert!(text::is_code(&reason.code), "{reason:?}");
    assert!(
        reason.message.len() <= link::REASON_BYTES_MAX + 64,
        "{} bytes",
        reason.message.len()
    );
    let status = status::status(reason);
    assert!(status.details().len() + status.message().len() < STATUS_BYTES_MAX);
    assert_ne!(status.code(), Code::Ok);
    let back = status::reason_of(&status).expect("a reason of ours");
    assert_eq!(back.code, reason.code);
}

/// The target: texts with a form, page tokens, and statuses of whoever answers.
pub fn texts(data: &[u8]) {
    let mut input = Input(data);
    let which = input.u8() % 5;
    let rest = input.rest();
    let given = String::from_utf8_lossy(rest);
    match which {
        0 => forms(&given),
        1 => {
            let mut v = Violations::default();
            if let Some(Page {
                after: Some(after), ..
            }) = Page::check(&mut v, "list", 1, &given)
            {
                let token = page::token("list", &after);
                assert!(
                    token.eq_ignore_ascii_case(&given),
                    "{given:?} is another {token:?}"
                );
            }
        }
        2 => {
            let mut v = Violations::default();
            let page = Page::check(&mut v, "list", 1, &page::token("list", &given));
            assert_eq!(page.and_then(|page| page.after).as_deref(), Some(&*given));
            assert!(Page::check(&mut v, "tsil", 1, &page::token("list", &given)).is_none());
        }
        3 => {
            let foreign = Status::with_details(Code::Aborted, given.clone(), rest.to_vec().into());
            if let Some(reason) = status::reason_of(&foreign) {
                assert!(text::is_code(&reason.code));
            }
            let _ = status::gtrid_of(&foreign);
            let _ = status::participant_of(&foreign);
            let _ = status::violations_of(&foreign);
        }
        _ => {
            let mut input = Input(rest);
            let raw = prost_types::Timestamp {
                seconds: input.u64().cast_signed(),
                nanos: input.u32().cast_signed(),
            };
            if let Some(ms) = time::unix_ms(&raw)
                && raw.seconds <= 253_402_300_799
            {
                let back = time::timestamp(ms);
                assert_eq!(back.seconds, raw.seconds);
                assert_eq!(back.nanos, raw.nanos - raw.nanos % 1_000_000);
            }
        }
    }
}

fn forms(given: &str) {
    if let Some(gtrid) = text::parse_gtrid(given) {
        assert_eq!(gtrid.to_string(), given.to_ascii_lowercase());
        assert_eq!(text::gtrid_of_bytes(&gtrid.0), Some(gtrid));
    }
    let printable = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let mut v = Violations::default();
    let at = At::root("field");
    if let Some(Some(id)) = text::request_id(&mut v, &at, given) {
        assert!(id.as_str() == given && printable(given) && given.trim() == given);
    }
    if let Some(name) = text::participant(&mut v, &at, given) {
        assert!(name.as_str() == given && printable(given) && !given.contains(' '));
    }
    if let Some(id) = AccountId::check(&mut v, &at, given) {
        assert!(id.as_str() == given && printable(given) && given.len() <= 64);
    }
    if let Some(currency) = Currency::check(&mut v, &at, given) {
        assert_eq!(currency.as_str(), given);
    }
    if let Some(words) = text::words(&mut v, &at, given.to_owned()) {
        assert!(words == given && !words.chars().any(char::is_control));
    }
    let _ = text::expectation_code(&mut v, &at, given);
    if !v.list().is_empty() {
        refused(v);
    }
}
