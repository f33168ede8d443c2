//! Bringing index and volume together: blobs that the index does not know, because it was lost or they
//! were put there by hand, are hashed and adopted; entries without a blob are forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::content::digest::Sha256;
use crate::engine::volume::inspect::{Finding, InspectError, Inspector, before};
use crate::engine::volume::pace::Pace;
use crate::store::{FOLDERS, Lying, StoreError};

/// Blobs looked up in the index at once.
const PAGE: usize = 1000;

/// A folder of blobs beside what the index knows of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// There, and known.
    pub known: Vec<Lying>,
    /// There, and not known; or known with another size.
    pub unknown: Vec<Lying>,
    /// Known, and not there.
    pub gone: Vec<Sha256>,
}

/// What a walk over the volume came to, in blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// New to the index.
    pub adopted: u64,
    /// Not what their name says.
    pub bad: u64,
    /// Entries without a blob.
    pub gone: u64,
    /// Blobs, or folders of them, that can not be read.
    pub unreadable: u64,
}

/// What lies on the volume and is not known to the index yet: it takes room all the same.
#[derive(Default)]
pub struct Unadopted {
    found: AtomicU64,
    /// Stored by ourselves, while the index could not be told.
    late: AtomicU64,
    again: Notify,
}

impl Unadopted {
    /// Bytes, as far as has been looked.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let late = self.late.load(Ordering::Relaxed);
        self.found.load(Ordering::Relaxed).saturating_add(late)
    }

    fn set(&self, bytes: u64) {
        self.found.store(bytes, Ordering::Relaxed);
    }

    /// There may be something new, which is to be looked for.
    pub(in crate::engine) fn look_again(&self) {
        self.again.notify_one();
    }

    /// Waits until there may be.
    pub(in crate::engine) async fn is_due(&self) {
        self.again.notified().await;
    }

    /// So much was stored that the index is still to be told of.
    pub(in crate::engine) fn set_late(&self, bytes: u64) {
        self.late.store(bytes, Ordering::Relaxed);
    }

    /// When the answer is dropped, it is for a fellow to count.
    pub(super) fn counting(&self) -> Counting<'_> {
        Counting(self)
    }
}

pub(super) struct Counting<'a>(&'a Unadopted);

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

impl Inspector {
    /// Compares the folder of digests that begin with `first` with the index.
    ///
    /// # Errors
    /// When index or volume fail.
    pub async fn compare(&self, first: u8) -> Result<Comparison, InspectError> {
        let store = Arc::clone(&self.store);
        let listing = tokio::task::spawn_blocking(move || store.folder(first));
        let lying = listing.await.map_err(StoreError::interrupted)??;
        let known = self.known_in(first).await?;
        Ok(compare(lying, &known))
    }

    /// What the index knows of a folder, by digest.
    async fn known_in(&self, first: u8) -> Result<Vec<Lying>, InspectError> {
        let mut after = before(first);
        let mut known = Vec::new();
        loop {
            let page = self.index.blobs_after(after, PAGE).await?;
            after = page.last().map(|last| last.digest);
            let is_last = page.len() < PAGE;
            let here = |digest: &Sha256| digest.as_bytes().first() == Some(&first);
            let beyond = page.iter().any(|blob| !here(&blob.digest));
            let blobs = page.iter().filter(|blob| here(&blob.digest));
            known.extend(blobs.map(|blob| Lying { digest: blob.digest, size: blob.size }));
            if is_last || beyond {
                return Ok(known);
            }
        }
    }

    /// What there is to adopt, in bytes of each folder: a look at names and sizes, so that it counts
    /// before all of it is hashed.
    async fn look_ahead(&self) -> Result<Vec<u64>, InspectError> {
        let mut ahead = Vec::with_capacity(FOLDERS.count());
        for first in FOLDERS {
            let bytes = match self.compare(first).await {
                // That is told when it is walked over.
                Err(InspectError::Store(_)) => 0,
                compared => bytes_of(&compared?.unknown),
            };
            ahead.push(bytes);
            self.unadopted.set(ahead.iter().sum());
        }
        Ok(ahead)
    }

    /// Walks over the whole volume, at a pace.
    pub(in crate::engine) async fn adopt(&self, pace: &mut Pace) -> Result<Adopted, InspectError> {
        let mut sum = Adopted::default();
        let folders = self.look_ahead().await?;
        let mut ahead: u64 = folders.iter().sum();
        for (first, bytes) in FOLDERS.zip(folders) {
            ahead -= bytes;
            let comparison = match self.compare(first).await {
                Err(InspectError::Store(error)) => {
                    tracing::warn!(first, %error, source = %error.source, "stepping over a folder");
                    sum.unreadable += 1;
                    continue;
                }
                compared => compared?,
            };
            pace.ensure_duty().await;
            sum.gone += self.forget_missing(&comparison.gone).await?;
            let mut here = bytes_of(&comparison.unknown);
            for unknown in &comparison.unknown {
                self.unadopted.set(ahead + here);
                here -= unknown.size;
                match self.inspect_at(&unknown.digest, pace).await? {
                    Finding::Good(_) => sum.adopted += 1,
                    Finding::Bad | Finding::Stuck => sum.bad += 1,
                    Finding::Unreadable => sum.unreadable += 1,
                    Finding::Gone => {}
                }
            }
            self.unadopted.set(ahead);
        }
        Ok(sum)
    }
}

fn bytes_of(lying: &[Lying]) -> u64 {
    lying.iter().map(|lying| lying.size).sum()
}

/// Pure: both by digest.
fn compare(lying: Vec<Lying>, known: &[Lying]) -> Comparison {
    let mut comparison = Comparison::default();
    let mut known = known.iter().copied().peekable();
    for found in lying {
        let is_before = |known: &Lying| known.digest.as_bytes() < found.digest.as_bytes();
        while let Some(gone) = known.next_if(is_before) {
            comparison.gone.push(gone.digest);
        }
        match known.next_if(|known| known.digest == found.digest) {
            Some(same) if same.size == found.size => comparison.known.push(found),
            _ => comparison.unknown.push(found),
        }
    }
    comparison.gone.extend(known.map(|gone| gone.digest));
    comparison
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_compared() {
        let lying = |numbers: &[(u8, u64)]| -> Vec<Lying> {
            let lying = |&(number, size): &(u8, u64)| Lying {
                digest: Sha256::from_bytes(&[number; 32]).unwrap(),
                size,
            };
            numbers.iter().map(lying).collect()
        };
        let digests = |numbers: &[u8]| -> Vec<Sha256> {
            numbers.iter().filter_map(|number| Sha256::from_bytes(&[*number; 32])).collect()
        };
        let there = lying(&[(1, 10), (3, 30), (4, 40), (6, 60)]);
        let known = lying(&[(0, 9), (1, 10), (2, 20), (4, 41), (7, 70)]);
        let comparison = compare(there.clone(), &known);
        assert_eq!(comparison.known, lying(&[(1, 10)]));
        assert_eq!(comparison.unknown, lying(&[(3, 30), (4, 40), (6, 60)]));
        assert_eq!(comparison.gone, digests(&[0, 2, 7]));
        assert_eq!(compare(there.clone(), &[]).unknown, there);
        assert_eq!(compare(vec![], &known).gone.len(), known.len());
    }
}
