//! What may be forgotten, and in what steps.

use std::sync::Mutex;

use super::*;
use crate::log::{LogError, LogStats};

impl World {
    /// Everything before gets old, and something new has ended since.
    async fn grow_old(&self) {
        let hours = 2 * 3_600_000;
        self.machine.unix_ms.fetch_add(hours, Ordering::Relaxed);
        self.done(self.mint.mint(), None).await;
        sleep(2 * HOUR).await;
    }
}

/// A log that notes how many transactions each write deletes.
#[derive(Debug)]
struct Noting {
    log: MemoryLog,
    deleted: Arc<Mutex<Vec<usize>>>,
}

impl DecisionLog for Noting {
    fn append(&mut self, records: &[Record]) -> Result<(), LogError> {
        self.log.append(records)
    }

    fn forget(&mut self, gtrids: &[Gtrid], horizon: Gtrid) -> Result<(), LogError> {
        self.deleted.lock().unwrap().push(gtrids.len());
        self.log.forget(gtrids, horizon)
    }

    fn visit(&self, each: &mut dyn FnMut(Record)) -> Result<(), LogError> {
        self.log.visit(each)
    }

    fn stats(&self) -> LogStats {
        self.log.stats()
    }
}

/// After a long absence much is old at once, and no decision becomes durable within a step.
#[tokio::test(start_paused = true)]
async fn what_is_old_is_forgotten_in_steps() {
    const OLD: u64 = 25_000;
    let refused = |n| Record::Refused {
        gtrid: Gtrid::lowest_at(NOW_MS / 2 + n),
        request: Request {
            id: RequestId::new(format!("r{n}")),
            fingerprint: 1,
        },
        reason: Reason::new("INSUFFICIENT_FUNDS", "too little"),
    };
    let found: Vec<Record> = (0..OLD).map(refused).collect();
    for disk in [MOMENT, SECOND] {
        let deleted = Arc::<Mutex<Vec<usize>>>::default();
        let mut log = MemoryLog::new();
        log.append(&found).expect("a log");
        let log = Noting {
            log,
            deleted: deleted.clone(),
        };
        let _world = World::on(Some(disk / 2), log, &found).await;
        sleep(60 * SECOND).await;
        let steps = deleted.lock().unwrap().clone();
        assert!(steps.iter().all(|step| *step <= 10_000), "{steps:?}");
        // The last one there is stays, as the horizon is never above it.
        let all = u64::try_from(steps.iter().sum::<usize>()).expect("a number");
        assert_eq!(all, OLD - 1, "{steps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_horizon_does_not_pass_what_is_unfinished_at_a_participant() {
    let world = World::new(MOMENT).await;
    // Of a former coordinator, undecided: this one knows nothing of it, and nobody asks.
    let in_doubt = world.mint.mint();
    let younger = world.mint.mint();
    world.unfinished(1, 1, Some(in_doubt)).await;
    world.grow_old().await;
    assert_eq!(world.inquire(in_doubt).await, Decision::Abort);
    world.unfinished(1, 1, Some(younger)).await;
    sleep(10 * SECOND).await;
    assert_eq!(world.inquire(in_doubt).await, Decision::Forgotten);
    assert_eq!(world.inquire(younger).await, Decision::Abort);
    world.unfinished(1, 1, Some(Gtrid::MAX)).await;
    sleep(10 * SECOND).await;
    assert_eq!(world.inquire(younger).await, Decision::Forgotten);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forgotten_while_a_participant_cannot_tell_what_is_unfinished() {
    let mut world = World::new(MOMENT).await;
    let in_doubt = world.mint.mint();
    world.unfinished(2, 2, None).await;
    world.grow_old().await;
    assert_eq!(world.inquire(in_doubt).await, Decision::Abort);
    // What it told on a former link, or tells there late, is about a former life.
    world.unfinished(2, 2, Some(Gtrid::MAX)).await;
    world.link(2, 3).await;
    world.unfinished(2, 2, Some(Gtrid::MAX)).await;
    sleep(HOUR).await;
    assert_eq!(world.inquire(in_doubt).await, Decision::Abort);
    world.unfinished(2, 3, Some(Gtrid::MAX)).await;
    sleep(10 * SECOND).await;
    assert_eq!(world.inquire(in_doubt).await, Decision::Forgotten);
}
