//! What went through, by where it came from and where it went: since the start, as the metrics count it,
//! and since ever, as the index keeps it for the whole site.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::engine::metrics::ServedCounters;
use crate::engine::outcome::Source;
use crate::engine::{Engine, EngineMetrics};
use crate::index::{Index, Traffic};
use crate::mirror::Mirror;
use crate::swarm::Swarm;

/// How often the index is told: so much a crash loses.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// The same, while nothing went through here: for what others have told.
const TELL_NOTHING_EVERY: Duration = Duration::from_mins(5);

/// What counts.
struct Counters {
    mirror: IntCounter,
    /// `from` others.
    received: IntCounterVec,
    /// To clients.
    served: Arc<ServedCounters>,
    /// `to` others, by `source`.
    given: IntCounterVec,
}

/// Tells the index what was counted.
pub(super) struct Meter {
    index: Arc<dyn Index>,
    counters: Counters,
    /// One tells at a time.
    telling: tokio::sync::Mutex<()>,
    told: Mutex<Told>,
}

#[derive(Clone, Copy, Default)]
struct Told {
    /// What was counted by then, since the start.
    session: Traffic,
    /// What the index had then; `None`: it never answered.
    ever: Option<Traffic>,
    /// When it said that.
    at: Option<Instant>,
}

impl Told {
    /// Whether it is not worth asking the index.
    fn is_all(&self, session: &Traffic, now: Instant) -> bool {
        let is_due = |at| now.duration_since(at) >= TELL_NOTHING_EVERY;
        *session == self.session && self.at.is_some_and(|at| !is_due(at))
    }
}

impl Meter {
    pub(super) fn new(
        index: &Arc<dyn Index>,
        mirror: &Mirror,
        swarm: &Swarm,
        metrics: &EngineMetrics,
    ) -> Arc<Self> {
        let counters = Counters {
            mirror: mirror.received().clone(),
            received: swarm.received.clone(),
            served: Arc::clone(&metrics.served_bytes),
            given: metrics.given_bytes.clone(),
        };
        let (telling, told) = Default::default();
        Arc::new(Self { index: Arc::clone(index), counters, telling, told })
    }

    /// For as long as the process lives.
    pub(super) async fn keep_telling(self: Arc<Self>) {
        let mut ticks = interval(TELL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tell().await;
        }
    }

    /// What the index may have counted without saying so is not told again; while it is not asked, it is
    /// told later.
    pub(super) async fn tell(&self) {
        let _alone = self.telling.lock().await;
        let (before, session) = (*self.told(), self.session());
        if before.is_all(&session, Instant::now()) {
            return;
        }
        match self.index.add_traffic(&session.since(&before.session)).await {
            Ok(ever) => *self.told() = Told { session, ever: Some(ever), at: Some(Instant::now()) },
            Err(error) if error.is_old_news() => {}
            Err(error) => {
                tracing::debug!(%error, source = %error.source, "what went through was not counted");
                *self.told() = Told { session, at: None, ..before };
            }
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the start.
    pub(super) fn session(&self) -> Traffic {
        let Counters { mirror, received, served, given } = &self.counters;
        let given_to = |to| -> u64 {
            Source::ALL.iter().map(|from| given.with_label_values(&[to, from.label()]).get()).sum()
        };
        // Who joins a download that another request began costs nobody a byte more.
        let spared = |source: &Source| source.is_stored() || *source == Source::Flight;
        let spared = Source::ALL.into_iter().filter(spared);
        Traffic {
            from_mirrors: mirror.get(),
            from_peers: received.with_label_values(&["peer"]).get(),
            from_replicas: received.with_label_values(&["replica"]).get(),
            from_store: spared.map(|source| served.sum(source)).sum(),
            to_peers: given_to("peer"),
            to_replicas: given_to("replica"),
        }
    }
}

impl Engine {
    /// What went through this process since its start, and through all of the site's since ever, as far
    /// as the index told; of others, some seconds are missing.
    pub fn traffic(&self) -> (Traffic, Option<Traffic>) {
        let told = *self.meter.told();
        let session = self.meter.session();
        (session, told.ever.map(|ever| ever.and(&session.since(&told.session))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_seldom() {
        let (nothing, something) = (Traffic::default(), Traffic::of_parts([1; 6]));
        let now = Instant::now();
        assert!(!Told::default().is_all(&nothing, now), "what there was before is not known");
        let told = Told { at: Some(now), ..Told::default() };
        assert!(told.is_all(&nothing, now) && !told.is_all(&something, now));
        assert!(!told.is_all(&nothing, now + TELL_NOTHING_EVERY));
    }
}
