//! What the engine counts.

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge};

use crate::archive::kind::Kind;
use crate::engine::flight::Flight;
use crate::engine::outcome::Source;
use crate::telemetry::metrics::Metrics;

/// Bounds of what downloads take, in seconds: from a confirmation by a mirror that is near to an image over a
/// slow line.
const FLIGHT_SECONDS: [f64; 12] =
    [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0];
/// Whose bytes are checked.
const CHECKED: [Source; 4] = [Source::Store, Source::Replica, Source::Peer, Source::Mirror];

/// The engine's metrics.
pub struct EngineMetrics {
    /// Requests answered.
    pub served: IntCounterVec,
    /// Bytes of bodies handed to clients.
    pub served_bytes: IntCounterVec,
    /// Bytes of bodies handed to other replicas and other sites.
    pub given_bytes: IntCounterVec,
    /// Downloads under way.
    pub flights: IntGauge,
    /// How long downloads took.
    pub flight_seconds: HistogramVec,
    /// Downloads that were continued after they broke off.
    pub resumed: IntCounter,
    /// Downloads of other replicas that clients here followed.
    pub followed: IntCounter,
    /// Downloads of other replicas that were gone on with here.
    pub taken_over: IntCounter,
    /// Bodies that were not what their name promised.
    pub verify_failures: IntCounterVec,
    /// Bytes of new blobs.
    pub stored_bytes: IntCounter,
}

impl EngineMetrics {
    /// Declares them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let served = metrics.counters(
            "aptmesh_engine_served_total",
            "Requests answered, by kind of resource, source of the bytes and outcome.",
            &["resource", "source", "outcome"],
        );
        // So that no errors are 0 errors, and the first one is an increase.
        for resource in Kind::LABELS {
            served.with_label_values(&[resource, "none", "error"]);
        }
        Self {
            served,
            served_bytes: metrics.counters(
                "aptmesh_engine_served_bytes_total",
                "Bytes of bodies handed to clients, by source.",
                &["source"],
            ),
            given_bytes: metrics.counters(
                "aptmesh_engine_given_bytes_total",
                "Bytes of bodies handed to other replicas and to other sites (peers), by source.",
                &["to", "source"],
            ),
            flights: metrics
                .gauge("aptmesh_engine_flights", "Downloads and revalidations under way."),
            flight_seconds: metrics.histograms_of(
                "aptmesh_engine_flight_seconds",
                "How long downloads and revalidations took, in seconds, by how they ended: whole, confirmed \
                 (what is stored is still right), refused (the mirror said no), failed (nobody gave it), cut \
                 (broken off, or wrong), not_stored (the volume did not take it), or given_up (nobody wanted \
                 it any more).",
                "outcome",
                &Flight::OUTCOMES,
                &FLIGHT_SECONDS,
            ),
            resumed: metrics.counter(
                "aptmesh_engine_resumed_total",
                "Downloads that broke off and were continued.",
            ),
            followed: metrics.counter(
                "aptmesh_engine_followed_total",
                "Downloads of other replicas that clients of this one followed.",
            ),
            taken_over: metrics.counter(
                "aptmesh_engine_taken_over_total",
                "Downloads that another replica left and this one went on with.",
            ),
            verify_failures: metrics.counters_of(
                "aptmesh_engine_verify_failures_total",
                "Bodies that were not what their name promised, by source.",
                "source",
                &CHECKED.map(Source::label),
            ),
            stored_bytes: metrics
                .counter("aptmesh_engine_stored_bytes_total", "Bytes of blobs newly stored."),
        }
    }
}
