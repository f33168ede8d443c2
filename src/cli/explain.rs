//! `aptmesh explain`: asks a running cache what it knows of a file.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::bail;
use url::form_urlencoded::byte_serialize;

use crate::cli::admin::{self, plain};
use crate::config::Config;
use crate::web::explain::report::Report;

/// For how long an answer is waited for: the volume, folders, the index and other sites are, some seconds each.
const PATIENCE: Duration = Duration::from_secs(10);
/// The width of the names of facts.
const WIDTH: usize = 22;

pub(super) fn print(config: &Config, url: &str, is_json: bool) -> anyhow::Result<()> {
    let url: String = byte_serialize(url.as_bytes()).collect();
    let answer = admin::ask(config, &format!("/explain.json?url={url}"), PATIENCE)?;
    if !answer.is_ok {
        let refusal = serde_json::from_str::<serde_json::Value>(&answer.body).unwrap_or_default();
        let why = refusal.get("error").and_then(serde_json::Value::as_str);
        bail!("{}", plain(why.unwrap_or("it explains nothing")));
    }
    if is_json {
        return super::print_out(&format!("{}\n", escaped(answer.body.trim_end())));
    }
    super::print_out(&render(&serde_json::from_str(&answer.body)?)?)
}

/// The same JSON, of which no terminal takes a part for orders: outside of its strings all is ASCII.
fn escaped(json: &str) -> String {
    json.chars().fold(String::new(), |mut text, letter| {
        match letter {
            '\u{7f}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                // Writing to a string never fails.
                write!(text, "\\u{:04x}", u32::from(letter)).unwrap_or_default();
            }
            _ => text.push(letter),
        }
        text
    })
}

fn render(report: &Report) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "{}\n\n{}\n", plain(&report.url), plain(&report.would))?;
    for (name, fact) in report.facts() {
        writeln!(text, "{:<WIDTH$} {}", format!("{name}:"), plain(&fact))?;
    }
    Ok(text)
}
