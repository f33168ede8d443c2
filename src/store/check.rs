//! Reading blobs back: what their bytes are, and whether an open file is still what it was.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::content::digest::{Hasher, Sha256};
use crate::store::{Blob, Store, StoreError};

/// What one step of a [`Reading`] reads, in bytes.
const STEP: usize = 1024 * 1024;
/// Piecewise, so that what is hashed is still in the processor's cache.
const BUFFER: usize = 128 * 1024;
/// How far apart the looks into the page cache are, in bytes: what is read or forgotten there is so in
/// larger pieces than pages, and each look is a system call.
const LOOK_STEP: usize = 256 * 1024;

/// What tells one state of a file from a later one, and from those of other files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which file: the number of its device, and its own on that.
    pub file: (u64, u64),
    /// Bytes.
    pub size: u64,
    /// When it was last changed, in whatever way: seconds since 1970, and nanoseconds.
    pub changed: (i64, i64),
    /// Whether it still has a name.
    pub is_linked: bool,
}

impl Blob {
    /// The open file's state.
    ///
    /// # Errors
    /// When the volume can not tell.
    pub fn stamp(&self) -> io::Result<Stamp> {
        // A network file system does not ask its server: it may be away, and this holds up a thread of
        // the runtime. What it knows it learns when a blob is opened, and from who looks for removed ones.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let told = statx(&*self.file, c"", flags, StatxFlags::BASIC_STATS)?;
        Ok(Stamp {
            file: (
                (u64::from(told.stx_dev_major) << 32) | u64::from(told.stx_dev_minor),
                told.stx_ino,
            ),
            size: told.stx_size,
            changed: (told.stx_ctime.tv_sec, told.stx_ctime.tv_nsec.into()),
            is_linked: told.stx_nlink > 0,
        })
    }

    /// Whether bytes of the first `length` are in the page cache, as far as a look at some of them tells,
    /// so that reading them waits for no disk.
    #[must_use]
    pub fn is_cached(&self, length: u64) -> bool {
        is_cached(&self.file, 0, length)
    }
}

/// The same for any bytes of a file.
#[must_use]
pub fn is_cached(file: &fs::File, offset: u64, length: u64) -> bool {
    let mut byte = [0];
    let end = offset.saturating_add(length);
    let mut is_cached = |at| {
        let read = preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
        read.is_ok_and(|read| read > 0)
    };
    (offset..end).step_by(LOOK_STEP).all(&mut is_cached) && (end == offset || is_cached(end - 1))
}

/// The hashing of a blob, step by step, so that it can be paced.
pub struct Reading {
    file: Arc<fs::File>,
    hasher: Hasher,
    offset: u64,
    is_readable: bool,
}

impl Reading {
    /// Begins.
    #[must_use]
    pub fn of(blob: &Blob) -> Self {
        let file = Arc::clone(&blob.file);
        Self { file, hasher: Hasher::new(None), offset: 0, is_readable: true }
    }

    /// Reads on, at most a megabyte; the number of bytes, 0 at the end. Blocks.
    ///
    /// # Errors
    /// When the volume fails. A place on it that can not be read is none: the blob is bad there.
    pub fn step(&mut self) -> Result<usize, StoreError> {
        let mut buffer = vec![0; BUFFER];
        let mut taken = 0;
        while taken < STEP {
            let read = match self.file.read_at(&mut buffer, self.offset) {
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    self.is_readable = false;
                    return Ok(0);
                }
                read => read.map_err(|source| StoreError::new("read a blob", source))?,
            };
            if read == 0 {
                break;
            }
            self.hasher.update(buffer.get(..read).unwrap_or_default());
            self.offset += read as u64;
            taken += read;
        }
        Ok(taken)
    }

    /// What the bytes are; `None` if some of them can not be read.
    #[must_use]
    pub fn finish(self) -> Option<Sha256> {
        self.is_readable.then(|| self.hasher.finish().sha256)
    }
}

impl Store {
    /// Removes a blob that is not what its name says, unless it has been replaced since `blob` was
    /// opened; `true` if it was removed. Blocks.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn discard(&self, digest: &Sha256, blob: &Blob) -> Result<bool, StoreError> {
        let failed = |source| StoreError::new("look at a blob", source);
        let opened = blob.file.metadata().map_err(failed)?;
        let named = match fs::symlink_metadata(self.path_of(digest)) {
            Ok(named) => named,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(failed(source)),
        };
        if (named.dev(), named.ino()) != (opened.dev(), opened.ino()) {
            return Ok(false);
        }
        self.remove(digest)
    }
}
