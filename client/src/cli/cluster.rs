//! The gateway's view of the cluster, for `concord status`.

use serde_json::{Value, json};

use crate::cli::exit::Failure;
use crate::cli::output::{self, Ctx};
use crate::cli::view;
use crate::v1;

/// Shows the cluster behind the gateway, when there is no local one.
pub(crate) async fn run(ctx: &Ctx) -> Result<(), Failure> {
    let status = ctx
        .client
        .cluster_status()
        .await
        .map_err(|error| Failure::of_call("the cluster's status cannot be shown", &error))?;
    ctx.print(&json!({ "status": json(&status) }), || text(&status))
}

/// The cluster's status for programs.
pub(crate) fn json(status: &v1::GetClusterStatusResponse) -> Value {
    let counters = status.counters.clone().unwrap_or_default();
    json!({
        "cluster": status.cluster,
        "epoch": status.epoch,
        "version": status.version,
        "start_time": view::time(status.start_time.as_ref()),
        "pid": status.pid,
        "accepting": status.accepting,
        "active": status.active,
        "committing": status.committing,
        "stuck": status.stuck,
        "log_decisions": status.log_decisions,
        "log_bytes": status.log_bytes,
        "counters": {
            "begun": counters.begun,
            "committed": counters.committed,
            "aborted": counters.aborted,
            "aborted_by_reason": counters.aborted_by_reason,
            "refused": counters.refused,
            "log_forces": counters.log_forces,
            "log_records": counters.log_records,
            "heuristic": counters.heuristic,
        },
        "participants": status.participants.iter().map(participant).collect::<Vec<_>>(),
    })
}

fn participant(info: &v1::ParticipantInfo) -> Value {
    let status = info.status.as_ref();
    let problems = status.map(|status| {
        status
            .problems
            .iter()
            .map(|problem| view::told(Some(problem)))
            .collect::<Vec<_>>()
    });
    let damage = status.map(|status| {
        let reports = status.damage.iter().map(|damage| {
            json!({
                "id": damage.id,
                "gtrid": damage.gtrid,
                "bqual": damage.bqual,
                "reason": view::told(damage.reason.as_ref()),
                "time": view::time(damage.time.as_ref()),
                "acknowledged": damage.acknowledged,
            })
        });
        reports.collect::<Vec<_>>()
    });
    json!({
        "name": info.name,
        "address": info.address,
        "connected": info.connected,
        "outstanding": info.outstanding,
        "slots": info.slots,
        "reason": view::told(info.reason.as_ref()),
        "server_version": status.map(|status| &status.server_version),
        "incarnation": status.map(|status| &status.incarnation),
        "can_vote": status.map(|status| status.can_vote),
        "epoch": status.map(|status| status.epoch),
        "in_doubt": status.map(|status| status.in_doubt),
        "connections": status.map(|status| status.connections),
        "pid": status.map(|status| status.pid),
        "problems": problems,
        "damage": damage,
    })
}

/// The cluster's status for people.
pub(crate) fn text(status: &v1::GetClusterStatusResponse) -> String {
    let header = [
        "participant",
        "address",
        "server",
        "health",
        "in doubt>",
        "slots>",
    ];
    let rows = status.participants.iter().map(row);
    let mut text = format!("{}\n{}", coordinator(status), output::table(&header, rows));
    for info in &status.participants {
        findings(info, &mut text);
    }
    text
}

fn coordinator(status: &v1::GetClusterStatusResponse) -> String {
    let counters = status.counters.clone().unwrap_or_default();
    let since = view::time(status.start_time.as_ref()).unwrap_or_default();
    let draining = if status.accepting {
        ""
    } else {
        "; draining before a stop"
    };
    let who = format!(
        "version {}, pid {}, epoch {}, since {since}{draining}",
        status.version, status.pid, status.epoch
    );
    let in_flight = format!(
        "{} undecided, {} committing, {} stuck",
        status.active, status.committing, status.stuck
    );
    let so_far = format!(
        "{} committed, {} aborted, {} refused at the door, {} heuristic",
        counters.committed, counters.aborted, counters.refused, counters.heuristic
    );
    let log = format!(
        "{} decisions, {} bytes",
        status.log_decisions, status.log_bytes
    );
    output::facts(&[
        ("cluster", status.cluster.clone()),
        ("coordinator", who),
        ("in flight", in_flight),
        ("so far", so_far),
        ("log", log),
    ])
}

fn row(info: &v1::ParticipantInfo) -> Vec<String> {
    let health = match (&info.status, info.connected) {
        (_, false) => format!("down {}", view::told_text(info.reason.as_ref())),
        (Some(status), true) if status.can_vote => "can vote".to_owned(),
        (_, true) => "CANNOT VOTE".to_owned(),
    };
    let told = info.status.clone().unwrap_or_default();
    vec![
        info.name.clone(),
        info.address.clone(),
        told.server_version,
        health,
        told.in_doubt.to_string(),
        info.slots.to_string(),
    ]
}

/// What an operator must read of a participant.
fn findings(info: &v1::ParticipantInfo, text: &mut String) {
    let Some(status) = &info.status else { return };
    let name = &info.name;
    for problem in &status.problems {
        let problem = output::clean(&view::told_text(Some(problem)));
        output::push(text, format_args!("\n{name} cannot vote: {problem}"));
    }
    for damage in status.damage.iter().filter(|damage| !damage.acknowledged) {
        let reason = output::clean(&view::told_text(damage.reason.as_ref()));
        let branch = format!("{}/{}", damage.gtrid, damage.bqual);
        output::push(
            text,
            format_args!("\n{name} reports damage to {branch}: {reason}"),
        );
    }
}
