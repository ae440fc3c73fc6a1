//! What statements returned finds its way to whoever waits for the answer.

use super::*;

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_vote_gets_its_results() {
    let rm = Scripted::new();
    rm.prepares.forget_permits(usize::MAX);
    let (handle, _wishes) = started(&rm).await;
    let first = call(&handle, prepare(1, 1, "sql"));
    settle().await;
    let second = call(&handle, prepare(1, 1, "sql"));
    settle().await;
    rm.prepares.add_permits(1);
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!(first, second);
    let Answer::Voted(voted) = first else {
        panic!("{first:?}");
    };
    assert_eq!((voted.vote, voted.results.len()), (Vote::Commit, 1));
    let Answer::Voted(late) = handle.call(prepare(1, 1, "sql")).await else {
        panic!("no vote");
    };
    assert_eq!((late.vote, late.results.len()), (Vote::Commit, 0));
}

fn committed_with_results(answer: &Answer) {
    let Answer::Finished(finished) = answer else {
        panic!("not an end: {answer:?}");
    };
    assert_eq!(
        (&finished.finish, finished.results.len()),
        (&Finish::Committed, 1)
    );
}

/// An Abort asks how a commit in one phase ended whose answer went with its link.
#[tokio::test(start_paused = true)]
async fn whoever_asks_how_a_commit_ended_gets_its_results() {
    let rm = Scripted::new();
    rm.prepares.forget_permits(usize::MAX);
    let (handle, _wishes) = started(&rm).await;
    let order = call(&handle, one_phase("sql"));
    settle().await;
    let question = call(&handle, abort(1, 1));
    settle().await;
    rm.prepares.add_permits(1);
    committed_with_results(&order.await.unwrap());
    committed_with_results(&question.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_found_later_brings_what_its_statements_returned() {
    let rm = Scripted::new();
    let found = [Err(down()), Ok(LedgerEntry::Committed)];
    rm.tombstones.lock().unwrap().extend(found);
    let (handle, _wishes) = started(&rm).await;
    let told = finish(handle.call(one_phase("silence")).await);
    assert!(matches!(told, Finish::Retry(_)), "{told:?}");
    committed_with_results(&handle.call(abort(1, 1)).await);
}
