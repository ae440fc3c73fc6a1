//! A ledger schema that an older participant left.

use concord_core::id::{Bqual, BranchId, Gtrid};
use concord_participant::resource::mysql::xa::{Xids, hex};
use concord_proto::v1;
use concord_proto::v1::{Decision, Vote};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::PLUS;
use super::harness::{World, branch, code, on_every_server, prepare, until};

/// Prepares a branch as the version before did, and leaves it.
async fn prepared_by_the_version_before(world: &World, branch: &v1::BranchRef, request: &str) {
    let gtrid: [u8; 16] = branch.gtrid.as_slice().try_into().expect("a gtrid");
    let xid = Xids::new("test").text(BranchId {
        gtrid: Gtrid(gtrid),
        bqual: Bqual(branch.bqual),
    });
    let text = format!(
        "XA START {xid}; INSERT INTO concord.ledger \
         (gtrid,bqual,state,connection_id,request_id) VALUES (x'{}',{},1,1,'{request}'); {PLUS}; \
         XA END {xid}; XA PREPARE {xid}",
        hex(&gtrid),
        branch.bqual
    );
    let mut root = world.server.root().await.expect("root");
    root.execute(sqlx::raw_sql(AssertSqlSafe(text)))
        .await
        .expect("it prepares");
    root.close().await.expect("it closes");
}

fn with_request(branch: &v1::BranchRef, fingerprint: u64) -> v1::PrepareRequest {
    let mut request = prepare(branch, &[PLUS]);
    request.work = request.work.map(|work| v1::Work {
        request_id: "old".to_owned(),
        request_fingerprint: fingerprint,
        ..work
    });
    request
}

#[test]
fn what_is_in_doubt_is_finished_before_the_ledger_is_brought_up_to_date() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        daemon.stop().await;
        world
            .sql(
                "ALTER TABLE concord.ledger DROP COLUMN request_fingerprint; \
                 DROP TABLE concord.flushed; \
                 DELETE FROM concord.schema_version WHERE version >= 2",
            )
            .await;
        let old = branch(1);
        prepared_by_the_version_before(&world, &old, "old").await;

        // Its table cannot be changed before the branch has ended; no vote is given before that.
        world.inquiries.decide(&old, Decision::Commit);
        let daemon = world.start().await;
        until("the branch to end", || async {
            daemon.status().await.in_doubt == 0
        })
        .await;
        assert_eq!(world.n(1).await, 101);
        let versions = "SELECT CAST(MAX(version) AS SIGNED) FROM concord.schema_version";
        assert_eq!(world.number(versions).await, 3);

        // What the old one was asked for is not known: it counts as the same.
        let vote = daemon
            .client
            .clone()
            .prepare(with_request(&branch(7), 7))
            .await
            .expect("a vote")
            .into_inner();
        assert_eq!(vote.vote(), Vote::Abort);
        assert_eq!(code(vote.reason.as_ref()), "REQUEST_ALREADY_COMMITTED");
        assert_eq!(world.n(1).await, 101);
    });
}
