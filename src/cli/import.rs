//! `aptmesh import`: stores what lies elsewhere, beside a running cache or without one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::ensure;

use crate::cli::progress::Progress;
use crate::cli::wiring;
use crate::config::Config;
use crate::config::bytes::Bytes;
use crate::engine::volume::import::Event;

/// Files that are refused and told one by one; those beyond are only counted.
const REFUSED_TOLD: u64 = 100;

/// What an import came to, in files and bytes.
#[derive(Default)]
struct Sum {
    new: (u64, u64),
    known: (u64, u64),
    left: BTreeMap<String, u64>,
    refused: u64,
}

pub(super) fn run(config: &Config, paths: Vec<PathBuf>) -> anyhow::Result<()> {
    for path in &paths {
        ensure!(path.exists(), "there is no {}", printable(path));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(import(config, paths))
}

async fn import(config: &Config, paths: Vec<PathBuf>) -> anyhow::Result<()> {
    let importer = wiring::importer(config)?;
    let mut progress = Progress::start("looked at");
    let mut sum = Sum::default();
    let mut tell = |event: Event| {
        progress.expect(importer.met());
        let bytes = sum.add(event, &progress);
        progress.advance(bytes);
    };
    let ended = importer.import(paths, &mut tell).await;
    progress.finish();
    super::print_out(&sum.render()?)?;
    Ok(ended?)
}

/// Names of files are anybody's, and a terminal would obey what is in them.
fn printable(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

impl Sum {
    /// The bytes that are done with.
    fn add(&mut self, event: Event, progress: &Progress) -> u64 {
        let (counted, bytes) = match event {
            Event::New(bytes) => (&mut self.new, bytes),
            Event::Known(bytes) => (&mut self.known, bytes),
            Event::Left(path, reason, bytes) => {
                if reason.is_refusal() {
                    self.refused += 1;
                    if self.refused <= REFUSED_TOLD {
                        let (path, words) = (printable(&path), reason.words());
                        progress.tell(&format!("refused: {path}: {words}"));
                    }
                }
                *self.left.entry(reason.words().to_owned()).or_default() += 1;
                return bytes;
            }
        };
        counted.0 += 1;
        counted.1 += bytes;
        bytes
    }

    fn render(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(text, "new:      {} files, {}", self.new.0, Bytes(self.new.1))?;
        writeln!(text, "known:    {} files, {}", self.known.0, Bytes(self.known.1))?;
        writeln!(text, "left out: {} files", self.left.values().sum::<u64>())?;
        for (reason, files) in &self.left {
            writeln!(text, "  {files} {reason}")?;
        }
        Ok(text)
    }
}
