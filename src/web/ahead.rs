//! Requests of one connection that were begun before their turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::{Client, Hint};
use crate::web::proxy::Proxy;
use crate::web::wire::Wire;

/// Requests begun ahead at a time: apt sends ten.
const BEGUN_MAX: usize = 16;

/// What was begun, oldest first. Dropped with the connection, it lets go of what nobody else wants.
#[derive(Clone, Default)]
pub(super) struct Ahead(Arc<Mutex<VecDeque<Begun>>>);

struct Begun {
    target: String,
    hint: Option<Hint>,
}

impl Ahead {
    /// Begins what the heads waiting on the wire will need, as far as there is room.
    pub(super) fn begin(&self, wire: &Wire, proxy: &Arc<Proxy>, client: Client) {
        let mut begun = self.lock();
        while begun.len() < BEGUN_MAX {
            let Some(head) = wire.next_head() else { return };
            let target = head.target.clone();
            begun.push_back(Begun { target, hint: proxy.prepare(head, client) });
        }
    }

    /// What was begun for `target`, whose turn has come. Whatever is older was passed over.
    pub(super) fn take(&self, target: &str) -> Option<Hint> {
        let mut begun = self.lock();
        let at = begun.iter().position(|begun| begun.target == target)?;
        begun.drain(..=at).next_back()?.hint
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Begun>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
