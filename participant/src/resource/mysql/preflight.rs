//! What a server must be before votes are given, and the short form of it that every vote checks.
//!
//! Settings can be changed while the server runs and a primary can be demoted, so the same checks
//! run twice: here, on a connection of their own at each (re)connect and every few seconds; and as
//! the *guard*, one statement inside every branch, right before it is prepared. An unsafe server
//! still commits and rolls back what is prepared, as far as it lets us: only votes stop.

use std::collections::BTreeMap;

use concord_core::planted::{self, Bug};
use concord_core::reason::{Reason, code};
use concord_proto::model::Isolation;

use super::error::Failure;
use super::natives::Lacking;
use super::pool::Conn;
use super::xa::hex;

/// Which family of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// MySQL and its builds.
    MySql,
    /// MariaDB.
    MariaDb,
}

impl Flavor {
    /// Lists prepared branches, in a form that loses nothing of their ids.
    pub fn recover(self) -> &'static str {
        match self {
            Self::MySql => "XA RECOVER CONVERT XID",
            Self::MariaDb => "XA RECOVER",
        }
    }
}

/// What is known of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which family.
    pub flavor: Flavor,
    /// E.g. "MariaDB 10.11.19".
    pub version: String,
    /// The server's own id; empty when it has none.
    pub server_id: String,
    /// Whether a prepared branch leaves its connection (MySQL as it should be), or keeps it
    /// (`MariaDB`, and MySQL where it is unsafe).
    pub detaches: bool,
    /// The isolation level of a branch that names none.
    pub isolation: Option<Isolation>,
    /// Functions on the list that the server does not have of its own.
    pub lacking: Lacking,
    /// Statement that pins that level in a new session.
    pub session: String,
    /// What the guard looks at.
    guard: Vec<Check>,
    guard_text: String,
    /// What stands in the way of votes.
    pub problems: Vec<Reason>,
}

/// No session has a value of its own.
const GLOBAL: &[&str] = &["GLOBAL"];

/// One setting and its legal values.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    variable: &'static str,
    /// Where it has a value that must be legal: a session may keep one of its own.
    scopes: &'static [&'static str],
    legal: Vec<String>,
    code: &'static str,
    why: &'static str,
    mend: &'static str,
}

impl Check {
    fn verdict(&self, value: &str) -> Option<Reason> {
        if self
            .legal
            .iter()
            .any(|legal| legal.eq_ignore_ascii_case(value))
        {
            return None;
        }
        let Self {
            variable,
            why,
            mend,
            ..
        } = self;
        Some(Reason::new(
            self.code,
            format!("{variable} is {value}: {why}; {mend}"),
        ))
    }
}

/// Variables that hold a server's own id, the first that it has.
pub const SERVER_IDS: &[&str] = &["server_uuid", "server_uid", "feedback_server_uid"];

/// The server's own id among its variables; empty when it has none.
pub fn server_id(variables: &BTreeMap<String, String>) -> &str {
    let first = SERVER_IDS.iter().find_map(|name| variables.get(*name));
    first.map(String::as_str).unwrap_or_default()
}

/// Names the data of a server: the server's own id, and that of the schema `concord`.
pub fn incarnation(server_id: &str, identity: &str) -> String {
    format!("{server_id}/{identity}")
}

const VARIABLES: &[&str] = &[
    "feedback_server_uid",
    "innodb_flush_log_at_trx_commit",
    "innodb_read_only",
    "log_bin",
    "read_only",
    "server_uid",
    "server_uuid",
    "super_read_only",
    "sync_binlog",
    "transaction_isolation",
    "tx_isolation",
    "version",
    "wsrep_on",
    "xa_detach_on_prepare",
];

impl Facts {
    /// The guard: a statement without an answer of its own that fails, by an overflow, when a
    /// setting is not legal any more. A SELECT would say which one, but its answer is sent before
    /// XA PREPARE has begun, and wakes up this process for nothing.
    pub fn guard(&self) -> &str {
        &self.guard_text
    }

    pub(super) fn new(variables: &BTreeMap<String, String>) -> Self {
        let get = |name: &str| variables.get(name).map(String::as_str);
        let version = get("version").unwrap_or_default();
        let flavor = if version.to_ascii_lowercase().contains("mariadb") {
            Flavor::MariaDb
        } else {
            Flavor::MySql
        };
        let number = version.split('-').next().unwrap_or_default();
        let name = match flavor {
            Flavor::MySql => "MySQL",
            Flavor::MariaDb => "MariaDB",
        };
        let level = get("transaction_isolation").or_else(|| get("tx_isolation"));
        let mut facts = Self {
            flavor,
            version: format!("{name} {number}"),
            server_id: server_id(variables).to_owned(),
            detaches: get("xa_detach_on_prepare").is_some_and(is_on),
            isolation: level.and_then(isolation),
            lacking: Lacking::default(),
            session: session(level),
            guard: checks(flavor, variables),
            guard_text: String::new(),
            problems: Vec::new(),
        };
        facts.guard_text = guard_text(&facts.guard);
        facts.problems.extend(
            facts
                .guard
                .iter()
                .filter_map(|check| check.verdict(get(check.variable).unwrap_or_default())),
        );
        facts.problems.extend(version_problem(flavor, number));
        if get("wsrep_on").is_some_and(is_on) {
            facts.problems.push(unsafe_server(
                "wsrep_on is ON: Galera does not replicate prepared branches; use a server \
                 without Galera, or start it with --wsrep-on=OFF",
            ));
        }
        if get("innodb_read_only").is_some_and(is_on) {
            facts.problems.push(Reason::new(
                code::READ_ONLY_SERVER,
                "innodb_read_only is ON: restart the server with --innodb-read-only=OFF",
            ));
        }
        if flavor == Flavor::MySql && get("xa_detach_on_prepare").is_none() {
            facts.problems.push(unsafe_server(
                "xa_detach_on_prepare is not known to the server: use MySQL 8.0.30 or newer",
            ));
        }
        facts
    }
}

fn unsafe_server(message: impl Into<String>) -> Reason {
    Reason::new(code::UNSAFE_SERVER, message.into())
}

fn is_on(value: &str) -> bool {
    value == "1" || value.eq_ignore_ascii_case("on")
}

fn isolation(level: &str) -> Option<Isolation> {
    match level.to_ascii_uppercase().as_str() {
        "READ-COMMITTED" => Some(Isolation::ReadCommitted),
        "REPEATABLE-READ" => Some(Isolation::RepeatableRead),
        "SERIALIZABLE" => Some(Isolation::Serializable),
        _ => None,
    }
}

/// Sessions get the server's level explicitly, so that what is known of it stays true for them.
fn session(level: Option<&str>) -> String {
    let level = match level {
        Some("READ-UNCOMMITTED") => "READ UNCOMMITTED",
        Some("READ-COMMITTED") => "READ COMMITTED",
        Some("SERIALIZABLE") => "SERIALIZABLE",
        _ => "REPEATABLE READ",
    };
    format!("SET SESSION TRANSACTION ISOLATION LEVEL {level}")
}

/// `CONCAT` makes a text of every value, so that no number equals a word; hexadecimal literals need
/// no quoting.
fn guard_text(checks: &[Check]) -> String {
    let pairs = checks
        .iter()
        .flat_map(|check| check.scopes.iter().map(move |scope| (check, scope)));
    let conditions = pairs.map(|(check, scope)| {
        let legal: Vec<_> = check
            .legal
            .iter()
            .map(|value| format!("x'{}'", hex(value.as_bytes())))
            .collect();
        format!(
            "CONCAT(@@{scope}.{}) IN ({})",
            check.variable,
            legal.join(",")
        )
    });
    let conditions: Vec<_> = conditions.collect();
    format!(
        "SET @concord_guard=IF({},0,EXP(710))",
        conditions.join(" AND ")
    )
}

fn checks(flavor: Flavor, variables: &BTreeMap<String, String>) -> Vec<Check> {
    let texts = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    let mut checks = vec![Check {
        variable: "innodb_flush_log_at_trx_commit",
        scopes: GLOBAL,
        // MariaDB's 3 flushes at prepare and at commit as well.
        legal: texts(if flavor == Flavor::MariaDb {
            &["1", "3"]
        } else {
            &["1"]
        }),
        code: code::UNSAFE_SERVER,
        why: "a crash of the server would lose branches that it acknowledged as prepared",
        mend: "run SET GLOBAL innodb_flush_log_at_trx_commit = 1 and set it in the option file",
    }];
    if planted::is(Bug::UnsafeServerVotes) {
        checks.clear();
    }
    if variables.get("log_bin").is_some_and(|value| is_on(value)) {
        checks.push(Check {
            variable: "sync_binlog",
            scopes: GLOBAL,
            legal: texts(&["1"]),
            code: code::UNSAFE_SERVER,
            why: "a crash of the host would lose transactions of the binary log that were \
                  acknowledged",
            mend: "run SET GLOBAL sync_binlog = 1 and set it in the option file",
        });
    }
    if flavor == Flavor::MySql && variables.contains_key("xa_detach_on_prepare") {
        checks.push(branches_leave());
    }
    for (variable, mend) in [
        (
            "read_only",
            "run SET GLOBAL read_only = OFF on the server that shall take writes",
        ),
        (
            "super_read_only",
            "run SET GLOBAL super_read_only = OFF on the server that shall take writes",
        ),
    ] {
        if variables.contains_key(variable) {
            checks.push(Check {
                variable,
                scopes: GLOBAL,
                legal: texts(&["0", "OFF"]),
                code: code::READ_ONLY_SERVER,
                why: "the server is a replica, or was demoted to one",
                mend,
            });
        }
    }
    for variable in ["server_uuid", "server_uid"] {
        if let Some(value) = variables.get(variable) {
            checks.push(Check {
                variable,
                scopes: GLOBAL,
                legal: vec![value.clone()],
                code: code::INCARNATION_CHANGED,
                why: "another server answers at this address",
                mend: "check where the participant's address leads",
            });
        }
    }
    checks
}

/// Where branches stay with their connections, see `super::detached`.
fn branches_leave() -> Check {
    Check {
        variable: "xa_detach_on_prepare",
        scopes: &["GLOBAL", "SESSION"],
        legal: vec!["1".to_owned(), "ON".to_owned()],
        code: code::UNSAFE_SERVER,
        why: "the server answers OK to a commit that comes while a branch's connection is \
              ending, and does nothing",
        mend: "run SET GLOBAL xa_detach_on_prepare = ON and set it in the option file",
    }
}

fn version_problem(flavor: Flavor, number: &str) -> Option<Reason> {
    let mut parts = number
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = [(); 3].map(|()| parts.next().unwrap_or(0));
    let (oldest, name) = match flavor {
        Flavor::MySql => ([8, 0, 30], "MySQL 8.0.30"),
        // Before it a prepared branch was rolled back when its connection ended (MDEV-742).
        Flavor::MariaDb => ([10, 5, 2], "MariaDB 10.5.2"),
    };
    (version < oldest).then(|| {
        unsafe_server(format!(
            "the server is of version {number}, and {name} is the oldest whose XA is safe: \
             upgrade it"
        ))
    })
}

/// Asks the server. Nothing here waits for a lock, so one that does not answer is down.
pub async fn examine(conn: &mut Conn) -> Result<Facts, Failure> {
    let names = VARIABLES.join("','");
    let text = format!("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('{names}')");
    let variables: BTreeMap<String, String> = conn
        .ask(text, "SHOW VARIABLES")
        .await?
        .iter()
        .filter_map(|row| Some((column(row, 0)?.to_ascii_lowercase(), column(row, 1)?)))
        .collect();
    let mut facts = Facts::new(&variables);
    let engines = "SELECT SUPPORT FROM information_schema.ENGINES WHERE ENGINE = 'InnoDB'";
    let engines = conn.ask(engines, "information_schema.ENGINES").await?;
    let support = engines
        .first()
        .and_then(|row| column(row, 0))
        .unwrap_or_default();
    if !matches!(support.as_str(), "YES" | "DEFAULT") {
        facts.problems.push(unsafe_server(
            "the InnoDB engine is missing or disabled: start the server with InnoDB",
        ));
    }
    if facts.flavor == Flavor::MySql {
        let text = "SHOW GLOBAL STATUS LIKE 'Innodb_redo_log_enabled'";
        let rows = conn.ask(text, "SHOW STATUS").await?;
        if rows
            .first()
            .and_then(|row| column(row, 1))
            .is_some_and(|value| !is_on(&value))
        {
            facts.problems.push(unsafe_server(
                "InnoDB's redo log is disabled: run ALTER INSTANCE ENABLE INNODB REDO_LOG",
            ));
        }
    }
    Ok(facts)
}

fn column(row: &[Option<Vec<u8>>], at: usize) -> Option<String> {
    row.get(at)?
        .as_deref()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// What an account must be allowed to do for branches to be ended after a crash.
#[derive(Clone, Copy, Debug)]
pub enum Right {
    /// `XA RECOVER`.
    ListPrepared,
    /// `information_schema.innodb_trx`.
    ListTransactions,
}

impl Right {
    /// The problem when it is refused.
    pub fn missing(self, failure: &Failure, user: &str) -> Reason {
        let (what, so, privilege) = match self {
            Self::ListPrepared => (
                "XA RECOVER",
                "branches could not be found again after a crash",
                "XA_RECOVER_ADMIN",
            ),
            Self::ListTransactions => (
                "information_schema.innodb_trx",
                "branches whose connection has ended could not be ended safely",
                "PROCESS",
            ),
        };
        unsafe_server(format!(
            "{what} is refused, so {so}; run GRANT {privilege} ON *.* TO the account of {user} \
             ({})",
            failure.reason().message
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(changes: &[(&str, &str)]) -> Facts {
        let mut variables: BTreeMap<String, String> = [
            ("version", "9.7.4"),
            ("innodb_flush_log_at_trx_commit", "1"),
            ("log_bin", "ON"),
            ("sync_binlog", "1"),
            ("read_only", "OFF"),
            ("super_read_only", "OFF"),
            ("server_uuid", "u-1"),
            ("xa_detach_on_prepare", "ON"),
            ("transaction_isolation", "REPEATABLE-READ"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        for (name, value) in changes {
            if value.is_empty() {
                variables.remove(*name);
            } else {
                variables.insert((*name).to_owned(), (*value).to_owned());
            }
        }
        Facts::new(&variables)
    }

    #[test]
    fn a_safe_server_has_no_problem() {
        let facts = facts(&[]);
        assert_eq!(facts.problems, []);
        assert!(facts.detaches);
        assert_eq!(facts.version, "MySQL 9.7.4");
    }

    #[test]
    fn every_unsafe_setting_is_a_problem_that_names_it_and_what_mends_it() {
        for (name, value, expected, mend) in [
            (
                "innodb_flush_log_at_trx_commit",
                "2",
                code::UNSAFE_SERVER,
                "SET GLOBAL",
            ),
            (
                "innodb_flush_log_at_trx_commit",
                "3",
                code::UNSAFE_SERVER,
                "SET GLOBAL",
            ),
            ("sync_binlog", "0", code::UNSAFE_SERVER, "SET GLOBAL"),
            ("read_only", "ON", code::READ_ONLY_SERVER, "SET GLOBAL"),
            ("super_read_only", "1", code::READ_ONLY_SERVER, "SET GLOBAL"),
            ("wsrep_on", "ON", code::UNSAFE_SERVER, "--wsrep-on"),
            ("innodb_read_only", "ON", code::READ_ONLY_SERVER, "restart"),
            ("xa_detach_on_prepare", "", code::UNSAFE_SERVER, "8.0.30"),
            (
                "xa_detach_on_prepare",
                "OFF",
                code::UNSAFE_SERVER,
                "SET GLOBAL",
            ),
        ] {
            let problems = facts(&[(name, value)]).problems;
            assert_eq!(problems.len(), 1, "{name}={value}: {problems:?}");
            assert_eq!(&*problems[0].code, expected);
            assert!(problems[0].message.contains(name), "{}", problems[0]);
            assert!(problems[0].message.contains(mend), "{}", problems[0]);
        }
    }

    #[test]
    fn without_a_binary_log_its_flushing_does_not_matter() {
        assert_eq!(
            facts(&[("log_bin", "OFF"), ("sync_binlog", "0")]).problems,
            []
        );
    }

    #[test]
    fn old_versions_are_refused() {
        for (version, safe) in [
            ("8.0.29", false),
            ("8.0.30", true),
            ("5.7.44-log", false),
            ("10.4.34-MariaDB", false),
            ("10.5.0-MariaDB-log", false),
            ("10.5.1-MariaDB", false),
            ("10.5.2-MariaDB-log", true),
            ("11.8.2-MariaDB", true),
            ("nonsense", false),
        ] {
            assert_eq!(
                facts(&[("version", version)]).problems.is_empty(),
                safe,
                "{version}"
            );
        }
    }

    #[test]
    fn the_guard_compares_texts() {
        let facts = facts(&[]);
        let start = "SET @concord_guard=IF(CONCAT(@@GLOBAL.innodb_flush_log_at_trx_commit) IN \
                     (x'31') AND CONCAT(@@GLOBAL.sync_binlog) IN (x'31') AND \
                     CONCAT(@@GLOBAL.xa_detach_on_prepare) IN (x'31',x'4f4e') AND \
                     CONCAT(@@SESSION.xa_detach_on_prepare) IN (x'31',x'4f4e') AND \
                     CONCAT(@@GLOBAL.read_only) IN (x'30',x'4f4646') AND ";
        assert!(facts.guard().starts_with(start), "{}", facts.guard());
        assert!(facts.guard().ends_with(",0,EXP(710))"), "{}", facts.guard());
    }
}
