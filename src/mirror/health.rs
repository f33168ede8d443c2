//! How mirrors have been doing: one that failed is left alone for a while, and asked last where
//! there is another.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// For how long a mirror is benched after its first failure; doubled for each further one.
const BENCH: Duration = Duration::from_secs(2);
/// The longest that a mirror is benched: then one question tells whether it is back.
const BENCH_MAX: Duration = Duration::from_mins(5);
/// For how long at least one is benched that sent wrong bytes, which it will do again.
const BENCH_WRONG: Duration = Duration::from_mins(1);
/// Mirrors in trouble that are remembered.
const TROUBLED_MAX: usize = 4096;

/// What is remembered of mirrors in trouble, by origin (`SCHEME://HOST[:PORT]`).
#[derive(Default)]
pub(super) struct Health(Mutex<HashMap<String, Trouble>>);

struct Trouble {
    in_a_row: u32,
    benched_until: Instant,
    /// It sent wrong bytes: an answer that looks right does not end its bench.
    is_wrong: bool,
}

impl Health {
    /// Whether the mirror is to be left alone for now.
    pub(super) fn is_benched(&self, origin: &str, now: Instant) -> bool {
        self.lock().get(origin).is_some_and(|trouble| trouble.benched_until > now)
    }

    /// It answered as it should.
    pub(super) fn answered(&self, origin: &str, now: Instant) {
        let mut troubles = self.lock();
        let is_over = |trouble: &Trouble| !trouble.is_wrong || trouble.benched_until <= now;
        if troubles.get(origin).is_some_and(is_over) {
            troubles.remove(origin);
        }
    }

    /// It could not be asked, or broke off.
    pub(super) fn failed(&self, origin: &str, now: Instant) {
        self.bench(origin, BENCH, now);
    }

    /// It sent something else than its archive's lists say.
    pub(super) fn sent_wrong_bytes(&self, origin: &str, now: Instant) {
        self.bench(origin, BENCH_WRONG, now);
        if let Some(trouble) = self.lock().get_mut(origin) {
            trouble.is_wrong = true;
        }
    }

    fn bench(&self, origin: &str, at_first: Duration, now: Instant) {
        let mut troubles = self.lock();
        if troubles.len() >= TROUBLED_MAX {
            troubles.retain(|_, trouble| trouble.benched_until > now);
        }
        if troubles.len() >= TROUBLED_MAX {
            return;
        }
        let new = Trouble { in_a_row: 0, benched_until: now, is_wrong: false };
        let trouble = troubles.entry(origin.to_owned()).or_insert(new);
        // What fails at the same time, or where it was asked all the same, is one failure.
        if trouble.benched_until <= now {
            trouble.in_a_row = trouble.in_a_row.saturating_add(1);
        }
        let doublings = trouble.in_a_row.saturating_sub(1);
        let time = at_first.saturating_mul(2_u32.saturating_pow(doublings)).min(BENCH_MAX);
        trouble.benched_until = trouble.benched_until.max(now + time);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_benched_for_longer_each_time() {
        let (health, mut now) = (Health::default(), Instant::now());
        assert!(!health.is_benched("http://a", now));
        for seconds in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            // Ten at the same time are one.
            (0..10).for_each(|_| health.failed("http://a", now));
            now += Duration::from_secs(seconds) - Duration::from_millis(1);
            assert!(health.is_benched("http://a", now), "{seconds}");
            now += Duration::from_millis(1);
            assert!(!health.is_benched("http://a", now), "{seconds}");
        }
        health.failed("http://a", now);
        health.answered("http://a", now);
        assert!(!health.is_benched("http://a", now));
    }

    #[test]
    fn wrong_bytes_are_not_forgotten_for_an_answer_that_looks_right() {
        let (health, now) = (Health::default(), Instant::now());
        health.sent_wrong_bytes("http://a", now);
        health.answered("http://a", now);
        assert!(health.is_benched("http://a", now));
        assert!(!health.is_benched("http://b", now));
        health.answered("http://a", now + BENCH_WRONG);
        assert!(health.lock().is_empty());
    }
}
