//! The running of one flight: ask the mirror, stage what comes, resume what breaks off, check,
//! commit.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use tokio::time::{Instant, timeout_at};

use crate::archive::kind::Kind;
use crate::archive::target::Target;
use crate::content::digest::{Expected, Hasher, Sha256};
use crate::content::validators::http_date;
use crate::engine::Engine;
use crate::engine::flight::borrowed::{Borrowed, Incoming};
use crate::engine::flight::follower::range_of;
use crate::engine::flight::gather::Gathered;
use crate::engine::flight::gather::ahead::Judged;
use crate::engine::flight::gather::leash::Leash;
use crate::engine::flight::pace::Watch;
use crate::engine::flight::writer::{NotTaken, Stopped, TAIL, Writer, Written};
use crate::engine::flight::{By, Departure, Flight, Flow, Landing, State};
use crate::engine::leases::Tenure;
use crate::engine::memory::{Known, now_seconds};
use crate::engine::outcome::{Failure, Meta};
use crate::engine::suites::admission::{Admission, RELEASE_BUDGET, RELEASE_MAX};
use crate::engine::volume::promise::Staged;
use crate::index::{Entry, Expectation, budget};
use crate::mirror::{Answer, Framing, HEAD_BUDGET, MirrorError, Question};
use crate::store::{COMMIT_PATIENCE, StoreError};

/// How often in a row a transfer is resumed without having come further.
const RESUMES_MAX: u32 = 3;
/// Before a transfer is resumed.
const RESUME_PAUSE: Duration = Duration::from_millis(200);

/// How long the index may take to hear of what is kept: after that, it is told later. Nobody waits for
/// it, but flights are counted.
const KEEP_PATIENCE: Duration = Duration::from_secs(2);

/// How often file and signature of a release are looked at again that do not fit together.
const TEARS_MAX: u32 = 4;
/// Before that: a mirror takes a moment from one state to the next.
const TEAR_PAUSE: Duration = Duration::from_millis(20);

/// How often it is looked whether somebody else wants what is taken slowly.
const PACE_STEP: Duration = Duration::from_millis(100);

const NOT_RESUMED: &str = "the mirror did not go on";
const LEFT: &str = "another replica left it";
const MOVED_ON: &str = "has moved on since this release file was given out: update again";
const WEB_PAGE: &str = "answered with a web page instead of the file (captive portal?)";

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
        let is_confirming = self.known.is_some();
        let abandoned = async {
            if is_confirming {
                // However long the mirror takes to confirm it, within its bound: else what is
                // stored would never be confirmed again.
                flight.landed().await;
            }
            flight.abandoned().await;
        };
        let arrived = tokio::select! {
            arrived = self.fly_for_all(&flight) => arrived,
            () = abandoned => {
                tracing::debug!(url = self.target.url, "nobody waits for it any more");
                None
            }
        };
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
            match self.admit(flight, digest, deadline).await {
                Admission::Admitted(signature) => {
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
                    let url = &self.target.url;
                    tracing::warn!(url, "the mirror went back: serving the newer one");
                    known.confirm();
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

    /// Asks until the first bytes are there: they tell a file from a captive portal's page. Up to byte
    /// `until`, if that is enough for now.
    pub(super) async fn ask(
        &self,
        deadline: Instant,
        until: Option<u64>,
    ) -> Result<Asked, Failure> {
        let mut headers = self.conditions();
        headers.extend(range_of(0, until));
        let question = Question {
            headers,
            is_promised: self.expectation.is_some(),
            until: Some(deadline),
            ..Question::default()
        };
        let mut fruitless = 0;
        loop {
            let (source, answer) = self.engine.ask_by_names(&self.sources, &question).await?;
            if answer.status == 304
                && let Some(known) = &self.known
            {
                return Ok(Asked::Unchanged(Arc::clone(known)));
            }
            let origin = Arc::clone(&answer.origin);
            let first = self.first_bytes(source, answer, deadline, until).await;
            let out_of_tries = fruitless == RESUMES_MAX || Instant::now() >= deadline;
            match first {
                // Another mirror of the archive may have the right one.
                Err(Failure::Unusable { reason, .. })
                    if !out_of_tries && self.engine.mirror.has_several(source) =>
                {
                    tracing::warn!(%origin, reason, "asking another mirror");
                    self.engine.mirror.blame(&origin);
                }
                Err(Failure::Mirror(_)) if !out_of_tries => {}
                // Some do not know ranges, or not well.
                Err(failure) if until.is_some() && !failure.is_not_there() => {
                    tracing::info!(%origin, ?failure, "asking for all of it");
                    return Box::pin(self.ask(deadline, None)).await;
                }
                decided => return decided,
            }
            fruitless += 1;
            tokio::time::sleep(RESUME_PAUSE * fruitless).await;
        }
    }

    /// The first bytes of an answer tell a file from a captive portal's page.
    async fn first_bytes(
        &self,
        source: &Arc<Target>,
        answer: Answer,
        deadline: Instant,
        until: Option<u64>,
    ) -> Result<Asked, Failure> {
        let asked = until.filter(|_| answer.status == 206);
        let mut answer = self.usable(source, answer, asked.is_some())?;
        let first = timeout_at(deadline, answer.body.chunk()).await;
        let silent = || Err(MirrorError::silent(&self.target.authority.host));
        let first = first.unwrap_or_else(|_| silent()).map_err(Failure::Mirror)?;
        self.begin(source, answer, first.unwrap_or_default(), asked)
    }

    /// The answer, if by its head it is what was asked for: all of it, or its first part.
    fn usable(&self, source: &Target, answer: Answer, is_part: bool) -> Result<Answer, Failure> {
        if answer.status != 200 && !is_part {
            let retry_after = answer.headers.get(header::RETRY_AFTER).cloned();
            let host = self.target.authority.host.clone();
            return Err(Failure::Upstream { status: answer.status, host, retry_after });
        }
        if let Some(coding) = answer.unasked_coding() {
            let reason = format!("sent the file {coding}-encoded, which was not asked for");
            return Err(self.unusable(reason));
        }
        let kind = answer.content_type().unwrap_or_default().to_ascii_lowercase();
        if kind.starts_with("text/html") {
            return Err(self.unusable(WEB_PAGE.to_owned()));
        }
        // apt would refuse it for good, before its first byte; so it hears of a trouble that passes.
        let promised = self.expectation.and_then(|expectation| expectation.size);
        let size = match (is_part, answer.framing(), answer.part()) {
            (true, _, Some((0, Some(whole)))) => Some(whole),
            (true, ..) => {
                return Err(self.unusable("sent another part than was asked for".to_owned()));
            }
            (false, Framing::Length(size), _) => Some(size),
            (false, ..) => None,
        };
        if let (Some(size), Some(promised)) = (size, promised)
            && size != promised
        {
            self.blame(source, &answer.origin);
            let reason = if self.has_moved_on(source) {
                MOVED_ON.to_owned()
            } else {
                format!("has {size} bytes where the archive lists {promised}")
            };
            return Err(self.unusable(reason));
        }
        Ok(answer)
    }

    /// Whether bytes that are not what was expected only mean that the mirror has moved on: what was
    /// asked for under its plain name, for a client that was given an older release file.
    fn has_moved_on(&self, source: &Target) -> bool {
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

    fn begin(
        &self,
        source: &Arc<Target>,
        answer: Answer,
        first: Bytes,
        asked: Option<u64>,
    ) -> Result<Asked, Failure> {
        if !self.kind.can_begin_with(self.target.file_name(), &first) {
            let reason = if first.is_empty() { "sent an empty file" } else { WEB_PAGE };
            return Err(self.unusable(reason.to_owned()));
        }
        let framing = answer.framing();
        let meta = Meta {
            size: match (framing, answer.part()) {
                (_, Some((_, whole))) if asked.is_some() => whole,
                (Framing::Length(size), _) => Some(size),
                (Framing::Chunked | Framing::Close, _) => None,
            },
            validators: answer.validators(),
            content_type: answer.content_type(),
        };
        // A body that ends when the connection does may have been cut: it proves itself by its
        // digest, or is not kept.
        let provable = framing != Framing::Close || self.expected().is_some();
        let source = Arc::clone(source);
        let (origin, body) = (answer.origin, answer.body);
        let (body, borrowed) = (Incoming::Mirror(body.into()), None);
        Ok(Asked::Bytes(Box::new(Arrival {
            meta,
            source,
            origin,
            first,
            body,
            asked,
            provable,
            borrowed,
            by: By::Mirror,
            joined_at: None,
        })))
    }

    fn unusable(&self, reason: String) -> Failure {
        Failure::Unusable { host: self.target.authority.host.clone(), reason }
    }

    /// What the mirror needs to answer 304 (RFC 9110 §13.1).
    fn conditions(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for via in &self.via {
            headers.append(header::VIA, via.clone());
        }
        if let Some(known) = &self.known {
            let marks = &known.entry.validators;
            if let Some(etag) =
                marks.etag.as_ref().and_then(|etag| HeaderValue::try_from(etag).ok())
            {
                headers.insert(header::IF_NONE_MATCH, etag);
            }
            if let Some(date) =
                marks.last_modified.and_then(|at| HeaderValue::try_from(http_date(at)).ok())
            {
                headers.insert(header::IF_MODIFIED_SINCE, date);
            }
        }
        headers
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
        let ended = match (flowed, writer.finish().await) {
            (_, Err(error)) => Err(End::Spilled(error)),
            (Err(reason), Ok(_)) => Err(End::Cut(reason)),
            (Ok(()), Ok(written)) => self.check(&flow, written),
        };
        match ended {
            Ok(written) => {
                if !self.is_for_admission() {
                    flight.complete();
                    self.engine.leases.tell_now();
                }
                return Some(Arrived { flow, written });
            }
            Err(End::Cut(reason)) => {
                tracing::warn!(url = self.target.url, reason, "a download broke off");
                // Heard only where nothing has landed yet.
                flight.land(Landing::Failed(self.unusable(reason.clone())));
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
        let host = &self.target.authority.host;
        Err(End::Cut(if self.has_moved_on(&flow.source) {
            format!("{host} {MOVED_ON}")
        } else {
            format!("{host} sent bytes that are not what the archive lists")
        }))
    }

    /// The mirror sent something else than its lists say.
    fn blame(&self, source: &Target, origin: &str) {
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

    /// Takes the whole body, resuming it when it breaks off; no further than the leash reaches.
    pub(super) async fn flow(
        &self,
        flight: &Flight,
        flow: &Flow,
        writer: &Writer,
        beginning: Beginning,
        leash: &mut Leash,
    ) -> Result<(), String> {
        let begun = Instant::now();
        let mut pace = Watch::default();
        let mut end = flow.meta.size;
        let mut fruitless = 0;
        // Whether it is worth breaking off, and asking for the rest later.
        let mut is_ranged = true;
        let (mut received, mut next, mut body, mut asked) = match beginning {
            Beginning::Body(first, body, asked) => (0, Ok(Some(first)), Some(body), asked),
            Beginning::Rest(received) => (received, Err(LEFT.to_owned()), None, None),
        };
        loop {
            match next {
                Ok(Some(chunk)) => {
                    received += chunk.len() as u64;
                    if end.is_some_and(|end| received > end) {
                        return Err("the mirror sent more than it said".to_owned());
                    }
                    if self.kind == Kind::Release && received > RELEASE_MAX {
                        return Err("the release file is too large".to_owned());
                    }
                    fruitless = 0;
                    self.keep_pace(flight, begun, received).await;
                    if let Err(Stopped) = writer.write(chunk).await {
                        return Ok(());
                    }
                    if asked != Some(received) && end != Some(received) {
                        if !is_ranged {
                            leash.reaches_beyond(received).await;
                        } else if !leash.reaches_soon(received).await {
                            (asked, body, next) = (Some(received), None, Ok(None));
                            continue;
                        }
                    }
                    let waiting = Instant::now();
                    next = next_of(body.as_mut()).await;
                    if let (Some(rate), true) = (pace.saw(&next, waiting), flow.is_from_mirror()) {
                        self.engine.paces.note(&self.target.authority.host, rate);
                    }
                }
                Ok(None) if end.is_none_or(|end| end == received) => return Ok(()),
                // A part may be shorter than what was asked for (RFC 9110 §15.3.7).
                Ok(None) if asked.is_some_and(|asked| received < asked) => {
                    next = Err("the mirror sent a part of what was asked for".to_owned());
                }
                Ok(None) if asked != Some(received) => {
                    return Err("the mirror sent less than it said".to_owned());
                }
                Err(_) if end == Some(received) => return Ok(()),
                Err(reason) if fruitless == RESUMES_MAX => return Err(reason),
                broken => {
                    // It was asked for no more, or it broke off.
                    if let Err(reason) = &broken {
                        fruitless += 1;
                        let url = &self.target.url;
                        tracing::info!(url, received, reason, "resuming a download");
                        tokio::time::sleep(RESUME_PAUSE * fruitless).await;
                    }
                    leash.reaches_beyond(received).await;
                    // A body that broke off is not asked again: it would seem to have ended.
                    next = match self.resume(flight, flow, received, leash.end()).await? {
                        Some(resumed) => {
                            is_ranged = resumed.is_part;
                            asked = resumed.asked;
                            self.engine.metrics.resumed.inc_by(broken.is_err().into());
                            end = resumed.end;
                            next_of(Some(body.insert(resumed.body))).await
                        }
                        None => Err(broken.err().unwrap_or_else(|| NOT_RESUMED.to_owned())),
                    };
                }
            }
        }
    }

    /// Waits until as many bytes are due; not while a client waits for them.
    pub(super) async fn keep_pace(&self, flight: &Flight, begun: Instant, received: u64) {
        let Some(pace) = self.pace else { return };
        let due = begun + Duration::from_millis(received.saturating_mul(1000) / pace.max(1));
        while Instant::now() < due && flight.is_wanted_by_one() {
            tokio::time::sleep_until(due.min(Instant::now() + PACE_STEP)).await;
        }
    }

    /// Commits what was written and remembers it. A volume or index that fails costs the storing,
    /// never the clients, who have their bytes.
    async fn keep(&self, arrived: Arrived, tenure: Option<&Tenure>) {
        let Arrived { flow, written } = arrived;
        if !flow.stored {
            return;
        }
        let sha256 = written.verdict.sha256;
        let Staged { stage, promise, .. } = written.staged;
        let size = stage.size();
        let vouched_at = flow.borrowed.as_ref().map(|it| it.checked_at).or(flow.joined_at);
        let entry = Entry {
            blob: sha256,
            size,
            validators: flow.meta.validators.clone(),
            content_type: flow.meta.content_type.clone(),
            checked_at: vouched_at.unwrap_or_else(now_seconds),
        };
        let same = self.known.as_ref().filter(|known| known.entry.blob == sha256);
        if let Some(known) = same {
            // What is new are at most their marks, and a release file's signature.
            let known = Arc::new(known.described_anew(entry));
            self.remember(Arc::clone(&known), &flow, tenure).await;
            return self.refresh_signature(&known).await;
        }
        let arriving = self.engine.room.evictor().moves().arrive(sha256).await;
        let engine = Arc::clone(&self.engine);
        // However long the volume takes, it is arriving for as long.
        let committing = move || {
            let blob = engine.store.commit(stage, &sha256)?;
            let known = Known::load_new(entry, blob).map_err(StoreError::interrupted)?;
            Ok((known, arriving, promise))
        };
        match self.engine.store.within(COMMIT_PATIENCE, committing).await {
            Ok((known, arriving, promise)) => {
                self.engine.metrics.stored_bytes.inc_by(size);
                self.engine.learner.offer(&self.target.key, &known);
                self.remember(Arc::new(known), &flow, tenure).await;
                // It counts as stored from now on, and may be evicted.
                drop((arriving, promise));
            }
            Err(error) => {
                tracing::warn!(url = self.target.url, %error, source = %error.source, "fetched, but not stored");
            }
        }
    }

    /// Under its name; and, where it was asked for under another, under that too: so it is known
    /// which files of a suite this site uses. Not if another replica took over: what that one brings
    /// may be newer.
    async fn remember(&self, known: Arc<Known>, flow: &Flow, tenure: Option<&Tenure>) {
        let asked_as = Some(&flow.source.key).filter(|key| **key != self.target.key);
        self.engine.note_absent_beside(&self.target.key).await;
        for key in asked_as.into_iter().chain([&self.target.key]) {
            let is_recorded = if flow.joined_at.is_some() {
                self.engine.record_joined(key, &known.entry).await;
                true
            } else {
                self.engine.record(key, &known.entry, tenure).await
            };
            if is_recorded {
                self.engine.memory.hold(key, Arc::clone(&known));
            } else {
                tracing::warn!(key, "fetched, but another replica has taken over");
            }
        }
    }

    async fn confirm(&self, known: &Known) {
        let (key, entry) = (&self.target.key, &known.entry);
        let entry = Entry { checked_at: now_seconds(), ..entry.clone() };
        if let Err(error) = self.engine.index.confirm(key, &entry.blob, entry.checked_at).await {
            self.engine.late.confirm(key, &entry, &error);
        }
    }
}

pub(super) enum Asked {
    Unchanged(Arc<Known>),
    Bytes(Box<Arrival>),
}

/// A body whose first bytes are there.
pub(in crate::engine) struct Arrival {
    pub(in crate::engine) meta: Meta,
    /// What it was asked for as.
    pub(in crate::engine) source: Arc<Target>,
    /// Which mirror or fellow gives it.
    pub(in crate::engine) origin: Arc<str>,
    pub(in crate::engine) first: Bytes,
    pub(in crate::engine) body: Incoming,
    /// It was asked for up to this byte only.
    pub(in crate::engine) asked: Option<u64>,
    /// Whether it can be told that it is whole.
    pub(in crate::engine) provable: bool,
    /// Set where it is a fellow that gives it.
    pub(in crate::engine) borrowed: Option<Borrowed>,
    /// Who fetches it.
    pub(in crate::engine) by: By,
    /// Set where it is a fellow with another volume that does: when it was asked for it.
    pub(in crate::engine) joined_at: Option<i64>,
}

/// A body that is there to its end, and right.
pub(super) struct Arrived {
    flow: Arc<Flow>,
    written: Written,
}

impl Arrived {
    /// Whose bytes turned out to be right, and whose wrong.
    pub(super) fn givers(&self) -> &Judged {
        &self.written.givers
    }
}

/// Where a body begins.
pub(super) enum Beginning {
    /// With these bytes, and this goes on: up to that byte, if it was asked for no more.
    Body(Bytes, Incoming, Option<u64>),
    /// So many bytes are there already.
    Rest(u64),
}

async fn next_of(body: Option<&mut Incoming>) -> Result<Option<Bytes>, String> {
    match body {
        Some(body) => body.chunk().await.map_err(|error| error.to_string()),
        None => Err(LEFT.to_owned()),
    }
}

/// Bytes at the end of what has come that wait for its digest.
pub(super) fn held_back(flow: &Flow) -> u64 {
    if flow.checked { TAIL } else { 0 }
}
