//! The site's have-filter, for other sites: in full, or what came and went since the generation that they
//! have (`?since=GENERATION`), told apart by their first bytes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use warp::reply::Response;

use crate::content::filter::History;
use crate::engine::outcome::{self, Outcome};
use crate::index::{Index, IndexError};
use crate::telemetry::edge::Edge;
use crate::web::access::Credit;
use crate::web::body::Source;
use crate::web::connection::Visit;
use crate::web::reply;

/// How often it is looked whether there is a new generation: there is one every three seconds at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For how long a peer waits for the index, before it is told what was there before.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the index keeps, as it was seen last.
pub struct HaveFilter {
    index: Arc<dyn Index>,
    /// Whether the index does not tell of it.
    trouble: Edge,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    looked_at: Option<Instant>,
    kept: Option<Kept>,
}

/// A generation of it.
struct Kept {
    history: History,
    whole: Bytes,
}

impl HaveFilter {
    /// As it is kept in this index.
    #[must_use]
    pub fn new(index: Arc<dyn Index>) -> Self {
        Self { index, trouble: Edge::default(), seen: Mutex::default() }
    }

    /// What a peer gets: all, what changed, or that nothing did.
    pub(super) async fn answer(&self, visit: &Visit) -> Response {
        let mut seen = self.seen.lock().await;
        if seen.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.look(&mut seen).await;
        }
        let Some(kept) = &seen.kept else {
            return reply::refusal(StatusCode::NOT_FOUND, "there is no filter");
        };
        let etag = format!("\"{}\"", kept.history.filter().generation());
        let since = since(visit.uri.query().unwrap_or_default());
        let (status, body) = if names(&visit.headers, &etag) {
            (StatusCode::NOT_MODIFIED, Bytes::new())
        } else {
            let delta = since.and_then(|since| kept.history.since(since));
            let body = delta.map_or_else(|| kept.whole.clone(), |delta| delta.to_bytes().into());
            (StatusCode::OK, body)
        };
        let mut head = http::Response::new(());
        *head.status_mut() = status;
        let kind = HeaderValue::from_static("application/octet-stream");
        head.headers_mut().insert(header::CONTENT_TYPE, kind);
        head.headers_mut().extend(HeaderValue::from_str(&etag).map(|etag| (header::ETAG, etag)));
        if status == StatusCode::OK {
            head.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
        }
        let source = if visit.method == Method::GET { Source::Bytes(body) } else { Source::Empty };
        let credit = Credit::of(outcome::Source::Memory, Outcome::Hit);
        reply::credited(reply::with_payload(head, source), credit)
    }

    /// What can not be seen now is as it was.
    async fn look(&self, seen: &mut Seen) {
        seen.looked_at = Some(Instant::now());
        let known = seen.kept.as_ref().map_or(0, |kept| kept.history.filter().generation());
        let error = match timeout(PATIENCE, self.newer(known)).await {
            Ok(Ok(newer)) => {
                seen.kept = newer.unwrap_or_else(|| seen.kept.take());
                if self.trouble.ends() {
                    tracing::info!("other sites get the have-filter as it is");
                }
                return;
            }
            Ok(Err(error)) if error.is_old_news() => return,
            Ok(Err(error)) => format!("{error}: {}", error.source),
            Err(_) => "the index is late".to_owned(),
        };
        if self.trouble.begins() {
            tracing::warn!(error, "other sites get the have-filter as it was");
        }
    }

    /// What is kept now, if it is another generation than the one `known`.
    async fn newer(&self, known: u64) -> Result<Option<Option<Kept>>, IndexError> {
        if self.index.filter_generation().await? == known {
            return Ok(None);
        }
        let filter = self.index.filter().await?;
        let history = filter.and_then(|filter| History::read(&filter.whole, &filter.deltas));
        Ok(Some(history.map(|history| {
            let whole = history.filter().to_bytes().into();
            Kept { history, whole }
        })))
    }
}

/// The generation that a peer has.
fn since(query: &str) -> Option<u64> {
    query.split('&').find_map(|part| part.strip_prefix("since=")).and_then(|text| text.parse().ok())
}

/// Whether the peer has this already.
fn names(headers: &HeaderMap, etag: &str) -> bool {
    let told = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|told| told.to_str().ok());
    told.flat_map(|told| told.split(',')).any(|told| told.trim().trim_start_matches("W/") == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_read() {
        assert_eq!(since("since=17"), Some(17));
        assert_eq!(since("a=b&since=17"), Some(17));
        for other in ["", "since=", "since=-1", "since=x", "sinc=1"] {
            assert_eq!(since(other), None, "{other}");
        }
    }
}
