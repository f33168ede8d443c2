//! The blocking half of a transfer: hashes and writes what arrives, on threads where waiting for the
//! disk holds nobody else up, and tells the flight how far it has come. A transfer that waits for its
//! mirror holds no thread.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::content::digest::{Expected, Hasher, Verdict};
use crate::engine::flight::Flight;
use crate::engine::volume::room::Staged;
use crate::index::budget;
use crate::store::StoreError;

/// Chunks that may wait to be written: with a mirror's chunks of up to 64 kB, about a megabyte.
const WAITING_MAX: usize = 16;
/// What is held back of a body whose digest is known, until it is right. One byte would do to keep
/// the client from a complete answer; a little more keeps most of a small file back too.
pub(in crate::engine) const TAIL: u64 = 4096;

/// A running writer; it ends early when it is dropped.
pub(in crate::engine) struct Writer {
    chunks: mpsc::Sender<Bytes>,
    finished: JoinHandle<Result<Written, StoreError>>,
}

/// A body that was written to its end.
pub(in crate::engine) struct Written {
    pub(in crate::engine) staged: Staged,
    pub(in crate::engine) verdict: Verdict,
}

/// The writer stopped taking chunks: its `finish` tells why.
pub(in crate::engine) struct Stopped;

/// What passes from thread to thread.
struct Work {
    staged: Staged,
    hasher: Hasher,
    held_back: u64,
    flight: Arc<Flight>,
}

impl Work {
    /// Blocks.
    fn take(mut self, chunks: Vec<Bytes>) -> Result<Self, StoreError> {
        for chunk in chunks {
            self.hasher.update(&chunk);
            self.staged.stage.append(&chunk)?;
            self.flight.advance(self.staged.stage.size(), self.held_back);
        }
        Ok(self)
    }
}

impl Writer {
    pub(in crate::engine) fn start(
        staged: Staged,
        expected: Option<Expected>,
        flight: Arc<Flight>,
    ) -> Self {
        let (chunks, mut waiting) = mpsc::channel::<Bytes>(WAITING_MAX);
        let held_back = if expected.is_some() { TAIL } else { 0 };
        let mut work = Work { staged, hasher: Hasher::new(expected), held_back, flight };
        #[expect(clippy::disallowed_methods, reason = "its transfer waits for it")]
        let finished = tokio::spawn(budget::inherited(async move {
            let mut batch = Vec::with_capacity(WAITING_MAX);
            while waiting.recv_many(&mut batch, WAITING_MAX).await > 0 {
                let chunks = std::mem::take(&mut batch);
                let coming: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
                work.staged.cover(work.staged.stage.size() + coming).await?;
                work = spawn_blocking(move || work.take(chunks))
                    .await
                    .map_err(StoreError::interrupted)??;
            }
            Ok(Written { staged: work.staged, verdict: work.hasher.finish() })
        }));
        Self { chunks, finished }
    }

    pub(in crate::engine) async fn write(&self, chunk: Bytes) -> Result<(), Stopped> {
        self.chunks.send(chunk).await.map_err(|_| Stopped)
    }

    /// Waits for the last chunk to be written.
    pub(in crate::engine) async fn finish(self) -> Result<Written, StoreError> {
        drop(self.chunks);
        match self.finished.await {
            Ok(written) => written,
            Err(error) => Err(StoreError::interrupted(error)),
        }
    }
}
