//! Taint: bytes of a file went out, and then the file turned out not to be what it must be. Its
//! clients were cut off, but hold on to what they have and ask for the rest alone: with the right
//! rest, the whole would be wrong. So nobody gets a part of such a file any more, only the whole.

use std::sync::Arc;

use quick_cache::sync::Cache;

/// Files of which this is remembered.
const TAINTED_MAX: usize = 4096;

/// Resources of which wrong bytes went out, by key.
#[derive(Clone)]
pub(super) struct Tainted(Arc<Cache<Arc<str>, ()>>);

impl Default for Tainted {
    fn default() -> Self {
        Self(Arc::new(Cache::new(TAINTED_MAX)))
    }
}

impl Tainted {
    pub(super) fn add(&self, key: &str) {
        self.0.insert(key.into(), ());
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.get(key).is_some()
    }
}
