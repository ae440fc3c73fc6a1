//! The bank: accounts on all servers, and money that moves between them.
//!
//! It owns `BankService` and the tables of the schema `concord_bank`. It refuses to keep a balance
//! anywhere else than on its server, and to move money otherwise than by one transaction.

pub mod movement;

use std::time::Duration;

use concord_core::reason::{Reason, code};
use concord_proto::convert::bank as door;
use concord_proto::convert::{AccountId, Currency, Page, page};
use concord_proto::model::Value;
use concord_proto::v1;
use concord_proto::v1::bank_service_server::BankService;
use prost_types::Timestamp;
use tonic::{Request, Response, Status};

use self::movement::{AccountState, Accounts, Entry, Movement, journal, no_account};
use super::business::{
    Business, CallError, DEFAULT_TIMEOUT, READ_TIMEOUT, Terms, because, reason_of,
};
use super::plan::{Plan, statement, text};
use super::rows::{self, Cells};
use super::status;
use crate::engine::{Engine, Executed};

const OPEN: &str = "INSERT INTO concord_bank.accounts (id, currency, balance, opened) \
                    VALUES (?, ?, ?, ?)";
const GET: &str = "SELECT id, currency, balance, opened FROM concord_bank.accounts WHERE id = ?";
const LIST: &str = "SELECT id, currency, balance, opened FROM concord_bank.accounts \
                    WHERE id > ? ORDER BY id LIMIT ?";
/// Without the hint MySQL walks the whole table backwards by its primary key when its statistics
/// make it believe that the account's entries are frequent.
const LIST_JOURNAL: &str = "SELECT gtrid, counterparty, amount, memo, created \
                            FROM concord_bank.journal FORCE INDEX (journal_by_account) \
                            WHERE account_id = ? AND gtrid < ? ORDER BY gtrid DESC LIMIT ?";

/// `BankService` on the coordinator.
#[derive(Clone, Debug)]
pub struct BankGateway<E> {
    business: Business<E>,
}

/// An account as its server has it.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountRow {
    /// Its id.
    pub id: String,
    /// What a movement asks for.
    pub state: AccountState,
    /// When it was opened.
    pub opened: Timestamp,
}

impl AccountRow {
    /// One row of [`GET`] or [`LIST`].
    fn of(row: &v1::Row) -> Result<Self, Reason> {
        let mut cells = Cells::of(row);
        let id = cells.text()?;
        let letters = cells.text()?;
        let currency = Currency::parse(&letters).ok_or_else(|| {
            Reason::new(
                code::UNEXPECTED_ANSWER,
                format!("account {id} has a broken currency"),
            )
        })?;
        let state = AccountState {
            currency,
            balance: cells.int()?,
        };
        Ok(Self {
            id,
            state,
            opened: cells.time()?,
        })
    }
}

impl AccountRow {
    fn on(self, participant: &str) -> v1::Account {
        v1::Account {
            account_id: self.id,
            currency: self.state.currency.to_string(),
            balance: self.state.balance,
            participant: participant.to_owned(),
            open_time: Some(self.opened),
        }
    }
}

/// Reads an account on its server, and remembers its currency.
pub async fn read_account<E: Engine>(
    business: &Business<E>,
    account: &AccountId,
    timeout: Duration,
) -> Result<Option<AccountRow>, Reason> {
    let participant = business.placement().participant_of(account.as_str());
    let get = statement(GET, vec![text(account.as_str())]);
    let rows = business.read(participant, get, timeout).await?;
    let row = rows.first().map(AccountRow::of).transpose()?;
    match &row {
        Some(row) => business
            .accounts()
            .put(account.as_str(), row.state.currency),
        None => business.accounts().forget(account.as_str()),
    }
    Ok(row)
}

/// Why a movement that was part of a failed transaction did not happen, as exactly as can be known.
pub async fn explain<E: Engine>(
    business: &Business<E>,
    movement: &Movement,
    currency: Option<Currency>,
    error: CallError,
    entry: Option<Entry>,
) -> CallError {
    let Some(reason) = reason_of(&error) else {
        return error;
    };
    let Some(told) = movement.told(&reason.code) else {
        return error;
    };
    let account = entry.and_then(|entry| movement.account(entry));
    let Some((entry, account)) = entry.zip(account) else {
        return because(error, told);
    };
    let precise = match read_account(business, account, READ_TIMEOUT).await {
        Ok(row) => movement.explain(entry, currency, row.as_ref().map(|row| &row.state)),
        Err(_) => None, // the transaction's own reason is the one that matters
    };
    because(error, precise.unwrap_or(told))
}

impl<E: Engine> BankGateway<E> {
    /// The service; inventory shares the business.
    pub fn new(business: Business<E>) -> Self {
        Self { business }
    }

    fn participant_of(&self, account: &AccountId) -> &str {
        self.business
            .placement()
            .participant_of(account.as_str())
            .as_str()
    }

    async fn open(&self, open: door::OpenAccount) -> Result<v1::Account, CallError> {
        let door::OpenAccount {
            account,
            currency,
            initial_balance,
            request,
        } = open;
        let gtrid = self.business.mint();
        let opened = rows::time_of(gtrid);
        let mut plan = Plan::default();
        let participant = self.business.placement().participant_of(account.as_str());
        let values = vec![
            text(account.as_str()),
            text(currency.as_str()),
            Value::Int(initial_balance),
            Value::DateTime(rows::datetime(&opened)),
        ];
        plan.push(participant, (), statement(OPEN, values));
        plan.push(
            participant,
            (),
            journal(gtrid, &account, "", initial_balance, ""),
        );
        let terms = Terms::new(request, DEFAULT_TIMEOUT);
        let run = self.business.run(gtrid, plan, &terms).await;
        match run {
            Ok(executed) if executed.replayed => {
                let kept = self.get(&account).await;
                kept.map_err(|_| CallError::not_shown(executed.gtrid))
            }
            Ok(_) => {
                self.business.accounts().put(account.as_str(), currency);
                let state = AccountState {
                    currency,
                    balance: initial_balance,
                };
                let row = AccountRow {
                    id: account.to_string(),
                    state,
                    opened,
                };
                Ok(row.on(participant.as_str()))
            }
            Err((error, _)) => Err(exists(error, &account)),
        }
    }

    async fn get(&self, account: &AccountId) -> Result<v1::Account, CallError> {
        let row = read_account(&self.business, account, READ_TIMEOUT).await?;
        let row = row.ok_or_else(|| no_account(account))?;
        Ok(row.on(self.participant_of(account)))
    }

    async fn move_money(
        &self,
        transfer: door::Transfer,
    ) -> Result<v1::TransferResponse, CallError> {
        let door::Transfer {
            from,
            to,
            amount,
            currency: asked,
            memo,
            request,
            timeout,
        } = transfer;
        let terms = Terms::new(request, timeout);
        let movement = Movement {
            from,
            to,
            amount,
            memo,
        };
        let executed = match self.agreed(&movement, asked, &terms).await {
            Ok(known) => self.run(&movement, known, &terms).await?,
            Err(reason) => self.business.repeated(&terms, reason).await?,
        };
        Ok(v1::TransferResponse {
            gtrid: executed.gtrid.to_string(),
            replayed: executed.replayed,
        })
    }

    /// What is known of a movement's accounts, and the currency that it has.
    async fn agreed(
        &self,
        movement: &Movement,
        asked: Option<Currency>,
        terms: &Terms,
    ) -> Result<(Accounts, Option<Currency>), Reason> {
        let ids = [&movement.from, &movement.to];
        let [from, to] = self.business.currencies(ids, terms.read_timeout()).await?;
        let accounts = Accounts { from, to };
        let currency = movement.agree(accounts, asked)?;
        terms.refuse_early(movement.missing(accounts))?;
        Ok((accounts, currency))
    }

    async fn run(
        &self,
        movement: &Movement,
        known: (Accounts, Option<Currency>),
        terms: &Terms,
    ) -> Result<Executed, CallError> {
        let gtrid = self.business.mint();
        let mut plan = Plan::default();
        let placement = self.business.placement();
        movement.plan(&mut plan, placement, gtrid, known, |entry| entry);
        match self.business.run(gtrid, plan, terms).await {
            Ok(executed) => Ok(executed),
            Err((error, entry)) => {
                Err(explain(&self.business, movement, known.1, error, entry).await)
            }
        }
    }

    async fn list(&self, page: &Page) -> Result<v1::ListAccountsResponse, CallError> {
        let limit = Value::Int(rows::limit(page.size));
        let list = statement(LIST, vec![rows::after(page)?, limit]);
        let parts = self.business.read_all(&list, |participant, row| {
            Ok(AccountRow::of(row)?.on(participant.as_str()))
        });
        let (accounts, more) = rows::merge(parts.await?, page.size, |account| {
            account.account_id.clone()
        });
        let end = accounts.last().filter(|_| more);
        let next_page_token = end
            .map(|account| page::token(door::ACCOUNTS, &account.account_id))
            .unwrap_or_default();
        Ok(v1::ListAccountsResponse {
            accounts,
            next_page_token,
        })
    }

    async fn journal_of(
        &self,
        list: &door::ListTransfers,
    ) -> Result<v1::ListTransfersResponse, CallError> {
        let door::ListTransfers { account, page } = list;
        let before = rows::before(page)?;
        let participant = self.business.placement().participant_of(account.as_str());
        let limit = Value::Int(rows::limit(page.size));
        let query = statement(LIST_JOURNAL, vec![text(account.as_str()), before, limit]);
        let found = self.business.read(participant, query, READ_TIMEOUT).await?;
        // Every account has an entry, that of its opening.
        if found.is_empty() && page.after.is_none() {
            return Err(no_account(account).into());
        }
        let entries: Result<Vec<_>, Reason> = found.iter().map(entry_of).collect();
        let (entries, more) = rows::merge([entries?], page.size, |_| ());
        let end = entries.last().filter(|_| more);
        let list = door::transfers_of(account.as_str());
        let next_page_token = end
            .map(|entry| page::token(&list, &entry.gtrid))
            .unwrap_or_default();
        Ok(v1::ListTransfersResponse {
            entries,
            next_page_token,
        })
    }
}

/// One row of [`LIST_JOURNAL`].
fn entry_of(row: &v1::Row) -> Result<v1::JournalEntry, Reason> {
    let mut cells = Cells::of(row);
    Ok(v1::JournalEntry {
        gtrid: cells.gtrid()?.to_string(),
        counterparty: cells.text()?,
        amount: cells.int()?,
        memo: cells.text()?,
        time: Some(cells.time()?),
    })
}

/// Nothing but the account's own key can refuse its insertion.
fn exists(error: CallError, account: &AccountId) -> CallError {
    match reason_of(&error) {
        Some(reason) if &*reason.code == code::CONSTRAINT_VIOLATED => {
            let message = format!("account {account} exists already");
            because(error, Reason::new(code::ACCOUNT_EXISTS, message))
        }
        Some(_) | None => error,
    }
}

#[tonic::async_trait]
impl<E: Engine> BankService for BankGateway<E> {
    async fn open_account(
        &self,
        request: Request<v1::OpenAccountRequest>,
    ) -> Result<Response<v1::OpenAccountResponse>, Status> {
        let open = door::open_account(request.get_ref())?;
        let account = self
            .open(open)
            .await
            .map_err(|error| status::of_call(&error))?;
        Ok(Response::new(v1::OpenAccountResponse {
            account: Some(account),
        }))
    }

    async fn get_account(
        &self,
        request: Request<v1::GetAccountRequest>,
    ) -> Result<Response<v1::GetAccountResponse>, Status> {
        let account = door::get_account(request.get_ref())?;
        let account = self
            .get(&account)
            .await
            .map_err(|error| status::of_call(&error))?;
        Ok(Response::new(v1::GetAccountResponse {
            account: Some(account),
        }))
    }

    async fn list_accounts(
        &self,
        request: Request<v1::ListAccountsRequest>,
    ) -> Result<Response<v1::ListAccountsResponse>, Status> {
        let page = door::list_accounts(request.get_ref())?;
        self.list(&page)
            .await
            .map(Response::new)
            .map_err(|error| status::of_call(&error))
    }

    async fn transfer(
        &self,
        request: Request<v1::TransferRequest>,
    ) -> Result<Response<v1::TransferResponse>, Status> {
        let transfer = door::transfer(request.into_inner())?;
        let moved = self.move_money(transfer).await;
        moved
            .map(Response::new)
            .map_err(|error| status::of_call(&error))
    }

    async fn list_transfers(
        &self,
        request: Request<v1::ListTransfersRequest>,
    ) -> Result<Response<v1::ListTransfersResponse>, Status> {
        let list = door::list_transfers(request.get_ref())?;
        self.journal_of(&list)
            .await
            .map(Response::new)
            .map_err(|error| status::of_call(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use concord_core::id::Gtrid;
    use concord_proto::v1::value::Kind;

    use crate::engine::Failure;

    fn row(kinds: Vec<Kind>) -> v1::Row {
        let values = kinds
            .into_iter()
            .map(|kind| v1::Value { kind: Some(kind) })
            .collect();
        v1::Row { values }
    }

    #[test]
    fn an_account_is_read_as_its_server_has_it() {
        let cells = |currency: &str| {
            row(vec![
                Kind::String("alice".into()),
                Kind::String(currency.into()),
                Kind::Int64(5),
                Kind::Datetime("2026-01-02 03:04:05.000000".into()),
            ])
        };
        let account = AccountRow::of(&cells("EUR")).unwrap().on("p2");
        assert_eq!((&*account.account_id, &*account.currency), ("alice", "EUR"));
        assert_eq!((account.balance, &*account.participant), (5, "p2"));
        assert_eq!(
            account.open_time.map(|time| time.seconds),
            Some(1_767_323_045)
        );
        let broken = AccountRow::of(&cells("E")).map_err(|reason| reason.code);
        assert_eq!(broken, Err(code::UNEXPECTED_ANSWER.into()));
    }

    #[test]
    fn an_entry_of_the_journal_is_read() {
        let entry = entry_of(&row(vec![
            Kind::Bytes(vec![0x11; 16]),
            Kind::String("bob".into()),
            Kind::Int64(-70),
            Kind::String("rent".into()),
            Kind::Datetime("2026-01-02 03:04:05".into()),
        ]))
        .unwrap();
        assert_eq!(entry.gtrid, "11111111-1111-1111-1111-111111111111");
        assert_eq!(
            (&*entry.counterparty, entry.amount, &*entry.memo),
            ("bob", -70, "rent")
        );
    }

    #[test]
    fn a_second_account_of_one_id_exists_already() {
        let account = AccountId::parse("alice").unwrap();
        let aborted = |code: &str| {
            CallError::Failure(Failure::Aborted {
                gtrid: Gtrid::MIN,
                reason: Reason::new(code, "?"),
                participant: None,
                branch_index: None,
                failed_statement: None,
            })
        };
        let error = exists(aborted(code::CONSTRAINT_VIOLATED), &account);
        assert_eq!(
            reason_of(&error).map(|r| &*r.code),
            Some(code::ACCOUNT_EXISTS)
        );
        let error = exists(aborted(code::DEADLOCK), &account);
        assert_eq!(error, aborted(code::DEADLOCK));
    }
}
