//! Whether sites have what their filters say. A filter is wrong once in 256 where the site does not have
//! the blob, and a while behind; one that is mostly wrong is not believed for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::Instant;

use crate::swarm::discovery::Holder;
use crate::telemetry::metrics::Metrics;

/// Over how long claims are counted.
const WINDOW: Duration = Duration::from_mins(10);
/// False claims within that time that may be bad luck.
const LUCK: u32 = 8;
/// For how long a site is not believed at first; then for twice as long, up to this.
const DOUBT: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(1));
/// After how long without a doubt the last one is forgotten.
const FORGIVEN: Duration = Duration::from_hours(2);
/// Sites of which that is remembered: as many as a node knows.
const SITES_MAX: usize = 1_024;

/// What sites' claims came to.
pub struct Claims {
    sites: Arc<Mutex<Sites>>,
    false_claims: IntCounter,
}

type Sites = HashMap<Arc<str>, Record>;

struct Record {
    since: Instant,
    held: u32,
    wrong: u32,
    doubt: Duration,
    doubted_until: Instant,
}

impl Claims {
    /// None so far.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let sites: Arc<Mutex<Sites>> = Arc::default();
        let looked_at = Arc::clone(&sites);
        metrics.gauge_of(
            "aptmesh_swarm_doubted_sites",
            "Sites whose filters are not believed at present, since they were mostly wrong.",
            move || {
                let (now, sites) = (Instant::now(), lock(&looked_at));
                let doubted = sites.values().filter(|record| record.doubted_until > now).count();
                i64::try_from(doubted).unwrap_or(i64::MAX)
            },
        );
        Self {
            sites,
            false_claims: metrics.counter(
                "aptmesh_swarm_false_claims_total",
                "Blobs that a site did not have though its filter said so.",
            ),
        }
    }

    /// Whether a site's filter is to be believed.
    #[must_use]
    pub fn believes(&self, holder: &Holder) -> bool {
        self.believes_at(holder, Instant::now())
    }

    fn believes_at(&self, holder: &Holder, now: Instant) -> bool {
        let sites = lock(&self.sites);
        sites.get(&holder.node).is_none_or(|record| record.doubted_until <= now)
    }

    /// The site had a blob that its filter claimed.
    pub fn held(&self, holder: &Holder) {
        self.count(holder, true, Instant::now());
    }

    /// The site did not have a blob that its filter claimed (404).
    pub fn was_false(&self, holder: &Holder) {
        self.false_claims.inc();
        self.count(holder, false, Instant::now());
    }

    fn count(&self, holder: &Holder, held: bool, now: Instant) {
        let mut sites = lock(&self.sites);
        if sites.len() >= SITES_MAX && !sites.contains_key(&holder.node) {
            make_room(&mut sites, now);
        }
        sites.entry(Arc::clone(&holder.node)).or_insert_with(|| Record::new(now)).count(held, now);
    }
}

fn lock(sites: &Mutex<Sites>) -> MutexGuard<'_, Sites> {
    sites.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who was counted last the longest ago is forgotten; of those in doubt, none if there are others.
fn make_room(sites: &mut Sites, now: Instant) {
    let least = sites.iter().min_by_key(|(_, record)| (record.doubted_until > now, record.since));
    if let Some(node) = least.map(|(node, _)| Arc::clone(node)) {
        sites.remove(&node);
    }
}

impl Record {
    fn new(now: Instant) -> Self {
        Self { since: now, held: 0, wrong: 0, doubt: DOUBT.0 / 2, doubted_until: now }
    }

    fn count(&mut self, held: bool, now: Instant) {
        if now.duration_since(self.since) > WINDOW {
            (self.since, self.held, self.wrong) = (now, 0, 0);
        }
        if held {
            self.held += 1;
        } else {
            self.wrong += 1;
        }
        // What was asked for before the doubt says nothing new.
        if self.doubted_until > now || self.wrong <= LUCK || self.wrong <= self.held {
            return;
        }
        let is_forgiven = now.duration_since(self.doubted_until) > FORGIVEN;
        self.doubt = if is_forgiven { DOUBT.0 } else { (2 * self.doubt).min(DOUBT.1) };
        self.doubted_until = now + self.doubt;
        (self.since, self.held, self.wrong) = (now, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str) -> Holder {
        Holder { node: name.into(), urls: ["http://site".into()].into() }
    }

    #[test]
    fn a_site_that_is_mostly_wrong_is_doubted_for_longer_each_time() {
        let (claims, liar) = (Claims::new(&Metrics::default()), holder("liar"));
        let mut now = Instant::now();
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            (0..LUCK).for_each(|_| claims.count(&liar, false, now));
            assert!(claims.believes_at(&liar, now), "{minutes}: that may be bad luck");
            (0..100).for_each(|_| claims.count(&liar, false, now));
            assert!(!claims.believes_at(&liar, now), "{minutes}");
            now += Duration::from_mins(minutes).saturating_sub(Duration::from_millis(1));
            assert!(!claims.believes_at(&liar, now), "{minutes}");
            now += Duration::from_millis(1);
            assert!(claims.believes_at(&liar, now), "{minutes}");
            now += WINDOW;
        }
        assert!(claims.believes_at(&holder("other"), now));
    }

    #[test]
    fn a_site_that_is_mostly_right_is_believed() {
        let (claims, site) = (Claims::new(&Metrics::default()), holder("site"));
        let mut now = Instant::now();
        (0..100).for_each(|_| claims.count(&site, true, now));
        (0..100).for_each(|_| claims.count(&site, false, now));
        assert!(claims.believes_at(&site, now));
        let slow = holder("seldom wrong");
        for _ in 0..100 {
            claims.count(&slow, false, now);
            now += WINDOW / 7;
            assert!(claims.believes_at(&slow, now));
        }
    }

    #[test]
    fn memory_is_bounded_and_doubts_outlive_a_crowd() {
        let (claims, liar) = (Claims::new(&Metrics::default()), holder("liar"));
        (0..=LUCK).for_each(|_| claims.was_false(&liar));
        (0..2 * SITES_MAX).for_each(|number| claims.was_false(&holder(&number.to_string())));
        assert!(!claims.believes(&liar));
        assert_eq!(lock(&claims.sites).len(), SITES_MAX);
    }
}
