//! An account that logs in: a server that wants more than a challenge is not down for that, and a
//! right that is missing is named.

use std::time::Duration;

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

/// A right that only the end of branches needs is missed before there is any.
async fn a_missing_right_is_named(kind: ServerKind) {
    let Some(binary) = under_test(kind) else {
        return;
    };
    let right = match kind {
        ServerKind::Mysql => "XA_RECOVER_ADMIN",
        ServerKind::Mariadb => "PROCESS",
    };
    let real = Real::start(binary).await;
    let account = "concord@localhost";
    real.sql(&format!("REVOKE {right} ON *.* FROM {account}"))
        .await;
    let rm = MySql::start(real.options());
    let mut health = rm.health();
    let grant = format!("GRANT {right} ON *.* TO");
    let seen = health.wait_for(|health| !health.problems.is_empty());
    let seen = seen.await.expect("it looks").clone();
    assert!(seen.problems[0].message.contains(&grant), "{seen:?}");
    real.sql(&format!("{grant} {account}")).await;
    let seen = health.wait_for(concord_participant::resource::Health::can_vote);
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("it is mended")
        .expect("it looks");
    rm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_named_on_mariadb() {
    a_missing_right_is_named(ServerKind::Mariadb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_named_on_mysql() {
    a_missing_right_is_named(ServerKind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_password_is_shown_again_on_mariadb() {
    logs_in_when_the_server_has_forgotten_the_password(ServerKind::Mariadb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_password_is_shown_again_on_mysql() {
    logs_in_when_the_server_has_forgotten_the_password(ServerKind::Mysql).await;
}
