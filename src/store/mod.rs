//! Blobs on a volume, named by their SHA-256: staged, then committed, then only ever read.
//!
//! `blobs/AB/ABCDEF…` holds whole, hashed, durable files and nothing else; `staging/PROCESS/` what
//! is under way. Knows nothing of resources, mirrors or requests.

mod calls;
mod check;
mod health;
mod identity;
mod staging;
mod walk;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prometheus::Histogram;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use thiserror::Error;
use tokio::time::Instant;

pub use self::calls::{COMMIT_PATIENCE, Calls, READ_PATIENCE, WRITE_PATIENCE};
pub use self::check::{Reading, Stamp, is_cached};
pub use self::health::Health;
pub use self::identity::identity;
use self::staging::Staging;
pub use self::staging::{CopyError, Stage, read_staged, set_aside};
pub use self::walk::{FOLDERS, Lying};
use crate::content::digest::Sha256;
use crate::telemetry::metrics::Metrics;

/// Bounds of what commits take, in seconds: from a volume in memory to a disk that is overwhelmed.
const COMMIT_SECONDS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

/// Where the blobs are.
#[derive(Clone, Debug)]
pub struct Config {
    /// The volume's folder; made if it is missing.
    pub dir: PathBuf,
}

/// The volume.
pub struct Store {
    blobs: PathBuf,
    staging: Staging,
    health: Health,
    calls: Calls,
    commit_seconds: Option<Histogram>,
}

/// A blob, open for reading. It stays readable whatever happens to its name.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The open file.
    pub file: Arc<File>,
    /// Bytes.
    pub size: u64,
}

/// A volume's size, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What may still be written.
    pub free: u64,
}

/// What the volume could not do.
#[derive(Debug, Error)]
#[error("could not {operation}")]
pub struct StoreError {
    /// What the caller may make of it.
    pub kind: StoreErrorKind,
    /// Completes "could not …".
    pub operation: &'static str,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// What a caller may make of a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No room on the volume.
    Full,
    /// No room within the bounds that an operator set: the volume itself is well.
    NoRoom,
    /// Not writable.
    ReadOnly,
    /// Anything else.
    Unavailable,
}

impl StoreError {
    fn new(operation: &'static str, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreErrorKind::Full,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                StoreErrorKind::ReadOnly
            }
            _ => StoreErrorKind::Unavailable,
        };
        Self { kind, operation, source }
    }

    /// The thread that did the work did not come to its end.
    #[must_use]
    pub fn interrupted(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let source = io::Error::other(source);
        Self { kind: StoreErrorKind::Unavailable, operation: "end a blocking task", source }
    }
}

impl Store {
    /// Opens the volume and removes what dead processes left in its staging folder. A volume that
    /// can not be written is no error: what is on it is served, and [`Store::health`] tells.
    #[must_use]
    pub fn open(config: &Config) -> Self {
        let health = Health::default();
        let blobs = config.dir.join("blobs");
        if let Err(source) = fs::create_dir_all(&blobs) {
            health.report(&StoreError::new("make the folder of blobs", source));
        }
        let calls = Calls::to("the volume");
        let staging = Staging::new(config.dir.join("staging"), &health, calls.clone());
        Self { blobs, staging, health, calls, commit_seconds: None }
    }

    /// Tells `metrics` how long commits take.
    #[must_use]
    pub fn observed(self, metrics: &Metrics) -> Self {
        let seconds = metrics.histogram(
            "aptmesh_store_commit_seconds",
            "How long it took to make a whole download a blob, in seconds: mostly the syncs, which tell how \
             slow the volume is.",
            &COMMIT_SECONDS,
        );
        Self { commit_seconds: Some(seconds), ..self }
    }

    /// Opens a blob; `None` if the volume does not have it.
    ///
    /// # Errors
    /// When the volume can not tell.
    pub fn read(&self, digest: &Sha256) -> Result<Option<Blob>, StoreError> {
        let opened =
            open_to_read(&self.path_of(digest)).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((size, file)) => Ok(Some(Blob { file: Arc::new(file), size })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::new("open a blob", source)),
        }
    }

    /// Whether it is worth trying to store something: not for a while after it failed, nor while it
    /// says nothing.
    #[must_use]
    pub fn takes_blobs(&self) -> bool {
        self.health.is_worth_a_try() && !self.is_stalled()
    }

    /// Tells of an error that nobody could mend. One that is about no more than bounds is none.
    pub fn report(&self, error: &StoreError) {
        self.health.report(error);
    }

    /// Begins a blob whose digest is not known yet. `size` bytes are set aside for it where that is
    /// known, so that a full volume is noticed before the first byte.
    ///
    /// # Errors
    /// When the volume is full or can not be written: to be [reported](Store::report) by who can
    /// not make room.
    pub fn stage(&self, size: Option<u64>) -> Result<Stage, StoreError> {
        self.staging.begin(size)
    }

    /// When the folder of blobs was made, in seconds since 1970; `None` where the file system does not
    /// tell. Blocks.
    #[must_use]
    pub fn made_at(&self) -> Option<i64> {
        let told = statx(CWD, &self.blobs, AtFlags::empty(), StatxFlags::BTIME).ok()?;
        let is_told = told.stx_mask & StatxFlags::BTIME.bits() != 0;
        is_told.then_some(told.stx_btime.tv_sec)
    }

    /// Opens what some process, of those that share the volume, is staging under this
    /// [name](Stage::name); `None` if it does not any more. Blocks.
    ///
    /// # Errors
    /// When the volume can not tell.
    pub fn staged(&self, name: &str) -> Result<Option<File>, StoreError> {
        self.staging.open(name)
    }

    /// How large the volume is, and what it has left. Blocks.
    ///
    /// # Errors
    /// When the volume can not tell.
    pub fn space(&self) -> Result<Space, StoreError> {
        let told = rustix::fs::statvfs(&self.blobs)
            .map_err(|errno| StoreError::new("look for free space", errno.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(told.f_frsize);
        Ok(Space { total: bytes(told.f_blocks), free: bytes(told.f_bavail) })
    }

    /// Makes a staged file the blob `digest`, durably: synced before it is renamed, its folder
    /// synced after. It takes the place of the same blob.
    ///
    /// # Errors
    /// When the volume fails: then there is no blob, or a whole one that may not outlive a crash.
    pub fn commit(&self, stage: Stage, digest: &Sha256) -> Result<Blob, StoreError> {
        let begun = Instant::now();
        let committed = self.publish(stage, digest);
        if let Some(seconds) = &self.commit_seconds {
            seconds.observe(begun.elapsed().as_secs_f64());
        }
        match &committed {
            Ok(_) => self.health.well(),
            Err(error) => self.health.report(error),
        }
        committed
    }

    /// Makes many staged files blobs, durably, for the price of two syncs of the whole file system.
    /// Blocks.
    ///
    /// # Errors
    /// When the volume fails: then some of them may be blobs, and whole ones.
    pub fn commit_all(&self, stages: Vec<(Stage, Sha256)>) -> Result<(), StoreError> {
        let failed = |source| StoreError::new("open the folder of blobs", source);
        let volume = File::open(&self.blobs).map_err(failed)?;
        let sync = || {
            let synced = rustix::fs::syncfs(&volume);
            synced.map_err(|errno| StoreError::new("sync the volume", errno.into()))
        };
        let mut files = Vec::with_capacity(stages.len());
        for (stage, digest) in stages {
            files.push((stage.finish_unsynced()?, digest));
        }
        sync()?;
        for (file, digest) in files {
            let path = self.path_of(&digest);
            let folder = path.parent().unwrap_or(&self.blobs);
            fs::create_dir_all(folder)
                .map_err(|source| StoreError::new("make a folder of blobs", source))?;
            file.keep_as(&path)?;
        }
        sync()
    }

    fn publish(&self, stage: Stage, digest: &Sha256) -> Result<Blob, StoreError> {
        let path = self.path_of(digest);
        let folder = path.parent().unwrap_or(&self.blobs);
        let file = stage.finish()?;
        if !folder.is_dir() {
            fs::create_dir_all(folder)
                .and_then(|()| sync_folder(&self.blobs))
                .map_err(|source| StoreError::new("make a folder of blobs", source))?;
        }
        file.keep_as(&path)?;
        sync_folder(folder).map_err(|source| StoreError::new("sync a folder of blobs", source))?;
        // Opened anew: what is held open from now on can not be written.
        self.read(digest)?
            .ok_or_else(|| StoreError::new("find a new blob", io::ErrorKind::NotFound.into()))
    }

    /// Removes a blob; `false` if there was none. Who has it open reads on, and its room is free when
    /// the last of them is done. Blocks.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn remove(&self, digest: &Sha256) -> Result<bool, StoreError> {
        match fs::remove_file(self.path_of(digest)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StoreError::new("remove a blob", source)),
        }
    }

    /// Removes what processes that died since the start left in their staging folders. Blocks.
    pub fn remove_leftovers(&self) {
        self.staging.remove_leftovers();
    }

    /// Whether new blobs can be stored, in words.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Where a blob is, if it is stored.
    #[must_use]
    pub fn path_of(&self, digest: &Sha256) -> PathBuf {
        let name = digest.to_string();
        let folder = name.get(..2).unwrap_or_default();
        self.blobs.join(folder).join(&name)
    }
}

fn open_to_read(path: &Path) -> io::Result<File> {
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(no_links).open(path)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
