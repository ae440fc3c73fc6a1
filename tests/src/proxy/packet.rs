//! What of the MySQL protocol a proxy has to understand: packets, the statements of a text, and
//! which packet of the answers belongs to which statement.
//!
//! It reads and never writes, and knows nothing of connections.

use std::fmt;

/// Length of a packet's header: three bytes of length, one of sequence.
pub const HEADER_BYTES: usize = 4;
/// The command that carries a text of SQL.
pub const COM_QUERY: u8 = 0x03;
/// The client wants TLS.
pub const CLIENT_SSL: u32 = 0x0800;
/// Rows end with an OK packet and not with an EOF packet.
const CLIENT_DEPRECATE_EOF: u32 = 0x0100_0000;
/// The answer of another statement follows.
const MORE_RESULTS: u16 = 0x0008;

/// An XA verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // they are called what they are
pub enum Verb {
    Start,
    End,
    Prepare,
    Commit,
    CommitOnePhase,
    Rollback,
}

impl Verb {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::Start,
        Self::End,
        Self::Prepare,
        Self::Commit,
        Self::CommitOnePhase,
        Self::Rollback,
    ];

    /// The verb of a statement, if it is one.
    pub fn of(statement: &str) -> Option<Self> {
        let mut words = statement.split_ascii_whitespace();
        if !words.next()?.eq_ignore_ascii_case("XA") {
            return None;
        }
        let verb = words.next()?.to_ascii_uppercase();
        let one_phase = words
            .last()
            .is_some_and(|word| word.eq_ignore_ascii_case("PHASE"));
        Some(match verb.as_str() {
            "START" | "BEGIN" => Self::Start,
            "END" => Self::End,
            "PREPARE" => Self::Prepare,
            "COMMIT" if one_phase => Self::CommitOnePhase,
            "COMMIT" => Self::Commit,
            "ROLLBACK" => Self::Rollback,
            _ => return None,
        })
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "XA START",
            Self::End => "XA END",
            Self::Prepare => "XA PREPARE",
            Self::Commit => "XA COMMIT",
            Self::CommitOnePhase => "XA COMMIT ONE PHASE",
            Self::Rollback => "XA ROLLBACK",
        })
    }
}

/// Takes a whole packet, with its header, from the front of what has been read.
pub fn take_packet(read: &mut Vec<u8>) -> Option<Vec<u8>> {
    let header = read.get(..HEADER_BYTES)?;
    let payload =
        usize::from(header[0]) | usize::from(header[1]) << 8 | usize::from(header[2]) << 16;
    let whole = HEADER_BYTES + payload;
    (read.len() >= whole).then(|| read.drain(..whole).collect())
}

/// The verb of each statement of a text.
pub fn verbs(text: &str) -> Vec<Option<Verb>> {
    statements(text).into_iter().map(Verb::of).collect()
}

/// The statements of a text. A semicolon between quotes does not end one.
fn statements(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut from, mut quote, mut escaped) = (0, None, false);
    for (at, byte) in text.bytes().enumerate() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(b'\'' | b'"') if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            None if matches!(byte, b'\'' | b'"' | b'`') => quote = Some(byte),
            None if byte == b';' => {
                found.push(text[from..at].trim());
                from = at + 1;
            }
            Some(_) | None => {}
        }
    }
    found.push(text[from..].trim());
    found.retain(|statement| !statement.is_empty());
    found
}

/// Follows the answers to one text.
#[derive(Clone, Debug)]
pub struct Answers {
    deprecate_eof: bool,
    statement: usize,
    expect: Expect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Head,
    Columns(u64),
    ColumnsEnd,
    Rows,
}

impl Answers {
    /// To a text of a client with these capabilities.
    pub fn new(capabilities: u32) -> Self {
        Self {
            deprecate_eof: capabilities & CLIENT_DEPRECATE_EOF != 0,
            statement: 0,
            expect: Expect::Head,
        }
    }

    /// Which statement the next packet belongs to.
    pub fn statement(&self) -> usize {
        self.statement
    }

    /// Takes the payload of a packet; true when it was the last one.
    pub fn take(&mut self, payload: &[u8]) -> bool {
        let first = payload.first().copied().unwrap_or(0xff);
        match (self.expect, first) {
            (_, 0xff) | (Expect::Head, 0xfb) => true,
            (Expect::Head, 0x00) => self.next(status_of_ok(payload)),
            (Expect::Head, _) => {
                let count = length_encoded(payload).map_or(1, |(count, _)| count);
                self.expect = Expect::Columns(count);
                false
            }
            (Expect::Columns(left), _) => {
                self.expect = match left {
                    0 | 1 if self.deprecate_eof => Expect::Rows,
                    0 | 1 => Expect::ColumnsEnd,
                    left => Expect::Columns(left - 1),
                };
                false
            }
            (Expect::ColumnsEnd, _) => {
                self.expect = Expect::Rows;
                false
            }
            (Expect::Rows, 0xfe) if self.deprecate_eof => self.next(status_of_ok(payload)),
            (Expect::Rows, 0xfe) if payload.len() < 9 => self.next(number_at(payload, 3)),
            (Expect::Rows, _) => false,
        }
    }

    fn next(&mut self, status: u16) -> bool {
        if status & MORE_RESULTS == 0 {
            return true;
        }
        self.statement += 1;
        self.expect = Expect::Head;
        false
    }
}

/// The status in a packet that has the form of OK: a byte, two numbers, the status.
fn status_of_ok(payload: &[u8]) -> u16 {
    let after_two = || {
        let rest = payload.get(1..)?;
        let (_, first) = length_encoded(rest)?;
        let (_, second) = length_encoded(rest.get(first..)?)?;
        Some(1 + first + second)
    };
    after_two().map_or(0, |at| number_at(payload, at))
}

fn number_at(payload: &[u8], at: usize) -> u16 {
    match payload.get(at..at + 2) {
        Some(bytes) => u16::from_le_bytes([bytes[0], bytes[1]]),
        None => 0,
    }
}

/// A length-encoded number and how many bytes it takes.
fn length_encoded(bytes: &[u8]) -> Option<(u64, usize)> {
    let width = match *bytes.first()? {
        small @ 0..=0xfa => return Some((small.into(), 1)),
        0xfc => 2,
        0xfd => 3,
        0xfe => 8,
        _ => return None,
    };
    let number = bytes.get(1..=width)?;
    let value = number
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some((value, 1 + width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_found_between_other_statements_and_not_in_strings() {
        let text = "XA START x'00',x'01',7;INSERT INTO t VALUES ('a;XA END \\'; XA', \"';\");\
                    XA END x'00',x'01',7; xa commit x'00' one phase";
        let expected = [
            Some(Verb::Start),
            None,
            Some(Verb::End),
            Some(Verb::CommitOnePhase),
        ];
        assert_eq!(verbs(text), expected);
        assert_eq!(verbs("XA RECOVER CONVERT XID"), [None]);
        assert_eq!(verbs("XA COMMIT x'aa',x'bb',1"), [Some(Verb::Commit)]);
    }

    #[test]
    fn packets_are_taken_whole() {
        let mut read = vec![2, 0, 0, 0, b'a', b'b', 1, 0, 0];
        assert_eq!(take_packet(&mut read).unwrap(), [2, 0, 0, 0, b'a', b'b']);
        assert_eq!(take_packet(&mut read), None);
        read.extend([1, b'c']);
        assert_eq!(take_packet(&mut read).unwrap(), [1, 0, 0, 1, b'c']);
        assert!(read.is_empty());
    }

    #[test]
    fn each_answer_belongs_to_its_statement() {
        let ok = [0, 0, 0, 0x0a, 0, 0, 0];
        let last = [0, 0, 0, 0x02, 0, 0, 0];
        let mut answers = Answers::new(CLIENT_DEPRECATE_EOF);
        assert!(!answers.take(&ok));
        assert_eq!(answers.statement(), 1);
        // One column, a row, and the end of the rows in the form of OK.
        for packet in [&[1][..], b"def...", &[1, b'7']] {
            assert!(!answers.take(packet));
            assert_eq!(answers.statement(), 1);
        }
        assert!(!answers.take(&[0xfe, 0, 0, 0x0a, 0, 0, 0]));
        assert_eq!(answers.statement(), 2);
        assert!(answers.take(&last));

        let mut older = Answers::new(0);
        for packet in [&[1][..], b"def...", &[0xfe, 0, 0, 2, 0], &[1, b'7']] {
            assert!(!older.take(packet));
        }
        assert!(!older.take(&[0xfe, 0, 0, 0x0a, 0]));
        assert!(older.take(&[0xff, 0x15, 0x04]));
    }
}
