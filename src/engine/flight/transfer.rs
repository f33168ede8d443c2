//! The running of one flight: ask for it (`ask.rs`), stage what comes (`flow.rs`), check, keep (`keep.rs`).

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, Span};
use url::Url;

use crate::archive::kind::Kind;
use crate::archive::target::Target;
use crate::content::digest::{Expected, Hasher, Sha256};
use crate::engine::Engine;
use crate::engine::flight::ask::{Arrival, Asked, MOVED_ON};
use crate::engine::flight::borrowed::Incoming;
use crate::engine::flight::flow::Beginning;
use crate::engine::flight::gather::Gathered;
use crate::engine::flight::gather::ahead::Judged;
use crate::engine::flight::gather::leash::Leash;
use crate::engine::flight::writer::{NotTaken, TAIL, Writer, Written};
use crate::engine::flight::{Departure, Flight, Flow, Landing, State};
use crate::engine::memory::Known;
use crate::engine::outcome::Failure;
use crate::engine::suites::admission::{Admission, RELEASE_BUDGET};
use crate::engine::volume::promise::Staged;
use crate::index::{Expectation, budget};
use crate::mirror::HEAD_BUDGET;
use crate::store::StoreError;
use crate::telemetry::traces::{self, span};

/// How long the index may take to hear of what is kept: after that, it is told later. Nobody waits for
/// it, but flights are counted.
const KEEP_PATIENCE: Duration = Duration::from_secs(2);

/// How often file and signature of a release are looked at again that do not fit together.
const TEARS_MAX: u32 = 4;
/// Before that: a mirror takes a moment from one state to the next.
const TEAR_PAUSE: Duration = Duration::from_millis(20);

/// What a flight is to bring.
pub(in crate::engine) struct Transfer {
    pub(in crate::engine) engine: Arc<Engine>,
    pub(in crate::engine) target: Arc<Target>,
    /// Under which names it is asked for, until one is not refused.
    pub(in crate::engine) sources: Vec<Arc<Target>>,
    pub(in crate::engine) kind: Kind,
    /// What it must be, where a list or its own name tells.
    pub(in crate::engine) expectation: Option<Expectation>,
    /// What is stored already, to be confirmed or replaced.
    pub(in crate::engine) known: Option<Arc<Known>>,
    /// Whether what fellows have will do, without a mirror's word.
    pub(in crate::engine) may_borrow: bool,
    /// Whether it was stored meanwhile, on another volume.
    pub(in crate::engine) is_elsewhere: bool,
    /// The most bytes a second, as long as nobody else wants them.
    pub(in crate::engine) pace: Option<u64>,
    /// For how long what another replica had confirmed is good enough.
    pub(in crate::engine) window: Duration,
    /// The caches that the first client's question came through.
    pub(in crate::engine) via: Vec<HeaderValue>,
}

/// What verification came to, for its span.
fn note_verdict(span: &Span, ended: &Result<Written, End>) {
    match ended {
        Ok(written) => {
            traces::set(span, "aptmesh.bytes", traces::number(written.staged.stage.size()));
        }
        Err(End::Cut(reason)) => traces::fail(span, "cut", reason),
        Err(End::Spilled(error)) => {
            traces::fail(span, "volume", &format_args!("{error}: {}", error.source));
        }
    }
}

/// The same for the flight.
fn note_end(span: &Span, flight: &Flight, outcome: &'static str) {
    traces::set(span, "aptmesh.outcome", outcome);
    if let Some(trouble) = flight.trouble() {
        traces::fail(span, outcome, &trouble);
    }
}

/// In a span of its own, which tells what came of it.
async fn traced_admission(admitting: impl Future<Output = Admission>) -> Admission {
    let span = span!("engine.admit");
    let admission = admitting.instrument(span.clone()).await;
    let label = admission.label();
    traces::set(&span, "aptmesh.outcome", label);
    if let Admission::Refused(reason) | Admission::Torn(reason) = &admission {
        traces::fail(&span, label, reason);
    }
    admission
}

/// Why a flow ended early.
enum End {
    /// The mirror, or what it sent.
    Cut(String),
    /// The volume.
    Spilled(StoreError),
}

impl Transfer {
    /// Runs the flight to its end, or until nobody has wanted it for a while.
    pub(in crate::engine) async fn run(mut self, departure: Departure) {
        let flight = Arc::clone(departure.flight());
        let begun = Instant::now();
        let is_confirming = self.known.is_some();
        let abandoned = async {
            if is_confirming {
                // However long the mirror takes to confirm it, within its bound: else what is
                // stored would never be confirmed again.
                flight.landed().await;
            }
            flight.abandoned().await;
        };
        let (arrived, outcome) = tokio::select! {
            arrived = self.fly_for_all(&flight) => (arrived, flight.outcome()),
            () = abandoned => {
                tracing::debug!(url = self.target.url, "nobody waits for it any more");
                (None, "given_up")
            }
        };
        let seconds = &self.engine.metrics.flight_seconds;
        seconds.with_label_values(&[outcome]).observe(begun.elapsed().as_secs_f64());
        self.engine.flights.note_end(&self.target.key, &flight, outcome);
        note_end(departure.span(), &flight, outcome);
        // Whole by now: it is kept whether somebody still waits or not.
        if let Some((arrived, tenure)) = arrived {
            budget::for_at_most(KEEP_PATIENCE, self.keep(arrived, tenure.as_ref())).await;
        }
    }

    /// A whole body that is to be kept, if that is what came.
    pub(super) async fn fly(&self, flight: &Arc<Flight>, deadline: Instant) -> Option<Arrived> {
        if let Some(flow) = flight.flow() {
            return self.take_over(flight, flow).await;
        }
        if !self.is_elsewhere
            && let Gathered::Done(arrived) = self.gather(flight, deadline).await
        {
            return arrived;
        }
        for tears in 0..=TEARS_MAX {
            let borrowed = if self.is_elsewhere { self.borrow().await } else { None };
            let asked = match borrowed {
                Some(arrival) => Ok(Asked::Bytes(Box::new(arrival))),
                None => self.ask(deadline, None).await,
            };
            let arrival = match asked {
                Err(failure) => {
                    if self.kind == Kind::Release && failure.is_not_there() {
                        self.engine.suites.refuse(&self.target.key);
                    }
                    flight.land(Landing::Failed(failure));
                    return None;
                }
                Ok(Asked::Unchanged(known)) => {
                    known.confirm();
                    self.engine.suites.shown.accept(&self.target.key);
                    flight.land(Landing::Unchanged(Arc::clone(&known)));
                    self.confirm(&known).await;
                    self.refresh_signature(&known).await;
                    return None;
                }
                Ok(Asked::Bytes(arrival)) => *arrival,
            };
            let arrived = self.receive(flight, arrival, deadline).await?;
            if !self.is_for_admission() {
                return Some(arrived);
            }
            let digest = arrived.written.verdict.sha256;
            let admitting = self.admit(flight, digest, deadline);
            match traced_admission(admitting).await {
                Admission::Admitted(signature) => {
                    self.engine.suites.shown.accept(&self.target.key);
                    // Its clients ask for it at once.
                    if let Some(signature) = signature {
                        self.keep_signature(&digest, signature).await;
                    }
                    let flow = Arc::new(Flow { digest: Some(digest), ..(*arrived.flow).clone() });
                    flight.land(Landing::Flowing(Arc::clone(&flow)));
                    flight.complete();
                    return Some(Arrived { flow, ..arrived });
                }
                Admission::Older(known) => {
                    self.note_older(&known);
                    flight.land(Landing::Unchanged(known));
                    return None;
                }
                Admission::Torn(_) if tears < TEARS_MAX && Instant::now() < deadline => {
                    tokio::time::sleep(TEAR_PAUSE * (tears + 1)).await;
                }
                Admission::Torn(reason) | Admission::Refused(reason) => {
                    flight.land(self.turned_away(reason));
                    return None;
                }
            }
        }
        None
    }

    /// By when clients must have a first byte.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + if self.is_for_admission() { RELEASE_BUDGET } else { HEAD_BUDGET }
    }

    /// Whether bytes that are not what was expected only mean that the mirror has moved on: what was
    /// asked for under its plain name, for a client that was given an older release file.
    pub(super) fn has_moved_on(&self, source: &Target) -> bool {
        source.key != self.target.key
    }

    /// What its mirror brought lately, in bytes per second.
    pub(super) fn mirror_rate(&self) -> Option<u64> {
        self.engine.paces.of(&self.target.authority.host)
    }

    pub(super) fn expected(&self) -> Option<Expected> {
        self.expectation.map(|expectation| expectation.digest)
    }

    /// What it must be by the best of digests.
    pub(super) fn named_best(&self) -> Option<Sha256> {
        match self.expected() {
            Some(Expected::Sha256(digest)) => Some(digest),
            _ => None,
        }
    }

    /// What `origin` gave is of no use.
    pub(super) fn unusable(&self, origin: &str, reason: String) -> Failure {
        Failure::Unusable { host: self.host_of(origin), reason }
    }

    /// Whom to name: of several mirrors, or replicas, that one which gave it.
    pub(super) fn host_of(&self, origin: &str) -> String {
        let url = Url::parse(origin).ok();
        let host = url.as_ref().and_then(Url::host_str);
        host.unwrap_or(&self.target.authority.host).to_owned()
    }

    /// Takes a whole body into a staged file. Clients follow it there, unless it is a release file:
    /// that nobody sees before it is admitted.
    pub(super) async fn receive(
        &self,
        flight: &Arc<Flight>,
        arrival: Arrival,
        deadline: Instant,
    ) -> Option<Arrived> {
        let Ok(staged) = self.stage(arrival.meta.size).await else {
            flight.land(Landing::Unstorable);
            return None;
        };
        let is_mirrors = matches!(arrival.body, Incoming::Mirror(_));
        let mirrored = self.named_best().filter(|_| is_mirrors);
        let flow = Arc::new(Flow {
            meta: arrival.meta,
            stored: arrival.provable,
            checked: self.expectation.is_some() || arrival.borrowed.is_some(),
            digest: None,
            source: Arc::clone(&arrival.source),
            origin: Arc::clone(&arrival.origin),
            mirrored,
            borrowed: arrival.borrowed,
            by: arrival.by,
            joined_at: arrival.joined_at,
        });
        let borrowed = flow.borrowed.as_ref().map(|borrowed| Expected::Sha256(borrowed.digest));
        let hasher = Hasher::new(borrowed.or(self.expected()));
        let writer = Writer::start(staged, hasher, held_back(&flow), Arc::clone(flight));
        let beginning = Beginning::Body(arrival.first, arrival.body, None);
        let mut leash = Leash::none();
        let flowing = self.flow(flight, &flow, &writer, beginning, &mut leash);
        let flowed = if self.is_for_admission() {
            let too_slow = || Err("the release file took too long".to_owned());
            timeout_at(deadline, flowing).await.unwrap_or_else(|_| too_slow())
        } else {
            flight.land(Landing::Flowing(Arc::clone(&flow)));
            self.engine.leases.tell_now();
            flowing.await
        };
        self.arrived(flight, flow, flowed, writer).await
    }

    /// Goes on with what another replica left, from where its bytes end.
    async fn take_over(&self, flight: &Arc<Flight>, flow: Arc<Flow>) -> Option<Arrived> {
        let staged = match self.stage(flow.meta.size).await {
            Ok(staged) => staged,
            Err(error) => {
                tracing::warn!(url = self.target.url, %error, source = %error.source, "not taking over");
                flight.end(State::Spilled);
                return None;
            }
        };
        tracing::info!(url = self.target.url, "taking over a download");
        self.engine.metrics.taken_over.inc();
        let hasher = Hasher::new(self.expected());
        let (writer, received) =
            match Writer::take_over(staged, hasher, held_back(&flow), flight).await {
                Ok(begun) => begun,
                Err(NotTaken::Bytes(reason)) => {
                    flight.end(State::Cut(reason.into()));
                    return None;
                }
                Err(NotTaken::Volume(error)) => {
                    self.engine.store.report(&error);
                    flight.end(State::Spilled);
                    return None;
                }
            };
        let (rest, mut leash) = (Beginning::Rest(received), Leash::none());
        let flowed = self.flow(flight, &flow, &writer, rest, &mut leash).await;
        self.arrived(flight, flow, flowed, writer).await
    }

    /// The body in full, if it is.
    pub(super) async fn arrived(
        &self,
        flight: &Arc<Flight>,
        flow: Arc<Flow>,
        flowed: Result<(), String>,
        writer: Writer,
    ) -> Option<Arrived> {
        let span = span!("engine.verify");
        let ended = match (flowed, writer.finish().instrument(span.clone()).await) {
            (_, Err(error)) => Err(End::Spilled(error)),
            (Err(reason), Ok(_)) => Err(End::Cut(reason)),
            (Ok(()), Ok(written)) => self.check(&flow, written),
        };
        note_verdict(&span, &ended);
        drop(span);
        match ended {
            Ok(written) => {
                if !self.is_for_admission() {
                    flight.complete();
                    self.engine.leases.tell_now();
                }
                return Some(Arrived { flow, written });
            }
            Err(End::Cut(reason)) => {
                let origin = &*flow.origin;
                tracing::warn!(url = self.target.url, origin, reason, "a download broke off");
                // Heard only where nothing has landed yet.
                flight.land(Landing::Failed(self.unusable(origin, reason.clone())));
                flight.end(State::Cut(reason.into()));
            }
            Err(End::Spilled(error)) => {
                self.engine.store.report(&error);
                flight.land(Landing::Unstorable);
                flight.end(State::Spilled);
            }
        }
        None
    }

    /// Room for the whole is only made where somebody else than the mirror says how large it is.
    async fn stage(&self, claim: Option<u64>) -> Result<Staged, StoreError> {
        let room = &self.engine.room;
        match (self.expectation.and_then(|expected| expected.size), claim) {
            (None, Some(claim)) => room.stage_claimed(claim).await,
            (size, _) => room.stage(size).await,
        }
    }

    fn check(&self, flow: &Flow, written: Written) -> Result<Written, End> {
        if written.verdict.as_expected {
            return Ok(written);
        }
        self.engine.tainted.add(&self.target.key);
        if flow.borrowed.is_some() {
            self.engine.blame_fellow(&flow.origin);
            return Err(End::Cut("another replica sent wrong bytes".to_owned()));
        }
        self.blame(&flow.source, &flow.origin);
        let host = self.host_of(&flow.origin);
        Err(End::Cut(if self.has_moved_on(&flow.source) {
            format!("{host} {MOVED_ON}")
        } else {
            format!("{host} sent bytes that are not what the archive lists")
        }))
    }

    /// The mirror sent something else than its lists say.
    pub(super) fn blame(&self, source: &Target, origin: &str) {
        let has_moved_on = self.has_moved_on(source);
        if !has_moved_on {
            self.engine.metrics.verify_failures.with_label_values(&["mirror"]).inc();
        }
        // One that has moved on may be ahead of others, which is no lie; but they may have the file.
        if !has_moved_on || self.engine.mirror.has_several(source) {
            self.engine.mirror.blame(origin);
        }
        self.engine.doubt(&source.key);
    }
}

/// A body that is there to its end, and right.
pub(super) struct Arrived {
    pub(super) flow: Arc<Flow>,
    pub(super) written: Written,
}

impl Arrived {
    /// Whose bytes turned out to be right, and whose wrong.
    pub(super) fn givers(&self) -> &Judged {
        &self.written.givers
    }
}

/// Bytes at the end of what has come that wait for its digest.
pub(super) fn held_back(flow: &Flow) -> u64 {
    if flow.checked { TAIL } else { 0 }
}
