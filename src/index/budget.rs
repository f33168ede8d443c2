//! For how long the index may keep a request waiting, in all: what its calls take is taken from one
//! account, which goes with the request from task to task. Where there is no account, nobody waits.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What one request has unless an operator says else: apt's users do not notice it, and it is longer
/// than all statements of a request take in a database that is well.
pub const DEFAULT: Duration = Duration::from_millis(200);

/// In milliseconds: a process has one index.
static OF_A_REQUEST: AtomicU64 = AtomicU64::new(200);

/// What one request has.
#[must_use]
pub fn of_a_request() -> Duration {
    Duration::from_millis(OF_A_REQUEST.load(Ordering::Relaxed))
}

/// Changes what one request has, for those that come.
pub fn set(patience: Duration) {
    let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    OF_A_REQUEST.store(millis.max(1), Ordering::Relaxed);
}

tokio::task_local! {
    static CURRENT: Option<Arc<Budget>>;
}

/// What is left to wait.
#[derive(Debug)]
pub struct Budget {
    left: Mutex<Duration>,
    is_of_client: bool,
}

impl Budget {
    /// That of a new request.
    #[must_use]
    pub fn of_a_request() -> Arc<Self> {
        Arc::new(Self { left: Mutex::new(of_a_request()), is_of_client: true })
    }

    /// The one that the running task draws on; `None`: nobody waits for it.
    #[must_use]
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Clone::clone).ok().flatten()
    }

    /// What is left.
    #[must_use]
    pub fn left(&self) -> Duration {
        *self.lock()
    }

    /// Whether a client waits: then an index that is slow is not asked at all.
    #[must_use]
    pub fn is_of_client(&self) -> bool {
        self.is_of_client
    }

    /// So much was waited.
    pub fn spend(&self, waited: Duration) {
        let mut left = self.lock();
        *left = left.saturating_sub(waited);
    }

    fn lock(&self) -> MutexGuard<'_, Duration> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what a client waits for: on the account of the request that it is part of, or on a new one.
pub async fn waited_for<F: Future>(work: F) -> F::Output {
    let budget = Budget::current().unwrap_or_else(Budget::of_a_request);
    CURRENT.scope(Some(budget), work).await
}

/// Has `work`, which is about to be spawned, draw on the account of the task that spawns it.
pub fn inherited<F: Future>(work: F) -> impl Future<Output = F::Output> + use<F> {
    CURRENT.scope(Budget::current(), work)
}

/// Runs what no client waits for, though one may have begun it, on an account of its own.
pub async fn for_at_most<F: Future>(time: Duration, work: F) -> F::Output {
    let budget = Budget { left: Mutex::new(time), is_of_client: false };
    CURRENT.scope(Some(Arc::new(budget)), work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_has_one_account() {
        assert!(Budget::current().is_none());
        waited_for(async {
            let spend = || Budget::current().unwrap().spend(of_a_request() / 2);
            spend();
            waited_for(async { spend() }).await;
            let inherited = inherited(async { Budget::current().unwrap().left() });
            let tasks = tokio_util::task::TaskTracker::new();
            assert_eq!(tasks.spawn(inherited).await.unwrap(), Duration::ZERO);
            let minute = Duration::from_secs(60);
            let other = for_at_most(minute, async { Budget::current().unwrap().left() });
            assert_eq!(other.await, minute);
            spend();
            assert_eq!(Budget::current().unwrap().left(), Duration::ZERO);
        })
        .await;
        assert_eq!(waited_for(async { Budget::current().unwrap().left() }).await, DEFAULT);
    }
}
