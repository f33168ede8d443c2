//! A client's socket, as hyper sees it. Beyond carrying bytes it does two things that a proxy needs
//! and hyper does not have:
//!
//! - It reads ahead, within a bound, while an answer is being sent, so that the requests behind it
//!   are known; and it notices when the client leaves.
//! - It sends parts of files with `sendfile(2)`. hyper only takes bytes in memory: a body gives it
//!   a stretch of [`STAND_IN`], never read, of the same length, and puts the [`Span`] it stands for
//!   in the [`Spans`] queue. What is written in order comes out in order, so the stand-in's nth byte
//!   is the queue's nth byte; its address tells it from other bytes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::rt::ReadBufCursor;
use rustix::net::SendFlags;
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::engine::flight::follower::{SPAN_MAX, Span};
use crate::web::access::Access;
use crate::web::heads::{Head, Heads};

/// Bytes read ahead of what hyper has taken: more than ten of apt's requests.
const AHEAD_MAX: usize = 16 * 1024;
/// What one read may add.
const READ_MAX: usize = 4 * 1024;
/// Answers that hyper holds at a time: few, since it takes up no further one with a body while it has bytes of
/// another. Of those beyond it is told that their clients left.
const UNSENT_MAX: usize = 64;
/// Heads found ahead of their turn and not yet begun; those beyond are merely not begun early.
const WAITING_MAX: usize = 64;

#[expect(clippy::cast_possible_truncation, reason = "a constant of 256 kB")]
static STAND_IN: [u8; SPAN_MAX as usize] = [0; SPAN_MAX as usize];

/// Spans whose stand-ins are on their way through hyper.
#[derive(Clone, Default)]
pub(super) struct Spans(Arc<Mutex<VecDeque<Span>>>);

impl Spans {
    /// Puts a span in the queue; gives what stands in for it.
    pub(super) fn stand_in(&self, span: Span) -> Bytes {
        let bytes = STAND_IN.get(..span.length).unwrap_or_default();
        self.lock().push_back(span);
        Bytes::from_static(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Span>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The socket. Clones share it.
#[derive(Clone)]
pub(super) struct Wire {
    spans: Spans,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    stream: TcpStream,
    ahead: BytesMut,
    heads: Heads,
    /// Heads behind the one that is being answered, oldest first.
    waiting: VecDeque<Head>,
    /// Heads in `waiting` or skipped, of which the request has not been taken up by hyper.
    behind: usize,
    at_end: bool,
    /// Whether an answer is being made or sent.
    busy: bool,
    /// Since when the client's window has been full.
    blocked_since: Option<Instant>,
    /// Accounts of answers that hyper has all of, and the kernel does not yet.
    unsent: Vec<Access>,
    /// Why what was promised can not be sent, where that is not for the client.
    fault: Option<String>,
}

impl Wire {
    /// The socket, of which these bytes were read before.
    pub(super) fn new(stream: TcpStream, read: &[u8]) -> Self {
        let mut inner = Inner {
            stream,
            ahead: BytesMut::new(),
            heads: Heads::default(),
            waiting: VecDeque::new(),
            behind: 0,
            at_end: false,
            busy: false,
            blocked_since: None,
            unsent: Vec::new(),
            fault: None,
        };
        inner.take_in(read);
        Self { spans: Spans::default(), inner: Arc::new(Mutex::new(inner)) }
    }

    pub(super) fn spans(&self) -> Spans {
        self.spans.clone()
    }

    /// Reads what has come while an answer is under way. Ready when the client has left, or will
    /// send no more, which hyper takes for the same.
    pub(super) fn poll_left(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        while inner.busy && !inner.at_end && inner.ahead.len() < AHEAD_MAX {
            match inner.poll_fill(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => inner.at_end = true,
                Poll::Pending => break,
            }
        }
        if inner.busy && inner.at_end { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Since when the client has taken nothing of what is there for it.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.lock().blocked_since
    }

    /// The next head that was found ahead of its turn.
    pub(super) fn next_head(&self) -> Option<Head> {
        self.lock().waiting.pop_front()
    }

    /// hyper has taken up the request for `target`.
    pub(super) fn begin_answer(&self, target: &str) {
        let mut inner = self.lock();
        inner.busy = true;
        inner.behind = inner.behind.saturating_sub(1);
        if let Some(at) = inner.waiting.iter().position(|head| head.target == target) {
            inner.waiting.drain(..=at);
        }
    }

    /// Whether an answer is being made or sent.
    pub(super) fn is_busy(&self) -> bool {
        self.lock().busy
    }

    /// Whether requests wait behind the one that is being answered, as far as was read.
    pub(super) fn has_more(&self) -> bool {
        self.lock().behind > 0
    }

    /// Reads on, and away with it, until the client has hung up: to close a socket with bytes in it
    /// would take back what was sent before (RFC 9112 §9.6).
    pub(super) async fn linger(&self) {
        std::future::poll_fn(|context| {
            let mut inner = self.lock();
            while !inner.at_end {
                if ready!(inner.poll_fill(context)).is_err() {
                    break;
                }
                inner.ahead.clear();
            }
            Poll::Ready(())
        })
        .await;
    }

    /// hyper has done with an answer: it has all of it, or the connection ends. The account of one that is whole
    /// is closed when the kernel has it; if that does not come, the client has left.
    pub(super) fn end_answer(&self, access: Option<Access>, is_whole: bool) {
        let mut inner = self.lock();
        inner.busy = false;
        let Some(mut access) = access else { return };
        if is_whole || access.has_sent_all() {
            if inner.unsent.len() < UNSENT_MAX {
                inner.unsent.push(access);
            }
        } else if let Some(fault) = &inner.fault {
            access.cut(fault.clone());
        }
    }

    /// Why what was promised could not be sent, where that was not for the client.
    pub(super) fn fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Reads once. At the end of the stream `at_end` is set.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ_MAX];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(tokio::io::AsyncRead::poll_read(Pin::new(&mut self.stream), context, &mut buffer))?;
        let read = buffer.filled();
        if read.is_empty() {
            self.at_end = true;
        }
        self.take_in(read);
        Poll::Ready(Ok(()))
    }

    /// Keeps what came, and looks for heads in it.
    fn take_in(&mut self, read: &[u8]) {
        self.ahead.extend_from_slice(read);
        // The first head after an answer's end is taken up at once: there is nothing to hint at.
        let (busy, behind, waiting) = (self.busy, &mut self.behind, &mut self.waiting);
        self.heads.take(read, |head| {
            let has_turn = !busy && *behind == 0;
            *behind += 1;
            if let (Some(head), false, true) = (head, has_turn, waiting.len() < WAITING_MAX) {
                waiting.push_back(head);
            }
        });
    }

    /// Sends bytes from memory. `more` says that others follow at once, so that the kernel does not
    /// send a small packet.
    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
        more: bool,
    ) -> Poll<io::Result<usize>> {
        let flags = SendFlags::NOSIGNAL | if more { SendFlags::MORE } else { SendFlags::empty() };
        self.poll_write_with(context, |stream| {
            let mut control = rustix::net::SendAncillaryBuffer::default();
            Ok(rustix::net::sendmsg(stream, bytes, &mut control, flags)?)
        })
    }

    /// Sends from a file.
    fn poll_send_file(
        &mut self,
        context: &mut Context<'_>,
        span: &Span,
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(self.poll_write_with(context, |stream| {
            let mut offset = span.offset;
            Ok(rustix::fs::sendfile(stream, &span.file, Some(&mut offset), span.length)?)
        }))?;
        if sent == 0 {
            // Cut short behind our back: the connection must break, not the length lie.
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Poll::Ready(Ok(sent))
    }

    /// It is not the client that ends the connection.
    fn fail(&mut self, reason: String) {
        for mut access in self.unsent.drain(..) {
            access.cut(reason.clone());
        }
        self.fault = Some(reason);
    }

    fn poll_write_with(
        &mut self,
        context: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.stream.poll_write_ready(context)?.is_pending() {
                self.blocked_since.get_or_insert_with(Instant::now);
                return Poll::Pending;
            }
            match self.stream.try_io(Interest::WRITABLE, || write(&self.stream)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    self.blocked_since = None;
                    return Poll::Ready(result);
                }
            }
        }
    }
}

impl hyper::rt::Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        if inner.ahead.is_empty() && !inner.at_end {
            ready!(inner.poll_fill(context))?;
        }
        let length = inner.ahead.len().min(buffer.remaining());
        buffer.put_slice(inner.ahead.get(..length).unwrap_or_default());
        inner.ahead.advance(length);
        if inner.ahead.is_empty() {
            // An idle connection holds no buffer.
            inner.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        let in_memory = buffers.iter().take_while(|buffer| !is_stand_in(buffer)).count();
        let (bytes, rest) = buffers.split_at(in_memory);
        let length: usize = bytes.iter().map(|buffer| buffer.len()).sum();
        let more = !rest.is_empty();
        let mut sent = 0;
        if length > 0 || !more {
            sent = ready!(inner.poll_send(context, bytes, more))?;
        }
        if sent < length || !more {
            return Poll::Ready(Ok(sent));
        }
        match self.poll_send_spans(&mut inner, context) {
            // What went out from memory is reported first; the span's turn comes again.
            Poll::Pending | Poll::Ready(Err(_)) if sent > 0 => Poll::Ready(Ok(sent)),
            Poll::Ready(Ok(from_file)) => Poll::Ready(Ok(sent + from_file)),
            pending_or_error => pending_or_error,
        }
    }

    /// hyper flushes when the kernel has taken all that it was given.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = std::mem::take(&mut self.lock().unsent);
        for mut access in sent {
            access.complete();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut inner.stream), context)
    }
}

impl Wire {
    /// Sends from the queue's first span, of which the stand-in's turn has come.
    fn poll_send_spans(
        &self,
        inner: &mut Inner,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut spans = self.spans.lock();
        let Some(span) = spans.front_mut() else {
            return Poll::Ready(Err(io::Error::other("a stand-in without its span")));
        };
        let sent = ready!(inner.poll_send_file(context, span)).inspect_err(|error| {
            if !is_clients(error.kind()) {
                inner.fail(format!("the file could not be read: {error}"));
            }
        })?;
        span.offset += sent as u64;
        span.length = span.length.saturating_sub(sent);
        if span.length == 0 {
            spans.pop_front();
        }
        Poll::Ready(Ok(sent))
    }
}

/// Whether a socket that fails so has lost its client.
pub(super) fn is_clients(error: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkUnreachable,
        NotConnected, TimedOut,
    };
    matches!(
        error,
        BrokenPipe
            | ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | NetworkUnreachable
            | NotConnected
            | TimedOut
    )
}

fn is_stand_in(bytes: &[u8]) -> bool {
    STAND_IN.as_ptr_range().contains(&bytes.as_ptr())
}
