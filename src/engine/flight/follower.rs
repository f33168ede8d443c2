//! One client's way through a flight: from its own first byte, at its own pace, out of the staged
//! file. A slow client holds nobody up and costs no memory.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use thiserror::Error;
use tokio::sync::watch;

use crate::content::digest::Sha256;
use crate::engine::flight::{By, Flight, Flow, Interest, Progress, State};
use crate::engine::outcome::Meta;
use crate::mirror::{self, Framing, Mirror, Question};
use crate::store;

/// The longest span handed out at once, in bytes.
pub const SPAN_MAX: u64 = 256 * 1024;

/// Some bytes of a body.
pub enum Chunk {
    /// In memory.
    Bytes(Bytes),
    /// In a file: there already, and not to change.
    Span(Span),
}

impl Chunk {
    /// How many.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Span(span) => span.length as u64,
        }
    }

    /// Leaves what is beyond `length` to another; `None` where nothing is.
    pub fn split_off(&mut self, length: u64) -> Option<Self> {
        let at = usize::try_from(length).ok().filter(|_| length < self.length())?;
        Some(match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.split_off(at)),
            Self::Span(span) => {
                let rest = Span { offset: span.offset + length, ..span.clone() };
                let rest = Span { length: span.length - at, ..rest };
                span.length = at;
                Self::Span(rest)
            }
        })
    }
}

/// Bytes of a file.
#[derive(Clone)]
pub struct Span {
    /// The file.
    pub file: Arc<File>,
    /// Where in it, in bytes.
    pub offset: u64,
    /// How many; at most [`SPAN_MAX`].
    pub length: usize,
}

impl Span {
    /// Whether sending it waits for no disk, as far as can be told.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        store::is_cached(&self.file, self.offset, self.length as u64)
    }
}

/// A body that ends before its end.
#[derive(Debug, Error)]
#[error("the body broke off: {0}")]
pub struct Cut(pub Arc<str>);

/// A client's way through a flight.
pub struct Follower {
    flow: Arc<Flow>,
    progress: watch::Receiver<Progress>,
    position: u64,
    /// Exclusive; `None`: wherever the flow ends.
    end: Option<u64>,
    /// What the volume could not take is asked of the mirror, by each client alone.
    mirror: Arc<Mirror>,
    spilled: Option<mirror::Body>,
    /// Keeps the flight going; another site's does not.
    _interest: Option<Interest>,
}

impl Follower {
    pub(in crate::engine) fn new(flow: Arc<Flow>, interest: Interest, mirror: Arc<Mirror>) -> Self {
        let aside = Self::aside(flow, interest.flight(), mirror);
        Self { _interest: Some(interest), ..aside }
    }

    /// One that does not keep the flight going.
    pub(in crate::engine) fn aside(flow: Arc<Flow>, flight: &Flight, mirror: Arc<Mirror>) -> Self {
        let (progress, end) = (flight.progress(), flow.meta.size);
        Self { flow, progress, position: 0, end, mirror, spilled: None, _interest: None }
    }

    /// Bytes that are there, from the first on.
    #[must_use]
    pub fn have(&self) -> u64 {
        self.progress.borrow().readable
    }

    /// What is arriving.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.flow.meta
    }

    /// What its bytes are, where that is known before they have come.
    #[must_use]
    pub fn digest(&self) -> Option<Sha256> {
        self.flow.digest
    }

    /// Whether a fellow gives it, rather than a mirror.
    #[must_use]
    pub fn is_borrowed(&self) -> bool {
        self.flow.borrowed.is_some()
    }

    /// Whether peers gave all of it that clients have to wait for.
    #[must_use]
    pub fn is_gathered(&self) -> bool {
        self.flow.by == By::Peers
    }

    /// Whether it will be stored.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.flow.stored
    }

    /// Only these bytes, which must be within the body.
    pub fn select(&mut self, range: Range<u64>) {
        self.position = range.start;
        self.end = Some(range.end);
    }

    /// Waits until the flow has come to its byte `position`; `false` if it has not within
    /// `patience`, or never will.
    pub async fn reaches(&mut self, position: u64, patience: Duration) -> bool {
        let there = self
            .progress
            .wait_for(|progress| progress.readable > position || progress.state != State::Running);
        match tokio::time::timeout(patience, there).await {
            Ok(Ok(progress)) => progress.readable > position,
            _ => false,
        }
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When what is missing will not come.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Cut> {
        loop {
            if self.end == Some(self.position) {
                return Ok(None);
            }
            if self.spilled.is_some() {
                return self.next_spilled().await;
            }
            let progress = self.progress.borrow_and_update().clone();
            let readable = self.end.map_or(progress.readable, |end| end.min(progress.readable));
            if let Some(arriving) = &progress.arriving
                && self.position < readable
            {
                return Ok(Some(Chunk::Span(self.span_to(readable, &arriving.file))));
            }
            match progress.state {
                State::Whole => return Ok(None),
                State::Cut(reason) => return Err(Cut(reason)),
                // The rest would go out without its digest having been checked.
                State::Spilled if self.flow.checked => {
                    return Err(Cut("the volume is full, and the file must be checked".into()));
                }
                State::Spilled => self.spilled = Some(self.ask_for_the_rest().await?),
                State::Running => {
                    self.progress.changed().await.map_err(|_| Cut("the flight is gone".into()))?;
                }
            }
        }
    }

    fn span_to(&mut self, readable: u64, file: &Arc<File>) -> Span {
        let length = (readable - self.position).min(SPAN_MAX);
        let span = Span {
            file: Arc::clone(file),
            offset: self.position,
            length: usize::try_from(length).unwrap_or_default(),
        };
        self.position += length;
        span
    }

    async fn next_spilled(&mut self) -> Result<Option<Chunk>, Cut> {
        let Some(body) = self.spilled.as_mut() else { return Ok(None) };
        let chunk = body.chunk().await.map_err(|error| Cut(error.to_string().into()))?;
        let Some(mut bytes) = chunk else {
            return if self.end.is_none() {
                Ok(None)
            } else {
                Err(Cut("the mirror broke off".into()))
            };
        };
        if let Some(end) = self.end {
            bytes.truncate(usize::try_from(end - self.position).unwrap_or(usize::MAX));
        }
        self.position += bytes.len() as u64;
        Ok(Some(Chunk::Bytes(bytes)))
    }

    async fn ask_for_the_rest(&self) -> Result<mirror::Body, Cut> {
        let headers = resume_headers(self.position, &self.flow.meta)
            .ok_or_else(|| Cut("the volume is full, and the file can not be resumed".into()))?;
        let question = Question { headers, ..Question::default() };
        let answered = self.mirror.ask(&self.flow.source, &question).await;
        let answer = answered.map_err(|error| Cut(error.to_string().into()))?;
        let goes_on = match (self.position, answer.status.as_u16(), answer.part()) {
            (0, 200, _) => answer.framing() != Framing::Close,
            (position, 206, Some((first, total))) => {
                first == position && (total.is_some() || self.end.is_some())
            }
            _ => false,
        };
        if goes_on && !self.flow.meta.validators.contradict(&answer.validators()) {
            Ok(answer.body)
        } else {
            Err(Cut("the volume is full, and the mirror does not resume".into()))
        }
    }
}

/// Headers that ask for the rest of the version described by `meta`, and only of that one; `None`
/// if it has no mark that tells it from others.
pub(in crate::engine) fn resume_headers(position: u64, meta: &Meta) -> Option<HeaderMap> {
    let mut headers = range_of(position, None);
    if position > 0 {
        let mark = meta.validators.for_if_range()?;
        headers.insert(header::IF_RANGE, HeaderValue::try_from(mark).ok()?);
    }
    Some(headers)
}

/// Headers that ask for the rest of whatever version there is, up to byte `until` if that is enough.
pub(in crate::engine) fn range_of(position: u64, until: Option<u64>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let range = match until {
        Some(until) => format!("bytes={position}-{}", until.saturating_sub(1)),
        None => format!("bytes={position}-"),
    };
    if position > 0 || until.is_some() {
        headers.extend(HeaderValue::try_from(range).ok().map(|range| (header::RANGE, range)));
    }
    headers
}
