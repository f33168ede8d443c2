//! The flights under way, for people.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::archive::kind::Kind;
use crate::archive::target::Target;
use crate::engine::Engine;
use crate::engine::flight::{By, Flight, Flights};

/// A flight under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The resource's name.
    pub key: String,
    /// Its kind.
    pub kind: Kind,
    /// Who gives it; `None`: nobody yet.
    pub giver: Option<Giver>,
    /// Bytes of the whole; `None`: not known.
    pub size: Option<u64>,
    /// Bytes that are there.
    pub bytes: u64,
    /// How many wait for it, here and on other replicas.
    pub waiting: usize,
    /// For how long it has been under way.
    pub age: Duration,
}

/// Who gives what a flight brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Giver {
    /// The mirror of this origin.
    Mirror(Arc<str>),
    /// Other sites.
    Peers,
    /// Another replica.
    Replica,
}

impl Giver {
    /// In a word.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Mirror(_) => "mirror",
            Self::Peers => "peers",
            Self::Replica => "replica",
        }
    }

    /// The mirror's origin, if it is one.
    #[must_use]
    pub fn mirror(&self) -> Option<&str> {
        match self {
            Self::Mirror(origin) => Some(origin),
            Self::Peers | Self::Replica => None,
        }
    }
}

impl Flight {
    /// Who gives what it brings; `None`: nobody yet.
    pub(super) fn giver(&self) -> Option<Giver> {
        let flow = self.flow()?;
        Some(match flow.by {
            By::Peers => Giver::Peers,
            By::Mirror if flow.is_from_mirror() => Giver::Mirror(Arc::clone(&flow.origin)),
            By::Mirror | By::Replica => Giver::Replica,
        })
    }

    fn running(&self, key: &str, now: Instant) -> Running {
        Running {
            key: key.to_owned(),
            kind: Target::from_absolute(key).map_or(Kind::Other, |target| Kind::of(&target.path)),
            giver: self.giver(),
            size: self.flow().and_then(|flow| flow.meta.size),
            bytes: self.progress.borrow().written,
            waiting: *self.interest.borrow(),
            age: now.saturating_duration_since(self.begun_at),
        }
    }
}

impl Flights {
    /// The `most` that have been under way longest, and how many there are.
    fn running(&self, most: usize) -> (Vec<Running>, usize) {
        let mut all: Vec<(Arc<str>, Arc<Flight>)> = self
            .table()
            .iter()
            .map(|(key, flight)| (Arc::clone(key), Arc::clone(flight)))
            .collect();
        all.sort_by_key(|(_, flight)| flight.begun_at);
        let now = Instant::now();
        let running = all.iter().take(most).map(|(key, flight)| flight.running(key, now));
        (running.collect(), all.len())
    }

    /// The one for `key`.
    pub(in crate::engine) fn running_for(&self, key: &str) -> Option<Running> {
        let flight = self.table().get(key).map(Arc::clone)?;
        Some(flight.running(key, Instant::now()))
    }
}

impl Engine {
    /// The `most` downloads that have been under way longest, and how many there are.
    #[must_use]
    pub fn running(&self, most: usize) -> (Vec<Running>, usize) {
        self.flights.running(most)
    }
}
