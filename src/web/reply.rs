//! Answers to clients: from what the engine came to, or from why it did not. The one place where a
//! failure becomes a status.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use hyper::ext::ReasonPhrase;
use warp::Reply as _;
use warp::reply::Response as Reply;

use crate::archive::kind::Kind;
use crate::archive::target::TargetError;
use crate::content::digest::Sha256;
use crate::content::validators::Validators;
use crate::content::validators::http_date;
use crate::engine::fellows::Offer;
use crate::engine::flight::follower::Follower;
use crate::engine::memory::Known;
use crate::engine::outcome::{self, Content, Failure, Meta, Origin, Outcome, Served};
use crate::engine::relayed::Relayed;
use crate::mirror::{Framing, MirrorErrorKind};
use crate::web::access::{Credit, Reason};
use crate::web::body::{FilePart, Source};
use crate::web::conditions::{Portion, portion};

/// For how long a range of a file that is arriving is waited for, before the whole is sent instead:
/// apt gives up after 30 s of silence.
const RANGE_PATIENCE: Duration = Duration::from_secs(15);
/// When a client should come back after a trouble of ours, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");
/// apt shows the reason to its user; it must stay a line.
const REASON_MAX: usize = 160;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// Where the bytes came from, for a person with curl.
const SOURCE: HeaderName = HeaderName::from_static("x-aptmesh-source");
/// Bytes of a blob that are there already, from the first on, where more are coming.
const HAVE: HeaderName = HeaderName::from_static("aptmesh-have");
const VIA: HeaderValue = HeaderValue::from_static("1.1 aptmesh");

/// How far ahead of what is there of a file another site may begin: so much is there in a moment.
const AHEAD_MAX: u64 = 8 * 1024 * 1024;

/// A body on its way through warp, which has no place for one that it did not make.
#[derive(Clone)]
pub(super) struct Payload(Arc<Mutex<Option<Source>>>);

impl Payload {
    /// The body, once.
    pub(super) fn take(&self) -> Option<Source> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// An answer as warp hands it on.
pub(super) fn with_payload(head: Response<()>, source: Source) -> warp::reply::Response {
    let (mut parts, ()) = head.into_parts();
    parts.extensions.insert(Payload(Arc::new(Mutex::new(Some(source)))));
    Response::from_parts(parts, Bytes::new()).into_response()
}

/// The answer to a request that the engine served.
pub(super) async fn served(
    asked: &HeaderMap,
    head_only: bool,
    kind: Option<Kind>,
    mut served: Served,
) -> warp::reply::Response {
    let (outcome, origin) = (served.outcome, served.origin());
    let credit = Credit { kind, source: served.source(), outcome };
    let doubt = served.doubt.take().map(|doubt| Reason(doubt.to_string()));
    // RFC 9110 §14.2: a range means something to GET alone.
    let only_whole = head_only || served.only_whole;
    let portion = |meta: &Meta| match portion(asked, meta) {
        Portion::Part(_) | Portion::Unsatisfiable if only_whole => Portion::Whole,
        portion => portion,
    };
    let answer = match served.content {
        Content::Known(known) => {
            let meta = Meta::of(&known.entry);
            let portion = portion(&meta);
            let head = head(&meta, &portion, &cache_status(outcome, true), origin);
            let source = if head_only { Source::Empty } else { stored(&known, &portion) };
            with_payload(head, source)
        }
        Content::Flight(mut follower) => {
            let meta = follower.meta().clone();
            let mut portion = portion(&meta);
            if let Portion::Part(range) = &portion
                && range.start > 0
                && !follower.reaches(range.start, RANGE_PATIENCE).await
            {
                portion = Portion::Whole;
            }
            let status = cache_status(outcome, follower.is_stored());
            let head = head(&meta, &portion, &status, origin);
            let source = if head_only { Source::Empty } else { followed(follower, portion) };
            with_payload(head, source)
        }
        Content::Relay(answer) => relayed(answer),
    };
    let mut answer = credited(answer, credit);
    doubt.map(|doubt| answer.extensions_mut().insert(doubt));
    answer
}

/// The same answer, for the account of its request.
pub(super) fn credited(mut answer: Reply, credit: Credit) -> Reply {
    answer.extensions_mut().insert(credit);
    answer
}

/// What is wanted of a body that is arriving.
fn followed(mut follower: Box<Follower>, portion: Portion) -> Source {
    match portion {
        Portion::Whole => Source::flight(follower),
        Portion::Part(range) => {
            follower.select(range);
            Source::flight(follower)
        }
        Portion::NotModified | Portion::Unsatisfiable => Source::Empty,
    }
}

/// The same answer, with what `pass` makes of its body.
pub(super) fn passed(answer: Reply, pass: impl FnOnce(Source) -> Source) -> Reply {
    if let Some(Payload(source)) = answer.extensions().get() {
        let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
        *source = source.take().map(pass);
    }
    answer
}

/// A blob that is still coming, for another site.
pub(super) fn arriving(
    asked: &HeaderMap,
    head_only: bool,
    blob: &Sha256,
    follower: Box<Follower>,
) -> Reply {
    let (meta, have) = (follower.meta(), follower.have());
    let meta = meta_of(blob, meta.size, meta.validators.last_modified);
    let portion = if head_only { Portion::Whole } else { portion(asked, &meta) };
    let mut answer = match &portion {
        Portion::Part(range) if range.start > have.saturating_add(AHEAD_MAX) => {
            busy(Duration::from_secs(1), "has not come so far yet")
        }
        _ => {
            let status = cache_status(Outcome::Collapsed, follower.is_stored());
            let head = head(&meta, &portion, &status, Origin::Mirror);
            let source = if head_only { Source::Empty } else { followed(follower, portion) };
            with_payload(head, source)
        }
    };
    answer.headers_mut().insert(HAVE, have.into());
    credited(answer, Credit::of(outcome::Source::Flight, Outcome::Collapsed))
}

/// What another site may ask again for, after this time.
pub(super) fn busy(for_about: Duration, reason: &str) -> Reply {
    let mut answer = refusal(StatusCode::SERVICE_UNAVAILABLE, reason);
    answer.headers_mut().insert(header::RETRY_AFTER, for_about.as_secs().into());
    answer
}

fn meta_of(blob: &Sha256, size: Option<u64>, last_modified: Option<i64>) -> Meta {
    Meta {
        size,
        // It is what it is called: there is no other version.
        validators: Validators { last_modified, etag: Some(format!("\"{blob}\"")) },
        content_type: Some("application/octet-stream".to_owned()),
    }
}

/// A blob for another replica, or another site.
pub(super) fn lent(
    asked: &HeaderMap,
    head_only: bool,
    blob: &Sha256,
    known: &Known,
) -> warp::reply::Response {
    let meta = meta_of(blob, Some(known.entry.size), known.entry.validators.last_modified);
    let portion = if head_only { Portion::Whole } else { portion(asked, &meta) };
    let status = cache_status(Outcome::Hit, true);
    let head = head(&meta, &portion, &status, Origin::Store);
    let source = if head_only { Source::Empty } else { stored(known, &portion) };
    let place =
        if known.small.is_some() { outcome::Source::Memory } else { outcome::Source::Store };
    credited(with_payload(head, source), Credit::of(place, Outcome::Hit))
}

/// The head of what a fellow has, for another site, and the bytes that are to follow, if any are.
pub(super) fn passed_on(
    asked: &HeaderMap,
    head_only: bool,
    offer: &Offer,
) -> (Response<()>, Option<Range<u64>>) {
    let Offer { entry, .. } = offer;
    let meta = meta_of(&entry.blob, Some(entry.size), entry.validators.last_modified);
    let portion = if head_only { Portion::Whole } else { portion(asked, &meta) };
    let status = cache_status(Outcome::Miss, false);
    let head = head(&meta, &portion, &status, Origin::Replica);
    let part = match portion {
        _ if head_only => None,
        Portion::Whole => Some(0..entry.size).filter(|part| !part.is_empty()),
        Portion::Part(part) => Some(part),
        Portion::NotModified | Portion::Unsatisfiable => None,
    };
    (head, part)
}

fn head(meta: &Meta, portion: &Portion, status: &str, origin: Origin) -> Response<()> {
    let mut head = Response::new(());
    let fields = head.headers_mut();
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::try_from(value) {
            fields.insert(name, value);
        }
    };
    if let Some(at) = meta.validators.last_modified {
        set(header::LAST_MODIFIED, &http_date(at));
    }
    if let Some(etag) = &meta.validators.etag {
        set(header::ETAG, etag);
    }
    if let Some(kind) = &meta.content_type {
        set(header::CONTENT_TYPE, kind);
    }
    set(CACHE_STATUS, status);
    let size = meta.size.map(|size| size.to_string());
    let size = size.as_deref().unwrap_or("*");
    let code = match portion {
        Portion::Whole => {
            if meta.size.is_some() {
                set(header::CONTENT_LENGTH, size);
            }
            StatusCode::OK
        }
        Portion::Part(range) => {
            let (first, last) = (range.start, range.end.saturating_sub(1));
            set(header::CONTENT_RANGE, &format!("bytes {first}-{last}/{size}"));
            set(header::CONTENT_LENGTH, &(range.end - range.start).to_string());
            StatusCode::PARTIAL_CONTENT
        }
        Portion::NotModified => StatusCode::NOT_MODIFIED,
        Portion::Unsatisfiable => {
            set(header::CONTENT_RANGE, &format!("bytes */{size}"));
            set(header::CONTENT_LENGTH, "0");
            StatusCode::RANGE_NOT_SATISFIABLE
        }
    };
    fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    fields.insert(SOURCE, told(origin));
    fields.insert(header::VIA, VIA);
    *head.status_mut() = code;
    head
}

fn told(origin: Origin) -> HeaderValue {
    HeaderValue::from_static(match origin {
        Origin::Store => "store",
        Origin::Replica | Origin::Peer => "peer",
        Origin::Mirror => "mirror",
    })
}

fn stored(known: &Known, portion: &Portion) -> Source {
    let range = match portion {
        Portion::Whole => 0..known.entry.size,
        Portion::Part(range) => range.clone(),
        Portion::NotModified | Portion::Unsatisfiable => return Source::Empty,
    };
    let in_memory = known.small.as_ref().and_then(|bytes| {
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        (end <= bytes.len()).then(|| bytes.slice(start..end))
    });
    if let Some(bytes) = in_memory {
        return Source::Bytes(bytes);
    }
    let file = Arc::clone(&known.blob.file);
    let part = FilePart { file, offset: range.start, length: range.end - range.start };
    match known.proof.pending(&known.blob) {
        None => Source::File(part),
        Some(proven) if known.proof.is_shared() => Source::shared(part, proven),
        Some(proven) => Source::unproven(part, proven),
    }
}

/// RFC 9211: what the cache did.
fn cache_status(outcome: Outcome, stored: bool) -> String {
    let what = match outcome {
        Outcome::Hit => "hit",
        Outcome::Stale => "hit; detail=stale-mirror-away",
        Outcome::Revalidated => "hit; fwd=stale; fwd-status=304",
        Outcome::Miss if stored => "fwd=miss; stored",
        Outcome::Miss | Outcome::Refused | Outcome::Error => "fwd=miss",
        Outcome::Collapsed if stored => "fwd=miss; collapsed; stored",
        Outcome::Collapsed => "fwd=miss; collapsed",
        Outcome::Relayed => "fwd=bypass",
    };
    format!("{}; {what}", crate::web::NAME)
}

/// A mirror's answer, with what is only between two neighbours taken out (RFC 9110 §7.6.1).
fn relayed(mut answer: Box<Relayed>) -> warp::reply::Response {
    let mut headers = std::mem::take(&mut answer.headers);
    if !matches!(answer.framing, Framing::Length(_)) {
        // Beside a transfer coding a length means nothing (RFC 9112 §6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    // apt takes a date that it can not read for a broken answer: another form of it, or none.
    for name in [header::LAST_MODIFIED, header::DATE, header::EXPIRES] {
        let date =
            header_text(&headers, &name).and_then(|date| httpdate::parse_http_date(date).ok());
        headers.remove(&name);
        if let Some(date) = date.map(httpdate::fmt_http_date)
            && let Ok(date) = HeaderValue::try_from(date)
        {
            headers.insert(name, date);
        }
    }
    headers.append(header::VIA, VIA);
    headers.insert(SOURCE, told(Origin::Mirror));
    if let Ok(status) = HeaderValue::try_from(cache_status(Outcome::Relayed, false)) {
        headers.insert(CACHE_STATUS, status);
    }
    let mut head = Response::new(());
    *head.status_mut() = answer.status;
    *head.headers_mut() = headers;
    with_payload(head, Source::relay(answer))
}

static HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

fn status_of(failure: &Failure) -> StatusCode {
    match failure {
        Failure::Upstream { status, .. } if status.as_u16() >= 400 => *status,
        Failure::Mirror(error) => match error.kind {
            MirrorErrorKind::Forbidden => StatusCode::FORBIDDEN,
            MirrorErrorKind::Silent | MirrorErrorKind::Away => StatusCode::GATEWAY_TIMEOUT,
            MirrorErrorKind::Unreachable
            | MirrorErrorKind::Misdirected
            | MirrorErrorKind::Unchecked
            | MirrorErrorKind::Broken => StatusCode::SERVICE_UNAVAILABLE,
        },
        Failure::Upstream { .. } | Failure::Unusable { .. } | Failure::Internal(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

/// The answer to a request that came to nothing.
pub(super) fn failed(failure: &Failure) -> warp::reply::Response {
    let status = status_of(failure);
    let mut answer = match failure {
        Failure::Upstream { status: refused, .. } if *refused == status => {
            refusal(status, status.canonical_reason().unwrap_or("Refused by the mirror"))
        }
        _ if status == StatusCode::FORBIDDEN => refusal(status, &failure.to_string()),
        _ => trouble(status, &failure.to_string()),
    };
    let mut cache_status = cache_status(Outcome::Error, false);
    if let Failure::Upstream { status, retry_after, .. } = failure {
        cache_status.push_str("; fwd-status=");
        cache_status.push_str(status.as_str());
        let passing = status.is_server_error().then_some(RETRY_AFTER);
        if let Some(retry_after) = retry_after.clone().or(passing) {
            answer.headers_mut().insert(header::RETRY_AFTER, retry_after);
        }
    }
    if let Ok(cache_status) = HeaderValue::try_from(cache_status) {
        answer.headers_mut().insert(CACHE_STATUS, cache_status);
    }
    answer
}

/// The answer to a target that names nothing.
pub(super) fn bad_target(error: &TargetError) -> warp::reply::Response {
    let status = match error {
        TargetError::TooLong => StatusCode::URI_TOO_LONG,
        TargetError::Host(_) => StatusCode::NOT_FOUND,
        TargetError::Path(_) | TargetError::Scheme(_) => StatusCode::BAD_REQUEST,
    };
    let mut answer = refusal(status, &error.to_string());
    if let TargetError::Host(_) = error {
        // Who wrote it wrong may have written a password in its place.
        answer.extensions_mut().insert(Reason("the target names no mirror".to_owned()));
    }
    answer
}

/// A trouble that may pass: apt tries again.
fn trouble(status: StatusCode, reason: &str) -> warp::reply::Response {
    let mut answer = refusal(status, reason);
    answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    answer
}

/// A status with its reason, as the phrase that apt shows and as text.
pub(super) fn refusal(status: StatusCode, reason: &str) -> warp::reply::Response {
    let phrase: String =
        reason.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(REASON_MAX).collect();
    let mut head = Response::new(());
    *head.status_mut() = status;
    let fields = head.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.insert(header::VIA, VIA);
    let text = Bytes::from(format!("{phrase}\n"));
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    if let Ok(phrase) = ReasonPhrase::try_from(phrase.into_bytes()) {
        head.extensions_mut().insert(phrase);
    }
    with_payload(head, Source::Bytes(text))
}

fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
