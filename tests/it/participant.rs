//! The participant end to end: shipped daemon code, real servers, gRPC.

mod functions;
mod hanging;
mod harness;
mod returning;
mod sessions;
mod tables;
mod upgrade;

use std::time::Duration;

use concord_proto::status::reason_of;
use concord_proto::v1;
use concord_proto::v1::{Decision, Finish, Vote};
use futures::future::join_all;
use harness::{Daemon, World, branch, code, on_every_server, prepare, until};
use tokio_stream::wrappers::ReceiverStream;

const PLUS: &str = "UPDATE shop.t SET n = n + 1 WHERE id = 1";
const PLUS_2: &str = "UPDATE shop.t SET n = n + 1 WHERE id = 2";

#[test]
fn one_shot_branches_commit_and_abort() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let first = branch(1);
        let vote = daemon
            .prepare(&first, &[PLUS, "SELECT n FROM shop.t WHERE id = 1"])
            .await;
        assert_eq!(vote.vote(), Vote::Commit, "{vote:?}");
        assert_eq!(vote.results.len(), 2);
        assert_eq!(vote.results[0].rows, 1);
        assert_eq!(
            world.n(1).await,
            100,
            "nothing is visible before the outcome"
        );
        assert_eq!(daemon.status().await.in_doubt, 1);
        assert_eq!(daemon.commit(&first).await.finish(), Finish::Committed);
        assert_eq!(world.n(1).await, 101);
        let again = daemon.commit_until_final(&first).await;
        assert_eq!(
            again.finish(),
            Finish::Committed,
            "a repeated Commit is harmless"
        );

        let second = branch(1);
        assert_eq!(daemon.prepare(&second, &[PLUS]).await.vote(), Vote::Commit);
        assert_eq!(daemon.abort(&second).await.finish(), Finish::Aborted);
        assert_eq!(daemon.abort(&second).await.finish(), Finish::Aborted);
        assert_eq!(world.n(1).await, 101);
        let late = daemon.prepare(&second, &[PLUS]).await;
        assert_eq!(
            late.vote(),
            Vote::Abort,
            "a Prepare after the Abort comes too late"
        );

        let third = branch(1);
        let one = daemon.one_phase(&third, &[PLUS, PLUS_2]).await;
        assert_eq!(
            (one.finish(), one.results.len()),
            (Finish::Committed, 2),
            "{one:?}"
        );
        assert_eq!((world.n(1).await, world.n(2).await), (102, 101));
        nothing_left(&daemon).await;
        daemon.stop().await;
    });
}

#[test]
fn a_failed_statement_is_a_vote_abort_with_its_reason() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let mut request = prepare(&branch(1), &[PLUS, "UPDATE shop.t SET n = 0 WHERE id = 9"]);
        let work = request.work.as_mut().expect("work");
        work.statements[1].expect = Some(v1::ExpectRows {
            min: Some(1),
            max: None,
            reason: "ACCOUNT_NOT_FOUND".to_owned(),
        });
        let vote = daemon
            .client
            .clone()
            .prepare(request)
            .await
            .expect("a vote")
            .into_inner();
        assert_eq!(vote.vote(), Vote::Abort);
        assert_eq!(code(vote.reason.as_ref()), "ACCOUNT_NOT_FOUND");
        assert_eq!(vote.failed_statement, Some(1));

        let vote = daemon.prepare(&branch(1), &[PLUS, "COMMIT"]).await;
        assert_eq!(code(vote.reason.as_ref()), "STATEMENT_NOT_ALLOWED");
        let vote = daemon
            .prepare(&branch(1), &["INSERT INTO shop.t VALUES (1, 1)"])
            .await;
        assert_eq!(code(vote.reason.as_ref()), "CONSTRAINT_VIOLATED");
        let one = daemon
            .one_phase(&branch(1), &[PLUS, "DELETE FROM shop.nothing"])
            .await;
        assert_eq!(
            (one.finish(), one.failed_statement),
            (Finish::Aborted, Some(1)),
            "{one:?}"
        );
        assert_eq!(code(one.reason.as_ref()), "STATEMENT_FAILED");
        assert_eq!(world.n(1).await, 100);
        nothing_left(&daemon).await;
    });
}

#[test]
fn interactive_branches_run_fail_and_expire() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let good = branch(1);
        daemon.begin(&good, 10_000).await;
        assert_eq!(daemon.execute(&good, PLUS).await.expect("it runs").rows, 1);
        assert_eq!(
            daemon
                .execute(&good, PLUS)
                .await
                .expect("the same row again")
                .rows,
            1
        );
        assert_eq!(daemon.prepare(&good, &[]).await.vote(), Vote::Commit);
        assert_eq!(
            daemon.commit_until_final(&good).await.finish(),
            Finish::Committed
        );
        assert_eq!(world.n(1).await, 102);

        let one = branch(1);
        daemon.begin(&one, 10_000).await;
        daemon.execute(&one, PLUS).await.expect("it runs");
        assert_eq!(
            daemon.one_phase(&one, &[]).await.finish(),
            Finish::Committed
        );
        assert_eq!(world.n(1).await, 103);

        let bad = branch(1);
        daemon.begin(&bad, 10_000).await;
        daemon.execute(&bad, PLUS).await.expect("it runs");
        let failed = daemon.execute(&bad, "UPDATE shop.nothing SET n = 1").await;
        let failed = reason_of(&failed.expect_err("no such table")).expect("a reason");
        assert_eq!(&*failed.code, "STATEMENT_FAILED");
        let after = daemon
            .execute(&bad, PLUS)
            .await
            .expect_err("only Abort may come");
        assert!(reason_of(&after).is_some(), "{after:?}");
        let vote = daemon.prepare(&bad, &[]).await;
        assert_eq!(vote.vote(), Vote::Abort, "half a branch never commits");
        assert_eq!(world.n(1).await, 103);

        let forgotten = branch(1);
        daemon.begin(&forgotten, 8_000).await;
        daemon.execute(&forgotten, PLUS).await.expect("it runs");
        until("the branch to expire", || async {
            let vote = daemon.prepare(&branch(1), &[PLUS]).await;
            vote.vote() == Vote::Commit
        })
        .await;
        until("the reason to be known", || async {
            // While it is still being rolled back, that is all that is said.
            let vote = daemon.prepare(&forgotten, &[]).await;
            assert_eq!(vote.vote(), Vote::Abort);
            code(vote.reason.as_ref()) == "DEADLINE_EXCEEDED"
        })
        .await;
    });
}

#[test]
fn a_prepared_branch_survives_the_daemon_and_the_coordinator_is_asked() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let (kept, dropped) = (branch(1), branch(1));
        assert_eq!(daemon.prepare(&kept, &[PLUS]).await.vote(), Vote::Commit);
        assert_eq!(
            daemon.prepare(&dropped, &[PLUS_2]).await.vote(),
            Vote::Commit
        );
        daemon.kill();

        let daemon = world.start().await;
        until("both to be found", || async {
            daemon.status().await.in_doubt == 2
        })
        .await;
        let listed = daemon.branches().await;
        assert_eq!(listed.branches.len(), 2);
        assert!(listed.branches.iter().all(|branch| branch.listed_by_server));
        world.inquiries.decide(&kept, Decision::Commit);
        world.inquiries.decide(&dropped, Decision::Abort);
        until("both to end", || async {
            daemon.status().await.in_doubt == 0
        })
        .await;
        assert_eq!((world.n(1).await, world.n(2).await), (101, 100));
        assert_eq!(
            daemon.status().await.epoch,
            7,
            "the answer's epoch is the highest seen"
        );

        // A clean stop keeps what is prepared, too.
        let stopped = branch(7);
        assert_eq!(daemon.prepare(&stopped, &[PLUS]).await.vote(), Vote::Commit);
        daemon.stop().await;
        let daemon = world.start().await;
        assert_eq!(daemon.status().await.epoch, 7, "the epoch is kept");
        assert_eq!(
            daemon.commit_until_final(&stopped).await.finish(),
            Finish::Committed
        );
        assert_eq!(world.n(1).await, 102);
    });
}

#[test]
fn a_killed_server_keeps_its_prepared_branches() {
    on_every_server(|mut world| async move {
        let daemon = world.start().await;
        let (prepared, open) = (branch(1), branch(1));
        assert_eq!(
            daemon.prepare(&prepared, &[PLUS]).await.vote(),
            Vote::Commit
        );
        daemon.begin(&open, 60_000).await;
        daemon.execute(&open, PLUS_2).await.expect("it runs");
        world.server.kill9();
        daemon.serving(false).await;
        let vote = daemon.prepare(&branch(1), &[PLUS_2]).await;
        assert_eq!(vote.vote(), Vote::Abort);
        assert!(!daemon.status().await.can_vote);
        let commit = daemon.commit(&prepared).await;
        assert_eq!(commit.finish(), Finish::Retry, "{commit:?}");

        world
            .server
            .restart()
            .await
            .expect("the server starts again");
        daemon.serving(true).await;
        assert_eq!(
            daemon.commit_until_final(&prepared).await.finish(),
            Finish::Committed
        );
        assert_eq!((world.n(1).await, world.n(2).await), (101, 100));
        let lost = daemon.prepare(&open, &[]).await;
        assert_eq!(
            lost.vote(),
            Vote::Abort,
            "the crash rolled it back: {lost:?}"
        );
        nothing_left(&daemon).await;
    });
}

#[test]
fn a_superseded_coordinator_is_refused() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let old = branch(8);
        assert_eq!(daemon.prepare(&old, &[PLUS]).await.vote(), Vote::Commit);
        assert_eq!(
            daemon.prepare(&branch(9), &[PLUS_2]).await.vote(),
            Vote::Commit
        );
        for _ in 0..2 {
            let commit = v1::CommitRequest {
                branch: Some(old.clone()),
                ..Default::default()
            };
            let refused = daemon
                .client
                .clone()
                .commit(commit)
                .await
                .expect_err("it is stale");
            let reason = reason_of(&refused).expect("a reason");
            assert_eq!(&*reason.code, "STALE_EPOCH");
            assert_eq!(world.n(1).await, 100);
        }
        daemon.kill();
        let daemon = world.start().await;
        assert_eq!(daemon.status().await.epoch, 9);
    });
}

/// Lets a participant open so many connections, a few at a time: a server that is asked for all of
/// them at once may be late with one.
async fn open_connections(daemon: &Daemon, count: usize) {
    let branches: Vec<v1::BranchRef> = (0..count).map(|_| branch(1)).collect();
    for few in branches.chunks(10) {
        join_all(few.iter().map(|branch| daemon.begin(branch, 60_000))).await;
    }
    for branch in &branches {
        assert_eq!(daemon.abort(branch).await.finish(), Finish::Aborted);
    }
}

#[test]
fn a_link_carries_many_commands_at_once() {
    on_every_server(|world| async move {
        let mut options = world.options();
        // A hundred statements that come at once take their time on a busy machine.
        options.acquire_timeout = Duration::from_secs(20);
        let daemon = world.start_on(options, |_| ()).await;
        open_connections(&daemon, 100).await;
        let values: Vec<String> = (10..110).map(|id| format!("({id}, 0)")).collect();
        world
            .sql(&format!("INSERT INTO shop.t VALUES {}", values.join(",")))
            .await;
        let branches: Vec<v1::BranchRef> = (0..100).map(|_| branch(1)).collect();
        let (frames, outbound) = tokio::sync::mpsc::channel(8);
        let mut client = daemon.client.clone();
        let link = client
            .link(ReceiverStream::new(outbound))
            .await
            .expect("a link");
        let mut answers = link.into_inner();

        let mut commands: Vec<v1::LinkCommand> = (0..)
            .zip(&branches)
            .map(|(seq, branch)| {
                let sql = format!("UPDATE shop.t SET n = n + 1 WHERE id = {}", seq + 10);
                command(
                    seq,
                    v1::link_command::Command::Prepare(prepare(branch, &[&sql])),
                )
            })
            .collect();
        let mut bad = prepare(&branch(1), &[PLUS]);
        bad.branch.as_mut().expect("a branch").bqual = 65;
        commands.push(command(900, v1::link_command::Command::Prepare(bad)));
        frames
            .send(v1::LinkRequest { commands })
            .await
            .expect("the link is up");
        let votes = collect(&mut answers, 101).await;
        for (seq, reply) in votes {
            match reply {
                v1::link_reply::Reply::Prepare(vote) => {
                    assert_eq!(vote.vote(), Vote::Commit, "{seq}: {vote:?}");
                }
                v1::link_reply::Reply::Refused(reason) => {
                    assert_eq!((seq, &*reason.code), (900, "INVALID_FIELD"));
                }
                other => panic!("{seq}: {other:?}"),
            }
        }

        let outcome = |(seq, branch): (u64, &v1::BranchRef)| {
            let branch = Some(branch.clone());
            let outcome = if seq % 2 == 0 {
                v1::link_command::Command::Commit(v1::CommitRequest {
                    branch,
                    ..Default::default()
                })
            } else {
                v1::link_command::Command::Abort(v1::AbortRequest { branch })
            };
            command(seq, outcome)
        };
        let commands = (0..).zip(&branches).map(outcome).collect();
        frames
            .send(v1::LinkRequest { commands })
            .await
            .expect("the link is up");
        for (seq, reply) in collect(&mut answers, 100).await {
            match reply {
                v1::link_reply::Reply::Commit(done) if seq % 2 == 0 => {
                    assert_eq!(done.finish(), Finish::Committed, "{seq}: {done:?}");
                }
                v1::link_reply::Reply::Abort(done) if seq % 2 == 1 => {
                    assert_eq!(done.finish(), Finish::Aborted, "{seq}: {done:?}");
                }
                other => panic!("{seq}: {other:?}"),
            }
        }
        for id in 10..110 {
            assert_eq!(world.n(id).await, i64::from(id % 2 == 0), "row {id}");
        }

        // A coordinator that connects anew ends its former link.
        let (frames, outbound) = tokio::sync::mpsc::channel(8);
        let again = client
            .link(ReceiverStream::new(outbound))
            .await
            .expect("a link");
        let abort = v1::AbortRequest {
            branch: Some(branch(1)),
        };
        let commands = vec![command(1, v1::link_command::Command::Abort(abort))];
        frames
            .send(v1::LinkRequest { commands })
            .await
            .expect("the link is up");
        assert_eq!(collect(&mut again.into_inner(), 1).await.len(), 1);
        let ended = answers.message().await.expect_err("the former link ends");
        assert_eq!(&*reason_of(&ended).expect("a reason").code, "STALE_EPOCH");
        daemon.stop().await;
    });
}

#[test]
fn too_many_branches_are_refused_and_leave_nothing_behind() {
    on_every_server(|world| async move {
        let daemon = world.start_with(|settings| settings.branches_max = 1).await;
        let first = branch(1);
        assert_eq!(daemon.prepare(&first, &[PLUS]).await.vote(), Vote::Commit);
        let vote = daemon.prepare(&branch(1), &[PLUS_2]).await;
        assert_eq!(code(vote.reason.as_ref()), "LIMIT_REACHED");
        let one = daemon.one_phase(&branch(1), &[PLUS_2]).await;
        assert_eq!(one.finish(), Finish::Retry);
        assert_eq!(daemon.commit(&first).await.finish(), Finish::Committed);
        assert_eq!(
            daemon.prepare(&branch(1), &[PLUS]).await.vote(),
            Vote::Commit
        );
    });
}

#[test]
fn a_rollback_by_hand_is_damage_until_an_operator_has_read_it() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let touched = branch(1);
        assert_eq!(daemon.prepare(&touched, &[PLUS]).await.vote(), Vote::Commit);
        daemon.kill();
        roll_back_by_hand(&world).await;
        let daemon = world.start().await;
        let finish = daemon.commit_until_final(&touched).await;
        assert_eq!(finish.finish(), Finish::Damaged, "{finish:?}");
        let damage = daemon.status().await.damage;
        assert_eq!(damage.len(), 1);
        assert_eq!(code(damage[0].reason.as_ref()), "HEURISTIC_ROLLBACK");
        let read = v1::AcknowledgeDamageRequest { id: damage[0].id };
        daemon
            .client
            .clone()
            .acknowledge_damage(read)
            .await
            .expect("it is acknowledged");
        assert!(daemon.status().await.damage[0].acknowledged);
        let unknown = v1::AcknowledgeDamageRequest { id: 999 };
        let unknown = daemon.client.clone().acknowledge_damage(unknown).await;
        assert_eq!(
            unknown.expect_err("no such report").code(),
            tonic::Code::NotFound
        );
    });
}

async fn roll_back_by_hand(world: &World) {
    use sqlx::{Executor as _, Row as _};
    let mut root = world.server.root().await.expect("root");
    until("the branch to be listed", || async {
        let mut root = world.server.root().await.expect("root");
        let rows = root
            .fetch_all(sqlx::raw_sql("XA RECOVER"))
            .await
            .expect("a list");
        let Some(row) = rows.first() else {
            return false;
        };
        let format: i64 = row.get_unchecked::<String, _>(0).parse().expect("a number");
        let length: usize = row.get_unchecked::<String, _>(1).parse().expect("a number");
        let data: Vec<u8> = row.get_unchecked(3);
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let (gtrid, bqual) = (hex(&data[..length]), hex(&data[length..]));
        let xid = format!("x'{gtrid}',x'{bqual}',{format}");
        let ended = concord_tests::by_hand::end(&mut root, "XA ROLLBACK", &xid).await;
        ended.expect("it is rolled back");
        true
    })
    .await;
    let left = root
        .fetch_all(sqlx::raw_sql("XA RECOVER"))
        .await
        .expect("a list");
    assert!(left.is_empty());
}

#[test]
fn an_operator_resolves_what_is_in_doubt() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let (one, other) = (branch(1), branch(1));
        assert_eq!(daemon.prepare(&one, &[PLUS]).await.vote(), Vote::Commit);
        assert_eq!(daemon.prepare(&other, &[PLUS_2]).await.vote(), Vote::Commit);
        let resolve = async |branch: &v1::BranchRef, resolution: v1::Resolution| {
            let request = v1::ResolveRequest {
                branch: Some(branch.clone()),
                resolution: resolution.into(),
                reason: "the coordinator's disk is gone".to_owned(),
            };
            daemon
                .client
                .clone()
                .resolve(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let done = resolve(&one, v1::Resolution::Commit)
            .await
            .expect("an answer");
        assert_eq!(done.finish(), Finish::Committed);
        let done = resolve(&other, v1::Resolution::Abort)
            .await
            .expect("an answer");
        assert_eq!(done.finish(), Finish::Aborted);
        assert_eq!((world.n(1).await, world.n(2).await), (101, 100));
        let again = resolve(&one, v1::Resolution::Abort)
            .await
            .expect("an answer");
        assert_eq!(again.finish(), Finish::Committed);
        assert_eq!(code(again.reason.as_ref()), "CONTRADICTS_OUTCOME");
        let unknown = resolve(&branch(1), v1::Resolution::Commit).await;
        assert_eq!(
            unknown.expect_err("no such branch").code(),
            tonic::Code::NotFound
        );
    });
}

#[test]
fn migrations_run_once_and_only_inside_their_schema() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let request = |sql: &str| v1::MigrateRequest {
            schema: "concord_shop".to_owned(),
            migrations: vec![v1::Migration {
                version: 1,
                statements: vec![sql.to_owned()],
            }],
        };
        let create = "CREATE TABLE IF NOT EXISTS concord_shop.t (id INT PRIMARY KEY) ENGINE=InnoDB";
        for _ in 0..2 {
            let done = daemon
                .client
                .clone()
                .migrate(request(create))
                .await
                .expect("it migrates");
            assert_eq!(done.into_inner().version, 1);
        }
        world.sql("INSERT INTO concord_shop.t VALUES (1)").await;
        let bad = daemon
            .client
            .clone()
            .migrate(request("DROP TABLE concord_shop.t"))
            .await;
        assert_eq!(
            bad.expect_err("refused").code(),
            tonic::Code::InvalidArgument
        );
        let vote = daemon
            .prepare(&branch(1), &["INSERT INTO concord_shop.t VALUES (2)"])
            .await;
        assert_eq!(vote.vote(), Vote::Commit, "{vote:?}");
    });
}

#[test]
fn reads_and_bad_requests_leave_nothing_behind() {
    on_every_server(|world| async move {
        let daemon = world.start().await;
        let query = |sql: &str| v1::QueryRequest {
            statement: Some(harness::statement(sql)),
            timeout_ms: 0,
        };
        let rows = daemon
            .client
            .clone()
            .query(query("SELECT id, n FROM shop.t"))
            .await;
        assert_eq!(
            rows.expect("rows")
                .into_inner()
                .result
                .expect("a result")
                .rows,
            2
        );
        let write = daemon
            .client
            .clone()
            .query(query(PLUS))
            .await
            .expect_err("not a SELECT");
        assert_eq!(write.code(), tonic::Code::InvalidArgument);
        let empty = daemon
            .client
            .clone()
            .prepare(v1::PrepareRequest::default())
            .await;
        assert_eq!(
            empty.expect_err("no branch").code(),
            tonic::Code::InvalidArgument
        );
        let unknown = daemon
            .execute(&branch(1), PLUS)
            .await
            .expect_err("never begun");
        assert_eq!(&*reason_of(&unknown).expect("a reason").code, "BRANCH_LOST");
        nothing_left(&daemon).await;
    });
}

async fn nothing_left(daemon: &Daemon) {
    until("every branch to end", || async {
        let list = daemon.branches().await;
        list.branches.is_empty()
    })
    .await;
}

fn command(seq: u64, command: v1::link_command::Command) -> v1::LinkCommand {
    v1::LinkCommand {
        seq,
        command: Some(command),
    }
}

async fn collect(
    answers: &mut tonic::Streaming<v1::LinkResponse>,
    count: usize,
) -> Vec<(u64, v1::link_reply::Reply)> {
    let mut replies = Vec::new();
    while replies.len() < count {
        let frame = tokio::time::timeout(harness::PATIENCE, answers.message()).await;
        let frame = frame
            .expect("an answer in time")
            .expect("a frame")
            .expect("the link is up");
        let frame = frame.replies.into_iter();
        replies.extend(frame.map(|reply| (reply.seq, reply.reply.expect("a reply"))));
    }
    replies
}
