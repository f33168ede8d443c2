//! Calls to a file system that somebody waits for: the volume's, or a shared folder's. It may say nothing for
//! long, such as one of a network whose server is away; and a call that was made can not be taken back. Who waits
//! for one gives it up after a while, and as long as a call that was given up has not come back, the file system
//! counts as *stalled*: nobody else is sent after it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

use crate::store::{Store, StoreError, StoreErrorKind};

/// For how long a client waits for what lies on the volume, or in a shared folder, before its mirror is asked.
pub const READ_PATIENCE: Duration = Duration::from_secs(3);
/// For how long something is tried to be written that a client waits for. Longer: what has arrived of a
/// file would be lost.
pub const WRITE_PATIENCE: Duration = Duration::from_secs(8);

/// For how long a file may be on its way from the system's memory to the disk: nobody waits for it, but
/// its flight counts.
pub const COMMIT_PATIENCE: Duration = Duration::from_mins(1);

/// Calls to one file system, of which those count that were given up and have not come back.
#[derive(Clone)]
pub struct Calls(Arc<Overdue>);

struct Overdue {
    /// Whose calls: for the log.
    whose: &'static str,
    calls: AtomicUsize,
}

/// A call: it counts from when it is given up to when it is dropped.
struct Call {
    calls: Calls,
    was_given_up: AtomicBool,
}

impl Calls {
    /// Calls to `whose`, such as "the volume"; for the log.
    #[must_use]
    pub fn to(whose: &'static str) -> Self {
        Self(Arc::new(Overdue { whose, calls: AtomicUsize::new(0) }))
    }

    /// Whether the file system says nothing.
    #[must_use]
    pub fn are_overdue(&self) -> bool {
        self.0.calls.load(Ordering::Relaxed) > 0
    }

    /// Does something off the runtime's threads, and waits for it no longer than `patience`; it is done to its end
    /// all the same. `None`: it did not come to its end in time.
    ///
    /// # Errors
    /// When it panicked, or the process ends.
    pub async fn wait<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<Result<T, JoinError>> {
        let made = Call { calls: self.clone(), was_given_up: AtomicBool::new(false) };
        let call = Arc::new(made);
        let held = Arc::clone(&call);
        let working = spawn_blocking(move || {
            let done = work();
            drop(held);
            done
        });
        let done = timeout(patience, working).await.ok();
        if done.is_none() {
            call.give_up();
        }
        done
    }
}

impl Call {
    fn give_up(&self) {
        self.calls.0.calls.fetch_add(1, Ordering::Relaxed);
        self.was_given_up.store(true, Ordering::Relaxed);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if *self.was_given_up.get_mut() {
            let Overdue { whose, calls } = &*self.calls.0;
            calls.fetch_sub(1, Ordering::Relaxed);
            if !self.calls.are_overdue() {
                tracing::info!("{whose} answers again");
            }
        }
    }
}

impl Store {
    /// Whether the volume says nothing.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.calls.are_overdue()
    }

    /// Looks for something on the volume, off the runtime's threads, unless it is stalled.
    ///
    /// # Errors
    /// When it does not come to its end in time, besides those of `work`.
    pub async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.is_stalled() { Err(stalled()) } else { self.within(READ_PATIENCE, work).await }
    }

    /// Does something on the volume, off the runtime's threads, and waits for it no longer than
    /// `patience`; it is done to its end all the same.
    ///
    /// # Errors
    /// When it does not come to its end in time, besides those of `work`.
    pub async fn within<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Some(done) = self.calls.wait(patience, work).await else {
            let error = stalled();
            self.health.report(&error);
            return Err(error);
        };
        done.map_err(StoreError::interrupted)?
    }
}

fn stalled() -> StoreError {
    let source = io::ErrorKind::TimedOut.into();
    StoreError {
        kind: StoreErrorKind::Unavailable,
        operation: "wait any longer for the volume",
        source,
    }
}
