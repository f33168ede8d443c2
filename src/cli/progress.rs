//! How far a command has come: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::config::bytes::Bytes;

/// How often there is a line where nobody watches: enough for a log.
const LINE_EVERY: Duration = Duration::from_secs(10);

const BAR: &str = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";

/// What is shown while a command runs, on standard error.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    verb: &'static str,
    bytes: u64,
    total: u64,
    said: Instant,
}

impl Progress {
    /// `verb` says what is done to the bytes.
    pub(super) fn start(verb: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(BAR);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(0).with_style(style);
            bar.tick();
            bar
        });
        Self { bar, verb, bytes: 0, total: 0, said: Instant::now() }
    }

    /// So much is to be done, as far as is known by now.
    pub(super) fn expect(&mut self, total: u64) {
        self.total = total;
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
        }
    }

    /// What is to be done, in bytes.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// So many bytes more are done.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.bytes += bytes;
        match &self.bar {
            Some(bar) => bar.inc(bytes),
            None if self.said.elapsed() >= LINE_EVERY => {
                self.said = Instant::now();
                self.say_how_far();
            }
            None => {}
        }
    }

    fn say_how_far(&self) {
        let (done, total) = (Bytes(self.bytes), Bytes(self.total));
        say(&format!("{}: {done} of {total}\n", self.verb));
    }

    /// Something that is worth a line of its own.
    pub(super) fn tell(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => say(&format!("{line}\n")),
        }
    }

    pub(super) fn finish(self) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None => self.say_how_far(),
        }
    }
}

/// What can not be shown is no reason to stop.
fn say(text: &str) {
    drop(std::io::stderr().write_all(text.as_bytes()));
}
