//! Where the database is: a URL as `libpq` reads it, and how its server proves who it is.

use std::path::PathBuf;
use std::time::Duration;

/// For how long a connection may take to be made, where the URL's `connect_timeout` does not tell.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How an index in PostgreSQL is reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server or servers, and who we are.
    pub(super) server: tokio_postgres::Config,
    /// The same, server by server.
    pub(super) each: Vec<tokio_postgres::Config>,
    /// How the connection is secured.
    pub(super) security: Security,
    /// PEM file of who may sign the server's certificate.
    pub(super) ca_file: Option<PathBuf>,
    /// The most connections that this process opens.
    pub(super) connections: usize,
    /// For how long a call may take that no client waits for, whatever is in its way.
    pub(super) patience: Duration,
    /// The identity of this process's volume.
    pub(super) volume: u128,
}

/// `sslmode`, as `libpq` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// No TLS.
    Disable,
    /// TLS if the server has it, with whoever it is.
    Prefer,
    /// TLS, with whoever it is; with a CA file, as [`Security::VerifyCa`].
    Require,
    /// TLS with a server whose certificate the CA file's authorities signed.
    VerifyCa,
    /// TLS with such a server, of the right name.
    VerifyFull,
}

impl Config {
    /// For a process with this volume: what it stores and evicts is that volume's. Where nobody says,
    /// all have the same.
    #[must_use]
    pub fn on_volume(self, identity: u128) -> Self {
        Self { volume: identity, ..self }
    }

    /// Reads `postgres://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE?…`. Besides what the driver
    /// knows, `sslmode` may be `verify-ca` or `verify-full`, with `sslrootcert`. `connections` is the
    /// most that are opened, `patience` for how long a call may take that no client waits for.
    ///
    /// # Errors
    /// In words, without the URL, which may hold a password.
    pub fn parse(url: &str, connections: usize, patience: Duration) -> Result<Self, String> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut security, mut ca_file, mut rest) = (Security::Prefer, None, Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", mode)) => security = Security::parse(mode)?,
                Some(("sslrootcert", path)) => ca_file = Some(PathBuf::from(decoded(path)?)),
                _ => rest.push(parameter),
            }
        }
        if security == Security::Require && ca_file.is_some() {
            security = Security::VerifyCa;
        }
        let verifies = matches!(security, Security::VerifyCa | Security::VerifyFull);
        if verifies && ca_file.is_none() {
            return Err("sslmode=verify-… needs sslrootcert=FILE".to_owned());
        }
        let driver = |base: &str| -> Result<tokio_postgres::Config, String> {
            let url = format!("{base}?{}", rest.join("&"));
            let mut server: tokio_postgres::Config =
                url.parse().map_err(|error| super::health::reasons(&error))?;
            server.ssl_mode(security.driver_mode());
            if server.get_connect_timeout().is_none() {
                server.connect_timeout(CONNECT_TIMEOUT);
            }
            if server.get_application_name().is_none() {
                server.application_name("aptmesh");
            }
            Ok(server)
        };
        let server = driver(base)?;
        let each = each_host(base).iter().map(|base| driver(base)).collect::<Result<_, _>>()?;
        Ok(Self { server, each, security, ca_file, connections, patience, volume: 0 })
    }

    /// For how long a connection may take to be made.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.server.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT)
    }
}

impl Security {
    fn parse(mode: &str) -> Result<Self, String> {
        Ok(match mode {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                let modes = "disable, prefer, require, verify-ca or verify-full";
                return Err(format!("sslmode must be {modes}"));
            }
        })
    }

    fn driver_mode(self) -> tokio_postgres::config::SslMode {
        match self {
            Self::Disable => tokio_postgres::config::SslMode::Disable,
            Self::Prefer => tokio_postgres::config::SslMode::Prefer,
            Self::Require | Self::VerifyCa | Self::VerifyFull => {
                tokio_postgres::config::SslMode::Require
            }
        }
    }
}

/// A URL for each of the hosts that stand in one, separated by commas.
fn each_host(base: &str) -> Vec<String> {
    let split = || {
        let (scheme, rest) = base.split_once("://")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let at = authority.rfind('@').map_or(0, |at| at + 1);
        let (user, hosts) = authority.split_at_checked(at)?;
        let one = |host: &str| format!("{scheme}://{user}{host}/{path}");
        Some(hosts.split(',').map(one).collect())
    };
    split().unwrap_or_else(|| vec![base.to_owned()])
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| "sslrootcert is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Config, String> {
        Config::parse(url, 8, Duration::from_secs(1))
    }

    #[test]
    fn what_libpq_writes_is_understood() {
        let url = "postgres://me:se%40cret@db:6432/apt?sslmode=verify-full&sslrootcert=%2Fca.pem\
                   &connect_timeout=3";
        let config = parse(url).unwrap();
        assert_eq!(config.security, Security::VerifyFull);
        assert_eq!(config.ca_file, Some(PathBuf::from("/ca.pem")));
        assert_eq!(config.connect_timeout(), Duration::from_secs(3));
        assert_eq!(config.server.get_password(), Some(b"se@cret".as_slice()));
        assert!(!format!("{config:?}").contains("cret@"), "{config:?}");
        assert_eq!(parse("postgresql://db/apt").unwrap().security, Security::Prefer);
    }

    #[test]
    fn each_of_several_hosts_is_known() {
        let url = "postgres://me:a,b@one,two:6432,[::1]:7/apt?target_session_attrs=read-write";
        let config = parse(url).unwrap();
        assert_eq!(config.server.get_hosts().len(), 3);
        let ports: Vec<&[u16]> = config.each.iter().map(|one| one.get_ports()).collect();
        assert_eq!(ports, [[5432], [6432], [7]]);
        for one in &config.each {
            assert_eq!((one.get_hosts().len(), one.get_dbname()), (1, Some("apt")));
            assert_eq!(one.get_password(), Some(b"a,b".as_slice()));
            assert_eq!(one.get_target_session_attrs(), config.server.get_target_session_attrs());
        }
    }

    #[test]
    fn a_ca_file_makes_require_verify() {
        let config = parse("postgres://db/apt?sslmode=require&sslrootcert=/ca.pem").unwrap();
        assert_eq!(config.security, Security::VerifyCa);
    }

    #[test]
    fn what_is_wrong_is_told_without_the_password() {
        for wrong in
            ["sslmode=verify-full", "sslmode=allow", "sslmode=require&port=x", "nonsense=1"]
        {
            let why = parse(&format!("postgres://me:secret@db/apt?{wrong}")).unwrap_err();
            assert!(!why.contains("secret") && !why.is_empty(), "{why}");
        }
    }
}
