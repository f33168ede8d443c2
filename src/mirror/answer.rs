//! A mirror's answer: what its head says, and its body, chunk by chunk.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use prometheus::IntCounter;
use tokio::time::{Instant, timeout};

use super::Source;
use super::error::MirrorError;
use super::ledger::Line;
use crate::content::range::parse_content_range;
use crate::content::validators::Validators;

/// The head of an answer, and its body still to come.
pub struct Answer {
    /// As the mirror gave it.
    pub status: StatusCode,
    /// As the mirror gave them.
    pub headers: HeaderMap,
    /// Which mirror it was.
    pub origin: Arc<str>,
    /// What follows.
    pub body: Body,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes.
    Length(u64),
    /// By the last chunk.
    Chunked,
    /// When the connection closes: a body that was cut looks like a whole one.
    Close,
}

impl Answer {
    pub(super) fn new(
        response: reqwest::Response,
        source: &Source,
        patience: Duration,
        bytes: IntCounter,
    ) -> Self {
        let source = source.clone();
        Self {
            status: response.status(),
            headers: response.headers().clone(),
            origin: Arc::clone(&source.origin),
            body: Body { first: None, response, source, patience, bytes, line: None },
        }
    }

    /// That it is none, in words.
    pub(super) fn refusal(&self) -> Option<String> {
        let is_error = self.status.is_client_error() || self.status.is_server_error();
        is_error.then(|| format!("answered {}", self.status))
    }

    /// How the body's end is known.
    #[must_use]
    pub fn framing(&self) -> Framing {
        // RFC 9112 §6.3: a transfer coding overrules a length, and only `chunked` has an end.
        if let Some(coding) = self.headers.get_all(header::TRANSFER_ENCODING).iter().next_back() {
            return if is_chunked(coding) { Framing::Chunked } else { Framing::Close };
        }
        match self.text(&header::CONTENT_LENGTH).and_then(|length| length.parse().ok()) {
            Some(length) => Framing::Length(length),
            None => Framing::Close,
        }
    }

    /// `Last-Modified` in seconds since 1970; `None` where it is missing or is no date that a
    /// client could read either (RFC 9110 §5.6.7).
    #[must_use]
    fn last_modified(&self) -> Option<i64> {
        let date = httpdate::parse_http_date(self.text(&header::LAST_MODIFIED)?).ok()?;
        seconds_since_1970(date)
    }

    /// `ETag`.
    #[must_use]
    fn etag(&self) -> Option<String> {
        self.text(&header::ETAG).map(str::to_owned)
    }

    /// `Content-Type`.
    #[must_use]
    pub fn content_type(&self) -> Option<String> {
        self.text(&header::CONTENT_TYPE).map(str::to_owned)
    }

    /// A coding other than the identity, of the content or in transfer, which was not asked for.
    #[must_use]
    pub fn unasked_coding(&self) -> Option<&str> {
        [(&header::CONTENT_ENCODING, "identity"), (&header::TRANSFER_ENCODING, "chunked")]
            .into_iter()
            .filter_map(|(name, usual)| Some((self.text(name)?, usual)))
            .find(|(coding, usual)| {
                !coding.eq_ignore_ascii_case(usual) && !coding.eq_ignore_ascii_case("identity")
            })
            .map(|(coding, _)| coding)
    }

    /// The version's marks.
    #[must_use]
    pub fn validators(&self) -> Validators {
        Validators { last_modified: self.last_modified(), etag: self.etag() }
    }

    /// The first byte of a 206's range and, where it says so, the size of the whole.
    #[must_use]
    pub fn part(&self) -> Option<(u64, Option<u64>)> {
        let (range, total) = parse_content_range(self.text(&header::CONTENT_RANGE)?)?;
        Some((range.start, total))
    }

    fn text(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The body of an answer.
pub struct Body {
    first: Option<Bytes>,
    response: reqwest::Response,
    source: Source,
    patience: Duration,
    bytes: IntCounter,
    /// Where people see how the mirror is doing.
    pub(super) line: Option<Arc<Line>>,
}

impl Body {
    /// The same body with `bytes`, which were taken from it, put back.
    #[must_use]
    pub fn preceded_by(mut self, bytes: Bytes) -> Self {
        self.first = Some(bytes);
        self
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the mirror is silent for too long or the body breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, MirrorError> {
        if let Some(bytes) = self.first.take() {
            return Ok(Some(bytes));
        }
        let chunk = match timeout(self.patience, self.response.chunk()).await {
            Ok(Ok(chunk)) => chunk,
            broken => {
                self.source.health.failed(&self.source.origin, Instant::now());
                let host = &self.source.host;
                let error = match broken {
                    Ok(Err(error)) => MirrorError::from_client(host, error),
                    _ => MirrorError::silent(host),
                };
                if let Some(line) = &self.line {
                    line.failed(&error.reason);
                }
                return Err(error);
            }
        };
        if let Some(chunk) = &chunk {
            self.bytes.inc_by(chunk.len() as u64);
            if let Some(line) = &self.line {
                line.received(chunk.len() as u64);
            }
        }
        Ok(chunk)
    }
}

/// Whether `chunked` is the only coding: what else was done to the bytes was not asked for.
fn is_chunked(coding: &HeaderValue) -> bool {
    coding.to_str().is_ok_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"))
}

fn seconds_since_1970(date: SystemTime) -> Option<i64> {
    let seconds = date.duration_since(UNIX_EPOCH).ok()?.as_secs();
    i64::try_from(seconds).ok()
}
