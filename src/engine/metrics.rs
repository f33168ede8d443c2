//! What the engine counts.

use std::sync::{Arc, OnceLock};

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge};

use crate::archive::kind::Kind;
use crate::engine::flight::Flight;
use crate::engine::outcome::{Origin, Outcome, ServedAs, Source};
use crate::telemetry::metrics::Metrics;

/// Bounds of what downloads take, in seconds: from a confirmation by a mirror that is near to an image over a
/// slow line.
const FLIGHT_SECONDS: [f64; 12] =
    [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0];

/// Who is given what from where. The counters of all of it are there from the start.
const GIVEN: [(&str, Source); 7] = [
    ("replica", Source::Memory),
    ("replica", Source::Store),
    ("replica", Source::Flight),
    ("peer", Source::Memory),
    ("peer", Source::Store),
    ("peer", Source::Flight),
    ("peer", Source::Replica),
];

/// The engine's metrics.
pub struct EngineMetrics {
    /// Requests answered.
    pub served: ServedCounters,
    /// Bytes of bodies handed to clients.
    pub served_bytes: Arc<ServedCounters>,
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
        let labels = ["resource", "source", "outcome"];
        let served = metrics.counters(
            "aptmesh_engine_served_total",
            "Requests answered, by kind of resource, source of the bytes and outcome. refused: the mirror said no (4xx), or \
             a rule of yours; error: a fault of the cache, or a mirror's (5xx, 429, silence, wrong bytes).",
            &labels,
        );
        let served_bytes = metrics.counters(
            "aptmesh_engine_served_bytes_total",
            "Bytes of bodies handed to clients, by kind of resource, source and outcome.",
            &labels,
        );
        let given_bytes = metrics.counters(
            "aptmesh_engine_given_bytes_total",
            "Bytes of blobs handed to other replicas and to other sites (peers), by source.",
            &["to", "source"],
        );
        for (to, source) in GIVEN {
            given_bytes.with_label_values(&[to, source.label()]);
        }
        Self {
            served: ServedCounters::new(served),
            served_bytes: Arc::new(ServedCounters::new(served_bytes)),
            given_bytes,
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
                &Origin::ALL.map(Origin::label),
            ),
            stored_bytes: metrics
                .counter("aptmesh_engine_stored_bytes_total", "Bytes of blobs newly stored."),
        }
    }
}

/// Counters by what was served as what. Each is looked up by its labels once: a hit should not hash words.
pub struct ServedCounters {
    counters: IntCounterVec,
    found: Vec<OnceLock<IntCounter>>,
}

impl ServedCounters {
    /// What was not counted yet is 0 from the start: else Prometheus would take the first time of each for no increase.
    fn new(counters: IntCounterVec) -> Self {
        for (resource, (source, outcome)) in
            Kind::LABELS.iter().flat_map(|kind| ServedAs::PAIRS.map(|pair| (kind, pair)))
        {
            counters.with_label_values(&[resource, source.label(), outcome.label()]);
        }
        let cells = Kind::LABELS.len() * Source::ALL.len() * Outcome::ALL.len();
        Self { counters, found: (0..cells).map(|_| OnceLock::new()).collect() }
    }

    /// The counter of what was served so.
    #[must_use]
    pub fn of(&self, account: ServedAs) -> IntCounter {
        let ServedAs { kind, source, outcome } = account;
        let look_up = || {
            let labels = [kind.label(), source.label(), outcome.label()];
            self.counters.with_label_values(&labels)
        };
        let row = kind.number() * Source::ALL.len() + source.number();
        match self.found.get(row * Outcome::ALL.len() + outcome.number()) {
            Some(found) => found.get_or_init(look_up).clone(),
            None => look_up(),
        }
    }

    /// What was counted of a source, so far.
    #[must_use]
    pub fn sum(&self, source: Source) -> u64 {
        let is_of = |at: usize| (at / Outcome::ALL.len()) % Source::ALL.len() == source.number();
        let cells = self.found.iter().enumerate().filter(|(at, _)| is_of(*at));
        cells.filter_map(|(_, found)| found.get()).map(IntCounter::get).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_account_has_a_counter_of_its_own() {
        let metrics = EngineMetrics::new(&Metrics::default());
        let kinds = ["dists/s/InRelease", "dists/s/x", "p.deb", "other"].map(Kind::of);
        let mut counted = 0;
        for (kind, source) in
            kinds.iter().flat_map(|kind| Source::ALL.map(|source| (*kind, source)))
        {
            for outcome in Outcome::ALL {
                let counter = metrics.served.of(ServedAs { kind, source, outcome });
                assert_eq!(counter.get(), 0, "{kind:?} {source:?} {outcome:?}");
                counted += 1;
                counter.inc_by(counted);
                let labels = [kind.label(), source.label(), outcome.label()];
                assert_eq!(metrics.served.counters.with_label_values(&labels).get(), counted);
            }
        }
        let sums: u64 = Source::ALL.map(|source| metrics.served.sum(source)).iter().sum();
        assert_eq!(sums, counted * (counted + 1) / 2);
    }
}
