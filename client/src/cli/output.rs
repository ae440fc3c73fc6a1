//! What commands print: tables for people, JSON for programs, failures on stderr.

use std::fmt::{self, Write as _};
use std::future::pending;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cli::Global;
use crate::cli::exit::{Exit, Failure};
use crate::client::Client;

/// What every command works with.
#[derive(Debug)]
pub(crate) struct Ctx {
    /// The gateway.
    pub client: Client,
    /// Whether to print for programs.
    pub json: bool,
    /// `--timeout`.
    pub timeout: Duration,
    /// The arguments that all commands share.
    pub global: Global,
}

impl Ctx {
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        Ok(Self {
            client: global.builder().build()?,
            json: global.json,
            timeout: global.timeout,
            global: global.clone(),
        })
    }

    /// Prints a result: `value` for programs, or `text` for people.
    pub(crate) fn print(
        &self,
        value: &Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        print(self.json, value, text)
    }
}

/// Prints a result: `value` for programs, or `text` for people.
pub(crate) fn print(
    json: bool,
    value: &Value,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    if json {
        print_bytes(format!("{value:#}\n").as_bytes())
    } else {
        let mut text = text();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        print_bytes(text.as_bytes())
    }
}

/// Whether anybody still reads what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "whoever prints without end must stop when nobody reads any more"]
pub(crate) enum Reader {
    /// As far as the system knows.
    There,
    /// It went away, as `head` does when it has seen enough.
    Gone,
}

/// Writes a result to stdout. A reader that went away is not a failure: it wanted no more, and how
/// the command ended is for its exit code to say, not for the pipe.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    print_part(bytes).map(drop)
}

/// Writes a part of what has no end to stdout.
pub(crate) fn print_part(bytes: &[u8]) -> Result<Reader, Failure> {
    write_part(&mut io::stdout().lock(), bytes)
}

fn write_part(out: &mut impl Write, bytes: &[u8]) -> Result<Reader, Failure> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::new(Exit::Other, "cannot write to stdout").why(error)),
    }
}

/// Waits until the reader of stdout has gone, for who prints only now and then and would not notice
/// before that. It waits for ever when stdout is a file, which has no reader.
pub(crate) async fn reader_gone() {
    other_end_closed(io::stdout()).await;
}

// It is deprecated because a type may lie about the descriptor that it owns. The one that does not
// ask for a promise of ours is right for the standard library's own.
#[allow(deprecated)]
async fn other_end_closed(out: impl AsRawFd) {
    if let Ok(out) = AsyncFd::with_interest(out, Interest::ERROR)
        && out.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    pending::<()>().await;
}

/// Tells a person something on stderr, where nobody may be reading: that must stop nothing.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Tells a failure on stderr.
pub(crate) fn complain(failure: &Failure) {
    let mut stderr = io::stderr().lock();
    let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let (red, bold, plain) = if colour {
        ("\x1b[31m", "\x1b[1m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    let mut text = format!("{red}{bold}error:{plain} {}\n", clean(&failure.to_string()));
    for (i, why) in failure.reasons().iter().enumerate() {
        let label = if i == 0 { "why: " } else { "     " };
        push(&mut text, format_args!("  {label} {}\n", clean(why)));
    }
    if let Some(next) = failure.advice() {
        push(&mut text, format_args!("  next: {}\n", clean(next)));
    }
    // Nobody is left to tell when stderr is gone.
    let _ = stderr.write_all(text.as_bytes());
}

/// Appends formatted text.
pub(crate) fn push(text: &mut String, more: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(more);
}

/// Replaces control characters, so that data from a server cannot drive the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// A table of `rows` under `header`; columns whose name ends in `>` are aligned right.
pub(crate) fn table<R, C>(header: &[&str], rows: R) -> String
where
    R: IntoIterator<Item = Vec<C>>,
    C: AsRef<str>,
{
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|name| name.trim_end_matches('>')));
    let mut count = 0;
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell.as_ref())));
        count += 1;
    }
    for (i, name) in header.iter().enumerate() {
        if let (true, Some(column)) = (name.ends_with('>'), table.column_mut(i)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    if count == 0 {
        "none".to_owned()
    } else {
        table.to_string()
    }
}

/// Lines of `name: value` for one thing.
pub(crate) fn facts(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let shown: Vec<String> = lines
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:<width$}  {}", clean(value)))
        .collect();
    shown.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_data_and_never_terminal_commands() {
        let text = table(&["id", "amount>"], [vec!["a\x1b[2J\nb", "5"]]);
        assert!(text.contains("a\u{fffd}[2J\u{fffd}b"), "{text}");
        assert_eq!(table(&["id"], Vec::<Vec<&str>>::new()), "none");
    }

    #[test]
    fn facts_leave_out_what_is_empty() {
        let text = facts(&[
            ("id", "a".into()),
            ("memo", String::new()),
            ("price", "5".into()),
        ]);
        assert_eq!(text, "id     a\nprice  5");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure_and_is_noticed() {
        let (reader, mut writer) = io::pipe().unwrap();
        assert_eq!(write_part(&mut writer, b"one\n").unwrap(), Reader::There);
        drop(reader);
        assert_eq!(write_part(&mut writer, b"two\n").unwrap(), Reader::Gone);
        let mut full = std::fs::File::create("/dev/full").unwrap();
        let failure = write_part(&mut full, b"three\n").unwrap_err();
        assert_eq!(failure.code(), Exit::Other);
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_is_noticed_without_printing() {
        let (reader, writer) = io::pipe().unwrap();
        let mut closed = std::pin::pin!(other_end_closed(writer));
        assert!(futures::poll!(closed.as_mut()).is_pending());
        drop(reader);
        closed.await;
        let file = tempfile::tempfile().unwrap();
        let mut never = std::pin::pin!(other_end_closed(file));
        assert!(futures::poll!(never.as_mut()).is_pending());
    }
}
