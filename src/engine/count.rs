//! How much the index knows, counted seldom: a count walks over millions of rows, and anybody may ask.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::index::{Index, Totals};
use crate::telemetry::metrics::Metrics;

/// A count that takes no longer is not held: it has a connection of its own, and is right now.
const SHORT: Duration = Duration::from_millis(500);
/// A longer one holds for as many times the time that it took beyond that: so that counting takes no more than
/// about a fiftieth of the time, and the count of a small index is never old.
const HOLDS_FOR: u32 = 50;
/// And for at most this long.
const HOLDS_MAX: Duration = Duration::from_mins(5);
/// How often it is counted for the metrics.
const EVERY: Duration = Duration::from_secs(30);

/// The last count. Who asks while there is one under way waits for that one.
pub(super) struct Count {
    last: Mutex<Option<Counted>>,
    resources: IntGauge,
    expectations: IntGauge,
}

struct Counted {
    totals: Totals,
    until: Instant,
}

impl Count {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            last: Mutex::default(),
            resources: metrics.gauge(
                "aptmesh_engine_resources",
                "Resources of which the index knows a copy, as last counted: twice a minute, less often where that takes long.",
            ),
            expectations: metrics.gauge(
                "aptmesh_engine_expectations",
                "Files of which learnt lists say what they must be, as last counted.",
            ),
        }
    }

    /// Counts for the metrics.
    pub(super) async fn keep_telling(self: Arc<Self>, index: Arc<dyn Index>) {
        loop {
            self.of(&*index).await;
            sleep(EVERY).await;
        }
    }

    /// `None` if the index can not tell.
    pub(super) async fn of(&self, index: &dyn Index) -> Option<Totals> {
        let mut last = self.last.lock().await;
        let begun = Instant::now();
        if let Some(counted) = last.as_ref().filter(|counted| begun < counted.until) {
            return Some(counted.totals);
        }
        let totals = index.totals().await.ok()?;
        self.resources.set(totals.resources.try_into().unwrap_or(i64::MAX));
        self.expectations.set(totals.expectations.try_into().unwrap_or(i64::MAX));
        let now = Instant::now();
        let long = (now - begun).saturating_sub(SHORT);
        let until = now + (long * HOLDS_FOR).min(HOLDS_MAX);
        *last = Some(Counted { totals, until });
        Some(totals)
    }
}
