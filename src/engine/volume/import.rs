//! Importing: files that lie elsewhere are copied to the volume under the digest of their bytes, from
//! where the first request that expects that digest is served. Nothing is believed of them but what
//! was hashed; what is stored already is not copied.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::{StreamExt as _, stream};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::content::digest::{Hasher, Sha256};
use crate::engine::memory::now_seconds;
use crate::engine::volume::evict::{EvictError, Mode, Victim};
use crate::engine::volume::folders;
use crate::engine::volume::promise::Staged;
use crate::engine::volume::room::Room;
use crate::engine::volume::walk::{self, Met, Reason};
use crate::index::{HashedFile, Identity, Index, IndexError};
use crate::store::{Blob, CopyError, Reading, Stage, Store, StoreError, StoreErrorKind};

/// Files met and not looked at yet.
const WAITING_MAX: usize = 1024;
/// Files up to this size, in bytes, are hashed in memory before they are written, so that what is
/// known costs no writing. Most packages are smaller.
const IN_MEMORY_MAX: u64 = 4 * 1024 * 1024;
/// What is read at once, in bytes: while it is hashed it is in the processor's cache.
const BUFFER: usize = 128 * 1024;
/// Files made durable at once, each of which is open until then...
const BATCH_FILES: usize = 256;
/// ...and their bytes.
const BATCH_BYTES: u64 = 128 * 1024 * 1024;
/// Files remembered that are looked for at once.
const PAGE: usize = 1000;

/// Imports files.
pub struct Importer {
    index: Arc<dyn Index>,
    store: Arc<Store>,
    room: Arc<Room>,
    /// What the volume keeps of its own is not imported, and what is remembered of shared folders is
    /// not ours to forget.
    folders: folders::Config,
    met: AtomicU64,
    /// When it began, in seconds since 1970: what was stored since then does not go for more.
    began: i64,
    /// Held by who looks what would have to go, until it has gone; and by who records what came.
    making_room: Arc<tokio::sync::Mutex<()>>,
    /// Something failed: no more is begun.
    is_over: AtomicBool,
}

/// What became of a file; bytes where it has some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is stored now.
    New(u64),
    /// It was stored already.
    Known(u64),
    /// It is left out.
    Left(PathBuf, Reason, u64),
}

/// Why an import ended early. What is stored is stored: another one goes on from there.
#[derive(Debug, Error)]
pub enum ImportError {
    /// There is no room for more.
    #[error("there is no room for more: {cause}", cause = .0.source)]
    NoRoom(StoreError),
    /// More than there is room for.
    #[error(
        "this is more than store.quota and store.min_free leave room for: the rest would only push \
         out what was imported"
    )]
    Full,
    /// The volume failed.
    #[error("{0}: {cause}", cause = .0.source)]
    Store(StoreError),
    /// The index failed.
    #[error("{0}: {cause}", cause = .0.source)]
    Index(#[from] IndexError),
}

impl From<EvictError> for ImportError {
    fn from(error: EvictError) -> Self {
        match error {
            EvictError::Index(error) => error.into(),
            EvictError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::Full | StoreErrorKind::NoRoom => Self::NoRoom(error),
            StoreErrorKind::ReadOnly | StoreErrorKind::Unavailable => Self::Store(error),
        }
    }
}

/// Why a file is not taken.
enum NotTaken {
    /// It is left out.
    Left(Reason),
    /// The import ends.
    Ended(ImportError),
}

impl From<Reason> for NotTaken {
    fn from(reason: Reason) -> Self {
        Self::Left(reason)
    }
}

impl<E: Into<ImportError>> From<E> for NotTaken {
    fn from(error: E) -> Self {
        Self::Ended(error.into())
    }
}

/// A copy that is not durable yet.
struct Copied {
    staged: Staged,
    file: HashedFile,
}

/// What was found out about one file.
enum Taken {
    Copied(Box<Copied>),
    /// Stored already; to be remembered if that is new.
    Known(u64, Option<HashedFile>),
    Left(PathBuf, Reason, u64),
    /// Met too late.
    Missed,
}

/// What becomes durable at once.
#[derive(Default)]
struct Batch {
    copied: Vec<Copied>,
    digests: HashSet<Sha256>,
    bytes: u64,
    /// Only to be remembered.
    known: Vec<HashedFile>,
}

impl Batch {
    /// What there is to tell at once.
    fn add(&mut self, taken: Taken) -> Option<Event> {
        match taken {
            Taken::Missed => None,
            Taken::Left(path, reason, bytes) => Some(Event::Left(path, reason, bytes)),
            Taken::Known(bytes, file) => {
                self.known.extend(file);
                Some(Event::Known(bytes))
            }
            Taken::Copied(copied) => {
                let size = copied.file.identity.size;
                if !self.digests.insert(copied.file.digest) {
                    self.known.push(copied.file);
                    return Some(Event::Known(size));
                }
                self.bytes += size;
                self.copied.push(*copied);
                None
            }
        }
    }

    fn is_full(&self) -> bool {
        self.copied.len() >= BATCH_FILES
            || self.known.len() >= BATCH_FILES
            || self.bytes >= BATCH_BYTES
    }
}

impl Importer {
    /// Imports into `store`, beside which `folders` are served.
    #[must_use]
    pub fn new(
        index: Arc<dyn Index>,
        store: Arc<Store>,
        room: Arc<Room>,
        folders: folders::Config,
    ) -> Self {
        Self {
            index,
            store,
            room,
            folders,
            met: AtomicU64::new(0),
            began: now_seconds(),
            making_room: Arc::default(),
            is_over: AtomicBool::new(false),
        }
    }

    /// Bytes of all files met so far.
    #[must_use]
    pub fn met(&self) -> u64 {
        self.met.load(Ordering::Relaxed)
    }

    /// Imports files and folders; `tell` hears what became of each.
    ///
    /// # Errors
    /// When index or volume fail or there is no more room.
    pub async fn import(
        self: &Arc<Self>,
        roots: Vec<PathBuf>,
        tell: &mut (dyn FnMut(Event) + Send),
    ) -> Result<(), ImportError> {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let mut met = self.walk(roots);
        let met = stream::poll_fn(move |context| met.poll_recv(context));
        let mut taken = std::pin::pin!(met.map(|met| self.take(met)).buffer_unordered(threads));
        let mut batch = Batch::default();
        let mut committing: Option<JoinHandle<Result<Vec<u64>, ImportError>>> = None;
        let mut ended = Ok(());
        while let Some(taken) = taken.next().await {
            match taken {
                Ok(taken) => batch.add(taken).into_iter().for_each(&mut *tell),
                // What is under way is still taken in.
                Err(error) => {
                    self.is_over.store(true, Ordering::Relaxed);
                    ended = ended.and(Err(error));
                }
            }
            if batch.is_full() {
                committed(committing.take(), tell).await?;
                committing = Some(self.commit(std::mem::take(&mut batch)));
            }
        }
        committed(committing, tell).await?;
        committed(Some(self.commit(batch)), tell).await?;
        ended.and(self.forget_lost().await)
    }

    /// Forgets files that are not there any more: imports often come from folders that were made for
    /// them once. Shared folders may only be away, which is for those to find out who serve them.
    async fn forget_lost(&self) -> Result<(), ImportError> {
        let shared = self.folders.canonical_roots();
        let mut after: Option<PathBuf> = None;
        loop {
            let page = self.index.files_below(Path::new(""), after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.path.clone());
            let mut paths: Vec<PathBuf> = page.into_iter().map(|file| file.path).collect();
            paths.retain(|path| !shared.iter().any(|root| path.starts_with(root)));
            let looking = spawn_blocking(move || {
                paths.retain(|path| is_lost(path));
                paths
            });
            let gone = looking.await.map_err(StoreError::interrupted)?;
            self.index.forget_files(&gone).await?;
        }
    }

    /// Meets files on a thread of its own.
    fn walk(self: &Arc<Self>, roots: Vec<PathBuf>) -> mpsc::Receiver<Met> {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let importer = Arc::clone(self);
        let mut meet = move |met: Met| {
            if let Met::File(_, identity) = &met {
                importer.met.fetch_add(identity.size, Ordering::Relaxed);
            }
            !importer.is_over.load(Ordering::Relaxed) && sender.blocking_send(met).is_ok()
        };
        let own = self.folders.own.clone();
        drop(spawn_blocking(move || {
            for root in roots {
                walk::walk(&root, &own, &mut meet);
            }
        }));
        receiver
    }

    async fn take(&self, met: Met) -> Result<Taken, ImportError> {
        let (path, identity) = match met {
            _ if self.is_over.load(Ordering::Relaxed) => return Ok(Taken::Missed),
            Met::File(path, identity) => (path, identity),
            Met::Left(path, reason) => return Ok(Taken::Left(path, reason, 0)),
        };
        let size = identity.size;
        let before = self.index.file(&path).await?.filter(|file| file.identity == identity);
        if let Some(file) = before
            && self.is_stored(&file.digest).await?
        {
            return Ok(Taken::Known(size, None));
        }
        match self.copy(&path, identity).await {
            Ok((digest, copy)) => {
                let file = HashedFile { path, identity, digest };
                Ok(match copy {
                    Some(staged) => Taken::Copied(Box::new(Copied { staged, file })),
                    None => Taken::Known(size, Some(file)),
                })
            }
            Err(NotTaken::Left(reason)) => Ok(Taken::Left(path, reason, size)),
            Err(NotTaken::Ended(error)) => Err(error),
        }
    }

    /// The index may be of before, and the volume new.
    async fn is_stored(&self, digest: &Sha256) -> Result<bool, ImportError> {
        let Some(blob) = self.index.blob(digest).await? else { return Ok(false) };
        let store = Arc::clone(&self.store);
        let looking = spawn_blocking(move || store.read(&blob.digest));
        let found = looking.await.map_err(StoreError::interrupted)??;
        Ok(found.is_some_and(|found| found.size == blob.size))
    }

    /// Hashes a file: a small one in memory, a large one as a copy, which nobody changes any more. No
    /// copy if it is stored already.
    async fn copy(
        &self,
        path: &Path,
        identity: Identity,
    ) -> Result<(Sha256, Option<Staged>), NotTaken> {
        let path = path.to_owned();
        if identity.size > IN_MEMORY_MAX {
            let file = blocking(move || Ok(walk::open(&path, &identity)?)).await?;
            return self.copy_large(Blob { file: Arc::new(file), size: identity.size }).await;
        }
        let (digest, bytes) = blocking(move || Ok(read(&path, &identity)?)).await?;
        if self.is_stored(&digest).await? {
            return Ok((digest, None));
        }
        Ok((digest, Some(self.write(bytes).await?)))
    }

    async fn write(&self, bytes: Vec<u8>) -> Result<Staged, NotTaken> {
        let mut staged = self.stage(bytes.len() as u64).await?;
        blocking(move || Ok(staged.stage.append(&bytes).map(|()| staged)?)).await
    }

    /// Of a file that was looked into.
    async fn copy_large(&self, source: Blob) -> Result<(Sha256, Option<Staged>), NotTaken> {
        if source.size > self.room.most().await {
            return Err(Reason::TooLarge.into());
        }
        if self.room.missing_for(source.size).await > 0 {
            // Nothing goes for the copy of what is stored already.
            let reading = Reading::of(&source);
            let digest = blocking(move || Ok(hash(reading)?)).await?;
            if self.is_stored(&digest).await? {
                return Ok((digest, None));
            }
        }
        let mut staged = self.stage(source.size).await?;
        let copying = blocking(move || {
            let digest = copy(&source.file, source.size, &mut staged.stage)?;
            Ok((digest, staged))
        });
        let (digest, staged) = copying.await?;
        let is_new = !self.is_stored(&digest).await?;
        Ok((digest, is_new.then_some(staged)))
    }

    /// Room for one more. What is imported may push out what is worth less, but not what was stored
    /// since it began.
    async fn stage(&self, size: u64) -> Result<Staged, ImportError> {
        let (room, began) = (Arc::clone(&self.room), self.began);
        let making_room = Arc::clone(&self.making_room);
        // On its own: while a batch is waited for, which needs the lock too, files are not attended to.
        #[expect(clippy::disallowed_methods, reason = "short, and waited for")]
        let staging = tokio::spawn(async move {
            let _alone = making_room.lock().await;
            let missing = room.missing_for(size).await;
            if missing > 0 {
                let mut is_new = false;
                let mut look = |victim: &Victim| is_new |= victim.blob.stored_at >= began;
                room.evictor().evict(missing, Mode::Rehearsal, Some(&mut look)).await?;
                if is_new {
                    return Err(ImportError::Full);
                }
            }
            Ok(room.stage(Some(size)).await?)
        });
        staging.await.map_err(StoreError::interrupted)?
    }

    /// Makes a batch durable, then known; the sizes of what is new.
    fn commit(self: &Arc<Self>, batch: Batch) -> JoinHandle<Result<Vec<u64>, ImportError>> {
        let importer = Arc::clone(self);
        #[expect(clippy::disallowed_methods, reason = "its import waits for it")]
        tokio::spawn(async move {
            let (mut stages, mut promises, mut files) = (Vec::new(), Vec::new(), batch.known);
            let mut new = Vec::new();
            for Copied { staged, file } in batch.copied {
                stages.push((staged.stage, file.digest));
                promises.push(staged.promise);
                new.push((file.digest, file.identity.size));
                files.push(file);
            }
            if !stages.is_empty() {
                let store = Arc::clone(&importer.store);
                let committing = spawn_blocking(move || store.commit_all(stages));
                committing.await.map_err(StoreError::interrupted)??;
            }
            // Meanwhile they count twice: nobody may make room for that.
            let alone = importer.making_room.lock().await;
            for (digest, size) in &new {
                importer.index.add_blob(digest, *size, now_seconds()).await?;
            }
            drop(promises);
            drop(alone);
            importer.index.record_files(&files).await?;
            Ok(new.into_iter().map(|(_, size)| size).collect())
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NotTaken> + Send + 'static,
) -> Result<T, NotTaken> {
    spawn_blocking(work).await.map_err(StoreError::interrupted)?
}

async fn committed(
    committing: Option<JoinHandle<Result<Vec<u64>, ImportError>>>,
    tell: &mut (dyn FnMut(Event) + Send),
) -> Result<(), ImportError> {
    let Some(committing) = committing else { return Ok(()) };
    let new = committing.await.map_err(StoreError::interrupted)??;
    new.into_iter().map(Event::New).for_each(tell);
    Ok(())
}

/// Blocks.
fn is_lost(path: &Path) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    fs::symlink_metadata(path).is_err_and(|error| matches!(error.kind(), NotFound | NotADirectory))
}

/// Reads a small file and hashes it. Blocks.
fn read(path: &Path, identity: &Identity) -> Result<(Sha256, Vec<u8>), Reason> {
    let file = walk::open(path, identity)?;
    let mut bytes = vec![0; usize::try_from(identity.size).unwrap_or_default()];
    let mut hasher = Hasher::new(None);
    let mut offset = 0;
    for part in bytes.chunks_mut(BUFFER) {
        file.read_exact_at(part, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Reason::Changed,
            _ => walk::unreadable(&error),
        })?;
        hasher.update(part);
        offset += part.len() as u64;
    }
    Ok((hasher.finish().sha256, bytes))
}

/// Copies a large file and hashes the copy. Blocks.
fn copy(source: &File, size: u64, stage: &mut Stage) -> Result<Sha256, NotTaken> {
    stage.copy_from(source, size).map_err(|error| match error {
        CopyError::Source(error) => NotTaken::Left(walk::unreadable(&error)),
        CopyError::Volume(error) => error.into(),
    })?;
    if stage.size() != size {
        return Err(Reason::Changed.into());
    }
    Ok(hash(Reading::of(&stage.as_blob()))?)
}

/// Blocks.
fn hash(mut reading: Reading) -> Result<Sha256, Reason> {
    let unreadable = |error: StoreError| walk::unreadable(&error.source);
    while reading.step().map_err(unreadable)? > 0 {}
    reading.finish().ok_or_else(|| Reason::Unreadable("input/output error".to_owned()))
}
