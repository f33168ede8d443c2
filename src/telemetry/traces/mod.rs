//! Traces: what one request was waited for, from its acceptance to its last byte, across processes and
//! sites; sent to a receiver of OpenTelemetry's protocol (OTLP).
//!
//! Spans are `tracing` spans of one target, which the log does not see. Without a receiver nobody sees them:
//! then a span costs the look at its call site's flag, an atomic load.

mod beginnings;
mod export;

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, Request};
use opentelemetry::propagation::TextMapCompositePropagator;
use opentelemetry::trace::{SpanContext, Status, TraceContextExt as _, TraceId};
use opentelemetry::{Context, Key, Value, global};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
pub use opentelemetry_sdk::trace::Sampler;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

pub use self::export::{Layer, Traces};

/// The target of all spans.
pub const SPANS: &str = "aptmesh::trace";

/// What is sent, and where to.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `None`: nothing is.
    pub export: Option<Export>,
    /// What was asked for and is not done, in words.
    pub ignored: Vec<String>,
}

/// How spans are sent. Headers of its questions are read from the environment by the exporter itself.
#[derive(Clone, Debug)]
pub struct Export {
    /// How the receiver is spoken to.
    pub protocol: Protocol,
    /// Where it is: for HTTP the whole URL, for gRPC without a path.
    pub endpoint: String,
    /// For how long an answer is waited for.
    pub timeout: Duration,
    /// Whether what is sent is compressed (gzip).
    pub compress: bool,
    /// How it proves who it is, and who we are.
    pub tls: Tls,
    /// What is told of this process.
    pub resource: Vec<(String, String)>,
    /// Which requests are traced.
    pub sampler: Sampler,
    /// Whether other sites, replicas and the node are told of a trace, and told by clients.
    pub propagates: bool,
    /// How spans wait.
    pub queue: Queue,
}

/// How a receiver is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Protocol buffers over HTTP/1.1.
    Http,
    /// gRPC.
    Grpc,
}

/// PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Of the authorities that are trusted instead of the system's.
    pub authorities: Option<PathBuf>,
    /// Of our certificate and its key, in this order.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How spans wait to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Spans that wait at most; what is too many is dropped.
    pub spans_max: usize,
    /// Spans that are sent together at most.
    pub batch_max: usize,
    /// For how long the first of a batch waits for others.
    pub delay: Duration,
    /// For how long a batch may take to be sent, with all that is tried again.
    pub timeout: Duration,
}

/// A span of a trace: `span!("mirror.ask", "server.address" = host)`. What is known of it later is
/// [`set`].
macro_rules! span {
    (parent: None, $($what:tt)+) => {
        tracing::span!(
            target: $crate::telemetry::traces::SPANS, parent: None, tracing::Level::TRACE, $($what)+
        )
    };
    ($($what:tt)+) => {
        tracing::span!(target: $crate::telemetry::traces::SPANS, tracing::Level::TRACE, $($what)+)
    };
}
pub(crate) use span;

/// Whether spans are seen by anybody.
#[must_use]
pub fn are_on() -> bool {
    tracing::enabled!(target: SPANS, tracing::Level::TRACE)
}

/// The span of a request on `surface`, from its acceptance to its last byte: part of the trace that the
/// client tells of, if it does.
#[must_use]
pub fn request_span<B>(surface: &'static str, request: &Request<B>) -> Span {
    let (target, headers) = (request.uri(), request.headers());
    // Probes and scrapes are of interest only to who traces them himself.
    let is_probe = surface == "admin" && !headers.contains_key("traceparent");
    if is_probe || !are_on() {
        return Span::none();
    }
    let span = span!(
        parent: None,
        "web.request",
        otel.kind = "server",
        aptmesh.surface = surface,
        http.request.method = request.method().as_str(),
        url.path = without_userinfo(target.path()),
    );
    if let Some(host) = target.host() {
        set(&span, "server.address", host.to_owned());
    }
    let theirs = global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &HeaderExtractor(headers))
    });
    begin_under(&span, theirs);
    span
}

/// A path without the credentials that a target in prefix form (`/https/USER:PASSWORD@HOST/path`) may have.
fn without_userinfo(path: &str) -> String {
    let Some((before, host)) = path.split_once('@') else { return path.to_owned() };
    match before.rsplit_once('/') {
        Some((scheme, _)) if scheme.split('/').all(|part| part.is_empty() || is_scheme(part)) => {
            format!("{scheme}/{host}")
        }
        _ => path.to_owned(),
    }
}

fn is_scheme(part: &str) -> bool {
    ["http", "https", "http:", "https:"].iter().any(|scheme| part.eq_ignore_ascii_case(scheme))
}

/// Has a span whose life may be longer than the current one's be part of that one's trace all the same: as a
/// child, it would keep it from ending. For spans made with `parent: None`, right away.
pub fn belong_to_current(span: &Span) {
    if !span.is_disabled() {
        begin_under(span, Span::current().context());
    }
}

fn begin_under(span: &Span, context: Context) {
    // It has not begun: it was made a moment ago.
    drop(span.set_parent(context));
}

/// A span that others can point at.
#[derive(Clone, Debug)]
pub struct Origin(SpanContext);

/// Where others can point at; `None` where there is no trace.
#[must_use]
pub fn origin(span: &Span) -> Option<Origin> {
    context_of(span).map(Origin)
}

/// Points at a span of another trace, or another part of this one.
pub fn link(span: &Span, origin: Option<&Origin>) {
    if let Some(Origin(context)) = origin {
        span.add_link(context.clone());
    }
}

/// The trace of which a span is part.
#[must_use]
pub fn trace_id(span: &Span) -> Option<TraceId> {
    context_of(span).map(|context| context.trace_id())
}

fn context_of(span: &Span) -> Option<SpanContext> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context().span().span_context().clone();
    context.is_valid().then_some(context)
}

/// A number of bytes or of other things, as traces take it.
#[must_use]
pub fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What is known of a span by now.
pub fn set(span: &Span, key: impl Into<Key>, value: impl Into<Value>) {
    span.set_attribute(key, value);
}

/// It came to nothing.
pub fn fail(span: &Span, reason: &(impl Display + ?Sized)) {
    if !span.is_disabled() {
        span.set_status(Status::error(reason.to_string()));
    }
}

/// It ends now: otherwise it has ended when it was worked in last.
pub fn end(span: &Span) {
    span.in_scope(|| ());
}

/// What tells a peer, a replica or the node of the current span; nothing where there is no trace. Not for
/// mirrors: whom we ask for whom is not their matter.
#[must_use]
pub fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    if are_on() {
        let context = Span::current().context();
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut HeaderInjector(&mut headers));
        });
    }
    headers
}

/// From now on traces are told of, and told by others (W3C Trace Context).
fn propagate() {
    let trace_context = Box::new(TraceContextPropagator::new());
    global::set_text_map_propagator(TextMapCompositePropagator::new(vec![trace_context]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_no_credentials() {
        for (path, kept) in [
            ("/debian/pool/main/a@b.deb", "/debian/pool/main/a@b.deb"),
            ("/me:secret@host/debian/x", "/host/debian/x"),
            ("/https/me:secret@host/x", "/https/host/x"),
            ("/HTTPS///me:secret@host/x@y", "/HTTPS///host/x@y"),
            ("//me@host/x", "//host/x"),
            ("/", "/"),
        ] {
            assert_eq!(without_userinfo(path), kept, "{path}");
        }
    }
}
