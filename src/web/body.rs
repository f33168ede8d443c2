//! Bodies of answers, as hyper takes them.

use std::future::poll_fn;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::timeout;

use crate::engine::fellows::Passing;
use crate::engine::flight::follower::{Chunk, Cut, Follower, SPAN_MAX, Span};
use crate::engine::relayed::Relayed;
use crate::web::access::Access;
use crate::web::slots::Slot;
use crate::web::uplink::Uplink;
use crate::web::wire::{Spans, Wire};

/// What is held back of a file that is still to be proven, in bytes: what is held back of downloads.
const HELD_BACK: u64 = 4096;

/// What is read at once to have it in the page cache, in bytes.
const BUFFER: usize = 64 * 1024;
/// For how long a client waits for the next bytes of a file.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// For how long a file's last bytes are held back while it is hashed: apt gives up after 30 s.
const PROOF_PATIENCE: Duration = Duration::from_secs(25);

/// A body, whatever it comes from.
pub(super) struct AnswerBody {
    source: Source,
    /// A span that is being read into the page cache.
    reading: Option<Pin<Box<dyn Future<Output = io::Result<Chunk>> + Send>>>,
    spans: Spans,
    /// Whether hyper has all of it.
    is_whole: bool,
    /// The account of its request; a tunnel has it for itself.
    access: Option<Access>,
    /// Told when the body is done with.
    wire: Option<Wire>,
}

/// Where a body's bytes come from.
pub(super) enum Source {
    Empty,
    Bytes(Bytes),
    /// The rest of a file's part.
    File(FilePart),
    Stream(Pin<Box<dyn Stream<Item = Result<Chunk, Cut>> + Send>>),
    /// A body that warp made.
    Page(Pin<Box<dyn http_body::Body<Data = Bytes, Error = warp::Error> + Send + Sync>>),
}

/// Bytes of a stored file that are still to be sent.
pub(super) struct FilePart {
    pub(super) file: Arc<std::fs::File>,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Source {
    /// A flight's bytes, from where its follower stands.
    pub(super) fn flight(follower: Box<Follower>) -> Self {
        Self::Stream(Box::pin(futures_util::stream::unfold(Some(follower), |follower| async {
            let mut follower = follower?;
            match follower.next().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(follower))),
                Ok(None) => None,
                Err(cut) => Some((Err(cut), None)),
            }
        })))
    }

    /// A file's part, of which the last bytes go out only if it is `proven` by then.
    pub(super) fn unproven(
        mut part: FilePart,
        proven: impl Future<Output = bool> + Send + 'static,
    ) -> Self {
        let mut tail = part.split_off(HELD_BACK);
        let head = std::iter::from_fn(move || part.next().map(Chunk::Span).map(Ok));
        let rest = async move {
            let spans: Vec<_> = if timeout(PROOF_PATIENCE, proven).await.unwrap_or_default() {
                std::iter::from_fn(|| tail.next().map(Chunk::Span).map(Ok)).collect()
            } else {
                vec![Err(Cut("the stored file is bad".into()))]
            };
            futures_util::stream::iter(spans)
        };
        let rest = futures_util::stream::once(rest).flatten();
        Self::Stream(Box::pin(futures_util::stream::iter(head).chain(rest)))
    }

    /// A part of somebody else's file, who may change it meanwhile: read piece by piece, and the last
    /// piece goes out only if what was read is `proven` then.
    pub(super) fn shared(
        mut part: FilePart,
        proven: impl Future<Output = bool> + Send + 'static,
    ) -> Self {
        let spans = std::iter::from_fn(move || part.next());
        let state = (spans.peekable(), Some(Box::pin(proven)));
        Self::Stream(Box::pin(futures_util::stream::unfold(state, |(mut spans, proven)| async {
            let (span, proven) = (spans.next()?, proven?);
            let read = read(span).await;
            if read.is_err() || spans.peek().is_some() {
                return Some((read, (spans, Some(proven))));
            }
            let changed = || Err(Cut("a shared file changed, or is bad".into()));
            Some((
                if timeout(PROOF_PATIENCE, proven).await.unwrap_or_default() {
                    read
                } else {
                    changed()
                },
                (spans, None),
            ))
        })))
    }

    /// Bytes for another site: as fast as the line to others goes, while they have a slot.
    pub(super) fn given(self, slot: Slot, uplink: Arc<Uplink>) -> Self {
        let state = (self, None, Some(slot));
        Self::Stream(Box::pin(futures_util::stream::unfold(
            state,
            move |(mut source, rest, slot)| {
                let uplink = Arc::clone(&uplink);
                async move {
                    let slot = slot?;
                    if !slot.take_back() {
                        return Some((Err(Cut("took too long".into())), (source, None, None)));
                    }
                    let next = match rest {
                        Some(rest) => Ok(rest),
                        None => poll_fn(|context| source.poll_chunk(context)).await?,
                    };
                    let mut chunk = match next {
                        Ok(chunk) => chunk,
                        Err(error) => return Some((Err(error), (source, None, None))),
                    };
                    let length = uplink.turn(slot.peer(), chunk.length()).await;
                    let rest = chunk.split_off(length);
                    slot.hand_out();
                    Some((Ok(chunk), (source, rest, Some(slot))))
                }
            },
        )))
    }

    /// A fellow's bytes, for another site.
    pub(super) fn passing(passing: Passing) -> Self {
        Self::Stream(Box::pin(futures_util::stream::unfold(Some(passing), |passing| async {
            let mut passing = passing?;
            match passing.next().await {
                Ok(Some(bytes)) => Some((Ok(Chunk::Bytes(bytes)), Some(passing))),
                Ok(None) => None,
                Err(cut) => Some((Err(cut), None)),
            }
        })))
    }

    /// A mirror's bytes, as they come.
    pub(super) fn relay(relayed: Box<Relayed>) -> Self {
        Self::Stream(Box::pin(futures_util::stream::unfold(Some(relayed), |relayed| async {
            let mut relayed = relayed?;
            match relayed.next().await {
                Ok(Some(bytes)) => Some((Ok(Chunk::Bytes(bytes)), Some(relayed))),
                Ok(None) => None,
                Err(cut) => Some((Err(cut), None)),
            }
        })))
    }
}

impl Source {
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, Cut>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(Some(Ok(Chunk::Bytes(std::mem::take(bytes))))),
            Self::File(part) => Poll::Ready(part.next().map(Chunk::Span).map(Ok)),
            Self::Stream(stream) => stream.as_mut().poll_next(context),
            Self::Page(page) => page.as_mut().poll_frame(context).map(|frame| {
                let bytes = frame?.map(|frame| frame.into_data().unwrap_or_default());
                Some(bytes.map(Chunk::Bytes).map_err(|error| Cut(error.to_string().into())))
            }),
        }
    }
}

async fn read(span: Span) -> Result<Chunk, Cut> {
    let reading = in_time(move || {
        let mut bytes = vec![0; span.length];
        span.file.read_exact_at(&mut bytes, span.offset).map(|()| Chunk::Bytes(bytes.into()))
    });
    reading.await.map_err(|error| Cut(error.to_string().into()))
}

/// Has a span read into the page cache, so that sending it holds up no thread of the runtime.
async fn cached(span: Span) -> io::Result<Chunk> {
    in_time(move || {
        let (mut buffer, mut read) = (vec![0; BUFFER], 0);
        while read < span.length {
            let part = buffer.len().min(span.length - read);
            let part = buffer.get_mut(..part).unwrap_or_default();
            match span.file.read_at(part, span.offset + read as u64)? {
                // Cut short behind our back, which the sending finds out.
                0 => break,
                more => read += more,
            }
        }
        Ok(Chunk::Span(span))
    })
    .await
}

async fn in_time<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match timeout(READ_PATIENCE, tokio::task::spawn_blocking(work)).await {
        Ok(done) => done.map_err(io::Error::other)?,
        Err(_elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, "the volume says nothing")),
    }
}

impl AnswerBody {
    pub(super) fn new(source: Source, access: Option<Access>, wire: Wire) -> Self {
        Self {
            source,
            reading: None,
            spans: wire.spans(),
            is_whole: false,
            access,
            wire: Some(wire),
        }
    }

    fn note(&mut self, what: impl FnOnce(&mut Access)) {
        if let Some(access) = &mut self.access {
            what(access);
        }
    }

    /// The next bytes, of which those in files are in the page cache.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, io::Error>>> {
        if self.reading.is_none() {
            match ready!(self.source.poll_chunk(context))
                .map(|chunk| chunk.map_err(io::Error::other))
            {
                Some(Ok(Chunk::Span(span))) if !span.is_cached() => {
                    self.reading = Some(Box::pin(cached(span)));
                }
                chunk => return Poll::Ready(chunk),
            }
        }
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        let read = ready!(reading.as_mut().poll(context));
        self.reading = None;
        Poll::Ready(Some(read))
    }
}

impl FilePart {
    /// Leaves the last bytes, at most `length`, to another part.
    fn split_off(&mut self, length: u64) -> Self {
        let length = length.min(self.length);
        self.length -= length;
        Self { file: Arc::clone(&self.file), offset: self.offset + self.length, length }
    }

    fn next(&mut self) -> Option<Span> {
        let length = self.length.min(SPAN_MAX);
        let span = Span {
            file: Arc::clone(&self.file),
            offset: self.offset,
            length: usize::try_from(length).ok().filter(|&length| length > 0)?,
        };
        self.offset += length;
        self.length -= length;
        Some(span)
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.poll_chunk(context).map(|chunk| {
            let bytes = match chunk {
                Some(Ok(Chunk::Bytes(bytes))) => bytes,
                Some(Ok(Chunk::Span(span))) => self.spans.stand_in(span),
                Some(Err(error)) => {
                    self.note(|access| access.cut(error.to_string()));
                    return Some(Err(error));
                }
                None => {
                    self.is_whole = true;
                    return None;
                }
            };
            self.note(|access| access.send(bytes.len() as u64));
            Some(Ok(Frame::data(bytes)))
        })
    }

    fn is_end_stream(&self) -> bool {
        if self.reading.is_some() {
            return false;
        }
        match &self.source {
            Source::Empty => true,
            Source::Bytes(bytes) => bytes.is_empty(),
            Source::File(part) => part.length == 0,
            Source::Stream(_) => false,
            Source::Page(page) => page.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::File(part) => SizeHint::with_exact(part.length),
            Source::Stream(_) => SizeHint::default(),
            Source::Page(page) => page.size_hint(),
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        // hyper does not ask for what is known to be nothing, or not wanted.
        let is_whole = self.is_whole || self.is_end_stream();
        let access = self.access.take();
        if let Some(wire) = self.wire.take() {
            wire.end_answer(access, is_whole);
        }
    }
}
