//! Sending spans, on a thread of its own with a reactor of its own: however the receiver does, requests go
//! on as without it.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, Request, Response};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig, Identity};
use opentelemetry_otlp::{
    Compression, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{
    SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use prometheus::{IntCounterVec, Opts};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Subscriber;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

use super::beginnings::Beginnings;
use super::{Config, Export, Protocol, Queue, SPANS, Tls};
use crate::telemetry::metrics::Metrics;
use crate::trust;

/// For how long the last spans may take to be sent when the process stops.
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// For how long a connection to the receiver may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Characters of a receiver's reason that are logged.
const REASON_MAX: usize = 300;

/// What sees spans; for [`logs::start`](crate::telemetry::logs::start).
pub type Layer<S> = Box<dyn tracing_subscriber::Layer<S> + Send + Sync>;

/// The traces of this process.
#[derive(Default)]
pub struct Traces {
    ignored: Vec<String>,
    sending: Option<Sending>,
}

/// Spans are sent.
struct Sending {
    provider: SdkTracerProvider,
    spans: IntCounterVec,
    stop: CancellationToken,
    /// Is disconnected when the last spans were sent.
    over: Receiver<()>,
    to: String,
}

impl Traces {
    /// Begins to send spans, if they are to be sent; what can not be done of it is told by
    /// [`tell`](Self::tell), since no cache is to stay away because of its traces.
    #[must_use]
    pub fn start(config: &Config) -> Self {
        let mut ignored = config.ignored.clone();
        let sending = config.export.as_ref().and_then(|export| {
            let failed = |error: anyhow::Error| ignored.push(format!("no traces: {error:#}"));
            Sending::start(export).map_err(failed).ok()
        });
        Self { ignored, sending }
    }

    /// What has to see the process's spans; `None` when they are not sent.
    #[must_use]
    pub fn layer<S>(&self) -> Option<Layer<S>>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let sending = self.sending.as_ref()?;
        let scope =
            InstrumentationScope::builder("aptmesh").with_version(env!("CARGO_PKG_VERSION"));
        let layer = tracing_opentelemetry::layer()
            .with_tracer(sending.provider.tracer_with_scope(scope.build()))
            // What tells of the code is of no use to who looks at requests, and costs time.
            .with_location(false)
            .with_threads(false)
            .with_level(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        Some(layer.with_filter(filter_fn(|metadata| metadata.target() == SPANS)).boxed())
    }

    /// Logs where traces go, and what is not done.
    pub fn tell(&self) {
        for reason in &self.ignored {
            tracing::warn!("{reason}");
        }
        if let Some(sending) = &self.sending {
            tracing::info!(to = sending.to, "requests are traced");
        }
    }

    /// Declares its metrics, if there are any.
    pub fn declare(&self, metrics: &Metrics) {
        if let Some(sending) = &self.sending {
            metrics.collect(sending.spans.clone());
        }
    }

    /// Sends what waits, for as long as that may take: at the end of the process.
    pub fn stop(self) {
        if let Some(sending) = self.sending {
            sending.stop.cancel();
            if sending.over.recv_timeout(FLUSH_MAX) == Err(RecvTimeoutError::Timeout) {
                tracing::debug!("the last traces were not taken in time");
            }
        }
    }
}

impl Sending {
    fn start(export: &Export) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cause = Cause::default();
        let mut exporter = {
            // gRPC's channel wants to know where it runs.
            let _entered = runtime.enter();
            exporter(export, &cause)?
        };
        let attributes = export.resource.iter();
        let resource = Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_attributes(
                attributes.map(|(key, value)| KeyValue::new(key.clone(), value.clone())),
            )
            .build();
        exporter.set_resource(&resource);
        let spans = IntCounterVec::new(
            Opts::new(
                "aptmesh_telemetry_spans_total",
                "Spans of traces: exported, whether or not the receiver then refused some of them; dropped \
                 because too many waited; or failed, as the receiver did not take them.",
            ),
            &["outcome"],
        )?;
        for outcome in ["exported", "dropped", "failed"] {
            spans.with_label_values(&[outcome]);
        }
        let (waiting, arriving) = mpsc::channel(export.queue.spans_max);
        let stop = CancellationToken::new();
        let (is_over, over) = sync_channel(0);
        let sender = Sender {
            exporter,
            queue: export.queue,
            patience: export.timeout.min(export.queue.timeout),
            arriving,
            stop: stop.clone(),
            spans: spans.clone(),
            to: shown(&export.endpoint),
            cause,
            is_in_trouble: false,
        };
        let to = sender.to.clone();
        std::thread::Builder::new().name("traces".to_owned()).spawn(move || {
            runtime.block_on(sender.run());
            drop(is_over);
        })?;
        if export.propagates {
            super::propagate();
        }
        let dropped = spans.with_label_values(&["dropped"]);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Waiting { spans: waiting, dropped })
            .with_sampler(Box::new(Beginnings::new(export.sampler.clone())) as Box<_>)
            .with_resource(resource)
            .build();
        Ok(Self { provider, spans, stop, over, to })
    }
}

/// Where spans go, without what may be a key.
fn shown(endpoint: &str) -> String {
    let Ok(mut url) = Url::parse(endpoint) else { return String::new() };
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

fn exporter(export: &Export, cause: &Cause) -> anyhow::Result<SpanExporter> {
    Ok(match export.protocol {
        Protocol::Http => {
            let exporter = SpanExporter::builder()
                .with_http()
                .with_http_client(Client { client: http_client(export)?, cause: cause.clone() })
                .with_headers(texts(&export.headers))
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_endpoint(&export.endpoint)
                .with_timeout(export.timeout);
            if export.compress {
                exporter.with_compression(Compression::Gzip).build()?
            } else {
                exporter.build()?
            }
        }
        Protocol::Grpc => {
            let exporter = SpanExporter::builder()
                .with_tonic()
                .with_metadata(MetadataMap::from_headers(export.headers.clone()))
                .with_endpoint(&export.endpoint)
                .with_timeout(export.timeout);
            let exporter = if export.endpoint.starts_with("https:") {
                exporter.with_tls_config(grpc_tls(&export.tls)?)
            } else {
                exporter
            };
            if export.compress {
                exporter.with_compression(Compression::Gzip).build()?
            } else {
                exporter.build()?
            }
        }
    })
}

fn texts(headers: &HeaderMap) -> HashMap<String, String> {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

/// Why nothing was heard of a receiver: the exporter does not tell.
#[derive(Clone, Debug, Default)]
struct Cause(Arc<Mutex<Option<String>>>);

impl Cause {
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client that keeps it.
#[derive(Debug)]
struct Client {
    client: reqwest::Client,
    cause: Cause,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.client.send_bytes(request).await;
        let sent = sent.map_err(|error| match error.downcast::<reqwest::Error>() {
            // It may have a key in it.
            Ok(error) => error.without_url().into(),
            Err(error) => error,
        });
        *self.cause.lock() = sent.as_ref().err().map(|error| in_words(&**error));
        sent
    }
}

/// The innermost cause.
fn in_words(error: &(dyn Error + 'static)) -> String {
    let last = || chain(error).last().map(ToString::to_string);
    chain(error).find_map(trust::nobody_to_ask).or_else(last).unwrap_or_default()
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// Like the other clients, nobody leads it elsewhere.
fn http_client(export: &Export) -> anyhow::Result<reqwest::Client> {
    let mut client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(export.timeout)
        .no_proxy();
    if let Some(path) = &export.tls.authorities {
        let authorities = reqwest::Certificate::from_pem_bundle(&read(path)?);
        let authorities = authorities.with_context(|| no_pem(path))?;
        anyhow::ensure!(!authorities.is_empty(), no_pem(path));
        client = client.tls_certs_only(authorities);
    } else if !export.endpoint.starts_with("https:") {
        // So that it needs none where there are none.
        client = client.tls_certs_only([]);
    }
    if let Some((certificate, key)) = &export.tls.identity {
        let both = [read(certificate)?, read(key)?].concat();
        client = client
            .identity(reqwest::Identity::from_pem(&both).with_context(|| no_pem(certificate))?);
    }
    Ok(client.build()?)
}

fn grpc_tls(tls: &Tls) -> anyhow::Result<ClientTlsConfig> {
    let mut config = ClientTlsConfig::new();
    config = match &tls.authorities {
        Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
        None => config.with_native_roots(),
    };
    if let Some((certificate, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(config)
}

fn read(path: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("could not read {}", path.display()))
}

fn no_pem(path: &std::path::Path) -> String {
    format!("{} is no PEM file of certificates", path.display())
}

/// Takes ended spans, without waiting.
struct Waiting {
    spans: mpsc::Sender<SpanData>,
    dropped: prometheus::IntCounter,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waiting")
    }
}

impl SpanProcessor for Waiting {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    /// [`Traces::stop`] is what ends it.
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends them.
struct Sender {
    exporter: SpanExporter,
    queue: Queue,
    /// For how long a batch may take, with all that is tried again: gRPC's client does not count the time
    /// that it takes to connect.
    patience: Duration,
    arriving: mpsc::Receiver<SpanData>,
    stop: CancellationToken,
    spans: IntCounterVec,
    /// For the log.
    to: String,
    cause: Cause,
    is_in_trouble: bool,
}

impl Sender {
    async fn run(mut self) {
        loop {
            let batch = self.batch().await;
            if batch.is_empty() {
                return;
            }
            let count = batch.len() as u64;
            let sent = timeout(self.patience, self.exporter.export(batch)).await;
            let sent = sent.unwrap_or(Err(OTelSdkError::Timeout(self.patience)));
            let outcome = if sent.is_ok() { "exported" } else { "failed" };
            self.spans.with_label_values(&[outcome]).inc_by(count);
            self.tell(&sent);
        }
    }

    /// The next spans to be sent; none when all were.
    async fn batch(&mut self) -> Vec<SpanData> {
        let (mut batch, max) = (Vec::new(), self.queue.batch_max);
        let stop = self.stop.clone();
        let stopping = async {
            let waited_from = tokio::select! {
                () = stop.cancelled() => return,
                _ = self.arriving.recv_many(&mut batch, max) => Instant::now(),
            };
            while batch.len() < max {
                let (until, room) = (waited_from + self.queue.delay, max - batch.len());
                let more = timeout_at(until, self.arriving.recv_many(&mut batch, room));
                tokio::select! {
                    () = stop.cancelled() => return,
                    more = more => if more.is_err() { return },
                }
            }
        };
        stopping.await;
        // What came before the end is still sent.
        while self.stop.is_cancelled() && batch.len() < max {
            match self.arriving.try_recv() {
                Ok(span) => batch.push(span),
                Err(_) => break,
            }
        }
        batch
    }

    /// Says once that it fails, and once that it is over.
    fn tell(&mut self, sent: &OTelSdkResult) {
        match sent {
            Err(error) if !self.is_in_trouble => {
                let reason = self.cause.lock().take().unwrap_or_else(|| error.to_string());
                let reason: String = reason.chars().take(REASON_MAX).collect();
                tracing::warn!(
                    to = self.to,
                    reason,
                    "the receiver of traces does not take them: going on without"
                );
            }
            Ok(()) if self.is_in_trouble => tracing::info!("the receiver of traces is back"),
            _ => {}
        }
        self.is_in_trouble = sent.is_err();
    }
}
