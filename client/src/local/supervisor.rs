//! Keeps a whole local cluster running until it is told to stop.
//!
//! Servers start first, because participants are of no use without them; participants and
//! coordinator then start together, since neither needs the other to begin with. Stopping goes
//! the other way round and keeps all data.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
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

/// Runs the cluster until SIGINT, SIGTERM or SIGHUP; a second signal kills instead of waiting.
/// `ready` is called once, when everything is ready for the first time.
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
    let state = StateKeeper::new(cluster.folder(), state).map_err(io("cannot write the state"))?;
    let state = Arc::new(state);
    let mut tiers = Tiers::new(services, Arc::clone(&state));

    let started = tokio::select! {
        started = start(&mut tiers, &mut cluster, with_seed) => started.map(|()| true),
        () = signals.next() => Ok(false),
    };
    let ended = match started {
        Ok(true) => {
            state
                .change(|state| state.ready = true)
                .map_err(io("cannot write the state"))?;
            ready(&state.snapshot());
            signals.next().await;
            Ok(Ended::AfterReady)
        }
        Ok(false) => Ok(Ended::BeforeReady),
        Err(error) => Err(error),
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
        () = signals.next() => tracing::warn!("killing all processes"),
    }
    // Whatever still runs is killed when its keeper is dropped.
    tiers.tasks.shutdown().await;
    ended
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
    kinds: Vec<tokio::signal::unix::Signal>,
}

impl Signals {
    fn new() -> Result<Self, SupervisorError> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let kinds = kinds
            .into_iter()
            .map(signal)
            .collect::<io::Result<Vec<_>>>();
        let what = "cannot listen to signals";
        Ok(Self {
            kinds: kinds.map_err(|source| SupervisorError::Io { what, source })?,
        })
    }

    async fn next(&mut self) {
        let any = self.kinds.iter_mut().map(|kind| Box::pin(kind.recv()));
        futures::future::select_all(any).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::state;
    use super::*;

    #[tokio::test]
    async fn a_keeper_that_panicked_is_in_nobodys_way_when_all_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Arc::new(StateKeeper::new(folder.path(), state()).unwrap());
        let mut tiers = Tiers::new(Vec::new(), keeper);
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
}
