//! What an explanation asks the index. One that is silent is waited for once, and not asked again.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::timeout;

use crate::engine::explain::PATIENCE;
use crate::engine::without_index;
use crate::index::{IndexError, budget};

/// The questions of one explanation.
#[derive(Default)]
pub(super) struct Questions {
    were_in_vain: AtomicBool,
}

impl Questions {
    /// What the index says; `None` if it says nothing.
    pub(super) async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, IndexError>>,
    ) -> Option<T> {
        if self.were_in_vain() {
            return None;
        }
        // The thread of an index in a file waits as long as its disk does.
        let said = match timeout(PATIENCE, budget::waited_for(question)).await {
            Ok(said) => said.map_or_else(|error| without_index(&error), Some),
            Err(_elapsed) => None,
        };
        self.were_in_vain.fetch_or(said.is_none(), Ordering::Relaxed);
        said
    }

    /// Whether one was not answered.
    pub(super) fn were_in_vain(&self) -> bool {
        self.were_in_vain.load(Ordering::Relaxed)
    }
}
