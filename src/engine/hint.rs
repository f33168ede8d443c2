//! What is begun for a request before its turn to be answered has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::AbortHandle;
use tracing::{Instrument as _, Span};

use crate::engine::known::Finding;
use crate::engine::outcome::Outcome;
use crate::engine::plan::Plan;
use crate::engine::{Ask, Engine};
use crate::index::budget;
use crate::telemetry::traces::span;

/// A request whose turn has not come: while it is held, what it needs is under way.
pub struct Hint {
    preparing: AbortHandle,
    begun: Arc<AtomicBool>,
}

impl Hint {
    /// Whether it began a flight.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}

impl Drop for Hint {
    fn drop(&mut self) {
        self.preparing.abort();
    }
}

impl Engine {
    /// Begins what a request will need, without waiting: for requests whose turn to be answered has
    /// not come. `None` if there is nothing to begin.
    #[must_use]
    pub fn prepare(self: &Arc<Self>, ask: Ask) -> Option<Hint> {
        let in_memory = self.memory.get(&ask.target.key);
        if in_memory.is_some_and(|known| self.plan(&ask, Some(&known)) == Plan::Serve) {
            return None;
        }
        let engine = Arc::clone(self);
        let begun = Arc::new(AtomicBool::new(false));
        let has_begun = Arc::clone(&begun);
        let preparing = budget::waited_for(async move {
            let ask = engine.pinned(&ask).await.unwrap_or(ask);
            let span = span!("engine.prepare");
            let Finding { known: held, expectation } =
                engine.find(&ask).instrument(span.clone()).await;
            let bringing = || Box::pin(engine.bring(&ask).instrument(span.clone()));
            let known = if held.is_some() { held } else { bringing().await };
            drop(span);
            let interest = match (engine.plan(&ask, known.as_deref()), known) {
                (Plan::Fetch, _) => engine.board(&ask, None, expectation),
                (Plan::Revalidate, Some(known)) => {
                    let expectation = engine.expectation(&ask).await;
                    engine.board(&ask, Some(&known), expectation)
                }
                _ => return,
            };
            if let Ok((interest, outcome)) = interest {
                has_begun.store(outcome == Outcome::Miss, Ordering::Relaxed);
                // Kept until the hint is dropped, or the flight is over.
                interest.flight().over().await;
            }
        });
        let preparing = self.tasks.spawn(preparing.instrument(Span::current()));
        Some(Hint { preparing: preparing.abort_handle(), begun })
    }
}
