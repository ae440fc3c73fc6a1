//! TLS of a daemon: one identity and one authority, for its listener and for what it connects to.
//!
//! It reads files and builds what tonic wants. It refuses half a configuration, and a key that
//! everybody can read; without any configuration there is no TLS.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::secret::{self, SecretError};

/// The section `[tls]` of a daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file with this daemon's certificate, and those that lead to its authority.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the certificate's key; not readable by everybody.
    pub key_file: Option<PathBuf>,
    /// PEM file with the authority that others' certificates must come from.
    pub ca_file: Option<PathBuf>,
    /// Whether clients of the listener must have a certificate of that authority.
    pub require_client_cert: bool,
    /// Name in the certificate of a server that is connected to, when it is not its host name.
    pub server_name: Option<String>,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            cert_file: None,
            key_file: None,
            ca_file: None,
            // Whoever can call a participant can abort every transaction.
            require_client_cert: true,
            server_name: None,
        }
    }
}

/// Why there is no TLS although it is configured.
#[derive(Debug, Error)]
pub enum TlsError {
    /// One of two settings is given.
    #[error("tls.{given} is set and tls.{missing} is not; set both or none")]
    Incomplete {
        /// What is given.
        given: &'static str,
        /// What is missing.
        missing: &'static str,
    },
    /// Client certificates cannot be checked.
    #[error(
        "tls.require_client_cert needs tls.ca_file, the authority of the clients' certificates; \
         set it, or set tls.require_client_cert = false"
    )]
    NoAuthority,
    /// A file cannot be read.
    #[error("cannot read {path}, which is tls.{setting}")]
    Unreadable {
        /// The setting that names it.
        setting: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key cannot be had.
    #[error("tls.key_file cannot be used")]
    Key(#[from] SecretError),
}

impl TlsConfig {
    /// TLS of the listener; none without a certificate.
    pub fn server(&self) -> Result<Option<ServerTlsConfig>, TlsError> {
        let Some(identity) = self.identity()? else {
            return Ok(None);
        };
        let tls = ServerTlsConfig::new().identity(identity);
        match (self.authority()?, self.require_client_cert) {
            (Some(authority), required) => Ok(Some(
                tls.client_ca_root(authority)
                    .client_auth_optional(!required),
            )),
            (None, true) => Err(TlsError::NoAuthority),
            (None, false) => Ok(Some(tls)),
        }
    }

    /// TLS of a connection to another daemon; none without an authority to trust.
    pub fn client(&self) -> Result<Option<ClientTlsConfig>, TlsError> {
        let identity = self.identity()?;
        let Some(authority) = self.authority()? else {
            return Ok(None);
        };
        let mut tls = ClientTlsConfig::new().ca_certificate(authority);
        if let Some(identity) = identity {
            tls = tls.identity(identity);
        }
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        Ok(Some(tls))
    }

    fn identity(&self) -> Result<Option<Identity>, TlsError> {
        let incomplete = |given, missing| Err(TlsError::Incomplete { given, missing });
        match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => {
                let cert = read("cert_file", cert)?;
                Ok(Some(Identity::from_pem(cert, secret::read(key)?.reveal())))
            }
            (None, None) => Ok(None),
            (Some(_), None) => incomplete("cert_file", "key_file"),
            (None, Some(_)) => incomplete("key_file", "cert_file"),
        }
    }

    fn authority(&self) -> Result<Option<Certificate>, TlsError> {
        let read = |path: &PathBuf| read("ca_file", path).map(Certificate::from_pem);
        self.ca_file.as_ref().map(read).transpose()
    }
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let path = path.to_owned();
    fs::read(&path).map_err(|source| TlsError::Unreadable {
        setting,
        path,
        source,
    })
}

#[cfg(test)]
mod tests;
