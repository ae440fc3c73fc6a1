//! What `concord up` and `concord down` do with a folder in which nothing runs.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use anyhow::{Context as _, ensure};
use concord_tests::cluster::Cluster;
use serde_json::json;

use super::small;

/// What an interrupted removal leaves.
const WIPED_FILE: &str = "cluster.json.wiped";

/// Makes the cluster's folder with one file in it.
fn lay(cluster: &Cluster, name: &str, text: &str) -> anyhow::Result<()> {
    fs::create_dir_all(cluster.dir())?;
    Ok(fs::write(cluster.dir().join(name), text)?)
}

fn refused(output: &Output, code: i32, words: &[&str]) -> anyhow::Result<()> {
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "{}: {told}",
        output.status
    );
    for word in words {
        ensure!(told.contains(word), "no {word}: {told}");
    }
    Ok(())
}

#[test]
fn a_refused_port_is_not_remembered() -> anyhow::Result<()> {
    let cluster = small()?;
    let first = cluster.gateway_address().port();
    let settings = json!({
        "servers": 1, "server": cluster.server.path(), "kind": cluster.server.kind(),
        "gateway_port": first, "participant_port": first + 1, "server_port": first + 2,
        "seeded": true,
    });
    let settings = settings.to_string();
    lay(&cluster, "cluster.json", &settings)?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let taken = listener.local_addr()?.port().to_string();
    let twice = (first + 1).to_string();
    for (port, code) in [(&taken, 5), (&twice, 2)] {
        let output = cluster.concord(&["up", "--gateway-port", port]).output()?;
        refused(&output, code, &[port])?;
        let kept = fs::read_to_string(cluster.dir().join("cluster.json"))?;
        ensure!(kept == settings, "{kept}");
    }
    Ok(())
}

#[test]
fn what_an_interrupted_removal_left_is_not_started_and_can_be_removed() -> anyhow::Result<()> {
    let cluster = small()?;
    lay(&cluster, WIPED_FILE, "")?;
    let output = cluster.up_command(&["--no-seed"]).output()?;
    refused(&output, 2, &["was being removed", "concord down --wipe"])?;
    cluster.run(&["down", "--wipe"])?;
    ensure!(!cluster.dir().exists(), "it is still there");
    Ok(())
}

/// On a disk that is full nothing can be written, and removing is what helps.
#[test]
fn a_broken_cluster_is_removed_though_nothing_can_be_written() -> anyhow::Result<()> {
    let cluster = small()?;
    lay(&cluster, "cluster.json", "")?;
    let output = cluster.up_command(&["--no-seed"]).output()?;
    refused(&output, 1, &["broken", "concord down --wipe"])?;
    for more in [&["down"][..], &["down", "--wipe"]] {
        let down = cluster.concord(more);
        let full = "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\"";
        let output = Command::new("/bin/sh")
            .args(["-c", full])
            .arg(down.get_program())
            .args(down.get_args())
            .output()
            .context("a shell")?;
        refused(&output, 0, &[])?;
    }
    ensure!(!cluster.dir().exists(), "it is still there");
    Ok(())
}
