//! Flights: one download under way, shared by all who want it. A flight belongs to the site, not to
//! the client who came first; it ends early only when nobody has wanted it for a while.

mod abroad;
mod ask;
pub mod borrowed;
pub mod ended;
mod flow;
pub mod follower;
mod gather;
mod keep;
mod note;
pub(super) mod pace;
mod resume;
pub mod running;
pub(super) mod transfer;
pub(super) mod writer;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Span;

use crate::archive::target::Target;
use crate::content::digest::Sha256;
use crate::engine::flight::borrowed::Borrowed;
use crate::engine::memory::Known;
use crate::engine::outcome::{Failure, Meta};
use crate::store::Blob;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{self, Origin, span};

/// For how long a flight goes on when nobody wants it any more: apt comes back after a second when
/// its connection broke.
const LINGER: Duration = Duration::from_secs(5);

/// Flights at a time. More would share a site's line into uselessness, and each holds a file open.
const FLIGHTS_MAX: usize = 1024;

/// One download or revalidation under way.
pub struct Flight {
    landing: watch::Sender<Option<Landing>>,
    progress: watch::Sender<Progress>,
    interest: watch::Sender<usize>,
    /// Held while other replicas want it.
    interest_abroad: Mutex<Option<Interest>>,
    /// Where its part of a trace is.
    origin: Option<Origin>,
    begun_at: Instant,
}

/// What became of the question to the mirror.
#[derive(Clone)]
pub enum Landing {
    /// What is stored is still right.
    Unchanged(Arc<Known>),
    /// Another replica fetched or confirmed it a moment ago.
    Settled(Arc<Known>),
    /// Bytes are coming.
    Flowing(Arc<Flow>),
    /// The volume does not take them: whoever wants them asks the mirror themselves.
    Unstorable,
    /// Nothing to be had.
    Failed(Failure),
}

/// Who began to fetch a body, and from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// This replica, from a mirror, or from a fellow.
    Mirror,
    /// This replica, from peers, all of it or nearly all.
    Peers,
    /// Another replica.
    Replica,
}

/// Bytes that are coming, described.
#[derive(Clone)]
pub struct Flow {
    /// What the mirror said of them.
    pub meta: Meta,
    /// Whether they will be stored.
    pub stored: bool,
    /// Whether a digest is expected of them.
    pub checked: bool,
    /// What they are, where that is known before they are handed out.
    pub digest: Option<Sha256>,
    /// What they were asked for as: what is missing can be had there.
    pub source: Arc<Target>,
    /// Which mirror or fellow gave them first.
    pub origin: Arc<str>,
    /// Set where a fellow gave them first.
    pub borrowed: Option<Borrowed>,
    /// What they must be, where they come from a mirror: other sites may have them.
    pub mirrored: Option<Sha256>,
    /// Who began to fetch them, from whom.
    pub by: By,
    /// Set where a fellow with another volume is fetching them: when it was asked for them, in seconds
    /// since 1970. What was recorded since then is newer.
    pub joined_at: Option<i64>,
}

/// The file in which a body arrives.
#[derive(Clone, Debug)]
pub struct Arriving {
    /// Readable up to [`Progress::readable`].
    pub file: Arc<File>,
    /// Its [name](crate::store::Stage::name) for other processes.
    pub name: Arc<str>,
}

/// How far a flow has come.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Bytes that may be handed out.
    pub readable: u64,
    /// Bytes in the file; a body's tail is held back until its digest is right.
    pub written: u64,
    /// Their digest.
    pub prefix: Sha256,
    /// Where they are; another file when another replica takes over. `None` before the first byte.
    pub arriving: Option<Arriving>,
    /// What follows them.
    pub state: State,
}

/// What follows the readable bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// More.
    Running,
    /// Nothing: this is all, and it is right.
    Whole,
    /// Nothing, and something is missing.
    Cut(Arc<str>),
    /// More, but the volume could not take it.
    Spilled,
}

impl Flow {
    /// Whether a mirror gives it, as far as this process knows.
    pub(super) fn is_from_mirror(&self) -> bool {
        self.by == By::Mirror && self.borrowed.is_none() && self.joined_at.is_none()
    }
}

impl Progress {
    fn advance(&mut self, written: u64, held_back: u64, prefix: Sha256) {
        self.written = written;
        self.readable = written.saturating_sub(held_back);
        self.prefix = prefix;
    }
}

impl Flight {
    /// One whose doings are in `span`.
    pub(super) fn new(span: &Span) -> Self {
        Self {
            origin: traces::origin(span),
            landing: watch::Sender::new(None),
            progress: watch::Sender::new(Progress {
                readable: 0,
                written: 0,
                prefix: Sha256::of(&[]),
                arriving: None,
                state: State::Running,
            }),
            interest: watch::Sender::new(0),
            interest_abroad: Mutex::default(),
            begun_at: Instant::now(),
        }
    }

    /// Where it is traced: in the trace of the request that began it.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Waits until it is known what became of the question.
    pub async fn landed(&self) -> Landing {
        let mut landing = self.landing.subscribe();
        match landing.wait_for(Option::is_some).await.map(|landing| landing.clone()) {
            Ok(Some(landing)) => landing,
            // The sender is ours: it can not be gone.
            _ => Landing::Failed(Failure::internal("the flight is gone")),
        }
    }

    pub(super) fn land(&self, landing: Landing) {
        self.landing.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(landing);
            }
            first
        });
    }

    /// The flow's progress, to read and to wait on.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// What is coming, once that is known.
    pub(super) fn flow(&self) -> Option<Arc<Flow>> {
        match &*self.landing.borrow() {
            Some(Landing::Flowing(flow)) => Some(Arc::clone(flow)),
            _ => None,
        }
    }

    /// Bytes are in this file from now on, of which so many are there.
    pub(super) fn place(&self, arriving: Arriving, written: u64, held_back: u64, prefix: Sha256) {
        self.progress.send_modify(|progress| {
            progress.arriving = Some(arriving);
            progress.advance(written, held_back, prefix);
        });
    }

    /// There are so many in this file by now, and this is their digest. Not if they are in another one
    /// meanwhile.
    pub(super) fn advance(&self, file: &Arc<File>, written: u64, held_back: u64, prefix: Sha256) {
        self.progress.send_if_modified(|progress| {
            let arriving = progress.arriving.as_ref();
            let is_there = arriving.is_some_and(|arriving| Arc::ptr_eq(&arriving.file, file));
            if is_there {
                progress.advance(written, held_back, prefix);
            }
            is_there
        });
    }

    /// What is there of it.
    pub(super) fn arrived(&self) -> Option<Blob> {
        let progress = self.progress.borrow();
        let Arriving { file, .. } = progress.arriving.clone()?;
        Some(Blob { file, size: progress.written })
    }

    /// All that was written is all there is, and right.
    pub(super) fn complete(&self) {
        self.progress.send_modify(|progress| {
            if progress.state == State::Running {
                progress.readable = progress.written;
                progress.state = State::Whole;
            }
        });
    }

    /// The last word on the flow; later ones are not heard.
    pub(super) fn end(&self, state: State) {
        self.progress.send_if_modified(|progress| {
            let first = progress.state == State::Running;
            if first {
                progress.state = state;
            }
            first
        });
    }

    /// Whether its flow broke off: who has nothing of it yet should begin another flight.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        matches!(self.progress.borrow().state, State::Cut(_))
    }

    /// Whether nothing will come of it: a newcomer should begin another one.
    fn has_failed(&self) -> bool {
        self.is_cut() || matches!(*self.landing.borrow(), Some(Landing::Failed(_)))
    }

    /// What [`Flight::outcome`] tells, and of one that nobody wanted any more: `given_up`.
    pub(in crate::engine) const OUTCOMES: [&str; 7] =
        ["whole", "confirmed", "refused", "failed", "cut", "not_stored", "given_up"];

    /// How it ended; the word for metric labels.
    fn outcome(&self) -> &'static str {
        match &*self.landing.borrow() {
            Some(Landing::Unchanged(_) | Landing::Settled(_)) => "confirmed",
            Some(Landing::Failed(failure)) if failure.is_no() => "refused",
            Some(Landing::Failed(_)) | None => "failed",
            Some(Landing::Unstorable) => "not_stored",
            Some(Landing::Flowing(_)) => match self.progress.borrow().state {
                State::Whole => "whole",
                State::Spilled => "not_stored",
                State::Cut(_) | State::Running => "cut",
            },
        }
    }

    /// Why it came to nothing, in words, if it did.
    fn trouble(&self) -> Option<String> {
        let not_stored = || "the volume does not take it".to_owned();
        match &*self.landing.borrow() {
            Some(Landing::Failed(failure)) => Some(failure.to_string()),
            Some(Landing::Unstorable) => Some(not_stored()),
            Some(Landing::Flowing(_)) => match &self.progress.borrow().state {
                State::Cut(reason) => Some(reason.to_string()),
                State::Spilled => Some(not_stored()),
                State::Running | State::Whole => None,
            },
            Some(Landing::Unchanged(_) | Landing::Settled(_)) | None => None,
        }
    }

    /// Waits until nothing more will come of it.
    pub async fn over(&self) {
        let mut progress = self.progress.subscribe();
        // An error is as good an end.
        drop(progress.wait_for(|progress| progress.state != State::Running).await);
    }

    /// Whether clients of other replicas want it: that keeps it going, too.
    fn is_wanted_abroad(self: &Arc<Self>, is_wanted: bool) {
        let interest = is_wanted.then(|| Interest::new(self));
        let mut abroad = self.interest_abroad.lock().unwrap_or_else(PoisonError::into_inner);
        if abroad.is_some() != is_wanted {
            *abroad = interest;
        }
    }

    /// Whether at most one wants it.
    pub(super) fn is_wanted_by_one(&self) -> bool {
        *self.interest.borrow() <= 1
    }

    /// Waits until nobody has wanted the flight for a while.
    pub(super) async fn abandoned(&self) {
        let mut interest = self.interest.subscribe();
        loop {
            if interest.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            let wanted_again = interest.wait_for(|count| *count > 0);
            if tokio::time::timeout(LINGER, wanted_again).await.is_err() {
                return;
            }
        }
    }
}

/// Somebody's interest in a flight: while one is held, the flight goes on.
pub struct Interest {
    flight: Arc<Flight>,
}

impl Interest {
    pub(super) fn new(flight: &Arc<Flight>) -> Self {
        flight.interest.send_modify(|count| *count += 1);
        Self { flight: Arc::clone(flight) }
    }

    /// The flight.
    #[must_use]
    pub fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.flight.interest.send_modify(|count| *count -= 1);
    }
}

/// The flights under way, by resource key.
#[derive(Default)]
pub struct Flights {
    table: Mutex<HashMap<Arc<str>, Arc<Flight>>>,
    ended: ended::Memory,
}

/// Why there is no place in a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotBoarded {
    /// It landed just now: what memory knows will do.
    Landed,
    /// Too many are under way.
    Full,
}

/// A place in a flight.
pub struct Boarding {
    /// Keeps it going.
    pub interest: Interest,
    /// Set for the one who began it, who must see to its transfer.
    pub departure: Option<Departure>,
}

impl Flights {
    /// None so far.
    pub(in crate::engine) fn new(metrics: &Metrics) -> Arc<Self> {
        let flights = Arc::<Self>::default();
        let looked_at = Arc::clone(&flights);
        metrics.gauge_of(
            "aptmesh_engine_waiters",
            "Clients that wait for downloads under way, or follow them; all of another replica count as one.",
            move || i64::try_from(looked_at.waiters()).unwrap_or(i64::MAX),
        );
        flights
    }

    /// Joins the flight for `key`, or begins it.
    ///
    /// # Errors
    /// When `landed_meanwhile` finds, under the table's lock, that there is no need any more, or
    /// when there is no room for another flight.
    pub fn board(
        self: &Arc<Self>,
        key: &str,
        landed_meanwhile: impl FnOnce() -> bool,
    ) -> Result<Boarding, NotBoarded> {
        let mut table = self.table();
        if let Some(flight) = table.get(key).filter(|flight| !flight.has_failed()) {
            return Ok(Boarding { interest: Interest::new(flight), departure: None });
        }
        if landed_meanwhile() {
            return Err(NotBoarded::Landed);
        }
        if table.len() >= FLIGHTS_MAX {
            return Err(NotBoarded::Full);
        }
        let key: Arc<str> = key.into();
        // It may outlive the request that begins it.
        let span = span!(parent: None, "engine.flight");
        traces::belong_to_current(&span);
        let flight = Arc::new(Flight::new(&span));
        table.insert(Arc::clone(&key), Arc::clone(&flight));
        let (flights, of_it) = (Arc::clone(self), Arc::clone(&flight));
        let departure = Departure { flights, key, flight: of_it, span };
        Ok(Boarding { interest: Interest::new(&flight), departure: Some(departure) })
    }

    /// A place in the flight under way whose key has this digest: so fellows name it.
    pub(super) fn of_digest(&self, digest: &Sha256) -> Option<Interest> {
        let table = self.table();
        let flight = table.iter().find(|(key, _)| Sha256::of(key.as_bytes()) == *digest);
        flight.map(|(_, flight)| Interest::new(flight))
    }

    /// The flight that brings `blob` from a mirror, where bytes are coming.
    pub(super) fn bringing(&self, blob: &Sha256) -> Option<(Arc<Flight>, Arc<Flow>)> {
        let table = self.table();
        table.values().find_map(|flight| {
            let flow = flight.flow().filter(|flow| flow.mirrored.as_ref() == Some(blob))?;
            (!flight.is_cut()).then(|| (Arc::clone(flight), flow))
        })
    }

    /// How many want one of them, be it that they wait for its beginning or follow it.
    fn waiters(&self) -> usize {
        self.table().values().map(|flight| *flight.interest.borrow()).sum()
    }

    /// How many are under way.
    #[must_use]
    pub fn count(&self) -> usize {
        self.table().len()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Flight>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty to end a flight: whatever becomes of its transfer, nobody waits for ever.
pub struct Departure {
    flights: Arc<Flights>,
    key: Arc<str>,
    flight: Arc<Flight>,
    span: Span,
}

impl Departure {
    /// In which it is traced.
    #[must_use]
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The flight to be run.
    #[must_use]
    pub fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        let unheard = "the download was given up";
        self.flight.land(Landing::Failed(Failure::internal(unheard)));
        self.flight.end(State::Cut(unheard.into()));
        self.flight.is_wanted_abroad(false);
        let mut table = self.flights.table();
        if table.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            table.remove(&self.key);
        }
    }
}
