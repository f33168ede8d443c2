//! Walking over folders that are not ours, trusting nothing: symbolic links are not followed, and
//! what is opened is looked at again.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::archive::deb;
use crate::archive::kind::Kind;
use crate::index::Identity;

/// Why a file is left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A symbolic link: what it leads to is met where it lies, or is not meant.
    Link,
    /// Neither file nor folder.
    Special,
    /// No bytes.
    Empty,
    /// A folder of downloads that are not finished.
    Unfinished,
    /// What this cache itself stores.
    Own,
    /// A release file: archives have new ones every day, and no list names them.
    Release,
    /// Not of a kind that archives consist of, such as another cache's notes.
    Foreign,
    /// A package that is not whole.
    Damaged,
    /// It changed while it was read.
    Changed,
    /// There would not be room for it if all else went.
    TooLarge,
    /// It can not be read.
    Unreadable(String),
}

impl Reason {
    /// For people.
    #[must_use]
    pub fn words(&self) -> &str {
        match self {
            Self::Link => "symbolic link",
            Self::Special => "neither file nor folder",
            Self::Empty => "empty",
            Self::Unfinished => "folder of unfinished downloads",
            Self::Own => "the cache's own data",
            Self::Release => "release file",
            Self::Foreign => "no file of an archive",
            Self::Damaged => "cut short, or otherwise damaged",
            Self::Changed => "changed while it was read",
            Self::TooLarge => "larger than all that may be stored",
            Self::Unreadable(why) => why,
        }
    }

    /// Whether it would have been taken, were it right.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Damaged | Self::Changed | Self::TooLarge | Self::Unreadable(_))
    }
}

/// What is met on a walk.
pub(in crate::engine) enum Met {
    /// A file that may be taken.
    File(PathBuf, Identity),
    /// What is left out.
    Left(PathBuf, Reason),
}

/// Walks over a file or a folder and all below it, but for what is below `own`. Ends early when
/// `meet` says no. Blocks.
pub(in crate::engine) fn walk(root: &Path, own: &Path, meet: &mut dyn FnMut(Met) -> bool) {
    // What is named by hand may be a link; nothing below it is followed.
    let (root, own) =
        (fs::canonicalize(root).unwrap_or(root.to_owned()), fs::canonicalize(own).ok());
    let mut folders = Vec::new();
    let look_at = |path: PathBuf, folders: &mut Vec<PathBuf>, meet: &mut dyn FnMut(Met) -> bool| {
        match fs::symlink_metadata(&path) {
            Err(error) => meet(Met::Left(path, unreadable(&error))),
            Ok(found) if found.is_dir() && own.as_ref() == Some(&path) => {
                meet(Met::Left(path, Reason::Own))
            }
            Ok(found)
                if found.is_dir() && path.file_name().is_some_and(|name| name == "partial") =>
            {
                meet(Met::Left(path, Reason::Unfinished))
            }
            Ok(found) if found.is_dir() => {
                folders.push(path);
                true
            }
            Ok(found) => match outer_reason(&path, &found) {
                Some(reason) => meet(Met::Left(path, reason)),
                None => meet(Met::File(path, identity_of(&found))),
            },
        }
    };
    if !look_at(root, &mut folders, meet) {
        return;
    }
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if meet(Met::Left(folder, unreadable(&error))) => continue,
            Err(_) => return,
        };
        for entry in entries {
            let goes_on = match entry {
                Ok(entry) => look_at(entry.path(), &mut folders, meet),
                Err(error) => meet(Met::Left(folder.clone(), unreadable(&error))),
            };
            if !goes_on {
                return;
            }
        }
    }
}

/// What can be told without opening it.
fn outer_reason(path: &Path, found: &Metadata) -> Option<Reason> {
    if found.is_symlink() {
        return Some(Reason::Link);
    }
    if !found.is_file() {
        return Some(Reason::Special);
    }
    if found.len() == 0 {
        return Some(Reason::Empty);
    }
    (Kind::of(&path.to_string_lossy()) == Kind::Release).then_some(Reason::Release)
}

/// Opens a file that was met and looks into it.
pub(in crate::engine) fn open(path: &Path, identity: &Identity) -> Result<File, Reason> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = opened.map_err(|error| unreadable(&error))?;
    if identity_of_open(&file)? != *identity {
        return Err(Reason::Changed);
    }
    look_into(path, &file, identity.size)?;
    Ok(file)
}

/// The state of an open regular file.
pub(in crate::engine) fn identity_of_open(file: &File) -> Result<Identity, Reason> {
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if metadata.is_file() { Ok(identity_of(&metadata)) } else { Err(Reason::Special) }
}

/// What is a package by its name must be whole; what is none by its name may still be one, as other
/// caches give them names of their own.
fn look_into(path: &Path, file: &File, size: u64) -> Result<(), Reason> {
    let name = path.to_string_lossy();
    let has_ending = ["deb", "udeb", "ddeb"]
        .iter()
        .any(|ending| path.extension().is_some_and(|own| own == *ending));
    let header = |offset| {
        let mut header = [0; deb::HEADER];
        file.read_exact_at(&mut header, offset).ok().map(|()| header)
    };
    match deb::check(size, header) {
        Err(deb::DebError::Damaged) => Err(Reason::Damaged),
        Err(deb::DebError::Foreign) if has_ending => Err(Reason::Damaged),
        Err(deb::DebError::Foreign) if Kind::of(&name) == Kind::Other => Err(Reason::Foreign),
        _ => Ok(()),
    }
}

fn identity_of(metadata: &Metadata) -> Identity {
    let nanos =
        |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    Identity {
        size: metadata.len(),
        modified: nanos(metadata.mtime(), metadata.mtime_nsec()),
        changed: nanos(metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
    }
}

pub(in crate::engine) fn unreadable(error: &io::Error) -> Reason {
    Reason::Unreadable(error.to_string())
}
