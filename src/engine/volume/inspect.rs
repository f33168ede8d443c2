//! Telling good blobs from bad: their bytes are hashed, and what is not what its name says is removed
//! and forgotten, so that it is fetched anew.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntCounter;
use thiserror::Error;

use crate::content::digest::Sha256;
use crate::engine::memory::now_seconds;
use crate::engine::volume::moves::Moves;
use crate::engine::volume::pace::Pace;
use crate::index::{Entry, Index, IndexError};
use crate::store::{Blob, Reading, Store, StoreError};
use crate::telemetry::metrics::Metrics;

/// What the opening of a file costs, in bytes that could be read instead: a disk's seek.
const OPENING: u64 = 256 * 1024;
/// Bad blobs that could not be removed and are remembered: on a volume that can not be written.
const CONDEMNED_MAX: usize = 4096;

/// Inspects blobs.
pub struct Inspector {
    pub(in crate::engine) index: Arc<dyn Index>,
    pub(in crate::engine) store: Arc<Store>,
    moves: Arc<Moves>,
    condemned: Mutex<HashSet<Sha256>>,
    checked_bytes: IntCounter,
    bad_blobs: IntCounter,
}

/// What became of an inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Its bytes are what its name says: so many.
    Good(u64),
    /// They are not: removed and forgotten.
    Bad,
    /// There is no such file: forgotten.
    Gone,
}

/// Why a blob could not be inspected.
#[derive(Debug, Error)]
pub enum InspectError {
    /// The index failed.
    #[error("{0}: {cause}", cause = .0.source)]
    Index(#[from] IndexError),
    /// The volume failed.
    #[error("{0}: {cause}", cause = .0.source)]
    Store(#[from] StoreError),
}

impl Inspector {
    /// Inspects what `index` knows of `store`, and what it does not know.
    #[must_use]
    pub fn new(
        index: &Arc<dyn Index>,
        store: &Arc<Store>,
        moves: &Arc<Moves>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            index: Arc::clone(index),
            store: Arc::clone(store),
            moves: Arc::clone(moves),
            condemned: Mutex::default(),
            checked_bytes: metrics.counter(
                "aptmesh_store_checked_bytes_total",
                "Bytes of stored and shared files hashed to check them.",
            ),
            bad_blobs: metrics.counter(
                "aptmesh_store_bad_blobs_total",
                "Blobs that were found not to be what their name says.",
            ),
        }
    }

    /// Opens a blob and hashes it, as fast as it goes.
    ///
    /// # Errors
    /// When index or volume fail: nothing was removed.
    pub async fn inspect(&self, digest: &Sha256) -> Result<Finding, InspectError> {
        self.inspect_at(digest, &mut Pace::unbounded()).await
    }

    /// The same, at a pace.
    pub(in crate::engine) async fn inspect_at(
        &self,
        digest: &Sha256,
        pace: &mut Pace,
    ) -> Result<Finding, InspectError> {
        pace.spend(OPENING).await;
        let Some(blob) = self.open(digest).await? else {
            self.index.forget_blobs(&[*digest]).await?;
            return Ok(Finding::Gone);
        };
        if self.is_right(digest, &blob, pace).await? {
            self.note(digest, blob.size).await?;
            return Ok(Finding::Good(blob.size));
        }
        self.drop_bad(digest, &blob).await?;
        Ok(Finding::Bad)
    }

    async fn open(&self, digest: &Sha256) -> Result<Option<Blob>, StoreError> {
        let (store, digest) = (Arc::clone(&self.store), *digest);
        blocking(move || store.read(&digest)).await
    }

    /// Whether an open blob has the bytes that its name promises.
    pub(in crate::engine) async fn is_right(
        &self,
        digest: &Sha256,
        blob: &Blob,
        pace: &mut Pace,
    ) -> Result<bool, StoreError> {
        Ok(self.hash(blob, pace).await? == Some(*digest))
    }

    /// What an open file's bytes are; `None` if some can not be read.
    pub(in crate::engine) async fn hash(
        &self,
        blob: &Blob,
        pace: &mut Pace,
    ) -> Result<Option<Sha256>, StoreError> {
        let mut reading = Reading::of(blob);
        loop {
            let turn = pace.turn().await;
            let (on, read) = blocking(move || reading.step().map(|read| (reading, read))).await?;
            drop(turn);
            reading = on;
            if read == 0 {
                return Ok(reading.finish());
            }
            self.checked_bytes.inc_by(read as u64);
            pace.spend(read as u64).await;
        }
    }

    /// A blob was hashed and is right: the index knows it from now on, if it did not. Unless it went
    /// meanwhile.
    pub(in crate::engine) async fn note(
        &self,
        digest: &Sha256,
        size: u64,
    ) -> Result<(), InspectError> {
        if self.open(digest).await?.is_some() {
            self.index.add_blob(digest, size, now_seconds()).await?;
            self.index.blob_checked(digest, now_seconds()).await?;
        }
        Ok(())
    }

    /// Removes and forgets a bad blob. One that can not be removed is not served again.
    pub(in crate::engine) async fn drop_bad(
        &self,
        digest: &Sha256,
        blob: &Blob,
    ) -> Result<(), InspectError> {
        let leaving = self.moves.leave(vec![*digest]);
        if leaving.digests.is_empty() {
            // Evicted just now, or about to be replaced.
            return Ok(());
        }
        tracing::error!(%digest, "a stored blob is bad: it goes, and is fetched anew when asked for");
        self.bad_blobs.inc();
        let (store, name, opened) = (Arc::clone(&self.store), *digest, blob.clone());
        let removed = blocking(move || store.discard(&name, &opened)).await;
        if removed.is_err() {
            self.condemn(digest);
        }
        self.index.forget_blobs(&[*digest]).await?;
        Ok(removed.map(drop)?)
    }

    /// What lies on the volume under this name, whether the index knows it or not; still to be
    /// proven. A volume that fails has nothing.
    pub(in crate::engine) async fn on_volume(&self, digest: &Sha256) -> Option<Entry> {
        let blob = self.open(digest).await.ok().flatten()?;
        Some(Entry::nameless(*digest, blob.size))
    }

    fn condemn(&self, digest: &Sha256) {
        let mut condemned = self.condemned.lock().unwrap_or_else(PoisonError::into_inner);
        if condemned.len() < CONDEMNED_MAX {
            condemned.insert(*digest);
        }
    }

    /// Whether the blob on the volume is bad, and could not be removed.
    pub(in crate::engine) fn is_condemned(&self, digest: &Sha256) -> bool {
        self.condemned.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(StoreError::interrupted)?
}
