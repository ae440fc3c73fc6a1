//! What statements returned can be lost between a commit and its answer. Then that is told, and
//! nothing is made up in its place.

use std::path::Path;

use anyhow::{Context, ensure};
use concord_client::{Outcome, v1};
use concord_daemon::crash::CrashPoint;
use concord_tests::cluster::{binaries, eventually};
use concord_tests::rig::{PATIENCE, Rig, START, on_every_server, unlock};
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

fn sent(rig: &Rig, sql: &str) -> anyhow::Result<JoinHandle<Outcome>> {
    let tx = rig.client()?.one_shot().on("p1", sql).timeout(PATIENCE);
    Ok(tokio::spawn(tx.send()))
}

/// The results of a commit; none when they were lost.
fn results(outcome: Outcome) -> anyhow::Result<Option<Vec<v1::StatementResult>>> {
    let Outcome::Committed {
        results,
        replayed: false,
        results_lost,
        ..
    } = outcome
    else {
        anyhow::bail!("not committed: {outcome:?}");
    };
    if results_lost {
        ensure!(results.is_empty(), "lost, and there: {results:?}");
        return Ok(None);
    }
    Ok(Some(results))
}

#[test]
fn what_a_commit_in_one_phase_returned_is_told_or_said_to_be_lost() -> anyhow::Result<()> {
    on_every_server(1, async |rig| {
        let armed = rig.crash_folder()?;
        rig.kill9("p1")?;
        rig.up().await?;
        with_the_participant(rig, armed.path())
            .await
            .context("the participant dies after the commit")?;
        with_the_link(rig)
            .await
            .context("the link is lost during a read")
    })
}

/// Its ledger row proves the commit, and nothing knows what the statement returned.
async fn with_the_participant(rig: &mut Rig, armed: &Path) -> anyhow::Result<()> {
    let point = armed.join(CrashPoint::ServerOnePhaseAnswered.name());
    let add = "UPDATE shop.t SET n = n + 1 WHERE id = 1";
    std::fs::write(&point, "")?;
    let sent = sent(rig, add)?;
    dies_and_comes_back(rig, &point).await?;
    let found = results(sent.await?)?;
    ensure!(
        found.is_none(),
        "results of a participant that died are made up: {found:?}"
    );
    let words = [
        (&[][..], "was lost after the commit; read again"),
        (&["--json"], "\"results_lost\": true"),
    ];
    for (options, word) in words {
        std::fs::write(&point, "")?;
        let mut command = std::process::Command::new(binaries()?.join("concord"));
        command
            .args(options)
            .args(["--endpoint", &rig.endpoint(), "--timeout", "60s"])
            .args(["tx", "exec", &format!("p1: {add}")]);
        let sent = tokio::task::spawn_blocking(move || command.output());
        dies_and_comes_back(rig, &point).await?;
        let output = sent.await??;
        let told = String::from_utf8(output.stdout)?;
        ensure!(output.status.success() && told.contains(word), "{told}");
    }
    rig.settled(1, START + 3).await
}

async fn dies_and_comes_back(rig: &mut Rig, point: &Path) -> anyhow::Result<()> {
    eventually("the participant to die", PATIENCE, async || {
        Ok((rig.has_ended("p1") && !point.exists()).then_some(()))
    })
    .await?;
    rig.spawn("p1")
}

/// On the new link the coordinator asks how the order ended, which still waits for its lock: the
/// answer brings the row that it finds then.
async fn with_the_link(rig: &mut Rig) -> anyhow::Result<()> {
    let lock = rig.lock(1, 2).await?;
    let sent = sent(rig, "SELECT n FROM shop.t WHERE id = 2 FOR UPDATE")?;
    let mut participant = rig.participant(1)?;
    eventually("the statement to run", PATIENCE, async || {
        let list = v1::ListBranchesRequest::default();
        let branches = participant.list_branches(list).await?.into_inner().branches;
        Ok((branches.len() == 1).then_some(()))
    })
    .await?;
    rig.signal("p1", Signal::SIGSTOP)?;
    is_linked(rig, false).await?;
    rig.signal("p1", Signal::SIGCONT)?;
    is_linked(rig, true).await?;
    unlock(lock).await?;
    let found = results(sent.await?)?.context("what was read is lost")?;
    let value = v1::value::Kind::Int64(START);
    let rows: Vec<_> = found.iter().flat_map(|result| &result.result).collect();
    ensure!(
        rows.len() == 1 && rows[0].values[0].kind == Some(value),
        "{found:?}"
    );
    rig.drained().await
}

async fn is_linked(rig: &Rig, wanted: bool) -> anyhow::Result<()> {
    let client = rig.client()?;
    eventually(&format!("linked: {wanted}"), PATIENCE, async || {
        let all = client.list_participants().await?;
        Ok(all.iter().all(|one| one.connected == wanted).then_some(()))
    })
    .await
}
