//! Shared folders: files that lie elsewhere, such as a mirror's tree, are served in place. They are
//! hashed once, slowly, and remembered with their state; nothing is copied, changed or evicted.
//!
//! Changes are looked for by walking over the folders, at most a fiftieth of the time: that works on
//! network file systems too and knows no limit of watches, and nothing rests on it, since a file's
//! state is looked at whenever it is opened, and again when it has been sent.

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::content::digest::Sha256;
use crate::engine::memory::now_seconds;
use crate::engine::volume::inspect::{InspectError, Inspector};
use crate::engine::volume::pace::Pace;
use crate::engine::volume::upkeep::HASH_RATE;
use crate::engine::volume::walk::{self, Met, Reason};
use crate::index::{HashedFile, Identity, Index};
use crate::store::{Blob, StoreError};
use crate::telemetry::metrics::Metrics;

/// Until the folders are walked over again, at least...
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// ...and as a multiple of what a walk takes.
const PAUSE_PART: u32 = 50;
/// For how long a file must have been left alone before it is hashed, in nanoseconds: longer than a
/// tick of any file system's clock, so that each later change shows.
const SETTLED: i64 = 2_000_000_000;
/// Files that are shared; each takes some 30 bytes of memory and 300 of the index.
const FILES_MAX: usize = 1_000_000;
/// Files of the same bytes that are tried.
const COPIES_MAX: usize = 8;
/// Files met and not looked at yet; files forgotten at once.
const PAGE: usize = 1000;

/// Which folders are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// These, with all below them.
    pub roots: Vec<PathBuf>,
    /// But not the cache's own data, which may lie there too.
    pub own: PathBuf,
}

/// The shared folders.
pub(in crate::engine) struct Folders {
    index: Arc<dyn Index>,
    inspector: Arc<Inspector>,
    roots: Vec<PathBuf>,
    own: PathBuf,
    /// Wakes who walks over them.
    changed: Notify,
    hashing: RandomState,
    files: IntGauge,
    bytes: IntGauge,
}

/// What a walk met: the state of each file, both as hashes.
#[derive(Default)]
struct Seen {
    states: HashMap<u64, u64>,
    bytes: u64,
    files: u64,
    /// Whether some of it could not be seen.
    is_partial: bool,
}

impl Folders {
    pub(in crate::engine) fn new(
        config: &Config,
        index: &Arc<dyn Index>,
        inspector: &Arc<Inspector>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        // As the walk names what it meets.
        let canonical = |root: &PathBuf| fs::canonicalize(root).unwrap_or(root.clone());
        Arc::new(Self {
            index: Arc::clone(index),
            inspector: Arc::clone(inspector),
            roots: config.roots.iter().map(canonical).collect(),
            own: config.own.clone(),
            changed: Notify::new(),
            hashing: RandomState::new(),
            files: metrics.gauge("aptmesh_store_shared_files", "Files of shared folders, hashed."),
            bytes: metrics.gauge("aptmesh_store_shared_bytes", "Bytes of these."),
        })
    }

    /// A file with these bytes, open, unless it changed since it was hashed.
    pub(in crate::engine) async fn find(&self, digest: &Sha256) -> Option<Blob> {
        if self.roots.is_empty() {
            return None;
        }
        let files = self.index.files_with(digest, COPIES_MAX).await.ok()?;
        for file in files.into_iter().filter(|file| self.is_shared(&file.path)) {
            let (path, identity) = (file.path.clone(), file.identity);
            let opening = spawn_blocking(move || walk::open(&path, &identity));
            if let Ok(Ok(opened)) = opening.await {
                return Some(Blob { file: Arc::new(opened), size: identity.size });
            }
            self.forget(&[file.path]).await;
        }
        None
    }

    /// Files with these bytes have others after all.
    pub(in crate::engine) async fn disown(&self, digest: &Sha256) {
        let files = self.index.files_with(digest, COPIES_MAX).await.unwrap_or_default();
        let shared = files.into_iter().map(|file| file.path).filter(|path| self.is_shared(path));
        self.forget(&shared.collect::<Vec<_>>()).await;
    }

    fn is_shared(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root))
    }

    async fn forget(&self, paths: &[PathBuf]) {
        if let Err(error) = self.index.forget_files(paths).await {
            tracing::debug!(%error, source = %error.source, "could not forget a file");
        }
        self.changed.notify_one();
    }

    /// Keeps what is known of the folders up to date, for ever.
    pub(in crate::engine) async fn watch(self: Arc<Self>) {
        if self.roots.is_empty() {
            return;
        }
        let mut seen = Seen::default();
        let mut is_first = true;
        loop {
            let begun = Instant::now();
            match self.look(&seen).await {
                Ok(now) => {
                    let is_gone = |path: &u64| !now.states.contains_key(path);
                    if (is_first || seen.states.keys().any(is_gone)) && !now.is_partial {
                        self.forget_gone(&now).await;
                    }
                    (seen, is_first) = (now, false);
                }
                Err(error) => tracing::warn!(%error, "could not look at the shared folders"),
            }
            tokio::select! {
                () = sleep(PAUSE_MIN.max(begun.elapsed() * PAUSE_PART)) => {}
                () = self.changed.notified() => sleep(PAUSE_MIN).await,
            }
        }
    }

    /// One walk over all folders; what is new or changed since `before` is hashed.
    async fn look(self: &Arc<Self>, before: &Seen) -> Result<Seen, InspectError> {
        let mut now = Seen::default();
        let mut pace = Pace::of(HASH_RATE);
        let mut met = self.walk();
        while let Some(met) = met.recv().await {
            let (path, identity) = match met {
                Met::File(path, identity) => (path, identity),
                Met::Left(_, Reason::Unreadable(_)) => {
                    now.is_partial = true;
                    continue;
                }
                Met::Left(..) => continue,
            };
            if now.states.len() >= FILES_MAX {
                tracing::warn!(FILES_MAX, "the shared folders have too many files");
                now.is_partial = true;
                break;
            }
            let (name, state) = (self.hashing.hash_one(&path), self.hashing.hash_one(identity));
            let is_known = before.states.get(&name) == Some(&state)
                || self.is_remembered(&path, &identity).await?
                || self.take(path, identity, &mut pace).await?;
            if is_known {
                now.states.insert(name, state);
                now.files += 1;
                now.bytes += identity.size;
            }
        }
        // A folder that is not mounted is empty.
        now.is_partial |= now.states.is_empty();
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.files.set(gauge(now.files));
        self.bytes.set(gauge(now.bytes));
        Ok(now)
    }

    fn walk(self: &Arc<Self>) -> mpsc::Receiver<Met> {
        let (sender, met) = mpsc::channel(PAGE);
        let folders = Arc::clone(self);
        drop(spawn_blocking(move || {
            for root in &folders.roots {
                walk::walk(root, &folders.own, &mut |met| sender.blocking_send(met).is_ok());
            }
        }));
        met
    }

    async fn is_remembered(&self, path: &Path, now: &Identity) -> Result<bool, InspectError> {
        let file = self.index.file(path).await?;
        Ok(file.is_some_and(|file| file.identity == *now))
    }

    /// Hashes a file and remembers it; `false` if it is none of ours, or not now.
    async fn take(
        &self,
        path: PathBuf,
        identity: Identity,
        pace: &mut Pace,
    ) -> Result<bool, InspectError> {
        let now = now_seconds().saturating_mul(1_000_000_000);
        if now.saturating_sub(identity.changed) < SETTLED {
            return Ok(false);
        }
        let opening = path.clone();
        let opened = spawn_blocking(move || walk::open(&opening, &identity)).await;
        let Ok(file) = opened.map_err(StoreError::interrupted)? else { return Ok(false) };
        let blob = Blob { file: Arc::new(file), size: identity.size };
        let Some(digest) = self.inspector.hash(&blob, pace).await? else { return Ok(false) };
        if walk::identity_of_open(&blob.file) != Ok(identity) {
            return Ok(false);
        }
        self.index.record_files(&[HashedFile { path, identity, digest }]).await?;
        Ok(true)
    }

    /// Forgets what is remembered of the folders and was not met.
    async fn forget_gone(&self, now: &Seen) {
        for root in &self.roots {
            let mut after: Option<PathBuf> = None;
            while let Ok(page) = self.index.files_below(root, after.as_deref(), PAGE).await {
                let Some(last) = page.last() else { break };
                after = Some(last.path.clone());
                let is_gone =
                    |path: &PathBuf| !now.states.contains_key(&self.hashing.hash_one(path));
                let gone: Vec<PathBuf> =
                    page.into_iter().map(|file| file.path).filter(is_gone).collect();
                if let Err(error) = self.index.forget_files(&gone).await {
                    tracing::debug!(%error, source = %error.source, "could not forget files");
                    break;
                }
            }
        }
    }
}
