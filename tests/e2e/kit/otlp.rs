//! A receiver of OpenTelemetry's traces, over HTTP or gRPC, that really reads what it gets.
//!
//! HTTP/2 and protocol buffers are others' code here: what is under test is which spans come, and that
//! they are read by who knows the protocol.

use super::ca::Ca;
use super::wait_until;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use prost::Message;
use rustls::ServerConfig;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

const PATIENCE: Duration = Duration::from_secs(30);

/// One span, with ids in hex.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty for the first of a trace in whatever process.
    pub parent: String,
    /// `tracestate`.
    pub state: String,
    pub name: String,
    /// 1 internal, 2 server, 3 client.
    pub kind: i32,
    /// Nanoseconds since 1970.
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, String>,
    /// Ids of spans that it points at.
    pub links: Vec<String>,
    /// 2: it failed.
    pub status: i32,
    /// What is told of its process.
    pub resource: BTreeMap<String, String>,
}

impl Span {
    /// An attribute; empty if there is none.
    pub fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }

    /// Of which process it is.
    pub fn process(&self) -> &str {
        &self.resource["service.instance.id"]
    }
}

/// How spans come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Http,
    Grpc,
}

impl Way {
    /// What has a process send its spans there in this way, without delay.
    pub fn variables(self, endpoint: &str) -> Vec<(&'static str, String)> {
        let protocol = if self == Self::Grpc { "grpc" } else { "http/protobuf" };
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
        ]
    }
}

/// The receiver. It goes with the test.
pub struct Otlp {
    address: SocketAddr,
    way: Way,
    is_tls: bool,
    heard: Arc<Heard>,
}

#[derive(Default)]
struct Heard {
    spans: Mutex<Vec<Span>>,
    headers: Mutex<Vec<HeaderMap>>,
    connections: AtomicUsize,
    talks_nonsense: AtomicBool,
    is_slow: AtomicBool,
}

impl Otlp {
    pub fn start(way: Way) -> Self {
        Self::start_at(way, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// At that address, where nobody was.
    pub fn start_at(way: Way, address: SocketAddr) -> Self {
        Self::open(way, address, None)
    }

    /// Speaks TLS as 127.0.0.1 and localhost.
    pub fn start_tls(way: Way, ca: &Ca) -> Self {
        let mut config = ServerConfig::clone(&ca.server_config(&[]));
        if way == Way::Grpc {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let tls = TlsAcceptor::from(Arc::new(config));
        Self::open(way, SocketAddr::from(([127, 0, 0, 1], 0)), Some(tls))
    }

    fn open(way: Way, address: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("a port");
        listener.set_nonblocking(true).unwrap();
        let (address, is_tls) = (listener.local_addr().unwrap(), tls.is_some());
        let heard = Arc::<Heard>::default();
        let hearing = Arc::clone(&heard);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                let mut talks = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.expect("a connection");
                    hearing.connections.fetch_add(1, Ordering::SeqCst);
                    talks.spawn(receive(way, tls.clone(), stream, Arc::clone(&hearing)));
                }
            });
        });
        Self { address, way, is_tls, heard }
    }

    /// What has a process send its spans here, without delay.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let scheme = if self.is_tls { "https" } else { "http" };
        self.way.variables(&format!("{scheme}://{}", self.address))
    }

    /// Answers what nobody understands from now on, or does not.
    pub fn talk_nonsense(&self, is_so: bool) {
        self.heard.talks_nonsense.store(is_so, Ordering::SeqCst);
    }

    /// Keeps its answers to itself from now on, or gives them all.
    pub fn be_slow(&self, is_so: bool) {
        self.heard.is_slow.store(is_so, Ordering::SeqCst);
    }

    pub fn connections(&self) -> usize {
        self.heard.connections.load(Ordering::SeqCst)
    }

    /// Headers of all that came.
    pub fn headers(&self) -> Vec<HeaderMap> {
        self.heard.headers.lock().unwrap().clone()
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.heard.spans.lock().unwrap().clone()
    }

    /// The only span that is so, as soon as it is there.
    pub fn wait_for(&self, what: &str, is_it: impl Fn(&Span) -> bool) -> Span {
        let found = || self.spans().into_iter().filter(|span| is_it(span)).collect::<Vec<_>>();
        wait_until(PATIENCE, &format!("the span of {what}"), || !found().is_empty());
        let mut found = found();
        assert_eq!(found.len(), 1, "{what}: {found:#?}");
        found.remove(0)
    }

    /// The request for a path that ends so, at a surface.
    pub fn wait_request(&self, surface: &str, path: &str) -> Span {
        self.wait_for(&format!("{path} at {surface}"), |span| {
            span.name == "web.request"
                && span.get("aptmesh.surface") == surface
                && span.get("url.path").ends_with(path)
        })
    }

    /// All spans of the trace of `span`.
    pub fn trace(&self, span: &Span) -> Vec<Span> {
        self.spans().into_iter().filter(|other| other.trace == span.trace).collect()
    }

    /// The names of a trace's spans from one of this name up to the trace's beginning, as soon as there is
    /// one below `root`: `mirror.request < mirror.ask < …`.
    pub fn wait_path(&self, root: &Span, name: &str) -> String {
        let mut path = None;
        wait_until(PATIENCE, &format!("{name} below {}", root.name), || {
            let spans = self.trace(root);
            path = spans
                .iter()
                .filter(|span| span.name == name)
                .find_map(|span| up(span, root, &spans));
            path.is_some()
        });
        path.expect("just found")
    }
}

fn up(span: &Span, root: &Span, spans: &[Span]) -> Option<String> {
    if span.id == root.id {
        return Some(span.name.clone());
    }
    let parent = spans.iter().find(|other| other.id == span.parent)?;
    Some(format!("{} < {}", span.name, up(parent, root, spans)?))
}

async fn receive(way: Way, tls: Option<TlsAcceptor>, stream: TcpStream, heard: Arc<Heard>) {
    match tls {
        None => converse(way, stream, heard).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => converse(way, stream, heard).await,
            Err(error) => eprintln!("the receiver's TLS: {error}"),
        },
    }
}

async fn converse<S>(way: Way, stream: S, heard: Arc<Heard>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = TokioIo::new(stream);
    let ended = match way {
        Way::Http => {
            let service = service_fn(move |request| hear_http(request, Arc::clone(&heard)));
            hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
        }
        Way::Grpc => {
            let service = service_fn(move |request| hear_grpc(request, Arc::clone(&heard)));
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http2.serve_connection(stream, service).await
        }
    };
    // Who is killed says no farewell.
    drop(ended);
}

async fn hear_http(
    request: Request<Incoming>,
    heard: Arc<Heard>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    heard.headers.lock().unwrap().push(request.headers().clone());
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    heard.rest().await;
    if heard.talks_nonsense.load(Ordering::SeqCst) {
        let nonsense = Response::builder().status(400).body(Full::from(vec![0xff; 100_000]));
        return Ok(nonsense.unwrap());
    }
    let is_gzip = heard.headers.lock().unwrap().last().unwrap().contains_key("content-encoding");
    heard.take(&if is_gzip { unzipped(&body) } else { body.to_vec() });
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    let answer = Response::builder().header("content-type", "application/x-protobuf").body(answer);
    Ok(answer.unwrap().map(Full::from))
}

async fn hear_grpc(
    request: Request<Incoming>,
    heard: Arc<Heard>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    assert_eq!(request.uri().path(), path);
    heard.headers.lock().unwrap().push(request.headers().clone());
    let message = request.into_body().collect().await.expect("a message").to_bytes();
    heard.rest().await;
    let is_nonsense = heard.talks_nonsense.load(Ordering::SeqCst);
    let length = u32::from_be_bytes(message[1..5].try_into().unwrap());
    assert_eq!((message[0], length as usize), (0, message.len() - 5), "one uncompressed message");
    if !is_nonsense {
        heard.take(&message[5..]);
    }
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    let frame = [&[0][..], &u32::try_from(answer.len()).unwrap().to_be_bytes(), &answer].concat();
    let mut trailers = HeaderMap::new();
    // `INVALID_ARGUMENT`: to send it again is of no use.
    trailers.insert("grpc-status", if is_nonsense { "3" } else { "0" }.parse().unwrap());
    let body = Full::from(frame).with_trailers(async { Some(Ok(trailers)) });
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}

fn unzipped(body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    flate2::read::GzDecoder::new(body).read_to_end(&mut whole).expect("gzip");
    whole
}

impl Heard {
    async fn rest(&self) {
        while self.is_slow.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn take(&self, message: &[u8]) {
        let message = ExportTraceServiceRequest::decode(message).expect("what the protocol says");
        let mut spans = self.spans.lock().unwrap();
        for of_process in message.resource_spans {
            let resource = of_process.resource.expect("a resource").attributes;
            let resource = texts(resource);
            let of_scopes = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(of_scopes.map(|span| Span {
                trace: super::hex(&span.trace_id),
                id: super::hex(&span.span_id),
                parent: super::hex(&span.parent_span_id),
                state: span.trace_state,
                name: span.name,
                kind: span.kind,
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                attributes: texts(span.attributes),
                links: span.links.iter().map(|link| super::hex(&link.span_id)).collect(),
                status: span.status.map_or(0, |status| status.code),
                resource: resource.clone(),
            }));
        }
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value))).collect()
}
