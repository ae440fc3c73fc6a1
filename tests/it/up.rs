//! What `concord up` promises: once it says that all is ready, the first transaction commits; and
//! it leaves nothing behind, whatever becomes of its terminal, its disk or its folder.

mod folder;

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use anyhow::{Context as _, ensure};
use concord_client::local::process::ProcessId;
use concord_client::local::state::Readiness;
use concord_client::{Client, Outcome, RetryPolicy};
use concord_tests::cluster::{Cluster, READY_TIMEOUT, eventually, servers};
use concord_tests::proxy::{Address, Fault, Kind, Proxy};
use nix::sys::signal::Signal;

/// Puts a row on both servers, in one attempt.
async fn at_once(client: &Client, id: u32) -> Outcome {
    let sql = format!("INSERT INTO up.t VALUES ({id})");
    let tx = client.one_shot().on("p1", sql.as_str());
    tx.on("p2", sql.as_str()).send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_means_that_the_first_transaction_commits() -> anyhow::Result<()> {
    for server in servers()? {
        let cluster = Cluster::prepare(&server, 2)?;
        let target = Address::Tcp(cluster.participant_address(2));
        let way = Proxy::on_tcp(target, Kind::Bytes).await?;
        let own = cluster.dir().join("own");
        std::fs::create_dir_all(&own)?;
        let participants = format!(
            "[[participants]]\nname = \"p1\"\naddress = \"http://{}\"\n\
             [[participants]]\nname = \"p2\"\naddress = \"{}\"\n",
            cluster.participant_address(1),
            way.url()
        );
        std::fs::write(own.join("coordinator.toml"), participants)?;
        let client = Client::builder(cluster.endpoint())
            .retry(RetryPolicy::none())
            .build()?;
        let held = way.link().hold(Fault::Refuse);
        std::thread::scope(|threads| -> anyhow::Result<()> {
            let up = threads.spawn(|| cluster.up(&["--no-seed"]));
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current()
                    .block_on(not_ready_without_links(&cluster, &client))
            })?;
            drop(held);
            up.join().map_err(|_| anyhow::anyhow!("it panicked"))?
        })?;
        for n in 1..=2 {
            let sql = "CREATE DATABASE up; CREATE TABLE up.t (id INT PRIMARY KEY)";
            cluster.sql(n, sql).await?;
        }
        let outcome = at_once(&client, 1).await;
        ensure!(
            matches!(outcome, Outcome::Committed { .. }),
            "{}: {outcome:?}",
            server.kind()
        );
    }
    Ok(())
}

/// Every process is ready and the cluster is not, because its first transaction is refused.
async fn not_ready_without_links(cluster: &Cluster, client: &Client) -> anyhow::Result<()> {
    cluster.until_up().await?;
    let outcome = at_once(client, 0).await;
    let Outcome::Aborted { reason, .. } = &outcome else {
        anyhow::bail!("p2 has no link: {outcome:?}");
    };
    ensure!(&*reason.code == "PARTICIPANT_DOWN", "{reason}");
    ensure!(!cluster.state()?.ready, "it says that it is ready");
    Ok(())
}

/// A cluster of one server that is not started yet; of which kind makes no difference here.
fn small() -> anyhow::Result<Cluster> {
    let server = servers()?.pop().context("there is a server")?;
    Cluster::prepare(&server, 1)
}

/// As on a full disk, or when the terminal is gone. A closed terminal sends its signal twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_and_two_hangups_do_no_harm() -> anyhow::Result<()> {
    let cluster = small()?;
    let full = || File::options().write(true).open("/dev/full");
    let mut up = cluster
        .up_command(&["--no-seed"])
        .stdout(full()?)
        .stderr(full()?)
        .spawn()?;
    let ready = |wanted: bool| {
        let cluster = &cluster;
        async move || Ok((cluster.state()?.ready == wanted).then_some(()))
    };
    eventually("the cluster ready", READY_TIMEOUT, ready(true)).await?;
    let log = cluster.process("coordinator")?.log;
    fs::remove_file(&log)?;
    symlink("/dev/full", &log)?;
    ensure!(cluster.kill9("coordinator")?, "it did not run");
    let again = async || Ok((cluster.process("coordinator")?.restarts > 0).then_some(()));
    eventually("the coordinator started again", READY_TIMEOUT, again).await?;
    cluster.until_up().await?;
    ensure!(
        cluster.process("coordinator")?.restarts == 1,
        "it died of its log"
    );

    let supervisor = ProcessId::of(up.id())?;
    supervisor.signal(Signal::SIGHUP);
    eventually("the beginning of the stop", READY_TIMEOUT, ready(false)).await?;
    supervisor.signal(Signal::SIGHUP);
    let status = tokio::task::spawn_blocking(move || up.wait()).await??;
    ensure!(status.success(), "{status}");
    for process in cluster.state()?.processes {
        ensure!(
            process.readiness == Readiness::Stopped,
            "killed: {process:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_folder_is_removed_ends() -> anyhow::Result<()> {
    let cluster = small()?;
    cluster.up(&["--no-seed"])?;
    let state = cluster.state()?;
    let mut processes: Vec<_> = state.alive().into_iter().map(|(_, id)| id).collect();
    ensure!(processes.len() == 3, "{state:?}");
    processes.push(state.supervisor);
    let removed = async || {
        // Files that come while it is being emptied are in the way, as they are in that of `rm`.
        let _ = fs::remove_dir_all(cluster.dir());
        Ok((!cluster.dir().exists()).then_some(()))
    };
    eventually("the folder gone", READY_TIMEOUT, removed).await?;
    let ended = async || Ok((!processes.iter().any(|id| id.is_alive())).then_some(()));
    eventually("all processes gone", READY_TIMEOUT, ended).await?;
    ensure!(!cluster.dir().exists(), "the folder was made again");
    Ok(())
}
