//! Whoever watches one transaction is told of its end, however slow it is.

use std::sync::Arc;
use std::time::Duration;

use concord_coordinator::gateway::transactions::TransactionGateway;
use concord_coordinator::handle::Handle;
use concord_coordinator::history::History;
use concord_coordinator::mint::Mint;
use concord_coordinator::participants::Participants;
use concord_coordinator::surroundings::Machine;
use concord_core::coordinator::Effect;
use concord_core::id::{Epoch, Gtrid};
use concord_core::transaction::TransactionState;
use concord_proto::v1;
use concord_proto::v1::transaction_service_server::TransactionService as _;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tonic::Request;

/// More changes than are kept for a slow watcher.
const MANY: usize = 20_000;

#[tokio::test]
async fn an_end_among_changes_that_were_missed_is_told() {
    let history = History::new(100, Epoch(1), Arc::new(Machine));
    let mint = Arc::new(Mint::above(Gtrid::MIN, Arc::new(Machine)));
    let (watched, other) = (mint.mint(), mint.mint());
    let (calls, _driver) = mpsc::channel(1);
    let nobody = Participants::new(Vec::new());
    let handle = Handle::new(calls, mint, nobody, Arc::default());
    let gateway = TransactionGateway::new(handle, history.clone(), Arc::default(), Epoch(1));
    let change = |gtrid, state| {
        history.note(&Effect::Changed {
            gtrid,
            state,
            reason: None,
        });
    };
    for gtrid in [watched, other] {
        let request = None;
        history.note(&Effect::Began { gtrid, request });
    }
    let request = v1::WatchTransactionsRequest {
        gtrid: watched.to_string(),
    };
    let stream = gateway.watch_transactions(Request::new(request)).await;
    let mut stream = stream.expect("a stream").into_inner();
    change(watched, TransactionState::Committed);
    for _ in 0..MANY {
        change(other, TransactionState::Preparing);
    }
    let told = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
    let told = told
        .expect("it is told")
        .expect("a change")
        .expect("no error");
    assert_eq!(told.gtrid, watched.to_string());
    assert_eq!(told.state(), v1::TransactionState::Committed);
    assert!(told.missed > 0, "{told:?}");
}
