//! A bound on how fast something goes on in the background.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::engine::leases::Sureness;

/// Bytes per second that may be spent.
pub(in crate::engine) struct Pace {
    /// `None`: as fast as it goes.
    rate: Option<u64>,
    next: Instant,
    /// Shared with others; `None`: nobody is waited for.
    turns: Option<Arc<Semaphore>>,
    /// That it is this process's duty; `None`: it is anybody's.
    sureness: Option<Sureness>,
}

impl Pace {
    pub(in crate::engine) fn of(bytes_per_second: u64) -> Self {
        Self { rate: Some(bytes_per_second.max(1)), ..Self::unbounded() }
    }

    pub(in crate::engine) fn unbounded() -> Self {
        Self { rate: None, next: Instant::now(), turns: None, sureness: None }
    }

    /// As fast as it goes, step by step in turns with others, so that who has few steps to make
    /// overtakes who has many.
    pub(in crate::engine) fn in_turns(turns: &Arc<Semaphore>) -> Self {
        Self { turns: Some(Arc::clone(turns)), ..Self::unbounded() }
    }

    /// The same, for as long as it is this process's duty.
    pub(in crate::engine) fn under(self, sureness: Sureness) -> Self {
        Self { sureness: Some(sureness), ..self }
    }

    /// Waits for the turn to make a step, which lasts until the answer is dropped.
    pub(in crate::engine) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(self.turns.as_ref()?).acquire_owned().await.ok()
    }

    /// Waits until `bytes` more may be spent. What was not spent before is not saved up.
    pub(in crate::engine) async fn spend(&mut self, bytes: u64) {
        if let Some(turn) = self.when(bytes, Instant::now()) {
            sleep_until(turn).await;
        }
        self.ensure_duty().await;
    }

    /// Never ends where it is a fellow's duty by now.
    pub(in crate::engine) async fn ensure_duty(&mut self) {
        if let Some(sureness) = &mut self.sureness {
            sureness.wait().await;
        }
    }

    /// Pure: when it may be spent.
    fn when(&mut self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        let turn = self.next.max(now);
        self.next = turn + Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_to() {
        let begun = Instant::now() + Duration::from_secs(1);
        let after = |millis| begun + Duration::from_millis(millis);
        let mut pace = Pace::of(1000);
        assert_eq!(pace.when(500, begun), Some(begun));
        assert_eq!(pace.when(1000, begun), Some(after(500)));
        assert_eq!(pace.when(1, after(700)), Some(after(1500)));
        assert_eq!(pace.when(1, after(9000)), Some(after(9000)), "nothing is saved up");
        assert_eq!(Pace::unbounded().when(u64::MAX, begun), None);
    }
}
