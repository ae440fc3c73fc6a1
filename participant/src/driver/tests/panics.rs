//! What a panic stops in a call that belongs to no branch: that call, and no later one.

use tokio::time::timeout;

use super::*;

/// Panics as often as is said, and not with the count in hands.
pub(super) fn while_any_is_left(panics: &Mutex<u32>) {
    let left = {
        let mut panics = panics.lock().unwrap();
        let left = *panics;
        *panics = left.saturating_sub(1);
        left
    };
    assert_eq!(left, 0, "on purpose");
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_branches_are_listed_stops_no_later_sweep() {
    let rm = Scripted::new();
    let (handle, mut wishes) = started(&rm).await;
    assert_eq!(vote(handle.call(prepare(1, 1, "sql")).await), Vote::Commit);
    *rm.lists_panic.lock().unwrap() = 3;
    let asked = timeout(Duration::from_mins(1), wishes.inquire.changed()).await;
    asked.expect("a sweep").expect("a driver");
    assert_eq!(*wishes.inquire.borrow(), [branch(1)]);
    assert_eq!(*rm.lists_panic.lock().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_records_are_written_stops_no_later_append() {
    let rm = Scripted::new();
    let (handle, _wishes) = started(&rm).await;
    *rm.appends_panic.lock().unwrap() = 3;
    // A new epoch: nothing leaves before its record is durable.
    let voted = timeout(Duration::from_mins(1), handle.call(prepare(1, 2, "sql"))).await;
    assert_eq!(vote(voted.expect("an append")), Vote::Commit);
    let appended = rm.appended.lock().unwrap().clone();
    assert_eq!(appended, [vec![ParticipantRecord::Epoch(Epoch(2))]]);
    assert_eq!(*rm.appends_panic.lock().unwrap(), 0);
}
