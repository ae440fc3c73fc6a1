//! The driver's books: who is told what, whose time is over, and what a wrong clock may do.
//!
//! Time is paused, and the disk takes as long as a test wants, but for the one that writes as a
//! daemon does.

use std::sync::atomic::{AtomicU64, Ordering};

use concord_core::id::{Bqual, Request, RequestId};
use concord_core::message::{Finish, FromParticipant, Outcome, Vote};
use concord_core::reason::{Reason, code};
use concord_core::transaction::Ack;
use concord_proto::model::Statement;
use concord_proto::v1;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;
use crate::engine::{AckMode, BranchWork, OneShot};
use crate::log::MemoryLog;
use crate::mint::Mint;

mod end;
mod retention;

const EPOCH: Epoch = Epoch(1);
const NOW_MS: u64 = 1_700_000_000_000;
/// Time between the tests' own looks.
const MOMENT: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);

/// A machine with a clock that can be set.
#[derive(Debug)]
struct Machine {
    unix_ms: AtomicU64,
    chance: AtomicU64,
    disk: Option<Duration>,
}

impl Surroundings for Machine {
    fn unix_ms(&self) -> u64 {
        self.unix_ms.load(Ordering::Relaxed)
    }

    fn random(&self) -> u128 {
        u128::from(self.chance.fetch_add(1, Ordering::Relaxed)) << 64
    }

    fn disk_pause(&self) -> Option<Duration> {
        self.disk
    }
}

struct World {
    calls: mpsc::Sender<Call>,
    machine: Arc<Machine>,
    mint: Mint,
    stop: CancellationToken,
    driver: JoinHandle<Result<(), DriverError>>,
    /// What the driver sends; the links are up as long as it is here.
    links: Vec<mpsc::UnboundedReceiver<Outbound>>,
}

fn p(n: u32) -> ParticipantName {
    ParticipantName::new(format!("p{n}"))
}

impl World {
    /// A driver with links to two participants, and a disk whose every write takes so long.
    async fn new(write: Duration) -> Self {
        let world = Self::on(Some(write / 2), MemoryLog::new(), &[]).await;
        sleep(2 * write + SECOND).await;
        world
    }

    /// The same on this log, in which these records were found. Without a time for the disk, the
    /// log is written as a daemon writes it, and time must not be paused.
    async fn on(disk: Option<Duration>, log: impl DecisionLog, found: &[Record]) -> Self {
        let machine = Arc::new(Machine {
            unix_ms: AtomicU64::new(NOW_MS),
            chance: AtomicU64::new(1),
            disk,
        });
        let surroundings: Arc<dyn Surroundings> = machine.clone();
        let mut coordinator = Coordinator::new();
        for record in [&Record::Epoch(EPOCH)].into_iter().chain(found) {
            coordinator.apply(record).expect("a record");
        }
        let (driver, calls) = Driver::new(Parts {
            recovered: Recovered {
                machine: coordinator,
                incarnations: BTreeMap::new(),
                witnesses: Witnesses::default(),
            },
            log,
            config: DriverConfig {
                max_in_flight: 100,
                max_in_flight_bytes: 1 << 20,
                retention: HOUR,
                max_remembered: 100,
                forget_interval: SECOND,
            },
            history: History::new(100, EPOCH, surroundings.clone()),
            counters: Arc::default(),
            participants: vec![p(1), p(2)],
            accepted: BTreeMap::new(),
            surroundings: surroundings.clone(),
        })
        .expect("a driver");
        let stop = CancellationToken::new();
        let driver = tokio::spawn(driver.run(stop.clone()));
        let mut world = Self {
            calls,
            machine,
            mint: Mint::above(Gtrid::MIN, surroundings),
            stop,
            driver,
            links: Vec::new(),
        };
        for n in 1..=2 {
            world.link(n, u64::from(n)).await;
            world.unfinished(n, u64::from(n), Some(Gtrid::MAX)).await;
        }
        world
    }

    /// A link comes up, in place of the one before.
    async fn link(&mut self, n: u32, generation: u64) {
        let (sender, outbound) = mpsc::unbounded_channel();
        self.links.push(outbound);
        let up = |answer| Call::LinkUp {
            participant: p(n),
            data: Data {
                incarnation: format!("data-{n}"),
                missing: None,
            },
            generation,
            sender,
            answer,
        };
        let accepted = self.ask(up).await.await.expect("an answer");
        accepted.expect("a link");
    }

    /// A participant tells on a link what is unfinished there.
    async fn unfinished(&self, n: u32, generation: u64, from: Option<Gtrid>) {
        let unfinished = Call::Unfinished {
            participant: p(n),
            generation,
            from,
        };
        self.calls.send(unfinished).await.expect("a driver");
    }

    /// What `p1` would be told of a branch.
    async fn inquire(&self, gtrid: Gtrid) -> Decision {
        let inquire = |answer| Call::Inquire {
            from: p(1),
            branch: BranchId {
                gtrid,
                bqual: Bqual(1),
            },
            answer,
        };
        self.ask(inquire).await.await.expect("an answer")
    }

    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> oneshot::Receiver<T> {
        let (answer, wait) = oneshot::channel();
        self.calls.send(call(answer)).await.expect("a driver");
        wait
    }

    /// Sends a transaction with one branch, on `p1`.
    async fn run(
        &self,
        gtrid: Gtrid,
        request: Option<&str>,
        timeout: Duration,
        down: Option<Reason>,
    ) -> oneshot::Receiver<Told> {
        let tx = Box::new(Self::on_one(p(1), gtrid, request, timeout));
        self.ask(|answer| Call::Run { tx, down, answer }).await
    }

    /// A transaction with one branch.
    fn on_one(
        participant: ParticipantName,
        gtrid: Gtrid,
        request: Option<&str>,
        timeout: Duration,
    ) -> OneShot {
        OneShot {
            gtrid,
            branches: vec![BranchWork {
                participant,
                statements: Vec::new(),
            }],
            request: request.map(|id| Request {
                id: RequestId::new(id),
                fingerprint: 1,
            }),
            isolation: None,
            ack: AckMode::Applied,
            timeout,
        }
    }

    /// Asks what became of a request, with this fingerprint.
    async fn repeat(
        &self,
        id: &str,
        fingerprint: u64,
    ) -> oneshot::Receiver<Option<oneshot::Receiver<Told>>> {
        let request = Request {
            id: RequestId::new(id),
            fingerprint,
        };
        let gtrid = self.mint.mint();
        let repeat = |answer| Call::Repeat {
            gtrid,
            request,
            answer,
        };
        self.ask(repeat).await
    }

    /// Runs one to its end, as new.
    async fn done(&self, gtrid: Gtrid, request: Option<&str>) {
        let told = self.run(gtrid, request, HOUR, None).await;
        sleep(SECOND).await;
        self.committed(gtrid).await;
        is_committed(told.await.expect("an answer"));
    }

    async fn begin(&self, timeout: Duration) -> Result<Gtrid, Reason> {
        let gtrid = self.mint.mint();
        let begin = |answer| Call::Begin {
            gtrid,
            isolation: None,
            timeout,
            answer,
        };
        let begun = self.ask(begin).await.await.expect("an answer");
        begun.map(|()| gtrid)
    }

    async fn commit(&self, gtrid: Gtrid) -> oneshot::Receiver<Told> {
        let ack = Ack::Applied;
        self.ask(|answer| Call::Commit { gtrid, ack, answer }).await
    }

    async fn rollback(&self, gtrid: Gtrid) -> oneshot::Receiver<Told> {
        let reason = Reason::new(code::ROLLED_BACK, "wanted");
        let rollback = |answer| Call::Rollback {
            gtrid,
            reason,
            answer,
        };
        self.ask(rollback).await
    }

    /// A statement of it failed, or was none.
    async fn statement_failed(&self, gtrid: Gtrid) {
        let failed = Some(Reason::new(code::INVALID_FIELD, "no SQL"));
        let done = Call::StatementDone { gtrid, failed };
        self.calls.send(done).await.expect("a driver");
    }

    /// `p1` says that it committed its branch.
    async fn committed(&self, gtrid: Gtrid) {
        let branch = BranchId {
            gtrid,
            bqual: Bqual(1),
        };
        let received = Call::Received {
            from: p(1),
            message: FromParticipant::Finished {
                branch,
                epoch: EPOCH,
                finish: Finish::Committed,
            },
            results: Vec::new(),
            failed_statement: None,
        };
        self.calls.send(received).await.expect("a driver");
    }
}

fn is_committed(told: Told) {
    assert!(
        matches!(&told, Told::Ended(ended) if ended.outcome == Outcome::Committed),
        "{told:?}"
    );
}

/// What a request comes to that is known.
async fn known(
    repeated: oneshot::Receiver<Option<oneshot::Receiver<Told>>>,
) -> oneshot::Receiver<Told> {
    repeated.await.expect("an answer").expect("a known request")
}

/// It joined this one, of which nobody knows how it ends.
fn is_left_open(told: Told, as_first: Gtrid) {
    assert!(
        matches!(&told, Told::Replayed { first, outcome: Outcome::Unknown(of) }
            if *first == as_first && *of == as_first),
        "{told:?}"
    );
}

fn is_refused(told: Told, code: &str) {
    assert!(
        matches!(&told, Told::Refused(reason) if &*reason.code == code),
        "{told:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_time_out_within_a_slow_write_takes_nobody_elses() {
    let world = World::new(2 * SECOND).await;
    let first = world.mint.mint();
    // It is over before the record of its only branch is written.
    let told = world.run(first, None, SECOND / 2, None).await;
    sleep(SECOND).await;
    let second = world.begin(3 * SECOND).await.expect("a transaction");
    let told = told.await.expect("an answer");
    assert!(
        matches!(&told, Told::Ended(ended) if ended.outcome == Outcome::Unknown(first)),
        "{told:?}"
    );
    sleep(4 * SECOND).await;
    let told = world.commit(second).await.await.expect("an answer");
    is_refused(told, code::TRANSACTION_NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn each_call_gets_its_own_refusal() {
    let world = World::new(2 * SECOND).await;
    let gtrid = world.begin(HOUR).await.expect("a transaction");
    let enlist = |answer| Call::Enlist {
        gtrid,
        participant: p(1),
        down: None,
        answer,
    };
    let enlisted = world.ask(enlist).await.await.expect("an answer");
    enlisted.expect("a branch");
    let failed = None;
    let done = Call::StatementDone { gtrid, failed };
    world.calls.send(done).await.expect("a driver");
    // The decision is handed to its only branch, and on its way to the disk.
    let first = world.commit(gtrid).await;
    let rollback = world.rollback(gtrid).await;
    let second = world.commit(gtrid).await;
    world.statement_failed(gtrid).await;
    is_refused(rollback.await.expect("an answer"), code::WRONG_STATE);
    world.committed(gtrid).await;
    is_committed(first.await.expect("an answer"));
    is_committed(second.await.expect("an answer"));
}

#[tokio::test(start_paused = true)]
async fn nobody_elses_statement_ends_a_transaction_that_came_whole() {
    let world = World::new(MOMENT).await;
    let gtrid = world.mint.mint();
    let told = world.run(gtrid, None, HOUR, None).await;
    world.statement_failed(gtrid).await;
    sleep(SECOND).await;
    world.statement_failed(gtrid).await;
    world.committed(gtrid).await;
    is_committed(told.await.expect("an answer"));
}

#[tokio::test(start_paused = true)]
async fn with_its_server_away_nothing_new_begins_and_a_repetition_is_recognised() {
    let world = World::new(MOMENT).await;
    let away = || Some(Reason::new(code::SERVER_DOWN, "away"));
    let first = world.mint.mint();
    let told = world.run(first, Some("r"), HOUR, None).await;
    let repeated = world.run(world.mint.mint(), Some("r"), HOUR, away()).await;
    let fresh = world.run(world.mint.mint(), Some("s"), HOUR, away()).await;
    is_refused(fresh.await.expect("an answer"), code::SERVER_DOWN);
    sleep(SECOND).await;
    world.committed(first).await;
    is_committed(told.await.expect("an answer"));
    let told = repeated.await.expect("an answer");
    assert!(
        matches!(&told, Told::Replayed { first: of, .. } if *of == first),
        "{told:?}"
    );
    let numbers = |answer| Call::Numbers { answer };
    let numbers = world.ask(numbers).await.await.expect("an answer");
    assert_eq!((numbers.active, numbers.committing), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_ahead_forgets_nothing_and_stops_nothing() {
    let world = World::new(MOMENT).await;
    let first = world.mint.mint();
    world.done(first, Some("r")).await;
    world.done(world.mint.mint(), None).await;
    let ahead = 3 * 3_600_000;
    world.machine.unix_ms.fetch_add(ahead, Ordering::Relaxed);
    sleep(10 * SECOND).await;
    world.machine.unix_ms.fetch_sub(ahead, Ordering::Relaxed);
    let told = world.run(world.mint.mint(), Some("r"), HOUR, None).await;
    let told = told.await.expect("an answer");
    assert!(
        matches!(&told, Told::Replayed { first: of, .. } if *of == first),
        "{told:?}"
    );
    // What is old is forgotten as before.
    world.done(world.mint.mint(), None).await;
    world
        .machine
        .unix_ms
        .fetch_add(2 * 3_600_000, Ordering::Relaxed);
    sleep(2 * HOUR).await;
    world.done(world.mint.mint(), Some("r")).await;
}

#[tokio::test(start_paused = true)]
async fn with_its_server_away_no_new_branch_is_begun_and_an_old_one_goes_on() {
    let world = World::new(MOMENT).await;
    let gtrid = world.begin(HOUR).await.expect("a transaction");
    let enlist = async |n, down| {
        let enlist = |answer| Call::Enlist {
            gtrid,
            participant: p(n),
            down,
            answer,
        };
        let enlisted = world.ask(enlist).await.await.expect("an answer");
        let failed = None;
        let done = Call::StatementDone { gtrid, failed };
        world.calls.send(done).await.expect("a driver");
        enlisted.map(|enlisted| enlisted.new)
    };
    let away = || Some(Reason::new(code::READ_ONLY_SERVER, "it takes no writes"));
    assert_eq!(enlist(1, None).await, Ok(true));
    assert_eq!(enlist(1, away()).await, Ok(false));
    let refused = enlist(2, away()).await.map_err(|reason| reason.code);
    assert_eq!(refused, Err(code::READ_ONLY_SERVER.into()));
}

/// Its participant was taken out of the configuration since.
#[tokio::test(start_paused = true)]
async fn a_repetition_on_a_participant_that_was_taken_out_is_recognised() {
    let world = World::new(MOMENT).await;
    let first = world.mint.mint();
    world.done(first, Some("r")).await;
    let again = async |request: Option<&str>| {
        let tx = Box::new(World::on_one(p(3), world.mint.mint(), request, HOUR));
        let run = |answer| Call::Run {
            tx,
            down: None,
            answer,
        };
        world.ask(run).await.await.expect("an answer")
    };
    is_refused(again(None).await, code::PARTICIPANT_NOT_FOUND);
    let told = again(Some("r")).await;
    assert!(
        matches!(&told, Told::Replayed { first: of, outcome: Outcome::Committed } if *of == first),
        "{told:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_is_recognised_by_whoever_cannot_say_what_it_does() {
    let world = World::new(MOMENT).await;
    let nothing = world.repeat("r", 1).await.await.expect("an answer");
    assert!(nothing.is_none(), "{nothing:?}");
    let first = world.mint.mint();
    let told = world.run(first, Some("r"), HOUR, None).await;
    let joined = known(world.repeat("r", 1).await).await;
    sleep(SECOND).await;
    world.committed(first).await;
    is_committed(told.await.expect("an answer"));
    for told in [joined, known(world.repeat("r", 1).await).await] {
        let told = told.await.expect("an answer");
        assert!(
            matches!(&told, Told::Replayed { first: of, .. } if *of == first),
            "{told:?}"
        );
    }
    let other = known(world.repeat("r", 2).await).await;
    is_refused(other.await.expect("an answer"), code::REQUEST_ID_REUSED);
    let numbers = |answer| Call::Numbers { answer };
    let numbers = world.ask(numbers).await.await.expect("an answer");
    assert_eq!((numbers.active, numbers.awaited), (0, 0));
}

/// Runs a transaction of one statement at both participants, and brings votes COMMIT with these
/// results.
async fn voted_with(results: [Vec<v1::StatementResult>; 2]) -> Told {
    let world = World::new(MOMENT).await;
    let gtrid = world.mint.mint();
    let statement = || Statement {
        sql: "SELECT 1".into(),
        params: Vec::new(),
        expect: None,
    };
    let branches = (1..=2).map(|n| BranchWork {
        participant: p(n),
        statements: vec![statement()],
    });
    let tx = Box::new(OneShot {
        gtrid,
        branches: branches.collect(),
        request: None,
        isolation: None,
        ack: AckMode::Decided,
        timeout: HOUR,
    });
    let run = |answer| Call::Run {
        tx,
        down: None,
        answer,
    };
    let told = world.ask(run).await;
    for (n, results) in (1..).zip(results) {
        let received = Call::Received {
            from: p(n),
            message: FromParticipant::Voted {
                branch: BranchId {
                    gtrid,
                    bqual: Bqual(n),
                },
                epoch: EPOCH,
                vote: Vote::Commit,
            },
            results,
            failed_statement: None,
        };
        world.calls.send(received).await.expect("a driver");
    }
    told.await.expect("an answer")
}

fn result(text: &str) -> v1::StatementResult {
    let value = v1::Value {
        kind: Some(v1::value::Kind::String(text.to_owned())),
    };
    v1::StatementResult {
        result: vec![v1::Row {
            values: vec![value],
        }],
        ..v1::StatementResult::default()
    }
}

fn is_aborted(told: &Told, code: &str) {
    let Told::Ended(Ended {
        outcome: Outcome::Aborted(reason),
        ..
    }) = told
    else {
        panic!("{told:?}");
    };
    assert_eq!(&*reason.code, code);
}

#[tokio::test(start_paused = true)]
async fn results_beyond_the_limit_are_a_vote_against_the_transaction() {
    let large = || vec![result(&"x".repeat(9 << 20))];
    let told = voted_with([large(), large()]).await;
    is_aborted(&told, code::RESULT_TOO_LARGE);
}

/// A repeated Prepare is answered without them.
#[tokio::test(start_paused = true)]
async fn a_vote_without_its_results_is_one_against_the_transaction() {
    let told = voted_with([vec![result("a")], Vec::new()]).await;
    is_aborted(&told, code::RESULT_LOST);
    let Told::Ended(ended) = voted_with([vec![result("a")], vec![result("b")]]).await else {
        panic!("not ended");
    };
    assert_eq!(ended.outcome, Outcome::Committed);
    assert_eq!(ended.results, [[result("a")], [result("b")]]);
}
