//! Whether the volume takes new blobs: said once when it changes, and readable at any time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{StoreError, StoreErrorKind};

/// For how long a volume that failed is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The volume's state, as its last write showed it.
#[derive(Default)]
pub struct Health {
    trouble: Mutex<Option<Trouble>>,
}

struct Trouble {
    text: String,
    since: Instant,
}

impl Health {
    /// What is wrong, for an operator; `None` when the last write went well.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.lock().as_ref().map(|trouble| trouble.text.clone())
    }

    pub(super) fn is_worth_a_try(&self) -> bool {
        self.lock().as_ref().is_none_or(|trouble| trouble.since.elapsed() >= RETRY_AFTER)
    }

    pub(super) fn report(&self, error: &StoreError) {
        let what = match error.kind {
            StoreErrorKind::NoRoom => return,
            StoreErrorKind::Full => "the volume is full",
            StoreErrorKind::ReadOnly => "the volume can not be written",
            StoreErrorKind::Unavailable => "the volume fails",
        };
        let text = format!("{what}: {error}: {}", error.source);
        let mut trouble = self.lock();
        if trouble.is_none() {
            tracing::error!("{text}; files are passed on without being stored");
        }
        *trouble = Some(Trouble { text, since: Instant::now() });
    }

    pub(super) fn well(&self) {
        if self.lock().take().is_some() {
            tracing::info!("the volume takes new blobs again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
