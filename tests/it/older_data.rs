//! An older copy of a server's data under the same identity: a snapshot of a machine or of a
//! folder was brought back. Everything tells that it is the same server, except what it lacks.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use concord_client::v1;
use concord_proto::status::reason_of;
use concord_tests::cluster::eventually;
use concord_tests::rig::{COORDINATOR, PATIENCE, Rig, START, on_every_server, refused_with};

/// A branch of it is missing in the older copy.
const LOST: &str = "DATA_LOST";

/// A folder of the first server.
fn folder(rig: &Rig, name: &str) -> anyhow::Result<PathBuf> {
    let password = rig.servers[0].password_file();
    Ok(password.parent().context("a folder")?.join(name))
}

fn copy(rig: &Rig, from: &str, to: &str) -> anyhow::Result<()> {
    let (from, to) = (folder(rig, from)?, folder(rig, to)?);
    if to.exists() {
        std::fs::remove_dir_all(&to)?;
    }
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&from, &to])
        .status()?;
    ensure!(copied.success(), "{} to {}", from.display(), to.display());
    Ok(())
}

/// Copies the data of the first server as it is after a crash.
async fn snapshot(rig: &mut Rig, name: &str) -> anyhow::Result<()> {
    rig.servers[0].kill9();
    copy(rig, "data", name)?;
    Ok(rig.servers[0].restart().await?)
}

async fn bring_back(rig: &mut Rig, name: &str) -> anyhow::Result<()> {
    rig.servers[0].kill9();
    copy(rig, name, "data")?;
    Ok(rig.servers[0].restart().await?)
}

fn restart_participant(rig: &mut Rig) -> anyhow::Result<()> {
    rig.kill9("p1")?;
    rig.spawn("p1")
}

/// Words of the participant that saw its server go back, and of the coordinator about a new one.
const SEEN: &str = "restart the participant";
const ADVICE: &str = "accept_without = \"";

/// The coordinator refuses the participant with these words.
async fn refused_by_the_coordinator(rig: &Rig, words: &str) -> anyhow::Result<v1::Reason> {
    let client = rig.client()?;
    eventually("the coordinator to refuse the data", PATIENCE, async || {
        let all = client.list_participants().await?;
        let p1 = all.into_iter().find(|p| p.name == "p1").context("no p1")?;
        let refused = p1
            .reason
            .filter(|reason| reason.code == LOST && reason.message.contains(words));
        Ok(refused.filter(|_| !p1.connected))
    })
    .await
}

/// The participant itself, which was there all the time, sees it and gives no vote.
async fn seen_by_the_participant(rig: &Rig) -> anyhow::Result<()> {
    let status = eventually("the participant to see it", PATIENCE, async || {
        let status = rig.status(1).await?;
        let seen = status.problems.iter().any(|problem| problem.code == LOST);
        Ok(seen.then_some(status))
    })
    .await?;
    ensure!(!status.can_vote, "{status:?}");
    ensure!(!rig.serves(1).await, "its health says SERVING");
    // By the participant's vote, or by the coordinator, which has let the link go.
    refused_with(&rig.plus(2)?.await?)?;
    Ok(())
}

/// What the gateway would tell from it is not true of the cluster, and its tables are nobody's.
async fn nobody_reads_from_it(rig: &Rig) -> anyhow::Result<()> {
    let mut bank = v1::bank_service_client::BankServiceClient::connect(rig.endpoint()).await?;
    let mut refused = 0;
    for account in 0..32 {
        // Half of them belong there.
        let request = v1::GetAccountRequest {
            account_id: format!("account-{account}"),
        };
        let status = bank
            .get_account(request)
            .await
            .err()
            .context("no such account")?;
        let reason = reason_of(&status).context("a reason")?;
        refused += u32::from(&*reason.code == LOST);
    }
    ensure!((1..32).contains(&refused), "{refused} refused");
    Ok(())
}

/// What the coordinator says an operator may set.
fn advised(reason: &v1::Reason) -> anyhow::Result<String> {
    let (_, rest) = reason.message.split_once(ADVICE).context("no advice")?;
    let (gtrid, _) = rest.split_once('"').context("no transaction")?;
    Ok(gtrid.to_owned())
}

fn accept_without(rig: &mut Rig, gtrid: &str) {
    rig.configure(COORDINATOR, |own| {
        let participants = own.get_mut("participants");
        let first = participants.and_then(|all| all.as_array_mut()?.first_mut());
        if let Some(first) = first.and_then(|p| p.as_table_mut()) {
            first.insert("accept_without".into(), gtrid.into());
        }
    });
}

#[test]
fn an_older_copy_of_the_data_is_refused_until_an_operator_accepts_it() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        ensure!(rig.plus(1)?.await?.is_committed());
        snapshot(rig, "older").await?;
        rig.linked().await?;
        ensure!(rig.plus(1)?.await?.is_committed());
        rig.settled(1, START + 2).await?;
        // A copy that lacks nothing is no other data.
        snapshot(rig, "newer").await?;
        bring_back(rig, "newer").await?;
        eventually("it to vote again", PATIENCE, async || {
            let status = rig.status(1).await?;
            let lost = status.problems.iter().any(|problem| problem.code == LOST);
            ensure!(!lost, "{status:?}");
            Ok(status.can_vote.then_some(()))
        })
        .await?;
        rig.linked().await?;

        // To be linked again takes a transaction, so this one is newer still.
        snapshot(rig, "newest").await?;
        bring_back(rig, "older").await?;
        seen_by_the_participant(rig)
            .await
            .context("the participant that was there all the time")?;
        refused_by_the_coordinator(rig, SEEN)
            .await
            .context("the coordinator, of a participant that has seen it")?;
        restart_participant(rig)?;
        let reason = refused_by_the_coordinator(rig, ADVICE)
            .await
            .context("the coordinator, of a new participant")?;
        advised(&reason)?;
        ensure!(!rig.plus(2)?.await?.is_committed());
        nobody_reads_from_it(rig).await?;
        // Nor does the coordinator forget it with its own restart.
        rig.kill9(COORDINATOR)?;
        rig.spawn(COORDINATOR)?;
        refused_by_the_coordinator(rig, ADVICE)
            .await
            .context("a new coordinator")?;

        // The newer data needs no operator.
        bring_back(rig, "newest").await?;
        restart_participant(rig)?;
        rig.linked().await?;
        rig.settled(1, START + 2).await?;

        bring_back(rig, "older").await?;
        restart_participant(rig)?;
        let reason = refused_by_the_coordinator(rig, ADVICE)
            .await
            .context("again")?;
        let lost = advised(&reason)?;
        rig.kill9(COORDINATOR)?;
        accept_without(rig, &lost);
        rig.up().await?;
        ensure!(rig.plus(2)?.await?.is_committed());
        rig.settled(2, START + 1).await?;
        let held = (rig.n(1, 1).await?, rig.n(2, 1).await?);
        ensure!(held == (START + 1, START + 2), "what was lost: {held:?}");

        // What was accepted is that one loss, and not the next.
        bring_back(rig, "older").await?;
        restart_participant(rig)?;
        refused_by_the_coordinator(rig, ADVICE)
            .await
            .context("after an acceptance")?;
        Ok(())
    })
}
