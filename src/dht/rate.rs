//! How fast a node may announce: as much as it may have at once, and then as much as an honest one renews.
//! What is beyond costs nothing but its reading. Pure; the clock is handed in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;

use crate::dht::records::BOUNDS;

/// Keys that a node may announce at once: all that it may have.
const BURST: f64 = 131_072.0;
/// Keys a second after that: 13 times what renewing all of them takes, every 15 minutes.
const PER_SECOND: f64 = 2_000.0;

const _: () = assert!(BOUNDS.of_a_node == 131_072, "the burst");

/// What nodes may still announce.
#[derive(Default)]
pub(super) struct Rates {
    /// Of those who have not all that they may have; others are not remembered.
    left: HashMap<PeerId, (f64, Instant)>,
}

impl Rates {
    /// How many of `keys` keys are taken from `peer` now.
    pub(super) fn take(&mut self, peer: PeerId, keys: usize, now: Instant) -> usize {
        let (left, at) = self.left.entry(peer).or_insert((BURST, now));
        *left = refilled(*left, now.saturating_duration_since(*at));
        *at = now;
        let taken = keys.min(whole(*left));
        *left -= number(taken);
        taken
    }

    /// Forgets those who may have all again.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.left
            .retain(|_, (left, at)| refilled(*left, now.saturating_duration_since(*at)) < BURST);
    }
}

fn refilled(left: f64, since: Duration) -> f64 {
    (left + since.as_secs_f64() * PER_SECOND).min(BURST)
}

fn number(keys: usize) -> f64 {
    u32::try_from(keys).unwrap_or(u32::MAX).into()
}

/// Rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and the burst"
)]
fn whole(left: f64) -> usize {
    left as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_announces_all_it_has_and_renews_it_is_never_held_up() {
        let (mut rates, mut now, peer) = (Rates::default(), Instant::now(), PeerId::random());
        for _ in 0..10 {
            assert_eq!(rates.take(peer, BOUNDS.of_a_node, now), BOUNDS.of_a_node);
            now += Duration::from_mins(15);
        }
    }

    #[test]
    fn a_flood_is_cut_to_a_rate_and_nobody_elses() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let (flood, modest) = (PeerId::random(), PeerId::random());
        let mut taken = 0;
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            taken += (0..10).map(|_| rates.take(flood, 4_096, now)).sum::<usize>();
            assert_eq!(rates.take(modest, 100, now), 100);
        }
        assert_eq!(taken, BOUNDS.of_a_node + 99 * 2_000);
        rates.sweep(start + Duration::from_secs(101));
        assert_eq!(rates.left.len(), 1, "the modest one has all again");
        rates.sweep(start + Duration::from_mins(10));
        assert!(rates.left.is_empty());
    }
}
