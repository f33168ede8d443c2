//! Where settings come from: flags, environment, one TOML file, defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::keys::{KEYS, Key};

/// The file that is read when none is named, if it is there.
const DEFAULT_FILE: &str = "/etc/aptmesh/aptmesh.toml";
/// The prefix of our variables.
const PREFIX: &str = "APTMESH_";

/// Settings given as flags, by key.
pub type Flags = BTreeMap<&'static str, String>;

/// All sources.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Flags of the command line.
    pub flags: Flags,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// The file, if one was named.
    pub file: Option<PathBuf>,
}

impl Sources {
    /// The process's own environment, with `flags` and the file named by `--config`.
    #[must_use]
    pub fn of_process(flags: Flags, file: Option<PathBuf>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { flags, environment, file }
    }

    /// Each setting's text, and what is wrong with the sources themselves.
    pub(super) fn gather(&self) -> (BTreeMap<&'static str, String>, Vec<String>) {
        let mut faults = Vec::new();
        let mut from_file = self.read_file(&mut faults);
        let mut from_environment = self.read_environment(&mut faults);
        let texts = KEYS
            .iter()
            .map(|key| {
                let set = self.flags.get(key.name).cloned();
                let set = set.or_else(|| from_environment.remove(key.name));
                let set = set.or_else(|| from_file.remove(key.name));
                let variable = |name: &str| self.environment.get(name).cloned();
                (key.name, set.unwrap_or_else(|| key.default.text(variable)))
            })
            .collect();
        (texts, faults)
    }

    fn read_environment(&self, faults: &mut Vec<String>) -> BTreeMap<&'static str, String> {
        let mut texts = BTreeMap::new();
        for (name, value) in &self.environment {
            if !name.starts_with(PREFIX) || is_service_link(name) {
                continue;
            }
            match read_variable(name, value) {
                // Compose files hand on what may not be set, as `${NAME:-}`.
                Ok((_, text)) if text.trim().is_empty() => {}
                Ok((key, text)) => drop(texts.insert(key.name, text)),
                Err(fault) => faults.push(fault),
            }
        }
        texts
    }

    fn read_file(&self, faults: &mut Vec<String>) -> BTreeMap<String, String> {
        let default = Path::new(DEFAULT_FILE);
        let path = match &self.file {
            Some(path) => path,
            None if default.exists() => default,
            None => return BTreeMap::new(),
        };
        let path_text = path.display();
        let parsed = std::fs::read_to_string(path)
            .map_err(|error| format!("could not read {path_text}: {error}"))
            .and_then(|text| {
                text.parse::<toml::Table>().map_err(|error| {
                    // Its own words repeat the line, which may hold a secret.
                    let before = error.span().and_then(|span| text.get(..span.start));
                    let line = before.unwrap_or_default().matches('\n').count() + 1;
                    format!("{path_text}: line {line}: {}", error.message())
                })
            });
        match parsed {
            Ok(table) => known_only(flatten(&table, faults), faults),
            Err(fault) => {
                faults.push(fault);
                BTreeMap::new()
            }
        }
    }
}

/// The setting that a variable is for, and its text.
fn read_variable(name: &str, value: &str) -> Result<(&'static Key, String), String> {
    if let Some(key) = key_of(name) {
        return Ok((key, value.to_owned()));
    }
    let secret = name.strip_suffix("_FILE").and_then(key_of).filter(|key| key.secret);
    let key = secret.ok_or_else(|| format!("{name}: there is no such setting"))?;
    if value.trim().is_empty() {
        return Ok((key, String::new()));
    }
    let text = std::fs::read_to_string(value)
        .map_err(|error| format!("{name}: could not read {value}: {error}"))?;
    // A secret that was not written yet is no wish to go without.
    if text.trim().is_empty() {
        return Err(format!("{name}: {value} is empty"));
    }
    Ok((key, text.trim_end().to_owned()))
}

fn key_of(variable: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.variable() == variable)
}

/// Kubernetes puts the addresses of services into the environment: of one called `aptmesh` as
/// `APTMESH_SERVICE_HOST`, `APTMESH_PORT_9977_TCP_ADDR` and so on. They are no settings of ours.
fn is_service_link(name: &str) -> bool {
    let rest = name.strip_prefix("APTMESH").unwrap_or_default();
    rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || rest.ends_with("_PORT")
        || rest.split("_PORT_").nth(1).is_some_and(|port| {
            port.split('_').next().is_some_and(|port| port.parse::<u16>().is_ok())
        })
}

/// `[section]` tables into `section.key`, every value as text, lists joined by commas.
fn flatten(table: &toml::Table, faults: &mut Vec<String>) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for (section, value) in table {
        let Some(section_table) = value.as_table() else {
            faults.push(format!("{section}: there is no such setting"));
            continue;
        };
        for (name, value) in section_table {
            let name = format!("{section}.{name}");
            match text_of(value) {
                Ok(text) => drop(texts.insert(name, text)),
                Err(why) => faults.push(format!("{name}: {why}")),
            }
        }
    }
    texts
}

fn known_only(
    mut texts: BTreeMap<String, String>,
    faults: &mut Vec<String>,
) -> BTreeMap<String, String> {
    texts.retain(|name, _| {
        let known = KEYS.iter().any(|key| key.name == name);
        if !known {
            faults.push(format!("{name}: there is no such setting"));
        }
        known
    });
    texts
}

fn text_of(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        toml::Value::Array(items) => {
            let text =
                |item: &toml::Value| item.as_table().map_or_else(|| text_of(item), group_text);
            let items: Result<Vec<String>, String> = items.iter().map(text).collect();
            items.map(|items| items.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => {
            Err("neither text, number, nor a list of such".to_owned())
        }
    }
}

/// An `[[archive.groups]]` table as the text of a group.
fn group_text(table: &toml::Table) -> Result<String, String> {
    let name = table.get("name").and_then(toml::Value::as_str).ok_or("a table without name")?;
    let mut words = vec![name.to_owned()];
    for (key, value) in table {
        let before = match key.as_str() {
            "name" => continue,
            "mirrors" => "",
            "signed_by" => "signed-by=",
            _ => return Err(format!("{key}: there is no such key")),
        };
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for value in values {
            words.push(format!("{before}{}", value.as_str().ok_or(format!("{key}: no text"))?));
        }
    }
    Ok(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn groups_may_be_written_as_tables() {
        let text = "[archive]\nverify = \"off\"\n[[archive.groups]]\nname = \"demo\"\n\
                    mirrors = [\"http://a/x\", \"http://b/x\"]\nsigned_by = \"AB\"\n";
        let mut faults = Vec::new();
        let texts = flatten(&text.parse().unwrap(), &mut faults);
        assert_eq!(texts["archive.groups"], "demo http://a/x http://b/x signed-by=AB");
        let wrong = text.replace("mirrors", "mirors");
        drop(flatten(&wrong.parse().unwrap(), &mut faults));
        assert_eq!(faults.len(), 1, "{faults:?}");
    }

    fn sources(flags: &[(&'static str, &str)], environment: &[(&str, &str)]) -> Sources {
        Sources {
            flags: flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            file: None,
        }
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("aptmesh.toml");
        std::fs::write(
            &file,
            "[mirror]\ntimeout = \"3s\"\nrecheck_after = \"4s\"\n[data]\ndir = \"/f\"\n",
        )
        .unwrap();
        let mut sources = sources(
            &[("data.dir", "/flag")],
            &[("APTMESH_MIRROR_TIMEOUT", "7s"), ("APTMESH_DATA_DIR", "/env")],
        );
        sources.file = Some(file);
        let config = Config::read(&sources).unwrap();
        assert_eq!(config.store.dir, Path::new("/flag"));
        assert_eq!(config.mirror.timeout.as_secs(), 7);
        assert_eq!(config.engine.recheck_after.as_secs(), 4);
        assert_eq!(config.listen.admin.port(), 9978);
    }

    #[test]
    fn every_fault_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("aptmesh.toml");
        std::fs::write(&file, "top = 1\n[mirror]\nalow = [\"x\"]\n[nowhere]\nx = 1\n").unwrap();
        let mut sources = sources(
            &[("listen.proxy", "localhost")],
            &[
                ("APTMESH_MIRROR_TIMEOUT", "soon"),
                ("APTMESH_CLIENTS_ALOW", "x"),
                ("APTMESH_LOG_FORMAT", "xml"),
            ],
        );
        sources.file = Some(file);
        let faults = Config::read(&sources).unwrap_err().to_string();
        for name in [
            "top",
            "mirror.alow",
            "nowhere.x",
            "listen.proxy",
            "mirror.timeout",
            "APTMESH_CLIENTS_ALOW",
            "log.format",
        ] {
            assert!(faults.contains(name), "{name} in {faults}");
        }
    }

    #[test]
    fn kubernetes_service_links_are_no_settings() {
        let links = [
            "APTMESH_SERVICE_HOST",
            "APTMESH_SERVICE_PORT",
            "APTMESH_SERVICE_PORT_PROXY",
            "APTMESH_PORT",
            "APTMESH_PORT_9977_TCP",
            "APTMESH_PORT_9977_TCP_ADDR",
            "APTMESH_PEER_SERVICE_HOST",
            "APTMESH_PEER_PORT_9979_TCP_PORT",
        ];
        let environment: Vec<(&str, &str)> =
            links.iter().map(|name| (*name, "tcp://10.0.0.1:1")).collect();
        assert!(Config::read(&sources(&[], &environment)).is_ok());
    }

    #[test]
    fn a_secret_may_lie_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy");
        std::fs::write(&file, "http://me:secret@proxy:3128\n").unwrap();
        let name = file.display().to_string();
        let config = Config::read(&sources(&[], &[("APTMESH_MIRROR_PROXY_FILE", &name)])).unwrap();
        assert_eq!(config.mirror.proxy.unwrap().host_str(), Some("proxy"));
        assert!(Config::read(&sources(&[], &[("APTMESH_DATA_DIR_FILE", &name)])).is_err());
    }

    #[test]
    fn an_empty_variable_is_none() {
        let default = Config::read(&Sources::default()).unwrap().effective;
        let mut empty: Vec<(String, &str)> = Vec::new();
        for key in &KEYS {
            empty.push((
                key.variable(),
                if key.default.text(|_| None).is_empty() { "" } else { " " },
            ));
            empty.extend(key.secret.then(|| (format!("{}_FILE", key.variable()), "")));
        }
        let empty: Vec<(&str, &str)> =
            empty.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(Config::read(&sources(&[], &empty)).unwrap().effective, default);
    }

    #[test]
    fn an_empty_file_is_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("empty");
        std::fs::write(&file, "\n").unwrap();
        let name = file.display().to_string();
        let faults = Config::read(&sources(&[], &[("APTMESH_SWARM_KEY_FILE", &name)])).unwrap_err();
        assert!(faults.0.iter().any(|fault| fault.contains("is empty")), "{faults:?}");
    }

    #[test]
    fn an_address_that_another_covers_is_left_out() {
        let listen = |text| Config::read(&sources(&[("listen.proxy", text)], &[])).unwrap().listen;
        let proxies = listen("0.0.0.0:1,[::]:1,0.0.0.0:2,127.0.0.1:1").proxy;
        let expected = ["[::]:1", "0.0.0.0:2", "127.0.0.1:1"].map(|text| text.parse().unwrap());
        assert_eq!(proxies, expected);
    }
}
