//! How PostgreSQL is doing: while it is away, or too slow for clients, nobody waits to find that out
//! again but one who looks after it.

use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far the server can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reach {
    /// By all.
    #[default]
    Well,
    /// By those whom no client waits for.
    Slow,
    /// By nobody.
    Away,
}

/// How the server was found to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) reach: Reach,
    /// It takes no writes: a standby, or one that was told so.
    pub(super) is_read_only: bool,
}

impl Condition {
    pub(super) const AWAY: Self = Self { reach: Reach::Away, is_read_only: false };

    /// In words; `None`: all is well.
    fn trouble(self) -> Option<&'static str> {
        match self.reach {
            Reach::Away => Some("PostgreSQL is away"),
            Reach::Slow => Some("PostgreSQL is too slow"),
            Reach::Well if self.is_read_only => Some("PostgreSQL takes no writes"),
            Reach::Well => None,
        }
    }
}

/// What the last calls came to.
#[derive(Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Default)]
struct State {
    condition: Condition,
    /// Until when writes are not tried, whatever the server says of itself.
    full_until: Option<Instant>,
    /// Whether somebody looks after it.
    is_looked_after: bool,
}

impl State {
    fn is_full(&self) -> bool {
        self.full_until.is_some_and(|until| Instant::now() < until)
    }
}

impl Health {
    /// Whether a call may be tried.
    pub(super) fn admits(&self, only_reads: bool, client_waits: bool) -> bool {
        let condition = self.state().condition;
        let reaches = match condition.reach {
            Reach::Well => true,
            Reach::Slow => !client_waits,
            Reach::Away => false,
        };
        reaches && (only_reads || !condition.is_read_only)
    }

    /// Whether it was too slow for clients so far.
    pub(super) fn is_slow(&self) -> bool {
        self.state().condition.reach == Reach::Slow
    }

    /// What is wrong, in words.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.state().condition.trouble()
    }

    /// The server is as it was just found, at which it was looked since `why`. Said once.
    pub(super) fn found(&self, condition: Condition, why: &str) {
        let condition = {
            let mut state = self.state();
            let is_read_only =
                condition.is_read_only || (condition.reach != Reach::Away && state.is_full());
            let condition = Condition { is_read_only, ..condition };
            if std::mem::replace(&mut state.condition, condition) == condition {
                return;
            }
            condition
        };
        if let Some(trouble) = condition.trouble() {
            tracing::warn!(reason = why, "{trouble}: going on without it until it is back");
        } else {
            tracing::info!("PostgreSQL is back");
        }
    }

    /// A client's look-up was late: none waits until it is known to be fast again.
    pub(super) fn is_late(&self, why: &str) {
        let condition = self.state().condition;
        if condition.reach == Reach::Well {
            self.found(Condition { reach: Reach::Slow, ..condition }, why);
        }
    }

    /// Whether there is trouble that a good answer of the server ends.
    pub(super) fn is_about_to_be_well(&self) -> bool {
        let state = self.state();
        state.condition.trouble().is_some() && !state.is_full()
    }

    /// A write was refused since the server takes none; nor will it, for some `time` at least.
    pub(super) fn refuses_writes(&self, why: &str, time: Duration) {
        let condition = {
            let mut state = self.state();
            state.full_until = state.full_until.max(Some(Instant::now() + time));
            state.condition
        };
        if condition.reach != Reach::Away {
            self.found(Condition { is_read_only: true, ..condition }, why);
        }
    }

    /// The duty to look after the server until it is well; `None`: somebody does.
    pub(super) fn look_after(&self) -> bool {
        !std::mem::replace(&mut self.state().is_looked_after, true)
    }

    /// Nobody looks after it any more.
    pub(super) fn leave_alone(&self) {
        self.state().is_looked_after = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn who_may_ask_depends_on_what_is_wrong() {
        let health = Health::default();
        let admitted = |health: &Health| {
            let all = [(true, true), (true, false), (false, true), (false, false)];
            all.map(|(only_reads, client_waits)| health.admits(only_reads, client_waits))
        };
        assert_eq!((admitted(&health), health.trouble()), ([true; 4], None));
        health.refuses_writes("told so", Duration::ZERO);
        assert_eq!(admitted(&health), [true, true, false, false]);
        health.is_late("200ms");
        assert_eq!(admitted(&health), [false, true, false, false]);
        assert_eq!(health.trouble(), Some("PostgreSQL is too slow"));
        health.found(Condition::AWAY, "gone");
        health.is_late("200ms");
        health.refuses_writes("told so", Duration::ZERO);
        assert_eq!(admitted(&health), [false; 4]);
        health.found(Condition::default(), "");
        assert_eq!((admitted(&health), health.trouble()), ([true; 4], None));
    }

    #[test]
    fn a_full_disk_is_not_written_to_for_a_while() {
        let health = Health::default();
        health.refuses_writes("no space left", Duration::from_secs(3600));
        health.found(Condition::default(), "");
        assert!(!health.admits(false, false) && health.admits(true, true));
        assert_eq!(health.trouble(), Some("PostgreSQL takes no writes"));
        health.found(Condition::AWAY, "gone");
        assert!(!health.admits(true, true));
    }

    #[test]
    fn one_looks_after_the_server() {
        let health = Health::default();
        assert!(health.look_after() && !health.look_after());
        health.leave_alone();
        assert!(health.look_after());
    }
}
