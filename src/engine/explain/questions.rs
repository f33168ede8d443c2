//! What an explanation asks of parts that may be silent: each is waited for once, and not asked again. The volume
//! sees to that itself (`store/calls.rs`).

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::timeout;

use crate::engine::explain::PATIENCE;
use crate::engine::without_index;
use crate::index::{IndexError, budget};

/// The questions of one explanation.
#[derive(Default)]
pub(super) struct Questions {
    index: Part,
    /// Shared folders.
    pub(super) folders: Part,
}

/// Who is asked.
#[derive(Default)]
pub(super) struct Part(AtomicBool);

impl Questions {
    /// What the index says; `None` if it says nothing.
    pub(super) async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, IndexError>>,
    ) -> Option<T> {
        // The thread of an index in a file waits as long as its disk does.
        let said = self.index.wait(budget::waited_for(question)).await?;
        if said.is_err() {
            self.index.is_silent();
        }
        said.map_or_else(|error| without_index(&error), Some)
    }

    /// Whether the index did not answer one.
    pub(super) fn were_in_vain(&self) -> bool {
        self.index.was_silent()
    }
}

impl Part {
    /// What it says; `None` if that takes too long.
    pub(super) async fn wait<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        if self.was_silent() {
            return None;
        }
        let answered = timeout(PATIENCE, answer).await;
        answered.inspect_err(|_elapsed| self.is_silent()).ok()
    }

    fn is_silent(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn was_silent(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
