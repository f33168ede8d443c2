//! Whether PostgreSQL is there: while it is away, nobody waits to find that out again.

use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// For how long nobody asks a server that was away, but for one call then, which finds out whether it
/// is back: as long as apt waits before it tries again.
const PAUSE: Duration = Duration::from_secs(1);

/// What the last calls came to.
#[derive(Default)]
pub(super) struct Health {
    absence: Mutex<Option<Absence>>,
}

/// The server is away.
#[derive(Clone, Copy)]
struct Absence {
    since: Instant,
    /// When the next call may try.
    until: Instant,
}

impl Health {
    /// Whether a call may be tried: all while the server is there; one each [`PAUSE`] while not.
    pub(super) fn admits(&self, now: Instant) -> bool {
        match self.absence().as_mut() {
            None => true,
            Some(absence) if absence.until > now => false,
            Some(absence) => {
                absence.until = now + PAUSE;
                true
            }
        }
    }

    /// The server answered, be it with an error.
    pub(super) fn answered(&self) {
        if self.absence().take().is_some() {
            tracing::info!("PostgreSQL is back");
        }
    }

    /// The server could not be reached, or did not answer in time. Whether it has been away for a
    /// while: then this is no matter of a moment in which there was much to do.
    pub(super) fn failed(&self, why: &(dyn Error + 'static), now: Instant) -> bool {
        let before = *self.absence();
        let since = before.map_or(now, |absence| absence.since);
        *self.absence() = Some(Absence { since, until: now + PAUSE });
        if before.is_none() {
            let reason = reasons(why);
            tracing::warn!(
                reason,
                "PostgreSQL is away: going on without the index until it is back"
            );
        }
        now.duration_since(since) >= PAUSE
    }

    fn absence(&self) -> MutexGuard<'_, Option<Absence>> {
        self.absence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error with all its causes; the drivers' own words tell little without them.
pub(super) fn reasons(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.ends_with(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_at_a_time_finds_out_whether_the_server_is_back() {
        let (health, begun) = (Health::default(), Instant::now());
        assert!(health.admits(begun) && health.admits(begun));
        let gone = std::io::Error::other("gone");
        let failed = |at| health.failed(&gone, at);
        assert!(!failed(begun) && !failed(begun), "it may be a moment's matter");
        assert!(!health.admits(begun));
        let later = begun + PAUSE;
        assert!(health.admits(later));
        assert!(!health.admits(later), "one is enough");
        assert!(failed(later), "it is away");
        health.answered();
        assert!(health.admits(later) && health.admits(later));
    }
}
