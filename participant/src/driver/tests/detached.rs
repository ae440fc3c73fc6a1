//! How soon a branch is finished whose other connection was ended.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_detached_branch_is_finished_before_the_next_sweep_would_come() {
    let rm = Scripted::new();
    let (handle, _wishes) = started(&rm).await;
    assert_eq!(vote(handle.call(prepare(1, 1, "sql")).await), Vote::Commit);
    *rm.attached.lock().unwrap() = Some(branch(1));
    let answer = handle.call(abort(1, 1)).await;
    assert!(matches!(finish(answer), Finish::Retry(_)));
    let began = tokio::time::Instant::now();
    while handle.summary().await.unwrap().branches > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        began.elapsed() <= Duration::from_millis(100),
        "it held its locks for {:?}",
        began.elapsed()
    );
    let ended = ["prepare", "rollback", "tombstone", "detach", "rollback"];
    assert_eq!(rm.log(), ended);
}

/// What a connection rolls back may be large: the server is asked less and less often, and as soon
/// as before for the next one.
#[tokio::test(start_paused = true)]
async fn a_branch_that_stays_attached_is_looked_at_less_and_less_often() {
    let rm = Scripted::new();
    let (handle, _wishes) = started(&rm).await;
    for (n, lingers, at_least, at_most) in [(1, 5, 1_500, 1_700), (2, 0, 50, 100)] {
        assert_eq!(vote(handle.call(prepare(n, 1, "sql")).await), Vote::Commit);
        *rm.attached.lock().unwrap() = Some(branch(n));
        *rm.lingers.lock().unwrap() = lingers;
        let answer = handle.call(abort(n, 1)).await;
        assert!(matches!(finish(answer), Finish::Retry(_)));
        let began = tokio::time::Instant::now();
        while handle.summary().await.unwrap().branches > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let took = began.elapsed().as_millis();
        assert!((at_least..=at_most).contains(&took), "{took} ms");
        // Sweeps come as always again.
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    let detached = rm.log().iter().filter(|call| **call == "detach").count();
    assert_eq!(detached, 7);
}
