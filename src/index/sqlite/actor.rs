//! A connection on a thread of its own: SQLite blocks, the request path must not. A disk may say nothing for long,
//! such as one of a network whose server is away: who waits for an answer gives it up after a while, and as long as
//! the thread is held up, nobody else is sent after it.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use crate::index::budget::Budget;
use crate::index::metrics::{self, IndexMetrics, Outcome};
use crate::index::{IndexError, NotAsked};
use crate::telemetry::traces;

/// Calls that may wait for the connection; more wait for a place.
const WAITING_MAX: usize = 1024;
/// For how long an answer is waited for at least, where somebody waits. As long as for the volume, which is mostly on the same disk; longer
/// than for a database, since a disk that has much to do is no reason to do without what is stored.
const PATIENCE: Duration = Duration::from_secs(3);

/// Its time was up.
#[derive(Debug, Error)]
#[error("SQLite did not answer within {0:?}")]
struct Late(Duration);

type Call = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the thread, which ends with its last handle.
#[derive(Clone)]
pub(super) struct Actor {
    calls: mpsc::Sender<Call>,
    metrics: Option<IndexMetrics>,
    /// Whether the last call was not answered.
    has_failed: Arc<AtomicBool>,
    /// Since when the thread has been at the call that it is at.
    busy_since: Arc<Mutex<Option<Instant>>>,
}

impl Actor {
    pub(super) fn start(name: &str, mut connection: Connection) -> Result<Self, IndexError> {
        let (calls, mut waiting) = mpsc::channel::<Call>(WAITING_MAX);
        let busy_since = Arc::<Mutex<Option<Instant>>>::default();
        let busy = Arc::clone(&busy_since);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while let Some(call) = waiting.blocking_recv() {
                    *busy.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    call(&mut connection);
                    *busy.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
            })
            .map_err(|source| IndexError {
                operation: "start the index's thread",
                source: source.into(),
            })?;
        Ok(Self { calls, metrics: None, has_failed: Arc::default(), busy_since })
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
        let answering = self.answer(operation, work);
        let answer = self.in_time(operation, answering).instrument(span.clone()).await;
        let outcome = match &answer {
            Ok(_) => Outcome::Answered,
            Err(error) if error.is_old_news() => Outcome::NotAsked,
            Err(error) if error.source.is::<Late>() => Outcome::Late,
            Err(_) => Outcome::Failed,
        };
        if let Err(error) = &answer {
            traces::fail(&span, outcome.label(), &error.source);
        }
        self.has_failed.store(answer.is_err(), Ordering::Relaxed);
        if let Some(metrics) = &self.metrics {
            metrics.count(operation, outcome, begun.elapsed());
        }
        answer
    }

    /// Waits no longer than who asks may; what was begun is done to its end all the same.
    async fn in_time<T>(
        &self,
        operation: &'static str,
        answering: impl Future<Output = Result<T, IndexError>>,
    ) -> Result<T, IndexError> {
        let Some(budget) = Budget::current() else { return answering.await };
        let patience = budget.left().max(PATIENCE);
        if self.is_held_up() {
            return Err(IndexError { operation, source: NotAsked("SQLite says nothing").into() });
        }
        let late = |_| IndexError { operation, source: Late(patience).into() };
        timeout(patience, answering).await.map_err(late)?
    }

    /// Whether the thread has been at one call for longer than a client waits.
    pub(super) fn is_held_up(&self) -> bool {
        let busy_since = self.busy_since.lock().unwrap_or_else(PoisonError::into_inner);
        busy_since.is_some_and(|since| since.elapsed() > PATIENCE)
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
