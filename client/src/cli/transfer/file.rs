//! Runs a payment file: reads it as a stream, keeps some payments in flight, tells what became of
//! each.
//!
//! That nothing is paid twice is the coordinator's work, by request id; this module's part is
//! never to send a payment without one.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::lines::{Line, Lines, Payment};
use super::report::{FailedLines, Summary, Verdict};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{self, Ctx};
use crate::client::Client;
use crate::retry::RetryPolicy;
use crate::v1;

/// How long one line is retried when nothing else is said: a supervisor's restart of a server that
/// has to recover takes some seconds.
const RETRY_FOR: Duration = Duration::from_mins(1);

/// What is asked for.
#[derive(Debug)]
pub(super) struct Job {
    pub path: PathBuf,
    pub concurrency: usize,
    pub failed: Option<PathBuf>,
}

type Input = Lines<Box<dyn BufRead + Send>>;

pub(super) async fn run(ctx: &Ctx, job: Job) -> Result<(), Failure> {
    let (lines, size) = open(&job.path)?;
    for name in &lines.ignored {
        output::note(&format!("warning: the column \"{name}\" is ignored"));
    }
    let mut failed = FailedLines::create(failed_path(&job)?)?;
    let progress = progress(size);
    let stop = stop_on_ctrl_c(&progress);
    let policy = RetryPolicy::lasting(ctx.global.retry_for.unwrap_or(RETRY_FOR));
    let client = ctx.client.with_retry(policy).with_stop(stop.clone());
    let timeout_ms = crate::oneshot::millis(ctx.timeout);

    let started = Instant::now();
    let (sender, receiver) = mpsc::channel(job.concurrency);
    let reader = tokio::task::spawn_blocking({
        let stop = stop.clone();
        move || feed(lines, &sender, &stop)
    });
    let mut summary = Summary::default();
    let turns = Turns::default();
    let mut results = ReceiverStream::new(receiver)
        .map(|line| pay(&client, &turns, timeout_ms, line))
        .buffer_unordered(job.concurrency);
    while let Some((number, end, payment, verdict)) = results.next().await {
        summary.add(&verdict);
        failed.add(number, &payment, &verdict);
        progress.set_position(progress.position().max(end));
        progress.set_message(format!(
            "{} done, {} failed",
            summary.done(),
            summary.failed()
        ));
    }
    progress.finish_and_clear();
    let took = started.elapsed();
    let end = reader.await.map_err(|error| {
        Failure::new(Exit::Other, "the payment file was not read to its end").why(error)
    })?;
    summary.interrupted |= stop.is_cancelled() && !matches!(end, Ok(true));
    let failed = failed.finish()?;
    let value = summary.json(took, failed.as_deref());
    ctx.print(&value, || summary.text(took, failed.as_deref()))?;
    if let Err(error) = end {
        return Err(Failure::new(
            Exit::Other.max(summary.exit()),
            "the payment file was not read \
                                                                  to its end",
        )
        .why(error)
        .next("mend it and run the file again: nothing is paid twice"));
    }
    match summary.exit() {
        Exit::Done => Ok(()),
        exit => Err(Failure::silent(exit)),
    }
}

fn open(path: &PathBuf) -> Result<(Input, Option<u64>), Failure> {
    let cannot = |why: &dyn std::fmt::Display| {
        Failure::new(
            Exit::Usage,
            format!("the payment file {} cannot be used", path.display()),
        )
        .why(why)
        .next("see `concord transfer --help` for its form; nothing was sent")
    };
    let (reader, size): (Box<dyn BufRead + Send>, _) = if path.as_os_str() == "-" {
        (Box::new(BufReader::new(io::stdin())), None)
    } else {
        let file = File::open(path).map_err(|error| cannot(&error))?;
        let meta = file.metadata().map_err(|error| cannot(&error))?;
        let size = meta.is_file().then_some(meta.len());
        (Box::new(BufReader::with_capacity(64 << 10, file)), size)
    };
    let lines = Lines::open(reader).map_err(|error| cannot(&error))?;
    Ok((lines.map_err(|why| cannot(&why))?, size))
}

fn failed_path(job: &Job) -> Result<PathBuf, Failure> {
    let path = job.failed.clone().unwrap_or_else(|| {
        let stem = if job.path.as_os_str() == "-" {
            OsStr::new("stdin")
        } else {
            job.path.as_os_str()
        };
        let mut name = stem.to_owned();
        name.push(".failed.csv");
        PathBuf::from(name)
    });
    let same = |a: &PathBuf, b: &PathBuf| {
        a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
    };
    if same(&path, &job.path) {
        return Err(
            Failure::new(Exit::Usage, "--failed names the payment file itself")
                .next("name another file; nothing was sent"),
        );
    }
    Ok(path)
}

/// A bar on a terminal, and nothing anywhere else.
fn progress(size: Option<u64>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "{bar:30} {percent:>3}%  {msg}  {elapsed}",
        ),
        None => (ProgressBar::no_length(), "{spinner}  {msg}  {elapsed}"),
    };
    // The templates are constants, and a bar in another style is no reason not to pay.
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The first Ctrl-C ends the run cleanly, a second one at once.
fn stop_on_ctrl_c(progress: &ProgressBar) -> CancellationToken {
    let stop = CancellationToken::new();
    let (token, progress) = (stop.clone(), progress.clone());
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_err() {
            return;
        }
        token.cancel();
        progress.suspend(|| {
            output::note("stopping: waiting for payments in flight (Ctrl-C again leaves at once)");
        });
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(i32::from(Exit::Interrupted as u8));
        }
    });
    stop
}

/// Hands out lines until the end of the file (true) or until stopped (false).
fn feed(
    mut lines: Input,
    sender: &mpsc::Sender<Line>,
    stop: &CancellationToken,
) -> io::Result<bool> {
    while !stop.is_cancelled() {
        let Some(line) = lines.next()? else {
            return Ok(true);
        };
        if sender.blocking_send(line).is_err() {
            return Ok(false);
        }
    }
    Ok(false)
}

/// The request ids in flight. Lines with the same one take turns, so that the second is told
/// apart as a repetition of the first.
#[derive(Debug, Default)]
struct Turns {
    taken: Mutex<HashSet<String>>,
    given_back: Notify,
}

impl Turns {
    async fn take(&self, request_id: &str) {
        loop {
            let given_back = self.given_back.notified();
            if self.lock().insert(request_id.to_owned()) {
                return;
            }
            given_back.await;
        }
    }

    fn give_back(&self, request_id: &str) {
        self.lock().remove(request_id);
        self.given_back.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn pay(
    client: &Client,
    turns: &Turns,
    timeout_ms: u32,
    line: Line,
) -> (u64, u64, Payment, Verdict) {
    let stop = client.stop_token();
    let (payment, verdict) = match line.content {
        Err((payment, why)) => (*payment, Verdict::Unreadable(why)),
        Ok(payment) if stop.is_cancelled() => (payment, Verdict::NotTried),
        Ok(payment) => {
            turns.take(&payment.request_id).await;
            let request = v1::TransferRequest {
                from_account_id: payment.from.clone(),
                to_account_id: payment.to.clone(),
                amount: payment.minor,
                currency: payment.currency.clone().unwrap_or_default(),
                memo: payment.memo.clone(),
                request_id: payment.request_id.clone(),
                timeout_ms,
            };
            let verdict = Verdict::of(client.transfer(request).await);
            turns.give_back(&payment.request_id);
            (payment, verdict)
        }
    };
    (line.number, line.end, payment, verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_with_one_request_id_take_turns() {
        let turns = Turns::default();
        turns.take("a").await;
        turns.take("b").await;
        let mut again = std::pin::pin!(turns.take("a"));
        assert!(futures::poll!(again.as_mut()).is_pending());
        turns.give_back("b");
        assert!(futures::poll!(again.as_mut()).is_pending());
        turns.give_back("a");
        assert!(futures::poll!(again.as_mut()).is_ready());
    }

    #[test]
    fn failed_lines_never_overwrite_the_payments() {
        let job = |path: &str, failed: Option<&str>| Job {
            path: path.into(),
            concurrency: 1,
            failed: failed.map(PathBuf::from),
        };
        let path = |path, failed| failed_path(&job(path, failed));
        assert_eq!(
            path("a.csv", None).unwrap(),
            PathBuf::from("a.csv.failed.csv")
        );
        assert_eq!(path("-", None).unwrap(), PathBuf::from("stdin.failed.csv"));
        assert!(path("a.csv", Some("a.csv")).is_err());
        assert!(path("/proc/self/exe", Some("/proc/self/../self/exe")).is_err());
    }
}
