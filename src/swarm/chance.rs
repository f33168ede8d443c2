//! Chance, for who must not always choose the same: not for secrets.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers that nobody foresees.
#[derive(Default)]
pub(super) struct Chance {
    hashing: RandomState,
    drawn: AtomicU64,
}

impl Chance {
    /// From 0 to 1, without these.
    pub(super) fn draw(&self) -> f64 {
        (f64::from(self.number()) + 0.5) / (f64::from(u32::MAX) + 1.0)
    }

    /// One of so many, counted from 0; 0 of none.
    pub(super) fn below(&self, count: usize) -> usize {
        usize::try_from(self.number()).unwrap_or_default().checked_rem(count).unwrap_or_default()
    }

    fn number(&self) -> u32 {
        let hash = self.hashing.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed));
        let [.., a, b, c, d] = hash.to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_spread_evenly() {
        let chance = Chance::default();
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            let drawn = chance.draw();
            assert!(drawn > 0.0 && drawn < 1.0);
            let tenth = (0..10).rev().find(|tenth| drawn >= f64::from(*tenth) / 10.0).unwrap();
            tenths[usize::try_from(tenth).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|count| (700..1_300).contains(count)), "{tenths:?}");
    }
}
