//! `aptmesh manual`: manual pages and completions for shells, made of the command and the list of
//! settings; for packages.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use crate::cli::Command;
use crate::config::{KEYS, Key};

/// Shells, and where each one's completions are to be found by a package.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash/aptmesh"),
    (Shell::Zsh, "zsh/_aptmesh"),
    (Shell::Fish, "fish/aptmesh.fish"),
];

/// Writes them below `folder`: `man1`, `man5` and `completions`.
pub(super) fn write(folder: &Path) -> anyhow::Result<()> {
    let commands = made(folder.join("man1"))?;
    clap_mangen::generate_to(Command::command(), &commands)
        .with_context(|| format!("could not write to {}", commands.display()))?;
    let settings = made(folder.join("man5"))?.join("aptmesh.toml.5");
    create(&settings)?.write_all(settings_page().render().as_bytes())?;
    for (shell, name) in COMPLETIONS {
        let path = folder.join("completions").join(name);
        made(path.parent().unwrap_or(folder).to_owned())?;
        clap_complete::generate(shell, &mut Command::command(), "aptmesh", &mut create(&path)?);
    }
    Ok(())
}

fn made(folder: PathBuf) -> anyhow::Result<PathBuf> {
    let context = || format!("could not make {}", folder.display());
    fs::create_dir_all(&folder).with_context(context)?;
    Ok(folder)
}

fn create(path: &Path) -> anyhow::Result<fs::File> {
    fs::File::create(path).with_context(|| format!("could not write {}", path.display()))
}

/// `aptmesh.toml(5)`.
fn settings_page() -> Roff {
    let version = concat!("aptmesh ", env!("CARGO_PKG_VERSION"));
    let mut page = Roff::new();
    page.control("TH", ["aptmesh.toml", "5", "", version, ""]);
    page.control("SH", ["NAME"]).text([roman("aptmesh.toml - settings of aptmesh")]);
    page.control("SH", ["SYNOPSIS"]).text([roman("/etc/aptmesh/aptmesh.toml")]);
    page.control("SH", ["DESCRIPTION"]).text(marked(
        "A file in TOML, which `--config` may name another place for. Each setting may be given in the \
         environment instead, under the name that follows it here, lists with commas; that wins over the \
         file, and the flags of the command win over both. An empty variable counts as not set. Of secrets, \
         the variable with `_FILE` at its end may name a file.",
    ));
    page.control("PP", []).text(marked(
        "An unknown or wrong setting ends the start with exit code 78; all faults are named at once. SIGHUP \
         reads the file again.",
    ));
    page.control("SH", ["SETTINGS"]);
    let mut section = "";
    for key in &KEYS {
        let (of, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if of != section {
            section = of;
            page.control("SS", [format!("[{section}]").as_str()]);
        }
        describe(&mut page, name, key);
    }
    page.control("SH", ["SEE ALSO"]).text([bold("aptmesh"), roman("(1)")]);
    page
}

fn describe(page: &mut Roff, name: &str, key: &Key) {
    let mut ways = vec![key.variable()];
    ways.extend(key.secret.then(|| format!("{}_FILE", key.variable())));
    ways.extend(key.flag.map(str::to_owned));
    let live = if key.live { " SIGHUP changes it in a running process." } else { "" };
    page.control("TP", []).text([bold(name), roman(format!(" ({})", ways.join(", ")))]);
    page.text(marked(key.doc));
    page.control("IP", []).text(marked(&format!("Default: {}.{live}", key.default.words())));
}

/// What stands between backquotes is bold.
fn marked(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts.map(|(number, part)| if number % 2 == 0 { roman(part) } else { bold(part) }).collect()
}
