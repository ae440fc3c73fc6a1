//! Who is told what when the driver ends.

use super::*;

/// Another coordinator took over.
async fn supersede(world: &World) {
    let branch = BranchId {
        gtrid: Gtrid::MIN,
        bqual: Bqual(1),
    };
    let stale = Call::Received {
        from: p(1),
        message: FromParticipant::Stale {
            branch,
            epoch: EPOCH,
            highest: Epoch(9),
        },
        results: Vec::new(),
        failed_statement: None,
    };
    world.calls.send(stale).await.expect("a driver");
}

#[tokio::test(start_paused = true)]
async fn who_joined_is_told_of_the_first_when_the_driver_ends() {
    for fails in [false, true] {
        let world = World::new(MOMENT).await;
        let first = world.mint.mint();
        let told = world.run(first, Some("r"), HOUR, None).await;
        let joined = world.run(world.mint.mint(), Some("r"), HOUR, None).await;
        let asked = known(world.repeat("r", 1).await).await;
        sleep(SECOND).await;
        if fails {
            supersede(&world).await;
        } else {
            world.stop.cancel();
        }
        let told = told.await.expect("an answer");
        assert!(
            matches!(&told, Told::Ended(ended) if ended.outcome == Outcome::Unknown(first)),
            "{told:?}"
        );
        for told in [joined, asked] {
            is_left_open(told.await.expect("an answer"), first);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_disk_is_told_of_the_first_when_the_driver_ends() {
    let world = World::new(4 * SECOND).await;
    let first = world.mint.mint();
    let _told = world.run(first, Some("r"), SECOND / 2, None).await;
    sleep(SECOND).await;
    // Its answer waits for the record of the first.
    let repeated = world.run(world.mint.mint(), Some("r"), HOUR, None).await;
    sleep(SECOND).await;
    world.stop.cancel();
    is_left_open(repeated.await.expect("an answer"), first);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_nobody_takes_any_more_is_told_what_is_known() {
    let world = World::new(MOMENT).await;
    let first = world.mint.mint();
    let _told = world.run(first, Some("r"), HOUR, None).await;
    sleep(SECOND).await;
    world.stop.cancel();
    let repeated = world.run(world.mint.mint(), Some("r"), HOUR, None).await;
    let fresh = world.run(world.mint.mint(), Some("s"), HOUR, None).await;
    let asked = world.repeat("r", 1).await;
    let other = world.repeat("r", 2).await;
    is_left_open(repeated.await.expect("an answer"), first);
    is_left_open(known(asked).await.await.expect("an answer"), first);
    is_refused(fresh.await.expect("an answer"), code::SHUTTING_DOWN);
    assert!(other.await.is_err(), "nobody says that it is not known");
}

/// What a lone transaction leaves to be written, the driver writes by itself, and then there is
/// nobody to wait for.
#[tokio::test]
async fn a_stop_soon_after_a_lone_commit_waits_for_nobody() {
    let mut world = World::on(None, MemoryLog::new(), &[]).await;
    let gtrid = world.mint.mint();
    let told = world.run(gtrid, None, HOUR, None).await;
    // Its record was written first. That it ended waits in line, for half a second at most.
    let sent = world.links[0].recv().await;
    assert!(
        matches!(&sent, Some(Outbound::Command { branch, .. }) if branch.gtrid == gtrid),
        "{sent:?}"
    );
    world.committed(gtrid).await;
    is_committed(told.await.expect("an answer"));
    world.stop.cancel();
    let ended = tokio::time::timeout(30 * SECOND, world.driver).await;
    let ended = ended.expect("it waits for what nobody writes");
    ended.expect("no panic").expect("no error");
}
