//! Money that moves from one account to another: its statements, and why it did not move.
//!
//! Transfers and the payments of orders use it. It owns the SQL that changes balances. It refuses
//! to read: what it needs to know is given to it, so that all of it can be tested without a server.
//!
//! Every guard is a write. A read lock would not survive a crash of the server between prepare
//! and decision; a changed row does.

use concord_core::id::Gtrid;
use concord_core::reason::{Reason, code};
use concord_proto::convert::{AccountId, Currency};
use concord_proto::model::{Statement, Value};

use crate::gateway::business::NO_CURRENCY;
use crate::gateway::placement::Placement;
use crate::gateway::plan::{Plan, guard, id_of, statement, text};
use crate::gateway::turns::RowKey;

/// The largest balance, in minor units. Far enough below 2^63 that a balance at the limit plus the
/// largest amount is still a BIGINT.
pub const BALANCE_MAX: i64 = 1_000_000_000_000_000_000;

const DEBIT: &str = "UPDATE concord_bank.accounts SET balance = balance - ? \
                     WHERE id = ? AND currency = ? AND balance >= ?";
const CREDIT: &str = "UPDATE concord_bank.accounts SET balance = balance + ? \
                      WHERE id = ? AND currency = ? AND balance <= ?";
const JOURNAL: &str = "INSERT INTO concord_bank.journal \
                       (gtrid, account_id, counterparty, amount, memo, created) \
                       VALUES (?, ?, ?, ?, ?, UTC_TIMESTAMP(6))";

/// What is to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    /// Debited.
    pub from: AccountId,
    /// Credited; another one.
    pub to: AccountId,
    /// In minor units, not negative.
    pub amount: i64,
    /// For the journal.
    pub memo: String,
}

/// The meaning of one of its statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Takes the amount, when the balance allows.
    Debit,
    /// Gives it, when the limit allows.
    Credit,
    /// Writes it down.
    Journal,
}

/// What is known of the two accounts before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// Of the debited one; none when it does not exist.
    pub from: Option<Currency>,
    /// Of the credited one.
    pub to: Option<Currency>,
}

/// An account as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountState {
    /// Its currency.
    pub currency: Currency,
    /// Its balance.
    pub balance: i64,
}

impl Movement {
    /// The one currency of the accounts that exist, and of what is `asked`.
    pub fn agree(
        &self,
        accounts: Accounts,
        asked: Option<Currency>,
    ) -> Result<Option<Currency>, Reason> {
        if let (Some(from), Some(to)) = (accounts.from, accounts.to)
            && from != to
        {
            let Self {
                from: debited,
                to: credited,
                ..
            } = self;
            return Err(Reason::new(
                code::CURRENCY_MISMATCH,
                format!("account {debited} is kept in {from}, account {credited} in {to}"),
            ));
        }
        for (account, currency) in [(&self.from, accounts.from), (&self.to, accounts.to)] {
            if let (Some(asked), Some(currency)) = (asked, currency)
                && asked != currency
            {
                return Err(wrong_currency(account, currency, asked.as_str()));
            }
        }
        Ok(accounts.from.or(accounts.to).or(asked))
    }

    /// The refusal when one of the accounts does not exist.
    pub fn missing(&self, accounts: Accounts) -> Option<Reason> {
        if accounts.from.is_none() {
            return Some(no_account(&self.from));
        }
        accounts.to.is_none().then(|| no_account(&self.to))
    }

    /// Adds the statements, by account id, so that two movements between the same accounts of one
    /// server lock them in the same order, and so that a repeated request has the same first
    /// branch.
    ///
    /// The reasons of the guards are exact where the accounts are known: an account is never
    /// deleted and its currency never changes, so only the balance can have refused.
    pub fn plan<R: Copy>(
        &self,
        plan: &mut Plan<R>,
        placement: &Placement,
        gtrid: Gtrid,
        (accounts, currency): (Accounts, Option<Currency>),
        role: impl Fn(Entry) -> R,
    ) {
        let currency = currency.as_ref().map_or(NO_CURRENCY, Currency::as_str);
        let debit_code = match accounts.from {
            Some(_) => code::INSUFFICIENT_FUNDS,
            None => code::ACCOUNT_NOT_FOUND,
        };
        let credit_code = match accounts.to {
            Some(_) => code::LIMIT_EXCEEDED,
            None => code::ACCOUNT_NOT_FOUND,
        };
        let params = |account: &AccountId, bound: i64| {
            vec![
                Value::Int(self.amount),
                text(account.as_str()),
                text(currency),
                Value::Int(bound),
            ]
        };
        let debit = guard(DEBIT, params(&self.from, self.amount), debit_code);
        let credit = guard(
            CREDIT,
            params(&self.to, BALANCE_MAX - self.amount),
            credit_code,
        );
        let taken = journal(
            gtrid,
            &self.from,
            self.to.as_str(),
            -self.amount,
            &self.memo,
        );
        let given = journal(gtrid, &self.to, self.from.as_str(), self.amount, &self.memo);
        let mut sides = [
            (&self.from, Entry::Debit, debit, taken),
            (&self.to, Entry::Credit, credit, given),
        ];
        sides.sort_by_key(|(account, ..)| *account);
        for (account, entry, guard, written) in sides {
            let participant = placement.participant_of(account.as_str());
            plan.touches(RowKey::Account(account.as_str().into()));
            plan.push(participant, role(entry), guard);
            plan.push(participant, role(Entry::Journal), written);
        }
    }

    /// The account that an entry's guard is about.
    pub fn account(&self, entry: Entry) -> Option<&AccountId> {
        match entry {
            Entry::Debit => Some(&self.from),
            Entry::Credit => Some(&self.to),
            Entry::Journal => None,
        }
    }

    /// Why a guard refused, from its account as it was read afterwards. None when the account
    /// would pass the guard now: then the guard's own word stands.
    pub fn explain(
        &self,
        entry: Entry,
        currency: Option<Currency>,
        state: Option<&AccountState>,
    ) -> Option<Reason> {
        let account = self.account(entry)?;
        let Some(state) = state else {
            return Some(no_account(account));
        };
        if let Some(currency) = currency
            && currency != state.currency
        {
            return Some(wrong_currency(account, state.currency, currency.as_str()));
        }
        let (balance, amount) = (state.balance, self.amount);
        match entry {
            Entry::Debit if balance < amount => Some(Reason::new(
                code::INSUFFICIENT_FUNDS,
                format!("account {account} holds {balance}, and {amount} are needed"),
            )),
            Entry::Credit if balance > BALANCE_MAX - amount => {
                Some(Reason::new(code::LIMIT_EXCEEDED, over_limit(account)))
            }
            Entry::Debit | Entry::Credit | Entry::Journal => None,
        }
    }

    /// A guard's code in words, when its account was not read: a refusal of an earlier attempt.
    pub fn told(&self, code: &str) -> Option<Reason> {
        let Self {
            from, to, amount, ..
        } = self;
        let message = match code {
            code::INSUFFICIENT_FUNDS => format!("account {from} held less than {amount}"),
            code::LIMIT_EXCEEDED => over_limit(to),
            code::ACCOUNT_NOT_FOUND => format!("account {from} or {to} did not exist"),
            _ => return None,
        };
        Some(Reason::new(code, message))
    }
}

/// A statement that adds an entry to an account's journal; without counterparty, the opening
/// balance.
pub fn journal(
    gtrid: Gtrid,
    account: &AccountId,
    counterparty: &str,
    amount: i64,
    memo: &str,
) -> Statement {
    let params = vec![
        id_of(gtrid),
        text(account.as_str()),
        text(counterparty),
        Value::Int(amount),
        text(memo),
    ];
    statement(JOURNAL, params)
}

/// No such account.
pub fn no_account(account: &AccountId) -> Reason {
    Reason::new(
        code::ACCOUNT_NOT_FOUND,
        format!("account {account} does not exist"),
    )
}

fn wrong_currency(account: &AccountId, currency: Currency, asked: &str) -> Reason {
    let message = format!("account {account} is kept in {currency}, not in {asked}");
    Reason::new(code::CURRENCY_MISMATCH, message)
}

fn over_limit(account: &AccountId) -> String {
    format!("the balance of account {account} would grow over {BALANCE_MAX}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use concord_core::id::ParticipantName;

    const GTRID: Gtrid = Gtrid([9; 16]);

    fn account(id: &str) -> AccountId {
        AccountId::parse(id).unwrap()
    }

    fn currency(code: &str) -> Option<Currency> {
        Currency::parse(code)
    }

    fn movement(from: &str, to: &str) -> Movement {
        Movement {
            from: account(from),
            to: account(to),
            amount: 70,
            memo: "rent".into(),
        }
    }

    /// "alice" (slot 71) is on p1, "ACC-0001" (slot 625) on p2 and "a" (slot 579) too.
    fn placement() -> Placement {
        let names = ["p1", "p2"].map(ParticipantName::new);
        Placement::new(Placement::initial(&names)).unwrap()
    }

    fn known(from: &str, to: &str) -> Accounts {
        Accounts {
            from: currency(from),
            to: currency(to),
        }
    }

    /// Participant, then each statement as its first words, its role and its guard's code.
    fn planned(movement: &Movement, accounts: Accounts) -> Vec<String> {
        let mut plan = Plan::default();
        let common = (accounts, accounts.from.or(accounts.to));
        movement.plan(&mut plan, &placement(), GTRID, common, |entry| entry);
        let (works, roles) = plan.split();
        let mut lines = Vec::new();
        for (b, work) in works.iter().enumerate() {
            lines.push(work.participant.to_string());
            for (s, statement) in work.statements.iter().enumerate() {
                let code = statement
                    .expect
                    .as_ref()
                    .map_or("-", |expect| &*expect.reason);
                let role = roles.at(Some(b), Some(s)).unwrap();
                let params: Vec<String> = statement
                    .params
                    .iter()
                    .skip(usize::from(code == "-"))
                    .map(show)
                    .collect();
                assert_eq!(statement.params.len(), statement.sql.matches('?').count());
                lines.push(format!("{role:?} {code} {}", params.join(",")));
            }
        }
        lines
    }

    fn show(value: &Value) -> String {
        match value {
            Value::Int(number) => number.to_string(),
            Value::String(text) => text.clone(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn two_servers_have_a_guard_and_an_entry_each() {
        assert_eq!(
            planned(&movement("alice", "a"), known("EUR", "EUR")),
            [
                "p2",
                "Credit LIMIT_EXCEEDED 70,a,EUR,999999999999999930",
                "Journal - a,alice,70,rent",
                "p1",
                "Debit INSUFFICIENT_FUNDS 70,alice,EUR,70",
                "Journal - alice,a,-70,rent",
            ]
        );
    }

    #[test]
    fn one_server_has_one_branch_and_both_directions_lock_in_the_same_order() {
        let there = planned(&movement("a", "ACC-0006"), known("EUR", "EUR"));
        let back = planned(&movement("ACC-0006", "a"), known("EUR", "EUR"));
        assert_eq!((there.len(), &*there[0]), (5, "p2"));
        assert_eq!(
            (&*there[1], &*back[1]),
            (
                "Credit LIMIT_EXCEEDED 70,ACC-0006,EUR,999999999999999930",
                "Debit INSUFFICIENT_FUNDS 70,ACC-0006,EUR,70",
            )
        );
    }

    #[test]
    fn the_guard_of_an_unknown_account_says_so() {
        let lines = planned(&movement("alice", "a"), known("EUR", ""));
        assert_eq!(
            lines[1],
            "Credit ACCOUNT_NOT_FOUND 70,a,EUR,999999999999999930"
        );
        let lines = planned(&movement("alice", "a"), known("", ""));
        assert_eq!(lines[4], "Debit ACCOUNT_NOT_FOUND 70,alice,---,70");
        assert_eq!(Currency::parse(NO_CURRENCY), None);
    }

    #[test]
    fn the_currency_is_one() {
        let movement = movement("alice", "a");
        let eur = currency("EUR");
        for (accounts, asked, agreed) in [
            (known("EUR", "EUR"), None, Ok(eur)),
            (known("EUR", "EUR"), eur, Ok(eur)),
            (known("", "EUR"), None, Ok(eur)),
            (known("EUR", ""), eur, Ok(eur)),
            (known("", ""), eur, Ok(eur)),
            (known("", ""), None, Ok(None)),
            (
                known("EUR", "USD"),
                None,
                Err("alice is kept in EUR, account a in USD"),
            ),
            (
                known("USD", "USD"),
                eur,
                Err("alice is kept in USD, not in EUR"),
            ),
            (known("", "USD"), eur, Err("a is kept in USD, not in EUR")),
        ] {
            let result = movement.agree(accounts, asked);
            let expected = agreed.map_err(|text| format!("CURRENCY_MISMATCH: account {text}"));
            assert_eq!(result.map_err(|reason| reason.to_string()), expected);
        }
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let movement = movement("alice", "a");
        let message = |accounts| movement.missing(accounts).map(|reason| reason.to_string());
        let no = |id| Some(format!("ACCOUNT_NOT_FOUND: account {id} does not exist"));
        assert_eq!(message(known("", "EUR")), no("alice"));
        assert_eq!(message(known("EUR", "")), no("a"));
        assert_eq!(message(known("EUR", "EUR")), None);
    }

    #[test]
    fn a_refusal_is_explained_by_the_account_as_it_is_now() {
        let movement = movement("alice", "a");
        let state = |code: &str, balance| AccountState {
            currency: currency(code).unwrap(),
            balance,
        };
        for (entry, state, code) in [
            (Entry::Debit, None, Some(code::ACCOUNT_NOT_FOUND)),
            (Entry::Credit, None, Some(code::ACCOUNT_NOT_FOUND)),
            (
                Entry::Debit,
                Some(state("EUR", 69)),
                Some(code::INSUFFICIENT_FUNDS),
            ),
            (Entry::Debit, Some(state("EUR", 70)), None),
            (
                Entry::Debit,
                Some(state("USD", 70)),
                Some(code::CURRENCY_MISMATCH),
            ),
            (Entry::Credit, Some(state("EUR", BALANCE_MAX - 70)), None),
            (
                Entry::Credit,
                Some(state("EUR", BALANCE_MAX - 69)),
                Some(code::LIMIT_EXCEEDED),
            ),
            (Entry::Journal, None, None),
        ] {
            let reason = movement.explain(entry, currency("EUR"), state.as_ref());
            assert_eq!(
                reason.as_ref().map(|r| &*r.code),
                code,
                "{entry:?} {state:?}"
            );
        }
        let poor = movement.explain(Entry::Debit, currency("EUR"), Some(&state("EUR", 5)));
        let message = poor.map(|reason| reason.message.to_string());
        assert_eq!(
            message.as_deref(),
            Some("account alice holds 5, and 70 are needed")
        );
    }

    #[test]
    fn an_older_refusal_is_told_by_its_code() {
        let movement = movement("alice", "a");
        let told = |code| movement.told(code).map(|reason| reason.message.to_string());
        assert_eq!(
            told(code::INSUFFICIENT_FUNDS).as_deref(),
            Some("account alice held less than 70")
        );
        assert_eq!(told(code::LOCK_TIMEOUT), None);
    }
}
