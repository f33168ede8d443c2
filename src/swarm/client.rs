//! What all clients of the swarm have in common: nobody leads them elsewhere, every wait is bounded, and
//! bodies have to come at some pace.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use crate::content::validators::Validators;
use crate::trust;

/// A client's settings, still to be built.
///
/// # Errors
/// When there is no TLS.
pub(super) fn builder(
    connect_timeout: Duration,
    idle_max: usize,
) -> anyhow::Result<reqwest::ClientBuilder> {
    Ok(reqwest::Client::builder()
        .user_agent(concat!("aptmesh/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(idle_max)
        .tcp_nodelay(true)
        .tls_backend_preconfigured(trust::client(Vec::new())?)
        .no_proxy())
}

/// How fast a body has to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// For how long it may be silent.
    pub(super) silence_max: Duration,
    /// Bytes per second over all that it was waited for; what falls behind by more than `silence_max` is
    /// as good as silent. `None`: as few as may be.
    pub(super) least: Option<u64>,
}

impl Pace {
    /// For how long the next bytes may be waited for.
    fn patience(self, received: u64, waited: Duration) -> Duration {
        let Some(least) = self.least else { return self.silence_max };
        let due = Duration::from_millis(received.saturating_mul(1000) / least);
        (due + self.silence_max).saturating_sub(waited).min(self.silence_max)
    }
}

/// A body on its way.
pub(super) struct Paced {
    response: reqwest::Response,
    pace: Pace,
    received: u64,
    /// For how long it was waited for, in all.
    waited: Duration,
}

impl Paced {
    pub(super) fn new(response: reqwest::Response, pace: Pace) -> Self {
        Self { response, pace, received: 0, waited: Duration::ZERO }
    }

    /// Bytes so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// In words, when it is silent, or too slow, or breaks off.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        let begun = Instant::now();
        let patience = self.pace.patience(self.received, self.waited);
        let next = timeout(patience, self.response.chunk()).await;
        self.waited += begun.elapsed();
        let chunk = next.map_err(|_elapsed| "too slow".to_owned())?.map_err(in_words)?;
        self.received += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Ok(chunk)
    }

    /// All of it.
    ///
    /// # Errors
    /// In words, when it has more than `max` bytes, is silent, or too slow, or breaks off.
    pub(super) async fn read(mut self, max: usize) -> Result<Vec<u8>, String> {
        let too_long = || format!("sent more than {max} bytes");
        if self.response.content_length().is_some_and(|length| length > max as u64) {
            return Err(too_long());
        }
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if whole.len() + chunk.len() > max {
                return Err(too_long());
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }
}

/// A header's text.
pub(super) fn header<'a>(response: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// What tells the version of a body from others.
pub(super) fn marks(response: &reqwest::Response) -> Validators {
    let date =
        header(response, "last-modified").and_then(|date| httpdate::parse_http_date(date).ok());
    let since = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok());
    Validators {
        last_modified: since.and_then(|since| i64::try_from(since.as_secs()).ok()),
        etag: header(response, "etag").map(str::to_owned),
    }
}

/// The innermost cause, without the URL.
pub(super) fn in_words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let first: &(dyn std::error::Error + 'static) = &error;
    let mut causes = std::iter::successors(Some(first), |error| error.source());
    let last = causes.clone().last().map(ToString::to_string);
    causes.find_map(trust::nobody_to_ask).or(last).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_may_be_silent_for_a_while_and_slow_for_as_long() {
        let seconds = Duration::from_secs;
        let blobs = Pace { silence_max: seconds(3), least: Some(1000) };
        for (received, waited, left) in
            [(0, 0, 3), (0, 2, 1), (0, 3, 0), (2_000, 2, 3), (2_000, 4, 1), (9_000, 1, 3)]
        {
            assert_eq!(blobs.patience(received, seconds(waited)), seconds(left), "{received}");
        }
        let mirrors = Pace { silence_max: seconds(20), least: None };
        assert_eq!(mirrors.patience(0, seconds(100)), seconds(20));
    }
}
