//! How mirrors have been doing: one that failed is left alone for a while, and asked last where
//! there is another. One that can not be reached again and again is away: where there is no other,
//! requests wait for it but a moment, except for one every few seconds.

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
/// For how long a mirror counts as away that could not be reached.
const AWAY: Duration = Duration::from_mins(1);
/// How often one that is away is waited for properly.
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
    /// It is away, for as long as it is benched.
    is_away: bool,
    probe_at: Instant,
}

/// How well a mirror stands; who stands better is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Nothing is known against it.
    Well,
    /// It failed lately.
    Benched,
    /// It can not be reached.
    Away,
}

impl Trouble {
    fn standing(&self, now: Instant) -> Standing {
        match self.benched_until > now {
            false => Standing::Well,
            true if self.is_away => Standing::Away,
            true => Standing::Benched,
        }
    }
}

impl Health {
    /// How it stands.
    pub(super) fn standing(&self, origin: &str, now: Instant) -> Standing {
        self.lock().get(origin).map_or(Standing::Well, |trouble| trouble.standing(now))
    }

    /// Whether it failed, and has not answered as it should since.
    pub(super) fn has_failed(&self, origin: &str) -> bool {
        self.lock().contains_key(origin)
    }

    /// How it stands, and for how long it is benched.
    pub(super) fn bench_of(&self, origin: &str, now: Instant) -> (Standing, Duration) {
        let troubles = self.lock();
        troubles.get(origin).map_or((Standing::Well, Duration::ZERO), |trouble| {
            (trouble.standing(now), trouble.benched_until.saturating_duration_since(now))
        })
    }

    /// Whether whoever asks may wait for a mirror that is away, to see whether it is back: one, every
    /// few seconds.
    pub(super) fn may_probe(&self, origin: &str, now: Instant) -> bool {
        let mut troubles = self.lock();
        let due = troubles.get_mut(origin).filter(|trouble| trouble.probe_at <= now);
        due.map(|trouble| trouble.probe_at = now + PROBE_EVERY).is_some()
    }

    /// It could not be connected to again and again, or was silent: which may be for one file alone,
    /// unless nothing else was heard of it for long.
    pub(super) fn is_gone(&self, origin: &str, is_silent: bool, now: Instant) {
        let mut troubles = self.lock();
        let is_proven = |trouble: &&mut Trouble| !is_silent || trouble.in_a_row >= SILENCES_MIN;
        let Some(trouble) = troubles.get_mut(origin).filter(is_proven) else { return };
        if trouble.standing(now) != Standing::Away {
            tracing::warn!(origin, "a mirror is away: serving what is stored, unconfirmed");
            trouble.probe_at = now + PROBE_EVERY;
        }
        trouble.is_away = true;
        trouble.benched_until = trouble.benched_until.max(now + AWAY);
    }

    /// How many are away.
    pub(super) fn away(&self, now: Instant) -> usize {
        let troubles = self.lock();
        troubles.values().filter(|trouble| trouble.standing(now) == Standing::Away).count()
    }

    /// It answered as it should.
    pub(super) fn answered(&self, origin: &str, now: Instant) {
        let mut troubles = self.lock();
        let Some(trouble) = troubles.get_mut(origin) else { return };
        if std::mem::take(&mut trouble.is_away) {
            tracing::info!(origin, "a mirror is back");
            trouble.benched_until = now;
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
        let new = Trouble {
            in_a_row: 0,
            benched_until: now,
            is_wrong: false,
            is_away: false,
            probe_at: now,
        };
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
        assert!(!health.has_failed("http://a"));
        for seconds in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            // Ten at the same time are one.
            (0..10).for_each(|_| health.failed("http://a", now));
            now += Duration::from_secs(seconds) - Duration::from_millis(1);
            assert_eq!(standing(now), Standing::Benched, "{seconds}");
            now += Duration::from_millis(1);
            assert_eq!(standing(now), Standing::Well, "{seconds}");
        }
        health.failed("http://a", now);
        assert!(health.has_failed("http://a"));
        health.answered("http://a", now);
        assert_eq!(standing(now), Standing::Well);
        assert!(!health.has_failed("http://a"));
    }

    #[test]
    fn a_mirror_that_is_away_is_probed_by_one() {
        let (health, mut now) = (Health::default(), Instant::now());
        health.failed("http://a", now);
        health.is_gone("http://a", true, now);
        assert_eq!(health.standing("http://a", now), Standing::Benched);
        health.is_gone("http://a", false, now);
        for _ in 0..3 {
            assert_eq!(health.standing("http://a", now), Standing::Away);
            assert!(!health.may_probe("http://a", now));
            now += PROBE_EVERY;
            assert!(health.may_probe("http://a", now));
        }
        assert_eq!(health.away(now), 1);
        assert_eq!(health.standing("http://a", now + AWAY), Standing::Well);
        health.answered("http://a", now);
        assert_eq!(health.standing("http://a", now), Standing::Well);
        assert_eq!(health.away(now), 0);
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
