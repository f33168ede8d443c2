//! The question to the mirror, and whether its answer can be what was asked for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use tokio::time::{Instant, timeout_at};

use crate::archive::target::Target;
use crate::content::validators::http_date;
use crate::engine::flight::By;
use crate::engine::flight::borrowed::{Borrowed, Incoming};
use crate::engine::flight::follower::range_of;
use crate::engine::flight::transfer::Transfer;
use crate::engine::memory::Known;
use crate::engine::outcome::{Failure, Meta};
use crate::mirror::{Answer, Framing, MirrorError, Question};

/// How often an answer of no use is asked for again.
const TRIES_MAX: u32 = 3;
/// Before that.
const PAUSE: Duration = Duration::from_millis(200);

const WEB_PAGE: &str = "answered with a web page instead of the file (captive portal?)";
/// Of a mirror.
pub(super) const MOVED_ON: &str =
    "has moved on since this release file was given out: update again";

/// What came of it.
pub(super) enum Asked {
    Unchanged(Arc<Known>),
    Bytes(Box<Arrival>),
}

/// A body whose first bytes are there.
pub(in crate::engine) struct Arrival {
    pub(in crate::engine) meta: Meta,
    /// What it was asked for as.
    pub(in crate::engine) source: Arc<Target>,
    /// Which mirror or fellow gives it.
    pub(in crate::engine) origin: Arc<str>,
    pub(in crate::engine) first: Bytes,
    pub(in crate::engine) body: Incoming,
    /// It was asked for up to this byte only.
    pub(in crate::engine) asked: Option<u64>,
    /// Whether it can be told that it is whole.
    pub(in crate::engine) provable: bool,
    /// Set where it is a fellow that gives it.
    pub(in crate::engine) borrowed: Option<Borrowed>,
    /// Who fetches it.
    pub(in crate::engine) by: By,
    /// Set where it is a fellow with another volume that does: when it was asked for it.
    pub(in crate::engine) joined_at: Option<i64>,
}

impl Transfer {
    /// Asks until the first bytes are there: they tell a file from a captive portal's page. Up to byte
    /// `until`, where peers are to bring the rest.
    pub(super) async fn ask(
        &self,
        deadline: Instant,
        until: Option<u64>,
    ) -> Result<Asked, Failure> {
        let mut headers = self.conditions();
        headers.extend(range_of(0, until));
        let question = Question {
            headers,
            is_promised: self.expectation.is_some(),
            until: Some(deadline),
            ..Question::default()
        };
        let mut fruitless = 0;
        loop {
            let (source, answer) = self.engine.ask_by_names(&self.sources, &question).await?;
            if answer.status == 304
                && let Some(known) = &self.known
            {
                return Ok(Asked::Unchanged(Arc::clone(known)));
            }
            let origin = Arc::clone(&answer.origin);
            let first = self.first_bytes(source, answer, deadline, until).await;
            let out_of_tries = fruitless == TRIES_MAX || Instant::now() >= deadline;
            match first {
                // Another mirror of the archive may have the right one.
                Err(Failure::Unusable { reason, .. })
                    if !out_of_tries && self.engine.mirror.has_several(source) =>
                {
                    tracing::warn!(%origin, reason, "asking another mirror");
                    self.engine.mirror.blame(&origin);
                }
                Err(Failure::Mirror(_)) if !out_of_tries => {}
                // Some do not know ranges, or not well.
                Err(failure) if until.is_some() && !failure.is_not_there() => {
                    tracing::info!(%origin, ?failure, "asking for all of it");
                    return Box::pin(self.ask(deadline, None)).await;
                }
                decided => return decided,
            }
            fruitless += 1;
            tokio::time::sleep(PAUSE * fruitless).await;
        }
    }

    /// The first bytes of an answer tell a file from a captive portal's page.
    async fn first_bytes(
        &self,
        source: &Arc<Target>,
        answer: Answer,
        deadline: Instant,
        until: Option<u64>,
    ) -> Result<Asked, Failure> {
        let asked = until.filter(|_| answer.status == 206);
        let mut answer = self.usable(source, answer, asked.is_some())?;
        let first = timeout_at(deadline, answer.body.chunk()).await;
        let silent = || Err(MirrorError::silent(&self.host_of(&answer.origin)));
        let first = first.unwrap_or_else(|_| silent()).map_err(Failure::Mirror)?;
        self.begin(source, answer, first.unwrap_or_default(), asked)
    }

    /// The answer, if by its head it is what was asked for: all of it, or its first part.
    fn usable(&self, source: &Target, answer: Answer, is_part: bool) -> Result<Answer, Failure> {
        if answer.status != 200 && !is_part {
            let retry_after = answer.headers.get(header::RETRY_AFTER).cloned();
            let host = self.host_of(&answer.origin);
            return Err(Failure::Upstream { status: answer.status, host, retry_after });
        }
        if let Some(coding) = answer.unasked_coding() {
            let reason = format!("sent the file {coding}-encoded, which was not asked for");
            return Err(self.unusable(&answer.origin, reason));
        }
        let kind = answer.content_type().unwrap_or_default().to_ascii_lowercase();
        if kind.starts_with("text/html") {
            return Err(self.unusable(&answer.origin, WEB_PAGE.to_owned()));
        }
        // apt would refuse it for good, before its first byte; so it hears of a trouble that passes.
        let promised = self.expectation.and_then(|expectation| expectation.size);
        let size = match (is_part, answer.framing(), answer.part()) {
            (true, _, Some((0, Some(whole)))) => Some(whole),
            (true, ..) => {
                return Err(self
                    .unusable(&answer.origin, "sent another part than was asked for".to_owned()));
            }
            (false, Framing::Length(size), _) => Some(size),
            (false, ..) => None,
        };
        if let (Some(size), Some(promised)) = (size, promised)
            && size != promised
        {
            self.blame(source, &answer.origin);
            let reason = if self.has_moved_on(source) {
                MOVED_ON.to_owned()
            } else {
                format!("has {size} bytes where the archive lists {promised}")
            };
            return Err(self.unusable(&answer.origin, reason));
        }
        Ok(answer)
    }

    fn begin(
        &self,
        source: &Arc<Target>,
        answer: Answer,
        first: Bytes,
        asked: Option<u64>,
    ) -> Result<Asked, Failure> {
        if !self.kind.can_begin_with(self.target.file_name(), &first) {
            let reason = if first.is_empty() { "sent an empty file" } else { WEB_PAGE };
            return Err(self.unusable(&answer.origin, reason.to_owned()));
        }
        let framing = answer.framing();
        let meta = Meta {
            size: match (framing, answer.part()) {
                (_, Some((_, whole))) if asked.is_some() => whole,
                (Framing::Length(size), _) => Some(size),
                (Framing::Chunked | Framing::Close, _) => None,
            },
            validators: answer.validators(),
            content_type: answer.content_type(),
        };
        // A body that ends when the connection does may have been cut: it proves itself by its
        // digest, or is not kept.
        let provable = framing != Framing::Close || self.expected().is_some();
        let source = Arc::clone(source);
        let (origin, body) = (answer.origin, answer.body);
        let (body, borrowed) = (Incoming::Mirror(body.into()), None);
        Ok(Asked::Bytes(Box::new(Arrival {
            meta,
            source,
            origin,
            first,
            body,
            asked,
            provable,
            borrowed,
            by: By::Mirror,
            joined_at: None,
        })))
    }

    /// What the mirror needs to answer 304 (RFC 9110 §13.1).
    fn conditions(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for via in &self.via {
            headers.append(header::VIA, via.clone());
        }
        if let Some(known) = &self.known {
            let marks = &known.entry.validators;
            if let Some(etag) =
                marks.etag.as_ref().and_then(|etag| HeaderValue::try_from(etag).ok())
            {
                headers.insert(header::IF_NONE_MATCH, etag);
            }
            if let Some(date) =
                marks.last_modified.and_then(|at| HeaderValue::try_from(http_date(at)).ok())
            {
                headers.insert(header::IF_MODIFIED_SINCE, date);
            }
        }
        headers
    }
}
