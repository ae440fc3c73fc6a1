//! What `concord up` promises: once it says that all is ready, the first transaction commits.

use anyhow::ensure;
use concord_client::{Client, Outcome, RetryPolicy};
use concord_tests::cluster::{Cluster, servers};
use concord_tests::proxy::{Address, Fault, Kind, Proxy};

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
