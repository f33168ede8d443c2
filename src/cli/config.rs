//! `aptmesh config`: the effective settings, as a file that would give the same.

use std::fmt::Write as _;

use crate::config::Config;

pub(super) fn print(config: &Config) -> anyhow::Result<()> {
    super::print_out(&render(config)?)
}

fn render(config: &Config) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut current = "";
    for (key, value) in &config.effective {
        let (section, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if section != current {
            let gap = if current.is_empty() { "" } else { "\n" };
            writeln!(text, "{gap}[{section}]")?;
            current = section;
        }
        for line in wrap(key.doc, 96) {
            writeln!(text, "# {line}")?;
        }
        let variable = key.variable();
        if key.secret && !value.is_empty() {
            writeln!(text, "# {name} is set, and a secret: {variable}, {variable}_FILE")?;
        } else {
            writeln!(text, "{name} = {value:?}  # {variable}")?;
        }
    }
    Ok(text)
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let fits = lines.last().is_some_and(|line| line.len() + word.len() < width);
        if !fits {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
