//! Keeps a whole local cluster running until it is told to stop.
//!
//! Servers start first, because participants are of no use without them; participants and
//! coordinator then start together, since neither needs the other to begin with. Stopping goes
//! the other way round and keeps all data.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, ClusterError, Program, Service};
use super::keeper::{self, Progress};
use super::links;
use super::process::ProcessId;
use super::seed;
use super::server::ServerFolder;
use super::state::{ClusterState, ProcessState, Readiness, Role, StateKeeper, boot_id};
use super::strays;

/// All processes are ready within this time of the start; making data folders is the longest part.
const START_TIMEOUT_S: u64 = 300;

/// Between two looks whether the cluster's folder is still there. Processes that die meanwhile are
/// not started again without a look of their own.
const FOLDER_LOOK_MS: u64 = 1_000;

/// Why a cluster does not run.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// It cannot be set up.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A file or signal handler.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The cluster's folder was removed, or replaced by another one, under the running cluster.
    #[error("{folder} is gone, or another cluster's by now; all processes were stopped")]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// A process does not work.
    #[error("{0}")]
    Failing(String),
    /// Some processes did not become ready.
    #[error("not ready within {START_TIMEOUT_S} s: {names}; see their logs in {logs}")]
    NotReady {
        /// Their names.
        names: String,
        /// Where the logs are.
        logs: String,
    },
}

/// How a run ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything was ready, and then it was told to stop.
    AfterReady,
    /// It was told to stop before everything was ready.
    BeforeReady,
}

/// Runs the cluster until SIGINT, SIGTERM or SIGHUP, or until its folder is removed; a second
/// SIGINT kills instead of waiting. `ready` is called once, when everything is ready for the first
/// time.
pub async fn run(
    mut cluster: Cluster,
    with_seed: bool,
    ready: impl FnOnce(&ClusterState),
) -> Result<Ended, SupervisorError> {
    let mut signals = Signals::new()?;
    let io = |what| move |source| SupervisorError::Io { what, source };
    let strays = strays::stop(cluster.folder())
        .await
        .map_err(io("cannot stop what a former supervisor left running"))?;
    if strays > 0 {
        tracing::warn!("stopped {strays} processes that a former supervisor left running");
    }
    cluster.check_ports()?;
    let services = cluster.services()?;
    let state = initial_state(&cluster, &services).map_err(io("cannot describe the cluster"))?;
    let state = StateKeeper::new(cluster.folder(), cluster.lock(), state);
    let state = Arc::new(state.map_err(io("cannot write the state"))?);
    let mut tiers = Tiers::new(services, Arc::clone(&state));

    let folder = cluster.folder().to_owned();
    let ended = tokio::select! {
        ended = work(&mut tiers, &mut cluster, with_seed, ready, &mut signals) => ended,
        () = removed(&state) => {
            let path = folder.display();
            tracing::error!("{path} was removed; no command finds this cluster any more");
            Err(SupervisorError::NoFolder { folder })
        }
    };
    tracing::info!("stopping; a second Ctrl-C kills instead");
    let failure = ended.as_ref().err().map(ToString::to_string);
    let noted = state.change(|state| {
        state.ready = false;
        state.failure = failure;
    });
    if let Err(error) = noted {
        tracing::warn!(%error, "cannot write the state");
    }
    tokio::select! {
        () = tiers.stop() => {}
        () = signals.second_interrupt() => tracing::warn!("killing all processes"),
    }
    // Whatever still runs is killed when its keeper is dropped.
    tiers.tasks.shutdown().await;
    ended
}

/// Starts everything, and returns when it is told to stop.
async fn work(
    tiers: &mut Tiers,
    cluster: &mut Cluster,
    with_seed: bool,
    ready: impl FnOnce(&ClusterState),
    signals: &mut Signals,
) -> Result<Ended, SupervisorError> {
    tokio::select! {
        started = start(tiers, cluster, with_seed) => started?,
        () = signals.next() => return Ok(Ended::BeforeReady),
    }
    let written = tiers.state.change(|state| state.ready = true);
    written.map_err(|source| SupervisorError::Io {
        what: "cannot write the state",
        source,
    })?;
    ready(&tiers.state.snapshot());
    signals.next().await;
    Ok(Ended::AfterReady)
}

/// Returns when the cluster's folder has been removed. No command would find the cluster again, and
/// what is started anew would make the folder again.
async fn removed(state: &StateKeeper) {
    while state.has_folder() {
        tokio::time::sleep(Duration::from_millis(FOLDER_LOOK_MS)).await;
    }
}

async fn start(
    tiers: &mut Tiers,
    cluster: &mut Cluster,
    with_seed: bool,
) -> Result<(), SupervisorError> {
    let limit = Duration::from_secs(START_TIMEOUT_S);
    let all = async {
        tiers.begin(&[Role::Server]);
        tiers.all_ready().await?;
        tiers.begin(&[Role::Participant, Role::Coordinator]);
        tiers.all_ready().await
    };
    let Ok(done) = tokio::time::timeout(limit, all).await else {
        let logs = cluster.folder().join("log").display().to_string();
        return Err(SupervisorError::NotReady {
            names: tiers.not_ready(),
            logs,
        });
    };
    done?;
    if let Err(missing) = links::wait(&cluster.gateway()).await {
        // What the others can do is of use, and the coordinator goes on trying.
        tracing::warn!("{missing}");
    }
    if with_seed && !cluster.is_seeded() {
        match seed::seed(&cluster.gateway()).await {
            Ok(()) => cluster.set_seeded()?,
            // The cluster is of use without the samples, and the next start tries again.
            Err(error) => tracing::warn!("cannot put in all sample data: {error}"),
        }
    }
    Ok(())
}

/// The keepers of all processes.
struct Tiers {
    waiting: Vec<Service>,
    kept: Vec<(String, watch::Receiver<Progress>)>,
    stops: [(Role, CancellationToken); 3],
    state: Arc<StateKeeper>,
    tasks: JoinSet<()>,
    /// The keepers that have not ended, by their tasks: one that panicked cannot say its role.
    running: HashMap<task::Id, Role>,
}

impl Tiers {
    fn new(services: Vec<Service>, state: Arc<StateKeeper>) -> Self {
        let stops = [Role::Coordinator, Role::Participant, Role::Server];
        Self {
            waiting: services,
            kept: Vec::new(),
            stops: stops.map(|role| (role, CancellationToken::new())),
            state,
            tasks: JoinSet::new(),
            running: HashMap::new(),
        }
    }

    /// Starts a keeper for every process of these roles.
    fn begin(&mut self, roles: &[Role]) {
        let all = std::mem::take(&mut self.waiting);
        let (begun, waiting): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|service| roles.contains(&service.role));
        self.waiting = waiting;
        for service in begun {
            let role = service.role;
            let (sender, receiver) = watch::channel(Progress::Starting);
            self.kept.push((service.name.clone(), receiver));
            let stop = self.stop_of(role);
            let keeper = keeper::keep(service, Arc::clone(&self.state), sender, stop);
            self.spawn(role, keeper);
        }
    }

    fn spawn(&mut self, role: Role, keeper: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(keeper);
        self.running.insert(task.id(), role);
    }

    /// Waits until every begun process has been ready once; fails as soon as one is failing.
    async fn all_ready(&self) -> Result<(), SupervisorError> {
        let waits = self.kept.iter().map(|(name, progress)| {
            let mut progress = progress.clone();
            async move {
                let left = |progress: &Progress| *progress != Progress::Starting;
                match progress.wait_for(left).await.as_deref() {
                    Ok(Progress::Failing(report)) => Err(SupervisorError::Failing(report.clone())),
                    Ok(_) => Ok(()),
                    Err(_) => Err(SupervisorError::Failing(format!(
                        "{name} is not kept any more"
                    ))),
                }
            }
        });
        futures::future::try_join_all(waits).await.map(drop)
    }

    /// Names of processes that have not been ready.
    fn not_ready(&self) -> String {
        let late = self
            .kept
            .iter()
            .filter(|(_, progress)| *progress.borrow() != Progress::Ready);
        late.map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Stops coordinator, participants and servers, one after the other.
    async fn stop(&mut self) {
        for role in self.stops.each_ref().map(|(role, _)| *role) {
            self.stop_of(role).cancel();
            while self.running.values().any(|running| *running == role) {
                let ended = match self.tasks.join_next_with_id().await {
                    Some(Ok((task, ()))) => task,
                    // It panicked, and took its process with it.
                    Some(Err(error)) => error.id(),
                    None => return,
                };
                self.running.remove(&ended);
            }
        }
    }

    fn stop_of(&self, role: Role) -> CancellationToken {
        let found = self.stops.iter().find(|(found, _)| *found == role);
        found.map(|(_, stop)| stop.clone()).unwrap_or_default()
    }
}

fn initial_state(cluster: &Cluster, services: &[Service]) -> io::Result<ClusterState> {
    Ok(ClusterState {
        cluster: cluster.name().into(),
        boot_id: boot_id(),
        supervisor: ProcessId::own()?,
        ready: false,
        failure: None,
        gateway: cluster.gateway(),
        server_kind: cluster.binary().kind(),
        server_version: cluster.binary().version().into(),
        processes: services.iter().map(process_state).collect(),
    })
}

fn process_state(service: &Service) -> ProcessState {
    let folder = match &service.program {
        // The folder was made when the services were listed.
        Program::Server(spec) => ServerFolder::open(&spec.folder).ok(),
        Program::Daemon(_) => None,
    };
    ProcessState {
        name: service.name.clone(),
        role: service.role,
        process: None,
        address: service.address.clone(),
        readiness: Readiness::Starting,
        restarts: 0,
        log: service.log.clone(),
        socket: folder.as_ref().map(|folder| folder.socket().to_owned()),
        password_file: folder
            .as_ref()
            .map(|folder| folder.password_file().to_owned()),
    }
}

/// The signals that mean "stop".
struct Signals {
    interrupt: Signal,
    /// Sent by programs: `concord down`, a service manager, a terminal that is closed, which sends
    /// two. However often they come, they ask for an orderly stop.
    others: [Signal; 2],
    interrupts: u32,
}

impl Signals {
    fn new() -> Result<Self, SupervisorError> {
        let listen = |kind| {
            let what = "cannot listen to signals";
            signal(kind).map_err(|source| SupervisorError::Io { what, source })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            others: [
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
            ],
            interrupts: 0,
        })
    }

    /// Waits for the next of them.
    async fn next(&mut self) {
        let [terminate, hangup] = &mut self.others;
        tokio::select! {
            _ = self.interrupt.recv() => self.interrupts += 1,
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    /// Waits until a person at the terminal has pressed Ctrl-C twice since the start.
    async fn second_interrupt(&mut self) {
        while self.interrupts < 2 {
            let before = self.interrupts;
            self.next().await;
            if before == 0 && self.interrupts == 1 {
                tracing::info!("already stopping; another Ctrl-C kills instead");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};

    use super::super::state::tests::{keeper, state};
    use super::*;

    #[tokio::test]
    async fn a_keeper_that_panicked_is_in_nobodys_way_when_all_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = keeper(folder.path(), state());
        let mut tiers = Tiers::new(Vec::new(), Arc::new(keeper));
        tiers.spawn(Role::Participant, async { panic!("a keeper of the test") });
        let (sender, mut ended) = watch::channel(0);
        for role in [Role::Coordinator, Role::Server] {
            let (stop, sender) = (tiers.stop_of(role), sender.clone());
            tiers.spawn(role, async move {
                stop.cancelled().await;
                sender.send_modify(|ended| *ended += 1);
            });
        }
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, tiers.stop()).await.unwrap();
        assert_eq!(*ended.borrow_and_update(), 2);
    }

    #[tokio::test]
    async fn only_a_second_ctrl_c_kills() {
        let mut signals = Signals::new().unwrap();
        let own = ProcessId::own().unwrap();
        for kind in [SIGTERM, SIGTERM, SIGHUP, SIGHUP, SIGINT] {
            own.signal(kind);
            signals.next().await;
        }
        let mut second = Box::pin(signals.second_interrupt());
        for kind in [SIGTERM, SIGHUP] {
            own.signal(kind);
        }
        let mut listener = signal(SignalKind::hangup()).unwrap();
        own.signal(SIGHUP);
        listener.recv().await;
        assert!(futures::poll!(&mut second).is_pending());
        own.signal(SIGINT);
        second.await;
    }
}
