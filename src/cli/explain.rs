//! `aptmesh explain`: asks a running cache what it knows of a file.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::bail;
use url::form_urlencoded::byte_serialize;

use crate::cli::admin::{self, plain};
use crate::config::Config;
use crate::web::explain::report::Report;

/// For how long an answer is waited for: the volume, the index and other sites are.
const PATIENCE: Duration = Duration::from_secs(5);
/// The width of the names of facts.
const WIDTH: usize = 22;

pub(super) fn print(config: &Config, url: &str, is_json: bool) -> anyhow::Result<()> {
    let url: String = byte_serialize(url.as_bytes()).collect();
    let answer = admin::ask(config, &format!("/explain.json?url={url}"), PATIENCE)?;
    if !answer.is_ok {
        let refusal = serde_json::from_str::<serde_json::Value>(&answer.body).unwrap_or_default();
        let why = refusal.get("error").and_then(serde_json::Value::as_str);
        bail!("{}", why.unwrap_or("it explains nothing"));
    }
    if is_json {
        return super::print_out(&format!("{}\n", answer.body.trim_end()));
    }
    super::print_out(&render(&serde_json::from_str(&answer.body)?)?)
}

fn render(report: &Report) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "{}\n\n{}\n", plain(&report.url), plain(&report.would))?;
    for (name, fact) in report.facts() {
        writeln!(text, "{:<WIDTH$} {}", format!("{name}:"), plain(&fact))?;
    }
    Ok(text)
}
