//! The lines of a payment file, one after the other, in constant memory.
//!
//! One line is one payment: a line break inside quotes is not supported, so that one stray quote
//! spoils one line and not the rest of the file.

use std::io::{self, BufRead};

use crate::cli::money;

/// Bytes of one line: ids of 64 and 128, a memo of 200 characters, and ample room for quotes and
/// columns that are ignored.
const LINE_BYTES_MAX: usize = 16 << 10;

/// One payment as its line has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Payment {
    pub request_id: String,
    pub from: String,
    pub to: String,
    /// As written.
    pub amount: String,
    /// In minor units.
    pub minor: i64,
    pub currency: Option<String>,
    pub memo: String,
}

/// What could be read of a line that is no payment, and why it is none.
pub(super) type Unreadable = (Box<Payment>, String);

/// One line after the header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1; the header is one of them.
    pub number: u64,
    /// Position after the line, in bytes.
    pub end: u64,
    /// The payment, if it is one.
    pub content: Result<Payment, Unreadable>,
}

/// Where the columns are.
#[derive(Debug, PartialEq, Eq)]
struct Columns {
    request_id: usize,
    from: usize,
    to: usize,
    amount: usize,
    memo: Option<usize>,
    count: usize,
}

/// Columns of the file that failed lines are written to; it can be run in turn.
const REPORT_COLUMNS: &[&str] = &["line", "outcome", "reason", "message"];

impl Columns {
    fn read(text: &str) -> Result<(Self, Vec<String>), String> {
        let names: Vec<String> = fields(text)?.iter().map(str::to_ascii_lowercase).collect();
        let find = |name: &str| {
            let mut found = names
                .iter()
                .enumerate()
                .filter(|(_, n)| *n == name)
                .map(|(i, _)| i);
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => Err(format!("the column \"{name}\" stands there twice")),
                (found, _) => Ok(found),
            }
        };
        let need = |name: &str| {
            find(name)?.ok_or_else(|| {
                format!(
                    "the first line must name the columns request_id, from, to and amount; \
                     \"{name}\" is not among: {}",
                    names.join(", ")
                )
            })
        };
        let columns = Self {
            request_id: need("request_id")?,
            from: need("from")?,
            to: need("to")?,
            amount: need("amount")?,
            memo: find("memo")?,
            count: names.len(),
        };
        let known = ["request_id", "from", "to", "amount", "memo"];
        let ignored = names
            .iter()
            .filter(|name| {
                !known
                    .iter()
                    .chain(REPORT_COLUMNS)
                    .any(|known| known == name)
            })
            .cloned()
            .collect();
        Ok((columns, ignored))
    }

    fn payment(&self, text: &str) -> Result<Payment, Unreadable> {
        // Whoever puts this before a payment wants it not to be made. Taken for a part of the
        // request id it would be made, and once more under the id that it had before.
        if text.trim_start().starts_with('#') {
            let why = format!(
                "comments are not supported; delete the line, or quote a first field that begins \
                 so: {}",
                excerpt(text)
            );
            return Err((Box::default(), why));
        }
        let fields = fields(text).map_err(|why| (Box::default(), why))?;
        if fields.len() != self.count {
            let why = format!(
                "it has {} columns and the header has {}: {}",
                fields.len(),
                self.count,
                excerpt(text)
            );
            return Err((Box::default(), why));
        }
        let field = |at: usize| fields.get(at).unwrap_or_default().to_owned();
        let mut payment = Payment {
            request_id: field(self.request_id),
            from: field(self.from),
            to: field(self.to),
            amount: field(self.amount),
            memo: self.memo.map(field).unwrap_or_default(),
            ..Payment::default()
        };
        let empty = [
            ("request_id", &payment.request_id),
            ("from", &payment.from),
            ("to", &payment.to),
            ("amount", &payment.amount),
        ];
        // Without a request id, running the file again would pay again.
        if let Some((name, _)) = empty.iter().find(|(_, value)| value.is_empty()) {
            let why = format!("its {name} is empty");
            return Err((Box::new(payment), why));
        }
        match money::positive(&payment.amount) {
            Ok(amount) => {
                payment.minor = amount.minor;
                payment.currency = amount.currency;
                Ok(payment)
            }
            Err(why) => Err((Box::new(payment), why)),
        }
    }
}

/// The fields of one line, without the white space around them.
fn fields(text: &str) -> Result<csv::StringRecord, String> {
    check_form(text).map_err(|why| format!("{why}: {}", excerpt(text)))?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .buffer_capacity(text.len().max(1))
        .from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    match reader.read_record(&mut record) {
        Ok(_) => Ok(record),
        Err(error) => Err(format!("it is no CSV: {error}")),
    }
}

/// Refuses what can be read in more than one way. The CSV reader makes the best of a quote in the
/// wrong place and ends its record at a carriage return; money must not be moved by a guess, and
/// what stands after that carriage return must not be left out without a word.
fn check_form(text: &str) -> Result<(), &'static str> {
    #[derive(PartialEq)]
    enum At {
        Start,
        Plain,
        Quoted,
        AfterQuote,
    }
    let mut at = At::Start;
    for character in text.chars() {
        at = match (at, character) {
            (_, '\r') => {
                return Err(
                    "a line ends within it, with a carriage return (lines end with a line \
                            feed, or with both)",
                );
            }
            // The reader drops one before the first field, also of a line in the middle.
            (_, '\u{feff}') => return Err("a byte order mark stands within it"),
            (At::Start | At::Plain | At::AfterQuote, ',') => At::Start,
            (At::Start | At::AfterQuote, '"') => At::Quoted,
            (At::Plain, '"') => {
                return Err(
                    "a quote stands within a field (quote the whole field, without spaces \
                            around the quotes, and double the quotes in it)",
                );
            }
            (At::AfterQuote, _) => return Err("something follows a closing quote"),
            (At::Quoted, '"') => At::AfterQuote,
            (At::Quoted, _) => At::Quoted,
            (At::Start | At::Plain, _) => At::Plain,
        };
    }
    match at {
        At::Quoted => Err("a quote is not closed"),
        _ => Ok(()),
    }
}

/// The beginning of a line, for a message.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// Reads the lines of a payment file.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: R,
    columns: Columns,
    number: u64,
    position: u64,
    /// Columns of the header that mean nothing here.
    pub ignored: Vec<String>,
}

impl<R: BufRead> Lines<R> {
    /// Reads the header. A wrong one is the inner error.
    pub(super) fn open(mut reader: R) -> io::Result<Result<Self, String>> {
        let mut raw = Vec::new();
        let Some(read) = read_line(&mut reader, &mut raw)? else {
            return Ok(Err(
                "it is empty; the first line must name the columns".to_owned()
            ));
        };
        if read.too_long {
            return Ok(Err(format!(
                "its first line is longer than {LINE_BYTES_MAX} bytes"
            )));
        }
        let Ok(text) = str::from_utf8(&raw) else {
            return Ok(Err("its first line is not UTF-8".to_owned()));
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Ok(Columns::read(text).map(|(columns, ignored)| Self {
            reader,
            columns,
            number: 1,
            position: read.bytes,
            ignored,
        }))
    }

    /// The next line that is not blank; none at the end of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let mut raw = Vec::new();
            let Some(read) = read_line(&mut self.reader, &mut raw)? else {
                return Ok(None);
            };
            self.number += 1;
            self.position += read.bytes;
            let content = match String::from_utf8(raw) {
                _ if read.too_long => Err((
                    Box::default(),
                    format!("it is {} bytes long; at most {LINE_BYTES_MAX}", read.bytes),
                )),
                Ok(text) if text.trim().is_empty() => continue,
                Ok(text) => self.columns.payment(&text),
                Err(error) => {
                    let shown = excerpt(&String::from_utf8_lossy(error.as_bytes()));
                    Err((Box::default(), format!("it is not UTF-8: {shown}")))
                }
            };
            return Ok(Some(Line {
                number: self.number,
                end: self.position,
                content,
            }));
        }
    }
}

struct Read {
    bytes: u64,
    too_long: bool,
}

/// Reads one line without its end into `line`; of a line that is too long, only the beginning.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<Read>> {
    let mut bytes = 0;
    let mut too_long = false;
    loop {
        let chunk = match reader.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            return Ok((bytes > 0).then_some(Read { bytes, too_long }));
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        let room = LINE_BYTES_MAX - line.len();
        too_long |= part.len() > room;
        line.extend_from_slice(&part[..part.len().min(room)]);
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        bytes += used as u64;
        if end.is_some() {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            return Ok(Some(Read { bytes, too_long }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Vec<(u64, Result<Payment, String>)> {
        // A tiny buffer, so that lines span several of its fillings.
        let reader = io::BufReader::with_capacity(3, text);
        let mut lines = Lines::open(reader).unwrap().unwrap();
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push((line.number, line.content.map_err(|(_, why)| why)));
            assert!(line.end <= text.len() as u64);
        }
        all
    }

    fn payment(id: &str, minor: i64, memo: &str) -> Payment {
        Payment {
            request_id: id.into(),
            from: "a".into(),
            to: "b".into(),
            amount: minor.to_string(),
            minor,
            currency: None,
            memo: memo.into(),
        }
    }

    #[test]
    fn columns_may_stand_in_any_order_and_memo_may_be_missing() {
        let read_lines =
            read(b"\xef\xbb\xbfAmount, to,from,request_id\r\n5,b,a,r1\r\n\r\n 7 ,b, a,r2");
        assert_eq!(
            read_lines,
            [(2, Ok(payment("r1", 5, ""))), (4, Ok(payment("r2", 7, "")))]
        );
        let read_lines = read(b"request_id,from,to,amount,memo\nr1,a,b,5,\"x, \"\"y\"\"\"\n");
        assert_eq!(read_lines, [(2, Ok(payment("r1", 5, "x, \"y\"")))]);
    }

    #[test]
    fn a_line_that_cannot_be_read_spoils_itself_only() {
        let mut text = b"request_id,from,to,amount\nr1,a,b\nr2,a,b,-5\nr3,a,\xff,5\n".to_vec();
        text.extend_from_slice(b"r4,a,\"b,5\nr5,a,b,5,6\n,a,b,5\nr6,a,b,12.30\nr7,a,b,0\n");
        text.extend_from_slice(b"r8,a,b,99999999999999999999\n");
        text.extend(std::iter::repeat_n(b'x', LINE_BYTES_MAX + 1));
        text.extend_from_slice(b"\nr9,a,b,5\n");
        let lines = read(&text);
        let expected = [
            "3 columns",
            "negative",
            "UTF-8",
            "quote",
            "5 columns",
            "request_id is empty",
            "currency",
            "at least 1",
            "10^15",
            "bytes long",
        ];
        assert_eq!(lines.len(), expected.len() + 1);
        for (i, (line, expected)) in lines.iter().zip(expected).enumerate() {
            assert_eq!(line.0, i as u64 + 2);
            let why = line.1.as_ref().unwrap_err();
            assert!(why.contains(expected), "line {}: {why}", line.0);
        }
        assert_eq!(lines.last().unwrap().1, Ok(payment("r9", 5, "")));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_no_payment() {
        let mut text = b"request_id,from,to,amount,memo\n".to_vec();
        text.extend_from_slice(b"r1,a,b,5,x\rr2,a,b,7,y\nr3,al\"ic\"e,b,5,\nr4, \"a\",b,5,\n");
        text.extend_from_slice(b"r5,\"al\"ice,b,5,\nr6,a,b,5,\"x\" \nr7,a,b,5,\"\"\"x\"\"\"\n");
        text.extend_from_slice("\u{feff}r8,a,b,5,\n".as_bytes());
        let expected = [
            "ends within it",
            "within a field",
            "within a field",
            "closing quote",
            "closing quote",
        ];
        let lines = read(&text);
        assert_eq!(lines.len(), 7);
        for (line, expected) in lines.iter().zip(expected) {
            let why = line.1.as_ref().unwrap_err();
            assert!(why.contains(expected), "line {}: {why}", line.0);
        }
        assert_eq!(lines[5], (7, Ok(payment("r7", 5, "\"x\""))));
        assert!(lines[6].1.as_ref().unwrap_err().contains("byte order mark"));
    }

    #[test]
    fn a_payment_that_is_commented_out_is_not_paid() {
        let text = b"request_id,from,to,amount\n#r1,a,b,5\n # r2,a,b,5\nr3,a,b,5\n\"#r4\",a,b,5\n";
        let lines = read(text);
        for line in &lines[..2] {
            let why = line.1.as_ref().unwrap_err();
            assert!(why.contains("delete the line"), "line {}: {why}", line.0);
        }
        assert_eq!(
            lines[2..],
            [
                (4, Ok(payment("r3", 5, ""))),
                (5, Ok(payment("#r4", 5, "")))
            ]
        );
    }

    /// Old text editors end lines with a carriage return alone. Such a file must not be taken for
    /// a header without payments.
    #[test]
    fn a_file_whose_lines_end_with_a_carriage_return_is_refused() {
        let text: &[u8] = b"request_id,from,to,amount\rr1,a,b,5\rr2,a,b,7\r";
        let why = Lines::open(text).unwrap().unwrap_err();
        assert!(why.contains("carriage return"), "{why}");
    }

    #[test]
    fn what_was_read_of_a_bad_line_is_kept_for_the_report() {
        let text: &[u8] = b"request_id,from,to,amount\nr2,a,b,-5\n";
        let mut lines = Lines::open(text).unwrap().unwrap();
        let (kept, _) = lines.next().unwrap().unwrap().content.unwrap_err();
        assert_eq!(
            (kept.request_id.as_str(), kept.amount.as_str()),
            ("r2", "-5")
        );
    }

    #[test]
    fn a_wrong_header_is_refused() {
        for (text, expected) in [
            (&b""[..], "empty"),
            (b"request_id,from,to\n", "amount"),
            (b"request_id,from,to,amount,from\n", "twice"),
            (b"\xff\n", "UTF-8"),
            (b"r1,a,b,5\n", "must name"),
        ] {
            let why = Lines::open(text).unwrap().unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn the_file_of_failed_lines_can_be_run_in_turn() {
        let text: &[u8] = b"line,request_id,from,to,amount,memo,outcome,reason,message,color\n";
        let lines = Lines::open(text).unwrap().unwrap();
        assert_eq!(lines.ignored, ["color"]);
    }
}
