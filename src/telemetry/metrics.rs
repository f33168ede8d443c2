//! The metric registry. Names are `aptmesh_<folder>_<what>_<unit>`; labels come from closed sets
//! only.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Counter, Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// The process's metrics.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Declares a counter.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.declare(IntCounter::new(name, help))
    }

    /// Declares a counter with labels.
    #[must_use]
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.declare(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// Declares a counter with one label, of which these values are there from the start: what never
    /// happened is 0, and its first time counts as an increase too.
    #[must_use]
    pub fn counters_of(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
    ) -> IntCounterVec {
        let counters = self.counters(name, help, &[label]);
        for value in values {
            counters.with_label_values(&[value]);
        }
        counters
    }

    /// Declares a gauge.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.declare(IntGauge::new(name, help))
    }

    /// Declares a gauge with labels.
    #[must_use]
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.declare(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// Declares a gauge of which `now` tells the value whenever somebody looks at it.
    pub fn gauge_of(&self, name: &str, help: &str, now: impl Fn() -> i64 + Send + Sync + 'static) {
        self.declare_looked(IntGauge::new(name, help), move |gauge| gauge.set(now()));
    }

    /// Declares a gauge with labels that `look` brings up to date whenever somebody looks at it.
    pub fn gauges_of(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        look: impl Fn(&IntGaugeVec) + Send + Sync + 'static,
    ) {
        self.declare_looked(IntGaugeVec::new(Opts::new(name, help), labels), look);
    }

    /// Declares a counter of which `now` tells the value, which never falls, whenever somebody looks at
    /// it.
    pub fn counter_of(
        &self,
        name: &str,
        help: &str,
        now: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let alone = Mutex::new(());
        self.declare_looked(Counter::new(name, help), move |counter| {
            // Two who look at the same time would count it twice.
            let _alone = alone.lock().unwrap_or_else(PoisonError::into_inner);
            counter.inc_by((now() - counter.get()).max(0.0));
        });
    }

    /// Declares a histogram.
    #[must_use]
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.declare(Histogram::with_opts(options))
    }

    /// Declares a histogram with labels.
    #[must_use]
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.declare(HistogramVec::new(options, labels))
    }

    /// Declares a histogram with one label, of which these values are there from the start.
    #[must_use]
    pub fn histograms_of(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let histograms = self.histograms(name, help, &[label], buckets);
        for value in values {
            histograms.with_label_values(&[value]);
        }
        histograms
    }

    /// Declares what is looked up when it is asked for.
    ///
    /// # Panics
    /// When its name is declared already: names are constants, and a bad one fails every start.
    #[expect(clippy::expect_used, reason = "see above")]
    pub fn collect(&self, collector: impl Collector + 'static) {
        self.registry.register(Box::new(collector)).expect("a metric declared once");
    }

    /// All of them, in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "could not render the metrics");
        }
        text
    }

    fn declare_looked<M: Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<M>,
        look: impl Fn(&M) + Send + Sync + 'static,
    ) {
        self.declare(made.map(|metric| Looked { metric, look: Arc::new(look) }));
    }

    #[expect(clippy::expect_used, reason = "names are constants: a bad one fails every start")]
    fn declare<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let metric = made.expect("a valid metric name");
        self.registry.register(Box::new(metric.clone())).expect("a metric declared once");
        metric
    }
}

/// A metric that is brought up to date when it is looked at.
#[derive(Clone)]
struct Looked<M> {
    metric: M,
    look: Arc<dyn Fn(&M) + Send + Sync>,
}

impl<M: Collector> Collector for Looked<M> {
    fn desc(&self) -> Vec<&Desc> {
        self.metric.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        (self.look)(&self.metric);
        self.metric.collect()
    }
}
