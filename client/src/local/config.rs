//! Writes the configuration files of a local cluster's daemons.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::{Table, Value};

use super::server::ACCOUNT;
use super::state::replace;

/// Connections that a participant may open to its server. The servers of a local cluster accept
/// more, so that people can look in at any load.
const MAX_CONNECTIONS: u32 = 100;

/// A participant's configuration file.
#[derive(Debug, Serialize)]
pub struct ParticipantConfig {
    name: String,
    cluster: String,
    listen: String,
    listen_socket: PathBuf,
    coordinator: String,
    server: ServerConfig,
}

#[derive(Debug, Serialize)]
struct ServerConfig {
    socket: PathBuf,
    user: &'static str,
    password_file: PathBuf,
    max_connections: u32,
}

impl ParticipantConfig {
    /// A participant that reaches its server by a unix socket, and is reached by one.
    pub fn new(
        name: &str,
        cluster: &str,
        (listen, listen_socket): (String, PathBuf),
        coordinator: String,
        (socket, password_file): (PathBuf, PathBuf),
    ) -> Self {
        let server = ServerConfig {
            socket,
            user: ACCOUNT,
            password_file,
            max_connections: MAX_CONNECTIONS,
        };
        Self {
            name: name.into(),
            cluster: cluster.into(),
            listen,
            listen_socket,
            coordinator,
            server,
        }
    }
}

/// The coordinator's configuration file.
#[derive(Debug, Serialize)]
pub struct CoordinatorConfig {
    /// The cluster's name.
    pub cluster: String,
    /// Where the gateway listens.
    pub listen: String,
    /// Its unix socket, where the path is not too long for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_socket: Option<PathBuf>,
    /// Where the decision log lives.
    pub data_dir: PathBuf,
    /// All participants, in the order that the hash slots are dealt out.
    pub participants: Vec<ParticipantAddress>,
}

/// Where the coordinator finds a participant.
#[derive(Debug, Serialize)]
pub struct ParticipantAddress {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub address: String,
}

/// Writes a configuration file as a whole. Settings of the user's `own` file, if there is one, take
/// the place of ours.
pub fn write(file: &Path, config: &impl Serialize, own: &Path) -> io::Result<()> {
    let mut text = toml::to_string(config).map_err(io::Error::other)?;
    match fs::read_to_string(own) {
        Ok(wanted) => {
            let wanted = wanted.parse().map_err(io::Error::other)?;
            let mut settings = text.parse().map_err(io::Error::other)?;
            lay_over(&mut settings, wanted);
            text = toml::to_string(&settings).map_err(io::Error::other)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    replace(
        file,
        &format!("# Written by `concord up` at every start; changes are lost.\n{text}"),
    )
}

/// Puts every setting of `wanted` into `settings`, table by table.
fn lay_over(settings: &mut Table, wanted: Table) {
    for (name, value) in wanted {
        match (settings.get_mut(&name), value) {
            (Some(Value::Table(inner)), Value::Table(wanted)) => lay_over(inner, wanted),
            (_, value) => drop(settings.insert(name, value)),
        }
    }
}

/// Makes a folder for this user alone, unless it is there.
pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_shape_that_the_daemons_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p1.toml");
        let config = ParticipantConfig::new(
            "p1",
            "local",
            ("127.0.0.1:7411".into(), "/a/server.link".into()),
            "http://127.0.0.1:7400".into(),
            ("/a/server.sock".into(), "/a/password".into()),
        );
        let none = folder.path().join("none.toml");
        write(&file, &config, &none).unwrap();
        let expected = "# Written by `concord up` at every start; changes are lost.\n\
            name = \"p1\"\ncluster = \"local\"\nlisten = \"127.0.0.1:7411\"\n\
            listen_socket = \"/a/server.link\"\ncoordinator = \"http://127.0.0.1:7400\"\n\n\
            [server]\nsocket = \"/a/server.sock\"\n\
            user = \"concord\"\npassword_file = \"/a/password\"\nmax_connections = 100\n";
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);

        let config = CoordinatorConfig {
            cluster: "local".into(),
            listen: "127.0.0.1:7400".into(),
            listen_socket: None,
            data_dir: "/a/coordinator".into(),
            participants: vec![ParticipantAddress {
                name: "p1".into(),
                address: "http://127.0.0.1:7411".into(),
            }],
        };
        write(&file, &config, &none).unwrap();
        let expected = "# Written by `concord up` at every start; changes are lost.\n\
            cluster = \"local\"\nlisten = \"127.0.0.1:7400\"\ndata_dir = \"/a/coordinator\"\n\n\
            [[participants]]\nname = \"p1\"\naddress = \"http://127.0.0.1:7411\"\n";
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    }

    #[test]
    fn a_users_own_settings_take_the_place_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let (file, own) = (
            folder.path().join("p1.toml"),
            folder.path().join("own.toml"),
        );
        fs::write(&own, "sweep_interval_ms = 100\n[server]\nsocket = \"/b\"\n").unwrap();
        let config = ParticipantConfig::new(
            "p1",
            "local",
            ("127.0.0.1:7411".into(), "/a/server.link".into()),
            "http://127.0.0.1:7400".into(),
            ("/a/server.sock".into(), "/a/password".into()),
        );
        write(&file, &config, &own).unwrap();
        let read: Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        assert_eq!(read["sweep_interval_ms"].as_integer(), Some(100));
        assert_eq!(read["server"]["socket"].as_str(), Some("/b"));
        assert_eq!(read["server"]["user"].as_str(), Some("concord"));
        fs::write(&own, "not toml").unwrap();
        assert!(write(&file, &config, &own).is_err());
    }
}
