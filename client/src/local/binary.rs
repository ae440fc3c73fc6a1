//! Finds MySQL and MariaDB server programs and knows how each is started.
//!
//! Three shapes are understood: a program installed in the system, a path to one, and a folder
//! into which packages of another Debian release were unpacked (`deploy/servers` makes these).
//! The last runs through its own dynamic loader, because its C library is newer than the
//! machine's. This module starts no server.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Folders with servers that are often not in a user's `PATH`.
const SYSTEM_FOLDERS: [&str; 4] = [
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/libexec",
    "/usr/local/mysql/bin",
];

/// Names of the dynamic loader, per machine type, inside `usr/lib/<triple>` of an unpacked tree.
const LOADERS: [(&str, &str); 2] = [
    ("x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
    ("aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
];

/// The two kinds of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerKind {
    /// Oracle's MySQL and its close builds.
    Mysql,
    /// MariaDB.
    Mariadb,
}

impl ServerKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mysql, Self::Mariadb];

    /// Program names, best first. MariaDB installs `mysqld` too, as a link to itself.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Mysql => &["mysqld"],
            Self::Mariadb => &["mariadbd", "mysqld"],
        }
    }

    /// Folders that `deploy/servers` unpacks this kind into, below the cache.
    fn cached(self) -> &'static str {
        match self {
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb11",
        }
    }

    /// The variable by which the test runner names the server of this kind.
    fn test_variable(self) -> &'static str {
        match self {
            Self::Mysql => "CONCORD_TEST_MYSQL",
            Self::Mariadb => "CONCORD_TEST_MARIADB",
        }
    }
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb",
        })
    }
}

/// Why no server program can be used.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// Nothing of the wanted kind is there.
    #[error(
        "no {kind} server found in PATH, {folders}, or {cache}; `deploy/servers {kind}` gets one"
    )]
    NotFound {
        /// What was looked for.
        kind: ServerKind,
        /// System folders that were looked at.
        folders: String,
        /// The unpacked tree that was looked for.
        cache: String,
    },
    /// The given path holds no server.
    #[error("{path} is neither a server program nor a folder with usr/sbin/mysqld or mariadbd")]
    NotAServer {
        /// The path.
        path: PathBuf,
    },
    /// The program is there but cannot say its version.
    #[error("{path} does not run: {reason}")]
    DoesNotRun {
        /// The path.
        path: PathBuf,
        /// Its last words.
        reason: String,
    },
    /// The program could not be started.
    #[error("cannot run {path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A server program that has been seen to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerBinary {
    kind: ServerKind,
    version: String,
    path: PathBuf,
    words: Vec<OsString>,
    basedir: PathBuf,
}

impl ServerBinary {
    /// Finds a server by what a user may write: `mysql`, `mariadb`, or a path to a program or to
    /// an unpacked tree.
    pub fn discover(wanted: &str) -> Result<Self, BinaryError> {
        match wanted {
            "mysql" => Self::of_kind(ServerKind::Mysql),
            "mariadb" => Self::of_kind(ServerKind::Mariadb),
            path => Self::at(Path::new(path)),
        }
    }

    /// Finds a server of one kind: installed in the system, else in the cache.
    pub fn of_kind(kind: ServerKind) -> Result<Self, BinaryError> {
        let search = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&search).chain(SYSTEM_FOLDERS.map(PathBuf::from));
        for folder in folders {
            for program in kind.programs() {
                let path = folder.join(program);
                if !path.is_file() {
                    continue;
                }
                match Self::at(&path) {
                    Ok(found) if found.kind == kind => return Ok(found),
                    // A program of the other kind, or a broken one: another may be better.
                    _ => {}
                }
            }
        }
        let tree = cache_folder().join(kind.cached());
        if tree.is_dir() {
            return Self::at(&tree);
        }
        Err(BinaryError::NotFound {
            kind,
            folders: SYSTEM_FOLDERS.join(", "),
            cache: tree.display().to_string(),
        })
    }

    /// Uses the program, or the unpacked tree, at a path.
    pub fn at(path: &Path) -> Result<Self, BinaryError> {
        let path = path.canonicalize().map_err(|source| BinaryError::Io {
            path: path.to_owned(),
            source,
        })?;
        let (program, tree) = if path.is_dir() {
            let program = ["usr/sbin/mariadbd", "usr/sbin/mysqld"]
                .map(|name| path.join(name))
                .into_iter()
                .find(|program| program.is_file());
            let Some(program) = program else {
                return Err(BinaryError::NotAServer { path });
            };
            (program, Some(path.clone()))
        } else {
            let tree = path.ancestors().nth(3).map(Path::to_owned);
            (
                path.clone(),
                tree.filter(|tree| path.starts_with(tree.join("usr"))),
            )
        };
        let words = match tree
            .filter(|tree| tree != Path::new("/"))
            .and_then(|t| loader(&t))
        {
            Some((loader, libraries)) => vec![
                loader.into_os_string(),
                OsString::from("--library-path"),
                libraries.into_os_string(),
                program.clone().into_os_string(),
            ],
            None => vec![program.clone().into_os_string()],
        };
        let basedir = program
            .ancestors()
            .nth(2)
            .unwrap_or(Path::new("/usr"))
            .to_owned();
        let (kind, version) = ask_version(&words, &program)?;
        Ok(Self {
            kind,
            version,
            path,
            words,
            basedir,
        })
    }

    /// The servers that the tests are to run on: those that `CONCORD_TEST_MYSQL` and
    /// `CONCORD_TEST_MARIADB` name (`skip` leaves a kind out), else whatever is found. A named
    /// server that does not work is an error, because it must fail the tests, not shrink them.
    pub fn under_test() -> Result<Vec<Self>, BinaryError> {
        let mut found = Vec::new();
        for kind in ServerKind::ALL {
            match env::var(kind.test_variable()) {
                Ok(word) if word == "skip" => {}
                Ok(path) if !path.is_empty() => found.push(Self::discover(&path)?),
                _ => found.extend(Self::of_kind(kind).ok()),
            }
        }
        Ok(found)
    }

    /// MySQL or MariaDB.
    pub fn kind(&self) -> ServerKind {
        self.kind
    }

    /// Its version as it says it, for example `10.11.19-MariaDB-0+deb12u1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The path that it was found at; [`ServerBinary::discover`] understands it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that holds its `share` and `lib`.
    pub fn basedir(&self) -> &Path {
        &self.basedir
    }

    /// The program to execute and the arguments that always come first: those of the loader, no
    /// option files of this machine, and where its parts are.
    pub fn command(&self) -> (PathBuf, Vec<OsString>) {
        let mut words = self.words.iter().cloned();
        let program = words.next().map(PathBuf::from).unwrap_or_default();
        let mut args: Vec<OsString> = words.collect();
        args.push("--no-defaults".into());
        let mut basedir = OsString::from("--basedir=");
        basedir.push(&self.basedir);
        args.push(basedir);
        (program, args)
    }
}

impl FromStr for ServerBinary {
    type Err = BinaryError;

    fn from_str(wanted: &str) -> Result<Self, BinaryError> {
        Self::discover(wanted)
    }
}

/// Where unpacked servers and tools of the tests live.
pub fn cache_folder() -> PathBuf {
    if let Some(folder) = env::var_os("CONCORD_CACHE").filter(|folder| !folder.is_empty()) {
        return folder.into();
    }
    let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    home.join(".cache/concord")
}

fn loader(tree: &Path) -> Option<(PathBuf, PathBuf)> {
    LOADERS.iter().find_map(|(triple, name)| {
        let libraries = tree.join("usr/lib").join(triple);
        let loader = libraries.join(name);
        loader.is_file().then_some((loader, libraries))
    })
}

fn ask_version(words: &[OsString], program: &Path) -> Result<(ServerKind, String), BinaryError> {
    let output = Command::new(&words[0])
        .args(&words[1..])
        .args(["--no-defaults", "--version"])
        .output()
        .map_err(|source| BinaryError::Io {
            path: program.to_owned(),
            source,
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| BinaryError::DoesNotRun {
        path: program.to_owned(),
        reason: String::from_utf8_lossy(&output.stderr)
            .lines()
            .last()
            .unwrap_or("it does not say its version")
            .to_owned(),
    })
}

/// Reads `… Ver 10.11.19-MariaDB-0+deb12u1 for …` and `… Ver 9.7.4-2 for …`.
fn parse_version(text: &str) -> Option<(ServerKind, String)> {
    let version = text.split_once("Ver ")?.1.split_ascii_whitespace().next()?;
    version
        .starts_with(|first: char| first.is_ascii_digit())
        .then(|| {
            let kind = if version.to_ascii_lowercase().contains("mariadb") {
                ServerKind::Mariadb
            } else {
                ServerKind::Mysql
            };
            (kind, version.to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_tell_the_kinds_apart() {
        let mariadb = "/usr/sbin/mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu";
        assert_eq!(
            parse_version(mariadb),
            Some((ServerKind::Mariadb, "10.11.19-MariaDB-0+deb12u1".into()))
        );
        let mysql = "usr/sbin/mysqld  Ver 9.7.4-2 for Linux on x86_64 ((Debian))";
        assert_eq!(
            parse_version(mysql),
            Some((ServerKind::Mysql, "9.7.4-2".into()))
        );
        assert_eq!(parse_version("GNU bash, version 5"), None);
        assert_eq!(parse_version("x Ver unknown"), None);
    }

    #[test]
    fn what_is_no_server_is_refused() {
        let missing = ServerBinary::discover("/nonexistent/mysqld");
        assert!(matches!(missing, Err(BinaryError::Io { .. })));
        let folder = ServerBinary::discover("/etc");
        assert!(matches!(folder, Err(BinaryError::NotAServer { .. })));
        let other = ServerBinary::discover("/bin/true");
        assert!(
            matches!(other, Err(BinaryError::DoesNotRun { .. })),
            "{other:?}"
        );
    }
}
