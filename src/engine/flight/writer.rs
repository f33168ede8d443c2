//! The blocking half of a transfer: hashes and writes what arrives, on threads where waiting for the
//! disk holds nobody else up, and tells the flight how far it has come. A transfer that waits for its
//! mirror holds no thread.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::content::digest::{Hasher, Verdict};
use crate::engine::flight::{Arriving, Flight, Progress};
use crate::engine::volume::promise::Staged;
use crate::index::budget;
use crate::store::{StoreError, WRITE_PATIENCE};

/// Chunks that may wait to be written: with a mirror's chunks of up to 64 kB, about a megabyte.
const WAITING_MAX: usize = 16;
/// What is held back of a body whose digest is known, until it is right. One byte would do to keep
/// the client from a complete answer; a little more keeps most of a small file back too.
pub(in crate::engine) const TAIL: u64 = 4096;

/// Bytes that are read at once of what another replica left.
const COPY_BUFFER: usize = 256 * 1024;
/// Bytes that are copied of it in one go, which has to come to its end within [`WRITE_PATIENCE`].
const COPIED_AT_ONCE: u64 = 16 * 1024 * 1024;

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

/// Why what another replica left is not gone on with.
pub(in crate::engine) enum NotTaken {
    /// It is not what it should be, or can not be read.
    Bytes(String),
    /// The volume does not take it, or says nothing.
    Volume(StoreError),
}

impl From<StoreError> for NotTaken {
    fn from(error: StoreError) -> Self {
        Self::Volume(error)
    }
}

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
            let (file, prefix) = (self.staged.stage.reader(), self.hasher.so_far());
            self.flight.advance(&file, self.staged.stage.size(), self.held_back, prefix);
        }
        Ok(self)
    }
}

impl Writer {
    /// Of a body that begins, or goes on: `hasher` has taken what is staged already.
    pub(in crate::engine) fn start(
        staged: Staged,
        hasher: Hasher,
        held_back: u64,
        flight: Arc<Flight>,
    ) -> Self {
        let (chunks, mut waiting) = mpsc::channel::<Bytes>(WAITING_MAX);
        let (file, name) = (staged.stage.reader(), staged.stage.name().into());
        flight.place(Arriving { file, name }, staged.stage.size(), held_back, hasher.so_far());
        let store = staged.store();
        let mut work = Work { staged, hasher, held_back, flight };
        #[expect(clippy::disallowed_methods, reason = "its transfer waits for it")]
        let finished = tokio::spawn(budget::inherited(async move {
            let mut batch = Vec::with_capacity(WAITING_MAX);
            while waiting.recv_many(&mut batch, WAITING_MAX).await > 0 {
                let chunks = std::mem::take(&mut batch);
                let coming: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
                work.staged.cover(work.staged.stage.size() + coming).await?;
                work = store.within(WRITE_PATIENCE, move || work.take(chunks)).await?;
            }
            Ok(Written { staged: work.staged, verdict: work.hasher.finish() })
        }));
        Self { chunks, finished }
    }

    /// Goes on with what has arrived of `flight` in the file of another replica, as far as it is what
    /// that one said: `hasher` has taken nothing yet. Tells how many bytes that are.
    ///
    /// # Errors
    /// When it is not, or the volume fails.
    pub(in crate::engine) async fn take_over(
        mut staged: Staged,
        mut hasher: Hasher,
        held_back: u64,
        flight: &Arc<Flight>,
    ) -> Result<(Self, u64), NotTaken> {
        // All of one moment: a writer before this one may not have ended yet.
        let Progress { arriving, written: size, prefix, .. } = flight.progress().borrow().clone();
        let Some(Arriving { file, .. }) = arriving else {
            return Err(NotTaken::Bytes("another replica left nothing".to_owned()));
        };
        staged.cover(size).await?;
        let store = staged.store();
        while staged.stage.size() < size {
            let (file, end) = (Arc::clone(&file), size.min(staged.stage.size() + COPIED_AT_ONCE));
            let copying = move || {
                let copied = copy(&file, &mut staged, &mut hasher, end);
                Ok(copied.map(|()| (staged, hasher)))
            };
            (staged, hasher) = store.within(WRITE_PATIENCE, copying).await??;
        }
        if hasher.so_far() != prefix {
            return Err(NotTaken::Bytes(
                "what another replica left is not what it said".to_owned(),
            ));
        }
        Ok((Self::start(staged, hasher, held_back, Arc::clone(flight)), size))
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

/// Copies what `file` has up to byte `end`, from where `staged` ends. Blocks.
fn copy(file: &File, staged: &mut Staged, hasher: &mut Hasher, end: u64) -> Result<(), NotTaken> {
    let mut buffer = vec![0; COPY_BUFFER];
    while staged.stage.size() < end {
        let left = usize::try_from(end - staged.stage.size()).unwrap_or(usize::MAX);
        let part = buffer.get_mut(..left.min(COPY_BUFFER)).unwrap_or_default();
        let read = file.read_exact_at(part, staged.stage.size());
        read.map_err(|error| NotTaken::Bytes(error.to_string()))?;
        hasher.update(part);
        staged.stage.append(part)?;
    }
    Ok(())
}
