//! How downloads ended, for people: the last one of each resource, of those that ended lately.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::engine::flight::running::Giver;
use crate::engine::flight::{Flight, Flights, Landing, State};

/// Resources that are remembered: some hours of a site.
const REMEMBERED_MAX: usize = 1024;
/// The longest reason that is remembered, in bytes: parts of it may be the mirror's own.
const REASON_MAX: usize = 300;

/// How the last download of a resource ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// One of `Flight::OUTCOMES`.
    pub outcome: &'static str,
    /// Who gave it; `None`: nobody, or a mirror confirmed it. Of what is confirmed, a replica that fetched it or
    /// had it confirmed.
    pub giver: Option<Giver>,
    /// Bytes that came.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// How long ago it ended.
    pub ago: Duration,
    /// What went wrong, in words.
    pub failure: Option<String>,
}

/// What is remembered, by key.
pub(super) struct Memory(Cache<Arc<str>, (Ended, Instant)>);

impl Default for Memory {
    fn default() -> Self {
        Self(Cache::new(REMEMBERED_MAX))
    }
}

impl Memory {
    fn note(&self, key: &str, ended: Ended) {
        self.0.insert(key.into(), (ended, Instant::now()));
    }

    /// Without counting as a use.
    fn of(&self, key: &str) -> Option<Ended> {
        let (ended, at) = self.0.peek(key)?;
        Some(Ended { ago: at.elapsed(), ..ended })
    }
}

impl Flights {
    /// That of `key` ended.
    pub(in crate::engine) fn note_end(&self, key: &str, flight: &Flight, outcome: &'static str) {
        self.ended.note(key, flight.ended(outcome, Instant::now()));
    }

    /// How the last one of `key` ended, if that is remembered.
    pub(in crate::engine) fn ended_for(&self, key: &str) -> Option<Ended> {
        self.ended.of(key)
    }
}

impl Flight {
    /// How it ended, just now.
    fn ended(&self, outcome: &'static str, now: Instant) -> Ended {
        let failure = match (&*self.landing.borrow(), &self.progress.borrow().state) {
            (Some(Landing::Failed(failure)), _) => Some(failure.to_string()),
            (Some(Landing::Flowing(_)), State::Cut(reason)) => Some(reason.to_string()),
            _ => None,
        };
        let is_settled = matches!(&*self.landing.borrow(), Some(Landing::Settled(_)));
        Ended {
            outcome,
            giver: if is_settled { Some(Giver::Replica) } else { self.giver() },
            bytes: self.progress.borrow().written,
            took: now.saturating_duration_since(self.begun_at),
            ago: Duration::ZERO,
            failure: failure.map(|reason| reason.chars().take(REASON_MAX).collect()),
        }
    }
}
