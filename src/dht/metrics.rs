//! What a node counts.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use crate::telemetry::metrics::Metrics;

/// From within a site to far across the world, and to one that nobody answers.
const LOOK_UP_BUCKETS: [f64; 12] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.3, 1.0, 3.0, 10.0];

/// From nobody to far more than a look-up asks in a large swarm.
const REQUESTS: [f64; 9] = [0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 48.0];

/// A node's metrics.
pub(super) struct DhtMetrics {
    pub(super) connected: IntGauge,
    pub(super) connected_others: IntGauge,
    pub(super) table: IntGauge,
    pub(super) cards: IntGauge,
    pub(super) records: IntGauge,
    pub(super) records_evicted: IntCounter,
    pub(super) announced: IntGauge,
    pub(super) due: IntGauge,
    pub(super) late: IntGauge,
    pub(super) announce_lag: IntGauge,
    pub(super) look_ups: IntCounterVec,
    pub(super) look_up_seconds: Histogram,
    pub(super) look_up_requests: Histogram,
    pub(super) announces: IntCounterVec,
    pub(super) taken: IntCounterVec,
    pub(super) cards_refused: IntCounter,
    pub(super) strangers: IntCounter,
}

impl DhtMetrics {
    /// Declares them; nodes are looked for in so many places.
    pub(super) fn new(metrics: &Metrics, seeds: usize) -> Self {
        let looked_for = metrics.gauge(
            "aptmesh_dht_seeds",
            "Places where nodes of the swarm are looked for (swarm.bootstrap).",
        );
        looked_for.set(seeds.try_into().unwrap_or(i64::MAX));
        Self {
            connected: metrics.gauge("aptmesh_dht_connected_nodes", "Nodes connected to this one."),
            connected_others: metrics.gauge(
                "aptmesh_dht_connected_others",
                "Nodes of other sites connected to this one; this site's own are told by its index.",
            ),
            table: metrics.gauge("aptmesh_dht_table_nodes", "Nodes in the routing table."),
            cards: metrics.gauge("aptmesh_dht_cards", "Other nodes whose card is known, of this site and of others."),
            records: metrics.gauge("aptmesh_dht_records", "Records kept for the swarm."),
            records_evicted: metrics.counter(
                "aptmesh_dht_records_evicted_total",
                "Records of a node with too many that had to go before their time.",
            ),
            announced: metrics.gauge("aptmesh_dht_announced_blobs", "Blobs that are announced."),
            due: metrics.gauge(
                "aptmesh_dht_announcements_due",
                "Blobs whose announcement, or its renewal, is due now.",
            ),
            late: metrics.gauge(
                "aptmesh_dht_announcements_late",
                "Of the announcements that are due, those that have been so for more than half a minute.",
            ),
            announce_lag: metrics.gauge(
                "aptmesh_dht_announce_lag_seconds",
                "For how long the longest due announcement has been due, in seconds.",
            ),
            look_ups: metrics.counters_of(
                "aptmesh_dht_look_ups_total",
                "Look-ups, by how they ended: found, none, or late.",
                "result",
                &["found", "none", "late"],
            ),
            look_up_seconds: metrics.histogram(
                "aptmesh_dht_look_up_seconds",
                "How long look-ups took, in seconds.",
                &LOOK_UP_BUCKETS,
            ),
            look_up_requests: metrics.histogram(
                "aptmesh_dht_look_up_requests",
                "Nodes that were asked for a look-up, several at a time, until it ended; none where this node keeps \
                 the record itself. How many hops that was, libp2p's Kademlia does not tell.",
                &REQUESTS,
            ),
            announces: metrics.counters_of(
                "aptmesh_dht_announces_total",
                "Records sent to other nodes, by what became of them: taken, refused, or failed.",
                "result",
                &["taken", "refused", "failed"],
            ),
            taken: metrics.counters_of(
                "aptmesh_dht_offered_total",
                "Records that other nodes sent, by what became of them: taken, refused, or sent too_fast.",
                "result",
                &["taken", "refused", "too_fast"],
            ),
            cards_refused: metrics.counter(
                "aptmesh_dht_cards_refused_total",
                "Cards with a wrong signature or time, or one too many.",
            ),
            strangers: metrics.counter(
                "aptmesh_dht_strangers_total",
                "Connections that came in and did not get through the handshake.",
            ),
        }
    }
}
