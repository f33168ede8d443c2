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
    /// How the connection is secured.
    pub(super) security: Security,
    /// PEM file of who may sign the server's certificate.
    pub(super) ca_file: Option<PathBuf>,
    /// The most connections that this process opens.
    pub(super) connections: usize,
    /// For how long it is waited for.
    pub(super) patience: Patience,
    /// The identity of this process's volume.
    pub(super) volume: u128,
}

/// For how long a call may take, whatever is in its way.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// One that a client waits for.
    pub client: Duration,
    /// One that no client waits for.
    pub background: Duration,
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

    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE?…`. Besides what the driver knows,
    /// `sslmode` may be `verify-ca` or `verify-full`, with `sslrootcert`. `connections` is the most
    /// that are opened.
    ///
    /// # Errors
    /// In words, without the URL, which may hold a password.
    pub fn parse(url: &str, connections: usize, patience: Patience) -> Result<Self, String> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut security, mut ca_file, mut rest) = (Security::Prefer, None, Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", mode)) => security = Security::parse(mode)?,
                Some(("sslrootcert", path)) => ca_file = Some(PathBuf::from(decoded(path)?)),
                _ => rest.push(parameter),
            }
        }
        let driver_url = format!("{base}?{}", rest.join("&"));
        let mut server: tokio_postgres::Config =
            driver_url.parse().map_err(|error| super::health::reasons(&error))?;
        if security == Security::Require && ca_file.is_some() {
            security = Security::VerifyCa;
        }
        let verifies = matches!(security, Security::VerifyCa | Security::VerifyFull);
        if verifies && ca_file.is_none() {
            return Err("sslmode=verify-… needs sslrootcert=FILE".to_owned());
        }
        server.ssl_mode(security.driver_mode());
        if server.get_connect_timeout().is_none() {
            server.connect_timeout(CONNECT_TIMEOUT);
        }
        if server.get_application_name().is_none() {
            server.application_name("aptmesh");
        }
        Ok(Self { server, security, ca_file, connections, patience, volume: 0 })
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

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| "sslrootcert is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Config, String> {
        let patience = Duration::from_secs(1);
        Config::parse(url, 8, Patience { client: patience, background: patience })
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
