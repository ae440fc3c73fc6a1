//! Writes the configuration files of a local cluster's daemons.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

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
    /// A participant that reaches its server by a unix socket.
    pub fn new(
        name: &str,
        cluster: &str,
        listen: String,
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

/// Writes a configuration file as a whole.
pub fn write(file: &Path, config: &impl Serialize) -> io::Result<()> {
    let text = toml::to_string(config).map_err(io::Error::other)?;
    replace(
        file,
        &format!("# Written by `concord up` at every start; changes are lost.\n{text}"),
    )
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
            "127.0.0.1:7411".into(),
            "http://127.0.0.1:7400".into(),
            ("/a/server.sock".into(), "/a/password".into()),
        );
        write(&file, &config).unwrap();
        let expected = "# Written by `concord up` at every start; changes are lost.\n\
            name = \"p1\"\ncluster = \"local\"\nlisten = \"127.0.0.1:7411\"\n\
            coordinator = \"http://127.0.0.1:7400\"\n\n[server]\nsocket = \"/a/server.sock\"\n\
            user = \"concord\"\npassword_file = \"/a/password\"\nmax_connections = 100\n";
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);

        let config = CoordinatorConfig {
            cluster: "local".into(),
            listen: "127.0.0.1:7400".into(),
            data_dir: "/a/coordinator".into(),
            participants: vec![ParticipantAddress {
                name: "p1".into(),
                address: "http://127.0.0.1:7411".into(),
            }],
        };
        write(&file, &config).unwrap();
        let expected = "# Written by `concord up` at every start; changes are lost.\n\
            cluster = \"local\"\nlisten = \"127.0.0.1:7400\"\ndata_dir = \"/a/coordinator\"\n\n\
            [[participants]]\nname = \"p1\"\naddress = \"http://127.0.0.1:7411\"\n";
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    }
}
