//! Texts into values; what does not fit is noted, and the rest read on.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use url::Url;

use crate::archive::groups::Groups;
use crate::archive::signature::Keyring;
use crate::config::POOL_MAX;
use crate::config::bytes::Bytes;
use crate::config::keyrings;
use crate::engine::suites::judge::Verify;
use crate::engine::volume::limits::MinFree;
use crate::index::{self, postgres, sqlite};
use crate::telemetry::logs;

/// Reads values by key and notes their faults. A value with a fault is stood in for by one that is
/// never used, since faults end the start.
pub(super) struct Reader<'a> {
    pub(super) texts: &'a BTreeMap<&'static str, String>,
    pub(super) faults: &'a mut Vec<String>,
}

/// What a value with a fault is until the faults are told.
pub(super) trait StandIn {
    fn stand_in() -> Self;
}

impl StandIn for std::net::SocketAddr {
    fn stand_in() -> Self {
        (std::net::Ipv4Addr::LOCALHOST, 0).into()
    }
}

impl StandIn for PathBuf {
    fn stand_in() -> Self {
        Self::new()
    }
}

impl StandIn for usize {
    fn stand_in() -> Self {
        1
    }
}

impl Reader<'_> {
    pub(super) fn text(&self, key: &str) -> String {
        self.texts.get(key).map(|text| text.trim().to_owned()).unwrap_or_default()
    }

    /// Notes a fault of this `text`, of which credentials are not repeated.
    pub(super) fn fault(&mut self, key: &str, text: &str, why: impl Display) {
        self.faults.push(format!("{key}: {:?}: {why}", without_credentials(text)));
    }

    pub(super) fn value<T: FromStr<Err: Display> + StandIn>(&mut self, key: &str) -> T {
        let text = self.text(key);
        if text.is_empty() || text == "0" {
            self.fault(key, &text, "must not be empty or zero");
            return T::stand_in();
        }
        text.parse().unwrap_or_else(|why| {
            self.fault(key, &text, why);
            T::stand_in()
        })
    }

    pub(super) fn number(&mut self, key: &str, max: usize) -> usize {
        let number = self.value(key);
        if number > max {
            let text = self.text(key);
            self.fault(key, &text, format!("at most {max}"));
        }
        number
    }

    pub(super) fn optional<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<T> {
        let text = self.text(key);
        if text.is_empty() {
            return None;
        }
        match text.parse() {
            Ok(value) => Some(value),
            // The text may be a secret.
            Err(why) => {
                self.faults.push(format!("{key}: {why}"));
                None
            }
        }
    }

    pub(super) fn proxy(&mut self, key: &str) -> Option<Url> {
        let url: Url = self.optional(key)?;
        if matches!(url.scheme(), "http" | "https") && url.has_host() {
            return Some(url);
        }
        // The text may be a secret.
        self.faults.push(format!("{key}: write http://HOST:PORT"));
        None
    }

    /// A URL under which others reach this process.
    pub(super) fn advertised(&mut self, key: &str) -> Option<String> {
        let url: Url = self.optional(key)?;
        let text = self.text(key);
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || url.port() == Some(0) {
            self.fault(key, &text, "write http://HOST:PORT");
        }
        if !self.text("index.url").starts_with("postgres") {
            self.fault(key, &text, "only replicas that share an index in PostgreSQL have fellows");
        }
        Some(text)
    }

    pub(super) fn list<T: FromStr<Err: Display>>(&mut self, key: &str) -> Vec<T> {
        let text = self.text(key);
        let mut values = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item.parse() {
                Ok(value) => values.push(value),
                Err(why) => self.fault(key, item, why),
            }
        }
        values
    }

    pub(super) fn flag(&mut self, key: &str) -> bool {
        let text = self.text(key);
        if !matches!(text.as_str(), "true" | "false") {
            self.fault(key, &text, "write true or false");
        }
        text == "true"
    }

    pub(super) fn duration(&mut self, key: &str) -> Duration {
        let text = self.text(key);
        if text == "0" {
            return Duration::ZERO;
        }
        humantime::parse_duration(&text).unwrap_or_else(|why| {
            self.fault(key, &text, format!("{why}; write 10s, 500ms, 2m"));
            Duration::ZERO
        })
    }

    /// A duration that must not be none.
    pub(super) fn some_time(&mut self, key: &str) -> Duration {
        let duration = self.duration(key);
        let text = self.text(key);
        if duration.is_zero() && humantime::parse_duration(&text).is_ok() {
            self.fault(key, &text, "must be longer");
        }
        duration
    }

    pub(super) fn index(&mut self, key: &str, data: &Path) -> index::Config {
        let text = self.text(key);
        let pool = self.number("index.pool", POOL_MAX);
        let patience = self.some_time("index.timeout");
        let parsed = match (text.split_once(':'), text.is_empty()) {
            (_, true) => Ok(index::Config::Sqlite(sqlite::Config::File(data.join("index.sqlite")))),
            (Some(("sqlite", path)), _) if !path.is_empty() => {
                Ok(index::Config::Sqlite(sqlite::Config::File(path.into())))
            }
            (Some(("postgres" | "postgresql", _)), _) => {
                let config = postgres::Config::parse(&text, pool, patience);
                config.map(|config| index::Config::Postgres(Box::new(config)))
            }
            _ => Err("write sqlite:PATH or postgres://USER@HOST/DATABASE".to_owned()),
        };
        parsed.unwrap_or_else(|why| {
            // The text may hold a password.
            self.faults.push(format!("{key}: {why}"));
            index::Config::Sqlite(sqlite::Config::Memory)
        })
    }

    pub(super) fn quota(&mut self, key: &str) -> Option<u64> {
        let Bytes(quota) = self.optional(key)?;
        if quota == 0 {
            self.fault(key, "0", "must not be zero; leave it empty for no bound");
        }
        Some(quota)
    }

    /// Bytes; 0 where it is empty.
    pub(super) fn bytes(&mut self, key: &str) -> u64 {
        self.optional(key).map_or(0, |Bytes(bytes)| bytes)
    }

    pub(super) fn folders(&mut self, key: &str, data: &Path) -> Vec<PathBuf> {
        let folders: Vec<PathBuf> = self.list(key);
        for folder in &folders {
            let text = folder.display().to_string();
            if !folder.is_absolute() {
                self.fault(key, &text, "write absolute paths");
            } else if folder.starts_with(data) {
                self.fault(key, &text, "lies in data.dir, which holds what is stored");
            }
        }
        folders
    }

    /// Bytes per second.
    pub(super) fn rate(&mut self, key: &str) -> u64 {
        let text = self.text(key);
        let bytes = text.strip_suffix("/s").unwrap_or(&text);
        let parsed = bytes.parse().unwrap_or_else(|_| {
            self.fault(key, &text, "write bytes per second, such as 10MiB/s");
            Bytes::default()
        });
        parsed.0
    }

    /// Bytes a second, with or without `/s`; 0: no limit.
    pub(super) fn upload_limit(&mut self, key: &str) -> u64 {
        if self.text(key).is_empty() { 0 } else { self.rate(key) }
    }

    pub(super) fn min_free(&mut self, key: &str) -> MinFree {
        let text = self.text(key);
        let parsed = match text.strip_suffix('%').map(str::parse) {
            Some(Ok(percent @ 0..=90)) => Ok(MinFree::Percent(percent)),
            Some(_) => Err("write 0% to 90%"),
            None => text.parse().map(|Bytes(bytes)| MinFree::Bytes(bytes)),
        };
        parsed.unwrap_or_else(|why| {
            self.fault(key, &text, format!("{why}, or a part of the volume, such as 5%"));
            MinFree::default()
        })
    }

    pub(super) fn verify(&mut self, key: &str) -> Verify {
        match self.text(key).as_str() {
            "off" => Verify::Off,
            "auto" => Verify::Auto,
            "enforce" => Verify::Enforce,
            other => {
                self.fault(key, other, "write off, auto or enforce");
                Verify::Auto
            }
        }
    }

    pub(super) fn keyring(&mut self, key: &str) -> Keyring {
        let named: Vec<PathBuf> = self.list(key);
        keyrings::read(&named).unwrap_or_else(|(path, why)| {
            self.fault(key, &path.display().to_string(), why);
            Keyring::default()
        })
    }

    pub(super) fn groups(&mut self, key: &str) -> Groups {
        let groups = self.list(key);
        Groups::new(groups).unwrap_or_else(|twice| {
            self.fault(key, &twice, "is there twice");
            Groups::default()
        })
    }

    /// Whose signatures count for the groups that say so: by the beginning of their resources' names.
    pub(super) fn scopes(
        &mut self,
        key: &str,
        groups: &Groups,
        keyring: &Keyring,
    ) -> Vec<(String, Keyring)> {
        let mut scopes = Vec::new();
        for group in groups.iter().filter(|group| !group.signed_by.is_empty()) {
            let (files, names): (Vec<String>, Vec<String>) =
                group.signed_by.iter().cloned().partition(|by| by.starts_with('/'));
            let mut scope = keyring.restricted(&names);
            let files: Vec<PathBuf> = files.into_iter().map(PathBuf::from).collect();
            if let Err((path, why)) = keyrings::add_named(&mut scope, &files) {
                self.fault(key, &path.display().to_string(), why);
            } else if scope.is_empty() {
                self.fault(key, &group.signed_by.join(" "), "no such key is known");
            }
            scopes.push((group.base().to_owned(), scope));
        }
        scopes
    }

    pub(super) fn log_format(&mut self, key: &str) -> logs::Format {
        match self.text(key).as_str() {
            "text" => logs::Format::Text,
            "json" => logs::Format::Json,
            other => {
                self.fault(key, other, "write text or json");
                logs::Format::Text
            }
        }
    }

    pub(super) fn log_level(&mut self, key: &str) -> String {
        let text = self.text(key);
        logs::Config::parse_level(&text).unwrap_or_else(|why| {
            self.fault(key, &text, why);
            String::new()
        })
    }
}

/// What may be shown of a setting: of URLs neither the user's name nor the password, nor what may be half of one,
/// since lists are parted at commas.
fn without_credentials(text: &str) -> String {
    let word = |word: &str| {
        let (scheme, rest) = word.rfind("://").map_or(("", word), |at| word.split_at(at + 3));
        if let Some((_, rest)) = rest.rsplit_once('@') {
            return format!("{scheme}…@{rest}");
        }
        let host = rest.split('/').next().unwrap_or_default();
        let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        match host.rsplit_once(':') {
            Some((host, port))
                if !scheme.is_empty() && !host.starts_with('[') && !is_port(port) =>
            {
                format!("{scheme}{host}:…")
            }
            _ => word.to_owned(),
        }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// A name that no other process has: random enough to tell caches apart in `Via`.
pub(super) fn pseudonym() -> String {
    format!("aptmesh-{:08x}", RandomState::new().hash_one(std::process::id()) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_repeats_no_credentials() {
        let table = [
            ("http://me:secret@127.0.0.1:9981/", "http://…@127.0.0.1:9981/"),
            ("int http://ci:se/c@ret@r/debian ftp://x", "int http://…@r/debian ftp://x"),
            // Halves of `http://ci:sec,ret@r/debian`.
            ("int http://ci:sec", "int http://ci:…"),
            ("ret@r/debian", "…@r/debian"),
            ("http://[::1]:9981/x http://h:80/x:y", "http://[::1]:9981/x http://h:80/x:y"),
            ("12 parsecs", "12 parsecs"),
        ];
        for (text, shown) in table {
            assert_eq!(without_credentials(text), shown);
        }
    }
}
