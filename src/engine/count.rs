//! How much the index knows, counted seldom: a count walks over millions of rows, and anybody may ask.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::index::{Index, Totals};

/// A count that takes no longer is not held: it has a connection of its own, and is right now.
const SHORT: Duration = Duration::from_millis(500);
/// A longer one holds for as many times the time that it took beyond that: so that counting takes no more than
/// about a fiftieth of the time, and the count of a small index is never old.
const HOLDS_FOR: u32 = 50;
/// And for at most this long.
const HOLDS_MAX: Duration = Duration::from_mins(5);

/// The last count. Who asks while there is one under way waits for that one.
#[derive(Default)]
pub(super) struct Count(Mutex<Option<Counted>>);

struct Counted {
    totals: Totals,
    until: Instant,
}

impl Count {
    /// `None` if the index can not tell.
    pub(super) async fn of(&self, index: &dyn Index) -> Option<Totals> {
        let mut last = self.0.lock().await;
        let begun = Instant::now();
        if let Some(counted) = last.as_ref().filter(|counted| begun < counted.until) {
            return Some(counted.totals);
        }
        let totals = index.totals().await.ok()?;
        let now = Instant::now();
        let long = (now - begun).saturating_sub(SHORT);
        let until = now + (long * HOLDS_FOR).min(HOLDS_MAX);
        *last = Some(Counted { totals, until });
        Some(totals)
    }
}
