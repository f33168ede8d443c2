//! What there is of connections, looked up when somebody asks.

use deadpool_postgres::Pool;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts};

use crate::index::metrics::{UP, UP_HELP};

pub(super) struct Gauges<U> {
    pool: Pool,
    /// Whether all is well.
    is_up: U,
    up: IntGauge,
    connections: IntGaugeVec,
    most: IntGauge,
    waiting: IntGauge,
}

impl<U: Fn() -> bool + Send + Sync> Gauges<U> {
    #[expect(clippy::expect_used, reason = "names are constants: a bad one fails every start")]
    pub(super) fn new(pool: Pool, is_up: U) -> Self {
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("a valid name");
        let connections = Opts::new(
            "aptmesh_index_connections",
            "Connections to the index's server, by whether they are in use.",
        );
        Self {
            pool,
            is_up,
            up: gauge(UP, UP_HELP),
            connections: IntGaugeVec::new(connections, &["state"]).expect("a valid name"),
            most: gauge(
                "aptmesh_index_connections_max",
                "Connections to the index's server that there may be (index.pool).",
            ),
            waiting: gauge(
                "aptmesh_index_waiting",
                "Calls that wait for a connection to the index's server.",
            ),
        }
    }
}

impl<U: Fn() -> bool + Send + Sync> Collector for Gauges<U> {
    fn desc(&self) -> Vec<&Desc> {
        [self.up.desc(), self.connections.desc(), self.most.desc(), self.waiting.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = self.pool.status();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.up.set(i64::from((self.is_up)()));
        let in_use = number(status.size).saturating_sub(number(status.available));
        self.connections.with_label_values(&["in_use"]).set(in_use);
        self.connections.with_label_values(&["idle"]).set(number(status.available));
        self.most.set(number(status.max_size));
        self.waiting.set(number(status.waiting));
        let collected = [&self.up, &self.most, &self.waiting].map(Collector::collect).concat();
        [collected, self.connections.collect()].concat()
    }
}
