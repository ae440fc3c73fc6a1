//! The conformance suite on the fake, with both servers' rules.

use std::sync::Arc;

use concord_core::id::BranchId;

use super::server::{Rules, Server};
use super::{MARIADB, MYSQL, Memory, Options};
use crate::resource::conformance::{Harness, TABLE, run};

struct Fake {
    server: Arc<Server>,
    rules: Rules,
}

impl Harness for Fake {
    type Rm = Memory;

    fn keeps_attached(&self) -> bool {
        !self.rules.detaches
    }

    async fn open(&self) -> Arc<Memory> {
        Memory::connect(
            &self.server,
            Options {
                max_connections: 8,
                ..Options::default()
            },
        )
    }

    async fn value(&self, key: &str) -> Option<i64> {
        self.server.value(TABLE, key)
    }

    async fn set_unsafe(&self, on: bool) {
        self.server.set_unsafe(on);
    }

    async fn set_read_only(&self, on: bool) {
        self.server.set_read_only(on);
    }

    async fn roll_back_by_hand(&self, branch: BranchId) {
        assert!(
            self.server.finish_by_hand(branch, false),
            "there is no such branch"
        );
    }

    async fn prepare_foreign(&self, key: &str) {
        self.server.prepare_foreign("foreign", TABLE, key, 1);
    }

    async fn commit_foreign(&self) -> bool {
        self.server.finish_foreign("foreign", true)
    }

    async fn lock(&self, key: &str) {
        self.server.prepare_foreign("locker", TABLE, key, 0);
    }

    async fn unlock(&self) {
        self.server.finish_foreign("locker", false);
    }

    async fn block_commits(&self, on: bool) {
        self.server.set_backup(on);
    }

    async fn kill_connections(&self) {
        self.server.kill_connections();
    }

    async fn crash(&self) {
        self.server.crash();
        self.server.restart();
    }
}

async fn conforms(rules: Rules) {
    let fake = Fake {
        server: Server::start(rules),
        rules,
    };
    let reports = run(&fake, "", |_| {}).await;
    let failed: Vec<_> = reports
        .iter()
        .filter(|report| report.failure.is_some())
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(reports.len() > 30, "cases are missing");
}

#[tokio::test]
async fn the_fake_conforms_with_the_rules_of_mysql() {
    conforms(MYSQL).await;
}

#[tokio::test]
async fn the_fake_conforms_with_the_rules_of_mariadb() {
    conforms(MARIADB).await;
}
