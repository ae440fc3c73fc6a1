//! Statements as people write them: `PARTICIPANT: SQL` with typed parameters and expectations.
//!
//! It reads three forms (arguments, a text file, JSON) into the same list. It does not look into
//! the SQL: the participant's parser does.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};
use serde_json::Value;

use crate::statement::{Param, Statement};

/// One statement and where it runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Targeted {
    /// Name of the participant.
    pub participant: String,
    /// What runs there.
    pub statement: Statement,
}

/// Reads `p1: SELECT 1`.
fn targeted(text: &str) -> Result<Targeted, String> {
    let wrong = || {
        let shown: String = text.chars().take(40).collect();
        format!("\"{shown}\" is not PARTICIPANT: SQL, e.g. 'p1: SELECT * FROM shop.till'")
    };
    let (participant, sql) = text.split_once(':').ok_or_else(wrong)?;
    let (participant, sql) = (participant.trim(), sql.trim());
    let sql = sql.strip_suffix(';').unwrap_or(sql).trim_end();
    if !is_name(participant) || sql.is_empty() {
        return Err(wrong());
    }
    Ok(Targeted {
        participant: participant.to_owned(),
        statement: Statement::new(sql),
    })
}

/// Whether it can be the name of a participant.
fn is_name(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.chars().all(legal)
}

/// Reads a typed parameter: `null`, `bool:true`, `int:5`, `uint:5`, `double:1.5`, `dec:12.30`,
/// `str:x`, `hex:00ff`, `date:…`, `time:…`, `datetime:…`; a bare integer is an `int`.
pub(crate) fn param(text: &str) -> Result<Param, String> {
    let bad = |what: &str| format!("\"{text}\" is not {what}");
    if text == "null" {
        return Ok(Param::null());
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(Param::from(number));
    }
    let untyped = || {
        format!(
            "\"{text}\" has no type: write str:{text} for text, or null, bool:, int:, uint:, \
             double:, dec:, hex:, date:, time:, datetime:"
        )
    };
    let (kind, value) = text.split_once(':').ok_or_else(untyped)?;
    Ok(match kind {
        "bool" => Param::from(
            value
                .parse::<bool>()
                .map_err(|_| bad("bool:true or bool:false"))?,
        ),
        "int" => Param::from(
            value
                .parse::<i64>()
                .map_err(|_| bad("an integer of 64 bits"))?,
        ),
        "uint" => Param::from(
            value
                .parse::<u64>()
                .map_err(|_| bad("an unsigned integer of 64 bits"))?,
        ),
        "double" => {
            let number = value
                .parse::<f64>()
                .ok()
                .filter(|number| number.is_finite());
            Param::from(number.ok_or_else(|| bad("a finite number"))?)
        }
        "dec" => Param::decimal(value),
        "str" => Param::from(value),
        "hex" => Param::from(unhex(value).ok_or_else(|| bad("hexadecimal bytes"))?),
        "date" => Param::date(value),
        "time" => Param::time(value),
        "datetime" => Param::datetime(value),
        _ => return Err(untyped()),
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

/// What a statement must touch, as it is written: `1`, `1..`, `..5`, `1..3`, each with `:REASON`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    min: u64,
    max: Option<u64>,
    reason: String,
}

/// Reads an expectation.
pub(crate) fn expected(text: &str) -> Result<Expected, String> {
    let wrong = || format!("\"{text}\" is not ROWS[:REASON]: 1, 1.., ..5 or 1..3:NO_SUCH_TILL");
    let (rows, reason) = text.split_once(':').unwrap_or((text, ""));
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let (min, max) = match rows.split_once("..") {
        None => (number(rows)?, Some(number(rows)?)),
        Some(("", "")) => return Err(wrong()),
        Some(("", max)) => (0, Some(number(max)?)),
        Some((min, "")) => (number(min)?, None),
        Some((min, max)) => (number(min)?, Some(number(max)?)),
    };
    if max.is_some_and(|max| max < min) {
        return Err(wrong());
    }
    Ok(Expected {
        min,
        max,
        reason: reason.to_owned(),
    })
}

impl Targeted {
    fn bind(&mut self, param: Param) {
        self.statement = self.statement.clone().bind(param);
    }

    fn require(&mut self, expected: &Expected) {
        let statement = self.statement.clone();
        self.statement = statement.expect_rows(expected.min, expected.max, &expected.reason);
    }
}

/// Statements on the command line. A `-p` or `--expect` belongs to the statement before it, so
/// their order matters; clap's derive does not tell it, which is why this is written by hand.
#[derive(Clone, Debug, Default)]
pub(crate) struct StatementArgs {
    /// In the order written.
    pub statements: Vec<Targeted>,
}

impl FromArgMatches for StatementArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut words: Vec<(usize, Word)> = Vec::new();
        collect(matches, "statement", Word::Statement, &mut words);
        collect(matches, "param", Word::Param, &mut words);
        collect(matches, "expect", Word::Expect, &mut words);
        words.sort_by_key(|(index, _)| *index);
        let mut statements: Vec<Targeted> = Vec::new();
        for (_, word) in words {
            match (word, statements.last_mut()) {
                (Word::Statement(statement), _) => statements.push(statement),
                (Word::Param(param), Some(last)) => last.bind(param),
                (Word::Expect(expected), Some(last)) => last.require(&expected),
                (Word::Param(_) | Word::Expect(_), None) => {
                    return Err(clap::Error::raw(
                        clap::error::ErrorKind::MissingRequiredArgument,
                        "--param and --expect belong to the statement before them: write the \
                         statement first\n",
                    ));
                }
            }
        }
        Ok(Self { statements })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

enum Word {
    Statement(Targeted),
    Param(Param),
    Expect(Expected),
}

fn collect<T: Clone + Send + Sync + 'static>(
    matches: &ArgMatches,
    id: &str,
    wrap: fn(T) -> Word,
    words: &mut Vec<(usize, Word)>,
) {
    let indices = matches.indices_of(id).into_iter().flatten();
    let values = matches.get_many::<T>(id).into_iter().flatten().cloned();
    words.extend(indices.zip(values.map(wrap)));
}

impl Args for StatementArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
            .arg(
                Arg::new("statement")
                    .value_name("PARTICIPANT: SQL")
                    .num_args(0..)
                    .value_parser(targeted)
                    .help("A statement and where it runs; those of one participant share a branch"),
            )
            .arg(
                Arg::new("param")
                    .short('p')
                    .long("param")
                    .value_name("TYPE:VALUE")
                    .action(ArgAction::Append)
                    .allow_negative_numbers(true)
                    .value_parser(param)
                    .help(
                        "Value of the next `?` of the statement before it: null, bool:true, \
                         int:5, uint:5, double:1.5, dec:12.30, str:x, hex:00ff, date:2026-01-31, \
                         time:12:00:00, datetime:'2026-01-31 12:00:00'; a bare integer is an int",
                    ),
            )
            .arg(
                Arg::new("expect")
                    .long("expect")
                    .value_name("ROWS[:REASON]")
                    .action(ArgAction::Append)
                    .value_parser(expected)
                    .help(
                        "Abort unless the statement before it touches that many rows: 1, 1.., \
                         ..5, 1..3; REASON is what the abort is called",
                    ),
            )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// Reads a file of statements: JSON when it begins with `[`, else text.
pub(crate) fn file(text: &str) -> Result<Vec<Targeted>, String> {
    let statements = if text.trim_start().starts_with('[') {
        json_file(text)?
    } else {
        text_file(text)?
    };
    if statements.is_empty() {
        Err("there is no statement in it".to_owned())
    } else {
        Ok(statements)
    }
}

/// A statement of a text file with its options; each with the number of its line.
type Block = (usize, String, Vec<(usize, String)>);

/// The text form: `NAME: SQL` at the start of a line begins a statement; indented lines go on
/// with its SQL, or are `-p TYPE:VALUE` and `--expect ROWS[:REASON]`; `#` begins a comment line.
fn text_file(text: &str) -> Result<Vec<Targeted>, String> {
    let mut blocks: Vec<Block> = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        if !line.starts_with([' ', '\t']) {
            blocks.push((number, trimmed.to_owned(), Vec::new()));
            continue;
        }
        let Some((_, sql, options)) = blocks.last_mut() else {
            return Err(format!(
                "line {number}: it is indented, and no statement is before it"
            ));
        };
        if trimmed.starts_with('-') {
            options.push((number, trimmed.to_owned()));
        } else if options.is_empty() {
            sql.push('\n');
            sql.push_str(trimmed);
        } else {
            return Err(format!(
                "line {number}: SQL after the parameters of its statement"
            ));
        }
    }
    let mut statements = Vec::new();
    for (number, sql, options) in blocks {
        let mut statement = targeted(&sql).map_err(|why| format!("line {number}: {why}"))?;
        for (number, option) in options {
            apply(&mut statement, &option).map_err(|why| format!("line {number}: {why}"))?;
        }
        statements.push(statement);
    }
    Ok(statements)
}

fn apply(statement: &mut Targeted, option: &str) -> Result<(), String> {
    let (name, value) = option
        .split_once(char::is_whitespace)
        .unwrap_or((option, ""));
    let value = value.trim_start();
    check_alone(value)?;
    match name {
        "-p" | "--param" => statement.bind(param(value)?),
        "--expect" => statement.require(&expected(value)?),
        _ => return Err(format!("\"{name}\" is neither -p, --param nor --expect")),
    }
    Ok(())
}

/// Refuses a value that seems to hold more than itself. The rest of the line belongs to the value,
/// so that an expectation behind it would be stored as text instead of guarding the statement.
fn check_alone(value: &str) -> Result<(), String> {
    const ADVICE: &str = "one option a line; write such a text in the JSON form";
    let begins_another = |word: &&str| {
        let options = ["-p", "--param", "--expect", "#"];
        options.iter().any(|option| word.starts_with(option))
    };
    if let Some(word) = value.split_whitespace().skip(1).find(begins_another) {
        return Err(format!("\"{word}\" would be a part of the value: {ADVICE}"));
    }
    let text = value.split_once(':').map_or(value, |(_, text)| text);
    let quoted = |text: &str| text.trim_start().starts_with(['"', '\'', '`']);
    if quoted(value) || quoted(text) {
        return Err(format!("the quotes would be a part of the value: {ADVICE}"));
    }
    Ok(())
}

/// The JSON form: `[{"participant": "p1", "sql": "…", "params": [5, "x", null, {"dec": "1.5"}],
/// "expect": "1:NO_SUCH_TILL"}]`. Strings are strings; `{"TYPE": "VALUE"}` is a typed parameter.
fn json_file(text: &str) -> Result<Vec<Targeted>, String> {
    let entries: Vec<serde_json::Map<String, Value>> =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut statements = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let statement = json_statement(entry).map_err(|why| format!("statement {}: {why}", i + 1));
        statements.push(statement?);
    }
    Ok(statements)
}

fn json_statement(entry: &serde_json::Map<String, Value>) -> Result<Targeted, String> {
    let known = ["participant", "sql", "params", "expect"];
    if let Some(key) = entry.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("unknown key \"{key}\""));
    }
    let text = |key: &str| {
        let value = entry.get(key).and_then(Value::as_str);
        value.ok_or_else(|| format!("\"{key}\" is missing, or no string"))
    };
    let participant = text("participant")?;
    if !is_name(participant) {
        return Err(format!("\"{participant}\" is no name of a participant"));
    }
    let mut statement = Targeted {
        participant: participant.to_owned(),
        statement: Statement::new(text("sql")?),
    };
    match entry.get("params") {
        None => {}
        Some(Value::Array(params)) => {
            for value in params {
                statement.bind(json_param(value)?);
            }
        }
        Some(_) => return Err("\"params\" is no array".to_owned()),
    }
    if entry.contains_key("expect") {
        statement.require(&expected(text("expect")?)?);
    }
    Ok(statement)
}

fn json_param(value: &Value) -> Result<Param, String> {
    let wrong =
        || format!("{value} is no parameter; write e.g. 5, \"x\", null or {{\"dec\": \"1.5\"}}");
    Ok(match value {
        Value::Null => Param::null(),
        Value::Bool(value) => Param::from(*value),
        Value::String(text) => Param::from(text.as_str()),
        // Every other number has been rounded to a double by now.
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Param::from(number),
            (None, Some(number)) => Param::from(number),
            (None, None) => {
                return Err(format!(
                    "{number} is no integer of 64 bits; write {{\"dec\": \"12.30\"}} or \
                     {{\"double\": \"12.3\"}}"
                ));
            }
        },
        Value::Object(typed) => {
            let mut entries = typed.iter();
            let (Some((kind, value)), None) = (entries.next(), entries.next()) else {
                return Err(wrong());
            };
            param(&format!("{kind}:{}", value.as_str().ok_or_else(wrong)?))?
        }
        Value::Array(_) => return Err(wrong()),
    })
}

/// Reads a file, or stdin for `-`.
pub(crate) fn read(path: &OsString) -> std::io::Result<String> {
    use std::io::Read as _;
    if path == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Probe {
        #[command(flatten)]
        args: StatementArgs,
    }

    fn parse(words: &[&str]) -> Result<Vec<Targeted>, clap::Error> {
        let words = std::iter::once("probe").chain(words.iter().copied());
        Probe::try_parse_from(words).map(|probe| probe.args.statements)
    }

    fn debit() -> Targeted {
        let statement = Statement::new("UPDATE t SET a = a - ? WHERE b = ?").bind(5_i64);
        let statement = statement.bind("x").expect_rows(1, Some(1), "POOR");
        Targeted {
            participant: "p1".into(),
            statement,
        }
    }

    fn credit() -> Targeted {
        Targeted {
            participant: "p2".into(),
            statement: Statement::new("DELETE FROM t"),
        }
    }

    #[test]
    fn parameters_belong_to_the_statement_before_them() {
        let read = parse(&[
            "p1: UPDATE t SET a = a - ? WHERE b = ?",
            "-p",
            "5",
            "--param",
            "str:x",
            "--expect",
            "1:POOR",
            "p2: DELETE FROM t;",
        ]);
        assert_eq!(read.unwrap(), [debit(), credit()]);
        assert!(parse(&["-p", "5", "p1: SELECT ?"]).is_err());
        assert!(parse(&[]).unwrap().is_empty());
        assert_eq!(parse(&["p1: SELECT ?", "-p", "-5"]).unwrap().len(), 1);
    }

    #[test]
    fn the_three_forms_mean_the_same() {
        let text = "# a comment\np1: UPDATE t\n  SET a = a - ? WHERE b = ?\n  -p 5\n  -p str:x\n\
                    \t--expect 1:POOR\n\np2: DELETE FROM t;\n";
        let read = file(&text.replace("UPDATE t\n  SET", "UPDATE t SET")).unwrap();
        assert_eq!(read, [debit(), credit()]);
        let json = r#"[{"participant":"p1","sql":"UPDATE t SET a = a - ? WHERE b = ?",
            "params":[5,"x"],"expect":"1:POOR"},{"participant":"p2","sql":"DELETE FROM t"}]"#;
        assert_eq!(file(json).unwrap(), [debit(), credit()]);
    }

    #[test]
    fn a_wrong_file_names_its_line() {
        for (text, expected) in [
            ("  -p 5\n", "line 1"),
            ("p1: SELECT ?\n  -p x\n", "line 2"),
            ("p1: SELECT ?\n  --what 5\n", "line 2"),
            ("p1: SELECT ?\n  -p 5\n  FROM t\n", "line 3"),
            ("SELECT 1\n", "line 1"),
            ("# nothing\n", "no statement"),
            ("[{\"participant\":\"p1\"}]", "statement 1"),
            (
                "[{\"participant\":\"p1\",\"sql\":\"SELECT 1\",\"parms\":[]}]",
                "unknown key",
            ),
            ("[5]", "invalid type"),
        ] {
            let why = file(text).unwrap_err();
            assert!(why.contains(expected), "{text:?}: {why}");
        }
    }

    #[test]
    fn an_option_behind_a_value_is_refused_and_never_a_part_of_it() {
        for behind in [
            "str:anna --expect 1:POOR",
            "str:anna\t--expect=1",
            "str:anna -p 5",
            "str:anna -p5",
            "dec:1.50 --param 5",
            "str:anna   # the payer",
            "str: # nobody",
            "str:\"anna\"",
            "str: 'anna'",
            "'anna'",
            "\"str:anna\"",
        ] {
            let why = file(&format!("p1: SELECT ?\n  -p {behind}\n")).unwrap_err();
            assert!(why.contains("line 2: "), "{behind}: {why}");
            assert!(why.contains("one option a line"), "{behind}: {why}");
        }
        let why = file("p1: SELECT ?\n  -p 5\n  --expect 1:POOR # guard\n").unwrap_err();
        assert!(why.contains("one option a line"), "{why}");
        for text in ["anna-p 5", "a - b", "#1", "it's \"so\"", "-p", ""] {
            let read = file(&format!("p1: SELECT ?\n  -p str:{text}\n")).unwrap();
            assert_eq!(read[0].statement, Statement::new("SELECT ?").bind(text));
        }
        let json = r#"[{"participant":"p1","sql":"SELECT ?","params":["'a' --expect 1 # x"]}]"#;
        let read = file(json).unwrap();
        assert_eq!(
            read[0].statement,
            Statement::new("SELECT ?").bind("'a' --expect 1 # x")
        );
    }

    #[test]
    fn parameters_are_typed() {
        assert_eq!(param("5"), Ok(Param::from(5_i64)));
        assert_eq!(param("-5"), Ok(Param::from(-5_i64)));
        assert_eq!(
            param("uint:18446744073709551615"),
            Ok(Param::from(u64::MAX))
        );
        assert_eq!(param("str:a:b"), Ok(Param::from("a:b")));
        assert_eq!(param("str:"), Ok(Param::from("")));
        assert_eq!(param("hex:00fF"), Ok(Param::from(vec![0_u8, 255])));
        assert_eq!(param("time:-12:00:00"), Ok(Param::time("-12:00:00")));
        for bad in [
            "x",
            "",
            "int:x",
            "bool:1",
            "double:inf",
            "hex:0",
            "hex:+1",
            "what:5",
        ] {
            assert!(param(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_number_of_json_is_exact_or_refused() {
        let read = |params: &str| {
            let whole = r#"[{"participant":"p1","sql":"SELECT ?","params":[PARAMS]}]"#;
            file(&whole.replace("PARAMS", params))
        };
        for number in ["12345678901234567.89", "18446744073709551616", "1e2"] {
            let why = read(number).unwrap_err();
            assert!(why.contains("write {\"dec\": \"12.30\"} or"), "{why}");
        }
        let exact = read(r#"-5, 18446744073709551615, {"dec": "12345678901234567.89"}"#).unwrap();
        let expected = Statement::new("SELECT ?").bind(-5_i64).bind(u64::MAX);
        let expected = expected.bind(Param::decimal("12345678901234567.89"));
        assert_eq!(exact[0].statement, expected);
        let double = read(r#"{"double": "12.3"}"#).unwrap();
        assert_eq!(double[0].statement, Statement::new("SELECT ?").bind(12.3));
    }

    #[test]
    fn expectations_are_ranges_with_a_reason() {
        let read = |text: &str| expected(text).map(|e| (e.min, e.max, e.reason));
        assert_eq!(read("1"), Ok((1, Some(1), String::new())));
        assert_eq!(read("1..:X"), Ok((1, None, "X".to_owned())));
        assert_eq!(read("..5"), Ok((0, Some(5), String::new())));
        for bad in ["", "..", "5..1", "-1", "x", "1..x"] {
            assert!(expected(bad).is_err(), "{bad:?}");
        }
    }
}
