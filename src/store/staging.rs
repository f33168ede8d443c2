//! Files under way. Each process stages in a folder of its own, in which it holds a file locked: a
//! folder whose lock is free belongs to a process that died, and is removed. Network file systems tell
//! their servers of locks on files, and keep those on folders to themselves.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{FallocateFlags, FlockOperation, copy_file_range, fallocate, flock};
use rustix::io::Errno;
use thiserror::Error;
use tokio::runtime::Handle;

use crate::store::{Blob, Calls, Health, StoreError};

/// More than it takes to make a folder and lock it.
const MAKING_MAX: Duration = Duration::from_mins(1);
/// For how long what a process left is kept after its last byte: who followed it may take it over.
const KEPT_FOR: Duration = Duration::from_mins(1);
/// The file in a process's folder that it holds locked.
const LOCK: &str = "lock";

/// What is copied at once where the kernel does not do it, in bytes.
const COPY_BUFFER: usize = 256 * 1024;

/// Where this process stages.
pub(super) struct Staging {
    root: PathBuf,
    /// Made when it is first needed, so that a volume that becomes writable later is used.
    own: Mutex<Option<OwnFolder>>,
    next: AtomicU64,
    calls: Calls,
}

struct OwnFolder {
    path: PathBuf,
    /// Holds the lock for as long as the process lives.
    _lock: File,
}

impl Staging {
    pub(super) fn new(root: PathBuf, health: &Health, calls: Calls) -> Self {
        let staging = Self { root, own: Mutex::new(None), next: AtomicU64::new(0), calls };
        if let Err(error) = staging.folder() {
            health.report(&error);
        }
        staging
    }

    pub(super) fn begin(&self, size: Option<u64>) -> Result<Stage, StoreError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut folder = self.folder()?;
        let mut opened = new_file(&folder.join(number.to_string()));
        // It went with the volume, which is back, or was taken for a dead process's meanwhile.
        if matches!(&opened, Err(error) if error.kind() == io::ErrorKind::NotFound)
            && self.root.is_dir()
        {
            self.give_up(&folder);
            folder = self.folder()?;
            opened = new_file(&folder.join(number.to_string()));
        }
        let path = folder.join(number.to_string());
        let file = opened.map_err(|source| StoreError::new("stage a file", source))?;
        let stage = Stage {
            file: StagedFile { file: Arc::new(file), path, kept: false, calls: self.calls.clone() },
            size: 0,
        };
        match size {
            Some(size) if size > 0 => set_aside(&stage.file.file, size)?,
            _ => {}
        }
        Ok(stage)
    }

    /// What some process is staging.
    pub(super) fn open(&self, name: &str) -> Result<Option<File>, StoreError> {
        let mut parts = Path::new(name).components();
        let is_below = |part: Option<Component<'_>>| matches!(part, Some(Component::Normal(_)));
        if !(is_below(parts.next()) && is_below(parts.next()) && parts.next().is_none()) {
            return Ok(None);
        }
        match super::open_to_read(&self.root.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::new("open a staged file", source)),
        }
    }

    pub(super) fn remove_leftovers(&self) {
        if let Err(error) = remove_dead(&self.root) {
            tracing::warn!(path = ?self.root, %error, "could not clean up in the staging folder");
        }
    }

    fn give_up(&self, folder: &Path) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        // Unless another thread did.
        own.take_if(|own| own.path == folder);
    }

    fn folder(&self) -> Result<PathBuf, StoreError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = own.as_ref() {
            return Ok(folder.path.clone());
        }
        let folder = OwnFolder::make(&self.root)
            .map_err(|source| StoreError::new("make a staging folder", source))?;
        let path = folder.path.clone();
        *own = Some(folder);
        Ok(path)
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// `None` while another process has it locked. Open for writing only where the file system, such as
/// NFS, locks no other files: a volume with such a file can not be made read-only.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut file = File::open(path)?;
    let mut locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    if matches!(locked, Err(Errno::BADF | Errno::ACCESS | Errno::INVAL)) {
        file = OpenOptions::new().read(true).write(true).open(path)?;
        locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    }
    match locked {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

impl OwnFolder {
    fn make(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        remove_dead(root)?;
        let started =
            SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let name = format!("{}-{started}", std::process::id());
        // Locked before it has the name under which another process would look at its lock.
        let unlocked = root.join(format!(".{name}"));
        fs::create_dir(&unlocked)?;
        new_file(&unlocked.join(LOCK))?;
        let lock = lock(&unlocked.join(LOCK))?.ok_or(io::ErrorKind::WouldBlock)?;
        let path = root.join(name);
        fs::rename(&unlocked, &path)?;
        Ok(Self { path, _lock: lock })
    }
}

/// A folder that something is still staged in stays for the next process to remove.
impl Drop for OwnFolder {
    fn drop(&mut self) {
        drop(fs::remove_file(self.path.join(LOCK)));
        drop(fs::remove_dir(&self.path));
    }
}

/// Removes the folders of processes that are gone: the system freed their locks. What can not be
/// looked at or removed is no reason not to stage.
fn remove_dead(root: &Path) -> io::Result<()> {
    for folder in fs::read_dir(root)? {
        let folder = folder?;
        if let Err(error) = remove_if_dead(&folder) {
            tracing::warn!(path = ?folder.path(), %error, "could not clean up in the staging folder");
        }
    }
    Ok(())
}

fn remove_if_dead(folder: &fs::DirEntry) -> io::Result<()> {
    if !folder.file_type()?.is_dir() || is_being_made(folder) {
        return Ok(());
    }
    let path = folder.path();
    let (is_dead, _lock) = match lock(&path.join(LOCK)) {
        Ok(lock) => (lock.is_some(), lock),
        // It is being removed by its owner, or was left by who removed that one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (!is_younger(&folder.metadata()?, MAKING_MAX), None)
        }
        Err(error) => return Err(error),
    };
    let staged = staged_in(&path)?;
    let is_young =
        |file: &fs::DirEntry| file.metadata().is_ok_and(|metadata| is_younger(&metadata, KEPT_FOR));
    // What was written so lately others may still follow.
    if is_dead && !staged.iter().any(is_young) {
        // One that ended well leaves its lock and nothing else.
        if !staged.is_empty() {
            tracing::info!(?path, "removing what a dead process left unfinished");
        }
        fs::remove_dir_all(&path)?;
    }
    Ok(())
}

/// Whether another process may be about to lock the folder.
fn is_being_made(folder: &fs::DirEntry) -> bool {
    folder.file_name().as_encoded_bytes().starts_with(b".")
        && folder.metadata().is_ok_and(|metadata| is_younger(&metadata, MAKING_MAX))
}

/// The files of downloads in a process's folder.
fn staged_in(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let files = fs::read_dir(folder)?;
    let is_staged = |file: &io::Result<fs::DirEntry>| {
        file.as_ref().map_or(true, |file| file.file_name() != LOCK)
    };
    files.filter(is_staged).collect()
}

fn is_younger(metadata: &fs::Metadata, age: Duration) -> bool {
    // What was changed later than now was changed by another clock.
    let age_of = |at: SystemTime| at.elapsed().unwrap_or_else(|error| error.duration());
    metadata.modified().is_ok_and(|at| age_of(at) < age)
}

/// Reads what was written of a staged file, ahead of its end or not. Blocks.
///
/// # Errors
/// When the volume fails, or there is less.
pub fn read_staged(
    file: &File,
    range: Range<u64>,
    mut take: impl FnMut(&[u8]),
) -> Result<(), StoreError> {
    let mut buffer = vec![0; COPY_BUFFER];
    let mut at = range.start;
    while at < range.end {
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let part = buffer.get_mut(..left.min(COPY_BUFFER)).unwrap_or_default();
        let read = file.read_exact_at(part, at);
        read.map_err(|source| StoreError::new("read a staged file", source))?;
        take(part);
        at += part.len() as u64;
    }
    Ok(())
}

/// Why a file could not be copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// It can not be read, which is no fault of the volume.
    #[error("could not read the file")]
    Source(#[source] io::Error),
    /// The volume failed, or is full.
    #[error(transparent)]
    Volume(#[from] StoreError),
}

/// A file under way: written at its end, readable by others up to there.
pub struct Stage {
    file: StagedFile,
    size: u64,
}

impl Stage {
    /// The file, for reading what has been written so far.
    #[must_use]
    pub fn reader(&self) -> Arc<File> {
        Arc::clone(&self.file.file)
    }

    /// Under which name other processes find it: [`Store::staged`](crate::store::Store::staged).
    #[must_use]
    pub fn name(&self) -> String {
        let name = |path: Option<&Path>| {
            path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned()
        };
        let path = &self.file.path;
        format!("{}/{}", name(path.parent()), name(Some(path)))
    }

    /// Bytes written so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes at the end. Blocks.
    ///
    /// # Errors
    /// When the volume fails or is full; what was written before stays readable.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .file
            .write_all_at(bytes, self.size)
            .map_err(|source| StoreError::new("write a staged file", source))?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Writes beyond the end, at byte `offset`: it counts when the stage is [extended](Self::extend_to).
    /// Blocks.
    ///
    /// # Errors
    /// When the volume fails or is full.
    pub fn write_ahead(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.file.write_all_at(bytes, offset);
        written.map_err(|source| StoreError::new("write a staged file", source))
    }

    /// What was written ahead, up to byte `size`, belongs to it.
    pub fn extend_to(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// Copies the first `size` bytes of `source` to the stage, which is empty, within the kernel,
    /// which shares them where the file system can; else by hand. Blocks.
    ///
    /// # Errors
    /// When the volume fails or is full, or the source can not be read.
    pub fn copy_from(&mut self, source: &File, size: u64) -> Result<(), CopyError> {
        let mut offset = 0;
        while offset < size {
            let left = usize::try_from(size - offset).unwrap_or(usize::MAX);
            let own = &*self.file.file;
            match copy_file_range(source, Some(&mut offset), own, Some(&mut self.size), left) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                // Another file system, or one that can not; or it fails, and by hand it shows which
                // of the two does.
                Err(_) => return self.copy_by_hand(source, size),
            }
        }
        Ok(())
    }

    /// Goes on where the stage ends.
    fn copy_by_hand(&mut self, source: &File, size: u64) -> Result<(), CopyError> {
        let mut buffer = vec![0; COPY_BUFFER];
        while self.size < size {
            let read = source.read_at(&mut buffer, self.size).map_err(CopyError::Source)?;
            if read == 0 {
                return Ok(());
            }
            self.append(buffer.get(..read).unwrap_or_default())?;
        }
        Ok(())
    }

    /// What has been written so far, as a blob to be read.
    #[must_use]
    pub fn as_blob(&self) -> Blob {
        Blob { file: self.reader(), size: self.size }
    }

    /// For who syncs many at once.
    pub(super) fn finish_unsynced(self) -> Result<StagedFile, StoreError> {
        let trimmed = self.file.file.set_len(self.size);
        trimmed.map_err(|source| StoreError::new("end a staged file", source))?;
        Ok(self.file)
    }

    pub(super) fn finish(self) -> Result<StagedFile, StoreError> {
        let sync = || {
            // Whatever was set aside beyond the end goes back.
            self.file.file.set_len(self.size)?;
            self.file.file.sync_all()
        };
        sync().map_err(|source| StoreError::new("sync a staged file", source))?;
        Ok(self.file)
    }
}

/// Sets room aside for a staged file, so that its first `size` bytes can be written. Blocks.
///
/// # Errors
/// When the volume does not have it.
pub fn set_aside(file: &File, size: u64) -> Result<(), StoreError> {
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, size) {
        // Some file systems can not: then the write itself will tell.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::INVAL) => Ok(()),
        Err(errno) => Err(StoreError::new("set room aside", errno.into())),
    }
}

/// The file and its name below the staging folder; the name goes with it unless it was kept.
pub(super) struct StagedFile {
    file: Arc<File>,
    path: PathBuf,
    kept: bool,
    calls: Calls,
}

impl StagedFile {
    pub(super) fn keep_as(mut self, path: &Path) -> Result<(), StoreError> {
        fs::rename(&self.path, path).map_err(|source| StoreError::new("name a blob", source))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let path = std::mem::take(&mut self.path);
        match Handle::try_current() {
            // Nobody is to be held up by it.
            Ok(runtime) if self.calls.are_overdue() => {
                drop(runtime.spawn_blocking(move || remove(&path)));
            }
            _ => remove(&path),
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(%error, ?path, "could not remove a staged file");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreErrorKind;

    #[test]
    fn a_source_that_can_not_be_read_is_told_from_a_volume_that_fails() {
        let root = tempfile::TempDir::new().unwrap();
        let staging =
            Staging::new(root.path().join("staging"), &Health::default(), Calls::to("the volume"));
        let path = root.path().join("source");
        fs::write(&path, vec![7; COPY_BUFFER + 1]).unwrap();
        let size = COPY_BUFFER as u64 + 1;
        let copied = |source: &File| {
            let mut stage = staging.begin(Some(size)).unwrap();
            stage.copy_from(source, size).map(|()| stage.size())
        };
        assert_eq!(copied(&File::open(&path).unwrap()).unwrap(), size);
        let only_written = OpenOptions::new().write(true).open(&path).unwrap();
        assert!(matches!(copied(&only_written), Err(CopyError::Source(_))));

        let mut full = staging.begin(None).unwrap();
        full.file.file = Arc::new(File::options().write(true).open("/dev/full").unwrap());
        let failed = full.copy_from(&File::open(&path).unwrap(), size);
        assert!(
            matches!(failed, Err(CopyError::Volume(error)) if error.kind == StoreErrorKind::Full)
        );
    }

    /// A folder as a process leaves it that dies in the middle of a download.
    fn left(root: &Path, with_lock: bool) -> PathBuf {
        let folder = root.join(if with_lock { "7-1" } else { "7-2" });
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("0"), "some bytes").unwrap();
        if with_lock {
            fs::write(folder.join(LOCK), "").unwrap();
        }
        folder
    }

    fn age(path: &Path) {
        let long_ago = SystemTime::now() - MAKING_MAX - KEPT_FOR;
        File::open(path).unwrap().set_modified(long_ago).unwrap();
    }

    #[test]
    fn what_a_dead_process_left_goes_once_nobody_can_follow_it_any_more() {
        let root = tempfile::TempDir::new().unwrap();
        let (locked, bare) = (left(root.path(), true), left(root.path(), false));
        remove_dead(root.path()).unwrap();
        assert!(locked.exists() && bare.exists(), "they were written just now");
        age(&locked.join("0"));
        age(&bare.join("0"));
        remove_dead(root.path()).unwrap();
        assert!(!locked.exists());
        assert!(bare.exists(), "its process may be about to remove it");
        age(&bare);
        remove_dead(root.path()).unwrap();
        assert!(!bare.exists());
    }

    #[test]
    fn the_folder_of_a_living_process_stays() {
        let root = tempfile::TempDir::new().unwrap();
        let alive = OwnFolder::make(root.path()).unwrap();
        fs::write(alive.path.join("0"), "some bytes").unwrap();
        age(&alive.path.join("0"));
        age(&alive.path);
        remove_dead(root.path()).unwrap();
        assert!(alive.path.join("0").exists());
        fs::remove_file(alive.path.join("0")).unwrap();
        let path = alive.path.clone();
        drop(alive);
        assert!(!path.exists(), "its owner removes it");
    }
}
