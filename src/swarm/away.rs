//! Whether somebody is there at all: who failed is left alone, for longer each time, and then one question
//! tells whether it is back.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// For how long one that failed is left alone at first; then for twice as long, up to this.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// How one has been doing.
#[derive(Default)]
pub(super) struct Away(Mutex<Option<Trouble>>);

struct Trouble {
    pause: Duration,
    until: Instant,
}

/// Whether to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It answers.
    There,
    /// It did not; one question tells whether it does again, which is told to whoever asks first.
    Due,
    /// It is left alone.
    Away,
}

impl Away {
    /// Whether it is to be asked now.
    pub(super) fn standing(&self, now: Instant) -> Standing {
        match &mut *self.lock() {
            None => Standing::There,
            Some(trouble) if trouble.until <= now => {
                trouble.pause = (2 * trouble.pause).min(PAUSE.1);
                trouble.until = now + trouble.pause;
                Standing::Due
            }
            Some(_) => Standing::Away,
        }
    }

    /// It answered; whether that is news.
    pub(super) fn answered(&self) -> bool {
        self.lock().take().is_some()
    }

    /// It did not answer as it should; whether that is news.
    pub(super) fn failed(&self, now: Instant) -> bool {
        let mut trouble = self.lock();
        let is_news = trouble.is_none();
        trouble.get_or_insert(Trouble { pause: PAUSE.0, until: now + PAUSE.0 });
        is_news
    }

    /// Whether it failed, and has not answered since.
    pub(super) fn is_away(&self) -> bool {
        self.lock().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_is_asked_ever_more_seldom_and_by_one_at_a_time() {
        let (away, mut now) = (Away::default(), Instant::now());
        assert_eq!(away.standing(now), Standing::There);
        assert!(away.failed(now));
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert!(!away.failed(now), "said once");
            now += Duration::from_secs(seconds).saturating_sub(Duration::from_millis(1));
            assert_eq!(away.standing(now), Standing::Away, "{seconds}");
            now += Duration::from_millis(1);
            assert_eq!(away.standing(now), Standing::Due, "{seconds}");
            assert_eq!(away.standing(now), Standing::Away, "{seconds}: one is enough");
        }
        assert!(away.is_away() && away.answered() && !away.answered() && !away.is_away());
        assert_eq!(away.standing(now), Standing::There);
    }
}
