//! Statements that mean something, from chance: for the real servers, which refuse most of what a
//! fuzzer writes before it could do any harm.

use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _};

use concord_participant::resource::mysql::functions;
use concord_proto::model::Value;

/// The tables that statements are about: `t` and `u`, each with a key `k` and a number `v`.
pub const SCHEMA: &str = "fuzzed";

/// One statement and its values.
pub fn statement(rng: &mut SmallRng) -> (String, Vec<Value>) {
    let mut maker = Maker {
        rng,
        params: Vec::new(),
    };
    let sql = maker.whole();
    (sql, maker.params)
}

/// A value of any kind that the door lets through.
pub fn value(rng: &mut SmallRng) -> Value {
    match rng.random_range(0..11) {
        0 => Value::Null,
        1 => Value::Bool(rng.random()),
        2 => Value::Int(edge(rng).cast_signed()),
        3 => Value::UInt(edge(rng)),
        4 => Value::Double(double(rng)),
        5 => Value::Decimal(decimal(rng)),
        6 => Value::String(hostile(rng)),
        7 => Value::Bytes(bytes(rng)),
        8 => Value::Date(date(rng)),
        9 => Value::Time(format!(
            "{}{}",
            ["", "-"][rng.random_range(0..2)],
            clock(rng, 838)
        )),
        _ => Value::DateTime(format!("{} {}", date(rng), clock(rng, 23))),
    }
}

fn edge(rng: &mut SmallRng) -> u64 {
    let near = 1_u64 << rng.random_range(0..64);
    match rng.random_range(0..4) {
        0 => near,
        1 => near.wrapping_sub(1),
        2 => near.wrapping_neg(),
        _ => rng.random(),
    }
}

fn double(rng: &mut SmallRng) -> f64 {
    loop {
        // The servers know no subnormal numbers in their text.
        let double = f64::from_bits(rng.random());
        if double.is_normal() || double == 0.0 {
            return double;
        }
    }
}

fn digits(rng: &mut SmallRng, count: usize) -> String {
    (0..count)
        .map(|_| char::from(b'0' + rng.random_range(0..10)))
        .collect()
}

/// With as many decimals as both servers keep.
fn decimal(rng: &mut SmallRng) -> String {
    let (whole, fraction) = (rng.random_range(1..=35), rng.random_range(0..=30));
    let sign = ["", "-"][rng.random_range(0..2)];
    let point = if fraction > 0 { "." } else { "" };
    format!(
        "{sign}{}{point}{}",
        digits(rng, whole),
        digits(rng, fraction)
    )
}

/// Text that would do harm if it could.
pub fn hostile(rng: &mut SmallRng) -> String {
    const PIECES: &[&str] = &[
        "'",
        "''",
        "\"",
        "\\",
        "\\'",
        "`",
        ";",
        "--",
        "-- ",
        "#",
        "/*",
        "*/",
        "/*!",
        "\0",
        "\n",
        "\r",
        "\u{1a}",
        "%",
        "_",
        "?",
        " ",
        "x'",
        "XA COMMIT",
        "DROP TABLE t",
        "\u{2019}",
        "\u{ff07}",
        "\u{bf}\u{27}",
        "\u{1f600}",
        "\u{fffd}",
        "a",
        "0",
        "\u{0301}",
        "\u{202e}",
    ];
    (0..rng.random_range(0..12))
        .map(|_| PIECES[rng.random_range(0..PIECES.len())])
        .collect()
}

fn bytes(rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..60)];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn date(rng: &mut SmallRng) -> String {
    let (year, month) = (rng.random_range(1..=9_999), rng.random_range(1..=12));
    format!("{year:04}-{month:02}-{:02}", rng.random_range(1..=28))
}

fn clock(rng: &mut SmallRng, hours_max: u32) -> String {
    let (hour, minute) = (rng.random_range(0..hours_max), rng.random_range(0..60));
    let places = rng.random_range(0..=6);
    let point = if places > 0 { "." } else { "" };
    let second = rng.random_range(0..60);
    format!(
        "{hour:02}:{minute:02}:{second:02}{point}{}",
        digits(rng, places)
    )
}

struct Maker<'a> {
    rng: &'a mut SmallRng,
    params: Vec<Value>,
}

impl Maker<'_> {
    fn one<'s>(&mut self, of: &[&'s str]) -> &'s str {
        of[self.rng.random_range(0..of.len())]
    }

    fn table(&mut self) -> String {
        let table = self.one(&["t", "u", "`t`", "`u`"]);
        format!("{SCHEMA}.{table}")
    }

    fn whole(&mut self) -> String {
        match self.rng.random_range(0..10) {
            0..4 => self.select(2),
            4 => format!("WITH c AS ({}) SELECT * FROM c", self.select(1)),
            5 => {
                let table = self.table();
                let (key, value) = (self.expr(1), self.expr(1));
                let verb = self.one(&["INSERT INTO", "INSERT IGNORE INTO", "REPLACE INTO"]);
                format!("{verb} {table} (k, v) VALUES ({key}, {value})")
            }
            6 => {
                let (table, value) = (self.table(), self.expr(1));
                let (key, other) = (self.expr(0), self.expr(1));
                format!(
                    "INSERT INTO {table} (k, v) VALUES ({key}, {other}) \
                     ON DUPLICATE KEY UPDATE v = {value}"
                )
            }
            7 => {
                let (table, value, filter) = (self.table(), self.expr(2), self.expr(1));
                format!("UPDATE {table} SET v = {value} WHERE {filter}")
            }
            8 => {
                let (table, filter) = (self.table(), self.expr(2));
                let limit = self.one(&["", " LIMIT 1", " ORDER BY k LIMIT 2"]);
                format!("DELETE FROM {table} WHERE {filter}{limit}")
            }
            _ => {
                let (table, select) = (self.table(), self.select(0));
                format!("INSERT INTO {table} (k, v) SELECT s.a, 1 FROM ({select}) s")
            }
        }
    }

    fn select(&mut self, depth: usize) -> String {
        let (column, table) = (self.expr(depth), self.table());
        let filter = self.expr(depth);
        let tail = self.one(&[
            "",
            " LIMIT 3",
            " ORDER BY 1",
            " GROUP BY k, v",
            " FOR UPDATE",
            " LOCK IN SHARE MODE",
        ]);
        format!("SELECT {column} AS a FROM {table} WHERE {filter}{tail}")
    }

    /// A call of any function that is allowed, with arguments that may suit it.
    fn call(&mut self, depth: usize) -> String {
        let all = functions::allowed();
        let name = all[self.rng.random_range(0..all.len())];
        let count = self.rng.random_range(0..4);
        let arguments: Vec<String> = (0..count).map(|_| self.expr(depth)).collect();
        format!("{name}({})", arguments.join(", "))
    }

    fn expr(&mut self, depth: usize) -> String {
        if depth == 0 {
            return self.leaf();
        }
        let depth = depth - 1;
        match self.rng.random_range(0..9) {
            0 | 1 => self.leaf(),
            2..5 => self.call(depth),
            5 => {
                let operator =
                    self.one(&["+", "-", "*", "/", "=", "<=>", "<", "AND", "OR", "LIKE"]);
                format!("{} {operator} {}", self.expr(depth), self.expr(depth))
            }
            6 => format!("({})", self.expr(depth)),
            7 => format!(
                "CASE WHEN {} THEN {} ELSE {} END",
                self.expr(depth),
                self.expr(depth),
                self.expr(depth)
            ),
            _ => format!(
                "EXISTS (SELECT 1 FROM {} WHERE {})",
                self.table(),
                self.expr(depth)
            ),
        }
    }

    fn leaf(&mut self) -> String {
        match self.rng.random_range(0..6) {
            0..3 => {
                self.params.push(value(self.rng));
                "?".to_owned()
            }
            3 => "k".to_owned(),
            4 => "v".to_owned(),
            _ => self
                .one(&["1", "'a'", "x'4f'", "NULL", "-2.5e1", "b'01'"])
                .to_owned(),
        }
    }
}
