//! How far the mirror is to go with a body of which peers bring the rest.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// For how long a body is held that nobody wants more of: then its mirror should not send more, either.
const HELD_FOR: Duration = Duration::from_millis(300);

/// What a flow holds on to.
pub(in crate::engine) struct Leash(watch::Receiver<u64>);

/// Who holds it.
pub(super) struct Hand(watch::Sender<u64>);

impl Leash {
    /// The mirror brings all of it.
    pub(in crate::engine) fn none() -> Self {
        Self(watch::channel(u64::MAX).1)
    }

    /// One of no length.
    pub(super) fn held() -> (Hand, Self) {
        let (hand, leash) = watch::channel(0);
        (Hand(hand), Self(leash))
    }

    /// The byte that it reaches; `None`: the end.
    pub(in crate::engine) fn end(&self) -> Option<u64> {
        Some(*self.0.borrow()).filter(|end| *end < u64::MAX)
    }

    /// Whether there is more to bring than `received`, or is soon; waits for that, however long it takes,
    /// where the mirror could not go on later (`is_ranged`).
    pub(in crate::engine) async fn reaches(&mut self, received: u64, is_ranged: bool) -> bool {
        if is_ranged {
            return timeout(HELD_FOR, self.reaches_beyond(received)).await.is_ok();
        }
        self.reaches_beyond(received).await;
        true
    }

    /// Waits until there is more to bring than `received`.
    pub(in crate::engine) async fn reaches_beyond(&mut self, received: u64) {
        // Who held it has gone: then it is the end that counts.
        drop(self.0.wait_for(|end| *end > received).await);
    }
}

impl Hand {
    /// It reaches so far from now on, or to the end.
    pub(super) fn reach(&self, to: Option<u64>) {
        let to = to.unwrap_or(u64::MAX);
        self.0.send_if_modified(|end| std::mem::replace(end, to) != to);
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.reach(None);
    }
}
