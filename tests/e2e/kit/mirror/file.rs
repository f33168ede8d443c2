//! What a mirror has at a path, and how it hands it out.

use crate::kit::Headers;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// 2024-01-02 00:00:00 UTC: when a file changed unless a test says otherwise.
pub const FIXED_DATE: u64 = 1_704_153_600;

/// How the end of a body is announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    Length,
    Chunked,
    UntilClose,
}

/// The content of a path and the manners of the server that serves it.
#[derive(Clone, Debug)]
pub struct File {
    pub(super) bytes: Arc<[u8]>,
    pub(super) modified: Option<SystemTime>,
    pub(super) etag: Option<String>,
    pub(super) content_type: String,
    pub(super) content_encoding: Option<String>,
    pub(super) rate: Option<u64>,
    pub(super) head_delay: Duration,
    pub(super) framing: Framing,
    pub(super) http10: bool,
    pub(super) close: bool,
    pub(super) ranges: bool,
    pub(super) if_ranges: bool,
    pub(super) extra: Headers,
}

impl File {
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self {
            bytes: bytes.into(),
            modified: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(FIXED_DATE)),
            etag: None,
            content_type: "application/octet-stream".to_owned(),
            content_encoding: None,
            rate: None,
            head_delay: Duration::ZERO,
            framing: Framing::Length,
            http10: false,
            close: false,
            ranges: true,
            if_ranges: true,
            extra: Headers::new(),
        }
    }

    pub fn last_modified(mut self, date: SystemTime) -> Self {
        self.modified = Some(date);
        self
    }

    /// With its quotes: `"\"x\""`.
    pub fn etag(mut self, etag: &str) -> Self {
        self.etag = Some(etag.to_owned());
        self
    }

    /// Neither Last-Modified nor ETag.
    pub fn no_validators(mut self) -> Self {
        self.modified = None;
        self.etag = None;
        self
    }

    /// A header field to the letter, besides (not instead of) the usual ones.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.extra.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn content_type(mut self, kind: &str) -> Self {
        self.content_type = kind.to_owned();
        self
    }

    /// Only the header: the bytes stay as they are.
    pub fn content_encoding(mut self, coding: &str) -> Self {
        self.content_encoding = Some(coding.to_owned());
        self
    }

    /// Sends the body evenly at this speed.
    pub fn rate(mut self, bytes_per_second: u64) -> Self {
        self.rate = Some(bytes_per_second);
        self
    }

    /// Thinks that long before each answer.
    pub fn head_delay(mut self, delay: Duration) -> Self {
        self.head_delay = delay;
        self
    }

    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// No Content-Length: the body ends where the connection does.
    pub fn unsized_(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self
    }

    /// Answers like a server of 1996, one request a connection.
    pub fn http10(mut self) -> Self {
        self.http10 = true;
        self
    }

    /// `Connection: close` with every answer.
    pub fn close_each(mut self) -> Self {
        self.close = true;
        self
    }

    /// Answers requests for a range with a part of whatever there is, without regard to If-Range.
    pub fn ignore_if_range(mut self) -> Self {
        self.if_ranges = false;
        self
    }

    /// Answers requests for a range with the whole file.
    pub fn ignore_range(mut self) -> Self {
        self.ranges = false;
        self
    }
}
