//! Logs: text for people, JSON lines for machines; on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry};

use crate::telemetry::traces;

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

/// Sends the process's logs to standard error, and its spans to `traces`. Called once.
pub fn start(config: &Config, traces: Option<traces::Layer<Registry>>) {
    // The OpenPGP library tells about each odd packet, the database's about each connection that
    // broke, the swarm's that there is nobody to be found yet; what matters of it we say ourselves.
    let quiet = "pgp=error,deadpool.postgres=off,tokio_postgres=error,libp2p_kad::behaviour=error";
    let directives = format!("{quiet},{}", config.level);
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    // Traces are no part of the log: of what goes on, spans would be told before each line.
    let filter = filter.and(filter_fn(|metadata| metadata.target() != traces::SPANS));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match config.format {
        Format::Text => lines.with_filter(filter).boxed(),
        Format::Json => lines.json().with_filter(filter).boxed(),
    };
    tracing_subscriber::registry().with(traces).with(lines).init();
}
