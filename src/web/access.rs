//! The account of a request, from its head to the last byte of its answer: what it adds to the metrics, and
//! its line in the access log.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::{Method, Request, StatusCode, response};
use hyper::ext::ReasonPhrase;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use tokio::time::Instant;
use tracing::{Span, field};

use crate::archive::kind::Kind;
use crate::engine::ServedCounters;
use crate::engine::outcome::{Outcome, ServedAs, Source};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::shown::shown;
use crate::telemetry::traces;

/// Upper bounds of the time to an answer's head, in seconds: memory, disk, near and far mirrors, retries.
const FIRST_BYTE_BUCKETS: [f64; 9] = [0.0005, 0.002, 0.01, 0.05, 0.2, 1.0, 5.0, 15.0, 30.0];
/// The same for whole answers: from a small file to an image over a slow line.
const REQUEST_BUCKETS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0];

/// A door of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// For apt clients.
    Proxy,
    /// For other replicas and other sites.
    Peer,
    /// For the proxy, of its node.
    Sidecar,
    /// For operators.
    Admin,
}

impl Door {
    fn label(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Peer => "peer",
            Self::Sidecar => "sidecar",
            Self::Admin => "admin",
        }
    }

    /// Whether programs ask here again and again for how things are: that is no news.
    fn is_routine(self) -> bool {
        matches!(self, Self::Sidecar | Self::Admin)
    }
}

/// What is measured of requests, at all doors.
pub struct AccessMetrics {
    seconds: HistogramVec,
    first_byte: HistogramVec,
    answers: IntCounterVec,
    connections: IntGaugeVec,
    requests: IntGaugeVec,
    tunnel_bytes: IntCounterVec,
}

impl AccessMetrics {
    /// Declares it, and that there may be so many connections at an address.
    #[must_use]
    pub fn new(metrics: &Metrics, connections_max: usize) -> Self {
        metrics
            .gauge(
                "aptmesh_web_connections_max",
                "Connections that may be open at each address (listen.connections).",
            )
            .set(connections_max.try_into().unwrap_or(i64::MAX));
        let by_source = ["surface", "source"];
        Self {
            seconds: metrics.histograms(
                "aptmesh_web_request_seconds",
                "Time from a request's head to the end of its answer, by source of the bytes; without tunnels.",
                &by_source,
                &REQUEST_BUCKETS,
            ),
            first_byte: metrics.histograms(
                "aptmesh_web_first_byte_seconds",
                "Time from a request's head to that of its answer, by source of the bytes.",
                &by_source,
                &FIRST_BYTE_BUCKETS,
            ),
            answers: metrics.counters(
                "aptmesh_web_answers_total",
                "Answers by class of status; cut: the rest of the body could not be had; left: the client did not wait for the head, or take all of the body.",
                &["surface", "class"],
            ),
            connections: metrics.gauges(
                "aptmesh_web_connections",
                "Connections that are open.",
                &["surface"],
            ),
            requests: metrics.gauges(
                "aptmesh_web_requests",
                "Requests that are being answered.",
                &["surface"],
            ),
            tunnel_bytes: metrics.counters_of(
                "aptmesh_web_tunnel_bytes_total",
                "Bytes carried in tunnels (CONNECT): up, from clients to mirrors; down, to clients.",
                "direction",
                &["up", "down"],
            ),
        }
    }

    /// What is measured at one door; bytes of bodies are counted in `served_bytes`, where it is set.
    #[must_use]
    pub fn at(&self, door: Door, served_bytes: Option<Arc<ServedCounters>>) -> Arc<DoorMetrics> {
        let label = door.label();
        Arc::new(DoorMetrics {
            door,
            seconds: Cached::new(&self.seconds, label),
            first_byte: Cached::new(&self.first_byte, label),
            answers: Class::ALL
                .map(|class| self.answers.with_label_values(&[label, class.label()])),
            connections: self.connections.with_label_values(&[label]),
            requests: self.requests.with_label_values(&[label]),
            tunnel_bytes: ["up", "down"]
                .map(|direction| self.tunnel_bytes.with_label_values(&[direction])),
            served_bytes,
        })
    }
}

/// What is measured at one door, looked up by its labels once.
pub struct DoorMetrics {
    door: Door,
    seconds: Cached,
    first_byte: Cached,
    answers: [IntCounter; Class::ALL.len()],
    connections: IntGauge,
    requests: IntGauge,
    /// To mirrors, and to clients.
    tunnel_bytes: [IntCounter; 2],
    served_bytes: Option<Arc<ServedCounters>>,
}

impl DoorMetrics {
    /// The span of a request at this door, which begins now.
    pub(super) fn span<B>(&self, request: &Request<B>, client: IpAddr) -> Span {
        let (method, target, headers) = (request.method(), request.uri(), request.headers());
        traces::request_span(self.door.label(), method, target, headers, client)
    }
}

/// A histogram for each source, of which those that occur are made.
struct Cached {
    histograms: HistogramVec,
    door: &'static str,
    found: [OnceLock<Histogram>; Source::ALL.len()],
}

impl Cached {
    fn new(histograms: &HistogramVec, door: &'static str) -> Self {
        Self { histograms: histograms.clone(), door, found: Default::default() }
    }

    fn observe(&self, source: Source, duration: Duration) {
        let look_up = || self.histograms.with_label_values(&[self.door, source.label()]);
        if let Some(found) = self.found.get(source.number()) {
            found.get_or_init(look_up).observe(duration.as_secs_f64());
        }
    }
}

/// A connection, counted while it is open.
pub(super) struct OpenConnection(Arc<DoorMetrics>);

impl OpenConnection {
    pub(super) fn at(door: &Arc<DoorMetrics>) -> Self {
        door.connections.inc();
        Self(Arc::clone(door))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// What an answer came to, beside its head: for the account of its request.
#[derive(Clone, Copy)]
pub(super) struct Credit {
    pub(super) kind: Option<Kind>,
    pub(super) source: Source,
    pub(super) outcome: Outcome,
}

impl Credit {
    /// That of an answer that is of no known kind.
    pub(super) fn of(source: Source, outcome: Outcome) -> Self {
        Self { kind: None, source, outcome }
    }
}

impl From<ServedAs> for Credit {
    fn from(ServedAs { kind, source, outcome }: ServedAs) -> Self {
        Self { kind: Some(kind), source, outcome }
    }
}

/// Where the bytes of a body are counted.
#[derive(Clone)]
pub(super) struct Counted(pub(super) IntCounter);

/// Why an answer is not all that it could be, where its head does not say that, or says it in words that are not
/// fit for a log.
#[derive(Clone)]
pub(super) struct Reason(pub(super) String);

/// A class of answers.
#[derive(Clone, Copy)]
enum Class {
    Done,
    Elsewhere,
    Refused,
    Failed,
    Cut,
    Left,
}

impl Class {
    const ALL: [Self; 6] =
        [Self::Done, Self::Elsewhere, Self::Refused, Self::Failed, Self::Cut, Self::Left];

    fn label(self) -> &'static str {
        match self {
            Self::Done => "2xx",
            Self::Elsewhere => "3xx",
            Self::Refused => "4xx",
            Self::Failed => "5xx",
            Self::Cut => "cut",
            Self::Left => "left",
        }
    }

    fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            ..300 => Self::Done,
            300..400 => Self::Elsewhere,
            400..500 => Self::Refused,
            500.. => Self::Failed,
        }
    }
}

/// How an answer ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// With its last byte.
    Whole,
    /// The client did not take all of it, as far as is known.
    Left,
    /// What was missing could not be had.
    Cut,
}

/// The account of one request. It is closed when it is dropped, however that comes.
pub(super) struct Access {
    door: Arc<DoorMetrics>,
    client: IpAddr,
    /// `None`: it could not be read.
    method: Option<Method>,
    target: String,
    begun: Instant,
    span: Span,
    head: Option<Head>,
    bytes: u64,
    end: End,
    /// Why it was refused, or cut off.
    reason: Option<String>,
}

/// The account of a request that hyper could not read, and answered by itself.
pub(super) fn malformed(door: &Arc<DoorMetrics>, client: IpAddr, error: &hyper::Error) {
    let (mut head, ()) = response::Response::new(()).into_parts();
    head.status = if error.is_parse_too_large() {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    } else {
        StatusCode::BAD_REQUEST
    };
    let request = Request::new(());
    let span = door.span(&request, client);
    let mut access = Access::begin(door, client, request.method(), String::new(), span);
    access.method = None;
    access.answer(&head);
    access.complete();
    access.reason = Some(error.to_string());
}

/// What is known when an answer's head goes out.
struct Head {
    after: Duration,
    status: StatusCode,
    credit: Option<Credit>,
    /// Bytes that it promises.
    length: Option<u64>,
    counted: Option<IntCounter>,
}

impl Access {
    /// Opens the account of a request for `target`, which is traced in `span`.
    pub(super) fn begin(
        door: &Arc<DoorMetrics>,
        client: IpAddr,
        method: &Method,
        target: String,
        span: Span,
    ) -> Self {
        door.requests.inc();
        Self {
            door: Arc::clone(door),
            client,
            method: Some(method.clone()),
            target,
            begun: Instant::now(),
            span,
            head: None,
            bytes: 0,
            end: End::Left,
            reason: None,
        }
    }

    /// The answer's head goes out.
    pub(super) fn answer(&mut self, head: &response::Parts) {
        let extensions = &head.extensions;
        let credit = extensions.get::<Credit>().copied();
        let served = credit.and_then(|Credit { kind, source, outcome }| {
            Some(self.door.served_bytes.as_ref()?.of(ServedAs { kind: kind?, source, outcome }))
        });
        let given = extensions.get::<Counted>().map(|Counted(counter)| counter.clone());
        let has_body = self.method != Some(Method::HEAD)
            && !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let length = if has_body { length.and_then(|length| length.parse().ok()) } else { Some(0) };
        let reason = extensions.get::<Reason>().map(|Reason(reason)| reason.clone());
        let phrase = || extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
        let phrase = || phrase().map(|phrase| String::from_utf8_lossy(phrase).into_owned());
        self.reason = reason.or_else(phrase);
        let (after, status) = (self.begun.elapsed(), head.status);
        self.head = Some(Head { after, status, credit, length, counted: given.or(served) });
    }

    /// So many bytes of its body are on their way.
    pub(super) fn send(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(counted) = self.head.as_ref().and_then(|head| head.counted.as_ref()) {
            counted.inc_by(bytes);
        }
    }

    /// Where bytes are counted that its tunnel carries up, and down.
    pub(super) fn tunnel_bytes(&self) -> [IntCounter; 2] {
        self.door.tunnel_bytes.clone()
    }

    /// Whether all that its head promises is on its way.
    pub(super) fn has_sent_all(&self) -> bool {
        let promised = self.head.as_ref().and_then(|head| head.length);
        self.end == End::Left && promised == Some(self.bytes)
    }

    /// All that there is of its body was taken.
    pub(super) fn complete(&mut self) {
        self.end = End::Whole;
    }

    /// The rest of its body can not be had.
    pub(super) fn cut(&mut self, reason: String) {
        self.end = End::Cut;
        self.reason = Some(reason);
    }

    fn class(&self, end: End) -> Class {
        match (&self.head, end) {
            (None, _) | (Some(_), End::Left) => Class::Left,
            (Some(head), End::Whole) => Class::of(head.status),
            (Some(_), End::Cut) => Class::Cut,
        }
    }

    fn close(&self) {
        let end = self.end;
        let took = self.begun.elapsed();
        let credit = self.head.as_ref().and_then(|head| head.credit);
        let source = credit.map_or(Source::None, |credit| credit.source);
        self.door.requests.dec();
        // A tunnel is open for as long as its client likes.
        if self.method != Some(Method::CONNECT) {
            self.door.seconds.observe(source, took);
        }
        if let Some(head) = self.head.as_ref().filter(|_| self.method.is_some()) {
            self.door.first_byte.observe(source, head.after);
        }
        if let Some(answers) = self.door.answers.get(self.class(end) as usize) {
            answers.inc();
        }
        self.log(end, took);
        self.trace(end);
    }

    /// The end of its trace, here.
    fn trace(&self, end: End) {
        let span = &self.span;
        if span.is_disabled() {
            return;
        }
        if let Some(head) = &self.head {
            let status = head.status.as_u16();
            traces::set(span, "http.response.status_code", i64::from(status));
            let reason = self.reason.as_deref();
            if end == End::Cut {
                traces::fail(span, "cut", reason.unwrap_or("cut off"));
            } else if status >= 500 {
                traces::fail(span, &status, reason.unwrap_or("failed"));
            }
        }
        if let Some(credit) = self.credit() {
            traces::set(span, "aptmesh.source", credit.source.label());
            if let Some(kind) = credit.kind {
                traces::set(span, "aptmesh.resource", kind.label());
            }
        }
        traces::set(span, "aptmesh.outcome", self.outcome());
        traces::set(span, "aptmesh.bytes", traces::number(self.bytes));
        traces::set(span, "aptmesh.end", end.label());
        traces::end(span);
    }

    fn log(&self, end: End, took: Duration) {
        macro_rules! line {
            ($level:ident) => {
                tracing::event!(
                    target: "access",
                    tracing::Level::$level,
                    surface = %self.door.door.label(),
                    client = %self.client,
                    method = self.method.as_ref().map(field::display),
                    uri = &*shown(&self.target),
                    status = self.head.as_ref().map(|head| head.status.as_u16()),
                    kind = self.credit().and_then(|credit| credit.kind).map(Kind::label).map(field::display),
                    outcome = %self.outcome(),
                    source = %self.credit().map_or(Source::None, |credit| credit.source).label(),
                    bytes = self.bytes,
                    first_byte_ms = self.head.as_ref().map(|head| millis(head.after)),
                    duration_ms = millis(took),
                    end = %end.label(),
                    reason = self.reason.as_deref(),
                    trace_id = traces::trace_id(&self.span).map(field::display),
                )
            };
        }
        if self.door.door.is_routine() || self.is_filter() { line!(DEBUG) } else { line!(INFO) }
    }

    /// Whether another site looks what is new here; one that may not is news.
    fn is_filter(&self) -> bool {
        let is_answered = self.head.as_ref().is_some_and(|head| head.status.as_u16() < 400);
        self.door.door == Door::Peer && self.target.starts_with("/filter") && is_answered
    }

    fn credit(&self) -> Option<Credit> {
        self.head.as_ref()?.credit
    }

    fn outcome(&self) -> &'static str {
        let class = || self.head.as_ref().map(|head| Class::of(head.status));
        match (self.credit(), class()) {
            (Some(credit), _) => credit.outcome.label(),
            (None, None) => "left",
            (None, Some(Class::Refused)) => "refused",
            (None, Some(Class::Failed)) => "error",
            (None, Some(_)) => "answered",
        }
    }
}

impl End {
    fn label(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Left => "left",
            Self::Cut => "cut",
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        self.close();
    }
}

/// With the precision of a microsecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_in_milliseconds() {
        assert_eq!(millis(Duration::from_nanos(1_234_567)).to_string(), "1.235");
        assert_eq!(millis(Duration::from_secs(90)).to_string(), "90000");
    }
}
