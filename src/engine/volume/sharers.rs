//! Other processes that share the volume: each tells, beside a lease of its own, what it has promised and
//! what it waits for, and reads what the others tell.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::engine::duties::Duties;
use crate::engine::leases::Telling;
use crate::engine::volume::room::Room;
use crate::index::Index;

/// How old what they tell may be: it is not told more often.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Until the index is asked again whether this process may tell.
const PAUSE: Duration = Duration::from_secs(1);
/// What the names of these leases begin with.
const ROOM: &str = "room";

/// What a process tells, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Promised to downloads, or found on the volume, and not known to the index yet.
    pub(super) promised: u64,
    /// Freed for the volume's sake, and not back yet.
    pub(super) owed: u64,
}

impl Told {
    fn to_note(self) -> String {
        format!("{} {}", self.promised, self.owed)
    }

    /// What a newer process tells beyond that is no matter.
    fn of_note(note: &str) -> Option<Self> {
        let mut numbers = note.split(' ').map(str::parse);
        Some(Self { promised: numbers.next()?.ok()?, owed: numbers.next()?.ok()? })
    }

    fn and(self, other: Self) -> Self {
        Self {
            promised: self.promised.saturating_add(other.promised),
            owed: self.owed.saturating_add(other.owed),
        }
    }
}

/// The others.
pub(super) struct Sharers {
    index: Arc<dyn Index>,
    duties: Arc<Duties>,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    told: Told,
    at: Option<Instant>,
}

impl Sharers {
    pub(super) fn new(index: &Arc<dyn Index>, duties: &Arc<Duties>) -> Self {
        let (index, duties) = (Arc::clone(index), Arc::clone(duties));
        Self { index, duties, seen: Mutex::default() }
    }

    /// What they told, in sum, as it was seen last.
    pub(super) fn told(&self) -> Told {
        self.seen().told
    }

    /// Unless that was just now.
    pub(super) async fn look_now_and_then(&self) {
        if self.seen().at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.look().await;
        }
    }

    /// Where the index fails, what was seen before counts.
    pub(super) async fn look(&self) {
        let own = self.own_name();
        let told = match self.index.holdings_like(&self.duties.name_on_volume(ROOM, "")).await {
            Ok(held) => {
                let others = held.into_iter().filter(|one| one.lease.name != own);
                let notes = others.filter_map(|one| Told::of_note(&one.note?));
                notes.fold(Told::default(), Told::and)
            }
            Err(error) => {
                tracing::debug!(%error, source = %error.source, "going on with what fellows told");
                self.told()
            }
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            Seen { told, at: Some(Instant::now()) };
    }

    /// Tells the others of `room`, for ever.
    pub(super) async fn tell(&self, room: Weak<Room>) {
        let name = self.own_name();
        loop {
            let telling = Arc::new(Ours(Weak::clone(&room)));
            if let Ok(Some((tenure, _))) = self.duties.leases().take(&name, Some(telling)).await {
                tenure.lost().await;
            }
            sleep(PAUSE).await;
        }
    }

    fn own_name(&self) -> String {
        self.duties.name_on_volume(ROOM, self.duties.leases().owner())
    }

    fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this process tells.
struct Ours(Weak<Room>);

impl Telling for Ours {
    fn note(&self) -> Option<String> {
        self.0.upgrade().map(|room| room.told().to_note())
    }

    fn is_wanted(&self, _by_others: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read() {
        let told = Told { promised: 7, owed: 1 << 40 };
        assert_eq!(Told::of_note(&told.to_note()), Some(told));
        assert_eq!(Told::of_note("7 8 more"), Some(Told { promised: 7, owed: 8 }));
        for bad in ["", "7", "7 x", "-1 0"] {
            assert_eq!(Told::of_note(bad), None, "{bad}");
        }
    }
}
