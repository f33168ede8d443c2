//! `aptmesh status`: asks a running cache how it is doing.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;

use crate::cli::admin;
use crate::config::Config;

/// For how long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// What went through, by way.
const WAYS: [(&str, &str); 6] = [
    ("fetched from mirrors:", "from_mirrors"),
    ("fetched from peers:", "from_peers"),
    ("fetched from replicas:", "from_replicas"),
    ("served from the store:", "from_store"),
    ("given to peers:", "to_peers"),
    ("given to replicas:", "to_replicas"),
];
pub(super) fn print(config: &Config) -> anyhow::Result<()> {
    let answer = admin::ask(config, "/status.json", PATIENCE)?;
    ensure!(answer.is_ok, "it tells no status: {}", answer.body.trim());
    super::print_out(&render(&serde_json::from_str(&answer.body)?)?)
}

fn render(status: &Value) -> anyhow::Result<String> {
    let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64);
    let megabytes = |pointer: &str| {
        number(pointer).map_or("unknown".to_owned(), |bytes| {
            format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
        })
    };
    let count =
        |pointer: &str| number(pointer).map_or("unknown".to_owned(), |number| number.to_string());
    let version = status.get("version").and_then(Value::as_str).unwrap_or("of unknown version");
    let up = Duration::from_secs(number("/uptime_seconds").unwrap_or_default());

    let mut text = String::new();
    writeln!(text, "aptmesh {version}, up {}", humantime::format_duration(up))?;
    writeln!(text, "                         since its start        all time")?;
    for (name, way) in WAYS {
        let [session, all_time] =
            ["session", "all_time"].map(|span| megabytes(&format!("/traffic/{span}/{way}")));
        writeln!(text, "{name:<24} {session:>15} {all_time:>15}")?;
    }
    let (blobs, bytes) = (count("/stored/blobs"), megabytes("/stored/bytes"));
    let quota = number("/stored/quota").map(|_| format!(" of {}", megabytes("/stored/quota")));
    let quota = quota.unwrap_or_default();
    writeln!(text, "stored:                  {blobs} files, {bytes}{quota}")?;
    writeln!(text, "learnt from lists:       {} files", count("/stored/expectations"))?;
    writeln!(text, "downloads under way:     {}", count("/flights"))?;
    let trouble =
        ["/trouble", "/swarm/trouble"].map(|at| status.pointer(at).and_then(Value::as_str));
    let [cache, swarm] = trouble;
    let trouble = cache.map(str::to_owned).or_else(|| swarm.map(|said| format!("swarm: {said}")));
    writeln!(text, "state:                   {}", trouble.as_deref().unwrap_or("all is well"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_trouble_is_told() {
        let state = |status| render(&status).unwrap().lines().last().unwrap().to_owned();
        assert!(state(json!({"trouble": null, "swarm": null})).ends_with("all is well"));
        let of_node = json!({"trouble": "the node does not answer"});
        assert!(state(json!({"swarm": of_node})).ends_with("swarm: the node does not answer"));
        let both = json!({"trouble": "the volume is full", "swarm": of_node});
        assert!(state(both).ends_with("the volume is full"));
    }
}
