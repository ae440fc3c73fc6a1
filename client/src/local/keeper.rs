//! Keeps one process running: starts it, waits until it is ready, and starts it again when it dies.
//!
//! A process that dies right after its start, many times in a row, is reported as failing and
//! from then on retried slowly. The keeper decides nothing about other processes.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cluster::{Program, Service};
use super::health;
use super::process::{Child, Launch, ProcessId, log_tail};
use super::server::{Server, ServerError, ServerSpec};
use super::state::{Readiness, StateKeeper};

/// The first pause before a new start: short, because `kill -9` is a demonstration here.
const FIRST_PAUSE_MS: u64 = 100;

/// The longest pause of a process that still counts as working.
const LONGEST_PAUSE_MS: u64 = 5_000;

/// The pause of a failing process.
const FAILING_PAUSE_MS: u64 = 30_000;

/// A process that ends sooner than this after its start has died quickly.
const QUICK_DEATH_S: u64 = 5;

/// So many quick deaths in a row mean that it will not work by itself.
const QUICK_DEATHS_MAX: u32 = 10;

/// A daemon has this long to drain; it bounds its own drain below this.
const DAEMON_STOP_TIMEOUT_S: u64 = 30;

/// Between two questions to a daemon that is starting. It answers nobody before it can.
const HEALTH_POLL_MS: u64 = 50;

/// Between two looks at whether a removed folder is there again.
const FOLDER_LOOK: Duration = Duration::from_millis(500);

/// Lines of a log that a report shows.
const LOG_TAIL_LINES: usize = 12;

/// How far a process has come, for whoever waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Not yet ready.
    Starting,
    /// It was ready once.
    Ready,
    /// It does not work; the text says why.
    Failing(String),
}

/// How a started process was left.
enum Left {
    Stopped,
    /// Why it was not started, or does not run any more.
    Died(String),
}

/// Runs until `stop`, then stops the process and returns.
pub async fn keep(
    service: Service,
    state: Arc<StateKeeper>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
) {
    let name = service.name.as_str();
    let mut quick_deaths = 0;
    loop {
        let started = Instant::now();
        let death = match run_once(&service, &state, &progress, &stop).await {
            Left::Stopped => break,
            Left::Died(death) => death,
        };
        let quick = started.elapsed() < Duration::from_secs(QUICK_DEATH_S);
        quick_deaths = if quick { quick_deaths + 1 } else { 0 };
        let failing = quick_deaths >= QUICK_DEATHS_MAX;
        let pause = pause(quick_deaths).min(service.pause_max.unwrap_or(Duration::MAX));
        let word = if failing {
            Readiness::Failing
        } else {
            Readiness::Restarting
        };
        state.update(name, |process| {
            process.process = None;
            process.readiness = word;
            process.restarts += 1;
        });
        if failing {
            let tail = log_tail(&service.log, LOG_TAIL_LINES);
            let log = service.log.display();
            let report =
                format!("{name} dies again and again: {death}; its log ({log}) ends:\n{tail}");
            tracing::error!(pause_s = pause.as_secs(), "{report}");
            progress.send_replace(Progress::Failing(report));
        } else {
            tracing::warn!(
                "{name}: {death}; starting it again in {} ms",
                pause.as_millis()
            );
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => break,
        }
        // Started again it would make the folder anew, and empty. The supervisor is about to
        // notice and to stop everything, unless the folder is there again.
        while !state.has_folder() && !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(FOLDER_LOOK) => {}
                () = stop.cancelled() => {}
            }
        }
        if stop.is_cancelled() {
            break;
        }
    }
    state.update(name, |process| {
        process.process = None;
        process.readiness = Readiness::Stopped;
    });
    tracing::info!("{name} has stopped");
}

async fn run_once(
    service: &Service,
    state: &StateKeeper,
    progress: &watch::Sender<Progress>,
    stop: &CancellationToken,
) -> Left {
    let started = |process: ProcessId| {
        state.update(&service.name, |entry| {
            entry.process = Some(process);
            entry.readiness = Readiness::Starting;
        });
    };
    let ready = |process: ProcessId| {
        state.update(&service.name, |entry| entry.readiness = Readiness::Ready);
        progress.send_replace(Progress::Ready);
        tracing::info!(
            "{} is ready at {} (pid {})",
            service.name,
            service.address,
            process.pid
        );
    };
    match &service.program {
        Program::Server(spec) => run_server(spec, stop, started, ready).await,
        Program::Daemon(launch) => run_daemon(launch, &service.address, stop, started, ready).await,
    }
}

async fn run_server(
    spec: &ServerSpec,
    stop: &CancellationToken,
    started: impl Fn(ProcessId),
    ready: impl Fn(ProcessId),
) -> Left {
    tokio::select! {
        made = Server::init_datadir(spec) => {
            if let Err(error) = made {
                return Left::Died(with_causes(&error));
            }
        }
        () = stop.cancelled() => return Left::Stopped,
    }
    let mut server = match Server::launch(spec.clone()) {
        Ok(server) => server,
        Err(error) => return Left::Died(with_causes(&error)),
    };
    started(server.process());
    let answered = tokio::select! {
        answered = server_answered(&server) => answered,
        () = stop.cancelled() => {
            server.stop().await;
            return Left::Stopped;
        }
    };
    if let Err(error) = answered {
        return Left::Died(with_causes(&error));
    }
    ready(server.process());
    tokio::select! {
        status = server.exited() => Left::Died(ended(status)),
        () = stop.cancelled() => {
            server.stop().await;
            Left::Stopped
        }
    }
}

/// A server that is alive but does not answer may be recovering from a crash. Killing it would
/// only make it begin anew, so it is given any time it needs.
async fn server_answered(server: &Server) -> Result<(), ServerError> {
    loop {
        match server.ready().await {
            Err(error @ ServerError::NotReady { .. }) => {
                tracing::warn!("{error}; waiting on");
            }
            other => return other,
        }
    }
}

async fn run_daemon(
    launch: &Launch,
    address: &str,
    stop: &CancellationToken,
    started: impl Fn(ProcessId),
    ready: impl Fn(ProcessId),
) -> Left {
    let mut child = match Child::spawn(launch) {
        Ok(child) => child,
        Err(source) => {
            let program = launch.program.display();
            return Left::Died(format!("cannot start {program}: {source}"));
        }
    };
    started(child.id());
    let lives = async {
        serves(address).await;
        ready(child.id());
        std::future::pending::<()>().await;
    };
    tokio::select! {
        status = child.exited() => return Left::Died(ended(status)),
        () = stop.cancelled() => {}
        () = lives => {}
    }
    child.stop(Duration::from_secs(DAEMON_STOP_TIMEOUT_S)).await;
    Left::Stopped
}

/// Waits until a daemon says that it serves, for as long as that takes.
async fn serves(address: &str) {
    let url = format!("http://{address}");
    while !health::daemon_serves(&url).await {
        tokio::time::sleep(Duration::from_millis(HEALTH_POLL_MS)).await;
    }
}

/// The pause doubles with each quick death in a row. Without one it is the shortest.
fn pause(quick_deaths: u32) -> Duration {
    if quick_deaths >= QUICK_DEATHS_MAX {
        return Duration::from_millis(FAILING_PAUSE_MS);
    }
    let doubled = FIRST_PAUSE_MS << quick_deaths.saturating_sub(1);
    Duration::from_millis(doubled.min(LONGEST_PAUSE_MS))
}

fn ended(status: ExitStatus) -> String {
    format!("it ended ({status})")
}

/// An error with all its causes, for a log line.
fn with_causes(error: &ServerError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::process::ProcessId;
    use super::super::server::ServerKind;
    use super::super::state::tests::keeper;
    use super::super::state::{ClusterState, ProcessState, Role};
    use super::*;

    fn service(folder: &std::path::Path, script: &str) -> (Service, Arc<StateKeeper>) {
        let log = folder.join("x.log");
        let service = Service {
            name: "x".into(),
            role: Role::Participant,
            address: "127.0.0.1:1".into(),
            log: log.clone(),
            program: Program::Daemon(Launch {
                program: "/bin/sh".into(),
                args: vec!["-c".into(), script.into()],
                env: Vec::new(),
                output: log.clone(),
            }),
            pause_max: None,
        };
        let process = ProcessState {
            name: "x".into(),
            role: Role::Participant,
            process: None,
            address: "127.0.0.1:1".into(),
            readiness: Readiness::Starting,
            restarts: 0,
            log,
            socket: None,
            password_file: None,
        };
        let state = ClusterState {
            cluster: "local".into(),
            boot_id: String::new(),
            supervisor: ProcessId::own().unwrap(),
            ready: false,
            failure: None,
            gateway: String::new(),
            server_kind: ServerKind::Mysql,
            server_version: String::new(),
            processes: vec![process],
        };
        (service, Arc::new(keeper(folder, state)))
    }

    #[test]
    fn pauses_grow_up_to_a_cap_and_then_the_process_is_failing() {
        let pauses: Vec<u128> = (0..=10).map(|deaths| pause(deaths).as_millis()).collect();
        assert_eq!(
            pauses,
            [
                100, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 30_000
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_dies_at_once_is_reported_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let (mut service, state) = service(folder.path(), "");
        std::fs::write(&service.log, "no such disk\n").unwrap();
        let Program::Daemon(launch) = &mut service.program else {
            unreachable!()
        };
        launch.program = "/nonexistent/daemon".into();
        let (sender, mut progress) = watch::channel(Progress::Starting);
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep(service, Arc::clone(&state), sender, stop.clone()));
        let failing = |progress: &Progress| matches!(progress, Progress::Failing(_));
        let report = progress.wait_for(failing).await.unwrap().clone();
        let Progress::Failing(report) = report else {
            unreachable!()
        };
        assert!(
            report.contains("/nonexistent/daemon") && report.contains("no such disk"),
            "{report}"
        );
        let process = state.snapshot().processes.remove(0);
        assert_eq!(
            (process.readiness, process.restarts),
            (Readiness::Failing, 10)
        );
        stop.cancel();
        keeper.await.unwrap();
        assert_eq!(state.snapshot().processes[0].readiness, Readiness::Stopped);
    }

    #[tokio::test]
    async fn what_is_killed_comes_back_as_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let (service, state) = service(folder.path(), "exec sleep 60");
        let (sender, _progress) = watch::channel(Progress::Starting);
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep(service, Arc::clone(&state), sender, stop.clone()));
        let running = async |former: Option<ProcessId>| {
            loop {
                match state.snapshot().processes[0].process {
                    Some(now) if Some(now) != former => break now,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        let first = running(None).await;
        first.signal(nix::sys::signal::Signal::SIGKILL);
        let second = running(Some(first)).await;
        assert!(second.is_alive() && !first.is_alive());
        stop.cancel();
        keeper.await.unwrap();
        assert!(!second.is_alive());
        assert_eq!(state.snapshot().processes[0].restarts, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_dies_after_its_folder_was_removed_stays_dead() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster");
        std::fs::create_dir(&path).unwrap();
        let (mut service, state) = service(&path, "exec sleep 60");
        service.pause_max = Some(Duration::from_millis(1));
        let log = folder.path().join("beside.log");
        let Program::Daemon(launch) = &mut service.program else {
            unreachable!()
        };
        launch.output = log;
        let (sender, _progress) = watch::channel(Progress::Starting);
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep(service, Arc::clone(&state), sender, stop.clone()));
        let now = || state.snapshot().processes.remove(0);
        while now().process.is_none() {
            tokio::task::yield_now().await;
        }
        std::fs::remove_dir_all(&path).unwrap();
        now()
            .process
            .unwrap()
            .signal(nix::sys::signal::Signal::SIGKILL);
        while now().restarts == 0 {
            tokio::task::yield_now().await;
        }
        // The clock goes on when nothing else is left to do, first of all past the keeper's pause.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(now().process, None);
        stop.cancel();
        keeper.await.unwrap();
        assert!(!path.exists());
    }
}
