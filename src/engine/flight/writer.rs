//! The blocking half of a transfer: hashes and writes what arrives, on threads where waiting for the
//! disk holds nobody else up, and tells the flight how far it has come. A transfer that waits for its
//! mirror holds no thread. What peers bring is written where it belongs; it is believed when the whole
//! has the right digest.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::content::digest::{Hasher, Sha256, Verdict};
use crate::engine::flight::gather::ahead::{Ahead, Judged};
use crate::engine::flight::gather::board::Giver;
use crate::engine::flight::{Arriving, Flight, Progress};
use crate::engine::volume::promise::Staged;
use crate::index::budget;
use crate::store::{Store, StoreError, WRITE_PATIENCE, read_staged};

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
    chunks: mpsc::Sender<Chunk>,
    proof: watch::Receiver<Proof>,
    finished: JoinHandle<Result<Written, StoreError>>,
}

/// Some bytes.
enum Chunk {
    /// Those that come next.
    Next(Bytes),
    /// Those of a peer, which belong there.
    Ahead { round: usize, at: u64, bytes: Bytes, giver: Giver },
}

impl Chunk {
    /// Where they end, the bytes that come next beginning at `next`.
    fn end(&self, next: &mut u64) -> u64 {
        match self {
            Self::Next(bytes) => {
                *next += bytes.len() as u64;
                *next
            }
            Self::Ahead { at, bytes, .. } => at + bytes.len() as u64,
        }
    }
}

/// What came of what peers brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) enum Proof {
    /// There is something missing.
    #[default]
    Missing,
    /// All was there, so many `times`, and it was wrong; last it was `by` these, and by the mirror up to
    /// byte `led`.
    Wrong { times: usize, by: Vec<Giver>, led: u64 },
    /// All is there, and right.
    Right,
}

/// A body that was written to its end.
pub(in crate::engine) struct Written {
    pub(in crate::engine) staged: Staged,
    pub(in crate::engine) verdict: Verdict,
    /// What turned out of those who brought it.
    pub(in crate::engine) givers: Judged,
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
    ahead: Ahead,
    /// How often all was there, and wrong.
    wrong: usize,
    /// Bytes of the whole, where peers bring some of it.
    size: Option<u64>,
}

impl Work {
    /// Blocks.
    fn take(mut self, chunks: Vec<Chunk>) -> Result<Self, StoreError> {
        for chunk in chunks {
            match chunk {
                Chunk::Next(bytes) => self.take_next(&bytes)?,
                // What was on its way when all turned out to be wrong does not count, either.
                Chunk::Ahead { round, .. } if round < self.wrong => {}
                Chunk::Ahead { at, bytes, giver, .. } => self.take_ahead(at, &bytes, giver)?,
            }
        }
        Ok(self)
    }

    fn take_next(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.staged.stage.append(bytes)?;
        self.tell();
        Ok(())
    }

    fn take_ahead(&mut self, at: u64, bytes: &[u8], giver: Giver) -> Result<(), StoreError> {
        let range = at..at + bytes.len() as u64;
        for wanted in self.ahead.wanted(&range, self.staged.stage.size()) {
            let place = |byte: u64| usize::try_from(byte - at).unwrap_or_default();
            let part = bytes.get(place(wanted.start)..place(wanted.end)).unwrap_or_default();
            self.staged.stage.write_ahead(wanted.start, part)?;
            self.ahead.add(wanted, giver);
        }
        Ok(())
    }

    fn tell(&self) {
        let (file, prefix) = (self.staged.stage.reader(), self.hasher.so_far());
        self.flight.advance(&file, self.staged.stage.size(), self.held_back, prefix);
    }

    /// Whether peers have brought all that the mirror has not.
    fn is_full(&self) -> bool {
        self.size.is_some_and(|size| self.ahead.is_full(self.staged.stage.size(), size))
    }

    /// Believes what peers have brought, if it is right: then who brought how much of it.
    async fn prove(
        mut self,
        store: &Arc<Store>,
    ) -> Result<(Self, Option<Vec<(Giver, u64)>>), StoreError> {
        let (led, size) = (self.staged.stage.size(), self.size.unwrap_or_default());
        let hasher = self.hashed(store, self.hasher.clone(), led..size).await?;
        if !hasher.clone().finish().as_expected {
            return Ok((self, None));
        }
        let proven = self.ahead.brought(led);
        self.hasher = hasher;
        self.staged.stage.extend_to(size);
        self.tell();
        Ok((self, Some(proven)))
    }

    /// All is there, and wrong: what each part of it is, is remembered.
    async fn dispute(&mut self, store: &Arc<Store>) -> Result<Proof, StoreError> {
        let led = self.staged.stage.size();
        let by = self.ahead.givers(led);
        self.wrong += 1;
        for part in self.ahead.clear() {
            let digest = self.digest(store, part.range.clone()).await?;
            self.ahead.dispute(part, digest);
        }
        Ok(Proof::Wrong { times: self.wrong, by, led })
    }

    /// To its end; `proven`: who brought how much of it.
    async fn end(
        mut self,
        store: &Arc<Store>,
        proven: Vec<(Giver, u64)>,
    ) -> Result<Written, StoreError> {
        let verdict = self.hasher.clone().finish();
        let mut culprits = Vec::new();
        let disputed = if verdict.as_expected { self.ahead.disputed() } else { Vec::new() };
        for (part, digest) in disputed {
            if !culprits.contains(&part.giver) && self.digest(store, part.range).await? != digest {
                culprits.push(part.giver);
            }
        }
        Ok(Written { staged: self.staged, verdict, givers: Judged { proven, culprits } })
    }

    /// The digest of a part that is there.
    async fn digest(&self, store: &Arc<Store>, range: Range<u64>) -> Result<Sha256, StoreError> {
        Ok(self.hashed(store, Hasher::new(None), range).await?.so_far())
    }

    /// Has `hasher` take a part that is there.
    async fn hashed(
        &self,
        store: &Arc<Store>,
        mut hasher: Hasher,
        range: Range<u64>,
    ) -> Result<Hasher, StoreError> {
        let mut at = range.start;
        while at < range.end {
            let (file, end) = (self.staged.stage.reader(), range.end.min(at + COPIED_AT_ONCE));
            let hashing = move || {
                read_staged(&file, at..end, |part| hasher.update(part))?;
                Ok(hasher)
            };
            hasher = store.within(WRITE_PATIENCE, hashing).await?;
            at = end;
        }
        Ok(hasher)
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
        Self::begin(staged, hasher, held_back, flight, None)
    }

    /// Of a body of `size` bytes of which peers may bring any part.
    pub(in crate::engine) fn gather(
        staged: Staged,
        hasher: Hasher,
        held_back: u64,
        flight: Arc<Flight>,
        size: u64,
    ) -> Self {
        Self::begin(staged, hasher, held_back, flight, Some(size))
    }

    fn begin(
        staged: Staged,
        hasher: Hasher,
        held_back: u64,
        flight: Arc<Flight>,
        size: Option<u64>,
    ) -> Self {
        let (chunks, mut waiting) = mpsc::channel::<Chunk>(WAITING_MAX);
        let (proved, proof) = watch::channel(Proof::default());
        let (file, name) = (staged.stage.reader(), staged.stage.name().into());
        flight.place(Arriving { file, name }, staged.stage.size(), held_back, hasher.so_far());
        let store = staged.store();
        let ahead = Ahead::default();
        let mut work = Work { staged, hasher, held_back, flight, ahead, wrong: 0, size };
        #[expect(clippy::disallowed_methods, reason = "its transfer waits for it")]
        let finished = tokio::spawn(budget::inherited(async move {
            let mut batch = Vec::with_capacity(WAITING_MAX);
            while waiting.recv_many(&mut batch, WAITING_MAX).await > 0 {
                let chunks = std::mem::take(&mut batch);
                let mut next = work.staged.stage.size();
                let end = chunks.iter().map(|chunk| chunk.end(&mut next)).max();
                work.staged.cover(end.unwrap_or_default()).await?;
                work = store.within(WRITE_PATIENCE, move || work.take(chunks)).await?;
                if !work.is_full() {
                    continue;
                }
                let brought;
                (work, brought) = work.prove(&store).await?;
                if let Some(proven) = brought {
                    proved.send_replace(Proof::Right);
                    return work.end(&store, proven).await;
                }
                proved.send_replace(work.dispute(&store).await?);
            }
            work.end(&store, Vec::new()).await
        }));
        Self { chunks, proof, finished }
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
        self.chunks.send(Chunk::Next(chunk)).await.map_err(|_| Stopped)
    }

    /// Takes bytes of a peer, which belong at byte `at`, and were asked for after all had been there and
    /// wrong so many times.
    pub(in crate::engine) async fn write_ahead(
        &self,
        round: usize,
        at: u64,
        bytes: Bytes,
        giver: Giver,
    ) -> Result<(), Stopped> {
        self.chunks.send(Chunk::Ahead { round, at, bytes, giver }).await.map_err(|_| Stopped)
    }

    /// Whether it takes no more: its `finish` tells why.
    pub(in crate::engine) fn has_stopped(&self) -> bool {
        self.chunks.is_closed()
    }

    /// What comes of what peers bring.
    pub(in crate::engine) fn proof(&self) -> watch::Receiver<Proof> {
        self.proof.clone()
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
