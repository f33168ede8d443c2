//! Room on the volume: made before it is needed. What is stored, as the index sums it up and as is
//! found on the volume beyond that, and what downloads under way have been promised stay together
//! within the quota, and leave the volume its free space; so no two of them count on the same room.
//!
//! Of the processes that share a volume, one evicts at a time, and each tells the others what it has
//! promised, ten times a second: what they promise between two tellings may pass the quota, until the next
//! eviction.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntGauge};
use tokio::time::{Instant, sleep, timeout};

use crate::engine::duties::{Duties, Duty, OnDuty};
use crate::engine::memory::Memory;
use crate::engine::volume::adopt::Unadopted;
use crate::engine::volume::evict::{EvictError, Evictor, Mode};
use crate::engine::volume::limits::{Limits, MinFree, Promised, Shortage, shortage};
use crate::engine::volume::pins::Pin;
use crate::engine::volume::promise::STEP;
use crate::engine::volume::sharers::{Sharers, Told};
use crate::index::{Index, IndexError, Volume, budget};
use crate::store::{Space, Store, StoreError, StoreErrorKind, WRITE_PATIENCE};
use crate::telemetry::metrics::Metrics;

/// For how long room is waited for that was freed and is not there: who has a removed file open keeps
/// it, and some file systems take their time.
const OWED_FOR: Duration = Duration::from_secs(30);
/// How often room is made for one need, when the volume turns out to have less than was thought: what
/// was removed may still be open, and other programs write too.
const ROUNDS_MAX: u32 = 3;
/// The most that a request has evicted beyond what downloads need, in bytes: after a bound was lowered
/// there is more to do than a client waits for.
const ARREARS_MAX: u64 = 256 * 1024 * 1024;
/// What is evicted at once in the background, in bytes: then requests get their turn.
const TIDY_STEP: u64 = 64 * 1024 * 1024;
/// After how long of waiting for who makes room there is a look at the index.
const LOCK_STEP: Duration = Duration::from_millis(100);
/// For how long who needs room waits for a fellow's eviction: one that dies in its midst has the right
/// to it for the term of a lease.
const TURN_PATIENCE: Duration = Duration::from_secs(8);
/// How often it is looked whether it is over.
const TURN_LOOK: Duration = Duration::from_millis(50);

/// How much is stored, and what of it whatever comes.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The bounds.
    pub limits: Limits,
    /// What is never evicted.
    pub pins: Vec<Pin>,
}

/// Promises room and keeps to it.
pub struct Room {
    index: Arc<dyn Index>,
    store: Arc<Store>,
    evictor: Evictor,
    limits: ArcSwap<Limits>,
    pub(super) promised: Mutex<Promised>,
    unadopted: Arc<Unadopted>,
    /// What the index said last, for when it fails; `None`: it never did.
    volume: Mutex<Option<Volume>>,
    owed: Mutex<Owed>,
    /// Held by who evicts, besides the duty: what one frees is not freed again by the next.
    making: tokio::sync::Mutex<()>,
    duties: Arc<Duties>,
    pub(super) sharers: Sharers,
    pub(super) metrics: RoomMetrics,
}

/// What was freed for the volume's sake and has not come back yet, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    bytes: u64,
    until: Option<Instant>,
}

impl Owed {
    fn bytes(self) -> u64 {
        if self.until.is_some_and(|until| Instant::now() < until) { self.bytes } else { 0 }
    }

    /// What is added to a debt falls due with it, so that debts do not grow for ever.
    fn add(&mut self, bytes: u64) {
        let before = self.bytes();
        if before == 0 {
            self.until = Some(Instant::now() + OWED_FOR);
        }
        self.bytes = before.saturating_add(bytes);
    }
}

pub(super) struct RoomMetrics {
    bytes: IntGauge,
    blobs: IntGauge,
    promised: IntGauge,
    promised_by_others: IntGauge,
    unadopted: IntGauge,
    quota: IntGauge,
    free: IntGauge,
    pub(super) refused: IntCounter,
}

impl RoomMetrics {
    fn new(metrics: &Metrics) -> Self {
        Self {
            bytes: metrics.gauge("aptmesh_store_bytes", "Bytes of stored blobs."),
            blobs: metrics.gauge("aptmesh_store_blobs", "Stored blobs."),
            promised: metrics
                .gauge("aptmesh_store_promised_bytes", "Room promised to downloads under way."),
            promised_by_others: metrics.gauge(
                "aptmesh_store_promised_by_others_bytes",
                "Room promised, or taken and not in the index yet, as other processes tell.",
            ),
            unadopted: metrics.gauge(
                "aptmesh_store_unadopted_bytes",
                "Bytes found on the volume that the index is still to know of.",
            ),
            quota: metrics.gauge(
                "aptmesh_store_quota_bytes",
                "The bound of what is stored and promised (store.quota); 0 if there is none.",
            ),
            free: metrics.gauge("aptmesh_store_free_bytes", "What the volume has left."),
            refused: metrics.counter(
                "aptmesh_store_refused_total",
                "Files that were passed on without being stored, since no room could be made.",
            ),
        }
    }
}

impl Room {
    /// Room on `store`, as `index` knows it, for a command beside a cache; `memory` lets go of what
    /// goes.
    #[must_use]
    pub fn new(
        config: &Config,
        index: &Arc<dyn Index>,
        store: &Arc<Store>,
        memory: &Arc<Memory>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let duties = Duties::of_a_command(index, metrics);
        Self::of(config, index, store, memory, &duties, metrics)
    }

    /// The same, for one of the processes that share it.
    pub(in crate::engine) fn of(
        config: &Config,
        index: &Arc<dyn Index>,
        store: &Arc<Store>,
        memory: &Arc<Memory>,
        duties: &Arc<Duties>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            index: Arc::clone(index),
            store: Arc::clone(store),
            evictor: Evictor::new(&config.pins, index, store, memory, metrics),
            limits: ArcSwap::from_pointee(config.limits),
            promised: Mutex::default(),
            unadopted: Arc::default(),
            volume: Mutex::default(),
            owed: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            duties: Arc::clone(duties),
            sharers: Sharers::new(index, duties),
            metrics: RoomMetrics::new(metrics),
        })
    }

    /// The bounds.
    #[must_use]
    pub fn limits(&self) -> Limits {
        **self.limits.load()
    }

    /// Changes bounds and pins, which are kept to from now on.
    ///
    /// # Errors
    /// When what was pinned before could not be let go.
    pub async fn change(&self, config: &Config) -> Result<(), IndexError> {
        self.limits.store(Arc::new(config.limits));
        self.evictor.set_pins(config.pins.clone()).await
    }

    /// What is found on the volume, and takes room before the index knows of it.
    #[must_use]
    pub fn unadopted(&self) -> &Arc<Unadopted> {
        &self.unadopted
    }

    pub(super) fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    /// Who evicts.
    #[must_use]
    pub fn evictor(&self) -> &Evictor {
        &self.evictor
    }

    /// What lies on the volume, as far as is known.
    pub async fn volume(&self) -> Volume {
        self.volume_if_told().await.unwrap_or_default()
    }

    /// The same, for people; `None`: the index never told.
    pub async fn volume_if_told(&self) -> Option<Volume> {
        match self.index.volume().await {
            Ok(volume) => {
                *lock(&self.volume) = Some(volume);
                Some(volume)
            }
            Err(error) => {
                tracing::debug!(%error, source = %error.source, "going on with the sums of before");
                *lock(&self.volume)
            }
        }
    }

    /// What the index said last.
    #[must_use]
    pub fn volume_of_before(&self) -> Option<Volume> {
        *lock(&self.volume)
    }

    /// Makes room ahead of the need, where no fellow is evicting.
    ///
    /// # Errors
    /// When blobs could not be removed.
    pub(in crate::engine) async fn make_ahead(&self) -> Result<(), EvictError> {
        loop {
            let _alone = self.making.lock().await;
            if self.attainable().await.bytes() == 0 {
                return Ok(());
            }
            let Some(on_duty) = self.duties.take(Duty::Evict, "").await? else { return Ok(()) };
            self.sharers.look().await;
            let shortage = self.attainable().await;
            let missing = shortage.bytes().min(TIDY_STEP);
            if missing == 0 || self.evict(missing, shortage.of_space > 0, &on_duty).await? == 0 {
                return Ok(());
            }
        }
    }

    /// What is missing, also to the headroom. No space where all that is stored would not be enough:
    /// then it would go for nothing.
    async fn attainable(&self) -> Shortage {
        let stored = self.volume().await.bytes;
        let mut shortage = self.shortage(true).await;
        if shortage.of_space > stored {
            shortage = self.shortage(false).await;
        }
        if shortage.of_space > stored {
            shortage.of_space = 0;
            self.complain().await;
        }
        shortage
    }

    /// Tells of free space that can not be had, unless trouble is known already.
    async fn complain(&self) {
        let missing = self.lacks_for_good(0).await;
        if missing > 0 && self.store.health().trouble().is_none() {
            self.store.report(&out_of_reach(missing));
        }
    }

    /// Tells the metrics.
    pub(in crate::engine) async fn tell(&self) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let volume = self.volume().await;
        self.metrics.bytes.set(gauge(volume.bytes));
        self.metrics.blobs.set(gauge(volume.blobs));
        self.metrics.promised.set(gauge(self.promised().all));
        self.look_at_fellows().await;
        self.metrics.promised_by_others.set(gauge(self.sharers.told().promised));
        self.metrics.unadopted.set(gauge(self.unadopted.bytes()));
        self.metrics.quota.set(gauge(self.limits().quota.unwrap_or_default()));
        self.metrics.free.set(gauge(self.space_now().await.map_or(0, |space| space.free)));
    }

    /// What has to go to be within the bounds, in bytes.
    ///
    /// # Errors
    /// When the volume would lack free space even if all went.
    pub async fn excess(&self) -> Result<u64, StoreError> {
        match self.lacks_for_good(0).await {
            0 => Ok(self.shortage(false).await.bytes()),
            missing => Err(out_of_reach(missing)),
        }
    }

    /// What would have to go for `bytes` more, in bytes; 0: they fit as it is.
    pub async fn missing_for(&self, bytes: u64) -> u64 {
        let promised = self.promised().and(bytes);
        self.look_at_fellows().await;
        let known = self.volume().await.bytes;
        self.shortage_of(known, promised, false).await.bytes()
    }

    /// The most that could be stored if all blobs went, in bytes.
    pub async fn most(&self) -> u64 {
        let (limits, stored) = (self.limits(), self.volume().await.bytes);
        let by_space = self.space().await.map_or(u64::MAX, |space| {
            space.free.saturating_add(stored).saturating_sub(limits.min_free.of(space))
        });
        // What is not adopted yet can not go.
        let by_quota =
            limits.quota.map_or(u64::MAX, |quota| quota.saturating_sub(self.unadopted.bytes()));
        by_quota.min(by_space)
    }

    /// Evicts until all promises can be kept.
    pub(super) async fn make(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.shortage(false).await.bytes() == 0 {
            return Ok(());
        }
        let room = Arc::clone(self);
        to_its_end(async move { room.make_alone().await }).await
    }

    /// The lock that one makes room under. No client waits for one who waits for an index in trouble.
    async fn alone(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, StoreError> {
        loop {
            match timeout(LOCK_STEP, self.making.lock()).await {
                Ok(alone) => return Ok(alone),
                Err(_elapsed) => {
                    if let Some(trouble) = self.index.trouble() {
                        let source = std::io::Error::other(trouble);
                        let kind = StoreErrorKind::NoRoom;
                        return Err(StoreError { kind, operation: "make room", source });
                    }
                }
            }
        }
    }

    async fn make_alone(&self) -> Result<(), StoreError> {
        let until = Instant::now() + TURN_PATIENCE;
        let _alone = self.alone().await?;
        let mut turn = self.turn_if_short().await;
        let (on_duty, mut shortage) = loop {
            match turn {
                (shortage, _) if shortage.bytes() == 0 => return Ok(()),
                (shortage, Ok(Some(on_duty))) => break (on_duty, shortage),
                (_, Ok(None)) if Instant::now() < until => sleep(TURN_LOOK).await,
                (shortage, Ok(None)) => return Err(no_room(shortage)),
                (shortage, Err(error)) => {
                    tracing::debug!(%error, source = %error.source, "no room without the index");
                    return Err(no_room(shortage));
                }
            }
            turn = on_its_own_account(self.turn_if_short()).await;
        };
        for _ in 0..ROUNDS_MAX {
            if shortage.bytes() == 0 {
                return Ok(());
            }
            let is_too_much = shortage.bytes() > self.promised().all.saturating_add(ARREARS_MAX);
            if is_too_much || !self.free(shortage.bytes(), shortage.of_space > 0, &on_duty).await {
                return Err(no_room(shortage));
            }
            shortage = self.shortage(false).await;
        }
        // What went and is still open frees its room later; until then the volume itself tells.
        if shortage.of_quota == 0 { Ok(()) } else { Err(no_room(shortage)) }
    }

    /// What is missing, also after what a fellow freed meanwhile, and the right to evict it; `None`
    /// while a fellow has that.
    async fn turn_if_short(&self) -> (Shortage, Result<Option<OnDuty>, IndexError>) {
        let shortage = self.shortage(false).await;
        if shortage.bytes() == 0 {
            return (shortage, Ok(None));
        }
        match self.turn().await {
            Ok(Some(on_duty)) => (self.shortage(false).await, Ok(Some(on_duty))),
            no_turn => (shortage, no_turn),
        }
    }

    /// The right to evict, with what fellows tell by then; `None` while a fellow has it.
    async fn turn(&self) -> Result<Option<OnDuty>, IndexError> {
        let taken = self.duties.take(Duty::Evict, "").await?;
        if taken.is_some() {
            self.sharers.look().await;
        }
        Ok(taken)
    }

    /// Frees `bytes` on the volume, or waits until a fellow has freed what it needs: then there may be
    /// enough. Whether it is worth another try; it is not where the index can not be asked.
    async fn free_in_turn(&self, bytes: u64) -> bool {
        let Ok(_alone) = self.alone().await else { return false };
        let mut turn = self.turn().await;
        if let Ok(Some(on_duty)) = &turn {
            return self.free(bytes, true, on_duty).await;
        }
        let until = Instant::now() + TURN_PATIENCE;
        while matches!(turn, Ok(None)) && Instant::now() < until {
            sleep(TURN_LOOK).await;
            turn = on_its_own_account(self.turn()).await;
        }
        matches!(turn, Ok(Some(_)))
    }

    /// Does again what the volume had no room for, as long as room can be made.
    pub(super) async fn while_full<T>(
        self: &Arc<Self>,
        bytes: u64,
        attempt: impl Fn() -> Result<T, StoreError> + Clone + Send + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
    {
        for _ in 0..ROUNDS_MAX {
            match self.store.within(WRITE_PATIENCE, attempt.clone()).await {
                Err(error) if error.kind == StoreErrorKind::Full => {
                    let room = Arc::clone(self);
                    let freeing = async move {
                        room.free_in_turn(bytes.max(STEP)).await.then_some(()).ok_or(error)
                    };
                    to_its_end(freeing).await?;
                }
                done => return done,
            }
        }
        self.store.within(WRITE_PATIENCE, attempt).await
    }

    /// Whether something could be freed. Nothing is if all of it would not be enough.
    async fn free(&self, bytes: u64, for_space: bool, on_duty: &OnDuty) -> bool {
        if bytes > self.volume().await.bytes {
            return false;
        }
        match self.evict(bytes, for_space, on_duty).await {
            Ok(freed) => freed > 0,
            Err(error) => {
                tracing::warn!(%error, "could not make room");
                false
            }
        }
    }

    /// Where it is the volume that lacks space, what does not come back at once is owed.
    async fn evict(
        &self,
        bytes: u64,
        for_space: bool,
        on_duty: &OnDuty,
    ) -> Result<u64, EvictError> {
        let free = async || self.space_now().await.map_or(0, |space| space.free);
        let before = free().await;
        let freed =
            self.evictor.evict_while(Some(on_duty.sureness()), bytes, Mode::Real, None).await?;
        if for_space {
            let came_back = free().await.saturating_sub(before);
            lock(&self.owed).add(freed.saturating_sub(came_back));
            // Who evicts next is not to free it again.
            self.duties.leases().tell().await;
        }
        Ok(freed)
    }

    async fn shortage(&self, with_headroom: bool) -> Shortage {
        // In this order: what is recorded meanwhile is counted twice rather than not at all.
        let promised = self.promised();
        self.look_at_fellows().await;
        let known = self.volume().await.bytes;
        self.shortage_of(known, promised, with_headroom).await
    }

    /// Where what they tell can matter.
    pub(super) async fn look_at_fellows(&self) {
        let limits = self.limits();
        if limits.quota.is_some() || limits.min_free != MinFree::Bytes(0) {
            self.sharers.look_now_and_then().await;
        }
    }

    /// What fellows are to know.
    pub(super) fn told(&self) -> Told {
        let promised = self.promised().all.saturating_add(self.unadopted.bytes());
        Told { promised, owed: lock(&self.owed).bytes() }
    }

    /// Tells fellows, and hears of them, for ever.
    pub(in crate::engine) async fn tell_fellows(self: Arc<Self>) {
        self.sharers.tell(Arc::downgrade(&self)).await;
    }

    /// `known` to the index, in bytes.
    pub(super) async fn shortage_of(
        &self,
        known: u64,
        promised: Promised,
        with_headroom: bool,
    ) -> Shortage {
        let promised_by_fellows = self.sharers.told().promised;
        let stored =
            known.saturating_add(self.unadopted.bytes()).saturating_add(promised_by_fellows);
        shortage(self.limits(), stored, promised, self.space().await, with_headroom)
    }

    /// What the volume would lack for `bytes` more if all that is stored went, in bytes.
    async fn lacks_for_good(&self, bytes: u64) -> u64 {
        let promised = Promised::default().and(bytes);
        let known = self.volume().await.bytes;
        self.shortage_of(known, promised, false).await.of_space.saturating_sub(known)
    }

    /// A file for which there is no room says nothing about the volume, unless it has none for a part
    /// of it, of so many bytes, either: then nothing else would fit.
    pub(super) async fn unless_full(&self, error: StoreError, part: u64) -> StoreError {
        let is_full = self.lacks_for_good(part).await > 0;
        let kind = if is_full { StoreErrorKind::Full } else { error.kind };
        StoreError { kind, ..error }
    }

    /// With what is owed; `None` where the volume can not tell.
    pub async fn space(&self) -> Option<Space> {
        let owed = lock(&self.owed).bytes().saturating_add(self.sharers.told().owed);
        let space = self.space_now().await?;
        Some(Space { free: space.free.saturating_add(owed), ..space })
    }

    async fn space_now(&self) -> Option<Space> {
        let store = Arc::clone(&self.store);
        self.store.look(move || store.space()).await.ok()
    }

    pub(super) fn promised(&self) -> Promised {
        *lock(&self.promised)
    }
}

/// Who polls while a fellow evicts would use up what a request may wait for the index, which is well.
async fn on_its_own_account<F: Future>(polling: F) -> F::Output {
    budget::for_at_most(budget::of_a_request(), polling).await
}

/// Who waits for an eviction may leave, but what is gone from the volume is to be forgotten.
async fn to_its_end(
    work: impl Future<Output = Result<(), StoreError>> + Send + 'static,
) -> Result<(), StoreError> {
    #[expect(clippy::disallowed_methods, reason = "short, and as a rule waited for")]
    let working = tokio::spawn(budget::inherited(work));
    working.await.map_err(StoreError::interrupted)?
}

pub(super) fn no_room(shortage: Shortage) -> StoreError {
    let bound = if shortage.of_quota > 0 { "store.quota" } else { "store.min_free" };
    let reason = format!("{bound} leaves {} bytes too few", shortage.bytes());
    let source = std::io::Error::other(reason);
    StoreError { kind: StoreErrorKind::NoRoom, operation: "make room", source }
}

fn out_of_reach(missing: u64) -> StoreError {
    let reason = format!("even without all that is stored, it lacks {missing} bytes");
    let source = std::io::Error::other(reason);
    StoreError { kind: StoreErrorKind::Full, operation: "keep to store.min_free", source }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
