//! A participant in this process in front of a real server, a coordinator that answers inquiries
//! as it is told, and short words for what a coordinator says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use concord_client::local::server::{ACCOUNT, Server, ServerBinary, ServerSpec};
use concord_core::id::ParticipantName;
use concord_participant::app::App;
use concord_participant::driver::Settings;
use concord_participant::resource::mysql::{Address, MySql, Options, Secret};
use concord_participant::rpc::Identity;
use concord_proto::v1;
use concord_proto::v1::outcome_service_server::{OutcomeService, OutcomeServiceServer};
use concord_proto::v1::participant_client::ParticipantClient;
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A server under test with the table `shop.t (id, n)`.
pub struct World {
    pub server: Server,
    pub inquiries: Inquiries,
    _folder: tempfile::TempDir,
}

/// Runs a test on every server that is here, and says on which.
pub fn on_every_server<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    let binaries = ServerBinary::under_test().expect("the servers that are named work");
    assert!(
        !binaries.is_empty(),
        "no server found; `deploy/servers mariadb` gets one"
    );
    for binary in binaries {
        eprintln!("on {} {}", binary.kind(), binary.version());
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let folder = tempfile::tempdir().expect("a folder");
            let spec = ServerSpec::new(binary, folder.path().join("s"));
            let server = Server::start(spec).await.expect("the server starts");
            let world = World {
                server,
                inquiries: Inquiries::default(),
                _folder: folder,
            };
            world.sql("CREATE DATABASE shop").await;
            world
                .sql("CREATE TABLE shop.t (id INT PRIMARY KEY, n INT NOT NULL)")
                .await;
            world
                .sql("INSERT INTO shop.t VALUES (1, 100), (2, 100)")
                .await;
            test(world).await;
        });
    }
}

impl World {
    /// Runs SQL as root, outside of Concord.
    pub async fn sql(&self, sql: &str) {
        let mut root = self.server.root().await.expect("root");
        let done = root
            .execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
            .await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The number in row `id`.
    pub async fn n(&self, id: i32) -> i64 {
        self.number(&format!(
            "SELECT CAST(n AS SIGNED) FROM shop.t WHERE id = {id}"
        ))
        .await
    }

    /// The one number that a query gives.
    pub async fn number(&self, sql: &str) -> i64 {
        let mut root = self.server.root().await.expect("root");
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut root)
            .await
            .expect("a row")
    }

    pub async fn start(&self) -> Daemon {
        self.start_with(|_| ()).await
    }

    /// How a participant reaches the server.
    pub fn options(&self) -> Options {
        let address = Address::Socket(self.server.socket().to_owned());
        let mut options = Options::new("test", "p1", address, ACCOUNT);
        let password = std::fs::read_to_string(self.server.password_file()).expect("a password");
        options.password = Secret(password.trim().to_owned());
        // MariaDB keeps a connection for each prepared branch.
        options.max_connections = 120;
        options.lock_wait_timeout = Duration::from_secs(1);
        options.check_interval = Duration::from_millis(200);
        options
    }

    pub async fn start_with(&self, change: impl FnOnce(&mut Settings)) -> Daemon {
        self.start_on(self.options(), change).await
    }

    pub async fn start_on(&self, options: Options, change: impl FnOnce(&mut Settings)) -> Daemon {
        let daemon = self.launch_on(options, change).await;
        daemon.serving(true).await;
        daemon
    }

    /// Starts a participant in a runtime of its own, so that it can be killed as a whole, and does
    /// not wait until it serves.
    pub async fn launch_on(&self, options: Options, change: impl FnOnce(&mut Settings)) -> Daemon {
        let mut settings = Settings {
            branches_max: 4_096,
            sweep_interval: Duration::from_millis(200),
        };
        change(&mut settings);
        let coordinator = self.inquiries.serve().await;
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let listener = listener.into_std().expect("a listener");
        let stop = CancellationToken::new();
        let asked = stop.clone();
        let served = runtime.spawn(async move {
            let identity = Identity {
                name: ParticipantName::new("p1"),
                cluster: "test".to_owned(),
            };
            let listener = TcpListener::from_std(listener).expect("a listener");
            let coordinator = coordinator.connect_lazy();
            let app = App::new(identity, settings, MySql::start(options), coordinator);
            let drain = Duration::from_secs(5);
            app.serve(TcpListenerStream::new(listener), asked, drain)
                .await
                .expect("it serves");
        });
        let channel = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Daemon {
            client: ParticipantClient::new(channel.connect_lazy()),
            health: tonic_health::pb::health_client::HealthClient::new(channel.connect_lazy()),
            runtime: Some(runtime),
            served,
            stop,
        }
    }
}

/// A running participant. Dropping it is like `kill -9`.
pub struct Daemon {
    pub client: ParticipantClient<Channel>,
    health: tonic_health::pb::health_client::HealthClient<Channel>,
    runtime: Option<tokio::runtime::Runtime>,
    served: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Daemon {
    /// Waits until its health says so.
    pub async fn serving(&self, wanted: bool) {
        until("the health to change", || async {
            let request = tonic_health::pb::HealthCheckRequest {
                service: "concord.v1.Participant".to_owned(),
            };
            let answer = self.health.clone().check(request).await;
            let serving = tonic_health::pb::health_check_response::ServingStatus::Serving;
            answer.is_ok_and(|answer| (answer.get_ref().status == serving as i32) == wanted)
        })
        .await;
    }

    pub async fn status(&self) -> v1::GetStatusResponse {
        let status = self
            .client
            .clone()
            .get_status(v1::GetStatusRequest::default())
            .await;
        status.expect("a status").into_inner()
    }

    pub async fn prepare(&self, branch: &v1::BranchRef, sql: &[&str]) -> v1::PrepareResponse {
        let request = prepare(branch, sql);
        self.client
            .clone()
            .prepare(request)
            .await
            .expect("a vote")
            .into_inner()
    }

    pub async fn commit(&self, branch: &v1::BranchRef) -> v1::CommitResponse {
        let request = v1::CommitRequest {
            branch: Some(branch.clone()),
            ..Default::default()
        };
        self.client
            .clone()
            .commit(request)
            .await
            .expect("an answer")
            .into_inner()
    }

    pub async fn one_phase(&self, branch: &v1::BranchRef, sql: &[&str]) -> v1::CommitResponse {
        let request = v1::CommitRequest {
            branch: Some(branch.clone()),
            one_phase: true,
            work: (!sql.is_empty()).then(|| work(sql)),
        };
        self.client
            .clone()
            .commit(request)
            .await
            .expect("an answer")
            .into_inner()
    }

    pub async fn abort(&self, branch: &v1::BranchRef) -> v1::AbortResponse {
        let request = v1::AbortRequest {
            branch: Some(branch.clone()),
        };
        self.client
            .clone()
            .abort(request)
            .await
            .expect("an answer")
            .into_inner()
    }

    /// Repeats Commit, as a coordinator does, until the answer is not RETRY.
    pub async fn commit_until_final(&self, branch: &v1::BranchRef) -> v1::CommitResponse {
        let last = Mutex::new(None);
        until("the commit", || async {
            let answer = self.commit(branch).await;
            let is_final = answer.finish() != v1::Finish::Retry;
            *last.lock().expect("no panic") = Some(answer);
            is_final
        })
        .await;
        last.into_inner().expect("no panic").expect("an answer")
    }

    pub async fn begin(&self, branch: &v1::BranchRef, timeout_ms: u32) {
        let request = v1::BeginRequest {
            branch: Some(branch.clone()),
            timeout_ms,
            ..Default::default()
        };
        self.client.clone().begin(request).await.expect("it begins");
    }

    pub async fn execute(
        &self,
        branch: &v1::BranchRef,
        sql: &str,
    ) -> Result<v1::StatementResult, tonic::Status> {
        let request = v1::ExecuteRequest {
            branch: Some(branch.clone()),
            statement: Some(statement(sql)),
        };
        let answer = self.client.clone().execute(request).await?.into_inner();
        Ok(answer.result.expect("a result"))
    }

    pub async fn branches(&self) -> v1::ListBranchesResponse {
        let list = self
            .client
            .clone()
            .list_branches(v1::ListBranchesRequest::default())
            .await;
        list.expect("a list").into_inner()
    }

    /// As SIGTERM.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let served = tokio::time::timeout(PATIENCE, &mut self.served).await;
        served.expect("it stops in time").expect("it stops cleanly");
    }

    /// As `kill -9`.
    pub fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Polls until `done`, or fails the test.
pub async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("waited too long for {what}"));
}

/// A branch of a new transaction, spoken of by this epoch.
pub fn branch(epoch: u64) -> v1::BranchRef {
    v1::BranchRef {
        gtrid: Uuid::now_v7().as_bytes().to_vec(),
        bqual: 1,
        epoch,
    }
}

pub fn statement(sql: &str) -> v1::Statement {
    v1::Statement {
        sql: sql.to_owned(),
        ..Default::default()
    }
}

pub fn work(sql: &[&str]) -> v1::Work {
    v1::Work {
        statements: sql.iter().map(|sql| statement(sql)).collect(),
        ..Default::default()
    }
}

pub fn prepare(branch: &v1::BranchRef, sql: &[&str]) -> v1::PrepareRequest {
    v1::PrepareRequest {
        branch: Some(branch.clone()),
        work: (!sql.is_empty()).then(|| work(sql)),
    }
}

/// The code of a reason that must be there.
pub fn code(reason: Option<&v1::Reason>) -> &str {
    &reason.expect("a reason").code
}

/// What the coordinator answers when it is asked; RUNNING for what it was not told.
#[derive(Clone, Default)]
pub struct Inquiries {
    decisions: Arc<Mutex<HashMap<Vec<u8>, v1::Decision>>>,
}

impl Inquiries {
    pub fn decide(&self, branch: &v1::BranchRef, decision: v1::Decision) {
        let mut decisions = self.decisions.lock().expect("no panic");
        decisions.insert(branch.gtrid.clone(), decision);
    }

    async fn serve(&self) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tonic::transport::Server::builder()
            .add_service(OutcomeServiceServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        Endpoint::from_shared(format!("http://{address}")).expect("an address")
    }
}

#[tonic::async_trait]
impl OutcomeService for Inquiries {
    async fn inquire(
        &self,
        request: tonic::Request<v1::InquireRequest>,
    ) -> Result<tonic::Response<v1::InquireResponse>, tonic::Status> {
        assert_eq!(request.get_ref().participant, "p1");
        let known = self.decisions.lock().expect("no panic");
        let answer = |branch: &v1::InquireBranch| {
            known
                .get(&branch.gtrid)
                .copied()
                .unwrap_or(v1::Decision::Running)
                .into()
        };
        Ok(tonic::Response::new(v1::InquireResponse {
            epoch: 7,
            decisions: request.get_ref().branches.iter().map(answer).collect(),
            reason: None,
        }))
    }
}
