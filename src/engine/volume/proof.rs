//! Whether a stored file still is what its name says. A disk forgets, and people touch files: so the
//! first time that a process serves a file, it hashes it beside the sending, and the last bytes are
//! held back until it has proven right. From then on, a look at the open file's state is enough.

use std::future::Future;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::sync::Cache;
use tokio::sync::{Semaphore, watch};

use crate::content::digest::Sha256;
use crate::engine::Engine;
use crate::engine::memory::Known;
use crate::engine::volume::inspect::Inspector;
use crate::engine::volume::pace::Pace;
use crate::store::{Blob, Stamp};

/// Files hashed at a time: more of them would take the cores from sending.
const CHECKS_MAX: usize = 4;
/// Files remembered as proven, far more than memory holds open: those that a large site uses within
/// weeks, at some 200 bytes each.
const PROVEN_MAX: usize = 100_000;

/// What is known of an open file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing yet.
    Open,
    /// They are right, in this state of the file.
    Right(Stamp),
    /// They are wrong, or can not be read.
    Wrong,
}

/// How an open file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Soundness {
    /// Its bytes are right.
    Proven,
    /// It is not known whether they are.
    Unproven,
    /// They are wrong, or some are missing.
    Bad,
    /// It was removed, or another has its name, or the volume can not tell.
    Gone,
}

/// The proof of one open file, under whatever names it is served.
#[derive(Debug)]
pub struct Proof {
    verdict: watch::Sender<Verdict>,
    is_running: Mutex<bool>,
    /// Whether the file is somebody else's, who may change it at any time.
    is_shared: bool,
}

impl Proof {
    pub(in crate::engine) fn open() -> Arc<Self> {
        Arc::new(Self::new(false))
    }

    /// For a file of a shared folder.
    pub(in crate::engine) fn of_shared() -> Arc<Self> {
        Arc::new(Self::new(true))
    }

    fn new(is_shared: bool) -> Self {
        let verdict = watch::Sender::new(Verdict::Open);
        Self { verdict, is_running: Mutex::new(false), is_shared }
    }

    /// For bytes that were hashed as they were written.
    pub(in crate::engine) fn of_new(blob: &Blob) -> Arc<Self> {
        let proof = Self::open();
        if let Ok(stamp) = blob.stamp() {
            proof.verdict.send_replace(Verdict::Right(stamp));
        }
        proof
    }

    /// How `blob`, which should have `size` bytes, stands. One system call.
    pub(in crate::engine) fn soundness(&self, blob: &Blob, size: u64) -> Soundness {
        let verdict = *self.verdict.borrow();
        match (blob.stamp(), verdict) {
            (Err(_), _) => Soundness::Gone,
            (Ok(now), _) if !now.is_linked => Soundness::Gone,
            (Ok(now), Verdict::Right(then)) if self.is_shared && now != then => Soundness::Gone,
            (Ok(now), _) if now.size != size => Soundness::Bad,
            (_, Verdict::Wrong) => Soundness::Bad,
            (Ok(now), Verdict::Right(then)) if now == then => Soundness::Proven,
            _ => Soundness::Unproven,
        }
    }

    /// Whether the file is somebody else's: then its bytes are to be read before the proof is asked.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// What to wait for before the last bytes of `blob` go out: `true` if they may. `None` if there is
    /// nothing to wait for.
    #[must_use]
    pub fn pending(&self, blob: &Blob) -> Option<impl Future<Output = bool> + Send + use<>> {
        let mut verdict = self.verdict.subscribe();
        let is_shared = self.is_shared;
        if !is_shared && matches!(*verdict.borrow(), Verdict::Right(_)) {
            return None;
        }
        let blob = blob.clone();
        Some(async move {
            let known = verdict.wait_for(|verdict| *verdict != Verdict::Open).await;
            match known.as_deref() {
                Ok(Verdict::Right(then)) => {
                    !is_shared || blob.stamp().is_ok_and(|now| now == *then)
                }
                _ => false,
            }
        })
    }

    /// `false` if the check is under way already.
    fn begin(&self) -> bool {
        let mut is_running = self.is_running.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_running {
            return false;
        }
        self.verdict.send_replace(Verdict::Open);
        *is_running = true;
        true
    }

    fn end(&self, verdict: Verdict) {
        let mut is_running = self.is_running.lock().unwrap_or_else(PoisonError::into_inner);
        self.verdict.send_replace(verdict);
        *is_running = false;
    }
}

/// A check under way; one that is broken off proves nothing.
struct Check {
    known: Arc<Known>,
    verdict: Verdict,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.known.proof.end(self.verdict);
    }
}

/// What has proven right in the life of this process, and a bound on how much is hashed at a time.
pub(in crate::engine) struct Checks {
    turns: Arc<Semaphore>,
    /// The state in which a file had these bytes.
    proven: Cache<Sha256, Stamp>,
}

impl Default for Checks {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(CHECKS_MAX)), proven: Cache::new(PROVEN_MAX) }
    }
}

impl Checks {
    /// The state in which this very file has proven right, if it still is in that. One system call.
    fn proven(&self, digest: &Sha256, blob: &Blob) -> Option<Stamp> {
        let then = self.proven.get(digest)?;
        blob.stamp().is_ok_and(|now| now == then).then_some(then)
    }
}

impl Engine {
    /// What memory holds of `key`, if it still is what it was. What is gone or bad is let go of.
    pub(in crate::engine) async fn held(self: &Arc<Self>, key: &str) -> Option<Arc<Known>> {
        let known = self.memory.get(key)?;
        match known.soundness() {
            Soundness::Proven | Soundness::Unproven if !self.is_at_hand(&known).await => None,
            Soundness::Proven => Some(known),
            Soundness::Unproven => {
                self.prove(key, &known);
                Some(known)
            }
            Soundness::Bad if known.proof.is_shared => {
                self.memory.forget(key);
                None
            }
            Soundness::Bad => {
                self.drop_bad(&known.entry.blob, &known.blob).await;
                None
            }
            Soundness::Gone => {
                self.memory.forget(key);
                None
            }
        }
    }

    /// Whether a file's bytes are there for the reading: they may be on a volume that says nothing. As
    /// long as it does, what the page cache has of a file is served if that is all of it.
    pub(in crate::engine) async fn is_at_hand(&self, known: &Arc<Known>) -> bool {
        let length = if self.store.is_stalled() { known.blob.size } else { 1 };
        if known.small.is_some() || known.blob.is_cached(length) {
            return true;
        }
        let file = Arc::clone(&known.blob.file);
        self.store.look(move || Ok(file.read_at(&mut [0], 0).ok())).await.is_ok()
    }

    /// Has a file that was opened just now hashed, in the background, unless it was before and is what
    /// it was; then learns from it, if it is a list.
    pub(in crate::engine) fn prove(self: &Arc<Self>, key: &str, known: &Arc<Known>) {
        if known.small.is_some() {
            if known.entry.checked_at == 0 && !known.proof.is_shared {
                // Perhaps found on the volume, and new to the index.
                let (inspector, known) = (Arc::clone(&self.inspector), Arc::clone(known));
                self.tasks.spawn(async move { record(&inspector, &known).await });
            }
            return;
        }
        if !known.proof.begin() {
            return;
        }
        let mut check = Check { known: Arc::clone(known), verdict: Verdict::Wrong };
        if let Some(stamp) = self.checks.proven(&known.entry.blob, &known.blob) {
            check.verdict = Verdict::Right(stamp);
            return;
        }
        let (engine, key) = (Arc::clone(self), key.to_owned());
        self.tasks.spawn(async move { engine.check(&key, check).await });
    }

    async fn check(&self, key: &str, mut check: Check) {
        let known = Arc::clone(&check.known);
        let digest = known.entry.blob;
        // The state before: what changes during the check does not pass for checked.
        let stamp = known.blob.stamp();
        let mut pace = Pace::in_turns(&self.checks.turns);
        let right = self.inspector.is_right(&digest, &known.blob, &mut pace).await;
        match (stamp, right) {
            (Ok(stamp), Ok(true)) => {
                self.checks.proven.insert(digest, stamp);
                check.verdict = Verdict::Right(stamp);
                drop(check);
                self.learner.offer(key, &known);
                record(&self.inspector, &known).await;
            }
            (_, Ok(false)) if known.proof.is_shared => {
                self.memory.forget_blobs(&[digest]);
                self.folders.disown(&digest).await;
            }
            // Gone before anybody can be told to come again.
            (_, Ok(false)) => self.drop_bad(&digest, &known.blob).await,
            // It may be the volume that fails, and not the blob: that stays where it is.
            (stamp, right) => {
                self.memory.forget_blobs(&[digest]);
                let errors = (stamp.err(), right.err());
                tracing::warn!(%digest, ?errors, "could not check a blob");
            }
        }
    }

    /// Drops a blob that is not what its name says.
    pub(in crate::engine) async fn drop_bad(&self, digest: &Sha256, blob: &Blob) {
        self.metrics.verify_failures.with_label_values(&["store"]).inc();
        if let Err(error) = self.inspector.drop_bad(digest, blob).await {
            tracing::warn!(%digest, %error, "could not remove a bad blob");
        }
        self.memory.forget_blobs(&[*digest]);
    }
}

async fn record(inspector: &Inspector, known: &Known) {
    if let Err(error) = inspector.note(&known.entry.blob, known.entry.size).await {
        tracing::debug!(%error, "checked, but not recorded");
    }
}
