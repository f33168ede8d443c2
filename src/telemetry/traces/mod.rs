//! Traces: what one request was waited for, from its acceptance to its last byte, across processes and
//! sites; sent to a receiver of OpenTelemetry's protocol (OTLP).
//!
//! Spans are `tracing` spans of one target, which the log does not see. Without a receiver nobody sees them:
//! then a span costs the look at its call site's flag, an atomic load.

mod beginnings;
mod export;

use std::fmt::Display;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use opentelemetry::propagation::TextMapCompositePropagator;
use opentelemetry::trace::{SpanContext, Status, TraceContextExt as _, TraceId, TraceState};
use opentelemetry::{Context, Key, Value, global};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
pub use opentelemetry_sdk::trace::Sampler;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

pub use self::export::{Layer, Traces};
use super::shown::shown;

/// The target of all spans.
pub const SPANS: &str = "aptmesh::trace";

/// Bytes of a client's `tracestate`, which goes into each span of its trace: W3C Trace Context (§3.3.1.5) has
/// this much handed on. One that is longer is left out.
const STATE_MAX: usize = 512;

/// What is sent, and where to.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `None`: nothing is.
    pub export: Option<Export>,
    /// What was asked for and is not done, in words.
    pub ignored: Vec<String>,
}

/// How spans are sent.
#[derive(Clone, Debug)]
pub struct Export {
    /// How the receiver is spoken to.
    pub protocol: Protocol,
    /// Where it is: for HTTP the whole URL, for gRPC without a path.
    pub endpoint: String,
    /// For how long an answer is waited for.
    pub timeout: Duration,
    /// What is sent along, such as who we are.
    pub headers: HeaderMap,
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

/// The span of a request of `client` on `surface`, from its acceptance to its last byte: part of the trace
/// that the client tells of, if it does.
#[must_use]
pub fn request_span(
    surface: &'static str,
    method: &Method,
    target: &Uri,
    headers: &HeaderMap,
    client: IpAddr,
) -> Span {
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
        client.address = %client,
        http.request.method = method.as_str(),
        url.scheme = "http",
        url.path = &*shown(target.path()),
    );
    if let Some(host) = target.host() {
        set(&span, "server.address", shown(host).into_owned());
    }
    begin_under(&span, told_of(headers));
    span
}

/// The trace that a client tells of, if it does.
fn told_of(headers: &HeaderMap) -> Context {
    let told = global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &HeaderExtractor(headers))
    });
    let span = told.span().span_context().clone();
    if span.trace_state().header().len() <= STATE_MAX {
        return told;
    }
    let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags());
    let bare = SpanContext::new(trace, id, flags, true, TraceState::default());
    Context::new().with_remote_span_context(bare)
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

/// A span that is sent, so that others can point at it.
#[derive(Clone, Debug)]
pub struct Origin(SpanContext);

/// Where others can point at; `None` where there is no trace, or it is not sent.
#[must_use]
pub fn origin(span: &Span) -> Option<Origin> {
    sampled(span).map(Origin)
}

/// Points at a span of another trace, or another part of this one.
pub fn link(span: &Span, origin: Option<&Origin>) {
    if let Some(Origin(context)) = origin {
        span.add_link(context.clone());
    }
}

/// The trace of which a span is part, if it is sent.
#[must_use]
pub fn trace_id(span: &Span) -> Option<TraceId> {
    sampled(span).map(|context| context.trace_id())
}

fn sampled(span: &Span) -> Option<SpanContext> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context().span().span_context().clone();
    (context.is_valid() && context.is_sampled()).then_some(context)
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

/// It came to nothing. `kind`: a word of few, or an HTTP status. Said once of a span.
pub fn fail(span: &Span, kind: &(impl Display + ?Sized), reason: &(impl Display + ?Sized)) {
    if !span.is_disabled() {
        set(span, "error.type", kind.to_string());
        span.set_status(Status::error(reason.to_string()));
    }
}

/// It ends now: otherwise it has ended when it was worked in last.
pub fn end(span: &Span) {
    span.in_scope(|| ());
}

/// What tells a replica or the node of the current span; nothing where there is no trace. Not for mirrors: whom
/// we ask for whom is not their matter.
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

/// The same for another site, which has nothing to do with what is not sent, and nothing with what a client
/// adds for whoever receives its own spans.
#[must_use]
pub fn headers_for_peers() -> HeaderMap {
    let is_sent = sampled(&Span::current()).is_some();
    let mut headers = if is_sent { headers() } else { HeaderMap::new() };
    headers.remove("tracestate");
    headers
}

/// From now on traces are told of, and told by others (W3C Trace Context).
fn propagate() {
    let trace_context = Box::new(TraceContextPropagator::new());
    global::set_text_map_propagator(TextMapCompositePropagator::new(vec![trace_context]));
}
