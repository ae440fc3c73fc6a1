//! XA on MySQL and MariaDB.
//!
//! [`MySql`] keeps the contract of [`ResourceManager`] on a real server. It owns the connections,
//! the ledger schema and the look at the server's settings; it refuses to know the protocol.
//! The facts about both servers that the code rests on are in section 5 of the design.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use concord_core::id::{BranchId, Gtrid};
use concord_core::reason::Reason;
use concord_core::record::ParticipantRecord;
use concord_proto::model::{Isolation, Statement, Work};
use concord_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant as Deadline;

use self::branches::Branches;
use self::detached::Detached;
use self::natives::Natives;
use self::pool::{CONTROL_CONNECTIONS, Class, Pool};
use self::preflight::Facts;
use self::sql::Judge;
use self::tables::Tables;
use self::witness::Witnesses;
use self::xa::Xids;
use super::{
    Connections, Durable, Finished, Health, LedgerEntry, OnePhase, Prepared, Recovered,
    ResourceManager,
};
use crate::migrate::Plan;

pub mod answers;
mod branches;
pub mod calls;
mod check;
mod detached;
pub mod error;
pub(crate) mod expressions;
mod finish;
pub mod functions;
mod housekeeping;
mod interactive;
mod leases;
pub mod ledger;
pub mod lexer;
pub mod literal;
mod migrate;
mod natives;
pub mod options;
pub(crate) mod parse;
mod pool;
mod preflight;
pub mod rows;
mod script;
pub mod sql;
mod tables;
mod unfinished;
mod witness;
mod work;
pub mod xa;

pub use self::options::{Address, Options, Secret, Tls};

/// Longest time for the end of a connection.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time between two looks at a server that is away, in ms: what its prepared branches wait
/// for after it is back.
const AWAY_INTERVAL_MS: u64 = 100;

/// One MySQL or MariaDB server.
#[derive(Debug)]
pub struct MySql {
    pool: Arc<Pool>,
    judge: Judge,
    tables: Tables,
    natives: Natives,
    xids: Xids,
    branches: Arc<Branches>,
    detached: Detached,
    facts: Mutex<Option<Arc<Facts>>>,
    /// Held while the server is looked at.
    checking: tokio::sync::Mutex<()>,
    health: watch::Sender<Health>,
    /// Below it the ledger has rows with request ids only. They are many and stay for long, so
    /// that nobody reads over them twice.
    pruned: Mutex<Gtrid>,
    /// The last commits.
    witnesses: Witnesses,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl MySql {
    /// Begins to work with a server, which need not be up. Must be called within a tokio runtime.
    pub fn start(options: Options) -> Arc<Self> {
        let interval = options.check_interval;
        let (pool, kills) = Pool::new(options);
        let this = Arc::new(Self {
            xids: Xids::new(&pool.options().cluster),
            judge: Judge::default(),
            tables: Tables::default(),
            natives: Natives::default(),
            branches: Arc::default(),
            detached: Detached::default(),
            facts: Mutex::default(),
            checking: tokio::sync::Mutex::default(),
            health: watch::Sender::new(Health::default()),
            pruned: Mutex::new(Gtrid::MIN),
            witnesses: Witnesses::default(),
            tasks: Mutex::default(),
            pool,
        });
        let tasks = vec![
            tokio::spawn(end_for(Arc::downgrade(&this.pool), kills)),
            tokio::spawn(keep_watching(Arc::downgrade(&this), interval)),
        ];
        *this.lock_tasks() = tasks;
        this
    }

    fn lock_tasks(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MySql {
    fn drop(&mut self) {
        for task in self.lock_tasks().drain(..) {
            task.abort();
        }
    }
}

/// Ends connections whose work was given up, so that their locks go at once.
async fn end_for(pool: Weak<Pool>, mut kills: mpsc::UnboundedReceiver<u64>) {
    let mut ending = JoinSet::new();
    while let Some(id) = kills.recv().await {
        let Some(pool) = pool.upgrade() else { return };
        ending.spawn(async move {
            let deadline = Deadline::now() + END_TIMEOUT;
            // A server that cannot be reached has nothing to end, or closes the connection itself.
            let _ = pool.end(Class::Control, id, deadline).await;
        });
        while ending.try_join_next().is_some() {}
    }
}

/// Looks at the server again and again, so that its health is known before somebody needs it, and
/// so that one that was away is found as soon as it is back: branches in doubt wait for it.
async fn keep_watching(this: Weak<MySql>, interval: Duration) {
    let Some(mut health) = this.upgrade().map(|this| this.health.subscribe()) else {
        return;
    };
    loop {
        {
            let Some(this) = this.upgrade() else { return };
            this.pool.close_idle(false);
            // What was found is in the health.
            let _ = this.check(true).await;
        }
        let reachable = health.borrow_and_update().reachable;
        let pause = if reachable {
            interval
        } else {
            interval.min(Duration::from_millis(AWAY_INTERVAL_MS))
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Somebody else found out that it is away.
            _ = health.wait_for(|health| !health.reachable), if reachable => {}
        }
    }
}

impl ResourceManager for MySql {
    async fn begin(
        &self,
        branch: BranchId,
        isolation: Option<Isolation>,
        timeout: Duration,
    ) -> Result<(), Reason> {
        self.begin_branch(branch, isolation, timeout).await
    }

    async fn execute(
        &self,
        branch: BranchId,
        statement: &Statement,
    ) -> Result<v1::StatementResult, Reason> {
        self.execute_statement(branch, statement).await
    }

    async fn prepare(&self, branch: BranchId, work: Option<&Work>) -> Prepared {
        match work {
            Some(work) => self.prepare_work(branch, work).await,
            None => self.prepare_open(branch).await,
        }
    }

    async fn commit_one_phase(&self, branch: BranchId, work: Option<&Work>) -> OnePhase {
        match work {
            Some(work) => self.one_phase_work(branch, work).await,
            None => self.one_phase_open(branch).await,
        }
    }

    async fn commit(&self, branch: BranchId) -> Finished {
        let finished = self.commit_prepared(branch).await;
        if let Finished::Done = finished {
            self.witnesses.note(branch);
        }
        finished
    }

    async fn rollback(&self, branch: BranchId) -> Finished {
        let finished = self.roll_back(branch).await;
        if let Finished::Done = finished {
            self.witnesses.forget(branch);
        }
        finished
    }

    fn cancel(&self, branch: BranchId) {
        self.cancel_running(branch);
    }

    async fn ledger(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        self.read_ledger(branch).await
    }

    async fn tombstone(&self, branch: BranchId) -> Result<LedgerEntry, Reason> {
        self.write_tombstone(branch).await
    }

    async fn detach(&self, branch: BranchId) -> Result<(), Reason> {
        self.detach_branch(branch).await
    }

    async fn recover(&self) -> Result<Recovered, Reason> {
        self.list_prepared().await
    }

    async fn lost(&self, branches: &[BranchId]) -> Result<Vec<BranchId>, Reason> {
        self.lost_branches(branches).await
    }

    async fn query(
        &self,
        statement: &Statement,
        timeout: Duration,
    ) -> Result<v1::StatementResult, Reason> {
        self.read(statement, timeout).await
    }

    async fn migrate(&self, plan: &Plan) -> Result<u32, Reason> {
        self.apply(plan).await
    }

    async fn load(&self) -> Result<Durable, Reason> {
        self.load_durable().await
    }

    async fn append(&self, records: &[ParticipantRecord]) -> Result<(), Reason> {
        self.append_records(records).await
    }

    async fn damage(&self, limit: u32) -> Result<Vec<v1::Damage>, Reason> {
        self.read_damage(false, limit).await
    }

    async fn acknowledge(&self, id: u64) -> Result<bool, Reason> {
        self.acknowledge_damage(id).await
    }

    async fn prune(&self, below: Gtrid, requests_kept: Duration) -> Result<u64, Reason> {
        self.delete_forgotten(below, requests_kept).await
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn connections(&self) -> Connections {
        let options = self.pool.options();
        Connections {
            open: self.pool.open(),
            max: options.max_connections + options.reserve_connections + CONTROL_CONNECTIONS,
        }
    }

    async fn stop(&self) {
        let tasks: Vec<_> = self.lock_tasks().drain(..).collect();
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            // Aborted on purpose: how it ended does not matter.
            let _ = task.await;
        }
        self.pool.close_idle(true);
    }
}
