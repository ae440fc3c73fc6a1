//! Child processes that cannot be confused with others, and processes known only by number.
//!
//! [`Child`] owns a process that we started: a signal can never reach a recycled process number,
//! because the number is only given back to the system under the same lock that sends signals.
//! [`ProcessId`] names a process that somebody started, by its number and its start time, so that
//! a number found in an old file is never mistaken for a living process. Nothing here restarts
//! anything or decides when to stop.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How often a process that is not our child is looked at while we wait for its end. The system
/// tells only parents about it.
const STRANGER_POLL_MS: u64 = 20;

/// What to run.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables added to our own environment.
    pub env: Vec<(String, String)>,
    /// The file that its output is appended to.
    pub output: PathBuf,
}

/// Gives itself the policy SCHED_BATCH, if the system lets it, and becomes the program.
const BECOME_BATCH: &str = "chrt --batch --pid 0 $$ 2>/dev/null; exec \"$0\" \"$@\"";

impl Launch {
    /// Lets the program run under SCHED_BATCH (sched(7)): it has as much of the processors as any
    /// other, and does not take one away from whoever has just woken it. For programs that are
    /// woken by one process only to wake another, when all share a few processors.
    #[must_use]
    pub fn as_batch(self) -> Self {
        let script = [OsString::from("-c"), BECOME_BATCH.into()];
        let program = [self.program.into_os_string()];
        Self {
            program: "/bin/sh".into(),
            args: script.into_iter().chain(program).chain(self.args).collect(),
            ..self
        }
    }
}

/// A process that we started. Dropping it kills it and waits until it has gone.
#[derive(Debug)]
pub struct Child {
    id: ProcessId,
    reaped: Arc<Mutex<bool>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    waiter: Option<thread::JoinHandle<()>>,
}

impl Child {
    /// Starts a process in a process group of its own, so that a Ctrl-C at the terminal reaches
    /// only us and we decide the order in which things stop.
    pub fn spawn(launch: &Launch) -> io::Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&launch.output)?;
        let mut child = Command::new(&launch.program)
            .args(&launch.args)
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        let pid = child.id();
        // Its own child cannot be recycled before it is reaped, so this reads the right process.
        let start = start_time(pid).unwrap_or(0);
        let reaped = Arc::new(Mutex::new(false));
        let (sender, exit) = watch::channel(None);
        let waiter = thread::Builder::new().name(format!("wait-{pid}")).spawn({
            let reaped = Arc::clone(&reaped);
            move || {
                await_end(pid);
                let mut reaped = reaped.lock().unwrap_or_else(PoisonError::into_inner);
                let status = child.wait().unwrap_or_default();
                *reaped = true;
                sender.send_replace(Some(status));
            }
        })?;
        Ok(Self {
            id: ProcessId { pid, start },
            reaped,
            exit,
            waiter: Some(waiter),
        })
    }

    /// Its number and start time.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// How it ended, or `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits until it has ended.
    pub async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            // The waiter is gone without a word, which means that it panicked after the end.
            Err(_) => ExitStatus::default(),
        }
    }

    /// Sends a signal; does nothing when the process has ended.
    pub fn signal(&self, signal: Signal) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            // It may have ended already without being reaped; then the signal goes nowhere.
            let _ = signal::kill(nix_pid(self.id.pid), signal);
        }
    }

    /// Kills it and waits until it has gone. This blocks the thread for the few milliseconds that
    /// the system needs, so that whoever returns from here finds its files at rest.
    pub fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
    }

    /// Asks it to stop, and kills it when it has not done so in time. True when it stopped by
    /// itself.
    pub async fn stop(&mut self, patience: Duration) -> bool {
        self.signal(Signal::SIGTERM);
        let graceful = tokio::time::timeout(patience, self.exited()).await.is_ok();
        self.kill9();
        graceful
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Waits for the end of a child but leaves it a zombie, so that its number stays taken.
fn await_end(pid: u32) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while let Err(Errno::EINTR) = waitid(Id::Pid(nix_pid(pid)), flags) {}
}

/// A process, unmistakably: its number, and when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub start: u64,
}

impl ProcessId {
    /// The calling process.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// The process that has this number now.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start: start_time(pid)?,
        })
    }

    /// True while exactly this process runs. A zombie does not.
    pub fn is_alive(self) -> bool {
        matches!(stat(self.pid), Ok(stat) if stat.start == self.start && !stat.dead)
    }

    /// Sends a signal, unless the process has ended or its number belongs to another by now.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            let _ = signal::kill(nix_pid(self.pid), signal);
        }
    }

    /// Waits until it has ended; false when it still runs after `patience`.
    pub async fn ended(self, patience: Duration) -> bool {
        let gone = async {
            while self.is_alive() {
                tokio::time::sleep(Duration::from_millis(STRANGER_POLL_MS)).await;
            }
        };
        tokio::time::timeout(patience, gone).await.is_ok()
    }

    /// Asks it to stop and waits, then kills it and waits. True when it has gone.
    pub async fn stop(self, patience: Duration) -> bool {
        self.signal(Signal::SIGTERM);
        if self.ended(patience).await {
            return true;
        }
        self.signal(Signal::SIGKILL);
        self.ended(patience).await
    }

    /// The words of its command line; empty when it has ended.
    pub fn command_line(self) -> Vec<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        bytes
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect()
    }
}

/// The user that this process acts for.
pub(super) fn own_user() -> io::Result<u32> {
    fs::metadata("/proc/self").map(|own| own.uid())
}

/// The last part of a log file, for an error message.
pub fn log_tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let Ok(text) = text else {
        return format!("(no log at {})", path.display());
    };
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

struct Stat {
    start: u64,
    dead: bool,
}

fn start_time(pid: u32) -> io::Result<u64> {
    stat(pid).map(|stat| stat.start)
}

/// Reads `/proc/PID/stat`. The command's name, in parentheses, may itself hold spaces and
/// parentheses, so fields are counted from the last closing one.
fn stat(pid: u32) -> io::Result<Stat> {
    const STATE: usize = 0;
    const START: usize = 19;
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat"));
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .ok_or_else(broken)?
        .1
        .split_ascii_whitespace()
        .collect();
    let state = fields.get(STATE).ok_or_else(broken)?;
    let start = fields
        .get(START)
        .and_then(|field| field.parse().ok())
        .ok_or_else(broken)?;
    Ok(Stat {
        start,
        dead: matches!(*state, "Z" | "X"),
    })
}

fn nix_pid(pid: u32) -> Pid {
    // Linux numbers processes below 2^22, so this conversion cannot fail for a real one; the
    // fallback is a number that no process has.
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path) -> Child {
        Child::spawn(&Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("WORD".into(), "hello".into())],
            output: folder.join("out"),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn a_child_is_seen_to_end_with_its_status_and_output() {
        let folder = tempfile::tempdir().unwrap();
        let child = shell("echo $WORD; exit 7", folder.path());
        assert_eq!(child.exited().await.code(), Some(7));
        assert_eq!(log_tail(&folder.path().join("out"), 3), "hello");
        assert!(!child.id().is_alive());
        child.signal(Signal::SIGKILL);
    }

    #[tokio::test]
    async fn a_batch_program_is_the_program_itself() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Child::spawn(
            &Launch {
                program: "/bin/sleep".into(),
                args: vec!["60".into()],
                env: Vec::new(),
                output: folder.path().join("out"),
            }
            .as_batch(),
        )
        .unwrap();
        let id = child.id();
        while id.command_line() != ["/bin/sleep", "60"] {
            tokio::task::yield_now().await;
        }
        // The field "policy" of proc_pid_stat(5), the 41st; SCHED_BATCH is 3.
        let stat = fs::read_to_string(format!("/proc/{}/stat", id.pid)).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1;
        assert_eq!(fields.split_ascii_whitespace().nth(38), Some("3"));
        child.kill9();
        assert_eq!(log_tail(&folder.path().join("out"), 1), "");
    }

    #[tokio::test]
    async fn stopping_asks_first_and_kills_what_does_not_listen() {
        let folder = tempfile::tempdir().unwrap();
        let mut polite = shell("exec sleep 60", folder.path());
        assert!(polite.stop(Duration::from_secs(20)).await);
        let script = "trap '' TERM; echo ready; while :; do sleep 60; done";
        let mut deaf = shell(script, folder.path());
        while log_tail(&folder.path().join("out"), 1) != "ready" {
            tokio::task::yield_now().await;
        }
        assert!(!deaf.stop(Duration::from_millis(50)).await);
        assert!(!deaf.id().is_alive());
    }

    #[tokio::test]
    async fn dropping_kills() {
        let folder = tempfile::tempdir().unwrap();
        let id = shell("exec sleep 60", folder.path()).id();
        assert!(!id.is_alive());
    }

    #[tokio::test]
    async fn a_recycled_number_is_not_the_same_process() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        let former = ProcessId {
            start: own.start - 1,
            ..own
        };
        assert!(!former.is_alive());
        former.signal(Signal::SIGKILL);
        assert!(former.stop(Duration::from_secs(1)).await);
        assert!(!own.command_line().is_empty());
    }
}
