//! Makes a server's data folder and the participant's account.
//!
//! Both kinds end in the same state: root without a password, from the unix socket only, which
//! lies in a folder that no other user can enter; and `concord`@`localhost` with what a
//! participant needs.

use std::fs;
use std::path::{Path, PathBuf};

use sqlx::mysql::MySqlConnection;

use super::folder::{ServerFolder, io_error};
use super::{
    ACCOUNT, Child, LOG_TAIL_LINES, Launch, ServerBinary, ServerError, ServerKind, log_tail, run,
};

/// Scripts that make MariaDB's own tables, in this order; the names' beginnings changed with 11.
/// These are what `mariadb-install-db` feeds to the server too. The help texts are left out.
const MARIADB_SCRIPTS: [&str; 5] = [
    "_system_tables.sql",
    "_performance_tables.sql",
    "_system_tables_data.sql",
    "maria_add_gis_sp_bootstrap.sql",
    "_sys_schema.sql",
];

/// Takes away what those scripts give to everyone on this machine: root without a password over
/// TCP, from each name of the host. The server listens before its accounts can be mended otherwise.
const ROOT_BY_SOCKET_ONLY: &str = "
delete from mysql.global_priv where User = '' or (User = 'root' and Host <> 'localhost');
delete from mysql.proxies_priv where Host <> 'localhost';
";

/// The name of that program's profile when AppArmor confines MySQL to its system folders.
const APPARMOR_PROFILE: &str = "/etc/apparmor.d/usr.sbin.mysqld";

/// Rights on business databases, for the statements of clients and for migrations.
const DATA_RIGHTS: &str = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, REFERENCES, \
     LOCK TABLES, CREATE TEMPORARY TABLES";

/// The servers' own databases. Whoever may write to `mysql` may make himself an administrator.
const SYSTEM_DATABASES: [&str; 2] = ["mysql", "sys"];

/// What is often the reason when an installed MySQL cannot use a private folder.
pub(super) fn hint(binary: &ServerBinary) -> &'static str {
    let confined = binary.kind() == ServerKind::Mysql
        && binary.path() == Path::new("/usr/sbin/mysqld")
        && Path::new(APPARMOR_PROFILE).exists();
    if confined {
        "\nAppArmor confines /usr/sbin/mysqld to its system folders; \
         `sudo aa-complain /usr/sbin/mysqld` (package apparmor-utils) lets it use others"
    } else {
        ""
    }
}

/// Makes the data folder under another name and renames it, so that one with the final name is
/// always complete.
pub(super) async fn data_folder(
    binary: &ServerBinary,
    folder: &ServerFolder,
) -> Result<(), ServerError> {
    let data = folder.data();
    if data.exists() {
        return Ok(());
    }
    let new = sweep_half_made(folder)?;
    let (program, mut args) = binary.command();
    match binary.kind() {
        ServerKind::Mysql => {
            args.push("--initialize-insecure".into());
            args.extend(folder.settings(&new));
        }
        ServerKind::Mariadb => {
            fs::create_dir(&new).map_err(io_error("cannot make the folder", &new))?;
            let script = mariadb_script(binary, folder)?;
            args.extend(folder.settings(&new));
            for arg in [
                "--bootstrap",
                "--log-warnings=0",
                "--enforce-storage-engine=",
            ] {
                args.push(arg.into());
            }
            // `--bootstrap` reads from its standard input, which only a shell can connect to a
            // file for a child that is otherwise started like all others.
            let mut words = vec!["-c".into(), "exec \"$@\" <\"$0\"".into(), script.into()];
            words.push(program.into_os_string());
            words.append(&mut args);
            return finish(folder, &new, binary, PathBuf::from("/bin/sh"), words).await;
        }
    }
    finish(folder, &new, binary, program, args).await
}

async fn finish(
    folder: &ServerFolder,
    new: &Path,
    binary: &ServerBinary,
    program: PathBuf,
    args: Vec<std::ffi::OsString>,
) -> Result<(), ServerError> {
    let output = folder.path().join("init.log");
    let launch = Launch {
        program,
        args,
        env: Vec::new(),
        output: output.clone(),
    };
    let child = Child::spawn(&launch).map_err(io_error("cannot start", binary.path()))?;
    let status = child.exited().await;
    if !status.success() {
        let log = log_tail(&output, LOG_TAIL_LINES);
        return Err(ServerError::Init {
            path: folder.data(),
            status,
            log,
            hint: hint(binary),
        });
    }
    fs::rename(new, folder.data()).map_err(io_error("cannot rename", new))
}

/// Removes what interrupted attempts left and names the next one.
fn sweep_half_made(folder: &ServerFolder) -> Result<PathBuf, ServerError> {
    let entries = fs::read_dir(folder.path()).map_err(io_error("cannot read", folder.path()))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("data.new-") {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(io_error("cannot remove", &path))?;
        }
    }
    Ok(folder
        .path()
        .join(format!("data.new-{}", std::process::id())))
}

/// Writes the whole text that makes MariaDB's own tables into one file.
fn mariadb_script(binary: &ServerBinary, folder: &ServerFolder) -> Result<PathBuf, ServerError> {
    let share = ["share/mysql", "share/mariadb", "share"]
        .map(|name| binary.basedir().join(name))
        .into_iter()
        .find(|share| share.join("maria_add_gis_sp_bootstrap.sql").is_file())
        .unwrap_or_else(|| binary.basedir().join("share"));
    let mut text =
        String::from("create database mysql;\nuse mysql;\nset @auth_root_socket=NULL;\n");
    for suffix in MARIADB_SCRIPTS {
        let found = ["", "mysql", "mariadb"]
            .map(|prefix| share.join(format!("{prefix}{suffix}")))
            .into_iter()
            .find(|path| path.is_file());
        let path = found.ok_or_else(|| ServerError::NoScript {
            suffix,
            folder: share.clone(),
        })?;
        let bytes = fs::read(&path).map_err(io_error("cannot read", &path))?;
        text.push_str(&String::from_utf8_lossy(&bytes));
        text.push('\n');
    }
    text.push_str(ROOT_BY_SOCKET_ONLY);
    let script = folder.path().join("tmp/init.sql");
    fs::write(&script, text).map_err(io_error("cannot write", &script))?;
    Ok(script)
}

/// Makes the participant's account, or mends a half-made one: it can only log in once it has all
/// its rights. Root loses every way in but the socket.
pub(super) async fn make_account(
    root: &mut MySqlConnection,
    kind: ServerKind,
    password: &str,
) -> Result<(), sqlx::Error> {
    let account = format!("'{ACCOUNT}'@'localhost'");
    let rights = match kind {
        // The binary log and read-only state of the server are part of a preflight.
        ServerKind::Mysql => "PROCESS, XA_RECOVER_ADMIN, CONNECTION_ADMIN, REPLICATION CLIENT",
        ServerKind::Mariadb => "PROCESS, CONNECTION ADMIN, BINLOG MONITOR",
    };
    let create =
        format!("CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '{password}' ACCOUNT LOCK");
    run(root, create).await?;
    run(root, format!("GRANT {rights} ON *.* TO {account}")).await?;
    run(root, format!("GRANT {DATA_RIGHTS} ON `%`.* TO {account}")).await?;
    run(root, format!("GRANT ALL ON `concord%`.* TO {account}")).await?;
    for database in SYSTEM_DATABASES {
        // Of several grants that match a database, only the most exact one counts, on both kinds
        // of server. So this nearly empty one takes the system databases out of `%`.
        run(
            root,
            format!("GRANT SHOW VIEW ON `{database}`.* TO {account}"),
        )
        .await?;
    }
    for host in other_hosts_of_root(root).await? {
        // Host names come from the server's own table and may hold a quote only by malice.
        run(
            root,
            format!("DROP USER IF EXISTS 'root'@'{}'", host.replace('\'', "''")),
        )
        .await?;
    }
    run(
        root,
        format!("ALTER USER {account} IDENTIFIED BY '{password}' ACCOUNT UNLOCK"),
    )
    .await
}

async fn other_hosts_of_root(root: &mut MySqlConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT CAST(Host AS CHAR) FROM mysql.user WHERE User = 'root' AND Host <> 'localhost'",
    )
    .fetch_all(root)
    .await
}
