//! What the engine does by itself, all the time: keep room ahead of the need, tell the index what is
//! used, and let go of what others removed.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::engine::Engine;
use crate::engine::duties::{Duties, Duty};
use crate::engine::learn::Learner;
use crate::engine::learn::doubt::Doubts;
use crate::engine::leases::Sureness;
use crate::engine::memory::Memory;
use crate::engine::volume::room::Room;
use crate::engine::volume::uses::Uses;
use crate::index::{Index, IndexError, Knowledge};

/// How often there is a look at the room: a line of 1 GB/s takes as long for the largest headroom.
const ROOM_EVERY: Duration = Duration::from_secs(1);
/// For how long the volume is left alone when blobs could not be removed.
const ROOM_PAUSE: Duration = Duration::from_secs(30);
/// How often volumes are forgotten that are lost.
const LOST_EVERY: Duration = Duration::from_hours(24);
/// After how long it is tried again where that failed.
const LOST_PAUSE: Duration = Duration::from_mins(1);
/// Their blobs that are forgotten at once, between two looks at the room.
const LOST_STEP: usize = 2000;
/// How often uses are told: what a crash loses of them is no loss.
const USES_EVERY: Duration = Duration::from_secs(3);
/// How often it is looked up whether another process learnt something: a client that was told of a
/// new list by that process, and asks this one, came through a network.
const KNOWLEDGE_EVERY: Duration = Duration::from_secs(1);
/// How often an index may be told all that it may have lost: where two servers answer by turns, as in the
/// midst of a failover, it is not told at each turn.
const RESTORE_EVERY: Duration = Duration::from_secs(10);
/// How often it is told which lists were asked for: it is days that count there.
const ASKED_EVERY: Duration = Duration::from_mins(10);

/// The engine's parts that tidying up takes.
pub(in crate::engine) struct Tidying {
    index: Arc<dyn Index>,
    memory: Arc<Memory>,
    room: Arc<Room>,
    uses: Arc<Uses>,
    knowledge: Arc<AtomicU64>,
    doubts: Arc<Doubts>,
    learner: Learner,
}

/// What was heard of the index last.
#[derive(Default)]
struct Heard {
    last: Option<Knowledge>,
    /// It could not be asked since.
    was_away: bool,
    /// When it was told last what it may have lost.
    restored_at: Option<Instant>,
}

impl Engine {
    pub(in crate::engine) fn tidying(&self) -> Tidying {
        Tidying {
            index: Arc::clone(&self.index),
            memory: Arc::clone(&self.memory),
            room: Arc::clone(&self.room),
            uses: Arc::clone(&self.uses),
            knowledge: Arc::clone(&self.knowledge),
            doubts: Arc::clone(&self.doubts),
            learner: self.learner.clone(),
        }
    }
}

impl Tidying {
    /// Never ends.
    pub(in crate::engine) async fn run(self) {
        // Pins may have changed since the last start: that is told once. What is pinned still is found to
        // be when its turn to go comes, by whoever evicts.
        let mut has_unpinned = false;
        let every = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut room, mut uses, mut asked) =
            (every(ROOM_EVERY), every(USES_EVERY), every(ASKED_EVERY));
        let (mut news, mut heard) = (every(KNOWLEDGE_EVERY), Heard::default());
        loop {
            tokio::select! {
                _ = room.tick() => {
                    self.room.tell().await;
                    self.doubts.end_old();
                }
                _ = uses.tick() => {
                    has_unpinned = has_unpinned || self.index.unpin().await.is_ok();
                    note(self.uses.tell(&*self.index).await);
                    let (memory, store) = (Arc::clone(&self.memory), self.room.store());
                    // It ends well, or its loss is no loss.
                    let looking = store.look(move || {
                        memory.forget_removed();
                        Ok(())
                    });
                    drop(looking.await);
                }
                _ = news.tick() => self.hear_news(&mut heard).await,
                _ = asked.tick() => note(self.uses.tell_asked(&*self.index).await),
            }
        }
    }

    /// Keeps room ahead of the need, in one of the volume's processes, for ever.
    pub(in crate::engine) async fn keep_room(self, duties: Arc<Duties>) {
        duties.carry(Duty::Tidy, "", |sureness| self.keep_room_on(sureness)).await;
    }

    async fn keep_room_on(&self, mut sureness: Sureness) -> Infallible {
        // Who kept it before may have had other pins.
        note(self.index.unpin().await);
        let mut forget_at = Instant::now();
        loop {
            sureness.wait().await;
            if Instant::now() >= forget_at {
                forget_at = Instant::now() + self.forget_lost_volumes().await;
            }
            match self.room.make_ahead().await {
                Ok(()) => sleep(ROOM_EVERY).await,
                Err(error) => {
                    tracing::warn!(%error, "could not keep room free");
                    sleep(ROOM_PAUSE).await;
                }
            }
        }
    }

    /// Some of what lay on volumes that are lost; until when there is nothing more to do.
    async fn forget_lost_volumes(&self) -> Duration {
        match self.index.forget_lost_volumes(LOST_STEP).await {
            Ok(true) => LOST_EVERY,
            Ok(false) => Duration::ZERO,
            Err(error) => {
                tracing::debug!(%error, source = %error.source, "lost volumes could not be forgotten: tried again in a minute");
                LOST_PAUSE
            }
        }
    }

    /// What was checked against lists has to be checked again when any process learnt something since
    /// `heard`, or may have, since the index was away: then lists may be left to learn, too. In an index that
    /// is another one, or was set back, lists are learnt and blobs are adopted again.
    async fn hear_news(&self, heard: &mut Heard) {
        let Ok(now) = self.index.knowledge().await else {
            heard.was_away = true;
            return;
        };
        let is_new = heard.last.as_ref() != Some(&now);
        if std::mem::take(&mut heard.was_away) || is_new {
            self.knowledge.fetch_add(1, Ordering::Release);
        }
        if heard.last.as_ref().is_some_and(|before| now.may_lack(before)) {
            if heard.restored_at.is_some_and(|at| at.elapsed() < RESTORE_EVERY) {
                return;
            }
            heard.restored_at = Some(Instant::now());
            self.learner.learn_again();
            self.room.unadopted().look_again();
        }
        heard.last = Some(now);
    }

    /// Tells the index all that it should know before the process ends.
    pub(in crate::engine) async fn tell(&self) {
        note(self.uses.tell(&*self.index).await);
        note(self.uses.tell_asked(&*self.index).await);
    }
}

fn note(told: Result<(), IndexError>) {
    if let Err(error) = told {
        tracing::debug!(%error, source = %error.source, "uses were lost");
    }
}
