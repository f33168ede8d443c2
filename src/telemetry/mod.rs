//! What operators see: logs, traces and the metric registry. Metrics are declared beside what they measure.

pub mod logs;
pub mod metrics;
pub mod process;
pub mod traces;
