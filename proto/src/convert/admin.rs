//! Requests to the AdminService.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use concord_core::id::{BranchId, ParticipantName};

use super::Page;
use super::participant::{Resolution, resolution};
use super::text;
use super::violations::{At, Violations};
use super::work::bqual;
use crate::v1;

/// Shortest time between two answers of WatchMetrics, in ms: below it, watching costs more than
/// what is watched.
pub const METRICS_INTERVAL_MIN_MS: u32 = 100;
/// Longest time between two answers of WatchMetrics, in ms: proxies cut streams that are silent.
pub const METRICS_INTERVAL_MAX_MS: u32 = 60_000;
/// Time between two answers of WatchMetrics when none is given, in ms.
pub const METRICS_INTERVAL_DEFAULT_MS: u32 = 1_000;
/// Settings in one UpdateConfig: there are not more.
pub const SETTINGS_MAX: usize = 100;
/// Characters of a setting's key or value.
pub const SETTING_LEN_MAX: usize = 1_000;
/// The list of [`list_in_doubt`], for page tokens.
pub const IN_DOUBT: &str = "in_doubt";

/// Finishes a branch by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveBranch {
    /// The branch.
    pub branch: BranchId,
    /// Its participant; needed when the coordinator does not know the transaction.
    pub participant: Option<ParticipantName>,
    /// How.
    pub resolution: Resolution,
    /// The operator's words.
    pub reason: String,
    /// Allows what contradicts a decision or a sibling.
    pub force: bool,
}

/// The lowest level of log lines that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// A human must act.
    Error,
    /// And what may need one.
    Warn,
    /// And what happens.
    Info,
    /// And how.
    Debug,
}

/// Checks a ListInDoubt. Its tokens are `page::token(IN_DOUBT, …)`.
pub fn list_in_doubt(raw: &v1::ListInDoubtRequest) -> Result<Page, Violations> {
    let mut v = Violations::default();
    let page = Page::check(&mut v, IN_DOUBT, raw.page_size, &raw.page_token);
    v.finish(|| page)
}

/// Checks a ResolveBranch.
pub fn resolve_branch(raw: v1::ResolveBranchRequest) -> Result<ResolveBranch, Violations> {
    let mut v = Violations::default();
    let gtrid = text::gtrid(&mut v, &At::root("gtrid"), &raw.gtrid);
    let bqual = bqual(&mut v, &At::root("bqual"), raw.bqual);
    let participant = match raw.participant.as_str() {
        "" => Some(None),
        name => text::participant(&mut v, &At::root("participant"), name).map(Some),
    };
    let resolution = resolution(&mut v, &At::root("resolution"), raw.resolution);
    let reason = text::words(&mut v, &At::root("reason"), raw.reason);
    v.finish(|| {
        Some(ResolveBranch {
            branch: BranchId {
                gtrid: gtrid?,
                bqual: bqual?,
            },
            participant: participant?,
            resolution: resolution?,
            reason: reason?,
            force: raw.force,
        })
    })
}

/// Checks an UpdateConfig: the new values by key. What keys there are, the owner of the
/// configuration knows.
pub fn update_config(raw: v1::UpdateConfigRequest) -> Result<BTreeMap<String, String>, Violations> {
    let mut v = Violations::default();
    let at = At::root("settings");
    if !(1..=SETTINGS_MAX).contains(&raw.settings.len()) {
        let count = raw.settings.len();
        v.add(
            &at,
            format_args!("must be from 1 to {SETTINGS_MAX}, and are {count}"),
        );
        return v.finish(|| None);
    }
    let settings = settings(&mut v, &at, raw.settings);
    v.finish(|| Some(settings))
}

fn settings(
    v: &mut Violations,
    at: &At<'_>,
    raw: HashMap<String, String>,
) -> BTreeMap<String, String> {
    let sorted: BTreeMap<String, String> = raw.into_iter().collect();
    for (key, value) in &sorted {
        let plain =
            |text: &String| text.len() <= SETTING_LEN_MAX && !text.chars().any(char::is_control);
        if key.is_empty() || !plain(key) {
            v.add(at, format_args!("has a key that is not one: {key:?}"));
        } else if !plain(value) {
            v.add(
                at,
                format_args!(
                    "has a value of more than {SETTING_LEN_MAX} bytes or with control \
                     characters under {key:?}"
                ),
            );
        }
    }
    sorted
}

/// Checks a TailLogs.
pub fn tail_logs(raw: &v1::TailLogsRequest) -> Result<LogLevel, Violations> {
    match raw.level.as_str() {
        "ERROR" => Ok(LogLevel::Error),
        "WARN" => Ok(LogLevel::Warn),
        "" | "INFO" => Ok(LogLevel::Info),
        "DEBUG" => Ok(LogLevel::Debug),
        _ => Err(Violations::one(
            &At::root("level"),
            "must be \"ERROR\", \"WARN\", \"INFO\" or \"DEBUG\"",
        )),
    }
}

/// Checks a WatchMetrics: the time between two answers.
pub fn watch_metrics(raw: v1::WatchMetricsRequest) -> Result<Duration, Violations> {
    let ms = match raw.interval_ms {
        0 => METRICS_INTERVAL_DEFAULT_MS,
        ms if (METRICS_INTERVAL_MIN_MS..=METRICS_INTERVAL_MAX_MS).contains(&ms) => ms,
        ms => {
            return Err(Violations::one(
                &At::root("interval_ms"),
                format_args!(
                    "must be from {METRICS_INTERVAL_MIN_MS} to {METRICS_INTERVAL_MAX_MS} ms, \
                     and is {ms}"
                ),
            ));
        }
    };
    Ok(Duration::from_millis(ms.into()))
}
