//! Finding the keys that archives sign with: the system's, and what the operator names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::archive::signature::Keyring;

/// Where Debian's and Ubuntu's packages and administrators put the keys that apt trusts.
const SYSTEM: [&str; 3] = ["/usr/share/keyrings", "/etc/apt/keyrings", "/etc/apt/trusted.gpg.d"];
/// Keys that archives do not sign with any more.
const REMOVED: &str = "removed-keys";
/// Endings of keyring files, as apt knows them (`SignedBy` in sources.list(5)).
const ENDINGS: [&str; 3] = ["gpg", "asc", "pgp"];

/// All keys of the system's keyrings and of those named, files or folders.
///
/// Of the system's, what can not be read is passed over; what was named and can not be read is the
/// error.
pub(super) fn read(named: &[PathBuf]) -> Result<Keyring, (PathBuf, String)> {
    let mut keyring = Keyring::default();
    let system = SYSTEM.iter().flat_map(|folder| files_in(Path::new(folder)).unwrap_or_default());
    for file in system.filter(|file| !file.to_string_lossy().contains(REMOVED)) {
        if let Err(error) = add(&mut keyring, &file) {
            tracing::debug!(?file, error, "passing over a keyring");
        }
    }
    add_named(&mut keyring, named)?;
    Ok(keyring)
}

/// Adds the keys in files and folders that the operator named.
pub(super) fn add_named(keyring: &mut Keyring, named: &[PathBuf]) -> Result<(), (PathBuf, String)> {
    for path in named {
        let fault = |why: String| (path.clone(), why);
        let files = if path.is_dir() {
            files_in(path).map_err(|error| fault(error.to_string()))?
        } else {
            vec![path.clone()]
        };
        for file in files {
            add(keyring, &file).map_err(fault)?;
        }
    }
    Ok(())
}

fn add(keyring: &mut Keyring, file: &Path) -> Result<(), String> {
    let bytes = fs::read(file).map_err(|error| error.to_string())?;
    keyring.add(&bytes).map(drop).map_err(|error| error.to_string())
}

fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
