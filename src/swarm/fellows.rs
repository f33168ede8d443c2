//! Fetching blobs from other replicas of this site.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus::{IntCounter, IntCounterVec};
use thiserror::Error;
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use crate::content::digest::Sha256;
use crate::content::range::parse_content_range;
use crate::content::validators::Validators;
use crate::swarm::client::{self, Pace, Paced, header, in_words, marks};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{self, span};

/// For how long a connection may take to be made: they are near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long an answer may be waited for, the connection included: a large file is hashed before it
/// is given, once, and a mirror is asked after that.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
/// For how long a body may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// For how long one may be silent that comes from a mirror: a holder that resumes it waits for as long.
const MIRRORS_SILENCE_MAX: Duration = Duration::from_secs(20);
/// A body that falls behind this pace, in bytes per second, is as good as silent: mirrors are faster.
const PACE_MIN: u64 = 256 * 1024;
/// As from a disk that is near.
const OF_BLOBS: Pace = Pace { silence_max: SILENCE_MAX, least: Some(PACE_MIN) };
/// As fast as the mirror that it comes from.
const OF_MIRRORS: Pace = Pace { silence_max: MIRRORS_SILENCE_MAX, least: None };
/// For how long one that failed is not asked.
const BENCHED_FOR: Duration = Duration::from_secs(5);
/// For how long one whose bytes were wrong is not asked.
const BLAMED_FOR: Duration = Duration::from_mins(10);
/// Idle connections kept to each.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Who is remembered as benched.
const BENCH_MAX: usize = 1024;

/// Why a blob was not had.
#[derive(Clone, Debug, Error)]
#[error("{url}: {reason}")]
pub struct SwarmError {
    /// Who was asked.
    pub url: Arc<str>,
    /// In a few words.
    pub reason: String,
}

/// The client.
pub struct Fellows {
    client: reqwest::Client,
    bench: Arc<Bench>,
    requests: IntCounterVec,
    bytes: IntCounter,
}

/// Who is not asked, and until when.
#[derive(Default)]
struct Bench(Mutex<HashMap<Arc<str>, Instant>>);

impl Bench {
    fn put(&self, url: &Arc<str>, until: Instant) {
        let mut bench = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bench.len() >= BENCH_MAX {
            let now = Instant::now();
            bench.retain(|_, until| *until > now);
        }
        if bench.len() < BENCH_MAX {
            let benched = bench.entry(Arc::clone(url)).or_insert(until);
            *benched = until.max(*benched);
        }
    }

    fn has(&self, url: &str, now: Instant) -> bool {
        let bench = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bench.get(url).is_some_and(|until| *until > now)
    }
}

impl Fellows {
    /// Builds the client, which counts the `bytes` of bodies that come.
    ///
    /// # Errors
    /// When there is no TLS.
    pub fn new(bytes: IntCounter, metrics: &Metrics) -> anyhow::Result<Self> {
        Ok(Self {
            client: client::builder(CONNECT_TIMEOUT, IDLE_CONNECTIONS_MAX)?.build()?,
            bench: Arc::default(),
            requests: metrics.counters_of(
                "aptmesh_swarm_replica_requests_total",
                "Blobs asked of other replicas, by what came of it.",
                "answer",
                &["given", "absent", "forbidden", "trouble", "silent"],
            ),
            bytes,
        })
    }

    /// Whether it is worth asking.
    #[must_use]
    pub fn may_ask(&self, url: &str) -> bool {
        !self.bench.has(url, Instant::now())
    }

    /// It gave wrong bytes.
    pub fn blame(&self, url: &Arc<str>) {
        self.bench.put(url, Instant::now() + BLAMED_FOR);
    }

    /// Asks the replica at `url` for `blob`, from byte `from` on, up to the byte before `until` or to its end.
    ///
    /// # Errors
    /// When it does not have it, or does not answer in time.
    pub async fn fetch(
        &self,
        url: &str,
        blob: &Sha256,
        (from, until): (u64, Option<u64>),
        token: &str,
    ) -> Result<Body, SwarmError> {
        let path = format!("/blob/sha256/{blob}");
        let range = match until {
            Some(until) => Some(format!("bytes={from}-{}", until.saturating_sub(1))),
            None => (from > 0).then(|| format!("bytes={from}-")),
        };
        let (status, response) = self.answer(url, &path, range, token).await?;
        let url: Arc<str> = url.into();
        let failed = |reason: String| SwarmError { url: Arc::clone(&url), reason };
        let whole = match (status, from) {
            (200, 0) => response.content_length(),
            (206, _) => rest_of(&response).filter(|(first, _)| *first == from).map(|(_, all)| all),
            _ => return Err(failed(format!("answered {status}"))),
        };
        if whole.is_none() {
            return Err(failed("did not tell where the file ends".to_owned()));
        }
        Ok(self.body(response, whole, url, OF_BLOBS))
    }

    /// Asks the replica at `url` for what it is fetching itself, from the first byte on.
    ///
    /// # Errors
    /// When it is not fetching it, or does not answer in time.
    pub async fn join(&self, url: &str, flight: &Sha256, token: &str) -> Result<Body, SwarmError> {
        let (status, response) =
            self.answer(url, &format!("/flight/{flight}"), None, token).await?;
        let url: Arc<str> = url.into();
        if status != 200 {
            return Err(SwarmError { url, reason: format!("answered {status}") });
        }
        let whole = response.content_length();
        Ok(self.body(response, whole, url, OF_MIRRORS))
    }

    fn body(
        &self,
        response: reqwest::Response,
        whole: Option<u64>,
        url: Arc<str>,
        pace: Pace,
    ) -> Body {
        Body {
            marks: marks(&response),
            whole,
            incoming: Paced::new(response, pace),
            url,
            bench: Arc::clone(&self.bench),
            bytes: self.bytes.clone(),
        }
    }

    async fn answer(
        &self,
        url: &str,
        path: &str,
        range: Option<String>,
        token: &str,
    ) -> Result<(u16, reqwest::Response), SwarmError> {
        let span = span!("swarm.borrow", otel.kind = "client", aptmesh.replica = url);
        let asked = timeout(ANSWER_PATIENCE, self.ask(url, path, range, token));
        let asked = asked.instrument(span.clone()).await;
        let answered = asked.unwrap_or_else(|_elapsed| Err("no answer in time".to_owned()));
        let url: Arc<str> = url.into();
        let told = match &answered {
            Ok((200 | 206, _)) => "given",
            Ok((404, _)) => "absent",
            Ok((403, _)) => "forbidden",
            Ok(_) => "trouble",
            Err(_) => "silent",
        };
        self.requests.with_label_values(&[told]).inc();
        traces::set(&span, "aptmesh.outcome", told);
        match &answered {
            Ok((status, _)) if *status >= 400 => {
                traces::fail(&span, status, &format_args!("answered {status}"));
            }
            Ok(_) => {}
            Err(reason) => traces::fail(&span, told, reason),
        }
        answered.map_err(|reason| {
            self.bench.put(&url, Instant::now() + BENCHED_FOR);
            SwarmError { url, reason }
        })
    }

    async fn ask(
        &self,
        url: &str,
        path: &str,
        range: Option<String>,
        token: &str,
    ) -> Result<(u16, reqwest::Response), String> {
        let url = format!("{}{path}", url.trim_end_matches('/'));
        let request = self.client.get(url).headers(traces::headers());
        let mut request = request.header("authorization", token);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let response = request.send().await.map_err(in_words)?;
        Ok((response.status().as_u16(), response))
    }
}

/// The first byte of a range, and the size of the whole.
fn rest_of(response: &reqwest::Response) -> Option<(u64, u64)> {
    let (range, whole) = parse_content_range(header(response, "content-range")?)?;
    Some((range.start, whole?))
}

/// A blob, or the rest of one, on its way.
pub struct Body {
    incoming: Paced,
    marks: Validators,
    whole: Option<u64>,
    url: Arc<str>,
    bench: Arc<Bench>,
    bytes: IntCounter,
}

impl Body {
    /// Bytes of the whole, if the replica says.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.whole
    }

    /// The version's marks.
    #[must_use]
    pub fn validators(&self) -> &Validators {
        &self.marks
    }

    /// Who gives it.
    #[must_use]
    pub fn url(&self) -> &Arc<str> {
        &self.url
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the body is silent, or too slow, or breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, SwarmError> {
        let before = self.incoming.received();
        let next = self.incoming.chunk().await;
        self.bytes.inc_by(self.incoming.received() - before);
        next.map_err(|reason| {
            self.bench.put(&self.url, Instant::now() + BENCHED_FOR);
            SwarmError { url: Arc::clone(&self.url), reason }
        })
    }
}
