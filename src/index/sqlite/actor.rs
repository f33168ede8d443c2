//! A connection on a thread of its own: SQLite blocks, the request path must not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::index::IndexError;
use crate::index::metrics::{self, IndexMetrics, Outcome};
use crate::telemetry::traces;

/// Calls that may wait for the connection; more wait for a place.
const WAITING_MAX: usize = 1024;

type Call = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the thread, which ends with its last handle.
#[derive(Clone)]
pub(super) struct Actor {
    calls: mpsc::Sender<Call>,
    metrics: Option<IndexMetrics>,
    /// Whether the last call was not answered.
    has_failed: Arc<AtomicBool>,
}

impl Actor {
    pub(super) fn start(name: &str, mut connection: Connection) -> Result<Self, IndexError> {
        let (calls, mut waiting) = mpsc::channel::<Call>(WAITING_MAX);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while let Some(call) = waiting.blocking_recv() {
                    call(&mut connection);
                }
            })
            .map_err(|source| IndexError {
                operation: "start the index's thread",
                source: source.into(),
            })?;
        Ok(Self { calls, metrics: None, has_failed: Arc::default() })
    }

    /// Counts its calls from now on.
    pub(super) fn observed(self, metrics: &IndexMetrics) -> Self {
        Self { metrics: Some(metrics.clone()), ..self }
    }

    /// Whether its last call was answered.
    pub(super) fn is_well(&self) -> bool {
        !self.has_failed.load(Ordering::Relaxed)
    }

    /// Runs `work` on the connection. `operation` completes "could not …".
    pub(super) async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, IndexError> {
        let begun = Instant::now();
        let span = metrics::span("sqlite", operation);
        let answer = self.answer(operation, work).instrument(span.clone()).await;
        if let Err(error) = &answer {
            traces::fail(&span, Outcome::Failed.label(), &error.source);
        }
        self.has_failed.store(answer.is_err(), Ordering::Relaxed);
        if let Some(metrics) = &self.metrics {
            let outcome = if answer.is_ok() { Outcome::Answered } else { Outcome::Failed };
            metrics.count(operation, outcome, begun.elapsed());
        }
        answer
    }

    async fn answer<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, IndexError> {
        let gone = || IndexError { operation, source: "the index's thread is gone".into() };
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |connection| {
            // Who asked may have left: then nobody misses the answer.
            drop(answer.send(work(connection)));
        });
        self.calls.send(call).await.map_err(|_| gone())?;
        let result = answered.await.map_err(|_| gone())?;
        result.map_err(|source| IndexError { operation, source: source.into() })
    }
}
