//! Requests of one connection that were begun before their turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::Span;

use crate::engine::{Client, Hint};
use crate::telemetry::traces;
use crate::web::access::DoorMetrics;
use crate::web::proxy::Proxy;
use crate::web::wire::Wire;

/// Requests begun ahead at a time: apt sends ten.
const BEGUN_MAX: usize = 16;

/// What was begun, oldest first. Dropped with the connection, it lets go of what nobody else wants.
#[derive(Clone, Default)]
pub(super) struct Ahead(Arc<Mutex<VecDeque<Begun>>>);

/// What was begun for a request.
pub(super) struct Begun {
    target: String,
    hint: Option<Hint>,
    /// Of the request, until its turn has come.
    span: Option<Span>,
}

impl Begun {
    /// Whether it began a flight.
    pub(super) fn has_begun(&self) -> bool {
        self.hint.as_ref().is_some_and(Hint::has_begun)
    }

    /// In which the request is traced, whose turn has come.
    pub(super) fn take_span(&mut self) -> Option<Span> {
        self.span.take()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(span) = &self.span {
            // Its turn did not come.
            traces::set(span, "aptmesh.outcome", "left");
        }
    }
}

impl Ahead {
    /// Begins what the heads waiting on the wire will need, as far as there is room.
    pub(super) fn begin(
        &self,
        wire: &Wire,
        proxy: &Arc<Proxy>,
        door: &DoorMetrics,
        client: Client,
    ) {
        let mut begun = self.lock();
        while begun.len() < BEGUN_MAX {
            let Some(head) = wire.next_head() else { return };
            let (mut hint, mut span) = (None, None);
            if let Some(request) = head.request() {
                let span = span.insert(door.span(&request, client.address));
                hint = span.in_scope(|| proxy.prepare(&request, client));
            }
            begun.push_back(Begun { target: head.target, hint, span });
        }
    }

    /// What was begun for `target`, whose turn has come. Whatever is older was passed over.
    pub(super) fn take(&self, target: &str) -> Option<Begun> {
        let mut begun = self.lock();
        let at = begun.iter().position(|begun| begun.target == target)?;
        begun.drain(..=at).next_back()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Begun>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
