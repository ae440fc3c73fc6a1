//! Runs a payment file: reads it as a stream, keeps some payments in flight, tells what became of
//! each.
//!
//! That nothing is paid twice is the coordinator's work, by request id; this module's part is
//! never to send a payment without one.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::sync::{Notify, mpsc, oneshot};
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

/// What Ctrl-C asks for.
#[derive(Clone, Debug, Default)]
struct Stops {
    /// To begin nothing new, and to wait for what is in flight.
    first: CancellationToken,
    /// To wait for nothing.
    second: CancellationToken,
}

/// A payment file while it is run.
#[derive(Debug)]
struct Run {
    client: Client,
    timeout_ms: u32,
    concurrency: usize,
    stops: Stops,
    progress: ProgressBar,
    failed: FailedLines,
    summary: Summary,
}

pub(super) async fn run(ctx: &Ctx, job: Job) -> Result<(), Failure> {
    let (lines, size) = open(&job.path)?;
    for name in &lines.ignored {
        output::note(&format!("warning: the column \"{name}\" is ignored"));
    }
    let failed = FailedLines::create(failed_path(&job)?)?;
    let progress = progress(size);
    let stops = stop_on_ctrl_c(&progress);
    let policy = RetryPolicy::lasting(ctx.global.retry_for.unwrap_or(RETRY_FOR));
    let mut run = Run {
        client: ctx.client.with_retry(policy).with_stop(stops.first.clone()),
        timeout_ms: crate::oneshot::millis(ctx.timeout),
        concurrency: job.concurrency,
        stops,
        progress,
        failed,
        summary: Summary::default(),
    };
    let started = Instant::now();
    let end = run.pay_all(lines).await;
    let took = started.elapsed();
    let print = |value: &Value, text: &str| ctx.print(value, || text.to_owned());
    let end = end.map_err(|error| {
        Failure::new(Exit::Other, "the payment file was not read to its end")
            .why(error)
            .next("mend it and run the file again: nothing is paid twice")
    });
    let failed = run.failed.finish();
    let (exit, failures) = conclude(&run.summary, took, failed, end, print, output::note);
    failures.iter().for_each(output::complain);
    match exit {
        Exit::Done => Ok(()),
        exit => Err(Failure::silent(exit)),
    }
}

/// Tells the summary of a run, on stderr if it cannot be printed. Gives back what went wrong beside
/// the payments, and the exit code of the gravest news: that nobody knows what became of a payment
/// is graver than a disk that is full.
fn conclude(
    summary: &Summary,
    took: Duration,
    failed: Result<Option<PathBuf>, Failure>,
    end: Result<(), Failure>,
    print: impl FnOnce(&Value, &str) -> Result<(), Failure>,
    note: impl FnOnce(&str),
) -> (Exit, Vec<Failure>) {
    let (failed, unwritten) = match failed {
        Ok(failed) => (failed, None),
        Err(failure) => (None, Some(failure)),
    };
    let text = summary.text(took, failed.as_deref());
    let unprinted = print(&summary.json(took, failed.as_deref()), &text).err();
    if unprinted.is_some() {
        note(&text);
    }
    let failures = [unwritten, unprinted, end.err()].into_iter().flatten();
    let failures: Vec<Failure> = failures.collect();
    let codes = failures.iter().map(Failure::code);
    (codes.fold(summary.exit(), Exit::max), failures)
}

impl Run {
    /// Pays line by line until the file ends or is stopped. The error is one of reading it.
    async fn pay_all(&mut self, lines: Input) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel(self.concurrency);
        let mut end = read_aside(lines, sender, self.stops.first.clone())?;
        let (client, stops, timeout_ms) =
            (self.client.clone(), self.stops.clone(), self.timeout_ms);
        let turns = Turns::default();
        let results = handed_out(receiver, &stops.first)
            .map(|line| pay(&client, &turns, timeout_ms, line))
            .buffer_unordered(self.concurrency);
        let mut results = pin!(results);
        while let Some((number, end, payment, verdict)) = tokio::select! {
            biased;
            result = results.next() => result,
            () = stops.second.cancelled() => None,
        } {
            self.add(number, &payment, &verdict);
            let position = self.progress.position().max(end);
            self.progress.set_position(position);
            let (done, failed) = (self.summary.done(), self.summary.failed());
            self.progress
                .set_message(format!("{done} done, {failed} failed"));
        }
        for (number, payment, verdict) in turns.left() {
            self.add(number, &payment, &verdict);
            self.summary.interrupted = true;
        }
        self.progress.finish_and_clear();
        let read_all = match end.try_recv() {
            Ok(end) => end?,
            // Stopped, while it read.
            Err(oneshot::error::TryRecvError::Empty) => false,
            Err(oneshot::error::TryRecvError::Closed) => {
                return Err(io::Error::other("whoever read it is gone"));
            }
        };
        self.summary.interrupted |= stops.first.is_cancelled() && !read_all;
        Ok(())
    }

    fn add(&mut self, number: u64, payment: &Payment, verdict: &Verdict) {
        self.summary.add(verdict);
        if let Some(line) = self.failed.add(number, payment, verdict) {
            self.progress.suspend(|| output::note(&line));
        }
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

/// The first Ctrl-C ends the run cleanly, a second one without waiting for answers.
fn stop_on_ctrl_c(progress: &ProgressBar) -> Stops {
    let stops = Stops::default();
    let (asked, progress) = (stops.clone(), progress.clone());
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_err() {
            return;
        }
        asked.first.cancel();
        progress.suspend(|| {
            output::note(
                "stopping: waiting for payments in flight (Ctrl-C again leaves them unknown)",
            );
        });
        if tokio::signal::ctrl_c().await.is_err() {
            return;
        }
        asked.second.cancel();
        // What is left to do is short, unless a disk or a reader of stdout hangs.
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(i32::from(Exit::Interrupted as u8));
        }
    });
    stops
}

/// Reads the file on a thread that nobody waits for: it may sit in a read of a terminal or a pipe
/// that is never answered. How it ended is told before the sender of lines is dropped.
fn read_aside(
    lines: Input,
    sender: mpsc::Sender<Line>,
    stop: CancellationToken,
) -> io::Result<oneshot::Receiver<io::Result<bool>>> {
    let (tell, end) = oneshot::channel();
    thread::Builder::new().spawn(move || {
        // Nobody is there to hear it when the run was left.
        let _ = tell.send(feed(lines, &sender, &stop));
        drop(sender);
    })?;
    Ok(end)
}

/// The lines as they are read; once stopped, only those that were read by then.
fn handed_out(
    receiver: mpsc::Receiver<Line>,
    stop: &CancellationToken,
) -> impl Stream<Item = Line> {
    stream::unfold(receiver, async move |mut receiver| {
        let line = tokio::select! {
            biased;
            line = receiver.recv() => line,
            () = stop.cancelled() => None,
        };
        line.map(|line| (line, receiver))
    })
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

/// The payments in flight, by request id. Lines with the same one take turns, so that the second
/// is told apart as a repetition of the first.
#[derive(Debug, Default)]
struct Turns {
    payments: Mutex<Payments>,
    given_back: Notify,
}

#[derive(Debug, Default)]
struct Payments {
    in_flight: BTreeMap<String, (u64, Payment)>,
    /// Those whose turn has not come, by number.
    waiting: BTreeMap<u64, Payment>,
}

impl Turns {
    async fn take(&self, number: u64, payment: &Payment) {
        loop {
            let given_back = self.given_back.notified();
            {
                let mut payments = self.lock();
                let id = payment.request_id.clone();
                if let Entry::Vacant(turn) = payments.in_flight.entry(id) {
                    turn.insert((number, payment.clone()));
                    payments.waiting.remove(&number);
                    return;
                }
                payments.waiting.insert(number, payment.clone());
            }
            given_back.await;
        }
    }

    fn give_back(&self, request_id: &str) {
        self.lock().in_flight.remove(request_id);
        self.given_back.notify_waiters();
    }

    /// The payments that are still in flight, and those that wait for their turn, with the numbers
    /// of their lines and what a second Ctrl-C makes of them.
    fn left(&self) -> Vec<(u64, Payment, Verdict)> {
        let payments = self.lock();
        let why = "Ctrl-C came a second time before its answer";
        let unknown = |(number, payment): &(u64, Payment)| {
            (*number, payment.clone(), Verdict::Unknown(why.to_owned()))
        };
        let not_tried =
            |(number, payment): (&u64, &Payment)| (*number, payment.clone(), Verdict::NotTried);
        let in_flight = payments.in_flight.values().map(unknown);
        in_flight
            .chain(payments.waiting.iter().map(not_tried))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Payments> {
        self.payments.lock().unwrap_or_else(PoisonError::into_inner)
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
            turns.take(line.number, &payment).await;
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

    fn payment(request_id: &str) -> Payment {
        Payment {
            request_id: request_id.into(),
            ..Payment::default()
        }
    }

    #[tokio::test]
    async fn lines_with_one_request_id_take_turns() {
        let turns = Turns::default();
        let (a, b) = (payment("a"), payment("b"));
        turns.take(2, &a).await;
        turns.take(3, &b).await;
        let mut again = std::pin::pin!(turns.take(4, &a));
        assert!(futures::poll!(again.as_mut()).is_pending());
        turns.give_back("b");
        assert!(futures::poll!(again.as_mut()).is_pending());
        turns.give_back("a");
        assert!(futures::poll!(again.as_mut()).is_ready());
        let left: Vec<u64> = turns.left().iter().map(|(number, ..)| *number).collect();
        assert_eq!(left, [4]);
    }

    fn run_on(endpoint: &str, failed: PathBuf) -> Run {
        Run {
            client: Client::connect(endpoint).unwrap(),
            timeout_ms: 60_000,
            concurrency: 4,
            stops: Stops::default(),
            progress: ProgressBar::hidden(),
            failed: FailedLines::create(failed).unwrap(),
            summary: Summary::default(),
        }
    }

    fn lines(reader: impl io::Read + Send + 'static) -> Input {
        let reader: Box<dyn BufRead + Send> = Box::new(BufReader::new(reader));
        Lines::open(reader).unwrap().unwrap()
    }

    /// A terminal at which nobody types on.
    struct Silent {
        text: &'static [u8],
        asked: Option<oneshot::Sender<()>>,
        over: std::sync::mpsc::Receiver<()>,
    }

    impl io::Read for Silent {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.text.is_empty() {
                if let Some(asked) = self.asked.take() {
                    asked.send(()).unwrap();
                }
                let _ = self.over.recv();
            }
            self.text.read(buf)
        }
    }

    /// One with a text, what tells that it was asked for more, and what it sits there for.
    fn silent(text: &'static [u8]) -> (Silent, oneshot::Receiver<()>, std::sync::mpsc::Sender<()>) {
        let (asked, read) = oneshot::channel();
        let (release, over) = std::sync::mpsc::channel();
        let asked = Some(asked);
        (Silent { text, asked, over }, read, release)
    }

    #[tokio::test]
    async fn a_stopped_run_does_not_wait_for_a_reader_that_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = run_on("http://127.0.0.1:1", folder.path().join("f.csv"));
        let (silent, blocked, release) = silent(b"request_id,from,to,amount\n");
        let stop = run.stops.first.clone();
        let ended = tokio::time::timeout(Duration::from_secs(20), async {
            let (end, ()) = tokio::join!(run.pay_all(lines(silent)), async {
                blocked.await.unwrap();
                stop.cancel();
            });
            end
        });
        let ended = ended.await;
        drop(release);
        ended.expect("nothing is in flight").unwrap();
        assert_eq!(run.summary.exit(), Exit::Interrupted);
    }

    #[tokio::test]
    async fn a_second_stop_leaves_payments_behind_as_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let failed = folder.path().join("f.csv");
        // It takes connections, and never answers.
        let path = folder.path().join("gateway");
        let gateway = tokio::net::UnixListener::bind(&path).unwrap();
        let mut run = run_on(&format!("unix:{}", path.display()), failed.clone());
        let stops = run.stops.clone();
        // The second waits for the turn of its id.
        let (silent, read, _release) = silent(b"request_id,from,to,amount\nr1,a,b,5\nr1,a,b,5\n");
        let (end, _connection) = tokio::join!(run.pay_all(lines(silent)), async {
            let connection = gateway.accept().await.unwrap();
            read.await.unwrap();
            stops.first.cancel();
            stops.second.cancel();
            connection
        });
        end.unwrap();
        assert_eq!(run.summary.exit(), Exit::Interrupted);
        let told = run.summary.json(Duration::ZERO, None);
        assert_eq!(
            (run.summary.failed(), &told["not_tried"]),
            (1, &Value::from(1))
        );
        assert_eq!(run.failed.finish().unwrap(), Some(failed.clone()));
        let text = std::fs::read_to_string(&failed).unwrap();
        assert!(
            text.contains("2,r1,a,b,5,,unknown,OUTCOME_UNKNOWN,"),
            "{text}"
        );
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 2, "the socket and the failed line");
    }

    #[test]
    fn what_cannot_be_written_hides_neither_the_counts_nor_what_is_unknown() {
        let mut summary = Summary::default();
        summary.add(&Verdict::Unknown("no answer".into()));
        let full = || Failure::new(Exit::Other, "the disk is full");
        let mut told = String::new();
        let took = Duration::from_secs(1);
        let (exit, failures) = conclude(
            &summary,
            took,
            Err(full()),
            Err(full()),
            |_, _| Err(full()),
            |text| text.clone_into(&mut told),
        );
        assert_eq!((exit, failures.len()), (Exit::Unknown, 3));
        assert!(told.contains("unknown"), "{told}");
        let printed = |_: &Value, text: &str| {
            assert!(text.contains("committed"), "{text}");
            Ok(())
        };
        let nobody = |text: &str| panic!("told twice: {text}");
        let well = Summary::default();
        let (exit, failures) = conclude(&well, took, Ok(None), Ok(()), printed, nobody);
        assert_eq!((exit, failures.len()), (Exit::Done, 0));
        let (exit, failures) = conclude(&well, took, Err(full()), Ok(()), printed, nobody);
        assert_eq!((exit, failures.len()), (Exit::Other, 1));
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
