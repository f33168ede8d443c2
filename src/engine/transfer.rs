//! The running of one flight: ask the mirror, stage what comes, resume what breaks off, check,
//! commit.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use tokio::time::{Instant, timeout, timeout_at};

use crate::archive::kind::Kind;
use crate::archive::signature::SIGNATURE_BYTES_MAX;
use crate::archive::target::Target;
use crate::content::digest::Expected;
use crate::content::validators::http_date;
use crate::engine::Engine;
use crate::engine::flight::{Departure, Flight, Flow, Landing, State};
use crate::engine::judge::{Case, Judgement};
use crate::engine::memory::{Known, now_seconds};
use crate::engine::outcome::{Failure, Meta};
use crate::engine::room::Staged;
use crate::engine::writer::{Stopped, Writer, Written};
use crate::index::{Entry, Expectation};
use crate::mirror::{Answer, Body, Framing, HEAD_BUDGET, MirrorError, Question};
use crate::store::StoreError;

/// How often in a row a transfer is resumed without having come further.
const RESUMES_MAX: u32 = 3;
/// Before a transfer is resumed.
const RESUME_PAUSE: Duration = Duration::from_millis(200);

/// The most bytes of a release file; apt takes ten million.
const RELEASE_MAX: u64 = 32 * 1024 * 1024;
/// For how long a release file may take: nobody has a byte of it before it is judged, and apt gives
/// up after 30 s of silence.
const RELEASE_BUDGET: Duration = Duration::from_secs(20);
/// For how long its signature is waited for, where it is a file of its own.
const SIGNATURE_BUDGET: Duration = Duration::from_secs(5);

const WEB_PAGE: &str = "answered with a web page instead of the file (captive portal?)";

/// What a flight is to bring.
pub(super) struct Transfer {
    pub(super) engine: Arc<Engine>,
    pub(super) target: Arc<Target>,
    pub(super) kind: Kind,
    /// What it must be, where a list or its own name tells.
    pub(super) expectation: Option<Expectation>,
    /// What is stored already, to be confirmed or replaced.
    pub(super) known: Option<Arc<Known>>,
    /// The caches that the first client's question came through.
    pub(super) via: Vec<HeaderValue>,
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
    pub(super) async fn run(self, departure: Departure) {
        let flight = Arc::clone(departure.flight());
        let abandoned = async {
            if self.known.is_some() {
                // However long the mirror takes to confirm it, within its bound: else what is
                // stored would never be confirmed again.
                flight.landed().await;
            }
            flight.abandoned().await;
        };
        let arrived = tokio::select! {
            arrived = self.fly(&flight) => arrived,
            () = abandoned => {
                tracing::debug!(url = self.target.url, "nobody waits for it any more");
                None
            }
        };
        // Whole by now: it is kept whether somebody still waits or not.
        if let Some((meta, written)) = arrived {
            self.keep(&meta, written).await;
        }
    }

    /// A whole body that is to be kept, if that is what came.
    async fn fly(&self, flight: &Arc<Flight>) -> Option<(Meta, Written)> {
        match self.ask().await {
            Err(failure) => flight.land(Landing::Failed(failure)),
            Ok(Asked::Unchanged(known)) => {
                self.confirm(&known).await;
                flight.land(Landing::Unchanged(known));
            }
            Ok(Asked::Bytes(arrival)) => return self.receive(flight, *arrival).await,
        }
        None
    }

    /// Asks until the first bytes are there: they tell a file from a captive portal's page.
    async fn ask(&self) -> Result<Asked, Failure> {
        let question = Question { head_only: false, headers: self.conditions() };
        let deadline = Instant::now() + HEAD_BUDGET;
        let mut fruitless = 0;
        loop {
            let mirror = &self.engine.mirror;
            let answer = mirror.ask(&self.target, &question).await.map_err(Failure::Mirror)?;
            if answer.status == 304
                && let Some(known) = &self.known
            {
                return Ok(Asked::Unchanged(Arc::clone(known)));
            }
            let mut answer = self.usable(answer)?;
            let first = timeout_at(deadline, answer.body.chunk()).await;
            match first.unwrap_or_else(|_| Err(MirrorError::silent(&self.target.authority.host))) {
                Ok(first) => return self.begin(answer, first.unwrap_or_default()),
                Err(error) if fruitless == RESUMES_MAX || Instant::now() >= deadline => {
                    return Err(Failure::Mirror(error));
                }
                Err(_broke_off) => {
                    fruitless += 1;
                    tokio::time::sleep(RESUME_PAUSE * fruitless).await;
                }
            }
        }
    }

    /// The answer, if by its head it is what was asked for.
    fn usable(&self, answer: Answer) -> Result<Answer, Failure> {
        if answer.status != 200 {
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
        if let (Framing::Length(size), Some(promised)) = (answer.framing(), promised)
            && size != promised
        {
            self.blame();
            let reason = format!("has {size} bytes where the archive lists {promised}");
            return Err(self.unusable(reason));
        }
        Ok(answer)
    }

    fn expected(&self) -> Option<Expected> {
        self.expectation.map(|expectation| expectation.digest)
    }

    fn begin(&self, answer: Answer, first: Bytes) -> Result<Asked, Failure> {
        if !self.kind.can_begin_with(self.target.file_name(), &first) {
            let reason = if first.is_empty() { "sent an empty file" } else { WEB_PAGE };
            return Err(self.unusable(reason.to_owned()));
        }
        let framing = answer.framing();
        let meta = Meta {
            size: match framing {
                Framing::Length(size) => Some(size),
                Framing::Chunked | Framing::Close => None,
            },
            validators: answer.validators(),
            content_type: answer.content_type(),
        };
        // A body that ends when the connection does may have been cut: it proves itself by its
        // digest, or is not kept.
        let provable = framing != Framing::Close || self.expected().is_some();
        Ok(Asked::Bytes(Box::new(Arrival { meta, first, body: answer.body, provable })))
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

    async fn receive(&self, flight: &Arc<Flight>, arrival: Arrival) -> Option<(Meta, Written)> {
        let size = arrival.meta.size.or(self.expectation.and_then(|expected| expected.size));
        let Ok(staged) = self.engine.room.stage(size).await else {
            flight.land(Landing::Unstorable);
            return None;
        };
        let meta = arrival.meta.clone();
        let checked = self.expectation.is_some();
        let flow =
            Arc::new(Flow { meta, stored: arrival.provable, checked, file: staged.stage.reader() });
        let writer = Writer::start(staged, self.expected(), Arc::clone(flight));
        // Nobody sees a release file before it is judged; it is small.
        let is_judged = self.kind == Kind::Release && self.engine.judge.is_in_session();
        if !is_judged {
            flight.land(Landing::Flowing(Arc::clone(&flow)));
        }

        let flowing = self.flow(flight, &flow, &writer, arrival);
        let flowed = if is_judged {
            let too_slow = || Err("the release file took too long".to_owned());
            timeout(RELEASE_BUDGET, flowing).await.unwrap_or_else(|_| too_slow())
        } else {
            flowing.await
        };
        let ended = match (flowed, writer.finish().await) {
            (_, Err(error)) => Err(End::Spilled(error)),
            (Err(reason), Ok(_)) => Err(End::Cut(reason)),
            (Ok(()), Ok(written)) => self.check(written),
        };
        match ended {
            Ok(written) if is_judged => {
                if let Err(landing) = self.judge(&flow).await {
                    flight.land(landing);
                    return None;
                }
                flight.land(Landing::Flowing(Arc::clone(&flow)));
                return Self::arrive(flight, &flow, written);
            }
            Ok(written) => return Self::arrive(flight, &flow, written),
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

    fn arrive(flight: &Flight, flow: &Flow, written: Written) -> Option<(Meta, Written)> {
        flight.advance(written.staged.stage.size(), 0);
        flight.end(State::Whole);
        flow.stored.then(|| (flow.meta.clone(), written))
    }

    /// Judges a release file that has arrived.
    async fn judge(&self, flow: &Flow) -> Result<(), Landing> {
        let detached = match self.target.file_name() {
            "InRelease" => None,
            "Release" => timeout(SIGNATURE_BUDGET, self.detached_signature()).await.ok().flatten(),
            // The signature alone: it is judged with its file.
            _ => return Ok(()),
        };
        let (engine, known) = (Arc::clone(&self.engine), self.known.clone());
        let file = Arc::clone(&flow.file);
        let judging = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, 0)?;
            Ok::<_, std::io::Error>(engine.judge.judge(&Case {
                file: &bytes,
                detached: detached.as_deref(),
                accepted: known.as_deref(),
                now: now_seconds(),
            }))
        });
        match (judging.await, &self.known) {
            (Ok(Ok(Judgement::Accepted)), _) => Ok(()),
            (Ok(Ok(Judgement::Refused(reason))), _) => {
                tracing::warn!(url = self.target.url, reason, "refusing a release file");
                Err(Landing::Failed(self.unusable(reason)))
            }
            (Ok(Ok(Judgement::Older)), Some(known)) => {
                tracing::warn!(
                    url = self.target.url,
                    "the mirror went back: serving the newer one"
                );
                known.confirm();
                Err(Landing::Unchanged(Arc::clone(known)))
            }
            _ => Err(Landing::Failed(Failure::internal("a release file could not be judged"))),
        }
    }

    /// `Release.gpg` beside a `Release`; `None` if there is none to be had.
    async fn detached_signature(&self) -> Option<Vec<u8>> {
        let beside = Target::from_absolute(&format!("{}.gpg", self.target.key)).ok()?;
        let question = Question { head_only: false, headers: HeaderMap::new() };
        let mut answer = self.engine.mirror.ask(&beside, &question).await.ok()?;
        if answer.status != 200 {
            return None;
        }
        let mut signature = Vec::new();
        while let Some(chunk) = answer.body.chunk().await.ok()? {
            signature.extend_from_slice(&chunk);
            if signature.len() > SIGNATURE_BYTES_MAX {
                return None;
            }
        }
        Some(signature)
    }

    fn check(&self, written: Written) -> Result<Written, End> {
        if written.verdict.as_expected {
            return Ok(written);
        }
        self.blame();
        let host = &self.target.authority.host;
        Err(End::Cut(format!("{host} sent bytes that are not what the archive lists")))
    }

    /// The mirror sent something else than its lists say.
    fn blame(&self) {
        self.engine.metrics.verify_failures.with_label_values(&["mirror"]).inc();
        self.engine.doubt(&self.target.key);
    }

    /// Takes the whole body, resuming it when it breaks off.
    async fn flow(
        &self,
        flight: &Flight,
        flow: &Flow,
        writer: &Writer,
        arrival: Arrival,
    ) -> Result<(), String> {
        let mut received = 0;
        let mut end = flow.meta.size;
        let mut body = arrival.body;
        let mut fruitless = 0;
        let mut next = Ok(Some(arrival.first));
        loop {
            match next {
                Ok(Some(chunk)) => {
                    received += chunk.len() as u64;
                    if self.kind == Kind::Release && received > RELEASE_MAX {
                        return Err("the release file is too large".to_owned());
                    }
                    fruitless = 0;
                    if let Err(Stopped) = writer.write(chunk).await {
                        return Ok(());
                    }
                    next = body.chunk().await;
                }
                Ok(None) if end.is_none_or(|end| end == received) => return Ok(()),
                Ok(None) => return Err("the mirror sent less than it said".to_owned()),
                Err(error) if fruitless == RESUMES_MAX => return Err(error.to_string()),
                Err(error) => {
                    fruitless += 1;
                    tracing::info!(url = self.target.url, received, %error, "resuming a download");
                    tokio::time::sleep(RESUME_PAUSE * fruitless).await;
                    // A body that broke off is not asked again: it would seem to have ended.
                    next = match self.resume(flight, flow, received).await? {
                        Some(resumed) => {
                            self.engine.metrics.resumed.inc();
                            body = resumed.body;
                            end = resumed.end;
                            body.chunk().await
                        }
                        None => Err(error),
                    };
                }
            }
        }
    }

    /// Commits what was written and remembers it. A volume or index that fails costs the storing,
    /// never the clients, who have their bytes.
    async fn keep(&self, meta: &Meta, written: Written) {
        let sha256 = written.verdict.sha256;
        let same = self.known.as_ref().filter(|known| known.entry.blob == sha256);
        if let Some(known) = same {
            return self.confirm_with(known, meta).await;
        }
        let Staged { stage, promise, .. } = written.staged;
        let size = stage.size();
        let entry = Entry {
            blob: sha256,
            size,
            validators: meta.validators.clone(),
            content_type: meta.content_type.clone(),
            checked_at: now_seconds(),
        };
        let arriving = self.engine.room.evictor().moves().arrive(sha256).await;
        let engine = Arc::clone(&self.engine);
        let recorded = entry.clone();
        let committing = tokio::task::spawn_blocking(move || {
            let blob = engine.store.commit(stage, &sha256)?;
            Known::load(recorded, blob).map_err(StoreError::interrupted)
        });
        match committing.await.map_err(StoreError::interrupted).and_then(|committed| committed) {
            Ok(known) => {
                self.engine.metrics.stored_bytes.inc_by(size);
                self.engine.learner.offer(&self.target.key, &known);
                self.engine.memory.hold(&self.target.key, Arc::new(known));
                if let Err(error) = self.engine.index.record(&self.target.key, &entry).await {
                    tracing::warn!(url = self.target.url, %error, source = %error.source, "stored, but not recorded");
                }
            }
            Err(error) => {
                tracing::warn!(url = self.target.url, %error, source = %error.source, "fetched, but not stored");
            }
        }
        // It counts as stored from now on, and may be evicted.
        drop((arriving, promise));
    }

    /// The same bytes: what is new are at most their marks.
    async fn confirm_with(&self, known: &Known, meta: &Meta) {
        let entry = Entry {
            validators: meta.validators.clone(),
            content_type: meta.content_type.clone(),
            checked_at: now_seconds(),
            ..known.entry.clone()
        };
        self.engine.memory.hold(&self.target.key, Arc::new(known.described_anew(entry.clone())));
        if let Err(error) = self.engine.index.record(&self.target.key, &entry).await {
            tracing::warn!(url = self.target.url, %error, source = %error.source, "confirmed, but not recorded");
        }
    }

    async fn confirm(&self, known: &Known) {
        known.confirm();
        let confirmed =
            self.engine.index.confirm(&self.target.key, &known.entry.blob, now_seconds()).await;
        if let Err(error) = confirmed {
            tracing::warn!(url = self.target.url, %error, source = %error.source, "confirmed, but not recorded");
        }
    }
}

enum Asked {
    Unchanged(Arc<Known>),
    Bytes(Box<Arrival>),
}

/// A body whose first bytes are there.
struct Arrival {
    meta: Meta,
    first: Bytes,
    body: Body,
    /// Whether it can be told that it is whole.
    provable: bool,
}
