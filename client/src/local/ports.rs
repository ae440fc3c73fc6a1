//! Finds out before anything is started whether every port can be had.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;

/// A port, who wants it, and the flag that chooses another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortUse {
    /// The port.
    pub port: u16,
    /// For example "participant p1".
    pub user: String,
    /// For example `--participant-port`.
    pub flag: &'static str,
}

/// Why the ports do not do.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Another program has it.
    #[error("port {port} on 127.0.0.1 is taken, and {user} wants it; choose another with {flag}")]
    Taken {
        /// The port.
        port: u16,
        /// Who wants it.
        user: String,
        /// What chooses another.
        flag: &'static str,
    },
    /// The system forbids it, for example below 1024 without root.
    #[error("{user} cannot listen on port {port}; choose another with {flag}")]
    Refused {
        /// The port.
        port: u16,
        /// Who wants it.
        user: String,
        /// What chooses another.
        flag: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Two of ours want the same.
    #[error("port {port} is wanted by {first} and by {second}; choose another with {flag}")]
    Twice {
        /// The port.
        port: u16,
        /// The one.
        first: String,
        /// The other.
        second: String,
        /// What chooses another.
        flag: &'static str,
    },
    /// A row of ports that runs past the last one.
    #[error("{count} ports from {first} on go beyond 65535; choose a lower {flag}")]
    Beyond {
        /// Where the row starts.
        first: u16,
        /// Its length.
        count: u16,
        /// What chooses another.
        flag: &'static str,
    },
}

/// The port of the `index`th of `count` processes in a row that starts at `first`.
pub fn in_row(first: u16, index: u16, count: u16, flag: &'static str) -> Result<u16, PortError> {
    match first.checked_add(count.saturating_sub(1)) {
        Some(_) if first > 0 => Ok(first + index),
        _ => Err(PortError::Beyond { first, count, flag }),
    }
}

/// Checks that all are different.
pub fn distinct(uses: &[PortUse]) -> Result<(), PortError> {
    let mut seen: BTreeMap<u16, &PortUse> = BTreeMap::new();
    for wanted in uses {
        if let Some(first) = seen.insert(wanted.port, wanted) {
            return Err(PortError::Twice {
                port: wanted.port,
                first: first.user.clone(),
                second: wanted.user.clone(),
                flag: wanted.flag,
            });
        }
    }
    Ok(())
}

/// Checks that all are different and free. Another program may still take one afterwards; then
/// the process that wanted it says so in its log.
pub fn check(uses: &[PortUse]) -> Result<(), PortError> {
    distinct(uses)?;
    for PortUse { port, user, flag } in uses {
        match TcpListener::bind(("127.0.0.1", *port)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(PortError::Taken {
                    port: *port,
                    user: user.clone(),
                    flag,
                });
            }
            Err(source) => {
                return Err(PortError::Refused {
                    port: *port,
                    user: user.clone(),
                    flag,
                    source,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port_use(port: u16, user: &str) -> PortUse {
        PortUse {
            port,
            user: user.into(),
            flag: "--gateway-port",
        }
    }

    #[test]
    fn a_taken_port_is_named_with_its_user_and_flag() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = check(&[port_use(port, "the gateway")]).unwrap_err();
        assert!(matches!(error, PortError::Taken { .. }));
        for part in [&port.to_string(), "the gateway", "--gateway-port"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        drop(listener);
        check(&[port_use(port, "the gateway")]).unwrap();
    }

    #[test]
    fn two_of_ours_on_one_port_are_noticed() {
        let error = check(&[port_use(7400, "a"), port_use(7400, "b")]).unwrap_err();
        assert!(matches!(error, PortError::Twice { port: 7400, .. }));
    }

    #[test]
    fn a_row_ends_at_the_last_port() {
        assert_eq!(in_row(7411, 1, 2, "--x").unwrap(), 7412);
        assert_eq!(in_row(65535, 0, 1, "--x").unwrap(), 65535);
        assert!(in_row(65535, 0, 2, "--x").is_err());
        assert!(in_row(0, 0, 1, "--x").is_err());
    }
}
