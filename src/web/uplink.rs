//! The line to other sites: so many bytes a second and no more, in turns, so that a peer with many bodies
//! under way gets no more of it than one with a single one.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::engine::flight::follower::SPAN_MAX;

/// The fewest bytes that are sent in one turn: less is not worth its packets.
const STEP_MIN: u64 = 4 * 1024;
/// The most. A peer waits for as many of each of the others.
const STEP_MAX: u64 = 64 * 1024;
/// Turns a second, where steps of these sizes allow it.
const TURNS: u64 = 32;
/// What is made up for, since timers are late; what was not sent before that is not saved up.
const LATE_MAX: Duration = Duration::from_millis(20);

/// The line. Who waits is bounded by the slots.
pub(super) struct Uplink {
    /// Bytes per second; 0: as fast as it goes.
    limit: AtomicU64,
    queue: Mutex<Queue>,
    /// Somebody waits, or the limit is another.
    changed: Notify,
    waits: IntCounter,
}

/// Who waits: bodies by peer, and peers in the order of their turns.
#[derive(Default)]
struct Queue {
    peers: VecDeque<IpAddr>,
    bodies: HashMap<IpAddr, VecDeque<Waiting>>,
}

struct Waiting {
    bytes: u64,
    granted: oneshot::Sender<()>,
}

impl Queue {
    fn push(&mut self, peer: IpAddr, waiting: Waiting) {
        let bodies = self.bodies.entry(peer).or_default();
        if bodies.is_empty() {
            self.peers.push_back(peer);
        }
        bodies.push_back(waiting);
    }

    /// The body whose turn it is; its peer's next one comes after all other peers.
    fn pop(&mut self) -> Option<Waiting> {
        let peer = self.peers.pop_front()?;
        let bodies = self.bodies.get_mut(&peer)?;
        let waiting = bodies.pop_front();
        if bodies.is_empty() {
            self.bodies.remove(&peer);
        } else {
            self.peers.push_back(peer);
        }
        waiting
    }
}

impl Uplink {
    /// A line of `limit` bytes per second; 0: as fast as it goes.
    pub(super) fn new(limit: u64, waits: IntCounter) -> Arc<Self> {
        let (queue, changed) = (Mutex::default(), Notify::new());
        Arc::new(Self { limit: limit.into(), queue, changed, waits })
    }

    /// Changes the limit.
    pub(super) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Waits until `peer` may be sent some of `bytes` bytes; how many.
    pub(super) async fn turn(&self, peer: IpAddr, bytes: u64) -> u64 {
        let Some(limit) = self.limit() else { return bytes.min(SPAN_MAX) };
        let bytes = bytes.min((limit / TURNS).clamp(STEP_MIN, STEP_MAX));
        let (granted, turn) = oneshot::channel();
        self.lock().push(peer, Waiting { bytes, granted });
        self.waits.inc();
        self.changed.notify_one();
        // Nobody drops it but with the process.
        drop(turn.await);
        bytes
    }

    /// Gives turns; for as long as the process lives.
    pub(super) async fn run(self: Arc<Self>) {
        let mut free_at = Instant::now();
        loop {
            if self.lock().peers.is_empty() {
                self.changed.notified().await;
                continue;
            }
            match self.limit() {
                Some(_) if Instant::now() < free_at => {
                    tokio::select! {
                        () = sleep_until(free_at) => {}
                        // The limit may be another, or none.
                        () = self.changed.notified() => {}
                    }
                }
                limit => {
                    let next = self.lock().pop();
                    if let Some(Waiting { bytes, granted }) = next
                        && granted.send(()).is_ok()
                        && let Some(limit) = limit
                    {
                        let begun = free_at.max(Instant::now() - LATE_MAX);
                        free_at = begun + time_for(bytes, limit);
                    }
                }
            }
        }
    }

    /// Bytes per second, if there is a limit.
    pub(super) fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn time_for(bytes: u64, limit: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / limit.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_take_turns() {
        let mut queue = Queue::default();
        let [greedy, modest] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let mut push = |peer, bytes| {
            let (granted, _) = oneshot::channel();
            queue.push(peer, Waiting { bytes, granted });
        };
        for bytes in 1..=3 {
            push(greedy, bytes);
        }
        push(modest, 10);
        let order: Vec<u64> =
            std::iter::from_fn(|| queue.pop()).map(|waiting| waiting.bytes).collect();
        assert_eq!(order, [1, 10, 2, 3]);
        assert!(queue.peers.is_empty() && queue.bodies.is_empty());
    }
}
