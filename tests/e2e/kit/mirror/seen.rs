//! What a mirror remembers of the requests that it got.

use super::asked::{Asked, path_of};
use crate::kit::{Headers, find_header};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};
use std::time::Instant;

/// One request, as it was when the log was read.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// The target as received.
    pub path: String,
    pub headers: Headers,
    pub arrived: Instant,
    /// The status sent; 0 while there is none.
    pub status: u16,
    /// Body bytes handed to the network so far.
    pub body_bytes: u64,
    /// A body was begun, even if no byte of it was sent.
    pub body_begun: bool,
    /// The whole answer was written.
    pub finished: bool,
    /// Still being answered.
    pub open: bool,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }
}

/// One request while it is being answered.
pub struct Entry {
    pub method: String,
    pub path: String,
    target: String,
    headers: Headers,
    arrived: Instant,
    status: AtomicU16,
    body_bytes: AtomicU64,
    body_begun: AtomicBool,
    finished: AtomicBool,
    open: AtomicBool,
}

impl Entry {
    pub fn new(asked: &Asked) -> Self {
        Self {
            method: asked.method.clone(),
            path: path_of(&asked.target),
            target: asked.target.clone(),
            headers: asked.headers.clone(),
            arrived: Instant::now(),
            status: AtomicU16::new(0),
            body_bytes: AtomicU64::new(0),
            body_begun: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            open: AtomicBool::new(true),
        }
    }

    pub fn begin(&self, status: u16) {
        self.status.store(status, SeqCst);
    }

    pub fn begin_body(&self) {
        self.body_begun.store(true, SeqCst);
    }

    pub fn wrote(&self, count: usize) {
        self.body_bytes.fetch_add(count as u64, SeqCst);
    }

    pub fn finish(&self) {
        self.finished.store(true, SeqCst);
    }

    pub fn close(&self) {
        self.open.store(false, SeqCst);
    }

    pub fn seen(&self) -> Seen {
        Seen {
            method: self.method.clone(),
            path: self.target.clone(),
            headers: self.headers.clone(),
            arrived: self.arrived,
            status: self.status.load(SeqCst),
            body_bytes: self.body_bytes.load(SeqCst),
            body_begun: self.body_begun.load(SeqCst),
            finished: self.finished.load(SeqCst),
            open: self.open.load(SeqCst),
        }
    }
}
