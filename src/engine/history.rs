//! What went through lately, for people: how much at the moment, and how that changed over a day. In
//! memory: what was before a restart is not there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::engine::Engine;
use crate::engine::traffic::Meter;
use crate::index::Traffic;

/// How often it is looked how much went through.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Looks that are remembered one by one: those of a minute.
const LOOKS_MAX: usize = 31;
/// The time that "now" is.
const NOW: Duration = Duration::from_secs(10);
/// Spans of the picture. When they are full, two become one, so that the picture fills from the first
/// seconds on...
const SPANS_MAX: usize = 360;
/// ...until a span takes this long: then the oldest goes. So it shows 12 to 24 hours.
const SPAN_MAX: Duration = Duration::from_mins(4);

/// What is remembered.
pub(super) struct History(Mutex<Past>);

struct Past {
    /// Since the start, at the last looks; the newest last.
    looks: VecDeque<(Instant, Traffic)>,
    spans: Spans,
}

/// What went through in spans of time, the newest last and not over yet.
struct Spans {
    /// How many looks a span takes.
    looks: u32,
    /// How many of them the newest one has.
    begun: u32,
    each: VecDeque<Traffic>,
}

/// What went through lately.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lately {
    /// In how many seconds that was, about ten: `now`.
    pub now_seconds: f64,
    /// Bytes in these.
    pub now: Traffic,
    /// In how many seconds that was, about sixty: `minute`.
    pub minute_seconds: f64,
    /// Bytes in these.
    pub minute: Traffic,
    /// Seconds that each of the `spans` took.
    pub span_seconds: u64,
    /// Bytes in each, the newest last and not over yet.
    pub spans: Vec<Traffic>,
}

impl History {
    pub(super) fn new(meter: &Meter) -> Arc<Self> {
        let looks = VecDeque::from([(Instant::now(), meter.session())]);
        Arc::new(Self(Mutex::new(Past { looks, spans: Spans::default() })))
    }

    /// For as long as the process lives.
    pub(super) async fn watch(self: Arc<Self>, meter: Arc<Meter>) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.past().look(Instant::now(), meter.session());
        }
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Past {
    fn look(&mut self, now: Instant, session: Traffic) {
        let before = self.looks.back().map_or(session, |(_, before)| *before);
        self.spans.add(&session.since(&before));
        if self.looks.len() >= LOOKS_MAX {
            self.looks.pop_front();
        }
        self.looks.push_back((now, session));
    }

    /// What went through since about that long ago, and the seconds since then.
    fn since(&self, ago: Duration, now: Instant, session: &Traffic) -> (f64, Traffic) {
        let late = self.looks.iter().find(|(at, _)| now.saturating_duration_since(*at) <= ago);
        let (at, then) = late.or(self.looks.back()).copied().unwrap_or((now, *session));
        (now.saturating_duration_since(at).as_secs_f64(), session.since(&then))
    }
}

impl Default for Spans {
    fn default() -> Self {
        Self { looks: 1, begun: 0, each: VecDeque::new() }
    }
}

impl Spans {
    fn add(&mut self, more: &Traffic) {
        if self.begun == 0 {
            self.make_room();
            self.each.push_back(Traffic::default());
        }
        if let Some(newest) = self.each.back_mut() {
            *newest = newest.and(more);
        }
        self.begun = (self.begun + 1) % self.looks;
    }

    fn make_room(&mut self) {
        if self.each.len() < SPANS_MAX {
            return;
        }
        if LOOK_EVERY * self.looks >= SPAN_MAX {
            self.each.pop_front();
            return;
        }
        let pairs = self.each.make_contiguous().chunks(2);
        let sum = |pair: &[Traffic]| pair.iter().fold(Traffic::default(), |sum, one| sum.and(one));
        self.each = pairs.map(sum).collect();
        self.looks *= 2;
    }
}

impl Engine {
    /// What went through this process lately.
    #[must_use]
    pub fn lately(&self) -> Lately {
        let (now, session) = (Instant::now(), self.meter.session());
        let past = self.history.past();
        let (now_seconds, in_seconds) = past.since(NOW, now, &session);
        let (minute_seconds, in_minute) = past.since(Duration::from_mins(1), now, &session);
        let mut spans: Vec<Traffic> = past.spans.each.iter().copied().collect();
        // What came since the last look.
        let rest = past.looks.back().map(|(_, before)| session.since(before));
        if let (Some(newest), Some(rest)) = (spans.last_mut(), rest) {
            *newest = newest.and(&rest);
        }
        Lately {
            now_seconds,
            now: in_seconds,
            minute_seconds,
            minute: in_minute,
            span_seconds: (LOOK_EVERY * past.spans.looks).as_secs(),
            spans,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Traffic {
        Traffic { from_store: 1, ..Traffic::default() }
    }

    #[test]
    fn a_day_is_remembered_in_bounded_room() {
        let mut spans = Spans::default();
        let looks = u64::from(86_400 * 2 / u32::try_from(LOOK_EVERY.as_secs()).unwrap());
        for look in 1..=looks {
            spans.add(&one());
            assert!(spans.each.len() <= SPANS_MAX);
            let bytes: u64 = spans.each.iter().map(|span| span.from_store).sum();
            // Nothing is lost before half a day is over.
            assert!(bytes == look || bytes >= 86_400 / 4, "{look}: {bytes}");
        }
        assert!(LOOK_EVERY * spans.looks >= SPAN_MAX);
    }

    #[test]
    fn now_is_what_came_within_seconds() {
        let start = Instant::now();
        let mut past =
            Past { looks: VecDeque::from([(start, Traffic::default())]), spans: Spans::default() };
        let mut session = Traffic::default();
        for look in 1..=100 {
            session = session.and(&one());
            past.look(start + LOOK_EVERY * look, session);
        }
        let now = start + LOOK_EVERY * 100;
        assert_eq!(past.since(NOW, now, &session).1.from_store, 5);
        assert_eq!(past.since(Duration::from_mins(1), now, &session).1.from_store, 30);
        assert_eq!(past.looks.len(), LOOKS_MAX);
    }
}
