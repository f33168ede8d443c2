//! The shape of the code: which module may use which. One crate can not make cycles impossible, so
//! this test does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module and the modules of this crate that it may use.
const MAY_USE: [(&str, &[&str]); 14] = [
    ("content", &[]),
    ("archive", &["content"]),
    ("trust", &[]),
    ("telemetry", &["trust"]),
    ("index", &["content", "telemetry"]),
    ("store", &["content", "telemetry"]),
    ("mirror", &["archive", "content", "trust", "telemetry"]),
    ("swarm", &["content", "trust", "telemetry"]),
    ("engine", &["archive", "content", "telemetry", "index", "store", "mirror", "swarm"]),
    ("dht", &["content", "telemetry"]),
    ("announce", &["content", "telemetry", "index", "dht"]),
    ("web", &["archive", "content", "telemetry", "mirror", "index", "swarm", "engine", "dht"]),
    (
        "config",
        &["archive", "content", "telemetry", "index", "store", "mirror", "swarm", "engine", "dht"],
    ),
    (
        "cli",
        &[
            "content",
            "telemetry",
            "index",
            "store",
            "mirror",
            "swarm",
            "engine",
            "dht",
            "announce",
            "web",
            "config",
        ],
    ),
];

/// What only some modules may name: I/O and clocks stay out of the pure ones, SQL in its backend,
/// concrete backends in the wiring.
const ONLY_IN: [(&str, &[&str]); 20] = [
    ("rusqlite", &["index/sqlite"]),
    ("tokio_postgres", &["index/postgres", "telemetry/logs.rs"]),
    ("deadpool_postgres", &["index/postgres"]),
    ("postgres::Client", &["index/postgres"]),
    ("PostgresIndex", &["index/postgres", "cli/wiring.rs"]),
    ("warp", &["web"]),
    ("hyper", &["web"]),
    ("reqwest", &["mirror", "swarm", "telemetry/traces"]),
    (
        "tokio",
        &[
            "telemetry",
            "index",
            "store",
            "mirror",
            "swarm",
            "engine",
            "dht",
            "announce",
            "web",
            "cli",
        ],
    ),
    ("libp2p", &["dht"]),
    ("opentelemetry", &["telemetry/traces"]),
    ("opentelemetry_http", &["telemetry/traces"]),
    ("opentelemetry_otlp", &["telemetry/traces"]),
    ("opentelemetry_sdk", &["telemetry/traces"]),
    ("tracing_opentelemetry", &["telemetry/traces"]),
    (
        "std::fs",
        &[
            "telemetry/process.rs",
            "store",
            "index",
            "engine",
            "dht/home.rs",
            "web",
            "config",
            "mirror",
            "cli",
            "telemetry/traces",
        ],
    ),
    (
        "SystemTime::now",
        &[
            "store",
            "engine",
            "swarm/peers.rs",
            "dht/node/mod.rs",
            "announce/filter.rs",
            "cli/evict.rs",
            "telemetry/logs.rs",
        ],
    ),
    ("rustls_native_certs", &["trust"]),
    ("SqliteIndex", &["index/sqlite", "cli/wiring.rs"]),
    ("StatusCode", &["web", "mirror", "engine/outcome.rs", "engine/relayed.rs"]),
];

#[test]
fn modules_use_only_what_is_below_them() {
    let mut violations = Vec::new();
    for (path, code) in sources() {
        let Some(module) = module_of(&path) else { continue };
        let Some(may_use) = MAY_USE.iter().find(|(name, _)| *name == module).map(|(_, used)| used)
        else {
            violations.push(format!("{path}: the module {module} is not in the list of layers"));
            continue;
        };
        for used in used_modules(&code) {
            if used != module && !may_use.contains(&used.as_str()) {
                violations.push(format!("{path}: {module} must not use {used}"));
            }
        }
    }
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn names_stay_where_they_belong() {
    let mut violations = Vec::new();
    for (path, code) in sources() {
        for (name, homes) in ONLY_IN {
            let at_home = homes.iter().any(|home| path.starts_with(home));
            if !at_home && mentions(&code, name) {
                violations.push(format!("{path}: {name} belongs into {homes:?}"));
            }
        }
    }
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn the_layer_map_names_every_module_in_order() {
    let map = fs::read_to_string(root().join("lib.rs")).unwrap();
    let mapped: Vec<&str> =
        map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let place: BTreeMap<&str, usize> =
        mapped.iter().enumerate().map(|(place, module)| (*module, place)).collect();
    assert_eq!(mapped.len(), MAY_USE.len());
    for (module, used) in MAY_USE {
        for below in used {
            assert!(place[below] < place[module], "{below} stands after {module} in lib.rs");
        }
    }
}

#[test]
fn the_test_itself_sees_violations() {
    assert_eq!(
        used_modules("use crate::web::reply;\nlet x = crate::store::Store;"),
        ["web", "store"]
    );
    assert_eq!(used_modules("use crate::{engine, mirror, store};"), ["engine", "mirror", "store"]);
    assert!(mentions("let now = SystemTime::now();", "SystemTime::now"));
    assert!(mentions("use warp::Filter;", "warp"));
    assert!(!mentions("timewarp(warped)", "warp"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file below `src`, by its path there, without comments, texts and tests.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, without_comments(&fs::read_to_string(&path).unwrap())));
            }
        }
    }
    assert!(found.len() > 30, "the sources are not where they are looked for");
    found
}

fn without_comments(code: &str) -> String {
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The folder below `src`; `None` for `main.rs` and `lib.rs`.
fn module_of(path: &str) -> Option<String> {
    path.split_once('/').map(|(module, _)| module.to_owned())
}

fn used_modules(code: &str) -> Vec<String> {
    let mut used = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap_or_default();
                let names = group.split(',').map(|name| name.trim().split("::").next().unwrap());
                used.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
            }
            None => used.push(rest[..end.unwrap_or(rest.len())].to_owned()),
        }
    }
    used
}

/// Whether `name` stands in `code` as a word of its own.
fn mentions(code: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}
