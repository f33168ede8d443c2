//! Room for one download: promised before its first byte, grown as it comes, given back when it is recorded
//! or given up.

use std::sync::Arc;

use crate::engine::volume::limits::Shortage;
use crate::engine::volume::room::{Room, lock, no_room};
use crate::store::{Stage, Store, StoreError, StoreErrorKind, set_aside};

/// By how much a body of unknown length is given room, in bytes.
pub(super) const STEP: u64 = 256 * 1024;
/// How much room a body has at most ahead of what has arrived of it, in bytes, where only its mirror
/// tells its size: nothing more goes for the sake of a claim.
const CLAIM_AHEAD: u64 = 64 * 1024 * 1024;

impl Room {
    /// Makes room and begins a blob in it; `size` in bytes, where that is sure. To be recorded in
    /// the index before the promise is dropped.
    ///
    /// # Errors
    /// When there is no room and none can be made, or the volume can not be written; the store's
    /// health tells from then on.
    pub async fn stage(self: &Arc<Self>, size: Option<u64>) -> Result<Staged, StoreError> {
        let staged = self.try_stage(size).await;
        if let Err(error) = &staged {
            self.refuse(error);
        }
        staged
    }

    /// The same for a body of which nobody but its mirror says that it has `claim` bytes: there is
    /// room for the next part of it at any time, and one that can never fit is refused at once.
    ///
    /// # Errors
    /// As those of [`Room::stage`].
    pub async fn stage_claimed(self: &Arc<Self>, claim: u64) -> Result<Staged, StoreError> {
        if let Err(error) = self.ensure_possible(claim).await {
            let error = self.unless_full(error, STEP).await;
            self.refuse(&error);
            return Err(error);
        }
        let staged = self.stage(Some(claim.min(CLAIM_AHEAD))).await?;
        Ok(Staged { claim, ..staged })
    }

    /// Nothing is to go for what would not fit if all of it went.
    async fn ensure_possible(&self, claim: u64) -> Result<(), StoreError> {
        let promised = self.promised().and(claim);
        self.look_at_fellows().await;
        let known = self.volume().await.bytes;
        let shortage = self.shortage_of(known, promised, false).await;
        if shortage.bytes() > known { Err(no_room(shortage)) } else { Ok(()) }
    }

    async fn try_stage(self: &Arc<Self>, size: Option<u64>) -> Result<Staged, StoreError> {
        let mut promise = Promise::open(self);
        let needed = size.unwrap_or_default();
        if let Err(error) = promise.grow_to(needed).await {
            return Err(self.unless_full(error, STEP).await);
        }
        let store = self.store();
        let stage = self.while_full(needed, move || store.stage(size)).await?;
        promise.is_set_aside();
        Ok(Staged { stage, promise, claim: 0 })
    }

    fn refuse(&self, error: &StoreError) {
        self.metrics.refused.inc();
        if error.kind == StoreErrorKind::NoRoom {
            tracing::info!(%error, source = %error.source, "passing a file on without storing it");
        }
        self.store().report(error);
    }
}

/// Room that one download may count on, given back when dropped.
pub struct Promise {
    room: Arc<Room>,
    bytes: u64,
    set_aside: u64,
}

impl Promise {
    fn open(room: &Arc<Room>) -> Self {
        Self { room: Arc::clone(room), bytes: 0, set_aside: 0 }
    }

    /// # Errors
    /// When there is no room and none can be made: then nothing is changed.
    async fn grow_to(&mut self, bytes: u64) -> Result<(), StoreError> {
        let more = bytes.saturating_sub(self.bytes);
        let quota = self.room.limits().quota.unwrap_or(u64::MAX);
        {
            let by_fellows = self.room.sharers.told().promised;
            let mut promised = lock(&self.room.promised);
            let all = promised.all.saturating_add(by_fellows).saturating_add(more);
            if all > quota || all == u64::MAX {
                // What others count on can not go.
                let of_quota = all.saturating_sub(quota).max(1);
                return Err(no_room(Shortage { of_quota, of_space: 0 }));
            }
            *promised = promised.and(more);
        }
        self.bytes += more;
        let made = self.room.make().await;
        if made.is_err() {
            self.shrink(more);
        }
        made
    }

    /// The volume knows of all of it now.
    fn is_set_aside(&mut self) {
        let mut promised = lock(&self.room.promised);
        promised.not_set_aside -= self.bytes - self.set_aside;
        self.set_aside = self.bytes;
    }

    fn shrink(&mut self, less: u64) {
        let mut promised = lock(&self.room.promised);
        promised.all -= less;
        self.bytes -= less;
        let not_set_aside = less.min(self.bytes + less - self.set_aside);
        promised.not_set_aside -= not_set_aside;
        self.set_aside -= less - not_set_aside;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

/// A blob under way, and the room for it.
pub struct Staged {
    /// Where it is written.
    pub stage: Stage,
    /// To be kept until the blob is recorded.
    pub promise: Promise,
    /// The size that its mirror claims and nobody confirms, in bytes.
    claim: u64,
}

impl Staged {
    /// Where it is.
    pub(in crate::engine) fn store(&self) -> Arc<Store> {
        self.promise.room.store()
    }

    /// Makes sure of room for the body up to its byte `end`: its size may not have been known, or
    /// not been right.
    ///
    /// # Errors
    /// When there is none and none can be made.
    pub async fn cover(&mut self, end: u64) -> Result<(), StoreError> {
        if end <= self.promise.bytes {
            return Ok(());
        }
        let covered = self.try_cover(end).await;
        if covered.is_err() {
            self.promise.room.metrics.refused.inc();
        }
        covered
    }

    async fn try_cover(&mut self, end: u64) -> Result<(), StoreError> {
        let ahead = self.claim.min(end.saturating_add(CLAIM_AHEAD));
        if self.promise.grow_to(ahead.max(end.next_multiple_of(STEP))).await.is_err() {
            let part = end - self.stage.size();
            if let Err(error) = self.promise.grow_to(end).await {
                return Err(self.promise.room.unless_full(error, part).await);
            }
        }
        let (room, stage, bytes) = (&self.promise.room, &self.stage, self.promise.bytes);
        let file = stage.reader();
        room.while_full(bytes - stage.size(), move || set_aside(&file, bytes)).await?;
        self.promise.is_set_aside();
        Ok(())
    }
}
