//! A server that wants more than a challenge at a login is not down for that.

use concord_client::local::server::ServerKind;
use concord_participant::resource::ResourceManager as _;
use concord_participant::resource::mysql::MySql;

use super::{Real, under_test};

/// Each start of a server is one: `caching_sha2_password` then wants the password itself.
async fn logs_in_when_the_server_has_forgotten_the_password(kind: ServerKind) {
    let Some(binary) = under_test(kind) else {
        return;
    };
    let real = Real::start(binary).await;
    for _ in 0..3 {
        real.sql("FLUSH PRIVILEGES").await;
        let rm = MySql::start(real.options());
        let mut health = rm.health();
        let seen = health.wait_for(|health| health.reachable || !health.problems.is_empty());
        let seen = seen.await.expect("it looks").clone();
        assert!(seen.can_vote(), "{seen:?}");
        rm.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_password_is_shown_again_on_mariadb() {
    logs_in_when_the_server_has_forgotten_the_password(ServerKind::Mariadb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_password_is_shown_again_on_mysql() {
    logs_in_when_the_server_has_forgotten_the_password(ServerKind::Mysql).await;
}
