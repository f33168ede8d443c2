//! What the index counts and traces, whatever its make.

use std::time::Duration;

use prometheus::{Histogram, IntCounterVec};
use tracing::Span;

use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::span;

/// Bounds of what calls take, in seconds: from a look-up in memory to background work's patience.
const SECONDS: [f64; 12] =
    [0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0];

/// Whether the index is well, whatever its make.
pub(super) const UP: &str = "aptmesh_index_up";
pub(super) const UP_HELP: &str = "1 while the index answers: of a server, also that it takes writes, and is fast enough for requests.";

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered,
    /// Nobody was asked: the server is away, or the request has no time left.
    NotAsked,
    /// Its time was up.
    Late,
    Failed,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Answered, Self::NotAsked, Self::Late, Self::Failed];

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NotAsked => "not_asked",
            Self::Late => "late",
            Self::Failed => "failed",
        }
    }
}

/// The span of a call of `operation`, which completes "could not …", to a database of this make.
pub(super) fn span(make: &'static str, operation: &'static str) -> Span {
    span!("index.call", otel.kind = "client", db.system.name = make, db.operation.name = operation)
}

/// The index's metrics.
#[derive(Clone)]
pub(super) struct IndexMetrics {
    calls: IntCounterVec,
    seconds: Histogram,
}

impl IndexMetrics {
    /// Declares them.
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            calls: metrics.counters(
                "aptmesh_index_calls_total",
                "Calls to the index, by what they could or could not do, and outcome: answered, not_asked (the \
                 server is away, or the request has no time left), late, or failed.",
                &["operation", "outcome"],
            ),
            seconds: metrics.histogram(
                "aptmesh_index_call_seconds",
                "For how long calls to the index were waited for, in seconds.",
                &SECONDS,
            ),
        }
    }

    /// A call of `operation`, which completes "could not …", is over.
    pub(super) fn count(&self, operation: &'static str, outcome: Outcome, took: Duration) {
        for other in Outcome::ALL {
            // All are there from the first call on, so that the first failure is an increase.
            let calls = self.calls.with_label_values(&[operation, other.label()]);
            calls.inc_by(u64::from(other == outcome));
        }
        if outcome != Outcome::NotAsked {
            self.seconds.observe(took.as_secs_f64());
        }
    }
}
