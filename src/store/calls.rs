//! Calls to the volume that somebody waits for. A volume may say nothing for long, such as a network
//! file system whose server is away; and a call that was made can not be taken back. Who waits for one
//! gives it up after a while, and as long as a call that was given up has not come back, the volume
//! counts as *stalled*: nobody else is sent after it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::store::{Store, StoreError, StoreErrorKind};

/// For how long a client waits for what lies on the volume, before its mirror is asked.
const READ_PATIENCE: Duration = Duration::from_secs(3);
/// For how long something is tried to be written that a client waits for. Longer: what has arrived of a
/// file would be lost.
pub const WRITE_PATIENCE: Duration = Duration::from_secs(8);

/// For how long a file may be on its way from the system's memory to the disk: nobody waits for it, but
/// its flight counts.
pub const COMMIT_PATIENCE: Duration = Duration::from_mins(1);

/// How many calls were given up and have not come back.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<AtomicUsize>);

/// A call: it counts from when it is given up to when it is dropped.
struct Call {
    calls: Calls,
    was_given_up: AtomicBool,
}

impl Calls {
    pub(super) fn are_overdue(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Call {
    fn give_up(&self) {
        self.calls.0.fetch_add(1, Ordering::Relaxed);
        self.was_given_up.store(true, Ordering::Relaxed);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if *self.was_given_up.get_mut() {
            self.calls.0.fetch_sub(1, Ordering::Relaxed);
            if !self.calls.are_overdue() {
                tracing::info!("the volume answers again");
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
        let made = Call { calls: self.calls.clone(), was_given_up: AtomicBool::new(false) };
        let call = Arc::new(made);
        let held = Arc::clone(&call);
        let working = spawn_blocking(move || {
            let done = work();
            drop(held);
            done
        });
        match timeout(patience, working).await {
            Ok(done) => done.map_err(StoreError::interrupted)?,
            Err(_elapsed) => {
                call.give_up();
                let error = stalled();
                self.health.report(&error);
                Err(error)
            }
        }
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
