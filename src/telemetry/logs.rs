//! Logs: text for people, JSON lines for machines; on standard error. A thread writes them, so that who does
//! not read them keeps nobody waiting.

use std::io::{self, IsTerminal as _, Write};
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tracing::Subscriber;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces;

/// Lines that wait to be written, of 300 bytes or so: a quarter of a second of requests at full speed. More are
/// lost.
const WAITING_MAX: usize = 8192;
/// Bytes that are written together, and somewhat more.
const TOGETHER_MAX: usize = 8 * 1024;
/// For how long the last lines are written when the process ends.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// Whose words are not ours to pass on. The `OpenPGP` library tells about each odd packet, the database's about
/// each connection that broke, the swarm's who it is and that there is nobody to be found yet; what matters of
/// it we say ourselves.
const QUIET: &str = "pgp=error,deadpool.postgres=off,tokio_postgres=error,libp2p_kad::behaviour=error,\
                     libp2p_swarm=warn";

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// How lines look.
    pub format: Format,
    /// `error`, `warn`, `info`, `debug`, `trace`, or `tracing` directives such as
    /// `info,aptmesh::mirror=debug`.
    pub level: String,
}

impl Config {
    /// Reads `level`.
    ///
    /// # Errors
    /// When it is no list of `tracing` directives.
    pub fn parse_level(level: &str) -> Result<String, String> {
        EnvFilter::try_new(level).map(|_| level.to_owned()).map_err(|error| error.to_string())
    }
}

/// The writing of logs. What is still to be written is, when it is dropped.
pub struct Logs {
    /// Lines that came when too many waited.
    lost: ErrorCounter,
    /// Lines that were not taken.
    unwritten: Arc<AtomicU64>,
    writing: Option<WorkerGuard>,
}

/// Sends the process's logs to standard error, and its spans to `traces`. Called once.
#[must_use]
pub fn start(config: &Config, traces: Option<traces::Layer<Registry>>) -> Logs {
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING_MAX);
    let unwritten = Arc::new(AtomicU64::new(0));
    let (writer, writing) = builder.thread_name("logs").finish(Lines {
        to: io::stderr(),
        waiting: Vec::new(),
        count: 0,
        unwritten: Arc::clone(&unwritten),
    });
    let lost = writer.error_counter();
    tracing_subscriber::registry().with(traces).with(lines(config, writer)).init();
    if config.format == Format::Json {
        // Programs that read the log get a panic as an object, too.
        panic::set_hook(Box::new(|panic| {
            let words = panic.payload_as_str().unwrap_or("for no reason that it tells");
            let at = panic.location().map(ToString::to_string).unwrap_or_default();
            let words = last_words(Format::Json, &format!("panicked at {at}: {words}"));
            // If it is not taken, there is nobody to tell.
            drop(writeln!(io::stderr(), "{words}"));
        }));
    }
    Logs { lost, unwritten, writing: Some(writing) }
}

/// Why a process ends, for whoever reads its log, whatever of that is switched off.
#[must_use]
pub fn last_words(format: Format, words: &str) -> String {
    match format {
        Format::Text => format!("aptmesh: {words}"),
        Format::Json => {
            let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
            json!({ "timestamp": now, "level": "ERROR", "message": words, "target": "aptmesh" })
                .to_string()
        }
    }
}

/// Writes lines, those that come together at once. What is not taken is counted, and does not stop what comes
/// after it.
struct Lines<W> {
    to: W,
    waiting: Vec<u8>,
    /// Lines in `waiting`.
    count: u64,
    unwritten: Arc<AtomicU64>,
}

impl<W: Write> Write for Lines<W> {
    /// Takes a line. What would break it, in somebody else's words, is shown as it is written in programs.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (text, end) = line.split_at(line.len() - usize::from(line.ends_with(b"\n")));
        for &byte in text {
            match byte {
                b'\n' => self.waiting.extend_from_slice(b"\\n"),
                b'\r' => self.waiting.extend_from_slice(b"\\r"),
                byte => self.waiting.push(byte),
            }
        }
        self.waiting.extend_from_slice(end);
        self.count += 1;
        if self.waiting.len() >= TOGETHER_MAX {
            self.flush()?;
        }
        Ok(line.len())
    }

    /// Never fails: who calls it could only tell standard error.
    fn flush(&mut self) -> io::Result<()> {
        if self.to.write_all(&self.waiting).is_err() {
            self.unwritten.fetch_add(self.count, Ordering::Relaxed);
        }
        self.waiting.clear();
        self.count = 0;
        Ok(())
    }
}

fn lines<S>(config: &Config, writer: NonBlocking) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let directives = format!("{QUIET},{}", config.level);
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    // Traces are no part of the log: of what goes on, spans would be told before each line.
    let filter = filter.and(filter_fn(|metadata| metadata.target() != traces::SPANS));
    let lines =
        tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(io::stderr().is_terminal());
    match config.format {
        Format::Text => lines.with_filter(filter).boxed(),
        Format::Json => {
            let lines = lines.json().flatten_event(true);
            lines.with_current_span(false).with_span_list(false).with_filter(filter).boxed()
        }
    }
}

impl Logs {
    /// Has it counted what is lost.
    pub fn declare(&self, metrics: &Metrics) {
        let (lost, unwritten) = (self.lost.clone(), Arc::clone(&self.unwritten));
        metrics.counter_of(
            "aptmesh_telemetry_log_lines_lost_total",
            "Lines of the log that were lost, since standard error did not take them.",
            move || {
                let lost = lost.dropped_lines() as u64 + unwritten.load(Ordering::Relaxed);
                u32::try_from(lost).unwrap_or(u32::MAX).into()
            },
        );
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let writing = self.writing.take();
        let (written, is_written) = mpsc::channel();
        // The crate's own bound is longer, and beyond it there is a word to standard output, which may be as
        // stuck.
        let flushing = move || {
            drop(writing);
            written.send(()).is_ok()
        };
        if thread::Builder::new().spawn(flushing).is_ok() {
            // Who does not read by then has no use for the rest.
            let _is_written = is_written.recv_timeout(FLUSH_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_and_what_is_not_taken_is_counted() {
        let unwritten = Arc::new(AtomicU64::new(0));
        let counting = || Arc::clone(&unwritten);
        let mut lines =
            Lines { to: Vec::new(), waiting: Vec::new(), count: 0, unwritten: counting() };
        lines.write_all(b"one\nDETAIL: two\r\n").unwrap();
        lines.write_all(b"three\n").unwrap();
        lines.flush().unwrap();
        assert_eq!(lines.to, b"one\\nDETAIL: two\\r\nthree\n");
        let mut taken = [0; 8];
        let mut lines =
            Lines { to: &mut taken[..], waiting: Vec::new(), count: 0, unwritten: counting() };
        for line in ["first\n", "second\n", "third\n"] {
            lines.write_all(line.as_bytes()).unwrap();
            lines.flush().unwrap();
        }
        assert_eq!(unwritten.load(Ordering::Relaxed), 2);
    }
}
