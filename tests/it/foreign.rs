//! Clients that are not ours: Python's grpcio and Go's stack (`buf curl`).
//!
//! They know an address and nothing else, learn the rest by reflection, and drive every RPC of
//! every service. The contract itself passes `buf lint`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use concord_client::local::binary::ServerKind;
use concord_proto::v1::FILE_DESCRIPTOR_SET;
use concord_tests::cases;
use concord_tests::cases::{buf, python, server_of};
use concord_tests::cluster::Cluster;
use prost::Message;
use prost_types::FileDescriptorSet;
use serde_json::{Value, json};
use tonic_types::pb::{BadRequest, ErrorInfo};

/// A cluster and the foreign tools.
struct World {
    cluster: Cluster,
    python: Option<PathBuf>,
    buf: Option<PathBuf>,
}

#[tokio::test]
async fn strangers_drive_every_rpc_on_mariadb() -> anyhow::Result<()> {
    on(ServerKind::Mariadb).await
}

#[tokio::test]
async fn strangers_drive_every_rpc_on_mysql() -> anyhow::Result<()> {
    on(ServerKind::Mysql).await
}

async fn on(kind: ServerKind) -> anyhow::Result<()> {
    let Some(server) = server_of(kind)? else {
        return Ok(());
    };
    let cluster = Cluster::start_with(&server, 2, &["--no-seed"])?;
    for n in 1..=2 {
        cluster
            .sql(
                n,
                "CREATE DATABASE foreign_test; \
                 CREATE TABLE foreign_test.t (id BIGINT PRIMARY KEY, v VARCHAR(99)) ENGINE=InnoDB",
            )
            .await?;
    }
    let world = World {
        cluster,
        python: python()?,
        buf: buf()?,
    };
    cases!(
        &world,
        grpcio_drives_every_rpc,
        grpcio_sends_broken_bytes,
        buf_curl_drives_the_main_ones
    );
    Ok(())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign")
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

impl World {
    fn addresses(&self) -> anyhow::Result<[String; 3]> {
        let address = |name: &str| Ok(self.cluster.process(name)?.address);
        let found: anyhow::Result<Vec<String>> = ["coordinator", "p1", "p2"]
            .into_iter()
            .map(address)
            .collect();
        found?.try_into().ok().context("three addresses")
    }

    /// Runs a script of `tests/foreign` against the cluster; its output, or none without Python.
    fn script(&self, name: &str) -> anyhow::Result<Option<String>> {
        let Some(python) = &self.python else {
            return Ok(None);
        };
        let output = Command::new(python)
            .arg(folder().join(name))
            .args(self.addresses()?)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()?;
        ensure!(output.status.success(), "{name} failed:\n{}", text(&output));
        Ok(Some(String::from_utf8(output.stdout)?))
    }
}

/// Every method of the contract, as package.Service/Method.
fn contract() -> anyhow::Result<BTreeSet<String>> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)?;
    let mut methods = BTreeSet::new();
    for file in set
        .file
        .iter()
        .filter(|file| file.package() == "concord.v1")
    {
        for service in &file.service {
            let name = |method: &prost_types::MethodDescriptorProto| {
                format!("concord.v1.{}/{}", service.name(), method.name())
            };
            methods.extend(service.method.iter().map(name));
        }
    }
    Ok(methods)
}

async fn grpcio_drives_every_rpc(world: &World) -> anyhow::Result<()> {
    let Some(output) = world.script("every_rpc.py")? else {
        return Ok(());
    };
    let called: BTreeSet<String> = output.lines().map(str::to_owned).collect();
    let contract = contract()?;
    ensure!(
        contract.len() >= 40,
        "the contract has only {} methods",
        contract.len()
    );
    let missed: Vec<&String> = contract.difference(&called).collect();
    ensure!(missed.is_empty(), "no stranger called {missed:?}");
    Ok(())
}

async fn grpcio_sends_broken_bytes(world: &World) -> anyhow::Result<()> {
    world.script("bad_bytes.py").map(|_| ())
}

/// `buf curl`, which has learnt everything from the address.
struct BufCurl<'a> {
    buf: &'a Path,
    address: String,
}

impl BufCurl<'_> {
    fn run(&self, method: &str, request: &Value) -> anyhow::Result<Output> {
        let url = format!("http://{}/concord.v1.{method}", self.address);
        let output = Command::new(self.buf)
            .args([
                "curl",
                "--protocol",
                "grpc",
                "--http2-prior-knowledge",
                "--reflect",
            ])
            .args(["--emit-defaults", "--data", &request.to_string(), &url])
            .output()?;
        Ok(output)
    }

    fn call(&self, method: &str, request: &Value) -> anyhow::Result<Value> {
        let output = self.run(method, request)?;
        ensure!(
            output.status.success(),
            "{method} {request}: {}",
            text(&output)
        );
        serde_json::from_slice(&output.stdout).with_context(|| text(&output))
    }

    /// The error of a call that must fail, as buf prints it.
    fn refusal(&self, method: &str, request: &Value) -> anyhow::Result<Value> {
        let output = self.run(method, request)?;
        ensure!(
            !output.status.success(),
            "{method} {request} was answered: {}",
            text(&output)
        );
        serde_json::from_slice(&output.stderr).with_context(|| text(&output))
    }
}

async fn buf_curl_drives_the_main_ones(world: &World) -> anyhow::Result<()> {
    let Some(buf) = &world.buf else { return Ok(()) };
    let [gateway, participant, _] = world.addresses()?;
    let gateway = BufCurl {
        buf,
        address: gateway,
    };
    let status = gateway.call("AdminService/GetClusterStatus", &json!({}))?;
    ensure!(status["accepting"] == json!(true), "{status}");
    for id in ["buf-a", "buf-b"] {
        let open = json!({"account_id": id, "currency": "USD", "initial_balance": "500"});
        let opened = gateway.call("BankService/OpenAccount", &open)?;
        ensure!(opened["account"]["balance"] == json!("500"), "{opened}");
    }
    let mut transfer =
        json!({"from_account_id": "buf-a", "to_account_id": "buf-b", "amount": "120"});
    let moved = gateway.call("BankService/Transfer", &transfer)?;
    let read = json!({"gtrid": moved["gtrid"]});
    let found = gateway.call("TransactionService/GetTransaction", &read)?;
    let state = &found["transaction"]["state"];
    ensure!(*state == json!("TRANSACTION_STATE_COMMITTED"), "{found}");

    transfer["amount"] = json!("381");
    let poor = gateway.refusal("BankService/Transfer", &transfer)?;
    ensure!(poor["code"] == json!("failed_precondition"), "{poor}");
    ensure!(
        detail::<ErrorInfo>(&poor, "google.rpc.ErrorInfo")?.reason == "INSUFFICIENT_FUNDS",
        "{poor}"
    );
    transfer["amount"] = json!("-1");
    let negative = gateway.refusal("BankService/Transfer", &transfer)?;
    ensure!(negative["code"] == json!("invalid_argument"), "{negative}");
    let fields: BadRequest = detail(&negative, "google.rpc.BadRequest")?;
    ensure!(fields.field_violations[0].field == "amount", "{negative}");

    let sql = json!({"sql": "SELECT 1 AS one, ? AS two", "params": [{"string": "zwei"}]});
    let execute = json!({"statements": [{"participant": "p1", "statement": sql}]});
    let done = gateway.call("TransactionService/Execute", &execute)?;
    let row = &done["results"][0]["result"][0]["values"];
    ensure!(row[1] == json!({"string": "zwei"}), "{done}");

    let participant = BufCurl {
        buf,
        address: participant,
    };
    let status = participant.call("Participant/GetStatus", &json!({}))?;
    ensure!(
        status["canVote"] == json!(true) && status["name"] == json!("p1"),
        "{status}"
    );
    let query = json!({"statement": sql});
    let rows = participant.call("Participant/Query", &query)?;
    ensure!(rows["result"]["rows"] == json!("1"), "{rows}");
    Ok(())
}

/// A detail of an error, as the bytes that buf shows of it.
fn detail<M: Message + Default>(error: &Value, name: &str) -> anyhow::Result<M> {
    let details = error["details"]
        .as_array()
        .with_context(|| format!("no details: {error}"))?;
    let found = details.iter().find(|detail| detail["type"] == json!(name));
    let value = found.and_then(|detail| detail["value"].as_str());
    let value = value.with_context(|| format!("no {name} in {error}"))?;
    Ok(M::decode(&*BASE64_STANDARD_NO_PAD.decode(value)?)?)
}

#[test]
fn the_contract_passes_buf_lint() -> anyhow::Result<()> {
    let Some(buf) = buf()? else { return Ok(()) };
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let output = Command::new(buf).arg("lint").current_dir(proto).output()?;
    ensure!(output.status.success(), "buf lint:\n{}", text(&output));
    Ok(())
}
