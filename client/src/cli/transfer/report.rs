//! What became of a payment file: counts by outcome, and the file of failed lines.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
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

/// Columns of the file of failed lines.
const HEADER: [&str; 9] = [
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

/// The file of failed lines. It appears whole or not at all: lines are written to a temporary
/// file beside it, which takes its name at the end.
#[derive(Debug)]
pub(super) struct FailedLines {
    path: PathBuf,
    /// Not buffered: what a buffer holds when the file takes no more would be nowhere.
    file: NamedTempFile,
    /// Bytes of the lines that are in it whole.
    whole: u64,
    written: u64,
    count: u64,
    error: Option<io::Error>,
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
        let mut lines = Self {
            path: path.clone(),
            file,
            whole: 0,
            written: 0,
            count: 0,
            error: None,
        };
        lines.write(HEADER).map_err(|error| cannot(&error))?;
        Ok(lines)
    }

    fn write(&mut self, fields: [&str; HEADER.len()]) -> io::Result<()> {
        let mut line = csv::Writer::from_writer(Vec::new());
        line.write_record(fields).map_err(io::Error::other)?;
        let line = line.into_inner().map_err(csv::IntoInnerError::into_error)?;
        self.file.write_all(&line)?;
        self.whole += line.len() as u64;
        Ok(())
    }

    /// Adds a line, if it failed. Should the file not take it, it is given back as text: it must
    /// be told another way.
    #[must_use = "a failed line that nobody hears of is taken for a payment that was made"]
    pub(super) fn add(
        &mut self,
        number: u64,
        payment: &Payment,
        verdict: &Verdict,
    ) -> Option<String> {
        let (outcome, reason, message) = verdict.failure()?;
        self.count += 1;
        if self.error.is_none() {
            let written = self.write([
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
            match written {
                Ok(()) => {
                    self.written += 1;
                    return None;
                }
                Err(error) => self.error = Some(error),
            }
        }
        Some(output::clean(&format!(
            "line {number}: {} {outcome} {reason}: {message}",
            payment.request_id
        )))
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
        if self.count == 0 {
            return match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot(format!(
                    "the file of an earlier run cannot be removed: {error}"
                ))),
                _ => Ok(None),
            };
        }
        let finished = match self.error {
            None => persist(self.file, &path),
            Some(error) => Err((error, Some(self.file))),
        };
        let (error, file) = match finished {
            Ok(()) => return Ok(Some(path)),
            Err(failed) => failed,
        };
        let failure = cannot(error.to_string());
        let Some(file) = file.filter(|_| self.written > 0) else {
            return Err(failure);
        };
        // The rest of a line that it took in part; as a part it is only a line that is unreadable.
        let _ = file.as_file().set_len(self.whole);
        Err(match file.keep() {
            Ok((_, kept)) => failure.why(format!(
                "{} of {} failed lines are in {}",
                self.written,
                self.count,
                kept.display()
            )),
            Err(error) => failure.why(error),
        })
    }
}

/// Gives the file its name. Should it not get it, the file comes back.
fn persist(file: NamedTempFile, path: &Path) -> Result<(), (io::Error, Option<NamedTempFile>)> {
    // A temporary file is readable by its owner only, which also fits what it holds.
    if let Err(error) = file.as_file().sync_all() {
        return Err((error, Some(file)));
    }
    file.persist(path)
        .map_err(|error| (error.error, Some(error.file)))?;
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| (error, None))?;
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
        let refused = Verdict::Refused("POOR".into(), "no, money".into());
        assert_eq!(failed.add(7, &payment, &refused), None);
        assert_eq!(failed.add(8, &payment, &Verdict::Committed), None);
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

    #[test]
    fn every_failed_line_is_in_the_file_or_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.csv");
        let payment = |id: &str| Payment {
            request_id: id.into(),
            ..Payment::default()
        };
        let unknown = Verdict::Unknown("no answer".into());
        let mut failed = FailedLines::create(path.clone()).unwrap();
        assert_eq!(failed.add(2, &payment("r-2"), &unknown), None);
        let (file, temporary) = failed.file.into_parts();
        let full = File::options().write(true).open("/dev/full").unwrap();
        failed.file = NamedTempFile::from_parts(full, temporary);
        let back = failed.add(3, &payment("r-3"), &unknown).unwrap();
        assert!(back.contains("line 3") && back.contains("r-3"), "{back}");
        // The disk has room again; but the file has a gap.
        let (_, temporary) = failed.file.into_parts();
        failed.file = NamedTempFile::from_parts(file, temporary);
        let back = failed.add(4, &payment("r-4"), &unknown).unwrap();
        assert!(back.contains("line 4") && back.contains("r-4"), "{back}");
        let failure = failed.finish().unwrap_err();
        assert!(!path.exists(), "not all failed lines are in it");
        let [kept] = &std::fs::read_dir(folder.path())
            .unwrap()
            .collect::<Vec<_>>()[..]
        else {
            panic!("the first line is kept");
        };
        let kept = kept.as_ref().unwrap().path();
        let told = failure.reasons().join("\n");
        assert!(told.contains(&kept.display().to_string()), "{told}");
        let text = std::fs::read_to_string(&kept).unwrap();
        assert!(text.contains("r-2") && !text.contains("r-3"), "{text}");
    }

    #[test]
    fn failed_lines_whose_file_gets_no_name_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.csv");
        let mut failed = FailedLines::create(path.clone()).unwrap();
        let unknown = Verdict::Unknown("no answer".into());
        assert_eq!(failed.add(2, &Payment::default(), &unknown), None);
        std::fs::create_dir(&path).unwrap();
        let failure = failed.finish().unwrap_err();
        let told = failure.reasons().join("\n");
        assert!(told.contains("1 of 1 failed lines are in "), "{told}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
