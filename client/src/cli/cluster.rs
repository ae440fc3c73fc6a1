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
    let counters = status.counters.clone().unwrap_or_default();
    let mut text = output::facts(&[
        ("cluster", status.cluster.clone()),
        (
            "coordinator",
            format!(
                "version {}, pid {}, epoch {}, since {}{}",
                status.version,
                status.pid,
                status.epoch,
                view::time(status.start_time.as_ref()).unwrap_or_default(),
                if status.accepting {
                    ""
                } else {
                    "; draining before a stop"
                },
            ),
        ),
        (
            "in flight",
            format!(
                "{} undecided, {} committing, {} stuck",
                status.active, status.committing, status.stuck
            ),
        ),
        (
            "so far",
            format!(
                "{} committed, {} aborted, {} refused at the door, {} heuristic",
                counters.committed, counters.aborted, counters.refused, counters.heuristic
            ),
        ),
        (
            "log",
            format!(
                "{} decisions, {} bytes",
                status.log_decisions, status.log_bytes
            ),
        ),
    ]);
    let rows = status.participants.iter().map(|info| {
        let told = info.status.clone().unwrap_or_default();
        let health = match (&info.status, info.connected) {
            (_, false) => format!("down {}", view::told_text(info.reason.as_ref())),
            (Some(status), true) if status.can_vote => "can vote".to_owned(),
            (_, true) => "CANNOT VOTE".to_owned(),
        };
        vec![
            info.name.clone(),
            info.address.clone(),
            told.server_version.clone(),
            health,
            told.in_doubt.to_string(),
            info.slots.to_string(),
        ]
    });
    let header = [
        "participant",
        "address",
        "server",
        "health",
        "in doubt>",
        "slots>",
    ];
    text.push('\n');
    text.push_str(&output::table(&header, rows));
    for info in &status.participants {
        let told = info.status.iter();
        for problem in told.clone().flat_map(|status| &status.problems) {
            let problem = output::clean(&view::told_text(Some(problem)));
            output::push(
                &mut text,
                format_args!("\n{} cannot vote: {problem}", info.name),
            );
        }
        for damage in told
            .flat_map(|status| &status.damage)
            .filter(|d| !d.acknowledged)
        {
            let reason = output::clean(&view::told_text(damage.reason.as_ref()));
            output::push(
                &mut text,
                format_args!(
                    "\n{} reports damage to {}/{}: {reason}",
                    info.name, damage.gtrid, damage.bqual
                ),
            );
        }
    }
    text
}
