//! What this node announces, and when it is due: at once when it is new, then again and again before
//! others forget it, spread over time so that no burst comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::content::swarm_key::DhtKey;
use crate::dht::records::BOUNDS;

/// Keys of one node: as many as another takes of it, which in a small swarm keeps all.
pub(super) const KEYS_MAX: usize = BOUNDS.of_a_node;

/// The keys and their times.
pub(super) struct Announcer {
    /// After how long a key is announced again.
    renew: Duration,
    due: BTreeMap<DhtKey, Instant>,
    queue: BTreeSet<(Instant, DhtKey)>,
}

impl Announcer {
    /// Records live for `ttl`: each is renewed after a third of that, so that a renewal may fail.
    pub(super) fn new(ttl: Duration) -> Self {
        Self { renew: ttl / 3, due: BTreeMap::new(), queue: BTreeSet::new() }
    }

    /// Takes up a key; whether it is new, and there is room.
    pub(super) fn add(&mut self, key: DhtKey, now: Instant) -> bool {
        let is_new = self.due.len() < KEYS_MAX && !self.due.contains_key(&key);
        if is_new {
            self.set(key, now);
        }
        is_new
    }

    /// Lets go of a key; whether it was there.
    pub(super) fn remove(&mut self, key: &DhtKey) -> bool {
        match self.due.remove(key) {
            Some(due) => self.queue.remove(&(due, *key)),
            None => false,
        }
    }

    /// Up to `max` keys that are due, the longest due first. They are due again in their time.
    pub(super) fn take_due(&mut self, max: usize, now: Instant) -> Vec<DhtKey> {
        let due = self.queue.iter().take_while(|(due, _)| *due <= now).take(max);
        let keys: Vec<DhtKey> = due.map(|(_, key)| *key).collect();
        for key in &keys {
            self.set(*key, now + self.renew.mul_f64(jitter(key)));
        }
        keys
    }

    /// Has a key announced no later than that, if it still is to be.
    pub(super) fn hasten(&mut self, key: &DhtKey, at: Instant) {
        if self.due.get(key).is_some_and(|due| *due > at) {
            self.set(*key, at);
        }
    }

    /// Whether it was last announced before `at`, and is not due now.
    pub(super) fn was_announced_before(&self, key: &DhtKey, at: Instant, now: Instant) -> bool {
        let renewed = at + self.renew.mul_f64(jitter(key));
        self.due.get(key).is_some_and(|due| *due > now && *due < renewed)
    }

    /// The next keys after that one, in their own order: for who looks through all of them.
    pub(super) fn after(&self, key: Option<DhtKey>, max: usize) -> Vec<DhtKey> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.due.range((from, Bound::Unbounded)).take(max).map(|(key, _)| *key).collect()
    }

    pub(super) fn has(&self, key: &DhtKey) -> bool {
        self.due.contains_key(key)
    }

    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    /// For how long the longest due key has been due.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        let first = self.queue.first();
        first.map_or(Duration::ZERO, |(due, _)| now.saturating_duration_since(*due))
    }

    /// How many have been due for so long.
    pub(super) fn due_for(&self, time: Duration, now: Instant) -> usize {
        let Some(before) = now.checked_sub(time) else { return 0 };
        self.queue.iter().take_while(|(due, _)| *due <= before).count()
    }

    fn set(&mut self, key: DhtKey, at: Instant) {
        if let Some(before) = self.due.insert(key, at) {
            self.queue.remove(&(before, key));
        }
        self.queue.insert((at, key));
    }
}

/// 0.8 to 1, of its own for each key: what is announced together drifts apart.
fn jitter(key: &DhtKey) -> f64 {
    let [.., last] = key.as_bytes();
    1.0 - f64::from(*last) / 1_280.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    fn key(number: u8) -> DhtKey {
        DhtKey::from_bytes(&[number; 20]).unwrap()
    }

    #[test]
    fn what_is_new_is_due_at_once_and_again_well_before_it_expires() {
        let (mut announcer, start) = (Announcer::new(TTL), Instant::now());
        assert!(announcer.add(key(0), start));
        assert!(!announcer.add(key(0), start));
        assert!(announcer.add(key(255), start));
        assert_eq!(announcer.take_due(1, start), [key(0)]);
        assert_eq!(announcer.lag(start + TTL / 100), TTL / 100);
        let later = start + TTL / 100;
        assert_eq!(
            (announcer.due_for(TTL / 100, later), announcer.due_for(TTL / 50, later)),
            (1, 0)
        );
        assert_eq!(announcer.take_due(10, start), [key(255)]);
        assert_eq!(announcer.take_due(10, start + TTL / 4), []);
        assert_eq!(announcer.take_due(10, start + TTL * 3 / 10), [key(255)], "they drift apart");
        assert_eq!(announcer.take_due(10, start + TTL / 3), [key(0)]);
    }

    #[test]
    fn what_is_withdrawn_is_not_due_any_more() {
        let (mut announcer, start) = (Announcer::new(TTL), Instant::now());
        announcer.add(key(1), start);
        assert!(announcer.remove(&key(1)));
        assert!(!announcer.remove(&key(1)));
        announcer.hasten(&key(1), start);
        assert_eq!((announcer.take_due(10, start + TTL), announcer.len()), (Vec::new(), 0));
    }

    #[test]
    fn what_failed_is_due_earlier() {
        let (mut announcer, start) = (Announcer::new(TTL), Instant::now());
        announcer.add(key(1), start);
        announcer.take_due(1, start);
        announcer.hasten(&key(1), start + TTL / 30);
        announcer.hasten(&key(1), start + TTL / 20);
        assert_eq!(announcer.take_due(1, start + TTL / 30), [key(1)]);
    }

    #[test]
    fn what_a_newcomer_has_not_heard_was_announced_before_it_came() {
        let (mut announcer, start) = (Announcer::new(TTL), Instant::now());
        let (came, now) = (start + TTL / 10, start + TTL / 5);
        announcer.add(key(1), start);
        announcer.add(key(2), start);
        assert!(!announcer.was_announced_before(&key(1), came, now), "it is due: all will hear");
        assert_eq!(announcer.take_due(1, start), [key(1)]);
        assert_eq!(announcer.take_due(1, came), [key(2)]);
        assert!(announcer.was_announced_before(&key(1), came, now));
        assert!(!announcer.was_announced_before(&key(2), came, now));
        assert!(!announcer.was_announced_before(&key(3), came, now), "it is not announced");
    }

    #[test]
    fn all_keys_can_be_looked_through_in_steps() {
        let (mut announcer, start) = (Announcer::new(TTL), Instant::now());
        for number in [3, 1, 2] {
            announcer.add(key(number), start);
        }
        assert_eq!(announcer.after(None, 2), [key(1), key(2)]);
        assert_eq!(announcer.after(Some(key(2)), 2), [key(3)]);
        assert_eq!(announcer.after(Some(key(3)), 2), []);
    }
}
