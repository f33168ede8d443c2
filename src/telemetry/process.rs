//! What every process tells of itself, whatever it does: which program it is, what it takes of the
//! machine (under the names that all Prometheus clients use), and how busy its runtime is.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::runtime::{Handle, RuntimeMetrics};

use crate::telemetry::metrics::Metrics;

/// A registry with the metrics of this process. To be called in its runtime, when it starts.
#[must_use]
pub fn metrics() -> Metrics {
    let metrics = Metrics::default();
    let build = metrics.gauges("aptmesh_build_info", "1, for this version.", &["version"]);
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    declare_resources(&metrics);
    declare_runtime(&metrics, &Handle::current().metrics());
    metrics
}

fn declare_resources(metrics: &Metrics) {
    let started = clock_gettime(ClockId::Realtime).tv_sec;
    metrics.gauge_of(
        "process_start_time_seconds",
        "When the process started, in seconds since 1970.",
        move || started,
    );
    metrics.counter_of(
        "process_cpu_seconds_total",
        "User and system time of the process, in seconds.",
        || seconds(clock_gettime(ClockId::ProcessCPUTime)),
    );
    metrics.gauge_of(
        "process_resident_memory_bytes",
        "Memory that the process occupies, in bytes, pages of mapped files included.",
        || number_in_status("VmRSS:") * 1024,
    );
    metrics.gauge_of(
        "process_virtual_memory_bytes",
        "Addresses that the process has reserved, in bytes.",
        || number_in_status("VmSize:") * 1024,
    );
    metrics.gauge_of("process_threads", "Threads of the process.", || number_in_status("Threads:"));
    metrics.gauge_of(
        "process_open_fds",
        "Files and sockets that the process has open.",
        open_files,
    );
    metrics.gauge_of(
        "process_max_fds",
        "Files and sockets that the process may have open.",
        || getrlimit(Resource::Nofile).current.map_or(i64::MAX, whole),
    );
}

fn declare_runtime(metrics: &Metrics, runtime: &RuntimeMetrics) {
    let gauge = |name: &str, help: &str, now: fn(&RuntimeMetrics) -> usize| {
        let runtime = runtime.clone();
        metrics.gauge_of(name, help, move || i64::try_from(now(&runtime)).unwrap_or(i64::MAX));
    };
    gauge(
        "aptmesh_telemetry_runtime_workers",
        "Threads that run tasks.",
        RuntimeMetrics::num_workers,
    );
    gauge(
        "aptmesh_telemetry_runtime_tasks",
        "Tasks that have not ended: connections, downloads, what goes on in the background.",
        RuntimeMetrics::num_alive_tasks,
    );
    gauge(
        "aptmesh_telemetry_runtime_queue_depth",
        "Tasks that wait for a worker, in the queue that all workers share.",
        RuntimeMetrics::global_queue_depth,
    );
    let runtime = runtime.clone();
    metrics.counter_of(
        "aptmesh_telemetry_runtime_busy_seconds_total",
        "Time that workers were busy with tasks, in seconds, summed up over all of them.",
        move || {
            let workers = 0..runtime.num_workers();
            let busy = workers.map(|worker| runtime.worker_total_busy_duration(worker));
            busy.map(|busy| busy.as_secs_f64()).sum()
        },
    );
}

/// Of what the kernel tells of this process, in a container as elsewhere; 0 where it tells nothing.
fn number_in_status(name: &str) -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut numbers = status.lines().filter_map(|line| line.strip_prefix(name));
    let number = numbers.next().and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Without the one that it takes to count them.
fn open_files() -> i64 {
    let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    i64::try_from(files).unwrap_or(i64::MAX).saturating_sub(1).max(0)
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53 for ages")]
fn seconds(time: Timespec) -> f64 {
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
