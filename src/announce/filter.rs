//! The have-filter of a site: built by one of its nodes, kept in the index, and given out by all of the
//! site's proxies.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::known::{Difference, Known};
use crate::content::digest::Sha256;
use crate::content::filter::{Delta, Filter, Patch};
use crate::content::swarm_key::SwarmKey;
use crate::index::{Index, IndexError, Lease, NewFilter};

/// How often there is a new generation at most: each has every peer ask for it.
const EVERY: Duration = Duration::from_secs(3);
/// Deltas after which it is built anew.
const DELTAS_MAX: usize = 64;

/// Who builds it.
pub(super) struct Builder {
    key: SwarmKey,
    /// As it is kept; `None`: it is not known, and to be built anew.
    built: Option<Filter>,
    deltas: usize,
    /// What changed since.
    pending: Patch,
    built_at: Option<Instant>,
}

impl Builder {
    pub(super) fn new(key: SwarmKey) -> Self {
        Self { key, built: None, deltas: 0, pending: Patch::default(), built_at: None }
    }

    /// What is to be in the next generation.
    pub(super) fn note(&mut self, difference: &Difference) {
        if self.built.is_none() {
            return;
        }
        let entry = |digest: &Sha256| self.key.dht_key(digest).short();
        let came = difference.came.iter().map(|(digest, _)| entry(digest)).collect();
        let went = difference.went.iter().map(entry).collect();
        self.pending = self.pending.then(&Patch::new(came, went));
    }

    /// Brings the filter that the index keeps up to date, if that is this node's to do and there is
    /// something new; the generation that is kept then.
    pub(super) async fn build(
        &mut self,
        index: &dyn Index,
        under: Option<&Lease>,
        known: &Known,
    ) -> Result<u64, IndexError> {
        let kept = index.filter_generation().await?;
        let Some(under) = under else {
            self.forget();
            return Ok(kept);
        };
        // Another node built one meanwhile, or the index was lost.
        if self.built.as_ref().is_some_and(|built| built.generation() != kept) {
            self.forget();
        }
        let is_due = self.built_at.is_none_or(|at| at.elapsed() >= EVERY);
        if !is_due || (self.built.is_some() && self.pending.is_empty()) {
            return Ok(kept);
        }
        let next = self.next(kept, known);
        let Some((built, delta, is_whole)) = next else { return Ok(kept) };
        let (generation, whole) = (built.generation(), is_whole.then(|| built.to_bytes()));
        let delta = delta.map(|delta| delta.to_bytes());
        // Until it is known to be kept, it is not known what is.
        self.forget();
        let new = NewFilter { generation, whole: whole.as_deref(), delta: delta.as_deref() };
        index.keep_filter(under, new).await?;
        tracing::debug!(generation, is_whole, blobs = known.len(), "the have-filter is up to date");
        self.deltas = if is_whole { 0 } else { self.deltas + 1 };
        self.built = Some(built);
        self.built_at = Some(Instant::now());
        Ok(generation)
    }

    /// The filter that follows, what leads to it, and whether it is built anew.
    fn next(&self, kept: u64, known: &Known) -> Option<(Filter, Option<Delta>, bool)> {
        let generation = now_millis().max(kept + 1);
        let delta = self.built.as_ref().map(|built| Delta {
            from: built.generation(),
            to: generation,
            patch: self.pending.clone(),
        });
        let mut changed = self.built.clone().filter(|_| self.deltas < DELTAS_MAX);
        if let (Some(changed), Some(delta)) = (&mut changed, &delta)
            && changed.apply(delta)
            && !changed.is_worn(known.len())
        {
            return Some((changed.clone(), Some(delta.clone()), false));
        }
        let entries = known.iter().map(|(digest, _)| self.key.dht_key(&digest).short()).collect();
        let delta = delta.filter(Delta::is_bounded);
        Filter::of(generation, entries).map(|built| (built, delta, true))
    }

    fn forget(&mut self) {
        self.built = None;
        self.pending = Patch::default();
    }
}

/// Generations go on from where they were, even if the index was lost.
fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
