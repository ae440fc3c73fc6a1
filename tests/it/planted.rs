//! The suite is proven by planted bugs: each must be caught, by the test that is named here.
//!
//! A check is a test of this binary that passes. It is run again in a process of its own in which
//! one bug is planted ([`concord_core::planted`]), and must fail there with the words that say what
//! the bug broke. `tests/PLANTED.md` is the table for people; it must name the same.

mod checks;
mod disk;
mod models;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use concord_core::planted::{Bug, VARIABLE};

/// A check that hangs has not caught anything.
const TIMEOUT_S: u64 = 600;

/// What catches a bug.
struct Catch {
    /// A test of this binary.
    test: &'static str,
    /// Part of what it says then.
    says: &'static str,
}

fn catch(bug: Bug) -> Catch {
    let (test, says) = match bug {
        Bug::DecisionBeforeDurable => ("planted::models::no_fault", "LogBeforeSend"),
        Bug::MissingVoteIsYes => ("planted::models::no_fault", "branch 2 is not prepared"),
        Bug::NotaIsSuccess | Bug::ForgottenBeforeAcknowledged => (
            "planted::models::a_killed_participant_and_forgetting",
            "NotForgottenEarly",
        ),
        Bug::RetryGivesUp => (
            "planted::models::a_server_that_cannot_and_forgetting",
            "NotForgottenEarly",
        ),
        Bug::UnknownRetriedAsNew => (
            "planted::models::a_repeated_request_and_a_killed_coordinator",
            "ExactlyOnce",
        ),
        Bug::OnePhaseWithoutTombstone => (
            "planted::models::one_phase_refused_and_doubled",
            "RefusalKept",
        ),
        Bug::ForcedBranchUntold => ("planted::models::an_order_and_a_deadline", "is on record"),
        Bug::InquiryBeforeDurable => (
            "planted::checks::an_inquiry_is_answered_when_the_decision_is_durable",
            "before its decision is durable",
        ),
        Bug::HorizonNotKept => (
            "planted::checks::a_horizon_is_durable_before_rows_are_deleted",
            "without a durable horizon",
        ),
        Bug::FormerLifeVouchedFor => (
            "planted::checks::nobody_vouches_for_a_former_life",
            "nobody here saw it prepared",
        ),
        Bug::SweepRollsBackRunning => (
            "planted::checks::a_sweep_leaves_alone_what_is_being_prepared",
            "two commands",
        ),
        Bug::ForeignBranchTaken => (
            "planted::checks::a_branch_of_another_cluster_is_foreign",
            "is taken for ours",
        ),
        Bug::OlderDataTaken => (
            "simulation::simulation_data_that_goes_back_gets_no_link",
            "to replaced data that nobody accepted",
        ),
        Bug::EpochNotRaised => (
            "planted::checks::each_start_has_an_epoch_of_its_own",
            "two incarnations",
        ),
        Bug::FsyncErrorIgnored => (
            "planted::checks::a_failed_fsync_stops_the_log",
            "acknowledged and is lost",
        ),
        Bug::TornTailIsRot => (
            "planted::checks::a_torn_end_is_dropped",
            "does not open again",
        ),
        Bug::RotIsTornTail => (
            "planted::checks::rot_is_told",
            "opens as if nothing were wrong",
        ),
        Bug::LatePrepareAccepted => (
            "participant::one_shot_branches_commit_and_abort",
            "a Prepare after the Abort comes too late",
        ),
        Bug::FailedStatementForgiven => (
            "participant::interactive_branches_run_fail_and_expire",
            "only Abort may come",
        ),
        Bug::StaleEpochAccepted => (
            "participant::a_superseded_coordinator_is_refused",
            "it is stale",
        ),
        Bug::ConnectionReusedUncleaned => (
            "participant::a_failed_statement_is_a_vote_abort_with_its_reason",
            "right: \"CONSTRAINT_VIOLATED\"",
        ),
        Bug::StrayAnswerTaken => (
            "conformance::stray::stray_answers_on_mysql",
            "said to be prepared, and is not",
        ),
        Bug::LostResultsMadeUp => (
            "lost_results::what_a_commit_in_one_phase_returned_is_told_or_said_to_be_lost",
            "results of a participant that died are made up",
        ),
        Bug::UnsafeServerVotes => (
            "planted::checks::a_server_that_would_lose_branches_has_no_vote",
            "voted on an unsafe server",
        ),
        Bug::ReadOnlyLeavesSerializable => (
            "planted::checks::a_serializable_reader_holds_its_locks",
            "changed what a serializable transaction has read",
        ),
    };
    Catch { test, says }
}

/// Runs a check in a process of its own; its output, and whether it passed.
fn run(test: &str, bug: Option<Bug>) -> anyhow::Result<(bool, String)> {
    let mut command = Command::new("timeout");
    command.arg(TIMEOUT_S.to_string());
    command.arg(std::env::current_exe()?);
    command.args(["--exact", test, "--nocapture"]);
    command.env_remove(VARIABLE).env("RUST_BACKTRACE", "0");
    if let Some(bug) = bug {
        command.env(VARIABLE, bug.name());
    }
    // What is wrong on one server is wrong; the checks run on both, but for those of one.
    let mariadb = std::env::var("CONCORD_TEST_MARIADB").is_ok_and(|server| server != "skip");
    if mariadb && !test.ends_with("_on_mysql") {
        command.env("CONCORD_TEST_MYSQL", "skip");
    }
    let output = command.output().context("cannot run `timeout`")?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    ensure!(text.contains("running 1 test"), "no test {test}:\n{text}");
    match output.status.code() {
        Some(0) => Ok((true, text)),
        Some(101) => Ok((false, text)),
        other => bail!("{test} ended with {other:?}:\n{text}"),
    }
}

fn caught(bug: Bug) -> anyhow::Result<Duration> {
    let Catch { test, says } = catch(bug);
    let began = Instant::now();
    let (passed, text) = run(test, Some(bug))?;
    let name = bug.name();
    let again =
        format!("{VARIABLE}={name} cargo test -p concord-tests --test it -- --exact {test}");
    ensure!(!passed, "{name} is not caught: {again}");
    ensure!(
        text.contains(says),
        "{name} fails {test}, but not with {says:?}:\n{text}\nagain: {again}"
    );
    Ok(began.elapsed())
}

#[test]
fn every_bug_is_caught_and_without_it_the_check_passes() -> anyhow::Result<()> {
    let mut checks = BTreeSet::new();
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        checks.insert(catch(*bug).test);
        match caught(*bug) {
            Ok(time) => println!(
                "{:<32} {:>6} ms  {}",
                bug.name(),
                time.as_millis(),
                catch(*bug).test
            ),
            Err(error) => missed.push(format!("{error:#}")),
        }
    }
    for test in checks {
        let (passed, text) = run(test, None)?;
        ensure!(passed, "{test} fails without a bug:\n{text}");
    }
    ensure!(missed.is_empty(), "{}", missed.join("\n\n"));
    Ok(())
}

/// Rows of the table: the bug, and the test that is said to catch it.
fn table() -> anyhow::Result<BTreeMap<String, String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/PLANTED.md");
    let text = std::fs::read_to_string(path).context("tests/PLANTED.md")?;
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, bug, _, _, test, _, _] = cells.as_slice() else {
            bail!("not a row of five cells: {line}");
        };
        let bare = |cell: &str| cell.trim_matches('`').to_owned();
        let former = rows.insert(bare(bug), bare(test));
        ensure!(former.is_none(), "{bug} twice");
    }
    Ok(rows)
}

#[test]
fn the_table_lists_exactly_these_bugs_and_their_tests() -> anyhow::Result<()> {
    let expected: BTreeMap<String, String> = Bug::ALL
        .iter()
        .map(|bug| (bug.name().to_owned(), catch(*bug).test.to_owned()))
        .collect();
    let found = table()?;
    ensure!(found == expected, "{found:#?}\nshould be\n{expected:#?}");
    Ok(())
}

#[test]
fn every_bug_is_planted_in_the_code() -> anyhow::Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let folders = ["proto/core/src", "coordinator/src", "participant/src"];
    let text = crate::crash_points::texts(root.as_ref(), &folders)?.concat();
    for bug in Bug::ALL {
        let place = format!("is(Bug::{})", bug.variant());
        ensure!(text.contains(&place), "{} is not planted", bug.name());
    }
    Ok(())
}
