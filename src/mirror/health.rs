//! How mirrors have been doing: one that failed is left alone for a while, and asked last where
//! there is another. One that is away is remembered as away, so that not every request waits for it
//! in vain, and one question every few seconds tells whether it is back.

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
/// How often a mirror that is away is asked whether it is back.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// A mirror that is silent so often in a row, between benches, is away.
const SILENCES_MIN: u32 = 3;
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
    /// It is away, and asked again then.
    probe_at: Option<Instant>,
}

/// Whether a mirror is worth a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Yes.
    Well,
    /// If no other is.
    Benched,
    /// It is away; one question, to see whether it is back.
    ToBeProbed,
    /// It is away.
    Away,
}

impl Health {
    /// How it stands; whoever is told to probe it is the only one for a while.
    pub(super) fn standing(&self, origin: &str, now: Instant) -> Standing {
        match self.lock().get_mut(origin) {
            Some(Trouble { probe_at: Some(at), .. }) if *at <= now => {
                *at = now + PROBE_EVERY;
                Standing::ToBeProbed
            }
            Some(Trouble { probe_at: Some(_), .. }) => Standing::Away,
            Some(trouble) if trouble.benched_until > now => Standing::Benched,
            _ => Standing::Well,
        }
    }

    /// Whether it is away.
    pub(super) fn is_away(&self, origin: &str) -> bool {
        self.lock().get(origin).is_some_and(|trouble| trouble.probe_at.is_some())
    }

    /// It could not be connected to again and again, or was silent: which may be for one file alone,
    /// unless nothing else was heard of it for long.
    pub(super) fn is_gone(&self, origin: &str, is_silent: bool, now: Instant) {
        let mut troubles = self.lock();
        let is_proven = |trouble: &&mut Trouble| !is_silent || trouble.in_a_row >= SILENCES_MIN;
        if let Some(trouble) = troubles.get_mut(origin).filter(is_proven) {
            if trouble.probe_at.is_none() {
                tracing::warn!(origin, "a mirror is away: serving what is stored, unconfirmed");
            }
            trouble.probe_at = Some(now + PROBE_EVERY);
        }
    }

    /// How many are away.
    pub(super) fn away(&self) -> usize {
        self.lock().values().filter(|trouble| trouble.probe_at.is_some()).count()
    }

    /// It answered as it should.
    pub(super) fn answered(&self, origin: &str, now: Instant) {
        let mut troubles = self.lock();
        let Some(trouble) = troubles.get_mut(origin) else { return };
        if trouble.probe_at.take().is_some() {
            tracing::info!(origin, "a mirror is back");
        }
        if !trouble.is_wrong || trouble.benched_until <= now {
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
        let new = Trouble { in_a_row: 0, benched_until: now, is_wrong: false, probe_at: None };
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
        let standing = |now| health.standing("http://a", now);
        assert_eq!(standing(now), Standing::Well);
        for seconds in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            // Ten at the same time are one.
            (0..10).for_each(|_| health.failed("http://a", now));
            now += Duration::from_secs(seconds) - Duration::from_millis(1);
            assert_eq!(standing(now), Standing::Benched, "{seconds}");
            now += Duration::from_millis(1);
            assert_eq!(standing(now), Standing::Well, "{seconds}");
        }
        health.failed("http://a", now);
        health.answered("http://a", now);
        assert_eq!(standing(now), Standing::Well);
    }

    #[test]
    fn a_mirror_that_is_away_is_probed_by_one() {
        let (health, mut now) = (Health::default(), Instant::now());
        health.failed("http://a", now);
        health.is_gone("http://a", true, now);
        assert_eq!(health.standing("http://a", now), Standing::Benched);
        health.is_gone("http://a", false, now);
        assert_eq!(health.standing("http://a", now), Standing::Away);
        for _ in 0..3 {
            now += PROBE_EVERY;
            assert_eq!(health.standing("http://a", now), Standing::ToBeProbed);
            assert_eq!(health.standing("http://a", now), Standing::Away);
            assert!(health.is_away("http://a"));
        }
        health.answered("http://a", now);
        assert_eq!(health.standing("http://a", now), Standing::Well);
        assert_eq!(health.away(), 0);
    }

    #[test]
    fn wrong_bytes_are_not_forgotten_for_an_answer_that_looks_right() {
        let (health, now) = (Health::default(), Instant::now());
        health.sent_wrong_bytes("http://a", now);
        health.answered("http://a", now);
        assert_eq!(health.standing("http://a", now), Standing::Benched);
        assert_eq!(health.standing("http://b", now), Standing::Well);
        health.answered("http://a", now + BENCH_WRONG);
        assert!(health.lock().is_empty());
    }
}
