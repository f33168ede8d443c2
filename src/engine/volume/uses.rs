//! What is used, noted in memory and told to the index now and then: a hit waits for nobody.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::archive::list::{List, ListKind};
use crate::content::digest::Sha256;
use crate::engine::memory::now_seconds;
use crate::index::{Index, IndexError, Use};

/// Blobs used between two tellings. What is used beyond them is not counted.
const USED_MAX: usize = 16_384;
/// Lists asked for between two tellings.
const ASKED_MAX: usize = 4096;

/// Uses of one blob that are not told yet.
#[derive(Debug)]
pub struct Counter {
    digest: Sha256,
    uses: AtomicU64,
}

impl Counter {
    pub(in crate::engine) fn new(digest: Sha256) -> Arc<Self> {
        Arc::new(Self { digest, uses: AtomicU64::new(0) })
    }
}

/// All that is not told yet.
#[derive(Default)]
pub(in crate::engine) struct Uses {
    used: Mutex<Vec<Arc<Counter>>>,
    asked: Mutex<HashSet<String>>,
}

impl Uses {
    /// A blob was served. Takes a lock at its first use since the last telling only.
    pub(in crate::engine) fn note(&self, counter: &Arc<Counter>) {
        self.note_several(counter, 1);
    }

    fn note_several(&self, counter: &Arc<Counter>, times: u64) {
        if counter.uses.fetch_add(times, Ordering::Relaxed) > 0 {
            return;
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() < USED_MAX {
            used.push(Arc::clone(counter));
        } else {
            counter.uses.store(0, Ordering::Relaxed);
        }
    }

    /// Somebody asked for the metadata file `key`, which may be a list.
    pub(in crate::engine) fn note_asked(&self, key: &str) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() < ASKED_MAX && !asked.contains(key) {
            asked.insert(key.to_owned());
        }
    }

    /// Tells the index what was used. What it may have noted in part is lost; while it is not asked,
    /// what was used is kept.
    pub(in crate::engine) async fn tell(&self, index: &dyn Index) -> Result<(), IndexError> {
        let counters =
            std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        if counters.is_empty() {
            return Ok(());
        }
        let used_at = now_seconds();
        let uses: Vec<Use> = counters
            .iter()
            .map(|counter| Use {
                digest: counter.digest,
                uses: counter.uses.swap(0, Ordering::Relaxed),
                used_at,
            })
            .collect();
        let told = index.touch(&uses).await;
        if told.as_ref().is_err_and(IndexError::is_old_news) {
            for (counter, told) in counters.iter().zip(&uses) {
                self.note_several(counter, told.uses);
            }
        }
        told
    }

    /// Tells the index which lists were asked for.
    pub(in crate::engine) async fn tell_asked(&self, index: &dyn Index) -> Result<(), IndexError> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
        for list in asked.iter().filter_map(|key| List::at(key)) {
            let below = (list.kind == ListKind::Release).then_some(list.base.as_str());
            let told = index.asked(&list.key, below, now_seconds()).await;
            if told.is_err() {
                // It may be told again.
                for key in &asked {
                    self.note_asked(key);
                }
                return told;
            }
        }
        Ok(())
    }
}
