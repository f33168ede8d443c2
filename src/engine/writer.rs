//! The blocking half of a transfer: hashes and writes what arrives, on a thread where waiting for
//! the disk holds nobody else up, and tells the flight how far it has come.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::content::digest::{Expected, Hasher, Verdict};
use crate::engine::flight::Flight;
use crate::store::{Stage, StoreError};

/// Chunks that may wait to be written: with a mirror's chunks of up to 64 kB, about a megabyte.
const WAITING_MAX: usize = 16;
/// What is held back of a body whose digest is known, until it is right. One byte would do to keep
/// the client from a complete answer; a little more keeps most of a small file back too.
pub(super) const TAIL: u64 = 4096;

/// A running writer.
pub(super) struct Writer {
    chunks: mpsc::Sender<Bytes>,
    finished: JoinHandle<Result<Written, StoreError>>,
}

/// A body that was written to its end.
pub(super) struct Written {
    pub(super) stage: Stage,
    pub(super) verdict: Verdict,
}

/// The writer stopped taking chunks: its `finish` tells why.
pub(super) struct Stopped;

impl Writer {
    pub(super) fn start(mut stage: Stage, expected: Option<Expected>, flight: Arc<Flight>) -> Self {
        let (chunks, mut waiting) = mpsc::channel::<Bytes>(WAITING_MAX);
        let held_back = if expected.is_some() { TAIL } else { 0 };
        let finished = tokio::task::spawn_blocking(move || {
            let mut hasher = Hasher::new(expected);
            while let Some(chunk) = waiting.blocking_recv() {
                hasher.update(&chunk);
                stage.append(&chunk)?;
                flight.advance(stage.size(), held_back);
            }
            Ok(Written { stage, verdict: hasher.finish() })
        });
        Self { chunks, finished }
    }

    pub(super) async fn write(&self, chunk: Bytes) -> Result<(), Stopped> {
        self.chunks.send(chunk).await.map_err(|_| Stopped)
    }

    /// Waits for the last chunk to be written.
    pub(super) async fn finish(self) -> Result<Written, StoreError> {
        drop(self.chunks);
        match self.finished.await {
            Ok(written) => written,
            Err(error) => Err(StoreError::interrupted(error)),
        }
    }
}
