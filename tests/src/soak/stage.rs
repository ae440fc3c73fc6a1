//! The stage: a cluster under the shipped supervisor with a proxy on every link, the tables and
//! accounts of the workloads, a foreign branch on each server, and the client processes.
//!
//! It starts and ends things. It breaks nothing and judges nothing.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use concord_client::local::binary::ServerBinary;
use concord_client::local::process::ProcessId;
use concord_client::local::server::ServerFolder;
use concord_client::{Client, Outcome, v1};
use nix::sys::signal::Signal;
use sqlx::mysql::MySqlConnection;
use tokio::process::{Child, Command};

use crate::cluster::{Cluster, TO_BE_KILLED};
use crate::proxy::{Address, Kind, Link, Proxy};
use crate::rig;

/// Servers, and participants.
pub const SERVERS: u16 = 3;
/// Client processes.
pub const CLIENTS: i64 = 3;
/// Accounts that most transfers fight for.
pub const HOT_ACCOUNTS: u32 = 4;
/// Accounts that few do.
pub const UNIFORM_ACCOUNTS: u32 = 60;
/// Counters of everybody.
pub const COUNTERS_SHARED: i64 = 2;
/// Counters of one client alone.
pub const COUNTERS_PER_CLIENT: i64 = 4;
/// Products.
pub const PRODUCTS: u32 = 6;
/// What each product has in stock.
pub const STOCK: i64 = 1_000_000_000;
/// Longest wait for a client that was told to end. Its last operation may repeat itself a while.
const CLIENT_END_TIMEOUT: Duration = Duration::from_secs(20);
/// What a foreign branch is called. Format id 7 is nobody's that we know.
pub const FOREIGN_XID: &str = "'foreign','branch',7";

/// An account that few use.
pub fn account(n: u32) -> String {
    format!("uniform-{n}")
}

/// An account that many use.
pub fn hot_account(n: u32) -> String {
    format!("hot-{n}")
}

/// Who is paid for orders.
pub fn merchant() -> String {
    "merchant".to_owned()
}

/// A product.
pub fn product(n: u32) -> String {
    format!("product-{n}")
}

/// The links of one participant.
#[derive(Debug)]
pub struct Side {
    commands: Proxy,
    inquiries: Proxy,
    sql: Proxy,
}

/// Which link of a participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wire {
    /// On which the coordinator tells it what to do.
    Commands,
    /// On which it asks the coordinator.
    Inquiries,
    /// To its server.
    Sql,
}

/// A client process.
#[derive(Debug)]
struct Player {
    number: i64,
    life: u64,
    child: Child,
}

/// Everything that stands on it.
#[derive(Debug)]
pub struct Stage {
    /// The cluster.
    pub cluster: Cluster,
    sides: Vec<Side>,
    players: Vec<Player>,
    lives: u64,
    seed: u64,
    records: Vec<PathBuf>,
    /// The sum of all balances.
    pub money: i64,
}

impl Stage {
    /// Starts everything but the clients.
    pub async fn start(server: &ServerBinary, seed: u64) -> anyhow::Result<Self> {
        let cluster = Cluster::prepare(server, SERVERS)?;
        let sides = lay_links(&cluster).await?;
        tokio::task::block_in_place(|| cluster.up(&TO_BE_KILLED))?;
        let mut stage = Self {
            cluster,
            sides,
            players: Vec::new(),
            lives: 0,
            seed,
            records: Vec::new(),
            money: 0,
        };
        for n in 1..=SERVERS {
            stage.make_tables(n.into()).await?;
        }
        stage.open_accounts().await?;
        Ok(stage)
    }

    /// A link of the n-th participant, from 1.
    pub fn link(&self, n: u16, wire: Wire) -> &Arc<Link> {
        let side = &self.sides[usize::from(n) - 1];
        match wire {
            Wire::Commands => side.commands.link(),
            Wire::Inquiries => side.inquiries.link(),
            Wire::Sql => side.sql.link(),
        }
    }

    async fn make_tables(&self, n: usize) -> anyhow::Result<()> {
        let mut root = self.cluster.root(n).await?;
        for sql in [
            "CREATE DATABASE soak",
            "CREATE TABLE soak.counters (id BIGINT PRIMARY KEY, n BIGINT NOT NULL)",
            "CREATE TABLE soak.steps (id BIGINT AUTO_INCREMENT PRIMARY KEY, \
             counter BIGINT NOT NULL, n BIGINT NOT NULL, op VARCHAR(64) NOT NULL)",
            "CREATE TABLE soak.items (op VARCHAR(64) PRIMARY KEY)",
            "CREATE TABLE soak.theirs (id INT PRIMARY KEY, n INT NOT NULL)",
            "INSERT INTO soak.theirs VALUES (1, 1)",
        ] {
            rig::run(&mut root, sql).await?;
        }
        let counters = COUNTERS_SHARED + CLIENTS * COUNTERS_PER_CLIENT;
        for id in 0..counters {
            rig::run(
                &mut root,
                &format!("INSERT INTO soak.counters VALUES ({id}, 0)"),
            )
            .await?;
        }
        leave_foreign_branch(&mut root).await
        // Its connection closes here; the branch stays.
    }

    async fn open_accounts(&mut self) -> anyhow::Result<()> {
        let client = self.client()?;
        let hot = (0..HOT_ACCOUNTS).map(|n| (hot_account(n), 1_000_000));
        let uniform = (0..UNIFORM_ACCOUNTS).map(|n| (account(n), 5_000));
        let all: Vec<_> = hot.chain(uniform).chain([(merchant(), 1)]).collect();
        self.money = all.iter().map(|(_, balance)| balance).sum();
        let opened = all.into_iter().map(|(account_id, initial_balance)| {
            client.open_account(v1::OpenAccountRequest {
                request_id: format!("open-{account_id}"),
                account_id,
                currency: "EUR".to_owned(),
                initial_balance,
            })
        });
        for outcome in futures::future::join_all(opened).await {
            ensure!(outcome.is_committed(), "no account: {outcome:?}");
        }
        for n in 0..PRODUCTS {
            let created = client.create_product(v1::CreateProductRequest {
                product_id: product(n),
                name: product(n),
                price: i64::from(n) + 1,
                currency: "EUR".to_owned(),
                initial_stock: STOCK,
                request_id: String::new(),
            });
            let outcome: Outcome<_> = created.await;
            ensure!(outcome.is_committed(), "no product: {outcome:?}");
        }
        Ok(())
    }

    /// A client of our own.
    pub fn client(&self) -> anyhow::Result<Client> {
        self.cluster.client()
    }

    /// Starts all client processes.
    pub fn start_clients(&mut self) -> anyhow::Result<()> {
        for number in 0..CLIENTS {
            let player = self.start_client(number)?;
            self.players.push(player);
        }
        Ok(())
    }

    fn start_client(&mut self, number: i64) -> anyhow::Result<Player> {
        self.lives += 1;
        let life = self.lives;
        let name = format!("c{number}.{life}");
        let record = self.cluster.beside(&format!("record-{name}"));
        let log = std::fs::File::create(self.cluster.beside(&format!("client-{name}.log")))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["client", "--endpoint", &self.cluster.endpoint()])
            .arg("--record")
            .arg(&record)
            .args(["--name", &name, "--number", &number.to_string()])
            .args(["--seed", &(self.seed ^ life << 20).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.records.push(record);
        Ok(Player {
            number,
            life,
            child,
        })
    }

    /// Kills a client process and starts its successor.
    pub async fn kill_client(&mut self, at: usize) -> anyhow::Result<()> {
        let number = self.players[at].number;
        if let Some(status) = self.players[at].child.try_wait()? {
            bail!("client {}: {status}", self.last_words(at));
        }
        self.players[at].child.kill().await?;
        self.players[at] = self.start_client(number)?;
        Ok(())
    }

    /// A client's process.
    pub fn client_process(&self, at: usize) -> Option<ProcessId> {
        let pid = self.players.get(at)?.child.id()?;
        ProcessId::of(pid).ok()
    }

    /// Tells all clients to end, without waiting for it.
    pub fn dismiss_clients(&mut self) {
        for player in &mut self.players {
            drop(player.child.stdin.take());
        }
    }

    /// Whether a client process still runs.
    pub fn clients_work(&mut self) -> anyhow::Result<bool> {
        for player in &mut self.players {
            if player.child.try_wait()?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits until all clients have ended well.
    pub async fn clients_ended(&mut self) -> anyhow::Result<()> {
        for at in 0..self.players.len() {
            let ended = tokio::time::timeout(CLIENT_END_TIMEOUT, self.players[at].child.wait());
            let status = ended
                .await
                .with_context(|| format!("client {} does not end", self.last_words(at)))??;
            ensure!(status.success(), "client {}: {status}", self.last_words(at));
        }
        self.players.clear();
        Ok(())
    }

    fn last_words(&self, at: usize) -> String {
        let Player { number, life, .. } = self.players[at];
        let log = self.cluster.beside(&format!("client-c{number}.{life}.log"));
        let said = std::fs::read_to_string(log).unwrap_or_default();
        format!("c{number}.{life} (it said: {said:?})")
    }

    /// Records that were not taken before.
    pub fn take_records(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.records)
    }

    /// The running process of that name, if one runs.
    pub fn process(&self, name: &str) -> anyhow::Result<Option<ProcessId>> {
        let process = self.cluster.process(name)?.process;
        Ok(process.filter(|process| process.is_alive()))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A stopped process would hold up the end of all.
        for name in names() {
            if let Ok(Some(process)) = self.process(&name) {
                process.signal(Signal::SIGCONT);
            }
        }
    }
}

/// Every process of the cluster.
pub fn names() -> Vec<String> {
    let pairs = (1..=SERVERS).flat_map(|n| [format!("s{n}"), format!("p{n}")]);
    pairs.chain(["coordinator".to_owned()]).collect()
}

/// Puts a proxy on each link, and into the settings of the daemons on both sides.
async fn lay_links(cluster: &Cluster) -> anyhow::Result<Vec<Side>> {
    let own = cluster.dir().join("own");
    std::fs::create_dir_all(&own)?;
    let mut sides = Vec::new();
    let mut participants = String::new();
    for n in 1..=SERVERS {
        let server = ServerFolder::open(&cluster.dir().join(format!("servers/s{n}")))?;
        let target = Address::Unix(server.socket().to_owned());
        let socket = cluster.beside(&format!("s{n}.sock"));
        let sql = Proxy::on_socket(socket, target, Kind::Sql)?;
        let gateway = Address::Tcp(cluster.gateway_address());
        let inquiries = Proxy::on_tcp(gateway, Kind::Bytes).await?;
        let participant = Address::Tcp(cluster.participant_address(n));
        let commands = Proxy::on_tcp(participant, Kind::Bytes).await?;
        let settings = format!(
            "coordinator = {:?}\n[server]\nsocket = {:?}\n",
            inquiries.url(),
            sql.url()
        );
        std::fs::write(own.join(format!("p{n}.toml")), settings)?;
        let known = format!(
            "[[participants]]\nname = \"p{n}\"\naddress = {:?}\n",
            commands.url()
        );
        participants.push_str(&known);
        sides.push(Side {
            commands,
            inquiries,
            sql,
        });
    }
    std::fs::write(own.join("coordinator.toml"), participants)?;
    Ok(sides)
}

async fn leave_foreign_branch(root: &mut MySqlConnection) -> anyhow::Result<()> {
    for sql in [
        &format!("XA START {FOREIGN_XID}"),
        "UPDATE soak.theirs SET n = 2 WHERE id = 1",
        &format!("XA END {FOREIGN_XID}"),
        &format!("XA PREPARE {FOREIGN_XID}"),
    ] {
        rig::run(root, sql).await?;
    }
    Ok(())
}
