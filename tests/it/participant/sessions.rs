//! What a session keeps of the server's settings after they were changed.

use std::time::{Duration, Instant};

use concord_client::local::server::ServerKind;
use concord_proto::v1::{self, Finish, Vote};

use super::harness::{branch, code, on_every_server, until};
use super::{PLUS, PLUS_2};

/// A session that began before the change keeps a prepared branch attached, and nothing else can
/// run in it: whoever got it next would be refused.
#[test]
fn a_session_that_keeps_its_branch_is_not_used_where_branches_leave() {
    on_every_server(|world| async move {
        if world.server.kind() == ServerKind::Mariadb {
            eprintln!("a branch never leaves its session here");
            return;
        }
        world.sql("SET GLOBAL xa_detach_on_prepare = OFF").await;
        let daemon = world.launch_on(world.options(), |_| ()).await;
        until("a look at the server", || async {
            let status = daemon.status().await;
            let named = |problem: &v1::Reason| problem.message.contains("xa_detach_on_prepare");
            status.connections > 0 && status.problems.iter().any(named)
        })
        .await;
        world.sql("SET GLOBAL xa_detach_on_prepare = ON").await;
        daemon.serving(true).await;
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            let (first, second) = (branch(1), branch(1));
            for (branch, sql) in [(&first, PLUS), (&second, PLUS_2)] {
                let vote = daemon.prepare(branch, &[sql]).await;
                assert_eq!(vote.vote(), Vote::Commit, "{vote:?}");
            }
            for branch in [&first, &second] {
                let done = daemon.commit(branch).await;
                assert_eq!(done.finish(), Finish::Committed, "{done:?}");
            }
        }
        assert_eq!(daemon.status().await.in_doubt, 0);
    });
}

/// A setting that was unsafe for a moment, between two looks at the server, lives on in sessions
/// that began meanwhile: what is prepared in one of them is attached to it.
#[test]
fn a_session_that_keeps_its_branch_has_no_vote() {
    on_every_server(|world| async move {
        if world.server.kind() == ServerKind::Mariadb {
            eprintln!("a branch never leaves its session here");
            return;
        }
        let mut options = world.options();
        options.check_interval = Duration::from_secs(600);
        let daemon = world.start_on(options, |_| ()).await;
        world.sql("SET GLOBAL xa_detach_on_prepare = OFF").await;
        let open = [(); 8].map(|()| branch(1));
        for branch in &open {
            daemon.begin(branch, 60_000).await;
        }
        world.sql("SET GLOBAL xa_detach_on_prepare = ON").await;
        let mut refused = 0;
        for branch in &open {
            let vote = daemon.prepare(branch, &[]).await;
            if vote.vote() == Vote::Commit {
                let done = daemon.commit(branch).await;
                assert_eq!(done.finish(), Finish::Committed, "{done:?}");
            } else {
                assert_eq!(code(vote.reason.as_ref()), "UNSAFE_SERVER", "{vote:?}");
                refused += 1;
            }
        }
        assert!(refused > 0, "no session began while it was OFF");
        assert_eq!(daemon.status().await.in_doubt, 0);
    });
}
