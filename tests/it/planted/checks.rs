//! Checks that no other test makes in a form that is quick and needs one cause.

use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure};
use concord_client::{Outcome, v1};
use concord_coordinator::log::{DecisionLog, EmbeddedLog, LogError, MemoryLog};
use concord_coordinator::recovery;
use concord_core::coordinator::{self, Coordinator};
use concord_core::id::{Bqual, BranchId, Epoch, Gtrid, ParticipantName};
use concord_core::message::{Decision, FromParticipant, ToParticipant, Vote};
use concord_core::participant::{Effect, Input, Participant};
use concord_core::record::{ParticipantRecord, Record};
use concord_core::transaction::Ack;
use concord_participant::resource::mysql::xa::{FORMAT_ID, Xids};
use concord_tests::rig::{Rig, on_every_server, run, unlock};

use super::disk::Disk;

/// Where the journal's frames begin, and how long a page is.
const PAGE: usize = 4_096;

fn gtrid(n: u8) -> Gtrid {
    // Of version 7 and of the RFC's variant.
    let mut gtrid = Gtrid::lowest_at(1_800_000_000_000);
    (gtrid.0[6], gtrid.0[8], gtrid.0[15]) = (0x70, 0x80, n);
    gtrid
}

fn branch(n: u8) -> BranchId {
    BranchId {
        gtrid: gtrid(n),
        bqual: Bqual(1),
    }
}

#[test]
fn a_sweep_leaves_alone_what_is_being_prepared() {
    let mut machine = Participant::new(Epoch(1), Gtrid::MIN);
    machine.step(Input::Sweep { listed: Vec::new() });
    let message = ToParticipant::Prepare {
        branch: branch(1),
        epoch: Epoch(1),
        work: true,
        may_leave: true,
    };
    machine.step(Input::Message { token: 1, message });
    // The server has prepared it, and its answer is still on its way.
    let listed = vec![branch(1)];
    let step = machine.step(Input::Sweep { listed });
    let runs = |effect: &Effect| matches!(effect, Effect::Run { .. });
    assert!(
        !step.release.iter().any(runs),
        "a branch runs two commands: {step:?}"
    );
}

/// Whatever leads to an inquiry while the decision is on its way to the disk: if a crash then loses
/// the decision, the branch that was answered has committed alone.
#[test]
fn an_inquiry_is_answered_when_the_decision_is_durable() -> anyhow::Result<()> {
    let names = ["p1", "p2"].map(ParticipantName::new);
    let mut machine = Coordinator::new();
    machine.apply(&Record::Epoch(Epoch(1)))?;
    for participant in names.clone() {
        machine.step(coordinator::Input::LinkUp { participant })?;
    }
    machine.step(coordinator::Input::Run {
        gtrid: gtrid(1),
        branches: names.to_vec(),
        request: None,
        ack: Ack::Applied,
        may_leave: false,
    })?;
    for (from, n) in names.clone().into_iter().zip(1..) {
        let branch = BranchId {
            gtrid: gtrid(1),
            bqual: Bqual(n),
        };
        let (epoch, vote) = (Epoch(1), Vote::Commit);
        let message = FromParticipant::Voted {
            branch,
            epoch,
            vote,
        };
        machine.step(coordinator::Input::Received { from, message })?;
    }
    let [from, _] = names;
    let steps = machine.step(coordinator::Input::Inquire {
        from,
        branch: branch(1),
        token: 7,
    })?;
    let commit = coordinator::Effect::Answer {
        token: 7,
        decision: Decision::Commit,
    };
    ensure!(steps.iter().any(|step| step.release == [commit.clone()]));
    let early = steps.iter().any(|step| step.after == 0);
    ensure!(
        !early,
        "it is answered before its decision is durable: {steps:?}"
    );
    Ok(())
}

#[test]
fn a_horizon_is_durable_before_rows_are_deleted() {
    let mut machine = Participant::new(Epoch(1), Gtrid::MIN);
    machine.step(Input::Sweep { listed: Vec::new() });
    let step = machine.step(Input::ForgetBelow { gtrid: gtrid(9) });
    let below = gtrid(9);
    assert!(step.release.contains(&Effect::Prune { below }), "{step:?}");
    let kept = step.append.contains(&ParticipantRecord::ForgetBelow(below));
    assert!(
        kept && step.after == 1,
        "rows are deleted without a durable horizon: {step:?}"
    );
}

/// The list may be older than the branch's end, so that a vote COMMIT might be given for a branch
/// that is over: whoever decided by it would wait for its end for ever, or call it damaged.
#[test]
fn nobody_vouches_for_a_former_life() {
    let mut machine = Participant::new(Epoch(1), Gtrid::MIN);
    let listed = vec![branch(1)];
    machine.step(Input::Sweep { listed });
    let message = ToParticipant::Prepare {
        branch: branch(1),
        epoch: Epoch(1),
        work: true,
        may_leave: true,
    };
    let step = machine.step(Input::Message { token: 1, message });
    let vouches = step.release.iter().any(|effect| match effect {
        Effect::Reply { message, .. } => matches!(
            message,
            FromParticipant::Voted {
                vote: Vote::Commit,
                ..
            }
        ),
        _ => false,
    });
    assert!(
        !vouches,
        "a vote COMMIT, and nobody here saw it prepared: {step:?}"
    );
}

#[test]
fn a_branch_of_another_cluster_is_foreign() {
    for (ours, theirs) in [("bank", "shop"), ("a", "b"), ("cluster-1", "cluster-2")] {
        let row = |cluster: &str| {
            let mut data = vec![u8::try_from(cluster.len()).unwrap()];
            data.extend_from_slice(cluster.as_bytes());
            let gtrid_length = i64::try_from(data.len() + 16).unwrap();
            data.extend_from_slice(&gtrid(1).0);
            data.extend_from_slice(&1_u32.to_be_bytes());
            (gtrid_length, data)
        };
        let parse = |cluster: &str| {
            let (length, data) = row(cluster);
            Xids::new(ours).parse(i64::from(FORMAT_ID), length, 4, &data)
        };
        assert_eq!(parse(ours), Some(branch(1)));
        assert_eq!(
            parse(theirs),
            None,
            "a branch of {theirs} is taken for ours"
        );
    }
}

#[test]
fn each_start_has_an_epoch_of_its_own() -> anyhow::Result<()> {
    let names = [ParticipantName::new("p1")];
    let mut log = MemoryLog::new();
    let first = recovery::start(&mut log, &names, 1)?.recovered.machine;
    let second = recovery::start(&mut log, &names, 2)?.recovered.machine;
    ensure!(
        first.epoch() < second.epoch(),
        "two incarnations of a coordinator speak as {}",
        first.epoch()
    );
    Ok(())
}

fn open(disk: &Disk) -> Result<EmbeddedLog, LogError> {
    EmbeddedLog::open_with_backend(Box::new(disk.clone()), Path::new("(memory)"), "planted")
}

/// A record that fills more than one sector of its frame, so that a frame can be torn.
fn decision(n: u8) -> Record {
    let branches = (1..=64)
        .map(|bqual| {
            (
                Bqual(bqual),
                ParticipantName::new(format!("participant-{bqual}")),
            )
        })
        .collect();
    Record::Decision {
        gtrid: gtrid(n),
        epoch: Epoch(1),
        branches,
        request: None,
    }
}

fn decisions(log: &EmbeddedLog) -> Result<Vec<Gtrid>, LogError> {
    Ok(log.replay()?.iter().filter_map(Record::gtrid).collect())
}

/// A log with the decisions 1 to 3, one frame each, as it is on the disk of a running coordinator.
fn three(disk: &Disk) -> anyhow::Result<EmbeddedLog> {
    let mut log = open(disk)?;
    for n in 1..=3 {
        log.append(&[decision(n)])?;
    }
    Ok(log)
}

#[test]
fn a_failed_fsync_stops_the_log() -> anyhow::Result<()> {
    let disk = Disk::default();
    let mut log = three(&disk)?;
    disk.fail_next_sync();
    let told = log.append(&[decision(4)]);
    let left = disk.after_power_loss(false);
    match told {
        Err(LogError::Failed { .. }) => {}
        Err(other) => bail!("{other}"),
        Ok(()) => ensure!(
            decisions(&open(&left)?)?.contains(&gtrid(4)),
            "a decision was acknowledged and is lost"
        ),
    }
    ensure!(matches!(
        log.append(&[decision(5)]),
        Err(LogError::Poisoned)
    ));
    ensure!(decisions(&open(&left)?)?.len() == 3);
    Ok(())
}

#[test]
fn a_torn_end_is_dropped() -> anyhow::Result<()> {
    let disk = Disk::default();
    let mut log = three(&disk)?;
    disk.fail_next_sync();
    ensure!(log.append(&[decision(4)]).is_err());
    let torn = disk.after_power_loss(true);
    match open(&torn) {
        Ok(log) => ensure!(decisions(&log)? == [gtrid(1), gtrid(2), gtrid(3)]),
        Err(error) => bail!("after a power loss the log does not open again: {error}"),
    }
    Ok(())
}

#[test]
fn rot_is_told() -> anyhow::Result<()> {
    // In the first frame, which others follow; in the last one, which was acknowledged.
    for frame in [0, 2] {
        let disk = Disk::default();
        // The log stays open: an orderly end would fold its frames.
        let log = three(&disk)?;
        let rotten = disk.after_kill();
        drop(log);
        rotten.rot(PAGE * (1 + frame) + 100);
        match open(&rotten) {
            Err(LogError::Damaged { .. }) => {}
            Err(other) => bail!("{other}"),
            Ok(log) => bail!(
                "a log whose frame {frame} rotted opens as if nothing were wrong, with {:?}",
                decisions(&log)?.len()
            ),
        }
    }
    Ok(())
}

#[test]
fn a_server_that_would_lose_branches_has_no_vote() -> anyhow::Result<()> {
    on_every_server(2, async |rig| {
        rig.sql(1, "SET GLOBAL innodb_flush_log_at_trx_commit = 0")
            .await?;
        let outcome = rig.plus(1)?.await?;
        let Outcome::Aborted { reason, .. } = outcome else {
            bail!("a participant voted on an unsafe server: {outcome:?}");
        };
        ensure!(&*reason.code == "UNSAFE_SERVER", "{reason}");
        Ok(())
    })
}

#[test]
fn a_serializable_reader_holds_its_locks() -> anyhow::Result<()> {
    on_every_server(2, async |rig| reader(rig).await)
}

/// The first branch has read and voted; the second still waits for a lock.
async fn reader(rig: &Rig) -> anyhow::Result<()> {
    let lock = rig.lock(2, 1).await?;
    let tx = rig.client()?.one_shot();
    let tx = tx
        .isolation(v1::Isolation::Serializable)
        .timeout(Duration::from_secs(20))
        .on("p1", "SELECT n FROM shop.t WHERE id = 1")
        .on("p2", "UPDATE shop.t SET n = n + 1 WHERE id = 1");
    let running = tokio::spawn(tx.send());
    rig.voted("p1").await?;
    let mut other = rig.root(1).await?;
    run(&mut other, "SET SESSION innodb_lock_wait_timeout = 1").await?;
    let change = run(&mut other, "UPDATE shop.t SET n = 0 WHERE id = 1").await;
    unlock(lock).await?;
    ensure!(
        change.is_err(),
        "somebody changed what a serializable transaction has read, while it was still locking"
    );
    ensure!(running.await?.is_committed());
    Ok(())
}
