//! What memory knows: stored resources that were asked for lately, with their files open and small
//! ones read. A warm hit asks neither the index nor the disk.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::content::digest::Sha256;
use crate::engine::plan::Standing;
use crate::engine::volume::proof::{Proof, Soundness};
use crate::engine::volume::uses::Counter;
use crate::index::Entry;
use crate::store::Blob;
use crate::telemetry::metrics::Metrics;

/// Blobs up to this size are held in memory, in bytes: below it, opening and reading a file costs
/// more than sending it.
const SMALL_MAX: u64 = 32 * 1024;
/// Resources held; each holds a file open.
const ENTRIES_MAX: u64 = 2048;
/// Bytes of small blobs held.
const BYTES_MAX: u64 = 24 * 1024 * 1024;
/// What an entry without bytes weighs, so that both bounds hold.
const ENTRY_WEIGHT: u64 = BYTES_MAX / ENTRIES_MAX;

/// A stored resource, ready to be served.
#[derive(Debug)]
pub struct Known {
    /// What the index knows of it.
    pub entry: Entry,
    /// Its bytes.
    pub blob: Blob,
    /// Its bytes once more, where they are few.
    pub small: Option<Bytes>,
    /// Whether they are what they should be.
    pub proof: Arc<Proof>,
    /// Its uses.
    pub(super) uses: Arc<Counter>,
    /// Milliseconds since 1970.
    confirmed_at: AtomicI64,
    /// Milliseconds since 1970: the mirror failed to confirm it then.
    failed_at: AtomicI64,
    /// The state of knowledge against which it was last checked; see [`Known::is_checked`].
    checked_against: AtomicU64,
}

impl Known {
    /// Joins what the index and the store know; that a large blob is right is still to be proven. A
    /// small one is read and checked: blocks.
    ///
    /// # Errors
    /// When a small blob can not be read in full; as [`ErrorKind::InvalidData`], when it is bad.
    pub fn load(entry: Entry, blob: Blob) -> io::Result<Self> {
        let small = if blob.size <= SMALL_MAX {
            let mut bytes = vec![0; usize::try_from(blob.size).unwrap_or_default()];
            blob.file.read_exact_at(&mut bytes, 0)?;
            if Sha256::of(&bytes) != entry.blob {
                return Err(ErrorKind::InvalidData.into());
            }
            Some(Bytes::from(bytes))
        } else {
            None
        };
        let confirmed_at = AtomicI64::new(entry.checked_at.saturating_mul(1000));
        let uses = Counter::new(entry.blob);
        Ok(Self {
            entry,
            blob,
            small,
            proof: Proof::open(),
            uses,
            confirmed_at,
            failed_at: AtomicI64::new(0),
            checked_against: AtomicU64::new(0),
        })
    }

    /// The same for a blob that was hashed as it was written.
    ///
    /// # Errors
    /// As those of [`Known::load`].
    pub fn load_new(entry: Entry, blob: Blob) -> io::Result<Self> {
        let proof = Proof::of_new(&blob);
        Ok(Self { proof, ..Self::load(entry, blob)? })
    }

    /// The same for a file of a shared folder.
    ///
    /// # Errors
    /// As those of [`Known::load`].
    pub fn load_shared(entry: Entry, blob: Blob) -> io::Result<Self> {
        Ok(Self { proof: Proof::of_shared(), ..Self::load(entry, blob)? })
    }

    /// Whether its bytes still are what they should be, as far as can be told at once.
    pub(super) fn soundness(&self) -> Soundness {
        if self.small.is_some() {
            return Soundness::Proven;
        }
        self.proof.soundness(&self.blob, self.entry.size)
    }

    /// The same bytes under another description.
    #[must_use]
    pub fn described_anew(&self, entry: Entry) -> Self {
        let confirmed_at = AtomicI64::new(entry.checked_at.saturating_mul(1000));
        let (blob, small) = (self.blob.clone(), self.small.clone());
        let (proof, uses) = (Arc::clone(&self.proof), Arc::clone(&self.uses));
        let (failed_at, checked_against) = (AtomicI64::new(0), AtomicU64::new(0));
        Self { entry, blob, small, proof, uses, confirmed_at, failed_at, checked_against }
    }

    /// The mirror confirmed it just now.
    pub fn confirm(&self) {
        self.confirmed_at.store(now_millis(), Ordering::Relaxed);
    }

    /// Another replica had it confirmed then; seconds since 1970.
    pub fn confirm_at(&self, seconds: i64) {
        self.confirmed_at.fetch_max(seconds.saturating_mul(1000), Ordering::Relaxed);
    }

    /// When a mirror last gave or confirmed it; seconds since 1970.
    #[must_use]
    pub fn confirmed_at(&self) -> i64 {
        self.confirmed_at.load(Ordering::Relaxed) / 1000
    }

    /// The mirror could not be asked just now.
    pub fn fail(&self) {
        self.failed_at.store(now_millis(), Ordering::Relaxed);
    }

    /// How well what was confirmed then (seconds since 1970) stands, as far as that tells.
    #[must_use]
    pub fn standing_of(confirmed_at: i64, window: Duration) -> Standing {
        let age = u64::try_from(now_seconds() - confirmed_at).unwrap_or_default();
        if Duration::from_secs(age) < window { Standing::Confirmed } else { Standing::Old }
    }

    /// Whether it was checked against what lists say, `knowledge` being the number of times that
    /// something was learnt.
    #[must_use]
    pub fn is_checked(&self, knowledge: u64) -> bool {
        self.checked_against.load(Ordering::Relaxed) == knowledge
    }

    /// It is what lists say, at this state of knowledge.
    pub fn mark_checked(&self, knowledge: u64) {
        self.checked_against.store(knowledge, Ordering::Relaxed);
    }

    /// How well it stands, `window` being for how long one confirmation answers all.
    #[must_use]
    pub fn standing(&self, window: Duration) -> Standing {
        let now = now_millis();
        let lately = |at: &AtomicI64| {
            let age = now.saturating_sub(at.load(Ordering::Relaxed));
            u64::try_from(age).is_ok_and(|age| Duration::from_millis(age) < window)
        };
        if lately(&self.confirmed_at) {
            Standing::Confirmed
        } else if lately(&self.failed_at) {
            Standing::Unconfirmed
        } else {
            Standing::Old
        }
    }
}

/// Stored resources by key, within bounds of number and bytes.
pub struct Memory {
    cache: Cache<Arc<str>, Arc<Known>, Weight>,
}

#[derive(Clone)]
struct Weight;

impl Weighter<Arc<str>, Arc<Known>> for Weight {
    fn weight(&self, _key: &Arc<str>, known: &Arc<Known>) -> u64 {
        ENTRY_WEIGHT + known.small.as_ref().map_or(0, |bytes| bytes.len() as u64)
    }
}

impl Default for Memory {
    fn default() -> Self {
        let entries = usize::try_from(ENTRIES_MAX).unwrap_or_default();
        Self { cache: Cache::with_weighter(entries, BYTES_MAX, Weight) }
    }
}

impl Memory {
    /// One that tells how much it holds.
    pub(super) fn observed(metrics: &Metrics) -> Arc<Self> {
        let memory = Arc::<Self>::default();
        let gauge = |name: &str, help: &str, count: fn(&Self) -> u64| {
            let memory = Arc::clone(&memory);
            metrics.gauge_of(name, help, move || i64::try_from(count(&memory)).unwrap_or(i64::MAX));
        };
        gauge(
            "aptmesh_engine_memory_entries",
            "Resources that memory knows, each with its file open.",
            |memory| memory.cache.len() as u64,
        );
        gauge("aptmesh_engine_memory_bytes", "Bytes of small files held in memory.", |memory| {
            memory.cache.weight().saturating_sub(memory.cache.len() as u64 * ENTRY_WEIGHT)
        });
        memory
    }

    /// What memory knows of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Known>> {
        self.cache.get(key)
    }

    /// The same, without counting as a use.
    #[must_use]
    pub fn peek(&self, key: &str) -> Option<Arc<Known>> {
        self.cache.peek(key)
    }

    /// Holds `known`, as long as there is room.
    pub fn hold(&self, key: &str, known: Arc<Known>) {
        self.cache.insert(key.into(), known);
    }

    /// Lets go of `key`.
    pub fn forget(&self, key: &str) {
        self.cache.remove(key);
    }

    /// Lets go of these blobs, under whatever names they are held: a file that is held open keeps its
    /// room on the volume.
    pub fn forget_blobs(&self, blobs: &[Sha256]) {
        let blobs: HashSet<&Sha256> = blobs.iter().collect();
        self.cache.retain(|_, known| !blobs.contains(&known.entry.blob));
    }

    /// Lets go of blobs that are gone from the volume: another process evicted them. Blocks.
    pub fn forget_removed(&self) {
        let held: Vec<Arc<Known>> = self.cache.iter().map(|(_, known)| known).collect();
        let is_gone = |known: &Arc<Known>| {
            known.blob.file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
        };
        let gone: Vec<Sha256> =
            held.iter().filter(|known| is_gone(known)).map(|known| known.entry.blob).collect();
        if !gone.is_empty() {
            self.forget_blobs(&gone);
        }
    }
}

/// Seconds since 1970.
pub(super) fn now_seconds() -> i64 {
    now_millis() / 1000
}

fn now_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
