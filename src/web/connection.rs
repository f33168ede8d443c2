//! One client's connection: requests in, answers out, in order; what waits behind is begun early.

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use http::header::{CONNECTION, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::task::TaskTracker;
use tower_service::Service as _;
use tracing::Instrument as _;
use warp::filters::BoxedFilter;

use crate::engine::Client;
use crate::web::access::{self, Access, DoorMetrics, OpenConnection};
use crate::web::ahead::{Ahead, Begun};
use crate::web::balancers::Balancers;
use crate::web::body::{AnswerBody, Source};
use crate::web::phase::{self, Phase};
use crate::web::proxy::{Proxy, forbidden_client};
use crate::web::reply::Payload;
use crate::web::wire::{Wire, is_clients};

/// For how long a request's head may take to arrive, and a connection may wait for one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// For how long a client may take nothing of an answer that is there for it.
const STALLED_MAX: Duration = Duration::from_mins(2);
/// Header fields of a request.
const FIELDS_MAX: usize = 64;
/// Bytes of a request's head.
const HEAD_MAX: usize = 32 * 1024;

/// For how long a connection that has nothing to do is kept when the process is closing: a request may
/// be on its way.
const IDLE_GRACE: Duration = Duration::from_secs(1);
/// How often a connection looks, when the process is closing, whether it has something to do.
const TICK: Duration = Duration::from_millis(50);
/// Answers on a connection after the process was told to stop, where requests never cease to come:
/// more than apt sends ahead.
const LAST_ANSWERS_MAX: usize = 16;
/// For how long a client may take to hang up when the process is closing.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// Connections so far: their numbers tell them apart.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// A set of routes and how it is offered.
pub struct Surface {
    /// What is answered.
    pub routes: BoxedFilter<(warp::reply::Response,)>,
    /// Set for the proxy surface: who may come in, and what is begun early.
    pub proxy: Option<Arc<Proxy>>,
    /// What is measured of its requests.
    pub metrics: Arc<DoorMetrics>,
    /// Who may say for whom a connection is.
    pub balancers: Option<Arc<Balancers>>,
    /// Where what outlives a request runs.
    pub tasks: TaskTracker,
}

impl Surface {
    /// One for programs of ours or for operators, whose connections live on `tasks`.
    #[must_use]
    pub fn inner(
        routes: BoxedFilter<(warp::reply::Response,)>,
        metrics: Arc<DoorMetrics>,
        tasks: &TaskTracker,
    ) -> Self {
        let tasks = tasks.clone();
        Self { routes, proxy: None, metrics, balancers: None, tasks }
    }
}

/// A request, as routes see it.
#[derive(Clone)]
pub struct Visit {
    /// Its method.
    pub method: Method,
    /// Its target, as hyper read it: absolute form is still to be seen.
    pub uri: Uri,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Who asks.
    pub client: Client,
    /// Whether what it needs was begun before its turn.
    pub begun_early: bool,
    /// Where what outlives it runs.
    pub tasks: TaskTracker,
    /// Tells when the process is to stop.
    pub phase: watch::Receiver<Phase>,
    /// Set for `CONNECT`.
    passage: Option<Arc<Mutex<Option<Passage>>>>,
}

/// What a tunnel takes over.
pub(super) struct Passage {
    /// The connection itself, once the answer is sent.
    pub(super) upgrade: OnUpgrade,
    /// The request's account, which is open as long as the tunnel.
    pub(super) access: Access,
}

impl Visit {
    /// What the tunnel needs that was asked for; for whoever takes it first.
    pub(super) fn take_passage(&self) -> Option<Passage> {
        taken(self.passage.as_ref()?)
    }
}

fn taken(passage: &Mutex<Option<Passage>>) -> Option<Passage> {
    passage.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Serves a connection to its end.
pub(super) async fn serve(
    mut stream: TcpStream,
    from: SocketAddr,
    surface: Arc<Surface>,
    phase: watch::Receiver<Phase>,
) {
    let _open = OpenConnection::at(&surface.metrics);
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let balancers = surface.balancers.as_ref().filter(|balancers| balancers.are_at(from.ip()));
    let (client, read) = match balancers {
        Some(balancers) => match introduced(&mut stream, from, balancers, &phase).await {
            Some(introduced) => introduced,
            None => return,
        },
        None => (from, BytesMut::new()),
    };
    converse(Wire::new(stream, &read), client, surface, phase).await;
}

/// Answers a client. When the process is to stop, an answer says so; who asks for nothing more is seen off
/// when it is closing.
async fn converse(
    wire: Wire,
    client: SocketAddr,
    surface: Arc<Surface>,
    phase: watch::Receiver<Phase>,
) {
    let ahead = Ahead::default();
    let permitted = surface.proxy.as_ref().is_none_or(|proxy| proxy.permits(client.ip()));
    let asks =
        Client { connection: CONNECTIONS.fetch_add(1, Ordering::Relaxed), address: client.ip() };
    let session = Arc::new(Session {
        permitted,
        client,
        asks,
        wire: wire.clone(),
        ahead: ahead.clone(),
        surface: Arc::clone(&surface),
        phase: phase.clone(),
        last_answers: AtomicUsize::new(0),
        is_tunnel: AtomicBool::new(false),
    });
    // Nothing is begun for those who may not come in.
    let proxy = surface.proxy.clone().filter(|_| permitted);
    let answering = Arc::clone(&session);
    let service = service_fn(move |request| Arc::clone(&answering).answer(request));
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(FIELDS_MAX)
        .max_buf_size(HEAD_MAX)
        .serve_connection(wire.clone(), service)
        .with_upgrades();
    let mut attended = Attended {
        http: Box::pin(http),
        wire: wire.clone(),
        ahead,
        proxy,
        metrics: Arc::clone(&surface.metrics),
        asks,
        patience: Box::pin(sleep(STALLED_MAX)),
    };
    let idle = async {
        phase::closing(phase.clone()).await;
        while wire.is_busy() {
            sleep(TICK).await;
        }
        sleep(IDLE_GRACE).await;
    };
    let ended = tokio::select! {
        // What came at the last moment is taken up first.
        biased;
        ended = &mut attended => ended,
        () = idle => {
            attended.http.as_mut().graceful_shutdown();
            attended.await
        }
    };
    match ended {
        Err(error) if error.is_parse() => {
            access::malformed(&surface.metrics, client.ip(), &error);
        }
        // It was a body that ended before its end, or could not be read when it was sent: its account says so.
        Err(error) if error.is_user() || wire.fault().is_some() => {
            tracing::debug!(%client, %error, "cut a client off");
        }
        Err(error) if is_ours(&error) => {
            tracing::warn!(%client, %error, cause = ?error.source(), "a connection broke");
        }
        Err(error) => tracing::debug!(%client, %error, "a client left"),
        // Whoever carries a tunnel has the socket now.
        Ok(()) if session.is_tunnel.load(Ordering::Relaxed) => {}
        Ok(()) if *phase.borrow() != Phase::Serving => {
            // Who does not hang up is hung up on.
            drop(timeout(LINGER_MAX, wire.linger()).await);
        }
        Ok(()) => {}
    }
}

/// For whom a balancer's connection is, and what was read of it; `None` when it ends before that is clear, as
/// it does when the process is closing.
async fn introduced(
    stream: &mut TcpStream,
    from: SocketAddr,
    balancers: &Balancers,
    phase: &watch::Receiver<Phase>,
) -> Option<(SocketAddr, BytesMut)> {
    let idle = async {
        phase::closing(phase.clone()).await;
        sleep(IDLE_GRACE).await;
    };
    tokio::select! {
        biased;
        client = balancers.client_of(stream, from) => client,
        () = idle => None,
    }
}

/// Whether it was not the client that ended the connection.
fn is_ours(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| !is_clients(cause.kind()))
}

struct Session {
    permitted: bool,
    client: SocketAddr,
    asks: Client,
    wire: Wire,
    ahead: Ahead,
    surface: Arc<Surface>,
    phase: watch::Receiver<Phase>,
    /// Answers since the process was told to stop.
    last_answers: AtomicUsize,
    is_tunnel: AtomicBool,
}

impl Session {
    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Infallible> {
        let target = target_of(request.uri());
        self.wire.begin_answer(&target);
        // Until the request has its own place in the flight that was begun for it.
        let mut begun = self.ahead.take(&target);
        let is_tunnel = request.method() == Method::CONNECT;
        self.is_tunnel.store(is_tunnel, Ordering::Relaxed);
        let (metrics, client) = (&self.surface.metrics, self.client.ip());
        let span = begun.as_mut().and_then(Begun::take_span);
        let span = span.unwrap_or_else(|| metrics.span(&request, client));
        let account = Access::begin(metrics, client, request.method(), target, span.clone());
        let mut access = Some(account);
        let passage = access.take_if(|_| is_tunnel).map(|access| {
            let upgrade = hyper::upgrade::on(&mut request);
            Arc::new(Mutex::new(Some(Passage { upgrade, access })))
        });
        let mut answer = if self.permitted {
            let begun_early = begun.as_ref().is_some_and(Begun::has_begun);
            self.route(request, begun_early, passage.clone()).instrument(span).await
        } else {
            forbidden_client(self.client)
        };
        if !is_tunnel && self.is_last() {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let access = access.or_else(|| Some(taken(passage.as_ref()?)?.access));
        Ok(self.with_body(answer, access))
    }

    async fn route(
        &self,
        mut request: Request<Incoming>,
        begun_early: bool,
        passage: Option<Arc<Mutex<Option<Passage>>>>,
    ) -> warp::reply::Response {
        let visit = Visit {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: std::mem::take(request.headers_mut()),
            client: self.asks,
            begun_early,
            tasks: self.surface.tasks.clone(),
            phase: self.phase.clone(),
            passage,
        };
        request.extensions_mut().insert(visit);
        let mut routes = warp::service(self.surface.routes.clone());
        match routes.call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }

    /// Whether the process is to stop, and nothing is to be answered on this connection any more.
    fn is_last(&self) -> bool {
        if *self.phase.borrow() == Phase::Serving {
            return false;
        }
        let answers = self.last_answers.fetch_add(1, Ordering::Relaxed) + 1;
        !self.wire.has_more() || answers >= LAST_ANSWERS_MAX
    }

    /// Puts the payload in the place that warp had no room for.
    fn with_body(
        &self,
        answer: warp::reply::Response,
        mut access: Option<Access>,
    ) -> Response<AnswerBody> {
        let (mut parts, page) = answer.into_parts();
        let source = match parts.extensions.remove::<Payload>().and_then(|payload| payload.take()) {
            Some(source) => source,
            None => Source::Page(Box::pin(page)),
        };
        if let Some(access) = &mut access {
            access.answer(&parts);
        }
        Response::from_parts(parts, AnswerBody::new(source, access, self.wire.clone()))
    }
}

/// hyper's connection, with an eye on what the client does meanwhile: requests that arrive behind
/// the one under way are begun, and a client that leaves ends it.
struct Attended<C> {
    http: Pin<Box<C>>,
    wire: Wire,
    ahead: Ahead,
    proxy: Option<Arc<Proxy>>,
    metrics: Arc<DoorMetrics>,
    asks: Client,
    /// Runs while the client takes nothing of what is there for it.
    patience: Pin<Box<Sleep>>,
}

impl<C: Future<Output = hyper::Result<()>>> Future for Attended<C> {
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = self.http.as_mut().poll(context);
        if ended.is_pending() && self.wire.poll_left(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if let Some(since) = self.wire.blocked_since() {
            self.patience.as_mut().reset(since + STALLED_MAX);
            if self.patience.as_mut().poll(context).is_ready() {
                tracing::debug!("hanging up on a client that takes nothing");
                return Poll::Ready(Ok(()));
            }
        }
        if let Some(proxy) = &self.proxy {
            self.ahead.begin(&self.wire, proxy, &self.metrics, self.asks);
        }
        ended
    }
}

/// The target as the client wrote it.
fn target_of(uri: &Uri) -> String {
    match (uri.scheme(), uri.path_and_query()) {
        (None, Some(target)) => target.as_str().to_owned(),
        _ => uri.to_string(),
    }
}
