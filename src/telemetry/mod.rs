//! What operators see: logs, traces and the metric registry. Metrics are declared beside what they measure.

pub mod edge;
pub mod logs;
pub mod metrics;
pub mod process;
pub mod shown;
pub mod traces;

use crate::telemetry::logs::Logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;

/// The logs and traces of a process. What is logged until it is dropped is written.
pub struct Telemetry {
    traces: Traces,
    logs: Logs,
}

impl Telemetry {
    /// Begins to log, and to trace. Called once.
    #[must_use]
    pub fn start(logs: &logs::Config, traces: &traces::Config) -> Self {
        let traces = Traces::start(traces);
        let logs = logs::start(logs, traces.layer());
        traces.tell();
        Self { traces, logs }
    }

    /// Has what becomes of lines and spans counted.
    pub fn declare(&self, metrics: &Metrics) {
        self.logs.declare(metrics);
        self.traces.declare(metrics);
    }

    /// Sends and writes what waits, for as long as that may take: at the end of the process.
    pub fn stop(self) {
        self.traces.stop();
    }
}
