//! Fetching from other sites. Their URLs are their own word, and may lead anywhere: only public addresses
//! are asked, and those that are allowed. They are no friends either: nothing is taken that was not asked
//! for.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ipnet::IpNet;
use prometheus::{IntCounter, IntCounterVec};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use thiserror::Error;
use tokio::time::timeout;
use url::{Host, Url};

use crate::content::digest::Sha256;
use crate::content::filter;
use crate::content::range::parse_content_range;
use crate::content::special::is_special;
use crate::content::swarm_key::SwarmKey;
use crate::content::validators::Validators;
use crate::swarm::client::{self, Pace, Paced, header, in_words, marks};
use crate::swarm::discovery::Holder;
use crate::swarm::token::Secret;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces;

/// For how long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long an answer may be waited for, the connection included.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
/// For how long a body may be silent; and what it has to bring over its time, in bytes per second: less
/// than a quarter of what the slowest lines carry is of no use to anybody.
const PACE: Pace = Pace { silence_max: Duration::from_secs(2), least: Some(16 * 1024) };
/// For how long one that is busy is left alone: as it says, within these bounds.
const BUSY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Idle connections kept to each.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// Sites of which it is remembered under which of their URLs they were reached.
const DOORS_MAX: usize = 1_024;
/// What the token for a have-filter is over.
const FILTER: &[u8] = b"filter";

/// The client.
pub struct Peers {
    client: reqwest::Client,
    reach: Reach,
    secret: Secret,
    /// Where sites were reached, by node.
    doors: Mutex<HashMap<Arc<str>, Arc<str>>>,
    requests: IntCounterVec,
    bytes: IntCounter,
}

/// Why there are no bytes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// It does not have the blob.
    #[error("does not have it")]
    Absent,
    /// It gives nothing to anybody for so long.
    #[error("is busy for {0:?}")]
    Busy(Duration),
    /// It is fetching the blob itself, and has not come near what was asked for.
    #[error("has the first {have} bytes only")]
    NotYet {
        /// Bytes that it has from the start.
        have: u64,
    },
    /// It could not be asked, or did not answer as it should.
    #[error("{0}")]
    Failed(String),
}

impl Refused {
    /// The word for metric labels and traces.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Busy(_) => "busy",
            Self::NotYet { .. } => "not_yet",
            Self::Failed(_) => "failed",
        }
    }
}

/// What came of a question for a have-filter.
pub enum FilterAnswer {
    /// It is as it was.
    Unchanged,
    /// A filter, or a delta to one: at most [`filter::SIZE_MAX`] bytes.
    Changed(Vec<u8>),
}

/// Where other sites may be.
#[derive(Clone)]
struct Reach(Arc<[IpNet]>);

impl Reach {
    fn permits(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        !is_special(ip) || self.0.iter().any(|network| network.contains(&ip))
    }

    /// Names are seen to when they are resolved.
    fn permits_host(&self, url: &Url) -> bool {
        match url.host() {
            None => false,
            Some(Host::Domain(_)) => true,
            Some(Host::Ipv4(ip)) => self.permits(ip.into()),
            Some(Host::Ipv6(ip)) => self.permits(ip.into()),
        }
    }
}

/// At each connect, so that a name that resolves to something else the second time gains nothing.
impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let permitted: Vec<SocketAddr> =
                found.filter(|address| reach.permits(address.ip())).collect();
            if permitted.is_empty() {
                return Err(NOT_ALLOWED.into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

const NOT_ALLOWED: &str = "sites are not to be there (swarm.allow_private)";

impl Peers {
    /// Builds the client of a site of the swarm with this key, which counts the `bytes` of blobs that
    /// come.
    ///
    /// # Errors
    /// When there is no TLS.
    pub fn new(
        key: &SwarmKey,
        allow_private: &[IpNet],
        bytes: IntCounter,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let reach = Reach(allow_private.into());
        let client = client::builder(CONNECT_TIMEOUT, IDLE_CONNECTIONS_MAX)?;
        Ok(Self {
            client: client.dns_resolver(reach.clone()).build()?,
            reach,
            secret: Secret::of_swarm(key),
            doors: Mutex::default(),
            requests: metrics.counters_of(
                "aptmesh_swarm_peer_requests_total",
                "Blobs asked of other sites, whole or in part, by what came of it: given, absent, busy, not_yet (it \
                 is fetching that itself), or failed.",
                "answer",
                &["given", "absent", "busy", "not_yet", "failed"],
            ),
            bytes,
        })
    }

    /// Asks a site for these bytes of `blob`; up to its end, where `range` has none (`u64::MAX`).
    ///
    /// # Errors
    /// When it does not give them.
    pub async fn fetch(
        &self,
        holder: &Holder,
        blob: &Sha256,
        range: Range<u64>,
    ) -> Result<PieceBody, Refused> {
        let wanted = match range.end {
            u64::MAX => format!("bytes={}-", range.start),
            end => format!("bytes={}-{}", range.start, end.saturating_sub(1)),
        };
        let headers = [("range", wanted)];
        let path = format!("/blob/sha256/{blob}");
        let answered = self.ask(holder, &path, blob, &headers).await;
        let given = answered.and_then(|response| self.piece(response, range));
        let told = given.as_ref().map_or_else(Refused::label, |_| "given");
        self.requests.with_label_values(&[told]).inc();
        given
    }

    /// Asks a site for its have-filter, or what has changed in it since that generation.
    ///
    /// # Errors
    /// When it does not give it.
    pub async fn filter(
        &self,
        holder: &Holder,
        since: Option<u64>,
    ) -> Result<FilterAnswer, Refused> {
        let (path, headers) = match since {
            None => ("/filter".to_owned(), None),
            Some(since) => {
                (format!("/filter?since={since}"), Some(("if-none-match", format!("\"{since}\""))))
            }
        };
        let subject = Sha256::of(FILTER);
        let response = self.ask(holder, &path, &subject, headers.as_slice()).await?;
        match response.status().as_u16() {
            304 if since.is_some() => Ok(FilterAnswer::Unchanged),
            200 => {
                let body = Paced::new(response, PACE).read(filter::SIZE_MAX).await;
                body.map(FilterAnswer::Changed).map_err(Refused::Failed)
            }
            _ => Err(refusal(&response)),
        }
    }

    /// The body of an answer, if it is the one that was asked for.
    fn piece(&self, response: reqwest::Response, range: Range<u64>) -> Result<PieceBody, Refused> {
        let part = header(&response, "content-range").and_then(parse_content_range);
        let (given, whole) = match (response.status().as_u16(), part) {
            (206, Some((given, whole))) => (given, whole),
            (200, _) => {
                (0..response.content_length().unwrap_or(range.end), response.content_length())
            }
            _ => return Err(refusal(&response)),
        };
        if given.start != range.start || given.end > range.end {
            return Err(Refused::Failed("gave other bytes than those asked for".to_owned()));
        }
        Ok(PieceBody {
            whole,
            have: have(&response),
            marks: marks(&response),
            given,
            body: Paced::new(response, PACE),
            bytes: self.bytes.clone(),
        })
    }

    /// The answer of the first of its URLs at which it is reached.
    async fn ask(
        &self,
        holder: &Holder,
        path: &str,
        subject: &Sha256,
        headers: &[(&str, String)],
    ) -> Result<reqwest::Response, Refused> {
        let answered = timeout(ANSWER_PATIENCE, async {
            let mut failed = Refused::Failed("has no URL".to_owned());
            for url in self.doors(holder) {
                match self.knock(&url, path, subject, headers).await {
                    Ok(response) => {
                        self.remember(holder, &url);
                        return Ok(response);
                    }
                    Err(reason) => failed = Refused::Failed(reason),
                }
            }
            Err(failed)
        });
        let silent = |_elapsed| Err(Refused::Failed("no answer in time".to_owned()));
        answered.await.unwrap_or_else(silent)
    }

    async fn knock(
        &self,
        url: &str,
        path: &str,
        subject: &Sha256,
        headers: &[(&str, String)],
    ) -> Result<reqwest::Response, String> {
        let url = format!("{}{path}", url.trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|error| error.to_string())?;
        if !self.reach.permits_host(&url) {
            return Err(NOT_ALLOWED.to_owned());
        }
        let token = self.secret.token(subject, now());
        let request = self.client.get(url).headers(traces::headers_for_peers());
        let mut request = request.header("authorization", token);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.send().await.map_err(in_words)
    }

    /// Its URLs, the one at which it was reached before all others.
    fn doors(&self, holder: &Holder) -> Vec<Arc<str>> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let known = doors.get(&holder.node);
        let mut urls = holder.urls.to_vec();
        urls.sort_by_key(|url| known != Some(url));
        urls
    }

    fn remember(&self, holder: &Holder, url: &Arc<str>) {
        // With one, there is nothing to choose.
        if holder.urls.len() < 2 {
            return;
        }
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        if doors.len() >= DOORS_MAX {
            doors.clear();
        }
        doors.insert(Arc::clone(&holder.node), Arc::clone(url));
    }
}

/// Why there was no body.
fn refusal(response: &reqwest::Response) -> Refused {
    match (response.status().as_u16(), have(response)) {
        (404, _) => Refused::Absent,
        (503, Some(have)) => Refused::NotYet { have },
        (503, None) => {
            let seconds = header(response, "retry-after").and_then(|text| text.parse().ok());
            Refused::Busy(Duration::from_secs(seconds.unwrap_or_default()).clamp(BUSY.0, BUSY.1))
        }
        (status, _) => Refused::Failed(format!("answered {status}")),
    }
}

fn have(response: &reqwest::Response) -> Option<u64> {
    header(response, "aptmesh-have")?.parse().ok()
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Bytes of a blob, on their way.
pub struct PieceBody {
    body: Paced,
    marks: Validators,
    whole: Option<u64>,
    have: Option<u64>,
    /// What is to come.
    given: Range<u64>,
    bytes: IntCounter,
}

impl PieceBody {
    /// Bytes of the whole blob, if the site says.
    #[must_use]
    pub fn whole(&self) -> Option<u64> {
        self.whole
    }

    /// Bytes that the site had from the start, where it is fetching the blob itself.
    #[must_use]
    pub fn have(&self) -> Option<u64> {
        self.have
    }

    /// The version's marks, of which sites tell `Last-Modified`.
    #[must_use]
    pub fn validators(&self) -> &Validators {
        &self.marks
    }

    /// The next bytes; `None` when all of them were there.
    ///
    /// # Errors
    /// In words, when the body is silent, or too slow, breaks off, or is longer than it may be.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        let before = self.body.received();
        let chunk = self.body.chunk().await?;
        self.bytes.inc_by(self.body.received() - before);
        let promised = self.given.end - self.given.start;
        let has_end = self.given.end != u64::MAX;
        match chunk {
            Some(_) if self.body.received() > promised => {
                Err("sent more than asked for".to_owned())
            }
            None if has_end && self.body.received() < promised => Err("broke off".to_owned()),
            chunk => Ok(chunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_where_everybody_is_or_where_they_may_be() {
        let reach = Reach(["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()].into());
        for (url, permitted) in [
            ("http://8.8.8.8:9979/", true),
            ("https://[2a00:1450::1]/", true),
            ("http://10.1.2.3:9979/", true),
            ("http://[fd00::1]:9979/", true),
            ("http://[::ffff:10.0.0.1]/", true),
            ("http://peer.example.org/", true),
            ("http://192.168.1.1/", false),
            ("http://127.0.0.1:9979/", false),
            ("http://2130706433/", false),
            ("http://0x7f.1/", false),
            ("http://[::1]/", false),
            ("http://[::ffff:127.0.0.1]/", false),
            ("http://169.254.169.254/latest/meta-data", false),
        ] {
            assert_eq!(reach.permits_host(&Url::parse(url).unwrap()), permitted, "{url}");
        }
    }
}
