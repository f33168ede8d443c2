//! Telling good blobs from bad: their bytes are hashed, and what is not what its name says is removed
//! and forgotten, so that it is fetched anew.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{IntCounter, IntGauge};
use thiserror::Error;

use crate::content::digest::Sha256;
use crate::engine::memory::now_seconds;
use crate::engine::volume::adopt::Unadopted;
use crate::engine::volume::moves::{self, Moves};
use crate::engine::volume::pace::Pace;
use crate::index::{Entry, Index, IndexError};
use crate::store::{Blob, Reading, Stamp, Store, StoreError, WRITE_PATIENCE};
use crate::telemetry::metrics::Metrics;

/// What the opening of a file costs, in bytes that could be read instead: a disk's seek.
const OPENING: u64 = 256 * 1024;
/// Bad blobs that could not be removed and are remembered: on a volume that can not be written.
const CONDEMNED_MAX: usize = 4096;
/// Places in the index where it is looked whether the volume is there...
const SAMPLES: u8 = 8;
/// ...and blobs looked for at each.
const SAMPLE: usize = 8;

/// Inspects blobs.
pub struct Inspector {
    pub(in crate::engine) index: Arc<dyn Index>,
    pub(in crate::engine) store: Arc<Store>,
    moves: Arc<Moves>,
    pub(super) unadopted: Arc<Unadopted>,
    /// Each with the state of its file: another one under that name is none of them.
    condemned: Mutex<HashMap<Sha256, Stamp>>,
    is_volume_missing: Arc<AtomicBool>,
    pub(super) scrubbed_at: IntGauge,
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
    /// They are not, and the file can not be removed: forgotten, and not served.
    Stuck,
    /// It can not be told: left alone until its next turn.
    Unreadable,
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
    /// It is not the volume that the index knows.
    #[error(
        "most blobs of the index are not on the volume, which may not be mounted: nothing is forgotten; \
         if they are gone for good, remove the index"
    )]
    NoVolume,
}

impl Inspector {
    /// Inspects what `index` knows of `store`, and what it does not know.
    #[must_use]
    pub fn new(
        index: &Arc<dyn Index>,
        store: &Arc<Store>,
        moves: &Arc<Moves>,
        unadopted: &Arc<Unadopted>,
        metrics: &Metrics,
    ) -> Self {
        let is_volume_missing = Arc::<AtomicBool>::default();
        let (volume, is_missing) = (Arc::clone(store), Arc::clone(&is_volume_missing));
        metrics.gauge_of(
            "aptmesh_store_up",
            "1 if the volume takes new blobs and has those that the index knows, 0 while it is in trouble or \
             seems not to be mounted.",
            move || {
                let is_well = volume.health().trouble().is_none();
                (is_well && !is_missing.load(Ordering::Relaxed)).into()
            },
        );
        Self {
            index: Arc::clone(index),
            store: Arc::clone(store),
            moves: Arc::clone(moves),
            unadopted: Arc::clone(unadopted),
            condemned: Mutex::default(),
            is_volume_missing,
            scrubbed_at: metrics.gauge(
                "aptmesh_store_scrubbed_at_seconds",
                "All that is stored was hashed since then, in seconds since 1970, as told by the process that \
                 checks it; 0 at others.",
            ),
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

    /// Opens a blob and hashes it, as fast as it goes. What can not be read or removed is a finding:
    /// others may be well.
    ///
    /// # Errors
    /// When the index fails, or the volume is not there: nothing was removed.
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
        match self.look_into(digest, pace).await {
            Err(InspectError::Store(error)) => {
                tracing::warn!(%digest, %error, source = %error.source, "a blob can not be read");
                self.index.blob_checked(digest, now_seconds()).await?;
                Ok(Finding::Unreadable)
            }
            found => found,
        }
    }

    async fn look_into(&self, digest: &Sha256, pace: &mut Pace) -> Result<Finding, InspectError> {
        let Some(blob) = self.open(digest).await? else {
            self.forget_missing(&[*digest]).await?;
            return Ok(Finding::Gone);
        };
        if self.is_right(digest, &blob, pace).await? {
            self.note(digest, blob.size).await?;
            return Ok(Finding::Good(blob.size));
        }
        match self.drop_bad(digest, &blob).await {
            Err(InspectError::Store(error)) => {
                tracing::warn!(%digest, %error, source = %error.source, "a bad blob can not be removed");
                Ok(Finding::Stuck)
            }
            dropped => dropped.map(|()| Finding::Bad),
        }
    }

    /// Forgets those of these blobs that the volume does not have, at a look while none of them can
    /// arrive; how many. Unless it is the volume that is missing.
    ///
    /// # Errors
    /// When the index fails, or the volume is not there.
    pub async fn forget_missing(&self, digests: &[Sha256]) -> Result<u64, InspectError> {
        let leaving = self.moves.leave(digests.to_vec());
        let missing = self.missing(leaving.digests.clone()).await?;
        if missing.is_empty() {
            return Ok(0);
        }
        self.ensure_volume().await?;
        moves::forget(&*self.index, &self.store, &missing).await?;
        Ok(missing.len() as u64)
    }

    /// Whether the volume is the one that the index knows, as far as some blobs tell: a folder on
    /// which nothing is mounted has none of them, or what was fetched since.
    ///
    /// # Errors
    /// When it is not, or the index fails.
    pub async fn ensure_volume(&self) -> Result<(), InspectError> {
        let mut known = Vec::new();
        for first in (0..=u8::MAX).step_by(usize::from(u8::MAX / SAMPLES) + 1) {
            let page = self.index.blobs_after(before(first), SAMPLE).await?;
            known.extend(page.iter().map(|blob| (blob.digest, blob.stored_at)));
        }
        known.sort_unstable_by_key(|(digest, _)| *digest.as_bytes());
        known.dedup();
        let missing = self.missing(known.iter().map(|(digest, _)| *digest).collect()).await?;
        let store = Arc::clone(&self.store);
        let made_at = self.store.look(move || Ok(store.made_at())).await?;
        // What was stored before there was this folder was stored elsewhere.
        let is_elsewhere = |(digest, stored_at): &(Sha256, i64)| {
            made_at.is_some_and(|made_at| *stored_at < made_at) && missing.contains(digest)
        };
        let is_missing = missing.len() > known.len() / 2 || known.iter().any(is_elsewhere);
        let was_missing = self.is_volume_missing.swap(is_missing, Ordering::Relaxed);
        match (is_missing, was_missing) {
            (false, false) => return Ok(()),
            (false, true) => {
                tracing::info!("the volume is there again");
                // What lay on it meanwhile was not looked at.
                self.unadopted.look_again();
                return Ok(());
            }
            (true, true) => {}
            (true, false) => tracing::error!("{}", InspectError::NoVolume),
        }
        Err(InspectError::NoVolume)
    }

    /// Whether it was not, at the last look.
    #[must_use]
    pub fn is_volume_missing(&self) -> bool {
        self.is_volume_missing.load(Ordering::Relaxed)
    }

    async fn missing(&self, mut digests: Vec<Sha256>) -> Result<Vec<Sha256>, StoreError> {
        let store = Arc::clone(&self.store);
        let looking = self.store.look(move || {
            digests.retain(|digest| matches!(store.read(digest), Ok(None)));
            Ok(digests)
        });
        looking.await
    }

    /// The blob on the volume, whether the index knows it or not.
    pub(in crate::engine) async fn open(
        &self,
        digest: &Sha256,
    ) -> Result<Option<Blob>, StoreError> {
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

    /// Tells the index what is stored of `key`, late: unless it went meanwhile.
    pub(in crate::engine) async fn record_late(
        &self,
        key: &str,
        entry: &Entry,
    ) -> Result<(), InspectError> {
        let _arriving = self.moves.arrive(entry.blob).await;
        if self.open(&entry.blob).await?.is_some() {
            self.index.record_late(key, entry).await?;
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
        let removed =
            self.store.within(WRITE_PATIENCE, move || store.discard(&name, &opened)).await;
        if removed.is_err() {
            self.condemn(digest, blob);
            self.index.forget_blobs(&[*digest]).await?;
        } else {
            moves::forget(&*self.index, &self.store, &[*digest]).await?;
        }
        Ok(removed.map(drop)?)
    }

    /// What lies on the volume under this name, whether the index knows it or not; still to be
    /// proven. A volume that fails has nothing.
    pub(in crate::engine) async fn on_volume(&self, digest: &Sha256) -> Option<Entry> {
        let (store, name) = (Arc::clone(&self.store), *digest);
        let blob = self.store.look(move || store.read(&name)).await.ok().flatten()?;
        Some(Entry::nameless(*digest, blob.size))
    }

    fn condemn(&self, digest: &Sha256, blob: &Blob) {
        let mut condemned = self.condemned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(stamp) = blob.stamp()
            && condemned.len() < CONDEMNED_MAX
        {
            condemned.insert(*digest, stamp);
        }
    }

    /// Whether the blob on the volume, opened just now, is bad and could not be removed.
    pub(in crate::engine) fn is_condemned(&self, digest: &Sha256, blob: &Blob) -> bool {
        let mut condemned = self.condemned.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stamp) = condemned.get(digest) else { return false };
        let is_same = blob.stamp().is_ok_and(|now| now == *stamp);
        if !is_same {
            condemned.remove(digest);
        }
        is_same
    }
}

/// The last digest that does not begin with `first` or a later byte.
pub(super) fn before(first: u8) -> Option<Sha256> {
    Sha256::from_bytes(&[&[first.checked_sub(1)?][..], &[u8::MAX; 31]].concat())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(StoreError::interrupted)?
}
