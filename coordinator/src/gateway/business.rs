//! What bank and inventory share: the engine, the placement, the tables, and what is known.
//!
//! It owns the way of a planned transaction to the engine and back. It refuses to know money from
//! stock.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use concord_core::id::{Gtrid, ParticipantName, Request};
use concord_core::limits::TIMEOUT_DEFAULT_MS;
use concord_core::reason::{Reason, code};
use concord_proto::convert::{AccountId, Currency, ProductId};
use concord_proto::model::Statement;
use concord_proto::v1;
use futures::future::{try_join, try_join_all};
use tokio::time::Instant;

use super::bank::read_account;
use super::inventory::read_product;
use super::known::Known;
use super::migrations::Migrations;
use super::placement::Placement;
use super::plan::{Plan, Roles};
use super::turns::{Held, RowKey, Turns};
use crate::engine::{AckMode, Engine, Executed, Failure, OneShot};

/// Time for one read outside a transaction: it waits for no row lock, so a server that needs
/// longer is in trouble.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Time-out of a call that has no field for one.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(TIMEOUT_DEFAULT_MS as u64);
/// Longest turn at a row. A transaction that needs longer waits for a server that is away, or for a
/// lock: meanwhile others may still get at its rows on the servers that are there.
const TURN_MAX: Duration = Duration::from_millis(500);
/// A currency's bytes where no account or product was found that has one: it equals none, because
/// all have capitals.
pub const NO_CURRENCY: &str = "---";

/// What never changes about a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Of one piece, in minor units.
    pub price: i64,
    /// Its currency.
    pub currency: Currency,
}

/// What bank and inventory share. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Business<E>(Arc<Shared<E>>);

struct Shared<E> {
    engine: E,
    placement: Placement,
    migrations: Migrations,
    accounts: Known<Currency>,
    products: Known<Price>,
    turns: Arc<Turns>,
}

impl<E> fmt::Debug for Business<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Business")
            .field("migrations", &self.0.migrations)
            .finish_non_exhaustive()
    }
}

/// Why a call of the gateway has no good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Nothing was begun.
    Reason(Reason),
    /// A transaction was.
    Failure(Failure),
}

impl CallError {
    /// Of a request that took effect before, when what it made cannot be shown now. That is no
    /// refusal: the caller may ask again, by what it named or by the gtrid.
    pub fn not_shown(gtrid: Gtrid) -> Self {
        Self::Failure(Failure::Unknown { gtrid })
    }
}

impl From<Reason> for CallError {
    fn from(reason: Reason) -> Self {
        Self::Reason(reason)
    }
}

/// How a transaction is run, beside what it does.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The client's request.
    pub request: Option<Request>,
    /// When the whole call must be decided.
    pub deadline: Instant,
}

impl Terms {
    /// From now on.
    pub fn new(request: Option<Request>, timeout: Duration) -> Self {
        Self {
            request,
            deadline: Instant::now() + timeout,
        }
    }

    /// Time for a read before the transaction.
    pub fn read_timeout(&self) -> Duration {
        self.deadline
            .saturating_duration_since(Instant::now())
            .min(READ_TIMEOUT)
    }

    /// Refuses for what is missing, before a transaction is begun. A request with an id is refused
    /// by a transaction instead, so that its retry is refused too, even when somebody has made what
    /// is missing by then.
    pub fn refuse_early(&self, missing: Option<Reason>) -> Result<(), Reason> {
        match missing {
            Some(missing) if self.request.is_none() => Err(missing),
            Some(_) | None => Ok(()),
        }
    }

    fn remaining(&self) -> Result<Duration, Reason> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            let message = "the time-out passed before the transaction was begun";
            return Err(Reason::new(code::DEADLINE_EXCEEDED, message));
        }
        Ok(left)
    }
}

impl<E: Engine> Business<E> {
    /// Around a driver, with the cluster's slot map.
    pub fn new(engine: E, placement: Placement) -> Self {
        let migrations = Migrations::new(&engine.participants());
        Self(Arc::new(Shared {
            engine,
            placement,
            migrations,
            accounts: Known::default(),
            products: Known::default(),
            turns: Arc::default(),
        }))
    }

    /// Where things live.
    pub fn placement(&self) -> &Placement {
        &self.0.placement
    }

    /// Which servers have the tables. The links call its `forget` when they reconnect.
    pub fn migrations(&self) -> &Migrations {
        &self.0.migrations
    }

    /// Known currencies of accounts.
    pub fn accounts(&self) -> &Known<Currency> {
        &self.0.accounts
    }

    /// Known prices of products.
    pub fn products(&self) -> &Known<Price> {
        &self.0.products
    }

    /// A new transaction id.
    pub fn mint(&self) -> Gtrid {
        self.0.engine.mint()
    }

    /// Reads rows of the gateway's own tables on one participant.
    pub async fn read(
        &self,
        participant: &ParticipantName,
        statement: Statement,
        timeout: Duration,
    ) -> Result<Vec<v1::Row>, Reason> {
        self.ensure_tables(std::iter::once(participant), timeout)
            .await?;
        match self.0.engine.query(participant, statement, timeout).await {
            Ok(result) => Ok(result.result),
            Err(reason) => {
                self.doubt_tables(&reason, participant);
                Err(not_the_callers(reason))
            }
        }
    }

    /// Reads the same on every participant that has slots, and maps the rows.
    pub async fn read_all<T: Send>(
        &self,
        statement: &Statement,
        map: impl Fn(&ParticipantName, &v1::Row) -> Result<T, Reason> + Sync,
    ) -> Result<Vec<Vec<T>>, Reason> {
        let map = &map;
        try_join_all(
            self.placement()
                .participants()
                .iter()
                .map(|participant| async move {
                    let rows = self
                        .read(participant, statement.clone(), READ_TIMEOUT)
                        .await?;
                    rows.iter().map(|row| map(participant, row)).collect()
                }),
        )
        .await
    }

    /// The currencies of two accounts; none for an account that does not exist.
    pub async fn currencies(
        &self,
        [first, second]: [&AccountId; 2],
        timeout: Duration,
    ) -> Result<[Option<Currency>; 2], Reason> {
        let (first, second) = try_join(
            self.currency(first, timeout),
            self.currency(second, timeout),
        )
        .await?;
        Ok([first, second])
    }

    async fn currency(
        &self,
        account: &AccountId,
        timeout: Duration,
    ) -> Result<Option<Currency>, Reason> {
        if let Some(currency) = self.accounts().get(account.as_str()) {
            return Ok(Some(currency));
        }
        let row = read_account(self, account, timeout).await?;
        Ok(row.map(|row| row.state.currency))
    }

    /// The products' prices, in order; none for a product that does not exist.
    pub async fn prices(
        &self,
        products: impl Iterator<Item = &ProductId>,
        timeout: Duration,
    ) -> Result<Vec<Option<Price>>, Reason> {
        try_join_all(products.map(|product| async move {
            if let Some(price) = self.products().get(product.as_str()) {
                return Ok(Some(price));
            }
            let row = read_product(self, product, timeout).await?;
            Ok(row.map(|row| row.state.price))
        }))
        .await
    }

    /// Runs a planned transaction. A request that had taken effect before, however that was found
    /// out, is a success.
    pub async fn run<R: Copy + Send>(
        &self,
        gtrid: Gtrid,
        mut plan: Plan<R>,
        terms: &Terms,
    ) -> Result<Executed, (CallError, Option<R>)> {
        let rows = plan.take_rows();
        let (turn, timeout) = match self.admitted(plan.participants(), rows, terms).await {
            Ok(admitted) => admitted,
            Err(reason) => {
                let repeated = self.repeated(terms, reason).await;
                return repeated.map_err(|error| (error, None));
            }
        };
        let (branches, roles) = plan.split();
        let request = terms.request.clone();
        let ack = AckMode::Applied;
        let tx = OneShot {
            gtrid,
            branches,
            request,
            isolation: None,
            ack,
            timeout,
        };
        let mut execute = pin!(self.0.engine.execute(tx));
        let executed = match tokio::time::timeout(TURN_MAX, &mut execute).await {
            Ok(executed) => executed,
            Err(_) => {
                drop(turn);
                execute.await
            }
        };
        let failure = match executed {
            Ok(executed) => return Ok(executed),
            Err(failure) => failure,
        };
        if let Failure::Aborted {
            reason,
            participant: Some(participant),
            ..
        } = &failure
        {
            self.doubt_tables(reason, participant);
        }
        let role = failed_role(&failure, &roles);
        Err((CallError::Failure(failure), role))
    }

    /// All that a transaction waits for before it is begun, and the time that it has then.
    async fn admitted(
        &self,
        participants: impl Iterator<Item = &ParticipantName>,
        rows: Vec<RowKey>,
        terms: &Terms,
    ) -> Result<(Held, Duration), Reason> {
        self.ensure_tables(participants, terms.remaining()?).await?;
        let turn = self.turn(rows, terms).await?;
        Ok((turn, terms.remaining()?))
    }

    /// What a call comes to that could not even be begun. Its request may have taken effect
    /// before, and then that is the answer, whatever stands in the way today.
    pub async fn repeated(&self, terms: &Terms, reason: Reason) -> Result<Executed, CallError> {
        let Some(request) = terms.request.clone() else {
            return Err(reason.into());
        };
        match self.0.engine.repeat(request).await {
            Some(Ok(executed)) => Ok(executed),
            Some(Err(failure)) => Err(CallError::Failure(failure)),
            None => Err(reason.into()),
        }
    }

    /// Waits until no other transaction of this gateway is at these rows.
    async fn turn(&self, rows: Vec<RowKey>, terms: &Terms) -> Result<Held, Reason> {
        tokio::time::timeout_at(terms.deadline, self.0.turns.take(rows))
            .await
            .map_err(|_| {
                let message = "transactions before this one still work on the same accounts or \
                               products; try again";
                Reason::new(code::LOCK_TIMEOUT, message)
            })
    }

    /// Brings the tables to these servers, if that can be done in time. Who gives up leaves nothing
    /// that the next call cannot repeat.
    async fn ensure_tables(
        &self,
        participants: impl Iterator<Item = &ParticipantName>,
        timeout: Duration,
    ) -> Result<(), Reason> {
        let ensured = self.0.migrations.ensure(&self.0.engine, participants);
        let ensured = tokio::time::timeout(timeout, ensured).await;
        let ensured = ensured.unwrap_or_else(|_| {
            let message = "a server's tables were not brought up to date in time; try again";
            Err(Reason::new(code::DEADLINE_EXCEEDED, message))
        });
        ensured.map_err(not_the_callers)
    }

    /// A statement of the gateway's own that the server does not understand means that its tables
    /// are gone: another server, or a restored backup.
    fn doubt_tables(&self, reason: &Reason, participant: &ParticipantName) {
        if matches!(
            &*reason.code,
            code::STATEMENT_FAILED | code::INCARNATION_CHANGED
        ) {
            self.0.migrations.forget(participant);
        }
    }
}

/// A statement of the gateway's own was refused. The caller's request is not settled by that: it
/// may have taken effect before.
fn not_the_callers(reason: Reason) -> Reason {
    if !reason.kind().is_final() || &*reason.code == code::PARTICIPANT_NOT_FOUND {
        return reason;
    }
    let message = format!("the server refused a statement of the gateway's own ({reason})");
    Reason::new(code::UNEXPECTED_ANSWER, message)
}

fn failed_role<R: Copy>(failure: &Failure, roles: &Roles<R>) -> Option<R> {
    match failure {
        Failure::Aborted {
            branch_index,
            failed_statement,
            ..
        } => roles.at(*branch_index, *failed_statement),
        Failure::Unknown { .. } | Failure::Refused(_) => None,
    }
}

/// The same failure for a more precise reason.
pub fn because(error: CallError, reason: Reason) -> CallError {
    match error {
        CallError::Failure(Failure::Aborted {
            gtrid,
            participant,
            branch_index,
            failed_statement,
            ..
        }) => CallError::Failure(Failure::Aborted {
            gtrid,
            reason,
            participant,
            branch_index,
            failed_statement,
        }),
        other => other,
    }
}

/// The reason for which a transaction was aborted.
pub fn reason_of(error: &CallError) -> Option<&Reason> {
    match error {
        CallError::Failure(Failure::Aborted { reason, .. }) => Some(reason),
        CallError::Failure(Failure::Unknown { .. } | Failure::Refused(_))
        | CallError::Reason(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::engine::Migration;
    use crate::gateway::plan::statement;

    fn aborted(code: &str, message: &str) -> Failure {
        Failure::Aborted {
            gtrid: Gtrid::MIN,
            reason: Reason::new(code, message),
            participant: None,
            branch_index: Some(1),
            failed_statement: Some(0),
        }
    }

    #[test]
    fn a_more_precise_reason_keeps_the_rest() {
        let error = CallError::Failure(aborted("INSUFFICIENT_FUNDS", "0 rows"));
        let precise = because(error, Reason::new("ACCOUNT_NOT_FOUND", "gone"));
        assert_eq!(
            reason_of(&precise).map(|r| &*r.code),
            Some("ACCOUNT_NOT_FOUND")
        );
        let unknown = CallError::Failure(Failure::Unknown { gtrid: Gtrid::MIN });
        assert_eq!(because(unknown.clone(), Reason::new("X", "")), unknown);
    }

    /// The first transaction's participant is away for ever, the others' are not.
    #[derive(Clone)]
    struct Away(Arc<AtomicU32>);

    impl Engine for Away {
        fn mint(&self) -> Gtrid {
            Gtrid::MIN
        }

        async fn execute(&self, tx: OneShot) -> Result<Executed, Failure> {
            if self.0.fetch_add(1, Ordering::SeqCst) == 0 {
                std::future::pending::<()>().await;
            }
            Ok(Executed {
                gtrid: tx.gtrid,
                results: Vec::new(),
                replayed: false,
            })
        }

        async fn repeat(&self, _: Request) -> Option<Result<Executed, Failure>> {
            None
        }

        async fn query(
            &self,
            _: &ParticipantName,
            _: Statement,
            _: Duration,
        ) -> Result<v1::StatementResult, Reason> {
            Ok(v1::StatementResult::default())
        }

        async fn migrate(
            &self,
            _: &ParticipantName,
            _: &str,
            _: &[Migration],
        ) -> Result<(), Reason> {
            Ok(())
        }

        fn participants(&self) -> Vec<ParticipantName> {
            vec![ParticipantName::new("p1")]
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_transaction_that_waits_for_a_server_does_not_keep_its_turn() {
        let engine = Away(Arc::default());
        let slots = Placement::initial(&engine.participants());
        let business = Business::new(engine.clone(), Placement::new(slots).unwrap());
        let run = |business: Business<Away>| async move {
            let mut plan = Plan::default();
            plan.touches(RowKey::Account("a".into()));
            plan.push(
                &ParticipantName::new("p1"),
                (),
                statement("SELECT 1", Vec::new()),
            );
            let terms = Terms::new(None, Duration::from_secs(60));
            business.run(Gtrid::MIN, plan, &terms).await
        };
        let stuck = tokio::spawn(run(business.clone()));
        while engine.0.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let next = tokio::time::timeout(10 * TURN_MAX, run(business)).await;
        assert!(matches!(next, Ok(Ok(_))), "{next:?}");
        assert!(!stuck.is_finished());
        stuck.abort();
    }

    #[test]
    fn time_that_has_passed_begins_nothing() {
        let terms = Terms::new(None, Duration::ZERO);
        let reason = terms.remaining().map_err(|reason| reason.code);
        assert_eq!(reason, Err(code::DEADLINE_EXCEEDED.into()));
    }
}
