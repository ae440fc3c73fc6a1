//! Requests to the BankService.

use std::time::Duration;

use concord_core::id::Request;
use concord_core::limits::TIMEOUT_DEFAULT_MS;

use super::common::{range, timeout};
use super::fingerprint::fingerprint;
use super::text::{MEMO_LEN_MAX, plain};
use super::transaction::request;
use super::violations::{At, Violations};
use super::{AccountId, Currency, Page};
use crate::v1;

/// Largest amount and largest opening balance in minor units: sums of nine thousand of them still
/// fit in 64 bits.
pub const AMOUNT_MAX: i64 = 1_000_000_000_000_000;
/// The list of [`list_accounts`], for page tokens.
pub const ACCOUNTS: &str = "accounts";
/// The list of [`list_transfers`], for page tokens; an account's id follows.
pub const TRANSFERS: &str = "transfers/";

/// Opens an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAccount {
    /// Its id.
    pub account: AccountId,
    /// Its currency.
    pub currency: Currency,
    /// Opening balance in minor units, from 0 to [`AMOUNT_MAX`].
    pub initial_balance: i64,
    /// The client's request.
    pub request: Option<Request>,
}

/// Moves money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Debited.
    pub from: AccountId,
    /// Credited; another one.
    pub to: AccountId,
    /// In minor units, from 1 to [`AMOUNT_MAX`].
    pub amount: i64,
    /// What the accounts' currency must be.
    pub currency: Option<Currency>,
    /// Kept in the journal; may be empty.
    pub memo: String,
    /// The client's request.
    pub request: Option<Request>,
    /// Time until it is aborted when it is not decided.
    pub timeout: Duration,
}

/// Lists an account's journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListTransfers {
    /// Whose.
    pub account: AccountId,
    /// Which page.
    pub page: Page,
}

/// Checks an OpenAccount.
pub fn open_account(raw: &v1::OpenAccountRequest) -> Result<OpenAccount, Violations> {
    let mut v = Violations::default();
    let account = AccountId::check(&mut v, &At::root("account_id"), &raw.account_id);
    let currency = Currency::check(&mut v, &At::root("currency"), &raw.currency);
    let balance = range(
        &mut v,
        &At::root("initial_balance"),
        raw.initial_balance,
        0,
        AMOUNT_MAX,
    );
    let content = fingerprint(&[
        b"open_account",
        raw.account_id.as_bytes(),
        raw.currency.as_bytes(),
        &raw.initial_balance.to_be_bytes(),
    ]);
    let request = request(&mut v, &raw.request_id, content);
    v.finish(|| {
        Some(OpenAccount {
            account: account?,
            currency: currency?,
            initial_balance: balance?,
            request: request?,
        })
    })
}

/// Checks a GetAccount.
pub fn get_account(raw: &v1::GetAccountRequest) -> Result<AccountId, Violations> {
    let mut v = Violations::default();
    let account = AccountId::check(&mut v, &At::root("account_id"), &raw.account_id);
    v.finish(|| account)
}

/// Checks a ListAccounts. Its tokens are `page::token(ACCOUNTS, …)`.
pub fn list_accounts(raw: &v1::ListAccountsRequest) -> Result<Page, Violations> {
    let mut v = Violations::default();
    let page = Page::check(&mut v, ACCOUNTS, raw.page_size, &raw.page_token);
    v.finish(|| page)
}

/// Checks a Transfer.
pub fn transfer(raw: v1::TransferRequest) -> Result<Transfer, Violations> {
    let mut v = Violations::default();
    let content = fingerprint(&[
        b"transfer",
        raw.from_account_id.as_bytes(),
        raw.to_account_id.as_bytes(),
        &raw.amount.to_be_bytes(),
        raw.currency.as_bytes(),
        raw.memo.as_bytes(),
    ]);
    let (from, to) = accounts(
        &mut v,
        (&At::root("from_account_id"), &raw.from_account_id),
        (&At::root("to_account_id"), &raw.to_account_id),
    );
    let amount = range(&mut v, &At::root("amount"), raw.amount, 1, AMOUNT_MAX);
    let currency = match raw.currency.as_str() {
        "" => Some(None),
        text => Currency::check(&mut v, &At::root("currency"), text).map(Some),
    };
    let memo = plain(&mut v, &At::root("memo"), raw.memo, MEMO_LEN_MAX);
    let request = request(&mut v, &raw.request_id, content);
    let timeout = timeout(
        &mut v,
        &At::root("timeout_ms"),
        raw.timeout_ms,
        TIMEOUT_DEFAULT_MS,
    );
    v.finish(|| {
        Some(Transfer {
            from: from?,
            to: to?,
            amount: amount?,
            currency: currency?,
            memo: memo?,
            request: request?,
            timeout: timeout?,
        })
    })
}

/// Checks the two accounts of a movement of money: they must differ.
pub(super) fn accounts(
    v: &mut Violations,
    (at_from, from): (&At<'_>, &str),
    (at_to, to): (&At<'_>, &str),
) -> (Option<AccountId>, Option<AccountId>) {
    let debited = AccountId::check(v, at_from, from);
    let credited = AccountId::check(v, at_to, to);
    if debited.is_some() && debited == credited {
        v.add(
            at_to,
            format_args!("must be another account than {at_from}"),
        );
    }
    (debited, credited)
}

/// The list of an account's journal, for page tokens.
pub fn transfers_of(account: &str) -> String {
    format!("{TRANSFERS}{account}")
}

/// Checks a ListTransfers. Its tokens are `page::token(&transfers_of(account), …)`.
pub fn list_transfers(raw: &v1::ListTransfersRequest) -> Result<ListTransfers, Violations> {
    let mut v = Violations::default();
    let account = AccountId::check(&mut v, &At::root("account_id"), &raw.account_id);
    let list = transfers_of(account.as_ref().map_or("", AccountId::as_str));
    let page = Page::check(&mut v, &list, raw.page_size, &raw.page_token);
    v.finish(|| {
        Some(ListTransfers {
            account: account?,
            page: page?,
        })
    })
}
