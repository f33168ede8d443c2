//! Shared folders: files that lie elsewhere, such as a mirror's tree, are served in place. They are
//! hashed once, slowly, and remembered with their state; nothing is copied, changed or evicted.
//!
//! Changes are looked for by walking over the folders, at most a fiftieth of the time: that works on
//! network file systems too and knows no limit of watches, and nothing rests on it, since a file's
//! state is looked at whenever it is opened, and again when it has been sent. Of the processes that share
//! the same folders, one walks; they are taken to see the same files there.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::content::digest::Sha256;
use crate::engine::duties::{Duties, Duty};
use crate::engine::leases::Sureness;
use crate::engine::memory::now_seconds;
use crate::engine::volume::inspect::{InspectError, Inspector};
use crate::engine::volume::pace::Pace;
use crate::engine::volume::upkeep::HASH_RATE;
use crate::engine::volume::walk::{self, Met, Reason};
use crate::index::{HashedFile, Identity, Index, IndexError};
use crate::store::{Blob, Calls, READ_PATIENCE, StoreError};
use crate::telemetry::metrics::Metrics;

/// Until the folders are walked over again, at least...
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// ...and as a multiple of what a walk takes.
const PAUSE_PART: u32 = 50;
/// For how long it is taken for known what was met before: another process may have forgotten it since.
const SEEN_FOR: Duration = Duration::from_hours(24);
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

impl Config {
    /// As a walk names what it meets. Blocks.
    pub(in crate::engine) fn canonical_roots(&self) -> Vec<PathBuf> {
        let canonical = |root: &PathBuf| fs::canonicalize(root).unwrap_or(root.clone());
        self.roots.iter().map(canonical).collect()
    }
}

/// The shared folders.
pub(in crate::engine) struct Folders {
    index: Arc<dyn Index>,
    inspector: Arc<Inspector>,
    roots: Vec<PathBuf>,
    own: PathBuf,
    /// For clients.
    calls: Calls,
    /// Wakes who walks over them.
    changed: Notify,
    /// Files that turned out to be others than those remembered: no more than are remembered.
    doubted: Mutex<HashSet<PathBuf>>,
    hashing: RandomState,
    files: IntGauge,
    bytes: IntGauge,
}

/// A shared file.
pub(in crate::engine) struct Found {
    /// Where it lies.
    pub(in crate::engine) path: PathBuf,
    /// It, open.
    pub(in crate::engine) blob: Blob,
}

/// What a walk met: the state of each file, both as hashes.
#[derive(Default)]
struct Seen {
    states: HashMap<u64, u64>,
    bytes: u64,
    files: u64,
    /// Of each root, how many files were seen that are shared...
    shared: Vec<u64>,
    /// ...and whether some could not be seen.
    is_partial: Vec<bool>,
}

impl Seen {
    fn nothing_of(roots: usize) -> Self {
        let (shared, is_partial) = (vec![0; roots], vec![false; roots]);
        Self { shared, is_partial, ..Self::default() }
    }

    fn cut(&mut self, root: usize) {
        self.is_partial.iter_mut().skip(root).take(1).for_each(|is_partial| *is_partial = true);
    }

    fn add(&mut self, root: usize, (name, state): (u64, u64), size: u64) {
        self.states.insert(name, state);
        self.files += 1;
        self.bytes += size;
        self.shared.iter_mut().skip(root).take(1).for_each(|files| *files += 1);
    }

    /// Whether all of a root was seen. One that is not mounted is empty.
    fn is_whole(&self, root: usize) -> bool {
        self.shared.get(root).is_some_and(|files| *files > 0)
            && self.is_partial.get(root) == Some(&false)
    }
}

impl Folders {
    pub(in crate::engine) fn new(
        config: &Config,
        index: &Arc<dyn Index>,
        inspector: &Arc<Inspector>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            index: Arc::clone(index),
            inspector: Arc::clone(inspector),
            roots: config.canonical_roots(),
            own: config.own.clone(),
            calls: Calls::to("a shared folder"),
            changed: Notify::new(),
            doubted: Mutex::default(),
            hashing: RandomState::new(),
            files: metrics.gauge("aptmesh_store_shared_files", "Files of shared folders, hashed."),
            bytes: metrics
                .gauge("aptmesh_store_shared_bytes", "Bytes of files of shared folders, hashed."),
        })
    }

    /// A file with these bytes, open, unless it changed since it was hashed.
    pub(in crate::engine) async fn find(&self, digest: &Sha256) -> Option<Blob> {
        let files = self.remembered(digest).await.ok()?;
        let (found, changed) = self.first_intact(files).await;
        if !changed.is_empty() {
            self.forget(changed).await;
        }
        Some(found?.blob)
    }

    /// Files that had these bytes when they were hashed.
    pub(in crate::engine) async fn remembered(
        &self,
        digest: &Sha256,
    ) -> Result<Vec<HashedFile>, IndexError> {
        if self.roots.is_empty() {
            return Ok(Vec::new());
        }
        let mut files = self.index.files_with(digest, COPIES_MAX).await?;
        files.retain(|file| self.is_shared(&file.path));
        Ok(files)
    }

    /// The first of these files that is what it was, and those before it that are not. Changes nothing. A folder that
    /// says nothing is left alone until it answers: clients have mirrors.
    pub(in crate::engine) async fn first_intact(
        &self,
        files: Vec<HashedFile>,
    ) -> (Option<Found>, Vec<PathBuf>) {
        let mut changed = Vec::new();
        for HashedFile { path, identity, .. } in files {
            if self.calls.are_overdue() {
                break;
            }
            let opening = path.clone();
            let opened = self.calls.wait(READ_PATIENCE, move || walk::open(&opening, &identity));
            let Some(opened) = opened.await else {
                tracing::warn!(path = %path.display(), "a shared folder says nothing: left alone");
                break;
            };
            match opened {
                Ok(Ok(opened)) => {
                    let blob = Blob { file: Arc::new(opened), size: identity.size };
                    return (Some(Found { path, blob }), changed);
                }
                // Perhaps its folder is away for a while; if the file alone is, the next walk tells.
                Ok(Err(Reason::Unreadable(_))) | Err(_) => {}
                Ok(Err(_)) => changed.push(path),
            }
        }
        (None, changed)
    }

    /// Files with these bytes have others after all.
    pub(in crate::engine) async fn disown(&self, digest: &Sha256) {
        let files = self.index.files_with(digest, COPIES_MAX).await.unwrap_or_default();
        let shared = files.into_iter().map(|file| file.path).filter(|path| self.is_shared(path));
        self.forget(shared.collect()).await;
    }

    fn is_shared(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root))
    }

    /// At once; and the next walk looks at them anew, even if who wants it forgotten has left.
    async fn forget(&self, paths: Vec<PathBuf>) {
        self.doubted().extend(paths.iter().cloned());
        self.changed.notify_one();
        self.forget_now(&paths).await;
    }

    async fn forget_now(&self, paths: &[PathBuf]) {
        if let Err(error) = self.index.forget_files(paths).await {
            tracing::debug!(%error, source = %error.source, "could not forget files");
        }
    }

    fn doubted(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what is known of the folders up to date, for ever.
    pub(in crate::engine) async fn watch(self: Arc<Self>, duties: Arc<Duties>) {
        if self.roots.is_empty() {
            return;
        }
        let names = self.roots.iter().flat_map(|root| [root.as_os_str().as_bytes(), b"\0"]);
        let same_folders = Sha256::of(&names.collect::<Vec<_>>().concat()).to_string();
        duties
            .carry(Duty::Folders, &same_folders, |sureness| Arc::clone(&self).watch_on(sureness))
            .await;
    }

    async fn watch_on(self: Arc<Self>, sureness: Sureness) -> Infallible {
        let (mut seen, mut since) = (Seen::default(), Instant::now());
        // Of each root, whether what is remembered is still to be compared with what is there.
        let mut is_due = vec![true; self.roots.len()];
        loop {
            let begun = Instant::now();
            if since.elapsed() > SEEN_FOR {
                (seen, since) = (Seen::default(), Instant::now());
            }
            self.drop_doubted(&mut seen).await;
            match self.look(&seen, sureness.clone()).await {
                Ok(now) => {
                    self.forget_gone(&seen, &now, &mut is_due).await;
                    seen = now;
                }
                Err(error) => tracing::warn!(%error, "could not look at the shared folders"),
            }
            tokio::select! {
                () = sleep(PAUSE_MIN.max(begun.elapsed() * PAUSE_PART)) => {}
                () = self.changed.notified() => sleep(PAUSE_MIN).await,
            }
        }
    }

    async fn drop_doubted(&self, seen: &mut Seen) {
        let doubted: Vec<PathBuf> = self.doubted().drain().collect();
        for path in &doubted {
            seen.states.remove(&self.hashing.hash_one(path));
        }
        if !doubted.is_empty() {
            self.forget_now(&doubted).await;
        }
    }

    /// One walk over all folders; what is new or changed since `before` is hashed.
    async fn look(
        self: &Arc<Self>,
        before: &Seen,
        sureness: Sureness,
    ) -> Result<Seen, InspectError> {
        let mut now = Seen::nothing_of(self.roots.len());
        let mut pace = Pace::of(HASH_RATE).under(sureness);
        let mut met = self.walk();
        while let Some((root, met)) = met.recv().await {
            let (path, identity) = match met {
                Met::File(path, identity) => (path, identity),
                Met::Left(_, Reason::Unreadable(_)) => {
                    now.cut(root);
                    continue;
                }
                Met::Left(..) => continue,
            };
            if now.states.len() >= FILES_MAX {
                tracing::warn!(FILES_MAX, "the shared folders have too many files");
                (root..self.roots.len()).for_each(|root| now.cut(root));
                break;
            }
            let (name, state) = (self.hashing.hash_one(&path), self.hashing.hash_one(identity));
            let is_known = before.states.get(&name) == Some(&state)
                || self.is_remembered(&path, &identity).await?
                || self.take(path, identity, &mut pace).await?;
            if is_known {
                now.add(root, (name, state), identity.size);
            }
        }
        // What is forgotten then was seen by who is on duty.
        pace.ensure_duty().await;
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.files.set(gauge(now.files));
        self.bytes.set(gauge(now.bytes));
        Ok(now)
    }

    /// What is met, with the number of the root below which it lies.
    fn walk(self: &Arc<Self>) -> mpsc::Receiver<(usize, Met)> {
        let (sender, receiver) = mpsc::channel(PAGE);
        let folders = Arc::clone(self);
        drop(spawn_blocking(move || {
            for (number, root) in folders.roots.iter().enumerate() {
                let mut meet = |met| sender.blocking_send((number, met)).is_ok();
                walk::walk(root, &folders.own, &mut meet);
            }
        }));
        receiver
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
        // What one file does not give is no reason to miss the others.
        let Ok(Some(digest)) = self.inspector.hash(&blob, pace).await else { return Ok(false) };
        if walk::identity_of_open(&blob.file) != Ok(identity) {
            return Ok(false);
        }
        self.index.record_files(&[HashedFile { path, identity, digest }]).await?;
        Ok(true)
    }

    /// Forgets what is not there any more, of each root that is due and was seen as a whole.
    async fn forget_gone(&self, before: &Seen, now: &Seen, is_due: &mut [bool]) {
        let is_less = before.states.keys().any(|path| !now.states.contains_key(path));
        for (root, is_due) in is_due.iter_mut().enumerate() {
            *is_due |= is_less;
            if *is_due && now.is_whole(root) {
                self.forget_gone_below(root, now).await;
                *is_due = false;
            }
        }
    }

    /// But for what lies below another root that was not seen as a whole.
    async fn forget_gone_below(&self, root: usize, now: &Seen) {
        let Some(folder) = self.roots.get(root) else { return };
        let away: Vec<&PathBuf> = (0..)
            .zip(&self.roots)
            .filter_map(|(number, root)| (!now.is_whole(number)).then_some(root))
            .collect();
        let is_gone = |path: &PathBuf| {
            !now.states.contains_key(&self.hashing.hash_one(path))
                && !away.iter().any(|root| path.starts_with(root))
        };
        let mut after: Option<PathBuf> = None;
        while let Ok(page) = self.index.files_below(folder, after.as_deref(), PAGE).await {
            let Some(last) = page.last() else { break };
            after = Some(last.path.clone());
            let paths = page.into_iter().map(|file| file.path);
            self.forget_now(&paths.filter(is_gone).collect::<Vec<_>>()).await;
        }
    }
}
