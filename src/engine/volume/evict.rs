//! Evicting: which blobs go when room is needed, and their going. Works from what the index knows:
//! asks no mirror, walks over nothing.
//!
//! First goes what no list names and nobody has used for a while, the longest disused first; then
//! what no list names any more; last what lists name; each by its rank, see [`ROUND_TRIP`]. What is
//! pinned stays.
//!
//! [`ROUND_TRIP`]: crate::index::ROUND_TRIP

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus::IntCounterVec;
use thiserror::Error;
use tokio::time::{Instant, timeout};

use crate::content::digest::Sha256;
use crate::engine::leases::Sureness;
use crate::engine::memory::{Memory, now_seconds};
use crate::engine::volume::moves::{self, Leaving, Moves};
use crate::engine::volume::pins::Pin;
use crate::index::budget::Budget;
use crate::index::{Class, Index, IndexError, Names, Stored};
use crate::store::{Store, StoreError};
use crate::telemetry::metrics::Metrics;

/// For how long clients may have lists that are not current any more, in seconds: apt's own timer
/// updates them daily, and a machine may be off over a weekend.
const GRACE: i64 = 3 * 24 * 60 * 60;
/// Victims chosen and removed at once.
const PAGE: usize = 256;

/// Chooses blobs and removes them.
pub struct Evictor {
    index: Arc<dyn Index>,
    store: Arc<Store>,
    memory: Arc<Memory>,
    moves: Arc<Moves>,
    pins: ArcSwap<Vec<Pin>>,
    bytes: IntCounterVec,
    blobs: IntCounterVec,
}

/// A blob that goes, or would.
#[derive(Clone, Debug)]
pub struct Victim {
    /// What is known of it.
    pub blob: Stored,
    /// Why it goes.
    pub reason: Reason,
    /// Who names it; empty where nobody wants to know.
    pub names: Names,
}

/// Why a blob goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No list names it, and nobody has used it for a while.
    Disused,
    /// No list names it.
    Unreferenced,
    /// A list names it, but the rest is used more, or newer, or smaller.
    LeastUsed,
}

impl Reason {
    const ALL: [Self; 3] = [Self::Disused, Self::Unreferenced, Self::LeastUsed];

    /// The word for metric labels and people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Disused => "disused",
            Self::Unreferenced => "unreferenced",
            Self::LeastUsed => "least_used",
        }
    }

    fn of(class: Class) -> Self {
        match class {
            Class::Disused(_) => Self::Disused,
            Class::Unreferenced => Self::Unreferenced,
            Class::Referenced => Self::LeastUsed,
        }
    }
}

/// Why blobs could not be removed.
#[derive(Debug, Error)]
pub enum EvictError {
    /// The index could not tell which, or note that they are gone.
    #[error("{0}: {cause}", cause = .0.source)]
    Index(#[from] IndexError),
    /// The volume did not let them go.
    #[error("{0}: {cause}", cause = .0.source)]
    Store(#[from] StoreError),
}

/// Whether blobs really go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They do.
    Real,
    /// It is only told which would.
    Rehearsal,
}

/// One step: what goes next of a class.
#[derive(Default)]
struct Chosen {
    victims: Vec<Victim>,
    pinned: Vec<Sha256>,
    bytes: u64,
    /// Where to go on; `None`: the class has no more.
    last: Option<Stored>,
}

impl Evictor {
    /// Evicts what `index` knows of `store`, and has `memory` let go of it.
    #[must_use]
    pub fn new(
        pins: &[Pin],
        index: &Arc<dyn Index>,
        store: &Arc<Store>,
        memory: &Arc<Memory>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            index: Arc::clone(index),
            store: Arc::clone(store),
            memory: Arc::clone(memory),
            moves: Arc::default(),
            pins: ArcSwap::from_pointee(pins.to_vec()),
            bytes: metrics.counters_of(
                "aptmesh_store_evicted_bytes_total",
                "Bytes of blobs that were evicted, by reason.",
                "reason",
                &Reason::ALL.map(Reason::label),
            ),
            blobs: metrics.counters_of(
                "aptmesh_store_evicted_blobs_total",
                "Blobs that were evicted, by reason.",
                "reason",
                &Reason::ALL.map(Reason::label),
            ),
        }
    }

    /// What is being removed, and what must not be now.
    #[must_use]
    pub fn moves(&self) -> &Arc<Moves> {
        &self.moves
    }

    /// Changes what is pinned.
    ///
    /// # Errors
    /// When what was pinned before could not be let go.
    pub async fn set_pins(&self, pins: Vec<Pin>) -> Result<(), IndexError> {
        self.pins.store(Arc::new(pins));
        self.index.unpin().await
    }

    /// Frees `bytes`, or as much as there is, and returns how much that was. Each victim is `told`
    /// before it goes; without `told`, nobody looks up names. One that can not be removed is stepped
    /// over.
    ///
    /// # Errors
    /// When the index fails, or the volume lets none go; what went before that is gone.
    pub async fn evict(
        &self,
        bytes: u64,
        mode: Mode,
        told: Option<&mut (dyn FnMut(&Victim) + Send)>,
    ) -> Result<u64, EvictError> {
        self.evict_while(None, bytes, mode, told).await
    }

    /// The same, until another process took over.
    pub(super) async fn evict_while(
        &self,
        sureness: Option<Sureness>,
        bytes: u64,
        mode: Mode,
        mut told: Option<&mut (dyn FnMut(&Victim) + Send)>,
    ) -> Result<u64, EvictError> {
        let is_ours = || sureness.as_ref().is_none_or(Sureness::holds);
        let disused = Class::Disused(now_seconds() - GRACE);
        let (mut freed, mut stuck) = (0, None);
        for class in [disused, Class::Unreferenced, Class::Referenced] {
            let mut after = None;
            while freed < bytes && is_ours() {
                let page = self.page(class, after.as_ref(), told.is_some()).await?;
                let chosen = choose(page, &self.pins.load(), class, disused, bytes - freed);
                if chosen.last.is_none() {
                    break;
                }
                if let Some(told) = &mut told {
                    chosen.victims.iter().for_each(told);
                }
                freed += match mode {
                    Mode::Real => {
                        self.carry_out(class, &chosen, sureness.clone(), &mut stuck).await?
                    }
                    Mode::Rehearsal => chosen.bytes,
                };
                after = chosen.last;
            }
        }
        match stuck {
            Some(error) if freed == 0 => Err(error.into()),
            _ => Ok(freed),
        }
    }

    /// The next blobs of a class, with their names where somebody wants to know them.
    async fn page(
        &self,
        class: Class,
        after: Option<&Stored>,
        is_told: bool,
    ) -> Result<Vec<(Stored, Names)>, IndexError> {
        let page = self.index.victims(class, after, PAGE).await?;
        let digests: Vec<Sha256> = page.iter().map(|blob| blob.digest).collect();
        let names = if is_told || !self.pins.load().is_empty() {
            self.index.names(&digests).await?
        } else {
            vec![Names::default(); page.len()]
        };
        Ok(page.into_iter().zip(names).collect())
    }

    /// The bytes that went; why the last that did not go is `stuck`.
    async fn carry_out(
        &self,
        class: Class,
        chosen: &Chosen,
        sureness: Option<Sureness>,
        stuck: &mut Option<StoreError>,
    ) -> Result<u64, EvictError> {
        if !chosen.pinned.is_empty() {
            self.index.pin(&chosen.pinned).await?;
        }
        if chosen.victims.is_empty() {
            return Ok(0);
        }
        let (freed, error) = self.remove(class, &chosen.victims, sureness).await?;
        *stuck = error.or(stuck.take());
        Ok(freed)
    }

    /// From the volume first: what the index names and the volume does not have is found out and
    /// forgotten, while the reverse would only take room.
    async fn remove(
        &self,
        class: Class,
        victims: &[Victim],
        sureness: Option<Sureness>,
    ) -> Result<(u64, Option<StoreError>), EvictError> {
        let digests = victims.iter().map(|victim| victim.blob.digest).collect();
        let leaving = self.moves.leave(digests);
        let (store, digests) = (Arc::clone(&self.store), leaving.digests.clone());
        let removing = tokio::task::spawn_blocking(move || {
            let (mut removed, mut stuck) = (HashSet::with_capacity(digests.len()), None);
            let is_ours = || sureness.as_ref().is_none_or(Sureness::holds);
            for digest in digests.into_iter().take_while(|_| is_ours()) {
                match store.remove(&digest) {
                    Ok(_) => drop(removed.insert(digest)),
                    Err(error) => {
                        tracing::warn!(%digest, %error, source = %error.source, "stepping over a blob");
                        stuck = Some(error);
                    }
                }
            }
            (removed, stuck)
        });
        let (removed, stuck) = removing.await.map_err(StoreError::interrupted)?;
        let gone: Vec<Sha256> = removed.iter().copied().collect();
        self.memory.forget_blobs(&gone);
        self.forget(leaving, gone).await?;
        let mut gone = victims.iter().filter(|victim| removed.contains(&victim.blob.digest));
        let freed = gone.clone().map(|victim| victim.blob.size).sum();
        self.count(class, gone.clone());
        if let (Class::Unreferenced | Class::Referenced, Some(last)) = (class, gone.next_back()) {
            self.index.raise_floor(last.blob.rank).await?;
        }
        Ok((freed, stuck))
    }

    /// Whoever waits for room has only so much time for the index, but what is gone is forgotten.
    async fn forget(&self, leaving: Leaving, gone: Vec<Sha256>) -> Result<(), IndexError> {
        let index = Arc::clone(&self.index);
        let Some(budget) = Budget::current() else {
            return moves::forget(&*index, &self.store, &gone).await;
        };
        let store = Arc::clone(&self.store);
        let begun = Instant::now();
        #[expect(clippy::disallowed_methods, reason = "short, and as a rule waited for")]
        let mut forgetting = tokio::spawn(async move {
            let forgotten = moves::forget(&*index, &store, &gone).await;
            drop(leaving);
            forgotten
        });
        let forgotten = timeout(budget.left(), &mut forgetting).await;
        budget.spend(begun.elapsed());
        let operation = "forget blobs";
        match forgotten {
            Ok(Ok(forgotten)) => forgotten,
            Ok(Err(error)) => Err(IndexError { operation, source: error.into() }),
            Err(elapsed) => Err(IndexError { operation, source: elapsed.into() }),
        }
    }

    fn count<'a>(&self, class: Class, gone: impl Iterator<Item = &'a Victim>) {
        let label = [Reason::of(class).label()];
        for victim in gone {
            tracing::debug!(digest = %victim.blob.digest, reason = label[0], "evicted a blob");
            self.bytes.with_label_values(&label).inc_by(victim.blob.size);
            self.blobs.with_label_values(&label).inc();
        }
    }
}

/// Pure: of a page of blobs, those that have to go for `wanted` bytes, and those met on the way that
/// are pinned. What went as disused before does not go again as unreferenced.
fn choose(
    page: Vec<(Stored, Names)>,
    pins: &[Pin],
    class: Class,
    disused: Class,
    wanted: u64,
) -> Chosen {
    let mut chosen = Chosen::default();
    for (blob, names) in page {
        if chosen.bytes >= wanted {
            break;
        }
        chosen.last = Some(blob.clone());
        if class == Class::Unreferenced && is_disused(&blob, disused) {
            continue;
        }
        if pins.iter().any(|pin| pin.holds(&names)) {
            chosen.pinned.push(blob.digest);
        } else {
            chosen.bytes += blob.size;
            chosen.victims.push(Victim { blob, reason: Reason::of(class), names });
        }
    }
    chosen
}

fn is_disused(blob: &Stored, disused: Class) -> bool {
    matches!((blob.unreferenced_since, disused), (Some(since), Class::Disused(before)) if since < before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISUSED: Class = Class::Disused(100);

    fn page(blobs: &[(u64, &str, Option<i64>)]) -> Vec<(Stored, Names)> {
        let candidate = |(size, name, unreferenced_since): &(u64, &str, Option<i64>)| {
            let blob = Stored {
                digest: Sha256::of(name.as_bytes()),
                size: *size,
                stored_at: 0,
                used_at: 0,
                uses: 1,
                rank: 1.0,
                checked_at: 0,
                unreferenced_since: *unreferenced_since,
            };
            (blob, Names { resources: vec![format!("http://m/{name}_1_all.deb")], lists: vec![] })
        };
        blobs.iter().map(candidate).collect()
    }

    #[test]
    fn no_more_goes_than_has_to_and_nothing_pinned() {
        let ten = |name| (10, name, None);
        let (abc, pin) = ([ten("a"), ten("b"), ten("c")], [Pin::Package("b".to_owned())]);
        let table: [(&[_], &[Pin], u64, usize, usize); 9] = [
            (&[], &[], 5, 0, 0),
            (&abc, &[], 0, 0, 0),
            (&abc, &[], 1, 1, 0),
            (&abc, &[], 10, 1, 0),
            (&abc, &[], 11, 2, 0),
            (&abc, &[], 99, 3, 0),
            (&abc, &pin, 10, 1, 0),
            (&abc, &pin, 11, 2, 1),
            (&[(0, "empty", None), ten("a"), ten("b")], &[], 5, 2, 0),
        ];
        for (blobs, pins, wanted, victims, pinned) in table {
            let chosen = choose(page(blobs), pins, Class::Referenced, DISUSED, wanted);
            let numbers = (chosen.victims.len(), chosen.pinned.len());
            assert_eq!(numbers, (victims, pinned), "{blobs:?} {wanted}");
            assert_eq!(chosen.last.is_none(), blobs.is_empty() || wanted == 0);
        }
    }

    #[test]
    fn what_went_as_disused_does_not_go_again() {
        let blobs = page(&[(10, "disused", Some(99)), (10, "late", Some(100))]);
        let chosen = choose(blobs.clone(), &[], Class::Unreferenced, DISUSED, 99);
        assert_eq!(chosen.victims.len(), 1);
        assert_eq!(chosen.victims[0].blob.unreferenced_since, Some(100));
        let chosen = choose(blobs[..1].to_vec(), &[], Class::Unreferenced, DISUSED, 99);
        assert!(chosen.victims.is_empty() && chosen.last.is_some(), "there may be more");
    }
}
