//! Whether PostgreSQL is there: while it is away, nobody waits to find that out again.

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// For how long nobody asks a server that was away, but for one call then, which finds out whether it
/// is back: as long as apt waits before it tries again.
const PAUSE: Duration = Duration::from_secs(1);

/// What the last calls came to.
#[derive(Default)]
pub(super) struct Health {
    /// When the next call may try; `None`: all is well.
    away_until: Mutex<Option<Instant>>,
}

impl Health {
    /// Whether a call may be tried: all while the server is there; one each [`PAUSE`] while not.
    pub(super) fn admits(&self) -> bool {
        let mut away_until = self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        match *away_until {
            None => true,
            Some(until) if until > Instant::now() => false,
            Some(_) => {
                *away_until = Some(Instant::now() + PAUSE);
                true
            }
        }
    }

    /// The server answered, be it with an error.
    pub(super) fn answered(&self) {
        let before = self.away_until.lock().unwrap_or_else(PoisonError::into_inner).take();
        if before.is_some() {
            tracing::info!("PostgreSQL is back");
        }
    }

    /// The server could not be reached, or did not answer in time.
    pub(super) fn failed(&self, why: &(dyn Error + 'static)) {
        let until = Some(Instant::now() + PAUSE);
        let before = {
            let mut away_until = self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *away_until, until)
        };
        if before.is_none() {
            let reason = reasons(why);
            tracing::warn!(
                reason,
                "PostgreSQL is away: going on without the index until it is back"
            );
        }
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

    #[tokio::test(start_paused = true)]
    async fn one_call_at_a_time_finds_out_whether_the_server_is_back() {
        let health = Health::default();
        assert!(health.admits() && health.admits());
        health.failed(&std::io::Error::other("gone"));
        assert!(!health.admits());
        tokio::time::advance(PAUSE).await;
        assert!(health.admits());
        assert!(!health.admits(), "one is enough");
        health.answered();
        assert!(health.admits() && health.admits());
    }
}
