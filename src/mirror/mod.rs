//! The HTTP client of mirrors: one question, one answer; redirects followed, every hop checked,
//! every wait bounded. Knows nothing of what is stored or of who asks.

mod answer;
mod error;
pub mod guard;
mod health;
mod ledger;
mod metrics;
mod resolver;
mod round;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Method;
use http::header::{self, HeaderMap, HeaderValue};
use prometheus::IntCounter;
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;
use url::Url;

pub use self::answer::{Answer, Body, Framing};
pub use self::error::{MirrorError, MirrorErrorKind};
use self::guard::Guard;
use self::health::Health;
use self::ledger::Ledger;
pub use self::ledger::{Account, AccountState, Prospect};
use self::metrics::MirrorMetrics;
use self::resolver::GuardedResolver;
use self::round::is_trouble;
use crate::archive::groups::Groups;
use crate::archive::target::Target;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::shown::shown;
use crate::telemetry::traces::{self, span};
use crate::trust;

/// Redirects that are followed for one question.
const REDIRECTS_MAX: usize = 5;
/// For how long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For how long an answer's head may be waited for, over all attempts: apt gives up after 30 s of
/// silence, and should hear our reason before that.
pub const HEAD_BUDGET: Duration = Duration::from_secs(24);
/// Idle connections kept per mirror.
const IDLE_CONNECTIONS_MAX: usize = 32;

/// How mirrors are asked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who may be asked.
    pub guard: Guard,
    /// PEM file of certificate authorities that are trusted besides the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// HTTP proxy that all questions go through.
    pub proxy: Option<Url>,
    /// For how long a mirror may be silent, before its answer or within it.
    pub timeout: Duration,
    /// Ports that tunnels may lead to.
    pub connect_ports: Vec<u16>,
    /// Which mirrors are one archive.
    pub groups: Groups,
    /// Nobody is asked.
    pub offline: bool,
    /// This process in `Via` (RFC 9110 §7.6.3), so that a circle of caches is noticed.
    pub pseudonym: String,
}

/// The client.
pub struct Mirror {
    client: reqwest::Client,
    guard: Arc<ArcSwap<Guard>>,
    timeout: Duration,
    has_proxy: bool,
    connect_ports: Vec<u16>,
    groups: Groups,
    health: Arc<Health>,
    ledger: Ledger,
    offline: AtomicBool,
    via: HeaderValue,
    metrics: MirrorMetrics,
}

/// A resource on one mirror.
#[derive(Clone)]
struct Source {
    url: Url,
    host: Arc<str>,
    /// `SCHEME://HOST[:PORT]`
    origin: Arc<str>,
    /// The operator's favourite.
    is_first: bool,
    health: Arc<Health>,
}

/// What is asked of a mirror besides the resource's bytes.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Only the head of the answer.
    pub head_only: bool,
    /// Conditions, range, credentials.
    pub headers: HeaderMap,
    /// The archive is known to have it: then a mirror that does not is behind the others.
    pub is_promised: bool,
    /// Until when an answer is of use; `None`: as long as may be.
    pub until: Option<Instant>,
}

impl Question {
    /// Whether it is one that only its client may ask.
    fn has_credentials(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
    }
}

impl Mirror {
    /// Builds the client.
    ///
    /// # Errors
    /// When the CA file or the proxy's URL can not be used.
    pub fn new(config: &Config, metrics: &Metrics) -> anyhow::Result<Self> {
        let guard = Arc::new(ArcSwap::from_pointee(config.guard.clone()));
        let besides = config.ca_file.as_deref().map(trust::certificates_in).transpose()?;
        let tls = trust::client(besides.unwrap_or_default())
            .context("mirror.ca_file has what is no certificate of an authority")?;
        let mut client = reqwest::Client::builder()
            .user_agent(concat!("aptmesh/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .tcp_nodelay(true)
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .dns_resolver(GuardedResolver::new(
                Arc::clone(&guard),
                config.proxy.as_ref().and_then(|proxy| proxy.host_str().map(str::to_owned)),
            ));
        if let Some(proxy) = &config.proxy {
            let proxy = reqwest::Proxy::all(proxy.clone());
            client = client.proxy(proxy.map_err(reqwest::Error::without_url)?);
        }
        let health = Arc::<Health>::default();
        let metrics = MirrorMetrics::new(metrics, &config.groups, &health);
        Ok(Self {
            client: client.build()?,
            guard,
            timeout: config.timeout,
            has_proxy: config.proxy.is_some(),
            connect_ports: config.connect_ports.clone(),
            groups: config.groups.clone(),
            health,
            ledger: Ledger::default(),
            offline: AtomicBool::new(config.offline),
            via: HeaderValue::try_from(format!("1.1 {}", config.pseudonym))?,
            metrics,
        })
    }

    /// Bytes of bodies received.
    #[must_use]
    pub fn received(&self) -> &IntCounter {
        &self.metrics.received
    }

    /// Changes whether anybody is asked, from now on.
    pub fn set_offline(&self, offline: bool) {
        self.offline.store(offline, Ordering::Relaxed);
    }

    /// Changes who may be asked, from now on.
    pub fn set_guard(&self, guard: Guard) {
        self.guard.store(Arc::new(guard));
    }

    /// The mirror of that origin sent something else than its archive's lists say: others are asked
    /// first for a while.
    pub fn blame(&self, origin: &str) {
        self.health.sent_wrong_bytes(origin, Instant::now());
        self.ledger.sent_wrong_bytes(origin);
    }

    /// Whether nobody is asked.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.offline.load(Ordering::Relaxed)
    }

    async fn ask_once(
        &self,
        source: &Source,
        question: &Question,
        patience: Duration,
    ) -> Result<Answer, MirrorError> {
        let begun = Instant::now();
        let is_elsewhere = AtomicBool::new(false);
        let span = span!(
            "mirror.request",
            otel.kind = "client",
            http.request.method = if question.head_only { "HEAD" } else { "GET" },
            server.address = &*source.host,
            server.port = source.url.port_or_known_default(),
            url.path = &*shown(source.url.path()),
        );
        let asked = timeout(patience, self.follow(source, question, &is_elsewhere));
        let asked = asked.instrument(span.clone()).await;
        let answered = asked.unwrap_or_else(|_| Err(MirrorError::silent(&source.host)));
        let mut answered = answered.map_err(|error| {
            if is_elsewhere.load(Ordering::Relaxed) { error.elsewhere() } else { error }
        });
        if let Some(line) = self.ledger.line(source, question) {
            Ledger::note(&line, &mut answered);
        }
        if is_trouble(&answered) {
            self.health.failed(&source.origin, Instant::now());
        } else if answered.is_ok() {
            self.health.answered(&source.origin, Instant::now());
        }
        let is_forbidden =
            answered.as_ref().is_err_and(|error| error.kind == MirrorErrorKind::Forbidden);
        let was_asked = !is_forbidden || is_elsewhere.load(Ordering::Relaxed);
        self.metrics.count(&source.url, &answered, was_asked.then(|| begun.elapsed()));
        match &answered {
            Ok(answer) => {
                let status = i64::from(answer.status.as_u16());
                traces::set(&span, "http.response.status_code", status);
                if let Some(refusal) = answer.refusal() {
                    traces::fail(&span, &status, &refusal);
                }
            }
            Err(error) => traces::fail(&span, error.kind.label(), error),
        }
        answered
    }

    /// One question through its redirects; `is_elsewhere` tells whether it has come to one.
    async fn follow(
        &self,
        source: &Source,
        question: &Question,
        is_elsewhere: &AtomicBool,
    ) -> Result<Answer, MirrorError> {
        let host: &str = &source.host;
        let mut url = source.url.clone();
        let mut headers = question.headers.clone();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.append(header::VIA, self.via.clone());
        let method = if question.head_only { Method::HEAD } else { Method::GET };
        for _ in 0..=REDIRECTS_MAX {
            self.check_url(&url)?;
            let request = self.client.request(method.clone(), url.clone()).headers(headers.clone());
            let response =
                request.send().await.map_err(|error| MirrorError::from_client(host, error))?;
            let Some(next) = redirect_of(&response, &url) else {
                return Ok(Answer::new(
                    response,
                    source,
                    self.timeout,
                    self.metrics.received.clone(),
                ));
            };
            let next = next
                .map_err(|reason| MirrorError::new(MirrorErrorKind::Misdirected, host, reason))?;
            if next.origin() != url.origin() {
                headers.remove(header::AUTHORIZATION);
            }
            url = next;
            is_elsewhere.store(true, Ordering::Relaxed);
        }
        Err(MirrorError::new(MirrorErrorKind::Misdirected, host, "too many redirects"))
    }

    /// The host's name and, where it is an address literal, the address. What names resolve to is
    /// checked by the resolver, at each connect.
    fn check_url(&self, url: &Url) -> Result<(), MirrorError> {
        let host = url.host_str().unwrap_or_default();
        let guard = self.guard.load();
        if !guard.permits_host(host) && !self.groups.have_host(host) {
            return Err(MirrorError::not_listed(host));
        }
        let address = match url.host() {
            Some(url::Host::Ipv4(address)) => address.into(),
            Some(url::Host::Ipv6(address)) => address.into(),
            _ => return Ok(()),
        };
        // A parent proxy connects for us, and has its own rules; literals are still refused, unless
        // the operator named this very mirror.
        let is_named = self.groups.have_address(host, url.port_or_known_default());
        if is_named || guard.permits_address(host, address) {
            Ok(())
        } else {
            Err(MirrorError::special_address(host))
        }
    }

    /// Connects a tunnel (RFC 9110 §9.3.6) to `host:port`.
    ///
    /// # Errors
    /// When host or port may not be asked, or nothing there answers.
    pub async fn connect(
        &self,
        host: &str,
        port: u16,
    ) -> Result<tokio::net::TcpStream, MirrorError> {
        if self.is_offline() {
            return Err(MirrorError::offline(host));
        }
        if self.has_proxy {
            let reason = "tunnels do not go through mirror.proxy";
            return Err(MirrorError::new(MirrorErrorKind::Forbidden, host, reason));
        }
        if !self.connect_ports.contains(&port) {
            let reason = format!("port {port} is not in mirror.connect_ports");
            return Err(MirrorError::new(MirrorErrorKind::Forbidden, host, reason));
        }
        if !self.guard.load().permits_host(host) {
            return Err(MirrorError::not_listed(host));
        }
        let connecting = async {
            let addresses = resolver::resolve(&self.guard, host, port).await?;
            // One that leads nowhere must leave time for the others.
            let share = CONNECT_TIMEOUT / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
            let mut last = MirrorError::silent(host);
            for address in addresses {
                match timeout(share, tokio::net::TcpStream::connect(address)).await {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(error)) => {
                        last = MirrorError::new(MirrorErrorKind::Unreachable, host, error);
                    }
                    Err(_elapsed) => {}
                }
            }
            Err(last)
        };
        let silent = || Err(MirrorError::silent(host));
        timeout(CONNECT_TIMEOUT * 2, connecting).await.unwrap_or_else(|_| silent())
    }
}

/// Where an answer redirects to; `None` if it does not.
fn redirect_of(response: &reqwest::Response, url: &Url) -> Option<Result<Url, String>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(header::LOCATION)?;
    let next = location.to_str().ok().and_then(|location| url.join(location).ok());
    Some(match next {
        None => Err("redirected to what is no URL".to_owned()),
        Some(next) if !matches!(next.scheme(), "http" | "https") => {
            Err(format!("redirected to a {} URL", next.scheme()))
        }
        // apt refuses it too: what was asked for privately must not go on in the clear.
        Some(next) if url.scheme() == "https" && next.scheme() == "http" => {
            Err("redirected from https to http".to_owned())
        }
        Some(next) => Ok(next),
    })
}

/// The `Authorization` header for a target with credentials in its URL (RFC 7617).
#[must_use]
pub fn basic_authorization(target: &Target) -> Option<HeaderValue> {
    let (user, password) = {
        let userinfo = target.userinfo.as_deref()?;
        userinfo.split_once(':').unwrap_or((userinfo, ""))
    };
    let decode = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let pair = BASE64.encode([decode(user), decode(password)].join(&b':'));
    let mut value = HeaderValue::try_from(format!("Basic {pair}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
