//! What became of a payment file: counts by outcome, and the file of failed lines.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use concord_core::reason::code;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::lines::Payment;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::outcome::Outcome;

/// What became of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Committed by this run.
    Committed,
    /// Committed by an earlier attempt with the same request id.
    Replayed,
    /// Refused for good: code and message.
    Refused(String, String),
    /// It could not be read.
    Unreadable(String),
    /// Nobody could tell in time: message.
    Unknown(String),
    /// It could not be made in time, and was certainly not made: code and message.
    Unavailable(String, String),
    /// Ctrl-C came first.
    NotTried,
}

impl Verdict {
    /// Judges the last outcome of a line.
    pub(super) fn of(outcome: Outcome<()>) -> Self {
        let transient = outcome.is_transient();
        match outcome {
            Outcome::Committed {
                replayed: false, ..
            } => Self::Committed,
            Outcome::Committed { replayed: true, .. } => Self::Replayed,
            Outcome::Unknown { message, .. } => Self::Unknown(message),
            Outcome::Aborted { reason, .. } => {
                let (code, message) = (reason.code.to_string(), reason.message.to_string());
                if code == code::REQUEST_ALREADY_COMMITTED {
                    Self::Replayed
                } else if transient {
                    Self::Unavailable(code, message)
                } else {
                    Self::Refused(code, message)
                }
            }
        }
    }

    /// Outcome, reason code and message of a line that failed.
    fn failure(&self) -> Option<(&'static str, &str, &str)> {
        match self {
            Self::Committed | Self::Replayed | Self::NotTried => None,
            Self::Refused(code, message) => Some(("refused", code, message)),
            Self::Unreadable(message) => Some(("unreadable", "UNREADABLE_LINE", message)),
            Self::Unknown(message) => Some(("unknown", code::OUTCOME_UNKNOWN, message)),
            Self::Unavailable(code, message) => Some(("unavailable", code, message)),
        }
    }
}

/// Counts by outcome.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    committed: u64,
    replayed: u64,
    refused: u64,
    unreadable: u64,
    unknown: u64,
    unavailable: u64,
    not_tried: u64,
    reasons: BTreeMap<String, u64>,
    /// Whether Ctrl-C ended the run before every line was tried.
    pub interrupted: bool,
}

impl Summary {
    pub(super) fn add(&mut self, verdict: &Verdict) {
        let count = match verdict {
            Verdict::Committed => &mut self.committed,
            Verdict::Replayed => &mut self.replayed,
            Verdict::Refused(..) => &mut self.refused,
            Verdict::Unreadable(_) => &mut self.unreadable,
            Verdict::Unknown(_) => &mut self.unknown,
            Verdict::Unavailable(..) => &mut self.unavailable,
            Verdict::NotTried => &mut self.not_tried,
        };
        *count += 1;
        self.interrupted |= *verdict == Verdict::NotTried;
        if let Some((_, code, _)) = verdict.failure() {
            *self.reasons.entry(code.to_owned()).or_default() += 1;
        }
    }

    pub(super) fn done(&self) -> u64 {
        self.committed + self.replayed
    }

    pub(super) fn failed(&self) -> u64 {
        self.refused + self.unreadable + self.unknown + self.unavailable
    }

    /// The gravest news.
    pub(super) fn exit(&self) -> Exit {
        [
            (self.interrupted, Exit::Interrupted),
            (self.unavailable > 0, Exit::Unavailable),
            (self.unknown > 0, Exit::Unknown),
            (self.refused + self.unreadable > 0, Exit::Refused),
        ]
        .into_iter()
        .find_map(|(is, exit)| is.then_some(exit))
        .unwrap_or(Exit::Done)
    }

    pub(super) fn json(&self, took: Duration, failed: Option<&Path>) -> Value {
        json!({
            "lines": self.done() + self.failed() + self.not_tried,
            "committed": self.committed,
            "replayed": self.replayed,
            "refused": self.refused,
            "unreadable": self.unreadable,
            "unknown": self.unknown,
            "unavailable": self.unavailable,
            "not_tried": self.not_tried,
            "reasons": self.reasons,
            "interrupted": self.interrupted,
            "seconds": took.as_secs_f64(),
            "failed_file": failed.map(|path| path.display().to_string()),
        })
    }

    pub(super) fn text(&self, took: Duration, failed: Option<&Path>) -> String {
        let rows = [
            ("committed", self.committed, "now"),
            (
                "replayed",
                self.replayed,
                "were committed before; not paid twice",
            ),
            ("refused", self.refused, "for good; nothing was moved"),
            ("unreadable", self.unreadable, "lines"),
            (
                "unknown",
                self.unknown,
                "run the file again to learn what became of them",
            ),
            (
                "unavailable",
                self.unavailable,
                "not made in time; run the file again",
            ),
            (
                "not tried",
                self.not_tried,
                "interrupted; run the file again",
            ),
        ];
        let shown = rows
            .iter()
            .filter(|(name, count, _)| *count > 0 || *name == "committed")
            .map(|(name, count, note)| {
                vec![(*name).to_owned(), count.to_string(), (*note).to_owned()]
            });
        let mut text = output::table(&["outcome", "lines>", ""], shown);
        for (code, count) in &self.reasons {
            output::push(
                &mut text,
                format_args!("\n  {count} × {}", output::clean(code)),
            );
        }
        #[allow(clippy::cast_precision_loss)] // A rate for people.
        let rate = self.done() as f64 / took.as_secs_f64().max(0.001);
        output::push(
            &mut text,
            format_args!("\n{:.1} s, {rate:.0} payments/s", took.as_secs_f64()),
        );
        if let Some(path) = failed {
            output::push(
                &mut text,
                format_args!("\nfailed lines, with their reasons: {}", path.display()),
            );
        }
        text
    }
}

/// The file of failed lines. It appears whole or not at all: lines are written to a temporary
/// file beside it, which takes its name at the end.
#[derive(Debug)]
pub(super) struct FailedLines {
    path: PathBuf,
    writer: csv::Writer<BufWriter<NamedTempFile>>,
    count: u64,
    error: Option<String>,
}

impl FailedLines {
    /// Creates the temporary file, so that a folder that cannot be written to is noticed before
    /// anything is paid.
    pub(super) fn create(path: PathBuf) -> Result<Self, Failure> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::new(Exit::Usage, format!("{} cannot be written", path.display()))
                .why(error)
                .next("name another file for failed lines with --failed PATH; nothing was sent")
        };
        if path.is_dir() {
            return Err(cannot(&"it is a folder"));
        }
        let file = tempfile::Builder::new()
            .prefix(".concord-failed-")
            .tempfile_in(folder)
            .map_err(|error| cannot(&error))?;
        let mut writer = csv::Writer::from_writer(BufWriter::new(file));
        let header = [
            "line",
            "request_id",
            "from",
            "to",
            "amount",
            "memo",
            "outcome",
            "reason",
            "message",
        ];
        writer
            .write_record(header)
            .map_err(|error| cannot(&error))?;
        Ok(Self {
            path,
            writer,
            count: 0,
            error: None,
        })
    }

    /// Adds a line, if it failed. Should the file no longer take it, stderr does.
    pub(super) fn add(&mut self, number: u64, payment: &Payment, verdict: &Verdict) {
        let Some((outcome, reason, message)) = verdict.failure() else {
            return;
        };
        self.count += 1;
        if self.error.is_none() {
            let written = self.writer.write_record([
                &number.to_string(),
                &payment.request_id,
                &payment.from,
                &payment.to,
                &payment.amount,
                &payment.memo,
                outcome,
                reason,
                message,
            ]);
            self.error = written.err().map(|error| error.to_string());
        }
        if self.error.is_some() {
            output::note(&format!(
                "line {number}: {outcome} {reason}: {}",
                output::clean(message)
            ));
        }
    }

    /// Gives the file its name, or removes an old one when nothing failed. Tells the name if
    /// there is a file.
    pub(super) fn finish(self) -> Result<Option<PathBuf>, Failure> {
        let path = self.path;
        let cannot = |why: String| {
            Failure::new(Exit::Other, format!("{} is not written", path.display()))
                .why(why)
                .next("run the payment file again: nothing is paid twice")
        };
        if let Some(error) = self.error {
            return Err(cannot(error));
        }
        if self.count == 0 {
            return match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(cannot(format!(
                    "the file of an earlier run cannot be removed: {error}"
                ))),
                _ => Ok(None),
            };
        }
        let finished = self
            .writer
            .into_inner()
            .map_err(|error| error.to_string())
            .and_then(|writer| persist(writer, &path).map_err(|error| error.to_string()));
        match finished {
            Ok(()) => Ok(Some(path)),
            Err(why) => Err(cannot(why)),
        }
    }
}

fn persist(mut writer: BufWriter<NamedTempFile>, path: &Path) -> std::io::Result<()> {
    writer.flush()?;
    let file = writer
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    // A temporary file is readable by its owner only, which also fits what it holds.
    file.as_file().sync_all()?;
    file.persist(path)?;
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use concord_core::reason::Reason;

    use super::*;

    fn aborted(code: &str) -> Outcome<()> {
        Outcome::Aborted {
            reason: Reason::new(code, "m"),
            gtrid: None,
        }
    }

    #[test]
    fn a_final_refusal_and_an_unavailable_cluster_are_told_apart() {
        let verdict = |code| Verdict::of(aborted(code));
        assert!(matches!(
            verdict(code::INSUFFICIENT_FUNDS),
            Verdict::Refused(..)
        ));
        assert!(matches!(
            verdict(code::REQUEST_ID_REUSED),
            Verdict::Refused(..)
        ));
        assert!(matches!(
            verdict(code::LOCK_TIMEOUT),
            Verdict::Unavailable(..)
        ));
        assert!(matches!(
            verdict(code::COORDINATOR_DOWN),
            Verdict::Unavailable(..)
        ));
        assert_eq!(verdict(code::REQUEST_ALREADY_COMMITTED), Verdict::Replayed);
    }

    #[test]
    fn the_gravest_news_is_the_exit_code() {
        let mut summary = Summary::default();
        assert_eq!(summary.exit(), Exit::Done);
        for (verdict, exit) in [
            (Verdict::Replayed, Exit::Done),
            (Verdict::Unreadable("x".into()), Exit::Refused),
            (Verdict::Unknown("x".into()), Exit::Unknown),
            (Verdict::Refused("X".into(), "x".into()), Exit::Unknown),
            (
                Verdict::Unavailable("X".into(), "x".into()),
                Exit::Unavailable,
            ),
            // Ctrl-C: what was not even tried is more than what failed.
            (Verdict::NotTried, Exit::Interrupted),
        ] {
            summary.add(&verdict);
            assert_eq!(summary.exit(), exit);
        }
        let value = summary.json(Duration::from_secs(1), None);
        assert_eq!(
            (&value["lines"], &value["reasons"]["X"]),
            (&json!(6), &json!(2))
        );
    }

    #[test]
    fn failed_lines_appear_whole_and_an_old_file_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.csv");
        let payment = Payment {
            request_id: "r".into(),
            memo: "a,\"b".into(),
            ..Payment::default()
        };
        let mut failed = FailedLines::create(path.clone()).unwrap();
        failed.add(
            7,
            &payment,
            &Verdict::Refused("POOR".into(), "no, money".into()),
        );
        failed.add(8, &payment, &Verdict::Committed);
        assert!(!path.exists(), "not before it is whole");
        assert_eq!(failed.finish().unwrap(), Some(path.clone()));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.ends_with("7,r,,,,\"a,\"\"b\",refused,POOR,\"no, money\"\n"),
            "{text}"
        );

        let failed = FailedLines::create(path.clone()).unwrap();
        assert_eq!(failed.finish().unwrap(), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(FailedLines::create(folder.path().join("no/f.csv")).is_err());
    }
}
